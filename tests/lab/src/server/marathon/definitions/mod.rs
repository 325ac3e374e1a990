//! What clients send as apps and pods, and what Marathon makes of it: the stored definition or the refusal.
//! Here is Marathon 1.11; `older` has what former versions do in another way.
//!
//! A definition passes four stations: JSON ([`parse`]), types ([`read`]; refused as "Invalid JSON"), rules (refused as
//! "Object is not valid"), and defaults. Texts and orders are those of the recordings.

mod app;
mod older;
mod pod;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

pub(crate) use app::{app, app_update};
pub(crate) use older::shown;

pub(crate) use pod::pod;

use crate::server::Pose;
use crate::server::http::Answer;
use read::{COUNT, FULL_TEXT, Field, Kind, Reading, TEXT, filled, optional, or, required};

/// What the definition's surroundings say.
pub(crate) struct Surroundings<'a> {
    pub(crate) pose: &'a Pose,
    /// Role that services of this group get, as the id's top-level group decides.
    pub(crate) role: &'a str,
    /// Whether they may have no other.
    pub(crate) enforced_role: bool,
    /// Service ports that other apps have.
    pub(crate) service_ports: &'a BTreeSet<u16>,
    /// New version (ISO text) of the definition.
    pub(crate) version: &'a str,
}

impl Surroundings<'_> {
    /// The unreachable strategy of who names none.
    fn unreachable_default(&self) -> Value {
        let (inactive, expunge) = self.pose.unreachable_default();
        json!({ "inactiveAfterSeconds": inactive, "expungeAfterSeconds": expunge })
    }

    fn secrets_enabled(&self) -> bool {
        self.pose.features.iter().any(|feature| feature == "secrets")
    }
}

/// A definition that was accepted.
#[derive(Debug)]
pub(crate) struct Stored {
    /// As Marathon keeps and GETs it, without the dynamic fields (`tasksStaged`, `deployments` …).
    pub(crate) definition: Value,
    /// JSON paths of what was sent and silently dropped or changed in meaning.
    pub(crate) dropped: Vec<String>,
    /// Why this definition would stop Marathon's launcher for good, if it would.
    pub(crate) poison: Option<String>,
}

/// The id in a body before anything else is checked, as far as there is one. It is absolute and without dots.
pub(crate) fn id_of(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let id = value.get("id")?.as_str()?;
    id_fault(id).is_none().then(|| absolute(id, ""))
}

type Fields = Map<String, Value>;

/// Broken rules: path and text.
type Faults = Vec<(String, String)>;

const SECRETS_OFF: &str = "Feature secrets is not enabled. Enable with --enable_features secrets)";
const NETWORK_FAULT: &str = "May specify a single host network, single bridge network, or else 1-to-n container networks";
/// What DC/OS sets as Marathon's default network name.
const DEFAULT_NETWORK: &str = "dcos";

const NETWORK: Kind = Kind::Record(&[
    optional("name", TEXT),
    or("mode", Kind::Choice(&["container", "container/bridge", "host"]), || json!("container")),
    filled("labels", Kind::Table(&TEXT)),
]);
const SECRETS: Kind = Kind::Table(&Kind::Record(&[required("source", TEXT)]));
const ENVIRONMENT: Kind = Kind::Table(&Kind::Own(env_value));
const ARTIFACTS: Kind = Kind::List(
    &Kind::Record(&[
        required("uri", TEXT),
        or("extract", Kind::Flag, || json!(true)),
        or("executable", Kind::Flag, || json!(false)),
        or("cache", Kind::Flag, || json!(false)),
        optional("destPath", TEXT),
    ]),
    0,
);
const KILL_SELECTION: Kind = Kind::Choice(&["YOUNGEST_FIRST", "OLDEST_FIRST"]);
const UNREACHABLE: Kind = Kind::Own(unreachable);
const UNREACHABLE_FIELDS: &[Field] = &[or("inactiveAfterSeconds", COUNT, || json!(0)), or("expungeAfterSeconds", COUNT, || json!(0))];
const PULL_CONFIG: Kind = Kind::Record(&[required("secret", FULL_TEXT)]);
const PERSISTENT: Kind = Kind::Record(&[
    or("type", Kind::Choice(&["root", "path", "mount"]), || json!("root")),
    required("size", COUNT),
    optional("maxSize", COUNT),
    optional("profileName", TEXT),
    or("constraints", Kind::List(&Kind::List(&TEXT, 0), 0), || json!([])),
]);
const LIMITS: Kind = Kind::Record(&[optional("cpus", Kind::Own(limit)), optional("mem", Kind::Own(limit))]);
const LINUX_INFO: Kind = Kind::Record(&[
    optional("seccomp", Kind::Record(&[optional("profileName", TEXT), optional("unconfined", Kind::Flag)])),
    optional("ipcInfo", Kind::Record(&[required("mode", Kind::Choice(&["PRIVATE", "SHARE_PARENT"])), optional("shmSize", COUNT)])),
]);

