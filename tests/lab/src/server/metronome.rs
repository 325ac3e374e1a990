//! Metronome 0.6.70.

use axum::Router;
use serde::{Deserialize, Serialize};

use super::state::State;
use super::{Host, SharedState};

/// What Metronome keeps.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Metronome {}

/// Routes.
pub fn router(state: SharedState) -> Router {
    Router::new().with_state(state)
}

/// Moves every run on; called at each tick, after what executors report has been read.
pub(crate) fn advance(_state: &mut State, _host: &dyn Host) {}
