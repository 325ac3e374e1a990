//! What is to be done: a pure function of what is wanted and what was observed.
//!
//! The same function serves the loop, a dry run and the log. It never waits and never asks; where something else has to come
//! first, it leaves the action out and says so in [`Plan::waiting`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::collection;
use crate::controller::state::{Reason, Rotation, Stage};
use crate::dcos::marathon::{App, AppClaims, Instance, Pod};
use crate::dcos::mesos::{Agent, Resources};
use crate::dcos::metronome::Job;
use crate::dcos::versions;
use crate::digest::sha256_hex;
use crate::documents::{self, Documents};
use crate::exposure;
use crate::in_order::InOrder as _;
use crate::names::Host;
use crate::options::{Fault, Faults, Generation, Options};
use crate::protocol::{Collection, NodePhase, NodeStatus, ProofOutcome, RegistryPhase, RegistrySettings, RegistryStatus, SignedOrder, env};
use crate::shards::{self, Asked, Layout, Shard};
use crate::storage;
use crate::takeover::{self, Takeover};
use crate::turns;

/// What one instance of the node pod asks for: executor (RAML minimum) plus container, as in the pod's template.
pub const NODE_NEEDS: Resources = Resources { cpus: 0.12, mem: 64.0, disk: 26.0 };

/// How long a pod stays scaled above the number of agents before it is shrunk. A lost agent often comes back, and from
/// Marathon 1.8 on shrinking kills a running instance before an unplaced one.
pub const SHRINK_AFTER: Duration = Duration::from_secs(3600);

/// How long a deployment gets that stands in the way of another definition. One whose tasks cannot start, or that waits for an agent
/// which is gone, never ends by itself; so what mends it could not be put.
pub const UNLOCK_AFTER: Duration = Duration::from_secs(600);

/// What the cluster looks like.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Which Marathon this is.
    pub marathon: versions::Marathon,
    /// Which Metronome this is.
    pub metronome: versions::Metronome,
    /// Registered agents.
    pub agents: Vec<Agent>,
    /// The node pods.
    pub pods: BTreeMap<Shard, Pod>,
    /// Answers of node tasks, by agent. Only tasks that Marathon knows are asked.
    pub nodes: BTreeMap<Host, Arc<NodeStatus>>,
    /// The registry app.
    pub registry: Option<App>,
    /// The controller's own app.
    pub own_app: Option<App>,
    /// The registry's tasks that have answered.
    pub registries: Vec<RegistryTask>,
    /// Jobs by id.
    pub jobs: BTreeMap<String, Job>,
    /// Ids that running deployments lock.
    pub locked: BTreeSet<String>,
    /// Those of them that have been locked for [`UNLOCK_AFTER`].
    pub stuck: BTreeSet<String>,
    /// What all apps claim.
    pub claims: Vec<AppClaims>,
    /// For how long each of the pods that is has been scaled above what is needed.
    pub surplus_for: BTreeMap<Shard, Duration>,
    /// Passes of every node when the registry was first seen to serve with the new CA.
    pub passes_at_switch: BTreeMap<Host, u64>,
    /// Passes of nodes up to which what their clients have said is about the registry that has been taken over.
    pub passes_at_takeover: BTreeMap<Host, u64>,
}

/// A task of the registry that has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryTask {
    /// `host:port` of its status.
    pub address: String,
    /// The answer.
    pub status: RegistryStatus,
}

impl Observed {
    /// Instances of all node pods.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.pods.values().flat_map(|pod| &pod.instances)
    }

    /// How the agents are divided among the node pods that there are; none where there is no pod of this service.
    pub fn layout(&self, options: &Options) -> Option<Layout> {
        let ours = self.pods.iter().filter(|(_, pod)| documents::is_made_by(&pod.spec, options));
        let hosts = self.agents.iter().map(|agent| &agent.host);
        Layout::read(ours.map(|(shard, pod)| (*shard, documents::class_of(&pod.spec))), options.trust.shards, hosts)
    }

    /// Whether every task of the registry that Marathon knows has answered, and there is one.
    pub fn all_registries_answer(&self) -> bool {
        !self.registries.is_empty() && self.registries.len() >= self.registry.as_ref().map_or(0, |app| app.tasks.len())
    }
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Documents as they should be stored.
    pub documents: Documents,
    /// The order that every node should have taken.
    pub trust: SignedOrder,
    /// Unix time now.
    pub now: i64,
    /// The certificates in force that are for the present names and CA, by the addresses of the tasks that they are for.
    pub leaves: BTreeMap<String, Leaf>,
    /// How the CA stands.
    pub ca: Ca,
    /// Whether a registry is to run.
    pub registry: bool,
    /// Version of the order by which a registry that is not to run any more retires.
    pub retirement: u64,
    /// Whether it is not waited for any longer: its host may be gone for good, or its keys may not be ours any more.
    pub retirement_is_late: bool,
    /// A registry made by hand that is to be replaced.
    pub takeover: Option<Takeover>,
    /// Which users of the service's a registry is to let in; see [`RegistryStatus::users`].
    pub users: Option<String>,
}

/// How the CA stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ca {
    /// The registry speaks plain HTTP.
    pub plain_http: bool,
    /// Why it is to be replaced, if it is.
    pub due: Option<Reason>,
    /// The rotation under way.
    pub rotation: Option<Rotation>,
    /// That rotation has lost its reason.
    pub void: bool,
    /// It may not speak for all names of the options: what there is stays as it is until its successor may.
    pub holds_names_back: bool,
    /// The certificate is the operator's: there is nothing to sign.
    pub signs_nothing: bool,
    /// The CA that should sign has lost its key.
    pub key_is_lost: bool,
    /// Seconds that a stage of a rotation, or a takeover, waits for agents that do not answer.
    pub deadline: i64,
}

/// The certificate that the controller signed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// SHA-256 (hex) of its DER.
    pub fingerprint: String,
    /// Unix time from which it is to be renewed.
    pub renew_at: i64,
}

/// One write. The text of [`fmt::Display`] is what people read in plan, log and page, and all that is ever printed: definitions may
/// hold the enrolment key.
#[derive(Clone, PartialEq)]
pub enum Action {
    /// Create a node pod, replace it as its definition has changed, or change its number of instances.
    PutPod {
        /// Which.
        shard: Shard,
        /// The whole definition.
        pod: Value,
        /// Instances it is scaled to.
        instances: u64,
        /// Whether it takes the place of a deployment that does not end.
        force: bool,
        /// Why.
        reason: String,
    },
    /// Create the registry app or replace it.
    PutRegistry {
        /// The whole definition.
        app: Value,
        /// Whether it takes the place of a deployment that does not end.
        force: bool,
        /// Why.
        reason: String,
    },
    /// Replace a registry made by hand by ours, over the same images.
    TakeOver {
        /// The whole definition.
        app: Value,
        /// What is taken over.
        takeover: Takeover,
        /// Agents that were not waited for any longer.
        left_behind: Vec<Host>,
    },
    /// Tell the registry to stop and to delete its key.
    RetireRegistry,
    /// Delete the registry app.
    DeleteRegistry {
        /// Whether it has deleted its key.
        retired: bool,
    },
    /// Create or replace a job.
    PutJob {
        /// Its id.
        id: String,
        /// The whole definition.
        job: Value,
        /// Whether it exists.
        exists: bool,
    },
    /// Give a job its schedule, or replace it.
    PutSchedule {
        /// Id of the job.
        job: String,
        /// The whole schedule.
        schedule: Value,
        /// Whether it exists.
        exists: bool,
    },
    /// Take a job's schedule away.
    DropSchedule {
        /// Id of the job.
        job: String,
    },
    /// Start the first run of a job.
    StartRun {
        /// Its id.
        id: String,
    },
    /// Send the trust order to a node.
    SendTrust {
        /// Agent.
        host: Host,
    },
    /// Make the next CA known beside the present one.
    BeginRotation {
        /// Why.
        reason: Reason,
    },
    /// Give a rotation up before its switch.
    DropRotation,
    /// Let the next CA sign.
    SwitchCa {
        /// Agents that were not waited for any longer.
        left_behind: Vec<Host>,
    },
    /// Trust the earlier CA no more.
    RetireCa {
        /// As above.
        left_behind: Vec<Host>,
    },
    /// Tell a registry's task which users to let in.
    SendUsers {
        /// Address of the task.
        address: String,
    },
    /// Let a registry's task restart that has said that it has to.
    Restart {
        /// Address of the task.
        address: String,
    },
    /// Sign the request of a registry's task and send the certificate.
    Certify {
        /// Address of the task.
        address: String,
        /// Why.
        reason: String,
    },
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutPod { shard: Shard::All, instances, reason, .. } => write!(f, "run the node on {instances} agents: {reason}"),
            Self::PutPod { pod, instances, reason, .. } => {
                let id = pod["id"].as_str().unwrap_or_default();
                write!(f, "run the nodes of {id} on {instances} agents: {reason}")
            }
            Self::PutRegistry { reason, .. } => write!(f, "run the registry: {reason}"),
            Self::TakeOver { takeover: Takeover { host, images, .. }, left_behind, .. } => {
                let known = format!("the new CA is known to every agent{}", but(left_behind));
                write!(f, "take over from the registry made by hand, and go on with its images in {images} on {host}: {known}")
            }
            Self::RetireRegistry => f.write_str("tell the registry to stop and to delete its key: it is switched off; its images stay"),
            Self::DeleteRegistry { retired: true } => f.write_str("delete the registry's app: it has stopped and deleted its key"),
            Self::DeleteRegistry { retired: false } => {
                f.write_str("delete the registry's app: it did not obey in time; its key may remain on its host")
            }
            Self::PutJob { id, exists: false, .. } => write!(f, "create the job {id}"),
            Self::PutJob { id, .. } => write!(f, "update the job {id}: its definition has changed"),
            Self::PutSchedule { job, schedule, .. } => {
                let word = |key: &str| schedule[key].as_str().unwrap_or_default().to_string();
                write!(f, "let the job {job} run at {} ({})", word("cron"), word("timezone"))
            }
            Self::DropSchedule { job } => write!(f, "let the job {job} run when it is started by hand only"),
            Self::StartRun { id } => write!(f, "start the first run of the job {id}"),
            Self::BeginRotation { reason } => write!(f, "make a new CA and make it known beside the present one: {reason}"),
            Self::DropRotation => write!(f, "drop the new CA: nobody asks for its names any more"),
            Self::SwitchCa { left_behind } => write!(f, "sign with the new CA: it is known to every agent{}", but(left_behind)),
            Self::RetireCa { left_behind } => {
                write!(f, "trust the old CA no more: the new one is proven on every agent{}", but(left_behind))
            }
            Self::SendTrust { host } => write!(f, "send the trust bundle to {host}"),
            Self::SendUsers { address } => write!(f, "tell the registry at {address} which users to let in"),
            Self::Restart { address } => write!(f, "let the registry at {address} restart with another certificate: the others serve"),
            Self::Certify { reason, .. } => write!(f, "sign a certificate for the registry: {reason}"),
        }
    }
}

