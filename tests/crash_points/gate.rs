//! What the package asks of the cluster, observed: it is counted, held against what must always hold, and at a chosen point the
//! controller is killed: before what it asks for takes effect, or after that and before the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use private_registry::protocol::{Order, OrderKind, SignedOrder};
use serde_json::Value;

use crate::fleet::{Around, Fleet, TaskId};

/// Where the controller is killed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    /// Before a write of this kind, the n-th from 1, takes effect.
    Before(String, usize),
    /// After it took effect, before the answer.
    After(String, usize),
    /// When it reads for the first time something of this kind.
    Read(String),
    /// Instead of the n-th change of a file.
    File(usize),
    /// Not the controller, but the node or registry that is asked: before it has heard a request of this kind, the n-th from 1.
    TaskBefore(String, usize),
    /// The same after it has done what it was asked, before it answers.
    TaskAfter(String, usize),
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Before(what, nth) => write!(f, "before {what} ({nth})"),
            Self::After(what, nth) => write!(f, "after {what} ({nth})"),
            Self::Read(what) => write!(f, "at {what}"),
            Self::File(nth) => write!(f, "at change {nth} of a file"),
            Self::TaskBefore(what, nth) => write!(f, "the task, before {what} ({nth})"),
            Self::TaskAfter(what, nth) => write!(f, "the task, after {what} ({nth})"),
        }
    }
}

/// See the module.
pub(super) struct Gate {
    /// The controller's directory, whose keys no document may carry.
    keys_in: PathBuf,
    fleet: OnceLock<Arc<Fleet>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    armed: bool,
    point: Option<Point>,
    struck: bool,
    writes: BTreeMap<String, usize>,
    reads: BTreeMap<String, usize>,
    /// Payloads of orders by their version.
    orders: BTreeMap<u64, String>,
    keys: BTreeSet<String>,
    /// Agents that there are.
    agents: u64,
    faults: Vec<String>,
}

