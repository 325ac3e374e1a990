//! What the cluster looks like now. Nothing in here decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinSet;

use super::cluster::Cluster;
use super::serve::Shared;
use super::state::State;
use crate::dcos::marathon::{Instance, Marathon, Pod};
use crate::dcos::mesos::Mesos;
use crate::dcos::metronome::{Job, Metronome};
use crate::dcos::{ApiError, End, read_to_end, versions};
use crate::documents;
use crate::in_order::InOrder as _;
use crate::names::Host;
use crate::options::Options;
use crate::plan::{self, Observed, RegistryTask};
use crate::protocol::{MAX_MESSAGE_BYTES, NodePhase, NodeStatus, RegistryPhase, RegistryStatus, SignedOrder};
use crate::shards::{Layout, PerShard, Shard};

/// How long a task may take to answer. It is on the same network and has the answer at hand.
const TASK_TIMEOUT: Duration = Duration::from_secs(3);

/// So many tasks are asked at the same time.
const AT_ONCE: usize = 128;
/// Of tasks that are well so many a second are asked again, so that very many agents are no more work than a few; and so many while
/// others come to be well, which is what there is to see then.
const AGAIN_PER_SECOND: f64 = 50.0;
const AGAIN_PER_SECOND_WHILE_OTHERS_COME: f64 = 10.0;
/// What can wait for a look that is not urgent waits no longer than so many times its time.
const URGENT_FOR: u32 = 2;
/// Where the time has come for very many at once, as many as at that rate are asked, and half as many again; the others at later looks. At least
/// so many as are asked at the same time, which nobody feels.
const CATCHES_UP: f64 = 1.5;
/// Where many nodes are silent, for each of which the rest waits a while, one that has not answered so often is asked only now and then.
const MANY_SILENT: usize = AT_ONCE / 2;
const PATIENT_TRIES: u32 = 5;
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// CPU time of this process so far.
pub(super) fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    now.map(Duration::from).unwrap_or_default()
}

/// What was seen last, as far as it is still good.
///
/// Where a look at everything costs little, each look is one. Where there are very many agents, most of what it reads has not changed:
/// what an event names, what is being deployed and who is not well yet is asked at every look, and the rest as often as its cost allows.
#[derive(Default)]
pub(super) struct Seen {
    last: Option<Observed>,
    /// When everything was looked at, and what CPU time that took.
    whole: Option<(Instant, Duration)>,
    answers: HashMap<Host, Answer>,
    quiet: PerShard<Quiet>,
    /// Digest of the order by which it was judged last who is well.
    digest: String,
    /// When nodes were looked at last.
    looked: Option<Instant>,
}

/// Which nodes are well, so that they are asked again only now and then.
pub(super) struct Wellness<'a> {
    /// Digest of the order that they should have taken.
    pub(super) digest: &'a str,
    /// Whether somebody waits for what this node says, however well it is; none where nobody waits for any.
    pub(super) is_awaited: Option<&'a IsAwaited<'a>>,
}

type IsAwaited<'a> = dyn Fn(&Host, &NodeStatus) -> bool + Sync + 'a;

impl Wellness<'_> {
    fn is_well(&self, status: &NodeStatus) -> bool {
        status.phase == NodePhase::Trusted && status.order_digest == self.digest && status.errors.is_empty()
    }
}

/// What a look is for.
pub(super) struct Purpose<'a> {
    /// Whether somebody waits for its end: then only what he waits for is looked at, and what is not well.
    pub(super) urgent: &'a (dyn Fn() -> bool + Sync),
    /// Whether agents come to be well one after the other.
    pub(super) others_come: bool,
}

impl Purpose<'_> {
    /// So many nodes that are well are asked again in a second.
    fn rate(&self) -> f64 {
        if self.others_come { AGAIN_PER_SECOND_WHILE_OTHERS_COME } else { AGAIN_PER_SECOND }
    }
}

/// What a change is about that goes on: pods that are being deployed, and instances whose nodes are not well.
pub(super) struct Few {
    pods: Vec<Shard>,
    nodes: Vec<Instance>,
}

/// So much is few: asked one after the other, it is less than a pass.
const FEW: usize = 4;
/// With more nodes a pass is not made only to see how a few things stand. With less it is made each half second: a pod whose deployment goes
/// on has news before that ends.
const LARGE: usize = 500;

/// Whether as many instances run as are to, and there are no others.
fn is_settled(pod: &Pod) -> bool {
    let running = pod.instances.iter().filter(|instance| instance.port.is_some()).count() as u64;
    running == pod.scale() && running == pod.instances.len() as u64
}

/// Pods that were being deployed at the last look, that are by now, or that have come to be since.
fn moving(last: &Observed, locked: &BTreeSet<String>, options: &Options) -> Vec<Shard> {
    let moves = |(shard, pod): &(&Shard, &Pod)| {
        let id = documents::shard_id(options, **shard);
        locked.contains(&id) || last.locked.contains(&id) || !is_settled(pod)
    };
    let known = last.pods.iter().filter(moves).map(|(shard, _)| *shard);
    let new = locked.union(&last.locked).filter_map(|id| documents::shard_of(options, id));
    known.chain(new.filter(|shard| !last.pods.contains_key(shard))).collect()
}

/// A pod of which every node was well and nobody was asked. As long as it has not been read anew there is no other instance in it.
struct Quiet {
    /// The definition that was read with its instances.
    spec: Arc<Value>,
    /// When the node was asked that was asked longest ago.
    oldest: Instant,
}

/// When a node was asked last.
struct Answer {
    /// UUID of the instance that was asked, and its pod.
    uuid: String,
    shard: Shard,
    at: Instant,
    /// Questions without an answer since the last one.
    failures: u32,
    /// Begin of the last look by which that host had an instance.
    looked: Instant,
    /// Begin of the last one by which what was answered counted.
    counts: Instant,
    /// Whether what was answered is still remembered and has been found to be well, so that it need not be looked at again.
    well: bool,
}

