//! The registry role with the real registry (Debian's docker-registry) on loopback, as process 1 of its own PID namespace,
//! as in a container.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use private_registry::certificates::{Authority, Certificate, EnrolmentKey, OrderSigner, RegistryKey};
use private_registry::digest::sha256_hex;
use private_registry::names::HostPort;
use private_registry::protocol::{
    CollectPhase, CollectStep, Collection, ImagesPage, MAC_HEADER, MAX_MESSAGE_BYTES, Order, OrderKind, RegistryPhase, RegistryStatus,
    SignedOrder, TIME_HEADER, TrustBundle, asked, env, media,
};
use private_registry::registry::{RegistryConfig, run};
use private_registry::secret::Secret;

const SERVICE: &str = "private-registry";

/// Variables that the operator's certificate and key come in.
const HELD: [&str; 2] = ["PRIVATE_REGISTRY_HELD_PROVIDED_CERTIFICATE", "PRIVATE_REGISTRY_HELD_PROVIDED_KEY"];
const TEST_DIR: &str = "TEST_REGISTRY_ROLE_DIR";
const TEST_PORTS: &str = "TEST_REGISTRY_ROLE_PORTS";
const TEST_PATIENCE: &str = "TEST_REGISTRY_ROLE_PATIENCE";
const TEST_PROGRAM: &str = "TEST_REGISTRY_ROLE_PROGRAM";

#[test]
#[ignore = "the process under test; the other tests start it"]
fn the_role_itself() {
    let variable = |name| std::env::var(name).unwrap();
    let ports: Vec<u16> = variable(TEST_PORTS).split(',').map(|port| port.parse().unwrap()).collect();
    let mut config = RegistryConfig::from_env().unwrap();
    config.state = Path::new(&variable(TEST_DIR)).join("state");
    config.data = Path::new(&variable(TEST_DIR)).join("data");
    config.listen = (Ipv4Addr::LOCALHOST, ports[0]).into();
    config.status_listen = (Ipv4Addr::LOCALHOST, ports[1]).into();
    config.debug_listen = (Ipv4Addr::LOCALHOST, ports[2]).into();
    config.program = variable(TEST_PROGRAM).into();
    config.patience = Duration::from_secs(variable(TEST_PATIENCE).parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(config)).unwrap();
}

/// A host with one registry task, and the controller's keys.
struct Host {
    dir: tempfile::TempDir,
    listen: SocketAddr,
    status: SocketAddr,
    debug: SocketAddr,
    program: PathBuf,
    /// See `RegistryConfig::patience`.
    patience: u64,
    drain_seconds: u64,
    insecure: bool,
    key_type: &'static str,
    /// See `RegistrySettings::provided`.
    provided: Option<serde_json::Value>,
    /// Further settings.
    more: serde_json::Value,
    /// Further variables.
    secrets: Vec<(&'static str, String)>,
    authority: Authority,
    signer: OrderSigner,
    enrolment: EnrolmentKey,
    /// `unshare`, the parent of the role.
    task: Option<Child>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (listen, status, debug) = (free_address(), free_address(), free_address());
        let authority = Authority::create(SERVICE, 1, &[name_of(listen)], now(), 3650).unwrap();
        fs::write(dir.path().join("ca.pem"), authority.certificate().pem()).unwrap();
        Self {
            dir,
            listen,
            status,
            debug,
            program: "/usr/bin/docker-registry".into(),
            patience: 600,
            drain_seconds: 20,
            insecure: false,
            key_type: "p256",
            provided: None,
            more: serde_json::json!({}),
            secrets: Vec::new(),
            authority,
            signer: OrderSigner::generate().unwrap(),
            enrolment: EnrolmentKey::generate().unwrap(),
            task: None,
        }
    }

    fn started() -> Self {
        let mut host = Self::new();
        host.start();
        host
    }

    fn serving() -> Self {
        let host = Self::started();
        host.give_certificate(1);
        host
    }

    fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut settings = serde_json::json!({
            "log_level": "info",
            "delete_enabled": true,
            "drain_seconds": self.drain_seconds,
            "key_type": self.key_type,
            "provided": self.provided,
            "insecure": self.insecure,
        });
        for (key, value) in self.more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        // The kernel ends unshare with this thread, unshare's child with it, and with that child, process 1, all that is in there.
        let task = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"])
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "registry_role::the_role_itself", "--nocapture"])
            .env(TEST_DIR, self.dir.path())
            .env(TEST_PORTS, format!("{},{},{}", self.listen.port(), self.status.port(), self.debug.port()))
            .env(TEST_PROGRAM, &self.program)
            .env(TEST_PATIENCE, self.patience.to_string())
            .env(env::SERVICE, SERVICE)
            .env(env::ORDER_KEY, self.signer.verifying_key_base64())
            .env(env::ENROLMENT_KEY, self.enrolment.to_base64().expose())
            .env(env::REGISTRY_SETTINGS, settings.to_string())
            .envs(self.secrets.iter().cloned())
            .env("HOST", "127.0.0.1")
            .env("MESOS_TASK_ID", "registry.1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.task = Some(task);
        wait_for("the status", || self.try_status());
    }

    fn role_pid(&self) -> u32 {
        wait_for("the role", || children(self.task.as_ref()?.id()).first().copied())
    }

    fn registry_pid(&self) -> u32 {
        wait_for("the registry", || {
            children(self.role_pid()).into_iter().find(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
        })
    }

    /// Asks the role to stop and says whether it ended well.
    fn stop(&mut self) -> bool {
        kill("TERM", self.role_pid());
        self.task.take().unwrap().wait().unwrap().success()
    }

    fn try_status(&self) -> Option<RegistryStatus> {
        let (code, body) = http(&[&format!("http://{}/status", self.status)])?;
        (code == 200).then(|| serde_json::from_str(&body).unwrap())
    }

    fn status(&self) -> RegistryStatus {
        self.try_status().unwrap()
    }

    fn wait_for_phase(&self, phase: RegistryPhase) -> RegistryStatus {
        wait_for(&format!("{phase:?}"), || self.try_status().filter(|status| status.phase == phase))
    }

    fn put(&self, body: &str) -> (u16, String) {
        let file = self.dir.path().join("body");
        fs::write(&file, body).unwrap();
        let url = format!("http://{}/order", self.status);
        http(&["-X", "PUT", "--data-binary", &format!("@{}", file.display()), &url]).unwrap()
    }

    fn sign(&self, version: u64, kind: OrderKind) -> SignedOrder {
        self.signer.sign(&Order { service: SERVICE.into(), version, kind })
    }

    fn give(&self, version: u64, kind: OrderKind) -> (u16, String) {
        self.put(&serde_json::to_string(&self.sign(version, kind)).unwrap())
    }

    fn chain(&self) -> String {
        let request = self.status().request.unwrap();
        self.authority.sign_leaf(&request.csr, &[name_of(self.listen)], now(), 365).unwrap()
    }

    fn give_certificate(&self, version: u64) -> String {
        let chain = self.chain();
        assert_eq!(self.give(version, OrderKind::Certificate { chain: chain.clone() }), (200, "taken\n".into()));
        self.wait_for_phase(RegistryPhase::Serving);
        chain
    }

    fn registry_url(&self, path: &str) -> String {
        format!("https://{}{path}", self.listen)
    }

    fn ca(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        http(&["--cacert", &self.ca(), &self.registry_url(path)])
    }

    /// Where the next upload goes, for a blob with this digest.
    fn upload_url(&self, digest: &str) -> String {
        let (code, headers) =
            http(&["--cacert", &self.ca(), "-X", "POST", "-D", "-", &self.registry_url("/v2/base/hello/blobs/uploads/")]).unwrap();
        assert_eq!(code, 202, "{headers}");
        let location = headers.lines().find_map(|line| line.to_ascii_lowercase().starts_with("location: ").then(|| line[10..].trim()));
        format!("{}&digest={digest}", self.registry_url(location.unwrap()))
    }

    fn push(&self, content: &str) -> String {
        let digest = format!("sha256:{}", sha256_hex(content.as_bytes()));
        let octets = "Content-Type: application/octet-stream";
        let (code, body) =
            http(&["--cacert", &self.ca(), "-X", "PUT", "-H", octets, "--data-binary", content, &self.upload_url(&digest)]).unwrap();
        assert_eq!(code, 201, "{body}");
        format!("/v2/base/hello/blobs/{digest}")
    }

    fn state(&self, file: &str) -> PathBuf {
        self.dir.path().join("state").join(file)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut task) = self.task.take() {
            // Its child, process 1 of the namespace, goes with it, and everything in there.
            let _ = task.kill();
            let _ = task.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn name_of(address: SocketAddr) -> HostPort {
    address.to_string().parse().unwrap()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what} did not come in 20 s")
}

fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap().success());
}

/// State letter and children of processes, from `/proc/<pid>/stat`.
fn processes() -> Vec<(u32, String, u32)> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    let stat = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = text.rsplit_once(')')?.1.split_whitespace();
        Some((pid, fields.next()?.to_string(), fields.next()?.parse().ok()?))
    };
    entries.filter_map(stat).collect()
}

