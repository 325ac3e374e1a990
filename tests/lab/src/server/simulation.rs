//! A cluster without machines: the same servers, names and VIPs, in a network of its own in which every address is this machine's.
//!
//! Whoever implements [`Host`](super::Host) plays the agents. A thread that has called [`isolate`], and all that it starts, lives in a
//! network and a mount namespace of its own: nothing gets out, nothing is left behind, and any number of clusters run side by side.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use axum::Router;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::admin_router::{self, Cluster};
use super::cosmos::{Cosmos, Upstreams};
use super::machines::addresses;
use super::{Network, SharedState, marathon, mesos, metronome, spawn, tick_forever, universe};
use crate::dns::{Zone, serve as serve_names};
use crate::host::MASTER;
use crate::process::run;
use crate::{Error, Result};

/// Where Cosmos and Admin Router ask the servers, past what [`serve`] was given to lay around them.
const ASIDE: u16 = 10_000;

/// Laid around a server: its name (`marathon`, `metronome`, `mesos`) and its routes.
pub type Layer = Arc<dyn Fn(&'static str, Router) -> Router + Send + Sync>;

/// Puts this thread, and what it starts from now on, into namespaces of its own. There every IPv4 address is local, the cluster's names
/// are asked at the master, and `/var/lib` is the folder `var-lib` below `dir`.
///
/// # Errors
/// Only root may do this.
pub fn isolate(dir: &Path) -> Result<()> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |errno: nix::errno::Errno| Error::Io { what, source: errno.into() }
    };
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(failed("making namespaces"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed("keeping mounts apart"))?;
    let (names, var_lib) = (dir.join("resolv.conf"), dir.join("var-lib"));
    fs::create_dir_all(&var_lib).map_err(Error::io("making", &var_lib))?;
    fs::write(&names, format!("nameserver {MASTER}\n")).map_err(Error::io("writing", &names))?;
    for (from, to) in [(&names, "/etc/resolv.conf"), (&var_lib, "/var/lib")] {
        mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(failed(to))?;
    }
    run("ip", ["link", "set", "lo", "up"])?;
    run("ip", ["route", "add", "local", "0.0.0.0/0", "dev", "lo"]).map(drop)
}

/// Names and VIPs of such a cluster.
pub struct Ground {
    zone: Zone,
    runtime: Handle,
    vips: Mutex<BTreeMap<(Ipv4Addr, u16), Vip>>,
}

struct Vip {
    backends: Arc<RwLock<Vec<(Ipv4Addr, u16)>>>,
    listener: AbortHandle,
}

impl Ground {
    /// Without any name yet; within a runtime of the isolated thread.
    pub fn new() -> Self {
        Self { zone: Zone::default(), runtime: Handle::current(), vips: Mutex::default() }
    }

    /// What [`Host::publish`](super::Host::publish) is to do.
    pub fn publish(&self, network: &Network) {
        let (names, vips) = addresses(network);
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = names;
        let mut present = self.vips.lock().unwrap_or_else(PoisonError::into_inner);
        present.retain(|at, vip| {
            let stays = vips.iter().any(|wanted| (wanted.address, wanted.port) == *at);
            if !stays {
                vip.listener.abort();
            }
            stays
        });
        for wanted in vips {
            let vip = present.entry((wanted.address, wanted.port)).or_insert_with(|| {
                let backends = Arc::new(RwLock::new(Vec::new()));
                let listener = self.runtime.spawn(lead((wanted.address, wanted.port), backends.clone())).abort_handle();
                Vip { backends, listener }
            });
            *vip.backends.write().unwrap_or_else(PoisonError::into_inner) = wanted.backends;
        }
    }
}

impl Default for Ground {
    fn default() -> Self {
        Self::new()
    }
}

/// Leads connections to a VIP to its backends in turn. One whose backend does not answer is closed.
async fn lead(vip: (Ipv4Addr, u16), backends: Arc<RwLock<Vec<(Ipv4Addr, u16)>>>) {
    let listener = match TcpListener::bind(vip).await {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, ?vip, "no VIP"),
    };
    let turn = AtomicUsize::new(0);
    while let Ok((mut client, _)) = listener.accept().await {
        let backend = {
            let backends = backends.read().unwrap_or_else(PoisonError::into_inner);
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            backends.get(turn.checked_rem(backends.len()).unwrap_or(0)).copied()
        };
        tokio::spawn(async move {
            let Some(backend) = backend else { return };
            // Whichever side goes away, the other one notices.
            if let Ok(mut server) = TcpStream::connect(backend).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

/// Serves the cluster on the master's address and keeps it going for as long as the runtime lives. `layer` is laid around what the
/// package itself asks; operators, Cosmos and Admin Router go past it. `packages` is a folder made by `ci/package`.
///
/// # Errors
/// An address is taken: the thread is not isolated.
pub async fn serve(shared: &SharedState, ground: &Ground, packages: &Path, layer: &Layer) -> std::io::Result<()> {
    let servers: [(&'static str, u16, Router); 3] = [
        ("marathon", 8080, marathon::router(shared.clone())),
        ("metronome", 9000, metronome::router(shared.clone())),
        ("mesos", 5050, mesos::router(shared.clone())),
    ];
    for (name, port, router) in servers {
        spawn((MASTER, port + ASIDE), router.clone()).await?;
        spawn((MASTER, port), layer(name, router)).await?;
    }
    let aside = |port: u16| format!("http://{MASTER}:{}", port + ASIDE);
    let upstreams =
        Upstreams { marathon: aside(8080), mesos: aside(5050), metronome: aside(9000), admin_router: format!("http://{MASTER}"), ca: None };
    let cosmos = Cosmos::open(&shared.dir.join("state/cosmos.json"), upstreams.clone())?;
    let (version, id) = shared.read(|state| (state.pose.dcos.clone(), state.cluster_id.clone()));
    spawn((MASTER, 80), admin_router::serve(Cluster { upstreams, version, id }, cosmos, None)).await?;
    spawn((MASTER, 8000), universe::router(packages.to_owned())).await?;
    let zone = ground.zone.clone();
    tokio::spawn(async move {
        if let Err(error) = serve_names(zone, (MASTER, 53).into()).await {
            tracing::error!(%error, "DNS ended");
        }
    });
    tokio::spawn(tick_forever(shared.clone()));
    Ok(())
}