/// A string, or a reference to a secret.
fn env_value(reading: &mut Reading, value: &Value, path: &str) -> Option<Value> {
    const REFERENCE: Kind = Kind::Strict(&[required("secret", TEXT)]);
    if value.is_string() { Some(value.clone()) } else { reading.value(&REFERENCE, value, path) }
}

fn unreachable(reading: &mut Reading, value: &Value, path: &str) -> Option<Value> {
    match value {
        Value::String(_) => reading.value(&Kind::Choice(&["disabled"]), value, path),
        Value::Object(_) => reading.value(&Kind::Record(UNREACHABLE_FIELDS), value, path),
        _ => reading.fault(path, "error.expected.jsobject"),
    }
}

fn limit(reading: &mut Reading, value: &Value, path: &str) -> Option<Value> {
    let kind = if value.is_string() { Kind::Choice(&["unlimited"]) } else { read::AMOUNT };
    reading.value(&kind, value, path)
}

/// The body as JSON, or the 400 that Marathon answers.
fn parse(body: &[u8]) -> Result<Value, Answer> {
    if body.iter().all(u8::is_ascii_whitespace) {
        let details = "No content to map due to end-of-input\n at [Source: (byte[])\"\"; line: 1, column: 0]";
        return Err(Answer::json(400, &json!({ "message": "Please specify data in JSON format", "details": details })));
    }
    serde_json::from_slice(body).map_err(|error| {
        let details = if error.is_eof() { "Unexpected end-of-input within/between Object entries".to_owned() } else { error.to_string() };
        Answer::json(400, &json!({ "message": "Invalid JSON", "details": details }))
    })
}

/// The 422 that lists faults by path.
fn refuse(message: &str, faults: Faults) -> Answer {
    let mut details: Vec<(String, Vec<String>)> = Vec::new();
    for (path, text) in faults {
        match details.iter_mut().find(|(known, _)| *known == path) {
            Some((_, texts)) => texts.push(text),
            None => details.push((path, vec![text])),
        }
    }
    let details: Vec<Value> = details.into_iter().map(|(path, errors)| json!({ "path": path, "errors": errors })).collect();
    Answer::json(422, &json!({ "message": message, "details": details }))
}

fn invalid_json(faults: Faults) -> Result<(), Answer> {
    if faults.is_empty() { Ok(()) } else { Err(refuse("Invalid JSON", faults)) }
}

fn not_valid(faults: Faults) -> Result<(), Answer> {
    if faults.is_empty() { Ok(()) } else { Err(refuse("Object is not valid", faults)) }
}

fn fault(faults: &mut Faults, path: impl Into<String>, text: impl Into<String>) {
    faults.push((path.into(), text.into()));
}

/// What is wrong with the spelling of an id.
fn id_fault(id: &str) -> Option<&'static str> {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let segment = |segment: &str| matches!(segment, "." | "..") || segment.split('.').all(label);
    if id.is_empty() {
        return Some("error.minLength");
    }
    let path = id.strip_prefix('/').unwrap_or(id);
    let path = path.strip_suffix('/').unwrap_or(path);
    (!path.is_empty() && !path.split('/').all(segment)).then_some("error.pattern")
}

/// An id without dots and with a leading slash; a relative one is below `base`.
fn absolute(id: &str, base: &str) -> String {
    let mut path: Vec<&str> = Vec::new();
    let base = if id.starts_with('/') { "" } else { base };
    for segment in base.split('/').chain(id.split('/')).filter(|segment| !segment.is_empty()) {
        match segment {
            "." => {}
            ".." => drop(path.pop()),
            name => path.push(name),
        }
    }
    format!("/{}", path.join("/"))
}

/// The service's role: what it says, or what its group says.
fn role(given: &Fields, id: &str, around: &Surroundings, faults: &mut Faults) -> String {
    let Some(role) = given.get("role").and_then(Value::as_str) else { return around.role.to_owned() };
    let mut allowed = vec![around.role];
    // The group's own name is a role that its services may ask for.
    if let Some((group, _)) = id.trim_start_matches('/').split_once('/').filter(|(group, _)| !around.enforced_role && *group != around.role)
    {
        allowed.push(group);
    }
    if !allowed.contains(&role) {
        fault(faults, "/role", format!("got {role}, expected one of: [{}]", allowed.join(", ")));
    }
    role.to_owned()
}

