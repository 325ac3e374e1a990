//! Definitions of apps, in the syntax of Marathon 1.5 and later, and in the older one that it still takes.

use std::collections::{BTreeSet, VecDeque};

use serde_json::{Map, Value, json};

use super::app_schema::{APP, Reader};
use super::{Errors, Stored, Surroundings, canonical_id};
use crate::server::http::Answer;

/// DC/OS's `default_network_name`.
const DEFAULT_NETWORK: &str = "dcos";
/// Where Marathon assigns service ports (`local_port_min` and `local_port_max`).
const SERVICE_PORTS: std::ops::RangeInclusive<u16> = 10000..=20000;

/// What a whole definition is stored as. The id of a PUT's path wins over the body's.
pub(crate) fn app(body: &[u8], path_id: Option<&str>, around: &Surroundings) -> Result<Stored, Answer> {
    let sent = parse(body)?;
    let mut whole = sent.clone();
    if let (Some(id), Some(fields)) = (path_id, whole.as_object_mut()) {
        fields.insert("id".to_owned(), id.into());
    }
    let (mut fields, mut dropped) = read(&whole, false)?;
    overridden_id(&sent, path_id, &mut dropped);
    migrate(&mut fields)?;
    Draft { fields, sent, dropped, before: None, around }.stored()
}

/// What a definition is stored as when some of its fields are replaced.
pub(crate) fn app_update(body: &[u8], path_id: &str, existing: &Value, around: &Surroundings) -> Result<Stored, Answer> {
    let sent = parse(body)?;
    let (mut given, mut dropped) = read(&sent, true)?;
    if !sent["version"].is_null() {
        if given.keys().all(|key| key == "id") {
            return Err(Answer::message(501, "the lab does not bring back earlier versions of an app"));
        }
        let mut errors = Errors::default();
        errors.add("/", "The 'version' field may only be combined with the 'id' field.");
        errors.refuse("Object is not valid")?;
    }
    overridden_id(&sent, Some(path_id), &mut dropped);
    migrate(&mut given)?;
    let mut fields = existing.as_object().cloned().unwrap_or_default();
    fields.extend(given);
    fields.insert("id".to_owned(), path_id.into());
    Draft { fields, sent, dropped, before: Some(existing), around }.stored()
}

fn parse(body: &[u8]) -> Result<Value, Answer> {
    let refuse = |message: &str, details: &str| Answer::json(400, &json!({ "message": message, "details": details }));
    if body.trim_ascii().is_empty() {
        let details = "No content to map due to end-of-input\n at [Source: (byte[])\"\"; line: 1, column: 0]";
        return Err(refuse("Please specify data in JSON format", details));
    }
    serde_json::from_slice(body).map_err(|error: serde_json::Error| {
        let eof = "Unexpected end-of-input within/between Object entries".to_owned();
        refuse("Invalid JSON", &if error.is_eof() { eof } else { error.to_string() })
    })
}

/// The known fields and the paths of all others.
fn read(sent: &Value, partial: bool) -> Result<(Map<String, Value>, Vec<String>), Answer> {
    let mut reader = Reader::default();
    let fields = if sent.is_object() {
        reader.fields(APP, sent, "", partial)
    } else {
        // The id is what Marathon looks for first.
        reader.errors.add("/id", format!("{sent} is not an object"));
        Map::new()
    };
    reader.errors.refuse("Invalid JSON")?;
    Ok((fields, reader.dropped))
}

fn overridden_id(sent: &Value, path_id: Option<&str>, dropped: &mut Vec<String>) {
    if let (Some(path_id), Some(id)) = (path_id, sent["id"].as_str())
        && canonical_id(id) != canonical_id(path_id)
    {
        dropped.push("/id".to_owned());
    }
}

