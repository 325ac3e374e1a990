//! What Mesos-DNS and dcos-net make of the running tasks: names, and VIPs with those backends that have a weight.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::Value;

use super::launch::port_list;
use super::{Instance, Kind};
use crate::server::state::{State, Task};
use crate::server::{Network, VipEntry};
use crate::task::TaskState;

/// Names and VIPs as they are now.
pub(crate) fn network(state: &State) -> Network {
    let mut names: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    let mut vips: BTreeMap<(String, String), Vec<(Ipv4Addr, u16)>> = BTreeMap::new();
    for instance in state.marathon.instances.values() {
        for task in instance.present_tasks(state).filter(|task| is_running(task)) {
            let addresses = names.entry(dns_label(&instance.spec)).or_default();
            if !addresses.contains(&task.agent) {
                addresses.push(task.agent);
            }
            // A failed or outstanding check has the weight 0 (dcos_l4lb_mesos_poller); so has a task that is being killed.
            let in_service = task.kill.is_none() && (task.healthy == Some(true) || !is_checked(instance, task));
            for (label, port) in vip_labels(instance, task) {
                let backends = vips.entry((label, "tcp".to_owned())).or_default();
                backends.extend(in_service.then_some((task.agent, port)));
            }
        }
    }
    let vips = vips.into_iter().filter_map(|((label, protocol), backends)| entry(&label, protocol, backends)).collect();
    Network { names, vips, ..Network::default() }
}

fn is_running(task: &Task) -> bool {
    task.state == TaskState::Running && !task.unreachable
}

fn is_checked(instance: &Instance, task: &Task) -> bool {
    match &task.container {
        None => instance.definition["healthChecks"].get(0).is_some(),
        Some(name) => containers(instance).any(|c| c["name"] == **name && c["healthCheck"].is_object()),
    }
}

fn containers(instance: &Instance) -> impl Iterator<Item = &Value> {
    instance.definition["containers"].as_array().into_iter().flatten()
}

/// VIP labels of a task's ports, and the host port behind each.
fn vip_labels(instance: &Instance, task: &Task) -> Vec<(String, u16)> {
    let declared: Vec<&Value> = match instance.kind {
        Kind::App => port_list(&instance.definition),
        Kind::Pod => containers(instance)
            .filter(|c| task.container.as_deref().is_some_and(|name| c["name"] == *name))
            .flat_map(|c| c["endpoints"].as_array().into_iter().flatten())
            .collect(),
    };
    let of_port = |(declared, port): (&Value, &u16)| -> Vec<(String, u16)> {
        let labels = declared["labels"].as_object().into_iter().flatten();
        let vips = labels.filter(|(key, _)| key.to_ascii_uppercase().starts_with("VIP"));
        vips.filter_map(|(_, value)| Some((value.as_str()?.to_owned(), *port))).collect()
    };
    declared.into_iter().zip(&task.resources.ports).flat_map(of_port).collect()
}

/// A literal address, or a name: split at the last colon.
fn entry(label: &str, protocol: String, backends: Vec<(Ipv4Addr, u16)>) -> Option<VipEntry> {
    let (host, port) = label.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let address = host.parse::<Ipv4Addr>().ok();
    // dcos-net drops what cannot stand in a host name.
    let name = address.is_none().then(|| host.replace('/', ""));
    Some(VipEntry { address, name, port, protocol, backends })
}

/// `/a/b` is `b-a` below `marathon.mesos`.
fn dns_label(id: &str) -> String {
    let mut segments: Vec<&str> = id.trim_start_matches('/').split('/').collect();
    segments.reverse();
    segments.join("-")
}
