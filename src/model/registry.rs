//! A registry's task: what the role says and takes, without a process.

use serde_json::Value;

use super::World;
use super::trust::Chain;
use crate::certificates::{EnrolmentKey, OrderKey};
use crate::protocol::{
    AuthBy, CertificateRequest, CollectPhase, CollectStep, Collection, OrderKind, RegistryPhase, RegistrySettings, RegistryStatus,
    SignedOrder, env,
};
use crate::registry::role;
use crate::secret::Secret;

/// So long the controller may say nothing in a collection.
const PATIENCE: i64 = 60;
/// So long a restart waits for its turn.
const TURN: i64 = 600;
/// A stored certificate that was served within this time is served at once; any other after the second one.
const LATELY: i64 = role::LATELY.as_secs() as i64;
const STORED_AFTER: i64 = role::STORED_AFTER.as_secs() as i64;

/// What a registry leaves on its host.
#[derive(Debug, Clone, Default)]
pub(super) struct Left {
    pub(super) key: Option<usize>,
    chain: Option<Chain>,
    /// When the chain was stored, or last served.
    since: i64,
    last: Option<SignedOrder>,
    users: Option<Secret<String>>,
}

/// A running task.
pub(super) struct Registry {
    pub(super) id: String,
    pub(super) machine: usize,
    pub(super) port: u16,
    service: String,
    order_key: OrderKey,
    enrolment: EnrolmentKey,
    settings: RegistrySettings,
    /// Whether it keeps anything on its host.
    pinned: bool,
    key: Option<usize>,
    chain: Option<Chain>,
    /// A stored chain that is served from then on, if no other has come.
    stored: Option<(Chain, i64)>,
    /// It serves what it has stored, and no controller has said since that this is right.
    unasked: bool,
    served: Option<Chain>,
    answers: bool,
    /// Looks until it answers.
    starting: u8,
    pub(super) version: u64,
    digest: String,
    pub(super) retired: bool,
    collecting: Option<Collection>,
    heard: i64,
    due_until: Option<i64>,
    users: Option<Secret<String>>,
    operators: Option<usize>,
    starts: u64,
    pub(super) silent: bool,
}

impl Registry {
    /// Starts a task as its definition says. None: it would end at once.
    pub(super) fn start(world: &mut World, machine: usize, spec: &Value, id: String, port: u16) -> Option<Self> {
        let environment = &spec["env"];
        let order_key = OrderKey::from_base64(environment[env::ORDER_KEY].as_str()?).ok()?;
        let enrolment = EnrolmentKey::from_base64(&Secret::new(world.text_of(&environment[env::ENROLMENT_KEY])?)).ok()?;
        let settings: RegistrySettings = crate::json::of_text(environment[env::REGISTRY_SETTINGS].as_str()?).ok()?;
        let pinned = spec["constraints"][0][1] == "LIKE";
        let left = if pinned { world.machines[machine].registry.clone().unwrap_or_default() } else { Left::default() };
        let makes_key = !settings.insecure && settings.provided.is_none();
        let key = makes_key.then(|| left.key.unwrap_or_else(|| world.new_key()));
        let last = left.last.filter(|last| order_key.open(last).is_ok());
        let order = last.as_ref().and_then(|last| order_key.open(last).ok());
        let kept = matches!(&settings.auth, AuthBy::Htpasswd { file: None });
        let users = kept.then(|| left.users.unwrap_or_else(|| Secret::new(String::new())));
        let stored =
            left.chain.filter(|chain| makes_key && key.is_some_and(|key| world.spki(key) == chain.spki) && world.now < chain.not_after);
        let retired = order.as_ref().is_some_and(|order| matches!(order.kind, OrderKind::Retire { .. }));
        let mut registry = Self {
            id,
            machine,
            port,
            service: environment[env::SERVICE].as_str()?.into(),
            order_key,
            enrolment,
            pinned,
            key,
            chain: None,
            stored: stored.map(|chain| (chain, if world.now - left.since < LATELY { 0 } else { world.now + STORED_AFTER })),
            unasked: false,
            served: None,
            answers: false,
            starting: 2,
            version: order.as_ref().map_or(0, |order| order.version),
            digest: last.map(|last| last.payload).unwrap_or_default(),
            retired: false,
            collecting: None,
            heard: world.now,
            due_until: None,
            users,
            operators: None,
            starts: 0,
            silent: false,
            settings,
        };
        if retired {
            registry.retire(world);
        } else {
            registry.keep(world, |left| left.key = key);
        }
        Some(registry)
    }

