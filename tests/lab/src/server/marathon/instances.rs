//! Instances: what their tasks do to them, and how many there should be.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{Backoff, Failure, Goal, Instance, Kind, LAUNCH_TOKENS, RunSpec, TOKEN_REFRESH_SECONDS};
use crate::server::clock::now;
use crate::server::scheduler;
use crate::server::state::{State, Task};
use crate::task::{KillOrder, TaskState};

/// So many ends are remembered per app or pod.
const FAILURES_KEPT: usize = 10;
/// An instance that ran so long clears the delay (`--min_viable_task_execution_duration`).
const VIABLE_SECONDS: f64 = 60.0;
/// When a definition names none (Marathon's default for SIGTERM to SIGKILL).
const GRACE_SECONDS: u64 = 3;

impl Instance {
    /// A scheduled one.
    fn new(spec_id: &str, spec: &RunSpec) -> Self {
        let node = [2, 66, 254, 30, 192, 139];
        let uuid = uuid::Uuid::now_v1(&node);
        Self {
            id: format!("{}.instance-{uuid}", safe(spec_id)),
            spec: spec_id.to_owned(),
            kind: spec.kind,
            definition: spec.definition.clone(),
            config_version: spec.config_version.clone(),
            incarnation: 0,
            goal: Goal::Running,
            tasks: Vec::new(),
            agent: None,
            created: now(),
            condition: "Scheduled".to_owned(),
            since: now(),
            active_since: None,
            token_returned: true,
            reservation: None,
        }
    }

    /// The UUID in its id.
    pub(crate) fn uuid(&self) -> &str {
        self.id.rsplit_once(".instance-").map_or("", |(_, uuid)| uuid)
    }

    pub(crate) fn version(&self) -> &str {
        self.definition["version"].as_str().unwrap_or_default()
    }

    pub(crate) fn present_tasks<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Task> {
        self.tasks.iter().filter_map(|id| state.tasks.get(id))
    }

    /// Running, and healthy where there are checks.
    pub(crate) fn is_ready(&self, state: &State) -> bool {
        let ready = |task: &Task| {
            let checked = has_check(&self.definition, task.container.as_deref());
            task.state == TaskState::Running && !task.unreachable && (!checked || task.healthy == Some(true))
        };
        !self.tasks.is_empty() && self.present_tasks(state).count() == self.tasks.len() && self.present_tasks(state).all(ready)
    }

    /// How Marathon calls its state.
    fn condition_of(&self, state: &State) -> &'static str {
        let tasks: Vec<&Task> = self.present_tasks(state).collect();
        let any = |wanted: TaskState| tasks.iter().any(|task| task.state == wanted);
        if tasks.is_empty() {
            "Scheduled"
        } else if tasks.iter().any(|task| task.unreachable) {
            "Unreachable"
        } else if any(TaskState::Killing) {
            "Killing"
        } else if any(TaskState::Staging) {
            "Staging"
        } else if any(TaskState::Starting) {
            "Starting"
        } else {
            "Running"
        }
    }

    /// The order in which a scale-down kills: unlaunched ones come last (Marathon 1.8 and later, `ScalingProposition`).
    fn kill_weight(&self) -> u8 {
        match self.condition.as_str() {
            "Unreachable" => 1,
            "Staging" => 2,
            "Starting" => 3,
            "Running" => 4,
            _ => 5,
        }
    }

    fn unreachable_is_kept(&self) -> bool {
        let strategy = match self.kind {
            Kind::App => &self.definition["unreachableStrategy"],
            Kind::Pod => &self.definition["scheduling"]["unreachableStrategy"],
        };
        strategy == "disabled"
    }
}

fn has_check(definition: &Value, container: Option<&str>) -> bool {
    match container {
        None => definition["healthChecks"].as_array().is_some_and(|checks| !checks.is_empty()),
        Some(name) => {
            let containers = definition["containers"].as_array().into_iter().flatten();
            containers.filter(|c| c["name"] == name).any(|c| c["healthCheck"].is_object())
        }
    }
}

