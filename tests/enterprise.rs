//! The package on DC/OS Enterprise: a service account, permissions one by one, keys and certificates in the secret store.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::Cluster;
use lab::server::{NEWEST, Security};
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const ACCOUNT: &str = "private-registry";
const SECRET: &str = "private-registry/service-account";

/// `dcos security org users grant <account> <resource> <action>` as it stands in a text.
pub(crate) fn commands(text: &str) -> BTreeSet<[String; 3]> {
    let words: Vec<&str> = text.split_whitespace().map(|word| word.trim_end_matches(['"', ',', ';', '.'])).collect();
    let starts = words.windows(9).filter(|w| w[..5] == ["dcos", "security", "org", "users", "grant"]);
    let last = words.len().checked_sub(8).map(|at| &words[at..]).filter(|w| w[..5] == ["dcos", "security", "org", "users", "grant"]);
    starts.chain(last).map(|w| [w[5], w[6], w[7]].map(str::to_owned)).collect()
}

/// The names of all secrets.
fn secrets(cluster: &Cluster) -> BTreeSet<String> {
    let (code, text) = cluster.http("GET", "/secrets/v1/secret/default/?list=true", None);
    assert_eq!(code, 200, "{text}");
    let listed: Value = serde_json::from_str(&text).unwrap();
    listed["array"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn task_state(cluster: &Cluster) -> Value {
    cluster.get("/marathon/v2/apps/private-registry")["app"]["lastTaskFailure"].clone()
}

#[test]
fn in_strict_mode_every_missing_permission_is_named_and_the_secret_store_carries_keys_and_certificates() {
    let cluster = Cluster::start_as(2, 1, NEWEST, Security::Strict);
    let before = cluster.pictures();
    cluster.make_account(ACCOUNT, SECRET);
    let options = json!({ "service": { "service_account": ACCOUNT, "service_account_secret": SECRET }, "registry": { "host": HOST } });
    assert!(cluster.install(&options).status.success());

    // Marathon itself may not start a task as root yet.
    let refused = || task_state(&cluster)["message"].as_str().is_some_and(|message| message.contains("launch as user 'root'"));
    cluster.wait("Marathon's refusal", 60, refused);
    let named = commands(&cluster.dcos_ok(&["private-registry", "grants"]));
    for [account, resource, action] in named.iter().filter(|command| command[0] == "dcos_marathon") {
        cluster.grant(account, resource, action);
    }
    let given = what_the_errors_name_is_given_until_all_is_well(&cluster);
    let own: BTreeSet<[String; 3]> = named.into_iter().filter(|command| command[0] == ACCOUNT).collect();
    let surplus: Vec<_> = given.difference(&own).collect();
    assert!(surplus.is_empty(), "the errors ask for what `grants` does not list: {surplus:?}");
    // The rest is needed for a rotation and for the removal.
    for [account, resource, action] in &own {
        cluster.grant(account, resource, action);
    }
    cluster.wait_converged();

    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");
    cluster.sh_ok("192.168.1.50", "docker pull -q 192.168.0.1/base/hello:1");
    keys_and_certificates_are_in_the_store_and_nowhere_else(&cluster);
    a_token_that_expires_is_renewed(&cluster);
    the_ca_is_rotated(&cluster);
    a_sealed_store_is_reported_and_waited_for(&cluster);

    cluster.uninstall();
    assert_eq!(secrets(&cluster), [SECRET.to_owned()].into(), "only the account's own secret is left");
    cluster.assert_as_before(&before);
    cluster.assert_servers_answered_as_the_real_ones();
}

fn what_the_errors_name_is_given_until_all_is_well(cluster: &Cluster) -> BTreeSet<[String; 3]> {
    let deadline = Instant::now() + Duration::from_secs(150);
    let mut given = BTreeSet::new();
    loop {
        let status = cluster.status().unwrap_or(Value::Null);
        if status["converged"] == true {
            return given;
        }
        for command in commands(status["trouble"].as_str().unwrap_or_default()) {
            let [account, resource, action] = &command;
            cluster.grant(account, resource, action);
            if given.insert(command.clone()) {
                println!("{}", command.join(" "));
            }
        }
        if Instant::now() > deadline {
            cluster.explain();
            panic!("what was given does not suffice: {given:?}");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn keys_and_certificates_are_in_the_store_and_nowhere_else(cluster: &Cluster) {
    let stored = secrets(cluster);
    for name in [
        "private-registry/ca",
        "private-registry/order-key",
        "private-registry/state",
        "private-registry-node/first-order",
        "registry/enrolment-key",
    ] {
        assert!(stored.contains(name), "{name} is not among {stored:?}");
    }
    let pod = cluster.get("/marathon/v2/pods/private-registry-node");
    assert_eq!(pod["environment"]["PRIVATE_REGISTRY_FIRST_ORDER"], json!({ "secret": "first-order" }));
    let app = cluster.get("/marathon/v2/apps/registry")["app"].clone();
    assert_eq!(app["env"]["PRIVATE_REGISTRY_ENROLMENT_KEY"], json!({ "secret": "enrolment-key" }));
    for document in [pod, app] {
        assert!(!document.to_string().contains("BEGIN"), "{document}");
    }
    for agent in cluster.agents() {
        for (path, (_, content)) in cluster.picture(&agent) {
            let is_registrys = path.ends_with("registry/tls.key");
            assert!(is_registrys || !String::from_utf8_lossy(&content).contains("PRIVATE KEY"), "{agent}: {}", path.display());
        }
    }
    // The controller is bound to no host.
    let app = cluster.get("/marathon/v2/apps/private-registry")["app"].clone();
    assert!(app.get("constraints").is_none_or(|constraints| *constraints == json!([])), "{app}");
}

fn a_token_that_expires_is_renewed(cluster: &Cluster) {
    cluster.lab.control("POST", "/enterprise/expire-tokens", None).unwrap();
    cluster.dcos_ok(&["config", "set", "core.dcos_acs_token", &cluster.token("bootstrapuser", "deleteme")]);
    cluster.dcos_ok(&["private-registry", "converge"]);
    assert_eq!(cluster.status().unwrap()["trouble"], Value::Null);
}

fn the_ca_is_rotated(cluster: &Cluster) {
    let old = cluster.status().unwrap()["ca_fingerprint"].clone();
    cluster.dcos_ok(&["private-registry", "rotate"]);
    assert_ne!(cluster.status().unwrap()["ca_fingerprint"], old);
    cluster.sh_ok("192.168.1.50", "docker rmi -f 192.168.0.1/base/hello:1 >/dev/null && docker pull -q 192.168.0.1/base/hello:1");
    assert!(!secrets(cluster).contains("private-registry/next-ca"));
}

/// What depends on the store waits; what runs goes on.
fn a_sealed_store_is_reported_and_waited_for(cluster: &Cluster) {
    cluster.lab.control("POST", "/enterprise/seal", None).unwrap();
    assert_eq!(cluster.marathon("POST", "/apps/private-registry/restart", &Value::Null).0, 200);
    cluster.wait("Marathon to say why", 60, || task_state(cluster)["message"].as_str().is_some_and(|m| m.contains("sealed")));
    cluster.sh_ok(OTHER, "docker pull -q 192.168.0.1/base/hello:1");
    cluster.lab.control("POST", "/enterprise/unseal", None).unwrap();
    cluster.wait_converged();
}

#[test]
fn in_permissive_mode_the_package_works_with_and_without_a_service_account() {
    let cluster = Cluster::start_as(1, 1, NEWEST, Security::Permissive);
    cluster.install_and_wait(&json!({}));
    assert!(cluster.get("/marathon/v2/pods/private-registry-node").get("secrets").is_none_or(|secrets| *secrets == json!({})));
    cluster.uninstall();

    cluster.make_account(ACCOUNT, SECRET);
    cluster.dcos_ok(&["package", "install", "private-registry", "--cli", "--yes"]);
    for entry in serde_json::from_str::<Value>(&cluster.dcos_ok(&["private-registry", "grants", "--json"])).unwrap().as_array().unwrap() {
        let word = |key: &str| entry[key].as_str().unwrap().to_owned();
        cluster.grant(&word("account"), &word("resource"), &word("action"));
    }
    // The CA of a registry that others run, in a secret: the account may read it, and it reaches every agent.
    let ca = std::fs::read_to_string(cluster.ca()).unwrap();
    assert_eq!(cluster.http("PUT", "/secrets/v1/secret/default/gitlab-ca", Some(&json!({ "value": ca }))).0, 201);
    cluster.grant(ACCOUNT, "dcos:secrets:default:/gitlab-ca", "read");
    let list = "192.168.1.250:5050 secret:gitlab-ca";
    cluster.install_and_wait(&json!({ "service": { "service_account_secret": SECRET }, "other_registries": { "list": list } }));
    for agent in cluster.agents() {
        assert_eq!(cluster.sh_ok(&agent, "cat /etc/docker/certs.d/192.168.1.250:5050/ca.crt"), ca.trim());
    }
    cluster.sh_ok("192.168.1.50", "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");
    assert!(secrets(&cluster).contains("private-registry/ca"));
    cluster.uninstall();
    assert_eq!(secrets(&cluster), [SECRET.to_owned(), "gitlab-ca".to_owned()].into(), "the operator's secret stays");
    cluster.assert_servers_answered_as_the_real_ones();
}
