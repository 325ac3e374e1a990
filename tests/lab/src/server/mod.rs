//! The servers: Mesos, Marathon, Metronome, Cosmos, Admin Router and the lab's own control, over one state.

pub mod admin_router;
pub mod agents;
#[cfg(test)]
mod cli_requests;
mod clock;
pub mod control;
pub mod cosmos;
pub mod enterprise;
mod files;
mod http;
mod machines;
pub mod marathon;
pub mod mesos;
pub mod metronome;
mod pose;
#[cfg(test)]
mod pretence;
mod scheduler;
pub mod simulation;
mod state;
mod ticker;
mod trouble;
mod universe;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::broadcast;

pub use enterprise::Security;
pub use machines::Machines;
pub use pose::{NEWEST, Pose};
pub use state::{Agent, Extras, Faults, NetworkFaults, Options, State, Task, Trouble, Violation, pose_file};
pub(crate) use ticker::cluster_ca;
pub use ticker::{tick, tick_forever};

use crate::host::MASTER;
use crate::task::{KillOrder, Secrets, TaskStatus};

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
    /// Address and port on an agent of every task in service; none: there are tasks, and none of them is.
    pub backends: Vec<(Ipv4Addr, u16)>,
}

/// What the machines' networks must know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Names below `marathon.mesos` and the addresses of their agents.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// VIPs that have tasks.
    pub vips: Vec<VipEntry>,
    /// What does not work in it.
    pub faults: NetworkFaults,
}

/// A task that has not ended, as [`Host::report`] is asked for it.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Mesos task id.
    pub id: String,
    /// Its folder, as the server sees it.
    pub sandbox: PathBuf,
    /// What it was told to end with.
    pub kill: Option<KillOrder>,
}

/// The machines, as the servers see them. All methods block.
pub trait Host: Send + Sync {
    /// Makes an agent, with a disk of its own of that size if one is given, and answers its address.
    ///
    /// # Errors
    /// A text for people when the machine cannot be made.
    fn add_agent(&self, role: Role, disk_mib: Option<u32>) -> Result<Ipv4Addr, String>;
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
    /// Starts an executor for the sandbox (which holds `task.json`) and hands it the task's secrets.
    ///
    /// # Errors
    /// A text for people.
    fn launch(&self, agent: Ipv4Addr, sandbox: &Path, secrets: &Secrets) -> Result<(), String>;
    /// Whether the executor that wrote this status still runs.
    fn executor_alive(&self, status: &TaskStatus) -> bool;
    /// How far a task is; none before its executor has said anything.
    fn report(&self, task: &Watched) -> Option<TaskStatus> {
        ticker::read_status(&task.sandbox)
    }
    /// Told every 100 ms what names and VIPs there are; cheap when nothing changed.
    fn publish(&self, network: &Network, agents: &[Ipv4Addr]);
}

/// What all servers share.
pub struct Shared {
    state: Mutex<State>,
    /// Whether the state is written to disk.
    kept: bool,
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
        Ok(Self::over(State::load(dir, options)?, true, dir, host))
    }

    /// An empty cluster whose state ends with the process: to write that of thousands of agents at every change would take longer than
    /// the change.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn in_memory(dir: &Path, host: Arc<dyn Host>, options: Options, pose: Pose) -> std::io::Result<SharedState> {
        std::fs::create_dir_all(dir.join("state"))?;
        Ok(Self::over(State::new(options, pose), false, dir, host))
    }

    fn over(state: State, kept: bool, dir: &Path, host: Arc<dyn Host>) -> SharedState {
        Arc::new(Self {
            state: Mutex::new(state),
            kept,
            host,
            dir: dir.to_owned(),
            events: broadcast::channel(1024).0,
            mesos_events: broadcast::channel(1024).0,
        })
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
        if state.take_dirty()
            && self.kept
            && let Err(error) = state.save(&self.dir)
        {
            tracing::error!(%error, "state not written");
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

/// Serves everything on the master's address until the process ends.
///
/// # Errors
/// The state cannot be read, or an address is taken.
pub async fn serve(dir: &Path, options: Options) -> std::io::Result<()> {
    let zone = crate::dns::Zone::default();
    let machines = Arc::new(Machines::new(dir, zone.clone()));
    let present = machines.agents();
    let shared = Shared::open(dir, machines, options)?;
    shared.change(|state| {
        for (ip, role) in present {
            if !state.agents.contains_key(&ip) {
                agents::register(state, ip, role);
            }
        }
    });
    let security = shared.read(|state| state.pose.security);
    let tls = match security {
        Security::Open => None,
        _ => Some(enterprise::certificates::prepare(dir)?),
    };
    let journal = dir.join("journal.jsonl");
    // Without TLS, strict mode hears but its own machine.
    let plain = if security == Security::Strict { Ipv4Addr::LOCALHOST } else { MASTER };
    let services: [(&'static str, u16, u16, axum::Router, trouble::Which); 3] = [
        ("marathon", 8080, 8443, enterprise::doors::marathon(&shared, marathon::router(shared.clone())), |faults| faults.marathon),
        ("metronome", 9000, 9443, enterprise::doors::metronome(&shared, metronome::router(shared.clone())), |faults| faults.metronome),
        ("mesos", 5050, 0, enterprise::doors::mesos(&shared, mesos::router(shared.clone())), |faults| faults.mesos),
    ];
    for (name, port, tls_port, router, which) in services {
        // What a fault answers is no word of the server, so the journal does not have it.
        let router = trouble::wrap(crate::journal::wrap(router, name, &journal)?, &shared, which);
        spawn((plain, port), router.clone()).await?;
        if let Some(tls) = tls.as_ref().filter(|_| tls_port != 0) {
            enterprise::tls::spawn((MASTER, tls_port).into(), router, tls.clone()).await?;
        }
    }
    let admin_router = crate::journal::wrap(admin_router::router(shared.clone())?, "admin_router", &journal)?;
    if let Some(tls) = tls {
        enterprise::certificates::put_on_master(dir)?;
        enterprise::tls::spawn((MASTER, 443).into(), admin_router::with_tls(admin_router.clone()), tls).await?;
    }
    let at_80 = if security == Security::Strict { admin_router::only_with_tls(admin_router) } else { admin_router };
    spawn((MASTER, 80), at_80).await?;
    spawn((MASTER, 7070), control::router(shared.clone())).await?;
    spawn((MASTER, 8000), universe::router(dir.join("universe"))).await?;
    spawn((MASTER, crate::faults::DAMAGER), trouble::damager()).await?;
    tokio::spawn(async move {
        if let Err(error) = crate::dns::serve(zone, (MASTER, 53).into()).await {
            tracing::error!(%error, "DNS ended");
        }
    });
    tick_forever(shared).await;
    Ok(())
}

async fn spawn((host, port): (Ipv4Addr, u16), router: axum::Router) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind((host, port)).await?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, port, "server ended");
        }
    });
    Ok(())
}
