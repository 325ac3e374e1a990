//! Apps.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::read::{
    AMOUNT, COUNT, FULL_TEXT, Field, Kind, PORT, Reading, TEXT, complete, filled, ignored, is_empty, optional, or, required,
};
use super::{
    ARTIFACTS, ENVIRONMENT, Faults, Fields, KILL_SELECTION, LIMITS, LINUX_INFO, NETWORK, PERSISTENT, PULL_CONFIG, SECRETS, SECRETS_OFF,
    Stored, Surroundings, UNREACHABLE, absolute, are_unique, check_accepted_roles, check_environment, check_networks, constraint_fault,
    declares, fault, id_fault, invalid_json, list, mode, name_networks, not_valid, older, parse, role, without_repeats,
};
use crate::server::http::Answer;

/// Marathon assigns service ports from this range.
const SERVICE_PORTS: std::ops::Range<u16> = 10_000..20_000;

const OPERATORS: [&str; 7] = ["UNIQUE", "CLUSTER", "GROUP_BY", "LIKE", "MAX_PER", "UNLIKE", "IS"];
const PROTOCOL: Kind = Kind::Choice(&["tcp", "udp", "udp,tcp"]);
const LABELS: Kind = Kind::Table(&TEXT);
const SHARE: Kind = Kind::Real(0.0, 1.0);

const PORT_MAPPINGS: Kind = Kind::List(
    &Kind::Record(&[
        or("containerPort", PORT, || json!(0)),
        optional("hostPort", PORT),
        or("labels", LABELS, || json!({})),
        optional("name", TEXT),
        or("protocol", PROTOCOL, || json!("tcp")),
        or("servicePort", PORT, || json!(0)),
        filled("networkNames", Kind::List(&TEXT, 0)),
    ]),
    0,
);
const DOCKER: Kind = Kind::Record(&[
    or("forcePullImage", Kind::Flag, || json!(false)),
    required("image", FULL_TEXT),
    or("parameters", Kind::List(&Kind::Record(&[required("key", FULL_TEXT), required("value", TEXT)]), 0), || json!([])),
    or("privileged", Kind::Flag, || json!(false)),
    optional("pullConfig", PULL_CONFIG),
    optional("network", Kind::Choice(&["BRIDGE", "HOST", "USER"])),
    optional("portMappings", PORT_MAPPINGS),
]);
const CONTAINER: Kind = Kind::Record(&[
    or("type", Kind::Choice(&["MESOS", "DOCKER"]), || json!("MESOS")),
    optional("docker", DOCKER),
    or("volumes", Kind::List(&Kind::Own(volume), 0), || json!([])),
    optional("portMappings", PORT_MAPPINGS),
    optional("linuxInfo", LINUX_INFO),
]);
const HEALTH_CHECK: Kind = Kind::Record(&[
    optional("command", Kind::Record(&[required("value", TEXT)])),
    or("gracePeriodSeconds", COUNT, || json!(300)),
    or("intervalSeconds", COUNT, || json!(60)),
    or("maxConsecutiveFailures", COUNT, || json!(3)),
    optional("path", TEXT),
    optional("port", PORT),
    optional("portIndex", COUNT),
    or("protocol", Kind::Choice(&["HTTP", "HTTPS", "TCP", "COMMAND", "MESOS_TCP", "MESOS_HTTP", "MESOS_HTTPS"]), || json!("HTTP")),
    or("ipProtocol", Kind::Choice(&["IPv4", "IPv6"]), || json!("IPv4")),
    or("timeoutSeconds", COUNT, || json!(20)),
    or("delaySeconds", COUNT, || json!(15)),
    optional("ignoreHttp1xx", Kind::Flag),
]);
const READINESS_CHECK: Kind = Kind::Record(&[
    or("name", TEXT, || json!("readinessCheck")),
    or("protocol", Kind::Choice(&["HTTP", "HTTPS"]), || json!("HTTP")),
    or("path", TEXT, || json!("/")),
    or("portName", TEXT, || json!("http-api")),
    or("intervalSeconds", COUNT, || json!(30)),
    or("timeoutSeconds", COUNT, || json!(10)),
    or("httpStatusCodesForReady", Kind::List(&Kind::Whole(100, 999), 0), || json!([200])),
    or("preserveLastResponse", Kind::Flag, || json!(false)),
]);
const PORT_DEFINITION: Kind = Kind::Record(&[
    or("port", PORT, || json!(0)),
    filled("labels", LABELS),
    optional("name", TEXT),
    or("protocol", PROTOCOL, || json!("tcp")),
]);
const RESIDENCY: &[Field] = &[
    or("relaunchEscalationTimeoutSeconds", COUNT, || json!(3600)),
    or("taskLostBehavior", Kind::Choice(&["WAIT_FOREVER", "RELAUNCH_AFTER_TIMEOUT"]), || json!("WAIT_FOREVER")),
];

