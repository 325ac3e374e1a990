//! The ways to the registry other than the IP VIP: by a fixed port and Mesos-DNS, and from outside through a Marathon-LB that the
//! controller has installed, for those whom the options let in.

#![allow(clippy::unwrap_used)]

use crate::support::Cluster;
use lab::host::OUTSIDE;
use serde_json::{Value, json};

const PRIVATE: &str = "192.168.1.80";
const PUBLIC: &str = "192.168.1.50";

#[test]
fn the_registry_is_reached_without_an_ip_vip_and_from_outside_by_whom_the_options_let_in() {
    let cluster = Cluster::start_without_marathon_lb(1, 1);
    let outside = OUTSIDE.to_string();
    let options = json!({
        "registry": { "host": PRIVATE },
        "names": { "vip": "", "external_host": PUBLIC },
        "exposure": { "service_port": 10_050, "host_port": 5000, "allowed_sources": outside },
    });
    // A missing Marathon-LB does not keep the agents from using the registry; each proves every name of the inside.
    cluster.install_and_wait(&options);
    let names =
        ["registry.marathon.l4lb.thisdcos.directory:5000", "registry.marathon.mesos:5000", "192.168.1.80:5000", "192.168.1.50:10050"];
    assert_eq!(cluster.status().unwrap()["names"], json!(names));
    let said = cluster.dcos_ok(&["private-registry", "status"]);
    assert!(said.contains("Marathon-LB is not installed") && said.contains("`dcos package install marathon-lb`"), "{said}");
    let init = cluster.lab.control("GET", "/tasks", None).unwrap();
    let task = init.as_array().unwrap().iter().find(|task| task["id"].as_str().unwrap().contains("init")).unwrap();
    let printed = || std::fs::read_to_string(format!("{}/stdout", task["sandbox"].as_str().unwrap())).unwrap_or_default();
    cluster.wait("the job to tell it, too", 30, || printed().contains("Marathon-LB is not installed"));

    cluster.update(&json!({ "exposure": { "install_marathon_lb": true } }));
    cluster.wait("Marathon-LB to let in the machine outside", 60, || gets_in(&cluster, &outside));
    cluster.wait("nothing to be amiss", 30, || {
        cluster.status().is_some_and(|status| status["converged"] == true && status["problems"] == json!([]))
    });
    assert_eq!(cluster.status().unwrap()["advice"], json!([]), "10050 is of Marathon-LB's own range");
    assert!(!gets_in(&cluster, PRIVATE), "this machine is not allowed");
    tools_learn_what_they_need(&cluster, &outside);

    // The other way round.
    cluster.update(&json!({ "exposure": { "allowed_sources": "192.168.1.80/32, 10.1.0.0/16" } }));
    cluster.wait("the machine outside to be cut off", 60, || gets_in(&cluster, PRIVATE) && !gets_in(&cluster, &outside));

    cluster.dcos_ok(&["package", "uninstall", "private-registry", "--yes"]);
    cluster.wait("the end of the uninstall", 120, || cluster.ids_at_marathon() == ["/marathon-lb"] && cluster.jobs().is_empty());
    cluster.assert_servers_answered_as_the_real_ones();
}

/// Whether a machine reaches the registry through Marathon-LB.
fn gets_in(cluster: &Cluster, machine: &str) -> bool {
    let machine = if machine == OUTSIDE.to_string() { "outside" } else { machine };
    let output = cluster.sh(machine, &format!("curl -sk --max-time 5 -o /dev/null -w '%{{http_code}}' https://{PUBLIC}:10050/v2/"));
    output.status.success() && output.stdout == "200"
}

fn tools_learn_what_they_need(cluster: &Cluster, outside: &str) {
    let discovery: Value = serde_json::from_str(&cluster.dcos_ok(&["private-registry", "discovery"])).unwrap();
    assert_eq!(discovery["preferred"], "registry.marathon.l4lb.thisdcos.directory:5000");
    assert_eq!(discovery["preferred_outside"], "192.168.1.50:10050");
    let ways: Vec<&str> = discovery["names"].as_array().unwrap().iter().map(|name| name["by"].as_str().unwrap()).collect();
    assert_eq!(ways, ["named_vip", "mesos_dns", "host_port", "marathon_lb"]);
    assert_eq!(discovery["limits"]["outside_sources"], json!([outside]));
    // What it says is enough for a machine outside.
    std::fs::write(cluster.lab.path().join("agents").join(outside).join("root/tmp/ca.pem"), discovery["ca"]["pem"].as_str().unwrap())
        .unwrap();
    let url = format!("https://{}/v2/", discovery["preferred_outside"].as_str().unwrap());
    cluster.sh_ok("outside", &format!("curl -sS --fail --cacert /tmp/ca.pem {url}"));
}
