//! Marathon 1.11.

use axum::Router;
use serde::{Deserialize, Serialize};

use super::SharedState;

/// What Marathon keeps.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Marathon {
    /// Unix time of its first start.
    pub(crate) started: f64,
}

/// Routes.
pub fn router(state: SharedState) -> Router {
    Router::new().with_state(state)
}
