//! Proof that the host's real clients accept the registry's certificate: they are asked to contact it themselves.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, ServerName};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::trust::Bundle;
use crate::certificates::Certificate;
use crate::host_paths::{HostRoot, SYSTEM_ROOTS};
use crate::names::{Host, HostPort};
use crate::protocol::{Proof, ProofOutcome};

const PATIENCE: Duration = Duration::from_secs(5);
/// Proofs at the same time: a bundle with very many names must not become a burst on the registry.
const AT_ONCE: usize = 8;
const MAX_ANSWER_BYTES: usize = 64 * 1024;
const MAX_DETAIL_CHARS: usize = 400;

/// Begins what is told of a daemon that has a socket and nobody behind it.
pub(super) const NO_DAEMON: &str = "the docker daemon does not answer";

/// How the docker daemon stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DockerState {
    /// It has no socket.
    Absent,
    /// It has one, and nobody answers.
    Silent,
    /// It answers.
    Answers,
}

/// The clients that this host has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clients {
    /// The docker daemon's socket.
    pub(crate) docker: Option<PathBuf>,
    /// The curl that Mesos runs, or one that can be told to read the same store.
    pub(crate) curl: Option<Curl>,
}

/// A curl.
#[derive(Debug, Clone)]
pub(crate) struct Curl {
    pub(crate) program: PathBuf,
    /// The store to read, where it is not built in.
    pub(crate) capath: Option<PathBuf>,
    /// Where its libraries lie, where they are not the system's.
    pub(crate) libraries: Option<PathBuf>,
}

impl Clients {
    /// Looks which clients there are.
    pub(crate) fn on(root: &HostRoot) -> Self {
        let docker = Some(root.docker_socket()).filter(|socket| socket.exists());
        Self { docker, curl: Curl::of_dcos(root).or_else(|| Curl::of_system(root)) }
    }

    /// Looks whether docker answers, which costs nobody anything.
    pub(crate) async fn docker_state(&self) -> DockerState {
        let Some(socket) = &self.docker else { return DockerState::Absent };
        match timeout(PATIENCE, UnixStream::connect(socket)).await {
            Ok(Ok(_)) => DockerState::Answers,
            _ => DockerState::Silent,
        }
    }

    /// Asks every client to contact every name, and returns what each said. Of our own names those that are inside.
    pub(crate) async fn prove(&self, bundle: &Bundle, whose: Whose) -> Vec<Proof> {
        let mut proofs = JoinSet::new();
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for (number, attempt) in self.attempts(bundle, whose).into_iter().enumerate() {
            let turns = Arc::clone(&turns);
            proofs.spawn(async move {
                let _turn = turns.acquire().await;
                (number, attempt.make().await)
            });
        }
        let mut proofs = proofs.join_all().await;
        crate::in_order::sort_by(&mut proofs, |(one, _), (other, _)| one.cmp(other));
        proofs.into_iter().map(|(_, proof)| proof).collect()
    }

    fn attempts(&self, bundle: &Bundle, whose: Whose) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        // A public CA is in the system's store, which the system's curl reads unless it is told of another.
        let own = bundle.names.iter().filter(|trusted| trusted.inside).map(|trusted| (&trusted.name, &bundle.certificates));
        let others = bundle.others.iter().map(|other| (&other.name, &other.certificates));
        let targets: Vec<_> = match whose {
            Whose::Own => own.collect(),
            Whose::Others => others.filter(|(name, _)| !bundle.is_own(&name.to_string())).collect(),
        };
        for (name, certificates) in targets {
            if let Some(socket) = &self.docker {
                let spellings = if whose == Whose::Own { bundle.spellings(name) } else { name.spellings() };
                let by = || match whose {
                    Whose::Own => Client::Docker(socket.clone()),
                    Whose::Others => Client::DockerUnknown(socket.clone()),
                };
                attempts.extend(spellings.into_iter().map(|spelling| Attempt { name: spelling, by: by() }));
            }
            // Without TLS there is nothing that the store of curl could prove.
            let plain = whose == Whose::Own && bundle.insecure;
            if let Some(curl) = self.curl.as_ref().filter(|_| !plain) {
                attempts.push(Attempt { name: name.to_string(), by: Client::Curl(curl.for_ca(!certificates.is_empty())) });
            }
            if self.docker.is_none() && self.curl.is_none() && !plain {
                let handshake = Handshake::with_roots(certificates);
                attempts.push(Attempt { name: name.to_string(), by: Client::Handshake(handshake, name.clone()) });
            }
        }
        attempts
    }
}

/// Whose registries are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The one of this service.
    Own,
    /// The others.
    Others,
}

impl Curl {
    /// This curl with our store if the CA is a private one.
    fn for_ca(&self, private: bool) -> Self {
        Self { capath: self.capath.clone().filter(|_| private), ..self.clone() }
    }

