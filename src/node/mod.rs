//! Node role: makes one host trust the registry.

// The loop and the HTTP side that use these parts are on their way.
#![allow(dead_code)]

pub(crate) mod files;
mod manifest;
mod pass;
mod sysctl;
mod trust;
