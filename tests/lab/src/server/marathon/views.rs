//! How Marathon shows what it keeps.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::definitions::shown;
use super::launch::rejects;
use super::{Failure, Goal, Instance, Kind, RunSpec, deployments};
use crate::server::clock::{iso, now};
use crate::server::http::Request;
use crate::server::scheduler::Reject;
use crate::server::state::{Framework, State, Task};
use crate::task::TaskState;

/// What may be embedded into apps.
const EMBEDS: [&str; 8] = ["tasks", "counts", "deployments", "readiness", "lastTaskFailure", "failures", "taskStats", "none"];

/// Which of them a request asks for, with its prefix (`apps.` in lists, `app.` for one).
pub(super) struct Embeds(Vec<String>);

impl Embeds {
    /// None of the asked: what Marathon embeds by itself. An error names what the lab does not know.
    pub(super) fn of(request: &Request, prefix: &str) -> Result<Self, String> {
        let mut asked = Vec::new();
        for value in request.params("embed") {
            let short = value.strip_prefix(prefix).unwrap_or(value);
            if !EMBEDS.contains(&short) || short == "taskStats" {
                return Err(value.to_owned());
            }
            asked.push(short.to_owned());
        }
        let default: &[&str] =
            if prefix == "app." { &["tasks", "counts", "deployments", "lastTaskFailure"] } else { &["counts", "deployments"] };
        Ok(Self(if asked.is_empty() { default.iter().map(|s| (*s).to_owned()).collect() } else { asked }))
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|embed| embed == name || (embed == "failures" && name == "lastTaskFailure"))
    }
}

/// An app with the fields that change by themselves.
pub(super) fn app(state: &State, spec: &RunSpec, embeds: &Embeds) -> Value {
    let mut view = shown(&spec.definition, spec.kind, &state.pose);
    let id = view["id"].as_str().unwrap_or_default().to_owned();
    // Tasks come with counts and deployments (Marathon, AppInfoBaseData: they are counted from the same data).
    if embeds.has("counts") || embeds.has("tasks") {
        extend(&mut view, counts(state, &id));
    }
    if embeds.has("deployments") || embeds.has("tasks") {
        view["deployments"] = deployments::of(state, &id).into();
    }
    if embeds.has("readiness") {
        view["readinessCheckResults"] = json!([]);
    }
    if embeds.has("lastTaskFailure")
        && let Some(failure) = spec.failures.first()
    {
        view["lastTaskFailure"] = last_failure(&id, failure);
    }
    if embeds.has("tasks") {
        view["tasks"] = tasks(state, &id).into();
    }
    view
}

/// The answer to a POST of an app: without `versionInfo`, but for Marathon 1.4, as recorded; the older ones add that there are no tasks.
pub(super) fn new_app(state: &State, spec: &RunSpec) -> Value {
    let mut view = shown(&spec.definition, spec.kind, &state.pose);
    let id = view["id"].as_str().unwrap_or_default().to_owned();
    if let Some(fields) = view.as_object_mut().filter(|_| !state.pose.has_apps_of_1_4()) {
        fields.remove("versionInfo");
    }
    if !state.pose.absent_has_details() {
        view["tasks"] = json!([]);
    }
    extend(&mut view, counts(state, &id));
    view["deployments"] = deployments::of(state, &id).into();
    view
}

fn extend(view: &mut Value, fields: Map<String, Value>) {
    if let Some(object) = view.as_object_mut() {
        object.extend(fields);
    }
}

fn counts(state: &State, id: &str) -> Map<String, Value> {
    let present: Vec<&Task> = state.marathon.instances_of(id).flat_map(|i| i.present_tasks(state)).collect();
    let count = |condition: &dyn Fn(&&&Task) -> bool| present.iter().filter(condition).count();
    let staged = count(&|task| matches!(task.state, TaskState::Staging | TaskState::Starting));
    let running = count(&|task| task.state == TaskState::Running);
    let healthy = count(&|task| task.state == TaskState::Running && task.healthy == Some(true));
    let unhealthy = count(&|task| task.state == TaskState::Running && task.healthy == Some(false));
    [("tasksStaged", staged), ("tasksRunning", running), ("tasksHealthy", healthy), ("tasksUnhealthy", unhealthy)]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count.into()))
        .collect()
}