/// From the syntax of 1.4 to that of 1.5.
fn migrate(fields: &mut Map<String, Value>) -> Result<(), Answer> {
    let docker = fields.get_mut("container").and_then(|container| container.get_mut("docker")?.as_object_mut());
    let (network, mappings) = docker.map(|docker| (docker.remove("network"), docker.remove("portMappings"))).unwrap_or_default();
    let (ip_address, ports, uris) = (fields.remove("ipAddress"), fields.remove("ports"), fields.remove("uris"));

    let mut errors = Errors::default();
    let has_networks = fields.contains_key("networks");
    if network.is_some() && has_networks {
        errors.add("/", "must not specify both container.docker.network and networks");
    }
    if ip_address.is_some() && has_networks {
        errors.add("/", "must not specify both networks and ipAddress");
    }
    if ports.is_some() && fields.contains_key("portDefinitions") {
        errors.add("/", "cannot specify both ports and port definitions");
    }
    // Marathon 1.4 shows an empty `uris` besides `fetch`.
    let uris = uris.filter(|uris| !is_empty(uris));
    if uris.is_some() && fields.get("fetch").is_some_and(|fetch| !is_empty(fetch)) {
        errors.add("/uris", "may not be set in conjunction with fetch");
    }
    errors.refuse("Object is not valid")?;

    let network = match network.as_ref().and_then(Value::as_str) {
        Some("BRIDGE") => Some(json!({ "mode": "container/bridge" })),
        Some("HOST") => Some(json!({ "mode": "host" })),
        Some(_) => Some(json!({ "mode": "container" })),
        None => ip_address.as_ref().map(|_| json!({ "mode": "container" })),
    };
    if let Some(mut network) = network {
        if let (true, Some(ip_address)) = (network["mode"] == "container", &ip_address) {
            network["name"] = ip_address["networkName"].clone();
            network["labels"] = ip_address["labels"].clone();
        }
        fields.insert("networks".to_owned(), json!([network]));
    }
    if let (Some(mappings), Some(container)) = (mappings, fields.get_mut("container"))
        && container["portMappings"].is_null()
    {
        container["portMappings"] = mappings;
    }
    if let Some(ports) = ports {
        let ports: Value = list(&ports).iter().map(|port| json!({ "port": port, "protocol": "tcp" })).collect();
        fields.insert("portDefinitions".to_owned(), ports);
    }
    if let Some(uris) = uris {
        let fetch: Value =
            list(&uris).iter().map(|uri| json!({ "uri": uri, "extract": is_archive(uri), "executable": false, "cache": false })).collect();
        fields.insert("fetch".to_owned(), fetch);
    }
    Ok(())
}

/// The old syntax extracts by file name.
fn is_archive(uri: &Value) -> bool {
    let archives = [".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".zip"];
    uri.as_str().is_some_and(|uri| archives.iter().any(|archive| uri.ends_with(archive)))
}

/// A definition on its way into the store: of known types, in the new syntax.
struct Draft<'a> {
    fields: Map<String, Value>,
    sent: Value,
    dropped: Vec<String>,
    before: Option<&'a Value>,
    around: &'a Surroundings<'a>,
}

