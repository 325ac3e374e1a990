//! What the servers know, kept in one file.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::clock::{iso, now};
use super::enterprise::Enterprise;
use super::marathon::Marathon;
use super::metronome::Metronome;
use super::{Pose, Role};
use crate::task::{KillOrder, SecretUse, TaskSpec, TaskState};

/// So many ended tasks are remembered.
const COMPLETED_TASKS_KEPT: usize = 500;

/// Set at `up`; changeable over the control API.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Pod tasks are killed without SIGTERM. A new state takes it from the pose: so does Mesos 1.2.
    pub sigkill_pods: bool,
    /// Seconds after which Mesos gives up an agent that died.
    pub lost_after_seconds: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { sigkill_pods: false, lost_after_seconds: 5.0 }
    }
}

/// Answers that Marathon gives instead of working, for so many requests that would change something.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// 503.
    pub marathon_unavailable: u32,
    /// 409, as if a deployment held the lock.
    pub marathon_locked: u32,
}

/// Something that a real server swallows in silence, to the harm of whoever sent it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Violation {
    /// `marathon` or `metronome`.
    pub server: String,
    /// Id of the definition.
    pub id: String,
    /// What and why.
    pub message: String,
    /// When.
    pub at: String,
}

/// cpus, MB of memory and disk, and ports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU shares.
    pub cpus: f64,
    /// MB.
    pub mem: f64,
    /// MB.
    pub disk: f64,
    /// Whole ones.
    #[serde(default)]
    pub gpus: f64,
    /// Host ports.
    pub ports: Vec<u16>,
}

impl Resources {
    pub(crate) fn add(&mut self, other: &Self) {
        self.cpus += other.cpus;
        self.mem += other.mem;
        self.disk += other.disk;
        self.gpus += other.gpus;
        self.ports.extend(&other.ports);
    }
}

/// How an agent stands with the master.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Registered and well.
    Active,
    /// Dead, but the master has not noticed.
    Dying {
        /// Unix time at which the master will notice.
        noticed_at: f64,
    },
    /// Unreachable: in no list, but remembered.
    Lost,
}

/// A Mesos agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Agent {
    /// Mesos agent id; changes when an agent left and came anew.
    pub id: String,
    /// Also its host name.
    pub ip: Ipv4Addr,
    /// Private or public.
    pub role: Role,
    /// See [`Presence`].
    pub presence: Presence,
    /// All room is taken by something outside of the frameworks.
    pub filled: bool,
    /// Unix time.
    pub registered: f64,
    /// Unix time.
    pub reregistered: f64,
    /// What it has besides.
    #[serde(default, flatten)]
    pub extras: Extras,
}

/// What makes Marathon decline an agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extras {
    /// Number of GPUs.
    pub gpus: u32,
    /// Region other than the master's.
    pub region: Option<String>,
}

impl Agent {
    /// Whether the master lists it.
    pub fn is_listed(&self) -> bool {
        self.presence != Presence::Lost
    }

    /// All it has, as an agent of that size would report it.
    pub(crate) fn total(&self) -> Resources {
        Resources { cpus: 4.0, mem: 14_000.0, disk: 35_000.0, gpus: self.extras.gpus.into(), ports: Vec::new() }
    }

    /// The role that its resources are reserved to.
    pub(crate) fn resource_role(&self) -> &'static str {
        match self.role {
            Role::Private => "*",
            Role::Public => "slave_public",
        }
    }

    /// Ranges of ports that DC/OS offers on agents of this role.
    pub(crate) fn port_ranges(&self) -> &'static [(u16, u16)] {
        match self.role {
            Role::Private => &[(1025, 2180), (2182, 3887), (3889, 5049), (5052, 8079), (8082, 8180), (8182, 32_000)],
            Role::Public => &[(1, 21), (23, 5050), (5052, 32_000)],
        }
    }

    /// Attributes as text.
    pub(crate) fn attributes(&self) -> Vec<(&'static str, &'static str)> {
        match self.role {
            Role::Private => Vec::new(),
            Role::Public => vec![("public_ip", "true")],
        }
    }
}

/// Which framework a task belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Framework {
    /// Marathon.
    Marathon,
    /// Metronome.
    Metronome,
}

/// One state that a task was in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskUpdate {
    /// Mesos' name.
    pub state: String,
    /// Unix time.
    pub at: f64,
    /// Health at that time.
    pub healthy: Option<bool>,
}