fn last_failure(id: &str, failure: &Failure) -> Value {
    json!({
        "appId": id,
        "host": failure.host,
        "message": failure.message,
        "state": failure.state,
        "taskId": failure.task,
        "timestamp": iso(failure.at),
        "version": failure.version,
        "slaveId": failure.agent_id,
    })
}

/// All tasks of an app.
pub(super) fn tasks(state: &State, id: &str) -> Vec<Value> {
    state.marathon.instances_of(id).flat_map(|i| i.present_tasks(state).map(move |task| app_task(state, i, task))).collect()
}

fn app_task(state: &State, instance: &Instance, task: &Task) -> Value {
    let mut view = json!({
        "appId": instance.spec,
        "healthCheckResults": [],
        "host": task.agent,
        "id": task.id,
        "ipAddresses": addresses(task),
        "ports": task.resources.ports,
        "servicePorts": [],
        "slaveId": task.agent_id,
        "state": task.state_name(),
        "stagedAt": iso(task.staged),
        "version": instance.version(),
        "localVolumes": instance.local_volumes(),
        "role": instance.definition["role"],
    });
    leave_out_newer(&mut view, state);
    if instance.reservation.is_some() {
        // 1.4 shows them only where there are any.
        view["localVolumes"] = instance.local_volumes();
    }
    if let Some(started) = task.started {
        view["startedAt"] = iso(started).into();
    }
    if let (Some(healthy), Some(since)) = (task.healthy, task.healthy_since) {
        let mut result = json!({
            "alive": healthy,
            "consecutiveFailures": task.consecutive_failures,
            "instanceId": format!("instance [{}]", instance.id),
        });
        for (field, moment) in [("firstSuccess", task.first_success), ("lastSuccess", task.last_success)] {
            if let Some(moment) = moment {
                result[field] = iso(moment).into();
            }
        }
        if !healthy {
            result["lastFailure"] = iso(since).into();
            result["lastFailureCause"] = "".into();
        }
        if state.pose.has_apps_of_1_4() {
            // It shows what there was none of yet.
            for field in ["firstSuccess", "lastSuccess", "lastFailure", "lastFailureCause"] {
                if result.get(field).is_none() {
                    result[field] = Value::Null;
                }
            }
        }
        view["healthCheckResults"] = json!([result]);
    }
    view
}

fn addresses(task: &Task) -> Value {
    if task.state == TaskState::Staging { json!([]) } else { json!([{ "ipAddress": task.agent, "protocol": "IPv4" }]) }
}

/// `::status` of a pod.
pub(super) fn pod_status(state: &State, spec: &RunSpec) -> Value {
    let id = spec.definition["id"].as_str().unwrap_or_default();
    let instances: Vec<&Instance> = state.marathon.instances_of(id).filter(|i| !i.tasks.is_empty()).collect();
    let views: Vec<Value> = instances.iter().map(|instance| pod_instance(state, instance)).collect();
    let stable = instances.iter().filter(|i| i.goal == Goal::Running && i.is_ready(state)).count();
    let changed = instances.iter().map(|i| i.since).fold(state.marathon.started, f64::max);
    json!({
        "id": id,
        "spec": shown(&spec.definition, spec.kind, &state.pose),
        "status": if stable == spec.scale() && instances.len() == stable { "STABLE" } else { "DEGRADED" },
        "statusSince": iso(changed),
        "instances": views,
        "terminationHistory": [],
        "lastUpdated": iso(now()),
        "lastChanged": iso(changed),
    })
}

