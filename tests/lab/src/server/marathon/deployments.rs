//! Deployments: they lock what they touch until the cluster is as the definitions say.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Goal, Kind, RunSpec};
use crate::server::http::Answer;
use crate::server::state::State;

/// A running deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Deployment {
    pub(crate) id: String,
    pub(crate) version: String,
    /// What is done to what, one step after the other.
    pub(crate) steps: Vec<Vec<(String, String)>>,
    pub(crate) targets: Vec<Target>,
}

/// An app or pod that a deployment touches.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    /// How it was before, for a rollback.
    pub(crate) before: Option<RunSpec>,
}

/// What a deployment does to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Start,
    Scale,
    Restart,
    Stop,
    /// The new definition says the same.
    Nothing,
}

impl Deployment {
    fn new(version: &str, target: Target, change: Change) -> Self {
        let action = |verb: &str| {
            let noun = if target.kind == Kind::App { "Application" } else { "Pod" };
            vec![(format!("{verb}{noun}"), target.id.clone())]
        };
        let steps = match change {
            Change::Start => vec![action("Start"), action("Scale")],
            Change::Scale => vec![action("Scale")],
            Change::Restart => vec![action("Restart")],
            Change::Stop => vec![action("Stop")],
            Change::Nothing => Vec::new(),
        };
        Self { id: uuid::Uuid::new_v4().to_string(), version: version.to_owned(), steps, targets: vec![target] }
    }

    fn affected(&self, kind: Kind) -> Vec<&str> {
        self.targets.iter().filter(|target| target.kind == kind).map(|target| target.id.as_str()).collect()
    }

    /// As in `/v2/deployments`.
    pub(crate) fn view(&self) -> Value {
        let mut current = action_views(self.steps.last());
        for action in &mut current {
            action["readinessCheckResults"] = json!([]);
        }
        json!({
            "id": self.id,
            "steps": self.step_views(),
            "version": self.version,
            "affectedApps": self.affected(Kind::App),
            "affectedPods": self.affected(Kind::Pod),
            "currentActions": current,
            "currentStep": self.steps.len(),
            "totalSteps": self.steps.len(),
        })
    }

    fn step_views(&self) -> Vec<Value> {
        self.steps.iter().map(|step| json!({ "actions": action_views(Some(step)) })).collect()
    }

    fn plan_view(&self) -> Value {
        json!({ "id": self.id, "steps": self.step_views(), "version": self.version })
    }

    fn current_step_view(&self) -> Value {
        json!({ "actions": action_views(self.steps.last()) })
    }
}

fn action_views(step: Option<&Vec<(String, String)>>) -> Vec<Value> {
    let view = |(action, id): &(String, String)| {
        let noun = if action.ends_with("Pod") { "pod" } else { "app" };
        json!({ "action": action, noun: id })
    };
    step.into_iter().flatten().map(view).collect()
}

/// The 409 that a deployment of these ids causes; with `force` such deployments are given up instead.
///
/// # Errors
/// Somebody else's deployment holds the lock.
pub(crate) fn take_lock(state: &mut State, ids: &[&str], force: bool) -> Result<(), Answer> {
    let touches = |deployment: &Deployment| deployment.targets.iter().any(|target| ids.contains(&target.id.as_str()));
    let holding: Vec<Value> = state.marathon.deployments.iter().filter(|d| touches(d)).map(|d| json!({ "id": d.id })).collect();
    if holding.is_empty() {
        return Ok(());
    }
    if !force {
        return Err(locked(&holding));
    }
    let (given_up, others) = std::mem::take(&mut state.marathon.deployments).into_iter().partition(touches);
    state.marathon.deployments = others;
    let given_up: Vec<Deployment> = given_up;
    for deployment in given_up {
        state.event("deployment_failed", json!({ "id": deployment.id, "plan": deployment.plan_view() }));
    }
    Ok(())
}

/// Marathon says App for pods, too.
pub(crate) fn locked(holding: &[Value]) -> Answer {
    let message = "App is locked by one or more deployments. Override with the option '?force=true'. \
                   View details at '/v2/deployments/<DEPLOYMENT_ID>'.";
    Answer::json(409, &json!({ "message": message, "deployments": holding }))
}

