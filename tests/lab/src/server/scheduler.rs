//! Where a task may run and how it gets there: what the offers of Mesos and the matching of a framework come to.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::clock::now;
use super::marathon::volumes::kept_for_others;
use super::mesos::task_added;
use super::state::{Agent, Framework, Launch, Presence, Resources, State, Task, write_atomically};
use super::{Host, Security};
use crate::task::{KillOrder, SecretUse, TaskSpec, TaskState};

/// Host ports that are given out, out of those that DC/OS offers on agents of both roles; below Linux' ephemeral ones.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What a task needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Demand {
    pub(crate) cpus: f64,
    pub(crate) mem: f64,
    pub(crate) disk: f64,
    pub(crate) gpus: f64,
    /// Agents with GPUs do, although it asks for none.
    pub(crate) unrestricted: bool,
    /// Host ports; 0 for any.
    pub(crate) ports: Vec<u16>,
    /// Roles of the resources that it may take: `*`, `slave_public`.
    pub(crate) roles: Vec<String>,
    pub(crate) constraints: Vec<Constraint>,
    /// The instance that has something reserved, and the id of the agent where it has that.
    pub(crate) reservation: Option<(String, String)>,
    /// Take the fullest agent that fits instead of the emptiest: the worst that real offers, which come in any order, can do.
    pub(crate) pack: bool,
}

/// A constraint, in the words of Marathon and Metronome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Constraint {
    /// `hostname`, `@hostname`, or an attribute.
    pub(crate) field: String,
    /// `UNIQUE`, `LIKE`, `UNLIKE`, `IS`, `EQ`, `CLUSTER`, `GROUP_BY` or `MAX_PER`.
    pub(crate) operator: String,
    pub(crate) value: Option<String>,
}

/// Why an agent did not do, in the order and the words of Marathon's `NoOfferMatchReason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reject {
    UnfulfilledRole,
    UnfulfilledConstraint,
    NoCorrespondingReservationFound,
    InsufficientCpus,
    InsufficientMemory,
    InsufficientDisk,
    InsufficientPorts,
    DeclinedScarceResources,
}

/// An agent and the host ports for the task there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) agent: Ipv4Addr,
    pub(crate) ports: Vec<u16>,
    /// Role of the resources taken.
    pub(crate) role: &'static str,
}

/// Finds an agent. `occupied` are the hosts of the other instances that a constraint counts.
///
/// # Errors
/// The reason of every agent that was looked at.
pub(crate) fn place(state: &State, demand: &Demand, occupied: &[Ipv4Addr]) -> Result<Placement, Vec<Reject>> {
    let mut rejects = Vec::new();
    let mut fitting = Vec::new();
    for agent in state.agents.values().filter(|agent| agent.presence == Presence::Active) {
        match fit(state, demand, occupied, agent) {
            Ok(ports) => fitting.push((state.used(agent).cpus, agent.ip, ports, agent.resource_role())),
            Err(reject) => rejects.push(reject),
        }
    }
    // The emptiest, so that tasks spread.
    fitting.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let best = if demand.pack { fitting.pop() } else { (!fitting.is_empty()).then(|| fitting.swap_remove(0)) };
    best.map(|(_, agent, ports, role)| Placement { agent, ports, role }).ok_or(rejects)
}

fn fit(state: &State, demand: &Demand, occupied: &[Ipv4Addr], agent: &Agent) -> Result<Vec<u16>, Reject> {
    if !demand.roles.iter().any(|role| role == agent.resource_role()) {
        return Err(Reject::UnfulfilledRole);
    }
    // Metronome is not asked about regions and GPUs: whether it declines them was not looked at.
    let elsewhere = agent.extras.region.is_some() && state.pose.knows_regions() && state.pose.has_fault_domains();
    let asks_where = demand.constraints.iter().any(|constraint| matches!(constraint.field.as_str(), "@region" | "@zone"));
    if elsewhere && !asks_where || !demand.constraints.iter().all(|constraint| constraint.allows(agent, occupied)) {
        return Err(Reject::UnfulfilledConstraint);
    }
    if demand.reservation.as_ref().is_some_and(|(_, at)| *at != agent.id) {
        return Err(Reject::NoCorrespondingReservationFound);
    }
    let (total, mut used) = (agent.total(), state.used(agent));
    used.add(&kept_for_others(state, agent, demand.reservation.as_ref().map(|(own, _)| own.as_str())));
    // Sums of fractions: what is 0.1 + 0.2 must fit into 0.3.
    let fits = |wanted: f64, total: f64, used: f64| wanted <= total - used + 1e-6;
    if !fits(demand.cpus, total.cpus, used.cpus) {
        return Err(Reject::InsufficientCpus);
    }
    if !fits(demand.mem, total.mem, used.mem) {
        return Err(Reject::InsufficientMemory);
    }
    if !fits(demand.disk, total.disk, used.disk) {
        return Err(Reject::InsufficientDisk);
    }
    let ports = ports(&demand.ports, &used.ports, agent).ok_or(Reject::InsufficientPorts)?;
    if agent.extras.gpus > 0 && demand.gpus == 0.0 && !demand.unrestricted && state.pose.keeps_gpus_for_those_who_ask() {
        return Err(Reject::DeclinedScarceResources);
    }
    Ok(ports)
}

