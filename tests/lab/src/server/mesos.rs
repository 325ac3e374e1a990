//! The Mesos master: the old endpoints and the operator API.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State as Extracted;
use axum::http::{HeaderMap, Method, Response, Uri};
use hyper::body::{Body as HttpBody, Frame};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::http::{Answer, Request};
use super::marathon::volumes;
use super::state::{Agent, Framework, Resources, State, Task};
use super::{Host, SharedState};

/// Where the master listens, as it prints itself.
const MASTER: &str = "192.168.1.69";

/// Seconds between HEARTBEAT events.
const HEARTBEAT_SECONDS: u64 = 15;

/// What agents can do, and since when.
const AGENT_CAPABILITIES: [(&str, [u32; 3]); 8] = [
    ("MULTI_ROLE", [1, 3, 0]),
    ("HIERARCHICAL_ROLE", [1, 4, 0]),
    ("RESERVATION_REFINEMENT", [1, 4, 0]),
    ("RESOURCE_PROVIDER", [1, 5, 0]),
    ("RESIZE_VOLUME", [1, 7, 0]),
    ("AGENT_OPERATION_FEEDBACK", [1, 8, 0]),
    ("AGENT_DRAINING", [1, 9, 0]),
    ("TASK_RESOURCE_LIMITS", [1, 10, 0]),
];

fn agent_capabilities(state: &State) -> Vec<&'static str> {
    AGENT_CAPABILITIES.iter().filter(|(_, since)| state.pose.mesos_from(*since)).map(|(name, _)| *name).collect()
}

/// Takes out what this Mesos does not yet show of an agent or of itself.
fn leave_out(value: &mut Value, names: &[&str]) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| !names.contains(&name.as_str()));
    }
}

/// Where an agent is, if that is not where the master is.
fn domain(state: &State, agent: &Agent) -> Option<Value> {
    let region = agent.extras.region.as_ref().filter(|_| state.pose.has_fault_domains())?;
    Some(json!({ "fault_domain": { "region": { "name": region }, "zone": { "name": format!("{region}-a") } } }))
}

/// Routes.
pub fn router(state: SharedState) -> Router {
    Router::new().fallback(handle).with_state(state)
}

async fn handle(Extracted(shared): Extracted<SharedState>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let request = Request::new(method, &uri, headers, body);
    let path = request.path.strip_prefix("/master").filter(|rest| rest.starts_with('/')).unwrap_or(&request.path);
    match (request.method.as_str(), path) {
        (_, "/health") => Answer::empty(200).into_response(),
        ("GET", "/version") => Answer::json(200, &shared.read(version)).into_response(),
        ("GET", "/slaves") => Answer::json(200, &shared.read(|s| slaves(s, request.param("slave_id")))).into_response(),
        ("GET", "/state-summary") => Answer::json(200, &shared.read(state_summary)).into_response(),
        ("GET", "/state" | "/state.json") => Answer::json(200, &shared.read(full_state)).into_response(),
        (_, "/redirect") => Answer::empty(307).header("location", format!("//{MASTER}:5050")).into_response(),
        ("POST", "/api/v1") => operator_call(&shared, &request),
        _ => super::http::unknown_route(&request).into_response(),
    }
}

pub(crate) fn version(state: &State) -> Value {
    json!({ "build_date": "2021-01-01 00:00:00", "build_time": 1_609_459_200.0, "build_user": "", "version": state.pose.mesos })
}

// --- agents -----------------------------------------------------------------------------------------------------------------

fn slaves(state: &State, id: Option<&str>) -> Value {
    let listed = state.agents.values().filter(|a| a.is_listed() && id.is_none_or(|id| id == a.id));
    json!({ "slaves": listed.map(|a| agent_with_full(state, a)).collect::<Vec<_>>(), "recovered_slaves": recovered(state) })
}

/// Agents that a new master knows of and that are not back yet.
fn recovered(state: &State) -> Vec<Value> {
    let recovered = state.agents.values().filter(|agent| agent.is_recovered());
    recovered
        .map(|agent| {
            let attributes: Map<String, Value> = agent.attributes().into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
            let mut value = json!({ "id": agent.id, "hostname": agent.ip, "port": 5051, "attributes": attributes });
            if let Some(domain) = domain(state, agent) {
                value["domain"] = domain;
            }
            value
        })
        .collect()
}

