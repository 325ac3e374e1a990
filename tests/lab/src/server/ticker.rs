//! The heartbeat: reads what executors report, moves deployments and runs on, launches and kills, publishes names.

use std::path::Path;
use std::time::Duration;

use super::agents::{end_task, notice_lost};
use super::clock::now;
use super::mesos::task_updated;
use super::state::{Launch, Presence, State, write_atomically};
use super::{Pose, Security, SharedState};
use crate::task::{SecretPlace, Secrets, TaskState, TaskStatus};

/// Seconds in which an executor must have written its first status.
const START_SECONDS: f64 = 20.0;

/// One round.
pub fn tick(shared: &SharedState) {
    let reports = read_reports(shared);
    let launches = shared.change(|state| {
        notice_lost(state);
        for report in reports {
            apply(state, report);
        }
        super::marathon::advance(state, &*shared.host);
        super::metronome::advance(state, &*shared.host);
        let launches = std::mem::take(&mut state.launches);
        if !launches.is_empty() {
            state.touch();
        }
        launches
    });
    let (network, agents) = shared.read(|state| {
        let active = state.agents.values().filter(|agent| agent.presence == Presence::Active).map(|agent| agent.ip).collect::<Vec<_>>();
        (super::marathon::network(state), active)
    });
    shared.host.publish(&network, &agents);
    for launch in launches {
        if let Err(message) = start(shared, &launch) {
            shared.change(|state| end_task(state, &launch.spec.id, TaskState::Failed, &message));
        }
    }
}

