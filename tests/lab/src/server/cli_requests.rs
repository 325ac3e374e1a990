//! The requests that the Go CLI sent when it was recorded, sent again to the lab's Admin Router, in their order.
//!
//! The servers behind the recorded CLI were a real Cosmos and stand-ins of the others. So the statuses are compared where they say
//! something, and every answer is held against the recordings of the real servers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::admin_router::{self, Cluster};
use super::cosmos::{Cosmos, Upstreams};
use super::pretence::Pretence;
use super::state::{Framework, Options};
use super::{Role, Shared, SharedState, agents, marathon, mesos, metronome, ticker, universe};
use crate::journal::{Content, Exchange};
use crate::recordings::{Recordings, UNRECORDED, Verdict};
use crate::task::TaskState;

/// The stand-ins' address in the recording.
const RECORDED_HOST: &str = "127.0.0.1:17080";
/// Sent to what the lab is not: dcos-net, Mesos-DNS' HTTP API, and Mesos' operator API in protobuf.
const ELSEWHERE: [&str; 3] = ["/net/v1/nodes", "/mesos_dns/v1/hosts/master.mesos", "/mesos/api/v1"];
/// The stand-in of Marathon had no queue.
const STAND_INS: [&str; 1] = ["GET /service/marathon/v2/queue"];

/// A line of the recording that begins with `>`.
#[derive(Debug)]
struct Sent {
    method: String,
    target: String,
    content_type: Option<String>,
    accept: Option<String>,
    body: Option<String>,
    status: u16,
}

impl Sent {
    fn parse(line: &str) -> Self {
        let line = line.strip_prefix("  > ").unwrap();
        let (rest, status) = line.trim_end().rsplit_once(' ').unwrap();
        let (rest, body) = match rest.split_once(" BODY=") {
            Some((rest, body)) => (rest, Some(body.to_owned())),
            None => (rest, None),
        };
        let mut words = rest.split_whitespace();
        let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let named = |name: &str| rest.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned);
        Self { content_type: named("CT="), accept: named("ACC="), method, target, body, status: status.parse().unwrap() }
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fn transcript() -> Vec<Sent> {
    let text = std::fs::read_to_string(fixtures().join("cli/cli-scenario.txt")).unwrap();
    text.lines().filter(|line| line.starts_with("  > ")).map(Sent::parse).collect()
}

struct Lab {
    shared: SharedState,
    router: Router,
    repositories: SocketAddr,
    recordings: Recordings,
    _dir: tempfile::TempDir,
}

async fn listening(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// The packages that the CLI was recorded with.
fn repository(host: SocketAddr) -> Value {
    let template = r#"{"id": "{{service.name}}", "cmd": "sleep 1", "cpus": 0.1, "mem": 32, "instances": 1,
        "labels": {"DCOS_SERVICE_NAME": "{{service.name}}"}}"#;
    let package = |name: &str, sha256: &str| {
        json!({
            "packagingVersion": "4.0", "name": name, "version": "1.0.0", "releaseVersion": 0, "maintainer": "x@example.com",
            "description": "d", "tags": ["t"], "postUninstallNotes": "BYE", "preInstallNotes": "PRE", "postInstallNotes": "POST",
            "marathon": { "v2AppMustacheTemplate": STANDARD.encode(template) },
            "resource": { "cli": { "binaries": { "linux": { "x86-64": {
                "kind": "executable", "url": format!("http://{host}/repo/dcos-sample"),
                "contentHash": [{ "algo": "sha256", "value": sha256 }],
            } } } } },
        })
    };
    let mut sample = package("sample", "def699dd3ed31c8a75e3719d81bb39f2579491daee0d2e0bc35ad1d205699cf9");
    sample["config"] = json!({
        "type": "object",
        "properties": { "service": { "type": "object", "properties": { "name": { "type": "string", "default": "sample" } } } },
    });
    json!({ "packages": [sample, package("badhash", &"0".repeat(64))] })
}

impl Lab {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Pretence { dir: dir.path().join("agents"), ..Pretence::default() };
        let shared = Shared::open(dir.path(), Arc::new(host), Options::default()).unwrap();
        shared.change(|state| agents::register(state, Ipv4Addr::new(192, 168, 1, 80), Role::Private));
        let folder = dir.path().join("universe/repo");
        std::fs::create_dir_all(&folder).unwrap();
        let repositories = listening(universe::router(dir.path().join("universe"))).await;
        std::fs::write(folder.join("cli.json"), repository(repositories).to_string()).unwrap();
        std::fs::write(folder.join("empty.json"), json!({ "packages": [] }).to_string()).unwrap();
        std::fs::write(folder.join("dcos-sample"), "#!/bin/sh\n").unwrap();
        let upstreams = Upstreams {
            marathon: format!("http://{}", listening(marathon::router(shared.clone())).await),
            mesos: format!("http://{}", listening(mesos::router(shared.clone())).await),
            metronome: format!("http://{}", listening(metronome::router(shared.clone())).await),
            admin_router: "http://127.0.0.1:9".into(),
            ca: None,
        };
        let cosmos = Cosmos::open(&dir.path().join("cosmos.json"), upstreams.clone()).unwrap();
        let router = admin_router::serve(Cluster { upstreams, version: "2.2.1".into(), id: "an-id".into() }, cosmos, None);
        let recordings = Recordings::load(&fixtures()).unwrap();
        Self { shared, router, repositories, recordings, _dir: dir }
    }

