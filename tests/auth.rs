//! Who may pull and push: users that the service keeps, an authorisation server; and how apps log in.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use crate::support::{ADMIN, Cluster, made};
use crate::token_server::Issuer;
use lab::ExecOutput;
use lab::server::{NEWEST, Security};
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const PUBLIC: &str = "192.168.1.50";
const IMAGE: &str = "192.168.0.1/team/app:1";
/// Where the authorisation server of the test listens.
const TOKEN_PORT: u16 = 5080;

#[test]
fn users_log_in_from_everywhere_apps_pull_with_a_login_and_a_token_server_lets_in_as_well() {
    let cluster = Cluster::start(2, 1);
    cluster.install_and_wait(&json!({
        "registry": { "host": HOST },
        "names": { "external_host": PUBLIC },
        "auth": { "kind": "htpasswd" },
    }));
    users_come_and_go(&cluster);
    docker_logs_in_through_vip_and_load_balancer(&cluster);
    an_app_pulls_with_a_login_from_an_archive(&cluster);
    a_token_server_lets_in_and_a_read_only_registry_takes_no_pushes(&cluster);
    cluster.uninstall();
    let left = cluster.sh(HOST, "ls /var/lib/private-registry").stdout;
    assert!(left.is_empty(), "{left}");
    cluster.assert_servers_answered_as_the_real_ones();
}

/// `user …` as the dcos CLI starts it, with this on standard input.
fn user(cluster: &Cluster, arguments: &str, input: &str) -> ExecOutput {
    let plugin = made("target/package/private-registry");
    cluster.sh("master", &format!("printf '%s\\n' '{input}' | DCOS_URL={ADMIN} {} user {arguments}", plugin.display()))
}

fn refused(cluster: &Cluster, arguments: &str, input: &str, words: &str) {
    let output = user(cluster, arguments, input);
    assert!(output.status.code() == Some(64) && output.stderr.contains(words), "{arguments}: {}", output.stderr);
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.dcos_ok(&["private-registry", "user", "list"]).lines().map(str::to_owned).collect()
}

/// Docker's login at a machine; the home keeps it.
fn login(cluster: &Cluster, machine: &str, registry: &str, password: &str) -> ExecOutput {
    cluster.sh(
        machine,
        &format!("mkdir -p /tmp/home; printf %s '{password}' | HOME=/tmp/home docker login -u alice --password-stdin {registry}"),
    )
}

fn docker(cluster: &Cluster, machine: &str, line: &str) -> ExecOutput {
    cluster.sh(machine, &format!("HOME=/tmp/home docker {line}"))
}

fn docker_ok(cluster: &Cluster, machine: &str, line: &str) {
    let output = docker(cluster, machine, line);
    assert!(output.status.success(), "{machine}: docker {line}: {}", output.stderr);
}

fn users_come_and_go(cluster: &Cluster) {
    assert_eq!(names(cluster), Vec::<String>::new());
    let added = user(cluster, "add alice --password-stdin", "wonderland");
    assert!(added.status.success(), "{}", added.stderr);
    assert_eq!(added.stdout, "alice may log in; every registry knows it. Users now: 1\n");
    assert!(user(cluster, "add bob --password-stdin", "builder").status.success());
    assert_eq!(names(cluster), ["alice", "bob"]);
    refused(cluster, "add alice --password-stdin", "other", "--replace");
    refused(cluster, "add a:b --password-stdin", "x", "without a colon");
    refused(cluster, "add private-registry-internal --password-stdin", "x", "the registry's own account");
    refused(cluster, "add carol", "x", "--password-stdin");
    refused(cluster, "remove carol", "", "there is no user carol");
    assert!(login(cluster, OTHER, "192.168.0.1", "wonderland").status.success());
    assert!(user(cluster, "add alice --replace --password-stdin", "looking-glass").status.success());
    assert!(user(cluster, "remove bob", "").status.success());
    assert!(!login(cluster, OTHER, "192.168.0.1", "wonderland").status.success(), "the old password counts no more");
    assert_eq!(names(cluster), ["alice"]);
    // Nothing is left of the jobs, nor of an interrupted one, and no hash is where others may read it.
    let plugin = made("target/package/private-registry");
    let cut =
        cluster.sh("master", &format!("echo x | DCOS_URL={ADMIN} timeout -s INT 1 {} user add dora --password-stdin", plugin.display()));
    assert!(cut.status.code() == Some(124) || cut.stderr.contains("interrupted") || cut.status.success(), "{}", cut.stderr);
    assert!(cluster.jobs().iter().all(|job| !job.contains(".user-")), "{:?}", cluster.jobs());
    user(cluster, "remove dora", "");
    // The interrupted change may have come in after all; the registry has it, too, a moment later.
    cluster.wait("the users to be settled", 30, || cluster.status().is_some_and(|shown| shown["users"]["settled"] == true));
    let shown = cluster.status().unwrap();
    assert_eq!((&shown["users"]["kind"], &shown["users"]["settled"]), (&json!("htpasswd"), &json!(true)));
    assert!(!shown.to_string().contains("$2"), "{shown}");
    let place = cluster.get("/marathon/v2/apps/private-registry")["app"]["tasks"][0]["host"].as_str().unwrap().to_owned();
    assert_eq!(cluster.sh_ok(&place, "stat -c %a /var/lib/private-registry/private-registry/controller/users"), "600");
}

