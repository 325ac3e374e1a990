//! Marathon's HTTP API.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State as Extracted;
use axum::http::{HeaderMap, HeaderValue, Method, Response, Uri};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio::sync::mpsc;

use super::definitions::{self, Stored, Surroundings, shown};
use super::deployments::{self, Change, Target};
use super::views::{self, Embeds, top_group};
use super::{Backoff, Goal, Kind, RunSpec, instances};
use crate::server::SharedState;
use crate::server::clock::iso;
use crate::server::http::{Answer, Request, unknown_route};
use crate::server::mesos::Stream;
use crate::server::state::State;

/// Routes.
pub fn router(state: SharedState) -> Router {
    Router::new().fallback(handle).with_state(state)
}

async fn handle(Extracted(shared): Extracted<SharedState>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let mut request = Request::new(method, &uri, headers, body);
    // `/v2/apps//id`: clients put an absolute id behind a slash.
    while request.path.contains("//") {
        request.path = request.path.replace("//", "/");
    }
    if request.method == Method::GET && request.path == "/v2/events" {
        return events(&shared, &request);
    }
    let (answer, is_1_4) = shared.change(|state| (answer(state, &request), state.pose.has_apps_of_1_4()));
    if is_1_4 { with_quality(answer, &request).into_response() } else { answer.into_response() }
}

/// Marathon 1.4 names a quality, even where there is no body; but not where an exception became an answer. Recorded on 1.4.2.
fn with_quality(answer: Answer, request: &Request) -> Answer {
    let is_exception = match answer.status() {
        // A pod's id that is not the path's is an answer, and the only one that begins with a newline.
        400 => !answer.body().starts_with('\n'),
        404 => request.method == Method::DELETE && request.path.starts_with("/v2/apps") || answer.body().contains("URI not found"),
        status => matches!(status, 409 | 415 | 500..),
    };
    if is_exception { answer } else { answer.with_media_type("application/json; qs=2") }
}

fn answer(state: &mut State, request: &Request) -> Answer {
    let method = request.method.as_str();
    if method != "GET" && method != "HEAD" {
        if let Some(fault) = fault(state) {
            return fault;
        }
    } else if request.path != "/ping" && !request.accepts("application/json") {
        return Answer::message(406, "Not Acceptable");
    }
    let path = request.path.clone();
    let rest = |prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/') && rest.len() > 1);
    match (method, path.as_str()) {
        ("GET", "/ping") => Answer::text(200, "text/plain;charset=utf-8", "pong"),
        ("GET", "/v2/info") => Answer::json(200, &views::info(state)),
        ("GET", "/v2/leader") => Answer::json(200, &json!({ "leader": "192.168.1.69:8080" })),
        ("GET", "/v2/apps") => list_apps(state, request),
        ("POST", "/v2/apps") => post(state, request, Kind::App),
        ("GET", "/v2/tasks") => all_tasks(state),
        ("GET", "/v2/pods") => {
            let pods: Vec<Value> =
                state.marathon.of_kind(Kind::Pod).map(|(_, spec)| shown(&spec.definition, Kind::Pod, &state.pose)).collect();
            Answer::json(200, &pods.into())
        }
        ("HEAD", "/v2/pods") => Answer::text(200, "application/json", ""),
        ("POST", "/v2/pods") => post(state, request, Kind::Pod),
        ("GET", "/v2/pods/::status") => {
            let pods: Vec<Value> = state.marathon.of_kind(Kind::Pod).map(|(_, spec)| views::pod_status(state, spec)).collect();
            Answer::json(200, &pods.into())
        }
        ("GET", "/v2/deployments") => {
            Answer::json(200, &state.marathon.deployments.iter().map(deployments::Deployment::view).collect::<Vec<_>>().into())
        }
        ("GET", "/v2/queue") => Answer::json(200, &views::queue(state, request.param("embed") == Some("lastUnusedOffers"))),
        ("GET", "/v2/groups") => Answer::json(200, &views::group(state, "/")),
        ("POST", "/v2/groups") => post_group(state, request),
        _ => {
            if let Some(id) = rest("/v2/apps") {
                app(state, request, id)
            } else if let Some(id) = rest("/v2/pods") {
                pod(state, request, id)
            } else if let Some(id) = rest("/v2/groups") {
                group(state, request, id)
            } else if let (Some(id), "DELETE") = (rest("/v2/deployments"), method) {
                deployments::cancel(state, id.trim_start_matches('/'), request.flag("force"))
            } else if let (Some(id), "DELETE") = (rest("/v2/queue").and_then(|rest| rest.strip_suffix("/delay")), method) {
                reset_delay(state, id)
            } else {
                not_found(state, request)
            }
        }
    }
}

