//! The role's HTTP: `GET /status`, `GET /health`, `GET /metrics`, `GET /images`, `PUT /order`.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::access::Access;
use super::config::RegistryConfig;
use super::images::Lister;
use super::role::now;
use crate::certificates::EnrolmentKey;
use crate::dcos::{Api, read_to_end};
use crate::protocol::{CLOCK_DIFFERENCE, MAC_HEADER, MAX_MESSAGE_BYTES, RegistryPhase, RegistryStatus, SignedOrder, TIME_HEADER, asked};
use crate::serving::{self, Limits};

/// Time in which a request must have arrived.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// The controller, the health check and Prometheus need three connections. An exchange includes a slow reader's time.
pub(super) const LIMITS: Limits = Limits { connections: 32, head: REQUEST_TIME, exchange: Some(Duration::from_secs(30)) };
/// Mesos waits 5 s for the health check's answer.
const HEALTH_TIME: Duration = Duration::from_secs(3);
/// Time in which the registry must have given its metrics.
const METRICS_TIME: Duration = Duration::from_secs(5);
/// The registry's metrics are about 50 kB.
const MAX_METRICS: usize = 4 * 1024 * 1024;

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
    /// How often the health check was answered with 503.
    refused: watch::Sender<u64>,
    /// Nobody else serves while this one restarts.
    alone: bool,
    client: reqwest::Client,
    /// The registry's own metrics.
    metrics_url: String,
    lister: Lister,
    enrolment_key: EnrolmentKey,
}

impl Desk {
    pub(super) fn new(
        config: &RegistryConfig,
        access: Access,
        status: watch::Receiver<RegistryStatus>,
        orders: mpsc::Sender<Delivery>,
        refused: watch::Sender<u64>,
    ) -> Result<Self, reqwest::Error> {
        let metrics_url = format!("http://{}/metrics", config.debug_listen);
        let (lister, enrolment_key) = (Lister::new(config, access)?, config.enrolment_key.clone());
        let alone = !config.settings.replicated;
        Ok(Self { status, orders, refused, alone, client: Api::client()?, metrics_url, lister, enrolment_key })
    }
}

/// Serves until it is dropped.
pub(super) async fn serve(listener: TcpListener, desk: Desk) {
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(answer(request, desk).await) }
    });
    serving::serve(listener, service, LIMITS).await;
}

async fn answer(request: Request<Incoming>, desk: Desk) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => {
            let status = serde_json::to_string(&*desk.status.borrow()).expect("a status is made of strings and numbers");
            reply(StatusCode::OK, "application/json", status)
        }
        (&Method::GET, "/health") => health(&desk).await,
        (&Method::GET, "/metrics") => metrics(&desk).await,
        (&Method::GET, "/images") => images(&request, &desk).await,
        (&Method::PUT, "/order") => order(request, desk).await,
        (_, "/status" | "/health" | "/metrics" | "/images" | "/order") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method".into())
        }
        _ => text(StatusCode::NOT_FOUND, "there are /status, /health, /metrics, /images and /order".into()),
    }
}

/// Whether new connections are to come here. Mesos asks this, and nobody else.
///
/// A task that has no certificate yet will have it within a second or two, mostly. Its answer waits for that, so that the VIP leads
/// there at once and not only after Mesos' next question. Nor is a restart for another certificate, which takes less, a reason to be out of
/// the VIP until that question, where nobody else is in it.
async fn health(desk: &Desk) -> Response<Full<Bytes>> {
    let mut status = desk.status.clone();
    let waits = match status.borrow().phase {
        RegistryPhase::AwaitingCertificate => true,
        RegistryPhase::Restarting => desk.alone,
        _ => false,
    };
    if waits {
        let begun = |status: &RegistryStatus| !matches!(status.phase, RegistryPhase::AwaitingCertificate | RegistryPhase::Restarting);
        // Not in time, or the role has ended: it is as it is.
        let _ = timeout(HEALTH_TIME, status.wait_for(begun)).await;
    }
    let status = desk.status.borrow();
    let reason = match status.phase {
        RegistryPhase::Serving => return text(StatusCode::OK, "ok".into()),
        RegistryPhase::Failed => status.errors.join("\n"),
        RegistryPhase::AwaitingCertificate | RegistryPhase::Restarting | RegistryPhase::Retired => {
            "this registry does not serve now".into()
        }
    };
    desk.refused.send_modify(|count| *count += 1);
    text(StatusCode::SERVICE_UNAVAILABLE, reason)
}

/// The registry's own metrics, and some of this role. The registry's debug server has more to show, but not to everybody.
async fn metrics(desk: &Desk) -> Response<Full<Bytes>> {
    let own = {
        let status = desk.status.borrow();
        let serving = u8::from(status.phase == RegistryPhase::Serving);
        let (starts, version, problems) = (status.starts, status.order_version, status.errors.len());
        format!(
            "# HELP private_registry_starts_total Starts of the registry's process in this task.\n\
             # TYPE private_registry_starts_total counter\nprivate_registry_starts_total {starts}\n\
             # HELP private_registry_serving Whether the registry answers.\n\
             # TYPE private_registry_serving gauge\nprivate_registry_serving {serving}\n\
             # HELP private_registry_problems Problems that the status names.\n\
             # TYPE private_registry_problems gauge\nprivate_registry_problems {problems}\n\
             # HELP private_registry_order_version Version of the last order taken.\n\
             # TYPE private_registry_order_version gauge\nprivate_registry_order_version {version}\n"
        )
    };
    let registrys = async {
        let answer = desk.client.get(&desk.metrics_url).timeout(METRICS_TIME).send().await.ok()?;
        if answer.status().is_success() { read_to_end(answer, MAX_METRICS).await.ok() } else { None }
    };
    // While it does not run, ours say so.
    let registrys = registrys.await.unwrap_or_default();
    reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", own + &registrys)
}

/// For the controller alone: names of images may be a secret where the registry asks for a login.
async fn images(request: &Request<Incoming>, desk: &Desk) -> Response<Full<Bytes>> {
    if let Err(reason) = is_from_the_controller(request, &desk.enrolment_key) {
        return text(StatusCode::FORBIDDEN, reason.into());
    }
    let last = request.uri().query().and_then(|query| query.strip_prefix("last=")).filter(|last| !last.is_empty());
    match desk.lister.page(last).await {
        Ok(page) => reply(StatusCode::OK, "application/json", serde_json::json!(page).to_string()),
        Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

fn is_from_the_controller(request: &Request<Incoming>, key: &EnrolmentKey) -> Result<(), &'static str> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let time: Option<i64> = header(TIME_HEADER).and_then(|time| time.parse().ok());
    let (Some(time), Some(mac)) = (time, header(MAC_HEADER)) else {
        return Err("the controller asks for this, with an authentication code");
    };
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    if !key.verify(&asked("GET", path, time), mac) {
        return Err("the authentication code is wrong");
    }
    if now().saturating_sub(time).abs() > CLOCK_DIFFERENCE {
        return Err("the request is of another time; are the clocks of the agents right?");
    }
    Ok(())
}

async fn order(request: Request<Incoming>, desk: Desk) -> Response<Full<Bytes>> {
    let body = match timeout(REQUEST_TIME, to_bytes(Body::new(request.into_body()), MAX_MESSAGE_BYTES)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("the order cannot be read, it may be too large: {error}")),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the order did not arrive in time".into()),
    };
    let signed: SignedOrder = match crate::json::of_bytes(&body) {
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
