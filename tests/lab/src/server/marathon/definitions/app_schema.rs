//! Fields of an app with their types, limits and defaults, and how Marathon reads them.
//!
//! The tables are in the order in which Marathon writes the fields.

use serde_json::{Map, Value, json};

use super::Errors;

/// Type of a field.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// A text that is not empty.
    Filled,
    Id,
    Flag,
    Whole(i64, i64),
    Number(f64, f64),
    One(&'static [&'static str]),
    List(&'static Kind),
    Map(&'static Kind),
    Fields(&'static [Field]),
    /// Value of an environment variable: a text, or a reference to a secret.
    Variable,
    Volume,
    Unreachable,
    /// Kept as it is: the lab does not run what it is about.
    Raw,
}

/// What is there if a field is not given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Absent {
    Refused,
    Nothing,
    /// This JSON.
    Default(&'static str),
}

/// A field of an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: &'static str,
    kind: Kind,
    absent: Absent,
}

const fn required(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, absent: Absent::Refused }
}

const fn optional(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, absent: Absent::Nothing }
}

const fn default(name: &'static str, kind: Kind, default: &'static str) -> Field {
    Field { name, kind, absent: Absent::Default(default) }
}

const COUNT: Kind = Kind::Whole(0, i32::MAX as i64);
const PORT: Kind = Kind::Whole(0, 65535);
const AMOUNT: Kind = Kind::Number(0.0, f64::MAX);
const TEXTS: Kind = Kind::List(&Kind::Text);
const LABELS: Kind = Kind::Map(&Kind::Text);
const PROTOCOL: Kind = Kind::One(&["tcp", "udp", "udp,tcp"]);
const ACCESS: Kind = Kind::One(&["RO", "RW"]);

