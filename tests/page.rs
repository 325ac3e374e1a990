//! The status page as a browser gets it: through Admin Router, of a service that runs, and while its CA is replaced.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use crate::support::Cluster;

const HOST: &str = "192.168.1.80";
const PAGE: &str = "/service/private-registry/";

#[test]
fn the_page_comes_through_admin_router_and_what_happens_follows_it_as_a_stream() {
    let cluster = Cluster::start(2, 0);
    cluster.install_and_wait(&json!({ "registry": { "host": HOST }, "exposure": { "marathon_lb": false } }));
    the_page_says_what_the_service_is_made_of(&cluster);
    let events = events_file(&cluster);
    let listen = format!("timeout 120 curl -sN {}{PAGE}v1/events >{events} & echo $! >{events}.pid; wait", cluster.admin());
    std::thread::scope(|scope| {
        scope.spawn(|| cluster.sh("master", &listen));
        a_rotation_is_told_as_it_goes_on(&cluster);
        cluster.sh_ok("master", &format!("kill $(cat {events}.pid)"));
    });
    cluster.uninstall();
    cluster.assert_servers_answered_as_the_real_ones();
}

fn the_page_says_what_the_service_is_made_of(cluster: &Cluster) {
    let answer = cluster.sh_ok("master", &format!("curl -sif {}{PAGE}", cluster.admin()));
    let (headers, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(headers.to_lowercase().contains("content-security-policy: default-src 'none'; style-src 'sha256-"), "{headers}");
    for said in [
        ">All is well<",
        "2 of 2 agents are proven to trust the registry",
        "<th scope=\"row\" role=\"rowheader\">192.168.1.81</th><td role=\"cell\" class=\"trusted\">trusted</td>",
        "docker push 192.168.0.1/team/app:1",
        "Certificate on 192.168.1.80",
        "CA, signs",
        "(in 4 years)",
        "<code>192.168.0.1:443</code></th><td>VIP</td><td>inside</td>",
        "sign a certificate for the registry",
        "none: everybody may come in",
    ] {
        assert!(page.contains(said), "the page lacks {said}: {}", page.split("<script>").next().unwrap());
    }
    let status = cluster.status().unwrap();
    assert!(status["agents"].as_array().unwrap().iter().all(|agent| agent["proven_at"].as_u64() > Some(1_500_000_000)), "{status:#}");
    assert_eq!(status["registries"][0]["fingerprint"].as_str().map(str::len), Some(64), "{status:#}");
}

/// Where the stream is written: a file of this lab, for the master's disk is that of the machine.
fn events_file(cluster: &Cluster) -> String {
    cluster.lab.path().join("page-events").display().to_string()
}

/// The events so far; signs of life are null.
fn events(cluster: &Cluster) -> Vec<Value> {
    let text = cluster.sh("master", &format!("cat {}", events_file(cluster))).stdout;
    let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
    let data = |event: &str| event.strip_prefix("data: ").map_or(Value::Null, |data| serde_json::from_str(data).unwrap());
    whole.split("\n\n").filter(|event| !event.is_empty()).map(data).collect()
}

fn a_rotation_is_told_as_it_goes_on(cluster: &Cluster) {
    cluster.wait("the first event", 10, || !events(cluster).is_empty());
    let first = events(cluster).remove(0);
    assert!(first["whole"] == true && first["agents"].as_array().unwrap().len() == 2, "{first}");
    let before = cluster.status().unwrap()["ca_fingerprint"].clone();
    cluster.dcos_ok(&["job", "run", "private-registry.rotate"]);
    let told = |what: &str| {
        let parts = events(cluster).into_iter().skip(1).filter(|event| event["whole"] == false);
        parts.map(|event| event["parts"].to_string()).any(|parts| parts.contains(what))
    };
    cluster.wait("the rotation in the stream", 60, || told("aria-current=\\\"step\\\"") && told("sign with the new CA"));
    cluster.wait_converged();
    let after = cluster.status().unwrap()["ca_fingerprint"].clone();
    assert_ne!(before, after);
    cluster.wait("the end of the rotation in the stream", 30, || told("trust the old CA no more"));
    // When nothing happens there are signs of life.
    cluster.wait("a sign of life", 30, || events(cluster).last().is_some_and(Value::is_null));
}
