//! The documents that the controller hands to Marathon and Metronome, from the templates in `src/templates`.
//!
//! Each document carries the digest of what we rendered as a label: Marathon stores its own normal form and drops what it does
//! not know, so the stored document cannot be compared with ours.

use std::collections::BTreeMap;
use std::time::Duration;

use handlebars::{Context, Handlebars, Helper, HelperResult, Output, RenderContext, RenderErrorReason};
use serde_json::{Map, Value, json};

use crate::copying;
use crate::dcos::marathon::MARATHON_LB_GROUP;
use crate::dcos::{login, secrets, versions};
use crate::digest::sha256_hex;
use crate::distribution::{self, Published};
use crate::held::Held;
use crate::in_order::InOrder as _;
use crate::names::Host;
use crate::options::Options;
use crate::protocol::{CopyKind, env};
use crate::shards::{Layout, Shard};
use crate::{registry, settings, storage};

/// Label that carries the digest of a document as we rendered it.
const DIGEST_LABEL: &str = "PRIVATE_REGISTRY_DOCUMENT";

/// Label of the registry app that tells a controller which Cosmos started elsewhere where its state lies.
pub const HOME_LABEL: &str = "PRIVATE_REGISTRY_HOME";

/// Label of the registry app: tells the enrolment key that it is started with from another one. In the secret store a key may be
/// replaced without any change of the definition that names it, and tasks get it when they start.
pub const ENROLMENT_LABEL: &str = "PRIVATE_REGISTRY_ENROLMENT";

/// Label of everything that a service makes at Marathon and Metronome: its name. What lacks it is somebody else's.
pub const SERVICE_LABEL: &str = "PRIVATE_REGISTRY_SERVICE";

/// Starts a role, however often the download has to be repeated: a task that ends puts the whole pod into back-off.
const START: &str = "until echo \"$PRIVATE_REGISTRY_SHA256  private-registry\" | sha256sum -c - >/dev/null; do echo 'the downloaded private-registry does not have \
the promised SHA-256; fetching it again' >&2; sleep 5; curl -fsSL -o private-registry \"$PRIVATE_REGISTRY_URI\"; done; chmod 0755 private-registry && exec ./private-registry ";

/// The same inside the registry's container, where there is no curl: a bad download ends the task and is fetched anew.
const START_IN_CONTAINER: &str = "cd \"$MESOS_SANDBOX\" && echo \"$PRIVATE_REGISTRY_SHA256  private-registry\" | sha256sum -c - && chmod 0755 private-registry && exec ./private-registry ";

/// A template is broken. Templates are part of the program, so this is a defect of ours.
#[derive(Debug, thiserror::Error)]
#[error("the template {name} cannot be rendered: {reason}")]
pub struct TemplateError {
    name: &'static str,
    reason: String,
}

/// What the documents need beside the options.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Agent on which the registry stores its images.
    pub registry_host: Host,
    /// Agent that keeps the controller's state.
    pub home: Host,
    /// SHA-256 (hex) of this program.
    pub binary_sha256: String,
    /// Image of the registry.
    pub registry_image: String,
    /// CA certificates (PEM) of the registry that this one is a cache of, if the options name any.
    pub upstream_certificates: String,
    /// Public key that orders are signed with, base64.
    pub order_key: String,
    /// The order that new nodes start with, as JSON.
    pub first_order: Published,
    /// How the agents are divided among node pods.
    pub layout: Layout,
    /// Where the package has this program from: there when no controller is.
    pub package_uri: String,
    /// The package's options as the controller's template has put them into its environment.
    pub options: BTreeMap<String, String>,
    /// Whether this Metronome hands secrets to jobs.
    pub jobs_have_secrets: bool,
    /// Enrolment key, base64. It authenticates the registry's request; whoever reads Marathon's API can read it on open DC/OS.
    pub enrolment_key: Published,
    /// Tells that key from another one, and says nothing of it.
    pub enrolment_id: String,
}

/// All documents of an installation. On open DC/OS the registry's holds the enrolment key, so they are not printed.
#[derive(Clone)]
pub struct Documents {
    /// Id of the node pod; where there are several, what their ids begin with.
    pub pod_id: String,
    /// The node pod, scaled to 0; where there are several, what they have in common: see [`Documents::pod`].
    pub pod: Value,
    /// How the agents are divided among node pods.
    pub layout: Layout,
    /// Id of the registry app.
    pub registry_id: String,
    /// The registry app.
    pub registry: Value,
    /// Jobs by id. The first one is run as soon as it is there.
    pub jobs: Vec<(String, Value)>,
    /// Their schedules, by the ids of the jobs.
    pub schedules: BTreeMap<String, Value>,
}

impl Documents {
    /// Id of one of the node pods.
    pub fn pod_id(&self, shard: Shard) -> String {
        format!("{}{}", self.pod_id, shard.suffix())
    }