/// Fields that `/slaves`, `/state` and `/state-summary` have in common.
fn agent_summary(state: &State, agent: &Agent) -> Value {
    let total = amounts(&agent.total(), Some(agent.port_ranges().to_vec()));
    let used = state.used(agent);
    let used = amounts(&used, Some(used.ports.iter().map(|p| (*p, *p)).collect()));
    let (reserved, unreserved) = match agent.resource_role() {
        "*" => {
            let (by_role, rest) = reserved_by_role(state, agent);
            let ranges = |resources: &Resources| Some(resources.ports.iter().map(|p| (*p, *p)).collect());
            let by_role = by_role.iter().map(|(role, resources)| (role.clone(), amounts(resources, ranges(resources))));
            (by_role.collect::<Map<_, _>>().into(), amounts(&rest, Some(agent.port_ranges().to_vec())))
        }
        role => (json!({ role: total.clone() }), amounts(&Resources::default(), None)),
    };
    let attributes: Map<String, Value> = agent.attributes().into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
    let mut value = json!({
        "id": agent.id,
        "hostname": agent.ip,
        "port": 5051,
        "attributes": attributes,
        "pid": format!("slave(1)@{}:5051", agent.ip),
        "registered_time": agent.registered,
        "reregistered_time": agent.reregistered,
        "resources": total,
        "used_resources": used,
        "offered_resources": amounts(&Resources::default(), None),
        "reserved_resources": reserved,
        "unreserved_resources": unreserved,
        "active": true,
        "deactivated": false,
        "version": state.pose.mesos,
        "capabilities": agent_capabilities(state),
    });
    if let Some(domain) = domain(state, agent) {
        value["domain"] = domain;
    }
    leave_out_of_agent(state, agent, &mut value);
    value
}

fn leave_out_of_agent(state: &State, agent: &Agent, value: &mut Value) {
    if !state.pose.deactivates_agents() {
        leave_out(value, &["deactivated"]);
    }
    if !state.pose.shows_capabilities() {
        leave_out(value, &["capabilities"]);
        #[expect(clippy::float_cmp, reason = "one is a copy of the other until the agent comes back")]
        if agent.registered == agent.reregistered {
            leave_out(value, &["reregistered_time"]);
        }
    }
}

fn agent_with_full(state: &State, agent: &Agent) -> Value {
    let mut value = agent_summary(state, agent);
    let (by_role, rest) = reserved_by_role(state, agent);
    let total = resource_list(&rest, Some(agent.port_ranges()), Some(agent.resource_role()), None);
    let (reserved, unreserved) = match agent.resource_role() {
        "*" => {
            (by_role.iter().map(|(role, resources)| (role.clone(), dynamic(resources, role).into())).collect::<Map<_, _>>().into(), total)
        }
        role => (json!({ role: total }), Vec::new()),
    };
    let used = allocated(state, agent);
    value["reserved_resources_full"] = reserved;
    value["unreserved_resources_full"] = unreserved.into();
    value["used_resources_full"] = used.into();
    value["offered_resources_full"] = json!([]);
    if !state.pose.shows_capabilities() {
        leave_out(&mut value, &["unreserved_resources_full"]);
    }
    value
}

/// What frameworks have reserved on an agent, by role, and what is left. The ports are named in both: which ranges are left was not recorded.
fn reserved_by_role(state: &State, agent: &Agent) -> (BTreeMap<String, Resources>, Resources) {
    let (mut by_role, mut rest) = (BTreeMap::<String, Resources>::new(), agent.total());
    for (_, reservation) in volumes::reserved(state, agent) {
        by_role.entry(reservation.role.clone()).or_default().add(&reservation.resources);
        rest.cpus -= reservation.resources.cpus;
        rest.mem -= reservation.resources.mem;
        rest.disk -= reservation.resources.disk;
    }
    (by_role, rest)
}

/// Resources that a framework has reserved, which is what tells them from those of a public agent. As documented; not recorded.
fn dynamic(resources: &Resources, role: &str) -> Vec<Value> {
    let mut list = resource_list(resources, None, Some(role), None);
    for resource in &mut list {
        resource["reservation"] = json!({ "principal": "dcos_marathon" });
    }
    list
}

