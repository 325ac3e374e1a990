//! Agents that are divided among several node pods, by the last digits of their host names.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use crate::support::Cluster;
use lab::host::AgentRole;
use lab::server::{NEWEST, Security};
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
/// Its number ends as that of the first one.
const PUBLIC: &str = "192.168.1.50";

/// The node pods with their definitions, and their instances by the agents where they are.
fn pods(cluster: &Cluster) -> BTreeMap<String, (Value, BTreeMap<String, String>)> {
    let all = cluster.get("/marathon/v2/pods/::status");
    let pods = all.as_array().unwrap().iter().map(|pod| {
        let word = |instance: &Value, key: &str| instance[key].as_str().unwrap_or_default().to_owned();
        let instances = pod["instances"].as_array().unwrap().iter().map(|i| (word(i, "agentHostname"), word(i, "id"))).collect();
        (word(&pod["spec"], "id"), (pod["spec"].clone(), instances))
    });
    pods.collect()
}

/// Where the nodes of each pod are.
fn placed(cluster: &Cluster) -> BTreeMap<String, BTreeSet<String>> {
    pods(cluster).into_iter().map(|(id, (_, instances))| (id, instances.into_keys().collect())).collect()
}

fn expected(pods: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
    let pod = |(class, hosts): &(&str, &[&str])| {
        let id = format!("/private-registry-node-{class}");
        (id, hosts.iter().map(|host| (*host).to_owned()).collect())
    };
    pods.iter().map(pod).collect()
}

#[test]
fn agents_of_several_pods_come_and_go_and_are_told_and_cleaned_as_those_of_one() {
    let cluster = Cluster::start(2, 1);
    let before = cluster.pictures();
    let shards =
        |shards: &str| json!({ "registry": { "host": HOST }, "exposure": { "marathon_lb": false }, "trust": { "shards": shards } });
    cluster.install_and_wait(&shards("10"));
    assert_eq!(placed(&cluster), expected(&[("0", &[HOST, PUBLIC]), ("1", &[OTHER])]));

    // Who joins makes a pod of his own, or one larger, and nobody's class changes.
    let first = pods(&cluster);
    let new = cluster.lab.add_agent(AgentRole::Private).unwrap();
    cluster.wait("the new agent to be trusted", 60, || cluster.agent_state(&new).is_some_and(|(state, _)| state == "trusted"));
    cluster.wait_converged();
    assert_eq!(placed(&cluster), expected(&[("0", &[HOST, PUBLIC]), ("1", &[OTHER]), (&new[new.len() - 1..], &[&new])]));
    let now = pods(&cluster);
    first.keys().for_each(|id| assert_eq!(first[id], now[id], "{id} was written, though nobody of it has come"));

    // A rotation redeploys nothing.
    let fingerprint = || cluster.status().unwrap()["ca_fingerprint"].clone();
    let old = fingerprint();
    cluster.dcos_ok(&["job", "run", "private-registry.rotate"]);
    cluster.wait("another CA to sign", 60, || fingerprint() != old);
    cluster.wait_converged();
    assert_eq!(pods(&cluster), now);

    // Whoever keeps its state anew reads from the pods how the agents are divided, whatever the options would lead to now.
    cluster.update(&shards("1"));
    let refused = || cluster.status().is_some_and(|status| status["refused"] == true);
    cluster.wait("another number of pods to be refused", 60, refused);
    let problems = cluster.status().unwrap()["problems"].to_string();
    assert!(problems.contains("trust.shards = 1: the agents have been divided among 10 node pods"), "{problems}");
    assert_eq!(pods(&cluster), now);
    cluster.update(&shards("auto"));
    cluster.wait("auto to go on with what there is", 60, || !refused() && cluster.status().is_some());
    cluster.wait_converged();
    assert_eq!(placed(&cluster).len(), 3);

    let log = cluster.dcos_ok(&["private-registry", "logs", OTHER]);
    assert!(log.contains("private-registry-node-1."), "{log}");
    cluster.uninstall();
    cluster.assert_as_before(&before);
    cluster.assert_servers_answered_as_the_real_ones();
}

#[test]
fn several_pods_read_the_one_first_order_in_the_secret_store_with_what_is_granted() {
    const ACCOUNT: &str = "private-registry";
    let cluster = Cluster::start_as(2, 0, NEWEST, Security::Strict);
    let before = cluster.pictures();
    cluster.make_account(ACCOUNT, "private-registry/service-account");
    let options = json!({
        "service": { "service_account": ACCOUNT, "service_account_secret": "private-registry/service-account" },
        "registry": { "host": HOST }, "exposure": { "marathon_lb": false }, "trust": { "shards": "10" },
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), options.to_string()).unwrap();
    cluster.dcos_ok(&["package", "install", "private-registry", "--cli", "--yes"]);
    let grants = cluster.dcos_ok(&["private-registry", "grants", "--options", file.path().to_str().unwrap(), "--json"]);
    for entry in serde_json::from_str::<Value>(&grants).unwrap().as_array().unwrap() {
        let word = |key: &str| entry[key].as_str().unwrap();
        cluster.grant(word("account"), word("resource"), word("action"));
    }
    cluster.install_and_wait(&options);
    assert_eq!(placed(&cluster), expected(&[("0", &[HOST]), ("1", &[OTHER])]));
    for (id, (spec, _)) in pods(&cluster) {
        assert_eq!(spec["secrets"]["first-order"]["source"], "private-registry-node_first-order", "{id}");
    }
    let secrets = || cluster.http("GET", "/secrets/v1/secret/default/?list=true", None).1;
    assert!(secrets().contains("private-registry-node_first-order"), "{}", secrets());
    cluster.uninstall();
    cluster.assert_as_before(&before);
    assert!(!secrets().contains("first-order"), "{}", secrets());
}
