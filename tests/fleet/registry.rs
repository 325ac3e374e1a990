//! A registry that is played: key, request, certificate, garbage collection and retirement as the real role has them; no images.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, put};
use axum::{Json, Router};
use lab::task::TaskSpec;
use private_registry::certificates::{Certificate, EnrolmentKey, OrderError, OrderKey, RegistryKey};
use private_registry::protocol::{
    CertificateRequest, CollectPhase, CollectStep, Collection, Order, OrderKind, RegistryPhase, RegistryStatus, SignedOrder, env,
};
use private_registry::secret::Secret;
use tokio::time::sleep;

use super::world::{RegistryFiles, World};

/// What a restart of the program takes, and what a collection takes.
const RESTART: Duration = Duration::from_millis(80);
const COLLECTING: Duration = Duration::from_millis(300);

/// See the module.
pub(crate) struct Registry {
    world: Arc<World>,
    host: Ipv4Addr,
    task: String,
    service: String,
    orders: OrderKey,
    inner: Mutex<Inner>,
}

struct Inner {
    status: RegistryStatus,
    key: Option<RegistryKey>,
    chain: Option<String>,
    last: Option<(SignedOrder, u64)>,
    /// Counts restarts, so that one which was overtaken does nothing.
    restarts: u64,
    ended: bool,
}

type Refusal = (StatusCode, String);

impl Registry {
    /// From what the app's definition gives it and what its host has kept.
    pub(crate) fn new(world: Arc<World>, host: Ipv4Addr, spec: &TaskSpec) -> Result<Arc<Self>, String> {
        let var = |name: &str| spec.env.get(name).cloned().ok_or_else(|| format!("{name} is not set"));
        let orders = OrderKey::from_base64(&var(env::ORDER_KEY)?).map_err(|error| error.to_string())?;
        let enrolment = EnrolmentKey::from_base64(&Secret::new(var(env::ENROLMENT_KEY)?)).map_err(|error| error.to_string())?;
        let service = var(env::SERVICE)?;
        let mut files = world.lock().disk(host).registry.clone();
        let last = files.order.take().and_then(|signed| orders.open(&signed).ok().map(|order| (signed, order)));
        let retires = last.as_ref().is_some_and(|(_, order)| matches!(order.kind, OrderKind::Retire { .. }));
        let mut status = RegistryStatus::first(&service, &spec.id, &host.to_string());
        status.version = Some("2.8.3".into());
        status.order_version = last.as_ref().map_or(0, |(_, order)| order.version);
        let mut key = None;
        if !retires {
            let stored = files.key.map(|pem| RegistryKey::from_pem(&Secret::new(pem)));
            let own = stored.unwrap_or_else(RegistryKey::generate).map_err(|error| error.to_string())?;
            world.lock().disk(host).registry.key = Some(own.to_pem().expose().clone());
            let csr = own.csr(&service).map_err(|error| error.to_string())?;
            status.request = Some(CertificateRequest { mac: enrolment.mac(&csr), csr });
            key = Some(own);
        }
        let inner =
            Inner { status, key, chain: files.chain, last: last.map(|(signed, order)| (signed, order.version)), restarts: 0, ended: false };
        let registry = Arc::new(Self { world, host, task: spec.id.clone(), service, orders, inner: Mutex::new(inner) });
        if retires {
            registry.retire(&mut registry.lock());
        } else if registry.lock().chain.is_some() {
            registry.restart(&mut registry.lock(), |_| {});
        }
        Ok(registry)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `/status` and `/order`, as the real one has them.
    pub(crate) fn router(self: &Arc<Self>) -> Router {
        let status = async |State(registry): State<Arc<Self>>| Json(registry.lock().status.clone());
        let order = async |State(registry): State<Arc<Self>>, Json(signed): Json<SignedOrder>| match registry.take(signed) {
            Ok(()) => Json(registry.lock().status.clone()).into_response(),
            Err(refusal) => refusal.into_response(),
        };
        Router::new().route("/status", get(status)).route("/order", put(order)).with_state(self.clone())
    }

    /// The task has ended: nobody serves here any more.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        inner.restarts += 1;
        self.world.lock().serve(&self.task, None);
    }

    fn take(self: &Arc<Self>, signed: SignedOrder) -> Result<(), Refusal> {
        let order = self.orders.open(&signed).map_err(|error| match error {
            OrderError::BadSignature => (StatusCode::FORBIDDEN, error.to_string()),
            error => (StatusCode::BAD_REQUEST, error.to_string()),
        })?;
        if order.service != self.service {
            return Err((StatusCode::FORBIDDEN, format!("this is a task of {}", self.service)));
        }
        let mut inner = self.lock();
        if let Some((last, version)) = &inner.last
            && (order.version < *version || (order.version == *version && *last != signed))
        {
            return Err((StatusCode::CONFLICT, format!("version {} is not newer than {version}, the last one taken", order.version)));
        }
        let retired = inner.status.phase == RegistryPhase::Retired;
        match &order.kind {
            OrderKind::Retire { .. } => {
                self.keep(&mut inner, signed, &order);
                self.retire(&mut inner);
                Ok(())
            }
            _ if retired => Err((StatusCode::CONFLICT, "this registry is retired".into())),
            OrderKind::Certificate { chain } => self.certify(&mut inner, signed.clone(), &order, chain),
            OrderKind::Collect { run, step, dry_run, .. } => {
                self.keep(&mut inner, signed.clone(), &order);
                self.collect(&mut inner, run, *step, *dry_run)
            }
            _ => Err((StatusCode::BAD_REQUEST, "that is not played".into())),
        }
    }

