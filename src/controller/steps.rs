//! What a pass concludes from what it has seen: the part of it that neither asks nor writes, but for the CA's steps, which the state
//! keeps. The loop and the model test (`src/model`) take the same steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RotationOrder;
use super::anchor::Anchor;
use super::state::{Stage, State, StateError};
use crate::dcos::marathon::{AppTask, Pod};
use crate::documents;
use crate::in_order::InOrder as _;
use crate::names::{Host, HostPort};
use crate::options::Options;
use crate::plan::{self, Action, Observed, RegistryTask, Wanted};
use crate::protocol::{NodeStatus, Order, OrderKind, OtherTrust, SignedOrder, Stores, TrustBundle, TrustedName, env};
use crate::secret::Secret;
use crate::shards::{Asked, Layout, Shard};
use crate::takeover::Takeover;

/// Whether Marathon knows no other task of the controller's app. While it knows none, as during a deployment, this one goes on.
pub(crate) fn is_current(observed: &Observed, task_id: &str) -> bool {
    observed.own_app.as_ref().is_none_or(|own| own.tasks.is_empty() || own.tasks.iter().any(|task| task.id == task_id))
}

/// While Marathon lists no task of the controller's app, as before it has seen this one run, where this one is still is where it is:
/// what belongs to the controller's host must not be put elsewhere.
pub(crate) fn count_self(observed: &mut Observed, task_id: &str, host: &Host) {
    if let Some(own) = observed.own_app.as_mut().filter(|own| own.tasks.is_empty()) {
        own.tasks.push(AppTask { id: task_id.into(), host: host.clone(), ports: Vec::new(), healthy: false });
    }
}

/// Where a controller stands that keeps its state on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Home {
    /// On its host.
    Here,
    /// Its app is to be pinned to this one.
    Pin(Host),
    /// A deployment of its own app has to end first, with which Marathon may be about to kill it.
    Locked,
}

/// Marathon kills a task whose app was changed within that time, if it does at all.
const RESTARTED_WITHIN: Duration = Duration::from_secs(60);

/// Where no option names the controller's host, its app is pinned to the one that keeps its state, or else to where it is.
///
/// `pinned_for`: since when this very task has done so. It does nothing more, for what it started would look for a controller in vain.
pub(crate) fn home(observed: &Observed, app_id: &str, host: &Host, pinned_for: Option<Duration>) -> Home {
    let constraints = observed.own_app.as_ref().and_then(|own| own.spec["constraints"].as_array()).map_or(0, Vec::len);
    match () {
        () if constraints > 0 && pinned_for.is_some_and(|time| time < RESTARTED_WITHIN) => Home::Locked,
        () if constraints > 0 => Home::Here,
        () if observed.locked.contains(app_id) => Home::Locked,
        () => Home::Pin(plan::home(observed).unwrap_or_else(|| host.clone())),
    }
}

/// What the options ask for, as far as the CA allows it now.
pub(crate) struct Intent {
    /// All names that the options ask for.
    pub(crate) asked: Vec<HostPort>,
    /// The names in force.
    pub(crate) names: Vec<TrustedName>,
    /// How the CA stands.
    pub(crate) ca: plan::Ca,
    /// The active run of the job that orders another CA.
    pub(crate) rotate_run: Option<String>,
}

impl Intent {
    /// `names`: those that the options ask for.
    pub(crate) fn of(
        options: &Options,
        anchor: &Anchor,
        state: &State,
        observed: &Observed,
        names: Vec<TrustedName>,
        now: i64,
    ) -> Result<Self, StateError> {
        let asked = bare(&names);
        // New names come into force with a CA that may speak for them.
        let speaks = !anchor.is_own() || state.speaks_for(&asked)?;
        let names = match state.trusted_names().filter(|trusted| !trusted.is_empty()) {
            _ if speaks => names,
            Some(trusted) => trusted,
            // The order that said what nodes trust is void, as its key was lost; or it named nothing, as there was no registry.
            None => state.spoken_for(names)?,
        };
        let rotate_run = observed.jobs.get(&documents::rotate_job_id(options)).and_then(|job| job.active_runs.first()).cloned();
        let deadline = i64::try_from(options.trust.rotation_deadline_seconds).unwrap_or(i64::MAX);
        let ca = if anchor.is_own() {
            plan::Ca {
                due: state.rotation_due(&asked, rotate_run.as_deref(), now)?,
                rotation: state.rotation().cloned(),
                void: state.rotation_is_void(&asked)?,
                holds_names_back: !speaks,
                key_is_lost: state.key_is_lost(),
                deadline,
                ..plan::Ca::default()
            }
        } else {
            plan::Ca {
                signs_nothing: matches!(anchor, Anchor::Provided(_) | Anchor::Nobody),
                plain_http: options.is_insecure(),
                deadline,
                ..plan::Ca::default()
            }
        };
        Ok(Self { asked, names, ca, rotate_run })
    }
}