fn docker_logs_in_through_vip_and_load_balancer(cluster: &Cluster) {
    let said = login(cluster, OTHER, "192.168.0.1", "wrong");
    assert!(!said.status.success() && said.stderr.contains("401 Unauthorized"), "{}", said.stderr);
    assert!(!docker(cluster, OTHER, "pull -q 192.168.0.1/base/hello:1").status.success());
    for (machine, registry) in [(OTHER, "192.168.0.1"), (PUBLIC, "192.168.0.1"), ("outside", "192.168.1.50:5000")] {
        if machine == "outside" {
            let ca = cluster.dcos_ok(&["private-registry", "ca"]);
            cluster.sh_ok(
                machine,
                &format!("mkdir -p /etc/docker/certs.d/{registry} && printf %s '{ca}' >/etc/docker/certs.d/{registry}/ca.crt"),
            );
        }
        let said = login(cluster, machine, registry, "looking-glass");
        assert!(said.status.success(), "{machine}: {}", said.stderr);
        let image = format!("{registry}/from/{}:1", machine.replace('.', "-"));
        docker_ok(cluster, machine, &format!("tag canary:1 {image}"));
        docker_ok(cluster, machine, &format!("push -q {image}"));
        docker_ok(cluster, machine, &format!("pull -q {image}"));
    }
}

fn file(cluster: &Cluster, agent: &str, path: &str) -> PathBuf {
    cluster.lab.path().join("agents").join(agent).join("root").join(path)
}

fn an_app_pulls_with_a_login_from_an_archive(cluster: &Cluster) {
    docker_ok(cluster, OTHER, &format!("tag canary:1 {IMAGE}"));
    docker_ok(cluster, OTHER, &format!("push -q {IMAGE}"));
    docker_ok(cluster, OTHER, &format!("rmi {IMAGE}"));
    let snippet = |place: &str| serde_json::from_str::<Value>(&cluster.dcos_ok(&["private-registry", "snippet", "--for", place])).unwrap();
    // Marathon starts it again and again, and Mesos cannot pull.
    let plain = snippet("marathon-app");
    assert_eq!(cluster.marathon("POST", "/apps", &plain).0, 201);
    let failed = || cluster.get("/marathon/v2/apps/app")["app"]["lastTaskFailure"]["message"].as_str().map(str::to_owned);
    cluster.wait("the pull to fail", 30, || failed().is_some_and(|message| message.contains("Failed to pull")));
    assert_eq!(cluster.marathon("DELETE", "/apps/app?force=true", &Value::Null).0, 200);
    cluster.wait("the app to go", 30, || cluster.is_calm());

    // docs/authentication.md: the home with the login, in an archive on every agent.
    cluster.sh_ok(OTHER, "tar -C /tmp/home -czf /etc/docker.tar.gz .docker");
    fs::copy(file(cluster, OTHER, "etc/docker.tar.gz"), file(cluster, HOST, "etc/docker.tar.gz")).unwrap();
    assert_eq!(cluster.marathon("POST", "/apps", &snippet("marathon-app-login")).0, 201);
    cluster.wait("the app to run", 30, || cluster.get("/marathon/v2/apps/app")["app"]["tasksRunning"] == 1);
    assert_eq!(cluster.marathon("DELETE", "/apps/app", &Value::Null).0, 200);
    // Marathon has no pullConfig for docker.
    let mut secret = snippet("marathon-app-secret");
    secret["container"]["type"] = json!("DOCKER");
    let (code, said) = cluster.marathon("POST", "/apps", &secret);
    assert!(code == 422 && said.to_string().contains("pullConfig is not supported with Docker containerizer"), "{code} {said}");
    cluster.wait("the app to go", 30, || cluster.is_calm());
}