fn pod_instance(state: &State, instance: &Instance) -> Value {
    let by_container: BTreeMap<&str, &Task> = instance.present_tasks(state).filter_map(|t| Some((t.container.as_deref()?, t))).collect();
    let containers: Vec<Value> = instance.definition["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| Some(pod_container(container, by_container.get(container["name"].as_str()?)?)))
        .collect();
    let tasks: Vec<&Task> = by_container.values().copied().collect();
    let any = |wanted: &[TaskState]| tasks.iter().any(|task| wanted.contains(&task.state));
    let status = if any(&[TaskState::Killing]) || tasks.iter().any(|task| task.state.is_terminal()) {
        "TERMINAL"
    } else if any(&[TaskState::Staging]) {
        "PENDING"
    } else if any(&[TaskState::Starting]) {
        "STAGING"
    } else if instance.is_ready(state) {
        "STABLE"
    } else {
        "DEGRADED"
    };
    let placed = !any(&[TaskState::Staging]);
    let amount = |of: &Value, name: &str| of[name].as_f64().unwrap_or(0.0);
    let sum = |name: &str| {
        let own = amount(&instance.definition["executorResources"], name);
        if placed { own + containers.iter().map(|c| amount(&c["resources"], name)).sum::<f64>() } else { own }
    };
    let (host, agent) = instance.agent.clone().map_or((Value::Null, Value::Null), |(ip, id)| (json!(ip), json!(id)));
    let mut view = json!({
        "id": instance.id,
        "status": status,
        "statusSince": iso(instance.since),
        "conditions": [],
        "agentHostname": host,
        "agentId": agent,
        "resources": { "cpus": sum("cpus"), "mem": sum("mem"), "disk": sum("disk"), "gpus": 0 },
        "networks": if placed { json!([{ "addresses": [host] }]) } else { json!([]) },
        "containers": containers,
        "specReference": format!("/v2/pods{}::versions/{}", instance.spec, instance.version()),
        "localVolumes": [],
        "lastUpdated": iso(instance.since),
        "lastChanged": iso(instance.since),
        "role": instance.definition["role"],
    });
    leave_out_newer(&mut view, state);
    view
}

/// Takes out what this Marathon does not yet show of an instance, a task or a queue's item.
fn leave_out_newer(view: &mut Value, state: &State) {
    let Some(fields) = view.as_object_mut() else { return };
    if !state.pose.has_roles() {
        fields.shift_remove("role");
    }
    if !state.pose.shows_agents_and_volumes_of_instances() {
        fields.shift_remove("agentId");
        fields.shift_remove("localVolumes");
    }
}

fn pod_container(container: &Value, task: &Task) -> Value {
    let since = iso(task.since);
    let mut ports = task.resources.ports.iter();
    let endpoints: Vec<Value> = container["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|endpoint| {
            let mut view = json!({ "name": endpoint["name"], "allocatedHostPort": ports.next() });
            if let Some(healthy) = task.healthy {
                view["healthy"] = healthy.into();
            }
            view
        })
        .collect();
    let mut view = json!({
        "name": container["name"],
        "status": task.state_name(),
        "statusSince": since,
        "conditions": [],
        "containerId": task.id,
        "endpoints": endpoints,
        "lastUpdated": since,
        "lastChanged": since,
    });
    if let Some(healthy) = task.healthy {
        view["conditions"] = json!([{
            "name": "healthy", "lastChanged": since, "lastUpdated": since, "value": healthy.to_string(),
            "reason": "health-reported-by-mesos",
        }]);
    }
    if task.state != TaskState::Staging {
        view["resources"] = container["resources"].clone();
    }
    view
}

/// Instances that are still to be launched, and why they are not.
pub(super) fn queue(state: &State, last_offers: bool) -> Value {
    let items = state.marathon.specs.iter().filter_map(|(id, spec)| queue_item(state, id, spec, last_offers));
    json!({ "queue": items.collect::<Vec<_>>() })
}

fn queue_item(state: &State, id: &str, spec: &RunSpec, last_offers: bool) -> Option<Value> {
    let waiting: Vec<&Instance> = state.marathon.instances_of(id).filter(|i| i.goal == Goal::Running && i.tasks.is_empty()).collect();
    let first = waiting.first()?;
    let delay = (spec.backoff.until - now()).max(0.0);
    let looked_at = rejects(state, first);
    let summary = reject_summary(&looked_at);
    let mut item = json!({
        "count": waiting.len(),
        "role": spec.definition["role"],
        "delay": { "timeLeftSeconds": delay as u64, "overdue": delay == 0.0 },
        "since": iso(first.since),
        "processedOffersSummary": {
            "processedOffersCount": looked_at.len(),
            "unusedOffersCount": looked_at.len(),
            "rejectSummaryLastOffers": summary,
            "rejectSummaryLaunchAttempt": summary,
        },
    });
    leave_out_newer(&mut item, state);
    item[if spec.kind == Kind::App { "app" } else { "pod" }] = shown(&spec.definition, spec.kind, &state.pose);
    if last_offers {
        item["lastUnusedOffers"] = json!([]);
    }
    Some(item)
}

