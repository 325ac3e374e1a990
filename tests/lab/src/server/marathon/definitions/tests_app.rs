//! Holds what the lab makes of apps against what the real Marathon made of them.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;

/// Recordings whose answer comes from elsewhere, by folder and name.
const SKIPPED: &[(&str, &str)] =
    &[("marathon/154-app-post-over-pod", "a look-up: the routes know the pods"), ("marathon/155-app-put-over-pod", "as before")];

const VERSION: &str = "2026-01-02T03:04:05.678Z";

struct Recording {
    name: String,
    method: String,
    target: String,
    body: String,
    status: u16,
    answer: Value,
}

/// First line and body of a recorded message.
fn message(file: &Path) -> (String, String) {
    let text = std::fs::read_to_string(file).unwrap().replace("\r\n", "\n");
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    (head.lines().next().unwrap().to_owned(), body.trim_end().to_owned())
}

fn recordings(folder: &str) -> Vec<Recording> {
    let folder_path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(folder);
    let mut names: Vec<String> = std::fs::read_dir(&folder_path)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().unwrap().strip_suffix(".req.http").map(str::to_owned))
        .collect();
    names.sort();
    let read = |name: String| {
        let (request, body) = message(&folder_path.join(format!("{name}.req.http")));
        let (response, answer) = message(&folder_path.join(format!("{name}.resp.http")));
        let mut request = request.split(' ');
        Recording {
            name: format!("{folder}/{name}"),
            method: request.next().unwrap().to_owned(),
            target: request.next().unwrap().to_owned(),
            body,
            status: response.split(' ').nth(1).unwrap().parse().unwrap(),
            answer: serde_json::from_str(&answer).unwrap_or_default(),
        }
    };
    names.into_iter().map(read).collect()
}

fn recording(name: &str) -> Recording {
    let (folder, _) = name.split_once('/').unwrap();
    recordings(folder).into_iter().find(|recording| recording.name.starts_with(name)).unwrap()
}

/// The Marathon that was recorded there.
fn pose(folder: &str) -> Pose {
    let mut pose = Pose::open_2_2();
    if folder == "marathon" {
        pose.features.push("secrets".to_owned());
        pose.enforce_role_in_new_groups = false;
    }
    pose
}

/// Surroundings as the routes make them of an id, in a cluster without other apps.
fn around<T>(pose: &Pose, id: Option<&str>, read: impl FnOnce(&Surroundings) -> T) -> T {
    let group = id.and_then(|id| id.trim_start_matches('/').split_once('/')).map(|(group, _)| group.to_owned());
    let enforced_role = pose.enforce_role_in_new_groups && group.is_some();
    let role = group.filter(|_| enforced_role).unwrap_or_else(|| "slave_public".to_owned());
    read(&Surroundings { pose, role: &role, enforced_role, service_ports: &BTreeSet::new(), version: VERSION })
}

/// Status and body of a refusal instead of what goes onto the wire.
type Read = Result<Stored, (u16, Value)>;

fn post_to(pose: &Pose, body: &str) -> Read {
    around(pose, id_of(body.as_bytes()).as_deref(), |around| app(body.as_bytes(), None, around)).map_err(refusal)
}

fn post(body: &Value) -> Read {
    post_to(&Pose::open_2_2(), &body.to_string())
}

fn put_to(pose: &Pose, body: &str, id: &str, existing: Option<&Value>) -> Read {
    let read = |around: &Surroundings| match existing {
        Some(existing) => app_update(body.as_bytes(), id, existing, around),
        None => app(body.as_bytes(), Some(id), around),
    };
    around(pose, Some(id), read).map_err(refusal)
}

fn put(body: &str, id: &str, existing: Option<&Value>) -> Read {
    put_to(&pose("marathon"), body, id, existing)
}