    fn of_dcos(root: &HostRoot) -> Option<Self> {
        let program = root.dcos_curl();
        let libraries = program.parent().and_then(Path::parent).map(|dir| dir.join("lib"));
        program.exists().then_some(Self { program, capath: None, libraries })
    }

    fn of_system(root: &HostRoot) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path).map(|dir| dir.join("curl")).find(|program| program.exists())?;
        Some(Self { program, capath: Some(root.mesos_certs()), libraries: None })
    }
}

/// One client to contact one name.
struct Attempt {
    name: String,
    by: Client,
}

enum Client {
    Docker(PathBuf),
    /// The same, at a registry of which we know nothing but its CA.
    DockerUnknown(PathBuf),
    Curl(Curl),
    Handshake(Handshake, HostPort),
}

type Answer = (ProofOutcome, Option<String>);

impl Attempt {
    async fn make(self) -> Proof {
        let (client, answer) = match &self.by {
            // Curl has the same limit inside; the second one is for a curl that hangs.
            Client::Curl(curl) => ("curl", timeout(PATIENCE + Duration::from_secs(2), ask_curl(curl, &self.name)).await),
            Client::Docker(socket) => ("docker", timeout(PATIENCE, ask_docker(socket, &self.name)).await),
            Client::DockerUnknown(socket) => ("docker", timeout(PATIENCE, ask_docker_to_pull(socket, &self.name)).await),
            Client::Handshake(handshake, name) => ("handshake", timeout(PATIENCE, handshake.shake(name)).await),
        };
        let (outcome, detail) = answer.unwrap_or_else(|_| unreachable(format!("no answer within {} s", PATIENCE.as_secs())));
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Proof { client: client.to_string(), name: self.name, outcome, detail: detail.map(|text| short(&text)), at }
    }
}

fn unreachable(detail: impl ToString) -> Answer {
    (ProofOutcome::Unreachable, Some(detail.to_string()))
}

fn short(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_DETAIL_CHARS).collect()
}

/// Lets the daemon log in to the registry: it then contacts `/v2/` with the trust of its certs.d and stores nothing.
async fn ask_docker(socket: &Path, name: &str) -> Answer {
    let login = serde_json::json!({ "username": "private-registry", "password": "proof", "serveraddress": name });
    match post(socket, "/auth", login.to_string()).await {
        Ok((status, text)) => judge_docker(status, &text),
        Err(error) => unreachable(format!("{NO_DAEMON} at {}: {error}", socket.display())),
    }
}

/// Lets the daemon pull an image that there is not. A wrong password would count as an attack at GitLab or Harbor, which then lock out
/// the address of a whole cluster; nobody minds an anonymous question.
async fn ask_docker_to_pull(socket: &Path, name: &str) -> Answer {
    match post(socket, &format!("/images/create?fromImage={name}/private-registry/proof&tag=none"), String::new()).await {
        Ok((status, text)) => judge_pull(status, &text),
        Err(error) => unreachable(format!("{NO_DAEMON} at {}: {error}", socket.display())),
    }
}

async fn post(socket: &Path, path: &str, body: String) -> Result<(u16, String), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(UnixStream::connect(socket).await?)).await?;
    let request = hyper::Request::post(path)
        .header("Host", "docker")
        .header("Content-Type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(Body::new(response.into_body()), MAX_ANSWER_BYTES).await?;
        Ok((status, message(&body)))
    };
    tokio::select! {
        answer = exchange => answer,
        // It ends by itself only when it fails: the exchange above drives the rest.
        Err(error) = connection => Err(error.into()),
    }
}