const APP: &[Field] = &[
    required("id", Kind::Text(id_fault)),
    optional("acceptedResourceRoles", Kind::List(&FULL_TEXT, 0)),
    filled("args", Kind::List(&TEXT, 0)),
    or("backoffFactor", Kind::Real(1.0, f64::MAX), || json!(1.15)),
    or("backoffSeconds", COUNT, || json!(1)),
    optional("cmd", FULL_TEXT),
    filled("constraints", Kind::List(&Kind::List(&TEXT, 0), 0)),
    optional("container", CONTAINER),
    or("cpus", AMOUNT, || json!(1.0)),
    filled("dependencies", Kind::List(&Kind::Text(id_fault), 0)),
    or("disk", AMOUNT, || json!(0.0)),
    filled("env", ENVIRONMENT),
    or("executor", TEXT, || json!("")),
    filled("fetch", ARTIFACTS),
    filled("healthChecks", Kind::List(&HEALTH_CHECK, 0)),
    or("instances", COUNT, || json!(1)),
    optional("ipAddress", Kind::Record(&[optional("networkName", TEXT)])),
    or("labels", LABELS, || json!({})),
    optional("maxLaunchDelaySeconds", COUNT),
    or("mem", AMOUNT, || json!(128.0)),
    or("gpus", COUNT, || json!(0)),
    or("networks", Kind::List(&NETWORK, 0), || json!([{ "mode": "host" }])),
    optional("ports", Kind::List(&PORT, 0)),
    optional("portDefinitions", Kind::List(&PORT_DEFINITION, 0)),
    filled("readinessChecks", Kind::List(&READINESS_CHECK, 0)),
    optional("residency", Kind::Record(RESIDENCY)),
    or("requirePorts", Kind::Flag, || json!(false)),
    filled("secrets", SECRETS),
    optional("taskKillGracePeriodSeconds", COUNT),
    or(
        "upgradeStrategy",
        Kind::Record(&[required("maximumOverCapacity", SHARE), required("minimumHealthCapacity", SHARE)]),
        || json!({ "maximumOverCapacity": 1.0, "minimumHealthCapacity": 1.0 }),
    ),
    optional("uris", Kind::List(&TEXT, 0)),
    optional("user", TEXT),
    optional("version", TEXT),
    ignored("versionInfo"),
    or("killSelection", KILL_SELECTION, || json!("YOUNGEST_FIRST")),
    or("unreachableStrategy", UNREACHABLE, || json!({ "inactiveAfterSeconds": 0, "expungeAfterSeconds": 0 })),
    optional("tty", Kind::Flag),
    optional("resourceLimits", LIMITS),
    optional("role", TEXT),
];

/// The four kinds of volumes are told apart by the key that only they have.
fn volume(reading: &mut Reading, value: &Value, path: &str) -> Option<Value> {
    const MODE: Field = required("mode", Kind::Choice(&["RO", "RW"]));
    const SECRET: Kind = Kind::Record(&[required("containerPath", FULL_TEXT), required("secret", FULL_TEXT)]);
    const KEPT: Kind = Kind::Record(&[required("containerPath", FULL_TEXT), required("persistent", PERSISTENT), MODE]);
    const EXTERNAL: Kind = Kind::Record(&[
        required("containerPath", FULL_TEXT),
        required(
            "external",
            Kind::Record(&[
                optional("size", COUNT),
                optional("name", TEXT),
                optional("provider", TEXT),
                or("options", LABELS, || json!({})),
                optional("shared", Kind::Flag),
            ]),
        ),
        MODE,
    ]);
    const HOST: Kind = Kind::Record(&[required("containerPath", FULL_TEXT), required("hostPath", FULL_TEXT), MODE]);
    let kind = match value {
        _ if value.get("secret").is_some() => SECRET,
        _ if value.get("persistent").is_some() => KEPT,
        _ if value.get("external").is_some() => EXTERNAL,
        _ => HOST,
    };
    reading.value(&kind, value, path)
}

