//! What stands before Marathon, Metronome and Mesos in Enterprise: who may ask for what, and what of a list is shown.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State as Extracted};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use serde_json::Value;

use super::{Enterprise, Security};
use crate::server::SharedState;
use crate::server::http::{Answer, decode};
use crate::server::state::State;

/// Definitions and lists are shorter.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

/// Puts the door before Marathon.
pub(crate) fn marathon(shared: &SharedState, router: Router) -> Router {
    router.layer(from_fn_with_state((shared.clone(), Server::Marathon), enter))
}

/// Puts the door before Metronome.
pub(crate) fn metronome(shared: &SharedState, router: Router) -> Router {
    router.layer(from_fn_with_state((shared.clone(), Server::Metronome), enter))
}

/// Puts the door before Mesos: it wants a token in strict mode, but no permission. Admin Router, the only way there, wants one.
pub(crate) fn mesos(shared: &SharedState, router: Router) -> Router {
    router.layer(from_fn_with_state((shared.clone(), Server::Mesos), enter))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Marathon,
    Metronome,
    Mesos,
}

/// What a call needs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Need {
    /// A token; what the account may not read is left out of the answer.
    Filter,
    /// A token.
    Token,
    /// An action on something that has no parts.
    On(String, &'static str),
    /// An action on an app, pod, group or job.
    Of(String, &'static str),
}

async fn enter(Extracted((shared, server)): Extracted<(SharedState, Server)>, request: Request, next: Next) -> Response {
    let security = shared.read(|state| state.pose.security);
    if security == Security::Open || (server == Server::Mesos && security == Security::Permissive) {
        return next.run(request).await;
    }
    let mut path = decode(request.uri().path(), false);
    while path.contains("//") {
        path = path.replace("//", "/");
    }
    let path = path.trim_end_matches('/').to_owned();
    if path == "/ping" {
        return next.run(request).await;
    }
    let account = match shared.read(|state| state.enterprise.caller(request.headers())) {
        Ok(Some(account)) => account,
        // From within the cluster, and nobody in particular: a superuser.
        Ok(None) if security == Security::Permissive => return next.run(request).await,
        _ => return unauthenticated(),
    };
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_LIMIT).await else { return Answer::message(413, "Payload Too Large").into_response() };
    let (need, allowed) = shared.read(|state| {
        let need = match server {
            Server::Marathon => marathon_need(state, &head.method, &path, &body),
            Server::Metronome => metronome_need(&head.method, &path, &body),
            Server::Mesos => Need::Token,
        };
        let allowed = match &need {
            Need::Filter | Need::Token => true,
            Need::On(resource, action) => state.enterprise.allows(&account, resource, action),
            Need::Of(id, action) => may(&state.enterprise, server, &account, id, action),
        };
        (need, allowed)
    });
    if !allowed {
        return Answer::message(403, "Not Authorized to perform this action!").into_response();
    }
    let response = next.run(Request::from_parts(head, Body::from(body))).await;
    if need != Need::Filter || response.status() != StatusCode::OK {
        return response;
    }
    filtered(response, |value| shared.read(|state| filter(value, &|id| may(&state.enterprise, server, &account, id, "read")))).await
}

fn unauthenticated() -> Response {
    Answer::message(401, "Invalid or missing authentication token").header("www-authenticate", "acsjwt").into_response()
}

fn may(enterprise: &Enterprise, server: Server, account: &str, id: &str, action: &str) -> bool {
    match server {
        Server::Metronome => enterprise.allows_job(account, id, action),
        _ => enterprise.allows_service(account, id, action),
    }
}

fn action_of(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" | "HEAD" => "read",
        "DELETE" => "delete",
        "POST" => "create",
        _ => "update",
    }
}

fn id_in(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body["id"].as_str().map(|id| format!("/{}", id.trim_start_matches('/')))
}