fn children(parent: u32) -> Vec<u32> {
    processes().into_iter().filter(|(_, _, ppid)| *ppid == parent).map(|(pid, _, _)| pid).collect()
}

/// `None` if there was no HTTP answer at all.
fn http(arguments: &[&str]) -> Option<(u16, String)> {
    let output = Command::new("curl").args(["-s", "-m", "30", "-w", "\n%{http_code}"]).args(arguments).output().unwrap();
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, code) = text.rsplit_once('\n').unwrap();
    Some((code.parse().unwrap(), body.to_string()))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Fingerprint of the leaf that a client gets to see.
fn leaf_on_the_wire(address: SocketAddr) -> String {
    let mut client = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = Command::new("openssl").arg("x509").stdin(client.stdout.take().unwrap()).output().unwrap();
    client.wait().unwrap();
    Certificate::parse_pem(&String::from_utf8(output.stdout).unwrap()).unwrap().fingerprint()
}

#[test]
fn a_registry_asks_for_a_certificate_and_serves_with_it() {
    let host = Host::started();
    let first = host.status();
    assert_eq!((first.phase, first.starts, first.order_version), (RegistryPhase::AwaitingCertificate, 0, 0));
    assert_eq!((first.task.as_str(), first.host.as_str()), ("registry.1", "127.0.0.1"));
    let request = first.request.unwrap();
    assert!(host.enrolment.verify(&request.csr, &request.mac));
    assert_eq!(host.get("/v2/"), None);

    let chain = host.give_certificate(1);
    assert_eq!(host.get("/v2/"), Some((200, "{}".into())));
    assert_eq!(http(&[&host.registry_url("/v2/")]), None, "a client without our CA must not trust it");
    let status = host.status();
    let leaf = &Certificate::parse_bundle(&chain).unwrap()[0];
    assert_eq!(status.leaf_fingerprint, Some(leaf.fingerprint()));
    assert_eq!(status.leaf_not_after, Some(leaf.not_after()));
    assert_eq!((status.starts, status.order_version, status.errors), (1, 1, vec![]));
    assert_eq!(http(&[&format!("http://{}/health", host.status)]), Some((200, "ok\n".into())));
}

#[test]
fn secrets_stay_in_files_of_root() {
    let host = Host::serving();
    let key = fs::read_to_string(host.state("tls.key")).unwrap();
    let config = fs::read_to_string(host.state("config.yml")).unwrap();
    assert!(config.contains(host.enrolment.http_secret().expose()));
    assert_eq!(mode(&host.dir.path().join("state")), 0o700);
    assert_eq!([mode(&host.state("tls.key")), mode(&host.state("config.yml"))], [0o600, 0o600]);
    assert_eq!(mode(&host.state("tls.crt")), 0o644);

    let pid = host.registry_pid();
    let environment = String::from_utf8(fs::read(format!("/proc/{pid}/environ")).unwrap()).unwrap();
    assert!(environment.contains("OTEL_TRACES_EXPORTER=none"), "{environment}");
    assert!(!environment.contains("PRIVATE_REGISTRY"), "{environment}");
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(arguments, format!("/usr/bin/docker-registry\0serve\0{}\0", host.state("config.yml").display()).as_bytes());

    let told = host.log() + &serde_json::to_string(&host.status()).unwrap();
    let key_body: String = key.lines().filter(|line| !line.starts_with('-')).collect();
    for secret in [&key_body[48..88], host.enrolment.to_base64().expose(), host.enrolment.http_secret().expose()] {
        assert!(!told.contains(secret));
    }
}

#[test]
fn key_certificate_and_data_survive_a_restart_without_the_controller() {
    let mut host = Host::serving();
    let before = host.status();
    let key = fs::read(host.state("tls.key")).unwrap();
    let blob = host.push("a layer");
    assert!(host.stop());
    assert_eq!(host.get("/v2/"), None);

    host.start();
    let after = host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!((after.leaf_fingerprint, after.order_version), (before.leaf_fingerprint, 1));
    assert_eq!(fs::read(host.state("tls.key")).unwrap(), key);
    assert_eq!(host.get(&blob), Some((200, "a layer".into())));
}

