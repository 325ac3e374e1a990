//! Holds what the lab's servers answered against recordings of the real ones.
//!
//! Compared are status, media type and the shape of the JSON: which keys there are and the types of their values. What
//! the real servers leave out at times is learnt from all recordings of the same call, status and media type.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::journal::{Content, Exchange};
use crate::server::Pose;

/// Calls that no recording covers, as [`Verdict::Unrecorded`] names them, and why they may be answered all the same.
pub const UNRECORDED: &[(&str, &str)] = &[
    ("metronome GET /info 200", "fields from the source of Metronome (InfoController); recorded were jobs and runs only"),
    ("admin_router GET / 200", "the CLI looks whether anything answers"),
    ("admin_router HEAD / 200", "the CLI looks whether anything answers"),
    ("admin_router GET /capabilities 200", "the CLI looks whether packages can be managed"),
    ("admin_router GET /metadata 200", "fields from Admin Router's source: PUBLIC_IPV4, CLUSTER_ID"),
    ("admin_router GET /dcos-metadata/dcos-version.json 200", "fields from the file of a DC/OS release"),
    ("admin_router GET /pkgpanda/active.buildinfo.full.json 200", "only its status counts: no login is needed"),
    ("admin_router HEAD /pkgpanda/active.buildinfo.full.json 200", "only its status counts: no login is needed"),
    ("admin_router GET /ca/dcos-ca.crt 404", "open DC/OS has no certificate authority"),
    ("admin_router GET /dcos-metadata/ui-config.json 200", "the CLI reads one field of it"),
    ("mesos-agent GET /files/read 200", "as the CLI's source describes it"),
    ("mesos-agent GET /files/read 404", "a task that is being started has no files yet"),
    ("mesos-agent GET /files/browse 200", "as the CLI's source describes it"),
    ("marathon PUT /v2/pods/{id} 503", "a fault that a test ordered: Marathon's own time-out"),
    ("cosmos GET /package/resource 200", "bytes of another server, not JSON"),
];

/// How differences end that show a state which no recording caught, and where what the lab answers is from.
const UNSEEN: &[(&str, &str)] = &[
    (
        "/healthCheckResults/*/lastFailure: not in any recording",
        "no task had failed a check; the field is in Marathon's RAML, HealthCheckResult",
    ),
    ("/healthCheckResults/*/lastFailureCause: not in any recording", "as before"),
    ("/healthCheckResults/*/firstSuccess: missing, recorded always", "every task had passed a check; the field is optional there"),
    ("/healthCheckResults/*/lastSuccess: missing, recorded always", "as before"),
];

/// How differences end that only show how little was recorded of older versions, and why they are none.
const THIN: &[(&str, &str)] = &[
    ("/env/*: a string, recorded an object", "the one app with an environment had a secret in it"),
    ("/container/docker/*/*/name: not in any recording", "no port mapping had a name"),
    ("/taskKillGracePeriodSeconds: a number, recorded null", "no app had a grace period"),
    ("/actions/*/app: not in any recording", "only deployments of pods were listed"),
    ("/actions/*/pod: missing, recorded always", "as before"),
    ("/currentActions/*/app: not in any recording", "as before"),
    ("/currentActions/*/pod: missing, recorded always", "as before"),
    ("/endpoints/*/healthy: not in any recording", "no running pod had a health check; one on 1.7.202 was seen to show this"),
    ("/instances/*/containers/*/resources: missing, recorded always", "every container had begun; on 1.11.24 those that have not lack it"),
    ("/healthCheckResults/*/firstSuccess: null, recorded a string", "every task had passed a check, and none had failed one"),
    ("/healthCheckResults/*/lastSuccess: null, recorded a string", "as before"),
    ("/healthCheckResults/*/lastFailure: a string, recorded null", "as before"),
    ("/healthCheckResults/*/lastFailureCause: a string, recorded null", "as before"),
    ("/tasks/*/startedAt: missing, recorded always", "every task had begun; on 1.11.24 those that have not lack it"),
];

/// Objects whose keys are data: each value is held against all values recorded there.
const MAPS: [&str; 17] = [
    "labels",
    "env",
    "environment",
    "attributes",
    "secrets",
    "versions",
    "results",
    "flags",
    "uris",
    "docker",
    "metrics",
    "residency",
    "used_resources",
    "offered_resources",
    "unreserved_resources",
    "reserved_resources",
    "reserved_resources_full",
];

/// What a user or a package wrote: passed through, so there is nothing to compare.
const OPAQUE: [&str; 10] = [
    "errors",
    "resource",
    "resourceDefinition",
    "marathonJson",
    "config",
    "options",
    "resolvedOptions",
    "userProvidedOptions",
    "details",
    "command",
];

