//! Takes everything back, in an order that a kill at any point does not spoil: registry, hosts, pod, jobs, own state.
//!
//! Each step looks at what is still there and acts on that, so a restarted controller goes on where things stand. Where no
//! controller is left, because its app was deleted behind Cosmos' back, the run of the job `….uninstall` takes the same steps.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cluster::Cluster;
use super::serve::Shared;
use super::state::{State, StateError};
use super::store::Store;
use super::{ControllerError, Report, Setting, observe, steps, unix_now};
use crate::dcos::{Api, ApiError, chain};
use crate::documents;
use crate::host_paths::HostRoot;
use crate::in_order::InOrder as _;
use crate::names::Host;
use crate::options::Options;
use crate::plan::{Observed, RegistryTask};
use crate::protocol::{NodePhase, NodeStatus, OrderKind, RegistryPhase, SignedOrder, env};
use crate::shards::Layout;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long Cosmos gets to delete the app before the controller does it itself. Cosmos asks every 10 s.
const COSMOS_GRACE: Duration = Duration::from_secs(60);

/// By whom the removal was ordered, and so who does the rest when hosts, pod and registry are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Cosmos deletes the controller's app; the controller deletes the jobs.
    Cosmos,
    /// A run of the job, which deletes the jobs; the controller deletes its own app.
    Job,
}

/// Runs the removal and then waits for the end.
pub(super) async fn run(
    setting: &Setting,
    options: &Options,
    cluster: &Cluster,
    shared: &Shared,
    order: Order,
) -> Result<(), ControllerError> {
    shared.removal(false);
    remove(setting, options, cluster, shared).await;
    match order {
        Order::Cosmos => {
            while let Err(error) = delete_jobs(options, cluster).await {
                tracing::warn!(error = chain(&error), "the jobs are not deleted yet; trying again");
                tokio::time::sleep(PAUSE).await;
            }
            forget(options, cluster).await?;
            shared.removal(true);
            tracing::info!("everything is removed; Cosmos may delete this app");
            tokio::time::sleep(COSMOS_GRACE).await;
            tracing::info!("Cosmos has not deleted this app, so it deletes itself");
        }
        Order::Job => {
            forget(options, cluster).await?;
            shared.removal(true);
            tracing::info!("everything but the jobs is removed; this app deletes itself");
        }
    }
    cluster.marathon.delete_app(&setting.app_id).await?;
    std::future::pending().await
}

/// The run of the job `<service>.uninstall`. Its being there is the order; where a controller is, the run watches it.
///
/// # Errors
/// Only what makes going on pointless.
pub async fn run_job() -> Result<(), ControllerError> {
    let setting = Setting::for_job()?;
    let options = Options::for_removal(&setting.vars, &setting.app_id)?;
    let shared = Shared::new(Vec::new(), String::new());
    let cluster = super::cluster::enter(&setting, &options, &shared).await;
    let controller = Api::new(cluster.http.clone(), setting.vars.get(env::CONTROLLER_URL).map_or("", String::as_str));
    let mut last_line = String::new();
    loop {
        let line = match cluster.marathon.app(&setting.app_id).await {
            Ok(None) => break,
            Ok(Some(_)) => match controller.get::<Report>("/v1/status").await {
                Ok(report) => report.summary,
                Err(error) => format!("the controller does not answer: {}", chain(&error)),
            },
            Err(error) => chain(&error),
        };
        if line != last_line {
            println!("{line}");
            last_line = line;
        }
        tokio::time::sleep(PAUSE * 2).await;
    }
    println!("there is no controller; this run removes what is left");
    remove(&setting, &options, &cluster, &shared).await;
    forget(&options, &cluster).await?;
    println!("everything is removed; this job deletes itself");
    // With this job its run ends, too.
    Ok(delete_jobs(&options, &cluster).await?)
}

