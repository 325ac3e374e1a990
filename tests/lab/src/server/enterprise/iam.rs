//! The IAM, below `/acs/api/v1` of Admin Router: logging in, accounts, and who may do what.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Account, tokens};
use crate::server::SharedState;
use crate::server::http::{Answer, Request, decode, unknown_route};
use crate::server::state::State;

/// What comes before every path of the IAM.
pub(crate) const PREFIX: &str = "/acs/api/v1";
/// What a permission may be for.
const ACTIONS: [&str; 5] = ["create", "read", "update", "delete", "full"];
/// A uid is no longer than this.
const MAX_UID: usize = 96;

/// Whether a path is one that needs no token.
pub(crate) fn is_open(path: &str) -> bool {
    path.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with("/auth/"))
}

/// Answers a call whose caller, but for those of [`is_open`], is a superuser.
pub(crate) fn answer(shared: &SharedState, request: &Request) -> Answer {
    let path = request.path.strip_prefix(PREFIX).unwrap_or_default();
    // A resource's slashes come escaped twice: one escape is gone by now, and the other one kept them from being separators.
    let segments: Vec<String> = path.trim_start_matches('/').split('/').map(|segment| decode(segment, false)).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let answer = match (request.method.as_str(), segments.as_slice()) {
        ("POST", ["auth", "login"]) => shared.read(|state| login(state, request)),
        ("GET" | "HEAD", ["auth", "providers"]) => Ok(Answer::json(200, &json!({}))),
        ("GET", ["users", uid]) => shared.read(|state| match state.enterprise.accounts.get(*uid) {
            Some(account) => Ok(Answer::json(200, &shown(uid, account))),
            None => Err(unknown_user(uid)),
        }),
        ("PUT", ["users", uid]) => shared.change(|state| add_user(state, uid, request)),
        ("DELETE", ["users", uid]) => shared.change(|state| {
            state.enterprise.accounts.remove(*uid).ok_or_else(|| unknown_user(uid))?;
            state.enterprise.grants.remove(*uid);
            state.touch();
            Ok(Answer::empty(204))
        }),
        ("PUT", ["acls", resource]) => shared.change(|state| {
            if !state.enterprise.resources.insert((*resource).to_owned()) {
                return Err(fault(409, "ERR_ACL_EXISTS", format!("ACL for resource with ID `{resource}` already exists.")));
            }
            state.touch();
            Ok(Answer::empty(201))
        }),
        ("PUT", ["acls", resource, "users", uid, action]) => shared.change(|state| {
            checked(state, resource, uid, action)?;
            let grants = state.enterprise.grants.entry((*uid).to_owned()).or_default();
            if !grants.entry((*resource).to_owned()).or_default().insert((*action).to_owned()) {
                let what = format!("User `{uid}` already has the permission `{action}` on `{resource}`.");
                return Err(fault(409, "ERR_ACTION_EXISTS", what));
            }
            state.touch();
            Ok(Answer::empty(204))
        }),
        ("DELETE", ["acls", resource, "users", uid, action]) => shared.change(|state| {
            checked(state, resource, uid, action)?;
            let actions = state.enterprise.grants.get_mut(*uid).and_then(|grants| grants.get_mut(*resource));
            if !actions.is_some_and(|actions| actions.remove(*action)) {
                let what = format!("User `{uid}` has no permission `{action}` on `{resource}`.");
                return Err(fault(400, "ERR_UNKNOWN_ACTION", what));
            }
            state.touch();
            Ok(Answer::empty(204))
        }),
        _ => Ok(unknown_route(request)),
    };
    answer.unwrap_or_else(|fault| fault)
}

/// As the IAM words what is wrong.
pub(crate) fn fault(status: u16, code: &str, description: impl Into<String>) -> Answer {
    let title = match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        413 => "Payload Too Large",
        _ => "Service Unavailable",
    };
    Answer::json(status, &json!({ "title": title, "description": description.into(), "code": code }))
}

fn unknown_user(uid: &str) -> Answer {
    fault(400, "ERR_UNKNOWN_USER_ID", format!("User with uid `{uid}` not known."))
}