    /// One of the node pods, scaled to 0.
    pub fn pod(&self, shard: Shard) -> Value {
        let mut pod = self.pod.clone();
        if let Some(class) = self.layout.class(shard) {
            pod["id"] = Value::from(self.pod_id(shard));
            if let Some(constraints) = pod["scheduling"]["placement"]["constraints"].as_array_mut() {
                constraints.push(json!({ "fieldName": "hostname", "operator": "LIKE", "value": class }));
            }
            pod["labels"][DIGEST_LABEL] = Value::from(self.pod_digest(shard, &class));
        }
        pod
    }

    fn pod_digest(&self, shard: Shard, class: &str) -> String {
        sha256_hex(format!("{} \"{}\" {class}", self.pod["labels"][DIGEST_LABEL], self.pod_id(shard)).as_bytes())
    }

    /// Whether a stored document is this pod as we rendered it; as [`same`] says, but for a hundred pods none is rendered.
    pub fn is_pod(&self, shard: Shard, stored: &Value) -> bool {
        match self.layout.class(shard) {
            Some(class) => stored["labels"][DIGEST_LABEL] == *self.pod_digest(shard, &class),
            None => same(stored, &self.pod),
        }
    }
}

/// The class of hosts that a node pod is for, as its constraints name it.
pub fn class_of(pod: &Value) -> Option<&str> {
    let constraints = pod["scheduling"]["placement"]["constraints"].as_array()?;
    constraints.iter().find(|constraint| constraint["fieldName"] == "hostname" && constraint["operator"] == "LIKE")?["value"].as_str()
}

impl std::fmt::Debug for Documents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let jobs: Vec<&String> = self.jobs.iter().map(|(id, _)| id).collect();
        f.debug_struct("Documents")
            .field("pod", &self.pod_id)
            .field("registry", &self.registry_id)
            .field("jobs", &jobs)
            .finish_non_exhaustive()
    }
}

/// Id of the node pod. It lies directly below the root: in a group it could not reach public agents (Marathon 1.9 and later).
pub fn pod_id(options: &Options) -> String {
    format!("/{}", pod_name(&options.service.name))
}

/// The same without a slash.
fn pod_name(service: &str) -> String {
    format!("{}-node", service.replace('/', "."))
}

/// Id of one of a service's node pods.
pub fn shard_id(options: &Options, shard: Shard) -> String {
    format!("{}{}", pod_id(options), shard.suffix())
}

/// Which of a service's node pods has this id, if one of them can have it.
pub fn shard_of(options: &Options, id: &str) -> Option<Shard> {
    Shard::of_suffix(id.strip_prefix(&pod_id(options))?)
}

/// Whether a task of this id is a node of the service: the ids of a pod's tasks begin with the pod's.
pub fn is_node_task(service: &str, id: &str) -> bool {
    let pod = id.strip_prefix(&pod_name(service)).and_then(|rest| rest.split_once('.'));
    pod.is_some_and(|(suffix, _)| Shard::of_suffix(suffix).is_some())
}

/// Who reads the first order in the secret store: the id of the one node pod, or what the ids of several have in common, and a star.
pub fn node_reader(options: &Options, layout: Layout) -> String {
    if layout == Layout::One { pod_id(options) } else { format!("{}-*", pod_id(options)) }
}

/// A service in a group as one word. Names have no dots, so two services never get the same.
fn dotted(options: &Options) -> String {
    options.service.name.replace('/', ".")
}

/// Id of the registry app.
pub fn registry_id(options: &Options) -> String {
    format!("/{}", options.registry.name)
}

/// Id of the job that orders convergence.
pub fn init_job_id(options: &Options) -> String {
    format!("{}.init", dotted(options))
}

/// Ids of all jobs of a service. The one that removes the rest is the last: with it ends the run that deletes them.
pub fn job_ids(options: &Options) -> Vec<String> {
    let [collect, dry_run] = collect_job_ids(options);
    let copies = copy_job_ids(options).map(|(id, _)| id);
    let all = vec![init_job_id(options), rotate_job_id(options), collect, dry_run];
    all.into_iter().chain(copies).chain([uninstall_job_id(options)]).collect()
}

/// Ids of the jobs that order a backup or a restore, and which.
pub fn copy_job_ids(options: &Options) -> [(String, CopyKind); 3] {
    [("backup", CopyKind::Backup), ("backup-verify", CopyKind::VerifiedBackup), ("restore", CopyKind::Restore)]
        .map(|(word, kind)| (format!("{}.{word}", dotted(options)), kind))
}

/// Those of them that the options leave something to do; the others are not made.
pub fn possible_copy_jobs(options: &Options) -> impl Iterator<Item = (String, CopyKind)> {
    copy_job_ids(options).into_iter().filter(|(_, kind)| copying::is_possible(options, *kind))
}