/// Names without where they are used.
pub(crate) fn bare(names: &[TrustedName]) -> Vec<HostPort> {
    names.iter().map(|name| name.name.clone()).collect()
}

/// What every agent is to trust.
pub(crate) fn bundle(
    options: &Options,
    anchor: &Anchor,
    state: &State,
    settled: bool,
    names: Vec<TrustedName>,
    others: Vec<OtherTrust>,
) -> TrustBundle {
    let trust = &options.trust;
    let certificates = anchor.certificates(state, settled);
    // While a registry that is switched off retires, what was trusted for its names stays so. Nodes take no certificate without a name.
    let retires = names.is_empty() && !certificates.is_empty();
    let names = if retires { state.trusted_names().unwrap_or_default() } else { names };
    TrustBundle {
        insecure: options.is_insecure(),
        certificates: if names.is_empty() { Vec::new() } else { certificates },
        names,
        others,
        stores: Stores { containerd: trust.containerd, podman: trust.podman, system: trust.system },
        conntrack_be_liberal: trust.conntrack_be_liberal,
        // Once begun it goes on, also while the registry is restarted.
        clean_agents: options.takeover.clean_agents && options.registry.enabled && (settled || state.cleans_agents()),
    }
}

/// What an order says, whoever has signed it.
fn content(order: &SignedOrder) -> Option<Order> {
    use base64::Engine as _;
    crate::json::of_bytes(&base64::engine::general_purpose::STANDARD.decode(&order.payload).ok()?).ok()
}

/// The version of an order of ours.
pub(crate) fn version_of(order: &SignedOrder) -> u64 {
    content(order).map_or(0, |order| order.version)
}

/// The CA certificates that the present nodes were started with, whoever has signed the order.
pub(crate) fn trusted_before(observed: &Observed) -> Vec<String> {
    let read = |pod: &Pod| -> Option<Order> {
        let text = pod.spec["environment"][env::FIRST_ORDER].as_str()?;
        content(&crate::json::of_text(text).ok()?)
    };
    let mut certificates = Vec::new();
    // Where an update was interrupted, some were started with another one than the rest.
    for order in observed.pods.values().filter_map(read) {
        if let OrderKind::Trust(bundle) = order.kind {
            let new: Vec<String> = bundle.certificates.into_iter().filter(|pem| !certificates.contains(pem)).collect();
            certificates.extend(new);
        }
    }
    certificates
}

/// The first order that the present pod carries, if it was signed with our key: a newer bundle is no reason to replace every node.
pub(crate) fn first_order(observed: &Observed, order_key: &str) -> Option<SignedOrder> {
    let environments = observed.pods.values().map(|pod| &pod.spec["environment"]);
    let mut ours = environments.filter(|environment| environment[env::ORDER_KEY] == order_key);
    ours.find_map(|environment| crate::json::of_text(environment[env::FIRST_ORDER].as_str()?).ok())
}

/// How the agents are divided among node pods: as the pods say that there are, else as it was decided, else as it is decided now.
///
/// # Errors
/// When the state cannot be written.
pub(crate) async fn layout(options: &Options, observed: &Observed, state: &mut State) -> Result<Layout, StateError> {
    let asked = options.trust.shards;
    let decided = state.layout().filter(|layout| asked == Asked::Auto || layout.asked() == asked);
    let hosts = observed.agents.iter().map(|agent| &agent.host);
    let layout = observed.layout(options).or(decided).unwrap_or_else(|| Layout::first(asked, hosts));
    state.note_layout(layout).await?;
    Ok(layout)
}

/// The newest version that one of these nodes, or of the registry's tasks, says it has taken.
pub(crate) fn newest_taken<'a>(nodes: impl IntoIterator<Item = &'a Arc<NodeStatus>>, registries: &[RegistryTask]) -> u64 {
    let of_node = |status: &Arc<NodeStatus>| status.order_version.max(status.preload.as_ref().map_or(0, |preload| preload.version));
    let nodes = nodes.into_iter().map(of_node);
    nodes.chain(registries.iter().map(|task| task.status.order_version)).max().unwrap_or(0)
}

