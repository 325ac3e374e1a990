//! Definitions as Marathon before 1.11 reads, refuses and shows them.
//!
//! All versions keep a definition in the form of the newest. What an older one does not know is taken out before it is read, and
//! what it words differently is put into its words afterwards. Marathon 1.4 was recorded as 1.4.2, 1.5 to 1.7 as 1.7.202.

use serde_json::{Map, Value, json};

use super::read::is_empty;
use super::{Stored, Surroundings};
use crate::server::Pose;
use crate::server::http::Answer;
use crate::server::marathon::Kind;

/// Keys of apps and the Marathon that they came with.
const APP_KEYS: &[(&str, [u32; 3])] = &[
    ("networks", [1, 5, 0]),
    ("tty", [1, 5, 0]),
    ("container/portMappings", [1, 5, 0]),
    ("container/docker/pullConfig", [1, 5, 0]),
    ("container/docker/portMappings/*/networkNames", [1, 5, 0]),
    ("container/volumes/*/secret", [1, 5, 0]),
    ("fetch/*/destPath", [1, 5, 0]),
    ("healthChecks/*/ipProtocol", [1, 5, 0]),
    ("container/linuxInfo", [1, 8, 0]),
    ("role", [1, 9, 0]),
    ("resourceLimits", [1, 10, 0]),
];
/// Keys of pods and the Marathon that they came with.
const POD_KEYS: &[(&str, [u32; 3])] = &[
    ("volumes/*/secret", [1, 5, 0]),
    ("containers/*/tty", [1, 5, 0]),
    ("containers/*/image/pullConfig", [1, 5, 0]),
    ("containers/*/endpoints/*/networkNames", [1, 5, 0]),
    ("volumes/*/persistent", [1, 6, 0]),
    ("containers/*/linuxInfo", [1, 8, 0]),
    ("linuxInfo", [1, 9, 0]),
    ("role", [1, 9, 0]),
    ("containers/*/resourceLimits", [1, 10, 0]),
    ("legacySharedCgroups", [1, 10, 0]),
];

/// Reads an app as this Marathon does. `is_new` when nothing of a former definition is kept.
pub(super) fn app(body: &[u8], is_new: bool, pose: &Pose, read: impl FnOnce(&[u8]) -> Result<Stored, Answer>) -> Result<Stored, Answer> {
    let (mut body, dropped) = known(body, Kind::App, pose);
    if pose.has_apps_of_1_4() {
        body = app_of_1_4(&body, is_new, pose.unreachable_default() == (0, 0))?;
    }
    let mut stored = read(&body).map_err(|refused| if pose.has_apps_of_1_4() { reworded(refused, Kind::App, &body) } else { refused })?;
    if pose.has_apps_of_1_4() {
        keep_network_word(&mut stored, &body);
    }
    stored.dropped.extend(dropped);
    Ok(stored)
}

/// Reads a pod as this Marathon does.
pub(super) fn pod(body: &[u8], pose: &Pose, read: impl FnOnce(&[u8]) -> Result<Stored, Answer>) -> Result<Stored, Answer> {
    let (body, dropped) = known(body, Kind::Pod, pose);
    if pose.has_apps_of_1_4() {
        check_pod_of_1_4(&body)?;
    }
    let mut stored = read(&body).map_err(|refused| if pose.has_apps_of_1_4() { reworded(refused, Kind::Pod, &body) } else { refused })?;
    if pose.has_apps_of_1_4() {
        leave_unsaid(&mut stored.definition, &body);
    }
    if !pose.pods_have_command_checks() {
        check_command_checks(&stored.definition, pose)?;
    }
    stored.dropped.extend(dropped);
    Ok(stored)
}