/// What the lab does not know, or what no Marathon does.
fn not_found(state: &State, request: &Request) -> Answer {
    const KNOWN: [&str; 10] = ["apps", "pods", "groups", "deployments", "queue", "tasks", "info", "leader", "events", "artifacts"];
    let known = |rest: &str| KNOWN.contains(&rest.split('/').next().unwrap_or_default());
    match request.path.strip_prefix("/v2/") {
        Some(rest) if known(rest) => unknown_route(request),
        None => unknown_route(request),
        Some(_) if state.pose.names_unknown_uris() => Answer::message(404, format!("URI not found: {}", request.path)),
        Some(_) => Answer::message(500, "URI not found"),
    }
}

/// An answer that a test ordered.
fn fault(state: &mut State) -> Option<Answer> {
    if state.faults.marathon_unavailable > 0 {
        state.faults.marathon_unavailable -= 1;
        state.touch();
        return Some(Answer::message(503, "Could not complete the request in time"));
    }
    if state.faults.marathon_locked > 0 {
        state.faults.marathon_locked -= 1;
        state.touch();
        return Some(deployments::locked(&[json!({ "id": uuid::Uuid::new_v4().to_string() })]));
    }
    None
}

// --- apps and pods ----------------------------------------------------------------------------------------------------------

fn list_apps(state: &State, request: &Request) -> Answer {
    let embeds = match Embeds::of(request, "apps.") {
        Ok(embeds) => embeds,
        Err(unknown) => return Answer::message(501, format!("the lab cannot embed {unknown}")),
    };
    let labels: Vec<&str> = request.params("label").flat_map(|list| list.split(',')).collect();
    let apps: Vec<Value> = state
        .marathon
        .of_kind(Kind::App)
        .filter(|(id, spec)| {
            labels.iter().all(|selector| has_label(&spec.definition, selector)) && request.param("id").is_none_or(|part| id.contains(part))
        })
        .map(|(_, spec)| views::app(state, spec, &embeds))
        .collect();
    Answer::json(200, &json!({ "apps": apps }))
}

/// `key` or `key==value`.
fn has_label(definition: &Value, selector: &str) -> bool {
    let labels = &definition["labels"];
    match selector.split_once("==") {
        Some((key, value)) => labels[key.trim()] == value.trim(),
        None => labels.get(selector.trim()).is_some(),
    }
}

fn all_tasks(state: &State) -> Answer {
    let tasks: Vec<Value> = state.marathon.of_kind(Kind::App).flat_map(|(id, _)| views::tasks(state, id)).collect();
    Answer::json(200, &json!({ "tasks": tasks }))
}

fn absent(state: &State, kind: Kind, id: &str) -> Answer {
    let noun = if kind == Kind::App { "App" } else { "Pod" };
    absence(state, format!("{noun} '{id}' does not exist"))
}

fn absence(state: &State, message: String) -> Answer {
    if state.pose.absent_has_details() {
        Answer::json(404, &json!({ "message": message, "details": [] }))
    } else {
        Answer::message(404, message)
    }
}

fn app(state: &mut State, request: &Request, path: &str) -> Answer {
    let method = request.method.as_str();
    for (verb, allowed) in [("/tasks", "GET"), ("/versions", "GET"), ("/restart", "POST")] {
        if let Some(id) = path.strip_suffix(verb).filter(|id| !id.is_empty() && method == allowed) {
            return app_verb(state, request, id, verb);
        }
    }
    match method {
        "GET" => match (state.marathon.specs.get(path).filter(|spec| spec.kind == Kind::App), Embeds::of(request, "app.")) {
            (_, Err(unknown)) => Answer::message(501, format!("the lab cannot embed {unknown}")),
            (None, _) => absent(state, Kind::App, path),
            (Some(spec), Ok(embeds)) => Answer::json(200, &json!({ "app": views::app(state, spec, &embeds) })),
        },
        "PUT" | "PATCH" => put_app(state, request, path),
        "DELETE" => delete(state, request, Kind::App, path),
        _ => unknown_route(request),
    }
}

