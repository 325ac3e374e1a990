//! Tasks on DC/OS Enterprise: whose they are, and how they get their secrets.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use crate::support::Cluster;
use lab::server::{NEWEST, Security};
use lab::{ExecOutput, Lab};
use serde_json::{Value, json};

const MARATHON: &str = "http://192.168.1.69:8080";
const AGENT: &str = "192.168.1.80";

fn post(lab: &Lab, path: &str, body: &Value) {
    let (status, text) = lab.http("POST", &format!("{MARATHON}{path}"), Some(body)).unwrap();
    assert_eq!(status, 201, "{text}");
}

fn get(lab: &Lab, path: &str) -> Value {
    serde_json::from_str(&lab.http("GET", &format!("{MARATHON}{path}"), None).unwrap().1).unwrap()
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn wait_running(lab: &Lab, app: &str) {
    wait(&format!("{app} to run"), || get(lab, &format!("/v2/apps{app}"))["app"]["tasksRunning"] == 1);
}

fn last_failure(lab: &Lab, app: &str) -> Value {
    let failure = || get(lab, &format!("/v2/apps{app}"))["app"]["lastTaskFailure"].clone();
    wait(&format!("{app} to fail"), || failure().is_object());
    failure()
}

fn sh(lab: &Lab, script: &str) -> ExecOutput {
    lab.exec(AGENT, &["sh", "-c", script]).unwrap()
}

fn app(id: &str, cmd: &str) -> Value {
    json!({ "id": id, "cmd": cmd, "cpus": 0.1, "mem": 32 })
}

#[test]
fn in_permissive_mode_a_task_gets_its_secrets_as_its_user_and_nothing_keeps_them() {
    let cluster = Cluster::start_as(1, 0, NEWEST, Security::Permissive);
    let (lab, ca) = (&cluster.lab, std::fs::read_to_string(cluster.ca()).unwrap());
    let secret = json!({ "value": "dreadful-secret" });
    assert_eq!(cluster.http("PUT", "/secrets/v1/secret/default/team/key", Some(&secret)).0, 201);
    let says = "id -un; pwd > /dev/null; printf '%s\n' \"$KEY\"; cat keys/key; echo; stat -c '%U %a' . keys/key; cat .ssl/ca-bundle.crt; sleep 1000";
    let mut reader = app("/team/reader", says);
    reader["user"] = "nobody".into();
    reader["secrets"] = json!({ "k": { "source": "team/key" } });
    reader["env"] = json!({ "KEY": { "secret": "k" } });
    reader["container"] = json!({ "type": "MESOS", "volumes": [{ "containerPath": "keys/key", "secret": "k" }] });
    post(lab, "/v2/apps", &reader);
    wait_running(lab, "/team/reader");
    let sandbox = "cd $(dirname $(find /var/lib/mesos -name task.json))";
    wait("the task to speak", || sh(lab, &format!("{sandbox}; cat stdout")).stdout.ends_with(&ca));
    let stdout = sh(lab, &format!("{sandbox}; cat stdout")).stdout;
    assert_eq!(stdout, format!("nobody\ndreadful-secret\ndreadful-secret\nnobody 755\nnobody 600\n{ca}"));
    assert_eq!(sh(lab, "cat /run/dcos/pki/CA/ca-bundle.crt").stdout, ca);
    // It was told to stdout, and lies in its file.
    let elsewhere = "grep -rl dreadful-secret /run/lab /var/lib/mesos --exclude stdout --exclude lab";
    assert!(sh(lab, elsewhere).stdout.trim().ends_with("/keys/key"));
    assert_eq!(lab.http("DELETE", &format!("{MARATHON}/v2/apps/team/reader"), None).unwrap().0, 200);
    wait("the secret's file to go", || sh(lab, elsewhere).stdout.is_empty());

    post(lab, "/v2/apps", &app("/root", "id -un > /tmp/root; sleep 1000"));
    wait_running(lab, "/root");
    wait("root's word", || sh(lab, "cat /tmp/root").stdout == "root\n");

    let mut stranger = app("/stranger", "sleep 1000");
    stranger["user"] = "no-such-user".into();
    post(lab, "/v2/apps", &stranger);
    let failure = last_failure(lab, "/stranger");
    assert!(failure["state"] == "TASK_FAILED" && failure["message"].as_str().unwrap().contains("no-such-user"), "{failure}");

    reader["id"] = "/other/reader".into();
    post(lab, "/v2/apps", &reader);
    let failure = last_failure(lab, "/other/reader");
    assert!(failure["state"] == "TASK_FAILED" && failure["message"].as_str().unwrap().contains("team/key"), "{failure}");
}