/// The same document at several places: what was recorded at all of them together says which keys it may have and which it must.
/// One call alone does not: the definitions that happened to be sent by it had keys that others have not.
const MODELS: &[(&str, &str, &str)] = &[
    ("marathon /v2/apps", "", "app"),
    ("marathon /v2/apps", "/apps/*", "app"),
    ("marathon /v2/apps/{id}", "", "app"),
    ("marathon /v2/apps/{id}", "/app", "app"),
    ("marathon /v2/groups", "/apps/*", "app"),
    ("marathon /v2/groups/{id}", "/apps/*", "app"),
    ("marathon /v2/queue", "/queue/*/app", "app"),
    ("marathon /v2/queue", "/queue/*/pod", "pod"),
    ("marathon /v2/pods", "", "pod"),
    ("marathon /v2/pods", "/*", "pod"),
    ("marathon /v2/pods/{id}", "", "pod"),
    ("marathon /v2/pods/{id}::status", "", "pod status"),
    ("marathon /v2/pods/{id}::status", "/spec", "pod"),
    ("marathon /v2/pods/{id}::status", "/instances/*/containers/*/resources", "container resources"),
    ("marathon /v2/pods/{id}::status", "/spec/containers/*/resources", "container resources"),
    ("marathon /v2/pods/::status", "/*", "pod status"),
    ("marathon /v2/pods/::status", "/*/spec", "pod"),
    ("marathon /v2/groups", "/pods/*", "pod status"),
    ("marathon /v2/groups", "/pods/*/spec", "pod"),
    ("marathon /v2/apps", "/apps/*/tasks/*", "task"),
    ("marathon /v2/apps/{id}", "/app/tasks/*", "task"),
    ("marathon /v2/apps/{id}/tasks", "/tasks/*", "task"),
    ("marathon /v2/tasks", "/tasks/*", "task"),
    ("mesos /slaves", "/slaves/*/resources", "amounts"),
    ("mesos /slaves", "/slaves/*/used_resources", "amounts"),
    ("mesos /slaves", "/slaves/*/unreserved_resources", "amounts"),
    ("mesos /slaves", "/slaves/*/used_resources_full/*", "resource"),
    ("mesos /slaves", "/slaves/*/unreserved_resources_full/*", "resource"),
    ("mesos /master/state", "/slaves/*/resources", "amounts"),
    ("mesos /master/state", "/slaves/*/used_resources", "amounts"),
    ("mesos /master/state", "/slaves/*/unreserved_resources", "amounts"),
    ("mesos /master/state", "/frameworks/*/resources", "amounts"),
    ("mesos /master/state", "/frameworks/*/used_resources", "amounts"),
    ("mesos /master/state", "/frameworks/*/tasks/*/resources", "amounts"),
    ("mesos /master/state", "/frameworks/*/completed_tasks/*/resources", "amounts"),
    ("mesos /master/state", "/frameworks/*/tasks/*/statuses/*", "task status"),
    ("mesos /master/state", "/frameworks/*/completed_tasks/*/statuses/*", "task status"),
    ("mesos /master/state", "/completed_frameworks/*/completed_tasks/*/statuses/*", "task status"),
    ("mesos-agent /state", "/completed_frameworks/*/completed_executors/*/completed_tasks/*/statuses/*", "task status"),
    ("mesos-agent /state", "/frameworks/*/executors/*/resources", "amounts"),
    ("mesos-agent /state", "/frameworks/*/executors/*", "executor"),
    ("mesos-agent /state", "/frameworks/*/executors/*/tasks/*/resources", "amounts"),
    ("mesos-agent /state", "/frameworks/*/executors/*/tasks/*/statuses/*", "task status"),
    ("mesos-agent /state", "/frameworks/*/executors/*/completed_tasks/*/resources", "amounts"),
    ("mesos-agent /state", "/frameworks/*/executors/*/completed_tasks/*/statuses/*", "task status"),
    ("mesos-agent /state", "/frameworks/*/completed_executors/*/resources", "amounts"),
    ("mesos-agent /state", "/frameworks/*/completed_executors/*", "executor"),
    ("mesos-agent /state", "/frameworks/*/completed_executors/*/tasks/*/resources", "amounts"),
    ("mesos-agent /state", "/frameworks/*/completed_executors/*/tasks/*/statuses/*", "task status"),
    ("mesos-agent /state", "/frameworks/*/completed_executors/*/completed_tasks/*/resources", "amounts"),
    ("mesos-agent /state", "/frameworks/*/completed_executors/*/completed_tasks/*/statuses/*", "task status"),
    ("metronome /v1/jobs", "", "job"),
    ("metronome /v1/jobs", "/*", "job"),
    ("metronome /v1/jobs/{id}", "", "job"),
    ("metronome /v1/jobs/{id}/runs", "", "run"),
    ("metronome /v1/jobs/{id}/runs", "/*", "run"),
    ("metronome /v1/jobs/{id}/runs/{run}", "", "run"),
    ("cosmos /package/describe", "/package", "package"),
    ("cosmos /service/describe", "/package", "package"),
    ("cosmos /service/update", "/package", "package"),
];

