//! A story: a cluster, and what happens in it. It ends well, or says what is broken.

use std::collections::BTreeMap;

use super::Tally;
use super::cluster::{Broken, Kind, Machine, OWN, POD, PodState, REGISTRY, World, Write, pod_id};
use super::controller::{Controller, Passed};
use super::event::Event;
use super::mutation::Mutation;
use super::options::{self, Base, Registries, USABLE, VARIANTS};
use super::random::Random;
use crate::dcos::versions;
use crate::documents;
use crate::options::Options;
use crate::protocol::NodePhase;
use crate::shards::Shard;

/// Passes within which all is well when faults have ended: the pod is shrunk after an hour, and two rotations may each wait twice
/// for their deadline.
const PASSES: usize = 240;
/// Seconds between two of them: at first, and later on.
const PAUSES: [(usize, i64); 2] = [(60, 15), (PASSES, 60)];
/// Passes in which nothing may happen afterwards.
const QUIET: usize = 15;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Story {
    pub(super) seed: u64,
    pub(super) events: Vec<Event>,
}

impl Story {
    pub(super) fn of(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut events = Vec::new();
        for _ in 0..1 + random.below(4) {
            let length = 20 + random.below(60);
            events.extend((0..length).map(|_| Event::any(&mut random)));
            events.push(Event::Heal(random.percent(25)));
        }
        if random.percent(40) {
            events.push(Event::Uninstall(random.percent(50)));
            if random.percent(70) {
                let length = random.below(40);
                events.extend((0..length).map(|_| Event::any(&mut random)));
            }
            events.push(Event::Heal(random.percent(25)));
        }
        Self { seed, events }
    }

    /// Plays it to its end.
    pub(super) fn play(&self, mutation: Mutation, tally: &mut Tally) -> Result<(), Broken> {
        // What was counted in another story is none of this one's.
        tally.counts_anew(0);
        let mut run = Run::new(self.seed, mutation);
        for (index, event) in self.events.iter().enumerate() {
            tally.event(event);
            tally.broke_at = index;
            run.happen(event, tally)?;
        }
        Ok(())
    }