fn app_verb(state: &mut State, request: &Request, id: &str, verb: &str) -> Answer {
    let Some(spec) = state.marathon.specs.get(id).filter(|spec| spec.kind == Kind::App).cloned() else {
        return absent(state, Kind::App, id);
    };
    match verb {
        "/tasks" => Answer::json(200, &json!({ "tasks": views::tasks(state, id) })),
        "/versions" => {
            let versions: Vec<&Value> = spec.versions.iter().rev().map(|definition| &definition["version"]).collect();
            Answer::json(200, &json!({ "versions": versions }))
        }
        _ => {
            if let Err(locked) = deployments::take_lock(state, &[id], request.flag("force")) {
                return locked;
            }
            let version = state.next_version();
            let mut definition = spec.definition.clone();
            definition["version"] = version.clone().into();
            definition["versionInfo"] = json!({ "lastScalingAt": version, "lastConfigChangeAt": version });
            let deployment = store(state, Kind::App, Stored { definition, dropped: Vec::new(), poison: None }, Some(Change::Restart));
            Answer::json(200, &json!({ "deploymentId": deployment, "version": version }))
        }
    }
}

/// What the definition's surroundings say, handed to `read`.
fn surrounded<T>(state: &mut State, id: Option<&str>, read: impl FnOnce(&Surroundings) -> T) -> T {
    let version = state.next_version();
    let top = id.and_then(top_group);
    let enforced_role =
        top.as_ref().is_some_and(|top| state.marathon.groups.get(top).copied().unwrap_or(state.pose.enforce_role_in_new_groups));
    let role = top.filter(|_| enforced_role).unwrap_or_else(|| "slave_public".to_owned());
    let service_ports: BTreeSet<u16> = state
        .marathon
        .of_kind(Kind::App)
        .filter(|(other, _)| Some(other.as_str()) != id)
        .flat_map(|(_, spec)| super::launch::port_list(&spec.definition))
        .filter_map(|declared| declared["servicePort"].as_u64().or_else(|| declared["port"].as_u64()))
        .filter_map(|port| u16::try_from(port).ok())
        .collect();
    read(&Surroundings { pose: &state.pose, role: &role, enforced_role, service_ports: &service_ports, version: &version })
}

/// `/` in front, as Marathon completes an app's id.
fn absolute(id: &str) -> String {
    format!("/{}", id.trim_start_matches('/'))
}

fn post(state: &mut State, request: &Request, kind: Kind) -> Answer {
    if !request.is_json() {
        return Answer::message(415, "Unsupported Media Type");
    }
    let id = definitions::id_of(&request.body).map(|id| absolute(&id));
    let read = match kind {
        Kind::App => definitions::app,
        Kind::Pod => definitions::pod,
    };
    let stored = match surrounded(state, id.as_deref(), |around| read(&request.body, None, around)) {
        Ok(stored) => stored,
        Err(refused) => return refused,
    };
    let id = id_of(&stored);
    match state.marathon.specs.get(&id) {
        Some(spec) if spec.kind == kind => {
            let noun = if kind == Kind::App { "An app" } else { "A pod" };
            return Answer::message(409, format!("{noun} with id [{id}] already exists."));
        }
        Some(_) => return same_id(),
        None => {}
    }
    if let Err(locked) = deployments::take_lock(state, &[&id], request.flag("force")) {
        return locked;
    }
    let deployment = store(state, kind, stored, None);
    let Some(spec) = state.marathon.specs.get(&id) else { return absent(state, kind, &id) };
    let body = match kind {
        Kind::App => views::new_app(state, spec),
        Kind::Pod => shown(&spec.definition, kind, &state.pose),
    };
    // Without /v2/apps or /v2/pods: the real one does so, too.
    Answer::json(201, &body).header("location", format!("http://192.168.1.69:8080{id}")).header("marathon-deployment-id", deployment)
}

