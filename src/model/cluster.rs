//! The simulated cluster: machines, Mesos, Marathon, Metronome, and what is on its way between them and a controller.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::node::Node;
use super::options::Base;
use super::random::Random;
use super::registry::{Left, Registry};
use super::trust::{Chain, Foreign, Trusted, Verifier};
use crate::certificates::{Certificate, RegistryKey};
use crate::controller::store::Shelf;
use crate::dcos::marathon::{App, AppTask, Instance, Pod};
use crate::dcos::mesos::{Agent, Ports, Resources};
use crate::dcos::metronome::Job;
use crate::dcos::versions;
use crate::documents;
use crate::names::Host;
use crate::plan::{NODE_NEEDS, Observed, RegistryTask};
use crate::protocol::SignedOrder;
use crate::shards::{Layout, Number, Shard};

pub(super) const SERVICE: &str = "private-registry";
pub(super) const POD: &str = "/private-registry-node";
pub(super) const REGISTRY: &str = "/registry";
pub(super) const OWN: &str = "/private-registry";
pub(super) const START: i64 = 1_800_000_000;

/// What kind of agent a machine is, as far as Marathon places pods by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Private,
    Public,
    Gpu,
    Remote,
}

/// An agent's machine. Its address stays the same.
pub(super) struct Machine {
    pub(super) host: Host,
    pub(super) kind: Kind,
    /// How often it was rebuilt.
    pub(super) rebuilt: u32,
    pub(super) up: bool,
    /// Whether Mesos counts it.
    pub(super) registered: bool,
    pub(super) draining: bool,
    pub(super) room: bool,
    /// The controller reaches none of its tasks.
    pub(super) cut_off: bool,
    pub(super) unwritable: bool,
    /// Seconds by which its clock is ahead.
    pub(super) skew: i64,
    /// The order that the node keeps on the disk.
    pub(super) kept: Option<SignedOrder>,
    pub(super) trusted: Option<Trusted>,
    pub(super) registry: Option<Left>,
    /// A node that runs while Mesos does not know the agent.
    orphan: Option<Node>,
    /// The order by which a client here has verified what was served. Reset when files go.
    pub(super) proven: Option<String>,
    /// Keys of the CAs of what was verified here last.
    pub(super) proofs: BTreeSet<Vec<u8>>,
    /// Newest order that was seen in force here: key and version.
    pub(super) seen: Option<(String, u64)>,
    /// Whether a controller has seen a node run here.
    pub(super) is_known: bool,
    /// Nobody could tell it in time of what is served now.
    pub(super) excused: bool,
}

impl Machine {
    /// `divided`: of hosts that come one after another, three are of one node pod.
    pub(super) fn new(number: usize, kind: Kind, skew: i64, divided: bool) -> Self {
        let (net, number) = if divided { (number % 3, number / 3) } else { (0, number) };
        Self {
            host: format!("10.0.{net}.{}", number + 1).parse().unwrap(),
            kind,
            rebuilt: 0,
            up: true,
            registered: true,
            draining: false,
            room: true,
            cut_off: false,
            unwritable: false,
            skew,
            kept: None,
            trusted: None,
            registry: None,
            orphan: None,
            proven: None,
            proofs: BTreeSet::new(),
            seen: None,
            is_known: false,
            excused: false,
        }
    }

    /// Whether Mesos offers it.
    pub(super) fn offered(&self) -> bool {
        self.registered && !self.draining
    }

    fn agent(&self) -> Agent {
        let free = if self.room { Resources { cpus: 1.0, mem: 1000.0, disk: 1000.0 } } else { Resources { cpus: 0.1, ..NODE_NEEDS } };
        Agent {
            id: format!("{}-{}", self.host, self.rebuilt),
            host: self.host.clone(),
            public: self.kind == Kind::Public,
            active: !self.draining,
            recovered: false,
            free,
            ports: Ports::default(),
        }
    }
}

/// An instance of the pod.
pub(super) struct PodInstance {
    pub(super) uuid: String,
    pub(super) machine: Option<usize>,
    revision: String,
    running: bool,
    /// Why it has ended at once.
    ends: Option<String>,
    pub(super) node: Option<Node>,
}

pub(super) struct PodState {
    pub(super) spec: Value,
    pub(super) instances: Vec<PodInstance>,
}

impl PodState {
    pub(super) fn scale(&self) -> usize {
        self.spec["scaling"]["instances"].as_u64().unwrap_or(0) as usize
    }
}

pub(super) struct AppState {
    pub(super) spec: Value,
    revision: String,
    pub(super) tasks: Vec<Registry>,
    /// The revision that each task was started with.
    revisions: Vec<String>,
    /// Where a registry made by hand runs.
    pub(super) hand_made: Option<usize>,
}

/// The controller's own app.
pub(super) struct OwnApp {
    pub(super) spec: Value,
    pub(super) task: Option<String>,
    pub(super) machine: usize,
    /// Cosmos has asked for the removal.
    pub(super) uninstall: bool,
}

#[derive(Default)]
pub(super) struct Marathon {
    pub(super) pods: BTreeMap<Shard, PodState>,
    pub(super) registry: Option<AppState>,
    pub(super) own: Option<OwnApp>,
    /// Ids that are locked; by whom else than us, for how many looks.
    pub(super) deployments: BTreeMap<String, u8>,
    pub(super) foreign_locks: BTreeMap<String, u8>,
    /// So many calls fail.
    pub(super) failing: u8,
    numbers: u64,
}

#[derive(Default)]
pub(super) struct Metronome {
    pub(super) jobs: BTreeMap<String, Job>,
    pub(super) failing: u8,
    pub(super) runs: u64,
}