/// A recording could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct LoadError {
    path: PathBuf,
    why: String,
}

/// How an exchange of the lab compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As in the recording of that name.
    Matches(String),
    /// The answer of a service that the package runs: no business of the platform's.
    OfThePackage,
    /// No recording of this call with this status; the text is what [`UNRECORDED`] lists.
    Unrecorded(String),
    /// An answer of what Enterprise adds, which is closed: there is nothing to hold it against.
    OfEnterprise,
    /// Recorded of other versions of the server only; the text says which version this is, or which call.
    OtherVersion(String),
    /// Where it differs, in words.
    Differs(Vec<String>),
}

/// All recordings, by call.
#[derive(Debug, Default)]
pub struct Recordings {
    calls: BTreeMap<String, Vec<Group>>,
    /// Servers of which there are no recordings, with their version.
    unheard: BTreeMap<&'static str, String>,
    /// Of older versions than the newest, of which little was recorded.
    is_thin: bool,
    /// Calls and their statuses that were recorded of other versions.
    elsewhere: BTreeSet<String>,
    models: BTreeMap<&'static str, Shape>,
}

/// Recordings of one call that have status and media type in common.
#[derive(Debug)]
struct Group {
    status: u16,
    media_type: String,
    name: String,
    shape: Shape,
    has_body: bool,
}

/// What was seen at one place of a JSON document.
#[derive(Debug, Clone, Default)]
struct Shape {
    scalars: BTreeSet<&'static str>,
    /// Elements of arrays, all together. `Some` of an empty shape: only empty arrays.
    items: Option<Box<Shape>>,
    fields: Option<BTreeMap<String, Field>>,
    objects: usize,
}

#[derive(Debug, Clone, Default)]
struct Field {
    seen: usize,
    shape: Shape,
}