fn but(left_behind: &[Host]) -> String {
    let names = left_behind.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if names.is_empty() { names } else { format!(" but {names}, which did not answer in time and will catch up") }
}

/// What to do now, and what has to be waited for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Writes, in order.
    pub actions: Vec<Action>,
    /// What stands in the way, for people.
    pub waiting: Vec<String>,
}

impl Plan {
    /// Whether nothing is done or waited for but agents' nodes: all registries serve, and no CA is replaced.
    pub fn is_about_agents_alone(&self, wanted: &Wanted, observed: &Observed) -> bool {
        let serves = |task: &RegistryTask| task.status.phase == RegistryPhase::Serving && task.status.errors.is_empty();
        let registry_is_well = match wanted.registry {
            true => observed.all_registries_answer() && observed.registries.iter().all(serves),
            false => observed.registry.is_none(),
        };
        let is_settled = wanted.ca.rotation.is_none() && wanted.ca.due.is_none() && wanted.takeover.is_none();
        let about_nodes = self.actions.iter().all(|action| matches!(action, Action::PutPod { .. } | Action::SendTrust { .. }));
        let id = &wanted.documents.registry_id;
        registry_is_well && is_settled && about_nodes && !observed.locked.contains(id)
    }

    /// Whether it takes a step of a rotation, or the first of what a registry needs: they end within a second, and others come after them.
    /// `few`: an order that goes to no more agents than that is none, for one of them may refuse it for ever.
    pub(crate) fn takes_a_step(&self, few: usize) -> bool {
        let is_step = |action: &Action| {
            matches!(action, Action::BeginRotation { .. } | Action::SwitchCa { .. } | Action::RetireCa { .. } | Action::Certify { .. })
        };
        let is_order = |action: &&Action| matches!(action, Action::SendTrust { .. });
        self.actions.iter().any(is_step) || self.actions.iter().filter(is_order).count() > few
    }
}

/// How an agent stands, for page, table and job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Agent.
    pub host: Host,
    /// Public or private.
    pub public: bool,
    /// In one word.
    pub state: RowState,
    /// Why, and what to do.
    pub detail: String,
}

/// See [`Row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowState {
    /// Proven with the newest bundle.
    Trusted,
    /// On its way.
    Pending,
    /// Needs somebody.
    Failed,
}

impl RowState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Trusted, Self::Pending, Self::Failed];

    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Pending => "pending",
            Self::Failed => "failed",
        }
    }
}

