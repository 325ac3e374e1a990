//! Deployments and instances, with tasks that only exist on paper.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::journal::{Content, Exchange};
use crate::recordings::{Recordings, UNRECORDED, Verdict};
use crate::server::pretence::Pretence;
use crate::server::state::Options;
use crate::server::{Pose, Role, Security, Shared, SharedState, agents};
use crate::task::TaskState;

struct Cluster {
    shared: SharedState,
    dir: tempfile::TempDir,
}

fn cluster(private: u8) -> Cluster {
    cluster_of(None, private)
}

/// Of another version than the newest; its state is not written to disk then.
fn cluster_of(pose: Option<Pose>, private: u8) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let host = Arc::new(Pretence { dir: dir.path().join("agents"), ..Pretence::default() });
    let shared = match pose {
        None => Shared::open(dir.path(), host, Options::default()).unwrap(),
        Some(pose) => Shared::in_memory(dir.path(), host, Options::default(), pose).unwrap(),
    };
    shared.change(|state| {
        for n in 0..private {
            agents::register(state, ip(n), Role::Private);
        }
    });
    Cluster { shared, dir }
}

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 1, 80 + n)
}

impl Cluster {
    fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, _, body) = self.ask(method, path, body);
        (status, body)
    }

    /// Status, content type and body.
    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Option<String>, Value) {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let router = router(self.shared.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let answer = router.oneshot(request.body(body).unwrap()).await.unwrap();
            let status = answer.status().as_u16();
            let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
            let bytes = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            (status, kind, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
        })
    }

    fn advance(&self) {
        self.shared.change(|state| advance(state, &Pretence { dir: self.dir.path().join("agents"), ..Pretence::default() }));
    }

    /// Every task that was told to end ends, every other one runs and is healthy.
    fn settle(&self) {
        for _ in 0..6 {
            self.advance();
            self.shared.change(|state| {
                for task in state.tasks.values_mut().filter(|task| !task.state.is_terminal()) {
                    let next = if task.kill.is_some() { TaskState::Killed } else { TaskState::Running };
                    task.healthy = (next == TaskState::Running).then_some(true);
                    task.enter(next, 1.0);
                }
            });
        }
        self.advance();
    }

    fn hosts(&self, pod: &str) -> Vec<String> {
        let (_, status) = self.call("GET", &format!("/v2/pods{pod}::status"), &Value::Null);
        let mut hosts: Vec<String> =
            status["instances"].as_array().unwrap().iter().map(|i| i["agentHostname"].as_str().unwrap().to_owned()).collect();
        hosts.sort();
        hosts
    }

    fn deployments(&self) -> usize {
        self.call("GET", "/v2/deployments", &Value::Null).1.as_array().unwrap().len()
    }
}

fn pod(instances: u64, mark: &str) -> Value {
    json!({
        "id": "/node", "user": "root", "environment": { "MARK": mark }, "networks": [{ "mode": "host" }],
        "containers": [{ "name": "c", "exec": { "command": { "shell": "sleep 1" } }, "resources": { "cpus": 0.1, "mem": 32 } }],
        "scaling": { "kind": "fixed", "instances": instances },
        "scheduling": {
            "upgrade": { "minimumHealthCapacity": 0, "maximumOverCapacity": 0 },
            "placement": { "constraints": [{ "fieldName": "hostname", "operator": "UNIQUE" }] },
        },
    })
}

fn app(id: &str) -> Value {
    json!({ "id": id, "cmd": "sleep 1", "cpus": 0.1, "mem": 32 })
}

#[test]
fn a_deployment_locks_until_all_runs_and_force_supersedes_it() {
    let cluster = cluster(2);
    assert_eq!(cluster.call("POST", "/v2/pods", &pod(2, "a")).0, 201);
    let (status, body) = cluster.call("PUT", "/v2/pods/node", &pod(1, "a"));
    assert_eq!(status, 409);
    assert!(body["message"].as_str().unwrap().starts_with("App is locked"), "{body}");
    assert_eq!(cluster.call("PUT", "/v2/pods/node?force=true", &pod(1, "a")).0, 200);
    cluster.settle();
    assert_eq!((cluster.hosts("/node").len(), cluster.deployments()), (1, 0));
}

