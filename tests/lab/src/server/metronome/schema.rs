//! As much of JSON Schema as Metronome's definitions need, with the words of the validator that Metronome uses.

use serde_json::{Map, Value, json};

use crate::server::Pose;
use crate::server::http::Answer;

/// Id of a job: names joined by dots.
pub(super) const JOB_ID: &str = r"^([a-z0-9]+(\-+[a-z0-9]+)*)(\.([a-z0-9]+(\-+[a-z0-9]+)*))*$";
/// Id of a schedule that comes by itself; one within a job has the pattern of a job.
const SCHEDULE_ID: &str = r"^([a-z0-9][a-z0-9\-]*[a-z0-9]+)$";

/// What is wrong at one place.
#[derive(Debug)]
pub(super) struct Fault {
    path: String,
    errors: Vec<String>,
}

impl Fault {
    pub(super) fn new(path: impl Into<String>, error: impl Into<String>) -> Self {
        Self { path: path.into(), errors: vec![error.into()] }
    }
}

/// The 422 that names all faults.
pub(super) fn refusal(faults: &[Fault]) -> Answer {
    let details: Vec<Value> = faults.iter().map(|fault| json!({ "path": fault.path, "errors": fault.errors })).collect();
    Answer::json(422, &json!({ "message": "Object is not valid", "details": details }))
}

/// What a value must look like.
pub(super) enum Schema {
    Text(Text),
    Number {
        minimum: Option<f64>,
    },
    Whole {
        minimum: Option<f64>,
    },
    Bool,
    List(Box<Schema>),
    /// Any keys, all with such values.
    Map(Box<Schema>),
    Object(Object),
    /// A text or such an object.
    TextOr(Object),
}

/// See [`Schema`].
#[derive(Default)]
pub(super) struct Text {
    not_empty: bool,
    pattern: Option<&'static str>,
    one_of: &'static [&'static str],
}

/// See [`Schema`].
pub(super) struct Object {
    fields: Vec<(&'static str, Schema)>,
    required: &'static [&'static str],
    /// Other keys are refused.
    closed: bool,
}

impl Schema {
    /// All that is wrong with the value.
    pub(super) fn faults(&self, value: &Value) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.check(value, "", &mut faults);
        faults
    }

    fn check(&self, value: &Value, path: &str, out: &mut Vec<Fault>) {
        let wrong_type = |expected| Fault::new(path, format!("Wrong type. Expected {expected}, was {}.", type_name(value)));
        match (self, value) {
            (Self::Text(rules), Value::String(text)) => {
                let errors = rules.errors(text);
                if !errors.is_empty() {
                    out.push(Fault { path: path.to_owned(), errors });
                }
            }
            (Self::Text(_), _) => out.push(wrong_type("string")),
            (Self::Whole { .. }, Value::Number(number)) if number.as_f64().is_some_and(|n| n.fract() != 0.0) => {
                out.push(wrong_type("integer"));
            }
            (Self::Number { minimum } | Self::Whole { minimum }, Value::Number(number)) => {
                if let Some(least) = minimum
                    && number.as_f64().is_some_and(|n| n < *least)
                {
                    out.push(Fault::new(path, format!("{number} is smaller than required minimum value of {least}.")));
                }
            }
            (Self::Number { .. }, _) => out.push(wrong_type("number")),
            (Self::Whole { .. }, _) => out.push(wrong_type("integer")),
            (Self::Bool, Value::Bool(_)) => {}
            (Self::Bool, _) => out.push(wrong_type("boolean")),
            (Self::List(schema), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    schema.check(item, &format!("{path}/{index}"), out);
                }
            }
            (Self::List(_), _) => out.push(wrong_type("array")),
            (Self::Map(schema), Value::Object(fields)) => {
                for (key, value) in fields {
                    schema.check(value, &format!("{path}/{key}"), out);
                }
            }
            (Self::Object(object), Value::Object(fields)) => object.check(fields, path, out),
            (Self::Map(_) | Self::Object(_), _) => out.push(wrong_type("object")),
            (Self::TextOr(_), Value::String(_)) => {}
            (Self::TextOr(object), value) => {
                let mut inner = Vec::new();
                match value {
                    Value::Object(fields) => object.check(fields, path, &mut inner),
                    _ => inner.push(wrong_type("object")),
                }
                if !inner.is_empty() {
                    out.push(Fault::new(path, "Instance does not match any schema."));
                }
            }
        }
    }
}