/// An id as it stands in instance ids: `/a/b` is `a_b`.
pub(crate) fn safe(id: &str) -> String {
    id.trim_start_matches('/').replace('/', "_")
}

/// Takes over what happened to the tasks.
pub(crate) fn follow_tasks(state: &mut State) {
    let ids: Vec<String> = state.marathon.instances.keys().cloned().collect();
    for id in ids {
        let Some(instance) = state.marathon.instances.get(&id).cloned() else { continue };
        if instance.tasks.is_empty() {
            continue;
        }
        if instance.present_tasks(state).any(|task| task.unreachable) && !instance.unreachable_is_kept() {
            // 0/0: given up at once, and replaced.
            note_condition(state, &id, "UnreachableInactive");
            drop_tasks(state, &instance);
            remove(state, &id);
            state.touch();
            continue;
        }
        let ended = instance.present_tasks(state).filter(|task| task.state.is_terminal()).count();
        if ended == instance.present_tasks(state).count() {
            end(state, &instance);
            continue;
        }
        if ended > 0 {
            // One container of a pod has ended: the executor kills the others.
            kill_tasks(state, &instance);
        }
        let condition = instance.condition_of(state);
        note_condition(state, &id, condition);
        if condition == "Running" && instance.is_ready(state) {
            ready(state, &id);
        }
    }
}

fn ready(state: &mut State, id: &str) {
    let at = now();
    let Some(instance) = state.marathon.instances.get_mut(id) else { return };
    if !instance.token_returned {
        instance.token_returned = true;
        state.marathon.tokens += 1;
    }
    let viable = instance.active_since.is_some_and(|since| since + VIABLE_SECONDS < at);
    if viable && let Some(spec) = state.marathon.specs.get_mut(&instance.spec) {
        spec.backoff = Backoff::default();
    }
}

fn note_condition(state: &mut State, id: &str, condition: &str) {
    let at = now();
    let Some(instance) = state.marathon.instances.get_mut(id) else { return };
    if instance.condition == condition {
        return;
    }
    instance.condition = condition.to_owned();
    instance.since = at;
    if condition == "Running" {
        instance.active_since.get_or_insert(at);
    }
    let event = json!({
        "instanceId": instance.id,
        "condition": condition,
        "runSpecId": instance.spec,
        "agentId": instance.agent.as_ref().map(|(_, id)| id),
        "host": instance.agent.as_ref().map(|(ip, _)| ip),
        "runSpecVersion": instance.version(),
    });
    state.event("instance_changed_event", event);
    state.touch();
}

fn drop_tasks(state: &mut State, instance: &Instance) {
    for task in &instance.tasks {
        state.complete(task);
    }
}

/// All tasks of an instance have ended.
fn end(state: &mut State, instance: &Instance) {
    let worst = instance.present_tasks(state).max_by_key(|task| match task.state {
        TaskState::Failed | TaskState::Error => 2,
        TaskState::Finished => 1,
        _ => 0,
    });
    let failure = worst.map(|task| Failure {
        instance: instance.id.clone(),
        task: task.id.clone(),
        host: task.agent,
        agent_id: task.agent_id.clone(),
        state: task.state_name().to_owned(),
        message: task.message.clone().unwrap_or_default(),
        at: now(),
        started: task.started.unwrap_or(task.staged),
        version: instance.version().to_owned(),
    });
    let condition = match failure.as_ref().map(|failure| failure.state.as_str()) {
        Some("TASK_FAILED") => "Failed",
        Some("TASK_ERROR") => "Error",
        Some("TASK_FINISHED") => "Finished",
        _ => "Killed",
    };
    note_condition(state, &instance.id, condition);
    drop_tasks(state, instance);
    if instance.goal == Goal::Decommissioned {
        remove(state, &instance.id);
        return;
    }
    // Told to end so that it begins anew with another definition.
    let is_renewed = state.marathon.specs.get(&instance.spec).is_some_and(|spec| spec.config_version != instance.config_version);
    if let (Some(spec), Some(failure)) = (state.marathon.specs.get_mut(&instance.spec), failure.filter(|_| !is_renewed)) {
        // The delay is of the whole app or pod: one bad agent holds up all others.
        spec.backoff = next_backoff(&spec.backoff, &spec.definition, spec.kind);
        spec.failures.insert(0, failure);
        spec.failures.truncate(FAILURES_KEPT);
    }
    if let Some(instance) = state.marathon.instances.get_mut(&instance.id) {
        instance.tasks.clear();
        instance.active_since = None;
    }
    note_condition(state, &instance.id, "Scheduled");
}