/// POST, or PUT of a whole definition. `path_id` is the id in the URL of a PUT and wins over the body's.
pub(crate) fn app(body: &[u8], path_id: Option<&str>, around: &Surroundings) -> Result<Stored, Answer> {
    older::app(body, true, around.pose, |body| {
        let (given, mut dropped) = given(body, path_id)?;
        let given = migrate(given)?;
        let mut app = given.clone();
        app.shift_remove("version");
        finish(app, &given, None, around, &mut dropped)
    })
}

/// PUT or PATCH of an existing app: what is given replaces that of `existing`.
pub(crate) fn app_update(body: &[u8], path_id: &str, existing: &Value, around: &Surroundings) -> Result<Stored, Answer> {
    older::app(body, false, around.pose, |body| update(body, path_id, existing, around))
}

fn update(body: &[u8], path_id: &str, existing: &Value, around: &Surroundings) -> Result<Stored, Answer> {
    let (given, mut dropped) = given(body, Some(path_id))?;
    if given.contains_key("version") {
        if given.keys().any(|key| key != "id" && key != "version") {
            let text = "The 'version' field may only be combined with the 'id' field.";
            not_valid(vec![("/".to_owned(), text.to_owned())])?;
        }
        return Err(Answer::message(501, "the lab does not go back to former versions of an app"));
    }
    let given = migrate(given)?;
    let known = |name: &str| APP.iter().any(|field| field.name == name) && !matches!(name, "version" | "versionInfo");
    let kept = existing.as_object().into_iter().flatten().filter(|(name, _)| known(name));
    let mut app: Fields = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    for (name, value) in &given {
        app.insert(name.clone(), value.clone());
    }
    finish(app, &given, Some(existing), around, &mut dropped)
}

/// What the body says, and what of it does not count.
fn given(body: &[u8], path_id: Option<&str>) -> Result<(Fields, Vec<String>), Answer> {
    let mut value = parse(body)?;
    let mut reading = Reading::default();
    if let (Some(id), Some(fields)) = (path_id, value.as_object_mut()) {
        let other =
            fields.insert("id".to_owned(), json!(id)).filter(|other| absolute(other.as_str().unwrap_or_default(), "") != absolute(id, ""));
        reading.dropped.extend(other.map(|_| "/id".to_owned()));
    }
    let given = reading.given(APP, &value, "");
    invalid_json(reading.faults)?;
    Ok((given, reading.dropped))
}

