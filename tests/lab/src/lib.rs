//! The smallest DC/OS that runs the package for real on one machine.

#![forbid(unsafe_code)]
#![warn(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "the lab's reqwest has TLS of its own")]

pub mod agent;
mod cgroups;
pub mod dns;
pub mod enter;
mod error;
pub mod executor;
pub(crate) mod faults;
mod handle;
pub mod host;
pub mod init;
pub mod journal;
mod logs;
pub mod marathon_lb;
pub mod outer;
pub mod process;
pub mod recordings;
pub mod server;
pub mod systemctl;
pub mod task;
pub mod ucr;
pub mod vips;

pub use error::{Error, Result};
pub use handle::{ExecOutput, Lab, LabOptions, control, restart_server, set_faults};
pub use logs::print_logs;