/// Tells the enrolment key from another one.
pub(crate) fn enrolment_id(state: &State) -> String {
    state.enrolment_key().digest(&Secret::new("id".into())).chars().take(16).collect()
}

/// Takes an action that is about the CA alone; any other one is none of the state's.
pub(crate) async fn step_of_ca(
    state: &mut State,
    action: &Action,
    order: &RotationOrder,
    ca_days: u32,
    now: i64,
) -> Result<(), StateError> {
    match action {
        Action::BeginRotation { reason } => state.begin_rotation(*reason, &order.names, order.run.as_deref(), ca_days, now).await,
        Action::DropRotation => state.drop_rotation().await,
        Action::SwitchCa { .. } => state.switch(now).await,
        Action::RetireCa { .. } => state.retire_earlier().await,
        _ => Ok(()),
    }
}

/// Passes of every node.
type Passes = BTreeMap<Host, u64>;

fn passes(observed: &Observed) -> Passes {
    observed.nodes.iter().map(|(host, status)| (host.clone(), status.passes)).in_order()
}

/// What earlier passes have seen and nobody can be asked for again. A controller that is started anew begins it anew.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Whether the registry was seen to serve with a certificate of whom the options say.
    pub(crate) settled: bool,
    surplus_since: BTreeMap<Shard, Instant>,
    /// Since when deployments have locked what they lock.
    locked_since: BTreeMap<String, Instant>,
    /// See [`Observed::passes_at_switch`]; none while the registry does not serve with the new CA.
    passes_at_switch: Option<Passes>,
    /// See [`Observed::passes_at_takeover`]; none where this controller has taken over nothing, or every node has proven since.
    passes_at_takeover: Passes,
    /// Since when a registry that is switched off is waited for.
    retires_since: Option<Instant>,
    /// Since when agents are waited for before a registry made by hand is taken over.
    takeover_since: Option<Instant>,
    /// Active runs of the init job: passes of every node at the time the run was first seen. Done when all have made one more.
    runs: BTreeMap<String, Passes>,
    /// Whether nodes are asked in this pass.
    asks: bool,
    asked_at: Option<Instant>,
    /// When an order was given anew because a node had taken another one.
    surpassed_at: Option<Instant>,
}

/// So long after a question whoever has not answered it with a proof is asked again: one who has been started anew since has forgotten it.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Between two orders that say the same as the one before and are given only because of what a status says, which may not be true.
const SURPASS_EVERY: Duration = Duration::from_secs(600);