/// Refuses options that cannot work in this cluster, before anything is written.
///
/// # Errors
/// Every clash, with field and remedy.
pub fn refuse(options: &Options, observed: &Observed) -> Result<(), Faults> {
    let mut faults = takeover::faults(options, observed);
    faults.extend(storage::faults(options, observed));
    let mut fault = |field: &str, value: String, reason: String, remedy: &str| {
        faults.push(Fault { field: field.into(), value, reason, remedy: remedy.into() })
    };
    if !observed.marathon.has_pods() {
        let reason = format!("this Marathon is {}, which has no pods", observed.marathon.version);
        fault("dcos.marathon_url", options.endpoints().marathon, reason, "The package needs DC/OS 1.9 or later.");
    }
    if options.has_account() && !observed.marathon.has_pods_with_an_account() {
        let reason = format!("this Marathon is {}, whose pods do not run in strict mode", observed.marathon.version);
        let remedy = "DC/OS Enterprise 1.9 is served in permissive mode: leave it empty there; strict mode needs 1.10 or later.";
        fault("service.service_account_secret", options.service.service_account_secret.clone(), reason, remedy);
    }
    if options.registry.enabled && options.registry.generation == Generation::Three && !observed.marathon.pulls_schema_2() {
        let reason = format!(
            "this DC/OS has Marathon {} and a Mesos whose image puller reads manifests of schema 1 only, in which generation 3 does not answer",
            observed.marathon.version
        );
        fault("registry.generation", "3".into(), reason, "Choose 2; generation 3 is for DC/OS 1.13 and later.");
    }
    let own = documents::registry_id(options);
    let layout = observed.layout(options);
    if let Some(layout) = layout.filter(|layout| ![Asked::Auto, layout.asked()].contains(&options.trust.shards)) {
        let of = |asked| if asked == Asked::One { "one node pod".to_string() } else { format!("{asked} node pods") };
        let (now, asked) = (of(layout.asked()), of(options.trust.shards));
        let reason = format!("the agents have been divided among {now} since the installation, and are not moved to {asked}");
        let remedy = format!(
            "Set it back to auto or {}. Another number takes an uninstallation, which keeps the images, and an installation.",
            layout.asked()
        );
        fault("trust.shards", options.trust.shards.to_string(), reason, &remedy);
    }
    let pod_id = |shard: &Shard| format!("{}{}", documents::pod_id(options), shard.suffix());
    let pods = observed.pods.iter().map(|(shard, pod)| ("service.name", pod_id(shard), Some(pod.spec.as_ref())));
    let jobs = documents::job_ids(options).into_iter().map(|id| ("service.name", id.clone(), observed.jobs.get(&id).map(|job| &job.spec)));
    let runs_registry = options.registry.enabled;
    for (field, id, spec) in pods.chain(jobs) {
        if spec.is_some_and(|spec| !documents::is_made_by(spec, options)) {
            let reason = format!("there is something called {id} already, which this service has not made");
            fault(field, id, reason, "Choose another name, or remove what has this one if nobody needs it.");
        }
    }
    for other in observed.claims.iter().filter(|claim| runs_registry && claim.id != own) {
        for clash in exposure::clashes_with(other, options, observed) {
            fault(&clash.field, clash.value, clash.reason, &clash.remedy);
        }
    }
    if let Some(found) = exposure::not_offered(options, observed).filter(|_| runs_registry) {
        fault(&found.field, found.value, found.reason, &found.remedy);
    }
    for (field, host) in [("service.host", &options.service.host), ("registry.host", &options.registry.host)] {
        let Some(host) = host.as_ref().filter(|_| runs_registry || field == "service.host") else { continue };
        match observed.agents.iter().find(|agent| agent.host == *host) {
            Some(agent) if agent.public => {
                fault(
                    field,
                    host.to_string(),
                    "this is a public agent".into(),
                    "Name a private agent: images and keys do not belong on a machine that faces the outside.",
                );
            }
            Some(_) => {}
            // It was there when the app was pinned to it: that it is lost now makes no option unusable.
            None if is_pinned_to(if field == "service.host" { &observed.own_app } else { &observed.registry }, host) => {}
            None => {
                let known: Vec<_> = observed.agents.iter().filter(|a| !a.public).map(|a| a.host.to_string()).collect();
                let reason = format!("Mesos has no agent of this name; it has {}", known.join(", "));
                fault(field, host.to_string(), reason, "Give the agent's host name as Mesos shows it.");
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
}

/// Whether a run of the service's own uninstall job is active. A job of that name which somebody else has made orders nothing.
pub fn is_removal_ordered(options: &Options, observed: &Observed) -> bool {
    let job = observed.jobs.get(&documents::uninstall_job_id(options));
    job.is_some_and(|job| !job.active_runs.is_empty() && documents::is_made_by(&job.spec, options))
}

/// Plans an installation's next steps.
pub fn converge(wanted: &Wanted, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    plan_pods(wanted, observed, &mut plan);
    plan_registry(wanted, observed, &mut plan);
    plan_jobs(wanted, observed, &mut plan);
    let digest = order_digest(&wanted.trust);
    for (host, status) in &observed.nodes {
        if status.order_digest != digest {
            plan.actions.push(Action::SendTrust { host: host.clone() });
        }
    }
    plan_rotation(wanted, observed, &mut plan);
    // Before a registry gets its certificate and serves.
    plan_users(wanted, observed, &mut plan);
    plan_leaf(wanted, observed, &mut plan);
    plan_restart(wanted, observed, &mut plan);
    plan
}

/// Digest by which a node names the order that it took last.
pub fn order_digest(order: &SignedOrder) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(&order.payload).map(|bytes| sha256_hex(&bytes)).unwrap_or_default()
}

/// How many instances each pod should have: its agents that run one, and its active agents with room that run none.
///
/// Never more: an instance without a place would make the deployment hang and lock the pod.
pub fn wanted_instances(observed: &Observed, layout: Layout) -> BTreeMap<Shard, u64> {
    let others: BTreeSet<&Host> = observed.agents.iter().filter(|agent| !can_take_node(agent)).map(|agent| &agent.host).in_order();
    let placed: BTreeSet<&Host> = placed_hosts(observed).filter(|host| others.contains(host)).in_order();
    // Of several, one without agents is not made.
    let mut wanted: BTreeMap<Shard, u64> = (layout == Layout::One).then_some((Shard::All, 0)).into_iter().in_order();
    let takers = observed.agents.iter().filter(|agent| can_take_node(agent) || placed.contains(&agent.host));
    let counts = layout.count(takers.map(|agent| &agent.host));
    wanted.extend(counts.into_iter().filter(|(_, agents)| *agents > 0));
    wanted
}

/// What to know where one pod has very many agents.
pub fn crowded(wanted: &Wanted, observed: &Observed) -> Option<String> {
    let all = wanted_instances(observed, wanted.documents.layout);
    let (shard, largest) = all.into_iter().max_by_key(|(_, instances)| *instances)?;
    shards::advice(&wanted.documents.pod_id(shard), largest)
}

fn can_take_node(agent: &Agent) -> bool {
    agent.active && agent.free.covers(&NODE_NEEDS)
}

fn placed_hosts(observed: &Observed) -> impl Iterator<Item = &Host> {
    observed.instances().filter_map(|i| i.host.as_ref())
}

/// Where a node is, or is about to be.
fn node_hosts(observed: &Observed) -> BTreeSet<&Host> {
    let about_to_be = observed.agents.iter().filter(|agent| can_take_node(agent)).map(|agent| &agent.host);
    placed_hosts(observed).chain(about_to_be).in_order()
}

fn plan_pods(wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    let mut instances = wanted_instances(observed, wanted.documents.layout);
    for shard in observed.pods.keys() {
        instances.entry(*shard).or_insert(0);
    }
    instances.into_iter().for_each(|(shard, instances)| plan_pod(shard, instances, wanted, observed, plan));
}

fn plan_pod(shard: Shard, instances: u64, wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    let (documents, stored) = (&wanted.documents, observed.pods.get(&shard));
    let is_ours = |pod: &Pod| documents.is_pod(shard, &pod.spec);
    let surplus_for = observed.surplus_for.get(&shard).copied().unwrap_or_default();
    let too_many = |pod: &Pod| pod.scale() > instances && surplus_for >= SHRINK_AFTER;
    let reason = match stored {
        None => "it does not run yet".to_string(),
        Some(pod) if !is_ours(pod) => "its definition has changed".into(),
        Some(pod) if pod.scale() < instances => format!("{} agents have no node", instances - pod.scale()),
        Some(pod) if too_many(pod) => format!("{} agents are gone", pod.scale() - instances),
        Some(_) => return,
    };
    let id = documents.pod_id(shard);
    let locked = observed.locked.contains(&id);
    // Where only agents have come, Marathon places what it has to place.
    let goes_on = stored.is_none_or(|pod| is_ours(pod) && !too_many(pod));
    if locked && (goes_on || !observed.stuck.contains(&id)) {
        plan.waiting.push(format!("a deployment of {id} to end ({reason})"));
        return;
    }
    let pod = documents::scaled(&documents.pod(shard), instances, observed.marathon);
    plan.actions.push(Action::PutPod { shard, pod, instances, force: locked, reason });
}

fn plan_registry(wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    if !wanted.registry {
        return plan_retirement(wanted, observed, plan);
    }
    // It was switched off and is wanted again before it was gone. Without its key it starts nothing any more. Only who was told to can have
    // retired.
    let has_retired = |status: &RegistryStatus| {
        status.phase == RegistryPhase::Retired && wanted.retirement > 0 && status.order_version >= wanted.retirement
    };
    if observed.registry.is_some() && observed.registries.iter().any(|task| has_retired(&task.status)) {
        return plan.actions.push(Action::DeleteRegistry { retired: true });
    }
    let documents = &wanted.documents;
    let reason = match &observed.registry {
        None => "it does not run yet",
        Some(app) if !documents::same(&app.spec, &documents.registry) => "its definition has changed",
        Some(_) => {
            // Until then what answers may still be the task that is being replaced.
            if observed.locked.contains(&documents.registry_id) {
                plan.waiting.push(format!("the deployment of {} to end", documents.registry_id));
            }
            return;
        }
    };
    // One that cannot be certified would be waited for by the rotation for ever.
    let certifiable = |app: &App| is_certifiable(&app.spec, &documents.registry);
    let is_switched = wanted.ca.rotation.as_ref().is_some_and(|rotation| rotation.stage == Stage::Switched);
    if wanted.ca.holds_names_back && observed.registry.as_ref().is_some_and(|app| !is_switched || certifiable(app)) {
        plan.waiting.push("a CA that may speak for the new names; until then the registry stays as it is".into());
        return;
    }
    let locked = observed.locked.contains(&documents.registry_id);
    if locked && (wanted.takeover.is_some() || !observed.stuck.contains(&documents.registry_id)) {
        plan.waiting.push(format!("a deployment of {} to end ({reason})", documents.registry_id));
        return;
    }
    if let Some(takeover) = &wanted.takeover {
        return plan_takeover(takeover, wanted, observed, plan);
    }
    plan.actions.push(Action::PutRegistry { app: documents.registry.clone(), force: locked, reason: reason.into() });
}

/// Whether a registry takes the orders of this controller, its request is known by the controller's key, and it serves with what it is given.
fn is_certifiable(stored: &Value, wanted: &Value) -> bool {
    let is_same = |section: &str, name: &str| stored[section][name].is_string() && stored[section][name] == wanted[section][name];
    let serves_with = |app: &Value| {
        let settings: RegistrySettings = crate::json::of_text(app["env"][env::REGISTRY_SETTINGS].as_str()?).ok()?;
        Some((settings.insecure, settings.provided.is_some()))
    };
    is_same("env", env::ORDER_KEY) && is_same("labels", documents::ENROLMENT_LABEL) && serves_with(stored) == serves_with(wanted)
}

/// The registry made by hand goes on serving with its own certificate, which the agents still trust, until they trust ours as well.
fn plan_takeover(takeover: &Takeover, wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    let awaited = takeover::awaited(wanted, observed);
    let mut waiting = awaited.answering;
    if takeover.waited < wanted.ca.deadline {
        waiting.extend(awaited.silent.iter().cloned());
    }
    if waiting.is_empty() {
        let (app, takeover) = (wanted.documents.registry.clone(), takeover.clone());
        return plan.actions.push(Action::TakeOver { app, takeover, left_behind: awaited.silent });
    }
    let names = waiting.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    plan.waiting.push(format!("the new CA to be known on {names}; until then the registry made by hand goes on serving"));
}

/// As in an uninstall the key goes first, and then the app. The images stay.
fn plan_retirement(wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    if observed.registry.is_none() {
        return;
    }
    let mut tasks = observed.registries.iter().map(|task| &task.status);
    let answer = observed.all_registries_answer();
    let retired = answer && tasks.clone().all(|status| status.phase == RegistryPhase::Retired);
    if retired || wanted.retirement_is_late {
        plan.actions.push(Action::DeleteRegistry { retired });
    } else if !answer {
        plan.waiting.push(format!("the registry {} to answer, so that it deletes its key", wanted.documents.registry_id));
    } else if tasks.any(|status| status.phase != RegistryPhase::Retired && status.order_version < wanted.retirement) {
        plan.actions.push(Action::RetireRegistry);
    } else {
        plan.waiting.push("the registry to stop and to delete its key".into());
    }
}

fn plan_jobs(wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    for (index, (id, document)) in wanted.documents.jobs.iter().enumerate() {
        match observed.jobs.get(id) {
            Some(job) if documents::same(&job.spec, document) => {
                plan_schedule(id, &job.schedules, wanted.documents.schedules.get(id), plan);
                if index == 0 && job.active_runs.is_empty() && job.finished_runs == 0 {
                    plan.actions.push(Action::StartRun { id: id.clone() });
                }
            }
            stored => plan.actions.push(Action::PutJob { id: id.clone(), job: document.clone(), exists: stored.is_some() }),
        }
    }
}

/// A job keeps its schedule when it is replaced. Others' schedules are not touched.
fn plan_schedule(id: &str, stored: &[Value], wanted: Option<&Value>, plan: &mut Plan) {
    let ours = stored.iter().find(|schedule| schedule["id"] == documents::SCHEDULE);
    match (ours, wanted) {
        (ours, Some(wanted)) if ours.is_none_or(|ours| !documents::not_stored(wanted, ours).is_empty()) => {
            plan.actions.push(Action::PutSchedule { job: id.into(), schedule: wanted.clone(), exists: ours.is_some() });
        }
        (Some(_), None) => plan.actions.push(Action::DropSchedule { job: id.into() }),
        _ => {}
    }
}

/// Publish beside → known everywhere → switch → proven everywhere → retire.
fn plan_rotation(wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    let ca = &wanted.ca;
    if ca.void {
        return plan.actions.push(Action::DropRotation);
    }
    if let Some(reason) = ca.due {
        return plan.actions.push(Action::BeginRotation { reason });
    }
    let Some(rotation) = &ca.rotation else { return };
    let digest = order_digest(&wanted.trust);
    let since_switch = |host: &Host, status: &NodeStatus| observed.passes_at_switch.get(host).is_none_or(|before| status.passes > *before);
    let is_proven = |host: &Host| {
        observed.nodes.get(host).is_some_and(|status| {
            // What there is to prove is not there before the registry made by hand is replaced.
            let known =
                status.order_digest == digest && (status.phase == NodePhase::Trusted || wanted.takeover.is_some() && status.in_place);
            known && (rotation.stage == Stage::Published || since_switch(host, status))
        })
    };
    // Also where the node is just being started anew: the host goes on with what it trusts.
    let left_behind: Vec<Host> = node_hosts(observed).into_iter().filter(|host| !is_proven(host)).cloned().collect();
    if rotation.stage == Stage::Switched && !serves(wanted, observed) {
        // Without this the old CA stays trusted for as long as it takes.
        plan.waiting.push("the registry to serve with a certificate of the new CA".into());
    } else if !left_behind.is_empty() && wanted.now - rotation.since < ca.deadline {
        let names = left_behind.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        plan.waiting.push(format!("the new CA to be {} on {names}", if rotation.stage == Stage::Published { "known" } else { "proven" }));
    } else if rotation.stage == Stage::Published {
        plan.actions.push(Action::SwitchCa { left_behind });
    } else {
        plan.actions.push(Action::RetireCa { left_behind });
    }
}

fn plan_users(wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    let Some(users) = wanted.users.as_ref().filter(|_| wanted.registry) else { return };
    // One that keeps none was started with other options, and is about to be replaced.
    let lets_in_others = |task: &&RegistryTask| task.status.users.as_ref().is_some_and(|known| known != users);
    for task in observed.registries.iter().filter(|task| task.status.phase != RegistryPhase::Retired).filter(lets_in_others) {
        plan.actions.push(Action::SendUsers { address: task.address.clone() });
    }
}

/// Whether every registry serves with the certificate in force.
pub fn serves(wanted: &Wanted, observed: &Observed) -> bool {
    let does = |task: &RegistryTask| {
        let leaf = wanted.leaves.get(&task.address).map(|leaf| &leaf.fingerprint);
        task.status.phase == RegistryPhase::Serving && leaf.is_some() && task.status.leaf_fingerprint.as_ref() == leaf
    };
    observed.all_registries_answer() && observed.registries.iter().all(does)
}

fn plan_leaf(wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    if wanted.ca.signs_nothing || !wanted.registry {
        return;
    }
    // Whose key is lost cannot sign; what the registry has stays until the next CA may.
    if wanted.ca.key_is_lost {
        return;
    }
    let is_serving = |task: &RegistryTask| task.status.phase == RegistryPhase::Serving;
    // A new certificate is a restart, and one registry serves while another restarts.
    let mut one_may_restart = turns::one_may_restart(observed);
    let collecting = collection::holds_back(&observed.registries);
    for task in &observed.registries {
        let status = &task.status;
        if status.request.is_none() || status.phase == RegistryPhase::Retired {
            continue;
        }
        // It restarts by itself, twice.
        if status.collection.as_ref().is_some_and(Collection::is_active) {
            continue;
        }
        if let Some(host) = collecting {
            plan.waiting.push(format!("the garbage collection on {host}, before the registry on {} takes pushes", status.host));
            continue;
        }
        let reason = match (wanted.leaves.get(&task.address), &status.leaf_fingerprint) {
            (Some(leaf), _) if wanted.now >= leaf.renew_at => "the present one has reached two thirds of its life",
            (Some(leaf), Some(served)) if leaf.fingerprint == *served => continue,
            (_, None) if status.phase == RegistryPhase::AwaitingCertificate => "it has none",
            // It is being started, perhaps again and again: another certificate is no cure.
            (_, None) => continue,
            (_, Some(_)) => "names, key or CA have changed",
        };
        if is_serving(task) && !std::mem::replace(&mut one_may_restart, false) {
            plan.waiting.push(format!("the other registries to serve, before the one on {} restarts with a new certificate", status.host));
            continue;
        }
        plan.actions.push(Action::Certify { address: task.address.clone(), reason: reason.into() });
    }
}

fn plan_restart(wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    let mut one_may_restart = turns::one_may_restart(observed) && !plan.actions.iter().any(turns::is_restart);
    for task in observed.registries.iter().filter(|task| task.status.restart_due && wanted.registry) {
        if std::mem::replace(&mut one_may_restart, false) {
            plan.actions.push(Action::Restart { address: task.address.clone() });
        } else {
            let host = &task.status.host;
            plan.waiting.push(format!("the other registries to serve, before the one on {host} restarts with another certificate"));
        }
    }
}

/// The agent on which the images lie: where the options say, else where the registry is pinned already, else the controller's.
pub fn registry_host(observed: &Observed, options: &Options) -> Host {
    let pinned = observed.registry.as_ref().and_then(|app| match documents::is_made_by(&app.spec, options) {
        true => pinned_host(&app.spec),
        false => takeover::host_of(app),
    });
    let own = observed.own_app.iter().flat_map(|app| &app.tasks).next().map(|task| task.host.clone());
    options.registry.host.clone().or(pinned).or(own).unwrap_or(Host::Ip(std::net::Ipv4Addr::UNSPECIFIED))
}

/// The host that keeps the controller's state, when an earlier controller has left its mark at the registry app.
pub fn home(observed: &Observed) -> Option<Host> {
    let label = observed.registry.as_ref().and_then(|app| app.spec["labels"][documents::HOME_LABEL].as_str());
    // Without a registry: the job that needs the keys of that host runs on it.
    let jobs = observed.jobs.values().filter_map(|job| job.spec["run"]["placement"]["constraints"].as_array());
    let job = jobs.flatten().filter(|constraint| constraint["attribute"] == "hostname").find_map(|constraint| constraint["value"].as_str());
    label.and_then(|host| host.parse().ok()).or_else(|| job.and_then(matched_host))
}

fn is_pinned_to(app: &Option<App>, host: &Host) -> bool {
    app.as_ref().and_then(|app| pinned_host(&app.spec)).as_ref() == Some(host)
}

/// What to know where the agent is lost that keeps the images.
pub fn lost_home(options: &Options, observed: &Observed) -> Option<String> {
    let host = options.registry.host.as_ref().filter(|_| options.registry.enabled)?;
    let is_lost = is_pinned_to(&observed.registry, host) && !observed.agents.iter().any(|agent| agent.host == *host);
    is_lost.then(|| {
        format!(
            "registry.host = {host}: Mesos has lost this agent, and with it the registry; it runs again as soon as the agent is back. \
             Another agent in registry.host would start without its images"
        )
    })
}

fn pinned_host(app: &Value) -> Option<Host> {
    let constraints = app["constraints"].as_array()?;
    let pin = constraints.iter().find(|c| c[0] == "hostname" && c[1] == "LIKE")?;
    matched_host(pin[2].as_str()?)
}

/// The host that [`documents::exactly`] was given.
pub fn matched_host(pattern: &str) -> Option<Host> {
    pattern.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".").parse().ok()
}

/// The instances on those agents, the first on each.
pub fn instances_on<'a>(agents: &BTreeSet<&Host>, observed: &'a Observed) -> BTreeMap<&'a Host, &'a Instance> {
    let mut instances = BTreeMap::new();
    if !agents.is_empty() {
        let placed = observed.instances().filter_map(|instance| Some((instance.host.as_ref()?, instance)));
        for (host, instance) in placed.filter(|(host, _)| agents.contains(host)) {
            instances.entry(host).or_insert(instance);
        }
    }
    instances
}