/// A body without what this Marathon does not know, and the paths of that. A body that is no JSON stays as it is.
fn known(body: &[u8], kind: Kind, pose: &Pose) -> (Vec<u8>, Vec<String>) {
    let mut dropped = Vec::new();
    let Ok(mut value) = serde_json::from_slice::<Value>(body) else { return (body.to_vec(), dropped) };
    let keys = if kind == Kind::App { APP_KEYS } else { POD_KEYS };
    for (path, _) in keys.iter().filter(|(_, since)| !pose.marathon_from(*since)) {
        remove(&mut value, path, "", &mut dropped);
    }
    (value.to_string().into_bytes(), dropped)
}

fn remove(value: &mut Value, path: &str, at: &str, dropped: &mut Vec<String>) {
    match path.split_once('/') {
        Some(("*", rest)) => {
            for (index, item) in value.as_array_mut().into_iter().flatten().enumerate() {
                remove(item, rest, &format!("{at}({index})"), dropped);
            }
        }
        Some((first, rest)) => {
            if let Some(inner) = value.get_mut(first) {
                remove(inner, rest, &format!("{at}/{first}"), dropped);
            }
        }
        None => {
            let removed = value.as_object_mut().and_then(|fields| fields.shift_remove(path));
            if removed.is_some_and(|value| !value.is_null()) {
                dropped.push(format!("{at}/{path}"));
            }
        }
    }
}

// --- Marathon 1.4 -----------------------------------------------------------------------------------------------------------

const HOST_OR_CONTAINERS: &str = "Must specify either a single host network, or else 1-to-n container networks";
const OPERATORS: &str = "Constraint operator must be one of the following: [UNIQUE, LIKE, CLUSTER, GROUP_BY, UNLIKE, MAX_PER]";
const ID_PATTERN: &str =
    r"must fully match regular expression '^(([a-z0-9]|[a-z0-9][a-z0-9\-]*[a-z0-9])\.)*([a-z0-9]|[a-z0-9][a-z0-9\-]*[a-z0-9])|(\.|\.\.)$'";

fn faulty(status: u16, path: &str, text: &str) -> Answer {
    let message = if status == 400 { "Invalid JSON" } else { "Object is not valid" };
    Answer::json(status, &json!({ "message": message, "details": [{ "path": path, "errors": [text] }] }))
}

/// An app's body for the readers of later versions.
///
/// # Errors
/// What only 1.4 refuses, or refuses in another way.
fn app_of_1_4(body: &[u8], is_new: bool, may_be_given_up_at_once: bool) -> Result<Vec<u8>, Answer> {
    let Ok(mut value) = serde_json::from_slice::<Value>(body) else { return Ok(body.to_vec()) };
    let Some(fields) = value.as_object_mut() else { return Ok(body.to_vec()) };
    let given = |fields: &Map<String, Value>, name: &str| fields.get(name).is_some_and(|value| !value.is_null());
    // Even when both are empty.
    if given(fields, "uris") && given(fields, "fetch") {
        return Err(faulty(400, "", "You cannot specify both uris and fetch fields"));
    }
    for (index, constraint) in fields.get("constraints").and_then(Value::as_array).into_iter().flatten().enumerate() {
        if constraint[1]
            .as_str()
            .is_some_and(|operator| !["UNIQUE", "LIKE", "CLUSTER", "GROUP_BY", "UNLIKE", "MAX_PER"].contains(&operator))
        {
            return Err(faulty(400, &format!("/constraints({index})"), OPERATORS));
        }
    }
    let container = fields.get("container").cloned().unwrap_or_default();
    if let Some(network) = container["docker"]["network"].as_str().filter(|name| !["BRIDGE", "HOST", "USER"].contains(name)) {
        return Err(faulty(400, "/container/docker/network", &format!("{network} is not a valid network type")));
    }
    if container["type"] == "DOCKER" && container["docker"].is_null() {
        return Err(Answer::message(500, "docker must not be empty"));
    }
    let volumes = container["volumes"].as_array();
    if let Some(index) = volumes.and_then(|all| all.iter().position(|volume| volume["mode"].is_null())) {
        return Err(faulty(400, &format!("/container/volumes({index})/mode"), "error.path.missing"));
    }
    if container["type"] == "MESOS" && !is_empty(&container["docker"]["portMappings"]) && container["docker"]["portMappings"].is_array() {
        return Err(faulty(422, "/container/docker/portMappings", "Mesos Containerizer does not support portMappings"));
    }
    if !may_be_given_up_at_once {
        unreachable_of_1_4(&fields.get("unreachableStrategy").cloned().unwrap_or_default(), "/unreachableStrategy")?;
    }
    fields.shift_remove("storeUrls");
    if let Some(docker) = fields.get_mut("container").and_then(|container| container.get_mut("docker")?.as_object_mut()) {
        docker.shift_remove("credential");
    }
    // A container without a word about its network is on the host's.
    if container["docker"]["network"].is_null() && !given(fields, "ipAddress") && (is_new || given(fields, "container")) {
        fields.insert("networks".to_owned(), json!([{ "mode": "host" }]));
    }
    Ok(value.to_string().into_bytes())
}

