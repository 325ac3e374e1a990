//! Servers that do not work, for as long as a test wants it.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::SharedState;
use super::state::{Faults, Trouble};

/// Which of the faults concerns a server.
pub(super) type Which = fn(&Faults) -> Option<Trouble>;

/// How often a silent server looks whether it may speak again.
const LOOK: Duration = Duration::from_millis(100);
/// After this long Marathon gives up on its own work.
const LATE: Duration = Duration::from_secs(10);

/// The same server, in trouble as long as the faults say so.
pub(super) fn wrap(router: Router, shared: &SharedState, which: Which) -> Router {
    router.layer(from_fn_with_state((shared.clone(), which), answer))
}

async fn answer(State((shared, which)): State<(SharedState, Which)>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    loop {
        match shared.read(|state| which(&state.faults)) {
            Some(Trouble::Unavailable) => return unavailable(),
            Some(Trouble::Locked) if !reads => {
                let deployments = json!([{ "id": uuid::Uuid::new_v4().to_string() }]);
                let message = "App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'.";
                return (StatusCode::CONFLICT, axum::Json(json!({ "message": message, "deployments": deployments }))).into_response();
            }
            Some(Trouble::Late) if !reads => {
                drop(next.run(request).await);
                tokio::time::sleep(LATE).await;
                return unavailable();
            }
            Some(Trouble::Silent) => tokio::time::sleep(LOOK).await,
            Some(Trouble::Locked | Trouble::Late) | None => return next.run(request).await,
        }
    }
}

fn unavailable() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({ "message": "Could not complete the request in time" }))).into_response()
}

/// Answers every download with something else.
pub(super) fn damager() -> Router {
    Router::new().fallback(async || "damaged on its way\n")
}
