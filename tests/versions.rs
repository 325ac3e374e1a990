//! Quirks of older versions of DC/OS, where the lab can show them.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use lab::host::AgentRole;
use serde_json::{Value, json};
use support::Cluster;

/// Hosts of a pod's instances, one entry an instance.
fn hosts(cluster: &Cluster, pod: &str) -> Vec<String> {
    let status = cluster.get(&format!("/marathon/v2/pods{pod}::status"));
    status["instances"].as_array().unwrap().iter().map(|i| i["agentHostname"].as_str().unwrap().to_owned()).collect()
}

/// Marathon 1.4.2 (DC/OS 1.9.0) was seen to put two instances of a UNIQUE pod on one agent when the pod is scaled.
#[test]
fn a_marathon_that_forgets_unique_gets_one_node_on_every_agent_all_the_same() {
    let cluster = Cluster::start(2, 0);
    cluster.lab.control("POST", "/marathon-version/1.4.2", None).unwrap();

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