/// A write to Marathon or Metronome.
#[derive(Debug, Clone)]
pub(super) enum Write {
    /// The definition, and whether it takes the place of a deployment.
    Pod(Shard, Value, bool),
    App(Value, bool),
    DeletePod(Shard),
    DeleteApp,
    DeleteOwn,
    Pin(Host),
    Job(String, Value),
    Schedule(String, Value),
    DropSchedule(String),
    Run(String),
    DeleteJob(String),
}

impl Write {
    /// Kinds of documents that can be refused.
    pub(super) const NUMBERS: u8 = 4;

    fn number(&self) -> u8 {
        match self {
            Self::Pod(..) => 0,
            Self::App(..) => 1,
            Self::Job(..) => 2,
            Self::Schedule(..) | Self::DropSchedule(_) => 3,
            _ => Self::NUMBERS,
        }
    }
}

/// Why a write was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Conflict,
    Failing,
    /// This document, whatever it is answered.
    Refused,
}

/// An order on its way to a task: by UUID or task id.
pub(super) struct Letter {
    to: String,
    order: SignedOrder,
}

/// Faults that last until they are taken away.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// Looks at Mesos and Marathon are so many works old.
    pub(super) late_looks: usize,
    pub(super) late_writes: bool,
    pub(super) double_writes: bool,
    pub(super) late_letters: bool,
    pub(super) double_letters: bool,
    pub(super) lost_letters: bool,
    /// Writes of this kind are refused.
    pub(super) refused: Option<u8>,
}

impl Faults {
    fn is_any(&self) -> bool {
        let Self { late_looks, late_writes, double_writes, late_letters, double_letters, lost_letters, refused } = self;
        *late_looks > 0 || *late_writes || *double_writes || *late_letters || *double_letters || *lost_letters || refused.is_some()
    }
}

/// How things really were when a controller looked at them.
#[derive(Debug, Clone, Default)]
pub(super) struct Truth {
    pub(super) own_task: Option<String>,
    /// Agents that have an instance, or can get one.
    pub(super) can_take: BTreeSet<Host>,
    /// Of these, those whose node runs.
    pub(super) running: BTreeSet<Host>,
    pub(super) locked: BTreeSet<String>,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) property: &'static str,
    pub(super) what: String,
}

/// The cluster.
pub(super) struct World {
    pub(super) now: i64,
    began: Instant,
    pub(super) base: Base,
    pub(super) version: versions::Marathon,
    pub(super) machines: Vec<Machine>,
    pub(super) marathon: Marathon,
    pub(super) metronome: Metronome,
    pub(super) shelf: Shelf,
    pub(super) published: BTreeMap<String, String>,
    pub(super) faults: Faults,
    history: VecDeque<(Observed, Truth)>,
    writes: Vec<Write>,
    letters: Vec<Letter>,
    keys: Vec<(RegistryKey, String)>,
    pub(super) operators: usize,
    foreign: std::rc::Rc<Foreign>,
    verifier: Verifier,
    pub(super) random: Random,
    /// Orders that have left a controller, by key and version.
    given: BTreeMap<(String, u64), String>,
    pub(super) broken: Option<Broken>,
    /// Writes that were accepted, and orders that were taken to be delivered.
    pub(super) accepted: u64,
    pub(super) sent: u64,
    /// The security has changed, or keys were lost for good: not everybody can verify before all is well again.
    pub(super) unsettled: bool,
    /// Digest of the order that every node should have.
    pub(super) newest: String,
    /// Agents that a removal has named as keeping our files.
    pub(super) named: BTreeSet<Host>,
}

thread_local! {
    static FOREIGN: std::rc::Rc<Foreign> = std::rc::Rc::new(Foreign::new(START - 86_400));
}

impl World {
    pub(super) fn new(base: Base, machines: Vec<Machine>, version: versions::Marathon, random: Random) -> Self {
        let own = OwnApp { spec: serde_json::json!({ "id": OWN, "constraints": [] }), task: None, machine: 0, uninstall: false };
        Self {
            now: START,
            began: Instant::now(),
            base,
            version,
            machines,
            marathon: Marathon { own: Some(own), ..Marathon::default() },
            metronome: Metronome::default(),
            shelf: Shelf::default(),
            published: BTreeMap::new(),
            faults: Faults::default(),
            history: VecDeque::new(),
            writes: Vec::new(),
            letters: Vec::new(),
            keys: Vec::new(),
            operators: 0,
            foreign: FOREIGN.with(Clone::clone),
            verifier: Verifier::default(),
            random,
            given: BTreeMap::new(),
            broken: None,
            accepted: 0,
            sent: 0,
            unsettled: false,
            newest: String::new(),
            named: BTreeSet::new(),
        }
    }

    /// Whether writes may have to be repeated, or are repeated by the cluster itself.
    pub(super) fn is_faulty(&self) -> bool {
        let services = [self.marathon.failing, self.metronome.failing].iter().any(|calls| *calls > 0);
        services || self.faults.is_any() || !self.marathon.foreign_locks.is_empty() || self.is_anything_on_its_way() || {
            let shelf = self.shelf.look();
            shelf.denied || shelf.writes_left.is_some()
        }
    }

    pub(super) fn break_(&mut self, property: &'static str, what: String) {
        if self.broken.is_none() {
            self.broken = Some(Broken { property, what });
        }
    }

    /// A point in time for what goes by the monotonic clock.
    pub(super) fn instant(&self) -> Instant {
        self.began + Duration::from_secs((self.now - START).unsigned_abs())
    }

