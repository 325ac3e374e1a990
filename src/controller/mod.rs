//! The controller: the only part that acts.
//!
//! [`run`] reads like the story: options, state, then for ever observe → plan → apply → report. Everything it knows about the
//! cluster it asks anew on every pass, so a restart at any point continues where things stand.

pub(crate) mod anchor;
mod cluster;
pub(crate) mod collect;
mod copies;
mod discovery;
mod events;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
#[cfg(test)]
mod hostile;
mod images;
#[cfg(test)]
mod in_chromium;
#[cfg(all(test, target_arch = "x86_64"))]
mod kills;
mod marathon_lb;
pub(crate) mod metrics;
pub(crate) mod observe;
mod openapi;
mod others;
mod page;
mod parts;
mod preloads;
mod report;
mod rows;
mod serve;
mod shown;
pub mod state;
pub(crate) mod steps;
pub mod store;
mod stored;
pub(crate) mod uninstall;
pub(crate) mod users;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::certificates::CertificateError;
use crate::copying;
use crate::dcos::login::{self, CredentialError};
use crate::dcos::mesos::Mesos;
use crate::dcos::metronome::Job;
use crate::dcos::{ApiError, chain, versions};
use crate::distribution::{Distribution, Published};
use crate::documents::{self, Documents, Facts, TemplateError};
use crate::exposure;
use crate::in_order::InOrder as _;
use crate::names::{Host, HostPort};
use crate::options::{self, Faults, Generation, Options};
use crate::plan::{self, Action, Observed, Plan, RegistryTask, Wanted};
use crate::protocol::{Collection, NodeStatus, OrderKind, SignedOrder, env};
use crate::secret::Secret;
use crate::security;
use crate::settings;
use crate::turns;
use anchor::Anchor;
use cluster::Cluster;
use collect::Collections;
use copies::Copies;
pub use discovery::Discovery;
pub use images::{ImageReport, ImagesReport};
use observe::{Few, Purpose, Seen, Wellness};
use others::Others;
pub use parts::{CertificateReport, RegistryReport, RotationReport};
use preloads::Preloads;
pub(crate) use report::aligned;
pub use report::{AgentReport, CollectionReport, CopyReport, OrderReport, OtherReport, Report, RunReport};
use rows::Rows;
use state::{OwnCa, State, StateError};
use steps::{Home, Intent, Memory};
use stored::Stored;
pub use uninstall::run_job as uninstall;
pub use users::{UsersReport, apply as apply_users};

/// Between two passes while something is still to be done: what is awaited is a task that starts or a node that proves.
const EAGER: Duration = Duration::from_millis(500);
/// What has not changed for so long is not worth so many questions: an agent that is away, a store that does not answer.
const EAGER_FOR: Duration = Duration::from_secs(60);
/// Between two passes when all is in place. Mesos 1.2 sends no event for a dead agent, so the poll is the truth.
const CALM: Duration = Duration::from_secs(3);
/// A pass takes no more than such a part of the time, when all is in place and when something is still to be done: less than a hundredth
/// of one processor, and a twenty-fifth.
const CALM_SHARE: u32 = 125;
const EAGER_SHARE: u32 = 25;
/// But it is never put off for longer; while things change, for no longer than in a small cluster where nothing does.
const LONGEST: Duration = Duration::from_secs(60);
/// So many agents that are sent the same are named one by one.
const TOLD: usize = 8;