/// A funnel: what one step declines, the next does not see.
fn reject_summary(rejects: &[Reject]) -> Value {
    const STEPS: [(&str, Option<Reject>); 10] = [
        ("UnfulfilledRole", Some(Reject::UnfulfilledRole)),
        ("UnfulfilledConstraint", Some(Reject::UnfulfilledConstraint)),
        ("NoCorrespondingReservationFound", Some(Reject::NoCorrespondingReservationFound)),
        ("AgentMaintenance", None),
        ("InsufficientCpus", Some(Reject::InsufficientCpus)),
        ("InsufficientMemory", Some(Reject::InsufficientMemory)),
        ("InsufficientDisk", Some(Reject::InsufficientDisk)),
        ("InsufficientGpus", None),
        ("InsufficientPorts", Some(Reject::InsufficientPorts)),
        ("DeclinedScarceResources", Some(Reject::DeclinedScarceResources)),
    ];
    let mut left = rejects.len();
    let step = |(name, reject): &(&str, Option<Reject>)| {
        let declined = rejects.iter().filter(|r| Some(**r) == *reject).count();
        let processed = left;
        left -= declined;
        json!({ "reason": name, "declined": declined, "processed": processed })
    };
    STEPS.iter().map(step).collect()
}

/// A group and all below it.
pub(super) fn group(state: &State, id: &str) -> Value {
    let parent = |of: &str| match of.rsplit_once('/') {
        Some(("", _)) | None => "/".to_owned(),
        Some((parent, _)) => parent.to_owned(),
    };
    let direct = |kind| state.marathon.of_kind(kind).filter(|(spec_id, _)| parent(spec_id) == id);
    let prefix = if id == "/" { "/".to_owned() } else { format!("{id}/") };
    let mut below: Vec<String> = all_groups(state).into_iter().filter(|g| g != id && g.starts_with(&prefix) && parent(g) == id).collect();
    below.sort();
    let mut view = json!({
        "id": id,
        "apps": direct(Kind::App).map(|(_, spec)| shown(&spec.definition, spec.kind, &state.pose)).collect::<Vec<_>>(),
        "pods": direct(Kind::Pod).map(|(_, spec)| pod_status(state, spec)).collect::<Vec<_>>(),
        "groups": below.iter().map(|id| group(state, id)).collect::<Vec<_>>(),
        "dependencies": [],
        "version": state.marathon.version,
    });
    if id != "/" && state.pose.has_roles() {
        let top = top_group(&format!("{id}/x")).unwrap_or_default();
        view["enforceRole"] = state.marathon.groups.get(&top).copied().unwrap_or(false).into();
    }
    view
}

/// Ids of all groups that exist, those made by an app's id included; without the root.
pub(super) fn all_groups(state: &State) -> Vec<String> {
    let mut groups: Vec<String> = state.marathon.groups.keys().map(|name| format!("/{name}")).collect();
    for id in state.marathon.specs.keys() {
        let mut rest = id.as_str();
        while let Some((parent, _)) = rest.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
            groups.push(parent.to_owned());
            rest = parent;
        }
    }
    groups.sort();
    groups.dedup();
    groups
}

/// Name of the top-level group that an id lies in; None directly below the root.
pub(super) fn top_group(id: &str) -> Option<String> {
    id.trim_start_matches('/').split_once('/').map(|(top, _)| top.to_owned())
}

/// What 1.4.2 lacks of the settings that 1.11.24 shows, as recorded.
const SETTINGS_AFTER_1_4: [&str; 24] = [
    "access_control_allow_origin",
    "decline_offer_duration",
    "default_network_name",
    "env_vars_prefix",
    "launch_token",
    "launch_token_refresh_interval",
    "maintenance_mode",
    "max_instances_per_offer",
    "mesos_bridge_name",
    "mesos_heartbeat_failure_threshold",
    "mesos_heartbeat_interval",
    "min_revive_offers_interval",
    "new_group_enforce_role",
    "offer_matching_timeout",
    "on_elected_prepare_timeout",
    "scale_apps_initial_delay",
    "scale_apps_interval",
    "store_cache",
    "task_launch_confirm_timeout",
    "task_lost_expunge_initial_delay",
    "task_lost_expunge_interval",
    "zk_compression",
    "zk_compression_threshold",
    "zk_connection_timeout",
];

