//! The registry role: it runs beside the stock registry, in its container, and starts it.
//!
//! It makes the TLS key where it is used, asks for a certificate by its status, takes it by a signed order, and keeps the registry
//! running with it; or it serves with what the operator has `provided`. `role` decides, `state` keeps files, `supervisor` runs the process,
//! `server` talks, `collect` collects garbage, `health` looks at the store, `room` at its disk, `images` lists what is in it, `copy` copies it to a
//! `backup` and back, into an object store by an `upload`. Where others serve meanwhile, a restart begins with a `leave`.

mod access;
mod backup;
mod collect;
mod config;
mod copy;
mod health;
#[cfg(test)]
mod hostile;
mod images;
mod leave;
mod provided;
mod reaper;
pub(crate) mod role;
mod room;
mod server;
mod state;
mod supervisor;
mod tool;
mod upload;

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

#[cfg(any(test, fuzzing))]
pub(crate) use images::read_anything;

pub use access::{Access, Account};
pub use config::RegistryConfig;
pub use leave::{CHECK_EVERY, most_failures};

/// Why the role cannot run at all. What can be cured on the host while it runs stands in its status instead.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A variable of the environment.
    #[error("environment variable {name}: {reason}")]
    Environment {
        /// Its name.
        name: &'static str,
        /// What is wrong with it; never its value.
        reason: String,
    },
    /// The status port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The operating system gives no signal handlers.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The HTTP client.
    #[error("the HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
    /// The certificate request.
    #[error("the certificate request cannot be made: {0}")]
    Request(crate::certificates::RegistryKeyError),
    /// Something that the operator keeps elsewhere.
    #[error(transparent)]
    Held(#[from] provided::ProvidedError),
    /// This role's own account.
    #[error(transparent)]
    Account(#[from] crate::users::UserError),
    /// The template of `config.yml`, a part of this program.
    #[error("config.yml cannot be rendered: {0}")]
    Template(String),
}

/// Runs the role until SIGTERM or SIGINT, and then until the registry has been drained.
///
/// Must be called within a tokio runtime with I/O and time; one thread is enough.
///
/// # Errors
/// Only for what no retry can cure.
pub async fn run(config: RegistryConfig) -> Result<(), RegistryError> {
    // First of all: as process 1 of a container we would not even notice a SIGTERM.
    let signals = role::Signals::listen()?;
    let address = config.status_listen;
    let listener = TcpListener::bind(address).await.map_err(|source| RegistryError::Listen { address, source })?;
    let (status, status_of_desk) = watch::channel(role::first_status(&config));
    let (orders_of_desk, orders) = mpsc::channel(1);
    let account = Account::of(&config.settings.auth)?;
    let (refused, refusals) = watch::channel(0);
    let desk = server::Desk::new(&config, account.access(), status_of_desk, orders_of_desk, refused)?;
    let server = tokio::spawn(server::serve(listener, desk));
    let result = role::run(config, account, role::Outside { status, orders, refusals, signals }).await;
    server.abort();
    result
}