impl Draft<'_> {
    fn stored(mut self) -> Result<Stored, Answer> {
        self.set_default("role", json!(self.around.role));
        self.set_default("maxLaunchDelaySeconds", json!(self.around.pose.max_launch_delay_seconds as i64));
        self.volume_defaults();
        self.networks();
        self.container();
        self.health_checks();
        for set in ["acceptedResourceRoles", "constraints"] {
            self.unique(set);
        }
        self.validate().refuse("Object is not valid")?;
        // Past validation Marathon still meets this one, and has no answer for it.
        if self.list("healthChecks").iter().any(|check| check["protocol"] == "COMMAND" && check["command"].is_null()) {
            return Err(Answer::message(500, "illegal protocol COMMAND for non-command health check"));
        }
        self.service_ports();
        let poison = self.poison();
        Ok(Stored { poison, definition: self.definition(), dropped: self.dropped })
    }

    fn get(&self, name: &str) -> &Value {
        self.fields.get(name).unwrap_or(&Value::Null)
    }

    fn list(&self, name: &str) -> &[Value] {
        list(self.get(name))
    }

    fn set(&mut self, name: &str, value: Value) {
        self.fields.insert(name.to_owned(), value);
    }

    fn set_default(&mut self, name: &str, value: Value) {
        self.fields.entry(name).or_insert(value);
    }

    /// Notes that something is not in force which was sent at one of these places.
    fn drop_sent(&mut self, places: &[&str]) {
        for place in places {
            let sent = self.sent.pointer(place);
            if sent.is_some_and(|sent| !sent.is_null() && !is_empty(sent)) {
                self.dropped.push((*place).to_owned());
            }
        }
    }

    /// An app with a persistent volume stays where it is, whatever becomes of the agent.
    fn volume_defaults(&mut self) {
        let resident =
            self.fields.contains_key("residency") || list(&self.get("container")["volumes"]).iter().any(|v| v["persistent"].is_object());
        if resident {
            self.set_default("residency", json!({ "relaunchEscalationTimeoutSeconds": 3600, "taskLostBehavior": "WAIT_FOREVER" }));
            self.set_default("unreachableStrategy", json!("disabled"));
            self.set_default("upgradeStrategy", json!({ "maximumOverCapacity": 0.0, "minimumHealthCapacity": 0.5 }));
        } else {
            self.set_default("unreachableStrategy", json!({ "inactiveAfterSeconds": 0, "expungeAfterSeconds": 0 }));
            self.set_default("upgradeStrategy", json!({ "maximumOverCapacity": 1.0, "minimumHealthCapacity": 1.0 }));
        }
    }

    fn networks(&mut self) {
        if self.list("networks").is_empty() {
            self.set("networks", json!([{ "mode": "host" }]));
        }
        let completed = |network: &Value| {
            let mut complete = Map::new();
            let is_container = network["mode"] == "container";
            match network.get("name").filter(|name| !name.is_null()) {
                Some(name) => drop(complete.insert("name".to_owned(), name.clone())),
                None if is_container => drop(complete.insert("name".to_owned(), json!(DEFAULT_NETWORK))),
                None => {}
            }
            complete.insert("mode".to_owned(), network["mode"].clone());
            if let Some(labels) = network.get("labels").filter(|labels| !labels.is_null() && !is_empty(labels)) {
                complete.insert("labels".to_owned(), labels.clone());
            }
            Value::Object(complete)
        };
        let networks = self.list("networks").iter().map(completed).collect();
        self.set("networks", networks);
        if self.is_on_host() { self.host_ports() } else { self.port_mappings() }
    }

    fn is_on_host(&self) -> bool {
        self.list("networks").iter().any(|network| network["mode"] == "host")
    }

    fn host_ports(&mut self) {
        if let Some(container) = self.fields.get_mut("container").and_then(Value::as_object_mut) {
            container.remove("portMappings");
        }
        self.drop_sent(&["/container/portMappings", "/container/docker/portMappings"]);
        self.set_default("portDefinitions", json!([{ "port": 0, "name": "default", "protocol": "tcp" }]));
        for definition in items(self.fields.get_mut("portDefinitions")) {
            without_empty(definition, "labels");
        }
    }

    fn port_mappings(&mut self) {
        self.fields.remove("portDefinitions");
        self.drop_sent(&["/portDefinitions", "/ports"]);
        if self.sent.pointer("/container/portMappings").is_some() {
            self.drop_sent(&["/container/docker/portMappings"]);
        }
        let is_bridge = self.list("networks").iter().any(|network| network["mode"] == "container/bridge");
        self.set_default("container", json!({ "type": "MESOS", "volumes": [] }));
        let Some(container) = self.fields.get_mut("container") else { return };
        if container["portMappings"].is_null() {
            container["portMappings"] =
                json!([{ "containerPort": 0, "labels": {}, "name": "default", "protocol": "tcp", "servicePort": 0 }]);
        }
        for mapping in items(container.get_mut("portMappings")) {
            if is_bridge && mapping["hostPort"].is_null() {
                mapping["hostPort"] = json!(0);
            }
            without_empty(mapping, "networkNames");
        }
    }

    /// The Mesos containerizer knows neither privileges nor parameters of Docker.
    fn container(&mut self) {
        let Some(container) = self.fields.get_mut("container") else { return };
        if container["type"] == "MESOS" && container["docker"].is_object() {
            for (name, nothing) in [("privileged", json!(false)), ("parameters", json!([]))] {
                if container["docker"][name] != nothing {
                    container["docker"][name] = nothing;
                    self.dropped.push(format!("/container/docker/{name}"));
                }
            }
        }
    }

    /// Each kind of check has its own fields; the first port is checked if none is named.
    fn health_checks(&mut self) {
        let mut dropped = Vec::new();
        for (index, check) in items(self.fields.get_mut("healthChecks")).enumerate() {
            let protocol = check["protocol"].as_str().unwrap_or_default().to_owned();
            let Some(fields) = check.as_object_mut() else { continue };
            let foreign: &[&str] = match protocol.as_str() {
                "COMMAND" => &["path", "port", "portIndex", "ignoreHttp1xx"],
                "TCP" | "MESOS_TCP" => &["command", "path", "ignoreHttp1xx"],
                "MESOS_HTTP" | "MESOS_HTTPS" => &["command", "ignoreHttp1xx"],
                _ => &["command"],
            };
            for name in foreign.iter().filter(|name| fields.remove(**name).is_some()) {
                dropped.push(format!("/healthChecks({index})/{name}"));
            }
            if protocol.starts_with("HTTP") {
                fields.entry("ignoreHttp1xx").or_insert(json!(false));
            }
            if protocol != "COMMAND" && !fields.contains_key("port") {
                fields.entry("portIndex").or_insert(json!(0));
            }
        }
        // What the stored definition lost earlier is no news.
        if self.sent["healthChecks"].is_array() {
            self.dropped.extend(dropped);
        }
    }

    fn unique(&mut self, set: &str) {
        let mut seen = Vec::new();
        for item in self.list(set) {
            if !seen.contains(item) {
                seen.push(item.clone());
            }
        }
        if self.fields.contains_key(set) {
            self.set(set, seen.into());
        }
    }

    fn validate(&self) -> Errors {
        let mut errors = Errors::default();
        let id = self.get("id").as_str().unwrap_or_default();
        if canonical_id(id) == "/" {
            errors.add("/id", "Path must contain at least one path element");
            errors.add("/", "must not be root");
        }
        self.validate_command(&mut errors);
        self.validate_networks(&mut errors);
        self.validate_roles(&mut errors);
        self.validate_secrets(&mut errors);
        for constraint in self.list("constraints") {
            if let Some(error) = constraint_error(constraint) {
                errors.add("/constraints", error);
            }
        }
        let ports = self.ports().len() as u64;
        let checks = self.list("healthChecks");
        for (index, check) in checks.iter().enumerate() {
            if check["portIndex"].as_u64().is_some_and(|port| port >= ports) {
                let error = "Health check port indices must address an element of the ports array or container port mappings.";
                errors.add(format!("/healthChecks({index})"), error);
            }
        }
        let by_mesos = |check: &&Value| check["protocol"].as_str().is_some_and(|p| p.starts_with("MESOS_") || p == "COMMAND");
        if checks.iter().filter(by_mesos).count() > 1 {
            errors.add("/", "AppDefinition can contain at most one Mesos health check");
        }
        let single = self.get("labels")["MARATHON_SINGLE_INSTANCE_APP"] == "true";
        if single && self.get("instances").as_u64().is_some_and(|instances| instances > 1) {
            errors.add("/", "Single instance app may only have one instance");
        }
        errors
    }

    fn validate_command(&self, errors: &mut Errors) {
        let container = self.get("container");
        if container["type"] == "DOCKER" && container["docker"].is_null() {
            errors.add("/container/docker", "not defined");
        }
        let has = (self.get("cmd").is_string(), !self.list("args").is_empty(), container["docker"].is_object());
        if matches!(has, (true, true, _) | (false, false, false)) {
            errors.add("/", "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'.");
        }
    }

    fn validate_networks(&self, errors: &mut Errors) {
        let networks = self.list("networks");
        if networks.len() > 1 && networks.iter().any(|network| network["mode"] != "container") {
            let error = "May specify a single host network, single bridge network, or else 1-to-n container networks";
            errors.add("/networks", error);
        }
        for network in networks {
            let (named, labelled) = (network["name"].is_string(), network["labels"].is_object());
            match network["mode"].as_str() {
                Some("host") if named || labelled => errors.add("/networks", "Host networks may not have names or labels"),
                Some("container/bridge") if named => errors.add("/networks", "Bridge networks may not have names"),
                _ => {}
            }
        }
        let (path, ports) = if self.is_on_host() { ("/portDefinitions", self.ports()) } else { ("/container/portMappings", self.ports()) };
        let names: Vec<&str> = ports.iter().filter_map(|port| port["name"].as_str()).collect();
        if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
            errors.add(path, "Port names must be unique.");
        }
    }

    fn validate_roles(&self, errors: &mut Errors) {
        let role = self.get("role").as_str().unwrap_or_default();
        let id = canonical_id(self.get("id").as_str().unwrap_or_default());
        let mut allowed = vec![self.around.role];
        if let (false, Some((group, _))) = (self.around.enforced_role, id.trim_start_matches('/').split_once('/')) {
            allowed.push(group);
        }
        // A service keeps the role that it has.
        let kept = self.before.is_some_and(|before| before["role"] == role);
        if !kept && !allowed.contains(&role) {
            errors.add("/role", format!("got {role}, expected one of: [{}]", allowed.join(", ")));
        }
        let Some(accepted) = self.get("acceptedResourceRoles").as_array() else { return };
        if accepted.is_empty() {
            errors.add("/acceptedResourceRoles", "must not be empty");
        }
        if accepted.iter().any(|accepted| accepted != "*" && accepted != role) {
            errors.add("/acceptedResourceRoles", format!("acceptedResourceRoles can only contain * and {role}"));
        }
    }

    fn validate_secrets(&self, errors: &mut Errors) {
        let enabled = self.around.pose.features.iter().any(|feature| feature == "secrets");
        let environment = || self.get("env").as_object().into_iter().flatten().filter(|(_, value)| value.is_object());
        if !enabled && environment().next().is_some() {
            errors.add("/env", "use of secret-references in the environment requires the secrets feature to be enabled");
        }
        let in_environment = environment().map(|(name, value)| (format!("/env/{name}/secret"), &value["secret"]));
        let volumes = list(&self.get("container")["volumes"]).iter().enumerate();
        let in_volumes = volumes.map(|(index, volume)| (format!("/container/volumes({index})/secret"), &volume["secret"]));
        for (path, secret) in in_environment.chain(in_volumes) {
            if secret.as_str().is_some_and(|secret| self.get("secrets")[secret].is_null()) {
                errors.add(path, "references an undefined secret");
            }
        }
        if !enabled && self.get("secrets").as_object().is_some_and(|secrets| !secrets.is_empty()) {
            errors.add("/secrets", "Feature secrets is not enabled. Enable with --enable_features secrets)");
        }
    }

    /// Port definitions or mappings, whichever the network has.
    fn ports(&self) -> &[Value] {
        if self.is_on_host() { self.list("portDefinitions") } else { list(&self.get("container")["portMappings"]) }
    }

    /// Gives a service port to each port without one: one that the app had, or else the lowest that no app has.
    fn service_ports(&mut self) {
        let name = if self.is_on_host() { "port" } else { "servicePort" };
        let own: Vec<u16> = self.ports().iter().filter_map(|port| number(&port[name])).filter(|port| *port > 0).collect();
        let had = self.before.into_iter().flat_map(crate::server::marathon::launch::port_list);
        let had = had.filter_map(|port| number(&port["servicePort"]).or_else(|| number(&port["port"])));
        let mut again: VecDeque<u16> = had.filter(|port| SERVICE_PORTS.contains(port) && !own.contains(port)).collect();
        let mut taken = self.around.service_ports.clone();
        taken.extend(&own);
        taken.extend(&again);
        let place = if self.is_on_host() {
            self.fields.get_mut("portDefinitions")
        } else {
            self.fields.get_mut("container").and_then(|container| container.get_mut("portMappings"))
        };
        for port in items(place).filter(|port| port[name] == 0) {
            let free = again.pop_front().or_else(|| SERVICE_PORTS.clone().find(|port| !taken.contains(port)));
            taken.extend(free);
            port[name] = json!(free.unwrap_or(0));
        }
    }

    /// Seen on 1.11 only: a division by zero, and nothing is launched any more.
    fn poison(&self) -> Option<String> {
        let divides = |constraint: &&Value| constraint[1] == "GROUP_BY" && constraint[2].is_null();
        let constraint = self.list("constraints").iter().find(divides)?;
        let is_affected = self.around.pose.marathon.starts_with("1.11.");
        is_affected.then(|| format!("constraint {constraint}: GROUP_BY without a value is a division by zero in Marathon 1.11"))
    }

    /// In the order of the fields in which Marathon shows them, and without what it does not show.
    fn definition(&self) -> Value {
        let version = self.around.version;
        let mut definition = Map::new();
        for field in APP {
            if field.name == "killSelection" {
                definition.insert("version".to_owned(), json!(version));
                definition.insert("versionInfo".to_owned(), json!({ "lastScalingAt": version, "lastConfigChangeAt": version }));
            }
            let always = ["labels", "portDefinitions"].contains(&field.name);
            if let Some(value) = self.fields.get(field.name).filter(|value| always || !is_empty(value)) {
                definition.insert(field.name.to_owned(), value.clone());
            }
        }
        definition.insert("id".to_owned(), json!(canonical_id(self.get("id").as_str().unwrap_or_default())));
        if let Some(Value::Array(mappings)) = definition.get_mut("container").and_then(|container| container.get_mut("portMappings")) {
            mappings.iter_mut().for_each(|mapping| *mapping = ordered(mapping));
        }
        definition.into()
    }
}