/// Deletes the service's jobs, the one whose run this may be last.
async fn delete_jobs(options: &Options, cluster: &Cluster) -> Result<(), ApiError> {
    for id in documents::job_ids(options) {
        if cluster.metronome.job(&id).await?.is_some_and(|job| documents::is_made_by(&job.spec, options)) {
            cluster.metronome.delete_job(&id).await?;
        }
    }
    Ok(())
}

/// Takes registry, hosts and pod back; returns when all that is done.
async fn remove(setting: &Setting, options: &Options, cluster: &Cluster, shared: &Shared) {
    let mut orders = None;
    loop {
        match step(setting, options, cluster, shared, &mut orders).await {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), "this step of the removal failed; trying again");
                shared.trouble(chain(&error));
            }
        }
        shared.beat();
        tokio::time::sleep(PAUSE).await;
    }
}

/// Removes keys, record, and what tasks read in the secret store.
async fn forget(options: &Options, cluster: &Cluster) -> Result<(), ControllerError> {
    let store = cluster.store(&options.service.name)?;
    if let Some(secrets) = &cluster.secrets {
        let layout = State::layout_in(&store).await?.unwrap_or(Layout::One);
        for path in documents::published_paths(options, layout) {
            secrets.delete(&path).await?;
        }
    }
    Ok(store.forget().await?)
}

/// The orders of the removal, signed once per start, and whom they concern.
pub(crate) struct Orders {
    pub(crate) restore: SignedOrder,
    pub(crate) retire: SignedOrder,
    /// Agents that have files of ours.
    covered: BTreeSet<Host>,
    /// Agents that are as they were.
    restored: BTreeSet<Host>,
    /// UUIDs of the instances that have said so.
    restored_by: BTreeSet<String>,
    /// Since when the registry is waited for, or, when it is gone, the hosts. Each has all of the time: that a registry does not answer is
    /// no reason to leave files on agents that do.
    waits: Option<(For, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Registry,
    Hosts,
}

/// What comes next of the removal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The registry is told to stop and to delete its key.
    Retire,
    /// The registry's app goes; `retired`: it has deleted its key.
    DeleteRegistry {
        /// See above.
        retired: bool,
    },
    /// Nodes are told to put their hosts back as they were.
    Restore {
        /// Those that answer and have not done so.
        hosts: Vec<Host>,
        /// All that are waited for.
        remaining: Vec<Host>,
    },
    /// The pods go.
    DeletePods {
        /// Agents that keep our files.
        absent: BTreeSet<Host>,
    },
}

impl Orders {
    pub(crate) async fn sign(state: &mut State, delete_data: bool) -> Result<Self, StateError> {
        let retire = state.order(OrderKind::Retire { delete_data }).await?;
        let restore = state.order(OrderKind::Restore).await?;
        let (restored, restored_by) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { restore, retire, covered: state.covered().clone(), restored, restored_by, waits: None })
    }

    /// What comes next, while there is a registry or a pod. Nobody is waited for longer than `patience`.
    pub(crate) fn next(&mut self, observed: &Observed, now: Instant, patience: Duration) -> Step {
        let waits_for = if observed.registry.is_some() { For::Registry } else { For::Hosts };
        let (_, since) = *self.waits.take_if(|(what, _)| *what == waits_for).get_or_insert((waits_for, now));
        self.waits = Some((waits_for, since));
        let late = now.saturating_duration_since(since) >= patience;
        if observed.registry.is_some() {
            let is_retired = |task: &RegistryTask| task.status.phase == RegistryPhase::Retired;
            let retired = observed.all_registries_answer() && observed.registries.iter().all(is_retired);
            return if retired || late { Step::DeleteRegistry { retired } } else { Step::Retire };
        }
        let is_restored = |(_, status): &(&Host, &Arc<NodeStatus>)| status.phase == NodePhase::Restored;
        let restored: BTreeSet<&Host> = observed.nodes.iter().filter(is_restored).map(|(host, _)| host).in_order();
        // A node that was started anew has written again, until it is told once more; also one that is not heard of before it ends.
        for (host, uuid) in observed.instances().filter_map(|instance| Some((instance.host.as_ref()?, instance.uuid()))) {
            if restored.contains(host) {
                self.restored_by.insert(uuid.to_string());
            } else if observed.nodes.contains_key(host) || !self.restored_by.contains(uuid) {
                self.restored.remove(host);
            }
        }
        self.restored.extend(restored.iter().copied().cloned());
        let instances = observed.instances().filter_map(|instance| instance.host.as_ref());
        let mut awaited: BTreeSet<&Host> = instances.in_order();
        self.covered.extend(awaited.iter().copied().cloned());
        // A node that has died is at no host before Marathon has placed it again.
        let live = observed.agents.iter().filter(|agent| agent.active).map(|agent| &agent.host);
        awaited.extend(live.filter(|host| self.covered.contains(host)));
        // What a node says now counts, not what it has said: one that was started anew meanwhile has begun with the order to trust.
        let remaining: Vec<Host> = awaited.into_iter().filter(|host| !restored.contains(host)).cloned().collect();
        if remaining.is_empty() || late {
            // Agents that Mesos does not know any more are not waited for: they may be gone for good.
            let absent = self.covered.iter().chain(&remaining).filter(|host| !self.restored.contains(*host)).cloned().in_order();
            return Step::DeletePods { absent };
        }
        let hosts = observed.nodes.keys().filter(|host| !restored.contains(host)).cloned().in_order();
        Step::Restore { hosts, remaining }
    }
}

