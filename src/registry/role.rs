//! The role itself: one task that owns the state on the host and the registry process.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::RegistryError;
use super::access::{Access, Account, Doorkeeper};
use super::collect::{self, Asked, Collecting, Next};
use super::config::RegistryConfig;
use super::copy::{Copier, Then};
use super::health;
use super::leave::Leaving;
use super::provided::{LOOK_EVERY, Watch};
use super::reaper::Reaper;
use super::server::{Delivery, Refusal};
use super::state::{Chain, LastOrder, State, StateError};
use super::supervisor::{Event, Launch, Supervisor};
use super::tool::{self, Said, Tool};
use crate::certificates::{OrderError, RegistryKey};
use crate::protocol::{CertificateRequest, CollectStep, CopyKind, Order, OrderKind, RegistryPhase, RegistryStatus, SignedOrder};

/// How often unusable state is looked at again: the remedy is often a command on the host.
const STATE_RETRY: Duration = Duration::from_secs(5);
/// So long a restart waits for its turn. Without a controller it takes place out of turn, and the others' may at the same moment.
const TURN: Duration = Duration::from_secs(600);
/// A stored certificate that no task has served in so long a time may be of a CA that was replaced meanwhile. A restart by Marathon takes
/// less where the image is at hand; and a rotation, which waits for a registry that is, would have to begin and end in it.
pub(crate) const LATELY: Duration = Duration::from_secs(10);
/// So long a task with such a certificate waits for a new one. The controller asks every task in each of its passes, which are seldom
/// further apart; and pulls are not to wait for a controller that is away.
pub(crate) const STORED_AFTER: Duration = Duration::from_secs(3);

/// SIGTERM and SIGINT. As process 1 of a container we get neither unless we ask for it.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, RegistryError> {
        let listen = |kind| signal(kind).map_err(RegistryError::Signals);
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn stop_asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
    }
}

/// The role's ends of the channels to its HTTP server.
pub(super) struct Outside {
    pub(super) status: watch::Sender<RegistryStatus>,
    pub(super) orders: mpsc::Receiver<Delivery>,
    /// How often the health check was answered with 503.
    pub(super) refusals: watch::Receiver<u64>,
    pub(super) signals: Signals,
}

/// The status of a task that knows nothing yet.
pub(super) fn first_status(config: &RegistryConfig) -> RegistryStatus {
    RegistryStatus::first(&config.service, &config.task, &config.host)
}