impl Recordings {
    /// Reads the folders below `dir`. A folder's name tells the server.
    ///
    /// # Errors
    /// A file that cannot be read or is not a recording.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let mut recordings = Self::default();
        for folder in entries(dir)? {
            recordings.learn_folder(&folder)?;
        }
        Ok(recordings)
    }

    /// What was recorded of the servers of that pose. Marathon and Mesos are alike within a minor version; Metronome was recorded only
    /// as the newest; of Cosmos, which is the same 0.6.3 in every pose, there is but one set.
    ///
    /// # Errors
    /// As for [`Recordings::load`].
    pub fn of(dir: &Path, pose: &Pose) -> Result<Self, LoadError> {
        let newest = Pose::open_2_2();
        let minor = |version: &str| version.rsplit_once('.').map_or(version, |(minor, _)| minor).to_owned();
        let is_same = |ours: &str, other: &str| minor(ours) == minor(other);
        let mut recordings = Self { is_thin: pose.marathon != newest.marathon, ..Self::default() };
        for folder in entries(dir)?.into_iter().chain(entries(&dir.join("older"))?) {
            let name = file_name(&folder);
            let is_older = folder.parent().is_some_and(|parent| parent.ends_with("older"));
            let (service, version) = match name.split_once('-') {
                _ if name.starts_with("marathon-lb") || name == "older" || name == "stored" => continue,
                Some((service, version)) if is_older => (service.to_owned(), version.to_owned()),
                _ if name.starts_with("marathon") => ("marathon".to_owned(), newest.marathon.clone()),
                _ if name.starts_with("mesos") => ("mesos".to_owned(), newest.mesos.clone()),
                _ => (name.clone(), newest.metronome.clone()),
            };
            let fits = match service.as_str() {
                "marathon" => is_same(&pose.marathon, &version),
                "mesos" => is_same(&pose.mesos, &version),
                "metronome" => pose.metronome == version,
                _ => true,
            };
            if fits {
                recordings.learn_folder(&folder)?;
            } else {
                let mut other = Self::default();
                other.learn_folder(&folder)?;
                let groups =
                    other.calls.iter().flat_map(|(call, groups)| groups.iter().map(move |group| format!("{call} {}", group.status)));
                recordings.elsewhere.extend(groups);
            }
        }
        for (service, version) in [("marathon", &pose.marathon), ("mesos", &pose.mesos), ("metronome", &pose.metronome)] {
            if !recordings.calls.keys().any(|call| call.split(' ').next() == Some(service)) {
                recordings.unheard.insert(service, format!("{service} {version}"));
            }
        }
        Ok(recordings)
    }

    fn learn_folder(&mut self, folder: &Path) -> Result<(), LoadError> {
        for file in entries(folder)? {
            if let Some(exchange) = read(folder, &file)? {
                self.learn(&exchange, format!("{}/{}", file_name(folder), file_name(&file)));
            }
        }
        Ok(())
    }

    fn learn(&mut self, exchange: &Exchange, name: String) {
        let call = call(&exchange.service, exchange);
        let media_type = media_type(exchange.response_type.as_deref());
        if let Content::Json(value) = &exchange.response_body
            && (200..300).contains(&exchange.status)
        {
            let place = call.place();
            for (model, found) in MODELS
                .iter()
                .filter(|(at, _, _)| *at == place)
                .flat_map(|(_, path, model)| pick(value, path).map(move |found| (*model, found)))
            {
                self.models.entry(model).or_default().learn(found);
            }
        }
        let groups = self.calls.entry(call.key()).or_default();
        let index = groups.iter().position(|group| group.status == exchange.status && group.media_type == media_type);
        let index = index.unwrap_or_else(|| {
            groups.push(Group { status: exchange.status, media_type, name, shape: Shape::default(), has_body: false });
            groups.len() - 1
        });
        if let Content::Json(value) = &exchange.response_body {
            groups[index].shape.learn(value);
        }
        groups[index].has_body |= exchange.response_body != Content::Empty;
    }

    /// Holds an exchange of the lab against what was recorded.
    pub fn check(&self, exchange: &Exchange) -> Verdict {
        let Some((service, path)) = behind(exchange) else { return Verdict::OfThePackage };
        if let Some(version) = self.unheard.get(service) {
            return Verdict::OtherVersion(version.clone());
        }
        let exchange = Exchange { service: service.to_owned(), path, ..exchange.clone() };
        let call = call(service, &exchange);
        let unrecorded = format!("{} {} {} {}", call.service, call.method, call.route, exchange.status);
        let groups = self.calls.get(&call.key()).map(Vec::as_slice).unwrap_or_default();
        let same_status: Vec<&Group> = groups.iter().filter(|group| group.status == exchange.status).collect();
        if same_status.is_empty() {
            if is_of_enterprise(&exchange) {
                return Verdict::OfEnterprise;
            }
            if self.elsewhere.contains(&unrecorded) {
                return Verdict::OtherVersion(unrecorded);
            }
            return Verdict::Unrecorded(unrecorded);
        }
        let media_type = media_type(exchange.response_type.as_deref());
        let Some(group) = same_status.iter().find(|group| group.media_type == media_type) else {
            let known: Vec<&str> = same_status.iter().map(|group| group.media_type.as_str()).collect();
            return Verdict::Differs(vec![format!("media type `{media_type}`, recorded `{}`", known.join("`, `"))]);
        };
        let mut differences = Vec::new();
        match &exchange.response_body {
            Content::Unseen => {}
            Content::Json(value) => {
                let place = call.place();
                let models: Vec<(&str, &Shape)> = MODELS
                    .iter()
                    .filter(|(at, _, _)| *at == place && (200..300).contains(&exchange.status))
                    .filter_map(|(_, path, model)| Some((*path, self.models.get(model)?)))
                    .collect();
                Comparison { models }.compare(value, &group.shape, "", &mut differences);
            }
            Content::Empty if group.has_body && exchange.method != "HEAD" => differences.push("no body where one was recorded".to_owned()),
            Content::Text(_) if !group.shape.is_empty() => differences.push("a text where JSON was recorded".to_owned()),
            Content::Empty | Content::Text(_) => {}
        }
        differences.retain(|difference| !UNSEEN.iter().any(|(end, _)| difference.ends_with(end)));
        if self.is_thin {
            differences.retain(|difference| !THIN.iter().any(|(end, _)| difference.ends_with(end)));
        }
        if differences.is_empty() { Verdict::Matches(group.name.clone()) } else { Verdict::Differs(differences) }
    }
}

struct Comparison<'a> {
    models: Vec<(&'a str, &'a Shape)>,
}

