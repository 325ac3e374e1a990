//! A whole node on loopback, with a host below a temporary directory and a docker daemon that says what the test wants.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::sync::Mutex;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::{sleep, timeout};

use super::*;
use crate::certificates::{Authority, OrderKey, OrderSigner};
use crate::host_paths::HostRoot;
use crate::protocol::*;

const SERVICE: &str = "private-registry";
/// What docker 20.10 answers.
const SUCCEEDED: (u16, &str) = (200, r#"{"IdentityToken":"","Status":"Login Succeeded"}"#);
const UNKNOWN_AUTHORITY: (u16, &str) =
    (500, r#"{"message":"Get \"https://192.168.0.1/v2/\": x509: certificate signed by unknown authority"}"#);
const NO_ROUTE: (u16, &str) =
    (500, r#"{"message":"Get \"https://192.168.0.1/v2/\": dial tcp 192.168.0.1:443: connect: no route to host"}"#);

#[derive(Default)]
struct Docker {
    says: Mutex<(u16, &'static str)>,
    /// The same of a registry that is not ours.
    other_says: Mutex<(u16, &'static str)>,
    asked: Mutex<BTreeSet<String>>,
}

impl Docker {
    fn start(host: &TestNode, says: (u16, &'static str)) -> Arc<Self> {
        let docker = Arc::new(Self { says: Mutex::new(says), other_says: Mutex::default(), asked: Mutex::default() });
        let socket = host.dir.path().join("var/run/docker.sock");
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let shared = Arc::clone(&docker);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let docker = Arc::clone(&shared);
                let service = service_fn(move |request| Arc::clone(&docker).answer(request));
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        docker
    }

    async fn answer(self: Arc<Self>, request: hyper::Request<Incoming>) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
        if request.uri().path() == "/images/create" {
            // An anonymous pull: what we ask of a registry that is not ours.
            let query = request.uri().query().unwrap().to_string();
            assert!(request.into_body().collect().await.unwrap().to_bytes().is_empty());
            let name = query.strip_prefix("fromImage=").unwrap().split('/').next().unwrap().to_string();
            let (status, text) = *self.other_says.lock().unwrap();
            self.asked.lock().unwrap().insert(name);
            return Ok(hyper::Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap());
        }
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/auth"));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let login: serde_json::Value = serde_json::from_slice(&body).unwrap();
        self.asked.lock().unwrap().insert(login["serveraddress"].as_str().unwrap().to_string());
        let (status, text) = *self.says.lock().unwrap();
        Ok(hyper::Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap())
    }
}

struct TestNode {
    dir: tempfile::TempDir,
    signer: OrderSigner,
    port: u16,
}

impl TestNode {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for path in ["etc/docker", "etc/sysctl.d", "var/lib", "proc/sys/net/netfilter", "opt/mesosphere/bin"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        fs::write(dir.path().join("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"), "0\n").unwrap();
        // A curl that reaches nobody, so that only docker's word counts in these tests.
        let curl = dir.path().join("opt/mesosphere/bin/curl");
        fs::write(&curl, "#!/bin/sh\necho 'curl: (7) Failed to connect' >&2\nexit 7\n").unwrap();
        fs::set_permissions(&curl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        Self { dir, signer: OrderSigner::generate().unwrap(), port }
    }

    fn trust(&self, version: u64, generation: u32) -> SignedOrder {
        self.order(version, OrderKind::Trust(self.bundle(generation)))
    }

    fn bundle(&self, generation: u32) -> TrustBundle {
        let names: Vec<crate::names::HostPort> = vec!["192.168.0.1:443".parse().unwrap()];
        let ca = Authority::create(SERVICE, generation, &names, 1_700_000_000, 3650).unwrap();
        let names = names.into_iter().map(|name| TrustedName { name, inside: true }).collect();
        let certificates = vec![ca.certificate().pem()];
        TrustBundle { names, certificates, conntrack_be_liberal: true, ..TrustBundle::default() }
    }

    fn order(&self, version: u64, kind: OrderKind) -> SignedOrder {
        self.signer.sign(&Order { service: SERVICE.into(), version, kind })
    }

    fn config(&self, first_order: SignedOrder) -> NodeConfig {
        NodeConfig {
            root: HostRoot::at(self.dir.path()),
            service: SERVICE.into(),
            order_key: OrderKey::from_base64(&self.signer.verifying_key_base64()).unwrap(),
            first_order,
            port: self.port,
            host: "127.0.0.1".parse().unwrap(),
            executor: "instance-1".into(),
        }
    }

    fn start(&self, first_order: SignedOrder) -> Running {
        let config = self.config(first_order);
        Running::start(async move { run(config).await.unwrap() })
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    async fn status(&self) -> Option<NodeStatus> {
        let response = reqwest::get(self.url("/status")).await.ok()?;
        Some(serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
    }

    async fn put(&self, order: &SignedOrder) -> (u16, String) {
        let body = serde_json::to_string(order).unwrap();
        let response = reqwest::Client::new().put(self.url("/order")).body(body).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn until(&self, what: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        for _ in 0..400 {
            match self.status().await {
                Some(status) if what(&status) => return status,
                _ => sleep(Duration::from_millis(25)).await,
            }
        }
        panic!("never came: {:#?}", self.status().await);
    }

    fn ca_file(&self) -> std::path::PathBuf {
        self.dir.path().join("etc/docker/certs.d/192.168.0.1/ca.crt")
    }
}

#[tokio::test]
async fn a_node_trusts_proves_and_says_so() {
    let host = TestNode::new().await;
    let docker = Docker::start(&host, SUCCEEDED);
    let order = host.trust(1, 1);
    let _node = host.start(order.clone());
    let status = host.until(|status| status.phase == NodePhase::Trusted).await;
    assert_eq!((status.executor.as_str(), status.order_version), ("instance-1", 1));
    assert_eq!(status.order_digest, crate::digest::order_digest(&order));
    assert_eq!(status.errors, Vec::<String>::new());
    assert_eq!(docker.asked.lock().unwrap().iter().collect::<Vec<_>>(), ["192.168.0.1", "192.168.0.1:443"]);
    let outcomes: Vec<_> = status.proofs.iter().map(|p| (p.client.as_str(), p.name.as_str(), p.outcome)).collect();
    assert_eq!(
        outcomes,
        [
            ("docker", "192.168.0.1", ProofOutcome::Trusted),
            ("docker", "192.168.0.1:443", ProofOutcome::Trusted),
            ("curl", "192.168.0.1:443", ProofOutcome::Unreachable),
        ]
    );
    assert_eq!(reqwest::get(host.url("/health")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn nobody_there_is_pending_and_a_refused_certificate_is_failed() {
    let host = TestNode::new().await;
    let docker = Docker::start(&host, NO_ROUTE);
    let order = host.trust(1, 1);
    let _node = host.start(order.clone());
    let status = host.until(|status| status.passes > 0).await;
    assert_eq!((status.phase, status.errors), (NodePhase::Pending, vec![]));
    assert!(host.ca_file().exists(), "the files do not wait for the registry");

    *docker.says.lock().unwrap() = UNKNOWN_AUTHORITY;
    assert_eq!(host.put(&order).await.0, 200, "the same order again asks for a fresh proof");
    let status = host.until(|status| status.phase == NodePhase::Failed).await;
    assert!(status.errors[0].contains("docker does not trust 192.168.0.1"), "{:?}", status.errors);
    assert!(status.errors[0].contains("unknown authority"), "{:?}", status.errors);
    assert_eq!(reqwest::get(host.url("/health")).await.unwrap().status(), 200, "a failed node is alive");

    *docker.says.lock().unwrap() = SUCCEEDED;
    host.until(|status| status.phase == NodePhase::Trusted).await;
}

#[tokio::test]
async fn another_registry_that_is_refused_does_not_spoil_the_trust_in_ours_but_is_told() {
    let host = TestNode::new().await;
    let docker = Docker::start(&host, SUCCEEDED);
    *docker.other_says.lock().unwrap() = UNKNOWN_AUTHORITY;
    let ca = Authority::create(SERVICE, 1, &["192.168.0.1:443".parse().unwrap()], 1_700_000_000, 3650).unwrap().certificate().pem();
    let other = OtherTrust { name: "10.0.0.9:5050".parse().unwrap(), certificates: vec![ca.clone()] };
    let own = TrustedName { name: "192.168.0.1:443".parse().unwrap(), inside: true };
    let bundle = TrustBundle { names: vec![own], certificates: vec![ca], others: vec![other.clone()], ..TrustBundle::default() };
    let _node = host.start(host.order(1, OrderKind::Trust(bundle)));
    let of_other =
        |status: &NodeStatus| status.proofs.iter().find(|p| p.name == "10.0.0.9:5050" && p.client == "docker").map(|p| p.outcome);
    let status = host.until(|status| of_other(status).is_some()).await;
    assert_eq!((status.phase, of_other(&status)), (NodePhase::Trusted, Some(ProofOutcome::Untrusted)));
    assert_eq!(status.errors, Vec::<String>::new());

    // Where it is all that there is, it counts; one that does not answer does not.
    let alone = OrderKind::Trust(TrustBundle { others: vec![other], ..TrustBundle::default() });
    let alone = host.order(2, alone);
    assert_eq!(host.put(&alone).await.0, 200);
    host.until(|status| status.order_version == 2 && status.phase == NodePhase::Failed).await;
    *docker.other_says.lock().unwrap() = NO_ROUTE;
    assert_eq!(host.put(&alone).await.0, 200);
    host.until(|status| status.phase == NodePhase::Trusted && of_other(status) == Some(ProofOutcome::Unreachable)).await;
    *docker.other_says.lock().unwrap() =
        (404, r#"{"message":"manifest for 10.0.0.9:5050/private-registry/proof:none not found: manifest unknown: manifest unknown"}"#);
    assert_eq!(host.put(&alone).await.0, 200);
    host.until(|status| status.phase == NodePhase::Trusted && of_other(status) == Some(ProofOutcome::Trusted)).await;
}

#[tokio::test]
async fn before_a_registry_made_by_hand_is_replaced_the_new_trust_is_in_place_and_its_key_is_told_of_and_removed_when_that_is_ordered() {
    let host = TestNode::new().await;
    let docker = Docker::start(&host, UNKNOWN_AUTHORITY);
    let certs = host.dir.path().join("etc/privateregistry/certs");
    fs::create_dir_all(&certs).unwrap();
    let key = certs.join("domain.key");
    fs::write(&key, "-----BEGIN RSA PRIVATE KEY-----\nc2VjcmV0\n-----END RSA PRIVATE KEY-----\n").unwrap();
    let _node = host.start(host.trust(1, 1));
    // What it shows is not signed by our CA: nothing is proven, and yet all is ready.
    let status = host.until(|status| status.phase == NodePhase::Failed).await;
    assert!(status.in_place && host.ca_file().exists());
    assert_eq!((status.exposed_key.as_deref(), status.cleaned.len()), (key.to_str(), 0));
    let told = serde_json::to_string(&status).unwrap();
    assert!(!told.contains("c2VjcmV0") && key.exists());

    *docker.says.lock().unwrap() = SUCCEEDED;
    let clean = TrustBundle { clean_agents: true, ..host.bundle(1) };
    let (_, answer) = host.put(&host.order(2, OrderKind::Trust(clean))).await;
    assert!(!crate::json::of_text::<NodeStatus>(&answer).unwrap().in_place, "nothing of the new order is written yet");
    let status = host.until(|status| status.phase == NodePhase::Trusted).await;
    assert_eq!((status.exposed_key, status.cleaned), (None, vec![key.display().to_string()]));
    assert!(!host.dir.path().join("etc/privateregistry").exists());
    // It is still said after the next order.
    assert_eq!(host.put(&host.trust(3, 1)).await.0, 200);
    assert_eq!(host.until(|status| status.order_version == 3 && status.in_place).await.cleaned.len(), 1);
}

#[test]
fn the_status_of_an_earlier_node_is_still_read() {
    let status = r#"{ "service": "s", "executor": "e", "host": "h", "order_version": 1, "order_digest": "d", "phase": "trusted",
        "files": [], "sysctl": { "state": "set", "value": null, "found": null }, "proofs": [], "errors": [], "passes": 1 }"#;
    let status: NodeStatus = crate::json::of_text(status).unwrap();
    assert_eq!((status.in_place, status.exposed_key, status.cleaned.len()), (false, None, 0));
}

#[tokio::test]
async fn an_order_is_taken_only_if_signed_for_us_and_not_older() {
    let host = TestNode::new().await;
    let _docker = Docker::start(&host, SUCCEEDED);
    let (first, second) = (host.trust(5, 1), host.trust(6, 2));
    let _node = host.start(first.clone());
    host.until(|status| status.phase == NodePhase::Trusted).await;

    let stranger = OrderSigner::generate().unwrap();
    let forged = stranger.sign(&Order { service: SERVICE.into(), version: 9, kind: OrderKind::Restore });
    assert_eq!(host.put(&forged).await.0, 403);
    let elsewhere = host.signer.sign(&Order { service: "other".into(), version: 9, kind: OrderKind::Restore });
    assert_eq!(host.put(&elsewhere).await.0, 403);
    assert_eq!(host.put(&host.order(9, OrderKind::Retire { delete_data: true })).await.0, 400);
    let garbage = TrustBundle {
        names: vec![TrustedName { name: "192.168.0.1:443".parse().unwrap(), inside: true }],
        certificates: vec!["-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".into()],
        conntrack_be_liberal: true,
        ..TrustBundle::default()
    };
    let (code, text) = host.put(&host.order(9, OrderKind::Trust(garbage))).await;
    assert!(code == 400 && text.contains("private key"), "{code} {text}");
    assert_eq!(host.status().await.unwrap().order_version, 5);

    let (code, text) = host.put(&second).await;
    let answer: NodeStatus = crate::json::of_text(&text).unwrap();
    assert_eq!((code, answer.order_version, answer.phase), (200, 6, NodePhase::Pending), "nothing of it is proven yet");
    assert_eq!(host.put(&second).await.0, 200, "the same order again changes nothing");
    assert_eq!(host.put(&first).await.0, 409, "an older order is a replay");
    assert_eq!(host.put(&host.trust(6, 3)).await.0, 409, "one version names one order");
    host.until(|status| status.phase == NodePhase::Trusted && status.order_version == 6).await;
}

#[tokio::test]
async fn a_newer_order_on_the_host_wins_at_the_next_start_unless_the_key_changed() {
    let host = TestNode::new().await;
    let _docker = Docker::start(&host, SUCCEEDED);
    let first = host.trust(1, 1);
    let node = host.start(first.clone());
    host.until(|status| status.phase == NodePhase::Trusted).await;
    assert_eq!(host.put(&host.trust(2, 2)).await.0, 200);
    host.until(|status| status.phase == NodePhase::Trusted && status.order_version == 2).await;
    drop(node);

    let on_host = pass::Host::new(HostRoot::at(host.dir.path()), SERVICE.into());
    assert_eq!(order_in_force(&host.config(first.clone()), &on_host).unwrap().version, 2);
    let mut reinstalled = TestNode::new().await;
    reinstalled.signer = OrderSigner::generate().unwrap();
    let mut config = reinstalled.config(reinstalled.trust(1, 7));
    config.root = HostRoot::at(host.dir.path());
    assert_eq!(order_in_force(&config, &on_host).unwrap().signed, config.first_order);
}

#[tokio::test]
async fn a_restore_puts_the_host_back_and_the_node_keeps_answering() {
    let host = TestNode::new().await;
    let _docker = Docker::start(&host, SUCCEEDED);
    let _node = host.start(host.trust(1, 1));
    host.until(|status| status.phase == NodePhase::Trusted).await;
    let restore = host.order(2, OrderKind::Restore);
    assert_eq!(host.put(&restore).await.0, 200);
    let status = host.until(|status| status.phase == NodePhase::Restored).await;
    assert_eq!((status.files, status.errors, status.order_version), (vec![], vec![], 2));
    assert!(!host.dir.path().join("etc/docker/certs.d").exists());
    assert!(!host.dir.path().join("var/lib/dcos").exists());
    assert!(!host.dir.path().join("var/lib/private-registry").exists());
    assert_eq!(host.put(&host.trust(1, 1)).await.0, 409, "the order before does not come back");
    assert_eq!(host.put(&restore).await.0, 200);
    let passes = status.passes;
    host.until(|status| status.passes > passes && status.phase == NodePhase::Restored).await;
    assert!(!host.ca_file().exists());
}

#[tokio::test]
async fn oversized_and_unreadable_orders_are_refused() {
    let host = TestNode::new().await;
    let _node = host.start(host.trust(1, 1));
    host.until(|_| true).await;
    let put = |body: Vec<u8>| reqwest::Client::new().put(host.url("/order")).body(body).send();
    assert_eq!(put(b"{".to_vec()).await.unwrap().status(), 400);
    assert_eq!(put(vec![b' '; MAX_MESSAGE_BYTES + 1]).await.unwrap().status(), 400);
}

#[tokio::test]
async fn a_slow_body_is_cut_off_and_others_are_answered_meanwhile() {
    let host = TestNode::new().await;
    let _node = host.start(host.trust(1, 1));
    host.until(|_| true).await;
    let mut slow = TcpStream::connect(("127.0.0.1", host.port)).await.unwrap();
    slow.write_all(b"PUT /order HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
    assert!(host.status().await.is_some());
    let mut answer = String::new();
    timeout(Duration::from_secs(14), slow.read_to_string(&mut answer)).await.expect("cut off in time").unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn whoever_besieges_a_node_keeps_nobody_from_its_status() {
    let host = TestNode::new().await;
    let _node = host.start(host.trust(1, 1));
    host.until(|_| true).await;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, host.port));
    crate::hostile::besiege(address, http::LIMITS.connections, "/status").await;
    assert_eq!(crate::hostile::ask(address, "/health").await, Some(200));
}

#[tokio::test]
async fn a_replayed_order_makes_a_node_prove_no_more_than_once_a_second() {
    let host = TestNode::new().await;
    let _docker = Docker::start(&host, SUCCEEDED);
    let order = host.trust(1, 1);
    let _node = host.start(order.clone());
    let before = host.until(|status| status.phase == NodePhase::Trusted).await.passes;
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(host.put(&order).await.0, 200);
    }
    let passes = host.status().await.unwrap().passes - before;
    assert!((1..=5).contains(&passes), "{passes} passes");
}

#[tokio::test]
async fn a_registry_that_does_anything_but_speak_tls_proves_nothing_and_holds_up_no_proof() {
    use crate::hostile::{Malice, Server};
    let ca = Authority::create(SERVICE, 1, &["127.0.0.1:443".parse().unwrap()], 1_700_000_000, 3650).unwrap();
    let kinds = [Malice::Endless, Malice::Trickle, Malice::Silent, Malice::Garbage, Malice::HeaderFlood];
    let mut servers = Vec::new();
    for malice in kinds {
        servers.push(Server::start(malice).await);
    }
    let name = |server: &Server| TrustedName { name: server.address.to_string().parse().unwrap(), inside: true };
    let bundle =
        TrustBundle { names: servers.iter().map(name).collect(), certificates: vec![ca.certificate().pem()], ..TrustBundle::default() };
    let bundle = trust::Bundle::parse(&bundle).unwrap();
    let curl = proof::Curl { program: "/usr/bin/curl".into(), capath: Some("/nowhere".into()), libraries: None };
    for clients in [proof::Clients::default(), proof::Clients { docker: None, curl: Some(curl) }] {
        let proofs = timeout(Duration::from_secs(20), clients.prove(&bundle, proof::Whose::Own)).await.expect("it ends");
        let outcomes: Vec<_> = proofs.iter().map(|proof| proof.outcome).collect();
        assert!(outcomes.iter().all(|outcome| *outcome != ProofOutcome::Trusted) && outcomes.len() == kinds.len(), "{proofs:#?}");
        assert!(proofs.iter().all(|proof| proof.detail.as_ref().is_none_or(|detail| detail.chars().count() <= 400)));
    }
    assert!(servers.iter().all(|server| server.sent() < 32 * 1024 * 1024));
}
