//! The order in force and the status, shared by the loop that works on the host and the servers that answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::config::NodeConfig;
use super::orders::{self, Accepted, Refusal, Task};
use super::pass::Report;
use crate::protocol::{NodePhase, NodeStatus, PreloadOrder, PreloadStatus, PreloadedImage, Proof, SignedOrder, SysctlState, SysctlStatus};

/// See the module.
#[derive(Debug)]
pub(crate) struct Board {
    config: NodeConfig,
    inner: Mutex<Inner>,
    /// A newer order is in force.
    pub(crate) order_changed: Notify,
    /// The order in force was given once more: the controller asks for a fresh proof.
    pub(crate) check_asked: Notify,
    /// Other images are to be copied into the registry, or none.
    pub(crate) preload_changed: Notify,
}

#[derive(Debug)]
struct Inner {
    order: Arc<Accepted>,
    status: NodeStatus,
    /// The images to be copied into the registry, and the version of the order that says so.
    preload: Option<(u64, Arc<PreloadOrder>)>,
    /// Addresses that cannot be listened on, with the reason.
    deaf: BTreeMap<String, String>,
}

impl Board {
    /// A board with the first order in force and nothing done yet.
    pub(crate) fn new(config: NodeConfig, order: Accepted) -> Self {
        let status = NodeStatus {
            service: config.service.clone(),
            executor: config.executor.clone(),
            host: config.host.to_string(),
            order_version: order.version,
            order_digest: order.digest.clone(),
            phase: NodePhase::Pending,
            files: Vec::new(),
            sysctl: SysctlStatus { state: SysctlState::Pending, value: None, found: None },
            proofs: Vec::new(),
            errors: Vec::new(),
            passes: 0,
            in_place: false,
            exposed_key: None,
            cleaned: Vec::new(),
            preload: None,
        };
        let inner = Mutex::new(Inner { order: Arc::new(order), status, preload: None, deaf: BTreeMap::new() });
        Self { config, inner, order_changed: Notify::new(), check_asked: Notify::new(), preload_changed: Notify::new() }
    }

    /// The order in force.
    pub(crate) fn order(&self) -> Arc<Accepted> {
        Arc::clone(&self.lock().order)
    }

    /// What the node answers.
    pub(crate) fn status(&self) -> NodeStatus {
        let inner = self.lock();
        let mut status = inner.status.clone();
        status.errors.extend(inner.deaf.values().cloned());
        status
    }

    /// Puts an order in force, if it verifies and nothing newer is.
    pub(crate) fn take(&self, signed: SignedOrder) -> Result<NodeStatus, Refusal> {
        if let Some((version, images)) = orders::preload(&self.config, &signed)? {
            return self.take_preload(version, images);
        }
        let order = orders::open(&self.config, signed)?;
        let mut inner = self.lock();
        order.may_follow(&inner.order)?;
        if order.digest == inner.order.digest {
            drop(inner);
            self.check_asked.notify_one();
            return Ok(self.status());
        }
        inner.status.order_version = order.version;
        inner.status.order_digest.clone_from(&order.digest);
        // Nothing of the new order is done yet.
        inner.status.phase = NodePhase::Pending;
        inner.status.in_place = false;
        inner.status.proofs.clear();
        inner.status.errors.clear();
        let ends = matches!(order.task, Task::Restore) && inner.preload.take().is_some();
        inner.order = Arc::new(order);
        drop(inner);
        if ends {
            self.preload_changed.notify_one();
        }
        self.order_changed.notify_one();
        Ok(self.status())
    }

    fn take_preload(&self, version: u64, images: PreloadOrder) -> Result<NodeStatus, Refusal> {
        let mut inner = self.lock();
        let known = inner.preload.as_ref().map(|(version, _)| *version);
        if known.is_some_and(|known| version < known) {
            return Err(Refusal::Conflict(format!("version {version} is older than the images that are copied now")));
        }
        if matches!(inner.order.task, Task::Restore) {
            return Err(Refusal::Conflict("this host is put back as it was".into()));
        }
        if known != Some(version) {
            inner.preload = Some((version, Arc::new(images)));
            inner.status.preload = Some(PreloadStatus { version, images: Vec::new() });
            self.preload_changed.notify_one();
        }
        drop(inner);
        Ok(self.status())
    }

    /// Shows how the host stands, unless another order has come into force meanwhile.
    pub(crate) fn show(&self, order: &Accepted, report: &Report, proofs: &[Proof], phase: NodePhase, errors: Vec<String>) {
        let mut inner = self.lock();
        if inner.order.digest != order.digest {
            return;
        }
        if (inner.status.phase, &inner.status.errors) != (phase, &errors) {
            tell(order, phase, &errors);
        }
        inner.status.files.clone_from(&report.files);
        inner.status.sysctl = report.sysctl.clone();
        inner.status.proofs = proofs.to_vec();
        inner.status.errors = errors;
        inner.status.phase = phase;
        inner.status.in_place = report.in_place;
        inner.status.exposed_key.clone_from(&report.exposed_key);
    }

    /// Notes what a pass has removed of a registry made by hand, for as long as this node runs.
    pub(crate) fn note_cleaned(&self, cleaned: &[String]) {
        self.lock().status.cleaned.extend_from_slice(cleaned);
    }

    /// The images to be copied into the registry.
    pub(crate) fn preload_order(&self) -> Option<(u64, Arc<PreloadOrder>)> {
        self.lock().preload.clone()
    }

    /// Shows how these images stand, unless others are to be copied meanwhile.
    pub(crate) fn show_preload(&self, version: u64, images: &[PreloadedImage]) {
        if let Some(shown) = self.lock().status.preload.as_mut().filter(|shown| shown.version == version) {
            shown.images = images.to_vec();
        }
    }

    /// Counts a finished pass that has proven anew.
    pub(crate) fn count_pass(&self) {
        self.lock().status.passes += 1;
    }

    /// Notes whether an address can be listened on.
    pub(crate) fn listening(&self, address: &str, outcome: Result<(), String>) {
        let mut inner = self.lock();
        match outcome {
            Ok(()) => drop(inner.deaf.remove(address)),
            Err(reason) => drop(inner.deaf.insert(address.to_string(), reason)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is a plain assignment, so a panic elsewhere leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line for how the host stands, and one for each thing that is wrong.
fn tell(order: &Accepted, phase: NodePhase, errors: &[String]) {
    let stands = match phase {
        NodePhase::Trusted => "the registry is trusted on this host: proven by its own clients",
        NodePhase::Pending => "not proven yet",
        NodePhase::Failed => "the registry is not trusted on this host",
        NodePhase::Restored => "this host is as it was",
    };
    tracing::info!(version = order.version, "{stands}");
    errors.iter().for_each(|error| tracing::warn!("{error}"));
}