fn constraint_error(constraint: &Value) -> Option<&'static str> {
    let parts: Vec<&str> = list(constraint).iter().filter_map(Value::as_str).collect();
    let (field, operator, value) = match parts.as_slice() {
        [field, operator] => (*field, *operator, None),
        [field, operator, value] => (*field, *operator, Some(*value)),
        _ => return Some("Each constraint must have either 2 or 3 fields"),
    };
    let is_whole = value.map(|value| value.parse::<i32>().is_ok());
    match operator {
        "UNIQUE" | "CLUSTER" | "GROUP_BY" | "LIKE" | "MAX_PER" | "UNLIKE" | "IS" if field.is_empty() => {
            Some("illegal constraint specification")
        }
        "UNIQUE" => value.map(|_| "UNIQUE does not accept a value"),
        "GROUP_BY" => (is_whole == Some(false)).then_some("GROUP BY must define an integer value or else no value at all"),
        "MAX_PER" => (is_whole != Some(true)).then_some("MAX_PER requires an integer value"),
        "LIKE" | "UNLIKE" => match value {
            None | Some("") => Some("LIKE and UNLIKE require a non-empty, regular expression value"),
            Some(pattern) => regex_lite::Regex::new(pattern).is_err().then_some("is not a valid regular expression"),
        },
        "CLUSTER" | "IS" => None,
        _ => Some("operator must be one of the following UNIQUE, CLUSTER, GROUP_BY, LIKE, MAX_PER, UNLIKE or IS"),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn items(value: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    value.and_then(Value::as_array_mut).into_iter().flatten()
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

fn without_empty(object: &mut Value, name: &str) {
    if is_empty(&object[name]) {
        remove(object, name);
    }
}

fn remove(object: &mut Value, name: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(name);
    }
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok())
}

/// By name, as Marathon happens to write port mappings.
fn ordered(object: &Value) -> Value {
    let mut fields: Vec<(String, Value)> = object.as_object().cloned().unwrap_or_default().into_iter().collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    Value::Object(fields.into_iter().collect())
}