/// Apps want a second at least as long as that is far from the default (before 1.4.6); pods do not care.
fn unreachable_of_1_4(strategy: &Value, path: &str) -> Result<(), Answer> {
    let (Some(inactive), Some(expunge)) = (strategy["inactiveAfterSeconds"].as_i64(), strategy["expungeAfterSeconds"].as_i64()) else {
        return Ok(());
    };
    let mut errors = Vec::new();
    if inactive < 1 {
        errors.push(format!("got {inactive} seconds, expected 1 second or more"));
    }
    if inactive >= expunge {
        errors.push(format!("got {inactive} seconds, expected less than {expunge} seconds"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    let details = json!([{ "path": format!("{path}/inactiveAfter"), "errors": errors }]);
    Err(Answer::json(422, &json!({ "message": "Object is not valid", "details": details })))
}

/// Marathon 1.4 shows the word that it was given for the network.
fn keep_network_word(stored: &mut Stored, body: &[u8]) {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return };
    let word = &body["container"]["docker"]["network"];
    if let Some(docker) = stored.definition.pointer_mut("/container/docker").and_then(Value::as_object_mut)
        && word.is_string()
    {
        docker.insert("network".to_owned(), word.clone());
    }
}

/// Marathon 1.4 has no defaults for mounts and artifacts of pods.
fn leave_unsaid(definition: &mut Value, body: &[u8]) {
    let sent: Value = serde_json::from_slice(body).unwrap_or_default();
    for (index, container) in definition["containers"].as_array_mut().into_iter().flatten().enumerate() {
        for list in ["volumeMounts", "artifacts"] {
            for (at, item) in
                container.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut).enumerate()
            {
                item.retain(|name, _| sent["containers"][index][list][at].get(name).is_some());
            }
        }
    }
}

/// What 1.4 asks of pods and later versions do not.
fn check_pod_of_1_4(body: &[u8]) -> Result<(), Answer> {
    let Ok(pod) = serde_json::from_slice::<Value>(body) else { return Ok(()) };
    let networks = pod["networks"].as_array();
    if let Some(index) = networks.and_then(|all| all.iter().position(|network| network["mode"] == "container/bridge")) {
        return Err(faulty(400, &format!("/networks({index})/mode"), "error.expected.jsstring"));
    }
    let placement = &pod["scheduling"]["placement"];
    let constraints = placement["constraints"].as_array();
    if let Some(index) = constraints.and_then(|all| all.iter().position(|constraint| constraint["operator"] == "IS")) {
        return Err(faulty(400, &format!("/scheduling/placement/constraints({index})/operator"), "error.expected.jsstring"));
    }
    let is_empty_list = pod["containers"].as_array().is_some_and(Vec::is_empty);
    if networks.is_none_or(Vec::is_empty) && pod["containers"].is_array() && !is_empty_list {
        return Err(faulty(422, "/networks", HOST_OR_CONTAINERS));
    }
    Ok(())
}

/// From 1.5 on the path names the `exec`.
fn check_command_checks(pod: &Value, pose: &Pose) -> Result<(), Answer> {
    let at = if pose.has_apps_of_1_4() { "" } else { "/exec" };
    for (index, container) in pod["containers"].as_array().into_iter().flatten().enumerate() {
        if container["healthCheck"].get("exec").is_some() {
            let text = format!("Mesos Master ({}) does not support Command Health Checks", pose.mesos);
            return Err(faulty(422, &format!("/containers({index})/healthCheck{at}"), &text));
        }
    }
    Ok(())
}

/// A refusal in the words of 1.4.
fn reworded(answer: Answer, kind: Kind, body: &[u8]) -> Answer {
    let sent: Value = serde_json::from_slice(body).unwrap_or_default();
    let Ok(refusal) = serde_json::from_str::<Value>(answer.body()) else { return answer };
    let Some(details) = refusal["details"].as_array() else {
        return match refusal["details"].as_str() {
            Some(text) => {
                let details = text.replace("between Object entries", "between OBJECT entries");
                Answer::json(400, &json!({ "message": refusal["message"], "details": details }))
            }
            None => answer,
        };
    };
    let is_json = refusal["message"] == "Invalid JSON";
    let mut status = if is_json { 400 } else { 422 };
    let mut new: Vec<Value> = Vec::new();
    for detail in details {
        let path = detail["path"].as_str().unwrap_or_default();
        for error in detail["errors"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let (path, text) = match (kind, error) {
                (_, "error.pattern") if path == "/id" => {
                    status = 422;
                    (path.to_owned(), ID_PATTERN.to_owned())
                }
                (Kind::App, text) if text.contains("is undefined on object") => (path.to_owned(), "error.path.missing".to_owned()),
                (Kind::App, "MAX_PER requires an integer value") => {
                    (path.to_owned(), "Value was not specified or is not a number".to_owned())
                }
                (Kind::App, "references an undefined secret") => undefined_secret(path, &sent),
                (Kind::App, "error.min") if sent.pointer(path).is_some_and(Value::is_number) => {
                    status = 422;
                    (
                        path.to_owned(),
                        format!("got {:?}, expected 0.0 or more", sent.pointer(path).and_then(Value::as_f64).unwrap_or_default()),
                    )
                }
                (Kind::Pod, "error.expected.jsobject") if path.contains("/environment/") => {
                    (format!("{path}/secret"), "error.path.missing".to_owned())
                }
                (Kind::Pod, "error.unknown.enum.literal") => (path.to_owned(), "error.expected.jsstring".to_owned()),
                (Kind::Pod, "references an undefined secret") => (path.replace("/environment/", "/environment(0)/"), error.to_owned()),
                (Kind::Pod, "UNIQUE does not accept a value") => (scheduling(path), "Value specified but not used".to_owned()),
                (Kind::Pod, "LIKE and UNLIKE require a non-empty, regular expression value") => {
                    (scheduling(path), "A regular expression value must be provided".to_owned())
                }
                (Kind::Pod, _) if path == "/scaling/instances" => ("/scaling".to_owned(), error.to_owned()),
                _ => (scheduling(path), error.to_owned()),
            };
            let path = path.strip_suffix("/secret").filter(|_| text == "references an undefined secret").unwrap_or(&path).to_owned();
            new.push(json!({ "path": path, "errors": [text] }));
        }
    }
    // The whole is named after its parts.
    new.sort_by_key(|detail| detail["path"] == "/scheduling");
    if is_json && kind == Kind::Pod {
        new.sort_by(|a, b| a["path"].as_str().cmp(&b["path"].as_str()));
    }
    let message = if status == 400 { "Invalid JSON" } else { "Object is not valid" };
    Answer::json(status, &json!({ "message": message, "details": new }))
}

fn scheduling(path: &str) -> String {
    path.replace("/scheduling/placement/constraints", "/scheduling")
}

fn undefined_secret(path: &str, app: &Value) -> (String, String) {
    let name = path.trim_start_matches("/env/").trim_end_matches("/secret");
    let secret = app["env"][name]["secret"].as_str().unwrap_or_default();
    (format!("/env({name})"), format!("references an undefined secret named '{secret}'"))
}

// --- what is shown ----------------------------------------------------------------------------------------------------------

/// A definition as this Marathon shows it.
pub(crate) fn shown(definition: &Value, kind: Kind, pose: &Pose) -> Value {
    let mut view = definition.clone();
    if !pose.has_roles()
        && let Some(fields) = view.as_object_mut()
    {
        fields.shift_remove("role");
    }
    if pose.has_apps_of_1_4() {
        view = if kind == Kind::App { app_as_of_1_4(&view) } else { pod_as_of_1_4(view) };
    }
    // Recorded on 1.7.202; on 1.11.24 it is shown empty.
    if kind == Kind::Pod && !pose.has_apps_of_1_4() && pose.prints_whole_numbers_plainly() {
        let scheduling = view.get_mut("scheduling").and_then(Value::as_object_mut);
        if let Some(scheduling) = scheduling.filter(|scheduling| scheduling.get("placement").is_some_and(is_empty)) {
            scheduling.shift_remove("placement");
        }
    }
    if pose.prints_whole_numbers_plainly() {
        print_plainly(&mut view);
    }
    view
}

/// `32`, not `32.0`.
fn print_plainly(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(print_plainly),
        Value::Object(fields) => fields.values_mut().for_each(print_plainly),
        Value::Number(number) => {
            #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
            if let Some(whole) = number.as_f64().filter(|real| number.is_f64() && real.fract() == 0.0 && real.abs() < 1e15) {
                *value = json!(whole as i64);
            }
        }
        _ => {}
    }
}