fn check_accepted_roles(accepted: &[Value], role: &str, around: &Surroundings, faults: &mut Faults) {
    if around.pose.has_roles() && accepted.iter().any(|accepted| accepted != "*" && accepted != role) {
        fault(faults, "/acceptedResourceRoles", format!("acceptedResourceRoles can only contain * and {role}"));
    }
}

/// Roles are a set; Marathon keeps no order.
fn without_repeats(values: &mut Vec<Value>) {
    let mut seen: Vec<Value> = Vec::new();
    values.retain(|value| {
        let is_new = !seen.contains(value);
        seen.push(value.clone());
        is_new
    });
}

fn check_environment(environment: Option<&Value>, path: &str, secrets: Option<&Value>, around: &Surroundings, faults: &mut Faults) {
    let references = environment.and_then(Value::as_object).into_iter().flatten().filter(|(_, value)| value.is_object());
    for (name, value) in references {
        if !around.secrets_enabled() && !faults.iter().any(|(known, _)| known == path) {
            fault(faults, path, "use of secret-references in the environment requires the secrets feature to be enabled");
        }
        if !declares(secrets, &value["secret"]) {
            fault(faults, format!("{path}/{name}/secret"), "references an undefined secret");
        }
    }
}

fn declares(secrets: Option<&Value>, name: &Value) -> bool {
    name.as_str().is_some_and(|name| secrets.is_some_and(|secrets| secrets.get(name).is_some()))
}

fn constraint_fault(field: &str, operator: &str, value: Option<&str>) -> Option<&'static str> {
    let is_whole = |value: &str| value.parse::<i32>().is_ok();
    let is_literal = |value: &str| value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_/.-".contains(&byte));
    if field.is_empty() {
        return Some("illegal constraint specification");
    }
    match (operator, value) {
        ("UNIQUE", Some(_)) => Some("UNIQUE does not accept a value"),
        ("GROUP_BY", Some(value)) if !is_whole(value) => Some("GROUP BY must define an integer value or else no value at all"),
        ("MAX_PER", value) if !value.is_some_and(is_whole) => Some("MAX_PER requires an integer value"),
        ("LIKE" | "UNLIKE", value) => match value.filter(|value| !value.is_empty()) {
            None => Some("LIKE and UNLIKE require a non-empty, regular expression value"),
            Some(value) => regex_lite::Regex::new(value).is_err().then_some("is not a valid regular expression"),
        },
        ("IS", Some(value)) if !is_literal(value) => {
            Some("IS only supports Mesos text and float values (see http://mesos.apache.org/documentation/latest/attributes-resources/)")
        }
        _ => None,
    }
}

fn mode(network: &Value) -> &str {
    network["mode"].as_str().unwrap_or_default()
}

fn list<'a>(fields: &'a Fields, name: &str) -> &'a [Value] {
    fields.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Container networks without a name get the default one.
fn name_networks(fields: &mut Fields) {
    for network in fields.get_mut("networks").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(fields) = network.as_object_mut().filter(|fields| fields["mode"] == "container" && !fields.contains_key("name")) {
            fields.shift_insert(0, "name".to_owned(), json!(DEFAULT_NETWORK));
        }
    }
}

fn check_networks(networks: &[Value], faults: &mut Faults) {
    let count = |wanted: &str| networks.iter().filter(|network| mode(network) == wanted).count();
    let (hosts, bridges, containers) = (count("host"), count("container/bridge"), count("container"));
    if !matches!((hosts, bridges, containers), (1, 0, 0) | (0, 1, 0) | (0, 0, _)) {
        fault(faults, "/networks", NETWORK_FAULT);
    }
    for network in networks {
        let (is_named, is_labelled) = (network.get("name").is_some(), network.get("labels").is_some());
        match mode(network) {
            "host" if is_named || is_labelled => fault(faults, "/networks", "Host networks may not have names or labels"),
            "container/bridge" if is_named => fault(faults, "/networks", "Bridge networks may not have names"),
            _ => {}
        }
    }
    let names: Vec<&str> = networks.iter().filter_map(|network| network["name"].as_str()).collect();
    if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        fault(faults, "/networks", "Duplicate networks are not allowed");
    }
}

/// Whether the values are pairwise different; missing ones do not count.
fn are_unique<'a>(values: impl Iterator<Item = &'a Value>) -> bool {
    let values: Vec<&Value> = values.filter(|value| !value.is_null()).collect();
    values.iter().enumerate().all(|(index, value)| !values[..index].contains(value))
}
