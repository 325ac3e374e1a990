//! Pods.

use serde_json::{Value, json};

use super::read::{AMOUNT, COUNT, FULL_TEXT, Field, Kind, PORT, Reading, TEXT, complete, filled, is_empty, optional, or, required};
use super::{
    ARTIFACTS, ENVIRONMENT, Faults, Fields, KILL_SELECTION, LIMITS, LINUX_INFO, NETWORK, PERSISTENT, PULL_CONFIG, SECRETS, SECRETS_OFF,
    Stored, Surroundings, UNREACHABLE, absolute, are_unique, check_accepted_roles, check_environment, check_networks, constraint_fault,
    declares, fault, id_fault, invalid_json, list, mode, name_networks, not_valid, older, parse, role, without_repeats,
};
use crate::server::http::Answer;

const LABELS: Kind = Kind::Table(&TEXT);
const NAME: Kind = Kind::Text(|name| {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match name.len() {
        0 => Some("error.minLength"),
        64.. => Some("error.maxLength"),
        _ => (!name.bytes().all(inner) || name.starts_with('-') || name.ends_with('-')).then_some("error.pattern"),
    }
});
const COMMAND: Kind = Kind::Own(command);
const ENDPOINT: Kind = Kind::Record(&[
    required("name", NAME),
    optional("containerPort", Kind::Whole(1, 65535)),
    optional("hostPort", PORT),
    filled("protocol", Kind::List(&Kind::Choice(&["tcp", "udp"]), 0)),
    filled("labels", LABELS),
    filled("networkNames", Kind::List(&TEXT, 0)),
]);
const IMAGE: Kind = Kind::Record(&[
    required("kind", Kind::Choice(&["DOCKER"])),
    required("id", FULL_TEXT),
    optional("forcePull", Kind::Flag),
    filled("labels", LABELS),
    optional("pullConfig", PULL_CONFIG),
]);
const HEALTH_CHECK: Kind = Kind::Record(&[
    optional(
        "http",
        Kind::Record(&[required("endpoint", NAME), optional("path", TEXT), optional("scheme", Kind::Choice(&["HTTP", "HTTPS"]))]),
    ),
    optional("tcp", Kind::Record(&[required("endpoint", NAME)])),
    optional("exec", Kind::Record(&[required("command", COMMAND)])),
    or("gracePeriodSeconds", COUNT, || json!(300)),
    or("intervalSeconds", COUNT, || json!(60)),
    or("maxConsecutiveFailures", COUNT, || json!(3)),
    or("timeoutSeconds", COUNT, || json!(20)),
    or("delaySeconds", COUNT, || json!(15)),
]);
const CONTAINER: Kind = Kind::Record(&[
    required("name", NAME),
    optional("exec", Kind::Record(&[required("command", COMMAND), optional("overrideEntrypoint", Kind::Flag)])),
    required(
        "resources",
        Kind::Record(&[
            or("cpus", AMOUNT, || json!(1.0)),
            or("mem", AMOUNT, || json!(128.0)),
            or("disk", AMOUNT, || json!(0.0)),
            or("gpus", COUNT, || json!(0)),
        ]),
    ),
    filled("endpoints", Kind::List(&ENDPOINT, 0)),
    optional("image", IMAGE),
    filled("environment", ENVIRONMENT),
    optional("user", TEXT),
    optional("healthCheck", HEALTH_CHECK),
    filled(
        "volumeMounts",
        Kind::List(
            &Kind::Record(&[required("name", NAME), required("mountPath", FULL_TEXT), or("readOnly", Kind::Flag, || json!(false))]),
            0,
        ),
    ),
    filled("artifacts", ARTIFACTS),
    filled("labels", LABELS),
    optional("lifecycle", Kind::Record(&[optional("killGracePeriodSeconds", AMOUNT)])),
    optional("tty", Kind::Flag),
    optional("linuxInfo", LINUX_INFO),
    optional("resourceLimits", LIMITS),
]);
const VOLUME: Kind =
    Kind::Record(&[required("name", NAME), optional("host", TEXT), optional("secret", FULL_TEXT), optional("persistent", PERSISTENT)]);
