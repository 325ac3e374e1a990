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
                "slaves" => agents.extend(crate::json::of_bytes::<Slave>(element)?.agent()),
                "recovered_slaves" => recovered.extend(crate::json::of_bytes::<Recovered>(element)?.agent()),
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
/// Larger records of the stream, as the picture of the cluster that it begins with, are passed over.
const MAX_RECORD_BYTES: usize = 64 * 1024;

impl Mesos {
    /// Calls `added` whenever an agent registers, until the stream ends; with the agent, if it could be read.
    ///
    /// Dead agents make no event: what the stream does not say has to be asked for.
    ///
    /// # Errors
    /// When the stream cannot be opened or breaks.
    pub async fn watch(&self, mut added: impl FnMut(Option<Agent>)) -> Result<(), ApiError> {
        let mut stream = self.0.stream("/api/v1", &serde_json::json!({ "type": "SUBSCRIBE" })).await?;
        let mut records = Records::default();
        while let Some(chunk) = self.0.next_chunk(&mut stream).await? {
            records.feed(&chunk, |record| {
                if let Some(agent) = agent_added(record) {
                    added(agent);
                }
            });
        }
        Ok(())
    }
}

/// The agent of a record that says that one has registered; none inside where it cannot be read.
fn agent_added(record: &[u8]) -> Option<Option<Agent>> {
    let is_it = record.windows(AGENT_ADDED.len()).any(|window| window == AGENT_ADDED);
    is_it.then(|| crate::json::of_bytes::<AgentAdded>(record).ok().and_then(|event| event.agent_added.agent.agent()))
}

/// A stream of records, each with its length in a line before it. Only small ones are kept until they are whole.
#[derive(Default)]
struct Records {
    /// What is left of the record at hand, once its length is known.
    left: usize,
    length: Vec<u8>,
    record: Vec<u8>,
    passed_over: bool,
}

impl Records {
    fn feed(&mut self, mut chunk: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some((first, rest)) = chunk.split_first() {
            if self.left == 0 {
                chunk = rest;
                if first.is_ascii_digit() && self.length.len() < 12 {
                    self.length.push(*first);
                } else if *first == b'\n' {
                    let length = std::str::from_utf8(&self.length).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                    self.length.clear();
                    (self.left, self.passed_over) = (length, length > MAX_RECORD_BYTES);
                }
                // Anything else is no length, and is passed over as well.
                continue;
            }
            let part = &chunk[..self.left.min(chunk.len())];
            if !self.passed_over {
                self.record.extend_from_slice(part);
            }
            chunk = &chunk[part.len()..];
            self.left -= part.len();
            if self.left == 0 && !self.passed_over {
                each(&self.record);
                self.record.clear();
            }
        }
    }
}

#[derive(Deserialize)]
struct AgentAdded {
    agent_added: Added,
}

#[derive(Deserialize)]
struct Added {
    agent: AgentV1,
}

