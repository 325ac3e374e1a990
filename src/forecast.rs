//! What an installation, an update, a rotation or a removal would do: the planner's own answers, one after another, for a cluster in
//! which every step goes well.
//!
//! The controller plans anew after every look. Here each action is played on a copy of what was observed, and the planner is asked
//! again until it has nothing left to do. So the steps, their order, their reasons and the documents are those of the controller.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use crate::controller::state::{Reason, Rotation, Stage};
use crate::dcos::marathon::{App, AppTask, Instance, Pod};
use crate::dcos::metronome::Job;
use crate::distribution::Published;
use crate::documents::{self, Facts, TemplateError};
use crate::in_order::InOrder as _;
use crate::names::Host;
use crate::options::{Generation, Options, SecurityMode};
use crate::plan::{self, Action, Leaf, NODE_NEEDS, Observed, RegistryTask, Wanted};
use crate::protocol::{
    CertificateRequest, NodePhase, NodeStatus, RegistryPhase, RegistryStatus, SignedOrder, SysctlState, SysctlStatus, env,
};
use crate::shards::{Layout, Shard};
use crate::takeover::Takeover;

/// Stands in a document where the controller puts a key that nobody else should read.
pub const REDACTED: &str = "<redacted>";
/// Stands where the controller puts what it has yet to make, or where the package's own document says it.
const MADE_LATER: &str = "<made by the controller>";
/// The planner is done after a few rounds; a defect of ours must not keep it going for ever.
const ROUNDS: usize = 60;

/// What is to be foreseen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Installation, or another set of options: those in force, and those that are to be.
    Options,
    /// Another CA.
    Rotation,
    /// The removal.
    Removal,
}

/// What would be done.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Forecast {
    /// In order, each with its reason.
    pub steps: Vec<String>,
    /// What the controller would send.
    pub documents: Vec<Document>,
    /// What to know about all that.
    pub notes: Vec<String>,
}

/// A document as it would be sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Document {
    /// `pod`, `app`, `job` or `schedule`.
    pub kind: &'static str,
    /// Where it would be stored.
    pub id: String,
    /// The whole of it; secrets are references or [`REDACTED`].
    pub document: Value,
}

/// Plays what the controller would do. `changes`: bundle and names differ from what agents have now.
///
/// # Errors
/// Only if a template is broken.
pub fn foresee(
    purpose: &Purpose,
    options: &Options,
    vars: &BTreeMap<String, String>,
    mut observed: Observed,
    changes: Changes,
) -> Result<Forecast, TemplateError> {
    if *purpose == Purpose::Removal {
        return Ok(removal(options, &observed));
    }
    let mut forecast = Forecast::default();
    if !observed.locked.is_empty() {
        let locked = observed.locked.iter().cloned().collect::<Vec<_>>().join(", ");
        forecast.notes.push(format!("deployments of {locked} run now; what concerns them waits for their end"));
        observed.locked.clear();
    }
    if !options.registry.enabled {
        observed.registry.take_if(|app| !documents::is_made_by(&app.spec, options));
    }
    let mut play = Play::new(options, vars, observed, changes)?;
    if *purpose == Purpose::Rotation {
        match options.security.mode {
            SecurityMode::SelfSigned => play.wanted.ca.due = Some(Reason::Order),
            SecurityMode::DcosCa => {
                play.wanted.leaves.clear();
                forecast.notes.push("the CA is that of the cluster and stays; the registry gets another certificate of it".into());
            }
            SecurityMode::Provided | SecurityMode::Insecure => {
                forecast.notes.push("a rotation replaces nothing: the certificate is not the service's own (security.mode)".into());
            }
        }
    }
    let actions = play.run();
    forecast.steps = told(&actions);
    forecast.documents = actions.iter().filter_map(document).collect();
    if play.hides_keys {
        forecast.notes.push(format!("{REDACTED} stands for a key, {MADE_LATER} for what only the controller can make or know"));
    }
    Ok(forecast)
}