    fn keep(&self, inner: &mut Inner, signed: SignedOrder, order: &Order) {
        inner.status.order_version = order.version;
        self.world.lock().disk(self.host).registry.order = Some(signed.clone());
        inner.last = Some((signed, order.version));
    }

    fn certify(self: &Arc<Self>, inner: &mut Inner, signed: SignedOrder, order: &Order, chain: &str) -> Result<(), Refusal> {
        let bad = |why: String| (StatusCode::BAD_REQUEST, why);
        let leaf = Certificate::parse_bundle(chain).map_err(|error| bad(error.to_string()))?.swap_remove(0);
        let own = inner.key.as_ref().is_some_and(|key| key.public_key_spki_der() == leaf.public_key_spki_der());
        if !own {
            return Err(bad("the certificate is for another key".into()));
        }
        self.world.lock().disk(self.host).registry.chain = Some(chain.to_owned());
        self.keep(inner, signed, order);
        if inner.chain.as_deref() != Some(chain) {
            inner.chain = Some(chain.to_owned());
            self.restart(inner, |_| {});
        }
        Ok(())
    }

    fn collect(self: &Arc<Self>, inner: &mut Inner, run: &str, step: CollectStep, dry_run: bool) -> Result<(), Refusal> {
        let phase = inner.status.collection.as_ref().filter(|part| part.run == run).map(|part| part.phase);
        let to = |inner: &mut Inner, phase: CollectPhase| {
            if let Some(part) = &mut inner.status.collection {
                part.phase = phase;
            }
        };
        match (step, phase) {
            (CollectStep::Prepare, None) if inner.status.phase == RegistryPhase::Serving => {
                inner.status.collection = Some(Collection {
                    run: run.to_owned(),
                    dry_run,
                    phase: CollectPhase::Preparing,
                    marked: 7,
                    blobs: 3,
                    manifests: 0,
                    freed_bytes: Some(4096),
                    seconds: 1,
                    read_only_seconds: 1,
                    error: None,
                });
                self.restart(inner, move |inner| to(inner, CollectPhase::ReadOnly));
            }
            (CollectStep::Prepare, None) => return Err((StatusCode::CONFLICT, "this registry does not serve yet".into())),
            (CollectStep::Collect, Some(CollectPhase::ReadOnly)) => {
                to(inner, CollectPhase::Collecting);
                let registry = self.clone();
                tokio::spawn(async move {
                    sleep(COLLECTING).await;
                    let mut inner = registry.lock();
                    let collects = inner.status.collection.as_ref().is_some_and(|part| part.phase == CollectPhase::Collecting);
                    if collects && !inner.ended {
                        to(&mut inner, CollectPhase::Collected);
                    }
                });
            }
            (CollectStep::Collect, None) => return Err((StatusCode::CONFLICT, "it is not read-only".into())),
            (CollectStep::Finish, Some(phase)) if phase < CollectPhase::Reopening => {
                to(inner, CollectPhase::Reopening);
                self.restart(inner, move |inner| to(inner, CollectPhase::Done));
            }
            _ => {}
        }
        Ok(())
    }

    /// Stops the program and starts it with what is stored; `then` as soon as it answers.
    fn restart(self: &Arc<Self>, inner: &mut Inner, then: impl FnOnce(&mut Inner) + Send + 'static) {
        inner.restarts += 1;
        let this = inner.restarts;
        inner.status.phase = RegistryPhase::Restarting;
        self.world.lock().serve(&self.task, None);
        let registry = self.clone();
        tokio::spawn(async move {
            sleep(RESTART).await;
            let mut inner = registry.lock();
            let Some(chain) = inner.chain.clone().filter(|_| inner.restarts == this && !inner.ended) else { return };
            let Ok(mut certificates) = Certificate::parse_bundle(&chain) else { return };
            let leaf = certificates.swap_remove(0);
            inner.status.leaf_fingerprint = Some(leaf.fingerprint());
            inner.status.leaf_not_after = Some(leaf.not_after());
            inner.status.leaf_names = leaf.san_names().to_vec();
            inner.status.starts += 1;
            inner.status.phase = RegistryPhase::Serving;
            then(&mut inner);
            registry.world.lock().serve(&registry.task, Some(chain));
        });
    }

    fn retire(&self, inner: &mut Inner) {
        inner.restarts += 1;
        (inner.key, inner.chain) = (None, None);
        let status = &mut inner.status;
        (status.request, status.leaf_fingerprint, status.leaf_not_after, status.collection) = (None, None, None, None);
        status.phase = RegistryPhase::Retired;
        let mut world = self.world.lock();
        world.serve(&self.task, None);
        world.disk(self.host).registry = RegistryFiles::default();
    }
}
