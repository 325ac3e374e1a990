//! Tasks, or whoever answers in their place, that do anything but answer, and clients of the controller that do anything but ask.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use std::sync::Mutex;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::cluster::Cluster;
use super::state::{OwnCa, State};
use super::store::Store;
use super::{Controller, ControllerError, RotationOrder, Setting};
use crate::certificates::{EnrolmentKey, RegistryKey};
use crate::dcos::marathon::{App, AppTask, Instance, Pod};
use crate::host_paths::HostRoot;
use crate::options::Options;
use crate::plan::{Action, Observed, Plan};
use crate::protocol::{CertificateRequest, NodePhase};

use super::events::SEATS;
use super::images::{self, Source};
use super::serve::{self, Shared};
use super::{observe, shown};
use crate::dcos::Api;
use crate::hostile::{ALL, Malice, Server, ask, besiege, withstands};
use crate::protocol::{MAX_MESSAGE_BYTES, NodeStatus, RegistryStatus, SignedOrder};

#[tokio::test]
async fn no_status_takes_more_memory_or_time_than_it_may_or_leads_elsewhere() {
    let patience = Duration::from_secs(5);
    let http = Api::client().unwrap();
    let ask = |url: String| {
        let http = http.clone();
        async move { observe::get::<RegistryStatus>(&http, &format!("{url}/status")).await.ok_or("no status") }
    };
    withstands(&ALL, MAX_MESSAGE_BYTES, patience, ask).await;
    let ask = |url: String| {
        let http = http.clone();
        async move { observe::get::<NodeStatus>(&http, &format!("{url}/status")).await.ok_or("no status") }
    };
    withstands(&[Malice::Nested, Malice::Redirect], MAX_MESSAGE_BYTES, patience, ask).await;
}

#[tokio::test]
async fn an_order_is_sent_to_the_task_and_to_nobody_whom_it_names() {
    let http = Api::client().unwrap();
    for malice in [Malice::Redirect, Malice::Silent, Malice::Endless] {
        let server = Server::start(malice).await;
        let order = SignedOrder { payload: "e30=".into(), signature: String::new() };
        let address = server.address.to_string();
        let sent = observe::put_order(&http, &address, &order);
        assert!(timeout(Duration::from_secs(5), sent).await.is_ok(), "{malice:?}");
        assert_eq!(server.elsewhere(), 0);
    }
}

#[tokio::test]
async fn a_list_of_images_and_a_chain_of_certificates_are_cut_off_too() {
    let list = |url: String| async move {
        let asked = serde_json::from_value(json!({})).unwrap();
        // It is thirty seconds otherwise.
        images::list(&Source::at(url.trim_start_matches("http://").into(), Duration::from_secs(3)), &asked).await
    };
    withstands(&ALL, 1024 * 1024, Duration::from_secs(10), list).await;
    let show = |url: String| async move {
        let found = shown::by(&url.trim_start_matches("http://").parse().unwrap()).await;
        found.map(|certificates| certificates.len())
    };
    withstands(&[Malice::Endless, Malice::Trickle, Malice::Silent, Malice::Garbage], 1024 * 1024, Duration::from_secs(8), show).await;
}

async fn controller() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve::serve(listener, Arc::new(Shared::new(vec![7; 8_000_000], "00".into()))));
    address
}

#[tokio::test]
async fn whoever_besieges_the_controller_keeps_nobody_from_its_status() {
    let address = controller().await;
    besiege(address, serve::LIMITS.connections, "/v1/status").await;
    assert_eq!(ask(address, "/").await, Some(200));
}

#[tokio::test]
async fn pages_that_are_open_for_ever_and_downloads_that_are_not_taken_leave_room_for_others() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    let address = controller().await;
    let mut held = Vec::new();
    for (path, number) in [("/v1/events", SEATS + 8), ("/artifact/00/private-registry", 2 * serve::LIMITS.connections)] {
        for _ in 0..number {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            held.push(stream);
        }
        assert_eq!(ask(address, "/v1/status").await, Some(200), "{path}");
        assert_eq!(ask(address, "/v1/events?once=true").await, Some(200), "{path}");
    }
    // A page too many is told so, and goes on by asking.
    let address = controller().await;
    let mut pages = Vec::new();
    for number in 0..=SEATS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        let status = if number < SEATS { "200" } else { "503" };
        assert_eq!(std::str::from_utf8(&head).unwrap(), format!("HTTP/1.1 {status}"));
        pages.push(stream);
    }
}

#[tokio::test]
async fn nothing_can_be_changed_by_a_request_to_the_controller_and_no_other_site_may_read_an_answer() {
    let address = controller().await;
    let http = Api::client().unwrap();
    for path in ["/", "/v1/status", "/v1/events", "/v1/ca", "/v1/images", "/v1/plans/deploy", "/v1/discovery", "/metrics", "/health"] {
        for method in [reqwest::Method::POST, reqwest::Method::PUT, reqwest::Method::DELETE, reqwest::Method::PATCH] {
            let request = http.request(method.clone(), format!("http://{address}{path}")).header("Origin", "http://evil.example.com");
            assert_eq!(request.body("x=1").send().await.unwrap().status(), 405, "{method} {path}");
        }
        let url = format!("http://{address}{}", if path == "/v1/events" { "/v1/events?once=true" } else { path });
        let answer = http.get(url).header("Origin", "http://evil.example.com").send().await.unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{path}");
    }
    let page = http.get(format!("http://{address}/")).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    for rule in ["default-src 'none'", "frame-ancestors 'self'", "form-action 'none'", "base-uri 'none'"] {
        assert!(policy.contains(rule), "{policy}");
    }
}

