//! What others in the cluster can reach of the package, and what comes of their attempts; `docs/security.md` draws the whole.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::key_watch::processes_of;
use crate::support::{Cluster, made};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";

#[test]
fn what_others_reach_is_what_the_documentation_lists_and_does_nothing_for_them() {
    let cluster = Cluster::start(2, 1);
    let before: BTreeMap<String, BTreeSet<Socket>> =
        cluster.agents().into_iter().map(|agent| (agent.clone(), sockets(&cluster, &agent))).collect();
    cluster.install_and_wait(&json!({ "registry": { "host": HOST }, "auth": { "kind": "htpasswd" } }));
    every_listening_socket_is_documented(&cluster, &before);
    every_role_has_given_up_what_it_does_not_need(&cluster);
    only_root_reads_what_the_service_keeps(&cluster);
    a_reader_of_marathons_api_can_replay_an_order_and_not_make_one(&cluster);
    the_registrys_role_takes_nothing_from_strangers(&cluster);
}

/// Program and address of a listening socket; of ports that Marathon chooses only that.
type Socket = (String, String);

/// Sockets of TCP that listen on a machine, each once.
fn sockets(cluster: &Cluster, agent: &str) -> BTreeSet<Socket> {
    let shown = cluster.sh_ok(agent, "ss -Hltnp");
    let socket = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let program = line.split('"').nth(1).unwrap_or("").to_owned();
        let (address, port) = words[3].rsplit_once(':').unwrap();
        let port: u16 = port.parse().unwrap();
        // Mesos offers these on private agents; on public ones all from 1 on, of which Marathon takes none below 1025.
        let port = if (1025..=32000).contains(&port) && program != "haproxy" { "chosen".to_owned() } else { port.to_string() };
        (program, format!("{}:{port}", address.replace(agent, "agent")))
    };
    shown.lines().map(socket).collect()
}

/// The table in the documentation has a row for each, and no row is of something that is not there.
fn every_listening_socket_is_documented(cluster: &Cluster, before: &BTreeMap<String, BTreeSet<Socket>>) {
    let mut found: BTreeSet<String> = BTreeSet::new();
    for (agent, earlier) in before {
        for (program, address) in sockets(cluster, agent).difference(earlier) {
            found.insert(format!("`{program}` | `{address}`"));
        }
    }
    // What listens inside of the registry's container is in its network namespace.
    let container = cluster.sh_ok(HOST, "docker inspect --format '{{.State.Pid}}' $(docker ps --quiet --filter ancestor=registry:2.8.3)");
    let inside = cluster.sh_ok(HOST, &format!("nsenter --net=/proc/{container}/ns/net ss -Hltnp"));
    for line in inside.lines() {
        let program = line.split('"').nth(1).unwrap_or("").to_owned();
        found.insert(format!("`{program}`, in its container | `{}`", line.split_whitespace().nth(3).unwrap()));
    }
    let text = fs::read_to_string(made("docs/security.md")).unwrap();
    let table = text.split("## What listens").nth(1).expect("the section").split("\n## ").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeSet<String> =
        rows.map(|row| row.trim_start_matches("| ").split(" | ").take(2).collect::<Vec<_>>().join(" | ")).collect();
    assert_eq!(found, documented);
}

fn every_role_has_given_up_what_it_does_not_need(cluster: &Cluster) {
    let mut seen = BTreeMap::new();
    for pid in processes_of(cluster.lab.path()) {
        let argv = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&str> = argv.split('\0').collect();
        if !words.first().is_some_and(|program| program.ends_with("private-registry")) {
            continue;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let of = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().trim_start_matches('0').to_owned()
        };
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            // The job that waits for all this may not have ended yet.
            let expected = if ["controller", "init"].contains(&words[1]) { "2" } else { "b" };
            assert_eq!(of(set), expected, "{} {set}", words[1]);
        }
        assert_eq!((of("CapInh:").as_str(), of("NoNewPrivs:").as_str()), ("", "1"), "{}", words[1]);
        *seen.entry(words[1].to_owned()).or_insert(0) += 1;
    }
    seen.remove("init");
    assert_eq!(seen, BTreeMap::from([("controller".to_owned(), 1), ("node".to_owned(), 3), ("registry".to_owned(), 1)]));
}