    pub(super) fn foreign(&self) -> &Foreign {
        &self.foreign
    }

    /// What a variable of a definition says, from the secret store if it has to be.
    pub(super) fn text_of(&self, value: &Value) -> Option<String> {
        match value["secret"].as_str() {
            Some(name) => self.published.get(name).cloned(),
            None => value.as_str().map(String::from),
        }
    }

    pub(super) fn new_key(&mut self) -> usize {
        let key = RegistryKey::generate().unwrap();
        let csr = key.csr(SERVICE).unwrap();
        self.keys.push((key, csr));
        self.keys.len() - 1
    }

    pub(super) fn csr(&self, key: usize) -> &str {
        &self.keys[key].1
    }

    pub(super) fn spki(&self, key: usize) -> Vec<u8> {
        self.keys[key].0.public_key_spki_der()
    }

    pub(super) fn machine_of(&self, host: &Host) -> Option<usize> {
        self.machines.iter().position(|machine| machine.host == *host)
    }

    /// The node pod that a host is to be of.
    pub(super) fn shard_of(&self, host: &Host) -> Shard {
        if self.base.divided { Layout::Ten(Number::OfName).shard(host) } else { Shard::All }
    }

    /// Runs of jobs that wait for their end.
    pub(super) fn active_runs(&self) -> u64 {
        self.metronome.jobs.values().map(|job| job.active_runs.len() as u64).sum()
    }

    // What is served, and who accepts it.

    /// What clients behind the VIP are shown, by every registry that answers.
    pub(super) fn served(&self) -> Vec<Option<Chain>> {
        self.served_by(|_| true)
    }

    fn served_by(&self, counts: impl Fn(&Registry) -> bool) -> Vec<Option<Chain>> {
        let Some(app) = &self.marathon.registry else { return Vec::new() };
        if let Some(machine) = app.hand_made {
            let up = self.machines[machine].up;
            return up.then(|| Some(self.foreign.chains[0].clone())).into_iter().collect();
        }
        let tasks = app.tasks.iter().filter(|task| self.machines[task.machine].up && counts(task));
        tasks.filter_map(|task| task.served().map(|chain| chain.cloned())).collect()
    }

    /// Whether a client on this machine accepts the chain; none is plain HTTP.
    pub(super) fn accepts(&mut self, machine: usize, chain: Option<&Chain>) -> bool {
        let Some(trusted) = self.machines[machine].trusted.clone() else { return false };
        match chain {
            _ if trusted.insecure => true,
            None => false,
            Some(chain) => self.verifier.accepts(&trusted, chain, self.now + self.machines[machine].skew),
        }
    }

    pub(super) fn note_proof(&mut self, machine: usize, served: &[Option<Chain>]) {
        let machine = &mut self.machines[machine];
        machine.proven = machine.trusted.as_ref().map(|trusted| trusted.order.clone());
        machine.proofs = served.iter().flatten().map(|chain| chain.issuer.clone()).collect();
        // Who has verified by an older order has not heard of the newest one.
        machine.excused &= machine.proven.as_ref() != Some(&self.newest);
    }

    /// Every host that has verified what was served, and was told of every change since, does so now. A registry that was away, and found no
    /// controller to ask, may show what it has stored.
    pub(super) fn check_trust(&mut self) {
        if self.unsettled {
            return;
        }
        let served = self.served_by(|task| !task.is_unasked());
        if served.is_empty() || self.marathon.registry.as_ref().is_some_and(|app| app.hand_made.is_some()) {
            return;
        }
        for machine in 0..self.machines.len() {
            let host = &self.machines[machine];
            if host.proven.is_none() || host.excused || host.unwritable || !host.up || host.trusted.is_none() {
                continue;
            }
            for chain in &served {
                if !self.accepts(machine, chain.as_ref()) {
                    let host = &self.machines[machine];
                    let trusts = |trusted: &Trusted| trusted.roots.iter().map(|pem| subject(pem)).collect::<Vec<_>>();
                    let what = format!(
                        "{} has verified the registry before, by {:?}, and refuses it now: by {:?} it trusts {:?}, and is shown {:?}",
                        host.host,
                        host.proven.as_deref().and_then(|order| order.get(..6)),
                        host.trusted.as_ref().and_then(|trusted| trusted.order.get(..6)),
                        host.trusted.as_ref().map(trusts),
                        chain.as_ref().map(|chain| chain.certificates())
                    );
                    return self.break_("every live host verifies what is served", what);
                }
            }
        }
    }

    // What a controller sees.

    pub(super) fn locked(&self) -> BTreeSet<String> {
        self.marathon.deployments.keys().chain(self.marathon.foreign_locks.keys()).cloned().collect()
    }

    fn instance_on(&self, machine: usize) -> Option<&PodInstance> {
        self.marathon.pods.values().flat_map(|pod| &pod.instances).find(|instance| instance.machine == Some(machine))
    }

    pub(super) fn node_on(&self, machine: usize) -> Option<&Node> {
        self.instance_on(machine).and_then(|instance| instance.node.as_ref())
    }

    pub(super) fn truth(&self) -> Truth {
        let own = self.marathon.own.as_ref();
        let mut truth = Truth { own_task: own.and_then(|own| own.task.clone()), locked: self.locked(), ..Truth::default() };
        for (index, machine) in self.machines.iter().enumerate().filter(|(_, machine)| machine.registered) {
            let instance = self.instance_on(index);
            if instance.is_some() || (!machine.draining && machine.room) {
                truth.can_take.insert(machine.host.clone());
            }
            if machine.up && instance.is_some_and(|instance| instance.node.is_some()) {
                truth.running.insert(machine.host.clone());
            }
        }
        truth
    }

