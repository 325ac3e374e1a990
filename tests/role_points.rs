//! The real node and the real registry role, with the real registry beside it, killed at every effect of theirs: changes of files,
//! what they say and hear, the start and the end of a child. Their task is started again, as Marathon would, and comes to its end.
//!
//! They run as processes in namespaces of their own (`fleet`), so all paths and ports are those of an agent and of the container.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::mount::{MsFlags, mount};
use private_registry::certificates::{Authority, EnrolmentKey, OrderSigner, RegistryKey};
use private_registry::digest::{order_digest, sha256_hex};
use private_registry::names::HostPort;
use private_registry::protocol::{
    CollectPhase, CollectStep, NodePhase, NodeStatus, Order, OrderKind, RegistryPhase, RegistryStatus, SignedOrder, TrustBundle,
    TrustedName, env, media,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::crash_points::{in_parallel, scratch, unless_it_panics};
use crate::fleet::isolated;
use crate::fleet::process::{Counts, Process, Start, Watch};
use crate::support::made;

const SERVICE: &str = "private-registry";
const HOST: &str = "10.0.0.1";
/// The node's port.
const PORT: u16 = 20_001;
const PATIENCE: Duration = Duration::from_secs(40);

/// Which role, and what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A node starts with its first order.
    NodeStarts,
    /// A node is given a second CA.
    NodeIsTold,
    /// A node puts its host back.
    NodeRestores,
    /// A registry starts without anything, is given a certificate and serves.
    RegistryStarts,
    /// It is given another certificate, and drains.
    RegistryRestarts,
    /// It collects garbage.
    RegistryCollects,
    /// It retires.
    RegistryRetires,
}

impl Step {
    pub(crate) const ALL: [Self; 7] = [
        Self::NodeStarts,
        Self::NodeIsTold,
        Self::NodeRestores,
        Self::RegistryStarts,
        Self::RegistryRestarts,
        Self::RegistryCollects,
        Self::RegistryRetires,
    ];

    /// As the document calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NodeStarts => "node: start with the first order",
            Self::NodeIsTold => "node: a further CA",
            Self::NodeRestores => "node: restore",
            Self::RegistryStarts => "registry: first certificate",
            Self::RegistryRestarts => "registry: another certificate, drain and restart",
            Self::RegistryCollects => "registry: garbage collection",
            Self::RegistryRetires => "registry: retirement",
        }
    }

    fn is_of_node(self) -> bool {
        matches!(self, Self::NodeStarts | Self::NodeIsTold | Self::NodeRestores)
    }
}

/// Keys and orders that all runs have in common.
pub(crate) struct Keys {
    signer: OrderSigner,
    enrolment: EnrolmentKey,
    authorities: [Authority; 2],
    /// Of the registry that nodes ask.
    key: RegistryKey,
    chain: String,
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn vip() -> HostPort {
    "192.168.0.1:443".parse().unwrap()
}

fn own_name() -> HostPort {
    format!("{HOST}:5000").parse().unwrap()
}

impl Keys {
    pub(crate) fn new() -> Self {
        let names = [vip(), own_name()];
        let authorities = [1, 2].map(|generation| Authority::create(SERVICE, generation, &names, now(), 365).unwrap());
        let key = RegistryKey::generate().unwrap();
        let chain = authorities[0].sign_leaf(&key.csr(SERVICE).unwrap(), &names, now(), 90).unwrap();
        Self { signer: OrderSigner::generate().unwrap(), enrolment: EnrolmentKey::generate().unwrap(), authorities, key, chain }
    }

    fn sign(&self, version: u64, kind: OrderKind) -> SignedOrder {
        self.signer.sign(&Order { service: SERVICE.into(), version, kind })
    }

    /// The order to trust the first CA, or both.
    fn trust(&self, cas: usize) -> SignedOrder {
        let certificates = self.authorities[..cas].iter().map(|authority| authority.certificate().pem()).collect();
        let names = vec![TrustedName { name: vip(), inside: true }];
        self.sign(cas as u64, OrderKind::Trust(TrustBundle { names, certificates, conntrack_be_liberal: true, ..TrustBundle::default() }))
    }
}

/// Every file below a folder, with its mode and content.
fn picture(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let (mut picture, mut rest) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(at) = rest.pop() {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            if meta.is_dir() {
                if !path.ends_with(STORE) {
                    rest.push(path);
                }
                continue;
            }
            let content = if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            picture.insert(path.strip_prefix(root).unwrap().to_owned(), (meta.permissions().mode(), content));
        }
    }
    picture
}

