//! Runs: how they are started, followed and ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::spec::{ConcurrencyPolicy, EnvValue, JobSpec, RestartPolicy};
use crate::server::Host;
use crate::server::clock::{civil, iso_offset, now};
use crate::server::scheduler::{Constraint, Demand, NewTask, default_user, kill, launch, place};
use crate::server::state::{Framework, Resources, State};
use crate::task::{Artifact, Command, KillOrder, SecretPlace, SecretUse, TaskSpec, TaskState};

/// So many ended runs are remembered of each kind.
const RUNS_KEPT: usize = 1000;
/// What Mesos' command executor waits between SIGTERM and SIGKILL when nothing is said.
const GRACE_SECONDS: u64 = 3;
/// The network card that is part of every task id.
const NODE: [u8; 6] = [0x02, 0x42, 0xfe, 0x1e, 0xc0, 0x8b];
/// Labels beyond this length do not get into the environment.
const LONGEST_LABEL: usize = 512;

/// A run that has not ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) id: String,
    /// The job as it was when the run began.
    pub(super) spec: JobSpec,
    status: Status,
    created: f64,
    completed: Option<f64>,
    /// A scheduled run that is not active by then has failed.
    deadline: Option<f64>,
    /// All tasks so far; more than one only with ON_FAILURE.
    tasks: Vec<RunTask>,
    /// The task launched last; none while the run waits for an agent.
    current: Option<String>,
}

/// Metronome has STARTING also, but shows it to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Status {
    Initial,
    Active,
    Success,
    Failed,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct RunTask {
    id: String,
    started: f64,
    completed: Option<f64>,
    status: String,
}

/// The runs of a job that have ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct History {
    success_count: u64,
    failure_count: u64,
    last_success: Option<f64>,
    last_failure: Option<f64>,
    /// Newest first.
    successful: Vec<EndedRun>,
    /// Newest first.
    failed: Vec<EndedRun>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct EndedRun {
    id: String,
    created: f64,
    finished: f64,
    tasks: Vec<String>,
}

impl Run {
    /// As it is answered.
    pub(super) fn answer(&self) -> Value {
        let task = |task: &RunTask| {
            let mut value = json!({ "id": task.id, "startedAt": iso_offset(task.started), "status": task.status });
            if let Some(completed) = task.completed {
                value["completedAt"] = iso_offset(completed).into();
            }
            value
        };
        json!({
            "id": self.id,
            "jobId": self.spec.id,
            "status": self.status,
            "createdAt": iso_offset(self.created),
            "completedAt": self.completed.map(iso_offset),
            "tasks": self.tasks.iter().map(task).collect::<Vec<_>>(),
        })
    }

    /// Waits for an agent.
    pub(super) fn is_queued(&self) -> bool {
        self.current.is_none()
    }

    /// Notes how far the task is; false when that is known.
    fn note(&mut self, task: &str, status: &str, at: f64) -> bool {
        let completed = (status == "TASK_FINISHED").then_some(at);
        match self.tasks.iter_mut().find(|known| known.id == task) {
            Some(known) if known.status == status => return false,
            Some(known) => {
                status.clone_into(&mut known.status);
                known.completed = completed;
            }
            None => self.tasks.push(RunTask { id: task.to_owned(), started: at, completed, status: status.to_owned() }),
        }
        true
    }

    /// Whether another task may be tried after one that failed.
    fn may_retry(&self, at: f64) -> bool {
        let restart = &self.spec.run.restart;
        restart.policy == RestartPolicy::OnFailure
            && restart.active_deadline_seconds.is_none_or(|seconds| at < self.created + seconds as f64)
    }
}

impl History {
    /// As it is answered.
    pub(super) fn answer(&self) -> Value {
        let runs = |runs: &[EndedRun]| -> Vec<Value> {
            let run = |run: &EndedRun| json!({ "id": run.id, "createdAt": iso_offset(run.created), "finishedAt": iso_offset(run.finished), "tasks": run.tasks });
            runs.iter().map(run).collect()
        };
        let mut value = self.summary();
        value["successfulFinishedRuns"] = runs(&self.successful).into();
        value["failedFinishedRuns"] = runs(&self.failed).into();
        value
    }

    /// The same without the runs.
    pub(super) fn summary(&self) -> Value {
        json!({
            "successCount": self.success_count,
            "failureCount": self.failure_count,
            "lastSuccessAt": self.last_success.map(iso_offset),
            "lastFailureAt": self.last_failure.map(iso_offset),
        })
    }

    fn add(&mut self, run: &Run, success: bool, finished: f64) {
        let ended =
            EndedRun { id: run.id.clone(), created: run.created, finished, tasks: run.tasks.iter().map(|task| task.id.clone()).collect() };
        let (count, last, runs) = if success {
            (&mut self.success_count, &mut self.last_success, &mut self.successful)
        } else {
            (&mut self.failure_count, &mut self.last_failure, &mut self.failed)
        };
        *count += 1;
        *last = Some(finished);
        runs.insert(0, ended);
        runs.truncate(RUNS_KEPT);
    }
}