/// Turns the syntax of Marathon 1.4 into today's.
fn migrate(mut given: Fields) -> Result<Fields, Answer> {
    let says = |name: &str| given.get(name).is_some_and(|value| !is_empty(value));
    let container = given.get("container").cloned().unwrap_or_default();
    let mut faults = Faults::new();
    if says("networks") && container["docker"].get("network").is_some() {
        fault(&mut faults, "/", "must not specify both container.docker.network and networks");
    }
    if says("networks") && given.contains_key("ipAddress") {
        fault(&mut faults, "/", "must not specify both networks and ipAddress");
    }
    if container["type"] == "MESOS" && container["docker"].get("network").is_some() {
        fault(&mut faults, "/container/docker/network", "must be empty");
    }
    if given.contains_key("ipAddress") && (says("ports") || says("portDefinitions")) {
        fault(&mut faults, "/", "cannot specify both an IP address and port");
    }
    if says("uris") && says("fetch") {
        fault(&mut faults, "/uris", "may not be set in conjunction with fetch");
    }
    if given.contains_key("ports") && given.contains_key("portDefinitions") {
        let defined = list(&given, "portDefinitions").iter().map(|definition| &definition["port"]);
        if !defined.eq(list(&given, "ports")) {
            fault(&mut faults, "/", "cannot specify both ports and port definitions");
        }
    }
    if !are_unique(list(&given, "ports").iter().filter(|port| **port != 0)) {
        fault(&mut faults, "/", "ports must be unique");
    }
    not_valid(faults)?;

    if let Some(Value::Array(uris)) = given.shift_remove("uris").filter(|uris| !is_empty(uris)) {
        let artifact = |uri: &Value| json!({ "uri": uri, "extract": is_archive(uri), "executable": false, "cache": false });
        given.insert("fetch".to_owned(), uris.iter().map(artifact).collect());
    }
    if let Some(Value::Array(ports)) = given.shift_remove("ports").filter(|_| !given.contains_key("portDefinitions")) {
        let definitions = ports.iter().map(|port| json!({ "port": port, "protocol": "tcp" }));
        given.insert("portDefinitions".to_owned(), definitions.collect());
    }
    let address = given.shift_remove("ipAddress");
    if address.is_some() && !given.contains_key("container") {
        given.insert("container".to_owned(), json!({ "type": "MESOS", "volumes": [] }));
    }
    let mut docker_network = None;
    if let Some(container) = given.get_mut("container").and_then(Value::as_object_mut)
        && let Some(docker) = container.get_mut("docker").and_then(Value::as_object_mut)
    {
        docker_network = docker.shift_remove("network");
        if let Some(mappings) = docker.shift_remove("portMappings") {
            let has_none = container.get("portMappings").is_none_or(is_empty);
            if !has_none && !is_empty(&mappings) {
                return Err(Answer::message(422, "cannot specify both portMappings and docker.portMappings"));
            }
            if has_none {
                container.insert("portMappings".to_owned(), mappings);
            }
        }
    }
    let network = match docker_network.as_ref().and_then(Value::as_str) {
        Some("BRIDGE") => Some(json!({ "mode": "container/bridge" })),
        Some("HOST") => Some(json!({ "mode": "host" })),
        None if address.is_none() => None,
        _ => match address.as_ref().and_then(|address| address.get("networkName")) {
            Some(name) => Some(json!({ "name": name, "mode": "container" })),
            None => Some(json!({ "mode": "container" })),
        },
    };
    if let Some(network) = network {
        given.insert("networks".to_owned(), json!([network]));
    }
    Ok(given)
}