/// How what is wanted differs from what agents have, as far as documents do not show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// The trust bundle.
    pub bundle: bool,
    /// The CA may not speak for all names.
    pub names: bool,
}

impl Changes {
    /// Compares the options in force with those that are to be.
    pub fn between(before: &Options, after: &Options, observed: &Observed) -> Self {
        let names = |options: &Options| options.trusted_names(&plan::registry_host(observed, options));
        let trust =
            |o: &Options| (o.trust.containerd, o.trust.podman, o.trust.system, o.trust.conntrack_be_liberal, o.takeover.clean_agents);
        let known = names(before);
        let named = names(after);
        let signs = before.security.mode == after.security.mode && after.security.mode == SecurityMode::SelfSigned;
        Self {
            bundle: known != named
                || trust(before) != trust(after)
                || before.others != after.others
                || before.security.mode != after.security.mode,
            names: signs && named.iter().any(|name| !known.iter().any(|known| known.name.host == name.name.host)),
        }
    }
}

/// Every action in a line; many agents in one.
fn told(actions: &[Action]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = actions;
    while let Some(first) = rest.first() {
        let pods: Vec<(u64, &str)> = rest
            .iter()
            .map_while(|action| match action {
                Action::PutPod { instances, reason, .. } => Some((*instances, reason.as_str())),
                _ => None,
            })
            .collect();
        let alike: Vec<u64> = pods.iter().take_while(|(_, reason)| *reason == pods[0].1).map(|(instances, _)| *instances).collect();
        if alike.len() > 1 {
            let (agents, reason) = (alike.iter().sum::<u64>(), pods[0].1);
            lines.push(format!("run the node on {agents} agents, in {} pods: {reason}", alike.len()));
            rest = &rest[alike.len()..];
            continue;
        }
        let hosts: Vec<&Host> =
            rest.iter().map_while(|action| if let Action::SendTrust { host } = action { Some(host) } else { None }).collect();
        if hosts.len() > 1 {
            let named: Vec<String> = hosts.iter().take(3).map(ToString::to_string).collect();
            let more = if hosts.len() > 3 { format!(" and {} more", hosts.len() - 3) } else { String::new() };
            lines.push(format!("send the trust bundle to {} agents: {}{more}", hosts.len(), named.join(", ")));
        } else {
            lines.push(first.to_string());
        }
        rest = &rest[hosts.len().max(1)..];
    }
    lines
}

/// What an action would send, without keys.
fn document(action: &Action) -> Option<Document> {
    let of = |kind, id: &str, document: &Value| Some(Document { kind, id: id.into(), document: without_keys(document.clone()) });
    match action {
        Action::PutPod { pod, .. } => of("pod", pod["id"].as_str()?, pod),
        Action::PutRegistry { app, .. } | Action::TakeOver { app, .. } => of("app", app["id"].as_str()?, app),
        Action::PutJob { id, job, .. } => of("job", id, job),
        Action::PutSchedule { job, schedule, .. } => of("schedule", job, schedule),
        _ => None,
    }
}

/// On open DC/OS the enrolment key stands in the registry's definition.
pub fn without_keys(mut document: Value) -> Value {
    if let Some(key) = document.pointer_mut(&format!("/env/{}", env::ENROLMENT_KEY)).filter(|key| key.is_string() && **key != MADE_LATER) {
        *key = Value::from(REDACTED);
    }
    for pointer in ["/env", "/run/env"] {
        let variables = document.pointer_mut(pointer).and_then(Value::as_object_mut).into_iter().flatten();
        variables.filter(|(name, value)| names_a_secret(name) && **value != "").for_each(|(_, value)| *value = Value::from(REDACTED));
    }
    document
}

/// Options that name where a secret is. Whoever has misread that has put the secret itself there.
const OF_SECRETS: [&str; 6] = [
    "OPTION_SECURITY_KEY",
    "OPTION_STORAGE_ACCESS_KEY",
    "OPTION_STORAGE_SECRET_KEY",
    "OPTION_STORAGE_CREDENTIALS",
    "OPTION_AUTH_HTPASSWD",
    "OPTION_PROXY_PASSWORD",
];