/// Agents that keep our files where the pods are gone: somebody else has deleted them, or this controller before it was started anew. Whoever
/// was restored by then is no more in the record.
///
/// # Errors
/// When the record cannot be read.
pub(crate) async fn left_behind(store: &Store, orders: Option<&Orders>) -> Result<BTreeSet<Host>, StateError> {
    let mut hosts = super::state::covered_by(store).await?;
    if let Some(orders) = orders {
        hosts.extend(orders.covered.iter().cloned());
        hosts.retain(|host| !orders.restored.contains(host));
    }
    Ok(hosts)
}

/// Whether registry and pods are gone, and no deployment brings them back.
pub(crate) fn is_gone(options: &Options, observed: &Observed) -> Option<bool> {
    let is_ours = |id: &String| *id == documents::registry_id(options) || documents::shard_of(options, id).is_some();
    (observed.registry.is_none() && observed.pods.is_empty()).then(|| !observed.locked.iter().any(is_ours))
}

async fn step(
    setting: &Setting,
    options: &Options,
    cluster: &Cluster,
    shared: &Shared,
    orders: &mut Option<Orders>,
) -> Result<bool, ControllerError> {
    let mut observed = observe::cluster(cluster, options).await?;
    leave_alone_what_is_not_ours(options, &mut observed);
    observe::tasks(cluster, options, &mut observed).await;
    if !steps::is_current(&observed, &setting.task_id) {
        return Err(ControllerError::NotCurrent(setting.app_id.clone()));
    }
    if let Some(gone) = is_gone(options, &observed) {
        if gone {
            match left_behind(&cluster.store(&options.service.name)?, orders.as_ref()).await {
                Ok(hosts) => tell_of(&hosts, options),
                // Not to be named is no reason to stay.
                Err(error) => tracing::error!(error = chain(&error), "which agents keep our files cannot be told"),
            }
        }
        return Ok(gone);
    }
    let orders = match orders {
        Some(orders) => orders,
        none => {
            let mut state = State::open(cluster.store(&options.service.name)?, None, unix_now()).await?;
            state.note_taken(steps::newest_taken(observed.nodes.values(), &observed.registries));
            none.insert(Orders::sign(&mut state, options.uninstall.delete_data).await?)
        }
    };
    let registry_id = documents::registry_id(options);
    match orders.next(&observed, Instant::now(), Duration::from_secs(options.uninstall.deadline_seconds)) {
        Step::Retire => {
            observe::send_to_registries(cluster, &observed, &orders.retire).await;
            say(shared, options, "waiting for the registry to stop and to delete its key");
        }
        Step::DeleteRegistry { retired } => {
            if !retired {
                tracing::warn!(
                    "the registry did not answer; its key may remain on its host in {}",
                    HostRoot::default().registry_state(&options.service.name).display()
                );
            }
            shared.acted(format!("delete the app {registry_id}"));
            cluster.marathon.delete_app(&registry_id).await?;
            say(shared, options, "waiting for the registry to stop and to delete its key");
        }
        Step::Restore { hosts, remaining } => {
            observe::send_to_nodes(cluster, &observed, hosts.iter().collect(), &orders.restore).await;
            let names: Vec<String> = remaining.iter().map(ToString::to_string).collect();
            say(shared, options, &format!("waiting for agents to be as they were: {}", names.join(", ")));
        }
        Step::DeletePods { absent } => {
            let state = State::open(cluster.store(&options.service.name)?, None, unix_now()).await;
            if let Err(error) = note_left_behind(state, orders, &absent).await {
                tracing::warn!(error = chain(&error), "a restart would not know any more which agents keep our files");
            }
            for shard in observed.pods.keys() {
                let id = format!("{}{}", documents::pod_id(options), shard.suffix());
                shared.acted(format!("delete the pod {id}"));
                cluster.marathon.delete_pod(&id).await?;
            }
        }
    }
    Ok(false)
}

