//! Definitions of jobs and schedules: how they are read, checked, stored and printed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::cron::Cron;
use super::schema::{self, Fault};
use crate::server::Pose;
use crate::server::clock::{iso_offset, now};

/// The names under which tzdata knows the one time zone that the lab can reckon with.
const UTC: [&str; 8] = ["UTC", "GMT", "Etc/UTC", "Etc/GMT", "UCT", "Etc/UCT", "Universal", "Zulu"];
const LEAST_STARTING_DEADLINE: i64 = 60;

/// A job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct JobSpec {
    pub(super) id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    #[serde(default)]
    pub(super) dependencies: Vec<Dependency>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) schedules: Vec<Schedule>,
    pub(super) run: RunSpec,
}

/// Another job that this one follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dependency {
    pub(super) id: String,
}

/// When a job runs by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Schedule {
    pub(super) id: String,
    pub(super) cron: String,
    #[serde(default = "utc")]
    timezone: String,
    #[serde(default = "fifteen_minutes", deserialize_with = "whole")]
    pub(super) starting_deadline_seconds: i64,
    #[serde(default)]
    pub(super) concurrency_policy: ConcurrencyPolicy,
    #[serde(default = "yes")]
    pub(super) enabled: bool,
}

/// Whether a scheduled run may overlap another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum ConcurrencyPolicy {
    #[default]
    Allow,
    Forbid,
}

/// What a run does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunSpec {
    #[serde(serialize_with = "number")]
    pub(super) cpus: f64,
    #[serde(serialize_with = "number")]
    pub(super) mem: f64,
    #[serde(serialize_with = "number")]
    pub(super) disk: f64,
    #[serde(default, deserialize_with = "whole")]
    gpus: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cmd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(default)]
    pub(super) env: BTreeMap<String, EnvValue>,
    #[serde(default)]
    pub(super) placement: Placement,
    #[serde(default)]
    pub(super) artifacts: Vec<Artifact>,
    /// Stored, no more: a run that finds no agent waits on beyond it, as recorded. Only a schedule sets a deadline.
    #[serde(default = "one_hour", deserialize_with = "whole")]
    max_launch_delay: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) docker: Option<Docker>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ucr: Option<Ucr>,
    #[serde(default)]
    pub(super) volumes: Vec<Volume>,
    #[serde(default)]
    pub(super) restart: Restart,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "maybe_whole")]
    pub(super) task_kill_grace_period_seconds: Option<i64>,
    #[serde(default)]
    pub(super) secrets: BTreeMap<String, Secret>,
    #[serde(default)]
    networks: Vec<Network>,
}

/// A value, or the name of a secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum EnvValue {
    Text(String),
    Secret { secret: String },
}

/// Where a run may happen.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Placement {
    pub(super) constraints: Vec<Constraint>,
}

/// See [`Placement`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Constraint {
    pub(super) attribute: String,
    pub(super) operator: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
}

/// Something to fetch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Artifact {
    pub(super) uri: String,
    #[serde(default = "yes")]
    pub(super) extract: bool,
    #[serde(default)]
    pub(super) executable: bool,
    #[serde(default)]
    cache: bool,
}

/// A container of Docker's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Docker {
    image: String,
    #[serde(default)]
    privileged: bool,
    #[serde(default)]
    parameters: Vec<Parameter>,
    #[serde(default)]
    force_pull_image: bool,
}

/// A `--key value` of `docker run`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Parameter {
    key: String,
    value: String,
}

/// A container of Mesos'.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ucr {
    image: Image,
    #[serde(default)]
    privileged: bool,
}

/// See [`Ucr`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    id: String,
    #[serde(default = "docker")]
    kind: String,
    #[serde(default)]
    force_pull: bool,
}

/// A folder of the host, or a secret as a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub(super) enum Volume {
    Host { container_path: String, host_path: String, mode: String },
    Secret { container_path: String, secret: String },
}

/// What follows a failure.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Restart {
    pub(super) policy: RestartPolicy,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "maybe_whole")]
    pub(super) active_deadline_seconds: Option<i64>,
}

