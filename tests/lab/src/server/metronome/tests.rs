//! Replays what the real Metronome answered, and lets jobs run on machines that only pretend.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::body::to_bytes;
use serde_json::{Value, json};

use super::runs::advance_at;
use super::*;
use crate::server::pretence::Pretence;
use crate::server::state::{Framework, Options};
use crate::server::{Role, Shared, agents, tick};
use crate::task::{Command, KillOrder, TaskSpec, TaskState, TaskStatus};

/// Recordings that are not replayed, by the beginning of their names.
const SKIPPED: &[(&str, &str)] = &[
    ("076-v0-", "nobody sends /v0/scheduled-jobs: neither the package nor the CLI"),
    ("077-v0-", "as before"),
    ("079-v0job-", "of the job made by those"),
    ("078-v1-scheduled-jobs-absent", "the lab answers 501 to what it does not know, so that the journal shows it"),
    ("145-no-such-route", "as before"),
    ("147-method-not-allowed", "as before"),
];

struct Cluster {
    dir: PathBuf,
    host: Arc<Pretence>,
    shared: SharedState,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

impl Cluster {
    /// One private agent, 10.0.0.1, and a public one.
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("lab-metronome-{}", uuid::Uuid::new_v4()));
        let host = Arc::new(Pretence { dir: dir.clone(), launched: Mutex::default() });
        let shared = Shared::open(&dir, host.clone(), Options::default()).unwrap();
        shared.change(|state| {
            agents::register(state, Ipv4Addr::new(10, 0, 0, 1), Role::Private);
            agents::register(state, Ipv4Addr::new(10, 0, 0, 2), Role::Public);
        });
        Self { dir, host, shared }
    }

    /// The server process ends and comes back.
    fn restart(&mut self) {
        self.shared = Shared::open(&self.dir, self.host.clone(), Options::default()).unwrap();
    }

    async fn send(&self, method: &str, target: &str, headers: &[(&'static str, &str)], body: &str) -> (u16, String, String) {
        let mut request = axum::http::Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::from(body.to_owned())).unwrap();
        let response = tower::ServiceExt::oneshot(router(self.shared.clone()), request).await.unwrap();
        let media_type = response.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, media_type, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Sends JSON and expects some.
    async fn call(&self, method: &str, target: &str, body: Value) -> (u16, Value) {
        let (status, _, text) = self.send(method, target, &[("content-type", "application/json")], &body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn get(&self, target: &str) -> Value {
        self.call("GET", target, Value::Null).await.1
    }

    /// Makes a job out of what its `run` has besides the resources, and begins a run, whose id it answers.
    async fn run(&self, id: &str, extra: Value) -> String {
        assert_eq!(self.call("POST", "/v1/jobs", job(id, extra)).await.0, 201);
        self.run_again(id).await
    }

    async fn run_again(&self, id: &str) -> String {
        let (status, run) = self.call("POST", &format!("/v1/jobs/{id}/runs"), Value::Null).await;
        assert_eq!(status, 201);
        run["id"].as_str().unwrap().to_owned()
    }

    fn tick_at(&self, at: f64) {
        self.shared.change(|state| advance_at(state, &*self.host, at));
    }

    fn tick(&self) {
        self.tick_at(now());
    }

    /// The executor of the run's task reports, and Metronome hears it.
    fn report(&self, run: &str, task_state: TaskState) {
        self.shared.change(|state| {
            let task = state.tasks.values_mut().find(|task| task.owner == run && !task.state.is_terminal()).unwrap();
            task.enter(task_state, now());
        });
        self.tick();
    }

    /// Ids of tasks that have not ended.
    fn tasks(&self) -> Vec<String> {
        self.shared.read(|state| state.tasks.keys().cloned().collect())
    }

    async fn history(&self, job: &str) -> Value {
        self.get(&format!("/v1/jobs/{job}?embed=history")).await["history"].clone()
    }
}

fn job(id: &str, extra: Value) -> Value {
    let mut job = json!({ "id": id, "run": { "cmd": "true", "cpus": 0.1, "mem": 32, "disk": 0 } });
    for (key, value) in extra.as_object().into_iter().flatten() {
        job["run"][key] = value.clone();
    }
    job
}

/// A recorded message: first line, headers, body.
fn message(file: &Path) -> (String, Vec<(String, String)>, String) {
    let text = std::fs::read_to_string(file).unwrap().replace("\r\n", "\n");
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    let mut lines = head.lines().map(str::to_owned);
    let first = lines.next().unwrap();
    let headers = lines.filter_map(|line| line.split_once(": ").map(|(key, value)| (key.to_lowercase(), value.to_owned())));
    (first, headers.collect(), body.to_owned())
}

/// Without what differs by nature: times, and the unique part of task ids. Jobs are listed in no order.
fn normal(body: &str) -> Value {
    let times = regex_lite::Regex::new(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000").unwrap();
    let uuids = regex_lite::Regex::new(r"[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}").unwrap();
    let text = uuids.replace_all(&times.replace_all(body, "TIME"), "UUID").into_owned();
    match serde_json::from_str(&text) {
        Ok(Value::Array(mut items)) => {
            items.retain(|item| item["id"] != "v0job");
            items.sort_by_key(|item| item["id"].to_string());
            Value::Array(items)
        }
        Ok(value) => value,
        Err(_) => Value::String(text),
    }
}

/// What happened between recordings: the driver of the recorded Metronome worked meanwhile.
fn meanwhile(cluster: &Cluster, before: &str, run: &str) {
    // The lab runs no containers. The run has a copy of its job, so that without the container it can go on, unseen.
    let uncontain = || {
        cluster.shared.change(|state| {
            let spec = &mut state.metronome.runs.get_mut(run).unwrap().spec.run;
            (spec.docker, spec.ucr) = (None, None);
            spec.volumes.clear();
        });
        cluster.tick();
    };
    match before {
        "021-run-poll-02" => {
            uncontain();
            cluster.report(run, TaskState::Starting);
        }
        "026-run-poll-04" | "040-run-long-active" => {
            cluster.tick();
            cluster.report(run, TaskState::Running);
        }
        "029-run-poll-07" => cluster.report(run, TaskState::Finished),
        "036-run-fail-after" => {
            cluster.tick();
            cluster.report(run, TaskState::Failed);
        }
        "052-run-stuck-get" => cluster.tick(),
        // Its maxLaunchDelay is 5 s.
        "057-run-stuck2-get-after-maxLaunchDelay" => cluster.tick_at(now() + 12.0),
        "150-job-ucr-history" => {
            uncontain();
            cluster.report(run, TaskState::Finished);
        }
        _ => {}
    }
}

#[tokio::test]
async fn every_recording_is_answered_as_the_real_metronome_did() {
    let cluster = Cluster::new();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/metronome");
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().unwrap().strip_suffix(".req.http").map(str::to_owned))
        .collect();
    names.sort();
    // Recorded ids of runs, and those of the lab.
    let mut runs: Vec<(String, String)> = Vec::new();
    let (mut replayed, mut differences) = (0, Vec::new());
    for name in names {
        if SKIPPED.iter().any(|(begin, _)| name.starts_with(begin)) {
            continue;
        }
        meanwhile(&cluster, &name, runs.last().map(|(_, own)| own.as_str()).unwrap_or_default());
        let (request, headers, body) = message(&dir.join(format!("{name}.req.http")));
        let mut words = request.split(' ');
        let (method, mut target) = (words.next().unwrap(), words.next().unwrap().to_owned());
        for (recorded, own) in &runs {
            target = target.replace(recorded, own);
        }
        let content_type = headers.iter().find(|(key, _)| key == "content-type").map(|(_, value)| ("content-type", value.as_str()));
        let answer = cluster.send(method, &target, content_type.as_slice(), &body).await;

        let (first, headers, body) = message(&dir.join(format!("{name}.resp.http")));
        let status: u16 = first.split(' ').nth(1).unwrap().parse().unwrap();
        let media_type = headers.iter().find(|(key, _)| key == "content-type").map(|(_, value)| value.clone()).unwrap_or_default();
        if name.contains("-run-") && method == "POST" && status == 201 {
            let id = |body: &str| serde_json::from_str::<Value>(body).unwrap()["id"].as_str().unwrap().to_owned();
            runs.push((id(&body), id(&answer.2)));
        }
        let mut own = answer.2.replace(&MASTER.to_string(), "127.0.0.1");
        for (recorded, mine) in &runs {
            own = own.replace(mine, recorded);
        }
        let (recorded, own) = ((status, media_type, normal(&body)), (answer.0, answer.1, normal(&own)));
        if recorded != own {
            differences.push(format!("{name}:\n  recorded {recorded:?}\n  lab      {own:?}"));
        }
        // Whoever recorded the probes deleted what was made by them.
        if name.contains("-probe-") {
            let id = serde_json::from_str::<Value>(&answer.2).unwrap_or_default()["id"].as_str().unwrap_or_default().to_owned();
            cluster.shared.change(|state| state.metronome.jobs.remove(&id));
        }
        replayed += 1;
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(replayed > 140, "only {replayed}");
}

#[tokio::test]
async fn a_run_that_succeeds_is_in_the_history_and_no_longer_to_be_found() {
    let cluster = Cluster::new();
    let run = cluster.run("a.b", json!({ "env": { "A": "b" }, "artifacts": [{ "uri": "http://x/y", "executable": true }] })).await;
    let path = format!("/v1/jobs/a.b/runs/{run}");
    assert_eq!(cluster.get(&path).await["status"], "INITIAL");
    cluster.tick();
    assert_eq!(cluster.get(&path).await["status"], "INITIAL", "staging shows nothing");
    cluster.shared.read(|state| {
        let task = state.tasks.values().next().unwrap();
        assert_eq!((task.name.as_str(), task.framework), (format!("{run}.b.a").as_str(), Framework::Metronome));
        assert!(task.id.starts_with(&format!("a_b_{run}.")) && task.agent == Ipv4Addr::new(10, 0, 0, 1), "{task:?}");
        let spec = &state.launches[0].spec;
        assert!(matches!(&spec.command, Some(Command::Shell(line)) if line == "true"));
        assert_eq!((spec.env["A"].as_str(), spec.env["HOST"].as_str()), ("b", "10.0.0.1"));
        assert_eq!(spec.env["MARATHON_APP_ID"], format!("/a/b/{run}"));
        assert_eq!((spec.grace_seconds, spec.user.as_str()), (3, "root"));
        assert!(spec.artifacts[0].executable && spec.artifacts[0].extract);
    });
    cluster.report(&run, TaskState::Running);
    assert_eq!(cluster.get(&path).await["tasks"][0]["status"], "TASK_RUNNING");
    cluster.report(&run, TaskState::Finished);
    assert_eq!(cluster.call("GET", &path, Value::Null).await.0, 404);
    let history = cluster.history("a.b").await;
    assert_eq!((&history["successCount"], &history["failureCount"]), (&json!(1), &json!(0)));
    assert_eq!(history["successfulFinishedRuns"][0]["id"], run.as_str());
    assert!(cluster.tasks().is_empty() && cluster.shared.read(|state| state.completed.len()) == 1);
}

#[tokio::test]
async fn the_ticker_hands_the_task_to_an_executor_and_hears_its_end() {
    let cluster = Cluster::new();
    let run = cluster.run("x", Value::Null).await;
    tick(&cluster.shared);
    let sandbox = cluster.host.launched.lock().unwrap().first().cloned().unwrap().0;
    let spec: TaskSpec = serde_json::from_slice(&std::fs::read(sandbox.join("task.json")).unwrap()).unwrap();
    assert_eq!(spec.env["MESOS_TASK_ID"], spec.id);
    let status = TaskStatus {
        state: TaskState::Finished,
        healthy: None,
        consecutive_failures: 0,
        message: None,
        since: now(),
        started: Some(now()),
        executor_pid: 1,
        executor_start: 1,
    };
    std::fs::write(sandbox.join("status.json"), serde_json::to_vec(&status).unwrap()).unwrap();
    tick(&cluster.shared);
    assert_eq!(cluster.history("x").await["successfulFinishedRuns"][0]["tasks"], json!([spec.id]));
    assert_eq!(cluster.call("GET", &format!("/v1/jobs/x/runs/{run}"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_failing_run_fails_at_once_or_is_tried_again_until_its_deadline() {
    let cluster = Cluster::new();
    let run = cluster.run("once", Value::Null).await;
    cluster.tick();
    cluster.report(&run, TaskState::Failed);
    assert_eq!(cluster.history("once").await["failureCount"], 1);

    let restart = json!({ "restart": { "policy": "ON_FAILURE", "activeDeadlineSeconds": 100 } });
    let run = cluster.run("again", restart).await;
    cluster.tick();
    let first = cluster.tasks();
    cluster.report(&run, TaskState::Failed);
    let second = cluster.tasks();
    assert!(first.len() == 1 && second.len() == 1 && first != second);
    cluster.shared.change(|state| state.tasks.values_mut().for_each(|task| task.enter(TaskState::Failed, now())));
    cluster.tick_at(now() + 101.0);
    let history = cluster.history("again").await;
    assert_eq!(history["failedFinishedRuns"][0]["tasks"], json!([first[0], second[0]]));
}

#[tokio::test]
async fn a_stopped_run_has_failed_while_its_task_still_ends() {
    let cluster = Cluster::new();
    let run = cluster.run("long", json!({ "taskKillGracePeriodSeconds": 7 })).await;
    cluster.tick();
    cluster.report(&run, TaskState::Running);
    let (status, stopped) = cluster.call("POST", &format!("/v1/jobs/long/runs/{run}/actions/stop"), Value::Null).await;
    assert_eq!((status, &stopped["status"]), (200, &json!("FAILED")));
    assert_eq!(cluster.get("/v1/jobs/long/runs").await, json!([]));
    cluster.tick();
    let (sandbox, kill) =
        cluster.shared.read(|state| state.tasks.values().next().map(|task| (task.sandbox.clone(), task.kill.clone()))).unwrap();
    assert_eq!(kill.unwrap().grace_seconds, 7);
    assert!(serde_json::from_slice::<KillOrder>(&std::fs::read(sandbox.join("kill.json")).unwrap()).is_ok());
    cluster.report(&run, TaskState::Killed);
    assert!(cluster.tasks().is_empty());
    assert_eq!(cluster.history("long").await["failureCount"], 1);
}

#[tokio::test]
async fn a_run_fails_with_its_agent() {
    let cluster = Cluster::new();
    let run = cluster.run("x", Value::Null).await;
    cluster.tick();
    cluster.report(&run, TaskState::Running);
    cluster.shared.change(|state| state.tasks.values_mut().for_each(|task| task.unreachable = true));
    cluster.tick();
    let history = cluster.history("x").await;
    assert_eq!(history["failedFinishedRuns"][0]["id"], run.as_str());
}

#[tokio::test]
async fn a_schedule_fires_once_per_minute_mark_and_forbid_does_not_overlap() {
    let cluster = Cluster::new();
    let schedule = |policy: &str, enabled| json!({ "id": "every", "cron": "* * * * *", "concurrencyPolicy": policy, "enabled": enabled });
    cluster.call("POST", "/v1/jobs", job("x", Value::Null)).await;
    cluster.call("POST", "/v1/jobs/x/schedules", schedule("ALLOW", true)).await;
    let due = cluster.shared.read(|state| state.metronome.jobs["x"].due).unwrap();
    assert!(due % 60.0 == 0.0 && due > now() && due <= now() + 60.0);
    for (seconds, runs) in [(-0.1, 0), (0.0, 1), (0.1, 1), (59.9, 1), (60.0, 2), (119.0, 2)] {
        cluster.tick_at(due + seconds);
        assert_eq!(cluster.shared.read(|state| state.metronome.runs.len()), runs, "{seconds} s after the mark");
    }
    let set = async |schedule| {
        cluster.call("PUT", "/v1/jobs/x/schedules/every", schedule).await;
        cluster.tick_at(due + 240.0);
        cluster.shared.read(|state| state.metronome.runs.len())
    };
    assert_eq!(set(schedule("FORBID", true)).await, 2, "two are active");
    assert_eq!(set(schedule("ALLOW", false)).await, 2);
    assert_eq!(set(schedule("ALLOW", true)).await, 3);
}

#[tokio::test]
async fn a_run_waits_for_room_and_only_a_scheduled_one_gives_up() {
    let cluster = Cluster::new();
    cluster.run("big", json!({ "cpus": 4 })).await;
    cluster.tick();
    let run = cluster.run("waits", json!({ "maxLaunchDelay": 1 })).await;
    cluster.call("POST", "/v1/jobs/waits/schedules", json!({ "id": "every", "cron": "* * * * *", "startingDeadlineSeconds": 60 })).await;
    let due = cluster.shared.read(|state| state.metronome.jobs["waits"].due).unwrap();
    cluster.tick_at(due);
    assert_eq!(cluster.get("/v1/queue").await[0]["runs"].as_array().map(Vec::len), Some(2));
    cluster.call("DELETE", "/v1/jobs/waits/schedules/every", Value::Null).await;
    cluster.tick_at(due + 61.0);
    assert_eq!(cluster.get("/v1/queue").await, json!([{ "jobId": "waits", "runs": [{ "runId": run }] }]));
    assert_eq!(cluster.history("waits").await["failureCount"], 1);
    let big = cluster.shared.read(|state| state.tasks.values().next().map(|task| task.owner.clone())).unwrap();
    cluster.report(&big, TaskState::Finished);
    cluster.tick();
    assert!(cluster.tasks()[0].starts_with(&format!("waits_{run}.")), "there is room now");
}

#[tokio::test]
async fn what_the_lab_cannot_do_fails_and_what_metronome_swallows_is_told() {
    let cluster = Cluster::new();
    cluster.run("contained", json!({ "docker": { "image": "busybox" } })).await;
    let volume = json!({ "volumes": [{ "containerPath": "a", "hostPath": "/etc", "mode": "RO" }] });
    cluster.run("volumes", volume).await;
    cluster.tick();
    cluster.tick();
    let violations = cluster.shared.read(|state| state.violations.iter().map(|v| (v.server.clone(), v.id.clone())).collect::<Vec<_>>());
    let of = |id: &str| ("metronome".to_owned(), id.to_owned());
    assert_eq!(violations.len(), 2, "{violations:?}");
    assert!(violations.contains(&of("contained")) && violations.contains(&of("volumes")));
    assert_eq!(cluster.history("contained").await["failureCount"], 1);
    assert!(cluster.tasks()[0].starts_with("volumes_"));
}

#[tokio::test]
async fn jobs_runs_and_history_survive_a_restart() {
    let mut cluster = Cluster::new();
    let run = cluster.run("x", json!({ "env": { "A": "b" }, "restart": { "policy": "ON_FAILURE" } })).await;
    cluster.tick();
    cluster.report(&run, TaskState::Finished);
    let run = cluster.run_again("x").await;
    cluster.tick();
    cluster.report(&run, TaskState::Running);
    cluster.call("POST", "/v1/jobs/x/schedules", json!({ "id": "ab", "cron": "0 0 1 1 *" })).await;
    let before = cluster.get("/v1/jobs/x?embed=activeRuns,history").await;
    assert_eq!((before["history"]["successCount"].as_u64(), before["activeRuns"].as_array().map(Vec::len)), (Some(1), Some(1)));
    cluster.restart();
    assert_eq!(cluster.get("/v1/jobs/x?embed=activeRuns,history").await, before);
    cluster.report(&run, TaskState::Finished);
    assert_eq!(cluster.history("x").await["successCount"], 2);
}

#[tokio::test]
async fn dependencies_may_not_go_in_circles() {
    let cluster = Cluster::new();
    let with = |id: &str, parents: &[&str]| {
        let mut job = job(id, Value::Null);
        job["dependencies"] = parents.iter().map(|parent| json!({ "id": parent })).collect();
        job
    };
    assert_eq!(cluster.call("POST", "/v1/jobs", with("a", &[])).await.0, 201);
    assert_eq!(cluster.call("POST", "/v1/jobs", with("b", &["a"])).await.0, 201);
    let (status, answer) = cluster.call("PUT", "/v1/jobs/a", with("a", &["b"])).await;
    assert_eq!((status, &answer["message"]), (422, &json!("Dependencies have a cycle.")));
}
