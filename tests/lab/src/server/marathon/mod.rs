//! Marathon 1.11: apps, pods, their instances, and the deployments that bring them about.
//!
//! A request changes a definition and begins a deployment (`deployments`); every tick compares the definitions with the instances
//! there are (`instances`), gives the missing ones to the scheduler (`launch`), and ends deployments that have come true.

pub(crate) mod definitions;
mod deployments;
mod instances;
mod launch;
mod network;
mod routes;
#[cfg(test)]
mod tests;
mod views;
pub(crate) mod volumes;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Host;
use super::state::State;
pub(crate) use deployments::Deployment;
pub(crate) use network::network;
pub use routes::router;

/// Marathon starts so many instances, then waits for the refresh or for some of them to run (`--launch_tokens`).
const LAUNCH_TOKENS: u32 = 100;
/// Seconds after which the tokens are set back (`--launch_token_refresh_interval`).
const TOKEN_REFRESH_SECONDS: f64 = 30.0;

/// What Marathon keeps.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Marathon {
    /// Unix time of its first start.
    pub(crate) started: f64,
    /// Apps and pods by absolute id; one id is never both.
    pub(crate) specs: BTreeMap<String, RunSpec>,
    /// By instance id.
    pub(crate) instances: BTreeMap<String, Instance>,
    /// Running ones, oldest first.
    pub(crate) deployments: Vec<Deployment>,
    /// Whether the role of a top-level group is enforced upon what is in it.
    pub(crate) groups: BTreeMap<String, bool>,
    /// Time of the last change of any definition.
    pub(crate) version: String,
    /// Gone, but what they reserved is still there.
    #[serde(default)]
    destroyed: Vec<Instance>,
    tokens: u32,
    tokens_set_at: f64,
}

/// App or pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// `/v2/apps`.
    App,
    /// `/v2/pods`.
    Pod,
}

/// An app or a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunSpec {
    pub(crate) kind: Kind,
    /// As stored.
    pub(crate) definition: Value,
    /// Version of the last change that is more than scaling: instances of an older one are replaced.
    pub(crate) config_version: String,
    /// Version from which on instances count for UNIQUE.
    pub(crate) unique_since: String,
    /// All versions so far, newest last.
    pub(crate) versions: Vec<Value>,
    pub(crate) backoff: Backoff,
    /// The last ends that nobody asked for, newest first.
    pub(crate) failures: Vec<Failure>,
    /// Why it cannot be run at all; the instances stay scheduled.
    pub(crate) refused: Option<String>,
}

/// The delay between launches of a run spec that fails.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Backoff {
    /// Seconds; 0 when nothing has failed lately.
    pub(crate) delay: f64,
    /// Unix time before which nothing is launched.
    pub(crate) until: f64,
}

/// The end of a task that nobody asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) instance: String,
    pub(crate) task: String,
    pub(crate) host: Ipv4Addr,
    pub(crate) agent_id: String,
    pub(crate) state: String,
    pub(crate) message: String,
    pub(crate) at: f64,
    pub(crate) started: f64,
    pub(crate) version: String,
}

/// What Marathon wants of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Goal {
    /// Started again when it ends.
    Running,
    /// Killed, and gone when it has ended.
    Decommissioned,
}

/// One of the instances that an app or pod is scaled to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub(crate) id: String,
    /// Id of its app or pod.
    pub(crate) spec: String,
    pub(crate) kind: Kind,
    /// The definition that it was made by.
    pub(crate) definition: Value,
    pub(crate) config_version: String,
    /// Counts its tasks: the last part of a task id.
    pub(crate) incarnation: u32,
    pub(crate) goal: Goal,
    /// Ids of its present tasks; none while it is scheduled.
    pub(crate) tasks: Vec<String>,
    /// Where it is or was last.
    pub(crate) agent: Option<(Ipv4Addr, String)>,
    /// Unix time of its making.
    pub(crate) created: f64,
    /// In Marathon's words.
    pub(crate) condition: String,
    /// Unix time since which.
    pub(crate) since: f64,
    /// Unix time since which it runs.
    pub(crate) active_since: Option<f64>,
    /// Whether its launch token has been given back.
    pub(crate) token_returned: bool,
    /// What it has for good: where it has persistent volumes.
    #[serde(default)]
    pub(crate) reservation: Option<volumes::Reservation>,
}

impl Marathon {
    /// Nothing deployed.
    pub(crate) fn new(started: f64) -> Self {
        Self {
            started,
            specs: BTreeMap::new(),
            instances: BTreeMap::new(),
            deployments: Vec::new(),
            groups: BTreeMap::new(),
            version: "1970-01-01T00:00:00.000Z".to_owned(),
            destroyed: Vec::new(),
            tokens: LAUNCH_TOKENS,
            tokens_set_at: 0.0,
        }
    }

    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&String, &RunSpec)> {
        self.specs.iter().filter(move |(_, spec)| spec.kind == kind)
    }

    pub(crate) fn instances_of<'a>(&'a self, spec: &'a str) -> impl Iterator<Item = &'a Instance> {
        self.instances.values().filter(move |instance| instance.spec == spec)
    }
}

impl RunSpec {
    /// How many instances it is scaled to.
    pub(crate) fn scale(&self) -> usize {
        let number = match self.kind {
            Kind::App => &self.definition["instances"],
            Kind::Pod => &self.definition["scaling"]["instances"],
        };
        number.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
    }
}

/// Moves every deployment on; called at each tick, after what executors report has been read.
pub(crate) fn advance(state: &mut State, host: &dyn Host) {
    instances::follow_tasks(state);
    instances::scale(state);
    launch::launch_scheduled(state, host);
    instances::follow_tasks(state);
    volumes::destroy(state, host);
    deployments::finish(state);
}