fn refusal(answer: Answer) -> (u16, Value) {
    let response = answer.into_response();
    let status = response.status().as_u16();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body = runtime.block_on(axum::body::to_bytes(response.into_body(), usize::MAX)).unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

/// Without what differs by nature or changes by itself; numbers as one type, sets in one order.
fn normal(definition: &Value) -> Value {
    let mut normal = numbers(definition);
    for field in ["version", "versionInfo", "tasksStaged", "tasksRunning", "tasksHealthy", "tasksUnhealthy", "deployments", "tasks"] {
        normal.as_object_mut().unwrap().remove(field);
    }
    for set in ["constraints", "acceptedResourceRoles"] {
        if let Some(items) = normal.get_mut(set).and_then(Value::as_array_mut) {
            items.sort_by_key(ToString::to_string);
        }
    }
    // In the answer to a POST they are not assigned yet.
    let assigned = |port: &mut Value| {
        if port.as_f64().is_some_and(|port| port == 0.0 || (10000.0..=10099.0).contains(&port)) {
            *port = json!("assigned");
        }
    };
    for mapping in normal.pointer_mut("/container/portMappings").and_then(Value::as_array_mut).into_iter().flatten() {
        assigned(&mut mapping["servicePort"]);
    }
    for definition in normal.get_mut("portDefinitions").and_then(Value::as_array_mut).into_iter().flatten() {
        assigned(&mut definition["port"]);
    }
    normal
}

fn numbers(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64().unwrap()),
        Value::Array(items) => items.iter().map(numbers).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), numbers(value))).collect::<BTreeMap<_, _>>().into_iter().collect()
        }
        other => other.clone(),
    }
}

