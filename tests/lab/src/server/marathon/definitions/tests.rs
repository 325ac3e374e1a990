//! Replays what was recorded, and what recordings do not show.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::server::Security;
use crate::server::marathon::Kind as Marathons;

/// Recordings whose answers need more than the definition.
const ELSEWHERE: [(&str, &str); 7] = [
    ("marathon/154-app-post-over-pod", "looks at the pods"),
    ("marathon/155-app-put-over-pod", "looks at the pods"),
    ("marathon/157-pod-post-over-app", "looks at the apps"),
    ("older/marathon-1.4.2/068-app-single-instance", "names inner fields of its validator besides"),
    ("older/marathon-1.4.2/079-app-empty-body", "prints the address of a buffer"),
    ("older/marathon-1.4.2/174-pod-containers-empty", "goes on to other rules when there are no containers"),
    ("older/marathon-1.4.2/190-pod-empty-body", "prints the address of a buffer"),
];

/// What GET adds to a definition.
const DYNAMIC: [&str; 9] = [
    "tasksStaged",
    "tasksRunning",
    "tasksHealthy",
    "tasksUnhealthy",
    "deployments",
    "tasks",
    "lastTaskFailure",
    "readinessCheckResults",
    "tasksStats",
];

struct Recording {
    name: String,
    method: String,
    path: String,
    query: String,
    body: String,
    status: u16,
    answer: String,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn recordings(folder: &str) -> Vec<Recording> {
    let dir = repository().join("tests/fixtures").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let halves = |path: &Path| {
        let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").or_else(|| text.split_once("\n\n")).unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    };
    let mut all = Vec::new();
    for file in &files {
        let file_name = file.file_name().unwrap().to_string_lossy();
        let Some(name) = file_name.strip_suffix(".req.http") else { continue };
        let (request, body) = halves(file);
        let (response, answer) = halves(&dir.join(format!("{name}.resp.http")));
        let mut parts = request.split(' ');
        let (method, target) = (parts.next().unwrap(), parts.next().unwrap());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        all.push(Recording {
            name: format!("{folder}/{name}"),
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            body,
            status: response.split(' ').nth(1).unwrap().parse().unwrap(),
            answer,
        });
    }
    all
}

fn pose(folder: &str) -> Pose {
    let mut pose = Pose::open_2_2();
    // Older Marathons were recorded on Mesos 1.2.
    if let Some(version) = folder.strip_prefix("older/marathon-") {
        pose = Pose::of(if version.starts_with("1.4") { "1.9.0" } else { "1.12.0" }, Security::Open).unwrap();
        pose.marathon = version.to_owned();
        pose.mesos = "1.2.0".to_owned();
    }
    if folder != "marathon-dcos22" {
        pose.features.push("secrets".to_owned());
    }
    pose
}

/// Role of a group's services, and whether it is enforced, at the time of that recording.
fn role_at(recording: &Recording, id: &str) -> (String, bool) {
    let group = id.trim_start_matches('/').split_once('/').map(|(group, _)| group);
    let is_late = recording.name.as_str() > "marathon-dcos22/033";
    match group.filter(|group| recording.name.starts_with("marathon-dcos22") && *group != "shared" && !(is_late && *group == "infra")) {
        Some(group) => (group.to_owned(), true),
        None => ("slave_public".to_owned(), false),
    }
}

/// Marathon 1.4 has it in the answer to a POST as well.
fn without_version_info(definition: &Value) -> Value {
    let mut definition = definition.clone();
    definition.as_object_mut().unwrap().shift_remove("versionInfo");
    definition
}

fn taken_apart(answer: Answer) -> (u16, String) {
    let response = answer.into_response();
    let status = response.status().as_u16();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body = runtime.block_on(axum::body::to_bytes(response.into_body(), usize::MAX)).unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Assigned ports are 0 again, sets are in order, and what is dynamic is gone.
fn comparable(definition: &Value) -> Value {
    let mut definition = definition.clone();
    let fields = definition.as_object_mut().unwrap();
    fields.retain(|name, _| !DYNAMIC.contains(&name.as_str()));
    for (list, field) in
        [("/portDefinitions", "port"), ("/container/portMappings", "servicePort"), ("/container/docker/portMappings", "servicePort")]
    {
        for port in definition.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if (10_000..20_000).contains(&port[field].as_u64().unwrap()) {
                port[field] = json!(0);
            }
        }
    }
    // Marathon 1.4 shows them once more.
    for port in definition.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if (10_000..20_000).contains(&port.as_u64().unwrap()) {
            *port = json!(0);
        }
    }
    for set in
        ["/constraints", "/acceptedResourceRoles", "/scheduling/placement/constraints", "/scheduling/placement/acceptedResourceRoles"]
    {
        if let Some(Value::Array(items)) = definition.pointer_mut(set) {
            items.sort_by_key(Value::to_string);
        }
    }
    definition
}

#[derive(Default)]
struct Replay {
    definitions: BTreeMap<String, Value>,
    shown: BTreeMap<String, Value>,
    compared: usize,
    differences: Vec<String>,
}

impl Replay {
    fn equal(&mut self, name: &str, ours: &Value, recorded: &Value) {
        self.compared += 1;
        if ours != recorded {
            self.differences.push(format!("{name}\n  ours:     {ours}\n  recorded: {recorded}"));
        }
    }