const PORT_MAPPING: &[Field] = &[
    default("containerPort", PORT, "0"),
    optional("hostPort", PORT),
    default("labels", LABELS, "{}"),
    optional("name", Kind::Text),
    optional("networkNames", TEXTS),
    default("protocol", PROTOCOL, r#""tcp""#),
    default("servicePort", PORT, "0"),
];

const DOCKER: &[Field] = &[
    optional("credential", Kind::Raw),
    default("forcePullImage", Kind::Flag, "false"),
    required("image", Kind::Filled),
    // Old syntax, as are the port mappings here.
    optional("network", Kind::One(&["BRIDGE", "HOST", "USER"])),
    default("parameters", Kind::List(&Kind::Fields(&[required("key", Kind::Filled), required("value", Kind::Text)])), "[]"),
    optional("portMappings", Kind::List(&Kind::Fields(PORT_MAPPING))),
    default("privileged", Kind::Flag, "false"),
    optional("pullConfig", Kind::Raw),
];

const CONTAINER: &[Field] = &[
    default("type", Kind::One(&["DOCKER", "MESOS"]), r#""MESOS""#),
    optional("docker", Kind::Fields(DOCKER)),
    optional("linuxInfo", Kind::Raw),
    default("volumes", Kind::List(&Kind::Volume), "[]"),
    optional("portMappings", Kind::List(&Kind::Fields(PORT_MAPPING))),
];

const HOST_VOLUME: &[Field] = &[required("containerPath", Kind::Filled), required("hostPath", Kind::Filled), required("mode", ACCESS)];
const SECRET_VOLUME: &[Field] = &[required("containerPath", Kind::Filled), required("secret", Kind::Text)];
const EXTERNAL_VOLUME: &[Field] = &[required("containerPath", Kind::Filled), required("external", Kind::Raw), required("mode", ACCESS)];
const PERSISTENT_VOLUME: &[Field] = &[
    required("containerPath", Kind::Filled),
    required(
        "persistent",
        Kind::Fields(&[
            default("type", Kind::One(&["root", "path", "mount"]), r#""root""#),
            optional("profileName", Kind::Text),
            required("size", COUNT),
            optional("maxSize", COUNT),
            default("constraints", Kind::List(&TEXTS), "[]"),
        ]),
    ),
    required("mode", ACCESS),
];

const HEALTH_CHECK: &[Field] = &[
    optional("command", Kind::Fields(&[required("value", Kind::Text)])),
    default("gracePeriodSeconds", COUNT, "300"),
    optional("ignoreHttp1xx", Kind::Flag),
    default("intervalSeconds", COUNT, "60"),
    default("maxConsecutiveFailures", COUNT, "3"),
    optional("path", Kind::Text),
    optional("port", PORT),
    optional("portIndex", COUNT),
    default("protocol", Kind::One(&["COMMAND", "HTTP", "HTTPS", "MESOS_HTTP", "MESOS_HTTPS", "MESOS_TCP", "TCP"]), r#""HTTP""#),
    default("ipProtocol", Kind::One(&["IPv4", "IPv6"]), r#""IPv4""#),
    default("timeoutSeconds", COUNT, "20"),
    default("delaySeconds", COUNT, "15"),
];

/// All that an app may have, but for `version`, which only an update looks at.
pub(super) const APP: &[Field] = &[
    required("id", Kind::Id),
    optional("acceptedResourceRoles", TEXTS),
    optional("args", TEXTS),
    default("backoffFactor", Kind::Number(1.0, f64::MAX), "1.15"),
    default("backoffSeconds", COUNT, "1"),
    optional("check", Kind::Raw),
    optional("cmd", Kind::Text),
    optional("constraints", Kind::List(&TEXTS)),
    optional("container", Kind::Fields(CONTAINER)),
    default("cpus", AMOUNT, "1.0"),
    optional("dependencies", Kind::List(&Kind::Id)),
    default("disk", AMOUNT, "0.0"),
    optional("env", Kind::Map(&Kind::Variable)),
    default("executor", Kind::Text, r#""""#),
    optional("executorResources", Kind::Raw),
    optional(
        "fetch",
        Kind::List(&Kind::Fields(&[
            required("uri", Kind::Text),
            default("extract", Kind::Flag, "true"),
            default("executable", Kind::Flag, "false"),
            default("cache", Kind::Flag, "false"),
            optional("destPath", Kind::Text),
        ])),
    ),
    optional("healthChecks", Kind::List(&Kind::Fields(HEALTH_CHECK))),
    default("instances", COUNT, "1"),
    default("labels", LABELS, "{}"),
    optional("maxLaunchDelaySeconds", COUNT),
    default("mem", AMOUNT, "128.0"),
    default("gpus", COUNT, "0"),
    // Old syntax.
    optional("ipAddress", Kind::Fields(&[optional("networkName", Kind::Text), optional("labels", LABELS)])),
    optional(
        "networks",
        Kind::List(&Kind::Fields(&[
            optional("name", Kind::Text),
            default("mode", Kind::One(&["container", "container/bridge", "host"]), r#""container""#),
            optional("labels", LABELS),
        ])),
    ),
    // Old syntax.
    optional("ports", Kind::List(&PORT)),
    optional(
        "portDefinitions",
        Kind::List(&Kind::Fields(&[
            default("port", PORT, "0"),
            optional("labels", LABELS),
            optional("name", Kind::Text),
            default("protocol", PROTOCOL, r#""tcp""#),
        ])),
    ),
    optional("readinessChecks", Kind::Raw),
    optional(
        "residency",
        Kind::Fields(&[
            default("relaunchEscalationTimeoutSeconds", COUNT, "3600"),
            default("taskLostBehavior", Kind::One(&["RELAUNCH_AFTER_TIMEOUT", "WAIT_FOREVER"]), r#""WAIT_FOREVER""#),
        ]),
    ),
    optional("resourceLimits", Kind::Raw),
    default("requirePorts", Kind::Flag, "false"),
    optional("secrets", Kind::Map(&Kind::Fields(&[required("source", Kind::Filled)]))),
    optional("taskKillGracePeriodSeconds", COUNT),
    optional(
        "upgradeStrategy",
        Kind::Fields(&[required("maximumOverCapacity", Kind::Number(0.0, 1.0)), required("minimumHealthCapacity", Kind::Number(0.0, 1.0))]),
    ),
    // Old syntax.
    optional("uris", TEXTS),
    optional("user", Kind::Text),
    default("killSelection", Kind::One(&["OLDEST_FIRST", "YOUNGEST_FIRST"]), r#""YOUNGEST_FIRST""#),
    optional("unreachableStrategy", Kind::Unreachable),
    optional("tty", Kind::Flag),
    optional("role", Kind::Text),
];

/// Reads JSON by the tables above.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// What is wrong with it.
    pub(super) errors: Errors,
    /// Paths of unknown fields.
    pub(super) dropped: Vec<String>,
}

impl Reader {
    /// The known fields of an object. An update has neither defaults nor required fields at the top.
    pub(super) fn fields(&mut self, table: &[Field], value: &Value, path: &str, partial: bool) -> Map<String, Value> {
        let mut known = Map::new();
        let Some(object) = value.as_object() else {
            self.wrong(path, "error.expected.jsobject");
            return known;
        };
        for field in table {
            let at = format!("{path}/{}", field.name);
            match (object.get(field.name).filter(|value| !value.is_null()), field.absent) {
                (Some(value), _) => {
                    let value = self.read(field.kind, value, &at);
                    known.insert(field.name.to_owned(), value);
                }
                (None, Absent::Default(json)) if !partial => {
                    // The defaults above are JSON; the tests read them all.
                    known.insert(field.name.to_owned(), serde_json::from_str(json).unwrap_or_default());
                }
                (None, Absent::Refused) if !partial => {
                    self.wrong(&at, format!("'{}' is undefined on object: {value}", field.name));
                }
                (None, _) => {}
            }
        }
        let unknown = object.keys().filter(|key| !table.iter().any(|field| field.name == **key));
        self.dropped.extend(unknown.map(|key| format!("{path}/{key}")));
        known
    }

    fn read(&mut self, kind: Kind, value: &Value, path: &str) -> Value {
        match kind {
            Kind::Text | Kind::Filled | Kind::Id | Kind::One(_) => self.text(kind, value, path),
            Kind::Flag => {
                if !value.is_boolean() {
                    self.wrong(path, "error.expected.jsboolean");
                }
                value.clone()
            }
            Kind::Whole(min, max) => self.whole(value, path, min, max),
            Kind::Number(min, max) => {
                let number = self.number(value, path);
                self.within(path, number < min, number > max);
                json!(number)
            }
            Kind::List(item) => {
                let Some(items) = value.as_array() else {
                    self.wrong(path, "error.expected.jsarray");
                    return json!([]);
                };
                items.iter().enumerate().map(|(index, value)| self.read(*item, value, &format!("{path}({index})"))).collect()
            }
            Kind::Map(item) => {
                let Some(entries) = value.as_object() else {
                    self.wrong(path, "error.expected.jsobject");
                    return json!({});
                };
                let entries = entries.iter().map(|(key, value)| (key.clone(), self.read(*item, value, &format!("{path}/{key}"))));
                Value::Object(entries.collect())
            }
            Kind::Fields(table) => self.fields(table, value, path, false).into(),
            Kind::Variable if value.is_string() => value.clone(),
            Kind::Variable => self.fields(&[required("secret", Kind::Text)], value, path, false).into(),
            Kind::Volume => {
                let tables = [("secret", SECRET_VOLUME), ("persistent", PERSISTENT_VOLUME), ("external", EXTERNAL_VOLUME)];
                let table = tables.iter().find(|(key, _)| value.get(key).is_some()).map_or(HOST_VOLUME, |(_, table)| table);
                self.fields(table, value, path, false).into()
            }
            Kind::Unreachable if *value == "disabled" => value.clone(),
            Kind::Unreachable => {
                let table = [default("inactiveAfterSeconds", COUNT, "0"), default("expungeAfterSeconds", COUNT, "0")];
                self.fields(&table, value, path, false).into()
            }
            Kind::Raw => value.clone(),
        }
    }

    fn text(&mut self, kind: Kind, value: &Value, path: &str) -> Value {
        let Some(text) = value.as_str() else {
            self.wrong(path, "error.expected.jsstring");
            return json!("");
        };
        match kind {
            Kind::Filled | Kind::Id if text.is_empty() => self.wrong(path, "error.minLength"),
            Kind::Id if !is_id(text) => self.wrong(path, "error.pattern"),
            Kind::One(known) if !known.contains(&text) => self.wrong(path, "error.unknown.enum.literal"),
            _ => {}
        }
        value.clone()
    }

    /// Whole numbers are kept as such, whether they came as 1 or as 1.0.
    fn whole(&mut self, value: &Value, path: &str, min: i64, max: i64) -> Value {
        let number = self.number(value, path);
        if number.fract() != 0.0 {
            self.wrong(path, "error.expected.int");
        }
        let whole = number as i64;
        self.within(path, whole < min, whole > max);
        json!(whole)
    }

    fn number(&mut self, value: &Value, path: &str) -> f64 {
        if !value.is_number() {
            self.wrong(path, "error.expected.jsnumber");
        }
        value.as_f64().unwrap_or_default()
    }

    fn within(&mut self, path: &str, too_small: bool, too_large: bool) {
        // A value of the wrong type has been complained about.
        if self.errors.0.iter().any(|(at, _)| at == path) {
            return;
        }
        if too_small {
            self.wrong(path, "error.min");
        } else if too_large {
            self.wrong(path, "error.max");
        }
    }

    fn wrong(&mut self, path: &str, error: impl Into<String>) {
        self.errors.add(path, error);
    }
}

/// Segments like host names, or `.` and `..`.
fn is_id(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let segments = text.strip_prefix('/').unwrap_or(text);
    segments.is_empty() || segments.split('/').all(|segment| segment == "." || segment == ".." || segment.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_json_of_its_fields_type() {
        let mut reader = Reader::default();
        for field in [APP, CONTAINER, DOCKER, PORT_MAPPING, HEALTH_CHECK].into_iter().flatten() {
            if let Absent::Default(json) = field.absent {
                let value = serde_json::from_str(json).unwrap();
                assert_eq!(reader.read(field.kind, &value, field.name), value);
            }
        }
        assert!(reader.errors.0.is_empty(), "{:?}", reader.errors);
    }
}
