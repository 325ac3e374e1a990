//! A controller: the steps of the product's pass, in the same order, on a simulated cluster.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use serde_json::json;

use super::cluster::{OWN, REGISTRY, Refusal, SERVICE, Truth, World, Write, pod_id};
use super::mutation::Mutation;
use super::options::{self, Given, Variant};
use crate::controller::anchor::Anchor;
use crate::controller::collect::Collections;
use crate::controller::state::{OwnCa, Stage, State, StateError};
use crate::controller::steps::{self, Home, Intent, Memory, version_of};
use crate::controller::store::Store;
use crate::controller::uninstall::{self, Orders, Step};
use crate::controller::users::Kept;
use crate::controller::{RotationOrder, Setting};
use crate::digest::order_digest;
use crate::distribution::Published;
use crate::documents;
use crate::names::{Host, HostPort};
use crate::plan::{self, Action, Observed, Plan, Wanted};
use crate::protocol::{OrderKind, RegistryPhase, SignedOrder};
use crate::shards::{Layout, Shard};
use crate::turns;

/// Nothing in the model waits.
pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nothing in the model waits"),
    }
}

/// What it does.
enum Mode {
    Converge,
    Remove(Removal),
    Removed,
}

struct Removal {
    orders: Option<Orders>,
    /// Cosmos deletes the app; without it the run of the job does the rest.
    by_cosmos: bool,
}

/// How a pass has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// Nothing was to be done.
    Idle,
    /// Something was done, or could not be.
    Busy,
    /// It is not the current one, and has done nothing.
    NotCurrent,
    /// The options cannot be used.
    Refused,
}

/// A running controller.
pub(super) struct Controller {
    pub(super) task: String,
    machine: usize,
    number: usize,
    variant: Rc<Variant>,
    setting: Setting,
    pub(super) state: Option<State>,
    memory: Memory,
    users: Kept,
    retirement: Option<(SignedOrder, u64)>,
    collections: Collections,
    mode: Mode,
    mutation: Mutation,
    /// Seconds by which its clock is ahead.
    pub(super) skew: i64,
    /// Actions of the next pass after which it is killed.
    pub(super) dies_after: Option<usize>,
}

/// Why a pass ends early.
enum End {
    /// Something did not answer; the next pass tries again.
    Failed,
    /// The state could not be kept.
    NotKept,
    /// Killed by the model.
    Killed,
}

impl From<StateError> for End {
    fn from(_: StateError) -> Self {
        Self::NotKept
    }
}

/// A look, and what the model knows beside it.
struct Look {
    observed: Observed,
    truth: Truth,
    /// Whether things are so now.
    fresh: bool,
}

impl Controller {
    pub(super) fn start(world: &World, task: String, machine: usize, number: usize, mutation: Mutation) -> Self {
        let setting = Setting {
            host: world.machines[machine].host.clone(),
            port: 1,
            app_id: OWN.into(),
            task_id: task.clone(),
            registry_images: ["registry:2.8.3".into(), "registry:3.0.0".into()],
            uninstall: false,
            credential: None,
            vars: Default::default(),
        };
        let mut controller = Self {
            task,
            machine,
            number,
            variant: options::variant(world.base, number, world.foreign()),
            setting,
            state: None,
            memory: Memory::default(),
            users: Kept::default(),
            retirement: None,
            collections: Collections::default(),
            mode: Mode::Converge,
            mutation,
            skew: world.machines[machine].skew,
            dies_after: None,
        };
        if world.marathon.own.as_ref().is_some_and(|own| own.uninstall) {
            controller.remove(true);
        }
        controller
    }

    /// The run of the uninstall job where no controller is left.
    pub(super) fn of_job(world: &World, machine: usize, number: usize, mutation: Mutation) -> Self {
        let mut controller = Self::start(world, "job".into(), machine, number, mutation);
        controller.remove(false);
        controller
    }

    fn remove(&mut self, by_cosmos: bool) {
        self.state = None;
        self.mode = Mode::Remove(Removal { orders: None, by_cosmos });
    }