fn ports(wanted: &[u16], used: &[u16], agent: &Agent) -> Option<Vec<u16>> {
    let mut taken = used.to_vec();
    taken.extend(wanted.iter().filter(|port| **port != 0));
    // Where the search begins is random, as Marathon's is: a port that was just left is seldom given out again at once.
    let span = PORTS.end - PORTS.start;
    let begin = (uuid::Uuid::new_v4().as_u128() % u128::from(span)) as u16;
    let mut free = (0..span).map(|step| PORTS.start + (begin + step) % span);
    let mut ports = Vec::new();
    for port in wanted {
        let port = match port {
            0 => free.find(|port| !taken.contains(port))?,
            fixed if used.contains(fixed) || !agent.port_ranges().iter().any(|(low, high)| (low..=high).contains(&fixed)) => return None,
            fixed => *fixed,
        };
        ports.push(port);
    }
    Some(ports)
}

impl Constraint {
    fn allows(&self, agent: &Agent, occupied: &[Ipv4Addr]) -> bool {
        let attribute = match self.field.as_str() {
            "hostname" | "@hostname" => Some(agent.ip.to_string()),
            "@region" => agent.extras.region.clone(),
            "@zone" => agent.extras.region.as_ref().map(|region| format!("{region}-a")),
            field => agent.attributes().into_iter().find(|(name, _)| *name == field).map(|(_, value)| value.to_owned()),
        };
        // An agent that lacks the attribute passes only an UNLIKE (Marathon, Constraints.checkMissingAttribute).
        let Some(attribute) = attribute else { return self.operator == "UNLIKE" };
        let value = self.value.as_deref().unwrap_or_default();
        let on_host = occupied.iter().filter(|host| **host == agent.ip).count();
        match self.operator.as_str() {
            "UNIQUE" => on_host == 0,
            "MAX_PER" => on_host < value.parse().unwrap_or(usize::MAX),
            "LIKE" => matches_whole(value, &attribute),
            "UNLIKE" => !matches_whole(value, &attribute),
            "IS" | "EQ" => value == attribute,
            "CLUSTER" => (value.is_empty() || value == attribute) && occupied.iter().all(|host| *host == agent.ip),
            // GROUP_BY spreads; with hosts to choose from, the emptiest comes first anyway.
            "GROUP_BY" => true,
            _ => false,
        }
    }
}

/// As Java's `String.matches`: the whole text.
fn matches_whole(pattern: &str, text: &str) -> bool {
    regex_lite::Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(text))
}

/// A task that has a place.
#[derive(Debug)]
pub(crate) struct NewTask {
    pub(crate) name: String,
    pub(crate) framework: Framework,
    /// Marathon's instance id or Metronome's run id.
    pub(crate) owner: String,
    /// Container of a pod.
    pub(crate) container: Option<String>,
    /// For a command executor the task id.
    pub(crate) executor_id: String,
    pub(crate) resources: Resources,
    pub(crate) executor_resources: Option<Resources>,
    pub(crate) placement: Placement,
    pub(crate) labels: std::collections::BTreeMap<String, String>,
    /// What to run. Its `id` is the Mesos task id.
    pub(crate) spec: TaskSpec,
    /// As whom it reads secrets: the id of its app, pod or job with slashes.
    pub(crate) reader: String,
    pub(crate) secrets: Vec<SecretUse>,
}