fn same_id() -> Answer {
    let errors = ["Applications and Pods may not share the same id"];
    Answer::json(422, &json!({ "message": "Object is not valid", "details": [{ "path": "/", "errors": errors }] }))
}

fn id_of(stored: &Stored) -> String {
    stored.definition["id"].as_str().unwrap_or_default().to_owned()
}

fn put_app(state: &mut State, request: &Request, id: &str) -> Answer {
    if !request.is_json() {
        return Answer::message(415, "Unsupported Media Type");
    }
    let existing = state.marathon.specs.get(id).cloned();
    if existing.as_ref().is_some_and(|spec| spec.kind == Kind::Pod) {
        return same_id();
    }
    let partial = request.param("partialUpdate") != Some("false");
    let stored = surrounded(state, Some(id), |around| match &existing {
        Some(existing) if partial => definitions::app_update(&request.body, id, &existing.definition, around),
        _ => definitions::app(&request.body, Some(id), around),
    });
    let stored = match stored {
        Ok(stored) => stored,
        Err(refused) => return refused,
    };
    if let Err(locked) = deployments::take_lock(state, &[id], request.flag("force")) {
        return locked;
    }
    let version = stored.definition["version"].clone();
    let deployment = store(state, Kind::App, stored, None);
    let status = if existing.is_some() { 200 } else { 201 };
    Answer::json(status, &json!({ "deploymentId": deployment, "version": version })).header("marathon-deployment-id", deployment)
}

fn pod(state: &mut State, request: &Request, path: &str) -> Answer {
    let method = request.method.as_str();
    let (id, verb) = path.split_once("::").map_or((path, None), |(id, verb)| (id, Some(verb)));
    let spec = state.marathon.specs.get(id).filter(|spec| spec.kind == Kind::Pod).cloned();
    match (method, verb, spec) {
        ("GET", None, None) => {
            // JSON in a string: a slip of the real one.
            let inner = format!("{{\"message\": \"pod with {id} does not exist\"}}");
            absence(state, inner)
        }
        ("GET", None, Some(spec)) => Answer::json(200, &shown(&spec.definition, Kind::Pod, &state.pose)),
        ("PUT", None, _) => put_pod(state, request, id),
        ("DELETE", None, _) => delete(state, request, Kind::Pod, id),
        ("GET", Some("status" | "versions"), None) => absent(state, Kind::Pod, id),
        ("GET", Some("status"), Some(spec)) => Answer::json(200, &views::pod_status(state, &spec)),
        ("GET", Some("versions"), Some(spec)) => {
            Answer::json(200, &spec.versions.iter().map(|definition| definition["version"].clone()).collect::<Vec<_>>().into())
        }
        ("DELETE", Some(verb), _) if verb.starts_with("instances/") => kill_instance(state, verb.trim_start_matches("instances/")),
        _ => unknown_route(request),
    }
}

fn put_pod(state: &mut State, request: &Request, id: &str) -> Answer {
    if !request.is_json() {
        return Answer::message(415, "Unsupported Media Type");
    }
    if state.marathon.specs.get(id).is_some_and(|spec| spec.kind == Kind::App) {
        return same_id();
    }
    let stored = match surrounded(state, Some(id), |around| definitions::pod(&request.body, Some(id), around)) {
        Ok(stored) => stored,
        Err(refused) => return refused,
    };
    if let Err(locked) = deployments::take_lock(state, &[id], request.flag("force")) {
        return locked;
    }
    let body = shown(&stored.definition, Kind::Pod, &state.pose);
    let deployment = store(state, Kind::Pod, stored, None);
    Answer::json(200, &body).header("marathon-deployment-id", deployment)
}