    /// The same story with as few events as still break the same property.
    pub(super) fn shrunk(&self, broken: &Broken, mutation: Mutation) -> Self {
        let breaks = |events: &[Event]| {
            let story = Self { seed: self.seed, events: events.to_vec() };
            story.play(mutation, &mut Tally::default()).is_err_and(|found| found.property == broken.property)
        };
        let until = std::time::Instant::now() + std::time::Duration::from_secs(40);
        let mut tally = Tally::default();
        let _ = self.play(mutation, &mut tally);
        let mut events = self.events[..=tally.broke_at].to_vec();
        let mut size = events.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at < events.len() && std::time::Instant::now() < until {
                let mut fewer = events.clone();
                fewer.drain(at..(at + size).min(fewer.len()));
                if breaks(&fewer) {
                    events = fewer;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        Self { seed: self.seed, events }
    }
}

/// A story that is being played.
struct Run {
    seed: u64,
    world: World,
    controller: Option<Controller>,
    old: Vec<Controller>,
    /// The options in force.
    number: usize,
    mutation: Mutation,
    tasks: u64,
    /// Days that have passed since all was well.
    aged: u8,
    removing: bool,
    /// Nothing has gone wrong since the removal was ordered.
    undisturbed: bool,
    /// Seconds that have passed since in which nobody moved.
    waited: i64,
    /// Machines on which a node ran by then.
    with_nodes: Vec<bool>,
    removed: bool,
    random: Random,
    /// Changes from outside since all was well, and writes and orders by then.
    changes: u64,
    before: (u64, u64),
    gone: Vec<bool>,
}

impl Run {
    fn new(seed: u64, mutation: Mutation) -> Self {
        let mut random = Random(seed ^ 0x5eed);
        let registries = match random.below(5) {
            0 => Registries::Adopting,
            1 => Registries::Two,
            _ => Registries::One,
        };
        let base = Base { registries, secrets: random.percent(40), divided: seed % 4 == 3 };
        let count = 2 + random.below(5);
        let machine = |number: usize, random: &mut Random| {
            let kind = match random.below(8) {
                0 if number > 1 => Kind::Public,
                1 if number > 1 => Kind::Gpu,
                2 if number > 1 => Kind::Remote,
                _ => Kind::Private,
            };
            Machine::new(number, kind, random.below(3000) as i64 - 1500, base.divided)
        };
        let machines: Vec<Machine> = (0..count).map(|number| machine(number, &mut random)).collect();
        let old = random.percent(25) && !base.secrets;
        let version = if old { versions::Marathon { version: versions::Version(1, 4, 2) } } else { versions::Marathon::default() };
        let gone = vec![false; machines.len()];
        let mut world = World::new(base, machines, version, random.clone());
        if registries == Registries::Adopting {
            world.make_by_hand(random.below(2));
        }
        Self {
            seed,
            world,
            controller: None,
            old: Vec::new(),
            number: USABLE,
            mutation,
            tasks: 0,
            aged: 0,
            removing: false,
            undisturbed: false,
            waited: 0,
            with_nodes: Vec::new(),
            removed: false,
            random,
            changes: 0,
            before: (0, 0),
            gone,
        }
    }

    /// The first of the node pods, as far as one is named in what happens.
    fn pod(&self) -> Option<Shard> {
        self.world.marathon.pods.keys().next().copied()
    }

    fn options(&self) -> std::rc::Rc<options::Variant> {
        options::variant(self.world.base, self.number, self.world.foreign())
    }

    fn happen(&mut self, event: &Event, tally: &mut Tally) -> Result<(), Broken> {
        let disturbed = is_change(event) || self.is_disturbed();
        self.change(event, tally)?;
        self.bound_writes(disturbed, tally)?;
        self.world.check_trust();
        match self.world.broken.take() {
            Some(broken) => Err(broken),
            None => Ok(()),
        }
    }

    /// Whether what a controller writes may have to be written again, by it or by another one.
    fn is_disturbed(&self) -> bool {
        self.world.is_faulty() || !self.old.is_empty()
    }

    /// See [`super::bound`]; `disturbed`: something from outside has happened meanwhile, after which the count begins anew.
    fn bound_writes(&self, disturbed: bool, tally: &mut Tally) -> Result<(), Broken> {
        if disturbed || self.is_disturbed() {
            tally.counts_anew(self.world.active_runs());
        }
        tally.thrashes(self.seed).map_or(Ok(()), Err)
    }

    fn change(&mut self, event: &Event, tally: &mut Tally) -> Result<(), Broken> {
        if is_change(event) {
            self.changes += 1;
            self.undisturbed &= matches!(event, Event::Uninstall(_));
        }
        let count = self.world.machines.len();
        let at = |n: u8| usize::from(n) % count;
        // What is gone for good does not come back.
        let here = |n: u8, run: &Self| Some(at(n)).filter(|machine| !run.gone[*machine]);
        match event {
            Event::Pass => {
                self.pass(tally);
            }
            Event::OldPass => self.old_pass(tally),
            Event::Work(moves) => self.world.work(*moves),
            Event::Wait(seconds) => {
                self.world.now += i64::from(*seconds);
                // A removal waits only so long for those who do not move.
                self.waited += i64::from(*seconds);
                self.undisturbed &= self.waited < 120;
            }
            Event::Join(kind) if count < 8 => {
                let skew = self.random.below(3000) as i64 - 1500;
                self.world.machines.push(Machine::new(count, *kind, skew, self.world.base.divided));
                self.gone.push(false);
            }
            Event::Join(_) => {}
            Event::Leave(n) => {
                if let Some(machine) = here(*n, self).filter(|machine| !self.is_needed(*machine)) {
                    self.die(machine);
                    self.world.give_up(machine);
                    self.gone[machine] = true;
                }
            }
            Event::Die(n) => {
                if let Some(machine) = here(*n, self) {
                    self.die(machine);
                }
            }
            Event::GiveUp(n) => {
                if let Some(machine) = here(*n, self).filter(|machine| self.world.machines[*machine].registered) {
                    self.give_up(machine);
                }
            }
            Event::Return(n) => {
                if let Some(machine) = here(*n, self).filter(|machine| !self.world.machines[*machine].registered) {
                    self.world.register(machine);
                } else if let Some(machine) = here(*n, self) {
                    self.world.machines[machine].up = true;
                }
            }
            Event::Rebuild(n) => {
                if let Some(machine) = here(*n, self) {
                    self.die(machine);
                    self.world.rebuild(machine);
                }
            }
            Event::Fill(n) => self.world.machines[at(*n)].room = false,
            Event::Empty(n) => self.world.machines[at(*n)].room = true,
            Event::Drain(n) => self.world.machines[at(*n)].draining = true,
            Event::Undrain(n) => self.world.machines[at(*n)].draining = false,
            Event::CutOff(n) => self.world.machines[at(*n)].cut_off = true,
            Event::Reconnect(n) => self.world.machines[at(*n)].cut_off = false,
            Event::MakeUnwritable(n) => self.world.machines[at(*n)].unwritable = true,
            Event::MakeWritable(n) => self.world.machines[at(*n)].unwritable = false,
            Event::Skew(n, skew) => {
                self.world.machines[at(*n)].skew = i64::from(*skew);
                if let Some(controller) = self.controller.as_mut().filter(|controller| controller.machine() == at(*n)) {
                    controller.skew = i64::from(*skew);
                }
            }
            Event::KillNode(n) => self.world.kill_node(at(*n)),
            Event::KillRegistry(n) => self.world.kill_registry(usize::from(*n)),
            Event::SilenceRegistry(n) => {
                if let Some(app) = self.world.marathon.registry.as_mut().filter(|app| !app.tasks.is_empty()) {
                    let index = usize::from(*n) % app.tasks.len();
                    app.tasks[index].silent = !app.tasks[index].silent;
                }
            }
            Event::Lock(n, works) => {
                let pod = self.pod().map_or(POD.into(), pod_id);
                let id = [pod.as_str(), REGISTRY, OWN][usize::from(*n) % 3];
                self.world.marathon.foreign_locks.insert(id.into(), works + 1);
            }
            Event::MarathonFails(calls) => self.world.marathon.failing = *calls,
            Event::MetronomeFails(calls) => self.world.metronome.failing = *calls,
            Event::LateLooks(works) => self.world.faults.late_looks = usize::from(*works),
            // What is done when an order to delete arrives late is nobody's to foresee.
            Event::LateWrites(on) => self.world.faults.late_writes = *on && !self.removing,
            Event::DoubleWrites(on) => self.world.faults.double_writes = *on && !self.removing,
            Event::LateLetters(on) => self.world.faults.late_letters = *on,
            Event::DoubleLetters(on) => self.world.faults.double_letters = *on,
            Event::LoseLetters(on) => self.world.faults.lost_letters = *on,
            Event::DenySecrets(on) => self.world.shelf.look().denied = *on && self.world.base.secrets,
            Event::Refuse(kind) => self.world.faults.refused = Some(*kind).filter(|kind| *kind < Write::NUMBERS),
            Event::KillController => self.kill_controller(),
            Event::KillInPass(after) => {
                if let Some(controller) = &mut self.controller {
                    controller.dies_after = Some(usize::from(*after));
                }
                self.pass(tally);
                self.kill_controller();
            }
            Event::KillInStore(after) => {
                self.world.shelf.look().writes_left = Some(usize::from(*after));
                self.pass(tally);
                self.kill_controller();
                self.world.shelf.look().writes_left = None;
            }
            Event::SecondController(_) if self.controller.is_some() && self.old.len() < 2 && self.world.marathon.own.is_some() => {
                self.old.extend(self.controller.take());
                if let Some(own) = &mut self.world.marathon.own {
                    own.task = None;
                }
                self.start_controller();
            }
            Event::SecondController(_) => {}
            Event::RunJob(n) => {
                // The removal is an event of its own.
                let jobs: Vec<String> = self.jobs();
                self.world.start_run(&jobs[usize::from(*n) % jobs.len()]);
            }
            Event::CancelRuns(n) => {
                let jobs: Vec<String> = self.jobs();
                self.world.end_runs(&jobs[usize::from(*n) % jobs.len()], |_| true);
            }
            Event::ChangeOptions(n) if !self.removing => self.change_options(usize::from(*n) % VARIANTS),
            Event::ChangeOptions(_) => {}
            Event::LoseCa => self.lose("ca.pem"),
            Event::LoseOrderKey => self.lose("order.key"),
            Event::LoseEnrolmentKey => self.lose("enrolment.key"),
            Event::Age(days) => {
                let days = (*days).min(25 - self.aged);
                self.aged += days;
                self.world.now += i64::from(days) * 86_400;
            }
            Event::RenewOperatorsCertificate => self.world.operators = 1 - self.world.operators,
            // The job that changes users is gone with the others.
            Event::ChangeUsers(_) if self.removing => {}
            Event::ChangeUsers(n) => {
                let hash = "$2b$05$abcdefghijklmnopqrstuuXyzABCDEFGHIJKLMNOPQRSTUVWXYZ01";
                self.world.shelf.look().entries.insert("users".into(), format!("user{}:{hash}\n", n % 4));
            }
            Event::DeletePod => {
                if let Some(shard) = self.pod() {
                    self.world.marathon.pods.remove(&shard);
                }
            }
            Event::ScalePod(instances) => {
                let shard = self.pod();
                if let Some(PodState { spec, .. }) = shard.and_then(|shard| self.world.marathon.pods.get_mut(&shard)) {
                    spec["scaling"]["instances"] = u64::from(*instances).into();
                }
            }
            Event::DeleteRegistry => {
                if self.world.marathon.registry.as_ref().is_some_and(|app| app.hand_made.is_none()) {
                    self.world.marathon.registry = None;
                }
            }
            Event::DeleteJob(n) => {
                let jobs: Vec<String> = self.jobs();
                self.world.metronome.jobs.remove(&jobs[usize::from(*n) % jobs.len()]);
            }
            Event::Uninstall(by_cosmos) => self.uninstall(*by_cosmos),
            Event::Heal(keeps_one_away) => self.heal(*keeps_one_away, tally)?,
        }
        Ok(())
    }

    /// Whether the service cannot do without this machine: what it keeps lies there.
    fn is_needed(&self, machine: usize) -> bool {
        let own = self.world.marathon.own.as_ref().is_some_and(|own| own.machine == machine);
        let host = &self.world.machines[machine].host;
        let pin = |spec: &serde_json::Value| spec["constraints"][0][2].as_str().and_then(crate::plan::matched_host);
        let registry = self.world.marathon.registry.as_ref().and_then(|app| pin(&app.spec));
        let runs_registry = self.world.marathon.registry.as_ref().is_some_and(|app| app.tasks.iter().any(|task| task.machine == machine));
        machine < 2 || own || runs_registry || registry.as_ref() == Some(host)
    }

    fn jobs(&self) -> Vec<String> {
        let variant = self.options();
        let options: &Options = &variant.options;
        documents::job_ids(options).into_iter().filter(|id| *id != documents::uninstall_job_id(options)).collect()
    }

    fn die(&mut self, machine: usize) {
        self.controller.take_if(|controller| controller.machine() == machine);
        self.old.retain(|controller| controller.machine() != machine);
        self.world.die(machine);
    }

    fn give_up(&mut self, machine: usize) {
        let up = self.world.machines[machine].up;
        // What runs there goes on, and does not know it.
        let cut_off = self.controller.take_if(|controller| controller.machine() == machine && up);
        self.old.extend(cut_off);
        self.world.give_up(machine);
    }

    fn kill_controller(&mut self) {
        self.controller = None;
        if let Some(own) = &mut self.world.marathon.own {
            own.task = None;
        }
    }

    fn lose(&mut self, entry: &str) {
        self.kill_controller();
        self.old.clear();
        self.world.shelf.look().entries.remove(entry);
    }

    fn change_options(&mut self, number: usize) {
        let was_own = self.options().own_ca;
        let before = std::mem::replace(&mut self.number, number);
        self.kill_controller();
        // Cosmos replaces the app: an earlier one with other options is not left.
        self.old.clear();
        if before != number && !(was_own && self.options().own_ca) {
            self.world.unsettled = true;
        }
    }

    fn uninstall(&mut self, by_cosmos: bool) {
        if self.removing {
            return;
        }
        let job = documents::uninstall_job_id(&self.options().options);
        let by_cosmos = by_cosmos || !self.world.metronome.jobs.contains_key(&job);
        self.removing = true;
        self.waited = 0;
        self.undisturbed = true;
        self.with_nodes = (0..self.world.machines.len()).map(|machine| self.world.node_on(machine).is_some()).collect();
        self.world.unsettled = true;
        (self.world.faults.late_writes, self.world.faults.double_writes) = (false, false);
        if by_cosmos {
            if let Some(own) = &mut self.world.marathon.own {
                own.uninstall = true;
            }
            self.kill_controller();
            self.old.clear();
        } else {
            self.world.start_run(&job);
        }
    }

    fn start_controller(&mut self) {
        let Some(own) = &self.world.marathon.own else { return };
        let pinned =
            own.spec["constraints"][0][2].as_str().and_then(crate::plan::matched_host).and_then(|host| self.world.machine_of(&host));
        let stays = pinned.or(self.world.base.keeps_state_on_host().then_some(own.machine));
        let fits = |machine: usize| {
            let host = &self.world.machines[machine];
            host.up && host.offered() && host.kind == Kind::Private && !self.gone[machine]
        };
        let place = match stays {
            Some(machine) => Some(machine).filter(|machine| fits(*machine)),
            None => {
                let fitting: Vec<usize> = (0..self.world.machines.len()).filter(|machine| fits(*machine)).collect();
                (!fitting.is_empty()).then(|| fitting[self.random.below(fitting.len())])
            }
        };
        let Some(place) = place else { return };
        self.tasks += 1;
        let task = format!("controller.{}", self.tasks);
        if let Some(own) = &mut self.world.marathon.own {
            (own.task, own.machine) = (Some(task.clone()), place);
        }
        self.mutation.spoil_start(&self.world.shelf);
        self.controller = Some(Controller::start(&self.world, task, place, self.number, self.mutation));
    }

    fn pass(&mut self, tally: &mut Tally) -> Passed {
        tally.passes += 1;
        if self.removed {
            return Passed::Idle;
        }
        if self.controller.is_none() {
            if self.world.marathon.own.is_some() {
                self.start_controller();
            } else if self.removing {
                // The run of the job does what is left; where it runs, the keys are.
                let machine = 0;
                self.controller = Some(Controller::of_job(&self.world, machine, self.number, self.mutation));
            }
        }
        let Some(mut controller) = self.controller.take() else { return Passed::Busy };
        let (passed, killed) = controller.pass(&mut self.world, tally);
        let gone = self.world.marathon.own.as_ref().is_none_or(|own| own.task.as_ref() != Some(&controller.task));
        if controller.is_removed() {
            let by_job = self.world.metronome.jobs.contains_key(&documents::uninstall_job_id(&self.options().options));
            self.removed = self.world.marathon.own.is_none() && !by_job;
        } else if !killed && (!gone || controller.task == "job") {
            self.controller = Some(controller);
        } else if let Some(own) = self.world.marathon.own.as_mut().filter(|_| killed) {
            own.task = None;
        }
        passed
    }

    fn old_pass(&mut self, tally: &mut Tally) {
        if !self.old.is_empty() {
            let index = self.random.below(self.old.len());
            let mut old = self.old.swap_remove(index);
            tally.passes += 1;
            old.pass(&mut self.world, tally);
            self.old.push(old);
        }
    }

    /// Faults end, and all must be well within bounds, and stay so without anything being written.
    fn heal(&mut self, keeps_one_away: bool, tally: &mut Tally) -> Result<(), Broken> {
        tally.counts_anew(self.world.active_runs());
        let world = &mut self.world;
        world.faults = Default::default();
        world.marathon.foreign_locks.clear();
        (world.marathon.failing, world.metronome.failing) = (0, 0);
        world.shelf.look().denied = false;
        self.old.clear();
        for machine in 0..world.machines.len() {
            if self.gone[machine] {
                continue;
            }
            if !world.machines[machine].registered {
                world.register(machine);
            }
            let host = &mut world.machines[machine];
            (host.up, host.cut_off, host.unwritable) = (true, false, false);
            if machine < 2 {
                (host.draining, host.room) = (false, true);
            }
        }
        for task in world.marathon.registry.iter_mut().flat_map(|app| &mut app.tasks) {
            task.silent = false;
        }
        let away = keeps_one_away.then(|| (2..self.world.machines.len()).find(|machine| !self.is_needed(*machine))).flatten();
        if let Some(away) = away {
            self.world.machines[away].cut_off = true;
        }
        let needed: Vec<usize> = (0..self.world.machines.len()).filter(|machine| self.is_needed(*machine)).collect();
        for machine in needed {
            (self.world.machines[machine].draining, self.world.machines[machine].room) = (false, true);
        }
        if options::is_refused(self.number) && !self.removing {
            self.change_options(USABLE);
        }
        let mut well = 0;
        for pass in 0..PASSES {
            let passed = self.pass(tally);
            // What the service cannot do without may have been put there since.
            if let Some(away) = away.filter(|away| self.is_needed(*away)) {
                self.world.machines[away].cut_off = false;
            }
            let pause = PAUSES.iter().find(|(until, _)| pass < *until).map_or(0, |(_, pause)| *pause);
            self.go_on(pause)?;
            tally.steps += 1;
            well = if passed == Passed::Idle && self.lacking().is_none() { well + 1 } else { 0 };
            if well >= 3 {
                break;
            }
        }
        if well < 3 {
            let what = self.lacking().unwrap_or_else(|| "it never comes to rest".into());
            return Err(Broken { property: "all is well within bounds when faults have ended", what });
        }
        let writes = (self.world.accepted - self.before.0, self.world.sent - self.before.1);
        tally.note_writes(self.changes, writes);
        let before = (self.world.accepted, self.world.sent);
        for _ in 0..QUIET {
            self.pass(tally);
            self.go_on(3)?;
            tally.steps += 1;
        }
        if (self.world.accepted, self.world.sent) != before {
            let what = format!("{} writes, {} orders", self.world.accepted - before.0, self.world.sent - before.1);
            return Err(Broken { property: "nothing is written when nothing changes", what });
        }
        self.before = before;
        (self.changes, self.aged) = (0, 0);
        for machine in 0..self.world.machines.len() {
            // Who was away while the security changed could not be told.
            let served = self.world.served();
            let accepts = served.iter().all(|chain| self.world.accepts(machine, chain.as_ref()));
            self.world.machines[machine].excused |= self.world.unsettled && !accepts;
        }
        self.world.unsettled = self.removing;
        Ok(())
    }

    fn go_on(&mut self, seconds: i64) -> Result<(), Broken> {
        self.world.now += seconds;
        for _ in 0..2 {
            self.world.work(u64::MAX);
            self.world.check_trust();
        }
        self.world.broken.take().map_or(Ok(()), Err)
    }

    /// What is not as it should be.
    fn lacking(&self) -> Option<String> {
        if self.removing {
            return self.lacking_of_removal();
        }
        let world = &self.world;
        if world.marathon.pods.is_empty() {
            return Some("there is no pod".into());
        }
        if !world.locked().is_empty() || world.is_anything_on_its_way() {
            return Some(format!("deployments: {:?}, with {:?} and {:?}", world.locked(), world.tasks(), world.instances()));
        }
        let variant = self.options();
        let runs_registry = variant.options.registry.enabled;
        let mut digests: BTreeMap<String, &str> = BTreeMap::new();
        let mut nodes: BTreeMap<Shard, usize> = BTreeMap::new();
        for (index, machine) in world.machines.iter().enumerate().filter(|(index, _)| !self.gone[*index]) {
            let node = world.node_on(index);
            if node.is_some() || (machine.offered() && machine.room) {
                *nodes.entry(world.shard_of(&machine.host)).or_default() += 1;
            } else {
                continue;
            }
            if machine.cut_off {
                continue;
            }
            let Some(node) = node else { return Some(format!("{} has no node", machine.host)) };
            let status = node.board.status();
            if status.phase != NodePhase::Trusted {
                return Some(format!("{} is {:?}: {:?}", machine.host, status.phase, status.errors));
            }
            digests.insert(status.order_digest, "");
        }
        if digests.len() > 1 {
            return Some("nodes have different orders".into());
        }
        for (shard, pod) in &world.marathon.pods {
            let (scale, nodes) = (pod.scale(), nodes.remove(shard).unwrap_or(0));
            if scale != nodes {
                return Some(format!("the pod {} is scaled to {scale}, and {nodes} agents can take a node", pod_id(*shard)));
            }
        }
        if let Some(shard) = nodes.into_keys().next() {
            return Some(format!("there is no pod {}", pod_id(shard)));
        }
        let wanted = variant.options.registry.replicas as usize;
        match &world.marathon.registry {
            None if runs_registry => return Some("there is no registry".into()),
            Some(app) if !runs_registry && app.hand_made.is_none() => return Some("there is still a registry".into()),
            Some(app) if runs_registry => {
                let places = world.machines.iter().filter(|m| m.kind == Kind::Private && m.up && m.offered()).count();
                if app.hand_made.is_some() || world.served().len() < wanted.min(places) {
                    return Some("the registry does not serve".into());
                }
            }
            _ => {}
        }
        let jobs = &world.metronome.jobs;
        if let Some(missing) = self.jobs().iter().find(|id| !jobs.contains_key(*id) && !id.contains("backup") && !id.contains("restore")) {
            return Some(format!("there is no job {missing}"));
        }
        if let Some((id, _)) = jobs.iter().find(|(_, job)| !job.active_runs.is_empty()) {
            return Some(format!("a run of {id} does not end"));
        }
        match &self.controller {
            None => Some("there is no controller".into()),
            Some(controller) if controller.is_rotating() => Some("a rotation does not end".into()),
            Some(_) => None,
        }
    }

    fn lacking_of_removal(&self) -> Option<String> {
        let world = &self.world;
        if !self.removed {
            return Some("the removal does not end".into());
        }
        if !world.marathon.pods.is_empty() || world.marathon.registry.as_ref().is_some_and(|app| app.hand_made.is_none()) {
            return Some("pod or registry are left".into());
        }
        if !world.metronome.jobs.is_empty() || !world.shelf.look().entries.is_empty() {
            return Some(format!("left: {:?} {:?}", world.metronome.jobs.keys(), world.shelf.look().entries.keys()));
        }
        for (index, machine) in world.machines.iter().enumerate() {
            let has_files = machine.trusted.is_some() || machine.kept.is_some();
            let is_named = world.named.contains(&machine.host);
            // Nobody can name what came and went between two looks.
            if has_files && (!is_named && machine.is_known || (self.undisturbed && self.with_nodes[index] && !machine.cut_off)) {
                return Some(format!("{} keeps our files, and is {}named", machine.host, if is_named { "" } else { "not " }));
            }
        }
        None
    }
}

/// Whether it is something from outside, and no time that passes.
fn is_change(event: &Event) -> bool {
    !matches!(event, Event::Pass | Event::OldPass | Event::Work(_) | Event::Wait(_) | Event::Heal(_))
}
