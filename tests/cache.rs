//! A second installation is a cache of a registry outside, beside the first one.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::Cluster;
use crate::upstream::{UPSTREAM, Upstream};
use lab::server::{NEWEST, Security};
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const PASSWORD: &str = "/etc/registry-secrets/hub";

fn mirror(cluster: &Cluster) -> Option<Value> {
    let (code, text) = cluster.http("GET", "/service/mirror/v1/status", None);
    (code == 200).then(|| serde_json::from_str(&text).ok())?
}

#[test]
fn a_second_installation_caches_a_registry_outside_and_goes_on_while_that_is_away() {
    let cluster = Cluster::start_with(&["registry3.tar"], 2, 0, NEWEST, Security::Open);
    let upstream = Upstream::start(&cluster, true);
    cluster.install_and_wait(&json!({ "registry": { "host": OTHER }, "exposure": { "marathon_lb": false } }));
    // The password is a file of the registry's agent; an editor has ended its line.
    let file = cluster.lab.path().join("agents").join(HOST).join("root").join(&PASSWORD[1..]);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "wonderland\n").unwrap();
    let output = cluster.install(&json!({
        "service": { "name": "mirror" },
        "names": { "vip": "192.168.0.2:443", "named_vip": "mirror:5000" },
        "registry": { "name": "mirror-registry", "host": HOST, "storage_path": "/data/mirror" },
        "exposure": { "marathon_lb": false },
        "proxy": { "remote_url": format!("https://{UPSTREAM}"), "username": "alice", "password": PASSWORD },
        "other_registries": { "list": UPSTREAM, "ca": upstream.ca() },
    }));
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    cluster.wait("the cache", 120, || mirror(&cluster).is_some_and(|status| status["converged"] == true));

    pulls(&cluster, OTHER, "base/hello:1");
    upstream.stop(&cluster);
    pulls(&cluster, OTHER, "base/hello:1");
    // From an agent that has never asked for it.
    pulls(&cluster, HOST, "base/hello:1");
    assert!(!cluster.sh(HOST, "docker pull -q 192.168.0.2/base/unknown:1").status.success());

    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.2/own/image:1");
    let pushed = cluster.sh(OTHER, "docker push 192.168.0.2/own/image:1");
    assert!(!pushed.status.success() && pushed.stderr.contains("unsupported"), "{}", pushed.stderr);
    let shown = mirror(&cluster).unwrap();
    assert!(shown["registry"].as_str().unwrap().contains(UPSTREAM), "{}", shown["registry"]);
    assert!(!shown.to_string().contains("wonderland"));
    let app = cluster.get("/marathon/v2/apps/mirror-registry").to_string();
    assert!(!app.contains("wonderland"), "{app}");
    let collected = cluster.dcos(&["private-registry", "gc", "--name", "mirror"]);
    assert!(!collected.status.success() && collected.stdout.contains("a cache of another one"), "{}", collected.stdout);

    the_other_generation_goes_on_with_what_is_in_the_cache(&cluster, &upstream);

    // Both are trusted by everybody, and each takes away only its own.
    let trusted = || cluster.sh_ok(OTHER, "ls /etc/docker/certs.d");
    assert_eq!(trusted().lines().filter(|name| name.starts_with("192.168.0.")).count(), 4, "{}", trusted());
    cluster.sh_ok(HOST, "docker tag canary:1 192.168.0.1/own/image:1 && docker push -q 192.168.0.1/own/image:1");
    cluster.dcos_ok(&["package", "uninstall", "private-registry", "--app-id=/mirror", "--yes"]);
    cluster.wait("the end of the cache", 120, || {
        cluster.ids_at_marathon().iter().all(|id| !id.contains("mirror")) && cluster.jobs().iter().all(|job| !job.starts_with("mirror."))
    });
    assert!(trusted().contains("192.168.0.1") && !trusted().contains("192.168.0.2"), "{}", trusted());
    cluster.sh_ok(HOST, "docker rmi 192.168.0.1/own/image:1 && docker pull -q 192.168.0.1/own/image:1");
    cluster.assert_servers_answered_as_the_real_ones();
}

/// Docker on this agent pulls from the cache, whether it has the image or not.
fn pulls(cluster: &Cluster, agent: &str, image: &str) {
    let image = format!("192.168.0.2/{image}");
    cluster.sh_ok(agent, &format!("docker rmi -f {image} >/dev/null 2>&1; docker pull -q {image}"));
}

/// The program asks the other registry at its start. Generation 3 logs in also where there is no authorisation server.
fn the_other_generation_goes_on_with_what_is_in_the_cache(cluster: &Cluster, upstream: &Upstream) {
    cluster.update_service("mirror", &json!({ "registry": { "generation": "3" } }));
    let is_three = |status: &Value| status["converged"] == true && status["registry_version"].as_str().is_some_and(|v| v.starts_with("3."));
    let words = format!("a cache starts only while https://{UPSTREAM} answers");
    cluster.wait("the word that the other registry is away", 60, || {
        mirror(cluster).is_some_and(|status| status["problems"].to_string().contains(&words))
    });
    upstream.ask_by_htpasswd();
    upstream.resume(cluster);
    cluster.wait("generation 3", 90, || mirror(cluster).is_some_and(|status| is_three(&status)));
    pulls(cluster, HOST, "base/hello:1");
    upstream.push(cluster, "base/later:1");
    pulls(cluster, OTHER, "base/later:1");
    upstream.stop(cluster);
    ["base/hello:1", "base/later:1"].iter().for_each(|image| pulls(cluster, HOST, image));
    // As the push of docker's, which tries it again for half a minute.
    let post =
        "curl -s -o /dev/null -w %{http_code} -X POST --capath /var/lib/dcos/pki/tls/certs https://192.168.0.2/v2/own/image/blobs/uploads/";
    assert_eq!(cluster.sh_ok(OTHER, post), "405");
}
