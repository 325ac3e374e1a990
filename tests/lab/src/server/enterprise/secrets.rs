//! The secret store, below `/secrets/v1` of Admin Router.

use axum::body::Body;
use axum::http::{Response, header};
use serde_json::{Value, json};

use super::Enterprise;
use super::iam::fault;
use crate::server::SharedState;
use crate::server::http::{Answer, Request, unknown_route};

/// What comes before every path of the store.
pub(crate) const PREFIX: &str = "/secrets/v1";
/// The one store that there is.
const STORE: &str = "/secret/default";
/// Of a secret.
const MAX_BYTES: usize = 1024 * 1024;
const BINARY: &str = "application/octet-stream";

/// Answers this account. Permissions count in every security mode.
pub(crate) fn answer(shared: &SharedState, account: &str, request: &Request) -> Response<Body> {
    let path = request.path.strip_prefix(PREFIX).unwrap_or_default();
    if path == "/seal-status/default" && request.method == "GET" {
        let sealed = shared.read(|state| state.enterprise.sealed);
        return Answer::json(200, &json!({ "sealed": sealed, "threshold": 1, "shares": 1, "progress": 0 })).into_response();
    }
    let Some(path) = path.strip_prefix(STORE).filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        return unknown_route(request).into_response();
    };
    let path = path.trim_start_matches('/');
    let answered = if request.method == "GET" {
        shared.read(|state| read(&state.enterprise, account, request, path))
    } else {
        shared.change(|state| {
            let changed = change(&mut state.enterprise, account, request, path);
            state.touch();
            changed.map(Answer::into_response)
        })
    };
    answered.unwrap_or_else(Answer::into_response)
}

fn permitted(enterprise: &Enterprise, account: &str, resource: &str, action: &str) -> Result<(), Answer> {
    if enterprise.sealed {
        return Err(fault(503, "ERR_SEALED", "The secret store is sealed."));
    }
    if enterprise.allows(account, resource, action) {
        return Ok(());
    }
    Err(fault(403, "ERR_FORBIDDEN", format!("User `{account}` lacks the permission `{action}` on `{resource}`.")))
}

/// The resource of a secret. There are no wildcards: every secret has its own.
fn resource(path: &str) -> String {
    format!("dcos:secrets:default:/{path}")
}

fn absent(path: &str) -> Answer {
    fault(404, "ERR_NOT_FOUND", format!("There is no secret `{path}`."))
}

fn read(enterprise: &Enterprise, account: &str, request: &Request, path: &str) -> Result<Response<Body>, Answer> {
    if request.flag("list") {
        permitted(enterprise, account, &format!("dcos:secrets:list:default:/{path}"), "read")?;
        let folder = if path.is_empty() { String::new() } else { format!("{path}/") };
        let names: Vec<&str> = enterprise.secrets.keys().filter_map(|secret| secret.strip_prefix(&folder)).collect();
        return Ok(Answer::json(200, &json!({ "array": names })).into_response());
    }
    permitted(enterprise, account, &resource(path), "read")?;
    let value = enterprise.secrets.get(path).ok_or_else(|| absent(path))?;
    match std::str::from_utf8(value) {
        Ok(text) if !enterprise.binary.contains(path) => Ok(Answer::json(200, &json!({ "value": text })).into_response()),
        _ => {
            let mut response = Response::new(Body::from(value.clone()));
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(BINARY));
            Ok(response)
        }
    }
}

fn change(enterprise: &mut Enterprise, account: &str, request: &Request, path: &str) -> Result<Answer, Answer> {
    let action = match request.method.as_str() {
        "PUT" => "create",
        "PATCH" => "update",
        "DELETE" => "delete",
        _ => return Ok(unknown_route(request)),
    };
    permitted(enterprise, account, &resource(path), action)?;
    if path.is_empty() {
        return Err(fault(400, "ERR_INVALID_DATA", "A secret needs a path."));
    }
    let is_there = enterprise.secrets.contains_key(path);
    match (action, is_there) {
        ("delete", true) => {
            enterprise.secrets.remove(path);
            enterprise.binary.remove(path);
            return Ok(Answer::empty(204));
        }
        ("update" | "delete", false) => return Err(absent(path)),
        _ => {}
    }
    let (value, is_binary) = value(request)?;
    if action == "create" && is_there {
        return Err(fault(409, "ERR_EXISTS", format!("There is a secret `{path}` already.")));
    }
    enterprise.secrets.insert(path.to_owned(), value);
    if is_binary {
        enterprise.binary.insert(path.to_owned());
    } else {
        enterprise.binary.remove(path);
    }
    Ok(Answer::empty(if is_there { 204 } else { 201 }))
}

/// What is to be stored, and whether it is bytes.
fn value(request: &Request) -> Result<(Vec<u8>, bool), Answer> {
    let declared = request.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_binary = declared.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(BINARY));
    let bytes = if is_binary { request.body.to_vec() } else { value_of_json(&request.body)? };
    if bytes.len() > MAX_BYTES {
        return Err(fault(413, "ERR_TOO_LARGE", "A secret is at most 1 MB long."));
    }
    Ok((bytes, is_binary))
}

fn value_of_json(body: &[u8]) -> Result<Vec<u8>, Answer> {
    let invalid = |what: &str| fault(400, "ERR_INVALID_DATA", what);
    let body: Value = serde_json::from_slice(body).map_err(|error| invalid(&error.to_string()))?;
    let fields = body.as_object().ok_or_else(|| invalid("an object is expected"))?;
    let known = ["author", "created", "description", "labels", "value"];
    if let Some(field) = fields.keys().find(|field| !known.contains(&field.as_str())) {
        return Err(invalid(&format!("additional property `{field}`")));
    }
    let value = body["value"].as_str().ok_or_else(|| invalid("`value` is missing or no string"))?;
    Ok(value.as_bytes().to_vec())
}
