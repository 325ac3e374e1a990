//! What an operator asks from a terminal: `dcos private-registry <verb>`, or this program with `DCOS_URL` set.
//!
//! The dcos CLI starts a plugin with its own address and token in the environment. Everything is read from the controller's
//! `/v1/status`; orders are runs of the Metronome jobs, so that the platform's permissions decide.

mod diagnostics;
mod foresee;
mod logs;
mod masters;
mod progress;
mod redaction;
pub(crate) mod snippets;
mod users;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::collection::size;
use crate::controller::{ImageReport, ImagesReport, Report, RunReport, aligned};
use crate::dcos::grants::{self, Grant};
use crate::dcos::{Api, ApiError};
use crate::documents::TemplateError;
use crate::host_paths::SYSTEM_ROOTS;
use crate::in_order::InOrder as _;
use crate::names::HostPort;
use crate::options::{Faults, Options};
use crate::protocol::CopyKind;
use crate::secret::Secret;

pub use diagnostics::Diagnostics;
pub use logs::{Logs, Target};
pub use masters::masters_script;
pub use progress::Progress;
pub use snippets::{Snippet, snippet};
pub use users::UsersError;

/// Between two looks while something is followed.
const PAUSE: Duration = Duration::from_secs(1);
/// As long as the job itself waits, and a little.
const DEADLINE: Duration = Duration::from_secs(960);
/// How long the first job may take to be there: Mesos has to fetch the controller first.
const FIRST_JOB_PATIENCE: Duration = Duration::from_secs(60);

/// Where the cluster is and how to enter it, as the dcos CLI tells its plugins.
#[derive(Debug, Clone)]
pub struct Access {
    /// `DCOS_URL`, without a trailing slash.
    url: String,
    /// `DCOS_ACS_TOKEN`.
    token: Option<Secret<String>>,
    /// `DCOS_TLS_CA_PATH`: CA certificates to trust.
    ca: Option<PathBuf>,
    /// `DCOS_TLS_INSECURE`: no verification at all.
    insecure: bool,
}