/// Whether the fetcher unpacks an old-style URI.
fn is_archive(uri: &Value) -> bool {
    let ends = [".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".zip"];
    uri.as_str().is_some_and(|uri| ends.iter().any(|end| uri.ends_with(end)))
}

/// Rules and defaults. `sent` is what the client said, as opposed to what is kept of `existing`.
fn finish(
    mut app: Fields,
    sent: &Fields,
    existing: Option<&Value>,
    around: &Surroundings,
    dropped: &mut Vec<String>,
) -> Result<Stored, Answer> {
    let id = absolute(app["id"].as_str().unwrap_or_default(), "");
    app.insert("id".to_owned(), json!(id));
    if list(&app, "networks").is_empty() {
        app.shift_remove("networks");
    }
    for dependency in app.get_mut("dependencies").and_then(Value::as_array_mut).into_iter().flatten() {
        *dependency = json!(absolute(dependency.as_str().unwrap_or_default(), &id));
    }
    arrange_ports(&mut app, sent, dropped);
    address_health_checks(&mut app, sent);
    let keeps = volumes(&app).any(|volume| volume.get("persistent").is_some());
    let is_external = volumes(&app).any(|volume| volume.get("external").is_some());
    if keeps && !app.contains_key("residency") {
        app.insert("residency".to_owned(), Value::Object(complete(RESIDENCY, Fields::new())));
    }

    if let Some(Value::Array(roles)) = app.get_mut("acceptedResourceRoles") {
        older::strip_accepted_roles(roles, around.role, "/acceptedResourceRoles", around, dropped);
        without_repeats(roles);
    }
    let mut faults = Faults::new();
    // A role that was accepted once stays good.
    let kept = app.get("role").and_then(Value::as_str).filter(|_| !sent.contains_key("role")).map(str::to_owned);
    let role = kept.unwrap_or_else(|| role(&app, &id, around, &mut faults));
    check(&app, &id, &role, keeps, around, &mut faults);
    not_valid(faults)?;
    not_valid(existing.map(|existing| changes_of_resident(existing, &app, around)).unwrap_or_default())?;
    if list(&app, "healthChecks").iter().any(|check| check["protocol"] == "COMMAND" && check.get("command").is_none()) {
        return Err(Answer::message(500, "illegal protocol COMMAND for non-command health check"));
    }

    app.insert("role".to_owned(), json!(role));
    name_networks(&mut app);
    app.entry("unreachableStrategy").or_insert_with(|| if keeps { json!("disabled") } else { around.unreachable_default() });
    if keeps || is_external {
        app.entry("upgradeStrategy").or_insert_with(|| json!({ "maximumOverCapacity": 0.0, "minimumHealthCapacity": 0.5 }));
    }
    #[expect(clippy::cast_possible_truncation, reason = "Marathon's flag is a whole number of seconds")]
    app.entry("maxLaunchDelaySeconds").or_insert_with(|| json!(around.pose.max_launch_delay_seconds as i64));
    assign_service_ports(&mut app, existing, around)?;
    let poison = list(&app, "constraints")
        .iter()
        .any(|constraint| around.pose.divides_by_zero() && constraint[1] == "GROUP_BY" && constraint.get(2).is_none())
        .then(|| "constraint GROUP_BY without a value: division by zero".to_owned());
    set_version(&mut app, existing, around);
    Ok(Stored { definition: Value::Object(complete(APP, app)), dropped: std::mem::take(dropped), poison })
}

/// Each kind of network has its own list of ports; the other one is dropped.
fn arrange_ports(app: &mut Fields, sent: &Fields, dropped: &mut Vec<String>) {
    let is_host = list(app, "networks").iter().all(|network| mode(network) == "host");
    if is_host {
        if let Some(container) = app.get_mut("container").and_then(Value::as_object_mut) {
            let mappings = container.shift_remove("portMappings");
            if mappings.is_some_and(|mappings| !is_empty(&mappings)) && sent.contains_key("container") {
                dropped.push("/container/portMappings".to_owned());
            }
        }
        app.entry("portDefinitions").or_insert_with(|| json!([{ "port": 0, "name": "default", "protocol": "tcp" }]));
        return;
    }
    let is_bridge = list(app, "networks").iter().any(|network| mode(network) == "container/bridge");
    app.shift_remove("portDefinitions");
    if !list(sent, "portDefinitions").is_empty() {
        dropped.push("/portDefinitions".to_owned());
    }
    if app.get("requirePorts") == Some(&json!(true)) && sent.contains_key("requirePorts") {
        dropped.push("/requirePorts".to_owned());
    }
    app.shift_remove("requirePorts");
    let container = app.entry("container").or_insert_with(|| json!({ "type": "MESOS", "volumes": [] }));
    let Some(container) = container.as_object_mut() else { return };
    let mapping = || json!({ "containerPort": 0, "labels": {}, "protocol": "tcp", "servicePort": 0 });
    let mappings = container.entry("portMappings").or_insert_with(|| {
        let mut default = mapping();
        default["name"] = json!("default");
        json!([default])
    });
    let Some(mappings) = mappings.as_array_mut() else { return };
    // Port definitions count, but say nothing else.
    mappings.resize_with(mappings.len().max(list(sent, "portDefinitions").len()), mapping);
    for mapping in mappings.iter_mut().filter(|mapping| is_bridge && mapping.get("hostPort").is_none()) {
        mapping["hostPort"] = json!(0);
    }
}

/// Where the app has ports of its own, a health check that names none means the first.
fn address_health_checks(app: &mut Fields, sent: &Fields) {
    let mappings = app.get("container").and_then(|container| container.get("portMappings"));
    if list(sent, "portDefinitions").is_empty() && mappings.is_none_or(is_empty) {
        return;
    }
    for check in app.get_mut("healthChecks").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        if check["protocol"] != "COMMAND" && !check.contains_key("port") && !check.contains_key("portIndex") {
            check.insert("portIndex".to_owned(), json!(0));
        }
    }
}

fn volumes(app: &Fields) -> impl Iterator<Item = &Value> {
    app.get("container").and_then(|container| container["volumes"].as_array()).into_iter().flatten()
}

/// The app's list of ports, and the field in which its elements keep the service port.
fn ports(app: &mut Fields) -> (Option<&mut Vec<Value>>, &'static str) {
    if app.contains_key("portDefinitions") {
        return (app.get_mut("portDefinitions").and_then(Value::as_array_mut), "port");
    }
    (app.get_mut("container").and_then(|container| container.get_mut("portMappings")?.as_array_mut()), "servicePort")
}