    fn keep(&self, world: &mut World, change: impl FnOnce(&mut Left)) {
        if self.pinned {
            change(world.machines[self.machine].registry.get_or_insert_default());
        }
    }

    fn retire(&mut self, world: &mut World) {
        (self.key, self.chain, self.served, self.collecting, self.users) = (None, None, None, None, None);
        (self.answers, self.retired, self.due_until, self.stored) = (false, true, None, None);
        if self.pinned {
            world.machines[self.machine].registry = None;
        }
    }

    /// Whether it serves what no controller has looked at: it could not know of a rotation that it was not there for.
    pub(super) fn is_unasked(&self) -> bool {
        self.unasked
    }

    /// What clients are shown; none if nobody answers. Without TLS there is no chain.
    pub(super) fn served(&self) -> Option<Option<&Chain>> {
        self.answers.then_some(self.served.as_ref())
    }

    fn restart(&mut self) {
        (self.answers, self.due_until, self.starting) = (false, None, 2);
    }

    fn others_serve(&self) -> bool {
        self.settings.replicated && self.answers
    }

    /// Time passes.
    pub(super) fn work(&mut self, world: &mut World) {
        if self.retired {
            return;
        }
        if self.settings.provided.is_some() && self.operators != Some(world.operators) {
            self.operators = Some(world.operators);
            self.chain = Some(world.foreign().chains[world.operators].clone());
            if self.others_serve() {
                self.due_until = self.due_until.or(Some(world.now + TURN));
            } else {
                self.restart();
            }
        }
        if self.due_until.is_some_and(|until| world.now >= until) {
            self.restart();
        }
        if let Some((chain, at)) = self.stored.take_if(|(_, at)| world.now >= *at) {
            (self.chain, self.unasked) = (Some(chain), at > 0);
        }
        if !self.answers && (self.chain.is_some() || self.settings.insecure) {
            self.starting = self.starting.saturating_sub(1);
            if self.starting == 0 {
                (self.answers, self.starts) = (true, self.starts + 1);
                self.served = self.chain.clone();
                if let Some(collecting) = &mut self.collecting {
                    collecting.phase = match collecting.phase {
                        CollectPhase::Preparing => CollectPhase::ReadOnly,
                        CollectPhase::Reopening => CollectPhase::Done,
                        other => other,
                    };
                }
            }
        }
        if self.answers {
            let now = world.now;
            self.keep(world, |left| left.since = now);
        }
        self.collect(world.now);
    }