/// How an agent stands. `digest`: of the order that its node should have taken; `status`: what that says; `instance`: counts where it
/// says nothing.
pub fn row(
    agent: &Agent,
    status: Option<&NodeStatus>,
    instance: Option<&Instance>,
    digest: &str,
    wanted: &Wanted,
    observed: &Observed,
) -> Row {
    let until = observed.passes_at_takeover.get(&agent.host);
    let is_about_another = |status: &NodeStatus| wanted.takeover.is_some() || until.is_some_and(|passes| status.passes <= *passes);
    let (state, detail) = match (status, instance) {
        (Some(status), _) if status.order_digest != digest => (RowState::Pending, "is about to get the newest bundle".to_string()),
        (Some(status), _) if status.in_place && is_about_another(status) => {
            (RowState::Pending, "knows the new CA; it is proven as soon as the new registry serves".into())
        }
        (Some(status), _) => match status.phase {
            NodePhase::Trusted if wanted.ca.plain_http => (RowState::Trusted, format!("{}; {NOT_COVERED}", proof_words(status))),
            NodePhase::Trusted => (RowState::Trusted, proof_words(status)),
            NodePhase::Pending => (RowState::Pending, first_or(&status.errors, "not proven yet")),
            NodePhase::Failed => (RowState::Failed, first_or(&status.errors, "the node reports a failure without a reason")),
            NodePhase::Restored => (RowState::Pending, "restored".into()),
        },
        (None, Some(_)) if agent.recovered => (RowState::Pending, RECOVERED.into()),
        (None, Some(instance)) => (RowState::Pending, silent(&agent.host, instance.port)),
        (None, None) if agent.recovered => (RowState::Pending, RECOVERED.into()),
        (None, None) if !agent.active => {
            (RowState::Pending, "Mesos places nothing here: the agent is draining, deactivated or disconnected".into())
        }
        (None, None) if !agent.free.covers(&NODE_NEEDS) => (
            RowState::Failed,
            format!(
                "no room: the node needs {} cpus, {} MiB memory and {} MiB disk; free some on this agent",
                NODE_NEEDS.cpus, NODE_NEEDS.mem, NODE_NEEDS.disk
            ),
        ),
        (None, None) => (RowState::Pending, "Marathon has not placed the node yet".into()),
    };
    Row { host: agent.host.clone(), public: agent.public, state, detail }
}

/// What no setting makes possible over plain HTTP.
const NOT_COVERED: &str = "Mesos' own image puller speaks http only on port 80";

/// An agent of whom a new Mesos master has only heard.
const RECOVERED: &str = "has not come back yet to the Mesos master that has taken over; until it has, it counts as before";

/// Why a node has nothing to say, as far as can be known from here.
fn silent(host: &Host, port: Option<u16>) -> String {
    match port {
        // Marathon counts it as running.
        Some(port) => format!(
            "the node does not answer at {host}:{port}: it is starting, its agent is down, or nothing passes between that and the \
             controller's; `dcos private-registry logs {host}` says more"
        ),
        None => "Marathon is starting the node".into(),
    }
}

fn first_or(errors: &[String], otherwise: &str) -> String {
    errors.first().cloned().unwrap_or_else(|| otherwise.to_string())
}