/// The Linux user of a task whose definition names none.
pub(crate) fn default_user(state: &State) -> &'static str {
    if state.pose.security == Security::Strict { UNPRIVILEGED } else { "root" }
}

/// Every framework may launch tasks as this user.
const UNPRIVILEGED: &str = "nobody";

/// Why the master refuses a task, in its words. It asks for the permission at every launch.
fn refusal(state: &State, framework: Framework, user: &str) -> Option<String> {
    let account = match framework {
        Framework::Marathon => "dcos_marathon",
        Framework::Metronome => "dcos_metronome",
    };
    let resource = format!("dcos:mesos:master:task:user:{user}");
    let may = state.pose.security != Security::Strict || user == UNPRIVILEGED || state.enterprise.allows(account, &resource, "create");
    (!may).then(|| format!("Not authorized to launch as user '{user}'"))
}

/// Puts tasks that are launched together (the containers of a pod) among those of the cluster; the next tick hands them to executors.
/// Where the master refuses one, it refuses all.
pub(crate) fn launch(state: &mut State, host: &dyn Host, tasks: Vec<NewTask>) {
    let refusal = tasks.iter().find_map(|new| refusal(state, new.framework, &new.spec.user));
    for new in tasks {
        add(state, host, new, refusal.clone());
    }
}

fn add(state: &mut State, host: &dyn Host, new: NewTask, refusal: Option<String>) {
    let Some(agent) = state.agents.get(&new.placement.agent) else { return };
    let agent_id = agent.id.clone();
    let run = uuid::Uuid::new_v4();
    let mut sandbox = host.sandbox_root(new.placement.agent);
    sandbox.extend(["slaves", &agent_id, "frameworks", &state.framework_id(new.framework), "executors", &new.executor_id, "runs"]);
    sandbox.push(run.to_string());
    if new.container.is_some() {
        sandbox.extend(["containers", &uuid::Uuid::new_v4().to_string()]);
    }
    let at = now();
    let mut task = Task {
        id: new.spec.id.clone(),
        name: new.name,
        framework: new.framework,
        owner: new.owner,
        container: new.container,
        executor_id: new.executor_id,
        agent: new.placement.agent,
        agent_id,
        resources: new.resources,
        executor_resources: new.executor_resources,
        resource_role: new.placement.role.to_owned(),
        state: TaskState::Staging,
        unreachable: false,
        healthy: None,
        healthy_since: None,
        first_success: None,
        last_success: None,
        consecutive_failures: 0,
        staged: at,
        started: None,
        since: at,
        message: None,
        kill: None,
        sandbox,
        labels: new.labels,
        updates: Vec::new(),
    };
    task.record(at);
    if refusal.is_some() {
        // Its framework hears of it in the next round; in Mesos' own lists and events it never appears.
        task.message = refusal;
        task.enter(TaskState::Error, at);
    } else {
        let event = task_added(state, &task);
        state.mesos_event(event);
        state.launches.push(Launch { agent: task.agent, spec: new.spec, reader: new.reader, secrets: new.secrets });
    }
    state.tasks.insert(task.id.clone(), task);
    state.touch();
}