fn allocated(state: &State, agent: &Agent) -> Vec<Value> {
    let used = state.used(agent);
    if used.cpus == 0.0 && used.mem == 0.0 {
        return Vec::new();
    }
    resource_list(&used, None, Some(agent.resource_role()), Some(agent.resource_role()))
}

/// `{"disk":…,"mem":…,"gpus":0.0,"cpus":…[,"ports":"[a-b, c-d]"]}`.
fn amounts(resources: &Resources, ports: Option<Vec<(u16, u16)>>) -> Value {
    let mut value = json!({ "disk": resources.disk, "mem": resources.mem, "gpus": resources.gpus, "cpus": resources.cpus });
    if let Some(ranges) = ports.filter(|ranges| !ranges.is_empty()) {
        let ranges: Vec<String> = ranges.iter().map(|(begin, end)| format!("{begin}-{end}")).collect();
        value["ports"] = format!("[{}]", ranges.join(", ")).into();
    }
    value
}

/// Mesos' protobuf form.
fn resource_list(resources: &Resources, ranges: Option<&[(u16, u16)]>, role: Option<&str>, allocation: Option<&str>) -> Vec<Value> {
    let used: Vec<(u16, u16)> = resources.ports.iter().map(|p| (*p, *p)).collect();
    let ranges = ranges.unwrap_or(&used);
    let mut list = Vec::new();
    for (name, amount) in [("cpus", resources.cpus), ("mem", resources.mem), ("disk", resources.disk), ("gpus", resources.gpus)] {
        if amount > 0.0 {
            list.push(json!({ "name": name, "type": "SCALAR", "scalar": { "value": amount } }));
        }
    }
    if !ranges.is_empty() {
        let ranges: Vec<Value> = ranges.iter().map(|(begin, end)| json!({ "begin": begin, "end": end })).collect();
        list.push(json!({ "name": "ports", "type": "RANGES", "ranges": { "range": ranges } }));
    }
    for resource in &mut list {
        if let Some(role) = role {
            resource["role"] = role.into();
        }
        if let Some(role) = allocation {
            resource["allocation_info"] = json!({ "role": role });
        }
    }
    list
}

// --- frameworks and tasks ---------------------------------------------------------------------------------------------------

const FRAMEWORKS: [Framework; 2] = [Framework::Marathon, Framework::Metronome];

fn framework_name(framework: Framework) -> &'static str {
    match framework {
        Framework::Marathon => "marathon",
        Framework::Metronome => "metronome",
    }
}

fn framework_role(framework: Framework) -> &'static str {
    match framework {
        Framework::Marathon => "slave_public",
        Framework::Metronome => "*",
    }
}

fn state_counts<'a>(tasks: impl Iterator<Item = &'a Task>) -> Map<String, Value> {
    const STATES: [&str; 10] = [
        "TASK_STAGING",
        "TASK_STARTING",
        "TASK_RUNNING",
        "TASK_KILLING",
        "TASK_FINISHED",
        "TASK_KILLED",
        "TASK_FAILED",
        "TASK_LOST",
        "TASK_ERROR",
        "TASK_UNREACHABLE",
    ];
    let names: Vec<&str> = tasks.map(Task::state_name).collect();
    STATES.iter().map(|s| ((*s).to_owned(), names.iter().filter(|n| *n == s).count().into())).collect()
}

fn extend(value: &mut Value, fields: Map<String, Value>) {
    if let Some(object) = value.as_object_mut() {
        object.extend(fields);
    }
}

fn framework_resources(state: &State, framework: Framework) -> Value {
    let mut used = Resources::default();
    for task in state.tasks.values().filter(|t| t.framework == framework && !t.unreachable) {
        used.add(&task.resources);
        if let Some(executor) = &task.executor_resources {
            used.add(executor);
        }
    }
    let ports = used.ports.iter().map(|p| (*p, *p)).collect();
    amounts(&used, Some(ports))
}