/// Runs until a signal asks to stop and the registry has been drained.
pub(super) async fn run(config: RegistryConfig, account: Account, mut outside: Outside) -> Result<(), RegistryError> {
    let Some(found) = wait_for_state(&config, &account, &mut outside).await else { return Ok(()) };
    let mut health = health::watch(&config);
    let mut role = Role::new(config, found, account.access(), outside.refusals.clone())?;
    role.resume().await;
    loop {
        role.publish(&outside.status);
        tokio::select! {
            () = outside.signals.stop_asked() => break,
            event = role.supervisor.next_event() => role.happened(event).await,
            Some((signed, reply)) = outside.orders.recv() => {
                let taken = role.take(&signed).await;
                if let Err(refusal) = &taken {
                    tracing::warn!(%refusal, "an order was refused");
                }
                // Before the answer, so that who has it sees the new state. Nobody may be waiting for it any more.
                role.publish(&outside.status);
                let _ = reply.send(taken);
            }
            () = sleep(LOOK_EVERY), if role.watch.is_some() || role.doorkeeper.is_some() => {
                role.look_at_provided();
                role.look_at_users();
            }
            () = Leaving::over(&mut role.leaving) => role.has_left(),
            () = wait_until(role.due_until) => {
                tracing::warn!("the controller has not called this registry to restart, so it does now");
                role.restart();
            }
            () = wait_until(role.stored.as_ref().map(|(_, at)| *at)) => {
                tracing::info!("no controller has sent a certificate; serving with the stored one");
                role.serve_stored();
            }
            () = Copier::event(&mut role.copier) => role.copy_goes_on(),
            event = Collecting::event(&mut role.collecting) => role.collection_goes_on(event).await,
            said = say(&mut role.asked_version) => role.read_version(said),
            Ok(()) = health.changed() => role.health = health.borrow_and_update().clone(),
            () = role.reaper.wait() => role.reaper.reap(&role.own_children()),
        }
    }
    role.note_service();
    // What it collects or copies it can do another time.
    (role.collecting, role.copier) = (None, None);
    role.supervisor.stop();
    while !role.supervisor.is_stopped() {
        role.publish(&outside.status);
        role.supervisor.next_event().await;
    }
    tracing::info!("stopped");
    Ok(())
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits for what a tool says, where there is one.
async fn say(tool: &mut Option<Tool>) -> Said {
    match tool {
        Some(tool) => tool.next().await,
        None => std::future::pending().await,
    }
}

/// What the host had.
struct Found {
    state: State,
    /// None over plain HTTP, and where the operator has one.
    key: Option<RegistryKey>,
    last: Option<(SignedOrder, Order)>,
    stored_chain: Option<String>,
    doorkeeper: Option<Doorkeeper>,
}

fn look_at_state(config: &RegistryConfig, account: &Account) -> Result<Found, StateError> {
    let state = State::open(config)?;
    state.recover_images()?;
    let key = if config.settings.insecure {
        state.remove_key()?;
        state.remove_provided()?;
        None
    } else if config.settings.provided.is_some() {
        None
    } else {
        state.remove_provided()?;
        Some(state.load_or_create_key()?)
    };
    let doorkeeper = Doorkeeper::open(config, &state, account)?;
    Ok(Found { key, doorkeeper, last: state.last_order()?, stored_chain: state.stored_chain()?, state })
}

/// Looks at the state until it can be used. `None` if the task is asked to stop meanwhile.
async fn wait_for_state(config: &RegistryConfig, account: &Account, outside: &mut Outside) -> Option<Found> {
    loop {
        let error = match look_at_state(config, account) {
            Ok(found) => return Some(found),
            Err(error) => error.to_string(),
        };
        tracing::error!("{error}");
        let failed = RegistryStatus { phase: RegistryPhase::Failed, errors: vec![error.clone()], ..first_status(config) };
        outside.status.send_replace(failed);
        tokio::select! {
            () = outside.signals.stop_asked() => return None,
            Some((_, reply)) = outside.orders.recv() => { let _ = reply.send(Err(Refusal::Failed(error))); }
            () = sleep(STATE_RETRY) => {}
        }
    }
}

struct Role {
    config: RegistryConfig,
    state: State,
    supervisor: Supervisor,
    reaper: Reaper,
    /// `None` over plain HTTP, where the operator has one, and once retired.
    key: Option<RegistryKey>,
    /// The operator's certificate and key, if that is what is served with.
    watch: Option<Watch>,
    /// Who is let in, if that is decided here.
    doorkeeper: Option<Doorkeeper>,
    /// How this role itself uses the registry.
    access: Access,
    request: Option<CertificateRequest>,
    /// What the next start will serve, and what the running registry serves.
    chain: Option<Chain>,
    served: Option<Chain>,
    last: LastOrder,
    /// A retirement under way; the images go as well if it says true.
    retiring: Option<bool>,
    retired: bool,
    answers: bool,
    /// A restart for which this task leaves the VIP first.
    leaving: Option<Leaving>,
    refusals: watch::Receiver<u64>,
    /// A restart that waits for its turn does so until then.
    due_until: Option<Instant>,
    stored_chain: Option<String>,
    /// A stored certificate that is served from then on, if no other has come.
    stored: Option<(Chain, Instant)>,
    last_kind: Option<OrderKind>,
    /// The last garbage collection.
    collecting: Option<Collecting>,
    /// The last backup or restore.
    copier: Option<Copier>,
    /// Asks the program for its version.
    asked_version: Option<Tool>,
    version: Option<String>,
    /// How the store is.
    health: health::Found,
    state_error: Option<String>,
    process_error: Option<String>,
}

impl Role {
    fn new(config: RegistryConfig, found: Found, access: Access, refusals: watch::Receiver<u64>) -> Result<Self, RegistryError> {
        let csr = found.key.as_ref().map(|key| key.csr(&config.service)).transpose().map_err(RegistryError::Request)?;
        let request = csr.map(|csr| CertificateRequest { mac: config.enrolment_key.mac(&csr), csr });
        let launch = Launch {
            program: config.program.clone(),
            config_file: config.config_file(),
            listen: config.listen,
            further_cas: config.further_cas(),
            drain: Duration::from_secs(config.settings.drain_seconds),
        };
        // Another service's order in this directory is refused as it would be by HTTP.
        let last = found.last.filter(|(_, order)| order.service == config.service);
        Ok(Self {
            state: found.state,
            supervisor: Supervisor::new(launch),
            reaper: Reaper::new().map_err(RegistryError::Signals)?,
            key: found.key,
            request,
            watch: config.settings.provided.clone().map(Watch::new),
            doorkeeper: found.doorkeeper,
            access,
            chain: None,
            served: None,
            last: last.as_ref().map(|(signed, order)| LastOrder::of(signed, order)).unwrap_or_default(),
            retiring: None,
            retired: false,
            answers: false,
            leaving: None,
            refusals,
            due_until: None,
            stored_chain: found.stored_chain,
            stored: None,
            last_kind: last.map(|(_, order)| order.kind),
            collecting: None,
            copier: None,
            // Whether it can be started at all shows when it is to serve.
            asked_version: Tool::start(&config.program, ["--version"]).ok(),
            version: None,
            health: health::Found::default(),
            state_error: None,
            process_error: None,
            config,
        })
    }

    /// Goes on where an earlier task on this host ended, without asking anybody.
    async fn resume(&mut self) {
        if let Some(OrderKind::Retire { delete_data }) = self.last_kind.take() {
            return self.retire(delete_data).await;
        }
        if self.config.settings.insecure {
            tracing::warn!("INSECURE: this registry speaks plain HTTP; images and passwords travel unencrypted");
            return self.restart();
        }
        self.look_at_provided();
        let (Some(text), Some(key)) = (self.stored_chain.take(), &self.key) else { return };
        match Chain::parse(&text, key, now()) {
            Ok(chain) => {
                self.stored = Some((chain, Instant::now() + STORED_AFTER));
                if self.state.served_within(LATELY) {
                    self.serve_stored();
                }
            }
            Err(error) => {
                let path = self.config.chain_file();
                self.state_error = Some(format!("{} is not used: {error}; waiting for a certificate", path.display()));
            }
        }
    }

    fn serve_stored(&mut self) {
        if let Some((chain, _)) = self.stored.take() {
            self.chain = Some(chain);
            self.restart();
        }
    }

    /// The next task on this host is to see that the certificate was in use until now.
    fn note_service(&self) {
        if self.key.is_some()
            && self.served.is_some()
            && let Err(error) = self.state.note_service()
        {
            tracing::warn!(%error, "the next task here will wait for a certificate");
        }
    }

    /// Serves with what the operator has stored, when that has changed.
    fn look_at_provided(&mut self) {
        let Some(watch) = self.watch.as_mut().filter(|_| self.retiring.is_none()) else { return };
        let Some(pair) = watch.look(now()) else { return };
        if let Err(error) = self.state.store_provided(&pair.chain, &pair.key) {
            watch.forget();
            self.state_error = Some(error.to_string());
            return;
        }
        tracing::info!(fingerprint = pair.chain.leaf_fingerprint, "serving with the certificate that was provided");
        self.chain = Some(pair.chain);
        if self.others_serve() {
            // They have all got the same files, at the same time perhaps.
            self.due_until = self.due_until.or_else(|| Some(Instant::now() + TURN));
            return;
        }
        self.restart();
        if let (Some(_), Some(watch)) = (&self.state_error, &mut self.watch) {
            watch.forget();
        }
    }

    fn look_at_users(&mut self) {
        if let Some(doorkeeper) = self.doorkeeper.as_mut().filter(|_| self.retiring.is_none()) {
            doorkeeper.look(&self.state);
        }
    }

    async fn take(&mut self, signed: &SignedOrder) -> Result<(), Refusal> {
        let order = self.config.order_key.open(signed).map_err(|error| match error {
            OrderError::BadSignature => Refusal::Forbidden(error.to_string()),
            _ => Refusal::Bad(error.to_string()),
        })?;
        if order.service != self.config.service {
            return Err(Refusal::Forbidden(format!("this is a task of {}, not of {}", self.config.service, order.service)));
        }
        let this = LastOrder::of(signed, &order);
        if this.version < self.last.version || (this.version == self.last.version && this != self.last) {
            return Err(Refusal::Conflict(format!("version {} is not newer than {}, the last one taken", this.version, self.last.version)));
        }
        match order.kind {
            OrderKind::Certificate { chain } => self.take_certificate(signed, this, &chain),
            OrderKind::Users { sealed } => self.take_users(signed, this, &sealed),
            OrderKind::Retire { delete_data } => self.take_retirement(signed, this, delete_data).await,
            OrderKind::Collect { run, step, dry_run, delete_untagged } => {
                self.take_collection(signed, this, &Asked { run: &run, step, dry_run, delete_untagged }).await
            }
            OrderKind::Copy { run, kind, stop } => self.take_copy(signed, this, &run, kind, stop),
            OrderKind::Restart => self.take_turn(signed, this),
            OrderKind::Trust(_) | OrderKind::Restore | OrderKind::Preload(_) => {
                Err(Refusal::Bad("this order is for nodes; I am a registry".into()))
            }
        }
    }

    fn take_certificate(&mut self, signed: &SignedOrder, this: LastOrder, pem: &str) -> Result<(), Refusal> {
        if self.config.settings.insecure {
            return Err(Refusal::Conflict("this registry speaks plain HTTP and has no key".into()));
        }
        if self.retiring.is_some() {
            return Err(Refusal::Conflict("this registry is retired; its key is gone".into()));
        }
        let Some(key) = &self.key else {
            return Err(Refusal::Bad("this registry serves with the certificate that was provided".into()));
        };
        let chain = Chain::parse(pem, key, now()).map_err(|error| Refusal::Bad(error.to_string()))?;
        // The chain first: it is usable without the order, and a repeated order is harmless.
        self.state.store_chain(&chain).and_then(|()| self.state.store_order(signed)).map_err(|error| Refusal::Failed(error.to_string()))?;
        self.last = this;
        let changed = self.chain.as_ref().is_none_or(|old| old.pem != chain.pem);
        self.stored = None;
        if changed || self.supervisor.is_stopped() {
            tracing::info!(fingerprint = chain.leaf_fingerprint, "serving with a new certificate");
            self.chain = Some(chain);
            self.restart_in_turn();
        }
        Ok(())
    }

    fn take_turn(&mut self, signed: &SignedOrder, this: LastOrder) -> Result<(), Refusal> {
        if self.retiring.is_some() {
            return Err(Refusal::Conflict("this registry is retired".into()));
        }
        self.state.store_order(signed).map_err(|error| Refusal::Failed(error.to_string()))?;
        self.last = this;
        if self.due_until.is_some() {
            self.restart_in_turn();
        }
        Ok(())
    }

    /// The registry reads the file again by itself.
    fn take_users(&mut self, signed: &SignedOrder, this: LastOrder, sealed: &str) -> Result<(), Refusal> {
        if self.retiring.is_some() {
            return Err(Refusal::Conflict("this registry is retired and lets nobody in".into()));
        }
        let Some(doorkeeper) = self.doorkeeper.as_mut().filter(|keeper| keeper.are_services()) else {
            return Err(Refusal::Bad("this registry has no users of the service's".into()));
        };
        let text = self.config.enrolment_key.open(sealed, &self.config.service, this.version);
        let text = text.map_err(|error| Refusal::Bad(format!("the users: {error}")))?;
        doorkeeper
            .take(&text, &self.state)
            .and_then(|()| self.state.store_order(signed))
            .map_err(|error| Refusal::Failed(error.to_string()))?;
        tracing::info!("the users have changed");
        self.last = this;
        Ok(())
    }

    /// Whether clients have somebody else to go to while this one restarts.
    fn others_serve(&self) -> bool {
        self.config.settings.replicated && self.answers
    }

    /// Restarts as the controller says, which lets one do it at a time.
    fn restart_in_turn(&mut self) {
        if !self.others_serve() {
            return self.restart();
        }
        self.due_until = None;
        if self.leaving.is_none() {
            tracing::info!("leaving the VIP before a restart");
            self.leaving = Some(Leaving::new(self.refusals.clone()));
        }
    }

    fn has_left(&mut self) {
        if !self.leaving.as_ref().is_some_and(Leaving::was_seen) {
            tracing::warn!("nobody has asked for this task's health, so the VIP may still lead here; restarting all the same");
        }
        self.restart();
    }

    fn restart(&mut self) {
        (self.answers, self.leaving, self.due_until) = (false, None, None);
        let read_only =
            self.collecting.as_ref().is_some_and(Collecting::is_read_only) || self.copier.as_ref().is_some_and(Copier::is_read_only);
        let rendered = self.config.render(read_only).map_err(|error| error.to_string());
        let stored = rendered.and_then(|rendered| self.state.store_config(&rendered).map_err(|error| error.to_string()));
        match stored {
            Ok(()) => {
                self.state_error = None;
                self.supervisor.restart();
            }
            Err(error) => self.state_error = Some(error),
        }
    }

    async fn take_collection(&mut self, signed: &SignedOrder, this: LastOrder, asked: &Asked<'_>) -> Result<(), Refusal> {
        if self.retiring.is_some() {
            return Err(Refusal::Conflict("this registry is retired".into()));
        }
        if this != self.last {
            self.state.store_order(signed).map_err(|error| Refusal::Failed(error.to_string()))?;
            self.last = this;
        }
        if self.copier.as_ref().is_some_and(Copier::is_active) && asked.step != CollectStep::Finish {
            return Err(Refusal::Conflict("a backup or restore is under way here; garbage is collected afterwards".into()));
        }
        let next = Collecting::step(&mut self.collecting, asked, &self.config, self.version.as_deref(), self.answers).await;
        if next.map_err(Refusal::Conflict)? == Next::Restart {
            self.restart_in_turn();
        }
        Ok(())
    }

    fn take_copy(&mut self, signed: &SignedOrder, this: LastOrder, run: &str, kind: CopyKind, stop: bool) -> Result<(), Refusal> {
        if self.retiring.is_some() {
            return Err(Refusal::Conflict("this registry is retired".into()));
        }
        if self.collecting.as_ref().is_some_and(|collecting| collecting.status.is_active()) {
            return Err(Refusal::Conflict("garbage is collected here; its images are copied afterwards".into()));
        }
        if this != self.last {
            self.state.store_order(signed).map_err(|error| Refusal::Failed(error.to_string()))?;
            self.last = this;
        }
        let then = Copier::order(&mut self.copier, run, kind, stop, &self.config, &self.access, self.answers).map_err(Refusal::Conflict)?;
        self.follow_copy(then);
        Ok(())
    }

    fn copy_goes_on(&mut self) {
        if let Some(copier) = &mut self.copier {
            let then = copier.goes_on();
            self.follow_copy(then);
        }
    }

    fn follow_copy(&mut self, then: Then) {
        match then {
            Then::Nothing => {}
            Then::Restart => self.restart(),
            Then::Stop => {
                self.answers = false;
                self.supervisor.stop();
                self.switch_images();
            }
        }
    }

    /// Changes to the restored images, once the registry has ended.
    fn switch_images(&mut self) {
        if let Some(copier) = self.copier.as_mut().filter(|copier| self.supervisor.is_stopped_now() && copier.is_switching()) {
            copier.switch();
            self.restart();
        }
    }

    async fn collection_goes_on(&mut self, event: collect::Event) {
        let Some(collecting) = &mut self.collecting else { return };
        // Without a controller there are no turns.
        if collecting.happened(event).await == Next::Restart {
            self.restart();
        }
        self.reaper.look_again();
    }

    fn read_version(&mut self, said: Said) {
        match said {
            Said::Out(line) => self.version = tool::version(&line),
            Said::Err(_) => {}
            Said::Ended(_) => {
                self.asked_version = None;
                self.reaper.look_again();
            }
        }
    }

    /// Children whose end is waited for elsewhere.
    fn own_children(&self) -> Vec<u32> {
        let collector = self.collecting.as_ref().and_then(Collecting::child_id);
        let asked = self.asked_version.as_ref().and_then(Tool::id);
        [self.supervisor.child_id(), collector, asked].into_iter().flatten().collect()
    }

    async fn take_retirement(&mut self, signed: &SignedOrder, this: LastOrder, delete_data: bool) -> Result<(), Refusal> {
        // Stored first: a task that is killed now goes on with it when it is started again.
        if !self.retired {
            self.state.store_order(signed).map_err(|error| Refusal::Failed(error.to_string()))?;
        }
        self.last = this;
        self.retire(delete_data).await;
        Ok(())
    }

    async fn retire(&mut self, delete_data: bool) {
        (self.answers, self.leaving, self.due_until) = (false, None, None);
        self.retiring = Some(delete_data);
        self.stored = None;
        (self.collecting, self.copier) = (None, None);
        self.supervisor.stop();
        self.finish_retirement();
    }

    /// Removes everything, once the registry has ended.
    fn finish_retirement(&mut self) {
        let Some(delete_data) = self.retiring.filter(|_| self.supervisor.is_stopped()) else { return };
        match self.state.remove_all(delete_data) {
            Ok(()) => {
                tracing::info!(delete_data, "retired");
                self.retired = true;
                (self.key, self.request, self.chain, self.served, self.watch) = (None, None, None, None, None);
                self.doorkeeper = None;
                (self.state_error, self.process_error) = (None, None);
            }
            Err(error) => self.state_error = Some(format!("{error}; the order can be given again")),
        }
    }

    async fn happened(&mut self, event: Event) {
        match event {
            Event::Started => (self.served, self.due_until) = (self.chain.clone(), None),
            Event::Answers => {
                self.answers = true;
                self.process_error = None;
                if let Some(collecting) = &mut self.collecting {
                    collecting.answers();
                }
                if let Some(copier) = &mut self.copier {
                    copier.answers();
                }
            }
            Event::Failed(mut reason) => {
                if let Some(proxy) = &self.config.settings.proxy {
                    // The program asks it at its start, whatever lies in the cache.
                    reason += &format!("; a cache starts only while {} answers", proxy.url);
                }
                tracing::error!("{reason}");
                self.answers = false;
                self.process_error = Some(reason);
                // Nobody is sent here any more now; and what the restart was for counts at once.
                if self.leaving.is_some() {
                    self.restart();
                }
            }
            Event::Stopped => {
                self.answers = false;
                self.switch_images();
                self.finish_retirement();
            }
        }
        // The registry's end may have hidden others that wait to be reaped.
        self.reaper.look_again();
    }

    fn publish(&self, status: &watch::Sender<RegistryStatus>) {
        let served = self.served.as_ref().filter(|_| self.supervisor.child_id().is_some());
        let now = RegistryStatus {
            phase: self.phase(),
            request: self.request.clone(),
            leaf_fingerprint: served.map(|chain| chain.leaf_fingerprint.clone()),
            leaf_not_after: served.map(|chain| chain.leaf_not_after),
            leaf_names: served.map(|chain| chain.leaf_names.clone()).unwrap_or_default(),
            order_version: self.last.version,
            starts: self.supervisor.starts(),
            version: self.version.clone(),
            collection: self.collecting.as_ref().map(|collecting| collecting.status.clone()),
            copying: self.copier.as_ref().map(|copier| copier.status.clone()),
            errors: self.errors().cloned().collect(),
            room: self.health.room,
            restart_due: self.due_until.is_some(),
            users: self.doorkeeper.as_ref().and_then(Doorkeeper::services).map(|users| self.config.enrolment_key.digest(&users)),
            ..first_status(&self.config)
        };
        status.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
    }

    fn errors(&self) -> impl Iterator<Item = &String> {
        let provided = self.watch.as_ref().and_then(|watch| watch.error.as_ref());
        let users = self.doorkeeper.iter().flat_map(|keeper| &keeper.problems);
        provided.into_iter().chain(&self.state_error).chain(&self.process_error).chain(&self.health.problems).chain(users)
    }

    fn phase(&self) -> RegistryPhase {
        match () {
            () if self.retired => RegistryPhase::Retired,
            () if self.chain.is_none() && self.watch.as_ref().is_some_and(|watch| watch.error.is_some()) => RegistryPhase::Failed,
            () if self.chain.is_none() && self.retiring.is_none() && !self.config.settings.insecure => RegistryPhase::AwaitingCertificate,
            () if self.answers && self.leaving.is_none() => RegistryPhase::Serving,
            () if self.state_error.is_some() => RegistryPhase::Failed,
            () => RegistryPhase::Restarting,
        }
    }
}

pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