/// A Mesos task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// Mesos task id.
    pub id: String,
    /// Name that Mesos-DNS and `dcos task` show.
    pub name: String,
    /// Who launched it.
    pub framework: Framework,
    /// Marathon's instance id or Metronome's run id.
    pub owner: String,
    /// Container of a pod.
    pub container: Option<String>,
    /// Executor id; for a command executor the task id.
    pub executor_id: String,
    /// Where.
    pub agent: Ipv4Addr,
    /// The id that the agent had then.
    pub agent_id: String,
    /// What it takes.
    pub resources: Resources,
    /// What the executor of its pod takes besides; at the first container's task.
    pub executor_resources: Option<Resources>,
    /// Role of the resources.
    pub resource_role: String,
    /// How far it is.
    pub state: TaskState,
    /// Its agent is lost.
    pub unreachable: bool,
    /// Last result of the health check.
    pub healthy: Option<bool>,
    /// Unix time of the last change of health.
    pub healthy_since: Option<f64>,
    /// Unix time of the first check that was passed.
    pub first_success: Option<f64>,
    /// Unix time since when checks were passed the last time: Mesos tells of changes only.
    pub last_success: Option<f64>,
    /// Failed checks in a row.
    pub consecutive_failures: u32,
    /// Unix time of the launch.
    pub staged: f64,
    /// Unix time at which it was first running.
    pub started: Option<f64>,
    /// Unix time of the last change of state.
    pub since: f64,
    /// For people.
    pub message: Option<String>,
    /// What it was told to end with.
    pub kill: Option<KillOrder>,
    /// Its folder, as the server sees it.
    pub sandbox: PathBuf,
    /// Labels of the definition.
    pub labels: BTreeMap<String, String>,
    /// All states so far.
    pub updates: Vec<TaskUpdate>,
}

impl Task {
    /// Its checks are passed from now on, or no more.
    pub(crate) fn be_healthy(&mut self, healthy: bool, at: f64) {
        self.healthy = Some(healthy);
        self.healthy_since = Some(at);
        if healthy {
            self.first_success.get_or_insert(at);
            self.last_success = Some(at);
        }
    }

    /// Mesos' name of its state.
    pub fn state_name(&self) -> &'static str {
        if self.unreachable {
            return "TASK_UNREACHABLE";
        }
        match self.state {
            TaskState::Staging => "TASK_STAGING",
            TaskState::Starting => "TASK_STARTING",
            TaskState::Running => "TASK_RUNNING",
            TaskState::Killing => "TASK_KILLING",
            TaskState::Finished => "TASK_FINISHED",
            TaskState::Failed => "TASK_FAILED",
            TaskState::Killed => "TASK_KILLED",
            TaskState::Error => "TASK_ERROR",
        }
    }

    pub(crate) fn enter(&mut self, state: TaskState, at: f64) {
        self.state = state;
        self.since = at;
        self.record(at);
    }

    pub(crate) fn record(&mut self, at: f64) {
        let update = TaskUpdate { state: self.state_name().to_owned(), at, healthy: self.healthy };
        self.updates.push(update);
    }
}

/// A sandbox that the ticker fills and starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) agent: Ipv4Addr,
    pub(crate) spec: TaskSpec,
    /// As whom the secret store is read: see [`Enterprise::secret_for`].
    #[serde(default)]
    pub(crate) reader: String,
    #[serde(default)]
    pub(crate) secrets: Vec<SecretUse>,
}

/// Everything.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// Versions.
    pub pose: Pose,
    /// See [`Options`].
    pub options: Options,
    /// See [`Faults`].
    pub faults: Faults,
    /// By address.
    pub agents: BTreeMap<Ipv4Addr, Agent>,
    /// Tasks that have not ended, by id.
    pub tasks: BTreeMap<String, Task>,
    /// Tasks that have, oldest first.
    pub completed: Vec<Task>,
    /// See [`Violation`].
    pub violations: Vec<Violation>,
    /// Accounts, permissions and secrets.
    #[serde(default)]
    pub enterprise: Enterprise,
    pub(crate) cluster_id: String,
    pub(crate) agents_ever: u32,
    pub(crate) last_version: f64,
    pub(crate) marathon: Marathon,
    pub(crate) metronome: Metronome,
    /// Not yet handed to an executor.
    pub(crate) launches: Vec<Launch>,
    #[serde(skip)]
    dirty: bool,
    #[serde(skip)]
    events: Vec<(String, Value)>,
    #[serde(skip)]
    mesos_events: Vec<Value>,
}