impl Seen {
    /// Looks at Mesos and Marathon, and says whether somebody waits for it: an agent that has registered. `share`: of how much time
    /// everything may take a part to be looked at, as `60` for a sixtieth.
    pub(super) async fn look(
        &mut self,
        cluster: &Cluster,
        options: &Options,
        shared: &Shared,
        share: u32,
    ) -> Result<(Observed, bool), ApiError> {
        let mut joined = shared.take_joined();
        let mut last = loop {
            let (is_named, is_urgent) = (joined.iter().all(Option::is_some), !joined.is_empty());
            let due = |times: u32| self.whole.is_none_or(|(at, cost)| at.elapsed() >= cost * share * times);
            let can_wait = is_named && !due(URGENT_FOR);
            let last = self.last.take_if(|_| can_wait && (is_urgent || !due(1)));
            if let Some(last) = last {
                break last;
            }
            let before = cpu_time();
            let seen = tokio::select! {
                seen = without_jobs(&cluster.mesos, &cluster.marathon, options) => seen,
                // Who comes in the middle of it does not wait for its end.
                () = shared.woken(), if can_wait && self.last.is_some() => {
                    joined.extend(shared.take_joined());
                    continue;
                }
            };
            self.whole = None;
            let nodes = self.last.take().map(|last| last.nodes).unwrap_or_default();
            let seen = seen?;
            self.whole = Some((Instant::now(), cpu_time().saturating_sub(before)));
            return Ok((Observed { nodes, ..seen }, is_urgent));
        };
        let is_urgent = !joined.is_empty();
        for agent in joined.into_iter().flatten() {
            match last.agents.binary_search_by(|known| known.host.cmp(&agent.host)) {
                Ok(at) => last.agents[at] = agent,
                Err(at) => last.agents.insert(at, agent),
            }
        }
        let marathon = &cluster.marathon;
        let (registry_id, own_id) = (documents::registry_id(options), format!("/{}", options.service.name));
        let (registry, own_app, locked) = tokio::try_join!(marathon.app(&registry_id), marathon.app(&own_id), marathon.locked())?;
        let locked: BTreeSet<String> = locked.into_iter().in_order();
        for shard in moving(&last, &locked, options) {
            match marathon.pod(&documents::shard_id(options, shard)).await? {
                Some(pod) => drop(last.pods.insert(shard, pod)),
                None => drop(last.pods.remove(&shard)),
            }
        }
        (last.registry, last.own_app, last.locked) = (registry, own_app, locked);
        last.stuck.clear();
        Ok((last, is_urgent))
    }

    /// Whether there are so many nodes that a pass is work.
    pub(super) fn is_large(&self) -> bool {
        self.answers.len() > LARGE
    }

    /// What is waited for of pods and nodes; none where it is nothing, or much.
    pub(super) fn few(&self, options: &Options) -> Option<Few> {
        let last = self.last.as_ref()?;
        let pods = moving(last, &BTreeSet::new(), options);
        let wellness = Wellness { digest: &self.digest, is_awaited: None };
        let is_ill =
            |(host, answer): &(&Host, &Answer)| !answer.well && !last.nodes.get(host).is_some_and(|status| wellness.is_well(status));
        let ill: BTreeSet<&Host> = self.answers.iter().filter(is_ill).map(|(host, _)| host).take(FEW + 1).in_order();
        let is_little = (1..=FEW).contains(&(pods.len() + ill.len()));
        let nodes = plan::instances_on(&ill, last).into_values().filter(|instance| instance.port.is_some()).cloned();
        is_little.then(|| Few { nodes: nodes.collect(), pods })
    }

    /// Whether there is something to be said about that, or done: a deployment has ended, a node is proven, or has another reason not to
    /// be. Also where Marathon does not answer, which the next pass has to say.
    pub(super) async fn has_news(&self, cluster: &Cluster, options: &Options, few: &Few) -> bool {
        let (Some(last), Ok(locked)) = (&self.last, cluster.marathon.locked().await) else { return true };
        let locked: BTreeSet<String> = locked.into_iter().in_order();
        let mut nodes = few.nodes.clone();
        for id in few.pods.iter().map(|shard| documents::shard_id(options, *shard)).filter(|id| !locked.contains(id)) {
            let Ok(Some(pod)) = cluster.marathon.pod(&id).await else { return true };
            if !is_settled(&pod) {
                continue;
            }
            let is_known = |instance: &Instance| {
                let answer = instance.host.as_ref().and_then(|host| self.answers.get(host));
                answer.is_some_and(|answer| instance.has_uuid(&answer.uuid))
            };
            let new: Vec<Instance> = pod.instances.into_iter().filter(|instance| !is_known(instance)).take(FEW).collect();
            if new.is_empty() {
                return true;
            }
            nodes.extend(new);
        }
        // A silent one takes its time, for which the others do not wait.
        let mut asked = JoinSet::new();
        for instance in nodes {
            let (Some(host), Some(port)) = (instance.host.clone(), instance.port) else { continue };
            let (http, service) = (cluster.http.clone(), options.service.name.clone());
            asked.spawn(async move { Some((status(&http, &service, &host, port, instance.uuid()).await?, host)) });
        }
        while let Some(answer) = asked.join_next().await {
            let Ok(Some((now, host))) = answer else { continue };
            let is_new = match last.nodes.get(&host) {
                Some(then) => (now.phase, &now.order_digest, &now.errors) != (then.phase, &then.order_digest, &then.errors),
                None => now.phase != NodePhase::Pending,
            };
            if is_new {
                return true;
            }
        }
        false
    }

    /// Whether the registry is as it was seen last, as far as there may be something to do about it.
    pub(super) fn registry_is_still(&self, now: &Observed) -> bool {
        let words = |observed: &Observed| {
            let tasks: Vec<_> = observed.registry.iter().flat_map(|app| &app.tasks).map(|task| (task.id.clone(), task.healthy)).collect();
            let version = observed.registry.as_ref().map(|app| app.spec["version"].clone());
            let registries: Vec<_> = observed
                .registries
                .iter()
                .map(|RegistryTask { address, status }| {
                    let asks = status.request.as_ref().map(|request| request.csr.clone());
                    let state = (status.phase, status.starts, status.restart_due, status.order_version);
                    (address.clone(), asks, state, status.leaf_fingerprint.clone(), status.errors.clone())
                })
                .collect();
            (tasks, version, registries)
        };
        self.last.as_ref().is_some_and(|last| words(last) == words(now))
    }

    /// The same of the jobs.
    pub(super) fn jobs_are_still(&self, now: &Observed) -> bool {
        let words = |observed: &Observed| -> Vec<_> {
            observed.jobs.iter().map(|(id, job)| (id.clone(), job.active_runs.clone(), job.finished_runs)).collect()
        };
        self.last.as_ref().is_some_and(|last| words(last) == words(now))
    }

    /// Keeps what was seen for the next look, which begins with the pods that were `written` since. After a failure nothing is kept.
    pub(super) fn keep(&mut self, mut observed: Observed, written: Vec<String>) {
        observed.locked.extend(written);
        self.last = Some(observed);
    }
}

/// Asks Mesos, Marathon and Metronome.
pub(super) async fn cluster(cluster: &Cluster, options: &Options) -> Result<Observed, ApiError> {
    services(&cluster.mesos, &cluster.marathon, &cluster.metronome, options).await
}

/// The same, for whoever has other ways to them.
pub(crate) async fn services(
    mesos: &Mesos,
    marathon_client: &Marathon,
    metronome_client: &Metronome,
    options: &Options,
) -> Result<Observed, ApiError> {
    let mut observed = without_jobs(mesos, marathon_client, options).await?;
    (observed.metronome, observed.jobs) = jobs(metronome_client, options).await?;
    Ok(observed)
}

