//! Node role: makes one host trust the registry, keeps it so, proves it, and takes it back when told to.
//!
//! [`run`] starts the loop (`converge`) and the two listeners (`http`); both meet at the `board`. A pass over the host is
//! in `pass`, which files there are to be is in `trust`, and only `files` changes any.

pub(crate) mod board;
mod config;
pub(crate) mod converge;
mod daemon_json;
mod docker_reload;
pub(crate) mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
mod http;
mod insecure;
mod leftovers;
mod manifest;
pub(crate) mod orders;
pub(crate) mod pass;
mod preload;
mod proof;
mod sysctl;
mod system_store;
pub(crate) mod trust;
mod tutorial;
mod watch;

#[cfg(all(test, target_arch = "x86_64"))]
mod kills;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use config::{NodeConfig, NodeError};

use crate::host_paths::HostRoot;
use crate::names::Host;
use crate::protocol::{SignedOrder, env};
use board::Board;
use converge::Running;
use orders::Accepted;

/// Runs the node for ever. No fault of the host ends it: what goes wrong is in the status.
///
/// # Errors
/// Only if the order in the definition cannot be taken, which no waiting would heal.
pub async fn run(config: NodeConfig) -> Result<(), NodeError> {
    let host = pass::Host::new(config.root.clone(), config.service.clone());
    let order = order_in_force(&config, &host)?;
    tracing::info!(service = config.service, version = order.version, "node starts");
    let (own, port) = (config.host.clone(), config.port);
    let board = Arc::new(Board::new(config, order));
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let _beside = [
        Running::start(http::serve(Arc::clone(&board), loopback)),
        Running::start(serve_own_address(Arc::clone(&board), own, port)),
        Running::start(preload::keep(Arc::clone(&board), host.clone())),
    ];
    converge::converge(board, host).await;
    Ok(())
}

/// Puts this host back as it was before the service, without a controller: for an agent that was away during the uninstall.
///
/// # Errors
/// Names everything that could not be taken back; the rest has been.
pub fn restore(root: HostRoot, service: &str) -> Result<Vec<String>, RestoreError> {
    let service = config::service_name(service.to_string())?;
    let host = pass::Host::new(root, service);
    let by_hand = SignedOrder { payload: String::new(), signature: String::new() };
    let report = host.restore(&by_hand);
    if report.errors.is_empty() { Ok(report.notes) } else { Err(RestoreError::Remains(report.errors)) }
}

/// Why a host is not as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The service's name.
    #[error(transparent)]
    Service(#[from] NodeError),
    /// What could not be taken back.
    #[error("not everything could be taken back:\n{}", .0.join("\n"))]
    Remains(Vec<String>),
}

/// A newer order that the host keeps wins over the definition's, if the key of today signed it.
fn order_in_force(config: &NodeConfig, host: &pass::Host) -> Result<Accepted, NodeError> {
    let invalid = |refusal: orders::Refusal| NodeError::Invalid { name: env::FIRST_ORDER, reason: refusal.to_string() };
    let first = orders::open(config, config.first_order.clone()).map_err(invalid)?;
    // A manifest that cannot be read is a fault of the host: the first pass meets it again and reports it.
    let kept = host.kept_order().ok().flatten().and_then(|signed| orders::open(config, signed).ok());
    Ok(newest(first, kept))
}

/// What the host keeps counts only if it is newer than the definition's.
pub(crate) fn newest(first: Accepted, kept: Option<Accepted>) -> Accepted {
    kept.filter(|kept| kept.version > first.version).unwrap_or(first)
}

async fn serve_own_address(board: Arc<Board>, own: Host, port: u16) {
    let address = loop {
        match resolve(&own).await {
            Ok(address) => break address,
            Err(error) => board.listening("own address", Err(format!("cannot resolve this host's own name {own}: {error}"))),
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    };
    board.listening("own address", Ok(()));
    // Loopback has its listener already.
    if address != IpAddr::V4(Ipv4Addr::LOCALHOST) {
        http::serve(board, SocketAddr::new(address, port)).await;
    }
}

/// The address of a host. Not through the C library, whose resolver a static binary cannot load.
pub(crate) async fn resolve(host: &Host) -> Result<IpAddr, String> {
    let name = match host {
        Host::Ip(ip) => return Ok(IpAddr::V4(*ip)),
        Host::Dns(name) => name,
    };
    let resolver = hickory_resolver::TokioResolver::builder_tokio().map_err(|e| e.to_string())?.build();
    let found = resolver.lookup_ip(format!("{name}.")).await.map_err(|e| e.to_string())?;
    found.iter().next().ok_or_else(|| format!("{name} has no address"))
}
