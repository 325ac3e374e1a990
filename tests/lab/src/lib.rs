//! The smallest DC/OS that runs the package for real on one machine.

#![forbid(unsafe_code)]

pub mod task;