#[test]
fn more_instances_than_hosts_hang_and_scaling_back_kills_running_ones_before_unplaced_ones() {
    let cluster = cluster(2);
    cluster.call("POST", "/v2/pods", &pod(4, "a"));
    cluster.settle();
    assert_eq!((cluster.hosts("/node").len(), cluster.deployments()), (2, 1));
    let (_, queue) = cluster.call("GET", "/v2/queue", &Value::Null);
    assert_eq!(queue["queue"][0]["count"], 2);
    assert_eq!(queue["queue"][0]["processedOffersSummary"]["rejectSummaryLastOffers"][1]["declined"], 2);
    let before: Vec<String> = cluster.shared.read(|state| state.tasks.keys().cloned().collect());
    cluster.call("PUT", "/v2/pods/node?force=true", &pod(2, "a"));
    cluster.advance();
    let killed = cluster.shared.read(|state| before.iter().filter(|id| state.tasks.get(*id).is_none_or(|t| t.kill.is_some())).count());
    assert_eq!(killed, 2, "Marathon 1.8 and later kill running instances first");
    cluster.settle();
    assert_eq!((cluster.hosts("/node").len(), cluster.deployments()), (2, 0));
}

#[test]
fn a_changed_pod_is_replaced_on_every_host_and_scaling_leaves_the_others_alone() {
    let cluster = cluster(3);
    cluster.call("POST", "/v2/pods", &pod(2, "a"));
    cluster.settle();
    let first: Vec<String> = cluster.shared.read(|state| state.tasks.keys().cloned().collect());
    cluster.call("PUT", "/v2/pods/node", &pod(3, "a"));
    cluster.settle();
    assert!(cluster.shared.read(|state| first.iter().all(|id| state.tasks.contains_key(id))));
    cluster.call("PUT", "/v2/pods/node", &pod(3, "b"));
    cluster.settle();
    assert!(cluster.shared.read(|state| first.iter().all(|id| !state.tasks.contains_key(id))));
    assert_eq!(cluster.hosts("/node"), ["192.168.1.80", "192.168.1.81", "192.168.1.82"]);
}

#[test]
fn a_lost_agent_leaves_a_replacement_that_waits_for_it_without_a_lock() {
    let cluster = cluster(2);
    cluster.call("POST", "/v2/pods", &pod(2, "a"));
    cluster.settle();
    cluster.shared.change(|state| {
        state.agents.get_mut(&ip(1)).unwrap().presence = crate::server::state::Presence::Dying { noticed_at: 0.0 };
        agents::notice_lost(state);
    });
    cluster.settle();
    assert_eq!((cluster.hosts("/node").len(), cluster.deployments()), (1, 0));
    assert_eq!(cluster.call("GET", "/v2/queue", &Value::Null).1["queue"][0]["count"], 1);
    cluster.shared.change(|state| state.agents.get_mut(&ip(1)).unwrap().presence = crate::server::state::Presence::Active);
    cluster.settle();
    assert_eq!(cluster.hosts("/node").len(), 2);
}

#[test]
fn a_failing_task_delays_the_whole_app_and_is_told_as_the_last_failure() {
    let cluster = cluster(1);
    cluster.call("POST", "/v2/apps", &app("/fails"));
    cluster.advance();
    cluster.shared.change(|state| {
        let id = state.tasks.keys().next().unwrap().clone();
        agents::end_task(state, &id, TaskState::Failed, "Command exited with status 1");
    });
    cluster.advance();
    let (_, queue) = cluster.call("GET", "/v2/queue", &Value::Null);
    assert_eq!(queue["queue"][0]["delay"]["overdue"], false);
    let (_, shown) = cluster.call("GET", "/v2/apps/fails", &Value::Null);
    assert_eq!(shown["app"]["lastTaskFailure"]["message"], "Command exited with status 1");
    assert_eq!(cluster.call("DELETE", "/v2/queue/fails/delay", &Value::Null).0, 204);
    cluster.settle();
    assert_eq!(cluster.deployments(), 0);
}

#[test]
fn a_deleted_pod_is_absent_at_once_and_its_deployment_lasts_until_the_tasks_have_ended() {
    let cluster = cluster(1);
    cluster.call("POST", "/v2/pods", &pod(1, "a"));
    cluster.settle();
    assert_eq!(cluster.call("DELETE", "/v2/pods/node", &Value::Null).0, 202);
    cluster.advance();
    assert_eq!(cluster.call("GET", "/v2/pods/node::status", &Value::Null).0, 404);
    assert_eq!(cluster.deployments(), 1);
    assert_eq!(cluster.call("POST", "/v2/pods", &pod(1, "a")).0, 409, "the old one still locks the id");
    cluster.settle();
    assert_eq!(cluster.deployments(), 0);
    assert_eq!(cluster.call("POST", "/v2/pods", &pod(1, "a")).0, 201);
}