    fn observed(&self) -> Observed {
        let marathon = &self.marathon;
        let instance = |instance: &PodInstance| Instance {
            id: format!("{SERVICE}-node.instance-{}", instance.uuid),
            host: instance.machine.map(|machine| self.machines[machine].host.clone()),
            port: instance.running.then_some(1),
        };
        let seen = |pod: &PodState| Pod { spec: pod.spec.clone().into(), instances: pod.instances.iter().map(instance).collect() };
        let app = marathon.registry.as_ref().map(|app| {
            let mut tasks: Vec<AppTask> = app.tasks.iter().map(|task| self.app_task(task)).collect();
            let hand_made = app.hand_made.map(|machine| self.machines[machine].host.clone());
            tasks.extend(hand_made.map(|host| AppTask { id: "by-hand".into(), host, ports: vec![31000], healthy: true }));
            App { spec: app.spec.clone(), tasks }
        });
        let own_task = |own: &OwnApp| {
            let host = self.machines[own.machine].host.clone();
            own.task.clone().map(|id| AppTask { id, host, ports: vec![1], healthy: true })
        };
        Observed {
            marathon: self.version,
            agents: self.machines.iter().filter(|machine| machine.registered).map(Machine::agent).collect(),
            pods: marathon.pods.iter().map(|(shard, pod)| (*shard, seen(pod))).collect(),
            registry: app,
            own_app: marathon.own.as_ref().map(|own| App { spec: own.spec.clone(), tasks: own_task(own).into_iter().collect() }),
            jobs: self.metronome.jobs.clone(),
            locked: self.locked(),
            ..Observed::default()
        }
    }

    /// The registry's tasks, for people: where, whether of the present definition, whether serving.
    pub(super) fn tasks(&self) -> Vec<(String, bool, bool)> {
        let Some(app) = &self.marathon.registry else { return Vec::new() };
        let tasks = app.tasks.iter().zip(&app.revisions);
        let told = |(task, revision): (&Registry, &String)| {
            (self.machines[task.machine].host.to_string(), *revision == app.revision, task.served().is_some())
        };
        tasks.map(told).collect()
    }

    /// The pods' instances, for people: where, whether running or why not, whether of the present definition.
    pub(super) fn instances(&self) -> Vec<(Option<usize>, Result<(), String>, bool)> {
        let told = |pod: &PodState| {
            let now = revision(&pod.spec);
            let told = |instance: &PodInstance| (instance.machine, instance.ends.clone().map_or(Ok(()), Err), instance.revision == now);
            pod.instances.iter().map(told).collect::<Vec<_>>()
        };
        self.marathon.pods.values().flat_map(told).collect()
    }

    fn app_task(&self, task: &Registry) -> AppTask {
        let healthy = task.served().is_some();
        AppTask { id: task.id.clone(), host: self.machines[task.machine].host.clone(), ports: vec![5000, task.port], healthy }
    }

    /// Mesos, Marathon and Metronome are asked. How old the answer is depends on the faults.
    pub(super) fn look(&mut self) -> Option<(Observed, Truth, bool)> {
        for failing in [&mut self.marathon.failing, &mut self.metronome.failing] {
            if *failing > 0 {
                *failing -= 1;
                return None;
            }
        }
        let late = self.faults.late_looks.min(self.history.len());
        if late == 0 {
            return Some((self.observed(), self.truth(), true));
        }
        let (observed, truth) = self.history[self.history.len() - late].clone();
        Some((observed, truth, false))
    }

    /// The tasks that were seen are asked.
    pub(super) fn ask(&mut self, observed: &mut Observed) {
        let answer = |instance: &Instance| {
            let (host, _) = (instance.host.clone()?, instance.port?);
            let machine = self.machine_of(&host).filter(|machine| self.reaches(*machine))?;
            let node = self.instance_on(machine).filter(|now| now.uuid == instance.uuid())?.node.as_ref()?;
            Some((host, node.board.status().into()))
        };
        observed.nodes = observed.instances().filter_map(answer).collect();
        observed.registries.clear();
        let Some(app) = &self.marathon.registry else { return };
        for seen in observed.registry.iter().flat_map(|app| &app.tasks) {
            let task = app.tasks.iter().find(|task| task.id == seen.id && !task.silent && self.reaches(task.machine));
            if let Some(task) = task {
                observed.registries.push(RegistryTask { address: address(seen), status: task.status(self) });
            }
        }
        observed.registries.sort_by(|a, b| a.address.cmp(&b.address));
    }

    fn reaches(&self, machine: usize) -> bool {
        self.machines[machine].up && !self.machines[machine].cut_off
    }

    // What a controller does.

    /// Notes what a controller has written down as covered.
    pub(super) fn note_seen(&mut self, observed: &Observed) {
        for host in covered(observed) {
            if let Some(machine) = self.machine_of(host) {
                self.machines[machine].is_known = true;
            }
        }
    }

    /// Notes an order that leaves a controller.
    pub(super) fn note_order(&mut self, order_key: &str, version: u64, order: &SignedOrder) {
        let before = self.given.insert((order_key.into(), version), order.payload.clone());
        if before.is_some_and(|before| before != order.payload) {
            self.break_("no version stands for two contents", format!("version {version}"));
        }
    }

    pub(super) fn send_to_node(&mut self, observed: &Observed, host: &Host, order: &SignedOrder) {
        let instances = observed.instances();
        let to = instances.filter(|i| i.host.as_ref() == Some(host)).find(|i| i.port.is_some()).map(|i| i.uuid().to_string());
        if let Some(to) = to {
            self.send(to, order);
        }
    }