/// Begins a run; the next tick looks for an agent.
pub(super) fn start(state: &mut State, spec: JobSpec, starting_seconds: Option<i64>, at: f64) -> Run {
    let run = Run {
        id: new_id(at),
        spec,
        status: Status::Initial,
        created: at,
        completed: None,
        deadline: starting_seconds.map(|seconds| at + seconds as f64),
        tasks: Vec::new(),
        current: None,
    };
    state.metronome.runs.insert(run.id.clone(), run.clone());
    state.touch();
    run
}

/// The time and five random characters.
fn new_id(at: f64) -> String {
    const CHARACTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let c = civil(at);
    let bytes = uuid::Uuid::new_v4().into_bytes();
    let random: String = bytes[..5].iter().map(|byte| char::from(CHARACTERS[usize::from(*byte) % CHARACTERS.len()])).collect();
    format!("{:04}{:02}{:02}{:02}{:02}{:02}{random}", c.year, c.month, c.day, c.hour, c.minute, c.second)
}

/// Stops a run: it has failed at once, while its task still ends. None when there is no such run.
pub(super) fn stop(state: &mut State, id: &str, at: f64) -> Option<Run> {
    let run = state.metronome.runs.get(id)?;
    if let Some(task) = run.current.clone() {
        let order = KillOrder { grace_seconds: grace(&run.spec), abrupt: false };
        kill(state, &task, order);
    }
    end(state, id, false, at)
}

fn end(state: &mut State, id: &str, success: bool, at: f64) -> Option<Run> {
    let mut run = state.metronome.runs.remove(id)?;
    run.status = if success { Status::Success } else { Status::Failed };
    run.completed = Some(at);
    if let Some(job) = state.metronome.jobs.get_mut(&run.spec.id) {
        job.history.add(&run, success, at);
    }
    state.touch();
    Some(run)
}

/// Moves every run on; called at each tick, after what executors report has been read.
pub(crate) fn advance(state: &mut State, host: &dyn Host) {
    advance_at(state, host, now());
}

pub(super) fn advance_at(state: &mut State, host: &dyn Host, at: f64) {
    start_due(state, at);
    follow_tasks(state, at);
    let late = |run: &&Run| run.status == Status::Initial && run.deadline.is_some_and(|deadline| deadline <= at);
    let late: Vec<String> = state.metronome.runs.values().filter(late).map(|run| run.id.clone()).collect();
    for id in late {
        tracing::warn!(run = id, "not started by its deadline");
        stop(state, &id, at);
    }
    let queued: Vec<String> = state.metronome.runs.values().filter(|run| run.is_queued()).map(|run| run.id.clone()).collect();
    for id in queued {
        launch_task(state, host, &id, at);
    }
}

fn start_due(state: &mut State, at: f64) {
    let mut due = Vec::new();
    for job in state.metronome.jobs.values_mut() {
        if job.due.is_some_and(|due| due <= at)
            && let Some(schedule) = job.spec.schedules.first()
        {
            job.due = schedule.next(at);
            due.push((job.spec.clone(), schedule.concurrency_policy, schedule.starting_deadline_seconds));
        }
    }
    for (spec, policy, deadline) in due {
        state.touch();
        let busy = state.metronome.runs.values().any(|run| run.spec.id == spec.id);
        if busy && policy == ConcurrencyPolicy::Forbid {
            tracing::info!(job = spec.id, "scheduled run left out: another is active");
        } else {
            start(state, spec, Some(deadline), at);
        }
    }
}

fn follow_tasks(state: &mut State, at: f64) {
    let tasks: Vec<(String, String, TaskState, bool)> = state
        .tasks
        .values()
        .filter(|task| task.framework == Framework::Metronome)
        .map(|task| (task.id.clone(), task.owner.clone(), task.state, task.unreachable))
        .collect();
    for (task, run, task_state, unreachable) in tasks {
        // The task of a run that was stopped, or given up with its agent, is nobody's any more.
        if state.metronome.runs.get(&run).is_some_and(|run| run.current.as_ref() == Some(&task)) {
            follow(state, &run, &task, if unreachable { TaskState::Failed } else { task_state }, at);
        }
        if task_state.is_terminal() {
            state.complete(&task);
        }
    }
}

fn follow(state: &mut State, id: &str, task: &str, task_state: TaskState, at: f64) {
    let Some(run) = state.metronome.runs.get_mut(id) else { return };
    match task_state {
        TaskState::Staging => {}
        TaskState::Starting | TaskState::Running | TaskState::Killing => {
            // Metronome does not know TASK_KILLING.
            let status = if task_state == TaskState::Starting { "TASK_STARTING" } else { "TASK_RUNNING" };
            if run.note(task, status, at) {
                run.status = Status::Active;
                state.touch();
            }
        }
        TaskState::Finished => {
            run.note(task, "TASK_FINISHED", at);
            end(state, id, true, at);
        }
        TaskState::Failed | TaskState::Killed | TaskState::Error => {
            let status = match task_state {
                TaskState::Failed => "TASK_FAILED",
                TaskState::Killed => "TASK_KILLED",
                _ => "TASK_ERROR",
            };
            run.note(task, status, at);
            if run.may_retry(at) {
                run.current = None;
                state.touch();
            } else {
                end(state, id, false, at);
            }
        }
    }
}

