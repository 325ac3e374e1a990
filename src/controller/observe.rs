//! What the cluster looks like now. Nothing in here decides.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::cluster::Cluster;
use super::state::State;
use crate::dcos::marathon::{Instance, Marathon, Pod};
use crate::dcos::mesos::Mesos;
use crate::dcos::metronome::{Job, Metronome};
use crate::dcos::{ApiError, End, read_to_end, versions};
use crate::documents;
use crate::names::Host;
use crate::options::Options;
use crate::plan::{Observed, RegistryTask};
use crate::protocol::{MAX_MESSAGE_BYTES, NodeStatus, RegistryPhase, RegistryStatus, SignedOrder};
use crate::shards::{Layout, Shard};

/// How long a task may take to answer. It is on the same network and has the answer at hand.
const TASK_TIMEOUT: Duration = Duration::from_secs(3);

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
    let (marathon, agents, pods, registry, own_app, locked, claims) = tokio::try_join!(
        marathon_client.version(),
        mesos.agents(),
        pods(marathon_client, options),
        marathon_client.app(&registry_id),
        marathon_client.app(&own_id),
        marathon_client.locked(),
        marathon_client.claims(),
    )?;
    Ok(Observed { marathon, agents, pods, registry, own_app, locked: locked.into_iter().collect(), claims, ..Observed::default() })
}

/// The node pods: one for all agents, or else as many as there are.
async fn pods(marathon: &Marathon, options: &Options) -> Result<BTreeMap<Shard, Pod>, ApiError> {
    // Where it is known that there are several, an account need not be allowed to see the one.
    if options.trust.shards.names() == Layout::One
        && let Some(pod) = marathon.pod(&documents::pod_id(options)).await?
    {
        return Ok(BTreeMap::from([(Shard::All, pod)]));
    }
    let pods = marathon.pods(|id| documents::shard_of(options, id).is_some()).await?;
    Ok(pods.into_iter().filter_map(|pod| Some((documents::shard_of(options, pod.spec["id"].as_str()?)?, pod))).collect())
}

/// Asks the tasks that Marathon knows for their `/status`. One that does not answer, or is not who it should be, is left out.
pub(super) async fn tasks(cluster: &Cluster, options: &Options, observed: &mut Observed) {
    let mut asked = JoinSet::new();
    for instance in observed.instances() {
        let (Some(host), Some(port)) = (instance.host.clone(), instance.port) else { continue };
        let (http, service, instance) = (cluster.http.clone(), options.service.name.clone(), instance.clone());
        asked.spawn(async move {
            let status: NodeStatus = get(&http, &format!("http://{host}:{port}/status")).await?;
            // A port that a task has left may be taken by a stranger: Marathon must know this very task.
            (status.service == service && status.executor.ends_with(instance.uuid())).then_some((host, status))
        });
    }
    observed.nodes = asked.join_all().await.into_iter().flatten().collect::<BTreeMap<_, _>>();
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
    observed.registries.sort_by(|a, b| a.address.cmp(&b.address));
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

/// Sends an order to a node. Whether it was taken shows in its next status.
pub(super) async fn send_to_node(cluster: &Cluster, observed: &Observed, host: &Host, order: &SignedOrder) {
    if let Some(port) = node_port(observed, host) {
        put_order(&cluster.http, &format!("{host}:{port}"), order).await;
    }
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
    let mut asked = JoinSet::new();
    for host in observed.nodes.keys() {
        let Some(port) = node_port(observed, host) else { continue };
        let (http, address, order) = (cluster.http.clone(), format!("{host}:{port}"), order.clone());
        asked.spawn(async move { put_order(&http, &address, &order).await });
    }
    asked.join_all().await;
}

fn node_port(observed: &Observed, host: &Host) -> Option<u16> {
    observed.instances().filter(|i: &&Instance| i.host.as_ref() == Some(host)).find_map(|i| i.port)
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
        serde_json::from_str(&text).map_err(|error| error.to_string())
    };
    let read: Result<T, String> = read.await;
    read.inspect_err(|reason| tracing::debug!(url, reason, "no status")).ok()
}