impl Comparison<'_> {
    fn compare(&self, value: &Value, shape: &Shape, path: &str, out: &mut Vec<String>) {
        // The same route answers a document or a list of them: a model is of the document.
        let shape = self.models.iter().find(|(at, _)| *at == path && value.is_object()).map_or(shape, |(_, model)| *model);
        let last = path.rsplit('/').next().unwrap_or_default();
        // Nothing was recorded here but empty arrays: nothing is known.
        if OPAQUE.contains(&last) || shape.is_empty() {
            return;
        }
        match value {
            Value::Array(items) => match &shape.items {
                None => out.push(format!("{path}: an array, recorded {}", describe(shape))),
                Some(item) => items.iter().for_each(|value| self.compare(value, item, &format!("{path}/*"), out)),
            },
            Value::Object(fields) => match &shape.fields {
                None => out.push(format!("{path}: an object, recorded {}", describe(shape))),
                Some(known) if MAPS.contains(&last) => {
                    let any = union(known.values().map(|field| &field.shape));
                    fields.values().for_each(|value| self.compare(value, &any, &format!("{path}/*"), out));
                }
                Some(known) => self.compare_fields(fields, known, shape.objects, path, out),
            },
            scalar => {
                let kind = scalar_name(scalar);
                if !shape.scalars.contains(kind) {
                    out.push(format!("{path}: {kind}, recorded {}", describe(shape)));
                }
            }
        }
    }

    fn compare_fields(
        &self,
        fields: &serde_json::Map<String, Value>,
        known: &BTreeMap<String, Field>,
        objects: usize,
        path: &str,
        out: &mut Vec<String>,
    ) {
        for (name, value) in fields {
            match known.get(name) {
                None => out.push(format!("{path}/{name}: not in any recording")),
                Some(field) => self.compare(value, &field.shape, &format!("{path}/{name}"), out),
            }
        }
        for (name, field) in known {
            if field.seen == objects && !fields.contains_key(name) {
                out.push(format!("{path}/{name}: missing, recorded always"));
            }
        }
    }
}

impl Shape {
    fn learn(&mut self, value: &Value) {
        match value {
            Value::Array(items) => {
                let shape = self.items.get_or_insert_default();
                items.iter().for_each(|item| shape.learn(item));
            }
            Value::Object(fields) => {
                self.objects += 1;
                let known = self.fields.get_or_insert_default();
                for (name, value) in fields {
                    let field = known.entry(name.clone()).or_default();
                    field.seen += 1;
                    field.shape.learn(value);
                }
            }
            scalar => {
                self.scalars.insert(scalar_name(scalar));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.scalars.is_empty() && self.items.is_none() && self.fields.is_none()
    }

    fn join(&mut self, other: &Self) {
        self.scalars.extend(&other.scalars);
        if let Some(items) = &other.items {
            self.items.get_or_insert_default().join(items);
        }
        if let Some(fields) = &other.fields {
            self.objects += other.objects;
            let known = self.fields.get_or_insert_default();
            for (name, field) in fields {
                let mine = known.entry(name.clone()).or_default();
                mine.seen += field.seen;
                mine.shape.join(&field.shape);
            }
        }
    }
}

fn union<'a>(shapes: impl Iterator<Item = &'a Shape>) -> Shape {
    shapes.fold(Shape::default(), |mut all, shape| {
        all.join(shape);
        all
    })
}

fn describe(shape: &Shape) -> String {
    let mut kinds: Vec<&str> = shape.scalars.iter().copied().collect();
    if shape.items.is_some() {
        kinds.push("an array");
    }
    if shape.fields.is_some() {
        kinds.push("an object");
    }
    kinds.join(" or ")
}

fn scalar_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        _ => "a string",
    }
}

/// The values at a path in which `*` stands for every element.
fn pick<'a>(value: &'a Value, path: &str) -> Box<dyn Iterator<Item = &'a Value> + 'a> {
    let Some(rest) = path.strip_prefix('/') else { return Box::new(Some(value).filter(|value| value.is_object()).into_iter()) };
    let (first, tail) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let (first, tail) = (first.to_owned(), tail.to_owned());
    match value {
        Value::Array(items) if first == "*" => Box::new(items.iter().flat_map(move |item| pick(item, &tail))),
        value => Box::new(value.get(&first).into_iter().flat_map(move |value| pick(value, &tail))),
    }
}

/// A call: server, method and route.
struct Call {
    service: String,
    method: String,
    route: String,
}

impl Call {
    fn key(&self) -> String {
        format!("{} {} {}", self.service, self.method, self.route)
    }

    fn place(&self) -> String {
        format!("{} {}", self.service, self.route)
    }
}

