//! Quirks of older versions of DC/OS, where the lab can show them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::support::Cluster;
use lab::host::AgentRole;
use lab::server::{NEWEST, Pose};
use serde_json::{Value, json};

/// Hosts of a pod's instances, one entry an instance.
fn hosts(cluster: &Cluster, pod: &str) -> Vec<String> {
    let status = cluster.get(&format!("/marathon/v2/pods{pod}::status"));
    status["instances"].as_array().unwrap().iter().map(|i| i["agentHostname"].as_str().unwrap().to_owned()).collect()
}

/// What every version must come to: all agents are trusted, one that joins as well, and nothing is left in the end.
fn a_whole_life(cluster: &Cluster, joining: &Value) {
    let before = cluster.pictures();
    cluster.install_and_wait(&json!({ "registry": { "host": "192.168.1.80" }, "exposure": { "marathon_lb": false } }));
    let new = cluster.lab.control("POST", "/agents", Some(joining)).unwrap()["ip"].as_str().unwrap().to_owned();
    cluster.wait("the new agent to be trusted", 60, || cluster.agent_state(&new).is_some_and(|(state, _)| state == "trusted"));
    let pull = "docker tag canary:1 192.168.0.1/a/b:1 && docker push -q 192.168.0.1/a/b:1";
    cluster.sh_ok("192.168.1.80", pull);
    cluster.sh_ok(&new, "docker pull -q 192.168.0.1/a/b:1");
    the_mesos_containerizer_runs_an_image_of_the_registry(cluster, "192.168.1.80");
    cluster.uninstall();
    cluster.assert_as_before(&before);
    cluster.assert_servers_answered_as_the_real_ones();
}

/// By its own puller, which trusts what DC/OS' curl trusts. Before Mesos 1.8 it understands schema 1 only, which the registry has to make.
fn the_mesos_containerizer_runs_an_image_of_the_registry(cluster: &Cluster, agent: &str) {
    let app = json!({
        "id": "/by-mesos", "cmd": "echo from the image >$MESOS_SANDBOX/said; exec /bin/busybox sleep 1000", "cpus": 0.1, "mem": 32,
        "container": { "type": "MESOS", "docker": { "image": "192.168.0.1/a/b:1" } },
        "constraints": [["hostname", "LIKE", agent.replace('.', "\\.")]],
    });
    assert_eq!(cluster.marathon("POST", "/apps", &app).0, 201);
    cluster.wait("the image to run", 90, || cluster.get("/marathon/v2/apps/by-mesos")["app"]["tasksRunning"] == 1);
    let said = "find /var/lib/mesos -path '*by-mesos*' -name said -exec cat {} +";
    cluster.wait("its word", 10, || cluster.sh(agent, said).stdout == "from the image\n");
    assert_eq!(cluster.marathon("DELETE", "/apps/by-mesos", &Value::Null).0, 200);
    cluster.wait("its end", 30, || cluster.is_calm());
}

#[test]
fn dcos_1_9_is_served_from_the_first_agent_to_the_last_trace() {
    a_whole_life(&Cluster::start_on("1.9.0", 1, 1), &json!({ "role": "private" }));
}

/// From here on Marathon keeps agents with GPUs for those who ask, and it declines other regions' already.
#[test]
fn dcos_1_13_is_served_from_the_first_agent_to_the_last_trace() {
    a_whole_life(&Cluster::start_on("1.13.0", 1, 1), &json!({ "role": "private", "gpus": 2, "region": "far" }));
}

/// The definitions of every version, and what it stores of them; 1.9.0, 1.13.0 and 2.2.1 have tests of their own.
#[test]
fn every_other_version_takes_what_it_is_given_and_comes_to_the_same() {
    let tested = ["1.9.0", "1.13.0", NEWEST];
    for version in Pose::versions().into_iter().filter(|version| !tested.contains(version)) {
        let cluster = Cluster::start_on(version, 1, 1);
        cluster.install_and_wait(&json!({ "exposure": { "marathon_lb": false } }));
        let status = cluster.status().unwrap();
        assert_eq!((&status["problems"], &status["trouble"]), (&json!([]), &Value::Null), "DC/OS {version}");
        cluster.sh_ok("192.168.1.50", "docker tag canary:1 192.168.0.1/a/b:1 && docker push -q 192.168.0.1/a/b:1");
        cluster.uninstall();
        // Of these versions there are no recordings, or thin ones of a near one.
        cluster.assert_nothing_was_lost();
    }
}

/// Marathon 1.4.2 (DC/OS 1.9.0) was seen to put two instances of a UNIQUE pod on one agent when the pod is scaled.
#[test]
fn a_marathon_that_forgets_unique_gets_one_node_on_every_agent_all_the_same() {
    let cluster = Cluster::start_on("1.9.0", 2, 0);

    // First that the lab shows the fault at all: a plain pod, scaled as anybody would.
    let pod = |instances: u64| {
        json!({
            "id": "/plain", "user": "root", "networks": [{ "mode": "host" }], "scaling": { "kind": "fixed", "instances": instances },
            "containers": [{ "name": "c", "exec": { "command": { "shell": "sleep 100000" } }, "resources": { "cpus": 0.1, "mem": 32 } }],
            "scheduling": { "placement": { "constraints": [{ "fieldName": "hostname", "operator": "UNIQUE" }] } },
        })
    };
    assert_eq!(cluster.marathon("POST", "/pods", &pod(1)).0, 201);
    cluster.wait("the first instance", 30, || hosts(&cluster, "/plain").len() == 1 && cluster.is_calm());
    assert_eq!(cluster.marathon("PUT", "/pods/plain", &pod(2)).0, 200);
    cluster.wait("the second instance", 30, || hosts(&cluster, "/plain").len() == 2);
    let plain = hosts(&cluster, "/plain");
    assert_eq!(plain[0], plain[1], "the lab does not show the fault");
    assert_eq!(cluster.marathon("DELETE", "/pods/plain?force=true", &Value::Null).0, 202);
    cluster.wait("its end", 30, || cluster.is_calm());

    cluster.install_and_wait(&json!({ "registry": { "host": "192.168.1.80" }, "exposure": { "marathon_lb": false } }));
    for _ in 0..2 {
        cluster.lab.add_agent(AgentRole::Private).unwrap();
        cluster.wait("the new agent to be covered", 60, || {
            let covered = hosts(&cluster, "/private-registry-node");
            covered.len() == cluster.agents().len() && covered.iter().collect::<BTreeSet<_>>().len() == covered.len()
        });
        cluster.wait_converged();
    }
    cluster.uninstall();
}