/// Ids of the jobs that order a garbage collection, and one that deletes nothing.
pub fn collect_job_ids(options: &Options) -> [String; 2] {
    ["gc", "gc-dry-run"].map(|word| format!("{}.{word}", dotted(options)))
}

/// Id of a job's one schedule.
pub const SCHEDULE: &str = "regular";

/// The schedules that jobs are to have, by the ids of the jobs. A job that is not named here is to have none of ours.
fn schedules(options: &Options) -> BTreeMap<String, Value> {
    let [collect, _] = collect_job_ids(options);
    let [(backup, _), ..] = copy_job_ids(options);
    let zone = &options.garbage_collection.time_zone;
    let given = [(collect, &options.garbage_collection.schedule, zone), (backup, &options.backup.schedule, zone)];
    let schedule = |cron: &String, zone: &String| {
        // What a Metronome of DC/OS 1.9 knows, too. A run that has to wait for another one waits in the controller.
        json!({ "id": SCHEDULE, "cron": cron, "timezone": zone, "startingDeadlineSeconds": 900, "concurrencyPolicy": "ALLOW", "enabled": true })
    };
    let wanted = given.into_iter().filter(|(_, cron, _)| !cron.is_empty());
    wanted.map(|(id, cron, zone)| (id, schedule(cron, zone))).in_order()
}

/// Id of the job that orders a new CA.
pub fn rotate_job_id(options: &Options) -> String {
    format!("{}.rotate", dotted(options))
}

/// Id of the job that orders the removal, and does it itself where no controller is left.
pub fn uninstall_job_id(options: &Options) -> String {
    format!("{}.uninstall", dotted(options))
}

/// What the first order is called where it is published.
pub const FIRST_ORDER: &str = "first-order";
/// What the enrolment key is called where it is published.
pub const ENROLMENT_KEY: &str = "enrolment-key";

/// Paths of what tasks read in the secret store.
pub fn published_paths(options: &Options, layout: Layout) -> Vec<String> {
    vec![secrets::path_for(&node_reader(options, layout), FIRST_ORDER), secrets::path_for(&registry_id(options), ENROLMENT_KEY)]
}

/// Base URL under which tasks reach the controller: its named VIP, of which dcos-net drops the slashes.
pub fn controller_url(options: &Options) -> String {
    format!("http://{}.marathon.l4lb.thisdcos.directory:80", options.service.name.replace('/', ""))
}

/// The regular expression that matches one host.
pub fn exactly(host: &Host) -> String {
    format!("^{}$", host.to_string().replace('.', "\\."))
}

/// Renders all documents.
///
/// # Errors
/// Only if a template is broken.
pub fn render(options: &Options, facts: &Facts) -> Result<Documents, TemplateError> {
    let mut engine = Handlebars::new();
    engine.register_escape_fn(handlebars::no_escape);
    engine.set_strict_mode(true);
    engine.register_helper("json", Box::new(json_helper));
    engine.register_helper("start", Box::new(StartHelper));
    let values = values(options, facts);
    let document = |name, template, extra: Value| -> Result<Value, TemplateError> {
        let mut values = values.clone();
        values.extend(extra.as_object().cloned().unwrap_or_default());
        let broken = |reason: String| TemplateError { name, reason };
        let text = engine.render_template(template, &values).map_err(|error| broken(error.to_string()))?;
        let mut document: Value = crate::json::of_text(&text).map_err(|error| broken(error.to_string()))?;
        // Open DC/OS refuses the word itself in some versions, and Metronome a user that is none.
        for part in ["", "/run"] {
            if let Some(fields) = document.pointer_mut(part).and_then(Value::as_object_mut) {
                fields.retain(|key, value| !value.is_null() && (key != "secrets" || *value != json!({})));
            }
        }
        document["labels"][DIGEST_LABEL] = Value::from(sha256_hex(document.to_string().as_bytes()));
        Ok(document)
    };
    Ok(Documents {
        pod_id: pod_id(options),
        pod: document("pod", include_str!("templates/pod.json.hbs"), Value::Null)?,
        layout: facts.layout,
        registry_id: registry_id(options),
        registry: document("registry", include_str!("templates/registry.json.hbs"), Value::Null)?,
        jobs: jobs(options, facts)
            .into_iter()
            .map(|(id, values)| Ok((id, document("job", include_str!("templates/job.json.hbs"), values)?)))
            .collect::<Result<_, TemplateError>>()?,
        schedules: schedules(options),
    })
}