/// `/v2/info`: the settings of open DC/OS, as recorded.
pub(super) fn info(state: &State) -> Value {
    let mut info = newest_info(state);
    let take = |info: &mut Value, names: &[&str]| {
        for part in ["marathon_config", "zookeeper_config"] {
            if let Some(settings) = info[part].as_object_mut() {
                settings.retain(|name, _| !names.contains(&name.as_str()));
            }
        }
    };
    if !state.pose.has_roles() {
        take(&mut info, &["new_group_enforce_role", "maintenance_mode"]);
    }
    if state.pose.has_apps_of_1_4() {
        take(&mut info, &SETTINGS_AFTER_1_4);
        take(&mut info, &["zk_max_node_size"]);
        info["event_subscriber"] = Value::Null;
    }
    info
}

fn newest_info(state: &State) -> Value {
    json!({
        "name": "marathon",
        "version": state.pose.marathon,
        "buildref": "9ee9f3cebb73b1885592a9d634279720bad823cf",
        "elected": true,
        "leader": "192.168.1.69:8080",
        "frameworkId": state.framework_id(Framework::Marathon),
        "marathon_config": settings(state),
        "zookeeper_config": {
            "zk": "zk://192.168.1.69:2181/marathon", "zk_compression": true, "zk_compression_threshold": 65_536,
            "zk_connection_timeout": 10_000, "zk_max_node_size": 1_024_000, "zk_max_versions": 50, "zk_session_timeout": 10_000,
            "zk_timeout": 10_000,
        },
        "http_config": { "http_port": 8080, "https_port": 8443 },
    })
}

fn settings(state: &State) -> Value {
    let texts = [
        ("default_network_name", "dcos"),
        ("executor", "//cmd"),
        ("framework_name", "marathon"),
        ("hostname", "192.168.1.69"),
        ("master", "http://192.168.1.69:5050"),
        ("mesos_bridge_name", "mesos-bridge"),
        ("mesos_leader_ui_url", "/mesos"),
        ("mesos_role", "slave_public"),
        ("mesos_user", "root"),
        ("new_group_enforce_role", if state.pose.enforce_role_in_new_groups { "Top" } else { "Off" }),
        ("webui_url", "http://192.168.1.69:8080"),
    ];
    // Milliseconds where they are times.
    let numbers = [
        ("decline_offer_duration", 300_000),
        ("failover_timeout", 604_800),
        ("launch_token", super::LAUNCH_TOKENS),
        ("launch_token_refresh_interval", (super::TOKEN_REFRESH_SECONDS * 1000.0) as u32),
        ("leader_proxy_connection_timeout_ms", 5000),
        ("leader_proxy_read_timeout_ms", 10_000),
        ("local_port_max", 20_000),
        ("local_port_min", 10_000),
        ("max_instances_per_offer", 100),
        ("mesos_heartbeat_failure_threshold", 5),
        ("mesos_heartbeat_interval", 15_000),
        ("min_revive_offers_interval", 5000),
        ("offer_matching_timeout", 3000),
        ("on_elected_prepare_timeout", 180_000),
        ("reconciliation_initial_delay", 15_000),
        ("reconciliation_interval", 600_000),
        ("scale_apps_initial_delay", 15_000),
        ("scale_apps_interval", 300_000),
        ("task_launch_confirm_timeout", 1_800_000),
        ("task_launch_timeout", 86_400_000),
        ("task_lost_expunge_initial_delay", 300_000),
        ("task_lost_expunge_interval", 30_000),
        ("task_reservation_timeout", 20_000),
    ];
    let mut settings = json!({
        "access_control_allow_origin": null, "env_vars_prefix": null, "features": state.pose.features,
        "checkpoint": true, "ha": true, "store_cache": true, "maintenance_mode": true,
    });
    extend(&mut settings, texts.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect());
    extend(&mut settings, numbers.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect());
    settings
}