#[test]
fn what_would_be_dropped_in_silence_is_a_violation() {
    let cluster = cluster(1);
    let mut odd = pod(1, "a");
    odd["instances"] = json!(3);
    cluster.call("POST", "/v2/pods", &odd);
    let violations = cluster.shared.read(|state| state.violations.clone());
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].message.contains("/instances"), "{violations:?}");
}

#[test]
fn a_cancelled_deployment_brings_back_what_was_before() {
    let cluster = cluster(1);
    cluster.call("POST", "/v2/apps", &app("/a"));
    cluster.settle();
    let mut unplaceable = app("/a");
    unplaceable["constraints"] = json!([["hostname", "LIKE", "nowhere"]]);
    let (_, answer) = cluster.call("PUT", "/v2/apps/a", &unplaceable);
    cluster.settle();
    let id = answer["deploymentId"].as_str().unwrap();
    assert_eq!(cluster.call("DELETE", &format!("/v2/deployments/{id}"), &Value::Null).0, 200);
    cluster.settle();
    let (_, shown) = cluster.call("GET", "/v2/apps/a", &Value::Null);
    assert_eq!((shown["app"].get("constraints"), cluster.deployments()), (None, 0));
}

#[test]
fn everything_survives_a_restart_of_the_server() {
    let cluster = cluster(2);
    cluster.call("POST", "/v2/pods", &pod(2, "a"));
    cluster.settle();
    let before = cluster.call("GET", "/v2/pods/node", &Value::Null);
    let host = Arc::new(Pretence { dir: cluster.dir.path().join("agents"), ..Pretence::default() });
    let again = Cluster { shared: Shared::open(cluster.dir.path(), host, Options::default()).unwrap(), dir: cluster.dir };
    assert_eq!(again.call("GET", "/v2/pods/node", &Value::Null), before);
    assert_eq!(again.hosts("/node").len(), 2);
}

#[test]
fn a_group_made_with_unenforced_role_lets_services_in_it_reach_public_agents() {
    let cluster = cluster(1);
    assert_eq!(cluster.call("POST", "/v2/groups", &json!({ "id": "/shared", "enforceRole": false })).0, 201);
    let mut both = app("/shared/a");
    both["acceptedResourceRoles"] = json!(["*", "slave_public"]);
    assert_eq!(cluster.call("POST", "/v2/apps", &both).0, 201);
    both["id"] = json!("/own/a");
    assert_eq!(cluster.call("POST", "/v2/apps", &both).0, 422);
}

fn resident(mark: &str) -> Value {
    json!({
        "id": "/kept", "cmd": "sleep 1", "cpus": 0.1, "mem": 32, "env": { "MARK": mark },
        "container": {
            "type": "DOCKER",
            "docker": { "image": "a", "network": "BRIDGE", "portMappings": [{ "containerPort": 80, "hostPort": 0 }] },
            "volumes": [{ "containerPath": "data", "persistent": { "size": 100 }, "mode": "RW" }],
        },
        "upgradeStrategy": { "minimumHealthCapacity": 0, "maximumOverCapacity": 0 },
    })
}

