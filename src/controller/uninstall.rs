//! Takes everything back, in an order that a kill at any point does not spoil: registry, hosts, pod, jobs, own state.
//!
//! Each step looks at what is still there and acts on that, so a restarted controller goes on where things stand. Where no
//! controller is left, because its app was deleted behind Cosmos' back, the run of the job `….uninstall` takes the same steps.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::cluster::Cluster;
use super::serve::Shared;
use super::state::{State, StateError};
use super::{ControllerError, Report, Setting, observe, steps, unix_now};
use crate::dcos::{Api, ApiError, chain};
use crate::documents;
use crate::host_paths::HostRoot;
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
    let deadline = Instant::now() + Duration::from_secs(options.uninstall.deadline_seconds);
    let mut orders = None;
    loop {
        match step(setting, options, cluster, shared, deadline, &mut orders).await {
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
    restored: BTreeSet<Host>,
    /// The pods were there to be deleted, and whoever was absent by then is named.
    named: bool,
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
        Ok(Self { restore, retire, covered: state.covered().clone(), restored: BTreeSet::new(), named: false })
    }

    /// What comes next, while there is a registry or a pod. `late`: nobody is waited for any longer.
    pub(crate) fn next(&mut self, observed: &Observed, late: bool) -> Step {
        if observed.registry.is_some() {
            let is_retired = |task: &RegistryTask| task.status.phase == RegistryPhase::Retired;
            let retired = observed.all_registries_answer() && observed.registries.iter().all(is_retired);
            return if retired || late { Step::DeleteRegistry { retired } } else { Step::Retire };
        }
        let is_restored = |(_, status): &(&Host, &NodeStatus)| status.phase == NodePhase::Restored;
        let restored: BTreeSet<&Host> = observed.nodes.iter().filter(is_restored).map(|(host, _)| host).collect();
        self.restored.extend(restored.iter().copied().cloned());
        let instances = observed.instances().filter_map(|instance| instance.host.as_ref());
        let mut awaited: BTreeSet<&Host> = instances.collect();
        self.covered.extend(awaited.iter().copied().cloned());
        // A node that has died is at no host before Marathon has placed it again.
        let live = observed.agents.iter().filter(|agent| agent.active).map(|agent| &agent.host);
        awaited.extend(live.filter(|host| self.covered.contains(host)));
        // What a node says now counts, not what it has said: one that was started anew meanwhile has begun with the order to trust.
        let remaining: Vec<Host> = awaited.into_iter().filter(|host| !restored.contains(host)).cloned().collect();
        if remaining.is_empty() || late {
            // Agents that Mesos does not know any more are not waited for: they may be gone for good.
            let absent = self.covered.iter().chain(&remaining).filter(|host| !self.restored.contains(host)).cloned().collect();
            self.named = true;
            return Step::DeletePods { absent };
        }
        let hosts = observed.nodes.keys().filter(|host| !restored.contains(host)).cloned().collect();
        Step::Restore { hosts, remaining }
    }

    /// Agents that keep our files because somebody else has deleted the pods before they were put back.
    pub(crate) fn abandoned(&self) -> Vec<&Host> {
        self.covered.iter().filter(|host| !self.named && !self.restored.contains(host)).collect()
    }
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
    deadline: Instant,
    orders: &mut Option<Orders>,
) -> Result<bool, ControllerError> {
    let mut observed = observe::cluster(cluster, options).await?;
    leave_alone_what_is_not_ours(options, &mut observed);
    observe::tasks(cluster, options, &mut observed).await;
    if !steps::is_current(&observed, &setting.task_id) {
        return Err(ControllerError::NotCurrent(setting.app_id.clone()));
    }
    if let Some(gone) = is_gone(options, &observed) {
        let abandoned = orders.iter().filter(|_| gone).flat_map(Orders::abandoned);
        abandoned.for_each(|host| name_absent(options, host));
        return Ok(gone);
    }
    let orders = match orders {
        Some(orders) => orders,
        none => {
            let mut state = State::open(cluster.store(&options.service.name)?, None, unix_now()).await?;
            none.insert(Orders::sign(&mut state, options.uninstall.delete_data).await?)
        }
    };
    let registry_id = documents::registry_id(options);
    match orders.next(&observed, Instant::now() >= deadline) {
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
            observe::send_to_nodes(cluster, &observed, &hosts, &orders.restore).await;
            let names: Vec<String> = remaining.iter().map(ToString::to_string).collect();
            say(shared, options, &format!("waiting for agents to be as they were: {}", names.join(", ")));
        }
        Step::DeletePods { absent } => {
            absent.iter().for_each(|host| name_absent(options, host));
            for shard in observed.pods.keys() {
                let id = format!("{}{}", documents::pod_id(options), shard.suffix());
                shared.acted(format!("delete the pod {id}"));
                cluster.marathon.delete_pod(&id).await?;
            }
        }
    }
    Ok(false)
}

fn name_absent(options: &Options, host: &Host) {
    tracing::error!(%host, "this agent does not answer and keeps our files; when it is back run there: private-registry restore --name {}", options.service.name);
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