fn next_backoff(backoff: &Backoff, definition: &Value, kind: Kind) -> Backoff {
    let number = |value: &Value, default: f64| value.as_f64().unwrap_or(default);
    let (first, factor, most) = match kind {
        Kind::App => (&definition["backoffSeconds"], &definition["backoffFactor"], &definition["maxLaunchDelaySeconds"]),
        Kind::Pod => {
            let backoff = &definition["scheduling"]["backoff"];
            (&backoff["backoff"], &backoff["backoffFactor"], &backoff["maxLaunchDelay"])
        }
    };
    let (first, factor, most) = (number(first, 1.0), number(factor, 1.15), number(most, 300.0));
    let delay = if backoff.delay == 0.0 { first } else { backoff.delay * factor }.min(most);
    Backoff { delay, until: now() + delay }
}

/// Tells the tasks of an instance to end.
pub(crate) fn kill_tasks(state: &mut State, instance: &Instance) {
    let grace = match instance.kind {
        Kind::App => &instance.definition["taskKillGracePeriodSeconds"],
        Kind::Pod => &instance.definition["containers"][0]["lifecycle"]["killGracePeriodSeconds"],
    };
    let grace_seconds = grace.as_f64().map_or(GRACE_SECONDS, |seconds| seconds.max(0.0) as u64);
    let abrupt = instance.kind == Kind::Pod && state.options.sigkill_pods;
    for task in &instance.tasks {
        scheduler::kill(state, task, KillOrder { grace_seconds, abrupt });
    }
}

/// Lets an instance of an older definition make room for the present one. What keeps its volumes is the same instance afterwards.
fn replace(state: &mut State, id: &str, spec: &RunSpec) {
    match state.marathon.instances.get_mut(id) {
        Some(instance) if instance.reservation.is_some() && instance.config_version != spec.config_version => {
            if instance.tasks.is_empty() {
                (instance.definition, instance.config_version) = (spec.definition.clone(), spec.config_version.clone());
                state.touch();
            } else {
                let instance = instance.clone();
                kill_tasks(state, &instance);
            }
        }
        Some(instance) if instance.reservation.is_some() => {
            let id = instance.spec.clone();
            state.violate("marathon", &id, "the lab does not keep the volumes of an instance that is scaled away".to_owned());
        }
        _ => decommission(state, id),
    }
}

fn remove(state: &mut State, id: &str) {
    let gone = state.marathon.instances.remove(id);
    state.marathon.destroyed.extend(gone.filter(|instance| instance.reservation.is_some()));
}

/// Lets an instance end for good.
pub(crate) fn decommission(state: &mut State, id: &str) {
    let Some(instance) = state.marathon.instances.get_mut(id) else { return };
    if instance.goal == Goal::Decommissioned {
        return;
    }
    instance.goal = Goal::Decommissioned;
    let instance = instance.clone();
    if instance.tasks.is_empty() {
        remove(state, id);
    } else {
        kill_tasks(state, &instance);
    }
    state.touch();
}

