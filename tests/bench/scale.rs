//! `ci/bench scale`: the real controller in front of very many agents that are played, and what that costs.
//!
//! Mesos, Marathon and Metronome are played by this process, with the limits that Marathon sets by its launch tokens; every node
//! answers over HTTP at its agent's own address. The lab's servers are those of a real cluster in every word, and too slow for this:
//! here an answer is put together of texts that are made once. Words that the controller reads are those of the recordings.

#![allow(clippy::unwrap_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "the lab's reqwest has TLS of its own")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lab::server::simulation::isolate;
use lab::task::TaskSpec;
use private_registry::certificates::OrderKey;
use private_registry::digest::{order_digest, sha256_hex};
use private_registry::protocol::{
    NodePhase, NodeStatus, OrderKind, OwnedFile, Proof, ProofOutcome, SignedOrder, SysctlState, SysctlStatus, env,
};
use private_registry::{documents, options};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::time::sleep;

#[allow(dead_code, reason = "a task that ends, and a collection, are not played here")]
#[path = "../fleet/registry.rs"]
mod registry;
#[allow(dead_code, reason = "of the world only the registry's part is played here")]
#[path = "../fleet/world.rs"]
mod world;

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const MASTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 69);
const NAME: &str = "private-registry.marathon.l4lb.thisdcos.directory";
const CONTROLLER_PORT: u16 = 8123;
const NODE_PORT: u16 = 7000;
const REGISTRY_PORT: u16 = 31_001;

/// Marathon's defaults: so many launches, set anew so often, and one more for each task that has come to run.
const TOKENS: u32 = 100;
const REFRESH: Duration = Duration::from_secs(30);
/// Mesos makes offers so often.
const OFFERS: Duration = Duration::from_secs(1);
/// From a launch to a running task: program and executor are fetched and started.
const START: Duration = Duration::from_secs(10);
/// From there to a proof: files, sysctl, dockerd and curl.
const PROOF: Duration = Duration::from_millis(300);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

struct Agent {
    host: Ipv4Addr,
    registered: bool,
    /// The pod that has a node here, and the UUID of the instance.
    node: Option<(String, String)>,
    running: bool,
    status: Option<Node>,
    /// Its entry in `/slaves`: to write 10,000 of them anew for one that has joined would be waited for by the one that joins.
    text: Option<String>,
}

struct Node {
    digest: String,
    version: u64,
    passes: u64,
    /// When the last order was taken, or a proof was asked for.
    asked: Instant,
    proven: bool,
    failing: bool,
}

struct Pod {
    spec: Value,
    members: Vec<usize>,
    instances: BTreeSet<usize>,
    scale: usize,
    /// Marathon works on it.
    locked: bool,
    text: Option<Arc<str>>,
}

#[derive(Default)]
struct Traffic {
    /// Requests and bytes of answers, by what was asked for.
    by: BTreeMap<&'static str, (u64, u64)>,
    pod_writes: u64,
    first_pod_write: Option<Instant>,
    last_pod_write: Option<Instant>,
}

struct Cluster {
    agents: Vec<Agent>,
    pods: BTreeMap<String, Pod>,
    registry: Option<Value>,
    registry_is_locked: bool,
    jobs: BTreeMap<String, (Value, u64, Vec<String>)>,
    tokens: u32,
    refreshed: Instant,
    offered: Instant,
    starting: VecDeque<(Instant, usize)>,
    start: Duration,
    slaves: Option<Arc<str>>,
    orders: BTreeMap<String, Option<(String, u64)>>,
    key: Option<OrderKey>,
    first: Option<(String, u64)>,
    own_env: BTreeMap<String, String>,
    serves: bool,
    last_running: Option<Instant>,
    traffic: Traffic,
}

struct Shared {
    cluster: Mutex<Cluster>,
    news: broadcast::Sender<String>,
    world: Arc<world::World>,
    slave: String,
}

fn host(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST) + number as u32)
}

impl Cluster {
    fn all_proven(&self) -> bool {
        self.agents.iter().filter(|agent| agent.registered).all(|agent| agent.status.as_ref().is_some_and(|node| node.proven))
    }

    fn touch(&mut self, agent: usize) {
        (self.slaves, self.agents[agent].text) = (None, None);
        if let Some((pod, _)) = &self.agents[agent].node
            && let Some(pod) = self.pods.get_mut(pod)
        {
            pod.text = None;
        }
    }