/// Begins a deployment and returns its id. The definition has been changed already.
pub(crate) fn begin(state: &mut State, version: &str, target: Target, change: Change) -> String {
    let deployment = Deployment::new(version, target, change);
    let id = deployment.id.clone();
    state.marathon.version = version.to_owned();
    if change != Change::Nothing {
        let info = json!({ "plan": deployment.plan_view(), "currentStep": deployment.current_step_view() });
        state.event("deployment_info", info);
        state.marathon.deployments.push(deployment);
    }
    state.touch();
    id
}

/// Ends the deployments that have come true.
pub(crate) fn finish(state: &mut State) {
    let pending = std::mem::take(&mut state.marathon.deployments);
    let (done, pending): (Vec<_>, Vec<_>) = pending.into_iter().partition(|d| d.targets.iter().all(|target| is_true(state, target)));
    state.marathon.deployments = pending;
    for deployment in done {
        let plan = deployment.plan_view();
        state.event("deployment_step_success", json!({ "plan": plan, "currentStep": deployment.current_step_view() }));
        state.event("deployment_success", json!({ "id": deployment.id, "plan": plan }));
        state.touch();
    }
}

fn is_true(state: &State, target: &Target) -> bool {
    let instances = || state.marathon.instances_of(&target.id);
    let Some(spec) = state.marathon.specs.get(&target.id) else { return instances().next().is_none() };
    let ready = instances().filter(|i| i.goal == Goal::Running && i.config_version == spec.config_version && i.is_ready(state)).count();
    ready == spec.scale() && instances().count() == ready
}

/// Gives a deployment up. `force` leaves things as they are; otherwise what it touched becomes what it was before.
pub(crate) fn cancel(state: &mut State, id: &str, force: bool) -> Answer {
    let Some(index) = state.marathon.deployments.iter().position(|d| d.id == id) else {
        return Answer::json(404, &json!({ "message": format!("DeploymentPlan {id} does not exist"), "details": [] }));
    };
    let deployment = state.marathon.deployments.remove(index);
    state.event("deployment_failed", json!({ "id": deployment.id, "plan": deployment.plan_view() }));
    state.touch();
    if force {
        return Answer::empty(202);
    }
    let version = state.next_version();
    let mut new_id = uuid::Uuid::new_v4().to_string();
    for target in deployment.targets {
        let now = state.marathon.specs.remove(&target.id);
        let change = match &target.before {
            None => Change::Stop,
            Some(before) => {
                let mut before = before.clone();
                before.definition["version"] = version.clone().into();
                state.marathon.specs.insert(target.id.clone(), before);
                Change::Restart
            }
        };
        new_id = begin(state, &version, Target { before: now, ..target }, change);
    }
    Answer::json(200, &json!({ "deploymentId": new_id, "version": version }))
}

/// Ids of the deployments that touch an app or pod.
pub(crate) fn of(state: &State, id: &str) -> Vec<Value> {
    let touching = state.marathon.deployments.iter().filter(|d| d.targets.iter().any(|target| target.id == id));
    touching.map(|d| json!({ "id": d.id })).collect()
}

/// What a new definition changes about the stored one.
pub(crate) fn change(before: Option<&RunSpec>, after: &Value, kind: Kind) -> Change {
    let Some(before) = before else { return Change::Start };
    let but = |definition: &Value, more: &[&str]| {
        let mut definition = definition.clone();
        if let Some(fields) = definition.as_object_mut() {
            for field in ["version", "versionInfo"].iter().chain(more) {
                fields.remove(*field);
            }
        }
        unordered(&mut definition);
        definition
    };
    let scaling = match kind {
        Kind::App => "instances",
        // Changes of these do not replace pods either (Marathon, PodDefinition.isUpgrade).
        Kind::Pod => "scaling",
    };
    if but(&before.definition, &[]) == but(after, &[]) {
        Change::Nothing
    } else if but(&before.definition, &[scaling]) == but(after, &[scaling]) {
        Change::Scale
    } else {
        Change::Restart
    }
}

/// Sets have no order: constraints and roles.
fn unordered(definition: &mut Value) {
    for path in
        ["/constraints", "/acceptedResourceRoles", "/scheduling/placement/constraints", "/scheduling/placement/acceptedResourceRoles"]
    {
        if let Some(Value::Array(items)) = definition.pointer_mut(path) {
            let sorted: BTreeSet<String> = items.iter().map(ToString::to_string).collect();
            *items = sorted.into_iter().map(Value::from).collect();
        }
    }
}