/// Why a question could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// Started without the dcos CLI.
    #[error("DCOS_URL is not set: run this as `dcos private-registry`, or give the cluster's URL in DCOS_URL")]
    NoCluster,
    /// The CA certificates.
    #[error("{path}: {reason}")]
    Ca {
        /// `DCOS_TLS_CA_PATH`.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made")]
    Client(#[from] reqwest::Error),
    /// The controller or Metronome.
    #[error(
        "{service} does not answer; `dcos package list` shows under APP what --name takes (a new one needs up to a minute). If that is its name, \
         its controller does not run: `dcos marathon app show /{service}` says why. Pulls and pushes do not depend on it"
    )]
    Unreachable {
        /// Name of the service.
        service: String,
        /// What happened.
        #[source]
        source: ApiError,
    },
    /// Admin Router wants a login.
    #[error("the cluster wants a login: run `dcos auth login` and try again")]
    LoggedOut,
    /// Admin Router refuses this user.
    #[error("this user may not do that; docs/enterprise.md lists the permissions it takes")]
    Forbidden(#[source] ApiError),
    /// Mesos, or an agent.
    #[error("the cluster does not answer as it should")]
    Cluster(#[source] ApiError),
    /// No such agent.
    #[error("there is no agent {agent}; `logs` takes controller, registry, or one of {agents}")]
    NoAgent {
        /// As it was asked for.
        agent: String,
        /// Those that there are.
        agents: String,
    },
    /// Nothing runs that has logs.
    #[error("{what} of {service} has no task that Mesos knows; is {service} the service's name (--name)?")]
    NoTask {
        /// Whose logs were asked for.
        what: String,
        /// Name of the service.
        service: String,
    },
    /// No such job.
    #[error(
        "there is no job {0}: the service (--name) has another name, the options do not ask for it (a backup needs backup.path), or the \
         controller has not made it yet; `status` says what is still to be done"
    )]
    NoJob(String),
    /// The run has ended badly.
    #[error("the run {0} of the job has failed; `dcos job history --failures` and `dcos private-registry logs controller` say more")]
    RunFailed(String),
    /// Time is over.
    #[error("the run has not ended after {} s; see the table for what is missing", DEADLINE.as_secs())]
    Deadline,
    /// Users of the registry.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The options cannot be used.
    #[error(transparent)]
    Refused(#[from] Faults),
    /// A template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The directory of the diagnostics.
    #[error("{path} cannot be written; give another directory that is not there yet in --out")]
    Diagnostics {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The options file.
    #[error("{path}: {reason}")]
    OptionsFile {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
}

impl Access {
    /// What the dcos CLI has put into the environment. The CLI of DC/OS 1.11 and before puts nothing there: it is asked.
    ///
    /// # Errors
    /// Without a cluster's URL.
    pub fn from_env() -> Result<Self, OperatorError> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = var("DCOS_URL").or_else(|| configured("core.dcos_url")).ok_or(OperatorError::NoCluster)?;
        let url = url.trim_end_matches('/').to_string();
        if var("DCOS_URL").is_some() {
            let (token, ca) = (var("DCOS_ACS_TOKEN"), var("DCOS_TLS_CA_PATH"));
            return Ok(Self {
                url,
                token: token.map(Secret::new),
                ca: ca.map(PathBuf::from),
                insecure: var("DCOS_TLS_INSECURE").is_some(),
            });
        }
        // `core.ssl_verify` is a boolean or the path of CA certificates.
        let verify = configured("core.ssl_verify").unwrap_or_default();
        let (no, yes) = (verify.eq_ignore_ascii_case("false"), verify.is_empty() || verify.eq_ignore_ascii_case("true"));
        let token = configured("core.dcos_acs_token").map(Secret::new);
        Ok(Self { url, token, ca: (!no && !yes).then(|| PathBuf::from(verify)), insecure: no })
    }

    fn client(&self) -> Result<reqwest::Client, OperatorError> {
        let mut headers = reqwest::header::HeaderMap::new();
        let token = self.token.as_ref().and_then(|token| format!("token={}", token.expose()).parse().ok());
        if let Some(mut token) = token {
            reqwest::header::HeaderValue::set_sensitive(&mut token, true);
            headers.insert(reqwest::header::AUTHORIZATION, token);
        }
        let mut builder = Api::builder().default_headers(headers).danger_accept_invalid_certs(self.insecure);
        if self.url.starts_with("https:") && !self.insecure {
            let system = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists()).unwrap_or_else(|| SYSTEM_ROOTS[0].into());
            let path = self.ca.clone().unwrap_or_else(system);
            let broken = |reason: String| OperatorError::Ca { path: path.clone(), reason };
            let pem = std::fs::read(&path).map_err(|error| broken(error.to_string()))?;
            for certificate in reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| broken(error.to_string()))? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        Ok(builder.build()?)
    }
}

/// A setting of the dcos CLI, if there is a CLI and it has one.
fn configured(key: &str) -> Option<String> {
    let output = std::process::Command::new("dcos").args(["config", "show", key]).output().ok()?;
    let value = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !value.is_empty()).then_some(value)
}

/// What an operator can order by running a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Have every agent proven anew.
    Converge,
    /// Replace the CA.
    Rotate,
    /// Collect garbage.
    Collect {
        /// Only say what would be deleted.
        dry_run: bool,
    },
    /// Copy the images.
    Copy(CopyKind),
}

impl Order {
    /// Last word of the job's id.
    fn word(self) -> &'static str {
        match self {
            Self::Converge => "init",
            Self::Rotate => "rotate",
            Self::Collect { dry_run: false } => "gc",
            Self::Collect { dry_run: true } => "gc-dry-run",
            Self::Copy(CopyKind::Backup) => "backup",
            Self::Copy(CopyKind::VerifiedBackup) => "backup-verify",
            Self::Copy(CopyKind::Restore | CopyKind::Addition) => "restore",
        }
    }
}