    fn collect(&mut self, now: i64) {
        let Some(collecting) = &mut self.collecting else { return };
        if collecting.phase == CollectPhase::Collecting {
            collecting.phase = if collecting.dry_run { CollectPhase::Done } else { CollectPhase::Collected };
        }
        if collecting.phase < CollectPhase::Reopening && now - self.heard > PATIENCE {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let Some(collecting) = &mut self.collecting else { return };
        if collecting.phase >= CollectPhase::Reopening {
            return;
        }
        if collecting.dry_run {
            collecting.phase = CollectPhase::Done;
        } else {
            collecting.phase = CollectPhase::Reopening;
            self.restart();
        }
    }

    pub(super) fn status(&self, world: &World) -> RegistryStatus {
        let request = self.key.map(|key| {
            let csr = world.csr(key).to_string();
            CertificateRequest { mac: self.enrolment.mac(&csr), csr }
        });
        let served = self.served.as_ref().filter(|_| self.answers);
        let phase = match () {
            () if self.retired => RegistryPhase::Retired,
            () if self.chain.is_none() && !self.settings.insecure => RegistryPhase::AwaitingCertificate,
            () if self.answers => RegistryPhase::Serving,
            () => RegistryPhase::Restarting,
        };
        RegistryStatus {
            phase,
            request,
            leaf_fingerprint: served.map(|chain| chain.fingerprint.clone()),
            leaf_not_after: served.map(|chain| chain.not_after),
            leaf_names: served.map(|chain| chain.names.clone()).unwrap_or_default(),
            order_version: self.version,
            starts: self.starts,
            version: Some("2.8.3".into()),
            collection: self.collecting.clone(),
            restart_due: self.due_until.is_some(),
            users: self.users.as_ref().map(|users| self.enrolment.digest(users)),
            ..RegistryStatus::first(&self.service, &self.id, &world.machines[self.machine].host.to_string())
        }
    }

    /// Takes an order, or not.
    pub(super) fn take(&mut self, world: &mut World, signed: &SignedOrder) {
        let Ok(order) = self.order_key.open(signed) else { return };
        let same = order.version == self.version && signed.payload == self.digest;
        if order.version < self.version || (order.version == self.version && !same) {
            return;
        }
        let taken = match order.kind {
            OrderKind::Retire { .. } => {
                (self.version, self.digest) = (order.version, signed.payload.clone());
                self.keep(world, |left| left.last = Some(signed.clone()));
                self.retire(world);
                return;
            }
            _ if self.retired => false,
            OrderKind::Certificate { chain } => self.take_certificate(world, &chain),
            OrderKind::Users { sealed } => {
                let text = self.enrolment.open(&sealed, &self.service, order.version).ok();
                let taken = self.users.is_some() && text.is_some();
                if let (true, Some(text)) = (taken, text) {
                    self.keep(world, |left| left.users = Some(text.clone()));
                    self.users = Some(text);
                }
                taken
            }
            OrderKind::Restart => {
                if self.due_until.is_some() {
                    self.restart();
                }
                true
            }
            OrderKind::Collect { run, step, dry_run, .. } => {
                self.take_step(&run, step, dry_run, world.now);
                true
            }
            _ => false,
        };
        if taken {
            (self.version, self.digest) = (order.version, signed.payload.clone());
            self.keep(world, |left| left.last = Some(signed.clone()));
        }
    }

    fn take_certificate(&mut self, world: &mut World, pem: &str) -> bool {
        let Some(chain) = Chain::parse(pem) else { return false };
        if self.key.is_none_or(|key| world.spki(key) != chain.spki) || world.now >= chain.not_after {
            return false;
        }
        let now = world.now;
        self.keep(world, |left| (left.chain, left.since) = (Some(chain.clone()), now));
        (self.stored, self.unasked) = (None, false);
        if self.chain.as_ref() != Some(&chain) {
            self.chain = Some(chain);
            self.restart();
        }
        true
    }

    fn take_step(&mut self, run: &str, step: CollectStep, dry_run: bool, now: i64) {
        if let Some(collecting) = self.collecting.as_mut().filter(|collecting| collecting.run == run) {
            self.heard = now;
            match (step, collecting.phase) {
                (CollectStep::Finish, _) => self.finish(),
                (CollectStep::Collect, CollectPhase::ReadOnly) => collecting.phase = CollectPhase::Collecting,
                _ => {}
            }
            return;
        }
        let other = self.collecting.as_ref().is_some_and(Collection::is_active);
        if other || !self.answers || step == CollectStep::Finish || (step == CollectStep::Collect) != dry_run {
            return;
        }
        self.heard = now;
        self.collecting = Some(Collection {
            run: run.into(),
            dry_run,
            phase: if dry_run { CollectPhase::Collecting } else { CollectPhase::Preparing },
            marked: 0,
            blobs: 0,
            manifests: 0,
            freed_bytes: None,
            seconds: 0,
            read_only_seconds: 0,
            error: None,
        });
        if !dry_run {
            self.restart();
        }
    }
}