    /// Marathon and the agents go on.
    fn work(&mut self) {
        let (now, serves) = (Instant::now(), self.serves);
        while self.starting.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, agent)) = self.starting.pop_front() else { break };
            self.tokens += 1;
            if !self.agents[agent].registered {
                continue;
            }
            let Some((digest, version)) = self.first.clone() else { continue };
            self.agents[agent].running = true;
            self.agents[agent].status = Some(Node { digest, version, passes: 0, asked: now, proven: false, failing: false });
            self.last_running = Some(now);
            self.touch(agent);
        }
        if now - self.refreshed >= REFRESH {
            (self.tokens, self.refreshed) = (TOKENS, now);
        }
        if now - self.offered >= OFFERS {
            self.offered = now;
            self.place(now);
        }
        for pod in self.pods.values_mut().filter(|pod| pod.locked) {
            pod.locked = pod.instances.len() != pod.scale || !pod.instances.iter().all(|agent| self.agents[*agent].running);
        }
        for agent in &mut self.agents {
            if let Some(node) = agent.status.as_mut().filter(|node| serves && !node.proven && now - node.asked >= PROOF) {
                (node.proven, node.passes) = (true, node.passes + 1);
            }
        }
    }

    fn place(&mut self, now: Instant) {
        let mut placed = true;
        // One of each pod after the other: their offers come in any order.
        while placed && self.tokens > 0 {
            placed = false;
            for (id, pod) in &mut self.pods {
                if self.tokens == 0 || pod.instances.len() >= pod.scale {
                    continue;
                }
                let free = pod.members.iter().find(|agent| self.agents[**agent].node.is_none() && self.agents[**agent].registered);
                let Some(agent) = free.copied() else { continue };
                let uuid = format!("{:08x}-e79a-11f1-ac96-{:012x}", agent, unix());
                (self.agents[agent].node, self.agents[agent].text) = (Some((id.clone(), uuid)), None);
                pod.instances.insert(agent);
                pod.text = None;
                self.tokens -= 1;
                self.starting.push_back((now + self.start, agent));
                (placed, self.slaves) = (true, None);
            }
        }
    }

    /// Mesos has lost it for good.
    fn lose(&mut self, agent: usize) {
        self.touch(agent);
        if let Some((pod, _)) = self.agents[agent].node.take()
            && let Some(pod) = self.pods.get_mut(&pod)
        {
            pod.instances.remove(&agent);
        }
        let agent = &mut self.agents[agent];
        (agent.registered, agent.running, agent.status) = (false, false, None);
    }

    fn instance(&self, pod: &str, agent: usize) -> String {
        let Agent { host, node, running, .. } = &self.agents[agent];
        let uuid = node.as_ref().map_or("", |(_, uuid)| uuid);
        let id = format!("{}.instance-{uuid}", pod.trim_start_matches('/'));
        let (status, task, port) = match running {
            true => ("STABLE", "TASK_RUNNING", NODE_PORT.to_string()),
            false => ("STAGING", "TASK_STAGING", "null".to_string()),
        };
        let at = "2026-11-24T00:03:40.002Z";
        format!(
            r#"{{"id":"{id}","status":"{status}","statusSince":"{at}","conditions":[],"agentHostname":"{host}","agentId":"192f08a5-0564-47d3-8737-68295b795170-S{agent}","resources":{{"cpus":0.12000000000000001,"mem":64,"disk":26,"gpus":0}},"networks":[{{"addresses":["{host}"]}}],"containers":[{{"name":"node","status":"{task}","statusSince":"{at}","conditions":[{{"name":"healthy","lastChanged":"{at}","lastUpdated":"{at}","value":"true","reason":"health-reported-by-mesos"}}],"containerId":"{id}.node.1","endpoints":[{{"name":"status","allocatedHostPort":{port},"healthy":true}}],"resources":{{"cpus":0.02,"mem":32,"disk":16,"gpus":0}},"lastUpdated":"{at}","lastChanged":"{at}"}}],"specReference":"/v2/pods{pod}::versions/2026-11-24T00:03:23.433503653Z","localVolumes":[],"lastUpdated":"{at}","lastChanged":"{at}","role":"slave_public"}}"#
        )
    }

    fn pod_status(&mut self, id: &str) -> Option<Arc<str>> {
        let pod = self.pods.get(id)?;
        if let Some(text) = &pod.text {
            return Some(text.clone());
        }
        let instances: Vec<String> = pod.instances.iter().map(|agent| self.instance(id, *agent)).collect();
        let status = if pod.locked { "DEGRADED" } else { "STABLE" };
        let text = format!(r#"{{"id":"{id}","spec":{},"status":"{status}","instances":[{}]}}"#, pod.spec, instances.join(","));
        let text: Arc<str> = text.into();
        if let Some(pod) = self.pods.get_mut(id) {
            pod.text = Some(text.clone());
        }
        Some(text)
    }

    fn node_status(&self, agent: usize) -> Option<NodeStatus> {
        let Agent { host, node: Some((pod, uuid)), status: Some(node), .. } = self.agents.get(agent)? else { return None };
        let at = unix();
        let names = ["192.168.0.1", "192.168.0.1:443", "registry.marathon.l4lb.thisdcos.directory:5000"];
        let proof =
            |client: &str, name: &str| Proof { client: client.into(), name: name.into(), outcome: ProofOutcome::Trusted, detail: None, at };
        let proofs = names.iter().flat_map(|name| [proof("docker", name), proof("curl", name)]).filter(|_| node.proven).collect();
        let file = |path: String| OwnedFile { path, sha256: node.digest.clone() };
        let mut files: Vec<OwnedFile> = names.iter().map(|name| file(format!("/etc/docker/certs.d/{name}/ca.crt"))).collect();
        files.push(file("/var/lib/dcos/pki/tls/certs/private-registry-0123456789abcdef.crt".into()));
        files.push(file("/etc/sysctl.d/60-private-registry.conf".into()));
        Some(NodeStatus {
            service: "private-registry".into(),
            executor: format!("instance-{}.{uuid}", pod.trim_start_matches('/')),
            host: host.to_string(),
            order_version: node.version,
            order_digest: node.digest.clone(),
            phase: match (node.failing, node.proven) {
                (true, _) => NodePhase::Failed,
                (_, true) => NodePhase::Trusted,
                _ => NodePhase::Pending,
            },
            files,
            sysctl: SysctlStatus { state: SysctlState::Set, value: Some("1".into()), found: Some("0".into()) },
            proofs,
            errors: if node.failing { vec!["/etc/docker is read-only; make it writable".into()] } else { Vec::new() },
            passes: node.passes,
            in_place: true,
            exposed_key: None,
            cleaned: Vec::new(),
            preload: None,
        })
    }

    /// A node takes an order. Who has seen one of the same bytes does not verify it again.
    fn take(&mut self, agent: usize, body: &str) -> bool {
        let key = &self.key;
        let open = || -> Option<(String, u64)> {
            let signed: SignedOrder = serde_json::from_str(body).ok()?;
            let order = key.as_ref()?.open(&signed).ok()?;
            matches!(order.kind, OrderKind::Trust(_)).then(|| (order_digest(&signed), order.version))
        };
        let known = self.orders.get(body).cloned();
        let opened = known.unwrap_or_else(open);
        self.orders.entry(body.into()).or_insert_with(|| opened.clone());
        let (Some((digest, version)), Some(node)) = (opened, self.agents.get_mut(agent).and_then(|agent| agent.status.as_mut())) else {
            return false;
        };
        if version < node.version {
            return false;
        }
        (node.digest, node.version, node.asked, node.proven) = (digest, version, Instant::now(), false);
        true
    }

    fn put_pod(&mut self, id: &str, spec: Value, force: bool) -> (u16, String) {
        self.traffic.pod_writes += 1;
        self.traffic.last_pod_write = Some(Instant::now());
        self.traffic.first_pod_write = self.traffic.first_pod_write.or(self.traffic.last_pod_write);
        if self.pods.get(id).is_some_and(|pod| pod.locked) && !force {
            return (409, json!({ "message": "App is locked by one or more deployments.", "deployments": [{ "id": "d" }] }).to_string());
        }
        let scale = spec["scaling"]["instances"].as_u64().unwrap_or(0) as usize;
        let class = documents::class_of(&spec).map(|class| regex_lite::Regex::new(&format!("^(?:{class})$")).unwrap());
        let is_member = |agent: &Agent| class.as_ref().is_none_or(|class| class.is_match(&agent.host.to_string()));
        let members = self.agents.iter().enumerate().filter(|(_, agent)| is_member(agent)).map(|(number, _)| number).collect();
        let environment = &spec["environment"];
        if self.first.is_none() {
            self.key = environment[env::ORDER_KEY].as_str().and_then(|key| OrderKey::from_base64(key).ok());
            let signed: Option<SignedOrder> = environment[env::FIRST_ORDER].as_str().and_then(|text| serde_json::from_str(text).ok());
            let opened = signed.and_then(|signed| Some((order_digest(&signed), self.key.as_ref()?.open(&signed).ok()?.version)));
            self.first = opened;
        }
        let old = self.pods.remove(id);
        if let Some(old) = &old {
            let (mut before, mut after) = (old.spec.clone(), spec.clone());
            (before["scaling"], after["scaling"]) = (Value::Null, Value::Null);
            assert!(before == after, "{id} was to be deployed anew");
        }
        let instances = old.map(|old| old.instances).unwrap_or_default();
        self.pods.insert(id.into(), Pod { spec: spec.clone(), members, instances, scale, locked: true, text: None });
        (200, spec.to_string())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Cluster> {
        lock(&self.cluster)
    }

    fn slaves(&self, cluster: &mut Cluster) -> Arc<str> {
        if let Some(text) = &cluster.slaves {
            return text.clone();
        }
        let mut text = String::with_capacity(cluster.agents.len() * (self.slave.len() + 60));
        text.push_str(r#"{"slaves":["#);
        let mut first = true;
        for (number, agent) in cluster.agents.iter_mut().enumerate().filter(|(_, agent)| agent.registered) {
            if !std::mem::take(&mut first) {
                text.push(',');
            }
            if agent.text.is_none() {
                agent.text = Some(self.slave_text(number, agent));
            }
            text.push_str(agent.text.as_deref().unwrap_or_default());
        }
        text.push_str(r#"],"recovered_slaves":[]}"#);
        let text: Arc<str> = text.into();
        cluster.slaves = Some(text.clone());
        text
    }

    fn slave_text(&self, number: usize, agent: &Agent) -> String {
        let used = if agent.node.is_some() { "0.12" } else { "0.0" };
        self.slave.replace("@NUMBER@", &number.to_string()).replace("@HOST@", &agent.host.to_string()).replace("\"@USED@\"", used)
    }

    /// What a server answers.
    async fn answer(self: &Arc<Self>, port: u16, local: Ipv4Addr, method: &str, path: &str, body: &str) -> (u16, Arc<str>, &'static str) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut cluster = self.lock();
        let text = |code: u16, text: String, kind| (code, Arc::from(text), kind);
        let absent = || text(404, r#"{"message":"absent"}"#.into(), "other");
        match (port, method, path) {
            (NODE_PORT, "GET", _) => match cluster.node_status((u32::from(local) - u32::from(FIRST)) as usize) {
                Some(status) => text(200, serde_json::to_string(&status).unwrap(), "node"),
                None => absent(),
            },
            (NODE_PORT, "PUT", _) => {
                let taken = cluster.take((u32::from(local) - u32::from(FIRST)) as usize, body);
                text(if taken { 200 } else { 409 }, "{}".into(), "order")
            }
            // Whether it is reached under its VIP is all that it asks there.
            (80, "GET", "/health") => text(200, "ok".into(), "other"),
            (5050, "GET", "/slaves") => (200, self.slaves(&mut cluster), "slaves"),
            (8080, "GET", "/v2/info") => text(200, r#"{"name":"marathon","version":"1.11.24"}"#.into(), "other"),
            (8080, "GET", "/v2/pods/::status") => {
                let ids: Vec<String> = cluster.pods.keys().cloned().collect();
                let all: Vec<Arc<str>> = ids.iter().filter_map(|id| cluster.pod_status(id)).collect();
                text(200, format!("[{}]", all.join(",")), "pods")
            }
            (8080, "GET", path) if path.starts_with("/v2/pods/") => {
                let id = path.trim_start_matches("/v2/pods").trim_end_matches("::status").to_owned();
                cluster.pod_status(&id).map_or_else(absent, |status| (200, status, "pods"))
            }
            (8080, "PUT", path) if path.starts_with("/v2/pods/") => {
                let id = path.trim_start_matches("/v2/pods").to_owned();
                let (code, answer) = cluster.put_pod(&id, serde_json::from_str(body).unwrap(), query.contains("force=true"));
                text(code, answer, "write")
            }
            (8080, "GET", "/v2/apps") => {
                let apps: Vec<Value> = [own_app(&cluster.own_env)].into_iter().chain(registry_app(&cluster)).collect();
                text(200, json!({ "apps": apps }).to_string(), "other")
            }
            (8080, "GET", "/v2/apps/private-registry") => text(200, json!({ "app": own_app(&cluster.own_env) }).to_string(), "other"),
            (8080, "GET", "/v2/apps/registry") => {
                registry_app(&cluster).map_or_else(absent, |app| text(200, json!({ "app": app }).to_string(), "other"))
            }
            (8080, "PUT", "/v2/apps/registry") => {
                assert!(cluster.registry.is_none(), "the registry was to be deployed anew");
                cluster.registry = Some(serde_json::from_str(body).unwrap());
                cluster.registry_is_locked = true;
                tokio::spawn(run_registry(self.clone()));
                text(200, "{}".into(), "write")
            }
            (8080, "GET", "/v2/deployments") => {
                let pods = cluster.pods.iter().filter(|(_, pod)| pod.locked).map(|(id, _)| id);
                let mut all: Vec<Value> = pods.map(|id| json!({ "id": "d", "affectedApps": [], "affectedPods": [id] })).collect();
                if cluster.registry_is_locked {
                    all.push(json!({ "id": "d", "affectedApps": ["/registry"], "affectedPods": [] }));
                }
                text(200, Value::from(all).to_string(), "other")
            }
            (9000, method, path) => text_of_metronome(&mut cluster, method, path, body),
            _ => panic!("{method} {port} {path} is not played"),
        }
    }
}

fn text_of_metronome(cluster: &mut Cluster, method: &str, path: &str, body: &str) -> (u16, Arc<str>, &'static str) {
    let parts: Vec<&str> = path.trim_start_matches("/v1/jobs").trim_matches('/').split('/').collect();
    let answer = |code: u16, value: Value| (code, Arc::from(value.to_string()), "other");
    match (method, parts.as_slice()) {
        ("POST", [""]) | ("PUT", [_]) => {
            let job: Value = serde_json::from_str(body).unwrap();
            let id = job["id"].as_str().unwrap_or_default().to_owned();
            cluster.jobs.entry(id).and_modify(|known| known.0 = job.clone()).or_insert((job.clone(), 0, Vec::new()));
            answer(201, job)
        }
        // A run that the controller starts does nothing here.
        ("POST", [id, "runs"]) => {
            cluster.jobs.entry((*id).to_owned()).and_modify(|job| job.1 += 1);
            answer(201, json!({ "id": "run" }))
        }
        ("GET", [id]) => match cluster.jobs.get(*id) {
            Some((spec, ended, active)) => {
                let mut spec = spec.clone();
                spec["activeRuns"] = active.iter().map(|id| json!({ "id": id })).collect();
                spec["history"] = json!({ "successCount": ended, "failureCount": 0 });
                spec["schedules"] = json!([]);
                answer(200, spec)
            }
            None => answer(404, json!({ "message": "absent" })),
        },
        _ => panic!("{method} {path} is not played"),
    }
}

fn own_app(env: &BTreeMap<String, String>) -> Value {
    let task = json!({ "id": "private-registry.1", "host": FIRST, "ports": [CONTROLLER_PORT], "state": "TASK_RUNNING", "appId": "/private-registry" });
    json!({ "id": "/private-registry", "constraints": [["hostname", "LIKE", "^10\\.0\\.0\\.1$"]], "env": env, "labels": {}, "tasks": [task],
            "tasksRunning": 1 })
}

fn registry_app(cluster: &Cluster) -> Option<Value> {
    let mut app = cluster.registry.clone()?;
    let task = json!({ "id": "registry.1", "host": FIRST, "ports": [31_000, REGISTRY_PORT], "state": "TASK_RUNNING",
                       "healthCheckResults": [{ "alive": true }] });
    app["tasks"] = if cluster.registry_is_locked { json!([]) } else { json!([task]) };
    Some(app)
}

/// The registry's task starts and answers.
async fn run_registry(shared: Arc<Shared>) {
    sleep(Duration::from_secs(2)).await;
    let environment: BTreeMap<String, String> = {
        let cluster = shared.lock();
        let env = cluster.registry.as_ref().and_then(|app| app["env"].as_object().cloned()).unwrap_or_default();
        env.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect()
    };
    let spec = TaskSpec {
        id: "registry.1".into(),
        agent: FIRST.to_string(),
        user: "root".into(),
        command: None,
        env: environment,
        artifacts: Vec::new(),
        docker: None,
        image: None,
        health: None,
        grace_seconds: 1,
    };
    let played = registry::Registry::new(shared.world.clone(), FIRST, &spec).unwrap();
    let listener = TcpListener::bind((FIRST, REGISTRY_PORT)).await.unwrap();
    let router = played.router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    shared.lock().registry_is_locked = false;
    let http = reqwest::Client::new();
    loop {
        let url = format!("http://{FIRST}:{REGISTRY_PORT}/status");
        let answer = async { http.get(url).send().await.ok()?.json::<Value>().await.ok() };
        let serves = answer.await.is_some_and(|status| status["phase"] == "serving");
        shared.lock().serves = serves;
        sleep(Duration::from_millis(100)).await;
    }
}

/// One server of HTTP/1.1, as far as the controller speaks it.
async fn listen(shared: Arc<Shared>, address: Ipv4Addr, port: u16) {
    let listener = TcpListener::bind((address, port)).await.unwrap();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        tokio::spawn(converse(shared.clone(), port, stream));
    }
}

async fn converse(shared: Arc<Shared>, port: u16, stream: TcpStream) -> Option<()> {
    let std::net::IpAddr::V4(local) = stream.local_addr().ok()?.ip() else { return None };
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        if read.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut length = 0;
        loop {
            let mut header = String::new();
            read.read_line(&mut header).await.ok()?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        read.read_exact(&mut body).await.ok()?;
        if port == 5050 && path.starts_with("/api/v1") {
            return stream_events(&shared, write).await;
        }
        let body = String::from_utf8(body).ok()?;
        let (code, text, kind) = shared.answer(port, local, &method, &path, &body).await;
        {
            let mut cluster = shared.lock();
            let count = cluster.traffic.by.entry(kind).or_default();
            *count = (count.0 + 1, count.1 + text.len() as u64);
        }
        let head = format!("HTTP/1.1 {code} OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", text.len());
        if text.len() < 16_384 {
            write.write_all((head + &text).as_bytes()).await.ok()?;
        } else {
            write.write_all(head.as_bytes()).await.ok()?;
            write.write_all(text.as_bytes()).await.ok()?;
        }
    }
}

/// The operator API's stream. A snapshot comes first, which the real one makes as large as `/state`.
async fn stream_events(shared: &Shared, mut write: tokio::net::tcp::OwnedWriteHalf) -> Option<()> {
    let mut news = shared.news.subscribe();
    let record = |text: &str| {
        let record = format!("{}\n{text}", text.len());
        format!("{:x}\r\n{record}\r\n", record.len())
    };
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    write.write_all((head.to_owned() + &record(r#"{"type":"SUBSCRIBED","subscribed":{}}"#)).as_bytes()).await.ok()?;
    loop {
        match tokio::time::timeout(Duration::from_secs(15), news.recv()).await {
            Ok(Ok(event)) => write.write_all(record(&event).as_bytes()).await.ok()?,
            Ok(Err(_)) => return None,
            Err(_) => write.write_all(record(r#"{"type":"HEARTBEAT"}"#).as_bytes()).await.ok()?,
        }
    }
}

/// What the operator API says of an agent that registers; as in `tests/fixtures/mesos-1.11.0/subscribe-json.recordio`.
fn agent_added(number: usize) -> Value {
    let scalar = |name: &str, value: f64| json!({ "name": name, "type": "SCALAR", "scalar": { "value": value }, "role": "*" });
    let resources = json!([scalar("cpus", 4.0), scalar("mem", 14_000.0), scalar("disk", 35_000.0)]);
    let info =
        json!({ "hostname": host(number), "port": 5051, "id": { "value": format!("192f08a5-0564-47d3-8737-68295b795170-S{number}") } });
    let agent = json!({ "agent_info": info, "active": true, "deactivated": false, "version": "1.11.0", "total_resources": resources });
    json!({ "type": "AGENT_ADDED", "agent_added": { "agent": agent } })
}

/// The controller's process.
struct Controller {
    child: Child,
    log: PathBuf,
}

impl Controller {
    fn start(program: &Path, dir: &Path, vars: &BTreeMap<String, String>) -> Self {
        let log = dir.join("controller.log");
        let file = fs::File::create(&log).unwrap();
        let child = Command::new(program)
            .arg("controller")
            .env_clear()
            .envs(vars)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// CPU seconds so far.
    fn cpu(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks: Vec<u64> = rest.split(' ').skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
        ticks.iter().sum::<u64>() as f64 / 100.0
    }

    /// Peak of what was resident, in MiB; and what is now.
    fn memory(&self) -> (f64, f64) {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let of = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
        };
        (of("VmHWM"), of("VmRSS"))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A number of the controller's metrics.
async fn metric(name: &str) -> Option<f64> {
    let text = reqwest::get(format!("http://{FIRST}:{CONTROLLER_PORT}/metrics")).await.ok()?.text().await.ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

async fn converged() -> bool {
    metric("private_registry_converged ").await == Some(1.0)
}

async fn wait_for(what: &str, seconds: u64, log: &Path, every: Duration, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !condition().await {
        if began.elapsed() > Duration::from_secs(seconds) {
            let text = fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            panic!("waited {seconds} s in vain for {what}");
        }
        sleep(every).await;
    }
    began.elapsed()
}

/// What a stretch of time has cost.
struct Meter {
    at: Instant,
    cpu: f64,
    bytes: u64,
}

impl Meter {
    fn start(shared: &Shared, controller: &Controller) -> Self {
        Self { at: Instant::now(), cpu: controller.cpu(), bytes: bytes(shared) }
    }

    /// Seconds, CPU seconds, and bytes that the controller has read.
    fn read(&self, shared: &Shared, controller: &Controller) -> (f64, f64, f64) {
        (self.at.elapsed().as_secs_f64(), controller.cpu() - self.cpu, (bytes(shared) - self.bytes) as f64)
    }
}

fn bytes(shared: &Shared) -> u64 {
    shared.lock().traffic.by.values().map(|(_, bytes)| bytes).sum()
}

fn traffic(shared: &Shared) -> String {
    let cluster = shared.lock();
    let mut text = String::new();
    for (kind, (requests, bytes)) in &cluster.traffic.by {
        let _ = write!(text, "{kind} {requests} × {:.1} KB; ", *bytes as f64 / 1000.0 / (*requests).max(1) as f64);
    }
    text
}

async fn measure(dir: &Path, program: &Path, agents: usize, slave: String) -> Vec<String> {
    let mut vars = options::default_variables();
    let own = json!({ "dcos": { "mesos_url": format!("http://{MASTER}:5050"), "marathon_url": format!("http://{MASTER}:8080"),
                                "metronome_url": format!("http://{MASTER}:9000") },
                      "registry": { "host": FIRST }, "exposure": { "marathon_lb": false } });
    options::put_variables(&mut vars, &own);
    let new_agent = |number: usize| Agent { host: host(number), registered: true, node: None, running: false, status: None, text: None };
    let cluster = Cluster {
        agents: (0..agents).map(new_agent).collect(),
        pods: BTreeMap::new(),
        registry: None,
        registry_is_locked: false,
        jobs: BTreeMap::new(),
        tokens: TOKENS,
        refreshed: Instant::now(),
        offered: Instant::now(),
        starting: VecDeque::new(),
        start: START,
        slaves: None,
        orders: BTreeMap::new(),
        key: None,
        first: None,
        own_env: vars.clone(),
        serves: false,
        last_running: None,
        traffic: Traffic::default(),
    };
    let shared = Arc::new(Shared { cluster: Mutex::new(cluster), news: broadcast::channel(64).0, world: Arc::default(), slave });
    let zone: lab::dns::Zone = Arc::default();
    zone.write().unwrap().insert(NAME.into(), vec![FIRST]);
    tokio::spawn(async move { lab::dns::serve(zone, (MASTER, 53).into()).await });
    for (address, port) in [(FIRST, 80), (MASTER, 5050), (MASTER, 8080), (MASTER, 9000), (Ipv4Addr::UNSPECIFIED, NODE_PORT)] {
        tokio::spawn(listen(shared.clone(), address, port));
    }
    let working = shared.clone();
    tokio::spawn(async move {
        loop {
            working.lock().work();
            sleep(Duration::from_millis(20)).await;
        }
    });
    for (name, value) in [
        ("HOST", FIRST.to_string()),
        ("PORT0", CONTROLLER_PORT.to_string()),
        ("MARATHON_APP_ID", "/private-registry".into()),
        ("MESOS_TASK_ID", "private-registry.1".into()),
        ("PRIVATE_REGISTRY_IMAGE", "registry:2.8.3".into()),
        ("PRIVATE_REGISTRY_IMAGE_3", "registry:3.1.1".into()),
        ("PRIVATE_REGISTRY_URI", "http://universe.example.com/private-registry".into()),
        ("RUST_LOG", "info".into()),
        ("PATH", "/usr/bin:/bin".into()),
    ] {
        vars.insert(name.into(), value);
    }
    sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    let controller = Controller::start(program, dir, &vars);
    let log = controller.log.clone();
    let every = Duration::from_millis(200);

    // Installed, until every agent is proven.
    let proven_at = {
        wait_for("every node to be proven", 120 + agents as u64 / 10, &log, every, async || {
            let cluster = shared.lock();
            cluster.first.is_some() && cluster.all_proven()
        })
        .await;
        began.elapsed().as_secs_f64()
    };
    wait_for("the controller to have seen it", 300, &log, every, converged).await;
    let total = began.elapsed().as_secs_f64();
    let alone = {
        let cluster = shared.lock();
        let ordered = cluster.traffic.first_pod_write.unwrap();
        cluster.last_running.map_or(0.0, |at| (at - ordered).as_secs_f64())
    };
    let (converging, (peak, _)) = (controller.cpu(), controller.memory());
    let pods = shared.lock().pods.len();
    eprintln!(
        "{agents}: proven after {proven_at:.1} s, seen after {total:.1} s, Marathon alone {alone:.1} s, CPU {converging:.1} s, {peak:.0} MiB; {}",
        traffic(&shared)
    );

    // Nothing happens.
    sleep(Duration::from_secs(15)).await;
    let idle = Meter::start(&shared, &controller);
    sleep(Duration::from_secs(idle_seconds(agents))).await;
    let (seconds, idle_cpu, idle_bytes) = idle.read(&shared, &controller);
    let (idle_share, idle_rate) = (idle_cpu / seconds, idle_bytes / seconds);

    // One agent joins, and another, so often that a look at everything in between does not count for much.
    shared.lock().start = Duration::from_secs(1);
    let (mut to_put, mut to_proven, mut join_cpu, mut join_bytes) = (0.0_f64, 0.0_f64, 0.0, 0.0);
    const JOINS: usize = 40;
    for _ in 0..JOINS {
        let meter = Meter::start(&shared, &controller);
        let number = {
            let mut cluster = shared.lock();
            let number = cluster.agents.len();
            cluster.agents.push(new_agent(number));
            (cluster.slaves, cluster.traffic.last_pod_write) = (None, None);
            number
        };
        let joined = Instant::now();
        let _ = shared.news.send(agent_added(number).to_string());
        wait_for("the pod to grow", 120, &log, Duration::from_millis(2), async || shared.lock().traffic.last_pod_write.is_some()).await;
        to_put = to_put.max(shared.lock().traffic.last_pod_write.map_or(0.0, |at| (at - joined).as_secs_f64()));
        wait_for("the node to run", 120, &log, Duration::from_millis(2), async || shared.lock().agents[number].running).await;
        let runs = Instant::now();
        wait_for("the new agent to be seen as proven", 300, &log, Duration::from_millis(100), async || {
            shared.lock().all_proven()
                && metric("private_registry_agents{state=\"trusted\",role=\"private\"} ").await == Some((number + 1) as f64)
        })
        .await;
        to_proven = to_proven.max(runs.elapsed().as_secs_f64());
        wait_for("it to be calm", 300, &log, Duration::from_millis(100), converged).await;
        let (seconds, cpu, bytes) = meter.read(&shared, &controller);
        (join_cpu, join_bytes) = (join_cpu + cpu - idle_share * seconds, join_bytes + bytes - idle_rate * seconds);
        sleep(Duration::from_secs(1)).await;
    }

    // A node fails, and recovers.
    let meter = Meter::start(&shared, &controller);
    if let Some(node) = &mut shared.lock().agents[agents / 2].status {
        node.failing = true;
    }
    let failed = "private_registry_agents{state=\"failed\",role=\"private\"} ";
    let seen = wait_for("the failure to be seen", 900, &log, every, async || metric(failed).await == Some(1.0)).await.as_secs_f64();
    if let Some(node) = &mut shared.lock().agents[agents / 2].status {
        node.failing = false;
    }
    wait_for("its end to be seen", 300, &log, every, converged).await;
    let (seconds, cpu, bytes) = meter.read(&shared, &controller);
    let change = (cpu - idle_share * seconds, bytes - idle_rate * seconds);

    // An agent is lost.
    let meter = Meter::start(&shared, &controller);
    let left = shared.lock().agents.len() - 1;
    shared.lock().lose(left);
    let trusted = "private_registry_agents{state=\"trusted\",role=\"private\"} ";
    let gone = wait_for("the loss to be seen", 900, &log, every, async || metric(trusted).await == Some(left as f64)).await.as_secs_f64();
    let (seconds, cpu, bytes) = meter.read(&shared, &controller);
    let leave = (cpu - idle_share * seconds, bytes - idle_rate * seconds);

    // Another CA.
    sleep(Duration::from_secs(3)).await;
    let before = shared.lock().traffic.pod_writes;
    let meter = Meter::start(&shared, &controller);
    if let Some(job) = shared.lock().jobs.get_mut("private-registry.rotate") {
        job.2.push("rotation".into());
    }
    let certificates = "private_registry_ca_certificates ";
    wait_for("two CAs", 120, &log, every, async || metric(certificates).await == Some(2.0)).await;
    wait_for("one CA", 900, &log, every, async || metric(certificates).await == Some(1.0) && converged().await).await;
    let (rotation, rotation_cpu, _) = meter.read(&shared, &controller);
    if let Some(job) = shared.lock().jobs.get_mut("private-registry.rotate") {
        job.2.clear();
    }
    let redeployed = shared.lock().traffic.pod_writes - before;

    // Nodes fetch the program, which each does once.
    const DOWNLOADS: usize = 200;
    let sha256 = sha256_hex(&fs::read(program).unwrap());
    let meter = Meter::start(&shared, &controller);
    for _ in 0..DOWNLOADS {
        let url = format!("http://{FIRST}:{CONTROLLER_PORT}/artifact/{sha256}/private-registry");
        let mut answer = reqwest::get(url).await.unwrap().error_for_status().unwrap();
        while answer.chunk().await.unwrap().is_some() {}
    }
    let (seconds, cpu, _) = meter.read(&shared, &controller);
    let download_cpu = (cpu - idle_share * seconds) / DOWNLOADS as f64;
    let (peak_at_all, resident) = controller.memory();
    eprintln!("{agents}: {}", traffic(&shared));
    let per_join = |sum: f64| sum / JOINS as f64;
    vec![
        format!("{agents}"),
        format!("{pods}"),
        format!("{alone:.0}"),
        format!("{total:.1}"),
        format!("{:+.1} %", (total / alone - 1.0) * 100.0),
        format!("{converging:.1}"),
        format!("{peak:.0}"),
        format!("{:.2} %", idle_share * 100.0),
        format!("{:.1}", idle_rate * 60.0 / agents as f64 / 1000.0),
        format!("{:.0}", to_put * 1000.0),
        format!("{to_proven:.1}"),
        format!("{:.0} / {:.0}", per_join(join_cpu) * 1000.0, per_join(join_bytes) / 1000.0),
        format!("{seen:.1}"),
        format!("{:.0} / {:.0}", change.0 * 1000.0, change.1 / 1000.0),
        format!("{gone:.1}"),
        format!("{:.0} / {:.0}", leave.0 * 1000.0, leave.1 / 1000.0),
        format!("{rotation:.1}"),
        format!("{rotation_cpu:.1}"),
        format!("{redeployed}"),
        format!("{:.1}", download_cpu * 1000.0),
        format!("{peak_at_all:.0}, {resident:.0}"),
    ]
}

/// Long enough for several looks at everything.
fn idle_seconds(agents: usize) -> u64 {
    if agents > 3000 { 260 } else { 60 }
}

const ROWS: [&str; 21] = [
    "agents",
    "node pods",
    "Marathon from the first order to the last node running, s",
    "all proven and seen, s",
    "ours on top",
    "CPU until then, s",
    "peak memory until then, MiB",
    "CPU when idle, of a core",
    "KB read when idle, per agent and minute",
    "a join: event to PUT, ms (worst of 40)",
    "a join: running to seen as proven, s (worst of 40)",
    "a join: CPU ms / KB",
    "a failure is seen after, s",
    "a failure and its end: CPU ms / KB",
    "a loss is seen after, s",
    "a loss: CPU ms / KB",
    "a rotation, s",
    "a rotation: CPU, s",
    "a rotation: pods written",
    "a download of the program: CPU ms",
    "memory: peak at all, and at the end, MiB",
];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(program) = arguments.next() else {
        return println!("ci/bench scale says which program is measured, and with how many agents.");
    };
    let sizes: Vec<usize> = arguments.map(|size| size.parse().unwrap()).collect();
    let fixture = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mesos-1.11.0/slaves.json")).unwrap();
    let mut slave: Value = serde_json::from_str::<Value>(&fixture).unwrap()["slaves"][0].clone();
    slave["id"] = json!("192f08a5-0564-47d3-8737-68295b795170-S@NUMBER@");
    slave["hostname"] = json!("@HOST@");
    slave["pid"] = json!("slave(1)@@HOST@:5051");
    (slave["resources"]["cpus"], slave["resources"]["mem"], slave["resources"]["disk"]) = (json!(4.0), json!(14_000.0), json!(35_000.0));
    slave["used_resources"]["cpus"] = json!("@USED@");
    slave["active"] = json!(true);
    let slave = slave.to_string();
    let program = Path::new(&program).canonicalize().unwrap();
    let mut columns = vec![ROWS.map(String::from).to_vec()];
    for agents in sizes {
        let dir = tempfile::tempdir().unwrap();
        let (path, program, slave) = (dir.path().to_owned(), program.clone(), slave.clone());
        let measured = std::thread::spawn(move || {
            isolate(&path).unwrap_or_else(|error| panic!("{error}"));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(measure(&path, &program, agents, slave))
        });
        columns.push(measured.join().unwrap());
    }
    println!();
    for row in 0..ROWS.len() {
        let cells: Vec<&str> = columns.iter().map(|column| column[row].as_str()).collect();
        println!("| {} |", cells.join(" | "));
        if row == 0 {
            println!("|{}", "---|".repeat(cells.len()));
        }
    }
}