/// A task of a role, started again whenever it has ended.
struct Task<'a> {
    keys: &'a Keys,
    dir: PathBuf,
    step: Step,
    watch: Arc<Watch>,
    http: reqwest::Client,
    process: Option<Process>,
    starts: usize,
}

impl<'a> Task<'a> {
    fn new(keys: &'a Keys, dir: &Path, step: Step) -> Self {
        let counts = if step.is_of_node() { Counts::FilesAndTalk } else { Counts::FilesAndChildren };
        Self::watched(keys, dir, step, Watch::new(counts, &["/var/lib", "/etc", "/proc/sys"]))
    }

    fn watched(keys: &'a Keys, dir: &Path, step: Step, watch: Arc<Watch>) -> Self {
        let ca = |authority: &Authority| reqwest::Certificate::from_pem(authority.certificate().pem().as_bytes()).unwrap();
        let [first, second] = &keys.authorities;
        let http = reqwest::Client::builder().no_proxy().add_root_certificate(ca(first)).add_root_certificate(ca(second));
        let http = http.timeout(Duration::from_secs(5)).pool_max_idle_per_host(0).build().unwrap();
        Self { keys, dir: dir.to_owned(), step, watch, http, process: None, starts: 0 }
    }

    /// Keeps the task running, as Marathon would.
    fn keep(&mut self) {
        if self.process.as_ref().is_some_and(|process| process.ended().is_none()) {
            return;
        }
        self.starts += 1;
        let settings = json!({ "log_level": "info", "delete_enabled": true, "drain_seconds": 5 });
        let mut variables = BTreeMap::from(
            [(env::SERVICE, SERVICE.to_owned()), (env::ORDER_KEY, self.keys.signer.verifying_key_base64()), ("HOST", HOST.to_owned())]
                .map(|(name, value)| (name.to_owned(), value)),
        );
        let more = if self.step.is_of_node() {
            vec![
                (env::FIRST_ORDER, serde_json::to_string(&self.keys.trust(1)).unwrap()),
                ("ENDPOINT_STATUS", PORT.to_string()),
                ("MESOS_EXECUTOR_ID", format!("instance-node.{}", self.starts)),
            ]
        } else {
            vec![
                (env::ENROLMENT_KEY, self.keys.enrolment.to_base64().expose().clone()),
                (env::REGISTRY_SETTINGS, settings.to_string()),
                ("MESOS_TASK_ID", format!("registry.{}", self.starts)),
                ("PATH", format!("{}:/usr/bin:/bin", self.dir.join("bin").display())),
            ]
        };
        variables.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let start = Start {
            program: &made("target/package/private-registry"),
            role: if self.step.is_of_node() { "node" } else { "registry" },
            env: variables,
            sandbox: &self.dir,
            watch: Some(self.watch.clone()),
            contains: !self.step.is_of_node(),
        };
        self.process = Some(Process::start(start).unwrap());
    }

    fn url(&self, path: &str) -> String {
        let port = if self.step.is_of_node() { PORT } else { 5001 };
        format!("http://{HOST}:{port}{path}")
    }

    async fn status<T: DeserializeOwned>(&mut self) -> Option<T> {
        self.keep();
        self.http.get(self.url("/status")).send().await.ok()?.json().await.ok()
    }

    /// Status code of the answer; none where nobody answered.
    async fn give(&self, order: &SignedOrder) -> Option<u16> {
        Some(self.http.put(self.url("/order")).json(order).send().await.ok()?.status().as_u16())
    }

