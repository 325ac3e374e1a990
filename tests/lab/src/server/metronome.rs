//! Metronome 0.6.70.

use axum::Router;
use serde::{Deserialize, Serialize};

use super::SharedState;

/// What Metronome keeps.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Metronome {}

/// Routes.
pub fn router(state: SharedState) -> Router {
    Router::new().with_state(state)
}