    fn run(&mut self, recording: &Recording) {
        let is_pod = recording.path.starts_with("/v2/pods");
        let Some(id) = recording.path.strip_prefix(if is_pod { "/v2/pods" } else { "/v2/apps" }) else { return };
        let id = id.trim_end_matches('/');
        let recorded: Value = serde_json::from_str(&recording.answer).unwrap_or_default();
        match recording.method.as_str() {
            "GET" if recording.status == 200 && self.shown.contains_key(id) => {
                let recorded = recorded.get("app").unwrap_or(&recorded);
                let ours = comparable(&self.shown[id]);
                self.equal(&recording.name, &ours, &comparable(recorded));
            }
            "POST" if id.is_empty() => self.change(recording, is_pod, None, &recorded),
            "PUT" if !id.is_empty() => self.change(recording, is_pod, Some(id), &recorded),
            _ => {}
        }
    }

    fn change(&mut self, recording: &Recording, is_pod: bool, path_id: Option<&str>, recorded: &Value) {
        if !matches!(recording.status, 200 | 201 | 400 | 422 | 500) || ELSEWHERE.iter().any(|(name, _)| *name == recording.name) {
            return;
        }
        let body = recording.body.as_bytes();
        let id = path_id.map(str::to_owned).or_else(|| id_of(body)).unwrap_or_default();
        let (role, enforced_role) = role_at(recording, &id);
        let pose = pose(recording.name.rsplit_once('/').unwrap().0);
        let kind = if is_pod { Marathons::Pod } else { Marathons::App };
        let around = Surroundings {
            pose: &pose,
            role: &role,
            enforced_role,
            service_ports: &BTreeSet::new(),
            version: recorded["version"].as_str().unwrap_or("2026-11-23T00:00:00.000Z"),
        };
        let existing = self.definitions.get(&id).filter(|_| path_id.is_some() && recording.query != "partialUpdate=false");
        let result = match (is_pod, existing) {
            (true, _) => pod(body, path_id, &around),
            (false, Some(existing)) => app_update(body, &id, existing, &around),
            (false, None) => app(body, path_id, &around),
        };
        match result {
            Ok(stored) => {
                if recording.status >= 400 {
                    return self.differences.push(format!("{}: accepted, recorded {recorded}", recording.name));
                }
                // PUT of an app answers without the definition; a later GET shows it.
                if recorded.get("id").is_some() {
                    let mut answered = shown(&stored.definition, kind, &pose);
                    answered.as_object_mut().unwrap().shift_remove("versionInfo");
                    self.equal(&recording.name, &comparable(&answered), &comparable(&without_version_info(recorded)));
                }
                self.shown.insert(id.clone(), shown(&stored.definition, kind, &pose));
                self.definitions.insert(id, stored.definition);
            }
            Err(answer) => {
                let (status, text) = taken_apart(answer);
                let ours: Value = serde_json::from_str(&text).unwrap();
                self.equal(&recording.name, &json!([status, ours]), &json!([recording.status, recorded]));
            }
        }
    }
}

#[test]
fn every_recorded_definition_is_stored_or_refused_as_it_was() {
    let mut compared = 0;
    for folder in ["marathon", "marathon-dcos22", "marathon-probes", "older/marathon-1.4.2", "older/marathon-1.7.202"] {
        let mut replay = Replay::default();
        for recording in recordings(folder) {
            replay.run(&recording);
        }
        compared += replay.compared;
        assert!(replay.differences.is_empty(), "{folder}: {}\n{}", replay.differences.len(), replay.differences.join("\n"));
    }
    assert!(compared > 300, "only {compared} comparisons");
}

/// What is stored with those service ports taken.
fn stored(service_ports: &[u16], act: impl FnOnce(&Surroundings) -> Result<Stored, Answer>) -> Stored {
    let pose = Pose::open_2_2();
    let service_ports = service_ports.iter().copied().collect();
    let around = Surroundings { pose: &pose, role: "slave_public", enforced_role: false, service_ports: &service_ports, version: "new" };
    act(&around).unwrap_or_else(|answer| panic!("{}", taken_apart(answer).1))
}

type Reader = fn(&[u8], Option<&str>, &Surroundings) -> Result<Stored, Answer>;

fn accept(definition: &Value, kind: Reader) -> Stored {
    stored(&[], |around| kind(definition.to_string().as_bytes(), None, around))
}

fn plain_pod() -> Value {
    json!({
        "id": "/p",
        "networks": [{ "mode": "host" }],
        "containers": [{ "name": "c", "resources": { "cpus": 0.1, "mem": 32 }, "endpoints": [{ "name": "http", "hostPort": 0 }] }],
    })
}

#[test]
fn what_is_dropped_is_named_by_its_path() {
    let app = json!({
        "id": "/a", "cmd": "sleep 1", "frob": 1, "requirePorts": true,
        "container": { "type": "DOCKER", "docker": { "image": "a", "frob": 1 } },
        "networks": [{ "mode": "container/bridge" }],
        "portDefinitions": [{ "port": 0, "frob": 2 }],
    });
    let dropped = accept(&app, super::app).dropped;
    assert_eq!(dropped, ["/container/docker/frob", "/portDefinitions(0)/frob", "/frob", "/portDefinitions", "/requirePorts"]);

    let app = json!({
        "id": "/a", "container": { "type": "DOCKER", "docker": { "image": "a" }, "portMappings": [{ "containerPort": 80 }] },
        "networks": [{ "mode": "host" }],
    });
    assert_eq!(accept(&app, super::app).dropped, ["/container/portMappings"]);

    let mut pod = plain_pod();
    pod["scaling"] = json!({ "kind": "fixed", "instances": "2", "maxInstances": 3 });
    pod["constraints"] = json!([["hostname", "UNIQUE"]]);
    pod["scheduling"] = json!("later");
    pod["containers"][0]["privileged"] = json!(true);
    let stored = accept(&pod, super::pod);
    let expected = ["/containers(0)/privileged", "/scaling/instances", "/scaling/maxInstances", "/scheduling", "/constraints"];
    assert_eq!(stored.dropped, expected);
    assert_eq!(stored.definition["scaling"]["instances"], 1);
}

#[test]
fn an_id_in_the_body_of_a_put_loses_against_the_path() {
    let stored = stored(&[], |around| super::app(br#"{"id": "/other", "cmd": "sleep 1"}"#, Some("/a"), around));
    assert_eq!(stored.definition["id"], "/a");
    assert_eq!(stored.dropped, ["/id"]);
}

#[test]
fn definitions_that_stop_the_launcher_are_recognised() {
    let mut pod = plain_pod();
    assert_eq!(accept(&pod, super::pod).poison, None);
    pod["scheduling"] = json!({ "placement": { "constraints": [{ "fieldName": "hostname", "operator": "GROUP_BY" }] } });
    assert!(accept(&pod, super::pod).poison.unwrap().contains("GROUP_BY"));
    pod["scheduling"]["placement"]["constraints"][0]["value"] = json!("2");
    assert_eq!(accept(&pod, super::pod).poison, None);

    let mut pod = plain_pod();
    pod.as_object_mut().unwrap().shift_remove("networks");
    assert!(accept(&pod, super::pod).poison.unwrap().contains("networks"));

    let mut app = json!({ "id": "/a", "cmd": "sleep 1", "constraints": [["hostname", "GROUP_BY"]] });
    assert!(accept(&app, super::app).poison.unwrap().contains("GROUP_BY"));
    app["constraints"] = json!([["hostname", "GROUP_BY", "2"]]);
    assert_eq!(accept(&app, super::app).poison, None);
}

#[test]
fn service_ports_are_assigned_where_they_are_0_and_stay_with_the_app() {
    let body = json!({
        "id": "/a",
        "container": {
            "type": "DOCKER",
            "docker": {
                "image": "a", "network": "BRIDGE",
                "portMappings": [{ "servicePort": 0 }, { "servicePort": 10001 }, { "servicePort": 0 }, { "servicePort": 80 }],
            },
        },
    });
    let ports = |stored: &Stored| -> Vec<u64> {
        let mappings = stored.definition["container"]["portMappings"].as_array().unwrap();
        mappings.iter().map(|mapping| mapping["servicePort"].as_u64().unwrap()).collect()
    };
    let body = body.to_string();
    let first = stored(&[10_000, 10_002], |around| super::app(body.as_bytes(), None, around));
    assert_eq!(ports(&first), [10_003, 10_001, 10_004, 80]);
    let again = stored(&[], |around| super::app_update(body.as_bytes(), "/a", &first.definition, around));
    assert_eq!(ports(&again), [10_003, 10_001, 10_004, 80]);
}

#[test]
fn required_ports_are_kept_on_host_networks() {
    let stored = accept(&json!({ "id": "/a", "cmd": "sleep 1", "ports": [8080], "requirePorts": true }), super::app);
    assert_eq!(stored.definition["portDefinitions"], json!([{ "port": 8080, "protocol": "tcp" }]));
    assert_eq!(stored.definition["requirePorts"], true);
    assert!(stored.dropped.is_empty());
}

#[test]
fn only_what_changes_gets_a_new_version() {
    let mut existing = accept(&json!({ "id": "/a", "cmd": "sleep 1" }), super::app).definition;
    existing["version"] = json!("old");
    existing["versionInfo"] = json!({ "lastScalingAt": "old", "lastConfigChangeAt": "old" });
    existing["tasksRunning"] = json!(1);
    let update = |body: &str| {
        let definition = stored(&[], |around| super::app_update(body.as_bytes(), "/a", &existing, around)).definition;
        let info = &definition["versionInfo"];
        let texts = [&definition["version"], &info["lastScalingAt"], &info["lastConfigChangeAt"]];
        texts.map(|text| text.as_str().unwrap().to_owned())
    };
    assert_eq!(update("{}"), ["old", "old", "old"]);
    assert_eq!(update(r#"{"instances": 3}"#), ["new", "new", "old"]);
    assert_eq!(update(r#"{"instances": 3, "cmd": "sleep 2"}"#), ["new", "new", "new"]);
}

#[test]
fn an_update_in_old_syntax_replaces_the_new() {
    let fetch = json!([{ "uri": "http://a/b.zip", "cache": true }]);
    let existing = accept(&json!({ "id": "/a", "cmd": "sleep 1", "fetch": fetch }), super::app).definition;
    let body = r#"{"uris": ["http://a/c"], "container": {"type": "DOCKER", "docker": {"image": "a", "network": "BRIDGE"}}}"#;
    let stored = stored(&[], |around| super::app_update(body.as_bytes(), "/a", &existing, around));
    assert_eq!(stored.definition["fetch"], json!([{ "uri": "http://a/c", "extract": false, "executable": false, "cache": false }]));
    assert_eq!(stored.definition["networks"], json!([{ "mode": "container/bridge" }]));
    assert_eq!(stored.definition["container"]["portMappings"][0]["hostPort"], 0);
    assert_eq!(stored.definition.get("portDefinitions"), None);
    assert_eq!(stored.definition["cmd"], "sleep 1");
    assert!(stored.dropped.is_empty(), "{:?}", stored.dropped);
}

#[test]
fn an_id_is_found_before_anything_is_checked() {
    assert_eq!(id_of(br#"{"id": "a/./b/../c", "cpus": "many"}"#).as_deref(), Some("/a/c"));
    assert_eq!(id_of(br#"{"id": "/Bad"}"#), None);
    assert_eq!(id_of(b"[]"), None);
    assert_eq!(id_of(b"{"), None);
}

fn on(dcos: &str, act: impl FnOnce(&Surroundings) -> Result<Stored, Answer>) -> Result<Stored, (u16, String)> {
    let pose = Pose::of(dcos, Security::Open).unwrap();
    let around = Surroundings { pose: &pose, role: "infra", enforced_role: true, service_ports: &BTreeSet::new(), version: "new" };
    act(&around).map_err(taken_apart)
}

#[test]
fn a_foreign_role_is_taken_then_left_out_in_silence_then_refused() {
    let mut pod = plain_pod();
    pod["id"] = json!("/infra/p");
    pod["scheduling"] = json!({ "placement": { "acceptedResourceRoles": ["*", "slave_public"] } });
    let read = |dcos| on(dcos, |around| super::pod(pod.to_string().as_bytes(), None, around));
    let roles = |stored: &Stored| stored.definition["scheduling"]["placement"]["acceptedResourceRoles"].clone();
    assert_eq!(roles(&read("1.13.0").unwrap()), json!(["*", "slave_public"]));
    let stripped = read("2.0.0").unwrap();
    assert_eq!((roles(&stripped), stripped.dropped), (json!(["*"]), vec!["/scheduling/placement/acceptedResourceRoles".to_owned()]));
    let (status, text) = read("2.2.1").unwrap_err();
    assert!(status == 422 && text.contains("can only contain * and infra"), "{text}");
}

#[test]
fn what_marathon_1_4_drops_is_named_and_shown_no_more() {
    let app = json!({
        "id": "/a", "networks": [{ "mode": "container/bridge" }],
        "container": { "type": "DOCKER", "docker": { "image": "a" }, "portMappings": [{ "containerPort": 80 }] },
    });
    let stored = on("1.9.0", |around| super::app(app.to_string().as_bytes(), None, around)).unwrap();
    assert_eq!(stored.dropped, ["/networks", "/container/portMappings"]);
    let view = shown(&stored.definition, Marathons::App, &Pose::of("1.9.0", Security::Open).unwrap());
    assert_eq!((view["container"]["docker"]["network"].clone(), view.get("networks")), (Value::Null, None));
}

#[test]
fn a_pod_of_marathon_1_4_cannot_be_put_as_it_was_got() {
    let mut pod = plain_pod();
    pod["scheduling"] = json!({ "placement": { "constraints": [{ "fieldName": "hostname", "operator": "UNIQUE" }] } });
    for (dcos, is_refused) in [("1.9.0", true), ("1.9.10", true), ("1.10.4", false), ("2.2.1", false)] {
        let stored = on(dcos, |around| super::pod(pod.to_string().as_bytes(), None, around)).unwrap();
        let mut got = shown(&stored.definition, Marathons::Pod, &Pose::of(dcos, Security::Open).unwrap());
        got.as_object_mut().unwrap().shift_remove("role");
        let again = on(dcos, |around| super::pod(got.to_string().as_bytes(), Some("/p"), around));
        assert_eq!(again.is_err_and(|(status, text)| status == 422 && text.contains("Value specified but not used")), is_refused, "{dcos}");
    }
}

#[test]
fn a_command_health_check_of_a_pod_needs_dcos_1_10() {
    let mut pod = plain_pod();
    pod["containers"][0]["healthCheck"] = json!({ "exec": { "command": { "shell": "true" } } });
    let accepts = |dcos| on(dcos, |around| super::pod(pod.to_string().as_bytes(), None, around)).is_ok();
    assert_eq!(["1.9.0", "1.9.10", "1.10.4", "2.2.1"].map(accepts), [false, false, true, true]);
}