fn only_root_reads_what_the_service_keeps(cluster: &Cluster) {
    for agent in cluster.agents() {
        let readable =
            cluster.sh(&agent, "setpriv --reuid 65534 --regid 65534 --clear-groups find /var/lib/private-registry -type f -readable");
        assert_eq!(readable.stdout, "", "{agent}");
        let all = cluster.sh_ok(&agent, "find /var/lib/private-registry -type f ! -perm 0600");
        // A certificate and a signed order are for everybody, though in a directory for root alone.
        assert!(all.lines().all(|path| path.ends_with("/tls.crt") || path.ends_with("/order.json")), "{agent}: {all}");
    }
}

fn put(cluster: &Cluster, from: &str, address: &str, order: &Value) -> String {
    let line = format!("curl -s -o /dev/null -w '%{{http_code}}' --max-time 20 -T - http://{address}/order <<'EOF'\n{order}\nEOF");
    cluster.sh_ok(from, &line)
}

fn a_reader_of_marathons_api_can_replay_an_order_and_not_make_one(cluster: &Cluster) {
    let pod = cluster.get("/marathon/v2/pods/private-registry-node::status");
    let environment = &pod["spec"]["environment"];
    let order: Value = serde_json::from_str(environment["PRIVATE_REGISTRY_FIRST_ORDER"].as_str().unwrap()).unwrap();
    let instance = pod["instances"].as_array().unwrap().iter().find(|instance| instance["agentHostname"] == OTHER).unwrap();
    let address = format!("{OTHER}:{}", instance["containers"][0]["endpoints"][0]["allocatedHostPort"]);
    let status = || -> Value { serde_json::from_str(&cluster.sh_ok(HOST, &format!("curl -s http://{address}/status"))).unwrap() };
    let version = status()["order_version"].clone();
    // Whoever reads the definition has the first order; it is the one in force, or an older one.
    assert!(["200", "409"].contains(&put(cluster, HOST, &address, &order).as_str()));
    let payload = String::from_utf8(STANDARD.decode(order["payload"].as_str().unwrap()).unwrap()).unwrap();
    let newer = payload.replacen("\"version\":", "\"version\":9", 1);
    assert_ne!(newer, payload);
    let forged = json!({ "payload": STANDARD.encode(newer), "signature": order["signature"] });
    assert_eq!(put(cluster, HOST, &address, &forged), "403");
    let restore = json!({ "service": "private-registry", "version": 1_000_000, "order": "restore" }).to_string();
    let forged = json!({ "payload": STANDARD.encode(restore), "signature": order["signature"] });
    assert_eq!(put(cluster, HOST, &address, &forged), "403");
    let huge = format!(
        "head -c 300000 /dev/zero | tr '\\0' x | curl -s -o /dev/null -w '%{{http_code}}' --max-time 20 -T - http://{address}/order"
    );
    assert_eq!(cluster.sh_ok(HOST, &huge), "400");
    assert_eq!((&status()["order_version"], &status()["phase"]), (&version, &json!("trusted")));
}

fn the_registrys_role_takes_nothing_from_strangers(cluster: &Cluster) {
    let task = cluster.get("/marathon/v2/apps/registry?embed=app.tasks")["app"]["tasks"][0].clone();
    let address = format!("{HOST}:{}", task["ports"][1]);
    let pod = cluster.get("/marathon/v2/pods/private-registry-node");
    let order: Value = serde_json::from_str(pod["environment"]["PRIVATE_REGISTRY_FIRST_ORDER"].as_str().unwrap()).unwrap();
    assert_eq!(put(cluster, OTHER, &address, &order), "409", "it is older than the certificate's");
    let retire =
        STANDARD.encode(json!({ "service": "private-registry", "version": 1_000_000, "order": "retire", "delete_data": true }).to_string());
    assert_eq!(put(cluster, OTHER, &address, &json!({ "payload": retire, "signature": order["signature"] })), "403");
    // Names of images are for the controller, and the registry's debug server for nobody.
    let code = |path: &str| cluster.sh_ok(OTHER, &format!("curl -s -o /dev/null -w '%{{http_code}}' http://{address}{path}"));
    assert_eq!((code("/images").as_str(), code("/debug/pprof/").as_str(), code("/debug/vars").as_str()), ("403", "404", "404"));
    assert!(!cluster.sh(OTHER, &format!("curl -s --max-time 2 http://{HOST}:5002/metrics")).status.success());
    let login = cluster.sh_ok(OTHER, "/opt/mesosphere/bin/curl -s -o /dev/null -w '%{http_code}' https://192.168.0.1/v2/_catalog");
    assert_eq!(login, "401");
}