/// Keys of an app that 1.4 always shows, with what stands there when there is nothing.
fn app_as_of_1_4(app: &Value) -> Value {
    let or = |name: &str, nothing: Value| app.get(name).cloned().unwrap_or(nothing);
    let without = |list: &str, key: &str| -> Value {
        let mut items = or(list, json!([]));
        for item in items.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            item.shift_remove(key);
        }
        items
    };
    let mut checks = without("healthChecks", "ipProtocol");
    for check in checks.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        // Only Mesos waits before the first check.
        if check.get("protocol").and_then(Value::as_str).is_some_and(|protocol| matches!(protocol, "HTTP" | "HTTPS" | "TCP")) {
            check.shift_remove("delaySeconds");
        }
    }
    let fetch = without("fetch", "destPath");
    let uris: Vec<&Value> = fetch.as_array().into_iter().flatten().map(|artifact| &artifact["uri"]).collect();
    let (ports, definitions) = ports_of_1_4(app);
    let mut view = json!({
        "id": app["id"], "cmd": app["cmd"], "args": app["args"], "user": app["user"], "env": or("env", json!({})),
        "instances": app["instances"], "cpus": app["cpus"], "mem": app["mem"], "disk": app["disk"], "gpus": app["gpus"],
        "executor": app["executor"], "constraints": or("constraints", json!([])), "uris": uris, "fetch": fetch, "storeUrls": [],
        "backoffSeconds": app["backoffSeconds"], "backoffFactor": app["backoffFactor"],
        "maxLaunchDelaySeconds": app["maxLaunchDelaySeconds"], "container": container_as_of_1_4(&app["container"]),
        "healthChecks": checks, "readinessChecks": or("readinessChecks", json!([])), "dependencies": or("dependencies", json!([])),
        "upgradeStrategy": app["upgradeStrategy"], "labels": app["labels"], "ipAddress": null, "version": app["version"],
        "residency": app["residency"], "secrets": or("secrets", json!({})),
        "taskKillGracePeriodSeconds": app["taskKillGracePeriodSeconds"], "unreachableStrategy": app["unreachableStrategy"],
        "killSelection": app["killSelection"], "ports": ports, "portDefinitions": definitions,
        "requirePorts": or("requirePorts", json!(false)),
    });
    for name in ["acceptedResourceRoles", "versionInfo"] {
        if let Some(value) = app.get(name) {
            view[name] = value.clone();
        }
    }
    view
}