/// Whoever is left is told of when the pods are gone, by this controller or by the next one.
///
/// # Errors
/// When the state cannot be read or written.
pub(crate) async fn note_left_behind(state: Result<State, StateError>, orders: &Orders, absent: &BTreeSet<Host>) -> Result<(), StateError> {
    let mut state = state?;
    state.note_restored(&orders.restored).await?;
    state.note_covered(absent).await
}

fn tell_of(left_behind: &BTreeSet<Host>, options: &Options) {
    for host in left_behind {
        tracing::error!(%host, "this agent does not answer and keeps our files; when it is back run there: private-registry restore --name {}", options.service.name);
    }
}

/// A service that was refused because a name was taken must not take that with it when it goes.
pub(crate) fn leave_alone_what_is_not_ours(options: &Options, observed: &mut Observed) {
    observed.registry.take_if(|app| !documents::is_made_by(&app.spec, options));
    observed.pods.retain(|_, pod| documents::is_made_by(&pod.spec, options));
}

fn say(shared: &Shared, options: &Options, next: &str) {
    let summary = format!("The package is being removed: {next}.");
    shared.publish(Report { service: options.service.name.clone(), summary, next: vec![next.to_string()], ..Report::default() });
}

#[cfg(test)]
mod tests {
    use super::super::store::Shelf;
    use super::*;

    #[tokio::test]
    async fn who_keeps_our_files_is_told_also_where_somebody_else_has_deleted_the_pod_or_a_restart_came_in_between() {
        let shelf = Shelf::default();
        let store = || Store::on_shelf(&shelf, "private-registry");
        let hosts = |names: &[&str]| -> BTreeSet<Host> { names.iter().map(|name| name.parse().unwrap()).collect() };
        let mut state = State::open(store(), None, 0).await.unwrap();
        state.note_covered(&hosts(&["10.0.0.1", "10.0.0.2", "10.0.0.3"])).await.unwrap();
        // Nobody has restored anything when the pod is gone.
        assert_eq!(left_behind(&store(), None).await.unwrap(), hosts(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
        let mut orders = Orders::sign(&mut state, false).await.unwrap();
        orders.restored = hosts(&["10.0.0.1"]);
        assert_eq!(left_behind(&store(), Some(&orders)).await.unwrap(), hosts(&["10.0.0.2", "10.0.0.3"]));
        // Before it deletes the pod itself, the record learns it, and so does the next controller.
        let absent = hosts(&["10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        note_left_behind(State::open(store(), None, 0).await, &orders, &absent).await.unwrap();
        assert_eq!(left_behind(&store(), None).await.unwrap(), absent);
        store().forget().await.unwrap();
        assert_eq!(left_behind(&store(), None).await.unwrap(), BTreeSet::new());
    }
}