fn call(service: &str, exchange: &Exchange) -> Call {
    let route = route(service, &exchange.path, &exchange.request_body);
    Call { service: service.to_owned(), method: exchange.method.clone(), route }
}

/// Server and path behind Admin Router; None for a service that the package runs.
fn behind(exchange: &Exchange) -> Option<(&str, String)> {
    let path = exchange.path.as_str();
    if exchange.service != "admin_router" {
        return Some((&exchange.service, path.to_owned()));
    }
    let inner = |prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/')).map(str::to_owned);
    if path.starts_with("/package/") {
        return Some(("cosmos", path.to_owned()));
    }
    for (prefix, service) in
        [("/cosmos", "cosmos"), ("/service/marathon", "marathon"), ("/service/metronome", "metronome"), ("/mesos", "mesos")]
    {
        if let Some(rest) = inner(prefix) {
            return Some((service, rest));
        }
    }
    if let Some(rest) = inner("/agent").or_else(|| inner("/slave")) {
        let below_id = rest[1..].find('/').map_or("", |at| &rest[at + 1..]);
        return Some(("mesos-agent", below_id.to_owned()));
    }
    (!path.starts_with("/service/")).then(|| ("admin_router", path.to_owned()))
}

/// Whether only Enterprise has this: its own servers, the refusal of a caller, and the way from HTTP to HTTPS.
fn is_of_enterprise(exchange: &Exchange) -> bool {
    let path = exchange.path.as_str();
    let own = ["/acs/api/v1/", "/ca/api/v2/", "/secrets/v1/"].iter().any(|prefix| path.starts_with(prefix))
        || path == "/dcos-metadata/bootstrap-config.json"
        || (path == "/ca/dcos-ca.crt" && exchange.status == 200);
    matches!(exchange.status, 401 | 403) || (exchange.service == "admin_router" && (own || exchange.status == 307))
}

/// The path with ids replaced by what they are.
fn route(service: &str, path: &str, body: &Content) -> String {
    // The older name of the same.
    let path = path.strip_suffix(".json").filter(|_| service.starts_with("mesos")).unwrap_or(path);
    let mut segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match (service, segments.as_slice()) {
        ("marathon", ["v2", "apps", .., "versions", _]) => "/v2/apps/{id}/versions/{version}".to_owned(),
        ("marathon", ["v2", "apps", _, .., last @ ("restart" | "versions" | "tasks")]) => format!("/v2/apps/{{id}}/{last}"),
        ("marathon", ["v2", "apps", .., "tasks", _]) => "/v2/apps/{id}/tasks/{task}".to_owned(),
        ("marathon", ["v2", "queue", _, .., "delay"]) => "/v2/queue/{id}/delay".to_owned(),
        ("marathon", ["v2", "pods", "::status"]) => "/v2/pods/::status".to_owned(),
        ("marathon", ["v2", "pods", _, ..]) => match path.split_once("::") {
            Some((_, verb)) => format!("/v2/pods/{{id}}::{}", verb.split('/').next().unwrap_or_default()),
            None => "/v2/pods/{id}".to_owned(),
        },
        ("marathon", ["v2", kind @ ("apps" | "groups" | "deployments"), _, ..]) => format!("/v2/{kind}/{{id}}"),
        ("metronome", ["v1", "jobs", _, ..]) => {
            segments[2] = "{id}";
            if let Some(id) = segments.get_mut(4) {
                *id = if path.contains("/runs/") { "{run}" } else { "{schedule}" };
            }
            format!("/{}", segments.join("/"))
        }
        ("mesos", ["api", "v1"]) => match body {
            Content::Json(body) => format!("/api/v1 {}", body["type"].as_str().unwrap_or_default()),
            _ => "/api/v1".to_owned(),
        },
        _ => format!("/{}", segments.join("/")),
    }
}

fn media_type(sent: Option<&str>) -> String {
    sent.unwrap_or_default().to_lowercase().replace(' ', "")
}