fn check(app: &Fields, id: &str, role: &str, keeps: bool, around: &Surroundings, faults: &mut Faults) {
    let container = app.get("container");
    let secrets = app.get("secrets");
    check_environment(app.get("env"), "/env", secrets, around, faults);
    if secrets.is_some_and(|secrets| !is_empty(secrets)) && !around.secrets_enabled() {
        fault(faults, "/secrets", SECRETS_OFF);
    }
    let secret_volumes = || volumes(app).enumerate().filter(|(_, volume)| volume.get("secret").is_some());
    if !around.secrets_enabled() && secret_volumes().next().is_some() {
        // As with pods the path is the expression of Marathon's validator, and two alternatives failed.
        fault(faults, "/container/secretVolumes(container)", "must be empty");
        fault(faults, "/container/secretVolumes(container)", SECRETS_OFF);
    }
    for (index, volume) in secret_volumes() {
        if !declares(secrets, &volume["secret"]) {
            fault(faults, format!("/container/volumes({index})"), "volume.secret must refer to an existing secret");
        }
    }
    // With a role that is not allowed, Marathon looks no further at roles.
    if !faults.iter().any(|(path, _)| path == "/role") {
        check_accepted_roles(list(app, "acceptedResourceRoles"), role, around, faults);
    }
    if app.get("acceptedResourceRoles").is_some_and(is_empty) {
        fault(faults, "/acceptedResourceRoles", "must not be empty");
    }
    for constraint in list(app, "constraints") {
        let part = |index: usize| constraint.get(index).and_then(Value::as_str);
        let text = match (part(0), part(1), constraint.get(3)) {
            (Some(_), Some(operator), None) if !OPERATORS.contains(&operator) => {
                Some("operator must be one of the following UNIQUE, CLUSTER, GROUP_BY, LIKE, MAX_PER, UNLIKE or IS")
            }
            (Some(field), Some(operator), None) => constraint_fault(field, operator, part(2)),
            _ => Some("Each constraint must have either 2 or 3 fields"),
        };
        if let Some(text) = text {
            fault(faults, "/constraints", text);
        }
    }
    check_networks(list(app, "networks"), faults);
    if let Some(container) = container {
        if container["type"] == "DOCKER" && container.get("docker").is_none() {
            fault(faults, "/container/docker", "not defined");
        }
        if !are_unique(container["portMappings"].as_array().into_iter().flatten().map(|mapping| &mapping["name"])) {
            fault(faults, "/container/portMappings", "Port names must be unique.");
        }
        let pull_config = &container["docker"]["pullConfig"];
        if pull_config.is_object() && container["type"] == "DOCKER" {
            fault(faults, "/container/docker/pullConfig", "pullConfig is not supported with Docker containerizer");
        } else if pull_config.is_object() && !declares(secrets, &pull_config["secret"]) {
            fault(faults, "/container/docker/pullConfig", "pullConfig.secret must refer to an existing secret");
        }
    }
    let definitions = list(app, "portDefinitions");
    if !are_unique(definitions.iter().map(|definition| &definition["name"])) {
        fault(faults, "/portDefinitions", "Port names must be unique.");
    }
    if !are_unique(definitions.iter().map(|definition| &definition["port"]).filter(|port| **port != 0)) {
        fault(faults, "/portDefinitions", "Ports must be unique.");
    }
    check_health_checks(app, faults);
    if id == "/" {
        fault(faults, "/id", "Path must contain at least one path element");
        fault(faults, "/", "must not be root");
    }
    let (cmd, args) = (app.contains_key("cmd"), !list(app, "args").is_empty());
    let has_image = container.is_some_and(|container| container.get("docker").is_some());
    // Without its `docker` that container is already refused.
    let is_odd = container.is_some_and(|container| container["type"] == "DOCKER") && !has_image;
    if (cmd && args) || !(cmd || args || has_image || is_odd) {
        fault(faults, "/", "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'.");
    }
    let is_single = app.get("labels").is_some_and(|labels| labels["MARATHON_SINGLE_INSTANCE_APP"] == "true");
    if is_single && app.get("instances").and_then(Value::as_i64).unwrap_or(1) > 1 {
        fault(faults, "/", "Single instance app may only have one instance");
    }
    let is_external = volumes(app).any(|volume| volume.get("external").is_some());
    check_volumes(app, faults);
    if is_external && app.get("instances").and_then(Value::as_i64).unwrap_or(1) > 1 {
        fault(faults, "/", format!("Number of instances is limited to 1 when declaring DVDI volumes in app [{id}]"));
    }
    // Given capacities only: Marathon's defaults pass.
    for (field, is_bound) in [("minimumHealthCapacity", is_single), ("maximumOverCapacity", is_single || keeps || is_external)] {
        let capacity = app.get("upgradeStrategy").and_then(|strategy| strategy[field].as_f64()).filter(|capacity| *capacity > 0.0);
        if let Some(capacity) = capacity.filter(|_| is_bound) {
            fault(faults, format!("/upgradeStrategy/{field}"), format!("got {capacity:?}, expected 0.0"));
        }
    }
    if app.contains_key("residency") != keeps {
        fault(faults, "/", "App must contain persistent volumes and define residency");
    }
    if keeps && app.get("unreachableStrategy").is_some_and(|strategy| strategy != "disabled") {
        fault(faults, "/", "unreachableStrategy must be disabled for resident tasks");
    }
}