/// Service ports, and the definitions that they are shown in: where the container has its own mappings, that is the default one.
fn ports_of_1_4(app: &Value) -> (Vec<Value>, Vec<Value>) {
    if let Some(mappings) = app["container"]["portMappings"].as_array() {
        let ports: Vec<Value> = mappings.iter().map(|mapping| mapping["servicePort"].clone()).collect();
        let default = ports.first().map(|port| json!({ "port": port, "protocol": "tcp", "name": "default", "labels": {} }));
        return (ports, default.into_iter().collect());
    }
    let mut definitions: Vec<Value> = app["portDefinitions"].as_array().cloned().unwrap_or_default();
    for definition in definitions.iter_mut().filter_map(Value::as_object_mut) {
        definition.entry("labels").or_insert_with(|| json!({}));
    }
    (definitions.iter().map(|definition| definition["port"].clone()).collect(), definitions)
}

fn container_as_of_1_4(container: &Value) -> Value {
    if container.is_null() {
        return Value::Null;
    }
    let docker = &container["docker"];
    let mut view = json!({ "type": container["type"], "volumes": container["volumes"] });
    if container["type"] == "DOCKER" {
        let mappings = container.get("portMappings").cloned().unwrap_or_else(|| json!([]));
        view["docker"] = json!({
            "image": docker["image"], "network": docker["network"], "portMappings": mappings, "privileged": docker["privileged"],
            "parameters": docker["parameters"], "forcePullImage": docker["forcePullImage"],
        });
    } else if docker.is_object() {
        view["docker"] = json!({ "image": docker["image"], "credential": null, "forcePullImage": docker["forcePullImage"] });
    }
    view
}