/// What the job's template needs beside the rest, by id.
fn jobs(options: &Options, facts: &Facts) -> Vec<(String, Value)> {
    let url = controller_url(options);
    let mut env = json!({ env::SHA256: facts.binary_sha256, env::CONTROLLER_URL: url });
    let job = |id: String, role: &str, description: &str, uri: &str, mut env: Value| {
        env[env::URI] = Value::from(uri);
        let values = json!({
            "job_id": id, "role": role, "description": description, "job_uri": uri, "job_env": env,
            "job_user": null, "job_constraints": [], "job_secrets": {},
        });
        (id, values)
    };
    let init = job(
        init_job_id(options),
        "init",
        "Covers every agent now, waits, and ends with a table of agents.",
        &binary_uri(options, facts),
        env.clone(),
    );
    let rotate = job(
        rotate_job_id(options),
        "init",
        "Replaces the CA and the registry's certificate, waits, and ends with a table of agents.",
        &binary_uri(options, facts),
        env.clone(),
    );
    let [collect_id, dry_run_id] = collect_job_ids(options);
    let uri = binary_uri(options, facts);
    let collects = "Deletes image data that no image uses any more; meanwhile the registry is read-only.";
    let collect = job(collect_id, "init", collects, &uri, env.clone());
    let dry_run = job(dry_run_id, "init", "Says what a garbage collection would delete, and deletes nothing.", &uri, env.clone());
    let mut copies = Vec::new();
    for (id, kind) in possible_copy_jobs(options) {
        let does = match kind {
            CopyKind::Backup => "Copies the images that backup.path does not have yet there, and verifies them.",
            CopyKind::VerifiedBackup => "The same, and reads again what backup.path has already.",
            CopyKind::Restore | CopyKind::Addition if options.storage.kind.is_object_store() => {
                "Adds the images of the backup to those in the object store."
            }
            CopyKind::Restore | CopyKind::Addition => "Puts the images of the backup in the place of all that the registry has.",
        };
        copies.push(job(id, "init", does, &uri, env.clone()));
    }
    // When it is needed there may be no controller to ask for the options or the program.
    env[env::APP_ID] = Value::from(format!("/{}", options.service.name));
    for (name, value) in &facts.options {
        env[name] = Value::from(value.clone());
    }
    let mut uninstall =
        job(uninstall_job_id(options), "uninstall", "Removes the service, also where its app is gone already.", &facts.package_uri, env);
    let values = &mut uninstall.1;
    if !options.has_account() {
        // The keys that sign the removal lie on this host, for root alone.
        values["job_user"] = Value::from("root");
        values["job_constraints"] = json!([{ "attribute": "hostname", "operator": "LIKE", "value": exactly(&facts.home) }]);
        return [init, rotate, collect, dry_run, uninstall].into_iter().chain(copies).collect();
    }
    if !facts.jobs_have_secrets {
        return [init, rotate, collect, dry_run].into_iter().chain(copies).collect();
    }
    values["job_env"][login::CREDENTIAL_VARIABLE] = json!({ "secret": "service-account" });
    values["job_secrets"] = json!({ "service-account": { "source": options.service.service_account_secret } });
    [init, rotate, collect, dry_run, uninstall].into_iter().chain(copies).collect()
}

/// Where tasks fetch this program: from the controller.
fn binary_uri(options: &Options, facts: &Facts) -> String {
    format!("{}/artifact/{}/private-registry", controller_url(options), facts.binary_sha256)
}

/// Whether a stored document was made by this service, now or by an earlier controller of it.
pub fn is_made_by(stored: &Value, options: &Options) -> bool {
    stored["labels"][SERVICE_LABEL] == *options.service.name
}

/// Whether a stored document is the one that we rendered.
pub fn same(stored: &Value, ours: &Value) -> bool {
    let digest = &ours["labels"][DIGEST_LABEL];
    digest.is_string() && stored["labels"][DIGEST_LABEL] == *digest
}

/// Where Marathon 1.5 and later keep what apps say in the syntax of 1.4.
const MOVED: [(&str, &str); 3] =
    [("/uris", "/fetch"), ("/container/docker/network", "/networks"), ("/container/docker/portMappings", "/container/portMappings")];

/// Paths of what was sent and does not stand in the stored document as it was sent. Marathon drops in silence what its version does
/// not know, and reads some wrong types as something else; so what counts is what it shows afterwards.
pub fn not_stored(sent: &Value, stored: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    compare(sent, stored, stored, "", &mut paths);
    paths
}

