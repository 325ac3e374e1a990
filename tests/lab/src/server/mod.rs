//! The servers: Mesos, Marathon, Metronome, Cosmos, Admin Router and the lab's own control, over one state.

pub mod admin_router;
mod clock;
pub mod control;
pub mod cosmos;
mod http;
pub mod marathon;
pub mod mesos;
pub mod metronome;
mod pose;
mod scheduler;
mod state;
mod ticker;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::broadcast;

pub use pose::Pose;
pub use state::{Agent, Faults, Options, State, Task, Violation};
pub use ticker::{tick, tick_forever};

use crate::task::TaskStatus;

/// Private or public agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Unreserved resources.
    Private,
    /// Resources reserved to `slave_public`, attribute `public_ip:true`.
    Public,
}

/// A virtual address and the tasks behind it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VipEntry {
    /// A literal address.
    pub address: Option<Ipv4Addr>,
    /// Or a name, as in `<name>.marathon.l4lb.thisdcos.directory`.
    pub name: Option<String>,
    /// Port of the VIP.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Address and port on an agent.
    pub backends: Vec<(Ipv4Addr, u16)>,
}

/// What the machines' networks must know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Names below `marathon.mesos` and the addresses of their agents.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// VIPs that have backends.
    pub vips: Vec<VipEntry>,
}

/// The machines, as the servers see them. All methods block.
pub trait Host: Send + Sync {
    /// Makes an agent and answers its address.
    ///
    /// # Errors
    /// A text for people when the machine cannot be made.
    fn add_agent(&self, role: Role) -> Result<Ipv4Addr, String>;
    /// Ends an agent in an orderly way.
    ///
    /// # Errors
    /// A text for people.
    fn stop_agent(&self, agent: Ipv4Addr) -> Result<(), String>;
    /// SIGKILL to all that runs there.
    ///
    /// # Errors
    /// A text for people.
    fn kill_agent(&self, agent: Ipv4Addr) -> Result<(), String>;
    /// Starts an agent again that was stopped or killed.
    ///
    /// # Errors
    /// A text for people.
    fn revive_agent(&self, agent: Ipv4Addr, fresh_disk: bool) -> Result<(), String>;
    /// Folder of that agent's sandboxes, as the server sees it.
    fn sandbox_root(&self, agent: Ipv4Addr) -> PathBuf;
    /// Starts an executor for the sandbox (which holds `task.json`).
    ///
    /// # Errors
    /// A text for people.
    fn launch(&self, agent: Ipv4Addr, sandbox: &Path) -> Result<(), String>;
    /// Whether the executor that wrote this status still runs.
    fn executor_alive(&self, status: &TaskStatus) -> bool;
    /// Told on every change of names or VIPs.
    fn publish(&self, network: &Network);
}

/// What all servers share.
pub struct Shared {
    state: Mutex<State>,
    /// The machines.
    pub host: Arc<dyn Host>,
    /// The lab's folder; the state lies in `state/` below.
    pub dir: PathBuf,
    /// Marathon's event stream: event type and data.
    pub events: broadcast::Sender<(String, Value)>,
    /// The operator API's stream.
    pub mesos_events: broadcast::Sender<Value>,
}

/// Handed to every router.
pub type SharedState = Arc<Shared>;

impl Shared {
    /// Reads the state from `dir/state`, or begins with an empty one.
    ///
    /// # Errors
    /// A state file that is there but not readable.
    pub fn open(dir: &Path, host: Arc<dyn Host>, options: Options) -> std::io::Result<SharedState> {
        std::fs::create_dir_all(dir.join("state"))?;
        let state = State::load(dir, options)?;
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            host,
            dir: dir.to_owned(),
            events: broadcast::channel(1024).0,
            mesos_events: broadcast::channel(1024).0,
        }))
    }

    /// Looks at the state. Never await inside.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock())
    }

    /// Changes the state, writes it to disk and sends the events that the change caused.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.settle(&mut state);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, state: &mut State) {
        if state.take_dirty() {
            if let Err(error) = state.save(&self.dir) {
                tracing::error!(%error, "state not written");
            }
        }
        // Nobody listening is no error.
        for event in state.take_events() {
            drop(self.events.send(event));
        }
        for event in state.take_mesos_events() {
            drop(self.mesos_events.send(event));
        }
    }
}