/// Lists and maps stand there even when they are empty, and a constraint without a value has an empty one, which a PUT refuses.
fn pod_as_of_1_4(mut pod: Value) -> Value {
    let fill = |value: &mut Value, fields: &[(&str, Value)]| {
        if let Some(object) = value.as_object_mut() {
            for (name, nothing) in fields {
                object.entry(*name).or_insert_with(|| nothing.clone());
            }
        }
    };
    let (list, map) = (json!([]), json!({}));
    fill(
        &mut pod,
        &[
            ("labels", map.clone()),
            ("environment", map.clone()),
            ("secrets", map.clone()),
            ("volumes", list.clone()),
            ("networks", list.clone()),
        ],
    );
    for network in pod["networks"].as_array_mut().into_iter().flatten() {
        fill(network, &[("labels", map.clone())]);
    }
    for container in pod["containers"].as_array_mut().into_iter().flatten() {
        let lists = ["endpoints", "volumeMounts", "artifacts"].map(|name| (name, list.clone()));
        fill(container, &lists);
        fill(container, &[("environment", map.clone()), ("labels", map.clone())]);
        for endpoint in container["endpoints"].as_array_mut().into_iter().flatten() {
            fill(endpoint, &[("protocol", list.clone()), ("labels", map.clone())]);
        }
    }
    fill(&mut pod["scheduling"], &[("placement", map)]);
    let placement = &mut pod["scheduling"]["placement"];
    fill(placement, &[("constraints", list.clone()), ("acceptedResourceRoles", list)]);
    for constraint in placement["constraints"].as_array_mut().into_iter().flatten() {
        fill(constraint, &[("value", json!(""))]);
    }
    pod
}

// --- roles ------------------------------------------------------------------------------------------------------------------

/// Accepted roles that Marathon 1.9 leaves out in silence; their path is noted.
pub(super) fn strip_accepted_roles(roles: &mut Vec<Value>, role: &str, path: &str, around: &Surroundings, dropped: &mut Vec<String>) {
    if !around.pose.strips_accepted_roles() {
        return;
    }
    let before = roles.len();
    roles.retain(|accepted| accepted == "*" || accepted == role);
    if roles.len() < before {
        dropped.push(path.to_owned());
    }
}