    /// Does what a controller does, again and again, until it says that all is done.
    async fn until(&mut self, what: &str, does: impl AsyncFn(&mut Self) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !does(self).await {
            if Instant::now() >= deadline {
                return Err(format!("{what} has not come about within {} s:\n{}", PATIENCE.as_secs(), self.log()));
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        Ok(())
    }

    /// A node is brought to an order.
    async fn bring_node(&mut self, order: &SignedOrder, phase: NodePhase) -> Result<(), String> {
        self.until(&format!("{phase:?}"), async |task| {
            let Some(status) = task.status::<NodeStatus>().await else { return false };
            if status.order_digest != order_digest(order) {
                task.give(order).await;
                return false;
            }
            status.phase == phase
        })
        .await
    }

    /// A registry is given a certificate of one of the CAs for the key that it has.
    async fn certify(&mut self, ca: usize) -> Result<(), String> {
        let fingerprint = async |task: &mut Self| {
            let status = task.status::<RegistryStatus>().await?;
            let request = status.request.as_ref()?;
            let names = [own_name()];
            let serving = status.phase == RegistryPhase::Serving && status.order_version >= ca as u64;
            if !serving && status.order_version < ca as u64 {
                let chain = task.keys.authorities[ca - 1].sign_leaf(&request.csr, &names, now(), 90).ok()?;
                task.give(&task.keys.sign(ca as u64, OrderKind::Certificate { chain })).await;
            }
            Some(serving)
        };
        self.until("a certificate", async |task| fingerprint(task).await == Some(true)).await
    }

    fn registry_url(&self, path: &str) -> String {
        format!("https://{HOST}:5000{path}")
    }

    fn log(&self) -> String {
        let file = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        file("stderr") + &file("stdout")
    }

    /// The answer, if it has this code.
    async fn ask(&self, request: reqwest::RequestBuilder, code: u16) -> Result<reqwest::Response, String> {
        let answer = request.send().await.map_err(|error| format!("{error:?}\n{}", self.log()))?;
        let status = answer.status().as_u16();
        if status == code { Ok(answer) } else { Err(format!("{status} in place of {code}\n{}", self.log())) }
    }

    async fn push_blob(&self, content: &str, kind: &str) -> Result<Value, String> {
        let digest = format!("sha256:{}", sha256_hex(content.as_bytes()));
        let begun = self.ask(self.http.post(self.registry_url("/v2/base/hello/blobs/uploads/")), 202).await?;
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let location = if location.starts_with('/') { self.registry_url(&location) } else { location };
        let sent = self.http.put(format!("{location}&digest={digest}")).header("Content-Type", "application/octet-stream");
        self.ask(sent.body(content.to_owned()), 201).await?;
        Ok(json!({ "mediaType": kind, "size": content.len(), "digest": digest }))
    }

    /// The digest of its manifest.
    async fn push_image(&self, tag: &str, content: &str) -> Result<String, String> {
        let config = self.push_blob("{}", "application/vnd.docker.container.image.v1+json").await?;
        let layer = self.push_blob(content, "application/vnd.docker.image.rootfs.diff.tar.gzip").await?;
        let manifest = json!({ "schemaVersion": 2, "mediaType": media::SCHEMA_2, "config": config, "layers": [layer] }).to_string();
        let url = self.registry_url(&format!("/v2/base/hello/manifests/{tag}"));
        self.ask(self.http.put(url).header("Content-Type", media::SCHEMA_2).body(manifest.clone()), 201).await?;
        Ok(format!("sha256:{}", sha256_hex(manifest.as_bytes())))
    }

    /// Whether an image and its layer are there as they were pushed.
    async fn has(&self, tag: &str, content: &str) -> bool {
        let manifest = self.http.get(self.registry_url(&format!("/v2/base/hello/manifests/{tag}"))).header("Accept", media::SCHEMA_2);
        let digest = format!("sha256:{}", sha256_hex(content.as_bytes()));
        let layer = self.http.get(self.registry_url(&format!("/v2/base/hello/blobs/{digest}")));
        let well = |answer: Result<reqwest::Response, reqwest::Error>| answer.ok().filter(|answer| answer.status().is_success());
        let (Some(_), Some(layer)) = (well(manifest.send().await), well(layer.send().await)) else { return false };
        layer.text().await.is_ok_and(|text| text == content)
    }

    async fn takes_pushes(&self) -> bool {
        let begun = self.http.post(self.registry_url("/v2/base/hello/blobs/uploads/")).send().await;
        begun.is_ok_and(|answer| answer.status().as_u16() == 202)
    }

    /// A whole collection by the run of this name, as a controller leads one; where the registry has forgotten it, it begins anew.
    async fn collect(&mut self, run: &str) -> Result<(), String> {
        // An order that is given again is the same one, unless the registry has taken another since.
        let given = std::cell::Cell::new((CollectStep::Finish, 0));
        self.until("the end of a collection", async |task| {
            let Some(status) = task.status::<RegistryStatus>().await else { return false };
            if status.phase != RegistryPhase::Serving {
                return false;
            }
            let step = match status.collection.filter(|part| part.run == run).map(|part| part.phase) {
                Some(CollectPhase::Done) => return true,
                None | Some(CollectPhase::Preparing) => CollectStep::Prepare,
                Some(CollectPhase::ReadOnly | CollectPhase::Collecting) => CollectStep::Collect,
                Some(CollectPhase::Collected | CollectPhase::Reopening) => CollectStep::Finish,
            };
            let (before, version) = given.get();
            let is_known = before == step && version >= status.order_version;
            let version = if is_known { version } else { version.max(status.order_version) + 1 };
            given.set((step, version));
            let kind = OrderKind::Collect { run: run.to_owned(), step, dry_run: false, delete_untagged: false };
            task.give(&task.keys.sign(version, kind)).await;
            false
        })
        .await
    }

    async fn retire(&mut self) -> Result<(), String> {
        self.until("the retirement", async |task| {
            let Some(status) = task.status::<RegistryStatus>().await else { return false };
            if status.phase == RegistryPhase::Retired {
                return true;
            }
            let version = status.order_version.max(20);
            task.give(&task.keys.sign(version, OrderKind::Retire { delete_data: false })).await;
            false
        })
        .await
    }
}

/// Layers of images: one that stays, one that nothing names any more.
const KEPT: &str = "what stays";
const GONE: &str = "what nobody needs any more";

/// Plays a step with a kill at a call, or none. Says what was counted and whether somebody was killed.
pub(crate) fn play(keys: &Keys, step: Step, at: Option<usize>) -> Result<(Vec<String>, bool), String> {
    let dir = scratch();
    unless_it_panics(|| {
        isolated(dir.path(), async || {
            if step.is_of_node() { play_node(keys, dir.path(), step, at).await } else { play_registry(keys, dir.path(), step, at).await }
        })
    })
}

/// The system's store of CAs, below /etc.
const STORE: &str = "ssl/certs";

/// What is on a node's host: /etc and /var/lib.
fn host_picture(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = picture(&dir.join("etc"));
    all.extend(picture(&dir.join("var-lib")).into_iter().map(|(path, what)| (Path::new("var-lib").join(path), what)));
    all
}

/// The host of a node, and the registry that it asks.
async fn prepare_host(keys: &Keys, dir: &Path) {
    let etc = dir.join("etc");
    fs::create_dir_all(etc.join("docker")).unwrap();
    fs::create_dir_all(etc.join("sysctl.d")).unwrap();
    fs::copy(dir.join("resolv.conf"), etc.join("resolv.conf")).unwrap();
    fs::create_dir_all(dir.join("var-lib/dcos/pki/tls/certs")).unwrap();
    // Curl looks for the system's store before it reads another.
    fs::create_dir_all(etc.join(STORE)).unwrap();
    let (none, store): (Option<&str>, _) = (None, Path::new("/etc").join(STORE));
    mount(Some(&store), &etc.join(STORE), none, MsFlags::MS_BIND, none).unwrap();
    mount(Some(&etc), "/etc", none, MsFlags::MS_BIND | MsFlags::MS_REC, none).unwrap();
    serve_tls(keys).await;
}

async fn play_node(keys: &Keys, dir: &Path, step: Step, at: Option<usize>) -> Result<(Vec<String>, bool), String> {
    prepare_host(keys, dir).await;
    let before = host_picture(dir);
    let mut task = Task::new(keys, dir, step);
    let (goal, phase) = match step {
        Step::NodeStarts => (keys.trust(1), NodePhase::Trusted),
        Step::NodeIsTold => (keys.trust(2), NodePhase::Trusted),
        _ => (keys.sign(3, OrderKind::Restore), NodePhase::Restored),
    };
    if step != Step::NodeStarts {
        task.bring_node(&keys.trust(1), NodePhase::Trusted).await?;
    }
    task.watch.arm(at);
    task.bring_node(&goal, phase).await?;
    let seen = task.watch.seen();
    let after = host_picture(dir);
    let expected = match step {
        Step::NodeRestores => before,
        _ => {
            // What one that nobody disturbs makes of an empty host.
            let cas = if step == Step::NodeStarts { 1 } else { 2 };
            let stored =
                after.get(Path::new("docker/certs.d/192.168.0.1/ca.crt")).map(|(_, text)| String::from_utf8_lossy(text).into_owned());
            let stored = stored.unwrap_or_default();
            let knows = |authority: &Authority| stored.contains(authority.certificate().pem().trim());
            if !keys.authorities[..cas].iter().all(knows) || stored.matches("BEGIN").count() != cas {
                return Err(format!("docker is told to trust {stored:?}"));
            }
            after.clone()
        }
    };
    let differs: BTreeSet<_> = after.keys().chain(expected.keys()).filter(|path| after.get(*path) != expected.get(*path)).collect();
    let left: Vec<_> = after.keys().filter(|path| path.extension() == Some("tmp".as_ref())).collect();
    if differs.is_empty() && left.is_empty() { Ok(seen) } else { Err(format!("the host differs in {differs:?}; {left:?} is left")) }
}

/// What nodes ask: a registry with a certificate of the first CA.
async fn serve_tls(keys: &Keys) {
    let chain = CertificateDer::pem_slice_iter(keys.chain.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(keys.key.to_pem().expose().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::new(192, 168, 0, 1), 443)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 2048];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").await;
                let _ = stream.shutdown().await;
            });
        }
    });
}