/// Whether there is what a permission is about.
fn checked(state: &State, resource: &str, uid: &str, action: &str) -> Result<(), Answer> {
    if !state.enterprise.resources.contains(resource) {
        return Err(fault(400, "ERR_UNKNOWN_RESOURCE_ID", format!("ACL for resource with ID `{resource}` not known.")));
    }
    if !state.enterprise.accounts.contains_key(uid) {
        return Err(unknown_user(uid));
    }
    if !ACTIONS.contains(&action) {
        return Err(fault(400, "ERR_INVALID_ACTION", format!("Invalid action `{action}`.")));
    }
    Ok(())
}

fn shown(uid: &str, account: &Account) -> Value {
    let mut shown = json!({
        "uid": uid,
        "url": format!("{PREFIX}/users/{uid}"),
        "description": account.description,
        "is_remote": false,
        "is_service": account.password.is_none(),
        "provider_type": "internal",
        "provider_id": "",
    });
    if let Some(key) = &account.public_key {
        shown["public_key"] = key.clone().into();
    }
    shown
}

fn parsed(request: &Request, known: &[&str]) -> Result<Value, Answer> {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
    let Some(fields) = body.as_object() else {
        return Err(fault(400, "ERR_INVALID_DATA", "Unexpected JSON input: an object is expected."));
    };
    match fields.keys().find(|field| !known.contains(&field.as_str())) {
        Some(field) => {
            let what = format!("Unexpected JSON input: Additional properties are not allowed ('{field}' was unexpected)");
            Err(fault(400, "ERR_INVALID_DATA", what))
        }
        None => Ok(body),
    }
}

fn login(state: &State, request: &Request) -> Result<Answer, Answer> {
    let body = parsed(request, &["uid", "password", "token", "exp"])?;
    let text = |field: &str| body[field].as_str();
    let enterprise = &state.enterprise;
    let granted = text("uid").and_then(|uid| {
        let account = enterprise.accounts.get(uid)?;
        let is_good = match (text("password"), text("token")) {
            (Some(password), None) => account.password.as_deref() == Some(password),
            (None, Some(proof)) => enterprise.is_proof(uid, proof),
            _ => false,
        };
        is_good.then_some((uid, account))
    });
    let Some((uid, account)) = granted else {
        return Err(fault(401, "ERR_INVALID_CREDENTIALS", "Invalid credentials.").header("www-authenticate", "acsjwt"));
    };
    // A service may choose the end of its token.
    let token = body["exp"].as_f64().map_or_else(|| enterprise.issue(uid), |end| enterprise.issue_until(uid, end));
    let info = STANDARD.encode(json!({ "uid": uid, "description": account.description, "is_remote": false }).to_string());
    Ok(Answer::json(200, &json!({ "token": token }))
        .header("set-cookie", format!("{}={token}; HttpOnly; Path=/", tokens::COOKIE))
        .header("set-cookie", format!("dcos-acs-info-cookie={info}; Path=/")))
}

fn add_user(state: &mut State, uid: &str, request: &Request) -> Result<Answer, Answer> {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || ".@_-".contains(character);
    if uid.is_empty() || uid.len() > MAX_UID || !uid.chars().all(is_plain) {
        return Err(fault(400, "ERR_INVALID_USER_ID", format!("Invalid user ID: `{uid}`.")));
    }
    let body = parsed(request, &["description", "password", "public_key", "provider_type", "provider_id"])?;
    let text = |field: &str| body[field].as_str().map(str::to_owned);
    let account =
        Account { description: text("description").unwrap_or_default(), password: text("password"), public_key: text("public_key") };
    match (&account.password, &account.public_key) {
        (Some(password), None) if password.len() >= 5 => {}
        (Some(_), None) => return Err(fault(400, "ERR_INVALID_PASSWORD", "Password does not match rules: at least 5 characters.")),
        (None, Some(key)) => {
            tokens::rsa_key(key).map_err(|bad| fault(400, "ERR_INVALID_PUBLIC_KEY", bad.to_string()))?;
        }
        _ => return Err(fault(400, "ERR_INVALID_DATA", "One of `password` or `public_key` must be provided, but not both.")),
    }
    if state.enterprise.accounts.contains_key(uid) {
        return Err(fault(409, "ERR_USER_EXISTS", format!("User with uid `{uid}` already exists.")));
    }
    state.enterprise.accounts.insert(uid.to_owned(), account);
    state.touch();
    Ok(Answer::empty(201))
}