    /// Sends a request and returns what came back, as the journal would have it.
    async fn exchange(&self, sent: &Sent) -> Exchange {
        // Of what was recorded, only the address of the repositories is another one here.
        let here = |text: &str| text.replace(RECORDED_HOST, &self.repositories.to_string());
        let mut request = Request::builder().method(sent.method.as_str()).uri(here(&sent.target));
        for (name, value) in [("content-type", &sent.content_type), ("accept", &sent.accept)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let body = sent.body.as_deref().map(here).unwrap_or_default();
        let answer = self.router.clone().oneshot(request.body(Body::from(body.clone())).unwrap()).await.unwrap();
        let (head, answer) = answer.into_parts();
        let answer = to_bytes(answer, usize::MAX).await.unwrap();
        let (path, query) = sent.target.split_once('?').unwrap_or((&sent.target, ""));
        Exchange {
            service: "admin_router".into(),
            method: sent.method.clone(),
            path: path.into(),
            query: query.into(),
            request_type: sent.content_type.clone(),
            accept: sent.accept.clone(),
            request_body: Content::of(body.as_bytes()),
            status: head.status.as_u16(),
            response_type: head.headers.get("content-type").map(|value| value.to_str().unwrap().to_owned()),
            response_body: Content::of(&answer),
            unknown: false,
        }
    }

    /// What is to run runs, jobs and what is told to end have ended, and no deployment is left.
    fn settle(&self) {
        for _ in 0..6 {
            ticker::tick(&self.shared);
            self.shared.change(|state| {
                for task in state.tasks.values_mut().filter(|task| !task.state.is_terminal()) {
                    let next = match task.framework {
                        Framework::Marathon if task.kill.is_none() => TaskState::Running,
                        Framework::Metronome if task.state == TaskState::Running => TaskState::Finished,
                        Framework::Metronome => TaskState::Running,
                        Framework::Marathon => TaskState::Killed,
                    };
                    task.enter(next, 1.0);
                }
            });
        }
    }

    fn verdict(&self, exchange: &Exchange) -> Option<String> {
        match self.recordings.check(exchange) {
            Verdict::Matches(_) | Verdict::OfThePackage | Verdict::OfEnterprise => None,
            Verdict::OtherVersion(what) => Some(format!("recorded of other versions only: {what}")),
            Verdict::Unrecorded(what) if UNRECORDED.iter().any(|(known, _)| *known == what) => None,
            Verdict::Unrecorded(what) => Some(format!("no recording of {what}")),
            Verdict::Differs(how) => Some(how.join("; ")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorded_requests_of_the_go_cli_are_answered_as_by_the_real_servers() {
    let lab = Lab::start().await;
    let add = |name: &str| Sent {
        method: "POST".into(),
        target: "/package/repository/add".into(),
        content_type: Some("application/vnd.dcos.package.repository.add-request+json;charset=utf-8;version=v1".into()),
        accept: Some("application/vnd.dcos.package.repository.add-response+json;charset=utf-8;version=v1".into()),
        body: Some(json!({ "name": name, "uri": format!("http://{RECORDED_HOST}/repo/{name}.json") }).to_string()),
        status: 200,
    };
    assert_eq!(lab.exchange(&add("cli")).await.status, 200);
    let sent: Vec<Sent> = transcript();
    assert!(sent.len() > 50, "{}", sent.len());
    let mut faults = Vec::new();
    for sent in sent.iter().filter(|sent| !ELSEWHERE.contains(&sent.path())) {
        let exchange = lab.exchange(sent).await;
        let call = format!("{} {}", sent.method, sent.target);
        if exchange.status != sent.status && !STAND_INS.contains(&call.as_str()) {
            faults.push(format!("{call}: {} instead of {}: {:?}", exchange.status, sent.status, exchange.response_body));
        }
        // What the CLI accepts is what it gets.
        let accepted = sent.accept.as_deref().into_iter().flat_map(|accept| accept.split(',')).collect::<Vec<_>>();
        let vendor = accepted.iter().any(|accepted| accepted.contains("vnd.dcos"));
        if vendor && !exchange.response_type.as_deref().is_some_and(|got| accepted.contains(&got)) {
            faults.push(format!("{call}: {:?} was not asked for", exchange.response_type));
        }
        faults.extend(lab.verdict(&exchange).map(|verdict| format!("{call}: {verdict}")));
        lab.settle();
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_set_up_without_a_login_as_the_go_cli_does_it() {
    let lab = Lab::start().await;
    for line in [
        "  > HEAD / 200",
        // 401 would mean that a login is needed.
        "  > HEAD /pkgpanda/active.buildinfo.full.json 200",
        "  > GET /metadata 200",
        "  > GET /mesos/state-summary 200",
        "  > GET /dcos-metadata/dcos-version.json 200",
    ] {
        let sent = Sent::parse(line);
        let exchange = lab.exchange(&sent).await;
        assert_eq!((exchange.status, lab.verdict(&exchange)), (sent.status, None), "{line}");
        let Content::Json(answer) = &exchange.response_body else { continue };
        let read = match sent.path() {
            "/metadata" => &["CLUSTER_ID"][..],
            "/mesos/state-summary" => &["cluster"],
            _ => &["version", "dcos-variant"],
        };
        assert!(read.iter().all(|field| answer[*field].is_string()), "{line}: {answer}");
    }
}