fn prepare_container(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    symlink("/usr/bin/docker-registry", dir.join("bin/registry")).unwrap();
    for folder in ["registry", "private-registry"] {
        fs::create_dir_all(dir.join("var-lib").join(folder)).unwrap();
    }
}

async fn play_registry(keys: &Keys, dir: &Path, step: Step, at: Option<usize>) -> Result<(Vec<String>, bool), String> {
    prepare_container(dir);
    let mut task = Task::new(keys, dir, step);
    if step != Step::RegistryStarts {
        task.certify(1).await?;
        task.push_image("1", KEPT).await?;
        let gone = task.push_image("2", GONE).await?;
        task.ask(task.http.delete(task.registry_url(&format!("/v2/base/hello/manifests/{gone}"))), 202).await?;
    }
    task.watch.arm(at);
    match step {
        Step::RegistryStarts => task.certify(1).await?,
        Step::RegistryRestarts => task.certify(2).await?,
        Step::RegistryCollects => task.collect("run").await?,
        _ => task.retire().await?,
    }
    let seen = task.watch.seen();
    let state = dir.join("var-lib/private-registry");
    if step == Step::RegistryRetires {
        let left: Vec<_> = picture(&state).into_keys().collect();
        let images = picture(&dir.join("var-lib/registry"));
        return match () {
            () if !left.is_empty() => Err(format!("{left:?} is left of a registry that has retired")),
            () if !images.values().any(|(_, content)| content == KEPT.as_bytes()) => {
                Err("the images are gone, though nobody asked for that".into())
            }
            () => Ok(seen),
        };
    }
    task.until("pushes to be taken", async |task| {
        task.keep();
        task.takes_pushes().await
    })
    .await?;
    if step != Step::RegistryStarts && !task.has("1", KEPT).await {
        return Err("an image is lost".into());
    }
    if step == Step::RegistryCollects {
        let images = picture(&dir.join("var-lib/registry"));
        if images.values().any(|(_, content)| content == GONE.as_bytes()) {
            return Err("garbage is left".into());
        }
        task.push_image("2", GONE).await.map_err(|why| format!("after the collection: {why}"))?;
        if !task.has("2", GONE).await {
            return Err("what was collected cannot be pushed again".into());
        }
    }
    let left: Vec<_> = picture(&state).into_keys().filter(|path| path.to_string_lossy().contains("tmp")).collect();
    if left.is_empty() { Ok(seen) } else { Err(format!("{left:?} is left")) }
}