fn kill_instance(state: &mut State, instance_id: &str) -> Answer {
    let Some(instance) = state.marathon.instances.get(instance_id).cloned() else {
        return absence(state, format!("Task '{instance_id}' does not exist"));
    };
    instances::kill_tasks(state, &instance);
    let (host, agent) = instance.agent.clone().map_or((Value::Null, Value::Null), |(ip, id)| (json!(ip), json!(id)));
    let active = instance.active_since.map(iso);
    Answer::json(
        200,
        &json!({
            "instanceId": instance.id,
            "state": {
                "condition": instance.condition, "since": iso(instance.since), "activeSince": active,
                "goal": if instance.goal == Goal::Running { "Running" } else { "Decommissioned" },
            },
            "agentInfo": { "host": host, "agentId": agent, "attributes": [] },
            "runSpecVersion": instance.version(),
            "unreachableStrategy": instance.definition["scheduling"]["unreachableStrategy"],
        }),
    )
}

/// What Marathon adds to an app when it shows one. Cosmos sends it all back when it begins an uninstall; nothing is lost by it.
const ADDED_BY_MARATHON: [&str; 8] = [
    "/tasks",
    "/tasksStaged",
    "/tasksRunning",
    "/tasksHealthy",
    "/tasksUnhealthy",
    "/deployments",
    "/lastTaskFailure",
    "/readinessCheckResults",
];

/// Puts a definition in force and begins its deployment, whose id is returned.
fn store(state: &mut State, kind: Kind, stored: Stored, change: Option<Change>) -> String {
    let id = id_of(&stored);
    for path in stored.dropped.iter().filter(|path| !ADDED_BY_MARATHON.contains(&path.as_str())) {
        state.violate("marathon", &id, format!("{path} is dropped without a word by Marathon {}", state.pose.marathon.clone()));
    }
    if let Some(poison) = &stored.poison {
        state.violate("marathon", &id, format!("this definition stops the launcher for good: {poison}"));
    }
    if let Some(top) = top_group(&id) {
        let enforced = state.pose.enforce_role_in_new_groups;
        state.marathon.groups.entry(top).or_insert(enforced);
    }
    let before = state.marathon.specs.get(&id).cloned();
    let change = change.unwrap_or_else(|| deployments::change(before.as_ref(), &stored.definition, kind));
    let version = stored.definition["version"].as_str().unwrap_or_default().to_owned();
    let is_new_config = matches!(change, Change::Start | Change::Restart);
    let mut definition = stored.definition;
    let spec = match before.clone() {
        Some(mut spec) => {
            if is_new_config || (kind == Kind::Pod && state.pose.pods_forget_unique_when_scaled()) {
                spec.unique_since.clone_from(&version);
            }
            if is_new_config {
                spec.config_version.clone_from(&version);
                spec.backoff = Backoff::default();
                spec.refused = None;
            } else if kind == Kind::App {
                definition["versionInfo"]["lastConfigChangeAt"] = spec.config_version.clone().into();
            }
            spec.versions.push(definition.clone());
            spec.definition = definition;
            spec
        }
        None => RunSpec {
            kind,
            versions: vec![definition.clone()],
            definition,
            config_version: version.clone(),
            unique_since: version.clone(),
            backoff: Backoff::default(),
            failures: Vec::new(),
            refused: None,
        },
    };
    let (event, uri) = match (kind, &before) {
        (Kind::App, _) => ("api_post_event", format!("/v2/apps{id}")),
        (Kind::Pod, None) => ("pod_created_event", format!("/v2/pods{id}")),
        (Kind::Pod, Some(_)) => ("pod_updated_event", format!("/v2/pods{id}")),
    };
    let data = match kind {
        Kind::App => json!({ "clientIp": "192.168.1.69", "uri": uri, "appDefinition": shown(&spec.definition, kind, &state.pose) }),
        Kind::Pod => json!({ "clientIp": "192.168.1.69", "uri": uri }),
    };
    state.marathon.specs.insert(id.clone(), spec);
    let deployment = deployments::begin(state, &version, Target { kind, id, before }, change);
    state.event(event, data);
    deployment
}