const SHARE: Kind = Kind::Real(0.0, 1.0);
const CONSTRAINT: Kind = Kind::Strict(&[
    required("fieldName", TEXT),
    required("operator", Kind::Choice(&["UNIQUE", "CLUSTER", "GROUP_BY", "LIKE", "MAX_PER", "UNLIKE", "IS"])),
    optional("value", TEXT),
]);
const PLACEMENT: Kind =
    Kind::Record(&[filled("constraints", Kind::List(&CONSTRAINT, 0)), filled("acceptedResourceRoles", Kind::List(&FULL_TEXT, 0))]);
const BACKOFF: &[Field] = &[
    or("backoff", AMOUNT, || json!(1.0)),
    or("backoffFactor", Kind::Real(1.0, f64::MAX), || json!(1.15)),
    optional("maxLaunchDelay", AMOUNT),
];
const UPGRADE: Kind = Kind::Record(&[or("minimumHealthCapacity", SHARE, || json!(1.0)), or("maximumOverCapacity", SHARE, || json!(1.0))]);
const SCHEDULING: &[Field] = &[
    or("backoff", Kind::Record(BACKOFF), || Value::Object(complete(BACKOFF, Fields::new()))),
    or("upgrade", UPGRADE, || json!({ "minimumHealthCapacity": 1.0, "maximumOverCapacity": 1.0 })),
    or("placement", PLACEMENT, || json!({})),
    or("killSelection", KILL_SELECTION, || json!("YOUNGEST_FIRST")),
    or("unreachableStrategy", UNREACHABLE, || json!({ "inactiveAfterSeconds": 0, "expungeAfterSeconds": 0 })),
];
const EXECUTOR_RESOURCES: &[Field] = &[
    or("cpus", Kind::Real(0.1, f64::MAX), || json!(0.1)),
    or("mem", Kind::Real(32.0, f64::MAX), || json!(32.0)),
    or("disk", Kind::Real(10.0, f64::MAX), || json!(10.0)),
];
const POD: &[Field] = &[
    required("id", Kind::Text(id_fault)),
    filled("labels", LABELS),
    optional("version", TEXT),
    optional("user", TEXT),
    filled("environment", ENVIRONMENT),
    required("containers", Kind::List(&CONTAINER, 1)),
    filled("secrets", SECRETS),
    filled("volumes", Kind::List(&VOLUME, 0)),
    filled("networks", Kind::List(&NETWORK, 0)),
    or("scaling", Kind::Own(scaling), || json!({ "instances": 1, "kind": "fixed" })),
    or("scheduling", Kind::Own(scheduling), || Value::Object(complete(SCHEDULING, Fields::new()))),
    or("executorResources", Kind::Record(EXECUTOR_RESOURCES), || Value::Object(complete(EXECUTOR_RESOURCES, Fields::new()))),
    optional("linuxInfo", LINUX_INFO),
    optional("legacySharedCgroups", Kind::Flag),
    optional("role", TEXT),
];

/// `shell` or else `argv`.
fn command(reading: &mut Reading, value: &Value, path: &str) -> Option<Value> {
    const SHELL: Kind = Kind::Record(&[required("shell", TEXT)]);
    const ARGV: Kind = Kind::Record(&[required("argv", Kind::List(&TEXT, 0))]);
    let kind = if value.get("shell").is_some() { SHELL } else { ARGV };
    reading.value(&kind, value, path)
}

