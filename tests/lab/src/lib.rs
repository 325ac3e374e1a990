//! The smallest DC/OS that runs the package for real on one machine.

#![forbid(unsafe_code)]

pub mod agent;
mod cgroups;
pub mod dns;
mod error;
pub mod executor;
pub mod host;
pub mod journal;
pub mod process;
pub mod server;
pub mod task;
pub mod vips;

pub use error::{Error, Result};