/// Persistent and external volumes. As in Marathon's sources; not recorded.
fn check_volumes(app: &Fields, faults: &mut Faults) {
    let is_docker = app.get("container").is_some_and(|container| container["type"] == "DOCKER");
    for (index, volume) in volumes(app).enumerate() {
        let at = |field: &str| format!("/container/volumes({index}){field}");
        let path = volume["containerPath"].as_str().unwrap_or_default();
        if volume["persistent"].is_object() {
            if path.contains('/') {
                fault(faults, at("/containerPath"), "value must not contain \"/\"");
            }
            if volume["mode"] != "RW" {
                fault(faults, at("/mode"), format!("got {}, expected RW", volume["mode"].as_str().unwrap_or_default()));
            }
            if volume["persistent"]["size"] == 0 {
                fault(faults, at("/persistent/size"), "got 0, expected more than 0");
            }
        }
        let external = &volume["external"];
        if !external.is_object() {
            continue;
        }
        if external["name"].as_str().unwrap_or_default().is_empty() {
            fault(faults, at("/external/name"), "must not be empty");
        }
        let options = external["options"].as_object().cloned().unwrap_or_default();
        if !options.contains_key("dvdi/driver") {
            fault(faults, at("/external/options(\"dvdi/driver\")"), "not defined");
        }
        if is_docker && options.keys().any(|key| key != "dvdi/driver") {
            fault(faults, at("/external/options"), "must only contain dvdi/driver");
        }
        if is_docker && external.get("size").is_some() {
            fault(faults, at("/external/size"), "must be undefined for Docker containers");
        }
    }
}

/// What may not change about an app whose instances have reserved something. As in Marathon's sources; not recorded.
fn changes_of_resident(existing: &Value, app: &Fields, around: &Surroundings) -> Faults {
    let of = |fields: &Fields| {
        let volumes: Vec<Value> = volumes(fields).filter(|volume| volume.get("persistent").is_some()).cloned().collect();
        let mappings = fields.get("container").and_then(|container| container["portMappings"].as_array());
        let is_fixed = fields.get("requirePorts") == Some(&json!(true));
        let defined = list(fields, "portDefinitions").iter().filter(|_| is_fixed).map(|definition| definition["port"].as_u64());
        let ports = mappings.into_iter().flatten().map(|mapping| mapping["hostPort"].as_u64()).chain(defined);
        (volumes, ports.flatten().filter(|port| *port > 0).collect::<BTreeSet<u64>>())
    };
    let former = existing.as_object().cloned().unwrap_or_default();
    let (before, after) = (of(&former), of(app));
    let mut faults = Faults::new();
    if before.0.is_empty() && after.0.is_empty() {
        return faults;
    }
    if before.0 != after.0 {
        fault(&mut faults, "/app(0)", "Persistent volumes can not be changed!");
    }
    // Left out is the default, which an existing definition has in full.
    let amount = |fields: &Fields, name: &str| fields.get(name).and_then(Value::as_f64);
    let mut changed = Vec::new();
    for name in ["cpus", "mem", "disk", "gpus"] {
        if amount(app, name).is_some_and(|now| amount(&former, name) != Some(now)) {
            changed.push((format!("/app(0)/{name}"), "resource requirements"));
        }
    }
    if before.1 != after.1 {
        changed.push(("/app(0)".to_owned(), "host ports"));
    }
    if around.pose.has_apps_of_1_4() && !changed.is_empty() {
        fault(&mut faults, "/app(0)", "Resident Tasks may not change resource requirements!");
        return faults;
    }
    for (path, what) in changed {
        let remedy = "If you need to make this change, please create a new service.";
        fault(&mut faults, path, format!("Services with persistent volumes configured may not change {what}. {remedy}"));
    }
    faults
}