/// There is only one kind of scaling. Instances that are no whole number count as not given.
fn scaling(reading: &mut Reading, value: &Value, path: &str) -> Option<Value> {
    if value["kind"] != "fixed" {
        return reading.fault(path, "error.expected.jsstring");
    }
    let instances = value["instances"].as_i64();
    if instances.is_none() && !value["instances"].is_null() {
        reading.dropped.push(format!("{path}/instances"));
    }
    let unknown =
        value.as_object().into_iter().flatten().map(|(name, _)| name).filter(|name| !matches!(name.as_str(), "kind" | "instances"));
    reading.dropped.extend(unknown.map(|name| format!("{path}/{name}")));
    Some(json!({ "instances": instances.unwrap_or(1), "kind": "fixed" }))
}

/// Defaults come later: some depend on the volumes.
fn scheduling(reading: &mut Reading, value: &Value, path: &str) -> Option<Value> {
    Some(Value::Object(reading.given(SCHEDULING, value, path)))
}

/// POST, or PUT to the id in the URL.
pub(crate) fn pod(body: &[u8], path_id: Option<&str>, around: &Surroundings) -> Result<Stored, Answer> {
    older::pod(body, around.pose, |body| read(body, path_id, around))
}

fn read(body: &[u8], path_id: Option<&str>, around: &Surroundings) -> Result<Stored, Answer> {
    let value = parse(body)?;
    let mut reading = Reading::default();
    let mut pod = reading.given(POD, &value, "");
    invalid_json(reading.faults)?;
    let id = pod["id"].as_str().unwrap_or_default().to_owned();
    if let Some(path_id) = path_id.filter(|path_id| absolute(path_id, "") != absolute(&id, "")) {
        let body = json!({ "message": format!("'{path_id}' does not match definition's id ('{id}')") });
        return Err(Answer::text(400, "application/json", &format!("\n{body}\n")));
    }
    complete_endpoints(&mut pod);
    if let Some(Value::Array(roles)) = pod.get_mut("scheduling").and_then(|s| s.get_mut("placement")?.get_mut("acceptedResourceRoles")) {
        let path = "/scheduling/placement/acceptedResourceRoles";
        older::strip_accepted_roles(roles, around.role, path, around, &mut reading.dropped);
    }
    let keeps = list(&pod, "volumes").iter().any(|volume| volume.get("persistent").is_some());

    let mut faults = Faults::new();
    let role = role(&pod, &id, around, &mut faults);
    check(&pod, &id, &role, around, &mut faults);
    not_valid(faults)?;

    pod.insert("id".to_owned(), json!(absolute(&id, "")));
    pod.insert("version".to_owned(), json!(around.version));
    pod.insert("role".to_owned(), json!(role));
    name_networks(&mut pod);
    let mut scheduling = pod.shift_remove("scheduling").and_then(|scheduling| scheduling.as_object().cloned()).unwrap_or_default();
    if keeps {
        scheduling.entry("upgrade").or_insert_with(|| json!({ "minimumHealthCapacity": 0.5, "maximumOverCapacity": 0.0 }));
    }
    scheduling.entry("unreachableStrategy").or_insert_with(|| if keeps { json!("disabled") } else { around.unreachable_default() });
    let mut scheduling = complete(SCHEDULING, scheduling);
    if let Some(backoff) = scheduling["backoff"].as_object_mut() {
        backoff.entry("maxLaunchDelay").or_insert_with(|| json!(around.pose.max_launch_delay_seconds));
    }
    if let Some(Value::Array(roles)) = scheduling["placement"].get_mut("acceptedResourceRoles") {
        without_repeats(roles);
    }
    pod.insert("scheduling".to_owned(), Value::Object(scheduling));
    let poison = poison(&pod, around);
    Ok(Stored { definition: Value::Object(complete(POD, pod)), dropped: reading.dropped, poison })
}

fn containers(pod: &Fields) -> &[Value] {
    list(pod, "containers")
}

fn items<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Where an endpoint needs a host port and names none, any will do.
fn complete_endpoints(pod: &mut Fields) {
    if !list(pod, "networks").iter().any(|network| matches!(mode(network), "host" | "container/bridge")) {
        return;
    }
    for container in pod.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
        for endpoint in container.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
        {
            endpoint.entry("hostPort").or_insert_with(|| json!(0));
        }
    }
}