/// Which Metronome there is, and the service's jobs.
pub(super) async fn jobs(
    metronome_client: &Metronome,
    options: &Options,
) -> Result<(versions::Metronome, BTreeMap<String, Job>), ApiError> {
    // Only jobs with secrets depend on it.
    let version = if options.has_account() { metronome_client.version().await? } else { versions::Metronome::default() };
    let mut jobs = BTreeMap::new();
    for id in documents::job_ids(options) {
        if let Some(job) = metronome_client.job(&id).await? {
            jobs.insert(id, job);
        }
    }
    Ok((version, jobs))
}

/// Asks Mesos and Marathon alone.
pub(super) async fn without_jobs(mesos: &Mesos, marathon_client: &Marathon, options: &Options) -> Result<Observed, ApiError> {
    let registry_id = documents::registry_id(options);
    let own_id = format!("/{}", options.service.name);
    let (marathon, mut agents, pods, registry, own_app, locked, claims) = tokio::try_join!(
        marathon_client.version(),
        mesos.agents(),
        pods(marathon_client, options),
        marathon_client.app(&registry_id),
        marathon_client.app(&own_id),
        marathon_client.locked(),
        marathon_client.claims(),
    )?;
    // Mesos has no order of its own that lasts.
    crate::in_order::sort_by(&mut agents, |one, other| one.host.cmp(&other.host));
    Ok(Observed { marathon, agents, pods, registry, own_app, locked: locked.into_iter().in_order(), claims, ..Observed::default() })
}

/// The node pods: one for all agents, or else as many as there are.
async fn pods(marathon: &Marathon, options: &Options) -> Result<BTreeMap<Shard, Pod>, ApiError> {
    // Where it is known that there are several, an account need not be allowed to see the one.
    if options.trust.shards.names() == Layout::One
        && let Some(pod) = marathon.pod(&documents::pod_id(options)).await?
    {
        return Ok(std::iter::once((Shard::All, pod)).in_order());
    }
    let pods = marathon.pods(|id| documents::shard_of(options, id).is_some()).await?;
    Ok(pods.into_iter().filter_map(|pod| Some((documents::shard_of(options, pod.spec["id"].as_str()?)?, pod))).in_order())
}

/// Asks the tasks that Marathon knows for their `/status`. One that does not answer, or is not who it should be, is left out.
pub(super) async fn tasks(cluster: &Cluster, options: &Options, observed: &mut Observed) {
    observed.nodes.clear();
    let (purpose, wellness) = (Purpose { urgent: &|| false, others_come: false }, Wellness { digest: "", is_awaited: None });
    Seen::default().tasks(cluster, options, observed, &purpose, &wellness).await;
}

/// A node whose turn it is.
struct Due {
    host: Host,
    port: u16,
    /// UUID of the instance, and its pod.
    uuid: String,
    shard: Shard,
    /// Whether it is well, and may be asked by another look.
    can_wait: bool,
}

impl Seen {
    /// The same, but nodes that are well are not asked every time. Hosts are returned of all that are new, were not well or have been asked:
    /// whatever is noted of what nodes say was noted of all others before, by a pass that has come to its end.
    pub(super) async fn tasks(
        &mut self,
        cluster: &Cluster,
        options: &Options,
        observed: &mut Observed,
        purpose: &Purpose<'_>,
        wellness: &Wellness<'_>,
    ) -> Vec<Host> {
        // After a failure nothing is remembered.
        if self.digest != wellness.digest || observed.nodes.is_empty() {
            self.answers.values_mut().for_each(|answer| answer.well = false);
            self.quiet = PerShard::default();
            self.digest = wellness.digest.to_string();
        }
        let running = |instance: &&Instance| instance.host.is_some() && instance.port.is_some();
        let number = observed.instances().filter(running).count();
        let now = Instant::now();
        let due = self.due(observed, number, now, purpose, wellness);
        let hosts = due.iter().map(|due| due.host.clone()).collect();
        let http = cluster.http_for(number);
        let (mut asked, mut due) = (JoinSet::new(), due.into_iter());
        loop {
            while asked.len() < AT_ONCE
                && let Some(due) = due.next()
            {
                if due.can_wait && (purpose.urgent)() {
                    continue;
                }
                let (http, service) = (http.clone(), options.service.name.clone());
                asked.spawn(async move { (status(&http, &service, &due.host, due.port, &due.uuid).await, due) });
            }
            let Some(answer) = asked.join_next().await else { break };
            // None of them panics.
            let Ok((status, Due { host, uuid, shard, .. })) = answer else { continue };
            let before = self.answers.get(&host).filter(|answer| answer.uuid == uuid);
            let failures = if status.is_some() { 0 } else { before.map_or(0, |answer| answer.failures).saturating_add(1) };
            if let Some(mut status) = status {
                // The node's own affair, and a good part of what there is to remember of it.
                status.files = Vec::new();
                observed.nodes.insert(host.clone(), Arc::new(status));
            } else if before.is_some() {
                observed.nodes.remove(&host);
            }
            self.answers.insert(host, Answer { uuid, shard, at: Instant::now(), failures, looked: now, counts: now, well: false });
        }
        registries(cluster, options, observed).await;
        hosts
    }