/// What the daemon says: an error as one document, or the last one of a stream of progress.
fn message(body: &[u8]) -> String {
    let said = |text: &[u8]| {
        let json: serde_json::Value = crate::json::of_bytes(text).ok()?;
        json.get("message").or_else(|| json.get("error"))?.as_str().map(str::to_string)
    };
    said(body).or_else(|| body.rsplit(|byte| *byte == b'\n').find_map(said)).unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

/// Docker's errors are texts; these are the words of Go's net/http and crypto/tls, and of moby's `loginV2`.
fn judge_docker(status: u16, text: &str) -> Answer {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    // A refusal of the login, or any other HTTP status, comes after the handshake: the certificate was accepted.
    if status == 200 || status == 401 || has(&["unauthorized", "no basic auth credentials", "failed with status: "]) {
        return (ProofOutcome::Trusted, None);
    }
    judge_failure(text)
}

/// Words of docker's distribution client: it reports what the registry has answered, and that comes after the handshake.
fn judge_pull(status: u16, text: &str) -> Answer {
    let answered =
        ["manifest unknown", "access denied", "access forbidden", "unauthorized", "authentication required", "no basic auth", "denied:"];
    match judge_failure(text) {
        (ProofOutcome::Unreachable, _) if status == 404 || answered.iter().any(|words| text.contains(words)) => {
            (ProofOutcome::Trusted, None)
        }
        failure => failure,
    }
}

fn judge_failure(text: &str) -> Answer {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    // Before the certificate words: Go says "TLS handshake timeout".
    if has(&["timeout", "deadline exceeded", "first record does not look like a TLS handshake"]) {
        return unreachable(text);
    }
    if has(&["x509", "certificate", "tls:"]) { (ProofOutcome::Untrusted, Some(text.to_string())) } else { unreachable(text) }
}

async fn ask_curl(curl: &Curl, name: &str) -> Answer {
    match run_curl(curl, name).await {
        Ok((code, text)) => judge_curl(code, &text),
        Err(error) => unreachable(format!("cannot run {}: {error}", curl.program.display())),
    }
}

async fn run_curl(curl: &Curl, name: &str) -> std::io::Result<(Option<i32>, String)> {
    let mut command = tokio::process::Command::new(&curl.program);
    // -q: no settings of root's home. No environment: no proxy, as for the fetcher of Mesos inside the cluster.
    command.arg("-q").args(["-sS", "-o", "/dev/null", "--max-time", &PATIENCE.as_secs().to_string()]);
    if let Some(capath) = &curl.capath {
        command.arg("--capath").arg(capath);
    }
    command.arg(format!("https://{name}/v2/")).env_clear().env("PATH", "/usr/bin:/bin");
    if let Some(libraries) = &curl.libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(MAX_ANSWER_BYTES as u64).read_to_end(&mut text).await?;
    }
    let code = child.wait().await?.code();
    Ok((code, String::from_utf8_lossy(&text).into_owned()))
}

/// Exit codes of curl: 51 and 60 are a refused certificate, 77 an unreadable store, 35 any failure of the handshake.
fn judge_curl(code: Option<i32>, text: &str) -> Answer {
    let detail = if text.trim().is_empty() { format!("curl ended with {code:?}") } else { text.to_string() };
    let cut_off = ["reset", "SYSCALL", "wrong version number", "unexpected eof"].iter().any(|word| text.contains(word));
    match code {
        Some(0) => (ProofOutcome::Trusted, None),
        Some(51 | 60 | 77) => (ProofOutcome::Untrusted, Some(detail)),
        Some(35) if !cut_off => (ProofOutcome::Untrusted, Some(detail)),
        _ => unreachable(detail),
    }
}

/// Our own TLS client, trusting what the bundle says; for a public CA, what the system trusts.
#[derive(Clone)]
struct Handshake(Result<tokio_rustls::TlsConnector, String>);

impl Handshake {
    fn with_roots(certificates: &[Certificate]) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates {
            if let Err(error) = roots.add(CertificateDer::from(certificate.der())) {
                return Self(Err(format!("the CA {} cannot be used: {error}", certificate.subject())));
            }
        }
        if certificates.is_empty() {
            let system = SYSTEM_ROOTS.iter().find_map(|path| CertificateDer::pem_file_iter(path).ok());
            roots.add_parsable_certificates(system.into_iter().flatten().filter_map(Result::ok));
        }
        let config = rustls::ClientConfig::builder_with_provider(crate::tls::provider()).with_safe_default_protocol_versions();
        Self(
            config
                .map_err(|e| e.to_string())
                .map(|builder| tokio_rustls::TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))),
        )
    }

    async fn shake(&self, name: &HostPort) -> Answer {
        let connector = match &self.0 {
            Ok(connector) => connector,
            Err(error) => return (ProofOutcome::Untrusted, Some(error.clone())),
        };
        let stream = match connect(name).await {
            Ok(stream) => stream,
            Err(error) => return unreachable(error),
        };
        let server = match server_name(&name.host) {
            Ok(server) => server,
            Err(error) => return unreachable(error),
        };
        match connector.connect(server, stream).await {
            Ok(_) => (ProofOutcome::Trusted, None),
            Err(error) if is_refusal(&error) => (ProofOutcome::Untrusted, Some(error.to_string())),
            Err(error) => unreachable(error),
        }
    }
}

fn server_name(host: &Host) -> Result<ServerName<'static>, String> {
    match host {
        Host::Ip(ip) => Ok(ServerName::IpAddress(IpAddr::from(std::net::IpAddr::V4(*ip)))),
        Host::Dns(name) => ServerName::try_from(name.clone()).map_err(|e| e.to_string()),
    }
}

async fn connect(name: &HostPort) -> Result<TcpStream, String> {
    let address = super::resolve(&name.host).await?;
    TcpStream::connect((address, name.port)).await.map_err(|e| e.to_string())
}

/// Whether we refused the certificate, as opposed to a connection that broke or speaks no TLS.
fn is_refusal(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented))
}
