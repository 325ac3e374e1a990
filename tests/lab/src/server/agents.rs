//! Agents that join, leave, die and come back, as the master sees it.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::clock::now;
use super::mesos::{agent_added, agent_removed, task_updated};
use super::state::{Agent, Extras, Presence, State};
use super::{Role, SharedState};
use crate::task::TaskState;

/// A machine joins the cluster.
///
/// # Errors
/// The host could not make it.
pub fn join(shared: &SharedState, role: Role, extras: Extras) -> Result<Ipv4Addr, String> {
    let ip = shared.host.add_agent(role, extras.disk_mib)?;
    shared.change(|state| register_with(state, ip, role, extras));
    Ok(ip)
}

/// Registers an agent under a new id.
pub fn register(state: &mut State, ip: Ipv4Addr, role: Role) {
    register_with(state, ip, role, Extras::default());
}

/// The same for an agent that has something special.
pub(crate) fn register_with(state: &mut State, ip: Ipv4Addr, role: Role, extras: Extras) {
    let id = format!("{}-S{}", state.cluster_id, state.agents_ever);
    state.agents_ever += 1;
    let registered = now();
    let agent = Agent { id, ip, role, presence: Presence::Active, filled: false, registered, reregistered: registered, extras };
    let event = agent_added(state, &agent);
    state.mesos_event(event);
    state.agents.insert(ip, agent);
    state.touch();
}

/// An agent unregisters: its tasks end, its id is never seen again.
///
/// # Errors
/// No such agent, or the host could not stop it.
pub fn leave(shared: &SharedState, ip: Ipv4Addr) -> Result<(), String> {
    shared.change(|state| {
        let agent = state.agents.remove(&ip).ok_or_else(|| unknown(ip))?;
        for id in task_ids(state, ip) {
            end_task(state, &id, TaskState::Killed, "Agent removed");
        }
        state.mesos_event(agent_removed(&agent.id));
        state.touch();
        Ok::<_, String>(())
    })?;
    shared.host.stop_agent(ip)
}

/// An agent dies without a word; the master notices after a delay.
///
/// # Errors
/// No such agent, or the host could not kill it.
pub fn die(shared: &SharedState, ip: Ipv4Addr, after_seconds: Option<f64>) -> Result<(), String> {
    shared.change(|state| {
        let delay = after_seconds.unwrap_or(state.options.lost_after_seconds);
        let agent = state.agents.get_mut(&ip).ok_or_else(|| unknown(ip))?;
        agent.presence = Presence::Dying { noticed_at: now() + delay };
        state.touch();
        Ok::<_, String>(())
    })?;
    shared.host.kill_agent(ip)
}

/// A dead agent comes back: with its disk under the same id, with a fresh one under a new id.
///
/// # Errors
/// No such agent, it is not dead, or the host could not start it.
pub fn revive(shared: &SharedState, ip: Ipv4Addr, fresh_disk: bool) -> Result<(), String> {
    let presence = shared.read(|s| s.agents.get(&ip).map(|a| a.presence)).ok_or_else(|| unknown(ip))?;
    if presence == Presence::Active {
        return Err(format!("agent {ip} is not dead"));
    }
    shared.host.revive_agent(ip, fresh_disk)?;
    shared.change(|state| {
        // Nothing of what ran there before survived.
        for id in task_ids(state, ip) {
            end_task(state, &id, TaskState::Failed, "Executor terminated");
        }
        let Some(mut agent) = state.agents.remove(&ip) else { return };
        if fresh_disk {
            register_with(state, ip, agent.role, agent.extras);
        } else {
            agent.presence = Presence::Active;
            agent.reregistered = now();
            let event = agent_added(state, &agent);
            state.mesos_event(event);
            state.agents.insert(ip, agent);
        }
        state.touch();
    });
    Ok(())
}

/// Another master takes over: it knows every agent from the registry, and lists each as soon as it is back, one after the other.
pub(crate) fn fail_over(state: &mut State, seconds: f64) {
    let active = state.agents.values().filter(|agent| agent.presence == Presence::Active);
    let ips: Vec<Ipv4Addr> = active.map(|agent| agent.ip).collect();
    for (index, ip) in ips.iter().enumerate() {
        let back_at = now() + seconds * (index + 1) as f64 / ips.len() as f64;
        if let Some(agent) = state.agents.get_mut(ip) {
            agent.presence = Presence::Recovered { back_at };
        }
    }
    // The streams of the old master end with it.
    state.mesos_event(Value::Null);
    state.touch();
}

/// Lists agents that have come back to a new master.
pub(crate) fn welcome_back(state: &mut State) {
    let at = now();
    let is_back = |agent: &&Agent| matches!(agent.presence, Presence::Recovered { back_at } if back_at <= at);
    let back: Vec<Ipv4Addr> = state.agents.values().filter(is_back).map(|agent| agent.ip).collect();
    for ip in back {
        let Some(mut agent) = state.agents.remove(&ip) else { continue };
        (agent.presence, agent.reregistered) = (Presence::Active, at);
        let event = agent_added(state, &agent);
        state.mesos_event(event);
        state.agents.insert(ip, agent);
        state.touch();
    }
}

/// Takes all room of an agent, or gives it back.
///
/// # Errors
/// No such agent.
pub fn set_filled(shared: &SharedState, ip: Ipv4Addr, filled: bool) -> Result<(), String> {
    shared.change(|state| {
        state.agents.get_mut(&ip).ok_or_else(|| unknown(ip))?.filled = filled;
        state.touch();
        Ok(())
    })
}

/// Gives up agents whose time has come.
pub(crate) fn notice_lost(state: &mut State) {
    let at = now();
    let lost: Vec<Ipv4Addr> =
        state.agents.values().filter(|a| matches!(a.presence, Presence::Dying { noticed_at } if noticed_at <= at)).map(|a| a.ip).collect();
    for ip in lost {
        if let Some(agent) = state.agents.get_mut(&ip) {
            agent.presence = Presence::Lost;
        }
        for id in task_ids(state, ip) {
            let Some(task) = state.tasks.get_mut(&id) else { continue };
            task.unreachable = true;
            task.since = at;
            task.message = Some("Agent is unreachable".to_owned());
            task.record(at);
            if let Some(event) = state.tasks.get(&id).map(|task| task_updated(state, task)) {
                state.mesos_event(event);
            }
        }
        state.touch();
    }
}

/// Puts a task into a terminal state; its framework hears of it in the next round.
pub(crate) fn end_task(state: &mut State, id: &str, end: TaskState, message: &str) {
    let Some(task) = state.tasks.get_mut(id) else { return };
    if task.state.is_terminal() {
        return;
    }
    task.unreachable = false;
    task.message = Some(message.to_owned());
    task.enter(end, now());
    if let Some(event) = state.tasks.get(id).map(|task| task_updated(state, task)) {
        state.mesos_event(event);
    }
    state.touch();
}

fn task_ids(state: &State, ip: Ipv4Addr) -> Vec<String> {
    state.tasks.values().filter(|t| t.agent == ip).map(|t| t.id.clone()).collect()
}

fn unknown(ip: Ipv4Addr) -> String {
    format!("there is no agent {ip}")
}