fn check_health_checks(app: &Fields, faults: &mut Faults) {
    let mappings = app.get("container").and_then(|container| container["portMappings"].as_array());
    let ports = mappings.map_or(list(app, "portDefinitions"), Vec::as_slice).len();
    let checks = list(app, "healthChecks");
    for (index, check) in checks.iter().enumerate() {
        let is_marathons = matches!(check["protocol"].as_str(), Some("HTTP" | "HTTPS" | "TCP")) && check.get("command").is_none();
        let is_addressed = match check["portIndex"].as_u64() {
            Some(port_index) => usize::try_from(port_index).is_ok_and(|port_index| port_index < ports),
            None => check.get("port").is_some() || ports == 1,
        };
        if is_marathons && !is_addressed {
            let text = "Health check port indices must address an element of the ports array or container port mappings.";
            fault(faults, format!("/healthChecks({index})"), text);
        }
    }
    let of_mesos = |check: &&Value| matches!(check["protocol"].as_str(), Some("COMMAND" | "MESOS_TCP" | "MESOS_HTTP" | "MESOS_HTTPS"));
    if checks.iter().filter(of_mesos).filter(|check| check.get("command").is_none()).count() > 1 {
        fault(faults, "/", "AppDefinition can contain at most one Mesos health check");
    }
}

/// Service ports that are 0 get a number: one that this app had before, or the lowest that no app has.
fn assign_service_ports(app: &mut Fields, existing: Option<&Value>, around: &Surroundings) -> Result<(), Answer> {
    let numbers = |app: &mut Fields| -> Vec<u16> {
        let (ports, field) = ports(app);
        ports.into_iter().flatten().filter_map(|port| u16::try_from(port[field].as_u64()?).ok()).filter(|port| *port != 0).collect()
    };
    let former = existing.and_then(Value::as_object).cloned().map(|mut former| numbers(&mut former)).unwrap_or_default();
    let mut taken: BTreeSet<u16> = numbers(app).into_iter().collect();
    let (ports, field) = ports(app);
    for port in ports.into_iter().flatten().filter(|port| port[field] == 0) {
        let own = former.iter().copied().filter(|port| SERVICE_PORTS.contains(port));
        let free = SERVICE_PORTS.filter(|port| !around.service_ports.contains(port));
        let Some(number) = own.chain(free).find(|number| !taken.contains(number)) else {
            let (first, end) = (SERVICE_PORTS.start, SERVICE_PORTS.end);
            return Err(Answer::message(500, format!("All ports in the range [{first}-{end}) are already in use")));
        };
        taken.insert(number);
        port[field] = json!(number);
    }
    Ok(())
}

/// A definition that does not change keeps its version; one that only scales keeps the time of its last change.
fn set_version(app: &mut Fields, existing: Option<&Value>, around: &Surroundings) {
    let bare = |definition: &Value| {
        let mut fields = definition.as_object().cloned().unwrap_or_default();
        fields.retain(|name, _| APP.iter().any(|field| field.name == name) && !matches!(name.as_str(), "version" | "versionInfo"));
        fields
    };
    let mut new = complete(APP, app.clone());
    let mut old = existing.map(bare).unwrap_or_default();
    let is_same = new == old;
    let is_scaled = {
        new.shift_remove("instances");
        old.shift_remove("instances");
        new == old
    };
    let now = json!(around.version);
    let former = existing.map_or(&Value::Null, |existing| &existing["versionInfo"]);
    let (version, scaled, changed) = match existing {
        Some(existing) if is_same => (&existing["version"], &former["lastScalingAt"], &former["lastConfigChangeAt"]),
        Some(_) if is_scaled => (&now, &now, &former["lastConfigChangeAt"]),
        _ => (&now, &now, &now),
    };
    app.insert("versionInfo".to_owned(), json!({ "lastScalingAt": scaled, "lastConfigChangeAt": changed }));
    app.insert("version".to_owned(), version.clone());
}