impl State {
    /// An empty cluster.
    pub fn new(options: Options, pose: Pose) -> Self {
        let options = Options { sigkill_pods: pose.kills_pods_outright(), ..options };
        Self {
            enterprise: Enterprise::new(pose.security),
            pose,
            options,
            faults: Faults::default(),
            agents: BTreeMap::new(),
            tasks: BTreeMap::new(),
            completed: Vec::new(),
            violations: Vec::new(),
            cluster_id: uuid::Uuid::new_v4().to_string(),
            agents_ever: 0,
            last_version: 0.0,
            marathon: Marathon::new(now()),
            metronome: Metronome::default(),
            launches: Vec::new(),
            dirty: true,
            events: Vec::new(),
            mesos_events: Vec::new(),
        }
    }

    pub(crate) fn load(dir: &Path, options: Options) -> io::Result<Self> {
        match std::fs::read(file(dir)) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::new(options, chosen_pose(dir)?)),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn save(&self, dir: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        write_atomically(&file(dir), &text)
    }

    /// To be called after every change that must survive a restart.
    pub(crate) fn touch(&mut self) {
        self.dirty = true;
    }

    pub(crate) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// An event for Marathon's stream.
    pub(crate) fn event(&mut self, kind: &str, mut data: Value) {
        data["eventType"] = kind.into();
        if data.get("timestamp").is_none() {
            data["timestamp"] = iso(now()).into();
        }
        self.events.push((kind.to_owned(), data));
    }

    pub(crate) fn take_events(&mut self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.events)
    }

    /// An event for the operator API's stream.
    pub(crate) fn mesos_event(&mut self, event: Value) {
        self.mesos_events.push(event);
    }

    pub(crate) fn take_mesos_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.mesos_events)
    }

    /// Records a violation.
    pub(crate) fn violate(&mut self, server: &str, id: &str, message: String) {
        tracing::error!(server, id, message, "violation");
        self.violations.push(Violation { server: server.to_owned(), id: id.to_owned(), message, at: iso(now()) });
        self.touch();
    }

    /// A version: the time in milliseconds, but never the same twice.
    pub(crate) fn next_version(&mut self) -> String {
        let milliseconds = ((now() * 1000.0).floor()).max(self.last_version + 1.0);
        self.last_version = milliseconds;
        iso((milliseconds + 0.5) / 1000.0)
    }

    /// Id of the master.
    pub(crate) fn framework_id(&self, framework: Framework) -> String {
        match framework {
            Framework::Marathon => format!("{}-0001", self.cluster_id),
            Framework::Metronome => format!("{}-0000", self.cluster_id),
        }
    }

    /// What tasks (and a fill) take of an agent.
    pub(crate) fn used(&self, agent: &Agent) -> Resources {
        let mut used = Resources::default();
        for task in self.tasks.values().filter(|t| t.agent == agent.ip && t.agent_id == agent.id && !t.unreachable) {
            used.add(&task.resources);
            if let Some(executor) = &task.executor_resources {
                used.add(executor);
            }
        }
        if agent.filled {
            let total = agent.total();
            used.cpus = total.cpus;
            used.mem = total.mem;
            used.disk = total.disk;
        }
        used
    }

    /// Moves an ended task to the completed ones.
    pub(crate) fn complete(&mut self, id: &str) {
        if let Some(task) = self.tasks.remove(id) {
            if task.state == TaskState::Error {
                // Mesos lists no task that its master refused.
                self.touch();
                return;
            }
            self.completed.push(task);
            if self.completed.len() > COMPLETED_TASKS_KEPT {
                self.completed.remove(0);
            }
            self.touch();
        }
    }
}

/// Where `up` writes the [`Pose`] that the servers begin with.
pub fn pose_file(dir: &Path) -> PathBuf {
    dir.join("state").join("pose.json")
}

fn chosen_pose(dir: &Path) -> io::Result<Pose> {
    match std::fs::read(pose_file(dir)) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Pose::open_2_2()),
        Err(error) => Err(error),
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("state").join("servers.json")
}

/// Replaces a file so that a reader sees the old or the new text.
pub(crate) fn write_atomically(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}