fn read(folder: &Path, file: &Path) -> Result<Option<Exchange>, LoadError> {
    let (folder_name, name) = (file_name(folder), file_name(file));
    let service = if folder_name.starts_with("marathon") {
        "marathon"
    } else if folder_name.starts_with("mesos") {
        "mesos"
    } else {
        folder_name.as_str()
    };
    let fault = |why: &str| LoadError { path: file.to_owned(), why: why.to_owned() };
    if name.ends_with(".req.http") {
        let request = load(file)?;
        let response = load(&file.with_file_name(name.replace(".req.http", ".resp.http")))?;
        return http(service, &request, &response).map(Some).ok_or_else(|| fault("not a recorded exchange"));
    }
    if let Some(stem) = name.strip_suffix(".headers") {
        let Some(request) = mesos_request(stem) else { return Ok(None) };
        let service = if stem.starts_with("agent-") { "mesos-agent" } else { service };
        let mut response = load(file)?.trim_end().to_owned() + "\r\n\r\n";
        let body = file.with_file_name(format!("{stem}.json"));
        if body.exists() {
            response.push_str(&load(&body)?);
        }
        return http(service, &request, &response).map(Some).ok_or_else(|| fault("not recorded headers"));
    }
    if name == "pod-status-stable.resp.http" {
        let request = "GET /v2/pods/private-registry-node::status HTTP/1.1\n\n";
        return http(service, request, &load(file)?).map(Some).ok_or_else(|| fault("not a recorded answer"));
    }
    if name.starts_with("events-") {
        let mut events = http(service, "GET /v2/events HTTP/1.1\n\n", &load(file)?).ok_or_else(|| fault("not a recorded answer"))?;
        events.response_body = Content::Unseen;
        return Ok(Some(events));
    }
    if service == "cosmos" && name.ends_with(".json") {
        let recorded: Value = serde_json::from_str(&load(file)?).map_err(|error| fault(&error.to_string()))?;
        return Ok(Some(cosmos(&recorded)));
    }
    Ok(None)
}

/// The request of a recording that has only an answer: its file's name tells it. Agents have an API of their own.
fn mesos_request(stem: &str) -> Option<String> {
    if stem == "agent-state" {
        return Some("GET /state HTTP/1.1\n\n".to_owned());
    }
    if stem.starts_with("agent-") || stem.starts_with("scheduler-") {
        return None;
    }
    let operator = |kind: &str| format!("POST /api/v1 HTTP/1.1\n\n{{\"type\":\"{kind}\"}}");
    Some(match stem {
        "v1-bad-json" => "POST /api/v1 HTTP/1.1\n\n{".to_owned(),
        "v1-bad-type" => operator(""),
        "subscribe-json" => operator("SUBSCRIBE"),
        _ => match (stem.strip_prefix("v1-"), stem.split_once('-')) {
            (Some(kind), _) => operator(kind),
            (None, Some((first @ ("master" | "metrics" | "maintenance"), rest))) => format!("GET /{first}/{rest} HTTP/1.1\n\n"),
            _ => format!("GET /{stem} HTTP/1.1\n\n"),
        },
    })
}

fn http(service: &str, request: &str, response: &str) -> Option<Exchange> {
    let (request_head, request_body) = split(request);
    let (response_head, response_body) = split(response);
    let mut first = request_head.lines().next()?.split(' ');
    let (method, target) = (first.next()?, first.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let status = response_head.lines().next()?.split(' ').nth(1)?.parse().ok()?;
    Some(Exchange {
        service: service.to_owned(),
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        request_type: header(request_head, "content-type"),
        accept: header(request_head, "accept"),
        request_body: Content::of(request_body.as_bytes()),
        status,
        response_type: header(response_head, "content-type"),
        response_body: Content::of(response_body.as_bytes()),
        unknown: false,
    })
}

fn split(message: &str) -> (&str, &str) {
    message.split_once("\r\n\r\n").or_else(|| message.split_once("\n\n")).unwrap_or((message, ""))
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().to_owned())
}