fn compare(sent: &Value, stored: &Value, document: &Value, path: &str, paths: &mut Vec<String>) {
    match (sent, stored) {
        (Value::Object(sent), Value::Object(fields)) => {
            for (key, value) in sent {
                let path = format!("{path}/{key}");
                let moved = MOVED.iter().find(|(from, _)| *from == path).and_then(|(_, to)| document.pointer(to));
                match (fields.get(key), moved) {
                    // Another syntax: only what it says about ports can be compared.
                    (None, Some(moved)) if moved.is_array() && value.is_array() && !path.ends_with("uris") => {
                        compare(value, moved, document, &path, paths);
                    }
                    (None, Some(_)) => {}
                    (Some(stored), _) => compare(value, stored, document, &path, paths),
                    (None, None) => paths.push(path),
                }
            }
        }
        // Constraints and roles are sets: their order is not kept.
        (Value::Array(sent), Value::Array(items)) => {
            for (index, value) in sent.iter().enumerate() {
                let is_stored = |item: &Value| {
                    let mut differences = Vec::new();
                    compare(value, item, document, path, &mut differences);
                    differences.is_empty()
                };
                if !items.iter().any(is_stored) {
                    match items.get(index).filter(|item| item.is_object() && sent.len() == items.len()) {
                        Some(item) => compare(value, item, document, &format!("{path}/{index}"), paths),
                        None => paths.push(format!("{path}/{index}")),
                    }
                }
            }
        }
        (Value::Number(sent), Value::Number(stored)) if sent.as_f64() == stored.as_f64() => {}
        // 0 asks Marathon to choose.
        (Value::Number(sent), Value::Number(_)) if sent.as_f64() == Some(0.0) && path.to_lowercase().ends_with("port") => {}
        (sent, stored) if sent == stored => {}
        _ => paths.push(path.to_string()),
    }
}

/// The pod with its number of instances. Where scaling alone does not keep to UNIQUE, the number stands in the environment, too, so that
/// a change of it replaces all instances.
pub fn scaled(pod: &Value, instances: u64, marathon: versions::Marathon) -> Value {
    let mut pod = pod.clone();
    pod["scaling"]["instances"] = Value::from(instances);
    if !marathon.keeps_unique_when_scaled() {
        pod["environment"]["PRIVATE_REGISTRY_SCALE"] = Value::from(instances.to_string());
    }
    pod
}

fn values(options: &Options, facts: &Facts) -> Map<String, Value> {
    let service = &options.service.name;
    let mut vips = Map::new();
    if let Some(vip) = &options.vip {
        vips.insert("VIP_0".into(), Value::from(vip.to_string()));
    }
    if let Some((name, port)) = &options.named_vip {
        vips.insert("VIP_1".into(), Value::from(format!("/{name}:{port}")));
    }
    let mut labels = json!({ SERVICE_LABEL: service, ENROLMENT_LABEL: facts.enrolment_id });
    if !options.has_account() {
        // Keys in the secret store are at no host, and what moved with the controller would have the registry replaced.
        labels[HOME_LABEL] = json!(facts.home);
    }
    labels[storage::LABEL] = Value::from(storage::store(options, &facts.registry_host));
    if options.registry.replicas == 1 {
        labels["MARATHON_SINGLE_INSTANCE_APP"] = Value::from("true");
    }
    if options.exposure.marathon_lb {
        labels["HAPROXY_GROUP"] = Value::from(MARATHON_LB_GROUP);
        labels["HAPROXY_0_MODE"] = Value::from("tcp");
        if !options.allowed_sources.is_empty() {
            // Marathon-LB wants them separated by blanks: with a comma HAProxy refuses its whole configuration.
            let sources: Vec<String> = options.allowed_sources.iter().map(ToString::to_string).collect();
            labels["HAPROXY_0_BACKEND_NETWORK_ALLOWED_ACL"] = Value::from(sources.join(" "));
        }
        // The status port must not be reachable from outside.
        labels["HAPROXY_1_ENABLED"] = Value::from("false");
        labels["HAPROXY_1_GROUP"] = Value::from("none");
    }
    let provided: BTreeMap<String, Published> = settings::held(options).iter().filter_map(Held::published).in_order();
    let values = json!({
        "service": service,
        "pod_id": pod_id(options),
        "registry_id": registry_id(options),
        "binary_sha256": facts.binary_sha256,
        "binary_uri": binary_uri(options, facts),
        "order_key": facts.order_key,
        "first_order": facts.first_order.variable,
        "enrolment_key": facts.enrolment_key.variable,
        "node_secrets": distribution::secrets([&facts.first_order]),
        "registry_secrets": distribution::secrets([&facts.enrolment_key].into_iter().chain(provided.values())),
        "log_level": options.service.log_level,
        "registry_cpus": options.registry.cpus,
        "registry_mem": options.registry.mem,
        "registry_image": facts.registry_image,
        "registry_settings": json!(settings::settings(options, &facts.upstream_certificates)).to_string(),
        "registry_volumes": settings::volumes(options),
        "registry_parameters": settings::parameters(options),
        "provided": provided.iter().map(|(name, published)| (name.clone(), published.variable.clone())).collect::<Map<_, _>>(),
        "registry_constraints": settings::constraints(options, &facts.registry_host),
        "registry_replicas": options.registry.replicas,
        "least_healthy": if options.registry.replicas > 1 { 0.5 } else { 0.0 },
        "host_port": options.exposure.host_port,
        "service_port": if options.exposure.marathon_lb { options.exposure.service_port } else { 0 },
        "vip_labels": if vips.is_empty() { Value::Null } else { Value::Object(vips) },
        "registry_labels": labels,
        "kill_grace_seconds": options.registry.drain_seconds + 10,
        "check_every": registry::CHECK_EVERY,
        // While it drains it takes no connection: Marathon must not kill it meanwhile.
        "most_failures": if options.registry.replicas > 1 {
            registry::most_failures(Duration::from_secs(options.registry.drain_seconds))
        } else {
            options.registry.drain_seconds.div_ceil(registry::CHECK_EVERY) + 3
        },
    });
    match values {
        Value::Object(values) => values,
        _ => Map::new(),
    }
}

