//! The leading Mesos master: which agents there are.

use serde::Deserialize;

use super::{Api, ApiError};
use crate::names::Host;

/// Mesos role of the resources of public agents (DC/OS gen/dcos-config.yaml, `/etc/mesos-slave-public`).
const PUBLIC_ROLE: &str = "slave_public";

/// An agent that the master counts as registered.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Mesos agent id; changes when the machine is rebuilt.
    pub id: String,
    /// Host name, on DC/OS the IP address.
    pub host: Host,
    /// Whether it is a public agent.
    pub public: bool,
    /// Connected, and neither draining nor deactivated: tasks can be placed there.
    pub active: bool,
    /// A new master knows it from the one before and waits for it to come back: it is not lost.
    pub recovered: bool,
    /// What nobody uses now; resources on offer count as free, they come back.
    pub free: Resources,
    /// Ports that it offers to tasks of its role, used or not.
    pub ports: Ports,
}

/// Ranges of ports, both ends included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// Reads what Mesos writes: `[1025-2180, 2182-3887]`. What cannot be read is left out.
    pub(crate) fn parse(text: &str) -> Self {
        let range = |text: &str| {
            let (first, last) = text.split_once('-')?;
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        };
        Self(text.trim_matches(['[', ']']).split(',').filter_map(range).collect())
    }

    /// Whether the port is one of them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(|(first, last)| format!("{first}-{last}")).collect();
        f.write_str(&ranges.join(", "))
    }
}

/// Scalar resources.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Resources {
    /// CPU shares.
    pub cpus: f64,
    /// MiB.
    pub mem: f64,
    /// MiB.
    pub disk: f64,
}

impl Resources {
    /// Whether `other` fits in.
    pub fn covers(&self, other: &Resources) -> bool {
        self.cpus >= other.cpus && self.mem >= other.mem && self.disk >= other.disk
    }
}

/// Client of the leading master.
#[derive(Debug, Clone)]
pub struct Mesos(pub Api);

impl Mesos {
    /// The registered agents, and those that have not come back yet after a master's fail-over (`GET /slaves`).
    ///
    /// # Errors
    /// When the master does not answer or answers nonsense. An agent whose host name is not one is left out with a warning.
    pub async fn agents(&self) -> Result<Vec<Agent>, ApiError> {
        let (mut agents, mut recovered) = (Vec::new(), Vec::new());
        let each = |list: &str, element: &[u8]| {
            match list {
                "slaves" => agents.extend(serde_json::from_slice::<Slave>(element)?.agent()),
                "recovered_slaves" => recovered.extend(serde_json::from_slice::<Recovered>(element)?.agent()),
                _ => {}
            }
            Ok(())
        };
        self.0.get_each("/slaves", "slaves", each).await?;
        agents.append(&mut recovered);
        Ok(agents)
    }
}

/// What the operator API's stream says when an agent registers (Mesos ≥ 1.1).
const AGENT_ADDED: &[u8] = b"AGENT_ADDED";

impl Mesos {
    /// Calls `added` whenever an agent registers, until the stream ends.
    ///
    /// The events themselves are not parsed: they only say that `/slaves` is worth a look now. Dead agents make no event.
    ///
    /// # Errors
    /// When the stream cannot be opened or breaks.
    pub async fn watch(&self, mut added: impl FnMut()) -> Result<(), ApiError> {
        let mut stream = self.0.stream("/api/v1", &serde_json::json!({ "type": "SUBSCRIBE" })).await?;
        let mut events = Events::default();
        while let Some(chunk) = self.0.next_chunk(&mut stream).await? {
            if events.has_added(&chunk) {
                added();
            }
        }
        Ok(())
    }
}

/// The stream so far; of that only its end is kept.
#[derive(Default)]
struct Events {
    tail: Vec<u8>,
}

impl Events {
    /// Whether an agent has registered, as this chunk says.
    fn has_added(&mut self, chunk: &[u8]) -> bool {
        self.tail.extend_from_slice(chunk);
        let found = self.tail.windows(AGENT_ADDED.len()).any(|window| window == AGENT_ADDED);
        if found {
            self.tail.clear();
        }
        // The word may be cut in two by a chunk's end.
        let keep = self.tail.len().min(AGENT_ADDED.len() - 1);
        self.tail.drain(..self.tail.len() - keep);
        found
    }
}

/// The same answer in one piece.
#[cfg(any(test, fuzzing))]
#[derive(Deserialize)]
struct Slaves {
    slaves: Vec<Slave>,
    #[serde(default)]
    recovered_slaves: Vec<Recovered>,
}

#[cfg(any(test, fuzzing))]
impl Slaves {
    fn agents(self) -> Vec<Agent> {
        let recovered = self.recovered_slaves.into_iter().filter_map(Recovered::agent);
        self.slaves.into_iter().filter_map(Slave::agent).chain(recovered).collect()
    }
}

/// What a new master knows of an agent before it is back: what the registry of the masters holds.
#[derive(Deserialize)]
struct Recovered {
    id: String,
    hostname: String,
    #[serde(default)]
    attributes: serde_json::Map<String, serde_json::Value>,
}

impl Recovered {
    fn agent(self) -> Option<Agent> {
        let host = host_of(&self.hostname)?;
        let public = has_public_ip(&self.attributes);
        let (free, ports) = (Resources::default(), Ports::default());
        Some(Agent { id: self.id, host, public, active: false, recovered: true, free, ports })
    }
}

/// A host name that can be used; of another one there is a warning.
fn host_of(hostname: &str) -> Option<Host> {
    let host = hostname.parse();
    host.inspect_err(|error| tracing::warn!(hostname, %error, "agent left out: its host name cannot be used")).ok()
}

