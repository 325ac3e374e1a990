//! A private container registry for DC/OS that every agent trusts.
//!
//! One binary, one role per subcommand; `ARCHITECTURE.md` draws how they work together. Data flows one way:
//! options → observe → plan (pure) → apply → report.

#![forbid(unsafe_code)]
#![warn(clippy::unwrap_used)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests have the lab's reqwest"))]

pub mod certificates;
pub mod collection;
pub mod controller;
pub mod copying;
pub mod dcos;
pub mod digest;
pub mod distribution;
pub mod documents;
pub mod exposure;
pub mod forecast;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
pub mod held;
pub mod host_paths;
#[cfg(test)]
mod hostile;
mod in_order;
pub mod init;
#[cfg(all(test, target_arch = "x86_64"))]
mod interrupted;
pub mod json;
#[cfg(test)]
mod model;
pub mod names;
pub mod node;
pub mod operator;
pub mod options;
pub mod plan;
pub mod preload;
pub mod privileges;
pub mod protocol;
pub mod registry;
pub mod secret;
pub mod security;
mod serving;
pub mod settings;
pub mod shards;
pub mod storage;
pub mod takeover;
mod tls;
pub mod turns;
pub mod users;