/// Tells a task to end. One that is told already, or has ended, is left alone.
pub(crate) fn kill(state: &mut State, id: &str, order: KillOrder) {
    let Some(task) = state.tasks.get_mut(id) else { return };
    if task.kill.is_some() || task.state.is_terminal() {
        return;
    }
    // The executor looks for the file, also when it starts only later.
    let written = std::fs::create_dir_all(&task.sandbox)
        .and_then(|()| serde_json::to_vec(&order).map_err(Into::into))
        .and_then(|text| write_atomically(&task.sandbox.join("kill.json"), &text));
    if let Err(error) = written {
        tracing::error!(%error, task = id, "kill order not written");
        return;
    }
    task.kill = Some(order);
    state.touch();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::state::{Extras, Options};
    use crate::server::{Pose, Role, Security, agents};

    fn cluster() -> State {
        let mut state = State::new(Options::default(), super::super::Pose::open_2_2());
        agents::register(&mut state, Ipv4Addr::new(192, 168, 1, 80), Role::Private);
        agents::register(&mut state, Ipv4Addr::new(192, 168, 1, 50), Role::Public);
        state
    }

    fn demand(roles: &[&str], constraints: &[(&str, &str, Option<&str>)]) -> Demand {
        let constraint = |(field, operator, value): &(&str, &str, Option<&str>)| Constraint {
            field: (*field).to_owned(),
            operator: (*operator).to_owned(),
            value: value.map(str::to_owned),
        };
        Demand {
            cpus: 0.1,
            mem: 32.0,
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            constraints: constraints.iter().map(constraint).collect(),
            ..Demand::default()
        }
    }

    #[test]
    fn a_public_agent_is_reached_only_with_its_role() {
        let state = cluster();
        let private = place(&state, &demand(&["*"], &[]), &[]).unwrap();
        assert_eq!((private.agent.octets()[3], private.role), (80, "*"));
        let public = place(&state, &demand(&["slave_public"], &[]), &[]).unwrap();
        assert_eq!((public.agent.octets()[3], public.role), (50, "slave_public"));
    }

    #[test]
    fn unique_excludes_hosts_that_have_an_instance_and_says_so() {
        let state = cluster();
        let unique = demand(&["*", "slave_public"], &[("hostname", "UNIQUE", None)]);
        let all: Vec<Ipv4Addr> = state.agents.keys().copied().collect();
        assert_eq!(place(&state, &unique, &all[..1]).unwrap().agent, all[1]);
        assert_eq!(place(&state, &unique, &all), Err(vec![Reject::UnfulfilledConstraint; 2]));
    }

    #[test]
    fn agents_with_gpus_are_kept_for_those_who_ask_from_dcos_1_13_on() {
        for (dcos, is_kept) in [("1.12.0", false), ("1.13.0", true), ("2.2.1", true)] {
            let mut state = State::new(Options::default(), Pose::of(dcos, Security::Open).unwrap());
            let extras = Extras { gpus: 2, region: None };
            agents::register_with(&mut state, Ipv4Addr::new(192, 168, 1, 80), Role::Private, extras);
            let plain = demand(&["*"], &[]);
            let declined = Err(vec![Reject::DeclinedScarceResources]);
            assert_eq!(place(&state, &plain, &[]) == declined, is_kept, "{dcos}");
            assert!(place(&state, &Demand { gpus: 1.0, ..plain.clone() }, &[]).is_ok());
            assert!(place(&state, &Demand { unrestricted: true, ..plain }, &[]).is_ok());
        }
    }

    #[test]
    fn agents_in_another_region_take_only_who_names_a_region_from_dcos_1_11_on() {
        for (dcos, is_declined) in [("1.10.4", false), ("1.11.0", true), ("2.2.1", true)] {
            let mut state = State::new(Options::default(), Pose::of(dcos, Security::Open).unwrap());
            let extras = Extras { gpus: 0, region: Some("far".to_owned()) };
            agents::register_with(&mut state, Ipv4Addr::new(192, 168, 1, 80), Role::Private, extras);
            assert_eq!(place(&state, &demand(&["*"], &[]), &[]).is_err(), is_declined, "{dcos}");
            assert!(place(&state, &demand(&["*"], &[("@region", "UNLIKE", Some("^$"))]), &[]).is_ok());
            assert!(place(&state, &demand(&["*"], &[("@region", "IS", Some("near"))]), &[]).is_err());
        }
    }

    #[test]
    fn like_matches_the_whole_host_name_and_an_absent_attribute_passes_unlike_only() {
        let state = cluster();
        let like = |value| place(&state, &demand(&["*"], &[("hostname", "LIKE", Some(value))]), &[]).is_ok();
        assert!(like(r"192\.168\.1\.80") && like(".*80") && !like("168"));
        assert!(place(&state, &demand(&["*"], &[("@region", "UNLIKE", Some("^$"))]), &[]).is_ok());
        assert!(place(&state, &demand(&["*"], &[("@region", "LIKE", Some(".*"))]), &[]).is_err());
    }

    #[test]
    fn a_fixed_port_must_be_offered_and_free_ones_are_never_the_same() {
        let state = cluster();
        let with_ports = |ports: &[u16]| place(&state, &Demand { ports: ports.to_vec(), ..demand(&["*"], &[]) }, &[]);
        assert_eq!(with_ports(&[22]), Err(vec![Reject::UnfulfilledRole, Reject::InsufficientPorts]));
        let ports = with_ports(&[0, 5000, 0]).unwrap().ports;
        assert_eq!(ports[1], 5000);
        assert_ne!(ports[0], ports[2]);
    }
}
