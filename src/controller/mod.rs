//! The controller: the only part that acts.

pub mod state;