/// Whether the variable of an option may hold a secret by mistake.
pub fn names_a_secret(variable: &str) -> bool {
    OF_SECRETS.contains(&variable)
}

/// The removal is led by what is still there, and not by the planner.
fn removal(options: &Options, observed: &Observed) -> Forecast {
    let mut forecast = Forecast::default();
    let mut step = |text: String| forecast.steps.push(text);
    if let Some(app) = observed.registry.as_ref().filter(|app| documents::is_made_by(&app.spec, options)) {
        let hosts: Vec<String> = app.tasks.iter().map(|task| task.host.to_string()).collect();
        step(format!("tell the registry on {} to stop and to delete its key", hosts.join(" and ")));
        if options.uninstall.delete_data {
            step("delete all images of the registry: uninstall.delete_data is true".into());
        }
        step(format!("delete the app {}", documents::registry_id(options)));
    }
    let pods: Vec<(&Shard, &Pod)> = observed.pods.iter().filter(|(_, pod)| documents::is_made_by(&pod.spec, options)).collect();
    if !pods.is_empty() {
        let instances = pods.iter().flat_map(|(_, pod)| &pod.instances);
        let hosts: Vec<String> = instances.filter_map(|instance| Some(instance.host.as_ref()?.to_string())).collect();
        let named: Vec<String> = hosts.iter().take(8).cloned().collect();
        let more = if hosts.len() > 8 { format!(" and {} more", hosts.len() - 8) } else { String::new() };
        step(format!("put {} agents back as they were before, and wait for that: {}{more}", hosts.len(), named.join(", ")));
        let ids = pods.iter().map(|(shard, _)| format!("{}{}", documents::pod_id(options), shard.suffix()));
        ids.for_each(|id| step(format!("delete the pod {id}")));
    }
    for id in documents::job_ids(options) {
        if observed.jobs.get(&id).is_some_and(|job| documents::is_made_by(&job.spec, options)) {
            step(format!("delete the job {id}"));
        }
    }
    if observed.own_app.is_some() {
        step("delete the service's own keys and records".into());
        step(format!("delete the controller's app /{}: Cosmos does that, or else the controller itself", options.service.name));
    }
    if forecast.steps.is_empty() {
        forecast.notes.push(format!("there is nothing of {}", options.service.name));
    } else {
        if !options.uninstall.delete_data {
            forecast.notes.push("the images stay: uninstall.delete_data is false".into());
        }
        let seconds = options.uninstall.deadline_seconds;
        forecast.notes.push(format!(
            "agents that do not answer within {seconds} s keep what was written there until `private-registry restore` is run on them"
        ));
    }
    forecast
}

/// The cluster in which every step goes well.
struct Play {
    wanted: Wanted,
    observed: Observed,
    /// Told apart by their number.
    bundles: usize,
    leaves: usize,
    replicas: usize,
    registry_host: Host,
    hides_keys: bool,
}