    /// Whose turn it is, of so many nodes that run. `observed` holds what nodes have said before, each with its entry in `answers`; what does
    /// not count any more is forgotten.
    fn due(&mut self, observed: &mut Observed, number: usize, now: Instant, purpose: &Purpose<'_>, wellness: &Wellness<'_>) -> Vec<Due> {
        let Self { answers, quiet, looked, .. } = self;
        let Observed { pods, nodes: known, .. } = observed;
        let since = looked.replace(now).map(|at| now - at).unwrap_or_default();
        let mut most = AT_ONCE.max((purpose.rate() * CATCHES_UP * since.as_secs_f64()) as usize);
        let again = Duration::from_secs_f64(number as f64 / purpose.rate());
        let many_silent = answers.values().filter(|answer| answer.failures > 0).count() > MANY_SILENT;
        let rest = if (purpose.urgent)() { again * URGENT_FOR } else { again };
        let mut passed_over = PerShard::default();
        let mut due = Vec::new();
        // Of very many nodes nearly all wait; so nothing is copied for them, or moved, and a pod whose nodes all do is passed over.
        for (shard, pod) in pods.iter() {
            let rests = |known: &Quiet| Arc::ptr_eq(&pod.spec, &known.spec) && now - known.oldest < rest;
            let quiet = quiet.at(*shard);
            if wellness.is_awaited.is_none() && quiet.as_ref().is_some_and(rests) {
                *passed_over.at(*shard) = Some(());
                continue;
            }
            let mut oldest = Some(now);
            for instance in &pod.instances {
                let (Some(host), Some(port)) = (&instance.host, instance.port) else { continue };
                let before = answers.get_mut(host).and_then(|answer| {
                    (answer.looked, answer.shard) = (now, *shard);
                    Some(answer).filter(|answer| instance.has_uuid(&answer.uuid))
                });
                let (waits, can_wait) = before.map_or((false, false), |answer| {
                    let status = if answer.well && wellness.is_awaited.is_none() { None } else { known.get(host) };
                    if let Some(status) = status {
                        answer.well = wellness.is_well(status);
                    }
                    let age = now - answer.at;
                    let is_awaited = || wellness.is_awaited.zip(status).is_some_and(|(is_awaited, status)| is_awaited(host, status));
                    match answer.well {
                        true if !is_awaited() => {
                            answer.counts = now;
                            oldest = oldest.min(Some(answer.at));
                            let is_due = age >= rest && most > 0;
                            most -= usize::from(is_due);
                            (!is_due, age < again * URGENT_FOR)
                        }
                        true => (false, false),
                        false => (status.is_none() && many_silent && answer.failures > PATIENT_TRIES && age < NOW_AND_THEN, false),
                    }
                });
                if !(waits && can_wait) {
                    oldest = None;
                }
                if !waits {
                    due.push(Due { host: host.clone(), port, uuid: instance.uuid().to_string(), shard: *shard, can_wait });
                }
            }
            *quiet = oldest.map(|oldest| Quiet { spec: Arc::clone(&pod.spec), oldest });
        }
        answers.retain(|host, answer| {
            let is_there = answer.looked == now || passed_over.has(answer.shard);
            if !is_there {
                known.remove(host);
            }
            is_there
        });
        // What another instance has said there may still count.
        for due in due.iter().filter(|due| !due.can_wait) {
            let answer = answers.get_mut(&due.host);
            if answer.as_ref().is_some_and(|answer| answer.counts == now) {
                continue;
            }
            known.remove(&due.host);
            if let Some(answer) = answer {
                answer.well = false;
            }
        }
        due
    }
}

/// What the node says that is this instance.
async fn status(http: &reqwest::Client, service: &str, host: &Host, port: u16, uuid: &str) -> Option<NodeStatus> {
    let status: Option<NodeStatus> = get(http, &format!("http://{host}:{port}/status")).await;
    // A port that a task has left may be taken by a stranger: Marathon must know this very task.
    status.filter(|status| status.service == service && status.executor.ends_with(uuid))
}

/// Asks the registry's tasks.
pub(super) async fn registries(cluster: &Cluster, options: &Options, observed: &mut Observed) {
    let mut registries = JoinSet::new();
    for task in observed.registry.iter().flat_map(|app| &app.tasks) {
        let Some(port) = task.ports.get(1) else { continue };
        let (http, service, address) = (cluster.http.clone(), options.service.name.clone(), format!("{}:{port}", task.host));
        registries.spawn(async move {
            let status: RegistryStatus = get(&http, &format!("http://{address}/status")).await?;
            (status.service == service).then_some(RegistryTask { address, status })
        });
    }
    observed.registries = registries.join_all().await.into_iter().flatten().collect();
    crate::in_order::sort_by(&mut observed.registries, |a, b| a.address.cmp(&b.address));
}

/// Leaves out whoever answers in the place of a registry, but with a request that is not by our enrolment key, and says where. The rest
/// of a pass must not depend on him.
pub(super) fn leave_out_strangers(observed: &mut Observed, state: &State) -> Vec<String> {
    let is_ours = |task: &RegistryTask| task.status.request.is_none() || state.request(&task.status).is_ok();
    let (ours, strangers): (Vec<_>, Vec<_>) = std::mem::take(&mut observed.registries).into_iter().partition(is_ours);
    observed.registries = ours;
    let problem = |task: RegistryTask| {
        format!(
            "{} answers in the place of the registry with a certificate request that is not by this service's enrolment key, and is not \
             listened to; if a registry was started with an earlier key it is replaced by itself, else look what listens there",
            task.address
        )
    };
    strangers.into_iter().map(problem).collect()
}

/// Sends an order to nodes. Whether it was taken shows in the next status of each.
pub(super) async fn send_to_nodes(cluster: &Cluster, observed: &Observed, hosts: Vec<&Host>, order: &SignedOrder) {
    let ports: BTreeMap<&Host, u16> =
        observed.instances().filter_map(|instance| Some((instance.host.as_ref()?, instance.port?))).in_order();
    let mut asked = JoinSet::new();
    let order = std::sync::Arc::new(order.clone());
    for (host, port) in hosts.into_iter().filter_map(|host| Some((host, ports.get(host)?))) {
        if asked.len() >= AT_ONCE {
            let _ = asked.join_next().await;
        }
        let (http, address, order) = (cluster.http_for(ports.len()).clone(), format!("{host}:{port}"), order.clone());
        asked.spawn(async move { put_order(&http, &address, &order).await });
    }
    asked.join_all().await;
}

/// Sends an order to one task of the registry.
pub(super) async fn send_to_registry(cluster: &Cluster, address: &str, order: &SignedOrder) {
    put_order(&cluster.http, address, order).await;
}

/// Sends an order to every task of the registry that has not retired.
pub(super) async fn send_to_registries(cluster: &Cluster, observed: &Observed, order: &SignedOrder) {
    for task in observed.registries.iter().filter(|task| task.status.phase != RegistryPhase::Retired) {
        put_order(&cluster.http, &task.address, order).await;
    }
}

/// Asks every node for a fresh proof, by giving it once more the order that it has.
pub(super) async fn ask_for_proof(cluster: &Cluster, observed: &Observed, order: &SignedOrder) {
    send_to_nodes(cluster, observed, observed.nodes.keys().collect(), order).await;
}

pub(super) async fn put_order(http: &reqwest::Client, address: &str, order: &SignedOrder) {
    let sent = http.put(format!("http://{address}/order")).timeout(TASK_TIMEOUT).json(order).send().await;
    match sent {
        Ok(answer) if answer.status().is_success() => tracing::debug!(address, "order taken"),
        Ok(answer) => tracing::warn!(address, status = answer.status().as_u16(), "the task refused the order"),
        Err(error) => tracing::warn!(address, %error, "the order could not be delivered; it is sent again"),
    }
}