/// See [`Restart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum RestartPolicy {
    Never,
    OnFailure,
}

impl Default for Restart {
    fn default() -> Self {
        Self { policy: RestartPolicy::Never, active_deadline_seconds: None }
    }
}

/// Where a secret lies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Secret {
    pub(super) source: String,
}

/// A network that the task joins.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Network {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    mode: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

/// Why a definition is not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// 422.
    Invalid(Vec<Fault>),
    /// Metronome throws an exception: 500.
    Crash,
}

impl From<Vec<Fault>> for Refused {
    fn from(faults: Vec<Fault>) -> Self {
        Self::Invalid(faults)
    }
}

impl JobSpec {
    /// Reads a job. `id`, where given, wins over the one in the body.
    pub(super) fn read(value: &Value, id: Option<&str>, pose: &Pose) -> Result<Self, Refused> {
        ok(schema::job(pose).faults(value))?;
        ok(unreadable_job(value))?;
        let mut job: Self = parse(value)?;
        if schema::has_is(pose) {
            for constraint in job.run.placement.constraints.iter_mut().filter(|constraint| constraint.operator == "EQ") {
                "IS".clone_into(&mut constraint.operator);
            }
        }
        if let Some(id) = id {
            id.clone_into(&mut job.id);
        }
        job.schedules.iter_mut().for_each(Schedule::tidy);
        if job.run.networks.iter().any(Network::crashes) {
            return Err(Refused::Crash);
        }
        ok(job.faults())?;
        Ok(job)
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (index, schedule) in self.schedules.iter().enumerate() {
            faults.extend(schedule.fault(&format!("/schedules({index})")));
        }
        self.run.check(&mut faults);
        if self.schedules.len() > 1 {
            faults.push(Fault::new("/schedules", format!("has size {}, expected 1 or less", self.schedules.len())));
        }
        let different: BTreeSet<&str> = self.dependencies.iter().map(|dependency| dependency.id.as_str()).collect();
        if different.len() < self.dependencies.len() {
            faults.push(Fault::new("/dependencies", "has double entries"));
        }
        if !self.schedules.is_empty() && !self.dependencies.is_empty() {
            faults.push(Fault::new("/", "Jobs may not have both dependencies and schedules specified"));
        }
        faults
    }

    /// What the lab cannot do for a run of this job.
    pub(super) fn beyond_the_lab(&self, has_secrets: bool) -> Option<&'static str> {
        let run = &self.run;
        if run.docker.is_some() || run.ucr.is_some() {
            Some("the lab does not run jobs in containers")
        } else if run.gpus > 0 {
            Some("no agent of the lab has a GPU")
        } else if !run.secrets.is_empty() && !has_secrets {
            Some("open DC/OS has no secret store")
        } else if !self.dependencies.is_empty() {
            Some("the lab does not chain jobs by dependencies")
        } else {
            None
        }
    }

    /// What Metronome accepts and then leaves out.
    pub(super) fn swallowed(&self) -> Vec<&'static str> {
        let mut swallowed = Vec::new();
        if !self.run.volumes.is_empty() {
            swallowed.push("volumes without a container are left out");
        }
        if self.run.placement.constraints.iter().any(|constraint| constraint.value.is_none()) {
            swallowed.push("a constraint without a value has no effect");
        }
        swallowed
    }
}

impl Schedule {
    /// Reads a schedule. `id`, where given, wins over the one in the body.
    pub(super) fn read(value: &Value, id: Option<&str>) -> Result<Self, Refused> {
        ok(schema::schedule().faults(value))?;
        ok(unreadable_schedule(value, ""))?;
        let mut schedule: Self = parse(value)?;
        if let Some(id) = id {
            id.clone_into(&mut schedule.id);
        }
        schedule.tidy();
        ok(schedule.fault("").into_iter().collect())?;
        Ok(schedule)
    }

