//! The lab's own control API, for its command line and for tests.

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::Router;
use serde_json::{Value, json};

use super::enterprise::{MARATHON_LB, certificates};
use super::http::{Answer, Request, serve};
use super::state::{Faults, Task};
use super::{Role, Security, SharedState, agents};

/// Routes.
pub fn router(state: SharedState) -> Router {
    serve(state, answer)
}

fn answer(shared: &SharedState, request: &Request) -> Answer {
    let segments: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    match (request.method.as_str(), segments.as_slice()) {
        ("GET", ["agents"]) => Answer::json(200, &shared.read(|s| json!(s.agents.values().collect::<Vec<_>>()))),
        ("POST", ["agents"]) => add_agent(shared, request),
        ("POST", ["agents", ip, verb]) => match ip.parse() {
            Ok(ip) => agent_verb(shared, request, ip, verb),
            Err(_) => Answer::message(404, format!("{ip} is no address")),
        },
        ("GET", ["violations"]) => Answer::json(200, &shared.read(|s| json!(s.violations))),
        ("GET", ["tasks"]) => Answer::json(200, &shared.read(|s| s.tasks.values().chain(&s.completed).map(task).collect())),
        ("GET", ["journal"]) => journal(shared),
        ("GET", ["options"]) => Answer::json(200, &shared.read(|s| json!(s.options))),
        ("POST", ["options"]) => match serde_json::from_slice(&request.body) {
            Ok(options) => {
                shared.change(|state| {
                    state.options = options;
                    state.touch();
                });
                Answer::empty(204)
            }
            Err(error) => Answer::message(400, error.to_string()),
        },
        ("POST", ["enterprise", change @ ("expire-tokens" | "seal" | "unseal")]) => {
            shared.change(|state| {
                match *change {
                    "seal" => state.enterprise.sealed = true,
                    "unseal" => state.enterprise.sealed = false,
                    _ => state.enterprise.expire_tokens(),
                }
                state.touch();
            });
            Answer::empty(204)
        }
        ("POST", ["mesos", "fail-over"]) => {
            let seconds = request.param("seconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(20.0);
            shared.change(|state| agents::fail_over(state, seconds));
            Answer::empty(204)
        }
        ("GET", ["enterprise", "marathon-lb"]) => marathon_lb(shared),
        ("GET", ["faults"]) => Answer::json(200, &shared.read(|s| json!(s.faults))),
        ("POST", ["faults"]) => match serde_json::from_slice::<Faults>(&request.body) {
            Ok(faults) => {
                shared.change(|state| {
                    state.faults = faults;
                    state.touch();
                });
                Answer::empty(204)
            }
            Err(error) => Answer::message(400, error.to_string()),
        },
        ("POST", ["restart"]) => {
            std::thread::spawn(|| {
                // Time for this answer to be sent. The lab's init starts the server again.
                std::thread::sleep(Duration::from_millis(100));
                std::process::exit(0);
            });
            Answer::empty(202)
        }
        _ => Answer::message(404, "no such control"),
    }
}

/// How the lab's Marathon-LB asks Marathon. The real one's package is given an account by its operator.
fn marathon_lb(shared: &SharedState) -> Answer {
    let (security, token) = shared.read(|state| (state.pose.security, state.enterprise.issue(MARATHON_LB)));
    if security != Security::Strict {
        return Answer::json(200, &json!({ "marathon": "http://marathon.mesos:8080" }));
    }
    match std::fs::read_to_string(certificates::ca_file(&shared.dir)) {
        Ok(ca) => Answer::json(200, &json!({ "marathon": "https://marathon.mesos:8443", "token": token, "ca": ca })),
        Err(error) => Answer::message(500, error.to_string()),
    }
}

fn add_agent(shared: &SharedState, request: &Request) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
    let role = match body["role"].as_str() {
        Some("private") => Role::Private,
        Some("public") => Role::Public,
        _ => return Answer::message(400, "role must be private or public"),
    };
    let extras = match serde_json::from_value(body) {
        Ok(extras) => extras,
        Err(error) => return Answer::message(400, error.to_string()),
    };
    match agents::join(shared, role, extras) {
        Ok(ip) => Answer::json(200, &json!({ "ip": ip })),
        Err(message) => Answer::message(500, message),
    }
}

fn agent_verb(shared: &SharedState, request: &Request, ip: Ipv4Addr, verb: &str) -> Answer {
    let done = match verb {
        "leave" => agents::leave(shared, ip),
        "die" => agents::die(shared, ip, request.param("after").and_then(|seconds| seconds.parse().ok())),
        "revive" => agents::revive(shared, ip, request.flag("fresh")),
        "fill" => agents::set_filled(shared, ip, true),
        "empty" => agents::set_filled(shared, ip, false),
        _ => Err(format!("an agent cannot {verb}")),
    };
    match done {
        Ok(()) => Answer::empty(204),
        Err(message) => Answer::message(400, message),
    }
}

fn task(task: &Task) -> Value {
    json!({
        "id": task.id,
        "name": task.name,
        "agent": task.agent,
        "state": task.state_name(),
        "healthy": task.healthy,
        "sandbox": task.sandbox,
        "ports": task.resources.ports,
        "message": task.message,
    })
}

/// The journal's lines as one array.
fn journal(shared: &SharedState) -> Answer {
    let text = std::fs::read_to_string(shared.dir.join("journal.jsonl")).unwrap_or_default();
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Answer::json(200, &lines.into())
}