/// Makes instances that are missing and ends those that are too many or out of date.
pub(crate) fn scale(state: &mut State) {
    let at = now();
    if state.marathon.tokens_set_at + TOKEN_REFRESH_SECONDS <= at {
        // Set, not added: what was not used is lost (Marathon, LaunchTokenConfig).
        state.marathon.tokens = LAUNCH_TOKENS;
        state.marathon.tokens_set_at = at;
    }
    let orphans: Vec<String> =
        state.marathon.instances.values().filter(|i| !state.marathon.specs.contains_key(&i.spec)).map(|i| i.id.clone()).collect();
    for id in orphans {
        decommission(state, &id);
    }
    let ids: Vec<String> = state.marathon.specs.keys().cloned().collect();
    for id in ids {
        let Some(spec) = state.marathon.specs.get(&id).cloned() else { continue };
        let step = step(state, &id, &spec);
        for instance in &step.end {
            replace(state, instance, &spec);
        }
        for _ in 0..step.make {
            let instance = Instance::new(&id, &spec);
            let event = json!({
                "instanceId": instance.id, "condition": "Scheduled", "runSpecId": id, "agentId": null, "host": null,
                "runSpecVersion": instance.version(),
            });
            state.event("instance_changed_event", event);
            state.marathon.instances.insert(instance.id.clone(), instance);
            state.touch();
        }
    }
}

/// The next instances to make and to end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Step {
    make: usize,
    end: Vec<String>,
}

fn step(state: &State, id: &str, spec: &RunSpec) -> Step {
    let wanted = spec.scale();
    let all: Vec<&Instance> = state.marathon.instances_of(id).collect();
    let (current, old): (Vec<&Instance>, Vec<&Instance>) =
        all.iter().filter(|i| i.goal == Goal::Running).partition(|i| i.config_version == spec.config_version);
    if old.is_empty() {
        let mut by_weight = current.clone();
        by_weight.sort_by(|a, b| a.kill_weight().cmp(&b.kill_weight()).then(b.created.total_cmp(&a.created)));
        let surplus = current.len().saturating_sub(wanted);
        return Step { make: wanted.saturating_sub(current.len()), end: by_weight[..surplus].iter().map(|i| i.id.clone()).collect() };
    }
    let strategy = match spec.kind {
        Kind::App => &spec.definition["upgradeStrategy"],
        Kind::Pod => &spec.definition["scheduling"]["upgrade"],
    };
    let share = |name: &str| strategy[name].as_f64().unwrap_or(1.0) * wanted as f64;
    let (least_ready, most) = (share("minimumHealthCapacity").ceil() as usize, wanted + share("maximumOverCapacity").floor() as usize);
    let (mut ready_old, unready_old): (Vec<&Instance>, Vec<&Instance>) = old.iter().partition(|i| i.is_ready(state));
    ready_old.sort_by(|a, b| b.created.total_cmp(&a.created));
    let ready = ready_old.len() + current.iter().filter(|i| i.is_ready(state)).count();
    let spare = ready.saturating_sub(least_ready).min(ready_old.len());
    let end = unready_old.iter().chain(&ready_old[..spare]).map(|i| i.id.clone()).collect();
    Step { make: wanted.saturating_sub(current.len()).min(most.saturating_sub(all.len())), end }
}

/// Hosts that a constraint counts for a new instance: those of instances of the same configuration, dying ones included.
pub(crate) fn occupied(state: &State, instance: &Instance) -> Vec<Ipv4Addr> {
    let since = state.marathon.specs.get(&instance.spec).map_or("", |spec| spec.unique_since.as_str());
    let counted = |i: &&Instance| i.id != instance.id && i.config_version == instance.config_version && i.version() >= since;
    let others = state.marathon.instances_of(&instance.spec).filter(counted);
    others.filter(|i| !i.tasks.is_empty() && i.condition != "Unreachable").filter_map(|i| i.agent.as_ref().map(|(ip, _)| *ip)).collect()
}