    fn tidy(&mut self) {
        self.cron = self.cron.split_whitespace().collect::<Vec<_>>().join(" ");
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        let seconds = self.starting_deadline_seconds;
        (seconds < LEAST_STARTING_DEADLINE)
            .then(|| Fault::new(format!("{path}/startingDeadline"), format!("got {seconds} seconds, expected 1 minute or more")))
    }

    /// When it comes next.
    pub(super) fn next(&self, after: f64) -> Option<f64> {
        Cron::parse(&self.cron)?.next(after)
    }

    /// As it is answered: with the next time, be it enabled or not.
    pub(super) fn answer(&self) -> Value {
        let mut value = json!(self);
        value["nextRunAt"] = self.next(now()).map(iso_offset).into();
        value
    }
}

impl RunSpec {
    fn check(&self, faults: &mut Vec<Fault>) {
        let mut fault = |path: &str, error: &str| faults.push(Fault::new(path, error));
        let contained = self.docker.is_some() || self.ucr.is_some();
        let modes: BTreeSet<&str> = self.networks.iter().map(|network| network.mode.as_str()).collect();
        let many = self.networks.len() > 1;
        let names: Vec<&String> = self.networks.iter().filter_map(|network| network.name.as_ref()).collect();
        if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
            fault("/run/networks", "network names must be unique");
        }
        if many && modes.iter().any(|mode| *mode != "container") {
            fault("/run/networks", "Only one host or container/bridge network modes are allowed");
        }
        if !contained && modes.iter().any(|mode| *mode != "host") {
            fault("/run/networks", "Only containers may join container or bridge networks");
        }
        if self.docker.is_some() && many && modes.iter().all(|mode| *mode == "container") {
            fault("/run/networks", "Docker does not allow specification of multiple networks");
        }
        if modes.len() > 1 {
            fault("/run/networks", "You may not mix host, container, or container/bridge networking. Only define one kind of network.");
        }
        if self.gpus != 0 && self.docker.is_some() {
            fault("/run/gpus", "GPUs are not supported with Docker");
        }
        let file_secret = self.volumes.iter().any(|volume| matches!(volume, Volume::Secret { .. }));
        if self.docker.is_some() && file_secret {
            fault("/run/volumes", "File based secrets are only supported by UCR");
        }
        for (index, network) in self.networks.iter().enumerate() {
            if network.mode == "host" && !network.labels.is_empty() {
                fault(&format!("/run/networks({index})/labels"), "for host network must be empty");
            }
        }
        if self.cmd.is_none() && self.ucr.is_none() && self.docker.as_ref().is_none_or(|docker| docker.image.is_empty()) {
            fault("/run", "Cmd, Docker or UCR image must be specified");
        }
        if self.docker.is_some() && self.ucr.is_some() {
            fault("/run", "Either Docker or UCR should be provided, but not both");
        }
        if let Some(error) = self.secrets_fault() {
            fault("/run", &error);
        }
    }

    fn secrets_fault(&self) -> Option<String> {
        let in_env = self.env.values().filter_map(|value| match value {
            EnvValue::Secret { secret } => Some(secret),
            EnvValue::Text(_) => None,
        });
        let in_volumes = self.volumes.iter().filter_map(|volume| match volume {
            Volume::Secret { secret, .. } => Some(secret),
            Volume::Host { .. } => None,
        });
        let used: BTreeSet<&String> = in_env.chain(in_volumes).collect();
        let declared: BTreeSet<&String> = self.secrets.keys().collect();
        let names = |set: BTreeSet<&&String>| set.into_iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        let (missing, unused) = (names(used.difference(&declared).collect()), names(declared.difference(&used).collect()));
        let mut error = String::new();
        if !missing.is_empty() {
            error += &format!("The following secrets are referenced, but undefined: {missing}. Please add them to the secrets field.");
        }
        if !unused.is_empty() {
            error +=
                &format!("The following secrets are defined, but not referenced: {unused}. Please remove them from the secrets field.");
        }
        (!error.is_empty()).then_some(error)
    }
}

