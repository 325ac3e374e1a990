//! One agent has a fault; the others go on.

use lab::server::{Faults, NetworkFaults};
use serde_json::json;

use super::{Fault, is_well, log_of, push_image, state_of};
use crate::support::Cluster;

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const ILL: &str = "192.168.1.82";
const PUBLIC: &str = "192.168.1.50";
/// What nodes write where podman's store is asked for.
const PODMAN: &str = "/etc/containers/certs.d/192.168.0.1/ca.crt";

pub(super) const FAULTS: &[&str] = &[
    "an agent dies and is rebuilt with the same address",
    "docker is killed on an agent",
    "there is no docker on an agent",
    "`/etc` of an agent is mounted read-only",
    "the disk of an agent is full",
    "nf_conntrack is not loaded on an agent",
    "a folder of docker's trust is made a link",
    "what an agent downloads is damaged on its way",
];

#[test]
#[ignore = "four minutes; ci/faults runs it"]
fn an_agent_with_a_fault_is_told_of_and_heals() {
    let cluster = Cluster::start(3, 1);
    cluster.install_and_wait(&options(false));
    push_image(&cluster, HOST);
    docker_is_killed(&cluster);
    there_is_no_docker(&cluster);
    conntrack_is_missing(&cluster);
    a_folder_is_made_a_link(&cluster);
    etc_is_read_only(&cluster);
    the_disk_is_full(&cluster);
    cluster.uninstall();
}

#[test]
#[ignore = "two minutes; ci/faults runs it"]
fn an_agent_that_begins_anew_is_covered_by_what_the_controller_has_and_by_nothing_else() {
    let cluster = Cluster::start(3, 1);
    cluster.install_and_wait(&options(false));
    push_image(&cluster, HOST);
    a_download_is_damaged(&cluster);
    an_agent_is_rebuilt(&cluster);
    cluster.uninstall();
}

/// Without or with a store that nodes have to write; the registry itself has nothing to do with that.
fn options(podman: bool) -> serde_json::Value {
    json!({ "registry": { "host": HOST }, "trust": { "podman": podman }, "exposure": { "marathon_lb": false } })
}

fn an_agent_is_rebuilt(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "an agent dies and is rebuilt with the same address", &[OTHER, PUBLIC]);
    // Mesos itself takes more than a minute to notice.
    cluster.lab.control("POST", &format!("/agents/{ILL}/die?after=20"), None).unwrap();
    fault.is_seen(60);
    cluster.wait("Mesos to give it up", 60, || cluster.agent_state(ILL).is_none());
    cluster.lab.revive(ILL, true).unwrap();
    fault.is_healed_when(90, |cluster| state_of(cluster, ILL) == "trusted" && is_well(cluster));
    cluster.sh_ok(ILL, "docker pull -q 192.168.0.1/base/hello:1");
    fault.ends();
}

/// Its socket stays, and nobody is behind it.
fn docker_is_killed(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "docker is killed on an agent", &[OTHER, PUBLIC]);
    cluster.sh_ok(ILL, "kill -9 $(cat /var/run/docker.pid)");
    fault.is_seen(90);
    cluster.sh_ok(ILL, "systemctl start docker");
    fault.is_healed(60);
    cluster.sh_ok(ILL, "docker pull -q 192.168.0.1/base/hello:1");
    fault.ends();
}

fn there_is_no_docker(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "there is no docker on an agent", &[OTHER, PUBLIC]);
    cluster.sh_ok(ILL, "systemctl stop docker; rm -f /var/run/docker.sock");
    fault.is_seen(90);
    cluster.sh_ok(ILL, "systemctl start docker");
    let proven = |cluster: &Cluster| cluster.agent_state(ILL).is_some_and(|(_, detail)| detail.contains("proven by curl and docker"));
    fault.is_healed_when(90, proven);
    fault.ends();
}

/// The key of the kernel is not there; then the module comes.
fn conntrack_is_missing(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "nf_conntrack is not loaded on an agent", &[OTHER, PUBLIC]);
    cluster.sh_ok(ILL, "mount -t tmpfs none /proc/sys/net/netfilter");
    fault.is_seen(90);
    cluster.sh_ok(ILL, "umount /proc/sys/net/netfilter && echo 0 >/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal");
    fault.is_healed_when(90, |cluster| cluster.sysctl(ILL) == "1" && is_well(cluster));
    fault.ends();
}