fn a_token_server_lets_in_and_a_read_only_registry_takes_no_pushes(cluster: &Cluster) {
    let issuer = Issuer::new("the-issuer", "the-service");
    fs::write(file(cluster, OTHER, "tmp/token-server.json"), issuer.for_server(TOKEN_PORT)).unwrap();
    fs::copy(std::env::current_exe().unwrap(), file(cluster, OTHER, "tmp/token-server")).unwrap();
    cluster.sh_ok(OTHER, &Issuer::start_server("/tmp/token-server", "/tmp/token-server.json"));
    cluster.update(&json!({
        "registry": { "read_only": true },
        "auth": {
            "kind": "token", "token_realm": format!("http://{OTHER}:{TOKEN_PORT}/token"), "token_service": "the-service",
            "token_issuer": "the-issuer", "token_certificates": issuer.certificate(),
        },
    }));
    let is_so = |status: &Value| status["converged"] == true && status["users"]["kind"] == "token" && status["read_only"] == true;
    cluster.wait("the registry to ask the token server", 90, || {
        cluster.status().is_some_and(|status| is_so(&status)) && login(cluster, PUBLIC, "192.168.0.1", "wonderland").status.success()
    });
    assert!(cluster.dcos_ok(&["private-registry", "status"]).contains("serving on 192.168.1.80, for pulls only"));
    docker_ok(cluster, PUBLIC, &format!("pull -q {IMAGE}"));
    assert!(!cluster.sh(HOST, &format!("docker pull -q {IMAGE}")).status.success(), "without a login");
    assert!(!login(cluster, HOST, "192.168.0.1", "wrong").status.success());
    refused(cluster, "add alice --password-stdin", "x", "auth.kind is token");
    assert!(cluster.sh(HOST, "ls /var/lib/private-registry/private-registry/registry").stdout.lines().all(|name| name != "htpasswd"));
    docker_ok(cluster, PUBLIC, "tag canary:1 192.168.0.1/by/token:1");
    assert!(!docker(cluster, PUBLIC, "push -q 192.168.0.1/by/token:1").status.success());
    // The token would do for a push; without one the answer is another.
    let post =
        "curl -s -o /dev/null -w %{http_code} -X POST --capath /var/lib/dcos/pki/tls/certs https://192.168.0.1/v2/by/token/blobs/uploads/";
    let bearer = format!("{post} -H 'Authorization: Bearer {}'", issuer.token("alice", &[("by/token", &["pull", "push"])]));
    assert_eq!((cluster.sh_ok(HOST, &bearer), cluster.sh_ok(HOST, post)), ("405".to_owned(), "401".to_owned()));
}