    fn now(&self, world: &World) -> i64 {
        world.now + self.skew
    }

    pub(super) fn is_removed(&self) -> bool {
        matches!(self.mode, Mode::Removed)
    }

    pub(super) fn is_removing(&self) -> bool {
        matches!(self.mode, Mode::Remove(_))
    }

    /// Whether another CA is on its way.
    pub(super) fn is_rotating(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.rotation().is_some())
    }

    /// One pass; true: it was killed in it.
    pub(super) fn pass(&mut self, world: &mut World, tally: &mut super::Tally) -> (Passed, bool) {
        let passed = if self.is_removing() { self.step_of_removal(world) } else { self.converge(world, tally) };
        let killed = matches!(passed, Err(End::Killed));
        if matches!(passed, Err(End::NotKept)) {
            // Only what is kept counts.
            (self.state, self.retirement, self.users) = (None, None, Kept::default());
        }
        (passed.unwrap_or(Passed::Busy), killed)
    }

    fn look(&mut self, world: &mut World) -> Result<Look, End> {
        let (observed, truth, fresh) = world.look().ok_or(End::Failed)?;
        Ok(Look { observed, truth, fresh })
    }

    fn is_current(&self, observed: &Observed) -> bool {
        self.mutation == Mutation::SkipCurrentCheck || steps::is_current(observed, &self.task)
    }

    fn open(&mut self, world: &World, own: Option<OwnCa<'_>>) -> Result<(), End> {
        if self.state.is_none() {
            let store = Store::on_shelf(&world.shelf, SERVICE);
            self.state = Some(now(State::open(store, own, self.now(world)))?);
        }
        Ok(())
    }

    fn converge(&mut self, world: &mut World, tally: &mut super::Tally) -> Result<Passed, End> {
        let mut look = self.look(world)?;
        steps::count_self(&mut look.observed, &self.task, &self.setting.host);
        let variant = Rc::clone(&self.variant);
        let options = &variant.options;
        if plan::is_removal_ordered(options, &look.observed) && self.is_current(&look.observed) {
            self.remove(false);
            return Ok(Passed::Busy);
        }
        if plan::refuse(options, &look.observed).is_err() {
            return Ok(Passed::Refused);
        }
        let runs_registry = options.registry.enabled;
        if !runs_registry {
            look.observed.registry.take_if(|app| !documents::is_made_by(&app.spec, options));
        }
        if look.observed.own_app.is_none() || !self.is_current(&look.observed) {
            return Ok(Passed::NotCurrent);
        }
        if !world.base.secrets {
            match steps::home(&look.observed, OWN, &self.setting.host, None) {
                Home::Here => {}
                Home::Locked => return Ok(Passed::Busy),
                Home::Pin(host) => {
                    self.write(world, &look, Write::Pin(host))?;
                    return Ok(Passed::Busy);
                }
            }
        }
        let now_unix = self.now(world);
        let registry_host = plan::registry_host(&look.observed, options);
        let names = options.trusted_names(&registry_host);
        let anchor = Anchor::of(&self.setting, options).map_err(|_| End::Failed)?;
        let bare = steps::bare(&names);
        let own = OwnCa { organization: "", names: &bare, days: options.trust.ca_days };
        let is_new = self.state.is_none();
        self.open(world, anchor.is_own().then_some(own))?;
        let Some(state) = &mut self.state else { return Err(End::Failed) };
        if is_new {
            now(state.inherit(steps::trusted_before(&look.observed), now_unix))?;
        }
        let order_key = state.order_key();
        let Intent { asked, names, mut ca, rotate_run } = Intent::of(options, &anchor, state, &look.observed, names, now_unix)?;
        let in_force: Vec<HostPort> = steps::bare(&names);
        let bundle = steps::bundle(options, &anchor, state, self.memory.settled, names, Vec::new());
        world.ask(&mut look.observed);
        state.note_taken(steps::newest_taken(look.observed.nodes.values(), &look.observed.registries));
        if !runs_registry && look.observed.registry.is_some() && self.retirement.is_none() {
            self.retirement = Some((now(state.order(OrderKind::Retire { delete_data: false }))?, state.version()));
        }
        let trust = now(state.trust_order(bundle))?;
        if self.memory.surpasses(look.observed.nodes.values(), &trust, world.instant()) {
            state.surpass_trust();
        }
        world.newest = order_digest(&trust);
        now(state.note_covered(super::cluster::covered(&look.observed)))?;
        world.note_seen(&look.observed);
        self.memory.see_registry(options, &anchor, state, &look.observed, &in_force);
        if self.memory.settled && !anchor.is_own() && state.ca().is_some() {
            now(state.drop_ca())?;
        }
        let asks = self.memory.proves_after_takeover(&mut look.observed);
        let layout = now(steps::layout(options, &look.observed, state))?;
        self.memory.see_surplus(&mut look.observed, layout, world.instant());
        self.memory.see_locks(&mut look.observed, world.instant());
        let first = steps::first_order(&look.observed, &order_key).unwrap_or_else(|| trust.clone());
        let enrolment_key = state.enrolment_key().to_base64();
        let first_order = publish(world, documents::FIRST_ORDER, json!(first).to_string())?;
        let enrolment_key = match runs_registry {
            true => publish(world, documents::ENROLMENT_KEY, enrolment_key.expose().clone())?,
            false => Published { variable: json!(""), secret: None },
        };
        let given = Given {
            registry_host: &registry_host,
            home: &self.setting.host,
            order_key,
            first_order,
            enrolment_key,
            enrolment_id: steps::enrolment_id(state),
            layout,
        };
        let documents = options::documents(world.base, self.number, options, &given);
        let mut leaves = anchor.leaves(state, &look.observed.registries, &in_force);
        let retirement = if runs_registry { state.retirement() } else { self.retirement.as_ref().map_or(0, |(_, version)| *version) };
        let retirement_is_late = self.memory.see_retirement(options, &look.observed, world.instant());
        let users = now(self.users.look(options, state))?;
        let takeover = self.memory.see_takeover(options, &look.observed, world.instant());
        self.mutation.spoil_inputs(&mut look.observed, &mut ca, &mut leaves);
        let wanted = Wanted {
            documents,
            trust,
            now: now_unix,
            leaves,
            ca,
            registry: runs_registry,
            retirement,
            retirement_is_late,
            takeover,
            users,
        };
        let asks = self.memory.proves_after_switch(&wanted, &mut look.observed) || asks;
        self.mutation.spoil_memory(&mut look.observed);
        if asks {
            self.ask_for_proof(world, &look, &wanted.trust);
        }
        let mut plan = plan::converge(&wanted, &look.observed);
        self.mutation.spoil_plan(&mut plan, &wanted, &look.observed);
        if tally.shown {
            println!("  {}: {:?}", self.task, plan.actions.iter().map(ToString::to_string).chain(plan.waiting.clone()).collect::<Vec<_>>());
        }
        let order = RotationOrder { names: asked, run: rotate_run };
        self.apply(world, &plan, &wanted, &look, &in_force, &order, tally)?;
        let begun = !self.memory.see_runs(options, &look.observed).is_empty();
        if self.memory.asks_again(&look.observed, world.instant()) || begun {
            self.ask_for_proof(world, &look, &wanted.trust);
        }
        self.collect(world, &look, &plan)?;
        self.end_runs(world, &look, &anchor);
        let idle = plan.actions.is_empty();
        Ok(if idle { Passed::Idle } else { Passed::Busy })
    }

    fn collect(&mut self, world: &mut World, look: &Look, plan: &Plan) -> Result<(), End> {
        let variant = Rc::clone(&self.variant);
        let (options, now_unix) = (&variant.options, self.now(world));
        let mut turn = turns::one_may_restart(&look.observed) && !plan.actions.iter().any(turns::is_restart);
        let (told, _) = self.collections.steps(options, &look.observed, now_unix, &mut turn);
        for told in told {
            let Some(state) = &mut self.state else { break };
            let order = now(self.collections.order(&told, options, &look.observed, state))?;
            self.send_to_registry(world, look, &told.address, &order);
        }
        Ok(())
    }

    /// A run of a job ends when it hears that what it asks for is done.
    fn end_runs(&mut self, world: &mut World, look: &Look, anchor: &Anchor) {
        let options = &self.variant.options;
        let fresh: BTreeSet<String> =
            self.memory.runs(&look.observed).into_iter().filter(|(_, fresh)| *fresh).map(|(run, _)| run).collect();
        world.end_runs(&documents::init_job_id(options), |run| fresh.contains(run));
        let state = self.state.as_ref();
        world.end_runs(&documents::rotate_job_id(options), |run| steps::is_rotated(anchor, state, run));
        let reports = self.collections.reports();
        for id in documents::collect_job_ids(options) {
            world.end_runs(&id, |run| reports.iter().any(|report| report.run == run && report.ended));
        }
    }

    /// Every write passes here.
    fn write(&self, world: &mut World, look: &Look, write: Write) -> Result<(), End> {
        self.check_currency(world, &look.truth);
        let locked = match &write {
            Write::Pod(shard, _, false) => Some(pod_id(*shard)),
            Write::App(_, false) => Some(REGISTRY.into()),
            _ => None,
        };
        if locked.is_some_and(|id| look.truth.locked.contains(&id)) {
            world.break_("what a deployment locks is waited for", format!("{write:?}"));
        }
        if look.fresh {
            check_change(world, &write);
        }
        match world.write(write) {
            Ok(()) | Err(Refusal::Conflict | Refusal::Refused) => Ok(()),
            Err(Refusal::Failing) => Err(End::Failed),
        }
    }

    fn check_currency(&self, world: &mut World, truth: &Truth) {
        let other = truth.own_task.as_ref().is_some_and(|current| *current != self.task);
        if other && self.task != "job" {
            world.break_("who is not current does nothing", format!("{} acts, and {:?} is current", self.task, truth.own_task));
        }
    }

    fn note(&self, world: &mut World, order: &SignedOrder) {
        let Some((key, version)) = self.state.as_ref().map(|state| (state.order_key(), version_of(order))) else { return };
        world.note_order(&key, version, order);
    }

    fn send_to_node(&self, world: &mut World, look: &Look, host: &Host, order: &SignedOrder) {
        self.check_currency(world, &look.truth);
        self.note(world, order);
        world.send_to_node(&look.observed, host, order);
    }

    fn send_to_registry(&self, world: &mut World, look: &Look, address: &str, order: &SignedOrder) {
        self.check_currency(world, &look.truth);
        self.note(world, order);
        world.send_to_registry(&look.observed, address, order);
    }

    fn ask_for_proof(&self, world: &mut World, look: &Look, order: &SignedOrder) {
        for host in look.observed.nodes.keys() {
            self.send_to_node(world, look, host, order);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "as in the product")]
    fn apply(
        &mut self,
        world: &mut World,
        plan: &Plan,
        wanted: &Wanted,
        look: &Look,
        names: &[HostPort],
        order: &RotationOrder,
        tally: &mut super::Tally,
    ) -> Result<(), End> {
        let variant = Rc::clone(&self.variant);
        let options = &variant.options;
        for (index, action) in plan.actions.iter().enumerate() {
            if self.dies_after.is_some_and(|after| index >= after) {
                return Err(End::Killed);
            }
            tally.action(action);
            let find =
                |address: &str| look.observed.registries.iter().find(|task| task.address == *address).map(|task| task.status.clone());
            match action {
                Action::PutPod { shard, pod, instances, force, .. } => {
                    check_scale(world, look, wanted.documents.layout, *shard, *instances);
                    check_class(world, *shard, pod);
                    self.write(world, look, Write::Pod(*shard, pod.clone(), *force))?;
                }
                Action::PutRegistry { app, force, .. } => self.write(world, look, Write::App(app.clone(), *force))?,
                Action::TakeOver { app, left_behind, .. } => {
                    check_takeover(world, look, wanted, left_behind);
                    self.memory.taken_over(&look.observed);
                    self.write(world, look, Write::App(app.clone(), false))?;
                }
                Action::RetireRegistry => {
                    if let Some((order, _)) = self.retirement.clone() {
                        for task in look.observed.registries.iter().filter(|task| task.status.phase != RegistryPhase::Retired) {
                            self.send_to_registry(world, look, &task.address, &order);
                        }
                    }
                }
                Action::DeleteRegistry { .. } => self.write(world, look, Write::DeleteApp)?,
                Action::PutJob { id, job, .. } => self.write(world, look, Write::Job(id.clone(), job.clone()))?,
                Action::PutSchedule { job, schedule, .. } => self.write(world, look, Write::Schedule(job.clone(), schedule.clone()))?,
                Action::DropSchedule { job } => self.write(world, look, Write::DropSchedule(job.clone()))?,
                Action::StartRun { id } => self.write(world, look, Write::Run(id.clone()))?,
                Action::SendTrust { host } => {
                    let digest = order_digest(&wanted.trust);
                    if look.fresh && look.observed.nodes.get(host).is_some_and(|status| status.order_digest == digest) {
                        world.break_("nothing is sent that changes nothing", format!("the order to {host} which has it"));
                    }
                    self.send_to_node(world, look, host, &wanted.trust);
                }
                Action::BeginRotation { .. } | Action::DropRotation | Action::SwitchCa { .. } | Action::RetireCa { .. } => {
                    self.check_currency(world, &look.truth);
                    check_step_of_ca(world, look, wanted, action);
                    if let Some(state) = &mut self.state {
                        now(steps::step_of_ca(state, action, order, options.trust.ca_days, wanted.now))?;
                    }
                }
                Action::SendUsers { address } => {
                    if let (Some(status), Some(state)) = (find(address), &mut self.state) {
                        let order = now(self.users.order_for(&status, state))?;
                        self.send_to_registry(world, look, address, &order);
                    }
                }
                Action::Restart { address } => {
                    check_turn(world, look, address);
                    if let Some(state) = &mut self.state {
                        let order = now(state.order(OrderKind::Restart))?;
                        self.send_to_registry(world, look, address, &order);
                    }
                }
                Action::Certify { address, .. } => {
                    check_turn(world, look, address);
                    if let (Some(status), Some(state)) = (find(address), &mut self.state) {
                        let order = now(state.certify(&status, names, wanted.now, options.trust.leaf_days));
                        if tally.shown {
                            println!("    {:?} of order {}: {:?}", status.phase, status.order_version, order.as_ref().map(version_of));
                        }
                        let order = match order {
                            Err(error) if !error.is_of_store() => continue,
                            order => order?,
                        };
                        self.send_to_registry(world, look, address, &order);
                    }
                }
            }
        }
        if self.dies_after.take().is_some() { Err(End::Killed) } else { Ok(()) }
    }

    fn step_of_removal(&mut self, world: &mut World) -> Result<Passed, End> {
        let mut look = self.look(world)?;
        let variant = Rc::clone(&self.variant);
        let options = &variant.options;
        uninstall::leave_alone_what_is_not_ours(options, &mut look.observed);
        world.ask(&mut look.observed);
        if !self.is_current(&look.observed) {
            return Ok(Passed::NotCurrent);
        }
        match uninstall::is_gone(options, &look.observed) {
            Some(true) => {
                let Mode::Remove(Removal { orders, .. }) = &self.mode else { return Ok(Passed::Busy) };
                let left_behind = now(uninstall::left_behind(&Store::on_shelf(&world.shelf, SERVICE), orders.as_ref()));
                if self.mutation != Mutation::NameNobody {
                    world.named.extend(left_behind.unwrap_or_default());
                }
                return self.end_removal(world, &look);
            }
            Some(false) => return Ok(Passed::Busy),
            None => {}
        }
        let Mode::Remove(Removal { orders, .. }) = &mut self.mode else { return Ok(Passed::Busy) };
        let patience = match self.mutation {
            Mutation::RemoveWithoutWaiting => std::time::Duration::ZERO,
            _ => std::time::Duration::from_secs(options.uninstall.deadline_seconds),
        };
        let mut orders = match orders.take() {
            Some(orders) => orders,
            None => {
                self.open(world, None)?;
                let Some(state) = &mut self.state else { return Err(End::Failed) };
                state.note_taken(steps::newest_taken(look.observed.nodes.values(), &look.observed.registries));
                now(Orders::sign(state, options.uninstall.delete_data))?
            }
        };
        let step = orders.next(&look.observed, world.instant(), patience);
        let (retire, restore) = (orders.retire.clone(), orders.restore.clone());
        if let Step::DeletePods { absent } = &step {
            let state = now(State::open(Store::on_shelf(&world.shelf, SERVICE), None, self.now(world)));
            let _ = now(uninstall::note_left_behind(state, &orders, absent));
        }
        if let Mode::Remove(removal) = &mut self.mode {
            removal.orders = Some(orders);
        }
        match step {
            Step::Retire => {
                for task in look.observed.registries.iter().filter(|task| task.status.phase != RegistryPhase::Retired) {
                    self.send_to_registry(world, &look, &task.address, &retire);
                }
            }
            Step::DeleteRegistry { .. } => self.write(world, &look, Write::DeleteApp)?,
            Step::Restore { hosts, .. } => hosts.iter().for_each(|host| self.send_to_node(world, &look, host, &restore)),
            Step::DeletePods { .. } => {
                for shard in look.observed.pods.keys() {
                    self.write(world, &look, Write::DeletePod(*shard))?;
                }
            }
        }
        Ok(Passed::Busy)
    }

    fn end_removal(&mut self, world: &mut World, look: &Look) -> Result<Passed, End> {
        let Mode::Remove(Removal { by_cosmos, .. }) = &self.mode else { return Ok(Passed::Busy) };
        let by_cosmos = *by_cosmos;
        let job = self.task == "job";
        if by_cosmos {
            self.delete_jobs(world, look)?;
        }
        self.state = None;
        now(Store::on_shelf(&world.shelf, SERVICE).forget())?;
        if job {
            self.delete_jobs(world, look)?;
        } else {
            self.write(world, look, Write::DeleteOwn)?;
        }
        self.mode = Mode::Removed;
        Ok(Passed::Busy)
    }

    fn delete_jobs(&self, world: &mut World, look: &Look) -> Result<(), End> {
        for id in documents::job_ids(&self.variant.options) {
            if look.observed.jobs.contains_key(&id) {
                self.write(world, look, Write::DeleteJob(id))?;
            }
        }
        Ok(())
    }

    /// The agent that it runs on.
    pub(super) fn machine(&self) -> usize {
        self.machine
    }
}