    pub(super) fn send_to_registry(&mut self, observed: &Observed, to: &str, order: &SignedOrder) {
        let tasks = observed.registry.iter().flat_map(|app| &app.tasks);
        if let Some(id) = tasks.filter(|task| address(task) == to).map(|task| task.id.clone()).next() {
            self.send(id, order);
        }
    }

    fn send(&mut self, to: String, order: &SignedOrder) {
        self.sent += 1;
        if self.faults.lost_letters && self.random.percent(50) {
            return;
        }
        let letter = |to: &str| Letter { to: to.into(), order: order.clone() };
        if self.faults.double_letters {
            self.letters.push(letter(&to));
        }
        if self.faults.late_letters {
            self.letters.push(letter(&to));
        } else {
            self.deliver(letter(&to));
        }
    }

    fn deliver(&mut self, letter: Letter) {
        let machines = &self.machines;
        let reaches = |machine: usize| machines[machine].up && !machines[machine].cut_off;
        let mut instances = self.marathon.pods.values_mut().flat_map(|pod| &mut pod.instances);
        if let Some(instance) = instances.find(|i| i.uuid == letter.to && i.machine.is_some_and(reaches)) {
            if let Some(node) = &mut instance.node {
                node.take(letter.order);
            }
            return;
        }
        let Some(mut app) = self.marathon.registry.take() else { return };
        let task = app.tasks.iter_mut().find(|task| task.id == letter.to && !task.silent);
        if let Some(task) = task.filter(|task| self.reaches(task.machine)) {
            task.take(self, &letter.order);
        }
        self.marathon.registry = Some(app);
    }

    /// A write is sent. Under some faults it takes effect later, twice, or although an error was answered.
    pub(super) fn write(&mut self, write: Write) -> Result<(), Refusal> {
        let failing = match &write {
            Write::Job(..) | Write::Schedule(..) | Write::DropSchedule(_) | Write::Run(_) | Write::DeleteJob(_) => {
                &mut self.metronome.failing
            }
            _ => &mut self.marathon.failing,
        };
        if *failing > 0 {
            *failing -= 1;
            return Err(Refusal::Failing);
        }
        if self.faults.refused == Some(write.number()) {
            return Err(Refusal::Refused);
        }
        if self.faults.late_writes {
            self.writes.push(write);
            // The answer got lost.
            return if self.random.percent(50) { Err(Refusal::Failing) } else { Ok(()) };
        }
        if self.faults.double_writes {
            self.writes.push(write.clone());
        }
        self.take_effect(write)
    }

    fn lock_of(write: &Write) -> Option<String> {
        match write {
            Write::Pod(shard, _, false) => Some(pod_id(*shard)),
            Write::App(_, false) => Some(REGISTRY.into()),
            Write::Pin(_) => Some(OWN.into()),
            _ => None,
        }
    }

    fn take_effect(&mut self, write: Write) -> Result<(), Refusal> {
        if Self::lock_of(&write).is_some_and(|id| self.locked().contains(&id)) {
            return Err(Refusal::Conflict);
        }
        self.accepted += 1;
        let job = |jobs: &mut BTreeMap<String, Job>, id: String, change: &dyn Fn(&mut Job)| {
            jobs.entry(id).and_modify(change);
        };
        let jobs = &mut self.metronome.jobs;
        match write {
            Write::Pod(shard, spec, _) => {
                let instances = self.marathon.pods.remove(&shard).map(|pod| pod.instances).unwrap_or_default();
                self.marathon.pods.insert(shard, PodState { spec, instances });
                self.marathon.deployments.insert(pod_id(shard), 0);
            }
            Write::App(spec, _) => {
                let (tasks, revisions) = self.marathon.registry.take().map(|app| (app.tasks, app.revisions)).unwrap_or_default();
                let revision = spec["labels"].to_string();
                self.marathon.registry = Some(AppState { spec, revision, tasks, revisions, hand_made: None });
                self.marathon.deployments.insert(REGISTRY.into(), 0);
            }
            Write::DeletePod(shard) => {
                self.marathon.pods.remove(&shard);
                self.marathon.deployments.insert(pod_id(shard), 0);
            }
            Write::DeleteApp => {
                self.marathon.registry = None;
                self.marathon.deployments.insert(REGISTRY.into(), 0);
            }
            Write::DeleteOwn => self.marathon.own = None,
            Write::Pin(host) => {
                let machine = self.machine_of(&host);
                if let (Some(own), Some(machine)) = (&mut self.marathon.own, machine) {
                    own.spec["constraints"] = serde_json::json!([["hostname", "LIKE", documents::exactly(&host)]]);
                    (own.task, own.machine) = (None, machine);
                }
            }
            Write::Job(id, spec) => {
                let stored = jobs.entry(id).or_insert_with(|| Job {
                    spec: Value::Null,
                    active_runs: Vec::new(),
                    finished_runs: 0,
                    schedules: Vec::new(),
                });
                stored.spec = spec;
            }
            Write::Schedule(id, schedule) => job(jobs, id, &|job| job.schedules = vec![schedule.clone()]),
            Write::DropSchedule(id) => job(jobs, id, &|job| job.schedules.clear()),
            Write::Run(id) => self.start_run(&id),
            Write::DeleteJob(id) => drop(jobs.remove(&id)),
        }
        Ok(())
    }

