//! A node that is played: it takes orders, writes to a disk that is a value, and proves by verifying what a registry serves.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use lab::task::TaskSpec;
use private_registry::certificates::{Certificate, OrderError, OrderKey};
use private_registry::digest::order_digest;
use private_registry::protocol::{
    NodePhase, NodeStatus, Order, OrderKind, Proof, ProofOutcome, SignedOrder, SysctlState, SysctlStatus, TrustBundle, env,
};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::world::World;

/// What writing the files takes, and what asking the clients takes.
const WRITING: Duration = Duration::from_millis(30);
const PROVING: Duration = Duration::from_millis(60);
/// Between two tries while nothing is proven.
const AGAIN: Duration = Duration::from_millis(400);

/// See the module.
pub(crate) struct Node {
    world: Arc<World>,
    host: Ipv4Addr,
    service: String,
    key: OrderKey,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    signed: SignedOrder,
    order: Order,
    status: NodeStatus,
}

impl Node {
    /// From what the pod's definition gives it and what its host has kept.
    pub(crate) fn new(world: Arc<World>, host: Ipv4Addr, spec: &TaskSpec) -> Result<Arc<Self>, String> {
        let var = |name: &str| spec.env.get(name).cloned().ok_or_else(|| format!("{name} is not set"));
        let (service, key) = (var(env::SERVICE)?, OrderKey::from_base64(&var(env::ORDER_KEY)?).map_err(|error| error.to_string())?);
        let first: SignedOrder = serde_json::from_str(&var(env::FIRST_ORDER)?).map_err(|error| error.to_string())?;
        let open = |signed: &SignedOrder| match key.open(signed) {
            Ok(order) if order.service == service => Ok(order),
            Ok(order) => Err(format!("the order is for {}", order.service)),
            Err(error) => Err(error.to_string()),
        };
        let (mut signed, mut order) = (first.clone(), open(&first)?);
        let kept = world.lock().disk(host).node.as_ref().map(|files| files.order.clone());
        if let Some((kept, known)) = kept.and_then(|kept| open(&kept).ok().map(|order| (kept, order)))
            && known.version > order.version
        {
            (signed, order) = (kept, known);
        }
        let status = NodeStatus {
            service: service.clone(),
            executor: var("MESOS_EXECUTOR_ID")?,
            host: host.to_string(),
            order_version: order.version,
            order_digest: order_digest(&signed),
            phase: NodePhase::Pending,
            files: Vec::new(),
            sysctl: SysctlStatus { state: SysctlState::Set, value: Some("1".into()), found: Some("0".into()) },
            proofs: Vec::new(),
            errors: Vec::new(),
            passes: 0,
            in_place: false,
            exposed_key: None,
            cleaned: Vec::new(),
            preload: None,
        };
        let inner = Mutex::new(Inner { signed, order, status });
        Ok(Arc::new(Self { world, host, service, key, inner, changed: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `/status` and `/order`, as the real one has them.
    pub(crate) fn router(self: &Arc<Self>) -> Router {
        let status = async |State(node): State<Arc<Self>>| Json(node.lock().status.clone());
        let order = async |State(node): State<Arc<Self>>, Json(signed): Json<SignedOrder>| node.take(signed);
        Router::new().route("/status", get(status)).route("/order", put(order)).with_state(self.clone())
    }

    fn take(&self, signed: SignedOrder) -> Response {
        let refuse = |code: StatusCode, why: String| (code, why).into_response();
        let order = match self.key.open(&signed) {
            Ok(order) => order,
            Err(error @ OrderError::BadSignature) => return refuse(StatusCode::FORBIDDEN, error.to_string()),
            Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
        };
        if order.service != self.service {
            return refuse(StatusCode::FORBIDDEN, format!("this is a node of {}", self.service));
        }
        match &order.kind {
            OrderKind::Trust(bundle) => {
                if let Some(broken) = bundle.certificates.iter().find_map(|pem| Certificate::parse_pem(pem).err()) {
                    return refuse(StatusCode::BAD_REQUEST, broken.to_string());
                }
            }
            OrderKind::Restore => {}
            _ => return refuse(StatusCode::BAD_REQUEST, "it is not meant for a node".into()),
        }
        let mut inner = self.lock();
        let digest = order_digest(&signed);
        if order.version < inner.order.version || (order.version == inner.order.version && digest != inner.status.order_digest) {
            return refuse(StatusCode::CONFLICT, format!("version {} is not newer than {}", order.version, inner.order.version));
        }
        if digest != inner.status.order_digest {
            let passes = inner.status.passes;
            let (version, mut status) = (order.version, inner.status.clone());
            (status.order_version, status.order_digest, status.passes) = (version, digest, passes);
            (status.phase, status.in_place) = (NodePhase::Pending, false);
            status.proofs.clear();
            status.errors.clear();
            *inner = Inner { signed, order, status };
        }
        drop(inner);
        self.changed.notify_one();
        Json(self.lock().status.clone()).into_response()
    }

    /// Works on the host for as long as the task runs.
    pub(crate) async fn converge(self: Arc<Self>) {
        loop {
            let (signed, order) = {
                let inner = self.lock();
                (inner.signed.clone(), inner.order.clone())
            };
            sleep(WRITING).await;
            let well = match &order.kind {
                OrderKind::Trust(bundle) => self.trust(signed, bundle).await,
                _ => {
                    self.world.lock().disk(self.host).node = None;
                    self.show(&signed, NodePhase::Restored, Vec::new(), Vec::new());
                    true
                }
            };
            self.lock().status.passes += 1;
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep(AGAIN), if !well => {}
            }
        }
    }

    async fn trust(&self, signed: SignedOrder, bundle: &TrustBundle) -> bool {
        self.world.lock().write(self.host, signed.clone(), bundle.clone());
        {
            let mut inner = self.lock();
            if inner.signed == signed {
                inner.status.in_place = true;
            }
        }
        sleep(PROVING).await;
        let said = self.world.lock().prove(self.host);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let proof = |name: &str, outcome, detail| Proof { client: "docker".into(), name: name.into(), outcome, detail, at };
        match said {
            Some(Ok(())) => {
                let inside = bundle.names.iter().filter(|name| name.inside);
                let proofs = inside.map(|name| proof(&name.name.to_string(), ProofOutcome::Trusted, None)).collect();
                self.show(&signed, NodePhase::Trusted, proofs, Vec::new());
                true
            }
            Some(Err(why)) => {
                self.show(&signed, NodePhase::Failed, Vec::new(), vec![format!("docker does not trust {why}")]);
                false
            }
            None => {
                self.show(&signed, NodePhase::Pending, Vec::new(), Vec::new());
                false
            }
        }
    }

    fn show(&self, signed: &SignedOrder, phase: NodePhase, proofs: Vec<Proof>, errors: Vec<String>) {
        let mut inner = self.lock();
        if inner.signed == *signed {
            (inner.status.phase, inner.status.proofs, inner.status.errors) = (phase, proofs, errors);
        }
    }
}