/// One installation of the package in one cluster.
pub struct Service {
    name: String,
    controller: Api,
    metronome: Api,
    /// What must not get into diagnostics.
    token: Option<Secret<String>>,
    secrets: Api,
    /// Admin Router itself.
    cluster: Api,
}

impl Service {
    /// The service of this name in the cluster.
    ///
    /// # Errors
    /// When its certificates cannot be used.
    pub fn new(access: &Access, name: &str) -> Result<Self, OperatorError> {
        let client = access.client()?;
        let name = name.trim_matches('/').to_string();
        let controller = Api::new(client.clone(), &format!("{}/service/{name}", access.url));
        let metronome = Api::new(client.clone(), &format!("{}/service/metronome", access.url));
        let secrets = Api::new(client.clone(), &format!("{}/secrets/v1", access.url));
        Ok(Self { name, controller, metronome, token: access.token.clone(), secrets, cluster: Api::new(client, &access.url) })
    }

    /// How things stand.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub async fn report(&self) -> Result<Report, OperatorError> {
        tracing::info!("GET /service/{}/v1/status", self.name);
        self.controller.get("/v1/status").await.map_err(|source| self.unreachable(source))
    }

    /// What tools need to know of the registry, as the controller says it, be it a newer one.
    ///
    /// # Errors
    /// When the controller does not answer, or knows nothing yet.
    pub async fn discovery(&self) -> Result<Value, OperatorError> {
        tracing::info!("GET /service/{}/v1/discovery", self.name);
        self.controller.get("/v1/discovery").await.map_err(|source| self.unreachable(source))
    }

    /// Starts a run of the job of an order: the path of the job's runs, and the run's id.
    async fn start_run(&self, order: Order) -> Result<(String, String), OperatorError> {
        let job = format!("{}.{}", self.name.replace('/', "."), order.word());
        let path = format!("/v1/jobs/{job}/runs");
        // Who has just installed the package need not wait for the job to be made before following it.
        let patience = if order == Order::Converge { FIRST_JOB_PATIENCE } else { Duration::ZERO };
        let deadline = Instant::now() + patience;
        loop {
            tracing::info!("POST /service/metronome{path}");
            match self.metronome.call::<Value>("POST", &path, None).await {
                Ok(run) => return Ok((path, run["id"].as_str().unwrap_or_default().to_string())),
                // The words are Metronome's own: Admin Router, without one, answers 404 as well.
                Err(ApiError::Refused { status: 404, message, .. }) if message.contains("Job not found") => {
                    if Instant::now() >= deadline {
                        return Err(OperatorError::NoJob(job));
                    }
                }
                Err(error) => return Err(self.unreachable(error)),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Runs the job of a garbage collection, backup or restore, tells `progress` how it goes on, and returns what has come of it.
    ///
    /// # Errors
    /// When somebody does not answer.
    pub async fn work(&self, order: Order, mut progress: impl FnMut(&RunReport)) -> Result<RunReport, OperatorError> {
        let (path, id) = self.start_run(order).await?;
        let mut shown = String::new();
        loop {
            let active = self.is_active(&format!("{path}/{id}")).await?;
            let report = self.report().await?;
            // The controller goes on knowing the last one after its run has ended.
            match report.works().find(|work| work.run == id) {
                Some(work) if work.ended => return Ok(work),
                Some(work) if work.said != shown => {
                    progress(&work);
                    shown = work.said;
                }
                None if !active => return Err(OperatorError::RunFailed(id)),
                _ => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// All images of the registry.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub async fn images(&self) -> Result<Vec<ImageReport>, OperatorError> {
        let (mut images, mut last) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/images?last={last}");
            tracing::info!("GET /service/{}{path}", self.name);
            let page: ImagesReport = self.controller.get(&path).await.map_err(|source| self.unreachable(source))?;
            images.extend(page.images);
            match page.next {
                Some(next) if next != last => last = next,
                _ => return Ok(images),
            }
        }
    }

    /// Runs the job of an order, tells `progress` every new state, and returns the last one.
    ///
    /// # Errors
    /// When somebody does not answer, or the run does not end.
    pub async fn order(&self, order: Order, mut progress: impl FnMut(&Report)) -> Result<Report, OperatorError> {
        let (path, id) = self.start_run(order).await?;
        let started = Instant::now();
        let mut shown = String::new();
        loop {
            let active = self.is_active(&format!("{path}/{id}")).await?;
            let report = self.report().await?;
            let line = report.progress();
            if line != shown {
                progress(&report);
                shown = line;
            }
            let fresh = report.orders.iter().any(|order| order.run == id && order.fresh);
            if !active && self.has_failed(order, &id).await? {
                progress(&report);
                return Err(OperatorError::RunFailed(id));
            }
            if (report.converged && fresh) || report.refused || !active {
                return Ok(report);
            }
            if started.elapsed() > DEADLINE {
                progress(&report);
                return Err(OperatorError::Deadline);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether an ended run stands among the failed ones.
    async fn has_failed(&self, order: Order, run: &str) -> Result<bool, OperatorError> {
        let path = format!("/v1/jobs/{}.{}?embed=history", self.name.replace('/', "."), order.word());
        tracing::info!("GET /service/metronome{path}");
        let job: Value = self.metronome.get(&path).await.map_err(|source| self.unreachable(source))?;
        let failed = job["history"]["failedFinishedRuns"].as_array();
        Ok(failed.is_some_and(|runs| runs.iter().any(|failed| failed["id"] == *run)))
    }

    async fn is_active(&self, path: &str) -> Result<bool, OperatorError> {
        tracing::info!("GET /service/metronome{path}");
        match self.metronome.get::<Value>(path).await {
            Ok(run) => Ok(run["completedAt"].is_null()),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(self.unreachable(error)),
        }
    }

    async fn read_cluster<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, OperatorError> {
        tracing::info!("GET {path}");
        self.cluster.get(path).await.map_err(|source| refusal(source, OperatorError::Cluster))
    }

    fn unreachable(&self, source: ApiError) -> OperatorError {
        refusal(source, |source| OperatorError::Unreachable { service: self.name.clone(), source })
    }
}

/// What Admin Router says about the user comes first.
fn refusal(source: ApiError, otherwise: impl FnOnce(ApiError) -> OperatorError) -> OperatorError {
    match source {
        ApiError::Refused { status: 401, .. } => OperatorError::LoggedOut,
        ApiError::Refused { status: 403, .. } => OperatorError::Forbidden(source),
        source => otherwise(source),
    }
}

/// One row per image, aligned, and below what to do about those that Mesos cannot read.
pub fn images_table(images: &[ImageReport]) -> String {
    let digest = |image: &ImageReport| image.image.digest.chars().take(19).collect::<String>();
    let row = |report: &ImageReport| {
        let (image, readable) = (&report.image, report.unreadable.as_deref().map_or_else(|| "yes".into(), |why| format!("no: {why}")));
        [format!("{}:{}", image.repository, image.tag), digest(report), size(image.size), readable]
    };
    let mut text = aligned(["IMAGE", "DIGEST", "SIZE", "MESOS CAN READ IT"], images.iter().map(row));
    let fixes: BTreeSet<&String> = images.iter().filter_map(|image| image.fix.as_ref()).in_order();
    if !fixes.is_empty() {
        text += "\nWhat to do:\n";
    }
    for fix in fixes {
        let of: Vec<String> =
            images.iter().filter(|i| i.fix.as_ref() == Some(fix)).map(|i| format!("{}:{}", i.image.repository, i.image.tag)).collect();
        let more = if of.len() > 3 { format!(" and {} more", of.len() - 3) } else { String::new() };
        text += &format!("  {}{more}: {fix}\n", of.iter().take(3).cloned().collect::<Vec<_>>().join(", "));
    }
    text
}

/// The options without a file.
///
/// # Errors
/// None: the defaults are usable, which a test checks.
pub fn defaults() -> Result<Options, Faults> {
    Options::from_json(&json!({}))
}

/// Name of the account where the options give none.
const ACCOUNT: &str = "private-registry";

/// What the service account and the platform's own accounts need in DC/OS Enterprise: account, resource, action.
pub fn grants(options: &Options) -> Vec<Value> {
    let own = grants::all(options).into_iter().map(|grant| (account(options), grant));
    let entry = |(account, grant): (&str, Grant)| json!({ "account": account, "resource": grant.resource, "action": grant.action });
    own.chain(grants::platform()).map(entry).collect()
}

fn account(options: &Options) -> &str {
    if options.service.service_account.is_empty() { ACCOUNT } else { &options.service.service_account }
}

/// The commands that make a service account and give it, and the platform's own accounts, all that is needed.
pub fn account_commands(options: &Options) -> String {
    let account = account(options);
    let own_secret = format!("{}/service-account", options.service.name);
    let secret = if options.has_account() { &options.service.service_account_secret } else { &own_secret };
    let mut text = format!(
        "dcos security org service-accounts keypair private-key.pem public-key.pem\n\
         dcos security org service-accounts create -p public-key.pem -d 'Private registry' {account}\n\
         dcos security secrets create-sa-secret --strict private-key.pem {account} {secret}\n\
         rm private-key.pem\n"
    );
    for grant in grants::all(options) {
        text += &format!("{}\n", grant.command(account));
    }
    text += "# In strict mode the controller and the nodes run as root only if Marathon may start such tasks:\n";
    for (account, grant) in grants::platform() {
        text += &format!("{}\n", grant.command(account));
    }
    text + &format!("# Then install with service.service_account_secret = {secret}\n")
}

/// Every fault of an options file.
///
/// # Errors
/// A file that cannot be read or is not JSON.
pub fn check(path: PathBuf) -> Result<Result<Options, Faults>, OperatorError> {
    Ok(Options::from_json(&options_file(&path)?))
}

fn options_file(path: &std::path::Path) -> Result<Value, OperatorError> {
    let broken = |reason: String| OperatorError::OptionsFile { path: path.into(), reason };
    let bytes = std::fs::read(path).map_err(|error| broken(error.to_string()))?;
    crate::json::of_bytes(&bytes).map_err(|error| broken(format!("it is not JSON: {error}")))
}

/// Who can be told to trust the CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Client {
    Docker,
    Podman,
    Skopeo,
    Containerd,
    Curl,
    Macos,
    Windows,
}

/// What to do on a machine outside the cluster so that a client there trusts the registry. `ca.pem` is what `ca` prints.
pub fn instructions(client: Client, report: &Report) -> String {
    let name = if report.service == "private-registry" { String::new() } else { format!(" --name {}", report.service) };
    if report.insecure {
        return plain_instructions(client, report);
    }
    let mut text = format!("# Save the CA first: dcos private-registry ca{name} >ca.pem\n");
    // Docker and its kin look for the name as it stands in the image's: with and without 443.
    let parsed = report.names.iter().filter_map(|name| name.parse::<HostPort>().ok());
    for name in parsed.flat_map(|name| name.spellings()) {
        let line = match client {
            Client::Docker => format!("mkdir -p /etc/docker/certs.d/{name} && cp ca.pem /etc/docker/certs.d/{name}/ca.crt"),
            Client::Podman | Client::Skopeo => {
                format!("mkdir -p /etc/containers/certs.d/{name} && cp ca.pem /etc/containers/certs.d/{name}/ca.crt")
            }
            Client::Containerd => format!(
                "mkdir -p /etc/containerd/certs.d/{name} && cp ca.pem /etc/containerd/certs.d/{name}/ca.crt && \
                 printf '[host.\"https://{name}\"]\\n  ca = \"ca.crt\"\\n' >/etc/containerd/certs.d/{name}/hosts.toml"
            ),
            Client::Curl => format!("curl --cacert ca.pem https://{name}/v2/_catalog"),
            Client::Macos | Client::Windows => continue,
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    }
    text += match client {
        Client::Macos => {
            "security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain ca.pem\n# Then restart Docker Desktop.\n"
        }
        Client::Windows => "certutil -addstore -f Root ca.pem\n# Then restart Docker Desktop.\n",
        Client::Containerd => {
            "# config.toml needs: [plugins.\"io.containerd.grpc.v1.cri\".registry] config_path = \"/etc/containerd/certs.d\"\n"
        }
        _ => "# Nothing has to be restarted.\n",
    };
    text
}

/// The same for a registry without TLS, to which nobody should be led without a word.
fn plain_instructions(client: Client, report: &Report) -> String {
    let names: Vec<String> =
        report.names.iter().filter_map(|name| name.parse().ok()).flat_map(|name: HostPort| name.plain_spellings()).collect();
    let each = |line: &dyn Fn(&String) -> String| names.iter().map(|name| line(name) + "\n").collect::<String>();
    let how = match client {
        Client::Docker | Client::Macos | Client::Windows => {
            let list = Value::from(names.clone());
            format!(
                "# Put this into docker's daemon.json (Docker Desktop: Settings, Docker Engine) and let docker reload:\n\"insecure-registries\": {list}\n"
            )
        }
        Client::Podman | Client::Skopeo => {
            each(&|name| format!("printf '[[registry]]\\nlocation = \"{name}\"\\ninsecure = true\\n' >>/etc/containers/registries.conf"))
        }
        Client::Containerd => each(&|name| {
            format!(
                "mkdir -p /etc/containerd/certs.d/{name} && printf 'server = \"http://{name}\"\\n' >/etc/containerd/certs.d/{name}/hosts.toml"
            )
        }),
        Client::Curl => each(&|name| format!("curl http://{name}/v2/_catalog")),
    };
    format!("# {}\n{how}", crate::options::INSECURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_name_every_name_and_no_restart_where_none_is_needed() {
        let report = Report {
            service: "private-registry".into(),
            names: vec!["192.168.0.1:443".into(), "192.168.1.50:5000".into()],
            ..Report::default()
        };
        let docker = instructions(Client::Docker, &report);
        assert_eq!(docker.matches("cp ca.pem").count(), 3, "{docker}");
        assert!(docker.contains("/etc/docker/certs.d/192.168.0.1/ca.crt"), "{docker}");
        assert!(docker.contains("/etc/docker/certs.d/192.168.1.50:5000/ca.crt") && docker.contains("Nothing has to be restarted"));
        assert!(docker.contains("dcos private-registry ca >ca.pem"), "{docker}");
        assert!(instructions(Client::Containerd, &report).contains("hosts.toml"));
        let other = Report { service: "infra/images".into(), ..report.clone() };
        assert!(instructions(Client::Curl, &other).contains("dcos private-registry ca --name infra/images >ca.pem"));
        assert!(instructions(Client::Windows, &report).contains("certutil"));
    }

    #[test]
    fn the_document_of_enterprise_lists_what_grants_prints() {
        let document = include_str!("../docs/enterprise.md");
        for line in account_commands(&defaults().unwrap()).lines() {
            assert!(document.contains(line), "docs/enterprise.md lacks: {line}");
        }
    }

    #[test]
    fn a_file_of_options_is_read_whole_or_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("options.json");
        assert!(check(file.clone()).unwrap_err().to_string().starts_with(&file.display().to_string()));
        std::fs::write(&file, "{").unwrap();
        assert!(check(file.clone()).unwrap_err().to_string().contains("it is not JSON"));
        std::fs::write(&file, r#"{"names": {"vip": "x"}}"#).unwrap();
        assert_eq!(check(file).unwrap().unwrap_err().0[0].field, "names.vip");
    }
}