/// As the product's two ways to hand texts to tasks.
fn publish(world: &mut World, name: &str, text: String) -> Result<Published, End> {
    if !world.base.secrets {
        return Ok(Published { variable: json!(text), secret: None });
    }
    if world.published.get(name) != Some(&text) {
        if world.shelf.look().denied {
            return Err(End::Failed);
        }
        world.published.insert(name.into(), text);
    }
    Ok(Published { variable: json!({ "secret": name }), secret: Some((name.into(), format!("path/{name}"))) })
}

// Properties that show in what a controller does.

fn check_change(world: &mut World, write: &Write) {
    let same = match write {
        Write::Pod(shard, spec, _) => world.marathon.pods.get(shard).is_some_and(|pod| pod.spec == *spec),
        Write::App(spec, _) => world.marathon.registry.as_ref().is_some_and(|app| app.spec == *spec),
        Write::Job(id, spec) => world.metronome.jobs.get(id).is_some_and(|job| job.spec == *spec),
        Write::Schedule(id, schedule) => world.metronome.jobs.get(id).is_some_and(|job| job.schedules.contains(schedule)),
        _ => false,
    };
    if same {
        world.break_("nothing is written that changes nothing", format!("{write:?}"));
    }
}

/// No constraint of a pod ever changes, and there is never a pod beside it for the same agents.
fn check_class(world: &mut World, shard: Shard, pod: &serde_json::Value) {
    let class = documents::class_of(pod);
    let before = world.marathon.pods.get(&shard).map(|pod| documents::class_of(&pod.spec));
    if before.is_some_and(|before| before != class) {
        world.break_("no class of a pod ever changes", format!("{shard:?}: {before:?} and then {class:?}"));
    }
    let others = |of: &Shard| (*of == Shard::All) != (shard == Shard::All);
    if world.marathon.pods.keys().any(others) {
        world.break_("agents are divided in one way only", format!("{shard:?} beside {:?}", world.marathon.pods.keys()));
    }
}