/// An agent as the operator API shows it.
#[derive(Deserialize)]
struct AgentV1 {
    agent_info: AgentInfo,
    active: bool,
    #[serde(default)]
    deactivated: bool,
    #[serde(default)]
    drain_info: Option<serde_json::Value>,
    total_resources: Vec<Resource>,
    #[serde(default)]
    allocated_resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct AgentInfo {
    hostname: String,
    id: Text,
    #[serde(default)]
    attributes: Vec<Attribute>,
}

#[derive(Deserialize)]
struct Text {
    value: String,
}

#[derive(Deserialize)]
struct Attribute {
    name: String,
    #[serde(default)]
    text: Option<Text>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    #[serde(default)]
    scalar: Option<Scalar>,
    #[serde(default)]
    ranges: Option<Ranges>,
    #[serde(default)]
    role: String,
    #[serde(default)]
    reservation: Option<serde_json::Value>,
    #[serde(default)]
    reservations: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Scalar {
    value: f64,
}

#[derive(Deserialize)]
struct Ranges {
    #[serde(default)]
    range: Vec<Range>,
}

#[derive(Deserialize)]
struct Range {
    begin: u16,
    end: u16,
}

impl Resource {
    /// See [`is_for_good`].
    fn is_public(&self) -> bool {
        let refined = self.reservations.last();
        let role = refined.map_or(self.role.as_str(), |reservation| reservation["role"].as_str().unwrap_or_default());
        role == PUBLIC_ROLE && self.reservation.is_none() && self.reservations.iter().all(|r| r["type"] != "DYNAMIC")
    }
}

impl AgentV1 {
    fn agent(self) -> Option<Agent> {
        let host = host_of(&self.agent_info.hostname)?;
        let is_true = |attribute: &Attribute| attribute.text.as_ref().is_some_and(|text| text.value == "true");
        let by_attribute = self.agent_info.attributes.iter().any(|attribute| attribute.name == "public_ip" && is_true(attribute));
        let public = by_attribute || self.total_resources.iter().any(Resource::is_public);
        let sum = |resources: &[Resource], name: &str| -> f64 {
            resources.iter().filter(|resource| resource.name == name).filter_map(|resource| Some(resource.scalar.as_ref()?.value)).sum()
        };
        let free = |name| sum(&self.total_resources, name) - sum(&self.allocated_resources, name);
        let of_role = self.total_resources.iter().filter(|resource| resource.is_public() == public);
        let ranges = of_role.filter(|resource| resource.name == "ports").filter_map(|resource| resource.ranges.as_ref());
        Some(Agent {
            host,
            public,
            active: self.active && !self.deactivated && self.drain_info.is_none(),
            recovered: false,
            free: Resources { cpus: free("cpus"), mem: free("mem"), disk: free("disk") },
            ports: Ports(ranges.flat_map(|ranges| &ranges.range).map(|range| (range.begin, range.end)).collect()),
            id: self.agent_info.id.value,
        })
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
    let (mut whole, mut cut) = (Vec::new(), Vec::new());
    Records::default().feed(answer, |record| whole.push(record.to_vec()));
    let mut records = Records::default();
    answer.chunks(7).for_each(|chunk| records.feed(chunk, |record| cut.push(record.to_vec())));
    assert_eq!(whole, cut, "it does not matter where a stream is cut");
    assert!(records.record.len() <= MAX_RECORD_BYTES);
    whole.iter().for_each(|record| drop(agent_added(record)));
    crate::json::of_bytes::<Slaves>(answer).map(Slaves::agents).unwrap_or_default()
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
    fn an_agent_that_registers_is_read_from_the_stream_as_from_the_list() {
        let stream = include_bytes!("../../tests/fixtures/mesos-1.11.0/subscribe-json.recordio");
        for chunk in [1, 100, stream.len()] {
            let (mut records, mut added) = (Records::default(), Vec::new());
            let mut each = |record: &[u8]| added.extend(agent_added(record));
            stream.chunks(chunk).for_each(|chunk| records.feed(chunk, &mut each));
            let seen: Vec<_> = added.into_iter().map(|agent| agent.unwrap()).collect();
            assert_eq!(seen.len(), 3);
            let first = &seen[0];
            assert_eq!((first.host.to_string().as_str(), first.public, first.active), ("127.0.0.14", false, true));
            assert_eq!(
                (first.free, first.ports.to_string().as_str()),
                (Resources { cpus: 2.0, mem: 2048.0, disk: 10240.0 }, "32500-32999")
            );
            assert_eq!(first.id, "cd022f8c-0a6c-438a-9dd9-d9b7103e9caa-S0");
        }
    }

    #[test]
    fn a_public_agent_is_known_in_the_stream_too_and_what_cannot_be_read_is_a_reason_to_ask() {
        let event = |total: serde_json::Value| {
            let info = serde_json::json!({ "hostname": "10.0.0.1", "id": { "value": "S1" } });
            let agent = serde_json::json!({ "agent_info": info, "active": true, "total_resources": total,
                                            "allocated_resources": [{ "name": "cpus", "scalar": { "value": 0.5 } }] });
            agent_added(serde_json::json!({ "type": "AGENT_ADDED", "agent_added": { "agent": agent } }).to_string().as_bytes())
        };
        let of = |role: &str, dynamic: serde_json::Value| serde_json::json!([{ "name": "cpus", "scalar": { "value": 2.0 }, "role": role, "reservations": dynamic }]);
        let public = event(of("slave_public", serde_json::json!([]))).unwrap().unwrap();
        assert!(public.public && public.free.cpus == 1.5);
        let is_public = |total| event(total).unwrap().unwrap().public;
        assert!(is_public(of("", serde_json::json!([{ "role": "slave_public", "type": "STATIC" }]))));
        assert!(
            !is_public(of("", serde_json::json!([{ "role": "slave_public", "type": "DYNAMIC" }])))
                && !is_public(of("*", serde_json::json!([])))
        );
        assert_eq!(event(serde_json::json!("?")), Some(None));
        assert_eq!(agent_added(b"{\"type\":\"HEARTBEAT\"}"), None);
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