/// What came of a step: calls counted, killed at, missed, and why some have failed.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) kinds: BTreeMap<String, usize>,
    pub(crate) struck: usize,
    pub(crate) missed: usize,
    pub(crate) failed: Vec<String>,
}

/// Counts the calls of every step and kills at those that are chosen, so many at a time.
pub(crate) fn strike_all(choose: impl Fn(Step, usize) -> Vec<usize>, at_once: usize) -> BTreeMap<Step, Tally> {
    let keys = Keys::new();
    let tallies: std::sync::Mutex<BTreeMap<Step, Tally>> = std::sync::Mutex::default();
    in_parallel(Step::ALL.into(), at_once, |step| {
        let (calls, _) = play(&keys, step, None).unwrap_or_else(|why| panic!("{}, undisturbed: {why}", step.name()));
        let mut kinds = BTreeMap::new();
        for call in calls {
            *kinds.entry(call.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        tallies.lock().unwrap().insert(step, Tally { kinds, ..Tally::default() });
    });
    let points: Vec<(Step, usize)> = {
        let tallies = tallies.lock().unwrap();
        let each = tallies.iter().map(|(step, tally)| (*step, tally.kinds.values().sum()));
        each.flat_map(|(step, count)| choose(step, count).into_iter().map(move |at| (step, at))).collect()
    };
    in_parallel(points.into(), at_once, |(step, at)| {
        let result = play(&keys, step, Some(at));
        let mut tallies = tallies.lock().unwrap();
        let tally = tallies.entry(step).or_default();
        match result {
            Ok((_, true)) => tally.struck += 1,
            Ok((_, false)) => tally.missed += 1,
            Err(why) => tally.failed.push(format!("{}, call {at}: {why}", step.name())),
        }
    });
    tallies.into_inner().unwrap()
}

/// Prints the table and fails where anything has.
pub(crate) fn report(results: &BTreeMap<Step, Tally>) {
    println!("| step | killed at | of these calls | did not come again | passed |\n|---|---|---|---|---|");
    for (step, tally) in results {
        let kinds = tally.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ");
        let passed = if tally.failed.is_empty() { "all".to_owned() } else { format!("all but {}", tally.failed.len()) };
        println!("| {} | {} | {kinds} | {} | {passed} |", step.name(), tally.struck, tally.missed);
    }
    let failed: Vec<&String> = results.values().flat_map(|tally| &tally.failed).collect();
    assert!(failed.is_empty(), "{} points have failed:\n{failed:#?}", failed.len());
}

/// One call in so many is taken.
const ONE_IN: usize = 20;

#[test]
fn roles_come_to_their_end_whenever_they_are_killed() {
    let results = strike_all(|step, count| (1 + 3 * step as usize..=count).step_by(ONE_IN).collect(), 6);
    let struck: usize = results.values().map(|tally| tally.struck).sum();
    assert!(struck > 12, "only {struck} points were struck");
    report(&results);
}

#[test]
#[ignore = "by ci/crash-points: it takes minutes"]
fn every_point() {
    report(&strike_all(|_, count| (1..=count).collect(), 6));
}

const DAY: i64 = 24 * 60 * 60;

/// Plays with processes whose clock is so far ahead.
fn with_clock(ahead: i64, step: Step, play: impl AsyncFnOnce(&mut Task<'_>, &Keys) -> Result<(), String> + Send) {
    let (keys, dir) = (Keys::new(), scratch());
    let played = unless_it_panics(|| {
        isolated(dir.path(), async || {
            if step.is_of_node() {
                prepare_host(&keys, dir.path()).await
            } else {
                prepare_container(dir.path())
            }
            let mut task = Task::watched(&keys, dir.path(), step, Watch::with_clock(ahead));
            play(&mut task, &keys).await
        })
    });
    played.unwrap_or_else(|why| panic!("{ahead} s ahead: {why}"));
}

#[test]
fn a_node_whose_clock_is_a_day_off_trusts_and_one_that_is_further_off_says_why_not_until_the_clock_is_set() {
    for ahead in [DAY, -DAY] {
        with_clock(ahead, Step::NodeStarts, async |task, keys| {
            task.bring_node(&keys.trust(1), NodePhase::Trusted).await?;
            task.bring_node(&keys.trust(2), NodePhase::Trusted).await?;
            task.watch.set_clock(0);
            task.bring_node(&keys.sign(3, OrderKind::Restore), NodePhase::Restored).await
        });
    }
    // What was signed with a right clock begins a day and an hour before.
    with_clock(-2 * DAY, Step::NodeStarts, async |task, keys| {
        let says_why = async |task: &mut Task<'_>| {
            let errors = task.status::<NodeStatus>().await.map(|status| status.errors.join(" "));
            errors.is_some_and(|errors| errors.contains("not yet valid"))
        };
        task.until("the reason", says_why).await?;
        task.watch.set_clock(0);
        task.bring_node(&keys.trust(1), NodePhase::Trusted).await
    });
}

#[test]
fn a_registry_whose_clock_is_a_day_off_serves_and_goes_on_when_it_is_set() {
    for ahead in [DAY, -DAY] {
        with_clock(ahead, Step::RegistryStarts, async |task, _| {
            task.certify(1).await?;
            task.push_image("1", KEPT).await?;
            task.certify(2).await?;
            task.until("pushes to be taken", async |task| task.takes_pushes().await).await?;
            task.watch.set_clock(0);
            if !task.has("1", KEPT).await {
                return Err("an image is lost".into());
            }
            task.retire().await
        });
    }
}