fn framework_summary(state: &State, framework: Framework) -> Value {
    json!({
        "id": state.framework_id(framework),
        "name": framework_name(framework),
        "used_resources": framework_resources(state, framework),
        "offered_resources": amounts(&Resources::default(), None),
        "capabilities": ["TASK_KILLING_STATE", "PARTITION_AWARE", "REGION_AWARE", "MULTI_ROLE", "RESERVATION_REFINEMENT"],
        "hostname": MASTER,
        "webui_url": match framework {
            Framework::Marathon => format!("http://{MASTER}:8080"),
            Framework::Metronome => format!("http://{MASTER}:9000"),
        },
        "active": true,
        "connected": true,
        "recovered": false,
    })
}

fn state_summary(state: &State) -> Value {
    let all = || state.tasks.values().chain(&state.completed);
    let agents = state.agents.values().filter(|a| a.is_listed()).map(|agent| {
        let mut value = agent_summary(state, agent);
        extend(&mut value, state_counts(all().filter(|t| t.agent_id == agent.id)));
        let frameworks: Vec<String> = FRAMEWORKS
            .iter()
            .filter(|f| all().any(|t| t.agent_id == agent.id && t.framework == **f))
            .map(|f| state.framework_id(*f))
            .collect();
        value["framework_ids"] = frameworks.into();
        value
    });
    let frameworks = FRAMEWORKS.iter().map(|framework| {
        let mut value = framework_summary(state, *framework);
        extend(&mut value, state_counts(all().filter(|t| t.framework == *framework)));
        let mut agents: Vec<&str> = all().filter(|t| t.framework == *framework).map(|t| t.agent_id.as_str()).collect();
        agents.sort_unstable();
        agents.dedup();
        value["slave_ids"] = agents.into();
        value
    });
    json!({
        "hostname": MASTER,
        "cluster": "lab",
        "slaves": agents.collect::<Vec<_>>(),
        "frameworks": frameworks.collect::<Vec<_>>(),
    })
}

fn full_state(state: &State) -> Value {
    let listed: Vec<Value> = state.agents.values().filter(|a| a.is_listed()).map(|a| agent_summary(state, a)).collect();
    let unreachable = state.agents.values().filter(|a| !a.is_listed()).count();
    let start = state.marathon.started;
    let mut value = json!({
        "version": state.pose.mesos,
        "build_date": "2021-01-01 00:00:00",
        "build_time": 1_609_459_200.0,
        "build_user": "",
        "start_time": start,
        "elected_time": start,
        "id": state.cluster_id,
        "pid": format!("master@{MASTER}:5050"),
        "hostname": MASTER,
        "capabilities": ["AGENT_UPDATE", "AGENT_DRAINING", "QUOTA_V2"],
        "activated_slaves": listed.len() as f64,
        "deactivated_slaves": 0.0,
        "unreachable_slaves": unreachable as f64,
        "leader": format!("master@{MASTER}:5050"),
        "leader_info": { "id": state.cluster_id, "pid": format!("master@{MASTER}:5050"), "port": 5050, "hostname": MASTER },
        "cluster": "lab",
        "flags": {},
        "slaves": listed,
        "recovered_slaves": recovered(state),
        "frameworks": FRAMEWORKS.iter().map(|f| full_framework(state, *f)).collect::<Vec<_>>(),
        "completed_frameworks": [],
        "orphan_tasks": [],
        "unregistered_frameworks": [],
    });
    if !state.pose.shows_capabilities() {
        leave_out(&mut value, &["capabilities"]);
    }
    value
}

fn full_framework(state: &State, framework: Framework) -> Value {
    let mut value = framework_summary(state, framework);
    let tasks = |unreachable: bool| -> Vec<Value> {
        let of_framework = state.tasks.values().filter(|t| t.framework == framework && t.unreachable == unreachable);
        of_framework.map(|t| old_task(state, t)).collect()
    };
    let completed: Vec<Value> = state.completed.iter().filter(|t| t.framework == framework).map(|t| old_task(state, t)).collect();
    let fields = json!({
        "user": "root",
        "failover_timeout": 604_800.0,
        "checkpoint": true,
        "registered_time": state.marathon.started,
        "unregistered_time": 0.0,
        "resources": framework_resources(state, framework),
        "role": framework_role(framework),
        "tasks": tasks(false),
        "unreachable_tasks": tasks(true),
        "completed_tasks": completed,
        "offers": [],
        "executors": [],
        "offer_constraints": {},
    });
    if let Value::Object(fields) = fields {
        extend(&mut value, fields);
    }
    if !state.pose.mesos_from([1, 11, 0]) {
        leave_out(&mut value, &["offer_constraints"]);
    }
    value
}