fn check(pod: &Fields, id: &str, role: &str, around: &Surroundings, faults: &mut Faults) {
    let secrets = pod.get("secrets");
    if !id.starts_with('/') {
        fault(faults, "/id", "Path needs to be absolute");
    }
    if absolute(id, "") == "/" {
        fault(faults, "/id", "Path must contain at least one path element");
    }
    if pod.get("user").is_some_and(|user| user == "") {
        fault(faults, "/user", "must not be empty");
    }
    check_environment(pod.get("environment"), "/environment", secrets, around, faults);
    if secrets.is_some_and(|secrets| !is_empty(secrets)) && !around.secrets_enabled() {
        // Two alternatives failed, and both are listed.
        fault(faults, "/secrets", "must be empty");
        fault(faults, "/secrets", SECRETS_OFF);
    }
    check_secret_volumes(pod, around, faults);
    check_networks(list(pod, "networks"), faults);
    for (index, container) in containers(pod).iter().enumerate() {
        check_container(pod, container, &format!("/containers({index})"), around, faults);
    }
    if !are_unique(containers(pod).iter().map(|container| &container["name"])) {
        fault(faults, "/containers", "container names must be unique");
    }
    let volumes = list(pod, "volumes");
    for (index, volume) in volumes.iter().enumerate() {
        let is_mounted = |container: &Value| items(container, "volumeMounts").iter().any(|mount| mount["name"] == volume["name"]);
        if !containers(pod).iter().any(is_mounted) {
            fault(faults, format!("/volumes({index})"), "volume must be referenced by at least one container");
        }
    }
    if !are_unique(volumes.iter().map(|volume| &volume["name"])) {
        fault(faults, "/volumes", "volume names are unique");
    }
    check_scheduling(pod, role, around, faults);
    if let Some(instances) = pod.get("scaling").and_then(|scaling| scaling["instances"].as_i64()).filter(|instances| *instances < 0) {
        fault(faults, "/scaling/instances", format!("got {instances}, expected 0 or more"));
    }
    let endpoints = || containers(pod).iter().flat_map(|container| items(container, "endpoints"));
    if !are_unique(endpoints().map(|endpoint| &endpoint["name"])) {
        fault(faults, "/", "endpoint names nust be unique across all containers");
    }
    if !are_unique(endpoints().map(|endpoint| &endpoint["containerPort"])) {
        fault(faults, "/", "Container ports are unique");
    }
    if !are_unique(endpoints().map(|endpoint| &endpoint["hostPort"]).filter(|port| **port != 0)) {
        fault(faults, "/", "Host ports are unique");
    }
}

/// The odd path is Marathon's own: it shows the expression of its validator.
fn check_secret_volumes(pod: &Fields, around: &Surroundings, faults: &mut Faults) {
    const PATH: &str = "/podSecretVolumes(pod)";
    let volumes: Vec<&Value> = list(pod, "volumes").iter().filter(|volume| volume.get("secret").is_some()).collect();
    if !volumes.is_empty() && !around.secrets_enabled() {
        fault(faults, PATH, "must be empty");
        fault(faults, PATH, SECRETS_OFF);
    }
    let undeclared = |(_, volume): &(usize, &&Value)| !declares(pod.get("secrets"), &volume["secret"]);
    if volumes.iter().enumerate().any(|volume| undeclared(&volume)) {
        fault(faults, PATH, "must be empty");
    }
    for (index, _) in volumes.iter().enumerate().filter(undeclared) {
        fault(faults, format!("{PATH}({index})/secret"), "volume.secret must refer to an existing secret");
    }
}