/// In Enterprise the users are a secret, which takes a permission, and apps pull with a secret, too.
#[test]
fn in_enterprise_a_permission_lets_change_the_users_and_the_mesos_containerizer_pulls_with_a_secret() {
    const ACCOUNT: &str = "private-registry";
    const SECRET: &str = "private-registry/service-account";
    let cluster = Cluster::start_as(1, 0, NEWEST, Security::Permissive);
    cluster.make_account(ACCOUNT, SECRET);
    cluster.dcos_ok(&["package", "install", "private-registry", "--cli", "--yes"]);
    for entry in serde_json::from_str::<Value>(&cluster.dcos_ok(&["private-registry", "grants", "--json"])).unwrap().as_array().unwrap() {
        let word = |key: &str| entry[key].as_str().unwrap().to_owned();
        cluster.grant(&word("account"), &word("resource"), &word("action"));
    }
    cluster.install_and_wait(&json!({
        "service": { "service_account_secret": SECRET },
        "exposure": { "marathon_lb": false },
        "auth": { "kind": "htpasswd" },
    }));

    // Somebody who may look, and then also change.
    let ci = json!({ "description": "ci", "password": "secret-of-ci" });
    assert_eq!(cluster.http("PUT", "/acs/api/v1/users/ci", Some(&ci)).0, 201);
    cluster.grant("ci", "dcos:adminrouter:service:private-registry", "full");
    let (plugin, ca) = (made("target/package/private-registry"), cluster.ca());
    let as_ci = |arguments: &str, input: &str| {
        let token = cluster.token("ci", "secret-of-ci");
        let environment = format!("DCOS_URL={} DCOS_TLS_CA_PATH={} DCOS_ACS_TOKEN={token}", cluster.admin(), ca.display());
        cluster.sh("master", &format!("printf '%s\\n' '{input}' | {environment} {} user {arguments}", plugin.display()))
    };
    let refused = as_ci("add alice --password-stdin", "wonderland");
    let asked = "it takes dcos:secrets:default:/private-registry/users full";
    assert!(refused.status.code() == Some(1) && refused.stderr.contains(asked), "{}", refused.stderr);
    cluster.grant("ci", "dcos:secrets:default:/private-registry/users", "full");
    let added = as_ci("add alice --password-stdin", "wonderland");
    assert!(added.status.success() && added.stdout.contains("alice may log in"), "{}{}", added.stdout, added.stderr);
    let (code, stored) = cluster.http("GET", "/secrets/v1/secret/default/private-registry/users", None);
    assert!(code == 200 && stored.contains("alice:$2b$10$"), "{stored}");
    let app = cluster.get("/marathon/v2/apps/registry").to_string();
    assert!(!app.contains("alice"), "{app}");

    let said = login(&cluster, HOST, "192.168.0.1", "wonderland");
    assert!(said.status.success(), "{}", said.stderr);
    docker_ok(&cluster, HOST, &format!("tag canary:1 {IMAGE}"));
    docker_ok(&cluster, HOST, &format!("push -q {IMAGE}"));
    let mut app: Value = serde_json::from_str(&cluster.dcos_ok(&["private-registry", "snippet", "--for", "marathon-app-secret"])).unwrap();
    app["cmd"] = json!("exec /bin/busybox sleep 1000");
    let config = cluster.sh_ok(HOST, "cat /tmp/home/.docker/config.json");
    assert_eq!(cluster.http("PUT", "/secrets/v1/secret/default/docker-config", Some(&json!({ "value": config }))).0, 201);
    assert_eq!(cluster.marathon("POST", "/apps", &app).0, 201);
    cluster.wait("the app to run", 30, || cluster.get("/marathon/v2/apps/app")["app"]["tasksRunning"] == 1);
    let elsewhere = cluster.sh(HOST, "grep -rlF \"$(grep -o '\"auth\": *\"[^\"]*' /tmp/home/.docker/config.json)\" /var/lib/mesos").stdout;
    assert!(elsewhere.is_empty(), "no task sees it: {elsewhere}");
    // Without it, nothing is pulled.
    assert_eq!(cluster.marathon("DELETE", "/apps/app", &Value::Null).0, 200);
    cluster.wait("the app to go", 30, || cluster.is_calm());
    app["container"]["docker"].as_object_mut().unwrap().remove("pullConfig");
    assert_eq!(cluster.marathon("POST", "/apps", &app).0, 201);
    let failed = || cluster.get("/marathon/v2/apps/app")["app"]["lastTaskFailure"]["message"].as_str().map(str::to_owned);
    cluster.wait("the pull to fail", 30, || failed().is_some_and(|message| message.contains("asks for a login")));
    assert_eq!(cluster.marathon("DELETE", "/apps/app?force=true", &Value::Null).0, 200);
    cluster.wait("the app to go", 30, || cluster.is_calm());

    assert!(as_ci("remove alice", "").status.success());
    assert!(!login(&cluster, HOST, "192.168.0.1", "wonderland").status.success());
    cluster.uninstall();
    assert_eq!(cluster.http("GET", "/secrets/v1/secret/default/private-registry/users", None).0, 404);
    cluster.assert_nothing_was_lost();
}