    pub(super) fn start_run(&mut self, id: &str) {
        self.metronome.runs += 1;
        let run = format!("{:08}", self.metronome.runs);
        self.metronome.jobs.entry(id.into()).and_modify(|job| job.active_runs.push(run));
    }

    /// Ends runs of a job.
    pub(super) fn end_runs(&mut self, id: &str, ends: impl Fn(&str) -> bool) {
        if let Some(job) = self.metronome.jobs.get_mut(id) {
            let before = job.active_runs.len();
            job.active_runs.retain(|run| !ends(run));
            job.finished_runs += (before - job.active_runs.len()) as u64;
        }
    }

    // What goes on by itself.

    /// Time passes for a while: Marathon works, tasks work, what is on its way arrives. `moves` says by its bits who moves.
    pub(super) fn work(&mut self, moves: u64) {
        if self.faults.late_looks > 0 {
            self.history.push_back((self.observed(), self.truth()));
            if self.history.len() > 4 {
                self.history.pop_front();
            }
        } else {
            self.history.clear();
        }
        if moves & 1 == 1 {
            self.arrive();
        }
        if moves & 2 == 2 {
            self.pods_work();
            self.app_works();
        }
        self.nodes_work(moves >> 8);
        self.registries_work(moves >> 3);
    }

    /// What is on its way arrives, in any order.
    pub(super) fn arrive(&mut self) {
        while !self.writes.is_empty() {
            let index = self.random.below(self.writes.len());
            let write = self.writes.swap_remove(index);
            let _ = self.take_effect(write);
        }
        while !self.letters.is_empty() {
            let index = self.random.below(self.letters.len());
            let letter = self.letters.swap_remove(index);
            self.deliver(letter);
        }
    }

    pub(super) fn is_anything_on_its_way(&self) -> bool {
        !self.writes.is_empty() || !self.letters.is_empty()
    }

    fn takes_pods(&self, machine: usize, spec: &Value, shard: Shard) -> bool {
        let host = &self.machines[machine];
        let placement = &spec["scheduling"]["placement"];
        let has = |list: &Value, word: &str| list.as_array().is_some_and(|list| list.iter().any(|entry| entry == word));
        let constrained = |field: &str| placement["constraints"].as_array().is_some_and(|all| all.iter().any(|c| c["fieldName"] == field));
        let by_kind = match host.kind {
            Kind::Private => has(&placement["acceptedResourceRoles"], "*"),
            Kind::Public => has(&placement["acceptedResourceRoles"], "slave_public"),
            Kind::Gpu => spec["labels"]["GPU_SCHEDULING_BEHAVIOR"] == "unrestricted",
            Kind::Remote => constrained("@region"),
        };
        let of_class = documents::class_of(spec).is_none_or(|class| matches_whole(class, &host.host.to_string()));
        // UNIQUE counts the instances of the same pod only.
        let is_free = self.marathon.pods.get(&shard).is_none_or(|pod| pod.instances.iter().all(|i| i.machine != Some(machine)));
        by_kind && of_class && host.up && host.offered() && host.room && is_free
    }

    fn pods_work(&mut self) {
        // Also where a pod is not there any more.
        for id in self.locked().into_iter().filter(|id| id.starts_with(POD)) {
            count_down(&mut self.marathon.foreign_locks, &id);
            if !self.marathon.pods.keys().any(|shard| pod_id(*shard) == id) {
                self.marathon.deployments.remove(&id);
            }
        }
        for shard in self.marathon.pods.keys().copied().collect::<Vec<_>>() {
            self.pod_works(shard);
        }
    }

    fn pod_works(&mut self, shard: Shard) {
        let Some(mut pod) = self.marathon.pods.remove(&shard) else { return };
        let revision = revision(&pod.spec);
        let scale = pod.scale();
        let machines = &self.machines;
        // What ran on an agent that Mesos has given up is gone for Marathon, and what ended is not there any more.
        let is_lost =
            |i: &PodInstance| i.machine.is_some_and(|m| !machines[m].registered || (i.running && i.node.is_none() && machines[m].up));
        pod.instances.retain(|instance| !is_lost(instance));
        let old = pod.instances.iter().position(|instance| instance.revision != revision);
        if let Some(old) = old {
            pod.instances.remove(old);
        } else if pod.instances.len() > scale {
            let youngest = pod.instances.iter().rposition(|instance| instance.running).unwrap_or(0);
            pod.instances.remove(youngest);
        }
        while pod.instances.len() < scale {
            self.marathon.numbers += 1;
            let uuid = format!("u{}", self.marathon.numbers);
            pod.instances.push(PodInstance { uuid, machine: None, revision: revision.clone(), running: false, ends: None, node: None });
        }
        let done = pod.instances.len() == scale && pod.instances.iter().all(|i| i.running && i.revision == revision);
        let unplaced: Vec<usize> = pod.instances.iter().enumerate().filter(|(_, i)| i.machine.is_none()).map(|(index, _)| index).collect();
        let starting: Vec<usize> =
            pod.instances.iter().enumerate().filter(|(_, i)| i.machine.is_some() && !i.running).map(|(index, _)| index).collect();
        self.marathon.pods.insert(shard, pod);
        for index in starting {
            let Some(pod) = self.marathon.pods.get(&shard) else { return };
            let (spec, uuid, machine) = (&pod.spec, pod.instances[index].uuid.clone(), pod.instances[index].machine.unwrap_or_default());
            if !self.machines[machine].up {
                continue;
            }
            let node = Node::start(self, machine, spec, &uuid);
            // A fresh agent begins with the order that the pod was made with, and hears of the newest one a pass later.
            let is_behind = node.as_ref().is_ok_and(|node| node.board.order().digest != self.newest);
            self.machines[machine].excused |= is_behind && self.machines[machine].kept.is_none();
            if let Some(pod) = self.marathon.pods.get_mut(&shard) {
                let instance = &mut pod.instances[index];
                instance.ends = node.as_ref().err().cloned();
                (instance.running, instance.node) = (node.is_ok(), node.ok());
            }
        }
        for index in unplaced {
            let spec = self.marathon.pods.get(&shard).map(|pod| pod.spec.clone()).unwrap_or_default();
            let place = (0..self.machines.len()).find(|machine| self.takes_pods(*machine, &spec, shard));
            if let (Some(place), Some(pod)) = (place, self.marathon.pods.get_mut(&shard)) {
                pod.instances[index].machine = Some(place);
            }
        }
        if done {
            self.marathon.deployments.remove(&pod_id(shard));
        }
    }