/// The old trust stays in force there.
fn a_folder_is_made_a_link(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "a folder of docker's trust is made a link", &[OTHER, PUBLIC]);
    let folder = "/etc/docker/certs.d/192.168.0.1";
    cluster.sh_ok(ILL, &format!("cp -a {folder} /root/certs && mv -T {folder} /root/aside && ln -s /root/certs {folder}"));
    fault.is_seen(90);
    cluster.sh_ok(ILL, "docker pull -q 192.168.0.1/base/hello:1");
    cluster.sh_ok(ILL, &format!("rm {folder} && mv -T /root/aside {folder} && rm -r /root/certs"));
    fault.is_healed(90);
    fault.ends();
}

/// It shows as soon as something is to be written: here a further store.
fn etc_is_read_only(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "`/etc` of an agent is mounted read-only", &[OTHER, ILL, PUBLIC]);
    cluster.sh_ok(ILL, "mount -o remount,ro /etc");
    cluster.update(&options(true));
    fault.is_seen(90);
    cluster.sh_ok(ILL, "mount -o remount,rw /etc");
    fault.is_healed(90);
    cluster.sh_ok(ILL, &format!("cat {PODMAN}"));
    fault.ends();
    cluster.update(&options(false));
    cluster.wait("the store to be left alone", 60, || !cluster.sh(ILL, &format!("ls {PODMAN}")).status.success());
    cluster.wait_converged();
}

/// A disk of its own, all of it: logs, docker's images and Mesos' sandboxes lie there as well.
fn the_disk_is_full(cluster: &Cluster) {
    let small = cluster.lab.add_agent_with_disk(400).unwrap();
    cluster.wait("the agent to be covered", 60, || state_of(cluster, &small) == "trusted");
    let task = cluster.running().0;
    let mut fault = Fault::begin(cluster, "the disk of an agent is full", &[OTHER, PUBLIC]);
    fill(cluster, &small);
    cluster.update(&options(true));
    fault.is_seen(90);
    assert_eq!(cluster.running().0, task, "a full disk ends no node");
    make_room(cluster, &small);
    fault.is_healed(90);
    cluster.sh_ok(&small, &format!("cat {PODMAN}"));
    fault.ends();
    cluster.lab.leave(&small).unwrap();
    cluster.wait("the agent to be gone", 30, || cluster.agent_state(&small).is_none());
}

/// Takes all room of an agent's own disk, and whatever becomes free, until [`make_room`].
pub(super) fn fill(cluster: &Cluster, agent: &str) {
    let line = "rm -f /run/enough; while [ ! -e /run/enough ]; do cat /dev/zero >>/var/tmp/ballast; sleep 0.1; done";
    cluster.sh_ok(agent, &format!("setsid sh -c '{line}' >/dev/null 2>&1 </dev/null & sleep 3"));
    assert!(!cluster.sh(agent, "echo x >/var/tmp/more").status.success(), "there is still room on {agent}");
}

/// The disk has room again.
pub(super) fn make_room(cluster: &Cluster, agent: &str) {
    cluster.sh_ok(agent, "touch /run/enough; sleep 1; rm /var/tmp/ballast");
}

/// An agent joins, and whatever it fetches from the controller comes damaged.
fn a_download_is_damaged(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "what an agent downloads is damaged on its way", &[OTHER, PUBLIC]);
    cluster.lab.die(ILL).unwrap();
    cluster.wait("Mesos to give it up", 30, || cluster.agent_state(ILL).is_none());
    let damaged = NetworkFaults { damaged: vec![ILL.parse().unwrap()], ..NetworkFaults::default() };
    cluster.lab.set_faults(&Faults { network: damaged, ..Faults::default() }).unwrap();
    cluster.lab.revive(ILL, true).unwrap();
    let refused = || log_of(cluster, "node", ILL).contains("fetching it again");
    cluster.wait("the damage to be noticed", 60, refused);
    fault.reads(&log_of(cluster, "node", ILL));
    fault.is_seen(60);
    let runs = cluster.sh(ILL, "pgrep -f '^./private-registry node'");
    assert!(!runs.status.success(), "what was damaged runs");
    cluster.lab.set_faults(&Faults::default()).unwrap();
    fault.is_healed_when(60, |cluster| state_of(cluster, ILL) == "trusted" && is_well(cluster));
    fault.ends();
}