impl Memory {
    /// Whether the trust order is to be given anew, above the version of another one that one of these nodes has taken and that is not
    /// older.
    #[must_use]
    pub(crate) fn surpasses<'a>(
        &mut self,
        nodes: impl IntoIterator<Item = &'a Arc<NodeStatus>>,
        trust: &SignedOrder,
        now: Instant,
    ) -> bool {
        let digest = plan::order_digest(trust);
        let mut others = nodes.into_iter().filter(|status| status.order_digest != digest).peekable();
        if others.peek().is_none() {
            return false;
        }
        let version = version_of(trust);
        let is_surpassed = others.any(|status| status.order_version >= version);
        let due = is_surpassed && self.surpassed_at.is_none_or(|at| now.saturating_duration_since(at) >= SURPASS_EVERY);
        if due {
            self.surpassed_at = Some(now);
        }
        due
    }

    /// Notes whether the registry serves as it should.
    pub(crate) fn see_registry(&mut self, options: &Options, anchor: &Anchor, state: &State, observed: &Observed, names: &[HostPort]) {
        self.settled = match options.registry.enabled {
            true => observed.all_registries_answer() && observed.registries.iter().all(|task| anchor.is_served(state, &task.status, names)),
            false => observed.registry.is_none(),
        };
    }

    /// For how long each pod has been scaled above what is needed.
    pub(crate) fn see_surplus(&mut self, observed: &mut Observed, layout: Layout, now: Instant) {
        let needed = plan::wanted_instances(observed, layout);
        let has_surplus = |(shard, pod): &(&Shard, &Pod)| pod.scale() > needed.get(*shard).copied().unwrap_or(0);
        let surplus: BTreeSet<Shard> = observed.pods.iter().filter(has_surplus).map(|(shard, _)| *shard).in_order();
        self.surplus_since.retain(|shard, _| surplus.contains(shard));
        for shard in surplus {
            self.surplus_since.entry(shard).or_insert(now);
        }
        let lasts = |(shard, since): (&Shard, &Instant)| (*shard, now.saturating_duration_since(*since));
        observed.surplus_for = self.surplus_since.iter().map(lasts).in_order();
    }

    /// Which deployments are taken for ones that do not end.
    pub(crate) fn see_locks(&mut self, observed: &mut Observed, now: Instant) {
        self.locked_since.retain(|id, _| observed.locked.contains(id));
        for id in &observed.locked {
            let since = *self.locked_since.entry(id.clone()).or_insert(now);
            if now.saturating_duration_since(since) >= plan::UNLOCK_AFTER {
                observed.stuck.insert(id.clone());
            }
        }
    }

    /// The registry made by hand that is to be taken over, and for how long agents have been waited for.
    pub(crate) fn see_takeover(&mut self, options: &Options, observed: &Observed, now: Instant) -> Option<Takeover> {
        let waited = |since: Instant| i64::try_from(now.saturating_duration_since(since).as_secs()).unwrap_or(i64::MAX);
        let takeover = Takeover::of(options, observed, self.takeover_since.map_or(0, waited));
        self.takeover_since = takeover.as_ref().map(|_| self.takeover_since.unwrap_or(now));
        takeover
    }

    /// Whether a registry that is switched off has had its time to delete its key: as much as in a removal.
    pub(crate) fn see_retirement(&mut self, options: &Options, observed: &Observed, now: Instant) -> bool {
        let retires = !options.registry.enabled && observed.registry.is_some();
        self.retires_since = if retires { self.retires_since.or(Some(now)) } else { None };
        let deadline = Duration::from_secs(options.uninstall.deadline_seconds);
        self.retires_since.is_some_and(|since| now.saturating_duration_since(since) >= deadline)
    }

    /// The registry made by hand is being replaced: what the clients have said before is about that one.
    pub(crate) fn taken_over(&mut self, observed: &Observed) {
        self.passes_at_takeover = observed.nodes.keys().map(|host| (host.clone(), u64::MAX)).in_order();
    }

    /// Whether every node is to be asked for a proof now, because the registry that has taken over serves.
    #[must_use]
    pub(crate) fn proves_after_takeover(&mut self, observed: &mut Observed) -> bool {
        self.passes_at_takeover.retain(|host, passes| observed.nodes.get(host).is_none_or(|status| status.passes <= *passes));
        let asks = self.settled && self.passes_at_takeover.values().any(|passes| *passes == u64::MAX);
        if asks {
            self.passes_at_takeover = passes(observed);
        }
        self.asks |= asks;
        observed.passes_at_takeover.clone_from(&self.passes_at_takeover);
        asks
    }

    /// Whether every node is to be asked for a proof now, because the registry serves with the new CA for the first time.
    #[must_use]
    pub(crate) fn proves_after_switch(&mut self, wanted: &Wanted, observed: &mut Observed) -> bool {
        let switched = wanted.ca.rotation.as_ref().is_some_and(|rotation| rotation.stage == Stage::Switched);
        let serves = switched && plan::serves(wanted, observed);
        let asks = serves && self.passes_at_switch.is_none();
        if !serves {
            self.passes_at_switch = None;
        } else {
            // Who was away by then, and is back with what he has proven before, owes a proof as well.
            let at_switch = self.passes_at_switch.get_or_insert_default();
            for (host, passes) in passes(observed) {
                at_switch.entry(host).or_insert(passes);
            }
        }
        observed.passes_at_switch = self.passes_at_switch.clone().unwrap_or_default();
        self.asks |= asks;
        asks
    }

    /// Active runs of the init job that are seen for the first time: each is the order to prove everything anew.
    #[must_use]
    pub(crate) fn see_runs(&mut self, options: &Options, observed: &Observed) -> Vec<String> {
        let active: BTreeSet<&String> =
            observed.jobs.get(&documents::init_job_id(options)).map(|job| job.active_runs.iter().in_order()).unwrap_or_default();
        self.runs.retain(|run, _| active.contains(run));
        let new: Vec<String> = active.into_iter().filter(|run| !self.runs.contains_key(*run)).cloned().collect();
        self.runs.extend(new.iter().map(|run| (run.clone(), passes(observed))));
        self.asks |= !new.is_empty();
        new
    }

    /// Whether every node is to be asked for a proof once more, because one of those that are waited for owes it. To be called at the end
    /// of a pass.
    #[must_use]
    pub(crate) fn asks_again(&mut self, observed: &Observed, now: Instant) -> bool {
        let mut waits = false;
        let all = self.passes_at_switch.iter_mut().chain([&mut self.passes_at_takeover]).chain(self.runs.values_mut());
        for (host, before) in all.flatten().filter(|(_, before)| **before != u64::MAX) {
            let Some(status) = observed.nodes.get(host) else { continue };
            if status.passes < *before {
                // Started anew, it counts from the beginning, and all that it has proven it has proven since.
                *before = 0;
            }
            waits |= status.passes <= *before;
        }
        let due = waits && self.asked_at.is_none_or(|at| now.saturating_duration_since(at) >= ASK_AGAIN);
        let asked = std::mem::take(&mut self.asks);
        if asked || due {
            self.asked_at = Some(now);
        }
        due && !asked
    }

    fn all_awaited(&self) -> impl Iterator<Item = &Passes> {
        self.passes_at_switch.iter().chain([&self.passes_at_takeover]).chain(self.runs.values())
    }

    /// Whether somebody waits for a proof of any node's.
    pub(crate) fn awaits_any(&self) -> bool {
        self.all_awaited().any(|before| !before.is_empty())
    }

    /// Whether somebody waits for a proof of this node's.
    pub(crate) fn awaits(&self, host: &Host, status: &NodeStatus) -> bool {
        self.all_awaited().filter_map(|before| before.get(host)).any(|before| status.passes <= *before)
    }

    /// Those runs, and whether every node has made a pass since each was seen.
    pub(crate) fn runs(&self, observed: &Observed) -> Vec<(String, bool)> {
        let fresh =
            |before: &Passes| observed.nodes.iter().all(|(host, status)| before.get(host).is_none_or(|passes| status.passes > *passes));
        self.runs.iter().map(|(run, before)| (run.clone(), fresh(before))).collect()
    }
}