    fn app_works(&mut self) {
        count_down(&mut self.marathon.foreign_locks, REGISTRY);
        count_down(&mut self.marathon.foreign_locks, OWN);
        let Some(mut app) = self.marathon.registry.take() else {
            self.marathon.deployments.remove(REGISTRY);
            return;
        };
        if let Some(machine) = app.hand_made {
            // It stays where it is.
            let _ = machine;
            self.marathon.registry = Some(app);
            return;
        }
        let machines = &self.machines;
        let wanted = app.spec["instances"].as_u64().unwrap_or(1) as usize;
        let gone: Vec<usize> = (0..app.tasks.len()).filter(|index| !machines[app.tasks[*index].machine].registered).collect();
        for index in gone.into_iter().rev() {
            app.tasks.remove(index);
            app.revisions.remove(index);
        }
        let least = app.spec["upgradeStrategy"]["minimumHealthCapacity"].as_f64().unwrap_or(0.0);
        let healthy = app.tasks.iter().filter(|task| task.served().is_some()).count();
        let may_go = |index: &usize| app.tasks[*index].served().is_none() || healthy as f64 > least * wanted as f64;
        let old = (0..app.tasks.len()).filter(|index| app.revisions[*index] != app.revision).find(may_go);
        if let Some(old) = old {
            app.tasks.remove(old);
            app.revisions.remove(old);
        } else if app.tasks.len() > wanted {
            app.tasks.pop();
            app.revisions.pop();
        }
        let pinned = app.spec["constraints"][0][1] == "LIKE";
        let pin = app.spec["constraints"][0][2].as_str().and_then(crate::plan::matched_host);
        let fits = |index: &usize| {
            let machine = &machines[*index];
            let here = if pinned { pin.as_ref() == Some(&machine.host) } else { machine.kind == Kind::Private };
            here && machine.up && machine.offered() && app.tasks.iter().all(|task| task.machine != *index)
        };
        let place = (0..machines.len()).find(fits).filter(|_| app.tasks.len() < wanted);
        if let Some(place) = place {
            self.marathon.numbers += 1;
            let number = self.marathon.numbers;
            let port = 10_000 + (number % 20_000) as u16;
            let started = Registry::start(self, place, &app.spec, format!("registry.{number}"), port);
            if let Some(task) = started {
                app.tasks.push(task);
                app.revisions.push(app.revision.clone());
            }
        }
        // A deployment ends when all tasks are healthy; one that waits for its certificate is.
        if app.tasks.len() == wanted && app.revisions.iter().all(|revision| *revision == app.revision) {
            self.marathon.deployments.remove(REGISTRY);
        }
        self.marathon.registry = Some(app);
    }

    fn nodes_work(&mut self, moves: u64) {
        for machine in 0..self.machines.len() {
            if moves >> machine & 1 == 0 || !self.machines[machine].up {
                continue;
            }
            if let Some(mut orphan) = self.machines[machine].orphan.take() {
                orphan.work(self, machine);
                self.machines[machine].orphan = Some(orphan);
                continue;
            }
            let mut instances = self.marathon.pods.values_mut().flat_map(|pod| &mut pod.instances);
            let Some((uuid, node)) = instances.find(|i| i.machine == Some(machine)).map(|i| (i.uuid.clone(), i.node.take())) else {
                continue;
            };
            let Some(mut node) = node else { continue };
            node.work(self, machine);
            self.check_versions(machine, &node);
            let mut instances = self.marathon.pods.values_mut().flat_map(|pod| &mut pod.instances);
            if let Some(instance) = instances.find(|instance| instance.uuid == uuid) {
                instance.node = Some(node);
            }
        }
    }

    fn check_versions(&mut self, machine: usize, node: &Node) {
        let status = node.board.status();
        let now = (node.order_key.clone(), status.order_version);
        let host = &mut self.machines[machine];
        if host.trusted.is_none() {
            host.seen = None;
            return;
        }
        let before = host.seen.replace(now.clone());
        if host.unwritable {
            // What it could not keep is lost with its memory.
            host.seen = before.clone();
        }
        if let Some((key, version)) = before
            && key == now.0
            && now.1 < version
        {
            let what = format!("{} went from {version} back to {}", self.machines[machine].host, now.1);
            self.break_("versions never go back on a node", what);
        }
    }

    fn registries_work(&mut self, moves: u64) {
        let Some(mut app) = self.marathon.registry.take() else { return };
        for (index, task) in app.tasks.iter_mut().enumerate() {
            if moves >> index & 1 == 1 && self.machines[task.machine].up {
                task.work(self);
            }
        }
        self.marathon.registry = Some(app);
    }

    // What happens to machines.

