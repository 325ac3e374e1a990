//! What changes in a cluster while the package runs: restarts, agents that die, come back, fill up.

#![allow(clippy::unwrap_used)]

use crate::support::Cluster;
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const THIRD: &str = "192.168.1.82";
const KEY: &str = "/var/lib/private-registry/private-registry/registry/tls.key";
const SERVED: &str = "openssl s_client -connect 192.168.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -fingerprint -sha256";

#[test]
fn restarts_and_lost_agents_change_nothing_that_matters() {
    let cluster = Cluster::start(3, 0);
    cluster.install_and_wait(
        &json!({ "service": { "host": OTHER }, "registry": { "host": HOST }, "exposure": { "marathon_lb": false, "host_port": 5500 } }),
    );
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");

    a_fixed_host_port_is_the_other_way_in(&cluster);
    a_restarted_registry_keeps_key_certificate_and_images(&cluster);
    a_restarted_controller_keeps_the_ca_and_replaces_nothing(&cluster);
    restarted_servers_of_the_cluster_are_no_event(&cluster);
    a_damaged_file_is_repaired_and_a_foreign_one_left_alone(&cluster);
    an_agent_that_dies_and_is_rebuilt_is_covered_again(&cluster);
    an_agent_without_room_is_reported_and_covered_when_it_has_some(&cluster);
    marathon_that_fails_for_a_while_is_waited_for(&cluster);
    an_agent_that_is_away_during_the_uninstall_is_named_and_can_be_restored_by_hand(&cluster);
    cluster.assert_servers_answered_as_the_real_ones();
}

/// The tutorial's second way: without Marathon-LB, by the agent's address or the name that Mesos-DNS gives it.
fn a_fixed_host_port_is_the_other_way_in(cluster: &Cluster) {
    for name in ["registry.marathon.mesos:5500", "192.168.1.80:5500"] {
        cluster.sh_ok(THIRD, &format!("/opt/mesosphere/bin/curl -sf -o /dev/null https://{name}/v2/"));
        cluster.sh_ok(THIRD, &format!("docker pull -q {name}/base/hello:1"));
    }
}

fn task_id(cluster: &Cluster, app: &str) -> Option<String> {
    let app = cluster.get(&format!("/marathon/v2/apps{app}"))["app"].clone();
    (app["tasks"][0]["state"] == "TASK_RUNNING").then(|| app["tasks"][0]["id"].as_str().unwrap().to_owned())
}

fn restart(cluster: &Cluster, app: &str) {
    let before = task_id(cluster, app).unwrap();
    assert_eq!(cluster.marathon("POST", &format!("/apps{app}/restart"), &Value::Null).0, 200);
    cluster.wait("the new task", 60, || task_id(cluster, app).is_some_and(|now| now != before));
}

fn a_restarted_registry_keeps_key_certificate_and_images(cluster: &Cluster) {
    let (key, served) = (cluster.sh_ok(HOST, &format!("sha256sum {KEY}")), cluster.sh_ok(OTHER, SERVED));
    restart(cluster, "/registry");
    cluster.wait("the registry", 60, || cluster.sh(OTHER, "docker pull -q 192.168.0.1/base/hello:1").status.success());
    assert_eq!(cluster.sh_ok(HOST, &format!("sha256sum {KEY}")), key);
    assert_eq!(cluster.sh_ok(OTHER, SERVED), served);
    // It also dies without a word.
    cluster.sh_ok(HOST, "docker kill $(docker ps -q --filter name=mesos-registry)");
    cluster.wait("the registry", 60, || cluster.sh(OTHER, "docker pull -q 192.168.0.1/base/hello:1").status.success());
    assert_eq!(cluster.sh_ok(HOST, &format!("sha256sum {KEY}")), key);
    cluster.wait_converged();
}