#[test]
fn an_app_with_a_persistent_volume_stays_with_its_agent_ports_and_directory_until_it_is_deleted() {
    let cluster = cluster(3);
    let task = || cluster.call("GET", "/v2/apps/kept/tasks", &Value::Null).1["tasks"][0].clone();
    let directories = || {
        let roots = (0..3).map(|n| cluster.dir.path().join("agents").join(ip(n).to_string()).join("volumes/roles/slave_public"));
        let all = roots.flat_map(|root| std::fs::read_dir(root).into_iter().flatten());
        all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(cluster.call("POST", "/v2/apps", &resident("a")).0, 201);
    cluster.settle();
    let first = task();
    let volume = &first["localVolumes"][0];
    assert_eq!((&volume["runSpecId"], &volume["containerPath"]), (&json!("/kept"), &json!("data")));
    assert_eq!(directories(), [volume["persistenceId"].as_str().unwrap()]);
    // A new definition, and the end of its task: the same place each time.
    assert_eq!(cluster.call("PUT", "/v2/apps/kept", &resident("b")).0, 200);
    cluster.settle();
    let host: Ipv4Addr = first["host"].as_str().unwrap().parse().unwrap();
    let second = task();
    cluster.shared.change(|state| {
        let task = state.tasks.values_mut().next().unwrap();
        task.enter(TaskState::Failed, 1.0);
    });
    cluster.advance();
    cluster.shared.change(|state| state.marathon.specs.get_mut("/kept").unwrap().backoff = Backoff::default());
    cluster.settle();
    let third = task();
    for later in [&second, &third] {
        assert_ne!(first["id"], later["id"]);
        for what in ["host", "ports", "localVolumes"] {
            assert_eq!(first[what], later[what], "{what}");
        }
    }
    assert_eq!((directories().len(), cluster.deployments()), (1, 0));
    // Its agent is away: nobody else gets what is reserved, and it does not run elsewhere.
    cluster.shared.change(|state| {
        let task = state.tasks.values_mut().next().unwrap();
        task.enter(TaskState::Failed, 1.0);
        state.agents.get_mut(&host).unwrap().filled = true;
    });
    cluster.advance();
    cluster.shared.change(|state| state.marathon.specs.get_mut("/kept").unwrap().backoff = Backoff::default());
    cluster.settle();
    assert_eq!(task(), Value::Null);
    let summary = cluster.call("GET", "/v2/queue", &Value::Null).1["queue"][0]["processedOffersSummary"]["rejectSummaryLastOffers"].clone();
    let elsewhere = json!({ "reason": "NoCorrespondingReservationFound", "declined": 2, "processed": 3 });
    assert!(summary.as_array().unwrap().contains(&elsewhere), "{summary}");
    cluster.shared.change(|state| state.agents.get_mut(&host).unwrap().filled = false);
    cluster.settle();
    assert_eq!(task()["localVolumes"], first["localVolumes"]);
    assert_eq!(cluster.call("DELETE", "/v2/apps/kept", &Value::Null).0, 200);
    cluster.settle();
    assert_eq!(directories(), Vec::<String>::new());
    assert!(cluster.shared.read(|state| state.violations.is_empty()));
}

#[test]
fn what_marathon_refuses_about_volumes_is_refused() {
    let cluster = cluster(1);
    let refused = |method: &str, path: &str, app: &Value| {
        let (status, answer) = cluster.call(method, path, app);
        assert_eq!(status, 422, "{answer}");
        answer["details"].to_string()
    };
    let with = |pointer: &str, value: Value| {
        let mut app = resident("a");
        *app.pointer_mut(pointer).unwrap() = value;
        app
    };
    assert!(refused("POST", "/v2/apps", &with("/container/volumes/0/containerPath", json!("a/b"))).contains("must not contain"));
    assert!(refused("POST", "/v2/apps", &with("/upgradeStrategy/maximumOverCapacity", json!(1))).contains("expected 0.0"));
    assert_eq!(cluster.call("POST", "/v2/apps", &resident("a")).0, 201);
    cluster.settle();
    for changed in [with("/mem", json!(64)), with("/container/docker/portMappings/0/hostPort", json!(20_500))] {
        assert!(refused("PUT", "/v2/apps/kept", &changed).contains("please create a new service"));
    }
    let size = with("/container/volumes/0/persistent/size", json!(200));
    assert!(refused("PUT", "/v2/apps/kept", &size).contains("Persistent volumes can not be changed!"));
    let external = |name: &str, more: Value| {
        let mut external = json!({ "name": name, "provider": "dvdi", "options": { "dvdi/driver": "rexray" } });
        external.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let mut app = with("/container/volumes/0", json!({ "containerPath": "/data", "external": external, "mode": "RW" }));
        app["id"] = json!("/outside");
        app
    };
    assert!(refused("POST", "/v2/apps", &external("", json!({}))).contains("must not be empty"));
    assert!(refused("POST", "/v2/apps", &external("images", json!({ "size": 5 }))).contains("must be undefined for Docker containers"));
    let mut several = external("images", json!({}));
    several["instances"] = json!(2);
    assert!(
        refused("POST", "/v2/apps", &several).contains("Number of instances is limited to 1 when declaring DVDI volumes in app [/outside]")
    );
    assert_eq!(cluster.call("POST", "/v2/apps", &external("images", json!({}))).0, 201);
}

#[test]
fn a_task_that_fails_its_check_still_shows_when_it_passed_it() {
    let cluster = cluster(1);
    let mut checked = app("/web");
    checked["healthChecks"] = json!([{ "protocol": "MESOS_HTTP", "path": "/", "port": 80 }]);
    assert_eq!(cluster.call("POST", "/v2/apps", &checked).0, 201);
    cluster.settle();
    for (healthy, at) in [(true, 10.0), (false, 20.0)] {
        cluster.shared.change(|state| state.tasks.values_mut().for_each(|task| task.be_healthy(healthy, at)));
    }
    let result = cluster.call("GET", "/v2/apps/web", &Value::Null).1["app"]["tasks"][0]["healthCheckResults"][0].clone();
    let (passed, failed) = ("1970-01-01T00:00:10.000Z", "1970-01-01T00:00:20.000Z");
    assert_eq!((&result["firstSuccess"], &result["lastSuccess"], &result["lastFailure"]), (&json!(passed), &json!(passed), &json!(failed)));
    assert_eq!((&result["alive"], &result["lastFailureCause"]), (&json!(false), &json!("")));
}

/// Every state in which a look can find the tasks: states, results of checks, and agents that are lost. A test of the whole that
/// sees some of them only at times would fail only at times.
#[test]
fn whatever_state_tasks_are_in_what_is_shown_of_them_has_the_shape_of_a_recording() {
    const STATES: [TaskState; 7] = [
        TaskState::Staging,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Killing,
        TaskState::Finished,
        TaskState::Failed,
        TaskState::Killed,
    ];
    const CHECKS: [&[bool]; 4] = [&[], &[true], &[false], &[true, false]];
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let mut compared = 0;
    let mut faults = std::collections::BTreeSet::new();
    for dcos in Pose::versions() {
        let pose = Pose::of(dcos, Security::Open).unwrap();
        let recordings = Recordings::of(&fixtures, &pose).unwrap();
        for (state, checks, lost, passes) in STATES
            .into_iter()
            .flat_map(|state| CHECKS.map(|checks| (state, checks)))
            .flat_map(|(state, checks)| [(false, 0), (false, 1), (true, 0), (true, 1)].map(|(lost, passes)| (state, checks, lost, passes)))
        {
            let cluster = cluster_of(Some(pose.clone()), 2);
            let ports = json!([{ "containerPort": 5000, "hostPort": 0, "protocol": "tcp" }]);
            let mut checked = json!({
                "id": "/web", "cpus": 0.1, "mem": 32, "instances": 1,
                "container": { "type": "DOCKER", "docker": { "image": "registry:2" } },
                "healthChecks": [{ "protocol": "MESOS_HTTP", "portIndex": 0, "path": "/" }],
            });
            if pose.has_apps_of_1_4() {
                checked["container"]["docker"]["network"] = "BRIDGE".into();
                checked["container"]["docker"]["portMappings"] = ports;
            } else {
                checked["networks"] = json!([{ "mode": "container/bridge" }]);
                checked["container"]["portMappings"] = ports;
            }
            assert_eq!(cluster.call("POST", "/v2/apps", &checked).0, 201);
            assert_eq!(cluster.call("POST", "/v2/pods", &pod(2, "a")).0, 201);
            cluster.advance();
            cluster.shared.change(|all| {
                assert_eq!(all.tasks.len(), 3, "{dcos}");
                for task in all.tasks.values_mut() {
                    if state != TaskState::Staging {
                        task.enter(TaskState::Running, 5.0);
                    }
                    checks.iter().zip([10.0, 20.0]).for_each(|(healthy, at)| task.be_healthy(*healthy, at));
                    task.enter(state, 30.0);
                    task.unreachable = lost;
                }
            });
            (0..passes).for_each(|_| cluster.advance());
            for (path, query) in [
                ("/v2/apps", ""),
                ("/v2/apps/web", ""),
                ("/v2/apps/web", "embed=app.tasks"),
                ("/v2/apps/web/tasks", ""),
                ("/v2/tasks", ""),
                ("/v2/pods/node::status", ""),
                ("/v2/pods/::status", ""),
                ("/v2/deployments", ""),
            ] {
                let (status, response_type, body) = cluster.ask("GET", &format!("{path}?{query}"), &Value::Null);
                let exchange = Exchange {
                    service: "marathon".to_owned(),
                    method: "GET".to_owned(),
                    path: path.to_owned(),
                    query: query.to_owned(),
                    request_type: None,
                    accept: None,
                    request_body: Content::Empty,
                    status,
                    response_type,
                    response_body: Content::Json(body),
                    unknown: false,
                };
                let seen = format!("{dcos}: {state:?}, checks {checks:?}, lost {lost}, {path}?{query}");
                match recordings.check(&exchange) {
                    Verdict::Matches(_) => compared += 1,
                    Verdict::OtherVersion(_) => {}
                    Verdict::Unrecorded(what) if UNRECORDED.iter().any(|(listed, _)| *listed == what) => {}
                    Verdict::Differs(how) => faults.extend(how),
                    other => faults.extend([format!("{seen}: {other:?}")]),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.into_iter().collect::<Vec<_>>().join("\n"));
    assert!(compared > 1000, "only {compared} answers were compared");
}