fn delete(state: &mut State, request: &Request, kind: Kind, id: &str) -> Answer {
    if state.marathon.specs.get(id).is_none_or(|spec| spec.kind != kind) {
        let noun = if kind == Kind::App { "App" } else { "Pod" };
        let message = format!("{noun} '{id}' does not exist");
        // Apps lack the details here, as recorded.
        return if kind == Kind::App { Answer::message(404, message) } else { absent(state, kind, id) };
    }
    // A pod under deployment is refused, an app is not: its deletion supersedes the deployment.
    if let Err(locked) = deployments::take_lock(state, &[id], kind == Kind::App || request.flag("force")) {
        return locked;
    }
    let version = state.next_version();
    let before = state.marathon.specs.remove(id);
    let target = Target { kind, id: id.to_owned(), before };
    let deployment = deployments::begin(state, &version, target, Change::Stop);
    if kind == Kind::App {
        return Answer::json(200, &json!({ "deploymentId": deployment, "version": version })).header("marathon-deployment-id", deployment);
    }
    let uri = format!("/v2/pods{id}");
    state.event("pod_deleted_event", json!({ "clientIp": "192.168.1.69", "uri": uri }));
    Answer::empty(202).header("location", format!("http://192.168.1.69:8080/{deployment}")).header("marathon-deployment-id", deployment)
}

fn reset_delay(state: &mut State, id: &str) -> Answer {
    match state.marathon.specs.get_mut(id) {
        Some(spec) => {
            spec.backoff = Backoff::default();
            state.touch();
            Answer::empty(204)
        }
        None => Answer::message(404, format!("Application {id} not found in tasks queue.")),
    }
}

// --- groups -----------------------------------------------------------------------------------------------------------------

/// Only empty groups: what the lab's users need of them is the role.
fn post_group(state: &mut State, request: &Request) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
    let Some(id) = body["id"].as_str().map(absolute) else { return unknown_route(request) };
    if views::all_groups(state).contains(&id) {
        return Answer::message(409, format!("Group {id} is already created. Use PUT to change this group."));
    }
    change_group(state, request, &id, &body, 201)
}

fn group(state: &mut State, request: &Request, id: &str) -> Answer {
    let exists = views::all_groups(state).iter().any(|group| group == id);
    match (request.method.as_str(), exists) {
        ("GET" | "DELETE", false) => absence(state, format!("Group '{id}' does not exist")),
        ("GET", true) => Answer::json(200, &views::group(state, id)),
        ("PUT", _) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
            change_group(state, request, id, &body, 200)
        }
        _ => unknown_route(request),
    }
}

fn change_group(state: &mut State, request: &Request, id: &str, body: &Value, status: u16) -> Answer {
    let known = |key: &String| ["id", "enforceRole"].contains(&key.as_str());
    let top_level = top_group(id).is_none();
    match (body.as_object(), body["enforceRole"].as_bool()) {
        (Some(fields), Some(enforce)) if top_level && fields.keys().all(known) => {
            let version = state.next_version();
            state.marathon.groups.insert(id.trim_start_matches('/').to_owned(), enforce);
            state.marathon.version.clone_from(&version);
            state.touch();
            Answer::json(status, &json!({ "deploymentId": uuid::Uuid::new_v4().to_string(), "version": version }))
        }
        _ => unknown_route(request),
    }
}

// --- events -----------------------------------------------------------------------------------------------------------------

fn events(shared: &SharedState, request: &Request) -> Response<Body> {
    let wanted: Vec<String> = request.params("event_type").map(str::to_owned).collect();
    let mut events = shared.events.subscribe();
    let (sender, receiver) = mpsc::channel::<Bytes>(1024);
    tokio::spawn(async move {
        let attached = json!({
            "remoteAddress": "192.168.1.69", "eventType": "event_stream_attached", "timestamp": iso(crate::server::clock::now()),
        });
        let mut next = Some(("event_stream_attached".to_owned(), attached));
        loop {
            if let Some((kind, data)) = next.take()
                && (wanted.is_empty() || wanted.contains(&kind))
                && sender.send(Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))).await.is_err()
            {
                return;
            }
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => next = Some(event),
                    // The real one drops events of a reader that is too slow.
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                    Err(_) => return,
                },
                () = sender.closed() => return,
            }
        }
    });
    let mut response = Response::new(Body::new(Stream(receiver)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/event-stream;charset=utf-8"));
    response
}