fn proof_words(status: &NodeStatus) -> String {
    let trusting = status.proofs.iter().filter(|proof| proof.outcome == ProofOutcome::Trusted);
    let clients: BTreeSet<&str> = trusting.map(|proof| proof.client.as_str()).in_order();
    // An agent that trusts only registries of which none answers.
    if clients.is_empty() { "in place".into() } else { format!("proven by {}", clients.into_iter().collect::<Vec<_>>().join(" and ")) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::dcos::mesos::Ports;
    use crate::distribution::Published;
    use crate::documents::Facts;
    use crate::protocol::{SysctlState, SysctlStatus};
    use serde_json::json;

    pub(crate) fn agent(host: &str) -> Agent {
        let free = Resources { cpus: 1.0, mem: 1000.0, disk: 1000.0 };
        Agent {
            id: format!("id-{host}"),
            host: host.parse().unwrap(),
            public: false,
            active: true,
            recovered: false,
            free,
            ports: Ports::default(),
        }
    }

    fn full(host: &str) -> Agent {
        Agent { free: Resources::default(), ..agent(host) }
    }

    pub(crate) fn wanted() -> Wanted {
        let trust = SignedOrder { payload: "e30=".into(), signature: String::new() };
        let facts = Facts {
            registry_host: "10.0.0.1".parse().unwrap(),
            home: "10.0.0.1".parse().unwrap(),
            binary_sha256: "00".into(),
            registry_image: "registry:2.8.3".into(),
            upstream_certificates: String::new(),
            order_key: String::new(),
            first_order: Published { variable: "{}".into(), secret: None },
            layout: Layout::One,
            enrolment_key: Published { variable: "".into(), secret: None },
            enrolment_id: String::new(),
            package_uri: "http://universe.example.com/private-registry".into(),
            options: BTreeMap::new(),
            jobs_have_secrets: true,
        };
        let documents = documents::render(&Options::from_json(&json!({})).unwrap(), &facts).unwrap();
        Wanted {
            documents,
            trust,
            now: 0,
            leaves: BTreeMap::new(),
            ca: Ca::default(),
            registry: true,
            retirement: 0,
            retirement_is_late: false,
            takeover: None,
            users: None,
        }
    }

    fn pods(wanted: &Wanted, instances: u64, hosts: &[&str]) -> BTreeMap<Shard, Pod> {
        pod_of(Shard::All, wanted, instances, hosts)
    }

    fn pod_of(shard: Shard, wanted: &Wanted, instances: u64, hosts: &[&str]) -> BTreeMap<Shard, Pod> {
        let instance = |host: &&str| Instance { id: format!("p.instance-{host}"), host: host.parse().ok(), port: None };
        let spec = documents::scaled(&wanted.documents.pod(shard), instances, Default::default());
        BTreeMap::from([(shard, Pod { spec: spec.into(), instances: hosts.iter().map(instance).collect() })])
    }

    fn pod_scale(plan: &Plan) -> Option<u64> {
        plan.actions.iter().find_map(|action| match action {
            Action::PutPod { instances, .. } => Some(*instances),
            _ => None,
        })
    }

    #[test]
    fn what_is_about_agents_alone_leaves_registry_and_ca_as_they_are() {
        let mut wanted = wanted();
        let registry = App { spec: wanted.documents.registry.clone(), tasks: vec![] };
        let mut observed = Observed { registry: Some(registry), registries: vec![task(registry_status("leaf"))], ..Observed::default() };
        let grows = Action::PutPod { shard: Shard::All, pod: Value::Null, instances: 1, force: false, reason: String::new() };
        let agents = Plan { actions: vec![grows, Action::SendTrust { host: "10.0.0.1".parse().unwrap() }], waiting: vec![] };
        assert!(agents.is_about_agents_alone(&wanted, &observed));
        let restart = Plan { actions: vec![Action::Restart { address: ADDRESS.into() }], waiting: vec![] };
        assert!(!restart.is_about_agents_alone(&wanted, &observed));
        wanted.ca.rotation = Some(Rotation::at(Stage::Switched, Reason::Order, 0));
        assert!(!agents.is_about_agents_alone(&wanted, &observed));
        wanted.ca.rotation = None;
        observed.locked = [wanted.documents.registry_id.clone()].into();
        assert!(!agents.is_about_agents_alone(&wanted, &observed));
        observed.locked.clear();
        observed.registries[0].status.errors = vec!["the disk is full".into()];
        assert!(!agents.is_about_agents_alone(&wanted, &observed));
        observed.registries.clear();
        assert!(!agents.is_about_agents_alone(&wanted, &observed));
        wanted.registry = false;
        assert!(!agents.is_about_agents_alone(&wanted, &observed));
        observed.registry = None;
        assert!(agents.is_about_agents_alone(&wanted, &observed));
    }

    #[test]
    fn a_step_is_what_ends_soon_and_has_another_one_behind_it() {
        let sends = |number: u8| Action::SendTrust { host: format!("10.0.0.{number}").parse().unwrap() };
        let takes_a_step = |actions: Vec<Action>| Plan { actions, waiting: vec![] }.takes_a_step(2);
        assert!(takes_a_step(vec![sends(1), Action::SwitchCa { left_behind: vec![] }]));
        assert!(takes_a_step(vec![sends(1), sends(2), sends(3)]));
        assert!(!takes_a_step(vec![sends(1), sends(2), Action::StartRun { id: "job".into() }]));
    }

    #[test]
    fn generation_3_is_refused_where_mesos_reads_schema_1_only() {
        let faults = |generation: &str, version: &str| {
            let options = Options::from_json(&json!({ "registry": { "generation": generation } })).unwrap();
            let marathon = versions::Marathon { version: version.parse().unwrap() };
            let refused = refuse(&options, &Observed { marathon, ..Observed::default() });
            refused.err().map_or(Vec::new(), |faults| faults.0.into_iter().map(|fault| fault.field).collect())
        };
        assert_eq!(faults("3", "1.7.202"), ["registry.generation"]);
        assert!(faults("2", "1.4.2").is_empty() && faults("3", "1.8.180").is_empty());
    }

    #[test]
    fn an_agent_that_is_lost_makes_no_option_unusable_and_one_that_never_was_there_does() {
        let options = Options::from_json(&json!({ "registry": { "host": "10.0.0.9" } })).unwrap();
        let marathon = versions::Marathon { version: "1.11.24".parse().unwrap() };
        let mut observed = Observed { marathon, agents: vec![agent("10.0.0.1")], ..Observed::default() };
        let refused = refuse(&options, &observed).unwrap_err().to_string();
        assert!(refused.contains("Mesos has no agent of this name"), "{refused}");
        assert_eq!(lost_home(&options, &observed), None);

        let labels: Value =
            crate::json::of_text(&wanted().documents.registry["labels"].to_string().replace("10.0.0.1", "10.0.0.9")).unwrap();
        let spec = json!({ "constraints": [["hostname", "LIKE", documents::exactly(&"10.0.0.9".parse().unwrap())]], "labels": labels });
        observed.registry = Some(App { spec, tasks: vec![] });
        // Its images lie elsewhere here, which is another matter.
        let said = refuse(&options, &observed).err().map(|faults| faults.to_string()).unwrap_or_default();
        assert!(!said.contains("Mesos has no agent of this name"), "{said}");
        assert!(lost_home(&options, &observed).unwrap().contains("Mesos has lost this agent"));
        observed.agents.push(agent("10.0.0.9"));
        assert_eq!(lost_home(&options, &observed), None);
    }

    #[test]
    fn an_empty_cluster_gets_pod_registry_and_job() {
        let observed = Observed { agents: vec![agent("10.0.0.1"), agent("10.0.0.2")], ..Observed::default() };
        let plan = converge(&wanted(), &observed);
        let texts: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "run the node on 2 agents: it does not run yet",
                "run the registry: it does not run yet",
                "create the job private-registry.init",
                "create the job private-registry.rotate",
                "create the job private-registry.gc",
                "create the job private-registry.gc-dry-run",
                "create the job private-registry.uninstall"
            ]
        );
    }

    #[test]
    fn a_registry_that_is_switched_off_deletes_its_key_before_its_app_goes() {
        let wanted = Wanted { registry: false, retirement: 7, ..wanted() };
        let app = App { spec: wanted.documents.registry.clone(), tasks: vec![] };
        let status = |order_version, phase| RegistryStatus {
            phase,
            order_version,
            starts: 1,
            ..RegistryStatus::first("private-registry", "t", "10.0.0.1")
        };
        let about_registry = |status: Option<RegistryStatus>, registry| {
            let registries = status.into_iter().map(task).collect();
            let plan = converge(&wanted, &Observed { registry, registries, ..Observed::default() });
            let actions = plan.actions.into_iter().filter(|action| !matches!(action, Action::PutPod { .. } | Action::PutJob { .. }));
            (actions.collect::<Vec<_>>(), plan.waiting.len())
        };
        assert_eq!(about_registry(None, Some(app.clone())), (vec![], 1));
        assert_eq!(about_registry(Some(status(6, RegistryPhase::Serving)), Some(app.clone())), (vec![Action::RetireRegistry], 0));
        assert_eq!(about_registry(Some(status(7, RegistryPhase::Serving)), Some(app.clone())), (vec![], 1));
        let delete = |retired| vec![Action::DeleteRegistry { retired }];
        assert_eq!(about_registry(Some(status(7, RegistryPhase::Retired)), Some(app.clone())), (delete(true), 0));
        assert_eq!(about_registry(None, None), (vec![], 0));
        let late = Wanted { retirement_is_late: true, ..wanted.clone() };
        let planned = |registries| {
            let mut plan = Plan::default();
            plan_registry(&late, &Observed { registry: Some(app.clone()), registries, ..Observed::default() }, &mut plan);
            plan.actions
        };
        assert_eq!(planned(vec![]), delete(false));
        assert_eq!(planned(vec![task(status(7, RegistryPhase::Retired))]), delete(true));
    }

    #[test]
    fn a_new_agent_grows_the_pod_and_a_full_one_does_not() {
        let wanted = wanted();
        let observed = Observed {
            agents: vec![full("10.0.0.1"), agent("10.0.0.2"), full("10.0.0.3")],
            pods: pods(&wanted, 1, &["10.0.0.1"]),
            ..Observed::default()
        };
        assert_eq!(pod_scale(&converge(&wanted, &observed)), Some(2));
    }

    #[test]
    fn while_the_registry_is_being_replaced_nothing_is_done_and_it_is_said() {
        let wanted = wanted();
        let registry = Some(App { spec: wanted.documents.registry.clone(), tasks: vec![] });
        let waited_for = |locked: &[&str]| {
            let locked = locked.iter().map(|id| id.to_string()).collect();
            let mut plan = Plan::default();
            plan_registry(&wanted, &Observed { registry: registry.clone(), locked, ..Observed::default() }, &mut plan);
            assert!(plan.actions.is_empty());
            plan.waiting
        };
        assert_eq!(waited_for(&["/registry"]), ["the deployment of /registry to end"]);
        assert!(waited_for(&["/private-registry-node"]).is_empty());
    }

    #[test]
    fn a_locked_pod_is_waited_for() {
        let wanted = wanted();
        let observed =
            Observed { agents: vec![agent("10.0.0.1")], locked: [wanted.documents.pod_id.clone()].into(), ..Observed::default() };
        let plan = converge(&wanted, &observed);
        assert_eq!(pod_scale(&plan), None);
        assert_eq!(plan.waiting.len(), 1);
    }

    #[test]
    fn a_lost_agent_shrinks_the_pod_only_after_a_long_while() {
        let wanted = wanted();
        let mut observed = Observed { agents: vec![agent("10.0.0.1")], pods: pods(&wanted, 2, &["10.0.0.1"]), ..Observed::default() };
        assert_eq!(pod_scale(&converge(&wanted, &observed)), None);
        observed.surplus_for.insert(Shard::All, SHRINK_AFTER);
        assert_eq!(pod_scale(&converge(&wanted, &observed)), Some(1));
    }

    #[test]
    fn a_deployment_that_does_not_end_gives_way_to_what_mends_it_and_to_nothing_else() {
        let wanted = wanted();
        let mut observed = Observed { agents: vec![agent("10.0.0.1")], pods: pods(&wanted, 2, &["10.0.0.1"]), ..Observed::default() };
        observed.registry = Some(App { spec: json!({ "labels": { documents::SERVICE_LABEL: "private-registry" } }), tasks: vec![] });
        observed.locked = [wanted.documents.pod_id.clone(), wanted.documents.registry_id.clone()].into();
        let forced = |observed: &Observed| -> Vec<&str> {
            let actions = converge(&wanted, observed).actions;
            let kinds = actions.iter().filter_map(|action| match action {
                Action::PutPod { force, .. } => Some(if *force { "pod" } else { "pod without force" }),
                Action::PutRegistry { force, .. } => Some(if *force { "registry" } else { "registry without force" }),
                _ => None,
            });
            kinds.collect()
        };
        assert!(forced(&observed).is_empty());
        observed.stuck.clone_from(&observed.locked);
        assert_eq!(forced(&observed), ["registry"], "the pod is as it should be, and the agent may come back");
        // The deployment waits for that agent, and would wait for ever.
        observed.surplus_for.insert(Shard::All, SHRINK_AFTER);
        assert_eq!(forced(&observed), ["pod", "registry"]);
        observed.surplus_for.clear();
        observed.agents.extend([agent("10.0.0.2"), agent("10.0.0.3")]);
        assert_eq!(forced(&observed), ["registry"], "Marathon goes on by itself");
        Arc::make_mut(&mut observed.pods.get_mut(&Shard::All).unwrap().spec)["labels"] = json!({});
        assert_eq!(forced(&observed), ["pod", "registry"]);
    }

    #[test]
    fn what_is_in_place_is_left_alone() {
        let wanted = wanted();
        let job = |document: &Value| Job { spec: document.clone(), active_runs: vec![], finished_runs: 1, schedules: vec![] };
        let observed = Observed {
            agents: vec![agent("10.0.0.1")],
            pods: pods(&wanted, 1, &["10.0.0.1"]),
            registry: Some(App { spec: wanted.documents.registry.clone(), tasks: vec![] }),
            jobs: wanted.documents.jobs.iter().map(|(id, document)| (id.clone(), job(document))).collect(),
            ..Observed::default()
        };
        assert_eq!(converge(&wanted, &observed), Plan::default());
    }

    #[test]
    fn where_scaling_forgets_unique_the_definition_changes_with_the_number() {
        let wanted = wanted();
        let scale_of = |version| {
            let marathon = versions::Marathon { version };
            let observed = Observed { marathon, agents: vec![agent("10.0.0.1"), agent("10.0.0.2")], ..Observed::default() };
            match converge(&wanted, &observed).actions.into_iter().next() {
                Some(Action::PutPod { pod, .. }) => pod["environment"]["PRIVATE_REGISTRY_SCALE"].clone(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(scale_of(versions::Version(1, 4, 2)), "2");
        assert_eq!(scale_of(versions::Version(1, 11, 24)), Value::Null);
    }

    pub(crate) fn node(host: &str, digest: &str, phase: NodePhase, passes: u64) -> (Host, NodeStatus) {
        let sysctl = SysctlStatus { state: SysctlState::Set, value: None, found: None };
        let status = NodeStatus {
            service: "private-registry".into(),
            executor: String::new(),
            host: host.into(),
            order_version: 1,
            order_digest: digest.into(),
            phase,
            files: vec![],
            sysctl,
            proofs: vec![],
            errors: vec![],
            passes,
            in_place: true,
            exposed_key: None,
            cleaned: vec![],
            preload: None,
        };
        (host.parse().unwrap(), status)
    }

    pub(crate) fn answering<const N: usize>(nodes: [(Host, NodeStatus); N]) -> BTreeMap<Host, Arc<NodeStatus>> {
        nodes.map(|(host, status)| (host, Arc::new(status))).into()
    }

    const ADDRESS: &str = "10.0.0.1:31000";

    pub(crate) fn task(status: RegistryStatus) -> RegistryTask {
        RegistryTask { address: ADDRESS.into(), status }
    }

    #[test]
    fn while_one_of_several_registries_restarts_with_a_new_certificate_the_others_serve() {
        let mut wanted = wanted();
        let addresses = ["10.0.0.1:1", "10.0.0.2:1"];
        let leaf = || Leaf { fingerprint: "new".into(), renew_at: i64::MAX };
        wanted.leaves = addresses.map(|address| (address.to_string(), leaf())).into();
        let request = || Some(crate::protocol::CertificateRequest { csr: String::new(), mac: String::new() });
        let app = || {
            let tasks = addresses.map(|address| crate::dcos::marathon::AppTask {
                id: address.into(),
                host: address.split(':').next().unwrap().parse().unwrap(),
                ports: vec![0, 1],
                healthy: true,
            });
            Some(App { spec: wanted.documents.registry.clone(), tasks: tasks.into() })
        };
        let certified = |leaves: [Option<&str>; 2], phases: [RegistryPhase; 2]| {
            let tasks = addresses.iter().zip(leaves).zip(phases).map(|((address, leaf), phase)| {
                let leaf_fingerprint = leaf.map(String::from);
                RegistryTask {
                    address: address.to_string(),
                    status: RegistryStatus { leaf_fingerprint, phase, request: request(), ..registry_status("") },
                }
            });
            let mut plan = Plan::default();
            plan_leaf(&wanted, &Observed { registry: app(), registries: tasks.collect(), ..Observed::default() }, &mut plan);
            let addresses = plan.actions.iter().map(|action| match action {
                Action::Certify { address, .. } => address.clone(),
                other => panic!("{other}"),
            });
            (addresses.collect::<Vec<_>>(), plan.waiting.len())
        };
        use RegistryPhase::{AwaitingCertificate, Restarting, Serving};
        assert_eq!(certified([Some("old"), Some("old")], [Serving, Serving]), (vec![addresses[0].to_string()], 1));
        assert_eq!(certified([Some("new"), Some("old")], [Restarting, Serving]), (vec![], 1));
        assert_eq!(certified([Some("new"), Some("old")], [Serving, Serving]), (vec![addresses[1].to_string()], 0));
        assert_eq!(certified([None, Some("old")], [AwaitingCertificate, Serving]), (vec![addresses[0].to_string()], 1));
        assert_eq!(certified([None, None], [AwaitingCertificate, AwaitingCertificate]).0.len(), 2);
        assert_eq!(certified([Some("new"), None], [Serving, Restarting]).0.len(), 0, "one that cannot start gets no other certificate");
    }

    #[test]
    fn registries_that_have_to_restart_are_called_one_after_the_other() {
        let wanted = wanted();
        let of = |name: &str, restart_due| RegistryTask {
            address: name.into(),
            status: RegistryStatus { host: name.into(), restart_due, ..registry_status("") },
        };
        let planned = |due: [bool; 2], certified: bool| {
            let registries = ["a", "b"].into_iter().zip(due).map(|(name, due)| of(name, due)).collect();
            let known =
                |healthy| crate::dcos::marathon::AppTask { id: String::new(), host: "10.0.0.1".parse().unwrap(), ports: vec![], healthy };
            let registry = Some(App { spec: Value::Null, tasks: vec![known(true), known(true)] });
            let mut plan = Plan::default();
            if certified {
                plan.actions.push(Action::Certify { address: "c".into(), reason: String::new() });
            }
            plan_restart(&wanted, &Observed { registry, registries, ..Observed::default() }, &mut plan);
            let restarts = plan.actions.iter().filter(|action| matches!(action, Action::Restart { .. }));
            (restarts.map(ToString::to_string).collect::<Vec<_>>(), plan.waiting)
        };
        let called = |name: &str| vec![format!("let the registry at {name} restart with another certificate: the others serve")];
        let waits = |name: &str| format!("the other registries to serve, before the one on {name} restarts with another certificate");
        assert_eq!(planned([false, false], false), (vec![], vec![]));
        assert_eq!(planned([true, true], false), (called("a"), vec![waits("b")]));
        assert_eq!(planned([false, true], false), (called("b"), vec![]));
        assert_eq!(planned([true, false], true), (vec![], vec![waits("a")]), "another one restarts in this pass");
    }

    #[test]
    fn a_registry_is_told_of_its_users_when_it_lets_in_others() {
        let mut wanted = wanted();
        let planned = |wanted: &Wanted, users: Option<&str>, phase| {
            let status = RegistryStatus { users: users.map(String::from), phase, ..registry_status("") };
            let mut plan = Plan::default();
            plan_users(wanted, &Observed { registries: vec![task(status)], ..Observed::default() }, &mut plan);
            plan.actions.len()
        };
        use RegistryPhase::{AwaitingCertificate, Retired, Serving};
        assert_eq!(planned(&wanted, Some("old"), Serving), 0, "the users are others' affair");
        wanted.users = Some("new".into());
        assert_eq!(planned(&wanted, Some("old"), Serving), 1);
        assert_eq!(planned(&wanted, Some("old"), AwaitingCertificate), 1);
        assert_eq!(planned(&wanted, Some("new"), Serving), 0);
        assert_eq!(planned(&wanted, None, Serving), 0);
        assert_eq!(planned(&wanted, Some("old"), Retired), 0);
    }

    pub(crate) fn registry_status(leaf: &str) -> RegistryStatus {
        RegistryStatus {
            phase: RegistryPhase::Serving,
            leaf_fingerprint: Some(leaf.into()),
            order_version: 1,
            starts: 1,
            ..RegistryStatus::first("private-registry", "", "")
        }
    }

    /// What the planner says of a rotation: its own action, and what it waits for.
    fn rotation_steps(wanted: &Wanted, observed: &Observed) -> Vec<String> {
        let mut plan = Plan::default();
        plan_rotation(wanted, observed, &mut plan);
        plan.actions.iter().map(ToString::to_string).chain(plan.waiting).collect()
    }

    #[test]
    fn a_rotation_switches_when_every_node_knows_the_new_ca_and_retires_when_every_node_has_proven_it() {
        let mut wanted = wanted();
        let digest = order_digest(&wanted.trust);
        wanted.ca = Ca { rotation: Some(Rotation::at(Stage::Published, Reason::Order, 0)), deadline: 900, ..Ca::default() };
        wanted.leaves = [(ADDRESS.to_string(), Leaf { fingerprint: "new".into(), renew_at: i64::MAX })].into();
        let mut observed = Observed { pods: pods(&wanted, 2, &["10.0.0.1", "10.0.0.2"]), ..Observed::default() };
        let trusted = |passes| node("10.0.0.1", &digest, NodePhase::Trusted, passes);
        observed.nodes = answering([trusted(1), node("10.0.0.2", "older", NodePhase::Trusted, 1)]);
        assert_eq!(rotation_steps(&wanted, &observed), ["the new CA to be known on 10.0.0.2"]);
        observed.nodes = answering([trusted(1), node("10.0.0.2", &digest, NodePhase::Pending, 1)]);
        assert_eq!(rotation_steps(&wanted, &observed), ["the new CA to be known on 10.0.0.2"]);
        observed.nodes = answering([trusted(1), node("10.0.0.2", &digest, NodePhase::Trusted, 1)]);
        assert_eq!(rotation_steps(&wanted, &observed), ["sign with the new CA: it is known to every agent"]);

        wanted.ca.rotation = Some(Rotation::at(Stage::Switched, Reason::Order, 0));
        observed.registries = vec![task(registry_status("old"))];
        assert_eq!(rotation_steps(&wanted, &observed), ["the registry to serve with a certificate of the new CA"]);
        observed.registries = vec![task(registry_status("new"))];
        observed.passes_at_switch = [("10.0.0.1".parse().unwrap(), 1), ("10.0.0.2".parse().unwrap(), 1)].into();
        assert_eq!(rotation_steps(&wanted, &observed), ["the new CA to be proven on 10.0.0.1, 10.0.0.2"]);
        observed.nodes = answering([trusted(2), node("10.0.0.2", &digest, NodePhase::Trusted, 2)]);
        assert_eq!(rotation_steps(&wanted, &observed), ["trust the old CA no more: the new one is proven on every agent"]);
    }

    #[test]
    fn nobody_is_waited_for_beyond_the_deadline_but_the_old_ca_is_never_retired_while_the_registry_serves_with_it() {
        let mut wanted = wanted();
        wanted.ca = Ca { rotation: Some(Rotation::at(Stage::Published, Reason::Order, 0)), deadline: 900, ..Ca::default() };
        wanted.leaves = [(ADDRESS.to_string(), Leaf { fingerprint: "new".into(), renew_at: i64::MAX })].into();
        let mut observed = Observed { pods: pods(&wanted, 1, &["10.0.0.1"]), ..Observed::default() };
        wanted.now = 899;
        assert_eq!(rotation_steps(&wanted, &observed), ["the new CA to be known on 10.0.0.1"]);
        wanted.now = 900;
        let late = "sign with the new CA: it is known to every agent but 10.0.0.1, which did not answer in time and will catch up";
        assert_eq!(rotation_steps(&wanted, &observed), [late]);
        wanted.ca.rotation = Some(Rotation::at(Stage::Switched, Reason::Order, 0));
        observed.registries = vec![task(registry_status("old"))];
        wanted.now = 1_000_000;
        assert_eq!(rotation_steps(&wanted, &observed), ["the registry to serve with a certificate of the new CA"]);
    }

    #[test]
    fn names_are_held_back_from_a_registry_unless_the_rotation_could_not_certify_it() {
        let mut wanted = wanted();
        wanted.documents.registry["env"][env::ORDER_KEY] = "ours".into();
        wanted.documents.registry["labels"][documents::ENROLMENT_LABEL] = "ours".into();
        wanted.ca.holds_names_back = true;
        let settings =
            |insecure: bool| json!({ "log_level": "info", "delete_enabled": true, "drain_seconds": 5, "insecure": insecure }).to_string();
        wanted.documents.registry["env"][env::REGISTRY_SETTINGS] = settings(false).into();
        let puts = |wanted: &Wanted, change: &dyn Fn(&mut Value)| {
            let mut spec = wanted.documents.registry.clone();
            spec["labels"]["PRIVATE_REGISTRY_DOCUMENT"] = "another".into();
            change(&mut spec);
            let mut plan = Plan::default();
            plan_registry(wanted, &Observed { registry: Some(App { spec, tasks: vec![] }), ..Observed::default() }, &mut plan);
            matches!(plan.actions[..], [Action::PutRegistry { .. }])
        };
        let same = |_: &mut Value| {};
        let other_key = |spec: &mut Value| spec["env"][env::ORDER_KEY] = "lost".into();
        let other_enrolment = |spec: &mut Value| spec["labels"][documents::ENROLMENT_LABEL] = "lost".into();
        let plain_http = |spec: &mut Value| spec["env"][env::REGISTRY_SETTINGS] = settings(true).into();
        let changes: [&dyn Fn(&mut Value); 4] = [&same, &other_key, &other_enrolment, &plain_http];
        assert_eq!(changes.map(|change| puts(&wanted, change)), [false; 4]);
        wanted.ca.rotation = Some(Rotation::at(Stage::Switched, Reason::LostKey, 0));
        assert_eq!(changes.map(|change| puts(&wanted, change)), [false, true, true, true]);
    }

    #[test]
    fn a_registry_that_is_wanted_again_after_it_has_retired_is_made_anew_and_only_if_it_was_told_to_retire() {
        let mut wanted = wanted();
        let deletes = |wanted: &Wanted, phase: RegistryPhase, order_version: u64| {
            let status = RegistryStatus { phase, order_version, ..registry_status("") };
            let app = App { spec: wanted.documents.registry.clone(), tasks: vec![] };
            let mut plan = Plan::default();
            plan_registry(wanted, &Observed { registry: Some(app), registries: vec![task(status)], ..Observed::default() }, &mut plan);
            !plan.actions.is_empty()
        };
        assert!(!deletes(&wanted, RegistryPhase::Retired, 7), "nobody has told it to");
        wanted.retirement = 7;
        assert!(deletes(&wanted, RegistryPhase::Retired, 7));
        assert!(!deletes(&wanted, RegistryPhase::Retired, 6) && !deletes(&wanted, RegistryPhase::Serving, 7));
    }

    #[test]
    fn a_registry_made_by_hand_is_replaced_when_every_agent_has_written_the_new_trust() {
        let mut wanted = wanted();
        let digest = order_digest(&wanted.trust);
        let of = |waited| Some(Takeover { host: "10.0.0.1".parse().unwrap(), images: "/data/images".into(), waited });
        (wanted.takeover, wanted.ca.deadline) = (of(0), 900);
        let spec = json!({ "id": "/registry", "labels": {} });
        let mut observed = Observed {
            agents: vec![agent("10.0.0.1"), agent("10.0.0.2")],
            pods: pods(&wanted, 2, &["10.0.0.1", "10.0.0.2"]),
            registry: Some(App { spec, tasks: vec![] }),
            ..Observed::default()
        };
        let steps = |wanted: &Wanted, observed: &Observed| -> Vec<String> {
            let mut plan = Plan::default();
            plan_registry(wanted, observed, &mut plan);
            plan.actions.iter().map(ToString::to_string).chain(plan.waiting).collect()
        };
        let until = "until then the registry made by hand goes on serving";
        assert_eq!(steps(&wanted, &observed), [format!("the new CA to be known on 10.0.0.1, 10.0.0.2; {until}")]);
        // What the old registry shows is refused by some client, and proves nothing.
        let (first, written) = node("10.0.0.1", &digest, NodePhase::Failed, 1);
        let not_written = NodeStatus { in_place: false, ..node("10.0.0.2", &digest, NodePhase::Pending, 1).1 };
        let other_order = node("10.0.0.2", "older", NodePhase::Trusted, 1).1;
        let second: Host = "10.0.0.2".parse().unwrap();
        observed.nodes = answering([(first.clone(), written.clone())]);
        for unfinished in [not_written.clone(), other_order] {
            observed.nodes.insert(second.clone(), unfinished.into());
            assert_eq!(steps(&wanted, &observed), [format!("the new CA to be known on 10.0.0.2; {until}")]);
        }
        // Whoever answers is waited for as long as it takes; whoever does not, until the deadline.
        observed.nodes.insert(second.clone(), not_written.into());
        wanted.takeover = of(10_000);
        assert_eq!(steps(&wanted, &observed), [format!("the new CA to be known on 10.0.0.2; {until}")]);
        observed.nodes.remove(&second);
        let action = "take over from the registry made by hand, and go on with its images in /data/images on 10.0.0.1: \
                      the new CA is known to every agent";
        assert_eq!(steps(&wanted, &observed), [format!("{action} but 10.0.0.2, which did not answer in time and will catch up")]);
        observed.nodes.insert(second, written.into());
        wanted.takeover = of(0);
        wanted.ca.holds_names_back = true;
        assert_eq!(steps(&wanted, &observed), ["a CA that may speak for the new names; until then the registry stays as it is"]);
        // That CA comes after the rotation under way, which waits for a registry that it can certify.
        wanted.ca.rotation = Some(Rotation::at(Stage::Switched, Reason::Order, 0));
        assert_eq!(steps(&wanted, &observed), [action]);
        (wanted.ca.holds_names_back, wanted.ca.rotation) = (false, None);
        assert_eq!(steps(&wanted, &observed), [action]);
        let words = |wanted: &Wanted, observed: &Observed| -> Vec<_> {
            let node = |agent: &Agent| observed.nodes.get(&agent.host).map(Arc::as_ref);
            let rows = observed.agents.iter().map(|agent| row(agent, node(agent), None, &digest, wanted, observed));
            rows.map(|row| (row.state, row.detail)).collect()
        };
        let known = "knows the new CA; it is proven as soon as the new registry serves";
        let known = (RowState::Pending, known.to_string());
        assert_eq!(words(&wanted, &observed), [known.clone(), known.clone()]);
        // Also afterwards, until the clients have been asked anew.
        wanted.takeover = None;
        observed.passes_at_takeover = [("10.0.0.1".parse().unwrap(), 1)].into();
        assert_eq!(words(&wanted, &observed)[0], known);
        assert_eq!(words(&wanted, &observed)[1].0, RowState::Failed);
    }

    #[test]
    fn while_the_ca_may_not_speak_for_new_names_the_registry_stays_as_it_is() {
        let mut wanted = wanted();
        wanted.ca.holds_names_back = true;
        let observed = Observed { registry: Some(App { spec: json!({ "labels": {} }), tasks: vec![] }), ..Observed::default() };
        let plan = converge(&wanted, &observed);
        assert!(!plan.actions.iter().any(|action| matches!(action, Action::PutRegistry { .. })), "{plan:?}");
        assert!(plan.waiting.iter().any(|what| what.contains("new names")), "{plan:?}");
        let nothing = Observed::default();
        assert!(converge(&wanted, &nothing).actions.iter().any(|action| matches!(action, Action::PutRegistry { .. })));
    }

    /// What is wanted where the agents are divided among ten pods.
    fn divided() -> Wanted {
        let mut wanted = wanted();
        wanted.documents.layout = Layout::Ten(shards::Number::OfName);
        wanted
    }

    fn pod_actions(plan: &Plan) -> Vec<String> {
        plan.actions.iter().filter(|action| matches!(action, Action::PutPod { .. })).map(ToString::to_string).collect()
    }

    #[test]
    fn every_pod_has_its_own_agents_and_only_what_has_changed_is_written() {
        let wanted = divided();
        let mut observed = Observed { agents: ["10.0.0.1", "10.0.0.2", "10.0.1.2"].map(agent).into(), ..Observed::default() };
        let plan = converge(&wanted, &observed);
        let first = [
            "run the nodes of /private-registry-node-1 on 1 agents: it does not run yet",
            "run the nodes of /private-registry-node-2 on 2 agents: it does not run yet",
        ];
        assert_eq!(pod_actions(&plan), first);
        for action in &plan.actions {
            if let Action::PutPod { shard, pod, instances, .. } = action {
                let hosts: Vec<&str> =
                    ["10.0.0.1", "10.0.0.2", "10.0.1.2"].into_iter().filter(|host| host.ends_with(&shard.suffix()[1..])).collect();
                assert_eq!((pod["scaling"]["instances"].as_u64(), hosts.len() as u64), (Some(*instances), *instances));
                assert_eq!(documents::class_of(pod), wanted.documents.layout.class(*shard).as_deref());
                observed.pods.append(&mut pod_of(*shard, &wanted, *instances, &hosts));
            }
        }
        assert!(pod_actions(&converge(&wanted, &observed)).is_empty(), "what is in place is left alone");
        // One that has come without room, one that has gone, and one that is full and has its node already.
        observed.agents.extend([full("10.0.0.3"), agent("10.0.2.2")]);
        observed.agents[0] = full("10.0.0.1");
        let joined = ["run the nodes of /private-registry-node-2 on 3 agents: 1 agents have no node"];
        assert_eq!(pod_actions(&converge(&wanted, &observed)), joined);
        observed.locked.insert("/private-registry-node-2".into());
        let plan = converge(&wanted, &observed);
        assert!(pod_actions(&plan).is_empty());
        assert!(plan.waiting[0].contains("a deployment of /private-registry-node-2 to end"), "{:?}", plan.waiting);
        // The lock of one is none of the others'.
        observed.agents.extend([agent("10.0.1.1"), agent("agent.example.com")]);
        let others = [
            "run the nodes of /private-registry-node-1 on 2 agents: 1 agents have no node",
            "run the nodes of /private-registry-node-other on 1 agents: it does not run yet",
        ];
        assert_eq!(pod_actions(&converge(&wanted, &observed)), others);
    }

    #[test]
    fn each_pod_is_made_smaller_by_itself_when_its_agents_have_been_gone_for_long() {
        let wanted = divided();
        let mut observed = Observed { agents: vec![agent("10.0.0.1")], ..Observed::default() };
        observed.pods = pod_of(Shard::Digit(1), &wanted, 2, &["10.0.0.1"]);
        observed.pods.append(&mut pod_of(Shard::Digit(2), &wanted, 1, &[]));
        assert!(pod_actions(&converge(&wanted, &observed)).is_empty());
        observed.surplus_for.insert(Shard::Digit(2), SHRINK_AFTER);
        let gone = "run the nodes of /private-registry-node-2 on 0 agents: 1 agents are gone";
        assert_eq!(pod_actions(&converge(&wanted, &observed)), [gone]);
        observed.surplus_for.insert(Shard::Digit(1), SHRINK_AFTER);
        assert_eq!(pod_actions(&converge(&wanted, &observed)).len(), 2);
    }

    #[test]
    fn how_the_agents_are_divided_cannot_be_changed_and_who_tries_is_told_what_to_do() {
        let refused = |shards: &str, pods| {
            let options = Options::from_json(&json!({ "trust": { "shards": shards } })).unwrap();
            refuse(&options, &Observed { pods, ..Observed::default() }).err().map(|faults| faults.to_string())
        };
        let one = || pods(&wanted(), 1, &["10.0.0.1"]);
        let ten = || pod_of(Shard::Digit(1), &divided(), 1, &["10.0.0.1"]);
        for (shards, pods) in [("auto", one()), ("1", one()), ("auto", ten()), ("10", ten()), ("100", BTreeMap::new())] {
            assert_eq!(refused(shards, pods), None, "{shards}");
        }
        let said = refused("10", one()).unwrap();
        assert!(said.starts_with("trust.shards = 10: the agents have been divided among one node pod since the installation"), "{said}");
        assert!(said.contains("Set it back to auto or 1.") && said.contains("keeps the images"), "{said}");
        assert!(refused("100", ten()).unwrap().contains("among 10 node pods") && refused("1", ten()).unwrap().contains("auto or 10"));
    }

    #[test]
    fn a_marathon_without_pods_is_refused_with_a_reason() {
        let marathon = versions::Marathon { version: versions::Version(1, 3, 10) };
        let observed = Observed { marathon, ..Observed::default() };
        let faults = refuse(&Options::from_json(&json!({})).unwrap(), &observed).unwrap_err();
        assert!(faults.to_string().contains("this Marathon is 1.3.10, which has no pods. The package needs DC/OS 1.9"), "{faults}");
    }

    #[test]
    fn only_a_run_of_the_services_own_job_orders_its_removal() {
        let options = Options::from_json(&json!({})).unwrap();
        let (id, ours) = wanted().documents.jobs.into_iter().find(|(id, _)| *id == documents::uninstall_job_id(&options)).unwrap();
        let with = |spec: &Value, runs: &[&str]| {
            let job = Job {
                spec: spec.clone(),
                active_runs: runs.iter().map(ToString::to_string).collect(),
                finished_runs: 0,
                schedules: vec![],
            };
            Observed { jobs: [(id.clone(), job)].into(), ..Observed::default() }
        };
        assert!(is_removal_ordered(&options, &with(&ours, &["run"])));
        assert!(!is_removal_ordered(&options, &with(&ours, &[])));
        assert!(!is_removal_ordered(&options, &with(&json!({ "id": id, "labels": {} }), &["run"])));
    }

    #[test]
    fn a_service_account_is_refused_where_pods_do_not_run_in_strict_mode() {
        let options = Options::from_json(&json!({ "service": { "service_account_secret": "account" } })).unwrap();
        let on = |version| Observed { marathon: versions::Marathon { version }, ..Observed::default() };
        let faults = refuse(&options, &on(versions::Version(1, 4, 2))).unwrap_err();
        assert_eq!(faults.0[0].field, "service.service_account_secret");
        assert!(faults.to_string().contains("this Marathon is 1.4.2, whose pods do not run in strict mode"), "{faults}");
        assert!(refuse(&options, &on(versions::Version(1, 5, 5))).is_ok());
    }

    #[test]
    fn what_somebody_else_has_made_under_a_name_of_ours_is_not_taken_over() {
        let wanted = wanted();
        let options = Options::from_json(&json!({})).unwrap();
        let with = |spec: Value| Observed { registry: Some(App { spec, tasks: vec![] }), ..Observed::default() };
        assert!(refuse(&options, &with(wanted.documents.registry.clone())).is_ok());
        let foreign = with(json!({ "id": "/registry", "labels": { "HAPROXY_GROUP": "external" } }));
        assert_eq!(refuse(&options, &foreign).unwrap_err().0[0].field, "registry.name");
        let second = Options::from_json(&json!({ "service": { "name": "second" } })).unwrap();
        assert_eq!(refuse(&second, &with(wanted.documents.registry)).unwrap_err().0[0].field, "registry.name");
    }

    #[test]
    fn clashes_are_refused_with_field_and_remedy() {
        let options = Options::from_json(&json!({"registry": {"host": "10.0.0.9"}})).unwrap();
        let other =
            AppClaims { id: "/web".into(), service_ports: vec![5000], vips: vec!["192.168.0.1:443".into()], ..AppClaims::default() };
        let own = AppClaims { id: "/registry".into(), ..other.clone() };
        let observed = Observed { agents: vec![agent("10.0.0.1")], claims: vec![other, own], ..Observed::default() };
        let fields: Vec<String> = refuse(&options, &observed).unwrap_err().0.into_iter().map(|f| f.field).collect();
        assert_eq!(fields, ["exposure.service_port", "names.vip", "registry.host"]);
    }
}
