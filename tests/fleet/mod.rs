//! A fleet of agents that are played: the lab's servers, node and registry tasks that are values of this process, and the controller
//! and the runs of jobs as the real processes that they are. All of it lives in namespaces of its own.

pub(crate) mod node;
pub(crate) mod process;
pub(crate) mod registry;
pub(crate) mod world;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use lab::server::simulation::{Ground, Layer, isolate, serve};
use lab::server::{Host, Network, Options, Pose, Role, Shared, SharedState, Watched, agents};
use lab::task::{Command, Secrets, TaskSpec, TaskState, TaskStatus};
use nix::sys::signal::Signal;
use private_registry::protocol::env;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::support::{ADMIN, made};
use process::{Process, Start, Watch};
use world::World;

/// The controller's agent, which is the registry's as well.
pub(crate) const HOME: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Where servers are asked by whoever is not observed.
const MARATHON: &str = "http://192.168.1.69:18080";
const METRONOME: &str = "http://192.168.1.69:19000";

/// Whom a request is for: what is laid around a played task finds it among the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct TaskId(pub(crate) String);

/// What is laid around the servers and the played tasks.
pub(crate) type Around = Layer;

/// Runs `work` on a thread in namespaces of its own, with `dir` for all that it leaves.
pub(crate) fn isolated<T: Send>(dir: &Path, work: impl AsyncFnOnce() -> T + Send) -> T {
    let on_thread = || {
        isolate(dir).unwrap_or_else(|error| panic!("{error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work())
    };
    std::thread::scope(|scope| scope.spawn(on_thread).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// See the module. It is what the lab's servers see of their machines.
pub(crate) struct Fleet {
    dir: PathBuf,
    program: PathBuf,
    ground: Ground,
    runtime: Handle,
    around: Around,
    http: reqwest::Client,
    watch: Option<Arc<Watch>>,
    pub(crate) world: Arc<World>,
    tasks: Mutex<BTreeMap<String, Arc<Task>>>,
}

struct Task {
    role: String,
    status: Mutex<TaskStatus>,
    kind: Mutex<Kind>,
    /// Since when it was told to end.
    told: Mutex<Option<Instant>>,
}

enum Kind {
    /// Its program is being fetched.
    Fetching,
    Process(Process),
    Played {
        work: Vec<AbortHandle>,
        end: Box<dyn Fn() + Send>,
    },
    Ended,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Task {
    fn enter(&self, state: TaskState, message: Option<String>) {
        let mut status = lock(&self.status);
        if !status.state.is_terminal() {
            (status.state, status.since, status.message) = (state, now(), message);
            if state == TaskState::Running {
                status.started = Some(now());
            }
        }
    }
}

impl Fleet {
    /// Kills the process in this role, if there is one, and waits until it has ended.
    pub(crate) async fn kill(&self, role: &str) -> bool {
        let of_role =
            |task: &&Arc<Task>| task.role == role && matches!(&*lock(&task.kind), Kind::Process(process) if process.ended().is_none());
        let found: Vec<Arc<Task>> = lock(&self.tasks).values().filter(of_role).cloned().collect();
        for task in &found {
            if let Kind::Process(process) = &*lock(&task.kind) {
                process.signal(Signal::SIGKILL);
            }
            while matches!(&*lock(&task.kind), Kind::Process(process) if process.ended().is_none()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        !found.is_empty()
    }

    fn start(self: &Arc<Self>, agent: Ipv4Addr, sandbox: PathBuf, spec: TaskSpec, task: Arc<Task>) {
        let fleet = self.clone();
        self.runtime.spawn(async move {
            if let Err(why) = fleet.begin(agent, &sandbox, &spec, &task).await {
                *lock(&task.kind) = Kind::Ended;
                task.enter(TaskState::Failed, Some(why));
            }
        });
    }

    async fn begin(self: &Arc<Self>, agent: Ipv4Addr, sandbox: &Path, spec: &TaskSpec, task: &Arc<Task>) -> Result<(), String> {
        if task.role != "controller" {
            let uri = spec.artifacts.first().map(|artifact| artifact.uri.as_str()).ok_or("it fetches no program")?;
            let sha256 = spec.env.get(env::SHA256).ok_or("it knows no digest of its program")?;
            // The one program that the package itself brings is fetched from where the package is.
            if !uri.starts_with("http://universe.lab") {
                World::is_program(&self.http, uri, sha256).await.map_err(|why| format!("Failed to fetch {why}"))?;
            }
        }
        if task.role != "node" && task.role != "registry" {
            let watch = self.watch.clone().filter(|_| task.role == "controller");
            let start = Start { program: &self.program, role: &task.role, env: spec.env.clone(), sandbox, watch, contains: false };
            let process = Process::start(start).map_err(|error| error.to_string())?;
            *lock(&task.kind) = Kind::Process(process);
            task.enter(TaskState::Running, None);
            if let Some(port) = spec.env.get("PORT0") {
                let url = format!("http://{agent}:{port}/health");
                tokio::spawn(check(self.http.clone(), url, task.clone()));
            }
            return Ok(());
        }
        let (router, port, work, end): (Router, u16, _, Box<dyn Fn() + Send>) = if task.role == "node" {
            let node = node::Node::new(self.world.clone(), agent, spec)?;
            let port = spec.env.get("ENDPOINT_STATUS").and_then(|port| port.parse().ok()).ok_or("it has no port")?;
            ((self.around)("node", node.router()), port, Some(tokio::spawn(node.converge())), Box::new(|| {}))
        } else {
            let registry = registry::Registry::new(self.world.clone(), agent, spec)?;
            let port = spec.docker.as_ref().and_then(|docker| docker.port_mappings.get(1)).ok_or("it has no port")?.host_port;
            ((self.around)("registry", registry.router()), port, None, Box::new(move || registry.end()))
        };
        let listener = TcpListener::bind((agent, port)).await.map_err(|error| format!("{agent}:{port}: {error}"))?;
        let router = router.layer(axum::Extension(TaskId(spec.id.clone())));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let work = work.iter().map(tokio::task::JoinHandle::abort_handle).chain([server.abort_handle()]).collect();
        *lock(&task.kind) = Kind::Played { work, end };
        task.enter(TaskState::Running, None);
        lock(&task.status).healthy = Some(true);
        Ok(())
    }

    /// A played task ends of itself, at once.
    pub(crate) fn fail(&self, id: &str) {
        let Some(task) = lock(&self.tasks).get(id).cloned() else { return };
        if let Kind::Played { work, end } = std::mem::replace(&mut *lock(&task.kind), Kind::Ended) {
            end();
            // Last, for what calls may be one of them.
            task.enter(TaskState::Failed, Some("Command terminated with signal Killed".into()));
            work.iter().for_each(AbortHandle::abort);
        }
    }

    /// Ends a task as its executor would.
    fn end(task: &Task, grace: Duration) {
        let mut told = lock(&task.told);
        let first = told.is_none();
        let since = *told.get_or_insert_with(Instant::now);
        let mut kind = lock(&task.kind);
        match &*kind {
            Kind::Process(process) if first => process.signal(Signal::SIGTERM),
            Kind::Process(process) if since.elapsed() >= grace => process.signal(Signal::SIGKILL),
            Kind::Played { work, end } => {
                work.iter().for_each(AbortHandle::abort);
                end();
                *kind = Kind::Ended;
                drop(kind);
                task.enter(TaskState::Killed, None);
            }
            _ => {}
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What still runs must not outlive its namespaces.
        for task in lock(&self.fleet.tasks).values() {
            if let Kind::Process(process) = &*lock(&task.kind) {
                process.signal(Signal::SIGKILL);
            }
        }
    }
}

/// What Mesos does with the one health check of an app, without its delay.
async fn check(http: reqwest::Client, url: String, task: Arc<Task>) {
    while !lock(&task.status).state.is_terminal() {
        let answer = http.get(&url).timeout(Duration::from_secs(2)).send().await;
        let is_well = answer.is_ok_and(|answer| answer.status().is_success());
        if is_well {
            lock(&task.status).healthy = Some(true);
        }
        tokio::time::sleep(Duration::from_millis(if is_well { 1000 } else { 50 })).await;
    }
}

/// [`Fleet`] behind an `Arc`, as tasks need it.
pub(crate) struct Machines(pub(crate) Arc<Fleet>);

impl Host for Machines {
    fn add_agent(&self, _: Role, _: Option<u32>) -> Result<Ipv4Addr, String> {
        Err("agents join by their address".to_owned())
    }
    fn stop_agent(&self, _: Ipv4Addr) -> Result<(), String> {
        Ok(())
    }
    fn kill_agent(&self, _: Ipv4Addr) -> Result<(), String> {
        Ok(())
    }
    fn revive_agent(&self, _: Ipv4Addr, _: bool) -> Result<(), String> {
        Ok(())
    }
    fn sandbox_root(&self, agent: Ipv4Addr) -> PathBuf {
        self.0.dir.join("agents").join(agent.to_string())
    }

    fn launch(&self, agent: Ipv4Addr, sandbox: &Path, _: &Secrets) -> Result<(), String> {
        let text = fs::read(sandbox.join("task.json")).map_err(|error| error.to_string())?;
        let spec: TaskSpec = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let role = match &spec.command {
            Some(Command::Shell(line)) => line.split_whitespace().last().unwrap_or_default().to_owned(),
            _ => return Err("it runs no command of ours".to_owned()),
        };
        let status = TaskStatus {
            state: TaskState::Staging,
            healthy: None,
            consecutive_failures: 0,
            message: None,
            since: now(),
            started: None,
            executor_pid: 0,
            executor_start: 0,
        };
        let task = Arc::new(Task { role, status: Mutex::new(status), kind: Mutex::new(Kind::Fetching), told: Mutex::default() });
        lock(&self.0.tasks).insert(spec.id.clone(), task.clone());
        self.0.start(agent, sandbox.to_owned(), spec, task);
        Ok(())
    }

    fn executor_alive(&self, _: &TaskStatus) -> bool {
        true
    }

    fn report(&self, watched: &Watched) -> Option<TaskStatus> {
        let task = lock(&self.0.tasks).get(&watched.id).cloned()?;
        if let Some(order) = &watched.kill {
            Fleet::end(&task, Duration::from_secs(order.grace_seconds));
        }
        let ended = match &*lock(&task.kind) {
            Kind::Process(process) => process.ended(),
            _ => None,
        };
        if let Some(status) = ended {
            let state = match () {
                () if lock(&task.told).is_some() => TaskState::Killed,
                () if status.success() => TaskState::Finished,
                () => TaskState::Failed,
            };
            task.enter(state, Some(format!("Command {status}")));
        }
        let status = lock(&task.status).clone();
        if status.state.is_terminal() {
            lock(&self.0.tasks).remove(&watched.id);
        }
        Some(status)
    }

    fn publish(&self, network: &Network, _: &[Ipv4Addr]) {
        self.0.ground.publish(network);
    }
}

/// A fleet with its servers, and an operator in front of it.
pub(crate) struct Cluster {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) shared: SharedState,
    http: reqwest::Client,
}

impl Cluster {
    /// So many agents from [`HOME`] on; within a runtime of an isolated thread. The package is that of `ci/package`.
    pub(crate) async fn start(dir: &Path, agents: u32, around: Around, watch: Option<Arc<Watch>>) -> Self {
        let packages = made("target/package");
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let fleet = Arc::new(Fleet {
            dir: dir.to_owned(),
            program: packages.join("private-registry"),
            ground: Ground::new(),
            runtime: Handle::current(),
            around: around.clone(),
            http: http.clone(),
            watch,
            world: Arc::default(),
            tasks: Mutex::default(),
        });
        let shared = Shared::in_memory(dir, Arc::new(Machines(fleet.clone())), Options::default(), Pose::open_2_2()).unwrap();
        let cluster = Self { fleet, shared, http };
        (0..agents).for_each(|number| cluster.join(number));
        serve(&cluster.shared, &cluster.fleet.ground, &packages, &around).await.unwrap();
        let repository = json!({ "name": "lab", "uri": "http://universe.lab:8000/repo.json", "index": 0 });
        let mut added = cluster.cosmos("package.repository.add", "package/repository/add", "v1", &repository).await;
        // The names are published with the first tick.
        for _ in 0..50 {
            if added.0 == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            added = cluster.cosmos("package.repository.add", "package/repository/add", "v1", &repository).await;
        }
        assert_eq!(added.0, 200, "{}", added.1);
        cluster
    }

    /// The agent of this number joins.
    pub(crate) fn join(&self, number: u32) {
        let address = Ipv4Addr::from(u32::from(HOME) + number);
        self.shared.change(|state| agents::register(state, address, Role::Private));
    }

    /// A request to Cosmos: status and answer.
    pub(crate) async fn cosmos(&self, call: &str, path: &str, version: &str, body: &Value) -> (u16, Value) {
        let media = |kind: &str, version: &str| format!("application/vnd.dcos.{call}-{kind}+json;charset=utf-8;version={version}");
        let request = self.http.post(format!("{ADMIN}/{path}"));
        let request = request.header("Content-Type", media("request", "v1")).header("Accept", media("response", version));
        self.answer(request.body(body.to_string())).await
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let answer = request.timeout(Duration::from_secs(60)).send().await;
        let Ok(answer) = answer else { return (0, Value::Null) };
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap_or_default();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn at(&self, method: &str, url: String, body: Option<&Value>) -> (u16, Value) {
        let request = self.http.request(method.parse().unwrap(), url).header("Accept", "application/json");
        self.answer(if let Some(body) = body { request.json(body) } else { request }).await
    }

    /// A request to Marathon that nobody observes.
    pub(crate) async fn marathon(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.at(method, format!("{MARATHON}{path}"), body).await
    }

    /// The same to Metronome.
    pub(crate) async fn metronome(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.at(method, format!("{METRONOME}{path}"), body).await
    }

    /// The controller's report; none while it does not answer.
    pub(crate) async fn status(&self) -> Option<Value> {
        let (status, report) = self.at("GET", format!("{ADMIN}/service/private-registry/v1/status"), None).await;
        (status == 200).then_some(report)
    }

    /// `dcos package install private-registry --options=…`
    pub(crate) async fn install(&self, options: &Value) {
        let body = json!({ "packageName": "private-registry", "options": options });
        let (status, answer) = self.cosmos("package.install", "package/install", "v2", &body).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Whether every agent is proven and nothing is left to do.
    pub(crate) async fn is_converged(&self) -> bool {
        self.status().await.is_some_and(|status| status["converged"] == true)
    }
}