fn json_helper(helper: &Helper, _: &Handlebars, _: &Context, _: &mut RenderContext, out: &mut dyn Output) -> HelperResult {
    let value = helper.param(0).ok_or_else(|| RenderErrorReason::ParamNotFoundForIndex("json", 0))?;
    out.write(&value.value().to_string())?;
    Ok(())
}

/// The shell line that starts a role.
struct StartHelper;

impl handlebars::HelperDef for StartHelper {
    fn call_inner<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
    ) -> Result<handlebars::ScopedJson<'rc>, handlebars::RenderError> {
        let role = helper.param(0).and_then(|p| p.value().as_str()).ok_or_else(|| RenderErrorReason::ParamNotFoundForIndex("start", 0))?;
        let start = if role == "registry" { START_IN_CONTAINER } else { START };
        Ok(handlebars::ScopedJson::from(Value::from(format!("{start}{role}"))))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    pub(crate) fn documents(given: Value) -> Documents {
        documents_with(given, in_definition("{\"payload\":\"cGF5\",\"signature\":\"c2ln\"}"), in_definition("ZW5yb2w="))
    }

    pub(crate) fn documents_with(given: Value, first_order: Published, enrolment_key: Published) -> Documents {
        let options = Options::from_json(&given).unwrap();
        let facts = Facts {
            registry_host: "192.168.1.80".parse().unwrap(),
            home: "192.168.1.80".parse().unwrap(),
            binary_sha256: "ab".repeat(32),
            registry_image: "registry:2.8.3".into(),
            upstream_certificates: String::new(),
            order_key: "a2V5".into(),
            first_order,
            layout: Layout::One,
            enrolment_key,
            package_uri: "http://universe.example.com/private-registry".into(),
            options: BTreeMap::from([("OPTION_SERVICE_NAME".to_string(), options.service.name.clone())]),
            jobs_have_secrets: true,
            enrolment_id: "id".into(),
        };
        render(&options, &facts).unwrap()
    }

    fn in_definition(text: &str) -> Published {
        Published { variable: text.into(), secret: None }
    }

    #[test]
    fn a_secret_store_slots_in_and_without_one_no_definition_mentions_secrets() {
        let open = documents(json!({}));
        assert!(open.pod.get("secrets").is_none() && open.registry.get("secrets").is_none());
        let secret =
            |key: &str| Published { variable: json!({ "secret": key }), secret: Some((key.into(), format!("private-registry/{key}"))) };
        let documents = documents_with(json!({}), secret("bundle"), secret("enrolment"));
        assert_eq!(documents.pod["environment"]["PRIVATE_REGISTRY_FIRST_ORDER"], json!({ "secret": "bundle" }));
        assert_eq!(documents.pod["secrets"], json!({ "bundle": { "source": "private-registry/bundle" } }));
        assert_eq!(documents.registry["secrets"], json!({ "enrolment": { "source": "private-registry/enrolment" } }));
    }

    #[test]
    fn a_stored_pod_is_told_from_those_of_other_hosts_and_another_definition_without_rendering_it() {
        use crate::shards::Number;
        for layout in [Layout::One, Layout::Ten(Number::OfName), Layout::Hundred(Number::OfFirstLabel)] {
            let mut ours = documents(json!({}));
            ours.layout = layout;
            let mut other = ours.clone();
            other.pod["labels"][DIGEST_LABEL] = "other".into();
            for shard in layout.shards() {
                let pod = ours.pod(shard);
                let stored = scaled(&pod, 7, versions::Marathon::default());
                assert!(same(&stored, &pod) && ours.is_pod(shard, &stored));
                assert!(!other.is_pod(shard, &stored) && !ours.is_pod(shard, &json!({ "labels": {} })));
                assert_eq!(layout.shards().into_iter().filter(|other| ours.is_pod(*other, &stored)).collect::<Vec<_>>(), [shard]);
                // What earlier versions of this program have stored is not replaced.
                let Some(class) = layout.class(shard) else { continue };
                let earlier = format!("{} {} {class}", ours.pod["labels"][DIGEST_LABEL], pod["id"]);
                assert_eq!(pod["labels"][DIGEST_LABEL], sha256_hex(earlier.as_bytes()));
            }
        }
    }

    #[test]
    fn the_registry_is_as_the_tutorial_has_it_but_for_its_mistakes() {
        let registry = documents(json!({})).registry;
        assert_eq!(registry["id"], "/registry");
        let port = &registry["container"]["docker"]["portMappings"][0];
        assert_eq!((&port["labels"]["VIP_0"], &port["servicePort"]), (&json!("192.168.0.1:443"), &json!(5000)));
        assert_eq!(registry["labels"]["HAPROXY_GROUP"], "external");
        assert_eq!(registry["constraints"], json!([["hostname", "LIKE", "^192\\.168\\.1\\.80$"]]));
        // By TCP at the registry's own port, every check would be a failed handshake in its log.
        let check = &registry["healthChecks"][0];
        assert_eq!((&check["protocol"], &check["portIndex"], &check["path"]), (&json!("MESOS_HTTP"), &json!(1), &json!("/health")));
    }

    #[test]
    fn one_of_several_registries_may_be_unhealthy_for_as_long_as_it_takes_to_leave_the_vip() {
        let several = |replicas: u32, drain: u32| {
            let registry = json!({ "replicas": replicas, "drain_seconds": drain });
            let options = json!({ "registry": registry, "storage": { "kind": "s3", "bucket": "b" } });
            documents(options).registry["healthChecks"][0].clone()
        };
        let (one, two) = (several(1, 30), several(2, 30));
        assert_eq!(one["maxConsecutiveFailures"], 9);
        // 63 s at the most, and a check every 5 s.
        assert_eq!((&two["intervalSeconds"], &two["maxConsecutiveFailures"]), (&json!(5), &json!(15)));
    }

    #[test]
    fn a_service_in_a_group_has_its_pod_below_the_root_and_names_that_no_other_has() {
        let documents = documents(json!({"service": {"name": "infra/images"}}));
        assert_eq!(documents.pod_id, "/infra.images-node");
        assert_eq!(documents.jobs[0].0, "infra.images.init");
        let env = &documents.pod["environment"];
        assert_eq!(env["PRIVATE_REGISTRY_SERVICE"], "infra/images");
        assert!(env["PRIVATE_REGISTRY_URI"].as_str().unwrap().starts_with("http://infraimages.marathon.l4lb.thisdcos.directory:80/"));
    }

    #[test]
    fn without_marathon_lb_nothing_is_exposed() {
        let registry = documents(json!({"exposure": {"marathon_lb": false}})).registry;
        assert!(registry["labels"].get("HAPROXY_GROUP").is_none());
        assert_eq!(registry["container"]["docker"]["portMappings"][0]["servicePort"], 0);
    }

    #[test]
    fn the_node_pod_has_no_image_and_always_names_its_network() {
        let pod = documents(json!({})).pod;
        assert!(pod["containers"][0].get("image").is_none());
        assert_eq!(pod["networks"], json!([{"mode": "host"}]));
        assert_eq!(pod["containers"][0]["exec"]["command"]["shell"].as_str().unwrap().rsplit(' ').next(), Some("node"));
    }

    #[test]
    fn what_marathon_drops_changes_or_merely_writes_otherwise_is_told_apart() {
        let sent = documents(json!({})).registry;
        let mut stored = sent.clone();
        stored["container"]["portMappings"] = stored["container"]["docker"]["portMappings"].take();
        stored["networks"] = json!([{ "mode": "container/bridge" }]);
        stored["fetch"] = json!([{ "uri": sent["uris"][0], "extract": false }]);
        stored["container"]["portMappings"][1]["servicePort"] = json!(10001);
        stored["cpus"] = json!(0.5);
        let docker = stored["container"]["docker"].as_object_mut().unwrap();
        docker.remove("network");
        docker.remove("portMappings");
        stored.as_object_mut().unwrap().remove("uris");
        assert_eq!(not_stored(&sent, &stored), Vec::<String>::new());
        stored["container"]["portMappings"][0]["labels"].as_object_mut().unwrap().remove("VIP_1");
        stored.as_object_mut().unwrap().remove("healthChecks");
        stored["mem"] = json!(128);
        assert_eq!(not_stored(&sent, &stored), ["/mem", "/container/docker/portMappings/0/labels/VIP_1", "/healthChecks"]);
    }

    #[test]
    fn roles_that_marathon_takes_away_are_seen_though_their_order_does_not_count() {
        let sent = documents(json!({})).pod;
        let mut stored = sent.clone();
        let roles = |value| json!({ "placement": { "acceptedResourceRoles": value, "constraints": sent["scheduling"]["placement"]["constraints"] } });
        stored["scheduling"]["placement"] = roles(json!(["slave_public", "*"]))["placement"].clone();
        assert_eq!(not_stored(&sent, &stored), Vec::<String>::new());
        stored["scheduling"]["placement"] = roles(json!(["*"]))["placement"].clone();
        assert_eq!(not_stored(&sent, &stored), ["/scheduling/placement/acceptedResourceRoles/1"]);
    }

    /// Keys that stand in what a real Marathon of this version has shown of apps or pods.
    fn keys_stored_by(version: &str) -> BTreeSet<String> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stored").join(version);
        let mut keys = BTreeSet::new();
        for file in std::fs::read_dir(dir).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            let text = String::from_utf8_lossy(&bytes);
            let body = text.split_once("\r\n\r\n").or_else(|| text.split_once("\n\n")).map_or("", |(_, body)| body);
            let Ok(answer) = crate::json::of_text::<Value>(body) else { continue };
            collect_keys(answer.get("app").unwrap_or(&answer), "", &mut keys);
        }
        assert!(keys.len() > 100, "only {} keys of {version}", keys.len());
        keys
    }

    fn collect_keys(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let path = format!("{path}/{key}");
                    // Below these the keys are ours.
                    if !["labels", "env", "environment"].contains(&key.as_str()) {
                        collect_keys(value, &path, keys);
                    }
                    keys.insert(path);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect_keys(item, &format!("{path}/*"), keys)),
            _ => {}
        }
    }

    #[test]
    fn no_marathon_from_dcos_1_9_on_drops_a_field_of_ours() {
        // Known to that version, but in none of its recordings.
        let unrecorded = [
            ("1.4.2", "/container/docker/portMappings/*/name"),
            ("1.7.202", "/taskKillGracePeriodSeconds"),
            ("1.7.202", "/container/portMappings/*/name"),
        ];
        let ours = documents(json!({}));
        for version in ["1.4.2", "1.7.202"] {
            let known = keys_stored_by(version);
            for document in [&ours.pod, &ours.registry] {
                let mut keys = BTreeSet::new();
                collect_keys(document, "", &mut keys);
                let is_kept = |key: &String| {
                    let moved = |(from, to): &(&str, &str)| key.strip_prefix(from).map(|rest| format!("{to}{rest}"));
                    let elsewhere = MOVED.iter().find_map(moved);
                    let is_known = |key: &String| known.contains(key) || unrecorded.contains(&(version, key.as_str()));
                    is_known(key) || elsewhere.is_some_and(|key| is_known(&key))
                };
                let dropped: Vec<&String> = keys.iter().filter(|key| !is_kept(key)).collect();
                assert!(dropped.is_empty(), "Marathon {version}: {dropped:?}");
            }
        }
    }

    #[test]
    fn a_document_is_recognised_after_marathon_has_normalised_it_and_scaling_does_not_change_it() {
        let ours = documents(json!({}));
        let mut stored = scaled(&ours.pod, 3, versions::Marathon::default());
        stored["scheduling"]["placement"]["constraints"] = json!([]);
        assert!(same(&stored, &ours.pod));
        assert!(!same(&stored, &documents(json!({"service": {"log_level": "debug"}})).pod));
    }

    #[test]
    fn nasty_option_values_stay_inside_their_strings() {
        let nasty = "/data/\"},\"x\":{{json service}}\u{e9}\\/a";
        let registry = documents(json!({"registry": {"storage_path": nasty}})).registry;
        assert_eq!(registry["container"]["volumes"][0]["hostPath"], nasty);
    }

    #[test]
    fn the_program_is_not_started_before_its_digest_is_right() {
        use std::os::unix::fs::PermissionsExt;
        use std::process::Command;
        let dir = tempfile::tempdir().unwrap();
        let program = "#!/bin/sh\necho started as $1\n";
        let put = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        // The first download is forged on its way, and so is the second one; the third is right.
        put("private-registry", "#!/bin/sh\ntouch forged\n");
        put("right", program);
        put(
            "curl",
            "#!/bin/sh\nif [ -e asked ]; then cp right private-registry; else echo 'touch forged' >private-registry; fi; touch asked\n",
        );
        put("sleep", "#!/bin/sh\n");
        let run = |start: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", start]).current_dir(&dir).env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()));
            command.env("PRIVATE_REGISTRY_SHA256", sha256_hex(program.as_bytes())).env("MESOS_SANDBOX", dir.path());
            command.output().unwrap()
        };
        let in_container = run(&format!("{START_IN_CONTAINER}registry"));
        assert!(!in_container.status.success() && !dir.path().join("forged").exists());
        assert_eq!(String::from_utf8_lossy(&run(&format!("{START}node")).stdout), "started as node\n");
        assert!(!dir.path().join("forged").exists() && dir.path().join("asked").exists());
        assert!(String::from_utf8_lossy(&run(&format!("{START_IN_CONTAINER}registry")).stdout).ends_with("started as registry\n"));
    }
}
