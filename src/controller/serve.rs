//! What the controller answers: page, status, CA, its own binary, and Cosmos' question whether the removal is done.
//!
//! Everything is read-only. Whoever wants something done runs a Metronome job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::discovery::Discovery;
use super::events::{self, Listeners, View};
use super::images::{self, Asked, Source};
use super::metrics::Metrics;
use super::page;
use super::report::{AgentReport, Report};
use crate::dcos::mesos::Agent;
use crate::in_order::InOrder as _;
use crate::security::PUBLIC_CA;
use crate::serving::{self, Limits};

/// A pass takes seconds; a loop that has not turned for so long hangs, and Marathon should restart it.
const STUCK_AFTER: Duration = Duration::from_secs(300);
/// How many actions the page remembers.
const REMEMBERED: usize = 30;
/// Nodes that fetch this program, open pages and programs. Behind Admin Router each keeps a connection for its next question.
pub(super) const LIMITS: Limits = Limits { connections: 512, head: Duration::from_secs(30), exchange: None };
/// More agents than this that have registered since the last look are a reason to look at all of them.
const JOINED: usize = 1000;
/// So many may list images at a time, for each part is hundreds of questions to the registry; others wait a little.
const LISTING: usize = 2;
const TURN: Duration = Duration::from_secs(15);

/// What the loop tells the server.
pub(crate) struct Shared {
    binary: Bytes,
    binary_sha256: String,
    now: Mutex<Now>,
    wake: Notify,
    /// Agents that have registered since the last look; none instead of one that could not be read.
    joined: Mutex<Vec<Option<Agent>>>,
    listeners: Listeners,
    listing: Semaphore,
    pub(super) metrics: Metrics,
}

struct Now {
    report: Report,
    discovery: Option<Discovery>,
    actions: Vec<String>,
    beat: Instant,
    removed: Option<bool>,
    /// Where images are listed; none while no registry answers.
    images: Option<Source>,
    /// What was made of this for the last one who asked, and is given to all who ask before it changes.
    page: Option<Bytes>,
    status: Option<Bytes>,
}

impl Now {
    /// To be called with every change of what is shown.
    fn changed(&mut self) {
        (self.page, self.status) = (None, None);
    }
}