/// A round every 100 ms, until the process ends.
pub async fn tick_forever(shared: SharedState) {
    loop {
        let round = shared.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || tick(&round)).await {
            tracing::error!(%error, "tick failed");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What was found in a sandbox.
struct Report {
    task: String,
    status: Option<TaskStatus>,
    alive: bool,
}

fn read_reports(shared: &SharedState) -> Vec<Report> {
    let running: Vec<_> = shared.read(|state| {
        state.tasks.values().filter(|t| !t.state.is_terminal() && !t.unreachable).map(|t| (t.id.clone(), t.sandbox.clone())).collect()
    });
    let read = |(task, sandbox): (String, std::path::PathBuf)| {
        let mut status = read_status(&sandbox);
        let is_alive =
            |status: &Option<TaskStatus>| status.as_ref().is_some_and(|s| s.state.is_terminal() || shared.host.executor_alive(s));
        let mut alive = is_alive(&status);
        if status.is_some() && !alive {
            // It may have written its last word and ended in between.
            status = read_status(&sandbox);
            alive = is_alive(&status);
        }
        Report { task, status, alive }
    };
    running.into_iter().map(read).collect()
}

fn read_status(sandbox: &Path) -> Option<TaskStatus> {
    serde_json::from_slice(&std::fs::read(sandbox.join("status.json")).ok()?).ok()
}

/// Brings the task up to what its executor reports.
fn apply(state: &mut State, report: Report) {
    let at = now();
    let Some(task) = state.tasks.get_mut(&report.task) else { return };
    if task.state.is_terminal() || task.unreachable {
        return;
    }
    let agent_up = state.agents.get(&task.agent).is_some_and(|a| a.presence == Presence::Active && a.id == task.agent_id);
    let Some(status) = report.status else {
        if agent_up && task.staged + START_SECONDS < at {
            end_task(state, &report.task, TaskState::Failed, "Executor did not start");
        }
        return;
    };
    if !report.alive {
        // A dead machine is silent: nothing changes until the master gives it up.
        if agent_up {
            end_task(state, &report.task, TaskState::Failed, "Executor terminated");
        }
        return;
    }
    let health_changed = status.healthy.is_some() && status.healthy != task.healthy;
    let state_changed = status.state != task.state;
    task.consecutive_failures = status.consecutive_failures;
    if !health_changed && !state_changed {
        return;
    }
    if let (true, Some(healthy)) = (health_changed, status.healthy) {
        task.be_healthy(healthy, at);
    }
    task.started = task.started.or(status.started);
    task.message = status.message;
    if state_changed {
        task.enter(status.state, status.since);
    } else {
        task.record(at);
    }
    if let Some(event) = state.tasks.get(&report.task).map(|task| task_updated(state, task)) {
        state.mesos_event(event);
    }
    state.touch();
}

fn start(shared: &SharedState, launch: &Launch) -> Result<(), String> {
    let (sandbox, secrets, with_ca) = shared.read(|state| {
        let sandbox = state.tasks.get(&launch.spec.id).map(|task| task.sandbox.clone()).ok_or_else(|| "task is gone".to_owned())?;
        Ok::<_, String>((sandbox, resolve(state, launch)?, has_ca_in_sandboxes(&state.pose)))
    })?;
    let write = || {
        std::fs::create_dir_all(&sandbox)?;
        if with_ca {
            put_ca(&cluster_ca(&shared.dir), &sandbox)?;
        }
        write_atomically(&sandbox.join("task.json"), &serde_json::to_vec_pretty(&launch.spec)?)
    };
    write().map_err(|error| format!("sandbox: {error}"))?;
    shared.host.launch(launch.agent, &sandbox, &secrets)
}

/// The secrets of a task as they are now.
fn resolve(state: &State, launch: &Launch) -> Result<Secrets, String> {
    let mut secrets = Secrets::default();
    for wanted in &launch.secrets {
        let value = state
            .enterprise
            .secret_for(&launch.reader, &wanted.source)
            .map_err(|why| format!("Failed to resolve secret '{}': {why}", wanted.source))?
            .to_vec();
        match wanted.place.clone() {
            SecretPlace::Env(name) => secrets.env.insert(name, value),
            SecretPlace::File(path) => secrets.files.insert(path, value),
            SecretPlace::PullConfig => secrets.pull_config.replace(value),
        };
    }
    Ok(secrets)
}

/// Strict clusters always had the CA in every sandbox, permissive ones since DC/OS 1.10.
fn has_ca_in_sandboxes(pose: &Pose) -> bool {
    match pose.security {
        Security::Open => false,
        Security::Permissive => !pose.dcos.starts_with("1.9."),
        Security::Strict => true,
    }
}

/// Where the cluster's CA certificate lies as soon as there is one.
pub(crate) fn cluster_ca(dir: &Path) -> std::path::PathBuf {
    dir.join("state/cluster-ca.pem")
}

fn put_ca(from: &Path, sandbox: &Path) -> std::io::Result<()> {
    match std::fs::read(from) {
        Ok(pem) => {
            let folder = sandbox.join(".ssl");
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("ca-bundle.crt"), pem)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::server::pretence::Pretence;
    use crate::server::{NEWEST, Options, Role, Shared, agents};

    struct Cluster {
        dir: tempfile::TempDir,
        host: Arc<Pretence>,
        shared: SharedState,
    }

    impl Cluster {
        fn new(security: Security) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let host = Arc::new(Pretence { dir: dir.path().join("agents"), ..Pretence::default() });
            let shared = Shared::open(dir.path(), host.clone(), Options::default()).unwrap();
            shared.change(|state| {
                state.pose = Pose::of(NEWEST, security).unwrap();
                agents::register(state, Ipv4Addr::new(192, 168, 1, 80), Role::Private);
                for path in ["team/password", "password", "other/password"] {
                    state.enterprise.secrets.insert(path.to_owned(), b"hunter2".to_vec());
                }
            });
            Self { dir, host, shared }
        }

        fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
            let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
            let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
            let shared = self.shared.clone();
            let router =
                if path.starts_with("/v1/") { crate::server::metronome::router(shared) } else { crate::server::marathon::router(shared) };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let answer = router.oneshot(request.body(body).unwrap()).await.unwrap();
                let status = answer.status().as_u16();
                let bytes = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
                (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
            })
        }

        fn create(&self, path: &str, body: &Value) {
            let (status, answer) = self.call("POST", path, body);
            assert_eq!(status, 201, "{answer}");
        }

        /// Rounds enough for a launch, its failure, and its end to be noticed.
        fn run(&self) {
            for _ in 0..3 {
                tick(&self.shared);
            }
        }

        fn launched(&self) -> Vec<(std::path::PathBuf, Secrets)> {
            self.host.launched.lock().unwrap().clone()
        }

        fn user_of_the_only_launch(&self) -> String {
            let launched = self.launched();
            assert_eq!(launched.len(), 1);
            let spec: Value = serde_json::from_slice(&std::fs::read(launched[0].0.join("task.json")).unwrap()).unwrap();
            spec["user"].as_str().unwrap().to_owned()
        }

        fn last_failure(&self, app: &str) -> Value {
            self.call("GET", &format!("/v2/apps{app}"), &Value::Null).1["app"]["lastTaskFailure"].clone()
        }
    }

    fn app(id: &str, source: &str) -> Value {
        json!({
            "id": id, "cmd": "sleep 1", "cpus": 0.1, "mem": 32, "secrets": { "s": { "source": source } },
            "env": { "PASSWORD": { "secret": "s" }, "PLAIN": "text" },
            "container": { "type": "MESOS", "volumes": [{ "containerPath": "keys/password", "secret": "s" }] },
        })
    }

    fn pod(user: Option<&str>) -> Value {
        let resources = json!({ "cpus": 0.1, "mem": 32 });
        let mut pod = json!({
            "id": "/team/pod", "networks": [{ "mode": "host" }], "secrets": { "s": { "source": "team/password" } },
            "environment": { "A": { "secret": "s" }, "B": { "secret": "s" } },
            "volumes": [{ "name": "v", "secret": "s" }],
            "containers": [
                { "name": "one", "exec": { "command": { "shell": "sleep 1" } }, "resources": resources,
                  "environment": { "B": "text" }, "volumeMounts": [{ "name": "v", "mountPath": "password" }] },
                { "name": "two", "exec": { "command": { "shell": "sleep 1" } }, "resources": resources },
            ],
        });
        if let Some(user) = user {
            pod["user"] = user.into();
        }
        pod
    }

    fn job(id: &str, user: Option<&str>) -> Value {
        let mut job = json!({
            "id": id,
            "run": { "cpus": 0.1, "mem": 32, "disk": 0, "cmd": "sleep 1",
                     "secrets": { "s": { "source": "team/password" } }, "env": { "PASSWORD": { "secret": "s" } } },
        });
        if let Some(user) = user {
            job["run"]["user"] = user.into();
        }
        job
    }

    fn keys(map: &std::collections::BTreeMap<String, Vec<u8>>) -> Vec<&str> {
        map.keys().map(String::as_str).collect()
    }

    #[test]
    fn secrets_of_apps_pods_and_jobs_reach_the_executor_and_no_file() {
        let cluster = Cluster::new(Security::Permissive);
        cluster.create("/v2/apps", &app("/team/app", "team/password"));
        cluster.create("/v2/pods", &pod(None));
        cluster.create("/v1/jobs", &job("team.job", None));
        cluster.create("/v1/jobs/team.job/runs", &Value::Null);
        cluster.run();
        let launched = cluster.launched();
        let mut places: Vec<_> = launched.iter().map(|(_, secrets)| (keys(&secrets.env), keys(&secrets.files))).collect();
        places.sort();
        assert_eq!(
            places,
            [
                (vec!["A"], vec!["password"]),
                (vec!["A", "B"], vec![]),
                (vec!["PASSWORD"], vec![]),
                (vec!["PASSWORD"], vec!["keys/password"]),
            ]
        );
        for (sandbox, secrets) in &launched {
            assert!(secrets.env.values().chain(secrets.files.values()).all(|value| value == b"hunter2"));
            let spec = std::fs::read_to_string(sandbox.join("task.json")).unwrap();
            assert!(!spec.contains("hunter2"), "{spec}");
        }
        assert!(!format!("{launched:?}").contains("hunter2"));
        // Bytes are numbers there: each of the store's three secrets once, and none with a task.
        let state = std::fs::read_to_string(cluster.dir.path().join("state/servers.json")).unwrap();
        assert_eq!(state.matches("[104,117,110,116,101,114,50]").count(), 3);
    }

    #[test]
    fn a_secret_that_is_absent_or_in_another_place_or_sealed_fails_the_task_and_is_named() {
        let cluster = Cluster::new(Security::Permissive);
        cluster.create("/v2/apps", &app("/absent", "absent"));
        cluster.create("/v2/apps", &app("/team/app", "other/password"));
        cluster.run();
        assert!(cluster.launched().is_empty());
        for (id, source) in [("/absent", "absent"), ("/team/app", "other/password")] {
            let failure = cluster.last_failure(id);
            assert_eq!(failure["state"], "TASK_FAILED");
            assert!(failure["message"].as_str().unwrap().contains(&format!("'{source}'")), "{failure}");
        }
        cluster.shared.change(|state| state.enterprise.sealed = true);
        cluster.create("/v2/apps", &app("/sealed", "password"));
        cluster.run();
        assert!(cluster.last_failure("/sealed")["message"].as_str().unwrap().contains("'password': the secret store is sealed"));
    }

    #[test]
    fn a_task_without_a_user_is_nobodys_in_strict_mode_and_roots_elsewhere() {
        for (security, user) in [(Security::Open, "root"), (Security::Permissive, "root"), (Security::Strict, "nobody")] {
            let cluster = Cluster::new(security);
            cluster.create("/v2/apps", &json!({ "id": "/a", "cmd": "sleep 1", "cpus": 0.1, "mem": 32 }));
            cluster.run();
            assert_eq!(cluster.user_of_the_only_launch(), user);
        }
    }

    #[test]
    fn strict_mode_refuses_root_until_the_framework_is_granted_it() {
        let cluster = Cluster::new(Security::Strict);
        let allow = |account: &str| {
            cluster.shared.change(|state| {
                let grants = state.enterprise.grants.entry(account.to_owned()).or_default();
                grants.entry("dcos:mesos:master:task:user:root".to_owned()).or_default().insert("create".to_owned());
                // The delay after the failures is over.
                state.marathon.specs.values_mut().for_each(|spec| spec.backoff = Default::default());
            });
        };
        let mut root = app("/team/app", "team/password");
        root["user"] = "root".into();
        cluster.create("/v2/apps", &root);
        cluster.create("/v2/pods", &pod(Some("root")));
        cluster.create("/v1/jobs", &job("team.job", Some("root")));
        cluster.create("/v1/jobs/team.job/runs", &Value::Null);
        cluster.run();
        assert!(cluster.launched().is_empty());
        let failure = cluster.last_failure("/team/app");
        assert_eq!((&failure["state"], &failure["message"]), (&json!("TASK_ERROR"), &json!("Not authorized to launch as user 'root'")));
        let job = cluster.call("GET", "/v1/jobs/team.job?embed=history", &Value::Null).1;
        assert_eq!(job["history"]["failureCount"], 1);
        assert!(cluster.shared.read(|state| state.completed.is_empty()), "Mesos never had them");
        allow("dcos_metronome");
        cluster.create("/v1/jobs/team.job/runs", &Value::Null);
        cluster.run();
        assert_eq!(cluster.launched().len(), 1, "Marathon's account is another");
        allow("dcos_marathon");
        cluster.run();
        assert_eq!(cluster.launched().len(), 4, "the app and both containers of the pod");
    }

    #[test]
    fn one_container_that_may_not_run_refuses_the_whole_pod() {
        let cluster = Cluster::new(Security::Strict);
        let mut pod = pod(None);
        pod["containers"][1]["user"] = "root".into();
        cluster.create("/v2/pods", &pod);
        cluster.run();
        assert!(cluster.launched().is_empty() && cluster.shared.read(|state| state.tasks.is_empty()));
    }

    #[test]
    fn the_cluster_ca_lies_in_the_sandboxes_of_strict_clusters_and_of_permissive_ones_from_1_10() {
        for (security, dcos, there) in [
            (Security::Open, NEWEST, false),
            (Security::Permissive, "1.9.10", false),
            (Security::Permissive, "1.10.0", true),
            (Security::Strict, "1.9.10", true),
        ] {
            let cluster = Cluster::new(security);
            cluster.shared.change(|state| state.pose.dcos = dcos.to_owned());
            std::fs::write(cluster_ca(cluster.dir.path()), "PEM").unwrap();
            cluster.create("/v2/apps", &json!({ "id": "/a", "cmd": "sleep 1", "cpus": 0.1, "mem": 32 }));
            cluster.run();
            let sandbox = &cluster.launched()[0].0;
            assert_eq!(sandbox.join(".ssl/ca-bundle.crt").exists(), there, "{security:?} {dcos}");
        }
    }
}
