//! The agents that controller and registry live on, and the network between them and the others.

use lab::host::AgentRole;
use lab::server::{Faults, NetworkFaults};
use serde_json::{Value, json};

use super::agents::{fill, make_room};
use super::{Fault, is_well, push_image, state_of};
use crate::support::Cluster;

const HOST: &str = "192.168.1.80";
const CONTROLLER: &str = "192.168.1.81";
const OTHER: &str = "192.168.1.82";
const PUBLIC: &str = "192.168.1.50";

pub(super) const FAULTS: &[&str] = &[
    "nothing passes between the controller and half of the agents",
    "the controller's task is killed",
    "the controller's agent dies and comes back",
    "the controller moves to another agent and its keys are lost",
    "the disk of the controller's agent is full",
    "the registry's agent dies and comes back",
];

#[test]
#[ignore = "four minutes; ci/faults runs it"]
fn controller_and_registry_lose_their_agents_or_the_network() {
    let cluster = Cluster::start(3, 1);
    cluster.install_and_wait(&options(CONTROLLER));
    push_image(&cluster, HOST);
    the_network_is_parted(&cluster);
    the_controllers_task_is_killed(&cluster);
    the_controllers_agent_dies(&cluster);
    the_registrys_agent_dies(&cluster);
    cluster.uninstall();
}

#[test]
#[ignore = "a minute; ci/faults runs it"]
fn a_controller_without_the_keys_of_the_one_before_gives_every_agent_new_trust() {
    let cluster = Cluster::start(3, 1);
    cluster.install_and_wait(&options(CONTROLLER));
    push_image(&cluster, HOST);
    the_controller_moves(&cluster);
    cluster.uninstall();
}

#[test]
#[ignore = "a minute; ci/faults runs it"]
fn a_controller_whose_disk_is_full_says_so_and_goes_on_when_there_is_room() {
    let cluster = Cluster::start(2, 0);
    let small = cluster.lab.add_agent_with_disk(400).unwrap();
    cluster.install_and_wait(&options(&small));
    push_image(&cluster, HOST);
    let mut fault = Fault::begin(&cluster, "the disk of the controller's agent is full", &[CONTROLLER]);
    let task = controller_task(&cluster);
    fill(&cluster, &small);
    // That it has a node has to be kept, for the day of the uninstall.
    cluster.lab.add_agent(AgentRole::Private).unwrap();
    fault.is_seen(60);
    assert_eq!(controller_task(&cluster), task, "a full disk ends no controller");
    make_room(&cluster, &small);
    fault.is_healed(90);
    fault.ends();
}

fn options(controller: &str) -> Value {
    json!({ "registry": { "host": HOST }, "service": { "host": controller }, "exposure": { "marathon_lb": false } })
}

fn controller_task(cluster: &Cluster) -> Value {
    cluster.get("/marathon/v2/apps/private-registry")["app"]["tasks"][0]["id"].clone()
}

/// The registry is on neither side of it.
fn the_network_is_parted(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "nothing passes between the controller and half of the agents", &[OTHER, PUBLIC]);
    let parted = [OTHER, PUBLIC].map(|far| (CONTROLLER.parse().unwrap(), far.parse().unwrap())).to_vec();
    cluster.lab.set_faults(&Faults { network: NetworkFaults { parted, ..NetworkFaults::default() }, ..Faults::default() }).unwrap();
    fault.is_seen(60);
    cluster.lab.set_faults(&Faults::default()).unwrap();
    fault.is_healed(60);
    fault.ends();
}

fn the_controllers_task_is_killed(cluster: &Cluster) {
    let (nodes, task, ca) = (cluster.running(), controller_task(cluster), cluster.status().unwrap()["ca_fingerprint"].clone());
    let mut fault = Fault::begin(cluster, "the controller's task is killed", &[OTHER, PUBLIC]);
    cluster.sh_ok(CONTROLLER, "pkill -9 -f '[p]rivate-registry controller'");
    let killed = |cluster: &Cluster| controller_task(cluster) != task && is_well(cluster);
    fault.is_healed_when(60, killed);
    let shown = &cluster.get("/marathon/v2/apps/private-registry")["app"];
    fault.reads(&format!("lastTaskFailure {}", shown["lastTaskFailure"]));
    fault.is_seen(10);
    fault.ends();
    assert_eq!((cluster.running(), cluster.status().unwrap()["ca_fingerprint"].clone()), (nodes, ca));
}

fn the_controllers_agent_dies(cluster: &Cluster) {
    let ca = cluster.status().unwrap()["ca_fingerprint"].clone();
    let mut fault = Fault::begin(cluster, "the controller's agent dies and comes back", &[OTHER, PUBLIC]);
    cluster.lab.die(CONTROLLER).unwrap();
    fault.is_seen(30);
    cluster.lab.revive(CONTROLLER, false).unwrap();
    fault.is_healed(120);
    fault.ends();
    assert_eq!(cluster.status().unwrap()["ca_fingerprint"], ca);
}

/// Its images are there and nowhere else.
fn the_registrys_agent_dies(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "the registry's agent dies and comes back", &[OTHER, PUBLIC]);
    cluster.lab.die(HOST).unwrap();
    fault.is_seen(60);
    cluster.lab.revive(HOST, false).unwrap();
    fault.is_healed_when(120, |cluster| state_of(cluster, HOST) == "trusted" && is_well(cluster));
    fault.ends_after_an_outage(120.0);
    push_image(cluster, OTHER);
}

/// As after the loss of its agent for good: nothing of its state is anywhere.
fn the_controller_moves(cluster: &Cluster) {
    let ca = cluster.status().unwrap()["ca_fingerprint"].clone();
    let mut fault = Fault::begin(cluster, "the controller moves to another agent and its keys are lost", &[PUBLIC]);
    cluster.lab.die(CONTROLLER).unwrap();
    fault.is_seen(90);
    cluster.update(&options(OTHER));
    fault.is_healed_when(180, is_well);
    assert_ne!(cluster.status().unwrap()["ca_fingerprint"], ca);
    cluster.lab.revive(CONTROLLER, false).unwrap();
    cluster.wait("the agent that was away to be covered anew", 90, || state_of(cluster, CONTROLLER) == "trusted");
    // With other keys the registry's app is another one, and is deployed anew.
    fault.ends_after_an_outage(30.0);
}
