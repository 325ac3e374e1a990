//! The boundary between the servers and the machines: what a task is, and how far it has come.
//!
//! The server writes a [`TaskSpec`] as `task.json` into a fresh sandbox and launches an executor there; the executor keeps
//! [`TaskStatus`] in `status.json`. Files instead of a connection, so that tasks outlive a restart of the server.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ucr::Image;

/// What to run on an agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Mesos task id.
    pub id: String,
    /// Host name (IP) of the agent.
    pub agent: String,
    /// Linux user who owns the sandbox and runs the command, but for what an image says itself.
    pub user: String,
    /// What to execute. Absent: the image's own command.
    pub command: Option<Command>,
    /// Environment, complete but for `MESOS_SANDBOX` and `PATH`.
    pub env: BTreeMap<String, String>,
    /// Fetched into the sandbox before the start.
    pub artifacts: Vec<Artifact>,
    /// Absent: a process on the host's file system, or in `image`.
    pub docker: Option<Docker>,
    /// Image of a process in the Mesos containerizer.
    #[serde(default)]
    pub image: Option<Image>,
    /// The Mesos-level health check.
    pub health: Option<HealthCheck>,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace_seconds: u64,
}

/// A shell line or an argument vector.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Run by `/bin/sh -c`.
    Shell(String),
    /// Run as it is.
    Argv(Vec<String>),
}

/// A URI for the fetcher.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Artifact {
    /// http, https or file.
    pub uri: String,
    /// Unpack archives.
    pub extract: bool,
    /// Set the executable bit.
    pub executable: bool,
    /// File name in the sandbox; absent: the last segment of the URI.
    pub dest: Option<String>,
}

/// How a docker task runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Docker {
    /// Image reference.
    pub image: String,
    /// Pull even if present.
    pub force_pull: bool,
    /// `--privileged`.
    pub privileged: bool,
    /// BRIDGE when true, HOST otherwise.
    pub bridge: bool,
    /// Published ports of a bridge.
    pub port_mappings: Vec<PortMapping>,
    /// Bind mounts.
    pub volumes: Vec<Volume>,
    /// Further `--key value` of `docker run`.
    pub parameters: Vec<(String, String)>,
}

/// A published port.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PortMapping {
    /// In the container.
    pub container_port: u16,
    /// On the agent.
    pub host_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// A bind mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// Absolute path in the container.
    pub container_path: String,
    /// Absolute path on the agent.
    pub host_path: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// A check that the executor makes from inside the agent's network namespace, against loopback.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HealthCheck {
    /// How.
    pub kind: HealthKind,
    /// Seconds before the first check.
    pub delay_seconds: f64,
    /// Seconds after the start in which failures do not count.
    pub grace_seconds: f64,
    /// Seconds between checks.
    pub interval_seconds: f64,
    /// Seconds for one check.
    pub timeout_seconds: f64,
    /// So many in a row kill the task; 0 never.
    pub max_consecutive_failures: u32,
}

/// See [`HealthCheck`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthKind {
    /// A connection to the port.
    Tcp {
        /// Port on the agent.
        port: u16,
    },
    /// A GET that answers below 400.
    Http {
        /// Port on the agent.
        port: u16,
        /// Path with a leading slash.
        path: String,
        /// https without verification, as `curl -k`.
        tls: bool,
    },
    /// A shell line that exits with 0.
    Command(String),
}

/// Mesos' names for how far a task has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    /// Artifacts are being fetched.
    #[serde(rename = "TASK_STAGING")]
    Staging,
    /// The command is being started.
    #[serde(rename = "TASK_STARTING")]
    Starting,
    /// The command runs.
    #[serde(rename = "TASK_RUNNING")]
    Running,
    /// Told to end.
    #[serde(rename = "TASK_KILLING")]
    Killing,
    /// Ended by itself with 0.
    #[serde(rename = "TASK_FINISHED")]
    Finished,
    /// Ended by itself otherwise, or could not start.
    #[serde(rename = "TASK_FAILED")]
    Failed,
    /// Ended because told to.
    #[serde(rename = "TASK_KILLED")]
    Killed,
    /// Refused by the master: it never reached an agent.
    #[serde(rename = "TASK_ERROR")]
    Error,
}

impl TaskState {
    /// Whether nothing runs any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Killed | Self::Error)
    }
}

/// `status.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Where it stands.
    pub state: TaskState,
    /// Result of the last health check; absent without a check or before the first result.
    pub healthy: Option<bool>,
    /// Failed checks in a row.
    pub consecutive_failures: u32,
    /// For people.
    pub message: Option<String>,
    /// Unix time (seconds) of the last change of `state`.
    pub since: f64,
    /// Unix time (seconds) at which it was first running.
    pub started: Option<f64>,
    /// Pid of the executor in the lab's pid namespace.
    pub executor_pid: u32,
    /// Start time of that pid (clock ticks, field 22 of /proc/pid/stat), so that a reused pid is not taken for it.
    pub executor_start: u64,
}

/// A secret that a task wants: where it lies, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    /// Path in the secret store.
    pub source: String,
    /// Where the task finds it.
    pub place: SecretPlace,
}

/// See [`SecretUse`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretPlace {
    /// The variable of that name.
    Env(String),
    /// The file at that path in the sandbox.
    File(String),
    /// What the image is pulled with: docker's `config.json`.
    PullConfig,
}

/// What a task's secrets are. It goes to the executor by itself and is never part of [`TaskSpec`], which lies in the sandbox.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// Values of variables.
    pub env: BTreeMap<String, Vec<u8>>,
    /// Contents of files by path in the sandbox.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Docker's `config.json` for the puller; no task sees it.
    #[serde(default)]
    pub pull_config: Option<Vec<u8>>,
}

impl Secrets {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.env.is_empty() && self.files.is_empty() && self.pull_config.is_none()
    }
}

/// Names, and no values.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.env.keys()).entries(self.files.keys()).finish()
    }
}

/// `kill.json`: its presence tells the executor to end the task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KillOrder {
    /// Seconds between SIGTERM and SIGKILL.
    pub grace_seconds: u64,
    /// SIGKILL at once, as Mesos 1.2 does to the tasks of a pod.
    pub abrupt: bool,
}