pub(super) async fn get<T: DeserializeOwned>(http: &reqwest::Client, url: &str) -> Option<T> {
    let read = async {
        let answer = http.get(url).timeout(TASK_TIMEOUT).send().await.map_err(|error| error.to_string())?;
        let text = read_to_end(answer, MAX_MESSAGE_BYTES).await.map_err(|end| match end {
            End::Broken(error) => error.to_string(),
            End::TooMuch(bytes) => format!("more than {bytes} bytes"),
        })?;
        crate::json::of_text(&text).map_err(|error| error.to_string())
    };
    let read: Result<T, String> = read.await;
    read.inspect_err(|reason| tracing::debug!(url, reason, "no status")).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::http::{StatusCode, Uri};
    use serde_json::{Value, json};

    use super::super::{Setting, serve};
    use super::*;
    use crate::model::random::Random;
    use crate::shards::Number;

    /// Answers with what `answer` has for a path, never where that is null, and notes what was asked.
    async fn answering(answer: impl Fn(&str) -> Option<Value> + Clone + Send + Sync + 'static) -> (u16, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let router = Router::new().fallback(move |uri: Uri| {
            noted.lock().unwrap().push(uri.path().to_string());
            let (status, json) = answer(uri.path()).map_or((StatusCode::NOT_FOUND, json!({})), |json| (StatusCode::OK, json));
            async move {
                if json.is_null() {
                    std::future::pending::<()>().await;
                }
                (status, axum::Json(json))
            }
        });
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (port, asked)
    }

    fn cluster(port: u16) -> (Cluster, Options) {
        let url = format!("http://127.0.0.1:{port}");
        let dcos = json!({ "mesos_url": url, "marathon_url": url, "metronome_url": url, "admin_router_url": url });
        let options = Options::from_json(&json!({ "dcos": dcos, "trust": { "shards": "10" } })).unwrap();
        let setting = Setting {
            host: "127.0.0.1".parse().unwrap(),
            port: 1,
            app_id: "/private-registry".into(),
            task_id: "private-registry.mine".into(),
            registry_images: Default::default(),
            uninstall: false,
            credential: None,
            vars: [].into(),
        };
        (Cluster::try_enter(&setting, &options, &serve::Shared::new(vec![7], "00".into())).unwrap(), options)
    }

    fn pod(instances: usize, host: impl Fn(usize) -> String, port: Option<u16>) -> Pod {
        let instance = |number| Instance { id: "x.instance-1".into(), host: host(number).parse().ok(), port };
        Pod { spec: json!({ "scaling": { "instances": instances } }).into(), instances: (0..instances).map(instance).collect() }
    }

    const WELL: Wellness<'static> = Wellness { digest: "d", is_awaited: None };
    const CALM: Purpose<'static> = Purpose { urgent: &|| false, others_come: false };

    /// So many of the nodes, the first ones, were asked so many seconds earlier.
    fn take_back(seen: &mut Seen, nodes: usize, seconds: u64) {
        let mut answers: Vec<(&Host, &mut Answer)> = seen.answers.iter_mut().collect();
        answers.sort_by_key(|(host, _)| *host);
        answers.into_iter().take(nodes).for_each(|(_, answer)| answer.at -= Duration::from_secs(seconds));
        for shard in Layout::Ten(Number::OfName).shards() {
            if let Some(quiet) = seen.quiet.at(shard) {
                quiet.oldest -= Duration::from_secs(seconds);
            }
        }
    }

    /// A hundred nodes, all of them at that port.
    fn a_hundred(port: u16) -> Observed {
        let pods = [(Shard::Digit(1), pod(100, |number| format!("127.0.1.{number}"), Some(port)))].into();
        Observed { pods, ..Observed::default() }
    }

    #[tokio::test]
    async fn of_many_nodes_those_that_are_well_are_asked_now_and_then_and_the_others_every_time() {
        let node = NodeStatus { executor: "x-1".into(), ..plan::tests::node("127.0.0.1", "d", NodePhase::Trusted, 1).1 };
        let (port, asked) = answering(move |_| Some(json!(node))).await;
        let (cluster, options) = cluster(port);
        let (mut seen, mut observed) = (Seen::default(), a_hundred(port));
        let questions = || std::mem::take(&mut *asked.lock().unwrap()).len();
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (100, 100));
        // A hundred of them are asked again after two seconds.
        let unwell: Host = "127.0.1.7".parse().unwrap();
        let is_unwell = |host: &Host, _: &NodeStatus| *host == unwell;
        let others_well = Wellness { is_awaited: Some(&is_unwell), ..WELL };
        seen.tasks(&cluster, &options, &mut observed, &CALM, &others_well).await;
        assert_eq!((questions(), observed.nodes.len()), (1, 100));
        take_back(&mut seen, 30, 3);
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (30, 100));
        // Whoever waits does not wait for those, unless they have waited long; and while others come there are fewer of them.
        take_back(&mut seen, 30, 3);
        seen.tasks(&cluster, &options, &mut observed, &Purpose { urgent: &|| true, others_come: false }, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (0, 100));
        seen.tasks(&cluster, &options, &mut observed, &Purpose { urgent: &|| false, others_come: true }, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (0, 100));
        seen.tasks(&cluster, &options, &mut observed, &Purpose { urgent: &|| true, others_come: false }, &others_well).await;
        assert_eq!((questions(), observed.nodes.len()), (1, 100));
        take_back(&mut seen, 30, 2);
        seen.tasks(&cluster, &options, &mut observed, &Purpose { urgent: &|| true, others_come: false }, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (29, 100));
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (1, 100));
        // What is not remembered, as after a failure, has to be asked for, and so has what is about another order.
        observed.nodes.clear();
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (100, 100));
        seen.tasks(&cluster, &options, &mut observed, &CALM, &Wellness { digest: "another", ..WELL }).await;
        assert_eq!((questions(), observed.nodes.len()), (100, 100));
        // Another instance on the same host is another node.
        seen.answers.values_mut().take(2).for_each(|answer| answer.uuid = "0".into());
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (2, 100));
        observed.pods.clear();
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len(), seen.answers.len()), (0, 0, 0));
    }

    #[tokio::test]
    async fn where_the_time_of_very_many_nodes_has_come_at_once_nobody_waits_for_all_of_them() {
        let node = NodeStatus { executor: "x-1".into(), ..plan::tests::node("127.0.0.1", "d", NodePhase::Trusted, 1).1 };
        let (port, asked) = answering(move |_| Some(json!(node))).await;
        let (cluster, options) = cluster(port);
        let pods = [1, 2].map(|digit| (Shard::Digit(digit), pod(200, |number| format!("127.0.{digit}.{number}"), Some(port))));
        let (mut seen, mut observed) = (Seen::default(), Observed { pods: pods.into(), ..Observed::default() });
        let questions = || std::mem::take(&mut *asked.lock().unwrap()).len();
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (400, 400));
        // The time of each comes after eight seconds, and after sixteen whoever waits waits for it as well.
        take_back(&mut seen, 400, 60);
        let urgent = Purpose { urgent: &|| true, others_come: false };
        for left in [400 - AT_ONCE, 400 - 2 * AT_ONCE, 400 - 3 * AT_ONCE, 0, 0] {
            seen.tasks(&cluster, &options, &mut observed, &urgent, &WELL).await;
            let old = seen.answers.values().filter(|answer| answer.at.elapsed() > Duration::from_secs(50)).count();
            assert_eq!((old, observed.nodes.len()), (left, 400), "who is not asked still counts");
        }
        assert_eq!(questions(), 400);
        // After a while of rest there are more: 50 a second, and half as many again.
        take_back(&mut seen, 400, 60);
        seen.looked = seen.looked.map(|at| at - Duration::from_secs(4));
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions() / 10, observed.nodes.len()), (30, 400));
    }

    #[tokio::test]
    async fn a_pod_whose_nodes_are_well_is_passed_over_until_it_is_read_anew_or_one_of_them_is_due_or_awaited() {
        let node = NodeStatus { executor: "x-1".into(), ..plan::tests::node("127.0.0.1", "d", NodePhase::Trusted, 1).1 };
        let (port, _) = answering(move |_| Some(json!(node))).await;
        let (cluster, options) = cluster(port);
        let pod_of = |digit: u8, nodes| (Shard::Digit(digit), pod(nodes, |number| format!("127.0.{digit}.{number}"), Some(port)));
        let (mut seen, mut observed) = (Seen::default(), Observed { pods: [pod_of(1, 50), pod_of(2, 50)].into(), ..Observed::default() });
        // Nodes that were looked at one by one, and those of them that are told.
        async fn look(
            seen: &mut Seen,
            cluster: &Cluster,
            options: &Options,
            observed: &mut Observed,
            wellness: &Wellness<'_>,
            purpose: &Purpose<'_>,
        ) -> (usize, usize) {
            let before = Instant::now();
            let told = seen.tasks(cluster, options, observed, purpose, wellness).await;
            assert!(told.iter().all(|host| observed.nodes.contains_key(host)));
            assert_eq!((observed.nodes.len(), seen.answers.len()), (observed.instances().count(), observed.instances().count()));
            (seen.answers.values().filter(|answer| answer.looked >= before).count(), told.len())
        }
        macro_rules! look {
            ($wellness:expr) => {
                look(&mut seen, &cluster, &options, &mut observed, $wellness, &CALM).await
            };
        }
        assert_eq!([look!(&WELL), look!(&WELL), look!(&WELL)], [(100, 100), (100, 0), (0, 0)]);
        // Read anew, with one more, and with one less.
        observed.pods.extend([pod_of(2, 51)]);
        assert_eq!([look!(&WELL), look!(&WELL), look!(&WELL)], [(51, 1), (51, 0), (0, 0)]);
        observed.pods.extend([pod_of(2, 49)]);
        assert_eq!([look!(&WELL), look!(&WELL)], [(49, 0), (0, 0)]);
        observed.pods.remove(&Shard::Digit(2));
        assert_eq!(look!(&WELL), (0, 0));
        observed.pods.extend([pod_of(2, 50)]);
        assert_eq!([look!(&WELL), look!(&WELL), look!(&WELL)], [(50, 50), (50, 0), (0, 0)]);
        // One is due.
        let due: Host = "127.0.2.7".parse().unwrap();
        seen.quiet.at(Shard::Digit(2)).as_mut().unwrap().oldest -= Duration::from_secs(3);
        seen.answers.get_mut(&due).unwrap().at -= Duration::from_secs(3);
        let urgent = Purpose { urgent: &|| true, others_come: false };
        assert_eq!(look(&mut seen, &cluster, &options, &mut observed, &WELL, &urgent).await, (0, 0));
        assert_eq!([look!(&WELL), look!(&WELL), look!(&WELL)], [(50, 1), (50, 0), (0, 0)]);
        // One is awaited.
        let is_due = |host: &Host, _: &NodeStatus| *host == due;
        let awaited = Wellness { is_awaited: Some(&is_due), ..WELL };
        assert_eq!([look!(&awaited), look!(&awaited)], [(100, 1), (100, 1)]);
        assert_eq!([look!(&WELL), look!(&WELL)], [(50, 0), (0, 0)]);
        // All are asked about another order, and after a failure.
        assert_eq!(look!(&Wellness { digest: "another", ..WELL }), (100, 100));
        assert_eq!([look!(&WELL), look!(&WELL)], [(100, 0), (0, 0)]);
        observed.nodes.clear();
        assert_eq!(look!(&WELL), (100, 100));
    }

    /// Makes ages multiples of half a second, in which none of the times lies that matter: two that have seen the same take them alike.
    fn round_ages(seen: &mut Seen, passed: Duration) {
        let now = Instant::now();
        let round = |at: &mut Instant| *at = now - passed - Duration::from_millis(500) * ((now - *at).as_secs_f64() * 2.0).round() as u32;
        seen.answers.values_mut().for_each(|answer| round(&mut answer.at));
        for shard in Layout::Ten(Number::OfName).shards() {
            if let Some(quiet) = seen.quiet.at(shard) {
                round(&mut quiet.oldest);
            }
        }
    }

    #[tokio::test]
    async fn what_is_seen_of_nodes_is_the_same_as_if_no_pod_were_passed_over() {
        const HOSTS: usize = 21;
        const PODS: usize = 3;
        let says: Arc<Mutex<Vec<Option<NodeStatus>>>> = Arc::new(Mutex::new(vec![None; HOSTS]));
        let mut ports = Vec::new();
        for host in 0..HOSTS {
            let says = Arc::clone(&says);
            ports.push(answering(move |_| says.lock().unwrap()[host].as_ref().map(|status| json!(status))).await.0);
        }
        let (cluster, options) = cluster(1);
        let mut random = Random(20_261_130);
        let address = |host: usize| format!("127.0.1.{host}");
        let (mut uuids, mut digest) = (vec![0; HOSTS], "d");
        let (mut as_is, mut thorough) = (Seen::default(), Seen::default());
        let (mut passed_over, mut observed) = (0, [Observed::default(), Observed::default()]);
        // One host of a pod has no instance, or one that does not run: so there are always as many nodes.
        let read = |uuids: &[usize], members: &[Vec<usize>], digit: usize, away: usize, is_placed: bool| {
            let instance = |(at, host): (usize, &usize)| Instance {
                id: format!("x.instance-{}", uuids[*host]),
                host: address(*host).parse().ok(),
                port: (at != away).then_some(ports[*host]),
            };
            let hosts = members[digit].iter().enumerate().filter(|(at, _)| is_placed || *at != away);
            (Shard::Digit(digit as u8), Pod { spec: json!({}).into(), instances: hosts.map(instance).collect() })
        };
        let mut members: Vec<Vec<usize>> = (0..PODS).map(|digit| (digit..HOSTS).step_by(PODS).collect()).collect();
        let all: BTreeMap<Shard, Pod> = (0..PODS).map(|digit| read(&uuids, &members, digit, 0, true)).collect();
        observed.iter_mut().for_each(|observed| observed.pods = all.clone());
        for step in 0..300 {
            let host = random.below(HOSTS);
            let mut passed = Duration::ZERO;
            match random.below(6) {
                // A pod is read, with another instance, and without one that was there.
                0 => {
                    if random.percent(50) {
                        uuids[host] = step;
                    }
                    let (one, other, at) = (random.below(PODS), random.below(PODS), random.below(HOSTS / PODS));
                    // As where the division among pods is another one.
                    if random.percent(20) {
                        (members[one][at], members[other][at]) = (members[other][at], members[one][at]);
                        let pod = read(&uuids, &members, other, at, false);
                        observed.iter_mut().for_each(|observed| observed.pods.extend([pod.clone()]));
                    }
                    let pod = read(&uuids, &members, one, random.below(HOSTS / PODS), random.percent(50));
                    observed.iter_mut().for_each(|observed| observed.pods.extend([pod.clone()]));
                }
                1 => {
                    let phase = if random.percent(70) { NodePhase::Trusted } else { NodePhase::Failed };
                    let (_, status) = plan::tests::node("x", if random.percent(80) { "d" } else { "e" }, phase, step as u64);
                    let executor = format!("x-{}", uuids[host]);
                    says.lock().unwrap()[host] = random.percent(80).then_some(NodeStatus { executor, ..status });
                }
                // All are well.
                2 => {
                    for (host, says) in says.lock().unwrap().iter_mut().enumerate() {
                        let (_, status) = plan::tests::node("x", "d", NodePhase::Trusted, step as u64);
                        *says = Some(NodeStatus { executor: format!("x-{}", uuids[host]), ..status });
                    }
                }
                3 => passed = Duration::from_millis([500, 2000][random.below(2)]),
                _ => {}
            }
            if random.percent(5) {
                digest = if digest == "d" { "e" } else { "d" };
            }
            if random.percent(2) {
                observed.iter_mut().for_each(|observed| observed.nodes.clear());
            }
            let awaited: Host = address(host).parse().unwrap();
            let is_awaited = |host: &Host, _: &NodeStatus| *host == awaited;
            let wellness = Wellness { digest, is_awaited: if random.percent(10) { Some(&is_awaited) } else { None } };
            let is_urgent = random.percent(20);
            let purpose = Purpose { urgent: &|| is_urgent, others_come: random.percent(30) };
            let [one, other] = &mut observed;
            for seen in [&mut as_is, &mut thorough] {
                round_ages(seen, passed);
            }
            thorough.quiet = PerShard::default();
            let began = Instant::now();
            let told = as_is.tasks(&cluster, &options, one, &purpose, &wellness).await;
            passed_over += as_is.answers.values().filter(|answer| answer.looked < began).count();
            let told_by_thorough = thorough.tasks(&cluster, &options, other, &purpose, &wellness).await;
            let of = |seen: &Seen, observed: &Observed| {
                let mut answers: Vec<_> = seen.answers.iter().map(|(host, a)| (host.clone(), a.uuid.clone(), a.well, a.failures)).collect();
                answers.sort();
                (answers, json!(observed.nodes))
            };
            assert_eq!(of(&as_is, one), of(&thorough, other), "step {step}");
            assert!(is_urgent || told == told_by_thorough, "step {step}: {told:?} {told_by_thorough:?}");
        }
        assert!((300..300 * HOSTS).contains(&passed_over), "{passed_over}");
    }

    #[tokio::test]
    async fn a_node_that_answers_no_more_is_not_taken_for_what_it_said_before() {
        let node = NodeStatus { executor: "x-1".into(), ..plan::tests::node("127.0.0.1", "d", NodePhase::Trusted, 1).1 };
        let says = Arc::new(Mutex::new(Some(json!(node))));
        let said = Arc::clone(&says);
        let (port, asked) = answering(move |_| said.lock().unwrap().clone()).await;
        let (cluster, options) = cluster(port);
        let (mut seen, mut observed) = (Seen::default(), a_hundred(port));
        let questions = || std::mem::take(&mut *asked.lock().unwrap()).len();
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (100, 100));
        // One is asked as its time has come, though it was well.
        *says.lock().unwrap() = None;
        take_back(&mut seen, 1, 3);
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (1, 99));
        // From now on every time, until it answers again.
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (1, 99));
        *says.lock().unwrap() = Some(json!(node));
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        assert_eq!((questions(), observed.nodes.len()), (1, 100));
    }

    #[tokio::test]
    async fn what_has_not_changed_is_not_looked_at_again_before_its_time_and_an_agent_that_registers_is_seen_at_once() {
        let (port, asked) = answering(|path| match path {
            "/slaves" => {
                Some(json!({ "slaves": [{ "id": "S1", "hostname": "10.0.0.1", "active": true, "resources": {}, "used_resources": {} }] }))
            }
            "/v2/deployments" => Some(json!([{ "affectedPods": ["/private-registry-node-3"] }])),
            "/v2/info" => Some(json!({ "version": "1.11.24" })),
            "/v2/apps" => Some(json!({ "apps": [] })),
            "/v2/pods/::status" => Some(json!([])),
            path if path.ends_with("::status") => {
                let instance = json!({ "id": "x.instance-9", "agentHostname": "10.0.0.2", "containers": [] });
                Some(json!({ "spec": { "scaling": { "instances": 1 } }, "instances": [instance] }))
            }
            _ => None,
        })
        .await;
        let (cluster, options) = cluster(port);
        let questions = || {
            let mut asked = std::mem::take(&mut *asked.lock().unwrap());
            asked.sort();
            asked
        };
        let (mut seen, shared) = (Seen::default(), Shared::new(vec![7], "00".into()));
        let (observed, _) = seen.look(&cluster, &options, &shared, 30).await.unwrap();
        assert_eq!(observed.agents.len(), 1);
        assert!(questions().iter().any(|path| path == "/slaves"));
        // Running as ordered, being deployed, and not yet running.
        let at = |number: u8| move |_| format!("10.0.0.{number}");
        let pods = [(1, Some(1)), (2, None)].map(|(digit, port)| (Shard::Digit(digit), pod(1, at(digit), port)));
        seen.keep(Observed { pods: pods.into(), ..observed.clone() }, vec!["/private-registry-node-4".into()]);
        seen.whole = Some((Instant::now(), Duration::from_secs(60)));
        let joined = plan::tests::agent("10.0.0.2");
        shared.joined(Some(joined));
        let (observed, is_urgent) = seen.look(&cluster, &options, &shared, 30).await.unwrap();
        assert!(is_urgent);
        assert_eq!(observed.agents.iter().map(|agent| agent.host.to_string()).collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
        let own = ["/v2/apps/private-registry", "/v2/apps/registry", "/v2/deployments"].map(String::from);
        let pods = ["2", "3", "4"].map(|digit| format!("/v2/pods/private-registry-node-{digit}::status"));
        assert_eq!(questions(), [own.as_slice(), &pods].concat());
        assert_eq!(observed.pods.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4].map(Shard::Digit));
        // One that cannot be read is looked for.
        seen.keep(observed, vec![]);
        shared.joined(None);
        let (observed, _) = seen.look(&cluster, &options, &shared, 30).await.unwrap();
        assert!(questions().iter().any(|path| path == "/slaves") && observed.agents.len() == 1);
        // As is what was seen last after a look that has failed.
        assert!(seen.last.is_none());
    }

    #[tokio::test]
    async fn an_agent_that_registers_does_not_wait_for_the_end_of_a_look_at_everything() {
        let (port, asked) = answering(|path| match path {
            "/slaves" => Some(Value::Null),
            "/v2/info" => Some(json!({ "version": "1.11.24" })),
            "/v2/apps" => Some(json!({ "apps": [] })),
            "/v2/deployments" | "/v2/pods/::status" => Some(json!([])),
            _ => None,
        })
        .await;
        let (cluster, options) = cluster(port);
        let (mut seen, shared) = (Seen::default(), Shared::new(vec![7], "00".into()));
        seen.keep(Observed::default(), vec![]);
        let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        seen.whole = Some((ago(45), Duration::from_secs(1)));
        let joins = async {
            while !asked.lock().unwrap().iter().any(|path| path == "/slaves") {
                tokio::task::yield_now().await;
            }
            shared.joined(Some(plan::tests::agent("10.0.0.2")));
        };
        let ((observed, is_urgent), ()) = tokio::join!(async { seen.look(&cluster, &options, &shared, 30).await.unwrap() }, joins);
        assert_eq!((observed.agents.len(), is_urgent), (1, true));
        // Where that look has been put off before, it does.
        seen.keep(observed, vec![]);
        seen.whole = Some((ago(61), Duration::from_secs(1)));
        shared.joined(Some(plan::tests::agent("10.0.0.3")));
        let look = seen.look(&cluster, &options, &shared, 30);
        assert!(tokio::time::timeout(Duration::from_millis(300), look).await.is_err());
    }

    #[tokio::test]
    async fn of_a_few_that_are_waited_for_an_end_or_another_reason_is_news_and_nothing_else() {
        // What is locked, who runs beside the first instance, and what that one says.
        let world = Arc::new(Mutex::new((true, false, Value::Null)));
        let (told, own_port) = (Arc::clone(&world), Arc::new(Mutex::new(0)));
        let node_port = Arc::clone(&own_port);
        let (port, _) = answering(move |path| {
            let (locked, runs, status) = &*told.lock().unwrap();
            let instance = |number: u16, runs: bool| {
                let endpoints = json!([{ "name": crate::protocol::NODE_ENDPOINT, "allocatedHostPort": *node_port.lock().unwrap() }]);
                let containers = if runs { json!([{ "status": "TASK_RUNNING", "endpoints": endpoints }]) } else { json!([]) };
                json!({ "id": format!("x.instance-{number}"), "agentHostname": format!("127.0.0.{number}"), "containers": containers })
            };
            match path {
                "/v2/deployments" if *locked => Some(json!([{ "affectedPods": ["/private-registry-node-2"] }])),
                "/v2/deployments" => Some(json!([])),
                "/status" => (!status.is_null()).then(|| status.clone()),
                path if path.ends_with("-2::status") => {
                    let instances = [instance(1, true), instance(2, *runs)];
                    Some(json!({ "spec": { "scaling": { "instances": 2 } }, "instances": instances }))
                }
                _ => None,
            }
        })
        .await;
        *own_port.lock().unwrap() = port;
        let (cluster, options) = cluster(port);
        let says = |executor: &str, phase, errors: &[&str]| {
            let errors = errors.iter().map(ToString::to_string).collect();
            NodeStatus { executor: executor.into(), errors, ..plan::tests::node("127.0.0.1", "d", phase, 1).1 }
        };
        // One of two runs and is well, the other one was ordered just now.
        world.lock().unwrap().2 = json!(says("x-1", NodePhase::Trusted, &[]));
        let two = |second| {
            let instance =
                |number: u16, port| Instance { id: format!("x.instance-{number}"), host: format!("127.0.0.{number}").parse().ok(), port };
            Pod { spec: json!({ "scaling": { "instances": 2 } }).into(), instances: vec![instance(1, Some(port)), instance(2, second)] }
        };
        let mut seen = Seen::default();
        let mut observed = Observed { pods: [(Shard::Digit(2), two(None))].into(), ..Observed::default() };
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        seen.keep(observed.clone(), vec![]);
        let few = seen.few(&options).unwrap();
        assert_eq!((few.pods.len(), few.nodes.len()), (1, 0));
        assert!(!seen.has_news(&cluster, &options, &few).await, "it is being deployed");
        world.lock().unwrap().0 = false;
        assert!(!seen.has_news(&cluster, &options, &few).await, "it does not run yet");
        world.lock().unwrap().1 = true;
        assert!(!seen.has_news(&cluster, &options, &few).await, "whoever answers there is another node");
        world.lock().unwrap().2 = json!(says("x-2", NodePhase::Pending, &[]));
        assert!(!seen.has_news(&cluster, &options, &few).await, "it has proven nothing yet");
        world.lock().unwrap().2 = json!(says("x-2", NodePhase::Trusted, &[]));
        assert!(seen.has_news(&cluster, &options, &few).await);
        // It has come, and fails: another reason is news.
        world.lock().unwrap().2 = json!(says("x-2", NodePhase::Failed, &["one"]));
        observed.pods = [(Shard::Digit(2), two(Some(port)))].into();
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        seen.keep(observed.clone(), vec![]);
        let few = seen.few(&options).unwrap();
        assert_eq!((few.pods.len(), few.nodes.len()), (0, 1));
        assert!(!seen.has_news(&cluster, &options, &few).await);
        world.lock().unwrap().2 = json!(says("x-2", NodePhase::Failed, &["another"]));
        assert!(seen.has_news(&cluster, &options, &few).await);
        // A deployment that ends with nobody new, as when a pod shrinks, is news as well.
        let ended = Few { pods: vec![Shard::Digit(2)], nodes: vec![] };
        assert!(seen.has_news(&cluster, &options, &ended).await);
        // All well is nothing to wait for, and very many are too many to be asked one by one.
        world.lock().unwrap().2 = json!(says("x-2", NodePhase::Trusted, &[]));
        seen.tasks(&cluster, &options, &mut observed, &CALM, &WELL).await;
        seen.keep(observed.clone(), vec![]);
        assert!(seen.few(&options).is_none());
        let locked = (0..5).map(|digit| format!("/private-registry-node-{digit}"));
        seen.keep(observed, locked.collect());
        assert!(seen.few(&options).is_none());
    }
}