impl Play {
    fn new(options: &Options, vars: &BTreeMap<String, String>, observed: Observed, changes: Changes) -> Result<Self, TemplateError> {
        let registry_host = plan::registry_host(&observed, options);
        let own = observed.own_app.as_ref();
        let pod = observed.pods.values().map(|pod| pod.spec.as_ref()).find(|spec| documents::is_made_by(spec, options));
        let hosts = observed.agents.iter().map(|agent| &agent.host);
        let layout = observed.layout(options).unwrap_or_else(|| Layout::first(options.trust.shards, hosts));
        let app = observed.registry.as_ref().map(|app| &app.spec).filter(|spec| documents::is_made_by(spec, options));
        let published = |spec: Option<&Value>, section: &str, variable: &str| {
            let value = spec.map(|spec| &spec[section][variable]).filter(|value| !value.is_null());
            let value = value.cloned().unwrap_or_else(|| Value::from(MADE_LATER));
            let secret = value["secret"].as_str().and_then(|key| {
                let source = spec?["secrets"][key]["source"].as_str()?;
                Some((key.to_string(), source.to_string()))
            });
            Published { variable: value, secret }
        };
        let text = |spec: Option<&Value>, section: &str, variable: &str| {
            let text = spec.and_then(|spec| spec[section][variable].as_str());
            text.map_or_else(|| MADE_LATER.to_string(), String::from)
        };
        let own_env = |variable: &str| text(own.map(|app| &app.spec), "env", variable);
        let image = match options.registry.generation {
            Generation::Two => own_env("PRIVATE_REGISTRY_IMAGE"),
            Generation::Three => own_env("PRIVATE_REGISTRY_IMAGE_3"),
        };
        let home = plan::home(&observed).or_else(|| own.and_then(|app| Some(app.tasks.first()?.host.clone())));
        // What the controller has found of the upstream's CA stands in the stored definition.
        let stored = text(app, "env", env::REGISTRY_SETTINGS);
        let stored: Value = crate::json::of_text(&stored).unwrap_or_default();
        let facts = Facts {
            upstream_certificates: stored["proxy"]["certificates"].as_str().unwrap_or_default().to_string(),
            home: home.unwrap_or_else(|| registry_host.clone()),
            registry_host: registry_host.clone(),
            binary_sha256: own_env(env::SHA256),
            registry_image: if options.registry.image.is_empty() { image } else { options.registry.image.clone() },
            order_key: text(pod, "environment", env::ORDER_KEY),
            first_order: published(pod, "environment", env::FIRST_ORDER),
            layout,
            package_uri: own_env(env::URI),
            options: vars.clone(),
            jobs_have_secrets: observed.metronome.has_secrets(),
            enrolment_key: published(app, "env", env::ENROLMENT_KEY),
            enrolment_id: text(app, "labels", documents::ENROLMENT_LABEL),
        };
        let hides_keys = facts.enrolment_key.secret.is_none() || facts.order_key == MADE_LATER;
        let wanted = Wanted {
            documents: documents::render(options, &facts)?,
            trust: bundle(0),
            now: 0,
            leaves: BTreeMap::new(),
            ca: plan::Ca {
                due: changes.names.then_some(Reason::Names),
                plain_http: options.is_insecure(),
                signs_nothing: matches!(options.security.mode, SecurityMode::Provided | SecurityMode::Insecure),
                deadline: i64::MAX,
                ..plan::Ca::default()
            },
            registry: options.registry.enabled,
            retirement: 1,
            retirement_is_late: false,
            takeover: Takeover::of(options, &observed, 0),
            users: None,
        };
        let replicas = options.registry.replicas as usize;
        let mut play = Self { wanted, observed, bundles: 1, leaves: 0, replicas, registry_host, hides_keys };
        // All that runs is taken to be well; that it is not is the affair of `status`.
        play.observed.nodes = play.placed().map(|host| (host.clone(), node(host, &play.wanted.trust))).in_order();
        let tasks = play.observed.registry.as_ref().filter(|app| documents::is_made_by(&app.spec, options)).map(|app| app.tasks.clone());
        play.observed.registries.clear();
        for task in tasks.unwrap_or_default() {
            let address = address(&task);
            let mut status = registry(&task.host);
            play.certify(&address, &mut status);
            play.observed.registries.push(RegistryTask { address, status });
        }
        if changes.bundle {
            play.renew_bundle();
        }
        if let Some(job) = play.observed.jobs.get_mut(&documents::init_job_id(options)) {
            job.finished_runs = job.finished_runs.max(1);
        }
        Ok(play)
    }

    fn placed(&self) -> impl Iterator<Item = &Host> {
        self.observed.instances().filter_map(|instance| instance.host.as_ref())
    }

    fn run(&mut self) -> Vec<Action> {
        let mut all = Vec::new();
        for _ in 0..ROUNDS {
            let actions = plan::converge(&self.wanted, &self.observed).actions;
            if actions.is_empty() {
                break;
            }
            actions.iter().for_each(|action| self.play(action));
            all.extend(actions);
        }
        all
    }

