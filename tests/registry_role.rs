//! The registry role with the real registry (Debian's docker-registry) on loopback, as process 1 of its own PID namespace,
//! as in a container.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use private_registry::certificates::{Authority, Certificate, EnrolmentKey, OrderSigner, RegistryKey};
use private_registry::digest::sha256_hex;
use private_registry::names::HostPort;
use private_registry::protocol::{MAX_MESSAGE_BYTES, Order, OrderKind, RegistryPhase, RegistryStatus, SignedOrder, TrustBundle, env};
use private_registry::registry::{RegistryConfig, run};

const SERVICE: &str = "private-registry";

/// Variables that the operator's certificate and key come in.
const HELD: [&str; 2] = ["PRIVATE_REGISTRY_HELD_PROVIDED_CERTIFICATE", "PRIVATE_REGISTRY_HELD_PROVIDED_KEY"];
const TEST_DIR: &str = "TEST_REGISTRY_ROLE_DIR";
const TEST_PORTS: &str = "TEST_REGISTRY_ROLE_PORTS";
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