    /// All that runs on it ends.
    fn end_tasks(&mut self, machine: usize) {
        self.machines[machine].orphan = None;
        for instance in self.marathon.pods.values_mut().flat_map(|pod| &mut pod.instances).filter(|i| i.machine == Some(machine)) {
            instance.node = None;
        }
        if let Some(app) = &mut self.marathon.registry {
            while let Some(index) = app.tasks.iter().position(|task| task.machine == machine) {
                app.tasks.remove(index);
                app.revisions.remove(index);
            }
        }
        if let Some(own) = self.marathon.own.as_mut().filter(|own| own.machine == machine) {
            own.task = None;
        }
    }

    pub(super) fn die(&mut self, machine: usize) {
        self.machines[machine].up = false;
        self.end_tasks(machine);
    }

    /// Mesos gives it up, whether it runs or not.
    pub(super) fn give_up(&mut self, machine: usize) {
        self.machines[machine].registered = false;
        let instance = self.marathon.pods.values_mut().flat_map(|pod| &mut pod.instances).find(|i| i.machine == Some(machine));
        if let Some(instance) = instance {
            self.machines[machine].orphan = instance.node.take();
        }
        // Registry and controller are taken for lost, and started anew elsewhere if they may.
        let orphan = self.machines[machine].orphan.take();
        self.end_tasks(machine);
        self.machines[machine].orphan = orphan;
        for pod in self.marathon.pods.values_mut() {
            pod.instances.retain(|instance| instance.machine != Some(machine));
        }
    }

    /// It registers. Tasks that Marathon has given up are ended.
    pub(super) fn register(&mut self, machine: usize) {
        self.machines[machine].orphan = None;
        (self.machines[machine].up, self.machines[machine].registered) = (true, true);
    }

    /// It comes back without anything that was on its disks, as another agent with the same address.
    pub(super) fn rebuild(&mut self, machine: usize) {
        self.end_tasks(machine);
        self.give_up(machine);
        let old = &self.machines[machine];
        let fresh = Machine { host: old.host.clone(), rebuilt: old.rebuilt + 1, ..Machine::new(machine, old.kind, old.skew, false) };
        self.machines[machine] = fresh;
        if self.base.keeps_state_on_host() && self.marathon.own.as_ref().is_some_and(|own| own.machine == machine) {
            self.shelf.look().entries.clear();
            self.unsettled = true;
            // What the controllers have seen is lost as well.
            self.machines.iter_mut().for_each(|machine| machine.is_known = false);
        }
    }

    /// The node's task ends; Marathon starts another one.
    pub(super) fn kill_node(&mut self, machine: usize) {
        let instance = self.marathon.pods.values_mut().flat_map(|pod| &mut pod.instances).find(|i| i.machine == Some(machine));
        if let Some(instance) = instance {
            instance.node = None;
        }
    }

    pub(super) fn kill_registry(&mut self, which: usize) {
        if let Some(app) = &mut self.marathon.registry
            && !app.tasks.is_empty()
        {
            let index = which % app.tasks.len();
            app.tasks.remove(index);
            app.revisions.remove(index);
        }
    }

    /// A registry as the tutorial says to make one.
    pub(super) fn make_by_hand(&mut self, machine: usize) {
        let spec = serde_json::json!({
            "id": REGISTRY, "instances": 1,
            "constraints": [["hostname", "LIKE", self.machines[machine].host.to_string()]],
            "container": {
                "type": "DOCKER",
                "docker": {
                    "image": "registry", "network": "BRIDGE",
                    "portMappings": [{ "containerPort": 5000, "hostPort": 0, "servicePort": 5000, "labels": { "VIP_0": "192.168.0.1:443" } }],
                },
                "volumes": [{ "containerPath": "/var/lib/registry", "hostPath": "/data/docker-registry", "mode": "RW" }],
            },
            "labels": { "HAPROXY_GROUP": "external" }, "env": {},
        });
        let revision = spec["labels"].to_string();
        self.marathon.registry = Some(AppState { spec, revision, tasks: Vec::new(), revisions: Vec::new(), hand_made: Some(machine) });
    }
}

/// As Java's `String.matches`.
fn matches_whole(class: &str, text: &str) -> bool {
    thread_local! {
        static KNOWN: std::cell::RefCell<BTreeMap<String, regex_lite::Regex>> = std::cell::RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        let make = || regex_lite::Regex::new(&format!("^(?:{class})$")).unwrap();
        known.entry(class.into()).or_insert_with(make).is_match(text)
    })
}

/// Id of a node pod.
pub(super) fn pod_id(shard: Shard) -> String {
    format!("{POD}{}", shard.suffix())
}

fn count_down(locks: &mut BTreeMap<String, u8>, id: &str) {
    locks.retain(|locked, left| {
        if *locked == id {
            *left = left.saturating_sub(1);
        }
        *left > 0
    });
}

/// Agents whose nodes a controller asks: all on which one has been started.
pub(super) fn covered(observed: &Observed) -> impl Iterator<Item = &Host> {
    observed.instances().filter(|instance| instance.port.is_some()).filter_map(|instance| instance.host.as_ref())
}

/// What makes Marathon replace instances: all but their number.
fn revision(spec: &Value) -> String {
    format!("{} {}", spec["labels"], spec["environment"]["PRIVATE_REGISTRY_SCALE"])
}

fn subject(pem: &str) -> String {
    Certificate::parse_pem(pem).unwrap().subject().to_string()
}

/// Where a registry's task is asked.
pub(super) fn address(task: &AppTask) -> String {
    format!("{}:{}", task.host, task.ports.get(1).copied().unwrap_or_default())
}
