//! The smallest DC/OS that runs the package for real on one machine.

#![forbid(unsafe_code)]

mod cgroups;
pub mod dns;
mod error;
pub mod executor;
pub mod host;
pub mod process;
pub mod task;
pub mod vips;

pub use error::{Error, Result};