fn launch_task(state: &mut State, host: &dyn Host, id: &str, at: f64) {
    let Some(run) = state.metronome.runs.get(id) else { return };
    let (spec, first) = (run.spec.clone(), run.tasks.is_empty());
    let has_secrets = state.pose.features.iter().any(|feature| feature == "secrets");
    if let Some(why) = spec.beyond_the_lab(has_secrets) {
        state.violate("metronome", &spec.id, format!("run {id} failed: {why}"));
        end(state, id, false, at);
        return;
    }
    // Metronome's own role is `*`: resources of public agents are never offered to it.
    let run = &spec.run;
    let constraint = |c: &super::spec::Constraint| {
        c.value.clone().map(|value| Constraint { field: c.attribute.clone(), operator: c.operator.clone(), value: Some(value) })
    };
    let demand = Demand {
        cpus: run.cpus,
        mem: run.mem,
        disk: run.disk,
        roles: vec!["*".to_owned()],
        constraints: run.placement.constraints.iter().filter_map(constraint).collect(),
        ..Demand::default()
    };
    let Ok(placement) = place(state, &demand, &[]) else { return };
    if first {
        for swallowed in spec.swallowed() {
            state.violate("metronome", &spec.id, swallowed.to_owned());
        }
    }
    let names: Vec<&str> = spec.id.split('.').chain([id]).collect();
    let task = format!("{}.{}", names.join("_"), uuid::Uuid::now_v1(&NODE));
    let agent = placement.agent.to_string();
    let artifact = |artifact: &super::spec::Artifact| Artifact {
        uri: artifact.uri.clone(),
        extract: artifact.extract,
        executable: artifact.executable,
        dest: None,
    };
    let new = NewTask {
        name: names.iter().rev().copied().collect::<Vec<_>>().join("."),
        framework: Framework::Metronome,
        owner: id.to_owned(),
        container: None,
        executor_id: task.clone(),
        resources: Resources { cpus: run.cpus, mem: run.mem, disk: run.disk, ..Resources::default() },
        executor_resources: None,
        placement,
        labels: spec.labels.clone(),
        spec: TaskSpec {
            id: task.clone(),
            user: run.user.clone().unwrap_or_else(|| default_user(state).to_owned()),
            command: run.cmd.clone().map(Command::Shell),
            env: environment(&spec, &format!("/{}", names.join("/")), &task, &agent),
            artifacts: run.artifacts.iter().map(artifact).collect(),
            docker: None,
            image: None,
            health: None,
            grace_seconds: grace(&spec),
            agent,
        },
        reader: format!("/{}", spec.id.replace('.', "/")),
        secrets: secrets(&spec),
    };
    launch(state, host, vec![new]);
    if let Some(run) = state.metronome.runs.get_mut(id) {
        run.current = Some(task);
    }
}

fn grace(spec: &JobSpec) -> u64 {
    spec.run.task_kill_grace_period_seconds.map_or(GRACE_SECONDS, |seconds| u64::try_from(seconds).unwrap_or(0))
}

/// What the job's variables take from secrets. Files need a container, which the lab does not run.
fn secrets(spec: &JobSpec) -> Vec<SecretUse> {
    let secret = |(name, value): (&String, &EnvValue)| match value {
        EnvValue::Text(_) => None,
        EnvValue::Secret { secret } => {
            let source = spec.run.secrets.get(secret)?.source.clone();
            Some(SecretUse { source, place: SecretPlace::Env(name.clone()) })
        }
    };
    spec.run.env.iter().filter_map(secret).collect()
}

/// What Marathon, which Metronome is built upon, gives a task without ports; the job's own variables win.
fn environment(spec: &JobSpec, app: &str, task: &str, agent: &str) -> BTreeMap<String, String> {
    let run = &spec.run;
    let mut env: BTreeMap<String, String> = [
        ("HOST", agent.to_owned()),
        ("MESOS_TASK_ID", task.to_owned()),
        ("MARATHON_APP_ID", app.to_owned()),
        // Runs have no version.
        ("MARATHON_APP_VERSION", "1970-01-01T00:00:00.000Z".to_owned()),
        ("MARATHON_APP_RESOURCE_CPUS", format!("{:?}", run.cpus)),
        ("MARATHON_APP_RESOURCE_MEM", format!("{:?}", run.mem)),
        ("MARATHON_APP_RESOURCE_DISK", format!("{:?}", run.disk)),
        ("MARATHON_APP_RESOURCE_GPUS", "0".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    let mut labels = Vec::new();
    for (key, value) in spec.labels.iter().filter(|(key, value)| key.len() < LONGEST_LABEL && value.len() < LONGEST_LABEL) {
        let name: String = key.to_uppercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        env.insert(format!("MARATHON_APP_LABEL_{name}"), value.clone());
        labels.push(name);
    }
    env.insert("MARATHON_APP_LABELS".to_owned(), labels.join(" "));
    for (name, value) in &run.env {
        if let EnvValue::Text(text) = value {
            env.insert(name.clone(), text.clone());
        }
    }
    env
}
