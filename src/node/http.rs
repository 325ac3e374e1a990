//! What a node answers: to Mesos' health check on loopback, to the controller on the agent's own address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::board::Board;
use super::orders::Refusal;
use crate::protocol::{MAX_MESSAGE_BYTES, SignedOrder};
use crate::serving::{self, Limits};

const SLOWEST_BODY: Duration = Duration::from_secs(10);
/// The controller and the health check need two; the rest is room for people and bound for everybody.
pub(super) const LIMITS: Limits = Limits { connections: 32, head: SLOWEST_BODY, exchange: Some(Duration::from_secs(30)) };
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// Listens on one address, tries again while it cannot, and answers for ever.
pub(crate) async fn serve(board: Arc<Board>, address: SocketAddr) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                board.listening(&address.to_string(), Err(format!("cannot listen on {address}: {error}; tried again every few seconds")));
                sleep(BIND_AGAIN).await;
            }
        }
    };
    board.listening(&address.to_string(), Ok(()));
    answer(board, listener).await;
}

/// Answers what comes in on a listener.
pub(crate) async fn answer(board: Arc<Board>, listener: TcpListener) {
    serving::serve(listener, TowerToHyperService::new(router(board)), LIMITS).await;
}

fn router(board: Arc<Board>) -> Router {
    Router::new().route("/status", get(status)).route("/health", get(|| async { "ok\n" })).route("/order", put(order)).with_state(board)
}

async fn status(State(board): State<Arc<Board>>) -> Response {
    Json(board.status()).into_response()
}

async fn order(State(board): State<Arc<Board>>, body: Body) -> Response {
    let bytes = match timeout(SLOWEST_BODY, axum::body::to_bytes(body, MAX_MESSAGE_BYTES)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return refuse(StatusCode::BAD_REQUEST, format!("an order has at most {MAX_MESSAGE_BYTES} bytes")),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, format!("no whole order within {} s", SLOWEST_BODY.as_secs())),
    };
    let taken = crate::json::of_bytes::<SignedOrder>(&bytes)
        .map_err(|error| Refusal::Unreadable(error.to_string()))
        .and_then(|signed| board.take(signed));
    match taken {
        Ok(status) => Json(status).into_response(),
        Err(refusal) => refuse(code(&refusal), refusal.to_string()),
    }
}

fn code(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::Unreadable(_) => StatusCode::BAD_REQUEST,
        Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
        Refusal::Conflict(_) => StatusCode::CONFLICT,
    }
}

fn refuse(code: StatusCode, why: String) -> Response {
    (code, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], why + "\n").into_response()
}
