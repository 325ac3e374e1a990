//! Mesos, Marathon and Metronome, and the names by which they are found.

use lab::host::AgentRole;
use lab::server::{Faults, NetworkFaults, Trouble};
use serde_json::json;

use super::{Fault, is_well, log_of, push_image, state_of};
use crate::support::Cluster;

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.82";
const PUBLIC: &str = "192.168.1.50";

pub(super) const FAULTS: &[&str] = &[
    "Marathon answers 503",
    "Marathon takes requests and does not answer",
    "Marathon is locked by a deployment that does not end",
    "Marathon does its work and answers 503 ten seconds later",
    "Marathon's leader changes",
    "Mesos does not answer",
    "Mesos' master changes, and agents come back one after the other",
    "Metronome is down",
    "DNS is gone",
];

fn installed() -> Cluster {
    let cluster = Cluster::start(3, 1);
    cluster.install_and_wait(
        &json!({ "registry": { "host": HOST }, "service": { "host": "192.168.1.81" }, "exposure": { "marathon_lb": false } }),
    );
    push_image(&cluster, HOST);
    cluster
}

fn set(cluster: &Cluster, faults: &Faults) {
    cluster.lab.set_faults(faults).unwrap();
}

fn heal(cluster: &Cluster) {
    set(cluster, &Faults::default());
}

/// The part of the matrix that every run of all tests takes.
#[test]
fn marathon_mesos_or_metronome_may_be_away_for_a_while() {
    let cluster = installed();
    marathon_answers_503(&cluster);
    mesos_fails_over(&cluster);
    metronome_is_down(&cluster);
}

#[test]
#[ignore = "three minutes; ci/faults runs it"]
fn marathon_mesos_and_names_fail_in_every_other_way() {
    let cluster = installed();
    marathon_is_silent(&cluster);
    marathon_is_locked(&cluster);
    marathon_is_late(&cluster);
    marathon_changes_its_leader(&cluster);
    mesos_is_silent(&cluster);
    names_are_gone(&cluster);
    cluster.uninstall();
}

fn marathon_answers_503(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Marathon answers 503", &[OTHER, PUBLIC]);
    set(cluster, &Faults { marathon: Some(Trouble::Unavailable), ..Faults::default() });
    fault.is_seen(30);
    heal(cluster);
    fault.is_healed(60);
    fault.ends();
}

fn marathon_is_silent(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Marathon takes requests and does not answer", &[OTHER, PUBLIC]);
    set(cluster, &Faults { marathon: Some(Trouble::Silent), ..Faults::default() });
    fault.is_seen(60);
    heal(cluster);
    fault.is_healed(60);
    fault.ends();
}

/// Somebody else's deployment has the pod, and an agent joins.
fn marathon_is_locked(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Marathon is locked by a deployment that does not end", &[OTHER, PUBLIC]);
    set(cluster, &Faults { marathon: Some(Trouble::Locked), ..Faults::default() });
    let new = cluster.lab.add_agent(AgentRole::Private).unwrap();
    fault.is_seen(30);
    heal(cluster);
    fault.is_healed_when(60, |cluster| state_of(cluster, &new) == "trusted" && is_well(cluster));
    fault.ends();
}

fn marathon_is_late(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Marathon does its work and answers 503 ten seconds later", &[OTHER, PUBLIC]);
    set(cluster, &Faults { marathon: Some(Trouble::Late), ..Faults::default() });
    let new = cluster.lab.add_agent(AgentRole::Private).unwrap();
    // It need not end: what was done counts, whatever was answered.
    fault.is_healed_when(90, |cluster| state_of(cluster, &new) == "trusted");
    let log = || log_of(cluster, "private-registry", "192.168.1.81");
    cluster.wait("the answer", 30, || log().contains("answered 503"));
    fault.reads(&log());
    fault.is_seen(10);
    heal(cluster);
    fault.ends();
}

fn marathon_changes_its_leader(cluster: &Cluster) {
    let nodes = cluster.running();
    let mut fault = Fault::begin(cluster, "Marathon's leader changes", &[OTHER, PUBLIC]);
    set(cluster, &Faults { marathon: Some(Trouble::Unavailable), ..Faults::default() });
    fault.is_seen(30);
    cluster.lab.restart_server().unwrap();
    heal(cluster);
    fault.is_healed(60);
    fault.ends();
    assert_eq!(cluster.running(), nodes, "nothing was replaced");
}

fn mesos_is_silent(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Mesos does not answer", &[OTHER, PUBLIC]);
    set(cluster, &Faults { mesos: Some(Trouble::Silent), ..Faults::default() });
    fault.is_seen(60);
    heal(cluster);
    fault.is_healed(60);
    fault.ends();
}

/// Until an agent is back the new master only knows that it was there; it is not lost, and counts all the time.
fn mesos_fails_over(cluster: &Cluster) {
    let (nodes, scale) = (cluster.running(), scale(cluster));
    let mut fault = Fault::begin(cluster, "Mesos' master changes, and agents come back one after the other", &[OTHER, PUBLIC]);
    cluster.lab.fail_over(8).unwrap();
    fault.is_seen(20);
    let all = cluster.agents().len();
    let came_back = || {
        let counted = cluster.status().unwrap()["agents"].as_array().unwrap().len();
        assert_eq!(counted, all, "an agent that has not come back yet is no lost one");
        let (_, text) = cluster.http("GET", "/mesos/slaves", None);
        let slaves: serde_json::Value = serde_json::from_str(&text).unwrap();
        slaves["recovered_slaves"] == json!([])
    };
    cluster.wait("all agents to be back", 30, came_back);
    fault.is_healed(30);
    fault.ends();
    assert_eq!(scale, self::scale(cluster), "the pod was scaled");
    assert_eq!(cluster.running(), nodes, "nothing was replaced");
}

fn scale(cluster: &Cluster) -> serde_json::Value {
    cluster.get("/marathon/v2/pods/private-registry-node")["scaling"]["instances"].clone()
}

/// Agents and registry do not depend on it: one that joins meanwhile is covered.
fn metronome_is_down(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Metronome is down", &[OTHER, PUBLIC]);
    set(cluster, &Faults { metronome: Some(Trouble::Unavailable), ..Faults::default() });
    fault.is_seen(30);
    let new = cluster.lab.add_agent(AgentRole::Private).unwrap();
    cluster.wait("an agent that joins meanwhile to be covered", 60, || state_of(cluster, &new) == "trusted");
    heal(cluster);
    fault.is_healed(60);
    fault.ends();
}

fn names_are_gone(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "DNS is gone", &[OTHER, PUBLIC]);
    set(cluster, &Faults { network: NetworkFaults { dns_gone: true, ..NetworkFaults::default() }, ..Faults::default() });
    // As long as its connections last the controller asks for no name.
    cluster.lab.restart_server().unwrap();
    fault.is_seen(60);
    heal(cluster);
    fault.is_healed(90);
    fault.ends();
}
