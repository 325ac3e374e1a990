//! Written by another hand.

use axum::Router;

use super::SharedState;

/// Routes.
pub fn router(state: SharedState) -> Router {
    Router::new().with_state(state)
}