impl Network {
    /// Metronome converts networks before it validates them, and throws at what has no counterpart.
    fn crashes(&self) -> bool {
        self.name.is_some() != (self.mode == "container")
    }
}

/// The schema let it pass, but Metronome's reader does not.
fn unreadable_job(job: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, dependency) in items(&job["dependencies"]) {
        if dependency.get("id").is_none() {
            faults.push(Fault::new(format!("/dependencies({index})/id"), "error.path.missing"));
        }
    }
    for (index, schedule) in items(&job["schedules"]) {
        faults.extend(unreadable_schedule(schedule, &format!("/schedules({index})")));
    }
    let run = &job["run"];
    for (name, value) in run["env"].as_object().into_iter().flatten() {
        if value.is_object() && value.get("secret").is_none() {
            faults.push(Fault::new(format!("/run/env/{name}/secret"), "error.path.missing"));
        }
    }
    if run["placement"].is_object() && run["placement"].get("constraints").is_none() {
        faults.push(Fault::new("/run/placement/constraints", "error.path.missing"));
    }
    for (index, volume) in items(&run["volumes"]) {
        let keys: BTreeSet<&str> = volume.as_object().into_iter().flat_map(|volume| volume.keys()).map(String::as_str).collect();
        if keys != BTreeSet::from(["containerPath", "hostPath", "mode"]) && keys != BTreeSet::from(["containerPath", "secret"]) {
            let error = format!("expected HostVolume or SecretVolume object but got {volume}");
            faults.push(Fault::new(format!("/run/volumes({index})"), error));
        }
    }
    let deadline = &run["restart"]["activeDeadlineSeconds"];
    if deadline.as_f64().is_some_and(|seconds| seconds < 0.0) {
        faults.push(Fault::new("/run/restart/activeDeadlineSeconds", format!("Can not read duration: {deadline}")));
    }
    for (name, secret) in run["secrets"].as_object().into_iter().flatten() {
        let error = match secret.get("source").and_then(Value::as_str) {
            None => format!("'source' is undefined on object: {secret}"),
            Some("") => "error.minLength".to_owned(),
            Some(_) => continue,
        };
        faults.push(Fault::new(format!("/run/secrets/{name}/source"), error));
    }
    faults
}

fn unreadable_schedule(schedule: &Value, path: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let (cron, timezone) = (&schedule["cron"], &schedule["timezone"]);
    if cron.as_str().is_none_or(|text| Cron::parse(text).is_none()) {
        faults.push(Fault::new(format!("{path}/cron"), format!("Can not read cron expression {cron}")));
    }
    if timezone.as_str().is_some_and(|name| !UTC.contains(&name)) {
        faults.push(Fault::new(format!("{path}/timezone"), format!("No time zone found with this id: {timezone}")));
    }
    faults
}

fn items(list: &Value) -> impl Iterator<Item = (usize, &Value)> {
    list.as_array().into_iter().flatten().enumerate()
}

fn ok(faults: Vec<Fault>) -> Result<(), Refused> {
    if faults.is_empty() { Ok(()) } else { Err(faults.into()) }
}

/// After schema and reader there is nothing left that could fail, but for numbers out of all bounds.
fn parse<T: for<'a> Deserialize<'a>>(value: &Value) -> Result<T, Refused> {
    T::deserialize(value).map_err(|error| vec![Fault::new("", error.to_string())].into())
}

/// 32 and not 32.0.
fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e15 { serializer.serialize_i64(*value as i64) } else { serializer.serialize_f64(*value) }
}

fn whole<'a, D: Deserializer<'a>>(deserializer: D) -> Result<i64, D::Error> {
    f64::deserialize(deserializer).map(|value| value as i64)
}

fn maybe_whole<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    whole(deserializer).map(Some)
}

fn yes() -> bool {
    true
}

fn utc() -> String {
    "UTC".to_owned()
}

fn docker() -> String {
    "docker".to_owned()
}

fn fifteen_minutes() -> i64 {
    15 * 60
}

fn one_hour() -> i64 {
    60 * 60
}
