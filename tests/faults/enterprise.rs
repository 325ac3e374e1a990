//! DC/OS Enterprise: secret store, permissions, tokens and accounts.

use lab::host::AgentRole;
use lab::server::{NEWEST, Security};
use serde_json::{Value, json};

use super::{Fault, is_well, push_image};
use crate::support::{Cluster, made};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const PUBLIC: &str = "192.168.1.50";
const ACCOUNT: &str = "private-registry";
const SECRET: &str = "private-registry/service-account";

pub(super) const FAULTS: &[&str] = &[
    "Enterprise: the secret store is sealed",
    "Enterprise: the secret store refuses a permission",
    "Enterprise: every token is revoked",
    "Enterprise: the account's key is taken away",
    "Enterprise: the controller's agent dies",
];

#[test]
#[ignore = "three minutes; ci/faults runs it"]
fn secret_store_and_login_fail_and_come_back() {
    let cluster = installed();
    the_store_is_sealed(&cluster);
    the_store_refuses(&cluster);
    every_token_is_revoked(&cluster);
    the_account_is_taken_away(&cluster);
    cluster.uninstall();
}

#[test]
#[ignore = "a minute; ci/faults runs it"]
fn a_controller_with_a_secret_store_goes_on_elsewhere() {
    let cluster = installed();
    the_controllers_agent_dies(&cluster);
    cluster.uninstall();
}

fn installed() -> Cluster {
    let cluster = Cluster::start_as(3, 1, NEWEST, Security::Strict);
    cluster.make_account(ACCOUNT, SECRET);
    cluster.dcos_ok(&["package", "install", "private-registry", "--cli", "--yes"]);
    for entry in serde_json::from_str::<Value>(&cluster.dcos_ok(&["private-registry", "grants", "--json"])).unwrap().as_array().unwrap() {
        let word = |key: &str| entry[key].as_str().unwrap().to_owned();
        cluster.grant(&word("account"), &word("resource"), &word("action"));
    }
    let options = json!({
        "service": { "service_account": ACCOUNT, "service_account_secret": SECRET },
        "registry": { "host": HOST },
        "exposure": { "marathon_lb": false },
    });
    // The registry's agent is none that the controller may die with.
    cluster.lab.fill(HOST).unwrap();
    assert!(cluster.install(&options).status.success());
    cluster.wait("the controller", 60, || cluster.status().is_some());
    cluster.lab.empty(HOST).unwrap();
    cluster.wait_converged();
    push_image(&cluster, HOST);
    cluster
}

/// That it has a node has to be kept, for the day of the uninstall. Where the store is sealed none of its tasks would start.
fn an_agent_joins(cluster: &Cluster) {
    cluster.lab.add_agent(AgentRole::Private).unwrap();
}

fn the_store_is_sealed(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Enterprise: the secret store is sealed", &[OTHER, PUBLIC]);
    cluster.lab.control("POST", "/enterprise/seal", None).unwrap();
    cluster.dcos_ok(&["job", "run", "private-registry.rotate"]);
    fault.is_seen(60);
    cluster.lab.control("POST", "/enterprise/unseal", None).unwrap();
    fault.is_healed(90);
    // The rotation goes on, and restarts the one registry that there is.
    fault.ends_after_an_outage(2.0);
}

fn the_store_refuses(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Enterprise: the secret store refuses a permission", &[OTHER, PUBLIC]);
    let (resource, action) = ("dcos:secrets:default:/private-registry/state", "full");
    let acl = format!("/acs/api/v1/acls/{}/users/{ACCOUNT}/{action}", resource.replace('/', "%252F"));
    let taken = cluster.http("DELETE", &acl, None);
    assert_eq!(taken.0, 204, "{}", taken.1);
    an_agent_joins(cluster);
    fault.is_seen(60);
    cluster.grant(ACCOUNT, resource, action);
    fault.is_healed(90);
    fault.ends();
}

fn every_token_is_revoked(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Enterprise: every token is revoked", &[OTHER, PUBLIC]);
    cluster.lab.control("POST", "/enterprise/expire-tokens", None).unwrap();
    cluster.dcos_ok(&["config", "set", "core.dcos_acs_token", &cluster.token("bootstrapuser", "deleteme")]);
    cluster.dcos_ok(&["private-registry", "converge"]);
    fault.is_seen(30);
    fault.ends();
}

fn the_account_is_taken_away(cluster: &Cluster) {
    let mut fault = Fault::begin(cluster, "Enterprise: the account's key is taken away", &[OTHER, PUBLIC]);
    let user = format!("/acs/api/v1/users/{ACCOUNT}");
    let grants: Value = serde_json::from_str(&cluster.dcos_ok(&["private-registry", "grants", "--json"])).unwrap();
    assert_eq!(cluster.http("DELETE", &user, None).0, 204);
    cluster.lab.control("POST", "/enterprise/expire-tokens", None).unwrap();
    cluster.dcos_ok(&["config", "set", "core.dcos_acs_token", &cluster.token("bootstrapuser", "deleteme")]);
    fault.is_seen(60);
    let key = std::fs::read_to_string(made("tests/fixtures/service-account/public-key.pem")).unwrap();
    assert_eq!(cluster.http("PUT", &user, Some(&json!({ "description": "Private registry", "public_key": key }))).0, 201);
    for entry in grants.as_array().unwrap().iter().filter(|entry| entry["account"] == ACCOUNT) {
        let word = |key: &str| entry[key].as_str().unwrap().to_owned();
        cluster.grant(ACCOUNT, &word("resource"), &word("action"));
    }
    fault.is_healed(90);
    fault.ends();
}

/// Its keys lie in the secret store, so Marathon starts it elsewhere and it goes on.
fn the_controllers_agent_dies(cluster: &Cluster) {
    let task = cluster.get("/marathon/v2/apps/private-registry")["app"]["tasks"][0].clone();
    let (host, ca) = (task["host"].as_str().unwrap().to_owned(), cluster.status().unwrap()["ca_fingerprint"].clone());
    let pulling: Vec<&str> = [OTHER, PUBLIC].into_iter().filter(|agent| *agent != host).collect();
    let mut fault = Fault::begin(cluster, "Enterprise: the controller's agent dies", &pulling);
    assert_ne!(host, HOST, "controller and registry are on one agent, so this shows nothing");
    cluster.lab.die(&host).unwrap();
    // It is elsewhere again within seconds.
    let said = cluster.dcos(&["private-registry", "status"]);
    fault.reads(&format!("{}{}", said.stdout, said.stderr));
    fault.is_seen(30);
    fault.is_healed_when(120, is_well);
    assert_eq!(cluster.status().unwrap()["ca_fingerprint"], ca, "it has its keys");
    fault.ends();
    cluster.lab.revive(&host, false).unwrap();
    cluster.wait_converged();
}