fn marathon_need(state: &State, method: &Method, path: &str, body: &[u8]) -> Need {
    let admin = |what: &str, action| Need::On(format!("dcos:service:marathon:marathon:admin:{what}"), action);
    let of = |id: &str, action| Need::Of(id.to_owned(), action);
    match (method.as_str(), path) {
        ("GET", "/v2/info") => admin("config", "read"),
        ("GET", "/v2/events") => admin("events", "read"),
        ("GET", "/v2/leader") => admin("leader", "read"),
        ("GET", "/v2/apps" | "/v2/pods" | "/v2/pods/::status" | "/v2/deployments" | "/v2/queue" | "/v2/tasks" | "/v2/groups") => {
            Need::Filter
        }
        // A body that names nothing is refused by Marathon itself.
        ("POST", "/v2/apps" | "/v2/pods") => id_in(body).map_or(Need::Token, |id| Need::Of(id, "create")),
        ("POST", "/v2/groups") => id_in(body).map_or(Need::Token, |id| Need::Of(id, "full")),
        _ => {
            let below = |prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'));
            let put = |id: &str| if state.marathon.specs.contains_key(id) { "update" } else { "create" };
            if let Some(rest) = below("/v2/apps") {
                let verbs = ["/tasks", "/versions", "/restart"];
                let id = verbs.iter().find_map(|verb| rest.strip_suffix(verb)).filter(|id| !id.is_empty());
                match (method.as_str(), id) {
                    ("POST" | "DELETE", Some(id)) => of(id, "update"),
                    (_, Some(id)) => of(id, action_of(method)),
                    ("PUT", None) => of(rest, put(rest)),
                    (_, None) => of(rest, action_of(method)),
                }
            } else if let Some(rest) = below("/v2/pods") {
                match (method.as_str(), rest.split_once("::")) {
                    ("DELETE", Some((id, _))) => of(id, "update"),
                    (_, Some((id, _))) => of(id, action_of(method)),
                    ("PUT", None) => of(rest, put(rest)),
                    (_, None) => of(rest, action_of(method)),
                }
            } else if let Some(rest) = below("/v2/groups") {
                of(rest, action_of(method))
            } else if let Some(id) = below("/v2/queue").and_then(|rest| rest.strip_suffix("/delay")) {
                of(id, "update")
            } else if let Some(id) = below("/v2/deployments") {
                let id = id.trim_start_matches('/');
                let deployment = state.marathon.deployments.iter().map(|deployment| deployment.view()).find(|view| view["id"] == id);
                deployment.as_ref().and_then(|view| affected(view).next()).map_or(Need::Token, |id| of(id, "update"))
            } else {
                Need::Token
            }
        }
    }
}

fn metronome_need(method: &Method, path: &str, body: &[u8]) -> Need {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (method.as_str(), segments.as_slice()) {
        ("GET", ["v1", "jobs" | "queue"]) => Need::Filter,
        ("POST", ["v1", "jobs"]) => id_in(body).map_or(Need::Token, |id| Need::Of(id.trim_start_matches('/').to_owned(), "create")),
        ("GET", ["v1", "jobs", id, ..]) => Need::Of((*id).to_owned(), "read"),
        ("DELETE", ["v1", "jobs", id]) => Need::Of((*id).to_owned(), "delete"),
        (_, ["v1", "jobs", id, ..]) => Need::Of((*id).to_owned(), "update"),
        _ => Need::Token,
    }
}

fn affected(deployment: &Value) -> impl Iterator<Item = &str> {
    let all = ["affectedApps", "affectedPods"].into_iter().flat_map(|field| deployment[field].as_array().into_iter().flatten());
    all.filter_map(Value::as_str)
}

/// Leaves out of a list what may not be read.
fn filter(value: &mut Value, may_read: &impl Fn(&str) -> bool) {
    match value {
        Value::Array(elements) => elements.retain(|element| shows(element, may_read)),
        Value::Object(fields) => {
            for (name, list) in fields {
                if let ("apps" | "pods" | "tasks" | "queue" | "groups", Value::Array(elements)) = (name.as_str(), list) {
                    elements.iter_mut().filter(|element| element.get("groups").is_some()).for_each(|group| filter(group, may_read));
                    elements.retain(|element| shows(element, may_read));
                }
            }
        }
        _ => {}
    }
}

/// Whether an element of a list is shown: an app, pod, job, task, deployment, or an entry of a queue. Of groups, those that may be read
/// or hold something that may.
fn shows(element: &Value, may_read: &impl Fn(&str) -> bool) -> bool {
    let text = |pointer: &str| element.pointer(pointer).and_then(Value::as_str);
    if element.get("groups").is_some() {
        let holds = |list: &str| element[list].as_array().is_some_and(|elements| !elements.is_empty());
        return ["apps", "pods", "groups"].into_iter().any(holds) || text("/id").is_some_and(may_read);
    }
    if element.get("affectedApps").is_some() || element.get("affectedPods").is_some() {
        return affected(element).any(may_read);
    }
    let owner = ["/appId", "/jobId", "/app/id", "/pod/id", "/id"].into_iter().find_map(text);
    owner.is_some_and(may_read)
}

async fn filtered(response: Response, filter: impl FnOnce(&mut Value)) -> Response {
    let (mut head, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, BODY_LIMIT).await else { return Answer::empty(500).into_response() };
    let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) else { return Response::from_parts(head, Body::from(bytes)) };
    filter(&mut value);
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(value.to_string()))
}