/// Executors that the agent has or had, each with its framework and tasks.
pub(crate) fn agent_executors<'a>(state: &'a State, agent_id: &str) -> Vec<((Framework, &'a Path), Vec<&'a Task>)> {
    let mut executors: Vec<((Framework, &Path), Vec<&Task>)> = Vec::new();
    for task in state.tasks.values().chain(&state.completed).filter(|task| task.agent_id == agent_id) {
        let run = (task.framework, run_folder(task));
        match executors.iter_mut().find(|(known, _)| *known == run) {
            Some((_, tasks)) => tasks.push(task),
            None => executors.push((run, vec![task])),
        }
    }
    executors
}

/// The folder of the task's executor; a pod's tasks lie in `containers/<id>` below it.
pub(crate) fn run_folder(task: &Task) -> &Path {
    let above = if task.container.is_some() { 2 } else { 0 };
    task.sandbox.ancestors().nth(above).unwrap_or(&task.sandbox)
}

/// `GET /state` of an agent.
pub(crate) fn agent_state(state: &State, agent: &Agent, host: &dyn Host) -> Value {
    let mut value = agent_with_full(state, agent);
    let frameworks: Vec<Value> = FRAMEWORKS.iter().filter_map(|framework| framework_on_agent(state, *framework, agent, host)).collect();
    if let Some(object) = value.as_object_mut() {
        for of_master in ["registered_time", "reregistered_time", "active", "deactivated", "port", "used_resources", "offered_resources"] {
            object.remove(of_master);
        }
        for of_master in ["used_resources_full", "offered_resources_full"] {
            object.remove(of_master);
        }
    }
    let fields = json!({
        "build_date": "2021-01-01 00:00:00",
        "build_time": 1_609_459_200.0,
        "build_user": "",
        "start_time": agent.registered,
        "reserved_resources_allocated": {},
        "unreserved_resources_allocated": amounts(&state.used(agent), None),
        "resource_providers": [],
        "master_hostname": MASTER,
        "flags": {},
        "frameworks": frameworks,
        "completed_frameworks": [],
    });
    if let Value::Object(fields) = fields {
        extend(&mut value, fields);
    }
    value
}

fn framework_on_agent(state: &State, framework: Framework, agent: &Agent, host: &dyn Host) -> Option<Value> {
    let executors = agent_executors(state, &agent.id).into_iter().filter(|((of, _), _)| *of == framework);
    let (ended, running): (Vec<_>, Vec<_>) = executors.partition(|(_, tasks)| tasks.iter().all(|task| task.state.is_terminal()));
    if ended.is_empty() && running.is_empty() {
        return None;
    }
    let show = |executors: Vec<((Framework, &Path), Vec<&Task>)>| -> Vec<Value> {
        executors.iter().map(|((_, run), tasks)| executor_on_agent(state, run, tasks, host)).collect()
    };
    Some(json!({
        "id": state.framework_id(framework),
        "name": framework_name(framework),
        "user": "root",
        "failover_timeout": 604_800.0,
        "checkpoint": true,
        "hostname": MASTER,
        "role": framework_role(framework),
        "executors": show(running),
        "completed_executors": show(ended),
    }))
}

fn executor_on_agent(state: &State, run: &Path, tasks: &[&Task], host: &dyn Host) -> Value {
    let first = tasks[0];
    let pod = first.container.is_some();
    let (ended, running): (Vec<&Task>, Vec<&Task>) = tasks.iter().partition(|task| task.state.is_terminal());
    let show = |tasks: Vec<&Task>| tasks.into_iter().map(|task| old_task(state, task)).collect::<Vec<_>>();
    let mut resources = Resources::default();
    for task in &running {
        resources.add(&task.resources);
        if let Some(executor) = &task.executor_resources {
            resources.add(executor);
        }
    }
    let mut value = json!({
        "id": first.executor_id,
        "name": if pod { String::new() } else { format!("Command Executor (Task: {})", first.id) },
        "source": if pod { "" } else { first.id.as_str() },
        "container": run.file_name().map(|name| name.to_string_lossy()),
        "directory": super::files::as_agent_sees(run, first.agent, host),
        "resources": amounts(&resources, Some(resources.ports.iter().map(|port| (*port, *port)).collect())),
        "role": first.resource_role,
        "tasks": show(running),
        "queued_tasks": [],
        "completed_tasks": show(ended),
    });
    if pod {
        value["labels"] = json!([]);
        value["type"] = "DEFAULT".into();
    }
    value
}

fn task_resources(task: &Task) -> Value {
    amounts(&task.resources, Some(task.resources.ports.iter().map(|p| (*p, *p)).collect()))
}

/// A task in the old endpoints.
fn old_task(state: &State, task: &Task) -> Value {
    let network = json!([{ "ip_addresses": [{ "protocol": "IPv4", "ip_address": task.agent }] }]);
    let statuses = task.updates.iter().map(|update| {
        let mut status = json!({ "state": update.state, "timestamp": update.at });
        if let Some(healthy) = update.healthy {
            status["healthy"] = healthy.into();
        }
        status["container_status"] = json!({ "container_id": { "value": container_id(task) }, "network_infos": network });
        status
    });
    let mut value = json!({
        "id": task.id,
        "name": task.name,
        "framework_id": state.framework_id(task.framework),
        "executor_id": if task.container.is_some() { task.executor_id.as_str() } else { "" },
        "slave_id": task.agent_id,
        "state": task.state_name(),
        "resources": task_resources(task),
        "role": task.resource_role,
        "statuses": statuses.collect::<Vec<_>>(),
    });
    if !state.pose.deactivates_agents() {
        // A task's role came with 1.9 as well.
        leave_out(&mut value, &["role"]);
    }
    if !task.labels.is_empty() {
        let labels: Vec<Value> = task.labels.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        value["labels"] = labels.into();
    }
    value
}

/// Mesos makes a random one per launch; the lab takes the last part of the sandbox's path.
fn container_id(task: &Task) -> String {
    task.sandbox.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The status part of TASK_UPDATED.
fn task_status(task: &Task) -> Value {
    let mut status = json!({
        "task_id": { "value": task.id },
        "state": task.state_name(),
        "source": if task.unreachable { "SOURCE_MASTER" } else { "SOURCE_EXECUTOR" },
        "agent_id": { "value": task.agent_id },
        "executor_id": { "value": task.executor_id },
        "timestamp": task.since,
    });
    if let Some(message) = &task.message {
        status["message"] = message.as_str().into();
    }
    if let Some(healthy) = task.healthy {
        status["healthy"] = healthy.into();
    }
    status
}

fn task_v1(state: &State, task: &Task) -> Value {
    let mut value = json!({
        "name": task.name,
        "task_id": { "value": task.id },
        "framework_id": { "value": state.framework_id(task.framework) },
        "agent_id": { "value": task.agent_id },
        "state": task.state_name(),
        "resources": resource_list(&task.resources, None, None, Some(&task.resource_role)),
    });
    if task.container.is_some() {
        value["executor_id"] = json!({ "value": task.executor_id });
    }
    value
}

// --- operator API -----------------------------------------------------------------------------------------------------------

fn operator_call(shared: &SharedState, request: &Request) -> Response<Body> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let Ok(call) = serde_json::from_slice::<Value>(&request.body) else {
        return Answer::text(400, TEXT, "Failed to parse body into JSON: syntax error at line 1 near: ").into_response();
    };
    let Some(kind) = call.get("type").and_then(Value::as_str) else {
        return Answer::text(400, TEXT, "Failed to validate master::Call: Expecting 'type' to be present").into_response();
    };
    let answer = |name: &str, value: Value| Answer::json(200, &json!({ "type": kind, name: value })).into_response();
    match kind {
        "GET_HEALTH" => answer("get_health", json!({ "healthy": true })),
        "GET_VERSION" => answer("get_version", json!({ "version_info": shared.read(version) })),
        "GET_AGENTS" => answer("get_agents", shared.read(get_agents)),
        "GET_MASTER" => answer("get_master", shared.read(get_master)),
        "SUBSCRIBE" => subscribe(shared),
        _ => super::http::unknown_route(request).into_response(),
    }
}

fn get_master(state: &State) -> Value {
    let mut value = json!({
        "master_info": {
            "id": state.cluster_id,
            // Network byte order read as little endian, as Mesos prints it.
            "ip": u32::from_le_bytes([192, 168, 1, 69]),
            "port": 5050,
            "pid": format!("master@{MASTER}:5050"),
            "hostname": MASTER,
            "version": state.pose.mesos,
            "address": { "hostname": MASTER, "ip": MASTER, "port": 5050 },
            "capabilities": [{ "type": "AGENT_UPDATE" }, { "type": "AGENT_DRAINING" }, {}],
        },
        "start_time": state.marathon.started,
        "elected_time": state.marathon.started,
    });
    if !state.pose.shows_capabilities() {
        leave_out(&mut value, &["start_time", "elected_time"]);
        leave_out(&mut value["master_info"], &["capabilities"]);
    }
    value
}

fn get_agents(state: &State) -> Value {
    let agents: Vec<Value> = state.agents.values().filter(|a| a.is_listed()).map(|a| agent_v1(state, a)).collect();
    // Before, an empty list is no list.
    if state.pose.shows_capabilities() { json!({ "agents": agents, "recovered_agents": [] }) } else { json!({ "agents": agents }) }
}

fn agent_v1(state: &State, agent: &Agent) -> Value {
    let role = agent.resource_role();
    let own_role = (role != "*" || !state.pose.shows_capabilities()).then_some(role);
    let mut info = json!({
        "hostname": agent.ip,
        "port": 5051,
        "resources": resource_list(&agent.total(), Some(agent.port_ranges()), own_role, None),
    });
    let attributes: Vec<Value> =
        agent.attributes().into_iter().map(|(name, text)| json!({ "name": name, "type": "TEXT", "text": { "value": text } })).collect();
    if !attributes.is_empty() {
        info["attributes"] = attributes.into();
    }
    info["id"] = json!({ "value": agent.id });
    if state.pose.shows_capabilities() {
        info["checkpoint"] = true.into();
    }
    if let Some(domain) = domain(state, agent) {
        info["domain"] = domain;
    }
    let nanoseconds = |seconds: f64| json!({ "nanoseconds": (seconds * 1e9) as u64 });
    let mut value = json!({
        "agent_info": info,
        "active": true,
        "deactivated": false,
        "version": state.pose.mesos,
        "pid": format!("slave(1)@{}:5051", agent.ip),
        "registered_time": nanoseconds(agent.registered),
        "reregistered_time": nanoseconds(agent.reregistered),
        "total_resources": resource_list(&agent.total(), Some(agent.port_ranges()), Some(role), None),
    });
    let allocated = allocated(state, agent);
    if !allocated.is_empty() {
        value["allocated_resources"] = allocated.into();
    }
    value["capabilities"] = agent_capabilities(state).into_iter().map(|c| json!({ "type": c })).collect::<Vec<_>>().into();
    leave_out_of_agent(state, agent, &mut value);
    value
}

/// The event for a new or returned agent.
pub(crate) fn agent_added(state: &State, agent: &Agent) -> Value {
    json!({ "type": "AGENT_ADDED", "agent_added": { "agent": agent_v1(state, agent) } })
}

/// The event for an agent that unregistered. There is none for one that is lost.
pub(crate) fn agent_removed(id: &str) -> Value {
    json!({ "type": "AGENT_REMOVED", "agent_removed": { "agent_id": { "value": id } } })
}

/// The event for a launch.
pub(crate) fn task_added(state: &State, task: &Task) -> Value {
    json!({ "type": "TASK_ADDED", "task_added": { "task": task_v1(state, task) } })
}

/// The event for a change of a task.
pub(crate) fn task_updated(state: &State, task: &Task) -> Value {
    json!({
        "type": "TASK_UPDATED",
        "task_updated": {
            "framework_id": { "value": state.framework_id(task.framework) },
            "status": task_status(task),
            "state": task.state_name(),
        },
    })
}

fn subscribed(state: &State) -> Value {
    let tasks = |unreachable: bool| -> Vec<Value> {
        state.tasks.values().filter(|t| t.unreachable == unreachable).map(|t| task_v1(state, t)).collect()
    };
    let frameworks: Vec<Value> = FRAMEWORKS
        .iter()
        .map(|f| {
            json!({
                "framework_info": { "user": "root", "name": framework_name(*f), "id": { "value": state.framework_id(*f) } },
                "active": true,
                "connected": true,
                "recovered": false,
            })
        })
        .collect();
    let mut event = json!({
        "type": "SUBSCRIBED",
        "subscribed": {
            "get_state": {
                "get_tasks": {
                    "tasks": tasks(false),
                    "unreachable_tasks": tasks(true),
                    "completed_tasks": state.completed.iter().map(|t| task_v1(state, t)).collect::<Vec<_>>(),
                },
                "get_executors": {},
                "get_frameworks": { "frameworks": frameworks },
                "get_agents": get_agents(state),
            },
        },
    });
    if state.pose.has_heartbeats() {
        event["subscribed"]["heartbeat_interval_seconds"] = json!(HEARTBEAT_SECONDS as f64);
    }
    event
}

/// Each event is its length in decimal, a newline, and the JSON.
fn record(event: &Value) -> Bytes {
    let text = event.to_string();
    Bytes::from(format!("{}\n{text}", text.len()))
}

fn subscribe(shared: &SharedState) -> Response<Body> {
    // Subscribed before the snapshot is taken: an event may then come twice, but none is missed.
    let mut events = shared.mesos_events.subscribe();
    let (snapshot, beats) = shared.read(|state| (subscribed(state), state.pose.has_heartbeats()));
    let (sender, receiver) = mpsc::channel::<Bytes>(64);
    tokio::spawn(async move {
        let heartbeat = json!({ "type": "HEARTBEAT" });
        let mut beat = tokio::time::interval(Duration::from_secs(HEARTBEAT_SECONDS));
        if sender.send(record(&snapshot)).await.is_err() {
            return;
        }
        loop {
            let event = tokio::select! {
                _ = beat.tick(), if beats => heartbeat.clone(),
                event = events.recv() => match event {
                    // The end of this master.
                    Ok(Value::Null) => return,
                    Ok(event) => event,
                    // A subscriber that is too slow is cut off, as Mesos does by closing the connection.
                    Err(_) => return,
                },
                () = sender.closed() => return,
            };
            if sender.send(record(&event)).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(Body::new(Stream(receiver)));
    response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static("application/json"));
    response
}

/// A body whose parts come over a channel.
pub(crate) struct Stream(pub(crate) mpsc::Receiver<Bytes>);

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|part| part.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::state::{Extras, Options};
    use super::super::{Pose, Role, Security, agents};
    use super::*;

    fn cluster(dcos: &str) -> State {
        let mut state = State::new(Options::default(), Pose::of(dcos, Security::Open).unwrap());
        let extras = Extras { gpus: 1, region: Some("far".to_owned()), ..Extras::default() };
        agents::register_with(&mut state, Ipv4Addr::new(192, 168, 1, 80), Role::Private, extras);
        state
    }

    #[test]
    fn agents_are_shown_with_what_their_version_knows() {
        let keys = ["deactivated", "capabilities", "domain", "reregistered_time"];
        let cases = [
            ("1.9.0", [false, false, false, false]),
            ("1.10.4", [false, true, false, true]),
            ("1.13.0", [false, true, true, true]),
            ("2.0.0", [true, true, true, true]),
        ];
        for (dcos, expected) in cases {
            let state = cluster(dcos);
            let agent = slaves(&state, None)["slaves"][0].clone();
            assert_eq!(keys.map(|key| agent.get(key).is_some()), expected, "{dcos}");
            let v1 = get_agents(&state)["agents"][0].clone();
            let domain = v1["agent_info"].get("domain").is_some();
            assert_eq!([v1.get("deactivated").is_some(), v1.get("capabilities").is_some(), domain], expected[..3], "{dcos}");
            assert_eq!(agent["resources"]["gpus"], 1.0);
            assert_eq!(agent["version"], state.pose.mesos.as_str());
        }
    }

    #[test]
    fn a_subscriber_is_promised_heartbeats_from_dcos_1_11_on() {
        let promises = |dcos| subscribed(&cluster(dcos))["subscribed"].get("heartbeat_interval_seconds").is_some();
        assert_eq!(["1.9.0", "1.10.4", "1.11.0", "2.2.1"].map(promises), [false, false, true, true]);
    }
}
