//! `ci/acceptance` against the lab, which is just one cluster to it.

#![allow(clippy::unwrap_used)]

use crate::support::{ADMIN, Cluster, made};
use serde_json::json;

#[test]
fn the_acceptance_of_a_cluster_passes_and_leaves_it_as_it_was() {
    let cluster = Cluster::start(2, 1);
    cluster.dcos_ok(&["package", "repo", "remove", "lab"]);
    let repositories = || {
        // Without any it is a failure to the CLI.
        let output = cluster.dcos(&["package", "repo", "list"]);
        output.stdout + &output.stderr
    };
    let before = repositories();
    let script = made("ci/acceptance");
    let argv = [script.to_str().unwrap(), "--url", ADMIN, "--repo", "http://universe.lab:8000/repo.json"];
    let output = cluster.lab.exec("master", &argv).unwrap();
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    assert!(output.stdout.ends_with("16 passed, 0 failed\n"), "{}", output.stdout);
    assert_eq!(cluster.ids_at_marathon(), Vec::<String>::new());
    assert_eq!(repositories(), before);

    // The same without Admin Router, as on open-source Mesos, Marathon and Metronome.
    let parts = ["mesos:5050", "marathon:8080", "metronome:9000", "cosmos:80"].map(|part| part.split_once(':').unwrap());
    let urls = parts.map(|(server, port)| [format!("--{server}"), format!("http://192.168.1.69:{port}")]).concat();
    let mut without = vec![argv[0]];
    without.extend(urls.iter().map(String::as_str));
    without.extend(&argv[3..]);
    let output = cluster.lab.exec("master", &without).unwrap();
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    assert!(output.stdout.contains("n/a     the plugin") && output.stdout.ends_with("15 passed, 0 failed\n"), "{}", output.stdout);
    assert_eq!(repositories(), before);

    // It can fail: here somebody has the service port.
    let other = json!({
        "id": "/other", "cpus": 0.1, "mem": 32, "container": { "type": "DOCKER", "docker": { "image": "canary:1", "network": "BRIDGE",
            "portMappings": [{ "containerPort": 80, "servicePort": 5000 }] } },
    });
    assert_eq!(cluster.marathon("POST", "/apps", &other).0, 201);
    let mut impatient = argv.to_vec();
    impatient.extend(["--patience", "15"]);
    let refused = cluster.lab.exec("master", &impatient).unwrap();
    assert!(!refused.status.success());
    assert!(refused.stdout.contains("FAILED  every agent is proven"), "{}{}", refused.stdout, refused.stderr);
    cluster.wait("what it had installed to go", 60, || cluster.ids_at_marathon() == ["/other"]);
    assert_eq!(repositories(), before);
    cluster.assert_servers_answered_as_the_real_ones();
}