fn cosmos(recorded: &Value) -> Exchange {
    let (request, response) = (&recorded["request"], &recorded["response"]);
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let content = |value: &Value| match value {
        Value::Null => Content::Empty,
        Value::String(text) => Content::of(text.as_bytes()),
        other => Content::Json(other.clone()),
    };
    Exchange {
        service: "cosmos".to_owned(),
        method: request["method"].as_str().unwrap_or_default().to_owned(),
        path: request["path"].as_str().unwrap_or_default().to_owned(),
        query: String::new(),
        request_type: text(&request["headers"]["Content-Type"]),
        accept: text(&request["headers"]["Accept"]),
        request_body: content(&request["body"]),
        status: response["status"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or_default(),
        response_type: text(&response["content_type"]),
        response_body: content(&response["body"]),
        unknown: false,
    }
}

fn load(file: &Path) -> Result<String, LoadError> {
    let bytes = std::fs::read(file).map_err(|error| LoadError { path: file.to_owned(), why: error.to_string() })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let fault = |error: std::io::Error| LoadError { path: dir.to_owned(), why: error.to_string() };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fault)? {
        paths.push(entry.map_err(fault)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Security;
    use serde_json::json;

    fn load_all() -> Recordings {
        Recordings::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")).unwrap()
    }

    fn get(service: &str, path: &str, status: u16, body: Value) -> Exchange {
        Exchange {
            service: service.to_owned(),
            method: "GET".to_owned(),
            path: path.to_owned(),
            query: String::new(),
            request_type: None,
            accept: None,
            request_body: Content::Empty,
            status,
            response_type: Some("application/json".to_owned()),
            response_body: Content::Json(body),
            unknown: false,
        }
    }

    #[test]
    fn every_recording_matches_itself() {
        let recordings = load_all();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
        let mut checked = 0;
        for folder in entries(&dir).unwrap() {
            for file in entries(&folder).unwrap() {
                if let Some(exchange) = read(&folder, &file).unwrap() {
                    let verdict = recordings.check(&exchange);
                    assert!(matches!(verdict, Verdict::Matches(_)), "{}: {verdict:?}", file.display());
                    checked += 1;
                }
            }
        }
        assert!(checked > 500, "only {checked} recordings");
    }

    #[test]
    fn a_server_is_held_only_against_recordings_of_its_own_version() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
        let of = |dcos| Recordings::of(&dir, &Pose::of(dcos, Security::Open).unwrap()).unwrap();
        let (old, middle, newest) = (of("1.9.0"), of("1.13.0"), of("2.2.1"));
        let with_details = get("marathon", "/v2/apps/no/such", 404, json!({ "message": "", "details": [] }));
        assert!(matches!(newest.check(&with_details), Verdict::Matches(_)));
        assert!(matches!(old.check(&with_details), Verdict::Differs(_)));
        assert_eq!(middle.check(&with_details), Verdict::OtherVersion("marathon 1.8.180".to_owned()));
        assert_eq!(old.check(&get("marathon", "/v2/apps", 200, json!({}))), Verdict::OtherVersion("marathon GET /v2/apps 200".to_owned()));
        assert!(matches!(old.check(&get("marathon", "/v2/apps", 418, json!({}))), Verdict::Unrecorded(_)));
    }

    #[test]
    fn a_missing_key_a_new_key_and_another_type_are_named() {
        let recordings = load_all();
        let body = json!({"message": 1, "extra": true});
        let Verdict::Differs(differences) = recordings.check(&get("marathon", "/v2/apps/no/such", 404, body)) else {
            panic!("no difference")
        };
        assert_eq!(
            differences,
            ["/message: a number, recorded a string", "/extra: not in any recording", "/details: missing, recorded always"]
        );
        let Verdict::Differs(differences) = recordings.check(&get("marathon", "/v2/apps/no/such", 404, json!({}))) else {
            panic!("no difference")
        };
        assert_eq!(differences, ["/details: missing, recorded always", "/message: missing, recorded always"]);
    }

    #[test]
    fn another_media_type_is_a_difference() {
        let mut exchange = get("marathon", "/v2/apps/no/such", 404, json!({"message": ""}));
        exchange.response_type = Some("text/html".to_owned());
        assert!(matches!(load_all().check(&exchange), Verdict::Differs(_)));
    }

    #[test]
    fn a_status_that_was_never_recorded_is_said_so() {
        let verdict = load_all().check(&get("marathon", "/v2/apps/a", 418, json!({})));
        assert_eq!(verdict, Verdict::Unrecorded("marathon GET /v2/apps/{id} 418".to_owned()));
    }

    #[test]
    fn what_enterprise_adds_has_no_recording_to_be_held_against() {
        let recordings = load_all();
        for (service, path, status) in [
            ("admin_router", "/acs/api/v1/users/ci", 200),
            ("admin_router", "/secrets/v1/secret/default/a/b", 404),
            ("admin_router", "/ca/api/v2/sign", 200),
            ("admin_router", "/service/marathon/v2/apps", 401),
            ("marathon", "/v2/apps", 403),
        ] {
            assert_eq!(recordings.check(&get(service, path, status, json!({}))), Verdict::OfEnterprise, "{path}");
        }
        assert!(matches!(recordings.check(&get("marathon", "/acs/api/v1/users/ci", 200, json!({}))), Verdict::Unrecorded(_)));
    }

    #[test]
    fn calls_through_admin_router_are_held_against_the_server_behind() {
        let recordings = load_all();
        let exchange = get(
            "admin_router",
            "/service/marathon/v2/apps/no/such",
            404,
            json!({"message": "App '/no/such' does not exist", "details": []}),
        );
        assert!(matches!(recordings.check(&exchange), Verdict::Matches(_)));
        assert_eq!(recordings.check(&get("admin_router", "/service/private-registry/status", 200, json!({}))), Verdict::OfThePackage);
    }
}