fn check_scale(world: &mut World, look: &Look, layout: Layout, shard: Shard, instances: u64) {
    let of_shard = |hosts: &BTreeSet<Host>| hosts.iter().filter(|host| layout.shard(host) == shard).count();
    let (can_take, running) = (of_shard(&look.truth.can_take), of_shard(&look.truth.running));
    if instances > can_take as u64 {
        let what = format!("{instances} instances, and {can_take} agents can take one");
        world.break_("the pod is never scaled above the agents that can take a node", what);
    } else if instances < running as u64 {
        let what = format!("{instances} instances, and {running} nodes run on live agents");
        world.break_("the pod is never scaled below the nodes that run", what);
    }
}

/// While another registry restarts, nobody else is told to; unless he serves nobody anyway.
fn check_turn(world: &mut World, look: &Look, address: &str) {
    let Some(app) = world.marathon.registry.as_ref().filter(|_| look.fresh) else { return };
    let serves = app.tasks.iter().filter(|task| task.served().is_some()).count();
    let this =
        app.tasks.iter().find(|task| look.observed.registries.iter().any(|seen| seen.address == address && seen.status.task == task.id));
    if app.tasks.len() > 1 && serves == 1 && this.is_some_and(|task| task.served().is_some()) {
        world.break_("one registry serves while another restarts", format!("{address} is the last one that serves"));
    }
}