fn nodes(cluster: &Cluster) -> Vec<String> {
    let status = cluster.get("/marathon/v2/pods/private-registry-node::status");
    let mut ids: Vec<String> = status["instances"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

fn a_restarted_controller_keeps_the_ca_and_replaces_nothing(cluster: &Cluster) {
    let ca = || cluster.status().map(|status| status["ca_fingerprint"].clone());
    let (before, pods, registry) = (ca().unwrap(), nodes(cluster), task_id(cluster, "/registry"));
    restart(cluster, "/private-registry");
    cluster.wait("the controller", 60, || ca().is_some_and(|ca| ca == before));
    cluster.wait_converged();
    assert_eq!((nodes(cluster), task_id(cluster, "/registry")), (pods, registry));
}

fn restarted_servers_of_the_cluster_are_no_event(cluster: &Cluster) {
    let pods = nodes(cluster);
    cluster.lab.restart_server().unwrap();
    cluster.wait_converged();
    assert_eq!(nodes(cluster), pods);
}

fn a_damaged_file_is_repaired_and_a_foreign_one_left_alone(cluster: &Cluster) {
    let file = "/etc/docker/certs.d/192.168.0.1/ca.crt";
    let right = cluster.sh_ok(THIRD, &format!("cat {file}"));
    cluster.sh_ok(THIRD, "echo mine >/etc/docker/certs.d/192.168.0.1/note.txt");
    cluster.sh_ok(THIRD, &format!("rm {file}; echo 0 >/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"));
    cluster.dcos_ok(&["job", "run", "private-registry.init"]);
    cluster.wait("the repair", 60, || cluster.sh(THIRD, &format!("cat {file}")).stdout.trim() == right);
    cluster.wait("the sysctl", 10, || cluster.sysctl(THIRD) == "1");
    assert_eq!(cluster.sh_ok(THIRD, "cat /etc/docker/certs.d/192.168.0.1/note.txt"), "mine");
    cluster.sh_ok(THIRD, "rm /etc/docker/certs.d/192.168.0.1/note.txt");
}

fn an_agent_that_dies_and_is_rebuilt_is_covered_again(cluster: &Cluster) {
    cluster.lab.die(THIRD).unwrap();
    cluster.wait("the loss to be noticed", 60, || cluster.agent_state(THIRD).is_none_or(|(state, _)| state != "trusted"));
    assert!(cluster.sh(OTHER, "docker pull -q 192.168.0.1/base/hello:1").status.success(), "pulls elsewhere go on");
    cluster.lab.revive(THIRD, true).unwrap();
    cluster.wait("the rebuilt agent", 90, || cluster.agent_state(THIRD).is_some_and(|(state, _)| state == "trusted"));
    cluster.sh_ok(THIRD, "docker pull -q 192.168.0.1/base/hello:1");
    // And with its disk: the files are there, the sysctl is not.
    cluster.lab.die(THIRD).unwrap();
    cluster.wait("the loss to be noticed", 60, || cluster.agent_state(THIRD).is_none_or(|(state, _)| state != "trusted"));
    cluster.lab.revive(THIRD, false).unwrap();
    cluster.wait("the agent that came back", 90, || cluster.agent_state(THIRD).is_some_and(|(state, _)| state == "trusted"));
    assert_eq!(cluster.sysctl(THIRD), "1");
    cluster.wait_converged();
}

fn an_agent_without_room_is_reported_and_covered_when_it_has_some(cluster: &Cluster) {
    let new = cluster.lab.add_agent(lab::host::AgentRole::Private).unwrap();
    cluster.lab.fill(&new).unwrap();
    // The node may have been quicker.
    if cluster.agent_state(&new).is_none_or(|(state, _)| state != "trusted") {
        cluster.wait("a word about the room", 30, || {
            cluster.agent_state(&new).is_some_and(|(state, detail)| state == "trusted" || detail.contains("no room"))
        });
    }
    cluster.lab.empty(&new).unwrap();
    cluster.wait("the agent to be covered", 60, || cluster.agent_state(&new).is_some_and(|(state, _)| state == "trusted"));
    cluster.lab.leave(&new).unwrap();
    cluster.wait("the agent to be gone", 30, || cluster.agent_state(&new).is_none());
}

fn marathon_that_fails_for_a_while_is_waited_for(cluster: &Cluster) {
    cluster.lab.control("POST", "/faults", Some(&json!({ "marathon_unavailable": 2, "marathon_locked": 2 }))).unwrap();
    // One of them may take an instance that waits for a place; the other one needs a write.
    for _ in 0..2 {
        let new = cluster.lab.add_agent(lab::host::AgentRole::Private).unwrap();
        cluster.wait("the agent to be covered", 60, || cluster.agent_state(&new).is_some_and(|(state, _)| state == "trusted"));
    }
    let left = cluster.lab.control("GET", "/faults", None).unwrap();
    let left = [&left["marathon_unavailable"], &left["marathon_locked"]];
    assert_eq!(left, [&json!(0), &json!(0)], "Marathon was not asked to change anything");
}

fn an_agent_that_is_away_during_the_uninstall_is_named_and_can_be_restored_by_hand(cluster: &Cluster) {
    cluster.lab.die(THIRD).unwrap();
    cluster.wait("the loss to be noticed", 60, || cluster.agent_state(THIRD).is_none_or(|(state, _)| state != "trusted"));
    cluster.uninstall();
    let tasks = cluster.lab.control("GET", "/tasks", None).unwrap();
    let controllers = tasks.as_array().unwrap().iter().filter(|task| task["name"] == "private-registry");
    let logs: String =
        controllers.map(|task| std::fs::read_to_string(format!("{}/stderr", task["sandbox"].as_str().unwrap())).unwrap()).collect();
    let named: Vec<&str> = logs.lines().filter(|line| line.contains("keeps our files")).collect();
    // The one that is dead, and the one that has left the cluster.
    assert_eq!(named.len(), 2, "{named:?}");
    assert!(named.iter().all(|line| line.contains("private-registry restore --name private-registry")), "{named:?}");
    assert!(named.iter().any(|line| line.ends_with(THIRD)), "{named:?}");

    cluster.lab.revive(THIRD, false).unwrap();
    let ours = "find /etc/docker/certs.d /etc/sysctl.d /var/lib/dcos /var/lib/private-registry -mindepth 1 2>/dev/null; true";
    assert_ne!(cluster.sh_ok(THIRD, ours), "");
    let disk = cluster.lab.path().join("agents").join(THIRD).join("root/tmp/private-registry");
    std::fs::copy(crate::support::made("target/package/private-registry"), disk).unwrap();
    assert_eq!(cluster.sh_ok(THIRD, "/tmp/private-registry restore"), "this host is as it was before private-registry");
    assert_eq!(cluster.sh_ok(THIRD, ours), "");
}
