//! Tests of the whole: the package in a lab, and its parts with the real programs beside them.
//!
//! One program for all of them, so that labs of different files run side by side: `cargo test --test whole life::`.
//! `leftovers.rs` looks at the whole machine and therefore runs alone.

#![allow(clippy::disallowed_methods, reason = "the lab's reqwest has TLS of its own")]

mod acceptance;
mod attackers;
mod auth;
mod cache;
mod changes;
mod collection;
mod conformance;
mod copying;
mod crash_points;
mod docker_in_docker;
mod docs;
mod enterprise;
mod enterprise_doors;
mod enterprise_tasks;
mod exposure;
mod faults;
mod fleet;
mod insecure;
mod key_watch;
mod kills;
mod life;
mod lifecycle;
mod operator;
mod options;
mod other_registries;
mod package;
mod page;
mod pullers;
mod refusals;
mod registry_role;
mod role_points;
mod rotation;
mod security_modes;
mod shards;
mod soak;
mod storage;
mod support;
mod takeover;
mod token_server;
mod upstream;
mod versions;
