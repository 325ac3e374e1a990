//! Whatever pulls images on an agent trusts the registry by what a node has written there, and by nothing else.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::support::Cluster;
use serde_json::json;

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
/// Where no trust is.
const NOTHING: &str = "/tmp/no-trust";

#[test]
fn every_puller_of_an_agent_verifies_the_registry_with_what_the_node_has_written() {
    let cluster = Cluster::start(2, 0);
    cluster.install_and_wait(&json!({ "registry": { "host": HOST } }));
    cluster.sh_ok(OTHER, &format!("mkdir {NOTHING}"));
    dockers_own(&cluster);
    curl_and_that_of_dcos(&cluster);
    skopeo_and_podman(&cluster);
    containerd(&cluster);
    cluster.assert_servers_answered_as_the_real_ones();
}

/// Runs what has to be refused for want of trust.
fn refused(cluster: &Cluster, line: &str, words: &str) {
    let output = cluster.sh(OTHER, line);
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(!output.status.success() && said.contains(words), "{line}: {said}");
}

fn dockers_own(cluster: &Cluster) {
    println!("docker {}", cluster.sh_ok(OTHER, "docker version --format '{{.Server.Version}}'"));
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");
    // Both spellings of the port that is the usual one.
    for name in ["192.168.0.1", "192.168.0.1:443"] {
        cluster.sh_ok(HOST, &format!("docker pull -q {name}/base/hello:1 && docker rmi {name}/base/hello:1"));
    }
}

#[test]
#[ignore = "needs the dockerd that `ci/moby` makes with a current Go"]
fn a_current_docker_verifies_the_registry_as_well() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/moby/dockerd");
    assert!(program.exists(), "make it with ci/moby");
    let cluster = Cluster::start(2, 0);
    cluster.install_and_wait(&json!({ "registry": { "host": HOST } }));
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");
    let there = cluster.lab.path().join("agents").join(OTHER).join("root/tmp/dockerd");
    fs::hard_link(&program, &there).or_else(|_| fs::copy(&program, &there).map(drop)).unwrap();
    let start = "mkdir -p /run/second /data/second && setsid /tmp/dockerd --host unix:///run/second/docker.sock --data-root /data/second \
                 --exec-root /run/second/exec --pidfile /run/second/pid --bridge none --iptables=false --ip6tables=false \
                 --storage-driver vfs >/tmp/second.log 2>&1 </dev/null &";
    cluster.sh_ok(OTHER, start);
    let docker = "DOCKER_HOST=unix:///run/second/docker.sock docker";
    let answers = || cluster.sh(OTHER, &format!("{docker} version")).status.success();
    if !(0..100).any(|_| {
        answers() || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            false
        }
    }) {
        panic!("{}", cluster.sh(OTHER, "tail -n 20 /tmp/second.log").stdout);
    }
    println!(
        "docker {} ({})",
        cluster.sh_ok(OTHER, &format!("{docker} version --format '{{{{.Server.APIVersion}}}}'")),
        cluster.sh_ok(OTHER, "/tmp/dockerd --version")
    );
    cluster.sh_ok(OTHER, &format!("{docker} pull -q 192.168.0.1/base/hello:1"));
    cluster.sh_ok(OTHER, &format!("{docker} tag 192.168.0.1/base/hello:1 192.168.0.1:443/second/hello:1"));
    cluster.sh_ok(OTHER, &format!("{docker} push -q 192.168.0.1:443/second/hello:1"));
    cluster.sh_ok(OTHER, "kill $(cat /run/second/pid)");
}

fn curl_and_that_of_dcos(cluster: &Cluster) {
    let url = "https://192.168.0.1/v2/_catalog";
    refused(cluster, &format!("curl -sS --capath {NOTHING} --cacert /dev/null {url}"), "certificate");
    for curl in ["curl --capath /var/lib/dcos/pki/tls/certs", "/opt/mesosphere/bin/curl"] {
        assert!(cluster.sh_ok(OTHER, &format!("{curl} -sSf {url}")).contains("base/hello"));
    }
}

/// Both look into docker's folder by themselves.
fn skopeo_and_podman(cluster: &Cluster) {
    println!("{}, {}", cluster.sh_ok(OTHER, "skopeo --version"), cluster.sh_ok(OTHER, "podman --version"));
    let image = "192.168.0.1/base/hello:1";
    refused(cluster, &format!("skopeo inspect --cert-dir {NOTHING} docker://{image}"), "x509");
    for options in ["", "--cert-dir /etc/docker/certs.d/192.168.0.1"] {
        cluster.sh_ok(OTHER, &format!("skopeo inspect {options} docker://{image}"));
    }
    cluster.sh_ok(
        OTHER,
        &format!("skopeo copy docker://{image} dir:/tmp/skopeo && skopeo copy dir:/tmp/skopeo docker://192.168.0.1/skopeo/hello:1"),
    );
    let podman = "podman --storage-driver vfs --root /data/podman --runroot /run/podman-test";
    refused(cluster, &format!("{podman} pull --cert-dir {NOTHING} {image}"), "x509");
    cluster.sh_ok(OTHER, &format!("{podman} pull -q {image} && {podman} tag {image} 192.168.0.1/podman/hello:1"));
    cluster.sh_ok(OTHER, &format!("{podman} push -q 192.168.0.1/podman/hello:1"));
}

/// It takes docker's folder as its own, and what `ca --for containerd` says.
fn containerd(cluster: &Cluster) {
    let ctr = "ctr --address /run/docker/containerd/containerd.sock --namespace pullers images";
    let image = "192.168.0.1/base/hello:1";
    println!("{}", cluster.sh_ok(OTHER, "containerd --version"));
    refused(cluster, &format!("{ctr} pull --hosts-dir {NOTHING} {image}"), "x509");
    cluster.sh_ok(OTHER, &format!("{ctr} pull --hosts-dir /etc/docker/certs.d {image}"));
    cluster.sh_ok(OTHER, &format!("{ctr} push --hosts-dir /etc/docker/certs.d 192.168.0.1/containerd/hello:1 {image}"));
    let said = cluster.dcos_ok(&["private-registry", "ca", "--for", "containerd"]);
    let ca = cluster.dcos_ok(&["private-registry", "ca"]);
    fs::write(cluster.lab.path().join("agents").join(OTHER).join("root/tmp/ca.pem"), ca).unwrap();
    let lines: Vec<String> =
        said.lines().filter(|line| !line.starts_with('#')).map(|line| line.replace("/etc/containerd/", "/tmp/containerd/")).collect();
    cluster.sh_ok(OTHER, &format!("cd /tmp\n{}", lines.join("\n")));
    cluster.sh_ok(OTHER, &format!("{ctr} rm {image} && {ctr} pull --hosts-dir /tmp/containerd/certs.d {image}"));
}