impl Text {
    fn errors(&self, text: &str) -> Vec<String> {
        let mut errors = Vec::new();
        if self.not_empty && text.is_empty() {
            errors.push(format!("'{text}' does not match minimum length of 1."));
        }
        if let Some(pattern) = self.pattern
            && !matches(pattern, text)
        {
            errors.push(format!("'{text}' does not match pattern '{pattern}'."));
        }
        if !self.one_of.is_empty() && !self.one_of.contains(&text) {
            errors.push("Instance is invalid enum value.".to_owned());
        }
        errors
    }
}

impl Object {
    fn check(&self, fields: &Map<String, Value>, path: &str, out: &mut Vec<Fault>) {
        for (name, schema) in &self.fields {
            match fields.get(*name) {
                Some(value) => schema.check(value, &format!("{path}/{name}"), out),
                None if self.required.contains(name) => out.push(Fault::new(path, format!("Property {name} missing."))),
                None => {}
            }
        }
        let known = |key: &&String| self.fields.iter().any(|(name, _)| name == key);
        let unknown: Vec<String> = fields.keys().filter(|key| !known(key)).map(|key| format!("'{key}'")).collect();
        if self.closed && !unknown.is_empty() {
            let names = unknown.join(", ");
            out.push(Fault::new(path, format!("Additional properties are not allowed, but found properties {names}.")));
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whether the text is of one of the patterns above.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    regex_lite::Regex::new(pattern).is_ok_and(|regex| regex.is_match(text))
}

fn text() -> Schema {
    Schema::Text(Text::default())
}

fn filled() -> Schema {
    Schema::Text(Text { not_empty: true, ..Text::default() })
}

fn id(pattern: &'static str) -> Schema {
    Schema::Text(Text { not_empty: true, pattern: Some(pattern), ..Text::default() })
}

fn one_of(words: &'static [&'static str]) -> Schema {
    Schema::Text(Text { one_of: words, ..Text::default() })
}

fn list(schema: Schema) -> Schema {
    Schema::List(Box::new(schema))
}

fn map(schema: Schema) -> Schema {
    Schema::Map(Box::new(schema))
}

fn closed(required: &'static [&'static str], fields: Vec<(&'static str, Schema)>) -> Schema {
    Schema::Object(Object { fields, required, closed: true })
}

fn open(required: &'static [&'static str], fields: Vec<(&'static str, Schema)>) -> Object {
    Object { fields, required, closed: false }
}

/// Keys of a job and the Metronome whose schema has them, from the schemas of the releases: what a schema does not have is refused.
const SINCE: [(&str, [u32; 3]); 12] = [
    ("docker.forcePullImage", [0, 3, 3]),
    ("run.taskKillGracePeriodSeconds", [0, 3, 3]),
    ("docker.privileged", [0, 4, 3]),
    ("docker.parameters", [0, 4, 3]),
    ("run.secrets", [0, 4, 2]),
    ("run.ucr", [0, 6, 10]),
    ("run.gpus", [0, 6, 10]),
    ("volume.secret", [0, 6, 10]),
    ("run.networks", [0, 6, 44]),
    // Later than 0.6.44: when exactly was not looked up, so only the newest has them.
    ("job.dependencies", [0, 6, 70]),
    ("job.schedules", [0, 6, 70]),
    ("constraint.IS", [0, 6, 21]),
];

fn has(pose: &Pose, key: &str) -> bool {
    let since = SINCE.iter().find(|(name, _)| *name == key).map(|(_, since)| *since);
    // The options of docker were brought to the line of 0.3 as well.
    let in_old_line =
        matches!(key, "docker.privileged" | "docker.parameters") && pose.metronome_from([0, 3, 6]) && !pose.metronome_from([0, 4, 0]);
    in_old_line || since.is_none_or(|since| pose.metronome_from(since))
}

/// The fields of that object which this Metronome knows.
fn of(pose: &Pose, object: &str, fields: Vec<(&'static str, Schema)>) -> Vec<(&'static str, Schema)> {
    fields.into_iter().filter(|(name, _)| has(pose, &format!("{object}.{name}"))).collect()
}

/// Whether the operator IS is known, and EQ is another word for it.
pub(super) fn has_is(pose: &Pose) -> bool {
    has(pose, "constraint.IS")
}

/// A job, as `POST /v1/jobs` takes it.
pub(super) fn job(pose: &Pose) -> Schema {
    closed(
        &["id", "run"],
        of(
            pose,
            "job",
            vec![
                ("id", id(JOB_ID)),
                ("description", text()),
                ("dependencies", list(Schema::Object(open(&[], vec![("id", id(JOB_ID))])))),
                ("labels", map(text())),
                ("schedules", list(schedule_with(JOB_ID))),
                ("run", run(pose)),
            ],
        ),
    )
}

/// A schedule, as `POST /v1/jobs/<id>/schedules` takes it.
pub(super) fn schedule() -> Schema {
    schedule_with(SCHEDULE_ID)
}

fn schedule_with(pattern: &'static str) -> Schema {
    Schema::Object(open(
        &["id", "cron"],
        vec![
            ("id", id(pattern)),
            ("cron", text()),
            ("timezone", text()),
            ("startingDeadlineSeconds", Schema::Whole { minimum: Some(1.0) }),
            ("concurrencyPolicy", one_of(&["ALLOW", "FORBID"])),
            ("enabled", Schema::Bool),
        ],
    ))
}

fn run(pose: &Pose) -> Schema {
    let artifact =
        closed(&["uri"], vec![("uri", text()), ("executable", Schema::Bool), ("extract", Schema::Bool), ("cache", Schema::Bool)]);
    let network =
        closed(&["mode"], vec![("name", text()), ("mode", one_of(&["host", "container/bridge", "container"])), ("labels", map(text()))]);
    let image = closed(&["id"], vec![("id", text()), ("kind", one_of(&["docker", "appc"])), ("forcePull", Schema::Bool)]);
    let docker = of(
        pose,
        "docker",
        vec![
            ("image", text()),
            ("forcePullImage", Schema::Bool),
            ("privileged", Schema::Bool),
            ("parameters", list(closed(&["key", "value"], vec![("key", text()), ("value", text())]))),
        ],
    );
    let operators: &[&str] = if has_is(pose) { &["IS", "EQ", "LIKE", "UNLIKE"] } else { &["EQ", "LIKE", "UNLIKE"] };
    let constraint = closed(&["attribute", "operator"], vec![("attribute", text()), ("operator", one_of(operators)), ("value", text())]);
    let restart =
        closed(&["policy"], vec![("policy", one_of(&["NEVER", "ON_FAILURE"])), ("activeDeadlineSeconds", Schema::Whole { minimum: None })]);
    let volume = vec![("containerPath", filled()), ("hostPath", filled()), ("mode", one_of(&["RO", "RW"])), ("secret", filled())];
    // Before there were secrets, a volume was one of the host.
    let needs: &[&str] = if has(pose, "volume.secret") { &["containerPath"] } else { &["containerPath", "hostPath", "mode"] };
    let volume = closed(needs, of(pose, "volume", volume));
    let env = if has(pose, "run.secrets") { Schema::TextOr(open(&[], vec![("secret", text())])) } else { text() };
    closed(
        &["cpus", "mem", "disk"],
        of(
            pose,
            "run",
            vec![
                ("args", list(text())),
                ("artifacts", list(artifact)),
                ("cmd", filled()),
                ("cpus", Schema::Number { minimum: Some(0.01) }),
                ("gpus", Schema::Whole { minimum: Some(0.0) }),
                ("disk", Schema::Number { minimum: Some(0.0) }),
                ("networks", list(network)),
                ("ucr", closed(&["image"], vec![("image", image), ("privileged", Schema::Bool)])),
                ("docker", closed(&["image"], docker)),
                ("env", map(env)),
                ("maxLaunchDelay", Schema::Whole { minimum: Some(1.0) }),
                ("mem", Schema::Number { minimum: Some(32.0) }),
                ("placement", closed(&[], vec![("constraints", list(constraint))])),
                ("user", text()),
                ("taskKillGracePeriodSeconds", Schema::Number { minimum: None }),
                ("restart", restart),
                ("volumes", list(volume)),
                ("secrets", map(Schema::Object(open(&[], vec![("source", text())])))),
            ],
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Security;

    fn refuses(dcos: &str, change: impl FnOnce(&mut Value)) -> bool {
        let mut job_spec = json!({ "id": "j", "run": { "cmd": "true", "cpus": 0.1, "mem": 32, "disk": 0 } });
        assert!(job(&Pose::of(dcos, Security::Open).unwrap()).faults(&job_spec).is_empty());
        change(&mut job_spec);
        !job(&Pose::of(dcos, Security::Open).unwrap()).faults(&job_spec).is_empty()
    }

    /// Versions of DC/OS whose Metronome refuses a run with that.
    fn refused_by(key: &str, value: &Value) -> Vec<&'static str> {
        Pose::versions().into_iter().filter(|dcos| refuses(dcos, |job| job["run"][key] = value.clone())).collect()
    }

    #[test]
    fn a_key_is_refused_by_every_version_before_the_one_that_it_came_with() {
        let image = |more: &Value| {
            let mut docker = json!({ "image": "a" });
            docker.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            docker
        };
        assert!(refused_by("docker", &image(&json!({}))).is_empty());
        assert_eq!(refused_by("docker", &image(&json!({ "forcePullImage": true }))), ["1.9.0", "1.10.4"]);
        assert_eq!(refused_by("docker", &image(&json!({ "privileged": true }))), ["1.9.0", "1.10.4", "1.11.0"]);
        assert_eq!(refused_by("secrets", &json!({ "s": { "source": "a" } })), ["1.9.0", "1.9.10", "1.10.4", "1.11.0"]);
        assert_eq!(refused_by("gpus", &json!(1)), ["1.9.0", "1.9.10", "1.10.4", "1.11.0", "1.12.0"]);
        let constraint = |operator: &str| json!({ "constraints": [{ "attribute": "a", "operator": operator, "value": "b" }] });
        assert_eq!(refused_by("placement", &constraint("IS")), ["1.9.0", "1.9.10", "1.10.4", "1.11.0", "1.12.0"]);
        assert!(refused_by("placement", &constraint("EQ")).is_empty());
        let networks = refused_by("networks", &json!([{ "mode": "host" }]));
        assert_eq!(networks, Pose::versions()[..7]);
    }

    #[test]
    fn the_refusal_names_the_keys() {
        let faults = job(&Pose::of("1.9.0", Security::Open).unwrap())
            .faults(&json!({ "id": "j", "run": { "cmd": "true", "cpus": 0.1, "mem": 32, "disk": 0, "networks": [] } }));
        assert_eq!(faults[0].path, "/run");
        assert_eq!(faults[0].errors, ["Additional properties are not allowed, but found properties 'networks'."]);
    }
}