fn has_public_ip(attributes: &serde_json::Map<String, serde_json::Value>) -> bool {
    attributes.get("public_ip").and_then(|v| v.as_str()) == Some("true")
}

#[derive(Deserialize)]
struct Slave {
    id: String,
    hostname: String,
    active: bool,
    #[serde(default)]
    deactivated: bool,
    #[serde(default)]
    drain_info: Option<serde_json::Value>,
    #[serde(default)]
    attributes: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    reserved_resources: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    unreserved_resources: serde_json::Value,
    #[serde(default)]
    reserved_resources_full: serde_json::Map<String, serde_json::Value>,
    resources: Scalars,
    used_resources: Scalars,
}

#[derive(Deserialize)]
struct Scalars {
    #[serde(default)]
    cpus: f64,
    #[serde(default)]
    mem: f64,
    #[serde(default)]
    disk: f64,
}

impl Slave {
    fn agent(self) -> Option<Agent> {
        let host = host_of(&self.hostname)?;
        // In strict mode reserved resources are filtered by permission; the attribute is not.
        let public = has_public_ip(&self.attributes) || self.reserved_resources_full.get(PUBLIC_ROLE).is_some_and(is_for_good);
        let of_role = if public { self.reserved_resources.get(PUBLIC_ROLE) } else { Some(&self.unreserved_resources) };
        let ports = of_role.and_then(|resources| resources["ports"].as_str()).map(Ports::parse).unwrap_or_default();
        Some(Agent {
            id: self.id,
            host,
            public,
            active: self.active && !self.deactivated && self.drain_info.is_none(),
            recovered: false,
            free: Resources {
                cpus: self.resources.cpus - self.used_resources.cpus,
                mem: self.resources.mem - self.used_resources.mem,
                disk: self.resources.disk - self.used_resources.disk,
            },
            ports,
        })
    }
}

/// Whether an agent has this by its own configuration. DC/OS's Marathon has the same role as public agents, and what it reserves
/// on any agent, as for a persistent volume, says who has reserved it.
fn is_for_good(resources: &serde_json::Value) -> bool {
    let is_static = |resource: &serde_json::Value| {
        let refined = resource["reservations"].as_array().into_iter().flatten();
        resource["reservation"].is_null() && refined.clone().all(|reservation| reservation["type"] != "DYNAMIC")
    };
    resources.as_array().into_iter().flatten().any(is_static)
}

/// For fuzzing: reads whatever a master could answer, or put into its stream of events.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_anything(answer: &[u8]) -> Vec<Agent> {
    let mut events = Events::default();
    let found = answer.chunks(7).filter(|chunk| events.has_added(chunk)).count();
    assert_eq!(found > 0, answer.windows(AGENT_ADDED.len()).any(|window| window == AGENT_ADDED));
    assert!(events.tail.len() < AGENT_ADDED.len());
    serde_json::from_slice::<Slaves>(answer).map(|answer| answer.slaves.into_iter().filter_map(Slave::agent).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_agents_are_known_by_attribute_or_reservation_and_draining_ones_are_not_active() {
        let slaves: Slaves = serde_json::from_value(serde_json::json!({"slaves": [
            {"id": "a", "hostname": "10.0.0.1", "active": true, "attributes": {"public_ip": "true"}, "resources": {"cpus": 2.0, "mem": 100.0, "disk": 50.0},
             "used_resources": {"cpus": 0.5, "mem": 40.0, "disk": 0.0}},
            {"id": "b", "hostname": "10.0.0.2", "active": true, "reserved_resources": {"slave_public": {"ports": "[1-21, 23-5050]"}},
              "reserved_resources_full": {"slave_public": [{"name": "cpus"}]},
             "drain_info": {"state": "DRAINING"}, "resources": {}, "used_resources": {}},
            {"id": "d", "hostname": "10.0.0.3", "active": true, "reserved_resources_full": {"slave_public": [
                {"name": "disk", "reservation": {"principal": "dcos_marathon"}},
                {"name": "cpus", "reservations": [{"role": "slave_public", "type": "DYNAMIC"}]}]}, "resources": {}, "used_resources": {}},
            {"id": "c", "hostname": "../etc", "active": true, "resources": {}, "used_resources": {}}
        ]}))
        .unwrap();
        let agents = slaves.agents();
        assert_eq!(
            agents.iter().map(|a| (a.public, a.active)).collect::<Vec<_>>(),
            [(true, true), (true, false), (false, true)],
            "a persistent volume makes no public agent"
        );
        assert_eq!(agents[0].free, Resources { cpus: 1.5, mem: 60.0, disk: 50.0 });
        assert!(agents[1].ports.contains(5000) && !agents[1].ports.contains(22) && agents[0].ports.is_empty());
        assert_eq!(agents[1].ports.to_string(), "1-21, 23-5050");
    }

    #[test]
    fn agents_that_a_new_master_still_waits_for_are_not_lost() {
        let slaves: Slaves = serde_json::from_value(serde_json::json!({"slaves": [
            {"id": "a", "hostname": "10.0.0.1", "active": true, "resources": {}, "used_resources": {}},
        ], "recovered_slaves": [
            {"id": "b", "hostname": "10.0.0.2", "port": 5051, "attributes": {"public_ip": "true"}},
            {"id": "c", "hostname": "10.0.0.3", "port": 5051, "attributes": {}},
        ]}))
        .unwrap();
        let seen: Vec<_> =
            slaves.agents().into_iter().map(|agent| (agent.host.to_string(), agent.public, agent.active, agent.recovered)).collect();
        let expected = [("10.0.0.1", false, true, false), ("10.0.0.2", true, false, true), ("10.0.0.3", false, false, true)];
        assert_eq!(seen, expected.map(|(host, public, active, recovered)| (host.to_string(), public, active, recovered)));
    }
}
