//! The role's HTTP: `GET /status`, `GET /health`, `PUT /order`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::protocol::{MAX_MESSAGE_BYTES, RegistryPhase, RegistryStatus, SignedOrder};

/// Time in which a request must have arrived.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Time in which a whole exchange must be over, a slow reader's too.
const EXCHANGE_TIME: Duration = Duration::from_secs(30);
/// Connections at a time; more wait.
const CONNECTIONS: usize = 32;

/// Why an order was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Not ours.
    #[error("{0}")]
    Forbidden(String),
    /// Older than what was taken before, or at odds with the state.
    #[error("{0}")]
    Conflict(String),
    /// Cannot be done.
    #[error("{0}")]
    Bad(String),
    /// This side failed.
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Bad(_) => StatusCode::BAD_REQUEST,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An order on its way to the role, and the way back for what became of it.
pub(super) type Delivery = (SignedOrder, oneshot::Sender<Result<(), Refusal>>);

/// What the requests need.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) status: watch::Receiver<RegistryStatus>,
    pub(super) orders: mpsc::Sender<Delivery>,
}

/// Serves until it is dropped.
pub(super) async fn serve(listener: TcpListener, desk: Desk) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = desk.clone();
                tokio::spawn(async move {
                    // A peer that goes away or takes too long is no event of ours.
                    let _ = timeout(EXCHANGE_TIME, exchange(stream, desk)).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: give the open connections time to end.
                tracing::warn!(%error, "no connection could be accepted");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn exchange(stream: TcpStream, desk: Desk) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(answer(request, desk).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(REQUEST_TIME);
    http.serve_connection(TokioIo::new(stream), service).await
}

async fn answer(request: Request<Incoming>, desk: Desk) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => {
            let status = serde_json::to_string(&*desk.status.borrow()).expect("a status is made of strings and numbers");
            reply(StatusCode::OK, "application/json", status)
        }
        (&Method::GET, "/health") => health(&desk.status.borrow()),
        (&Method::PUT, "/order") => order(request, desk).await,
        (_, "/status" | "/health" | "/order") => text(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method".into()),
        _ => text(StatusCode::NOT_FOUND, "there are /status, /health and /order".into()),
    }
}

fn health(status: &RegistryStatus) -> Response<Full<Bytes>> {
    match status.phase {
        RegistryPhase::Failed => text(StatusCode::SERVICE_UNAVAILABLE, status.errors.join("\n")),
        _ => text(StatusCode::OK, "ok".into()),
    }
}

async fn order(request: Request<Incoming>, desk: Desk) -> Response<Full<Bytes>> {
    let body = match timeout(REQUEST_TIME, Limited::new(request.into_body(), MAX_MESSAGE_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("the order cannot be read, it may be too large: {error}")),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the order did not arrive in time".into()),
    };
    let signed: SignedOrder = match serde_json::from_slice(&body) {
        Ok(signed) => signed,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("this is not a signed order: {error}")),
    };
    let (reply, outcome) = oneshot::channel();
    if desk.orders.send((signed, reply)).await.is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the task is ending".into());
    }
    match outcome.await {
        Ok(Ok(())) => text(StatusCode::OK, "taken".into()),
        Ok(Err(refusal)) => text(refusal.status(), refusal.to_string()),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the task is ending".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body + "\n")
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}