    fn renew_bundle(&mut self) {
        self.wanted.trust = bundle(self.bundles);
        self.bundles += 1;
    }

    fn certify(&mut self, address: &str, status: &mut RegistryStatus) {
        self.leaves += 1;
        let fingerprint = self.leaves.to_string();
        (status.phase, status.leaf_fingerprint) = (RegistryPhase::Serving, Some(fingerprint.clone()));
        self.wanted.leaves.insert(address.to_string(), Leaf { fingerprint, renew_at: i64::MAX });
    }

    fn play(&mut self, action: &Action) {
        match action {
            Action::PutPod { shard, pod, .. } => {
                let layout = self.wanted.documents.layout;
                let has_place = |host: &Host| self.placed().any(|placed| placed == host);
                let fits =
                    self.observed.agents.iter().filter(|agent| has_place(&agent.host) || (agent.active && agent.free.covers(&NODE_NEEDS)));
                let hosts: Vec<Host> = fits.map(|agent| agent.host.clone()).filter(|host| layout.shard(host) == *shard).collect();
                self.observed.nodes.retain(|host, _| layout.shard(host) != *shard);
                self.observed.nodes.extend(hosts.iter().map(|host| (host.clone(), node(host, &self.wanted.trust))));
                let instance = |host: &Host| Instance { id: format!("instance-{host}"), host: Some(host.clone()), port: None };
                self.observed.pods.insert(*shard, Pod { spec: pod.clone().into(), instances: hosts.iter().map(instance).collect() });
            }
            Action::PutRegistry { app, .. } | Action::TakeOver { app, .. } => {
                self.wanted.takeover = None;
                let task = |number| AppTask { id: String::new(), host: self.registry_host.clone(), ports: vec![0, number], healthy: true };
                let tasks: Vec<AppTask> = (1..=u16::try_from(self.replicas).unwrap_or(1)).map(task).collect();
                self.wanted.leaves.clear();
                self.observed.registries =
                    tasks.iter().map(|task| RegistryTask { address: address(task), status: registry(&task.host) }).collect();
                self.observed.registry = Some(App { spec: app.clone(), tasks });
            }
            Action::RetireRegistry => {
                self.observed.registries.iter_mut().for_each(|task| task.status.phase = RegistryPhase::Retired);
            }
            Action::DeleteRegistry { .. } => (self.observed.registry, self.observed.registries) = (None, Vec::new()),
            Action::PutJob { id, job, .. } => {
                let stored = self.observed.jobs.entry(id.clone()).or_insert_with(|| Job {
                    spec: Value::Null,
                    active_runs: Vec::new(),
                    finished_runs: 0,
                    schedules: Vec::new(),
                });
                stored.spec = job.clone();
            }
            Action::PutSchedule { job, schedule, .. } => {
                self.observed.jobs.entry(job.clone()).and_modify(|job| job.schedules = vec![schedule.clone()]);
            }
            Action::DropSchedule { job } => {
                self.observed.jobs.entry(job.clone()).and_modify(|job| job.schedules.clear());
            }
            Action::StartRun { id } => {
                self.observed.jobs.entry(id.clone()).and_modify(|job| job.finished_runs += 1);
            }
            Action::SendTrust { host } => {
                self.observed.nodes.insert(host.clone(), node(host, &self.wanted.trust));
            }
            Action::BeginRotation { reason } => {
                (self.wanted.ca.due, self.wanted.ca.rotation) = (None, Some(Rotation::at(Stage::Published, *reason, 0)));
                self.renew_bundle();
            }
            Action::DropRotation => (self.wanted.ca.rotation, self.wanted.ca.void) = (None, false),
            Action::SwitchCa { .. } => {
                if let Some(rotation) = &mut self.wanted.ca.rotation {
                    rotation.stage = Stage::Switched;
                }
                self.wanted.leaves.clear();
            }
            Action::RetireCa { .. } => {
                self.wanted.ca.rotation = None;
                self.renew_bundle();
            }
            Action::SendUsers { .. } | Action::Restart { .. } => {}
            Action::Certify { address, .. } => {
                if let Some(index) = self.observed.registries.iter().position(|task| task.address == *address) {
                    let mut status = self.observed.registries[index].status.clone();
                    self.certify(address, &mut status);
                    self.observed.registries[index].status = status;
                }
            }
        }
    }
}