/// Why the controller ends.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ControllerError {
    #[error("{0} is not set: the controller is started by Marathon from the package's template")]
    Environment(&'static str),
    #[error("the HTTP client cannot be made")]
    Client(#[from] reqwest::Error),
    #[error("this program cannot be read from the disk")]
    OwnBinary(#[source] std::io::Error),
    #[error("cannot listen on port {0}")]
    Listen(u16, #[source] std::io::Error),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the options cannot be used:\n{0}")]
    Refused(#[from] Faults),
    #[error("this host does not keep the state of {0}; is it the controller's host?")]
    NoState(String),
    #[error(transparent)]
    User(#[from] crate::users::UserError),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("the cluster's CA certificates cannot be read from {0}: {1}; name a file that has them in dcos.ca_file")]
    ClusterCa(String, String),
    #[error("Marathon does not know this task as the one of {0}; another controller has taken over, so this one does nothing")]
    NotCurrent(String),
}

impl ControllerError {
    /// Whether it belongs to the very document or order that it was about, so that others are worth trying.
    fn is_of_one_document(&self) -> bool {
        match self {
            Self::Api(ApiError::Refused { status, .. }) => matches!(status, 400..=499) && !matches!(status, 401 | 408 | 429),
            Self::Api(ApiError::Denied { status, .. }) => *status == 403,
            Self::State(error) => !error.is_of_store(),
            Self::Certificate(_) => true,
            _ => false,
        }
    }
}

/// What Marathon and the template tell the controller at its start.
#[derive(Clone)]
pub struct Setting {
    /// Agent on which this task runs.
    pub host: Host,
    /// Port to serve on.
    pub port: u16,
    /// Own app id.
    pub app_id: String,
    /// Own task id.
    pub task_id: String,
    /// Image of the registry of generation 2, and of generation 3.
    pub registry_images: [String; 2],
    /// Whether Cosmos has asked for the removal.
    pub uninstall: bool,
    /// The service account's credential, or where it is; see [`login::CREDENTIAL_VARIABLE`].
    pub credential: Option<Secret<String>>,
    /// All other variables, for the options.
    pub vars: BTreeMap<String, String>,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whatever else is in the environment is nobody's business.
        f.debug_struct("Setting").field("app", &self.app_id).field("task", &self.task_id).field("host", &self.host).finish_non_exhaustive()
    }
}

/// The environment, with what is secret in it apart.
fn environment() -> (BTreeMap<String, String>, Option<Secret<String>>) {
    let mut vars: BTreeMap<String, String> = std::env::vars().in_order();
    let credential = vars.remove(login::CREDENTIAL_VARIABLE).map(Secret::new);
    (vars, credential)
}

impl Setting {
    /// The task's own directory.
    fn sandbox(&self) -> PathBuf {
        self.vars.get("MESOS_SANDBOX").map(PathBuf::from).unwrap_or_default()
    }

    /// The variables that carry options.
    fn options(&self) -> BTreeMap<String, String> {
        self.vars.iter().filter(|(name, _)| options::is_variable(name)).map(|(name, value)| (name.clone(), value.clone())).in_order()
    }

    /// The image that the options ask for.
    fn registry_image(&self, options: &Options) -> String {
        let [two, three] = &self.registry_images;
        let own = match options.registry.generation {
            Generation::Two => two,
            Generation::Three => three,
        };
        if options.registry.image.is_empty() { own.clone() } else { options.registry.image.clone() }
    }

    /// Reads the environment of the job that removes what a controller has left.
    fn for_job() -> Result<Self, ControllerError> {
        let (vars, credential) = environment();
        let var = |name: &'static str| vars.get(name).cloned().ok_or(ControllerError::Environment(name));
        Ok(Self {
            host: var("HOST")?.parse().map_err(|_| ControllerError::Environment("HOST"))?,
            port: 0,
            app_id: var(env::APP_ID)?,
            task_id: var("MESOS_TASK_ID")?,
            registry_images: Default::default(),
            uninstall: true,
            credential,
            vars,
        })
    }

    /// Reads the environment that Marathon gives an app's task.
    ///
    /// # Errors
    /// When a variable is missing.
    pub fn from_env() -> Result<Self, ControllerError> {
        let (vars, credential) = environment();
        let var = |name: &'static str| vars.get(name).cloned().ok_or(ControllerError::Environment(name));
        Ok(Self {
            host: var("HOST")?.parse().map_err(|_| ControllerError::Environment("HOST"))?,
            port: var("PORT0")?.parse().map_err(|_| ControllerError::Environment("PORT0"))?,
            app_id: var("MARATHON_APP_ID")?,
            task_id: var("MESOS_TASK_ID")?,
            registry_images: [var("PRIVATE_REGISTRY_IMAGE")?, var("PRIVATE_REGISTRY_IMAGE_3")?],
            uninstall: vars.contains_key("SDK_UNINSTALL"),
            credential,
            vars,
        })
    }
}

/// Runs the controller until it is told to stop.
///
/// # Errors
/// Only what makes going on pointless; all else is reported on the page and tried again.
pub async fn run(setting: Setting) -> Result<(), ControllerError> {
    let binary = std::env::current_exe().and_then(std::fs::read).map_err(ControllerError::OwnBinary)?;
    let binary_sha256 = crate::digest::sha256_hex(&binary);
    let shared = Arc::new(serve::Shared::new(binary, binary_sha256.clone()));
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", setting.port)).await.map_err(|e| ControllerError::Listen(setting.port, e))?;
    tokio::spawn(serve::serve(listener, shared.clone()));
    tracing::info!(host = %setting.host, port = setting.port, task = setting.task_id, "controller started");

    let options = match Options::from_env(&setting.vars) {
        Ok(options) => options,
        // What was installed before the options became unusable must still be removable.
        Err(_) if setting.uninstall => Options::for_removal(&setting.vars, &setting.app_id)?,
        Err(faults) => return refuse(&setting, &shared, faults).await,
    };
    options.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let cluster = cluster::enter(&setting, &options, &shared).await;
    if setting.uninstall {
        return uninstall::run(&setting, &options, &cluster, &shared, uninstall::Order::Cosmos).await;
    }
    tokio::spawn(watch_agents(cluster.mesos.clone(), shared.clone()));
    Controller::new(setting, options, cluster, shared, binary_sha256).converge_for_ever().await
}

/// An agent that registers is worth a pass at once. The stream is only for speed, so its errors are not reported.
async fn watch_agents(mesos: Mesos, shared: Arc<serve::Shared>) {
    loop {
        if let Err(error) = mesos.watch(|agent| shared.joined(agent)).await {
            tracing::debug!(%error, "the stream of Mesos events has ended");
        }
        tokio::time::sleep(CALM).await;
    }
}

/// Unusable options change nothing in the cluster: the page and the log say why until the options are changed, or the job orders the
/// removal of what an earlier controller has made.
async fn refuse(setting: &Setting, shared: &serve::Shared, faults: Faults) -> Result<(), ControllerError> {
    tracing::error!("the options cannot be used; nothing in the cluster was touched");
    for fault in &faults.0 {
        tracing::error!(field = fault.field, value = fault.value, remedy = fault.remedy, "{}", fault.reason);
    }
    shared.publish(Report::refused(&faults));
    // Without a usable way into the cluster it is Cosmos who can still remove this app.
    let Ok(options) = Options::for_removal(&setting.vars, &setting.app_id) else { return std::future::pending().await };
    let Ok(cluster) = Cluster::try_enter(setting, &options, shared) else { return std::future::pending().await };
    loop {
        tokio::time::sleep(CALM).await;
        shared.beat();
        match observe::cluster(&cluster, &options).await {
            Ok(observed) if plan::is_removal_ordered(&options, &observed) => {
                return uninstall::run(setting, &options, &cluster, shared, uninstall::Order::Job).await;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "not looked whether the removal is ordered"),
        }
    }
}

/// Unix time in seconds.
pub(crate) fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// How a pass has ended.
enum Pass {
    /// All is in place.
    Done,
    /// Something is still to be done or waited for.
    Unfinished,
    /// The same, and a step was taken that ends soon, after which comes the next.
    Stepped,
    /// The same, and it is the affair of agents' nodes alone.
    AgentsAwaited,
    /// Something was refused, and will hardly be taken in a moment.
    Refused,
    /// A run of the uninstall job is active.
    Remove,
}

/// What a pass could not do.
#[derive(Debug, Default)]
struct Undone {
    /// Because of a deployment of Marathon's.
    put_off: Vec<String>,
    /// Each because of itself.
    refused: Vec<String>,
}

/// What a rotation that is begun now is for.
pub(crate) struct RotationOrder {
    /// All names that the options ask for.
    pub(crate) names: Vec<HostPort>,
    /// Active run of the job that orders it.
    pub(crate) run: Option<String>,
}

struct Controller {
    setting: Setting,
    options: Options,
    cluster: Cluster,
    shared: Arc<serve::Shared>,
    binary_sha256: String,
    distribution: Box<dyn Distribution>,
    /// Whether the controller has been seen under its own VIP.
    reached: bool,
    /// When its app was pinned to the host that keeps its keys; Marathon then restarts it.
    pinned: Option<Instant>,
    /// Opened on the first pass that the options and the cluster allow.
    state: Option<State>,
    memory: Memory,
    others: Others,
    marathon_lb: marathon_lb::Watch,
    users: users::Kept,
    rows: Rows,
    stored: Stored,
    /// What the documents were made of last, and they.
    rendered: Option<(Facts, Documents)>,
    /// The order by which a registry that is switched off retires, and its version; signed once per start.
    retirement: Option<(SignedOrder, u64)>,
    collections: Collections,
    copies: Copies,
    preloads: Preloads,
    /// Who answers in the place of a registry and is none of ours.
    strangers: Vec<String>,
    /// Schedules that Metronome does not understand, by the ids of their jobs, and what it said.
    refused_schedules: BTreeMap<String, (serde_json::Value, String)>,
    /// What was seen of the cluster last.
    seen: Seen,
    /// Whether nothing was left to do then.
    calm: bool,
    /// Whether something has changed lately that is still to be followed to its end.
    changes: bool,
    /// Ids of the pods that were written in this pass.
    written: Vec<String>,
    /// What Metronome has said last.
    jobs: Option<(versions::Metronome, BTreeMap<String, Job>)>,
}

impl Controller {
    fn new(setting: Setting, options: Options, cluster: Cluster, shared: Arc<serve::Shared>, binary_sha256: String) -> Self {
        Self {
            setting,
            options,
            distribution: cluster.distribution(),
            cluster,
            shared,
            binary_sha256,
            reached: false,
            pinned: None,
            state: None,
            memory: Memory::default(),
            others: Others::default(),
            marathon_lb: marathon_lb::Watch::default(),
            users: users::Kept::default(),
            rows: Rows::default(),
            stored: Stored::default(),
            rendered: None,
            retirement: None,
            collections: Collections::default(),
            copies: Copies::default(),
            preloads: Preloads::default(),
            strangers: Vec::new(),
            refused_schedules: BTreeMap::new(),
            seen: Seen::default(),
            calm: false,
            changes: false,
            written: Vec::new(),
            jobs: None,
        }
    }

    async fn converge_for_ever(mut self) -> Result<(), ControllerError> {
        let mut logged = String::new();
        let (mut summary, mut changed_at) = (String::new(), Instant::now());
        loop {
            let (started, before) = (Instant::now(), observe::cpu_time());
            let passed = self.pass().await;
            let stepped = matches!(passed, Ok(Pass::Stepped));
            let awaits_agents = matches!(passed, Ok(Pass::AgentsAwaited));
            self.shared.metrics.passed(started.elapsed(), passed.is_ok());
            let cost = observe::cpu_time().saturating_sub(before);
            self.calm = matches!(passed, Ok(Pass::Done));
            self.changes = false;
            let pause = match passed {
                Ok(Pass::Done | Pass::Refused) => CALM,
                Ok(Pass::Unfinished | Pass::Stepped | Pass::AgentsAwaited) => {
                    let now = self.shared.summary();
                    if now != summary {
                        (summary, changed_at) = (now, Instant::now());
                    }
                    self.changes = changed_at.elapsed() < EAGER_FOR;
                    if self.changes { EAGER } else { CALM }
                }
                Ok(Pass::Remove) => {
                    tracing::info!("a run of the uninstall job asks for the removal of the service");
                    return uninstall::run(&self.setting, &self.options, &self.cluster, &self.shared, uninstall::Order::Job).await;
                }
                Err(ControllerError::Refused(faults)) => {
                    let text = faults.to_string();
                    if text != logged {
                        tracing::error!("the options cannot be used; nothing was changed:\n{text}");
                        logged = text;
                    }
                    self.shared.publish(Report::refused(&faults));
                    CALM
                }
                Err(error) => {
                    if matches!(error, ControllerError::State(_)) {
                        // Only what is kept counts: the next pass goes on from there, as after a restart.
                        (self.state, self.retirement, self.users) = (None, None, users::Kept::default());
                    }
                    tracing::warn!(error = chain(&error), "this pass failed; trying again");
                    self.shared.trouble(chain(&error));
                    CALM
                }
            };
            self.shared.beat();
            // In a large cluster a pass is work, and another one is not worth more than its share.
            let longest = match pause {
                EAGER if stepped => EAGER,
                EAGER => CALM,
                _ => LONGEST,
            };
            let mut pause = pause.max((cost * self.share()).min(longest));
            let mut few = None;
            if self.changes && awaits_agents && self.seen.is_large() {
                few = self.seen.few(&self.options);
                pause = few.as_ref().map_or(pause, |_| CALM);
            }
            self.rest(pause, few).await;
        }
    }

    /// Waits for the next pass. An agent that registers does not wait, nor does what a small cluster's next pass would see: a registry
    /// that needs something, a run of a job. Of what is waited for, a `few` things are asked by themselves, which costs less than a pass.
    async fn rest(&mut self, pause: Duration, few: Option<Few>) {
        let until = Instant::now() + pause;
        let asks_every = if few.is_some() { EAGER } else { CALM };
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            tokio::select! {
                () = tokio::time::sleep(left.min(asks_every)) => {}
                () = self.shared.woken() => return,
            }
            self.shared.beat();
            let is_called = match &few {
                Some(few) => tokio::select! {
                    has_news = self.has_news(few) => has_news,
                    () = tokio::time::sleep_until(until.into()) => true,
                    () = self.shared.woken() => true,
                },
                None => left > CALM && self.is_called().await,
            };
            if is_called {
                return;
            }
        }
    }

    /// Whether registry or jobs are otherwise than at the last look; also where nobody answers, which the next pass has to say.
    async fn is_called(&mut self) -> bool {
        let mut now = Observed::default();
        self.is_called_by_registry().await || !matches!(self.look_at_jobs(&mut now).await, Ok(None)) || !self.seen.jobs_are_still(&now)
    }

    async fn is_called_by_registry(&self) -> bool {
        let mut now = Observed::default();
        if self.options.registry.enabled {
            let Ok(registry) = self.cluster.marathon.app(&documents::registry_id(&self.options)).await else { return true };
            now.registry = registry;
            observe::registries(&self.cluster, &self.options, &mut now).await;
        }
        !self.seen.registry_is_still(&now)
    }

    /// Whether there is news of what is waited for, or of the registry.
    async fn has_news(&self, few: &Few) -> bool {
        self.seen.has_news(&self.cluster, &self.options, few).await || self.is_called_by_registry().await
    }

    /// Of how much time a pass may take a part.
    fn share(&self) -> u32 {
        if self.calm { CALM_SHARE } else { EAGER_SHARE }
    }

    /// One pass.
    async fn pass(&mut self) -> Result<Pass, ControllerError> {
        // While something is to be done, that is looked at, and everything no more often than else.
        let (mut observed, is_urgent) = self.seen.look(&self.cluster, &self.options, &self.shared, CALM_SHARE).await?;
        let passed = self.pass_over(&mut observed, is_urgent).await?;
        self.seen.keep(observed, std::mem::take(&mut self.written));
        Ok(passed)
    }

    /// The rest of it, after the first look.
    async fn pass_over(&mut self, observed: &mut Observed, is_urgent: bool) -> Result<Pass, ControllerError> {
        let without_metronome = self.look_at_jobs(observed).await?;
        steps::count_self(observed, &self.setting.task_id, &self.setting.host);
        if plan::is_removal_ordered(&self.options, observed) {
            return Ok(Pass::Remove);
        }
        plan::refuse(&self.options, observed)?;
        let runs_registry = self.options.registry.enabled;
        if !runs_registry {
            // An app of that name is no concern of ours, unless we have made it.
            observed.registry.take_if(|app| !documents::is_made_by(&app.spec, &self.options));
        }
        if !self.at_home(observed).await? || !self.reachable().await {
            return Ok(Pass::Unfinished);
        }
        let registry_host = plan::registry_host(observed, &self.options);
        let names = self.options.trusted_names(&registry_host);
        let now = unix_now();
        let anchor = Anchor::of(&self.setting, &self.options)?;
        let state = match &mut self.state {
            Some(state) => state,
            none => {
                let store = self.cluster.store(&self.options.service.name)?;
                let own = OwnCa {
                    organization: &self.options.security.organization,
                    names: &steps::bare(&names),
                    days: self.options.trust.ca_days,
                };
                let mut opened = State::open(store, anchor.is_own().then_some(own), now).await?;
                opened.inherit(steps::trusted_before(observed), now).await?;
                none.insert(opened)
            }
        };
        let Intent { asked, names, ca, rotate_run } = Intent::of(&self.options, &anchor, state, observed, names, now)?;
        let in_force = steps::bare(&names);
        // The cluster's CA stays; what a run of the job can have of it is another certificate.
        if let (Anchor::Cluster(_), Some(run)) = (&anchor, &rotate_run)
            && state.rotated_for() != Some(run)
        {
            state.let_go_of_leaf(run).await?;
        }
        let others = self.others.resolve(&self.options.others, self.cluster.secrets.as_ref(), state).await?;
        let bundle = steps::bundle(&self.options, &anchor, state, self.memory.settled, names, others);
        let upstream = settings::upstream(&self.options.proxy);
        let upstream = bundle.others.iter().filter(|other| upstream.as_ref() == Some(&other.name));
        let upstream_certificates = upstream.flat_map(|other| &other.certificates).map(|pem| format!("{}\n", pem.trim_end())).collect();
        let digest = state.trust_in_force(&bundle).map(plan::order_digest).unwrap_or_default();
        let (memory, preloads) = (&self.memory, &self.preloads);
        let is_awaited = |host: &Host, status: &NodeStatus| memory.awaits(host, status) || preloads.concern(host);
        let awaits_any = memory.awaits_any() || preloads.concern_any();
        let wellness = Wellness { digest: &digest, is_awaited: awaits_any.then_some(&is_awaited) };
        let shared = &self.shared;
        let purpose = Purpose { urgent: &|| is_urgent || shared.has_joined(), others_come: self.changes };
        let looked_at = self.seen.tasks(&self.cluster, &self.options, observed, &purpose, &wellness).await;
        self.strangers = observe::leave_out_strangers(observed, state);
        // Whatever is signed goes above what tasks have taken.
        let news = || looked_at.iter().filter_map(|host| observed.nodes.get(host));
        state.note_taken(steps::newest_taken(news(), &observed.registries));
        if !runs_registry && observed.registry.is_some() && self.retirement.is_none() {
            self.retirement = Some((state.order(OrderKind::Retire { delete_data: false }).await?, state.version()));
        }
        let trust = state.trust_order(bundle).await?;
        // Who is well and was not asked has the order in force.
        let nodes: Vec<_> = if plan::order_digest(&trust) == digest { news().collect() } else { observed.nodes.values().collect() };
        if self.memory.surpasses(nodes, &trust, Instant::now()) {
            tracing::warn!("a node has taken another order that is not older; what it is to trust is given anew by the next pass");
            state.surpass_trust();
        }
        self.marathon_lb.look(&self.cluster, &self.options, observed).await;
        state.note_covered(&looked_at).await?;
        self.memory.see_registry(&self.options, &anchor, state, observed, &in_force);
        if self.memory.settled && !anchor.is_own() && state.ca().is_some() {
            tracing::info!("the registry serves with a certificate of another CA; the service's own CA is trusted no more");
            state.drop_ca().await?;
        }
        if self.memory.proves_after_takeover(observed) {
            observe::ask_for_proof(&self.cluster, observed, &trust).await;
        }
        let layout = steps::layout(&self.options, observed, state).await?;
        self.memory.see_surplus(observed, layout, Instant::now());
        self.memory.see_locks(observed, Instant::now());

        let order_key = state.order_key();
        let first = steps::first_order(observed, &order_key).unwrap_or_else(|| trust.clone());
        let (node_reader, registry_id) = (documents::node_reader(&self.options, layout), documents::registry_id(&self.options));
        let (distribution, enrolment_key) = (&self.distribution, state.enrolment_key().to_base64());
        let enrolment_key = match runs_registry {
            true => distribution.publish(&registry_id, documents::ENROLMENT_KEY, enrolment_key.expose()).await?,
            false => Published { variable: json!(""), secret: None },
        };
        let facts = Facts {
            registry_host,
            home: self.setting.host.clone(),
            binary_sha256: self.binary_sha256.clone(),
            registry_image: self.setting.registry_image(&self.options),
            upstream_certificates,
            order_key,
            package_uri: self.setting.vars.get(env::URI).cloned().unwrap_or_default(),
            options: self.setting.options(),
            jobs_have_secrets: observed.metronome.has_secrets(),
            first_order: distribution.publish(&node_reader, documents::FIRST_ORDER, &json!(first).to_string()).await?,
            layout,
            enrolment_key,
            enrolment_id: steps::enrolment_id(state),
        };
        let leaves = anchor.leaves(state, &observed.registries, &in_force);
        let retirement = if runs_registry { state.retirement() } else { self.retirement.as_ref().map_or(0, |(_, version)| *version) };
        let retirement_is_late = self.memory.see_retirement(&self.options, observed, Instant::now());
        let users = self.users.look(&self.options, state).await?;
        let documents = match &self.rendered {
            Some((known, documents)) if *known == facts => documents.clone(),
            _ => {
                let documents = documents::render(&self.options, &facts)?;
                self.rendered.insert((facts, documents)).1.clone()
            }
        };
        let takeover = self.memory.see_takeover(&self.options, observed, Instant::now());
        let wanted = Wanted { documents, trust, now, leaves, ca, registry: runs_registry, retirement, retirement_is_late, takeover, users };
        if self.memory.proves_after_switch(&wanted, observed) {
            observe::ask_for_proof(&self.cluster, observed, &wanted.trust).await;
        }
        let mut plan = plan::converge(&wanted, observed);
        if let Some(error) = without_metronome {
            plan.waiting.push(format!(
                "Metronome, without which no run of a job is seen or started; agents and registry are looked after all the same: {error}"
            ));
        }
        let order = RotationOrder { names: asked, run: rotate_run };
        let undone = self.apply(&plan, &wanted, observed, &in_force, &order).await?;
        plan.waiting.extend(undone.put_off);
        self.follow_runs(observed, &wanted).await;
        if !self.copies.is_busy() && !copying::holds_back(&observed.registries) {
            let mut turn = turns::one_may_restart(observed) && !plan.actions.iter().any(turns::is_restart);
            self.collect(observed, now, &mut turn).await?;
        }
        let collects = self.collections.is_busy()
            || observed.registries.iter().any(|task| task.status.collection.as_ref().is_some_and(Collection::is_active));
        self.copy(observed, now, collects).await?;
        self.preload(observed).await?;
        self.offer_images(observed);
        let mut report = self.report(&wanted, observed, &plan, &anchor)?;
        let is_refused = !undone.refused.is_empty();
        report.problems.extend(undone.refused);
        // A run of the job waits for its proofs: they are looked for as eagerly as a first one.
        let idle = report.collections.iter().all(|collection| collection.ended) && report.copies.iter().all(|copy| copy.ended);
        let idle = idle && report.orders.iter().all(|order| order.fresh);
        let done = idle && report.converged;
        let awaits_agents = idle && !self.memory.awaits_any() && plan.is_about_agents_alone(&wanted, observed);
        self.shared.describe(Discovery::new(&self.options, &plan::registry_host(observed, &self.options), &report));
        self.shared.metrics.see(&wanted, observed, &report);
        self.shared.publish(report);
        Ok(match () {
            () if is_refused => Pass::Refused,
            () if done => Pass::Done,
            () if plan.takes_a_step(TOLD) => Pass::Stepped,
            () if awaits_agents => Pass::AgentsAwaited,
            () => Pass::Unfinished,
        })
    }

    /// Asks Metronome for the jobs. When it does not answer, what it has said last counts, and why it does not is returned: agents and
    /// registry do not depend on it.
    ///
    /// # Errors
    /// It does not answer, and has never done so.
    async fn look_at_jobs(&mut self, observed: &mut Observed) -> Result<Option<String>, ApiError> {
        match observe::jobs(&self.cluster.metronome, &self.options).await {
            Ok(said) => {
                (observed.metronome, observed.jobs) = said.clone();
                self.jobs = Some(said);
                Ok(None)
            }
            Err(error) => {
                let Some(last) = &self.jobs else { return Err(error) };
                (observed.metronome, observed.jobs) = last.clone();
                Ok(Some(chain(&error)))
            }
        }
    }

    /// Where there is no secret store the controller belongs to the host that holds its state. Where no option names one, it pins its
    /// app to where it is.
    async fn at_home(&mut self, observed: &Observed) -> Result<bool, ControllerError> {
        if observed.own_app.is_none() || !steps::is_current(observed, &self.setting.task_id) {
            return Err(ControllerError::NotCurrent(self.setting.app_id.clone()));
        }
        if self.cluster.secrets.is_some() {
            return Ok(true);
        }
        let pinned_for = self.pinned.map(|at| at.elapsed());
        let host = match steps::home(observed, &self.setting.app_id, &self.setting.host, pinned_for) {
            Home::Here => return Ok(true),
            Home::Locked => return Ok(false),
            Home::Pin(host) => host,
        };
        tracing::info!(%host, "pinning the controller to the host that keeps its keys; Marathon restarts it there");
        let pin = json!({ "constraints": [["hostname", "LIKE", documents::exactly(&host)]] });
        // Before, for it can be taken without an answer.
        self.pinned = Some(Instant::now());
        match self.cluster.marathon.patch_app(&self.setting.app_id, &pin, false).await {
            Err(error) if !error.is_conflict() => Err(error.into()),
            _ => Ok(false),
        }
    }

    /// Whether tasks would find the binary. A task that does not is started anew by Marathon only after a delay, which is the
    /// whole pod's; so nothing is started before this controller answers under its own VIP.
    async fn reachable(&mut self) -> bool {
        if !self.reached {
            let url = format!("{}/health", documents::controller_url(&self.options));
            let answer = self.cluster.http.get(&url).timeout(Duration::from_secs(2)).send().await;
            self.reached = answer.is_ok_and(|answer| answer.status().is_success());
            if !self.reached {
                self.shared.publish(Report::starting(&self.options, &format!("this controller to be reachable at {url}")));
            }
        }
        self.reached
    }

    /// Performs the actions. They do not build upon each other: each follows from what was observed before all of them. So where one
    /// is refused, the others are taken none the less; only a registry whose users cannot be sent must not begin to serve. Where
    /// Marathon, Metronome or the store do not answer, or login fails, the pass ends.
    async fn apply(
        &mut self,
        plan: &Plan,
        wanted: &Wanted,
        observed: &Observed,
        names: &[HostPort],
        order: &RotationOrder,
    ) -> Result<Undone, ControllerError> {
        let mut undone = Undone::default();
        let mut without_users: Vec<&str> = Vec::new();
        self.send_trust(plan, wanted, observed).await;
        for action in &plan.actions {
            if matches!(action, Action::PutSchedule { job, schedule, .. } if self.refused_schedules.get(job).is_some_and(|(known, _)| known == schedule))
            {
                continue;
            }
            if matches!(action, Action::Certify { address, .. } | Action::Restart { address } if without_users.contains(&address.as_str()))
            {
                continue;
            }
            // They are sent together.
            if matches!(action, Action::SendTrust { .. }) {
                continue;
            }
            tracing::info!("{action}");
            match (action, self.perform(action, wanted, observed, names, order).await) {
                // Only Metronome knows every time zone. A wrong one must not keep the registry from being run.
                (Action::PutSchedule { job, schedule, .. }, Err(ControllerError::Api(error @ ApiError::Refused { status: 422, .. }))) => {
                    tracing::error!(%error, "the schedule is refused");
                    self.refused_schedules.insert(job.clone(), (schedule.clone(), error.to_string()));
                    continue;
                }
                (Action::PutSchedule { job, .. }, Ok(())) => drop(self.refused_schedules.remove(job)),
                // Somebody else's deployment came in between: the next pass sees it.
                (_, Err(ControllerError::Api(error))) if error.is_conflict() => {
                    tracing::info!(%error, "waiting for a deployment");
                    undone.put_off.push(format!("a deployment to end; until then this is put off: {action} ({error})"));
                    continue;
                }
                (_, Err(error)) if error.is_of_one_document() => {
                    tracing::warn!(error = chain(&error), "this is refused, and tried again: {action}");
                    undone.refused.push(format!("this is refused, and tried again: {action}: {}", chain(&error)));
                    if let Action::SendUsers { address } = action {
                        without_users.push(address);
                    }
                    continue;
                }
                (_, other) => other?,
            }
            self.shared.metrics.acted(action);
            self.shared.acted(action.to_string());
        }
        Ok(undone)
    }

    async fn perform(
        &mut self,
        action: &Action,
        wanted: &Wanted,
        observed: &Observed,
        names: &[HostPort],
        order: &RotationOrder,
    ) -> Result<(), ControllerError> {
        let ids = &wanted.documents;
        match action {
            Action::PutPod { shard, pod, force, .. } => {
                let id = ids.pod_id(*shard);
                self.written.push(id.clone());
                drop(self.cluster.marathon.put_pod(&id, pod, *force).await?);
            }
            Action::PutRegistry { app, force, .. } => self.cluster.marathon.put_app(&ids.registry_id, app, *force).await?,
            Action::TakeOver { app, .. } => {
                self.memory.taken_over(observed);
                self.cluster.marathon.put_app(&ids.registry_id, app, false).await?
            }
            Action::RetireRegistry => {
                if let Some((order, _)) = &self.retirement {
                    observe::send_to_registries(&self.cluster, observed, order).await;
                }
            }
            Action::DeleteRegistry { .. } => self.cluster.marathon.delete_app(&ids.registry_id).await?,
            Action::PutJob { id, job, exists } => self.cluster.metronome.put_job(id, job, *exists).await?,
            Action::PutSchedule { job, schedule, exists } => self.cluster.metronome.put_schedule(job, schedule, *exists).await?,
            Action::DropSchedule { job } => self.cluster.metronome.delete_schedule(job, documents::SCHEDULE).await?,
            Action::StartRun { id } => self.cluster.metronome.start_run(id).await?,
            // See `send_trust`.
            Action::SendTrust { .. } => {}
            Action::BeginRotation { .. } | Action::DropRotation | Action::SwitchCa { .. } | Action::RetireCa { .. } => {
                if let Some(state) = &mut self.state {
                    steps::step_of_ca(state, action, order, self.options.trust.ca_days, wanted.now).await?;
                }
            }
            Action::SendUsers { address } => {
                let task = observed.registries.iter().find(|task| task.address == *address);
                if let (Some(RegistryTask { status, .. }), Some(state)) = (task, &mut self.state) {
                    let order = self.users.order_for(status, state).await?;
                    observe::send_to_registry(&self.cluster, address, &order).await;
                }
            }
            Action::Restart { address } => {
                if let Some(state) = &mut self.state {
                    let order = state.order(OrderKind::Restart).await?;
                    observe::send_to_registry(&self.cluster, address, &order).await;
                }
            }
            Action::Certify { address, .. } => {
                self.certify(observed, address, names).await?;
            }
        }
        Ok(())
    }

    /// Sends the trust order to all nodes that are to have it.
    async fn send_trust(&self, plan: &Plan, wanted: &Wanted, observed: &Observed) {
        let actions: Vec<(&Action, &Host)> = plan
            .actions
            .iter()
            .filter_map(|action| if let Action::SendTrust { host } = action { Some((action, host)) } else { None })
            .collect();
        if actions.is_empty() {
            return;
        }
        let lines: Vec<String> = match actions.len() {
            1..=TOLD => actions.iter().map(|(action, _)| action.to_string()).collect(),
            many => vec![format!("send the trust bundle to {many} agents")],
        };
        lines.iter().for_each(|line| tracing::info!("{line}"));
        observe::send_to_nodes(&self.cluster, observed, actions.iter().map(|(_, host)| *host).collect(), &wanted.trust).await;
        actions.iter().for_each(|(action, _)| self.shared.metrics.acted(action));
        lines.into_iter().for_each(|line| self.shared.acted(line));
    }

    async fn certify(&mut self, observed: &Observed, address: &str, names: &[HostPort]) -> Result<(), ControllerError> {
        let task = observed.registries.iter().find(|task| task.address == address);
        let (Some(RegistryTask { status, .. }), Some(state)) = (task, &mut self.state) else { return Ok(()) };
        let order = match Anchor::of(&self.setting, &self.options)? {
            anchor @ Anchor::Cluster(_) => anchor.certify_by_cluster(&self.cluster, state, status, names, unix_now()).await?,
            _ => state.certify(status, names, unix_now(), self.options.trust.leaf_days).await?,
        };
        observe::send_to_registry(&self.cluster, address, &order).await;
        Ok(())
    }

    /// An active run of the init job is the order to prove everything anew.
    async fn follow_runs(&mut self, observed: &Observed, wanted: &Wanted) {
        for run in self.memory.see_runs(&self.options, observed) {
            tracing::info!(run, "a run of the init job asks for a fresh proof of every agent");
            observe::ask_for_proof(&self.cluster, observed, &wanted.trust).await;
        }
        if self.memory.asks_again(observed, Instant::now()) {
            observe::ask_for_proof(&self.cluster, observed, &wanted.trust).await;
        }
    }

    fn report(&mut self, wanted: &Wanted, observed: &Observed, plan: &Plan, anchor: &Anchor) -> Result<Report, ControllerError> {
        let state = self.state.as_ref();
        let mut runs = self.memory.runs(observed);
        let rotations = observed.jobs.get(&documents::rotate_job_id(&self.options)).into_iter().flat_map(|job| &job.active_runs);
        runs.extend(rotations.map(|run| (run.clone(), steps::is_rotated(anchor, state, run))));
        let certificates = state.map(State::certificates_in_force).unwrap_or_default();
        let agents = self.rows.look(wanted, observed, Instant::now());
        let mut report = Report::new(&self.options, wanted, observed, plan, agents, runs, &certificates)?;
        report.problems.extend(self.stored.look(wanted, observed));
        if state.is_some_and(|state| anchor.certificates(state, self.memory.settled) != certificates) {
            report.converged = false;
            report.next.push("waiting for the next look, to make known that an earlier CA is not in use any more".into());
        }
        // While the next CA is made known beside it, ours still signs.
        if let Some(signing) = state.and_then(State::ca).filter(|_| anchor.is_own()) {
            report.ca_fingerprint = Some(signing.fingerprint());
        }
        report.users = self.users.report(&self.options, observed, wanted.users.as_ref());
        report.problems.extend(self.users.problems());
        report.problems.extend(self.strangers.iter().cloned());
        report.public_ca = matches!(anchor, Anchor::Provided(private) if private.is_empty());
        if let Some(RegistryTask { status, .. }) = observed.registries.first().filter(|_| !anchor.is_own()) {
            let names = self.options.trusted_names(&plan::registry_host(observed, &self.options));
            report.problems.extend(security::names_lacking(&names, status));
            // The others are renewed without anybody's help.
            if matches!(anchor, Anchor::Provided(_)) {
                report.problems.extend(security::end_nearing(status, wanted.now));
            }
        }
        report.problems.extend(self.marathon_lb.problem(&self.options, observed));
        report.problems.extend(plan::lost_home(&self.options, observed));
        report.advice.extend(exposure::advice(&self.options, observed));
        report.advice.extend(plan::crowded(wanted, observed));
        report.collections = self.collections.reports();
        report.copies = self.copies.reports();
        self.report_preload(observed, &mut report);
        let refused = self.refused_schedules.iter().filter(|(job, _)| wanted.documents.schedules.contains_key(*job));
        report.problems.extend(refused.map(|(job, (_, said))| {
            format!("Metronome refuses the schedule of {job}; correct the schedule or its time zone in the options: {said}")
        }));
        report.registry_version = observed.registries.iter().find_map(|task| task.status.version.clone());
        let three = report.registry_version.as_ref().filter(|version| !version.starts_with("2.") && !observed.marathon.pulls_schema_2());
        report.problems.extend(three.map(|version| {
            format!(
                "the registry is of version {version}, which does not answer in schema 1, and the image puller of this DC/OS's Mesos reads \
                 nothing else; let registry.image name one of generation 2, or leave it empty"
            )
        }));
        Ok(report.with_others(&self.options, wanted, observed, &self.others))
    }
}