impl Gate {
    pub(super) fn new(keys_in: PathBuf) -> Arc<Self> {
        Arc::new(Self { keys_in, fleet: OnceLock::new(), inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be laid around servers and played tasks.
    pub(super) fn around(self: &Arc<Self>) -> Around {
        let gate = self.clone();
        Arc::new(move |service: &'static str, router: Router| router.layer(from_fn_with_state((gate.clone(), service), pass)))
    }

    /// Whom to kill.
    pub(super) fn guard(&self, fleet: Arc<Fleet>) {
        let _ = self.fleet.set(fleet);
    }

    /// So many agents there are, and no more instances of the pod may be asked for.
    pub(super) fn agents(&self, agents: u64) {
        self.lock().agents = agents;
    }

    /// Counts from now on, and kills at this point.
    pub(super) fn arm(&self, point: Option<Point>) {
        let mut inner = self.lock();
        (inner.armed, inner.point) = (true, point);
    }

    /// Whether somebody was killed.
    pub(super) fn has_struck(&self) -> bool {
        self.lock().struck
    }

    /// Kinds of writes and of reads, and how often each came.
    pub(super) fn seen(&self) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
        let inner = self.lock();
        (inner.writes.clone(), inner.reads.clone())
    }

    /// What must not happen, and has.
    pub(super) fn faults(&self) -> Vec<String> {
        self.lock().faults.clone()
    }

    /// Whether a text carries a private key of the service.
    pub(super) fn find_key(&self, what: &str, text: &str) -> Option<String> {
        let inner = self.lock();
        let found = text.contains("PRIVATE KEY") || inner.keys.iter().any(|key| text.contains(key));
        found.then(|| format!("{what} carries a private key"))
    }

    /// Learns the keys that the controller has now. They come and go.
    fn learn_keys(&self) {
        let files = ["ca.pem", "next-ca.pem", "order.key"].map(|name| fs::read_to_string(self.keys_in.join(name)).unwrap_or_default());
        let mut inner = self.lock();
        for text in files {
            let key = text.lines().skip_while(|line| !line.contains("PRIVATE KEY")).nth(1).unwrap_or_default();
            // The first line of a key is the same in all of its kind, but for the end.
            if key.len() > 40 {
                inner.keys.insert(key.to_owned());
            }
        }
    }

    /// Whether this is where the controller is killed, before or after what it asks.
    fn arrive(&self, what: &What) -> Option<Point> {
        let mut inner = self.lock();
        if !inner.armed {
            return None;
        }
        let counts = if what.writes { &mut inner.writes } else { &mut inner.reads };
        let count = counts.entry(what.kind.clone()).or_default();
        *count += 1;
        let count = *count;
        let here = match &inner.point {
            Some(Point::Before(kind, nth) | Point::After(kind, nth)) => what.writes && *kind == what.kind && count == *nth,
            Some(Point::Read(kind)) => !what.writes && *kind == what.kind,
            Some(Point::TaskBefore(kind, nth) | Point::TaskAfter(kind, nth)) => *kind == what.kind && count == *nth,
            _ => false,
        };
        if inner.struck || !here {
            return None;
        }
        inner.struck = true;
        inner.point.clone()
    }

    fn look(&self, what: &What, body: &[u8]) {
        let text = String::from_utf8_lossy(body);
        self.learn_keys();
        let key = self.find_key(&what.kind, &text);
        let mut inner = self.lock();
        inner.faults.extend(key);
        if !what.ours {
            inner.faults.push(format!("{} is not the package's to write", what.kind));
        }
        if what.kind.starts_with("PUT /v2/pods") {
            let asked = serde_json::from_str::<Value>(&text).unwrap_or_default()["scaling"]["instances"].as_u64().unwrap_or(u64::MAX);
            if asked > inner.agents {
                let fault = format!("the pod is scaled to {asked} where there are {} agents", inner.agents);
                inner.faults.push(fault);
            }
        }
        if let Some((version, payload)) = &what.order {
            let before = inner.orders.insert(*version, payload.clone());
            if before.is_some_and(|before| before != *payload) {
                inner.faults.push(format!("version {version} stands for two orders"));
            }
        }
    }

    async fn kill(&self) {
        if let Some(fleet) = self.fleet.get() {
            // What a run of the uninstall job asks where no controller is left, that run is killed for.
            if !fleet.kill("controller").await {
                fleet.kill("uninstall").await;
            }
        }
    }
}

/// What is asked.
struct What {
    kind: String,
    writes: bool,
    /// It is about something that the package has made.
    ours: bool,
    /// Version and payload of an order.
    order: Option<(u64, String)>,
}

fn what(service: &str, method: &Method, path: &str, query: &str, body: &[u8]) -> What {
    let subscribes = service == "mesos" && *method == Method::POST;
    let writes = !matches!(*method, Method::GET | Method::HEAD) && !subscribes;
    let told = serde_json::from_slice::<SignedOrder>(body).ok().filter(|_| path == "/order");
    let order = told.and_then(|signed| {
        let bytes = STANDARD.decode(&signed.payload).ok()?;
        Some((serde_json::from_slice::<Order>(&bytes).ok()?, signed.payload))
    });
    if let Some((order, payload)) = order {
        let word = match order.kind {
            OrderKind::Collect { step, .. } => format!("collect, {step:?}").to_lowercase(),
            kind => serde_json::to_value(kind).unwrap_or_default()["order"].as_str().unwrap_or_default().to_owned(),
        };
        return What { kind: format!("PUT /order ({word}) to a {service}"), writes, ours: true, order: Some((order.version, payload)) };
    }
    let id = serde_json::from_slice::<Value>(body).unwrap_or_default()["id"].as_str().unwrap_or_default().to_owned();
    let kind = match (path, writes) {
        ("/v1/jobs", true) => format!("{method} {path} ({id})"),
        ("/order" | "/status", _) => format!("{method} {path} of a {service}"),
        _ if service == "mesos" && !query.is_empty() => format!("{method} {path}?{query}"),
        _ => format!("{method} {path}"),
    };
    let named = |path: &str| ["/private-registry", "/registry", "private-registry."].iter().any(|id| path.contains(id));
    What { ours: named(path) || named(&id), kind, writes, order: None }
}

async fn pass(State((gate, service)): State<(Arc<Gate>, &'static str)>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let task = head.extensions.get::<TaskId>().cloned();
    let Ok(body) = to_bytes(body, usize::MAX).await else { return StatusCode::BAD_REQUEST.into_response() };
    let asked = what(service, &head.method, head.uri.path(), head.uri.query().unwrap_or_default(), &body);
    if asked.writes {
        gate.look(&asked, &body);
    }
    let killed = (StatusCode::SERVICE_UNAVAILABLE, "whoever has asked is dead").into_response();
    let point = gate.arrive(&asked);
    let fail = || {
        if let (Some(fleet), Some(TaskId(id))) = (gate.fleet.get(), &task) {
            fleet.fail(id);
        }
    };
    match point {
        Some(Point::Before(..) | Point::Read(..)) => {
            gate.kill().await;
            return killed;
        }
        Some(Point::TaskBefore(..)) => {
            fail();
            return killed;
        }
        _ => {}
    }
    let answer = next.run(Request::from_parts(head, Body::from(body))).await;
    if asked.order.is_some() && matches!(answer.status(), StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST) {
        gate.lock().faults.push(format!("{} was refused with {}", asked.kind, answer.status()));
    }
    match point {
        Some(Point::TaskAfter(..)) => {
            fail();
            killed
        }
        Some(_) => {
            gate.kill().await;
            killed
        }
        None => answer,
    }
}