#[tokio::test]
async fn two_lists_of_images_are_made_at_a_time_and_others_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shared = Arc::new(Shared::new(vec![7], "00".into()));
    let task = Server::start(Malice::Silent).await;
    shared.offer_images(Some(Source::at(task.address.to_string(), Duration::from_secs(30))));
    tokio::spawn(serve::serve(listener, shared));
    for _ in 0..20 {
        tokio::spawn(ask(address, "/v1/images"));
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!((task.asked(), ask(address, "/v1/status").await), (2, Some(200)));
}

/// Answers every request with what `answer` gives for its method and path, and notes it; the URL, and what was asked.
async fn answering(
    answer: impl Fn(&Method, &str) -> (StatusCode, Value) + Clone + Send + Sync + 'static,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let router = Router::new().fallback(move |method: Method, uri: Uri| {
        noted.lock().unwrap().push(format!("{method} {}", uri.path()));
        let (status, json) = answer(&method, uri.path());
        async move { (status, axum::Json(json)) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

fn setting() -> Setting {
    Setting {
        host: "127.0.0.1".parse().unwrap(),
        port: 1,
        app_id: "/private-registry".into(),
        task_id: "private-registry.mine".into(),
        registry_images: ["registry:2".into(), "registry:3".into()],
        uninstall: false,
        credential: None,
        vars: [].into(),
    }
}

fn options(url: &str) -> Options {
    let dcos = json!({ "mesos_url": url, "marathon_url": url, "metronome_url": url, "admin_router_url": url });
    Options::from_json(&json!({ "dcos": dcos })).unwrap()
}

#[tokio::test]
async fn a_controller_that_marathon_does_not_know_does_nothing() {
    let knows = Arc::new(Mutex::new("private-registry.other"));
    let known = Arc::clone(&knows);
    let (url, asked) = answering(move |_, path| match path {
        "/slaves" => (StatusCode::OK, json!({ "slaves": [] })),
        "/v2/info" => (StatusCode::OK, json!({ "version": "1.11.24" })),
        "/v2/deployments" | "/v2/pods/::status" => (StatusCode::OK, json!([])),
        "/v2/apps" => (StatusCode::OK, json!({ "apps": [] })),
        "/v2/apps/private-registry" => {
            let task = json!({ "id": *known.lock().unwrap(), "host": "127.0.0.1", "ports": [1], "state": "TASK_RUNNING" });
            (StatusCode::OK, json!({ "app": { "id": "/private-registry", "tasks": [task] } }))
        }
        _ => (StatusCode::NOT_FOUND, json!({})),
    })
    .await;
    let options = options(&url);
    let shared = Arc::new(Shared::new(vec![7], "00".into()));
    let cluster = Cluster::try_enter(&setting(), &options, &shared).unwrap();
    let mut controller = Controller::new(setting(), options, cluster, shared, "00".into());
    let wrote = || asked.lock().unwrap().iter().filter(|request| !request.starts_with("GET")).cloned().collect::<Vec<_>>();
    assert!(matches!(controller.pass().await, Err(ControllerError::NotCurrent(id)) if id == "/private-registry"));
    assert_eq!(wrote(), Vec::<String>::new());
    // The one that it does know begins by pinning itself to its host.
    *knows.lock().unwrap() = "private-registry.mine";
    assert!(controller.pass().await.is_ok());
    assert_eq!(wrote(), ["PUT /v2/apps/private-registry"]);
}

#[tokio::test]
async fn a_document_that_is_refused_holds_up_no_other_and_a_service_that_does_not_answer_ends_the_pass() {
    let says = Arc::new(Mutex::new(StatusCode::UNPROCESSABLE_ENTITY));
    let said = Arc::clone(&says);
    let (url, asked) = answering(move |_, path| match path {
        "/v1/jobs/refused" => (*said.lock().unwrap(), json!({ "message": "no" })),
        _ => (StatusCode::OK, json!({})),
    })
    .await;
    let options = options(&url);
    let shared = Arc::new(Shared::new(vec![7], "00".into()));
    let cluster = Cluster::try_enter(&setting(), &options, &shared).unwrap();
    let mut controller = Controller::new(setting(), options, cluster, shared, "00".into());
    let put = |id: &str| Action::PutJob { id: id.into(), job: json!({ "id": id }), exists: true };
    let app = Action::PutRegistry { app: json!({ "id": "/registry" }), force: false, reason: String::new() };
    let plan = Plan { actions: vec![put("refused"), put("taken"), app], ..Plan::default() };
    let wanted = crate::plan::tests::wanted();
    let order = RotationOrder { names: Vec::new(), run: None };
    let mut applied = async |status: StatusCode| {
        *says.lock().unwrap() = status;
        asked.lock().unwrap().clear();
        let done = controller.apply(&plan, &wanted, &Observed::default(), &[], &order).await;
        (done.map(|undone| (undone.put_off.len(), undone.refused)), asked.lock().unwrap().clone())
    };
    let all = ["PUT /v1/jobs/refused", "PUT /v1/jobs/taken", "PUT /v2/apps/registry"];
    for status in [StatusCode::UNPROCESSABLE_ENTITY, StatusCode::BAD_REQUEST, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
        let (undone, requests) = applied(status).await;
        let (put_off, refused) = undone.unwrap();
        assert_eq!((put_off, refused.len(), requests), (0, 1, all.map(String::from).to_vec()), "{status}");
        assert!(refused[0].contains("tried again: ") && refused[0].contains(status.as_str()), "{}", refused[0]);
    }
    let (undone, requests) = applied(StatusCode::CONFLICT).await;
    let (put_off, refused) = undone.unwrap();
    assert_eq!((put_off, refused.len(), requests.len()), (1, 0, 3));
    for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS] {
        let (undone, requests) = applied(status).await;
        assert!(undone.is_err(), "{status}");
        assert_eq!(requests, all[..1], "{status}");
    }
}

/// What Marathon knows: a node and a task of the registry at this address.
fn observed(address: SocketAddr) -> Observed {
    let host: crate::names::Host = address.ip().to_string().parse().unwrap();
    let instance = Instance { id: "x.instance-1234-5678".into(), host: Some(host.clone()), port: Some(address.port()) };
    let task = AppTask { id: "registry.1".into(), host, ports: vec![0, address.port()], healthy: true };
    Observed {
        pods: [(crate::shards::Shard::All, Pod { spec: json!({}).into(), instances: vec![instance] })].into(),
        registry: Some(App { spec: json!({}), tasks: vec![task] }),
        ..Observed::default()
    }
}

#[tokio::test]
async fn a_stranger_at_the_port_of_a_node_counts_as_no_answer() {
    let said = Arc::new(Mutex::new(Value::Null));
    let says = Arc::clone(&said);
    let (url, _) = answering(move |_, _| (StatusCode::OK, says.lock().unwrap().clone())).await;
    let shared = Shared::new(vec![7], "00".into());
    let options = options(&url);
    let cluster = Cluster::try_enter(&setting(), &options, &shared).unwrap();
    let counted = async |service: &str, executor: &str| {
        let mut status = crate::plan::tests::node("127.0.0.1", "digest", NodePhase::Trusted, 1).1;
        (status.service, status.executor) = (service.into(), executor.into());
        *said.lock().unwrap() = json!(status);
        let mut observed = observed(url.trim_start_matches("http://").parse().unwrap());
        observe::tasks(&cluster, &options, &mut observed).await;
        observed.nodes.len()
    };
    assert_eq!(counted("private-registry", "instance-x.1234-5678").await, 1);
    assert_eq!(counted("private-registry", "instance-x.1234-5679").await, 0);
    assert_eq!(counted("private-registry", "").await, 0);
    assert_eq!(counted("another-registry", "instance-x.1234-5678").await, 0);
}

#[tokio::test]
async fn a_stranger_at_the_port_of_a_registry_is_left_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["192.168.0.1:443".parse().unwrap()];
    let own = OwnCa { organization: "", names: &names, days: 365 };
    let store = Store::on_host(&HostRoot::at(dir.path()), "private-registry").unwrap();
    let mut state = State::open(store, Some(own), 1_800_000_000).await.unwrap();
    let csr = RegistryKey::generate().unwrap().csr("private-registry").unwrap();
    let left_out = |state: &State, mac: String, csr: &str| {
        let request = Some(CertificateRequest { csr: csr.into(), mac });
        let status = RegistryStatus { request, ..RegistryStatus::first("private-registry", "t", "h") };
        let mut observed = Observed { registries: vec![crate::plan::tests::task(status)], ..Observed::default() };
        let problems = observe::leave_out_strangers(&mut observed, state);
        assert_eq!(observed.registries.len() + problems.len(), 1);
        problems.into_iter().next()
    };
    assert_eq!(left_out(&state, state.enrolment_key().mac(&csr), &csr), None);
    let problem = left_out(&state, EnrolmentKey::generate().unwrap().mac(&csr), &csr).unwrap();
    assert!(problem.contains("10.0.0.1:31000 answers in the place of the registry"), "{problem}");
    // The code of another request, and a request that cannot be read.
    let other = RegistryKey::generate().unwrap().csr("private-registry").unwrap();
    assert!(left_out(&state, state.enrolment_key().mac(&other), &csr).is_some());
    assert!(left_out(&state, String::new(), "garbage").is_some());
    // Without having been left out he would have ended every pass.
    let request = Some(CertificateRequest { csr, mac: "0".repeat(64) });
    let status = RegistryStatus { request, ..RegistryStatus::first("private-registry", "t", "h") };
    assert!(state.certify(&status, &names, 1_800_000_000, 90).await.is_err());
}