fn check_container(pod: &Fields, container: &Value, path: &str, around: &Surroundings, faults: &mut Faults) {
    let has_network = |wanted: &str| list(pod, "networks").iter().any(|network| mode(network) == wanted);
    for (index, endpoint) in items(container, "endpoints").iter().enumerate() {
        let at = format!("{path}/endpoints({index})/containerPort");
        let is_given = endpoint.get("containerPort").is_some();
        if is_given && has_network("host") {
            fault(faults, at, "is not allowed when using host-mode networking");
        } else if !is_given && has_network("container") {
            fault(faults, at, "is required when using container-mode networking");
        }
    }
    check_environment(container.get("environment"), &format!("{path}/environment"), pod.get("secrets"), around, faults);
    let pull_config = &container["image"]["pullConfig"];
    if pull_config.is_object() && !declares(pod.get("secrets"), &pull_config["secret"]) {
        fault(faults, format!("{path}/image/pullConfig"), "pullConfig.secret must refer to an existing secret");
    }
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        if !list(pod, "volumes").iter().any(|volume| volume["name"] == mount["name"]) {
            fault(faults, format!("{path}/volumeMounts({index})/name"), "Referenced Volume in VolumeMount should exist");
        }
    }
    let Some(check) = container.get("healthCheck") else { return };
    let path = format!("{path}/healthCheck");
    let (timeout, interval) = (&check["timeoutSeconds"], &check["intervalSeconds"]);
    if timeout.as_i64() >= interval.as_i64() {
        fault(faults, format!("{path}/timeoutSeconds"), format!("got {timeout}, expected less than {interval}"));
    }
    let kinds = ["http", "tcp", "exec"];
    if kinds.iter().filter(|kind| check.get(**kind).is_some()).count() != 1 {
        fault(faults, &path, "Only one of http, tcp, or command may be specified");
    }
    for kind in kinds.iter().filter(|kind| check[**kind].get("endpoint").is_some()) {
        let is_there = items(container, "endpoints").iter().any(|endpoint| endpoint["name"] == check[*kind]["endpoint"]);
        if !is_there {
            fault(faults, format!("{path}/{kind}/endpoint"), "contained in the container endpoints");
        }
    }
}

fn check_scheduling(pod: &Fields, role: &str, around: &Surroundings, faults: &mut Faults) {
    let Some(placement) = pod.get("scheduling").and_then(|scheduling| scheduling.get("placement")) else { return };
    let constraints: Vec<Option<&str>> = items(placement, "constraints")
        .iter()
        .map(|constraint| {
            let part = |name: &str| constraint[name].as_str();
            constraint_fault(part("fieldName").unwrap_or_default(), part("operator").unwrap_or_default(), part("value"))
        })
        .collect();
    if constraints.iter().any(Option::is_some) {
        // Two alternatives failed, and both are listed.
        fault(faults, "/scheduling/placement/constraints", "must be empty");
    }
    for (index, text) in constraints.iter().enumerate() {
        if let Some(text) = text {
            fault(faults, format!("/scheduling/placement/constraints({index})"), *text);
        }
    }
    // With a role that is not allowed, Marathon looks no further at roles.
    if !faults.iter().any(|(path, _)| path == "/role") {
        check_accepted_roles(items(placement, "acceptedResourceRoles"), role, around, faults);
    }
}

fn poison(pod: &Fields, around: &Surroundings) -> Option<String> {
    let is_lost = |endpoint: &Value| endpoint.get("hostPort").is_some() && endpoint.get("containerPort").is_none();
    let endpoints = || containers(pod).iter().flat_map(|container| items(container, "endpoints"));
    if list(pod, "networks").is_empty() && endpoints().any(is_lost) {
        return Some("no networks, but an endpoint with a host port: unexpected combination of network mode and endpoint ports".to_owned());
    }
    let constraints = pod.get("scheduling").map(|scheduling| items(&scheduling["placement"], "constraints")).unwrap_or_default();
    let divides_by_zero =
        |constraint: &Value| around.pose.divides_by_zero() && constraint["operator"] == "GROUP_BY" && constraint.get("value").is_none();
    constraints.iter().any(divides_by_zero).then(|| "constraint GROUP_BY without a value: division by zero".to_owned())
}
