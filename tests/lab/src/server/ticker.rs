//! The heartbeat: reads what executors report, moves deployments and runs on, launches and kills, publishes names.

use std::path::Path;
use std::time::Duration;

use super::agents::{end_task, notice_lost};
use super::clock::now;
use super::mesos::task_updated;
use super::state::{Launch, Presence, State, write_atomically};
use super::{Pose, Security, SharedState};
use crate::task::{SecretPlace, Secrets, TaskState, TaskStatus};

/// Seconds in which an executor must have written its first status.
const START_SECONDS: f64 = 20.0;

/// One round.
pub fn tick(shared: &SharedState) {
    let reports = read_reports(shared);
    let launches = shared.change(|state| {
        notice_lost(state);
        for report in reports {
            apply(state, report);
        }
        super::marathon::advance(state, &*shared.host);
        super::metronome::advance(state, &*shared.host);
        let launches = std::mem::take(&mut state.launches);
        if !launches.is_empty() {
            state.touch();
        }
        launches
    });
    let (network, agents) = shared.read(|state| {
        let active = state.agents.values().filter(|agent| agent.presence == Presence::Active).map(|agent| agent.ip).collect::<Vec<_>>();
        (super::marathon::network(state), active)
    });
    shared.host.publish(&network, &agents);
    for launch in launches {
        if let Err(message) = start(shared, &launch) {
            shared.change(|state| end_task(state, &launch.spec.id, TaskState::Failed, &message));
        }
    }
}

/// A round every 100 ms, until the process ends.
pub async fn tick_forever(shared: SharedState) {
    loop {
        let round = shared.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || tick(&round)).await {
            tracing::error!(%error, "tick failed");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What was found in a sandbox.
struct Report {
    task: String,
    status: Option<TaskStatus>,
    alive: bool,
}

fn read_reports(shared: &SharedState) -> Vec<Report> {
    let running: Vec<_> = shared.read(|state| {
        state.tasks.values().filter(|t| !t.state.is_terminal() && !t.unreachable).map(|t| (t.id.clone(), t.sandbox.clone())).collect()
    });
    let read = |(task, sandbox): (String, std::path::PathBuf)| {
        let status = read_status(&sandbox);
        let alive = status.as_ref().is_some_and(|s| s.state.is_terminal() || shared.host.executor_alive(s));
        Report { task, status, alive }
    };
    running.into_iter().map(read).collect()
}

fn read_status(sandbox: &Path) -> Option<TaskStatus> {
    serde_json::from_slice(&std::fs::read(sandbox.join("status.json")).ok()?).ok()
}

/// Brings the task up to what its executor reports.
fn apply(state: &mut State, report: Report) {
    let at = now();
    let Some(task) = state.tasks.get_mut(&report.task) else { return };
    if task.state.is_terminal() || task.unreachable {
        return;
    }
    let agent_up = state.agents.get(&task.agent).is_some_and(|a| a.presence == Presence::Active && a.id == task.agent_id);
    let Some(status) = report.status else {
        if agent_up && task.staged + START_SECONDS < at {
            end_task(state, &report.task, TaskState::Failed, "Executor did not start");
        }
        return;
    };
    if !report.alive {
        // A dead machine is silent: nothing changes until the master gives it up.
        if agent_up {
            end_task(state, &report.task, TaskState::Failed, "Executor terminated");
        }
        return;
    }
    let health_changed = status.healthy.is_some() && status.healthy != task.healthy;
    let state_changed = status.state != task.state;
    task.consecutive_failures = status.consecutive_failures;
    if !health_changed && !state_changed {
        return;
    }
    if health_changed {
        task.healthy = status.healthy;
        task.healthy_since = Some(at);
    }
    task.started = task.started.or(status.started);
    task.message = status.message;
    if state_changed {
        task.enter(status.state, status.since);
    } else {
        task.record(at);
    }
    if let Some(event) = state.tasks.get(&report.task).map(|task| task_updated(state, task)) {
        state.mesos_event(event);
    }
    state.touch();
}

fn start(shared: &SharedState, launch: &Launch) -> Result<(), String> {
    let (sandbox, secrets, with_ca) = shared.read(|state| {
        let sandbox = state.tasks.get(&launch.spec.id).map(|task| task.sandbox.clone()).ok_or_else(|| "task is gone".to_owned())?;
        Ok::<_, String>((sandbox, resolve(state, launch)?, has_ca_in_sandboxes(&state.pose)))
    })?;
    let write = || {
        std::fs::create_dir_all(&sandbox)?;
        if with_ca {
            put_ca(&cluster_ca(&shared.dir), &sandbox)?;
        }
        write_atomically(&sandbox.join("task.json"), &serde_json::to_vec_pretty(&launch.spec)?)
    };
    write().map_err(|error| format!("sandbox: {error}"))?;
    shared.host.launch(launch.agent, &sandbox, &secrets)
}

/// The secrets of a task as they are now.
fn resolve(state: &State, launch: &Launch) -> Result<Secrets, String> {
    let mut secrets = Secrets::default();
    for wanted in &launch.secrets {
        let value = state
            .enterprise
            .secret_for(&launch.reader, &wanted.source)
            .map_err(|why| format!("Failed to resolve secret '{}': {why}", wanted.source))?
            .to_vec();
        match wanted.place.clone() {
            SecretPlace::Env(name) => secrets.env.insert(name, value),
            SecretPlace::File(path) => secrets.files.insert(path, value),
        };
    }
    Ok(secrets)
}

/// Strict clusters always had the CA in every sandbox, permissive ones since DC/OS 1.10.
fn has_ca_in_sandboxes(pose: &Pose) -> bool {
    match pose.security {
        Security::Open => false,
        Security::Permissive => !pose.dcos.starts_with("1.9."),
        Security::Strict => true,
    }
}

/// Where the cluster's CA certificate lies as soon as there is one.
pub(crate) fn cluster_ca(dir: &Path) -> std::path::PathBuf {
    dir.join("state/cluster-ca.pem")
}

fn put_ca(from: &Path, sandbox: &Path) -> std::io::Result<()> {
    match std::fs::read(from) {
        Ok(pem) => {
            let folder = sandbox.join(".ssl");
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("ca-bundle.crt"), pem)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