fn check_takeover(world: &mut World, look: &Look, wanted: &Wanted, left_behind: &[Host]) {
    let digest = order_digest(&wanted.trust);
    let waited = wanted.takeover.as_ref().is_some_and(|takeover| takeover.waited >= wanted.ca.deadline);
    for host in &look.truth.can_take {
        let knows =
            world.machine_of(host).is_some_and(|m| world.machines[m].trusted.as_ref().is_some_and(|trusted| trusted.order == digest));
        let was_waited_for = waited && left_behind.contains(host);
        if look.fresh && !knows && !was_waited_for {
            world.break_("nobody is taken over before agents know the new CA", host.to_string());
        }
    }
}

/// Before a step of the CA: everybody who can have it has what it needs, or has been waited for. Afterwards: who has not is excused.
fn check_step_of_ca(world: &mut World, look: &Look, wanted: &Wanted, action: &Action) {
    let Some(rotation) = &wanted.ca.rotation else { return };
    let (stage, left_behind) = match action {
        Action::SwitchCa { left_behind } => (Stage::Published, left_behind),
        Action::RetireCa { left_behind } => (Stage::Switched, left_behind),
        _ => return,
    };
    let deadline = 900;
    let late = wanted.now - rotation.since >= deadline;
    let digest = order_digest(&wanted.trust);
    let issuers: Vec<Vec<u8>> = world.served().into_iter().flatten().map(|chain| chain.issuer).collect();
    for machine in 0..world.machines.len() {
        let host = &world.machines[machine];
        let knows = host.trusted.as_ref().is_some_and(|trusted| trusted.order == digest);
        let has_proven = stage == Stage::Published || issuers.iter().all(|issuer| host.proofs.contains(issuer));
        if knows && has_proven {
            continue;
        }
        let name = host.host.clone();
        let counts = look.truth.can_take.contains(&name) && host.trusted.is_some();
        if counts && look.fresh && !(late && left_behind.contains(&name)) {
            let what = format!("{action}: {name} {}", if knows { "has not proven what is served" } else { "does not know it" });
            return world.break_("no CA comes or goes before every node is ready", what);
        }
        world.machines[machine].excused = true;
    }
}
