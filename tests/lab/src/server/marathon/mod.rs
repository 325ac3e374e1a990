//! Marathon 1.11.

use axum::Router;
use serde::{Deserialize, Serialize};

use super::state::State;
use super::{Host, SharedState};

/// What Marathon keeps.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Marathon {
    /// Unix time of its first start.
    pub(crate) started: f64,
}

impl Marathon {
    /// Nothing deployed.
    pub(crate) fn new(started: f64) -> Self {
        Self { started }
    }
}

/// Routes.
pub fn router(state: SharedState) -> Router {
    Router::new().with_state(state)
}

/// Moves every deployment on; called at each tick, after what executors report has been read.
pub(crate) fn advance(_state: &mut State, _host: &dyn Host) {}