fn address(task: &AppTask) -> String {
    format!("{}:{}", task.host, task.ports.get(1).copied().unwrap_or_default())
}

/// An order whose digest tells it from others; nobody signs or sends it.
fn bundle(number: usize) -> SignedOrder {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD.encode(json!({ "bundle": number }).to_string());
    SignedOrder { payload, signature: String::new() }
}

fn node(host: &Host, trust: &SignedOrder) -> Arc<NodeStatus> {
    Arc::new(NodeStatus {
        service: String::new(),
        executor: String::new(),
        host: host.to_string(),
        order_version: 1,
        order_digest: plan::order_digest(trust),
        phase: NodePhase::Trusted,
        files: Vec::new(),
        sysctl: SysctlStatus { state: SysctlState::Set, value: None, found: None },
        proofs: Vec::new(),
        errors: Vec::new(),
        passes: 1,
        in_place: true,
        exposed_key: None,
        cleaned: Vec::new(),
        preload: None,
    })
}

fn registry(host: &Host) -> RegistryStatus {
    RegistryStatus {
        request: Some(CertificateRequest { csr: String::new(), mac: String::new() }),
        starts: 1,
        ..RegistryStatus::first("", "", &host.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcos::mesos::{Agent, Ports, Resources};
    use crate::options;

    fn cluster(agents: usize) -> Observed {
        let free = Resources { cpus: 1.0, mem: 1000.0, disk: 1000.0 };
        let agent = |n: usize| Agent {
            id: n.to_string(),
            host: format!("10.0.0.{n}").parse().unwrap(),
            public: false,
            active: true,
            recovered: false,
            free,
            ports: Ports::default(),
        };
        Observed { agents: (1..=agents).map(agent).collect(), ..Observed::default() }
    }

    fn options(given: Value) -> (Options, BTreeMap<String, String>) {
        let mut vars = options::default_variables();
        options::put_variables(&mut vars, &given);
        (Options::from_env(&vars).unwrap(), vars)
    }

    /// The cluster after an installation.
    fn installed(given: &Value, agents: usize) -> Observed {
        let (options, vars) = options(given.clone());
        let mut play = Play::new(&options, &vars, cluster(agents), Changes::default()).unwrap();
        play.run();
        play.observed
    }

    fn steps(purpose: &Purpose, given: Value, observed: Observed, changes: Changes) -> Vec<String> {
        let (options, vars) = options(given);
        foresee(purpose, &options, &vars, observed, changes).unwrap().steps
    }

    #[test]
    fn an_installation_is_foreseen_to_its_end_with_documents_and_without_keys() {
        let (options, vars) = options(json!({ "garbage_collection": { "schedule": "0 3 * * *" } }));
        let forecast = foresee(&Purpose::Options, &options, &vars, cluster(2), Changes::default()).unwrap();
        assert_eq!(forecast.steps[..2], ["run the node on 2 agents: it does not run yet", "run the registry: it does not run yet"]);
        for line in ["sign a certificate for the registry: it has none", "start the first run of the job private-registry.init"] {
            assert!(forecast.steps.iter().any(|step| step == line), "{:#?}", forecast.steps);
        }
        let kinds: Vec<&str> = forecast.documents.iter().map(|document| document.kind).collect();
        assert_eq!(kinds, ["pod", "app", "job", "job", "job", "job", "job", "schedule"]);
        assert_eq!(forecast.documents[0].document["scaling"]["instances"], 2);
    }

    #[test]
    fn several_pods_are_foreseen_in_one_line_and_each_with_its_document() {
        let given = json!({ "trust": { "shards": "10" } });
        let (options, vars) = options(given.clone());
        let forecast = foresee(&Purpose::Options, &options, &vars, cluster(12), Changes::default()).unwrap();
        assert_eq!(forecast.steps[0], "run the node on 12 agents, in 10 pods: it does not run yet");
        let pods = forecast.documents.iter().filter(|document| document.kind == "pod");
        let pods: Vec<_> = pods.map(|pod| (pod.id.as_str(), pod.document["scaling"]["instances"].clone())).collect();
        assert_eq!((pods.len(), &pods[1]), (10, &("/private-registry-node-1", json!(2))));
        assert_eq!(steps(&Purpose::Options, given.clone(), installed(&given, 12), Changes::default()), Vec::<String>::new());
        let removal = steps(&Purpose::Removal, given.clone(), installed(&given, 12), Changes::default());
        assert_eq!(removal.iter().filter(|step| step.starts_with("delete the pod /private-registry-node-")).count(), 10);
    }

    #[test]
    fn what_is_in_place_stays_and_another_option_replaces_what_it_concerns() {
        let before = json!({});
        assert_eq!(steps(&Purpose::Options, before.clone(), installed(&before, 2), Changes::default()), Vec::<String>::new());
        let more = steps(&Purpose::Options, json!({ "registry": { "cpus": 1.5 } }), installed(&before, 2), Changes::default());
        assert!(more.contains(&"run the registry: its definition has changed".to_string()), "{more:#?}");
        assert!(!more.iter().any(|step| step.contains("run the node")), "{more:#?}");
    }

    #[test]
    fn a_new_name_is_a_rotation_and_a_rotation_tells_every_agent_twice() {
        let observed = installed(&json!({}), 5);
        let steps = steps(&Purpose::Rotation, json!({}), observed.clone(), Changes::default());
        let sent = "send the trust bundle to 5 agents: 10.0.0.1, 10.0.0.2, 10.0.0.3 and 2 more";
        let expected = [
            "make a new CA and make it known beside the present one: a run of the job asks for it",
            sent,
            "sign with the new CA: it is known to every agent",
            "sign a certificate for the registry: names, key or CA have changed",
            "trust the old CA no more: the new one is proven on every agent",
            sent,
        ];
        assert_eq!(steps, expected);
        let (before, _) = options(json!({}));
        let (after, _) = options(json!({ "names": { "extra": "registry.example.com:443" } }));
        assert_eq!(Changes::between(&before, &after, &observed), Changes { bundle: true, names: true });
        assert_eq!(Changes::between(&before, &before, &observed), Changes::default());
    }

    #[test]
    fn a_removal_names_what_goes_and_what_stays() {
        let (options, vars) = options(json!({}));
        let observed = installed(&json!({}), 2);
        let forecast = foresee(&Purpose::Removal, &options, &vars, observed, Changes::default()).unwrap();
        assert!(forecast.steps[2].starts_with("put 2 agents back as they were before"), "{:#?}", forecast.steps);
        assert!(forecast.notes[0].contains("the images stay"));
        let nothing = foresee(&Purpose::Removal, &options, &vars, cluster(1), Changes::default()).unwrap();
        assert!(nothing.steps.is_empty() && nothing.notes == ["there is nothing of private-registry"]);
    }

    #[test]
    fn the_enrolment_key_is_in_no_document() {
        let mut observed = installed(&json!({}), 1);
        observed.registry.as_mut().unwrap().spec["env"][env::ENROLMENT_KEY] = Value::from("the key");
        let (options, vars) = options(json!({ "registry": { "cpus": 1.5 } }));
        let forecast = foresee(&Purpose::Options, &options, &vars, observed, Changes::default()).unwrap();
        let text = serde_json::to_string(&forecast).unwrap();
        assert!(text.contains(REDACTED) && !text.contains("the key"), "{text}");
    }
}