/// Whether a run of the job that orders another CA has been followed. A CA that is not ours is not ours to replace.
pub(crate) fn is_rotated(anchor: &Anchor, state: Option<&State>, run: &str) -> bool {
    let signs = anchor.is_own() || matches!(anchor, Anchor::Cluster(_));
    !signs || state.is_some_and(|state| state.rotation().is_none() && state.rotated_for() == Some(run))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::state::{Reason, Rotation};
    use crate::distribution::Published;
    use crate::protocol::NodePhase;

    #[test]
    fn a_node_that_was_started_anew_owes_no_more_proofs_than_the_others() {
        let host: Host = "10.0.0.1".parse().unwrap();
        let seen = |passes: u64| {
            let status = NodeStatus { passes, ..plan::tests::node("10.0.0.1", "", NodePhase::Trusted, 1).1 };
            Observed { nodes: [(host.clone(), status.into())].into(), ..Observed::default() }
        };
        let (mut memory, began) = (Memory { runs: [("run".to_string(), passes(&seen(40)))].into(), ..Memory::default() }, Instant::now());
        let is_fresh = |memory: &Memory, passes: u64| memory.runs(&seen(passes))[0].1;
        let later = |seconds: u64| began + Duration::from_secs(seconds);
        memory.asks = true;
        assert!(!memory.asks_again(&seen(40), later(0)), "it has just been asked");
        assert!(!memory.asks_again(&seen(40), later(9)) && memory.asks_again(&seen(40), later(10)));
        assert!(!is_fresh(&memory, 40) && is_fresh(&memory, 41));

        assert!(!memory.asks_again(&seen(0), later(11)), "started anew");
        assert!(!is_fresh(&memory, 0) && is_fresh(&memory, 1), "what it proves now it proves after the question");
        assert!(!memory.asks_again(&seen(1), later(60)), "it owes nothing");
    }

    #[test]
    fn who_has_pinned_its_own_app_does_nothing_more_until_it_is_killed_or_clearly_is_not() {
        let own = |constraints| Observed {
            own_app: Some(crate::dcos::marathon::App { spec: serde_json::json!({ "constraints": constraints }), tasks: vec![] }),
            ..Observed::default()
        };
        let host: Host = "10.0.0.1".parse().unwrap();
        let pinned = own(serde_json::json!([["hostname", "LIKE", "^10\\.0\\.0\\.1$"]]));
        let home = |observed: &Observed, seconds: Option<u64>| home(observed, "/own", &host, seconds.map(Duration::from_secs));
        assert!(matches!(home(&own(serde_json::json!([])), None), Home::Pin(to) if to == host));
        assert!(matches!(home(&pinned, Some(0)), Home::Locked) && matches!(home(&pinned, Some(59)), Home::Locked));
        assert!(matches!(home(&pinned, Some(60)), Home::Here), "Marathon has taken it for what it had");
        assert!(matches!(home(&pinned, None), Home::Here), "the task that Marathon has started then");
    }

    #[test]
    fn a_ca_is_inherited_from_a_definition_that_holds_it_and_not_from_one_that_names_a_secret() {
        let bundle = TrustBundle { certificates: vec!["a certificate".into()], ..TrustBundle::default() };
        let order = Order { service: "s".into(), version: 1, kind: OrderKind::Trust(bundle) };
        let order = crate::certificates::OrderSigner::generate().unwrap().sign(&order);
        let inherited = |variable: serde_json::Value| {
            let spec = serde_json::json!({ "environment": { env::FIRST_ORDER: variable } });
            let pods = [(Shard::All, Pod { spec: spec.into(), instances: Vec::new() })].into();
            trusted_before(&Observed { pods, ..Observed::default() })
        };
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(inherited(text.clone().into()), ["a certificate"]);
        // As the definitions of each are rendered.
        let rendered = |first_order: Published| {
            let enrolment = Published { variable: "".into(), secret: None };
            let documents = documents::tests::documents_with(serde_json::json!({}), first_order, enrolment);
            inherited(documents.pod["environment"][env::FIRST_ORDER].clone())
        };
        let published = |variable, secret| Published { variable, secret };
        assert_eq!(rendered(published(text.into(), None)), ["a certificate"]);
        let reference = serde_json::json!({ "secret": "first-order" });
        let named = Some(("first-order".to_string(), "private-registry-node/first-order".to_string()));
        assert_eq!(rendered(published(reference, named)), Vec::<String>::new());
    }

    #[test]
    fn a_node_that_was_away_at_the_switch_owes_a_proof_when_it_is_back() {
        let node = |host: &str, passes: u64| {
            let (host, status) = plan::tests::node(host, "", NodePhase::Trusted, 1);
            (host, Arc::new(NodeStatus { passes, ..status }))
        };
        let mut memory = Memory { passes_at_switch: Some([("10.0.0.1".parse().unwrap(), 4)].into()), ..Memory::default() };
        let mut observed = Observed { nodes: [node("10.0.0.1", 5), node("10.0.0.2", 7)].into(), ..Observed::default() };
        let mut wanted = plan::tests::wanted();
        wanted.ca.rotation = Some(Rotation::at(Stage::Switched, Reason::Order, 0));
        wanted.leaves = [("a:1".to_string(), plan::Leaf { fingerprint: "new".into(), renew_at: i64::MAX })].into();
        observed.registries = vec![plan::RegistryTask { address: "a:1".into(), status: plan::tests::registry_status("new") }];
        assert!(!memory.proves_after_switch(&wanted, &mut observed), "all were asked at the switch");
        let at_switch: Vec<u64> = observed.passes_at_switch.values().copied().collect();
        assert_eq!(at_switch, [4, 7], "what it has proven by now may be of before the switch");
        assert!(memory.asks_again(&observed, Instant::now()));
    }

    #[test]
    fn an_order_is_given_anew_where_a_node_has_another_that_is_not_older_and_not_too_often() {
        let trust = crate::certificates::OrderSigner::generate().unwrap().sign(&Order {
            service: "s".into(),
            version: 5,
            kind: OrderKind::Trust(TrustBundle::default()),
        });
        let ours = plan::order_digest(&trust);
        let seen = |digest: &str, order_version: u64| {
            let (host, status) = plan::tests::node("10.0.0.1", digest, NodePhase::Trusted, 1);
            Observed { nodes: [(host, NodeStatus { order_version, ..status }.into())].into(), ..Observed::default() }
        };
        let (mut memory, began) = (Memory::default(), Instant::now());
        assert!(
            !memory.surpasses(seen(&ours, 5).nodes.values(), &trust, began)
                && !memory.surpasses(seen("other", 4).nodes.values(), &trust, began)
        );
        assert!(memory.surpasses(seen("other", 5).nodes.values(), &trust, began));
        assert!(
            !memory.surpasses(seen("other", 9).nodes.values(), &trust, began + Duration::from_secs(599)),
            "who lies could keep us busy"
        );
        assert!(memory.surpasses(seen("other", 9).nodes.values(), &trust, began + SURPASS_EVERY));
    }
}