#[test]
fn apps_are_stored_or_refused_as_recorded() {
    let mut replayed = 0;
    let mut wrong = Vec::new();
    for folder in ["marathon", "marathon-dcos22"] {
        for recording in recordings(folder) {
            let Recording { name, method, target, body, status, answer } = &recording;
            let path_id = target.strip_prefix("/v2/apps").filter(|rest| !rest.contains('?'));
            let (Some(path_id), true) = (path_id, [200, 201, 400, 422, 500].contains(status)) else { continue };
            let is_definition = *status < 300 && answer["id"].is_string();
            if !["POST", "PUT"].contains(&method.as_str())
                || (*status < 300 && !is_definition)
                || SKIPPED.iter().any(|(skipped, _)| name == skipped)
            {
                continue;
            }
            replayed += 1;
            // The only app among those with such an answer that was there.
            let existing = json!({ "id": "/svc/new", "cmd": "sleep 3000" });
            let result = match path_id {
                "" => post_to(&pose(folder), body),
                id => put_to(&pose(folder), body, id, Some(&existing).filter(|existing| existing["id"] == id)),
            };
            let (got_status, got) = match result {
                Ok(stored) => (201, normal(&stored.definition)),
                Err(refused) => refused,
            };
            let expected = if is_definition { normal(answer) } else { answer.clone() };
            if (got_status, &got) != (*status, &expected) {
                wrong.push(format!("{name}: {status} {expected}\n   but {got_status} {got}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(replayed > 80, "{replayed}");
}

#[test]
fn updates_make_of_an_app_what_was_read_back() {
    let steps: [(&str, &[&str], &str); 4] = [
        ("marathon/012", &["marathon/018"], "marathon/019"),
        ("marathon/012", &["marathon/018", "marathon/028", "marathon/040"], "marathon/041"),
        ("marathon/029", &["marathon/030"], "marathon/031"),
        ("marathon/032", &[], "marathon/033"),
    ];
    for (first, updates, shown) in steps {
        let shown = recording(shown);
        let id = shown.target.trim_start_matches("/v2/apps").to_owned();
        let mut stored = put(&recording(first).body, &id, None).unwrap();
        for update in updates {
            stored = put(&recording(update).body, &id, Some(&stored.definition)).unwrap();
        }
        assert_eq!(normal(&stored.definition), normal(&shown.answer["app"]), "{}", shown.name);
        assert_eq!(stored.dropped, [""; 0]);
    }
}

#[test]
fn fields_are_shown_in_the_order_of_the_real_one() {
    let shown = recording("marathon/015").answer["app"].clone();
    let stored = put(&recording("marathon/012").body, "/svc/web", None).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let names = keys(&shown);
    assert_eq!(keys(&stored.definition), names[..names.iter().position(|key| key == "tasksStaged").unwrap()]);
    let (ours, real) = (&stored.definition["container"], &shown["container"]);
    assert_eq!(ours.to_string(), real.to_string());
    assert_eq!(stored.definition["healthChecks"].to_string(), shown["healthChecks"].to_string());
}

#[test]
fn what_is_dropped_without_a_word_is_named_by_its_path() {
    let stored = post(&json!({
        "id": "/a", "cmd": "true", "frobnicate": 1, "tasksRunning": 0,
        "container": {
            "type": "DOCKER",
            "docker": { "image": "a", "frob": 1 },
            "volumes": [{ "containerPath": "/x", "hostPath": "/y", "mode": "RO", "size": 1 }],
            "portMappings": [{ "containerPort": 80 }],
        },
        "healthChecks": [{ "protocol": "MESOS_TCP", "path": "/" }],
    }))
    .unwrap();
    let mut dropped = stored.dropped;
    dropped.sort();
    assert_eq!(
        dropped,
        [
            "/container/docker/frob",
            "/container/portMappings",
            "/container/volumes(0)/size",
            "/frobnicate",
            "/healthChecks(0)/path",
            "/tasksRunning"
        ]
    );
    let bridged = post(&json!({
        "id": "/a", "portDefinitions": [{ "port": 0 }],
        "container": { "type": "DOCKER", "docker": { "image": "a", "network": "BRIDGE" } },
    }));
    assert_eq!(bridged.unwrap().dropped, ["/portDefinitions"]);
    assert_eq!(put(r#"{"id": "/b", "cmd": "true"}"#, "/a", None).unwrap().dropped, ["/id"]);
}

#[test]
fn grouping_without_a_value_is_poison_for_this_marathon_only() {
    let body = json!({ "id": "/a", "cmd": "true", "constraints": [["hostname", "GROUP_BY"]] });
    assert!(post(&body).unwrap().poison.is_some());
    let older = Pose { marathon: "1.7.202".to_owned(), ..Pose::open_2_2() };
    assert_eq!(post_to(&older, &body.to_string()).unwrap().poison, None);
    let with_value = json!({ "id": "/a", "cmd": "true", "constraints": [["hostname", "GROUP_BY", "2"]] });
    assert_eq!(post(&with_value).unwrap().poison, None);
}

#[test]
fn a_service_port_is_the_lowest_free_one_and_stays_over_updates() {
    let body = json!({ "id": "/a", "cmd": "true", "portDefinitions": [{ "port": 10001 }, { "port": 0 }, {}] });
    let taken = BTreeSet::from([10000, 10002]);
    let pose = Pose::open_2_2();
    let around = Surroundings { pose: &pose, role: "slave_public", enforced_role: false, service_ports: &taken, version: VERSION };
    let stored = app(body.to_string().as_bytes(), None, &around).map_err(refusal).unwrap();
    let ports =
        |stored: &Stored| stored.definition["portDefinitions"].as_array().unwrap().iter().map(|p| p["port"].clone()).collect::<Vec<_>>();
    assert_eq!(ports(&stored), [10001, 10003, 10004]);
    let again = json!({ "portDefinitions": [{ "port": 0 }, { "port": 0 }] });
    let again = app_update(again.to_string().as_bytes(), "/a", &stored.definition, &around).map_err(refusal).unwrap();
    assert_eq!(ports(&again), [10001, 10003]);
}

#[test]
fn a_service_has_the_role_of_its_group_and_in_one_without_enforcement_either() {
    let body = |role: &str| json!({ "id": "/g/a", "cmd": "true", "role": role }).to_string();
    let read = |role: &str, enforced_role, of_group: &str| {
        let pose = Pose::open_2_2();
        let around = Surroundings { pose: &pose, role: of_group, enforced_role, service_ports: &BTreeSet::new(), version: VERSION };
        app(body(role).as_bytes(), None, &around).map_err(|refused| refusal(refused).0)
    };
    assert_eq!(read("g", true, "g").unwrap().definition["role"], "g");
    assert_eq!(read("slave_public", true, "g").unwrap_err(), 422);
    assert_eq!(read("g", false, "slave_public").unwrap().definition["role"], "g");
    assert_eq!(read("other", false, "slave_public").unwrap_err(), 422);
}

#[test]
fn an_update_may_change_the_network() {
    let stored = put(r#"{"cmd": "true", "portDefinitions": [{"port": 0}]}"#, "/a", None).unwrap();
    let bridge = r#"{"container": {"type": "DOCKER", "docker": {"image": "b", "network": "BRIDGE"}}}"#;
    let bridged = put(bridge, "/a", Some(&stored.definition)).unwrap();
    assert_eq!(bridged.definition["networks"], json!([{ "mode": "container/bridge" }]));
    assert_eq!(bridged.definition.get("portDefinitions"), None);
    assert_eq!(bridged.definition["container"]["portMappings"][0]["servicePort"], 10000);
    assert_eq!(bridged.dropped, [""; 0]);
    let back = put(r#"{"networks": [{"mode": "host"}]}"#, "/a", Some(&bridged.definition)).unwrap();
    assert_eq!(back.definition["container"].get("portMappings"), None);
    assert_eq!(back.dropped, [""; 0]);
}

/// As the controller renders `registry.json.hbs`.
fn registry() -> Value {
    json!({
        "id": "/private-registry/registry", "instances": 1, "cpus": 0.5, "mem": 512, "disk": 0,
        "cmd": "exec ./private-registry registry",
        "uris": ["http://example.invalid/private-registry"],
        "env": { "PRIVATE_REGISTRY_SHA256": "00", "RUST_LOG": "info" },
        "container": {
            "type": "DOCKER",
            "docker": {
                "image": "registry:2", "network": "BRIDGE", "privileged": false, "forcePullImage": false,
                "portMappings": [
                    {
                        "containerPort": 5000, "hostPort": 5000, "servicePort": 10500, "protocol": "tcp", "name": "registry",
                        "labels": { "VIP_0": "192.168.0.1:443", "VIP_1": "/registry:443" },
                    },
                    { "containerPort": 5001, "hostPort": 0, "servicePort": 0, "protocol": "tcp", "name": "status" },
                ],
            },
            "volumes": [
                { "containerPath": "/var/lib/registry", "hostPath": "/var/lib/registry", "mode": "RW" },
                { "containerPath": "/var/lib/private-registry", "hostPath": "/var/lib/private-registry", "mode": "RW" },
            ],
        },
        "constraints": [["hostname", "LIKE", "10\\.0\\.0\\.1"]],
        "healthChecks": [{
            "protocol": "MESOS_TCP", "portIndex": 0, "delaySeconds": 1, "gracePeriodSeconds": 120, "intervalSeconds": 5,
            "timeoutSeconds": 5, "maxConsecutiveFailures": 3,
        }],
        "labels": { "HAPROXY_GROUP": "external" },
        "upgradeStrategy": { "minimumHealthCapacity": 0, "maximumOverCapacity": 0 },
        "backoffSeconds": 1, "maxLaunchDelaySeconds": 60, "taskKillGracePeriodSeconds": 40,
    })
}

#[test]
fn the_registry_in_old_syntax_is_stored_whole() {
    let sent = registry();
    let stored = post(&sent).unwrap();
    assert_eq!((stored.dropped, stored.poison), (vec![], None));
    let mut expected = sent.clone();
    let fields = expected.as_object_mut().unwrap();
    fields.remove("uris");
    fields.extend([
        (
            "fetch".to_owned(),
            json!([{ "uri": "http://example.invalid/private-registry", "extract": false, "executable": false, "cache": false }]),
        ),
        ("networks".to_owned(), json!([{ "mode": "container/bridge" }])),
        ("role".to_owned(), json!("private-registry")),
        ("backoffFactor".to_owned(), json!(1.15)),
        ("executor".to_owned(), json!("")),
        ("gpus".to_owned(), json!(0)),
        ("requirePorts".to_owned(), json!(false)),
        ("killSelection".to_owned(), json!("YOUNGEST_FIRST")),
        ("unreachableStrategy".to_owned(), json!({ "inactiveAfterSeconds": 0, "expungeAfterSeconds": 0 })),
    ]);
    let docker = expected["container"]["docker"].as_object_mut().unwrap();
    docker.remove("network");
    let mut mappings = docker.remove("portMappings").unwrap();
    docker.insert("parameters".to_owned(), json!([]));
    mappings[1]["labels"] = json!({});
    expected["container"]["portMappings"] = mappings;
    expected["healthChecks"][0]["ipProtocol"] = json!("IPv4");
    assert_eq!(normal(&stored.definition), normal(&expected));
    assert_eq!(stored.definition["container"]["portMappings"][1]["servicePort"], 10000);
    assert_eq!(stored.definition["versionInfo"], json!({ "lastScalingAt": VERSION, "lastConfigChangeAt": VERSION }));
}

#[test]
fn sending_the_registry_again_changes_nothing() {
    let sent = registry();
    let stored = post(&sent).unwrap();
    let id = sent["id"].as_str().unwrap();
    let again = put_to(&Pose::open_2_2(), &sent.to_string(), id, Some(&stored.definition));
    assert_eq!(again.unwrap().definition, stored.definition);
}

#[test]
fn the_controller_is_stored_whole() {
    let check = json!({
        "protocol": "MESOS_HTTP", "path": "/health", "portIndex": 0, "delaySeconds": 1, "gracePeriodSeconds": 60,
        "intervalSeconds": 10, "timeoutSeconds": 5, "maxConsecutiveFailures": 6,
    });
    let sent = json!({
        "id": "/private-registry", "instances": 1, "cpus": 0.1, "mem": 64, "disk": 0, "user": "root",
        "cmd": "exec ./private-registry controller",
        "fetch": [{ "uri": "http://example.invalid/private-registry", "executable": true, "extract": false, "cache": false }],
        "constraints": [],
        "env": { "OPTION_SERVICE_NAME": "private-registry" },
        "portDefinitions": [{ "port": 0, "protocol": "tcp", "name": "http", "labels": { "VIP_0": "/private-registry:80" } }],
        "healthChecks": [check],
        "upgradeStrategy": { "minimumHealthCapacity": 0, "maximumOverCapacity": 0 },
        "backoffSeconds": 1, "maxLaunchDelaySeconds": 60, "taskKillGracePeriodSeconds": 10,
        "labels": { "DCOS_SERVICE_NAME": "private-registry", "MARATHON_SINGLE_INSTANCE_APP": "true" },
    });
    let stored = post(&sent).unwrap();
    assert_eq!((stored.dropped, stored.poison), (vec![], None));
    for field in ["id", "cmd", "user", "fetch", "env", "labels", "taskKillGracePeriodSeconds", "maxLaunchDelaySeconds"] {
        assert_eq!(stored.definition[field], sent[field], "{field}");
    }
    assert_eq!(stored.definition["portDefinitions"][0]["labels"], sent["portDefinitions"][0]["labels"]);
    assert_eq!(stored.definition["healthChecks"][0]["path"], "/health");
    assert_eq!((&stored.definition["role"], stored.definition.get("constraints")), (&json!("slave_public"), None));
}