impl Shared {
    pub(super) fn new(binary: Vec<u8>, binary_sha256: String) -> Self {
        let report = Report { summary: "The controller has just started.".into(), ..Report::default() };
        let now = Now {
            report,
            discovery: None,
            actions: Vec::new(),
            beat: Instant::now(),
            removed: None,
            images: None,
            page: None,
            status: None,
        };
        Self {
            binary: binary.into(),
            binary_sha256,
            now: Mutex::new(now),
            wake: Notify::new(),
            joined: Mutex::default(),
            listeners: Listeners::default(),
            listing: Semaphore::new(LISTING),
            metrics: Metrics::default(),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // Nothing panics while it holds the lock; if it did, the last report is still a whole one.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, report: Report) {
        let mut now = self.now();
        if report.summary != now.report.summary {
            tracing::info!("{}", report.summary);
        }
        for (host, news) in news_of_agents(&now.report.agents, &report.agents) {
            tracing::info!(agent = host, "{news}");
        }
        now.report = report;
        now.changed();
        drop(now);
        self.listeners.changed();
    }

    pub(super) fn summary(&self) -> String {
        self.now().report.summary.clone()
    }

    pub(super) fn describe(&self, discovery: Discovery) {
        let mut now = self.now();
        now.discovery = Some(discovery);
        now.changed();
    }

    pub(super) fn trouble(&self, text: String) {
        let mut now = self.now();
        (now.report.trouble, now.report.converged) = (Some(text), false);
        now.changed();
        drop(now);
        self.listeners.changed();
    }

    pub(super) fn acted(&self, text: String) {
        let mut now = self.now();
        now.actions.insert(0, text);
        now.actions.truncate(REMEMBERED);
        now.changed();
        drop(now);
        self.listeners.changed();
    }

    /// What an open page is told.
    fn view(&self) -> Arc<View> {
        self.listeners.view(|| {
            let now = self.now();
            let agents = now.report.agents.iter().map(|agent| (agent.host.clone(), View::row(agent))).in_order();
            View { parts: page::parts(&now.report, now.discovery.as_ref(), &now.actions), agents }
        })
    }

    pub(super) fn beat(&self) {
        self.now().beat = Instant::now();
    }

    /// From now on `/v1/plans/deploy` answers: 503 until `done`, then 200.
    pub(super) fn removal(&self, done: bool) {
        self.now().removed = Some(done);
    }

    pub(super) fn offer_images(&self, source: Option<Source>) {
        self.now().images = source;
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// An agent has registered, which is worth a look at once. What comes while no look is possible is kept within bounds.
    pub(super) fn joined(&self, agent: Option<Agent>) {
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        if joined.len() < JOINED {
            joined.push(agent);
        } else {
            *joined = vec![None];
        }
        self.wake.notify_one();
    }

    /// Whether an agent has registered since.
    pub(super) fn has_joined(&self) -> bool {
        !self.joined.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Agents that have registered since this was asked the last time.
    pub(super) fn take_joined(&self) -> Vec<Option<Agent>> {
        std::mem::take(&mut *self.joined.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A line for every agent that stands otherwise than before, with the reason. Of very many agents nearly all have the same row as before.
fn news_of_agents<'a>(before: &'a [Arc<AgentReport>], now: &'a [Arc<AgentReport>]) -> Vec<(&'a str, String)> {
    let is_same = |(before, now): &(&Arc<AgentReport>, &Arc<AgentReport>)| Arc::ptr_eq(before, now);
    let first = before.iter().zip(now).take_while(is_same).count();
    let (before, now) = (&before[first..], &now[first..]);
    let last = before.iter().rev().zip(now.iter().rev()).take_while(is_same).count();
    let (before, now) = (&before[..before.len() - last], &now[..now.len() - last]);
    let known: BTreeMap<&str, &AgentReport> = before.iter().map(|agent| (agent.host.as_str(), agent.as_ref())).in_order();
    let mut news = Vec::new();
    for AgentReport { host, state, detail, .. } in now.iter().map(Arc::as_ref) {
        if known.get(host.as_str()).is_none_or(|earlier| (&earlier.state, &earlier.detail) != (state, detail)) {
            news.push((host.as_str(), format!("{state}: {detail}")));
        }
    }
    let there: BTreeSet<&str> = now.iter().map(|agent| agent.host.as_str()).in_order();
    let gone = known.keys().filter(|host| !there.contains(*host));
    news.extend(gone.map(|host| (*host, "Mesos has this agent no more".to_string())));
    news
}

pub(super) async fn serve(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    let router = Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/openapi.json", get(openapi))
        .route("/v1/status", get(status))
        .route("/v1/events", get(news))
        .route("/v1/ca", get(ca))
        .route("/v1/discovery", get(discovery))
        .route("/v1/images", get(list_images))
        .route("/v1/plans/deploy", get(deploy))
        .route("/artifact/{sha256}/private-registry", get(artifact))
        .with_state(shared);
    serving::serve(listener, TowerToHyperService::new(router), LIMITS).await;
}

async fn page(State(shared): State<Arc<Shared>>) -> Response {
    let html = {
        let now = &mut *shared.now();
        now.page.get_or_insert_with(|| page::render(&now.report, now.discovery.as_ref(), &now.actions).into()).clone()
    };
    (page::headers(), Html(html)).into_response()
}

async fn news(State(shared): State<Arc<Shared>>, Query(asked): Query<events::Asked>) -> Response {
    let looking = Arc::clone(&shared);
    shared.listeners.answer(&asked, move || looking.view())
}

async fn health(State(shared): State<Arc<Shared>>) -> StatusCode {
    if shared.now().beat.elapsed() < STUCK_AFTER { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let json = {
        let now = &mut *shared.now();
        // Only maps with other keys than strings cannot be JSON; there are none.
        now.status.get_or_insert_with(|| serde_json::to_vec(&now.report).unwrap_or_default().into()).clone()
    };
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// For Prometheus.
async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.metrics.text(&shared.binary_sha256);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// What all this is, for programs.
async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::openapi::DOCUMENT).into_response()
}

async fn list_images(State(shared): State<Arc<Shared>>, Query(asked): Query<Asked>) -> Response {
    let source = shared.now().images.clone();
    let Some(source) = source else {
        return (StatusCode::SERVICE_UNAVAILABLE, "no registry answers\n").into_response();
    };
    let Ok(Ok(_turn)) = timeout(TURN, shared.listing.acquire()).await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "others are listing the images; ask again\n").into_response();
    };
    match images::list(&source, &asked).await {
        Ok(report) => axum::Json(report).into_response(),
        Err(reason) => (StatusCode::BAD_GATEWAY, format!("{reason}\n")).into_response(),
    }
}

async fn ca(State(shared): State<Arc<Shared>>) -> Response {
    let (ca, public, insecure) = {
        let report = &shared.now().report;
        (report.ca.clone(), report.public_ca, report.insecure)
    };
    if insecure {
        return (StatusCode::NOT_FOUND, "there is no CA: the registry speaks plain HTTP\n").into_response();
    }
    if ca.is_empty() && public {
        return (StatusCode::NOT_FOUND, format!("{PUBLIC_CA}\n")).into_response();
    }
    if ca.is_empty() {
        return (StatusCode::SERVICE_UNAVAILABLE, "there is no CA yet\n").into_response();
    }
    ([(header::CONTENT_TYPE, "application/x-pem-file")], ca).into_response()
}

/// What tools need; the last that was known, also while something goes wrong.
async fn discovery(State(shared): State<Arc<Shared>>) -> Response {
    match &shared.now().discovery {
        Some(discovery) => axum::Json(discovery).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "nothing is known of the registry yet\n").into_response(),
    }
}

/// Cosmos asks this during an uninstall and deletes the app at the first 200 (facts: Cosmos ServiceUninstaller).
/// At any other time there is no such plan, so that a late question of Cosmos is never answered by mistake.
async fn deploy(State(shared): State<Arc<Shared>>) -> Response {
    match shared.now().removed {
        None => (StatusCode::NOT_FOUND, "no removal is under way\n").into_response(),
        Some(false) => (StatusCode::SERVICE_UNAVAILABLE, axum::Json(serde_json::json!({ "status": "IN_PROGRESS" }))).into_response(),
        Some(true) => axum::Json(serde_json::json!({ "status": "COMPLETE" })).into_response(),
    }
}

async fn artifact(State(shared): State<Arc<Shared>>, Path(sha256): Path<String>) -> Response {
    if sha256 != shared.binary_sha256 {
        return (StatusCode::NOT_FOUND, "this controller has another binary\n").into_response();
    }
    ([(header::CONTENT_TYPE, "application/octet-stream")], shared.binary.clone()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_agents_those_are_told_that_stand_otherwise_than_before_wherever_they_are_in_the_list() {
        let row = |host: &str, state: &str| {
            let row = serde_json::json!({ "host": host, "role": "private", "state": state, "detail": "why", "sysctl": "set" });
            Arc::new(serde_json::from_value::<AgentReport>(row).unwrap())
        };
        let told = |before: &[&Arc<AgentReport>], now: &[&Arc<AgentReport>]| -> Vec<String> {
            let of = |rows: &[&Arc<AgentReport>]| -> Vec<Arc<AgentReport>> { rows.iter().map(|row| Arc::clone(row)).collect() };
            news_of_agents(&of(before), &of(now)).into_iter().map(|(host, news)| format!("{host} {news}")).collect()
        };
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|host| row(host, "trusted"));
        assert!(told(&[&a, &b, &c], &[&a, &b, &c]).is_empty());
        assert!(told(&[&a, &b, &c], &[&a, &row("b", "trusted"), &c]).is_empty(), "another row that says the same");
        assert!(told(&[&a, &b, &c], &[&c, &a, &b]).is_empty(), "another order");
        assert_eq!(told(&[&a, &b, &c], &[&a, &row("b", "failed"), &c]), ["b failed: why"]);
        assert_eq!(told(&[&a, &c], &[&a, &b, &c]), ["b trusted: why"]);
        assert_eq!(told(&[&a, &b], &[&a, &b, &c]), ["c trusted: why"]);
        assert_eq!(told(&[&a, &b, &c], &[&b, &c]), ["a Mesos has this agent no more"]);
        assert_eq!(
            told(&[&a, &b, &c], &[&a, &row("b", "pending"), &d]),
            ["b pending: why", "d trusted: why", "c Mesos has this agent no more"]
        );
        assert_eq!(told(&[&a], &[]), ["a Mesos has this agent no more"]);
    }

    #[test]
    fn agents_that_register_while_nobody_can_look_take_no_more_room_than_they_may_and_are_all_looked_at() {
        let shared = Shared::new(Vec::new(), "00".into());
        for _ in 0..3 * JOINED {
            shared.joined(None);
            assert!(shared.joined.lock().unwrap().len() <= JOINED);
        }
        let agent = crate::plan::tests::agent("10.0.0.1");
        shared.take_joined();
        for _ in 0..=JOINED {
            shared.joined(Some(agent.clone()));
        }
        assert!(shared.take_joined().iter().any(Option::is_none), "one that is not named is a reason to ask for all");
        assert!(shared.take_joined().is_empty());
    }
}