/// It may be of a CA that was replaced while no task was here to be told.
#[test]
fn a_certificate_that_was_not_served_lately_waits_for_another_and_is_served_where_none_comes() {
    let mut host = Host::serving();
    let served = host.status().leaf_fingerprint;
    let age = |host: &Host| {
        let file = File::options().write(true).open(host.state("tls.crt")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    };
    age(&host);
    assert!(host.stop());
    let noted = fs::metadata(host.state("tls.crt")).unwrap().modified().unwrap().elapsed().unwrap();
    assert!(noted < Duration::from_secs(60), "the end of service was not noted: {noted:?}");

    age(&host);
    host.start();
    host.wait_for_phase(RegistryPhase::AwaitingCertificate);
    host.give_certificate(2);
    assert_eq!((host.status().starts, host.status().leaf_fingerprint == served), (1, false));
    let served = host.status().leaf_fingerprint;

    // Nobody is there to give one.
    assert!(host.stop());
    age(&host);
    host.start();
    host.wait_for_phase(RegistryPhase::AwaitingCertificate);
    assert_eq!(host.get("/v2/"), None);
    host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!((host.status().starts, host.status().leaf_fingerprint), (1, served));
}

/// Else the VIP would lead nowhere until the next check, several seconds later.
#[test]
fn a_health_check_during_a_restart_of_the_only_registry_waits_for_its_end() {
    let host = Host::serving();
    let (url, done) = (format!("http://{}/health", host.status), AtomicBool::new(false));
    let answers = std::thread::scope(|scope| {
        let checks = scope.spawn(|| {
            let mut answers = Vec::new();
            while !done.load(Ordering::Relaxed) {
                answers.push(http(&[&url]).map(|(code, _)| code));
            }
            answers
        });
        (2..6).for_each(|version| drop(host.give_certificate(version)));
        done.store(true, Ordering::Relaxed);
        checks.join().unwrap()
    });
    assert_eq!(host.status().starts, 5);
    assert!(answers.len() > 10 && answers.iter().all(|answer| *answer == Some(200)), "{answers:?}");
}

#[test]
fn a_killed_task_leaves_nothing_that_hinders_the_next() {
    let mut host = Host::serving();
    fs::write(host.state("tls.crt.tmp"), "half a cert").unwrap();
    kill("KILL", host.role_pid());
    host.task.take().unwrap().wait().unwrap();
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    host.give_certificate(2);
    assert!(!host.state("tls.crt.tmp").exists());
}

#[test]
fn what_is_not_for_this_registry_is_refused_and_changes_nothing() {
    let host = Host::serving();
    let (before, chain) = (host.status(), fs::read(host.state("tls.crt")).unwrap());
    let refused = |answer: (u16, String), code: u16, reason: &str| {
        assert_eq!(answer.0, code, "{}", answer.1);
        assert!(answer.1.contains(reason), "{}", answer.1);
    };
    let certificate = |chain: String| OrderKind::Certificate { chain };

    let foreign = RegistryKey::generate().unwrap().csr(SERVICE).unwrap();
    let foreign = host.authority.sign_leaf(&foreign, &[name_of(host.listen)], now(), 365).unwrap();
    refused(host.give(2, certificate(foreign)), 400, "another key");
    let request = host.status().request.unwrap().csr;
    let old = Authority::create(SERVICE, 1, &[name_of(host.listen)], now() - 20 * 86400, 30).unwrap();
    let expired = old.sign_leaf(&request, &[name_of(host.listen)], now() - 20 * 86400, 10).unwrap();
    refused(host.give(2, certificate(expired)), 400, "has ended");
    refused(host.give(2, certificate("hello".into())), 400, "cannot be read");
    let bundle = TrustBundle { names: vec![], certificates: vec![], conntrack_be_liberal: true, ..TrustBundle::default() };
    refused(host.give(2, OrderKind::Trust(bundle)), 400, "for nodes");

    let good = certificate(host.chain());
    let stranger = OrderSigner::generate().unwrap().sign(&Order { service: SERVICE.into(), version: 2, kind: good.clone() });
    refused(host.put(&serde_json::to_string(&stranger).unwrap()), 403, "signature");
    let other = host.signer.sign(&Order { service: "other".into(), version: 2, kind: good.clone() });
    refused(host.put(&serde_json::to_string(&other).unwrap()), 403, "not of other");
    refused(host.give(0, good.clone()), 409, "not newer");
    refused(host.give(1, good), 409, "not newer");
    refused(host.put("{}"), 400, "not a signed order");
    refused(host.put(&"x".repeat(MAX_MESSAGE_BYTES + 1)), 400, "too large");

    assert_eq!(host.status(), before);
    assert_eq!(fs::read(host.state("tls.crt")).unwrap(), chain);
}

#[test]
fn a_new_certificate_is_served_at_once_and_the_same_order_again_is_harmless() {
    let host = Host::serving();
    let first = host.status();
    let order = OrderKind::Certificate { chain: host.chain() };
    let new = Certificate::parse_bundle(match &order {
        OrderKind::Certificate { chain } => chain,
        _ => unreachable!(),
    })
    .unwrap()[0]
        .fingerprint();
    let signed = serde_json::to_string(&host.sign(2, order)).unwrap();
    assert_eq!(host.put(&signed).0, 200);
    let second = wait_for("the new leaf", || {
        host.try_status().filter(|s| s.leaf_fingerprint.as_ref() == Some(&new) && s.phase == RegistryPhase::Serving)
    });
    assert_ne!(second.leaf_fingerprint, first.leaf_fingerprint);
    assert_eq!(leaf_on_the_wire(host.listen), new);
    assert_eq!((second.starts, second.order_version), (2, 2));

    assert_eq!(host.put(&signed).0, 200);
    assert_eq!(host.status(), second);
}

/// What a health check is answered with.
fn health(host: &Host) -> u16 {
    http(&[&format!("http://{}/health", host.status)]).unwrap().0
}

#[test]
fn a_health_check_that_comes_before_the_certificate_is_answered_as_soon_as_the_registry_serves() {
    let mut host = Host::new();
    host.start();
    host.wait_for_phase(RegistryPhase::AwaitingCertificate);
    let asked = Instant::now();
    let code = std::thread::scope(|scope| {
        let check = scope.spawn(|| (health(&host), asked.elapsed()));
        std::thread::sleep(Duration::from_millis(500));
        host.give_certificate(1);
        check.join().unwrap()
    });
    assert_eq!(code.0, 200);
    assert!(code.1 > Duration::from_millis(500), "it was answered before there was a certificate");
}

#[test]
fn one_of_several_serves_until_its_health_check_was_refused_and_a_moment_longer() {
    let mut host = Host::new();
    host.more = serde_json::json!({ "replicated": true });
    host.start();
    assert_eq!(health(&host), 503, "nobody is to come before it serves");
    host.give_certificate(1);
    assert_eq!(health(&host), 200);
    let chain = host.chain();
    assert_eq!(host.give(2, OrderKind::Certificate { chain: chain.clone() }).0, 200);
    std::thread::sleep(Duration::from_secs(6));
    let status = host.status();
    assert_eq!((status.phase, status.starts), (RegistryPhase::Restarting, 1), "without a check nobody knows that it leaves");
    assert_eq!(host.get("/v2/"), Some((200, "{}".into())), "who has been sent here is served");
    let asked = Instant::now();
    assert_eq!(health(&host), 503);
    wait_for("the restart", || (host.status().starts == 2).then_some(()));
    assert!((4..8).contains(&asked.elapsed().as_secs()), "it has restarted after {:?}", asked.elapsed());
    let status = host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!(status.leaf_fingerprint, Some(Certificate::parse_bundle(&chain).unwrap()[0].fingerprint()));
    assert_eq!(health(&host), 200);

    // One that crashes has nobody to wait for.
    assert_eq!(host.give(3, OrderKind::Certificate { chain: host.chain() }).0, 200);
    kill("KILL", host.registry_pid());
    let killed = Instant::now();
    wait_for("the restart", || host.try_status().filter(|status| status.starts == 3 && status.phase == RegistryPhase::Serving));
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
}

#[test]
fn one_of_several_waits_for_its_turn_to_serve_with_the_operators_new_certificate() {
    let operator = Operator::new();
    let first = operator.certify("rsa:2048", 20);
    ["pem", "key"].iter().for_each(|file| operator.put(file));
    let mut host = operator.host();
    host.more = serde_json::json!({ "replicated": true });
    host.start();
    assert!(!host.wait_for_phase(RegistryPhase::Serving).restart_due);
    assert_eq!(host.give(1, OrderKind::Restart).0, 200);
    assert_eq!((host.status().phase, host.status().starts), (RegistryPhase::Serving, 1), "it has no reason to");
    let second = operator.certify("rsa:2048", 20);
    ["pem", "key"].iter().for_each(|file| operator.put(file));
    let status = wait_for("the new files to be seen", || host.try_status().filter(|status| status.restart_due));
    assert_eq!((status.phase, status.leaf_fingerprint), (RegistryPhase::Serving, Some(first)));
    assert_eq!(host.give(2, OrderKind::Restart).0, 200);
    let status = host.status();
    assert_eq!((status.phase, status.restart_due, health(&host)), (RegistryPhase::Restarting, false, 503));
    let status =
        wait_for("the restart", || host.try_status().filter(|status| status.starts == 2 && status.phase == RegistryPhase::Serving));
    assert_eq!((status.leaf_fingerprint, status.errors), (Some(second), vec![]));
}

#[test]
fn an_upload_under_way_is_finished_before_the_registry_stops() {
    let mut host = Host::serving();
    let content = "x".repeat(1_500_000);
    let digest = format!("sha256:{}", sha256_hex(content.as_bytes()));
    let file = host.dir.path().join("blob");
    fs::write(&file, &content).unwrap();
    let url = host.upload_url(&digest);
    let upload = Command::new("curl")
        .args(["-s", "-m", "30", "--limit-rate", "500k", "--cacert", &host.ca(), "-X", "PUT", "-w", "%{http_code}"])
        .args(["-H", "Content-Type: application/octet-stream", "--data-binary", &format!("@{}", file.display()), &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let asked = Instant::now();
    assert!(host.stop());
    let drained = asked.elapsed();
    let output = upload.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "201");
    assert!(drained > Duration::from_secs(1) && drained < Duration::from_secs(15), "{drained:?}");
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!(host.get(&format!("/v2/base/hello/blobs/{digest}")), Some((200, content)));
}

#[test]
fn a_registry_that_dies_is_started_again() {
    let host = Host::serving();
    kill("KILL", host.registry_pid());
    let status = host.wait_for_phase(RegistryPhase::Restarting);
    assert!(status.errors[0].contains("ended by itself (signal: 9 (SIGKILL))"), "{:?}", status.errors);
    let status = host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!((status.starts, status.errors), (2, vec![]));
    assert_eq!(host.get("/v2/").unwrap().0, 200);
}

#[test]
fn a_registry_that_ignores_the_request_to_stop_is_killed_in_the_end() {
    let mut host = Host::new();
    host.program = script(&host, "trap '' TERM\nwhile :; do sleep 1; done\n");
    host.drain_seconds = 0;
    host.start();
    assert_eq!(host.give(1, OrderKind::Certificate { chain: host.chain() }).0, 200);
    host.registry_pid();
    // Time for the shell to reach its trap.
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    assert!(host.stop());
    assert!((2..8).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    let mut host = Host::new();
    host.program = "/no/such/registry".into();
    host.start();
    assert_eq!(host.give(1, OrderKind::Certificate { chain: host.chain() }).0, 200);
    let status = wait_for("the error", || host.try_status().filter(|status| !status.errors.is_empty()));
    assert_eq!(status.phase, RegistryPhase::Restarting);
    assert!(status.errors[0].contains("/no/such/registry cannot be started"), "{:?}", status.errors);
    assert!(host.stop());
}

#[test]
fn orphans_are_reaped() {
    let mut host = Host::new();
    host.program = script(&host, "(sleep 0.3 &)\n(sleep 0.6 &)\nexec /usr/bin/docker-registry \"$@\"\n");
    host.start();
    host.give_certificate(1);
    let role = host.role_pid();
    wait_for("one child", || (children(role).len() == 1).then_some(()));
    kill("KILL", host.registry_pid());
    wait_for("the second start", || (host.try_status()?.starts == 2).then_some(()));
    host.wait_for_phase(RegistryPhase::Serving);
    wait_for("one child", || (children(role).len() == 1).then_some(()));
    assert!(processes().iter().all(|(_, state, parent)| *parent != role || state != "Z"));
}

fn script(host: &Host, body: &str) -> PathBuf {
    let path = host.dir.path().join("program");
    let mut file = File::create(&path).unwrap();
    file.write_all(format!("#!/bin/sh\n{body}").as_bytes()).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_retired_registry_leaves_nothing_behind() {
    for delete_data in [true, false] {
        let mut host = Host::serving();
        host.push("a layer");
        assert_eq!(host.give(2, OrderKind::Retire { delete_data }).0, 200);
        let status = host.wait_for_phase(RegistryPhase::Retired);
        assert_eq!((status.request, status.leaf_fingerprint, status.errors, status.order_version), (None, None, vec![], 2));
        assert_eq!(fs::read_dir(host.dir.path().join("state")).unwrap().count(), 0);
        assert_eq!(host.dir.path().join("data/docker").exists(), !delete_data);
        assert_eq!(host.get("/v2/"), None);
        assert_eq!(host.give(2, OrderKind::Retire { delete_data }).0, 200, "the same order again");
        assert_eq!(host.give(3, OrderKind::Certificate { chain: "x".into() }).0, 409);
        assert_eq!(host.status().phase, RegistryPhase::Retired);
        assert!(host.stop());
    }
}

#[test]
fn a_retirement_that_was_cut_short_is_finished_by_the_next_task() {
    let mut host = Host::serving();
    host.push("a layer");
    kill("KILL", host.role_pid());
    host.task.take().unwrap().wait().unwrap();
    // As if the task had been killed right after it took the order.
    fs::write(host.state("order.json"), serde_json::to_string(&host.sign(2, OrderKind::Retire { delete_data: true })).unwrap()).unwrap();
    host.start();
    host.wait_for_phase(RegistryPhase::Retired);
    assert_eq!(fs::read_dir(host.dir.path().join("state")).unwrap().count(), 0);
    assert!(!host.dir.path().join("data/docker").exists());
}

#[test]
fn a_key_that_others_could_read_is_named_and_not_used() {
    let mut host = Host::new();
    fs::create_dir(host.dir.path().join("state")).unwrap();
    fs::write(host.state("tls.key"), RegistryKey::generate().unwrap().to_pem().expose()).unwrap();
    fs::set_permissions(host.state("tls.key"), fs::Permissions::from_mode(0o644)).unwrap();
    host.start();
    let status = host.wait_for_phase(RegistryPhase::Failed);
    assert!(status.errors[0].contains(&format!("{} has mode 0644", host.state("tls.key").display())), "{:?}", status.errors);
    assert_eq!(status.request, None);
    assert_eq!(http(&[&format!("http://{}/health", host.status)]).unwrap().0, 503);
    assert_eq!(host.give(1, OrderKind::Certificate { chain: "x".into() }).0, 500);

    fs::remove_file(host.state("tls.key")).unwrap();
    host.wait_for_phase(RegistryPhase::AwaitingCertificate);
    host.give_certificate(1);
}

#[test]
fn a_damaged_key_is_named_and_kept() {
    let mut host = Host::new();
    fs::create_dir(host.dir.path().join("state")).unwrap();
    File::options().create(true).truncate(true).write(true).open(host.state("tls.key")).unwrap().write_all(b"not a key").unwrap();
    fs::set_permissions(host.state("tls.key"), fs::Permissions::from_mode(0o600)).unwrap();
    host.start();
    let status = host.wait_for_phase(RegistryPhase::Failed);
    assert!(status.errors[0].contains("tls.key is not a key of this program"), "{:?}", status.errors);
    assert!(host.stop());
    assert_eq!(fs::read(host.state("tls.key")).unwrap(), b"not a key");
}

#[test]
fn a_new_controller_starts_again_at_version_1_and_the_registry_serves_meanwhile() {
    let mut host = Host::serving();
    host.give_certificate(9);
    assert!(host.stop());
    // The controller has lost its keys, and the app was given new ones.
    host.signer = OrderSigner::generate().unwrap();
    host.start();
    assert_eq!(host.wait_for_phase(RegistryPhase::Serving).order_version, 0);
    host.give_certificate(1);
    assert_eq!(host.status().order_version, 1);
}

#[test]
fn over_plain_http_it_serves_at_once_without_key_or_request_and_can_go_back_to_tls() {
    let mut host = Host::serving();
    assert!(host.stop());
    host.insecure = true;
    host.start();
    let status = host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!((status.request, status.leaf_fingerprint, status.errors), (None, None, vec![]));
    assert_eq!(http(&[&format!("http://{}/v2/", host.listen)]).map(|(code, _)| code), Some(200));
    assert!(!host.state("tls.key").exists() && !host.state("tls.crt").exists(), "nobody uses them");
    assert_eq!(host.give(2, OrderKind::Certificate { chain: String::new() }).0, 409);
    assert!(host.stop());

    host.insecure = false;
    host.start();
    host.wait_for_phase(RegistryPhase::AwaitingCertificate);
    host.give_certificate(3);
    assert!(host.stop());

    host.insecure = true;
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!(host.give(4, OrderKind::Retire { delete_data: false }).0, 200);
    host.wait_for_phase(RegistryPhase::Retired);
    assert!(!host.state("config.yml").exists() && !host.state("order.json").exists());
}

/// Certificates and keys of an operator, as openssl makes them.
struct Operator {
    dir: tempfile::TempDir,
}

impl Operator {
    fn new() -> Self {
        let operator = Self { dir: tempfile::tempdir().unwrap() };
        operator.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 30 -subj /CN=ca");
        fs::create_dir(operator.path("live")).unwrap();
        operator
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl").current_dir(self.dir.path()).args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate from the CA for a new key, in `new.pem` and `new.key`; the leaf's fingerprint.
    fn certify(&self, key: &str, days: u32) -> String {
        self.openssl(&format!("req -newkey {key} -nodes -keyout new.key -out new.csr -subj /CN=registry"));
        fs::write(self.path("ext"), "subjectAltName=IP:127.0.0.1,DNS:registry.example.com\n").unwrap();
        self.openssl(&format!("x509 -req -in new.csr -CA ca.pem -CAkey ca.key -days {days} -extfile ext -out leaf.pem"));
        let (leaf, ca) = (fs::read_to_string(self.path("leaf.pem")).unwrap(), fs::read_to_string(self.path("ca.pem")).unwrap());
        fs::write(self.path("new.pem"), format!("{leaf}{ca}")).unwrap();
        Certificate::parse_pem(&leaf).unwrap().fingerprint()
    }

    /// Puts one of the new files in place, as renewing programs do.
    fn put(&self, name: &str) {
        fs::rename(self.path(&format!("new.{name}")), self.path(&format!("live/{name}"))).unwrap();
    }

    fn host(&self) -> Host {
        let mut host = Host::new();
        let file = |name: &str| serde_json::json!({ "file": self.path("live").join(name) });
        host.provided = Some(serde_json::json!({ "certificate": file("pem"), "key": file("key") }));
        fs::copy(self.path("ca.pem"), host.dir.path().join("ca.pem")).unwrap();
        host
    }
}

#[test]
fn a_certificate_of_the_operators_is_served_and_its_replacement_is_noticed() {
    let operator = Operator::new();
    let first = operator.certify("ec -pkeyopt ec_paramgen_curve:P-384", 20);
    operator.put("pem");
    operator.put("key");
    let mut host = operator.host();
    host.start();
    let status = host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!((status.request, status.leaf_fingerprint, status.order_version), (None, Some(first.clone()), 0));
    assert_eq!(status.leaf_names, ["127.0.0.1", "registry.example.com"]);
    assert!((19..21).contains(&((status.leaf_not_after.unwrap() - now()) / 86400)));
    assert_eq!(host.get("/v2/"), Some((200, "{}".into())));
    assert_eq!(leaf_on_the_wire(host.listen), first);
    assert_eq!([mode(&host.state("provided.key")), mode(&host.state("provided.crt"))], [0o600, 0o644]);
    assert!(!host.state("tls.key").exists());
    assert_eq!(host.give(1, OrderKind::Certificate { chain: "x".into() }).0, 400);

    // The certificate alone does not suit; what is served stays, and the reason is told.
    let second = operator.certify("rsa:2048", 20);
    operator.put("pem");
    let status = wait_for("the complaint", || host.try_status().filter(|status| !status.errors.is_empty()));
    assert!(status.errors[0].contains("security.certificate: the leaf is for another key"), "{:?}", status.errors);
    assert_eq!((status.phase, status.leaf_fingerprint), (RegistryPhase::Serving, Some(first)));
    operator.put("key");
    let served =
        |host: &Host| host.try_status().filter(|s| s.phase == RegistryPhase::Serving && s.leaf_fingerprint == Some(second.clone()));
    let status = wait_for("the new one", || served(&host));
    assert_eq!((status.errors, status.starts), (vec![], 2));
    assert_eq!(leaf_on_the_wire(host.listen), second);

    let told = host.log() + &serde_json::to_string(&host.status()).unwrap();
    let key = fs::read_to_string(operator.path("live/key")).unwrap();
    assert!(!told.contains(key.lines().nth(3).unwrap()));
    assert_eq!(host.give(1, OrderKind::Retire { delete_data: true }).0, 200);
    host.wait_for_phase(RegistryPhase::Retired);
    assert_eq!(fs::read_dir(host.dir.path().join("state")).unwrap().count(), 0);
    assert!(operator.path("live/key").exists(), "the operator's own files are his");
}

#[test]
fn what_of_the_operators_cannot_be_served_is_named_until_it_is_mended() {
    let operator = Operator::new();
    let mut host = operator.host();
    host.start();
    let failed = |reason: &str| {
        let told = |status: &RegistryStatus| status.phase == RegistryPhase::Failed && status.errors.iter().any(|e| e.contains(reason));
        wait_for(reason, || host.try_status().filter(told));
    };
    failed("No such file");
    operator.certify("ed25519", 20);
    operator.put("pem");
    operator.put("key");
    failed("none of P-256, P-384, and RSA");
    operator.certify("rsa:2048", 0);
    operator.put("pem");
    operator.put("key");
    std::thread::sleep(Duration::from_secs(1));
    failed("the leaf has ended");
    // In the wrong order.
    operator.certify("rsa:2048", 20);
    let (leaf, ca) = (fs::read_to_string(operator.path("leaf.pem")).unwrap(), fs::read_to_string(operator.path("ca.pem")).unwrap());
    fs::write(operator.path("new.pem"), ca + &leaf).unwrap();
    operator.put("pem");
    operator.put("key");
    failed("the leaf must come first");
    operator.certify("rsa:2048", 20);
    operator.put("pem");
    operator.put("key");
    host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!(host.get("/v2/").unwrap().0, 200);
}

#[test]
fn a_certificate_from_secrets_is_served_and_the_registry_does_not_see_their_variables() {
    let operator = Operator::new();
    let first = operator.certify("rsa:2048", 20);
    let mut host = operator.host();
    let variable = |name: &str| serde_json::json!({ "variable": name });
    host.provided = Some(serde_json::json!({ "certificate": variable(HELD[0]), "key": variable(HELD[1]) }));
    host.secrets =
        [(HELD[0], "new.pem"), (HELD[1], "new.key")].map(|(name, file)| (name, fs::read_to_string(operator.path(file)).unwrap())).to_vec();
    host.start();
    assert_eq!(host.wait_for_phase(RegistryPhase::Serving).leaf_fingerprint, Some(first));
    let environment = String::from_utf8(fs::read(format!("/proc/{}/environ", host.registry_pid())).unwrap()).unwrap();
    assert!(!environment.contains("PRIVATE"), "{environment}");

    // Back to its own key: what was the operator's is gone.
    assert!(host.stop());
    (host.provided, host.secrets) = (None, Vec::new());
    host.start();
    host.wait_for_phase(RegistryPhase::AwaitingCertificate);
    assert!(!host.state("provided.key").exists() && !host.state("provided.crt").exists());
}

#[test]
fn another_kind_of_key_is_a_new_key_and_a_new_request() {
    let mut host = Host::serving();
    let (old, key) = (host.status().request, fs::read(host.state("tls.key")).unwrap());
    assert!(host.stop());
    host.key_type = "p384";
    host.start();
    let status = host.wait_for_phase(RegistryPhase::AwaitingCertificate);
    assert_ne!(status.request, old);
    assert_ne!(fs::read(host.state("tls.key")).unwrap(), key);
    host.give_certificate(2);
    assert_eq!(host.get("/v2/").unwrap().0, 200);
    let key = fs::read(host.state("tls.key")).unwrap();
    assert!(host.stop());
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!(fs::read(host.state("tls.key")).unwrap(), key, "the same kind is the same key");
}

/// Access to `/v2/` as this user.
fn as_user(host: &Host, login: &str) -> u16 {
    http(&["--cacert", &host.ca(), "-u", login, &host.registry_url("/v2/")]).map_or(0, |(code, _)| code)
}

/// A line of htpasswd.
fn line_of(name: &str, password: &str) -> String {
    format!("{name}:{}\n", private_registry::users::hash(&Secret::new(password.to_owned())).unwrap())
}

#[test]
fn users_of_the_operators_file_are_let_in_and_a_changed_file_counts_without_a_restart() {
    let mut host = Host::new();
    let file = host.dir.path().join("people");
    let text = line_of("alice", "wonderland") + "bob:$apr1$salt$hunter2\n";
    fs::write(&file, &text).unwrap();
    host.more = serde_json::json!({ "auth": { "kind": "htpasswd", "file": { "file": file } } });
    host.start();
    host.give_certificate(1);
    assert_eq!((host.get("/v2/").unwrap().0, as_user(&host, "alice:wonderland"), as_user(&host, "alice:x")), (401, 200, 401));
    let status = host.status();
    assert!(status.errors[0].contains("line 2") && status.errors[0].contains("bob is not hashed by bcrypt"), "{:?}", status.errors);
    assert!(!host.log().contains("hunter2") && !format!("{status:?}").contains("hunter2"));
    assert_eq!((status.users, mode(&host.state("htpasswd"))), (None, 0o600));

    // Replaced by another file, as editors do.
    let next = host.dir.path().join("people.new");
    fs::write(&next, line_of("bob", "builder")).unwrap();
    fs::rename(&next, &file).unwrap();
    wait_for("the new file to count", || (as_user(&host, "bob:builder") == 200).then_some(()));
    assert_eq!((as_user(&host, "alice:wonderland"), host.status().starts, host.status().errors.len()), (401, 1, 0));
    // Gone: who was let in is let in, and it is said.
    fs::remove_file(&file).unwrap();
    wait_for("a word about it", || host.status().errors.first().filter(|error| error.contains("cannot read")).cloned());
    assert_eq!(as_user(&host, "bob:builder"), 200);
    // The service's orders are none of this registry's business.
    let sealed = host.enrolment.seal(&Secret::new(line_of("eve", "apple")), SERVICE, 2).unwrap();
    assert_eq!(host.give(2, OrderKind::Users { sealed }).0, 400);
}

#[test]
fn users_of_the_service_come_sealed_survive_a_restart_and_go_with_the_retirement() {
    let mut host = Host::new();
    host.more = serde_json::json!({ "auth": { "kind": "htpasswd", "file": null } });
    host.start();
    host.give_certificate(1);
    let nobody = host.status().users.unwrap();
    assert_eq!(as_user(&host, "alice:wonderland"), 401);
    let users = Secret::new(line_of("alice", "wonderland"));
    let sealed = |version| host.enrolment.seal(&users, SERVICE, version).unwrap();
    // Sealed for another order, or for somebody else.
    assert_eq!(host.give(3, OrderKind::Users { sealed: sealed(2) }).0, 400);
    let stranger = EnrolmentKey::generate().unwrap().seal(&users, SERVICE, 2).unwrap();
    assert_eq!(host.give(2, OrderKind::Users { sealed: stranger }).0, 400);
    assert_eq!(host.status().users, Some(nobody));
    let order = host.sign(2, OrderKind::Users { sealed: sealed(2) });
    assert!(!format!("{order:?}").contains("alice"));
    assert_eq!(host.put(&serde_json::to_string(&order).unwrap()).0, 200);
    assert_eq!(host.status().users, Some(host.enrolment.digest(&users)));
    wait_for("alice", || (as_user(&host, "alice:wonderland") == 200).then_some(()));
    assert_eq!((host.status().starts, mode(&host.state("users"))), (1, 0o600));
    // The role's own account has another password at every start, and no line of the users may take its name.
    let own = || fs::read_to_string(host.state("htpasswd")).unwrap().lines().next().unwrap().to_owned();
    let first = own();
    assert!(first.starts_with("private-registry-internal:$2"), "{first}");
    // It lies there for the node on this host.
    let account = || fs::read_to_string(host.state("account")).unwrap();
    let old = account();
    assert_eq!((as_user(&host, &old), mode(&host.state("account"))), (200, 0o600));
    assert!(!host.log().contains(old.split_once(':').unwrap().1));

    assert!(host.stop());
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!(as_user(&host, "alice:wonderland"), 200);
    assert_eq!((as_user(&host, &old), as_user(&host, &fs::read_to_string(host.state("account")).unwrap())), (401, 200));
    let again = fs::read_to_string(host.state("htpasswd")).unwrap();
    assert!(!again.contains(&first) && again.contains("alice:"), "{again}");
    assert_eq!(host.status().users, Some(host.enrolment.digest(&users)));

    assert_eq!(host.give(3, OrderKind::Retire { delete_data: false }).0, 200);
    host.wait_for_phase(RegistryPhase::Retired);
    assert!(["users", "htpasswd", "account"].iter().all(|name| !host.state(name).exists()));
    let sealed = host.enrolment.seal(&users, SERVICE, 4).unwrap();
    assert_eq!(host.give(4, OrderKind::Users { sealed }).0, 409);
}

#[test]
fn a_token_of_the_authorisation_server_lets_in_and_nothing_else_does() {
    let issuer = crate::token_server::Issuer::new("the-issuer", "the-service");
    let mut host = Host::new();
    host.more = serde_json::json!({ "auth": {
        "kind": "token", "realm": "http://127.0.0.1:9/token", "service": "the-service", "issuer": "the-issuer", "certificates": issuer.certificate(),
    } });
    host.start();
    host.give_certificate(1);
    let challenge = http(&["--cacert", &host.ca(), "-D", "-", &host.registry_url("/v2/")]).unwrap();
    assert!(
        challenge.0 == 401 && challenge.1.contains(r#"Bearer realm="http://127.0.0.1:9/token",service="the-service""#),
        "{challenge:?}"
    );
    let with = |token: &str, path: &str| {
        http(&["--cacert", &host.ca(), "-H", &format!("Authorization: Bearer {token}"), &host.registry_url(path)]).unwrap().0
    };
    let token = issuer.token("alice", &[("base/hello", &["pull"])]);
    assert_eq!((with(&token, "/v2/"), with(&token, "/v2/base/hello/tags/list")), (200, 404));
    assert_eq!(with(&token, "/v2/other/tags/list"), 401);
    let uploads = host.registry_url("/v2/base/hello/blobs/uploads/");
    let post =
        |token: &str| http(&["--cacert", &host.ca(), "-X", "POST", "-H", &format!("Authorization: Bearer {token}"), &uploads]).unwrap().0;
    assert_eq!((post(&token), post(&issuer.token("alice", &[("base/hello", &["pull", "push"])]))), (401, 202));
    let stranger = crate::token_server::Issuer::new("the-issuer", "the-service");
    assert_eq!(with(&stranger.token("alice", &[("base/hello", &["pull"])]), "/v2/"), 401);
}

#[test]
fn a_registry_that_is_read_only_refuses_uploads() {
    let mut host = Host::serving();
    let blob = host.push("layer");
    assert!(host.stop());
    host.more = serde_json::json!({ "read_only": true });
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!(host.get(&blob).unwrap().0, 200);
    let (code, _) = http(&["--cacert", &host.ca(), "-X", "POST", &host.registry_url("/v2/base/hello/blobs/uploads/")]).unwrap();
    assert_eq!(code, 405);
}

/// Both generations: Debian's 2.8 and the 3.1.1 that `ci/programs` makes.
fn generations() -> [PathBuf; 2] {
    ["/usr/bin/docker-registry".into(), crate::support::made("target/tools/registry3/registry")]
}

impl Host {
    fn of(program: PathBuf, more: serde_json::Value) -> Self {
        let mut host = Self::new();
        (host.program, host.more, host.insecure) = (program, more, true);
        host.start();
        host
    }

    /// Serving over plain HTTP.
    fn plain(program: PathBuf) -> Self {
        let host = Self::of(program, serde_json::json!({}));
        host.wait_for_phase(RegistryPhase::Serving);
        host
    }

    fn plain_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    /// A blob of some length, and the part of a manifest that names it.
    fn push_blob(&self, repository: &str, content: &str, kind: &str) -> serde_json::Value {
        let digest = format!("sha256:{}", sha256_hex(content.as_bytes()));
        let begin = self.plain_url(&format!("/v2/{repository}/blobs/uploads/"));
        let (code, headers) = http(&["-X", "POST", "-D", "-", &begin]).unwrap();
        assert_eq!(code, 202, "{headers}");
        let location = headers.lines().find_map(|line| line.to_ascii_lowercase().starts_with("location: ").then(|| line[10..].trim()));
        let file = self.dir.path().join("blob");
        fs::write(&file, content).unwrap();
        let url = format!("{}&digest={digest}", self.plain_url(location.unwrap()));
        let octets = "Content-Type: application/octet-stream";
        let data = format!("@{}", file.display());
        assert_eq!(http(&["-X", "PUT", "-H", octets, "--data-binary", &data, &url]).unwrap().0, 201);
        serde_json::json!({ "mediaType": kind, "size": content.len(), "digest": digest })
    }

    /// Answers the code and the digest of a manifest that was pushed.
    fn push_manifest(&self, repository: &str, tag: &str, manifest: &serde_json::Value) -> (u16, String) {
        let file = self.dir.path().join("manifest");
        let text = manifest.to_string();
        fs::write(&file, &text).unwrap();
        let digest = format!("sha256:{}", sha256_hex(text.as_bytes()));
        let kind = format!("Content-Type: {}", manifest["mediaType"].as_str().unwrap());
        let tag = if tag.is_empty() { &digest } else { tag };
        let url = self.plain_url(&format!("/v2/{repository}/manifests/{tag}"));
        let (code, _) = http(&["-X", "PUT", "-H", &kind, "--data-binary", &format!("@{}", file.display()), &url]).unwrap();
        (code, digest)
    }

    /// An image of one layer of the given content: the digest of its manifest.
    fn push_image(&self, repository: &str, tag: &str, content: &str, kind: &str) -> String {
        let (config, layer) = match kind {
            media::OCI => ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"),
            _ => ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        };
        let (config, layer) = (self.push_blob(repository, "{}", config), self.push_blob(repository, content, layer));
        let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
        let (code, digest) = self.push_manifest(repository, tag, &manifest);
        assert_eq!(code, 201);
        digest
    }

    fn has(&self, repository: &str, reference: &str) -> bool {
        let accept = format!("Accept: {}", media::ALL.join(", "));
        http(&["-H", &accept, &self.plain_url(&format!("/v2/{repository}/manifests/{reference}"))]).unwrap().0 == 200
    }

    fn delete(&self, repository: &str, digest: &str) {
        assert_eq!(http(&["-X", "DELETE", &self.plain_url(&format!("/v2/{repository}/manifests/{digest}"))]).unwrap().0, 202);
    }

    fn collect(&self, version: u64, run: &str, step: CollectStep, dry_run: bool, delete_untagged: bool) -> (u16, String) {
        self.give(version, OrderKind::Collect { run: run.into(), step, dry_run, delete_untagged })
    }

    fn wait_for_collection(&self, phase: CollectPhase) -> Collection {
        wait_for(&format!("{phase:?}"), || self.try_status()?.collection.filter(|collection| collection.phase == phase))
    }

    /// A whole collection, as a controller orders it.
    fn collect_whole(&self, version: u64, run: &str, delete_untagged: bool) -> Collection {
        assert_eq!(self.collect(version, run, CollectStep::Prepare, false, delete_untagged).0, 200);
        self.wait_for_collection(CollectPhase::ReadOnly);
        assert_eq!(self.collect(version + 1, run, CollectStep::Collect, false, delete_untagged).0, 200);
        self.wait_for_collection(CollectPhase::Collected);
        assert_eq!(self.collect(version + 2, run, CollectStep::Finish, false, delete_untagged).0, 200);
        self.wait_for_collection(CollectPhase::Done)
    }

    fn can_begin_a_push(&self) -> u16 {
        http(&["-X", "POST", &self.plain_url("/v2/base/hello/blobs/uploads/")]).map_or(0, |(code, _)| code)
    }

    fn images(&self, time: i64, key: &EnrolmentKey, path: &str) -> (u16, String) {
        let mac = format!("{MAC_HEADER}: {}", key.mac(&asked("GET", path, time)));
        http(&["-H", &format!("{TIME_HEADER}: {time}"), "-H", &mac, &format!("http://{}{path}", self.status)]).unwrap()
    }
}

#[test]
fn where_users_log_in_the_role_lists_the_images_by_its_own_account_and_says_where_it_has_none() {
    let mut host = Host::plain(generations()[0].clone());
    host.push_image("team/app", "1.0", "x", media::SCHEMA_2);
    assert!(host.stop());
    host.more = serde_json::json!({ "auth": { "kind": "htpasswd", "file": null } });
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!(http(&[&host.plain_url("/v2/_catalog")]).unwrap().0, 401);
    let (code, text) = wait_for("the list", || Some(host.images(now(), &host.enrolment, "/images?last=")).filter(|(code, _)| *code == 200));
    assert!(code == 200 && text.contains("team/app"), "{text}");
    assert!(host.stop());
    let issuer = crate::token_server::Issuer::new("the-issuer", "the-service");
    host.more = serde_json::json!({ "auth": {
        "kind": "token", "realm": "http://127.0.0.1:9/token", "service": "the-service", "issuer": "the-issuer", "certificates": issuer.certificate(),
    } });
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    let (code, text) = host.images(now(), &host.enrolment, "/images?last=");
    assert!(code != 200 && text.contains("auth.kind token"), "{code} {text}");
}

#[test]
fn the_program_says_its_version_and_its_metrics_are_shown_and_nothing_else_of_its_debug_server() {
    for (program, version) in generations().into_iter().zip(["2.8", "3.1.1"]) {
        let host = Host::plain(program);
        wait_for("the version", || host.try_status()?.version.filter(|found| found.starts_with(version)));
        let at = |path: &str| http(&[&format!("http://{}{path}", host.status)]).unwrap();
        assert_eq!(http(&[&host.plain_url("/v2/")]).unwrap().0, 200);
        let (code, text) = at("/metrics");
        assert_eq!(code, 200);
        for name in ["private_registry_starts_total 1", "private_registry_serving 1", "go_goroutines", "registry_http_requests_total"] {
            assert!(text.contains(&format!("\n{name}")), "{version}: {name}");
        }
        for path in ["/debug/vars", "/debug/health", "/debug/pprof/"] {
            assert_eq!(at(path).0, 404, "{path}");
        }
        assert!(host.debug.ip().is_loopback());
    }
}

#[test]
fn a_collection_of_a_registry_that_nothing_was_pushed_to_frees_nothing() {
    for program in generations() {
        let host = Host::plain(program);
        host.wait_for_phase(RegistryPhase::Serving);
        let collection = host.collect_whole(1, "run", false);
        assert_eq!((collection.error, collection.freed_bytes, collection.blobs), (None, Some(0), 0));
    }
}

#[test]
fn a_collection_makes_the_registry_read_only_frees_what_nobody_uses_and_opens_it_again() {
    for program in generations() {
        let host = Host::plain(program);
        let kept = host.push_image("base/hello", "1", &"k".repeat(1000), media::SCHEMA_2);
        let gone = host.push_image("base/hello", "2", &"g".repeat(300_000), media::SCHEMA_2);
        host.delete("base/hello", &gone);

        assert_eq!(host.collect(1, "dry", CollectStep::Collect, true, false).0, 200);
        assert_eq!(host.can_begin_a_push(), 202, "a dry run stops nobody");
        let dry = host.wait_for_collection(CollectPhase::Done);
        assert_eq!((dry.blobs, dry.error.as_deref(), dry.read_only_seconds), (2, None, 0));
        assert!((300_000..302_000).contains(&dry.freed_bytes.unwrap()), "{dry:?}");

        assert_eq!(host.collect(2, "run", CollectStep::Collect, false, false).0, 409, "not before it is read-only");
        assert_eq!(host.collect(3, "run", CollectStep::Prepare, false, false).0, 200);
        host.wait_for_collection(CollectPhase::ReadOnly);
        assert_eq!(host.can_begin_a_push(), 405);
        assert!(host.has("base/hello", "1"), "pulls go on");
        assert_eq!(host.collect(4, "other", CollectStep::Prepare, false, false).0, 409, "never two at once");
        assert_eq!(host.collect(5, "run", CollectStep::Collect, false, false).0, 200);
        let collected = host.wait_for_collection(CollectPhase::Collected);
        assert_eq!((collected.blobs, collected.error.as_deref()), (2, None));
        assert!((300_000..305_000).contains(&collected.freed_bytes.unwrap()), "{collected:?}");
        assert_eq!(host.can_begin_a_push(), 405, "not before it is told");
        assert_eq!(host.collect(6, "run", CollectStep::Finish, false, false).0, 200);
        let done = host.wait_for_collection(CollectPhase::Done);
        assert!(done.read_only_seconds >= done.seconds && done.error.is_none(), "{done:?}");
        assert_eq!((host.can_begin_a_push(), host.status().phase), (202, RegistryPhase::Serving));
        assert!(host.has("base/hello", &kept));
        // What was deleted can be pushed again: nothing is remembered of it.
        host.push_image("base/hello", "2", &"g".repeat(300_000), media::SCHEMA_2);
        assert!(host.has("base/hello", "2"));
    }
}

#[test]
fn manifests_without_a_tag_go_only_where_those_of_an_index_stay() {
    for (program, generation) in generations().into_iter().zip([2, 3]) {
        let host = Host::plain(program);
        wait_for("the version", || host.try_status()?.version);
        let child = host.push_image("base/multi", "", "for amd64", media::SCHEMA_2);
        let lost = host.push_image("base/multi", "", "for nobody", media::SCHEMA_2);
        let platform = serde_json::json!({ "architecture": "amd64", "os": "linux" });
        let size = fs::metadata(host.dir.path().join("manifest")).unwrap().len();
        let list = serde_json::json!({
            "schemaVersion": 2, "mediaType": media::LIST,
            "manifests": [{ "mediaType": media::SCHEMA_2, "size": size, "digest": child, "platform": platform }],
        });
        assert_eq!(host.push_manifest("base/multi", "1", &list).0, 201);
        if generation == 2 {
            let (code, said) = host.collect(1, "run", CollectStep::Prepare, false, true);
            assert!(code == 409 && said.contains("set garbage_collection.delete_untagged to false"), "{code} {said}");
            continue;
        }
        let done = host.collect_whole(1, "run", true);
        assert_eq!((done.manifests, done.error), (1, None));
        assert!(host.has("base/multi", "1") && host.has("base/multi", &child) && !host.has("base/multi", &lost));
    }
}

#[test]
fn a_collection_that_is_cut_short_leaves_the_registry_writable() {
    let [program, _] = generations();
    let mut host = Host::new();
    // One that collects for ever.
    let slow = "if [ \"$1\" = garbage-collect ]; then echo 'base/hello: marking blob sha256:0'; exec sleep 600; fi\n";
    host.program = script(&host, &format!("{slow}exec {} \"$@\"\n", program.display()));
    (host.insecure, host.patience) = (true, 2);
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    let collecting = |host: &Host, version: u64, run: &str| {
        assert_eq!(host.collect(version, run, CollectStep::Prepare, false, false).0, 200);
        host.wait_for_collection(CollectPhase::ReadOnly);
        assert_eq!(host.collect(version + 1, run, CollectStep::Collect, false, false).0, 200);
        assert_eq!(host.status().collection.unwrap().phase, CollectPhase::Collecting);
    };
    let sleeps = |host: &Host| children(host.role_pid()).len();

    // The controller says no more.
    collecting(&host, 1, "forsaken");
    assert_eq!((host.can_begin_a_push(), sleeps(&host)), (405, 2));
    let done = host.wait_for_collection(CollectPhase::Done);
    assert!(done.error.unwrap().contains("the controller was not heard of for 2 s"));
    assert_eq!((host.can_begin_a_push(), sleeps(&host)), (202, 1));
    // It is called off.
    collecting(&host, 3, "off");
    assert_eq!(host.collect(5, "off", CollectStep::Finish, false, false).0, 200);
    assert!(host.wait_for_collection(CollectPhase::Done).error.unwrap().contains("called off"));
    // It was read-only for another one that has collected.
    assert_eq!(host.collect(6, "other", CollectStep::Prepare, false, false).0, 200);
    host.wait_for_collection(CollectPhase::ReadOnly);
    assert_eq!(host.collect(7, "other", CollectStep::Finish, false, false).0, 200);
    assert_eq!(host.wait_for_collection(CollectPhase::Done).error, None);
    // The task is killed in its middle, and started anew.
    collecting(&host, 8, "killed");
    kill("KILL", host.role_pid());
    host.task.take().unwrap().wait().unwrap();
    host.start();
    let status = host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!((status.collection, host.can_begin_a_push()), (None, 202));
    // It is stopped in its middle.
    collecting(&host, 11, "stopped");
    assert!(host.stop());
    // The program fails.
    host.program = script(
        &host,
        &format!("case $1 in garbage-collect) echo 'failed to mark: oops' >&2; exit 1;; esac\nexec {} \"$@\"\n", program.display()),
    );
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    assert_eq!(host.collect(14, "fails", CollectStep::Prepare, false, false).0, 200);
    host.wait_for_collection(CollectPhase::ReadOnly);
    assert_eq!(host.collect(15, "fails", CollectStep::Collect, false, false).0, 200);
    assert!(host.wait_for_collection(CollectPhase::Collected).error.unwrap().contains("exit status: 1): failed to mark: oops"));
    assert_eq!(host.collect(16, "fails", CollectStep::Finish, false, false).0, 200);
    host.wait_for_collection(CollectPhase::Done);
    assert_eq!(host.can_begin_a_push(), 202);
    assert_eq!(host.collect(17, "last", CollectStep::Prepare, false, false).0, 200);
    assert_eq!(host.give(18, OrderKind::Retire { delete_data: true }).0, 200);
    host.wait_for_phase(RegistryPhase::Retired);
}

#[test]
fn images_are_listed_in_parts_with_their_kinds_and_only_to_who_holds_the_key() {
    for program in generations() {
        let host = Host::plain(program);
        let docker = host.push_image("team/app", "1.0", &"x".repeat(5000), media::SCHEMA_2);
        host.push_image("team/app", "oci", &"x".repeat(5000), media::OCI);
        host.push_image("another", "a", "y", media::SCHEMA_2);
        let platform = serde_json::json!({ "architecture": "amd64", "os": "linux" });
        let size = fs::metadata(host.dir.path().join("manifest")).unwrap().len();
        let child = host.push_image("team/multi", "", &"z".repeat(700), media::SCHEMA_2);
        let list = serde_json::json!({
            "schemaVersion": 2, "mediaType": media::LIST,
            "manifests": [{ "mediaType": media::SCHEMA_2, "size": size, "digest": child, "platform": platform }],
        });
        assert_eq!(host.push_manifest("team/multi", "1", &list).0, 201);
        // More than one part.
        let many: Vec<String> = (0..210).map(|n| format!("t{n:03}")).collect();
        let layer = host.push_blob("many", "m", "application/vnd.docker.image.rootfs.diff.tar.gzip");
        let config = host.push_blob("many", "{}", "application/vnd.docker.container.image.v1+json");
        let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": media::SCHEMA_2, "config": config, "layers": [layer] });
        many.iter().for_each(|tag| assert_eq!(host.push_manifest("many", tag, &manifest).0, 201));

        let (mut images, mut path, mut parts) = (Vec::new(), "/images?last=".to_string(), 0);
        loop {
            let (code, text) = host.images(now(), &host.enrolment, &path);
            assert_eq!(code, 200, "{text}");
            let page: ImagesPage = serde_json::from_str(&text).unwrap();
            images.extend(page.images);
            parts += 1;
            let Some(next) = page.next else { break };
            path = format!("/images?last={next}");
        }
        let names: Vec<String> = images.iter().map(|image| format!("{}:{}", image.repository, image.tag)).collect();
        let expected = ["another:a".to_string()].into_iter().chain(many.iter().map(|tag| format!("many:{tag}")));
        let expected: Vec<String> = expected.chain(["team/app:1.0", "team/app:oci", "team/multi:1"].map(String::from)).collect();
        assert_eq!((names, parts), (expected, 2));
        let of = |name: &str| images.iter().find(|image| format!("{}:{}", image.repository, image.tag) == name).unwrap();
        assert_eq!((of("team/app:1.0").digest.as_str(), of("team/app:1.0").size), (docker.as_str(), 5002));
        assert_eq!(of("team/app:oci").media_type, media::OCI);
        let multi = of("team/multi:1");
        assert_eq!((multi.media_type.as_str(), multi.amd64.as_deref(), multi.size), (media::LIST, Some(media::SCHEMA_2), 702));

        let stranger = EnrolmentKey::generate().unwrap();
        assert_eq!(http(&[&format!("http://{}/images", host.status)]).unwrap().0, 403);
        assert_eq!(host.images(now(), &stranger, "/images").0, 403);
        assert_eq!(host.images(now() - 301, &host.enrolment, "/images").0, 403);
        let elsewhere = format!("{MAC_HEADER}: {}", host.enrolment.mac(&asked("GET", "/images?last=a", now())));
        let time = format!("{TIME_HEADER}: {}", now());
        assert_eq!(http(&["-H", &time, "-H", &elsewhere, &format!("http://{}/images", host.status)]).unwrap().0, 403);
    }
}

#[test]
fn every_store_and_every_authentication_passes_the_parser_of_both_generations() {
    let operator = Operator::new();
    operator.certify("rsa:2048", 20);
    let key = fs::read_to_string(operator.path("new.key")).unwrap();
    let account = serde_json::json!({
        "type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": key, "client_email": "a@example.com",
        "client_id": "1", "token_uri": "http://127.0.0.1:1/token",
    });
    fs::write(operator.path("account.json"), account.to_string()).unwrap();
    fs::write(operator.path("secret"), "c2VjcmV0\n").unwrap();
    fs::write(operator.path("users"), "u:$2y$05$gFiMuHcpfUBvFsDKkDaeBu4VHvZvlTfNLDjq9U1hPmyqL2IsFfHZq\n").unwrap();
    let file = |name: &str| serde_json::json!({ "file": operator.path(name) });
    let s3 = serde_json::json!({
        "kind": "s3", "bucket": "b", "root": "r", "region": "us-east-1", "endpoint": "http://127.0.0.1:1", "redirect": false,
        "access_key": file("secret"), "secret_key": file("secret"),
    });
    let gcs = serde_json::json!({ "kind": "gcs", "bucket": "b", "root": "r", "credentials": file("account.json"), "redirect": true });
    let azure = serde_json::json!({
        "kind": "azure", "account": "a", "container": "c", "root": "r", "realm": "core.example.com", "account_key": file("secret"), "redirect": true,
    });
    let certificates = fs::read_to_string(operator.path("ca.pem")).unwrap();
    let token =
        serde_json::json!({ "kind": "token", "realm": "https://auth/token", "service": "s", "issuer": "i", "certificates": certificates });
    let proxy = serde_json::json!({ "url": "http://127.0.0.1:1", "username": "u", "password": file("secret") });
    // What becomes of it where the other side does not answer. Debian's 2.8 is built without the stores of two clouds.
    let (serves, not_built, unreachable) = ("listening on", "StorageDriver not registered", "connection refused");
    let cases = [
        (serde_json::json!({ "storage": s3 }), [serves, serves]),
        (serde_json::json!({ "storage": gcs }), [not_built, serves]),
        (serde_json::json!({ "storage": azure }), [not_built, serves]),
        (serde_json::json!({ "auth": { "kind": "htpasswd", "file": file("users") } }), [serves, serves]),
        (serde_json::json!({ "auth": { "kind": "htpasswd", "file": null } }), [serves, serves]),
        (serde_json::json!({ "auth": token }), [serves, serves]),
        (serde_json::json!({ "proxy": proxy }), [unreachable, unreachable]),
        (serde_json::json!({ "read_only": true, "access_log": true, "upload_purge_hours": 1, "log_level": "debug" }), [serves, serves]),
    ];
    for (more, expected) in cases {
        for (program, expected) in generations().into_iter().zip(expected) {
            let mut host = Host::new();
            // A container has none of this; here it would be the agent's.
            (host.program, host.more, host.insecure) = (program, more.clone(), true);
            host.start();
            wait_for(&format!("{expected} with {more}"), || host.log().contains(expected).then_some(()));
            let told = serde_json::to_string(&host.status()).unwrap() + &host.log();
            assert!(!told.contains("c2VjcmV0"), "a secret is told");
        }
    }
}

#[test]
fn a_store_that_cannot_be_reached_is_named_with_what_to_do() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "secret\n").unwrap();
    let held = serde_json::json!({ "file": file.path() });
    let s3 = serde_json::json!({
        "kind": "s3", "bucket": "b", "root": "", "region": "us-east-1", "endpoint": "http://127.0.0.1:1", "redirect": false,
        "access_key": held, "secret_key": held,
    });
    let [_, program] = generations();
    let host = Host::of(program, serde_json::json!({ "storage": s3 }));
    let end = Instant::now() + Duration::from_secs(90);
    let errors = loop {
        let errors = host.status().errors;
        if !errors.is_empty() {
            break errors;
        }
        assert!(Instant::now() < end, "nothing was told");
        std::thread::sleep(Duration::from_millis(500));
    };
    assert!(errors[0].contains("connection refused") && errors[0].contains("storage.endpoint"), "{errors:?}");
    assert_eq!(host.status().phase, RegistryPhase::Serving);
}

#[test]
fn requests_are_logged_only_if_asked_for_and_the_log_level_is_the_registrys() {
    for program in generations() {
        let requests = |more| {
            let host = Host::of(program.clone(), more);
            host.wait_for_phase(RegistryPhase::Serving);
            for _ in 0..3 {
                assert_eq!(http(&[&host.plain_url("/v2/")]).unwrap().0, 200);
            }
            std::thread::sleep(Duration::from_millis(300));
            (
                host.log().contains("GET /v2/ HTTP/1.1"),
                host.log().contains("using inmemory blob descriptor cache"),
                host.log().contains("Starting upload purge"),
            )
        };
        assert_eq!(requests(serde_json::json!({ "access_log": true, "upload_purge_hours": 24 })), (true, true, true));
        assert_eq!(
            requests(serde_json::json!({ "access_log": false, "log_level": "error", "upload_purge_hours": 0 })),
            (false, false, false)
        );
    }
}

/// What a registry 3.1.1 (Debian's 2.8 is built without these stores) logs when it is asked for an image; its store is nowhere.
fn words_about_its_store(storage: serde_json::Value, secret: (&'static str, String), wanted: &str) -> (Host, String) {
    let mut host = Host::new();
    host.program = crate::support::made("target/tools/registry3/registry");
    (host.insecure, host.more) = (true, serde_json::json!({ "storage": storage }));
    host.secrets = vec![secret];
    host.start();
    host.wait_for_phase(RegistryPhase::Serving);
    let url = format!("http://{}/v2/base/hello/tags/list", host.listen);
    Command::new("curl").args(["-s", "-m", "15", &url]).stdout(Stdio::null()).status().unwrap();
    let words = wait_for("the registry's words about its store", || {
        host.log().lines().find(|line| line.contains(wanted)).map(|line| line.replace("%2F", "/"))
    });
    (host, words)
}

#[test]
fn gcs_is_asked_for_the_images_with_the_operators_key() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    let made = Command::new("openssl").args(["genpkey", "-quiet", "-algorithm", "RSA", "-out"]).arg(&key).status().unwrap();
    assert!(made.success());
    let key = serde_json::json!({
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "1",
        "private_key": fs::read_to_string(key).unwrap(),
        "client_email": "registry@project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "https://login.gcs.example/token",
    });
    let storage = serde_json::json!({
        "kind": "gcs", "bucket": "images", "root": "registries/one", "redirect": false,
        "credentials": { "variable": "PRIVATE_REGISTRY_HELD_STORAGE_CREDENTIALS" },
    });
    let secret = ("PRIVATE_REGISTRY_HELD_STORAGE_CREDENTIALS", key.to_string());
    let (host, words) = words_about_its_store(storage, secret, "cannot fetch token");
    for part in ["/b/images/o", "prefix=registries/one/", "https://login.gcs.example/token"] {
        assert!(words.contains(part), "{words}");
    }
    assert_eq!(mode(&host.state("gcs.json")), 0o600);
}

#[test]
fn azure_is_asked_for_the_images_in_the_operators_account() {
    let storage = serde_json::json!({
        "kind": "azure", "account": "acme", "container": "images", "root": "", "realm": "azure.example", "redirect": false,
        "account_key": { "variable": "PRIVATE_REGISTRY_HELD_STORAGE_SECRET_KEY" },
    });
    let secret = ("PRIVATE_REGISTRY_HELD_STORAGE_SECRET_KEY", "a2V5".into());
    let (_, words) = words_about_its_store(storage, secret, "acme.blob.azure.example");
    assert!(words.contains("https://acme.blob.azure.example/images"), "{words}");
}
