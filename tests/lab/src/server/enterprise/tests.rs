//! Enterprise as its clients see it: through Admin Router, and before Marathon and Metronome.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::server::clock::now;
use crate::server::pretence::Pretence;
use crate::server::{Options, Pose, Shared, SharedState, admin_router, marathon, metronome, pose_file};

struct Cluster {
    shared: SharedState,
    admin_router: Router,
    marathon: Router,
    metronome: Router,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

struct Said {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }
}

fn cluster(security: Security) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    let pose = Pose { security, ..Pose::open_2_2() };
    std::fs::write(pose_file(dir.path()), serde_json::to_vec(&pose).unwrap()).unwrap();
    certificates::prepare(dir.path()).unwrap();
    let host = Pretence { dir: dir.path().join("agents"), ..Pretence::default() };
    let shared = Shared::open(dir.path(), Arc::new(host), Options::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    Cluster {
        admin_router: runtime.block_on(async { admin_router::router(shared.clone()).unwrap() }),
        marathon: doors::marathon(&shared, marathon::router(shared.clone())),
        metronome: doors::metronome(&shared, metronome::router(shared.clone())),
        shared,
        runtime,
        _dir: dir,
    }
}

impl Cluster {
    fn send(&self, router: &Router, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Said {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.runtime.block_on(async {
            let answer = router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
            let (head, body) = answer.into_parts();
            let bytes = to_bytes(body, usize::MAX).await.unwrap();
            Said { status: head.status.as_u16(), headers: head.headers, text: String::from_utf8_lossy(&bytes).into_owned() }
        })
    }

    /// A JSON call by an account, or by nobody.
    fn call(&self, router: &Router, account: Option<&str>, method: &str, path: &str, body: &Value) -> Said {
        let token = account.map(|account| format!("token={}", self.shared.read(|state| state.enterprise.issue(account))));
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(token.as_deref().map(|token| ("authorization", token)));
        self.send(router, method, path, &headers, if body.is_null() { Vec::new() } else { body.to_string().into_bytes() })
    }

    fn admin(&self, account: Option<&str>, method: &str, path: &str, body: &Value) -> Said {
        self.call(&self.admin_router, account, method, path, body)
    }

    fn add(&self, account: &str, grants: &[(&str, &str)]) {
        self.shared.change(|state| {
            state.enterprise.accounts.insert(account.to_owned(), Account::default());
            grants.iter().for_each(|(resource, action)| state.enterprise.grant(account, resource, action));
        });
    }
}

const ROOT: Option<&str> = Some(BOOTSTRAP_USER);

#[test]
fn a_user_logs_in_with_a_password_and_a_service_with_its_key() {
    let cluster = cluster(Security::Strict);
    let login = |body: &Value| cluster.admin(None, "POST", "/acs/api/v1/auth/login", body);
    let user = login(&json!({ "uid": "bootstrapuser", "password": "deleteme" }));
    let token = user.json()["token"].as_str().unwrap().to_owned();
    let cookies: Vec<_> = user.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
    assert!(user.status == 200 && cookies[0].starts_with(&format!("dcos-acs-auth-cookie={token}")), "{cookies:?}");
    let (private, public) = tokens::tests::service_keys();
    let account = json!({ "description": "Registry", "public_key": public });
    assert_eq!(cluster.admin(ROOT, "PUT", "/acs/api/v1/users/registry", &account).status, 201);
    assert_eq!(cluster.admin(ROOT, "PUT", "/acs/api/v1/users/registry", &account).json()["code"], "ERR_USER_EXISTS");
    let proof = tokens::tests::proof(&private, &json!({ "uid": "registry", "exp": now() + 300.0 }));
    assert_eq!(login(&json!({ "uid": "registry", "token": proof })).status, 200);
    for wrong in [
        json!({ "uid": "bootstrapuser", "password": "wrong" }),
        json!({ "uid": "nobody", "password": "deleteme" }),
        json!({ "uid": "registry", "token": format!("{proof}A") }),
        json!({ "uid": "dcos_marathon", "password": "" }),
    ] {
        let refused = login(&wrong);
        assert_eq!((refused.status, &refused.json()["code"]), (401, &json!("ERR_INVALID_CREDENTIALS")));
        assert!(refused.json()["title"].is_string() && refused.json()["description"].is_string());
    }
    let long = login(&json!({ "uid": "registry", "token": proof, "exp": now() - 1.0 })).json()["token"].as_str().unwrap().to_owned();
    assert!(cluster.shared.read(|state| state.enterprise.account_of(&long)).is_err(), "a service chooses the end of its token");
}

#[test]
fn accounts_and_permissions_are_the_superusers_affair() {
    let cluster = cluster(Security::Permissive);
    cluster.add("ci", &[]);
    assert_eq!(cluster.admin(None, "GET", "/acs/api/v1/users/ci", &Value::Null).status, 401);
    assert_eq!(cluster.admin(Some("ci"), "GET", "/acs/api/v1/users/ci", &Value::Null).status, 403);
    assert_eq!(cluster.admin(None, "GET", "/acs/api/v1/auth/providers", &Value::Null).status, 200);
    assert_eq!(cluster.admin(ROOT, "GET", "/acs/api/v1/users/ci", &Value::Null).json()["uid"], "ci");
    let acl = "/acs/api/v1/acls/dcos:service:marathon:marathon:services:%252Finfra";
    let grant = format!("{acl}/users/ci/read");
    assert_eq!(cluster.admin(ROOT, "PUT", &grant, &Value::Null).json()["code"], "ERR_UNKNOWN_RESOURCE_ID");
    let statuses = |method: &str, path: &str| cluster.admin(ROOT, method, path, &json!({ "description": "x" })).status;
    assert_eq!([statuses("PUT", acl), statuses("PUT", acl)], [201, 409]);
    assert_eq!([statuses("PUT", &grant), statuses("PUT", &grant)], [204, 409]);
    assert!(cluster.shared.read(|state| state.enterprise.allows_service("ci", "/infra/a", "read")));
    assert_eq!([statuses("DELETE", &grant), statuses("DELETE", &grant)], [204, 400]);
    assert!(!cluster.shared.read(|state| state.enterprise.allows_service("ci", "/infra/a", "read")));
    assert_eq!([statuses("DELETE", "/acs/api/v1/users/ci"), statuses("GET", "/acs/api/v1/users/ci")], [204, 400]);
}

#[test]
fn a_secret_is_made_changed_read_listed_and_deleted() {
    let cluster = cluster(Security::Permissive);
    let path = "/secrets/v1/secret/default/registry/key";
    let status = |method: &str, body: &Value| cluster.admin(ROOT, method, path, body).status;
    let value = json!({ "value": "one" });
    assert_eq!([status("PATCH", &value), status("GET", &Value::Null), status("DELETE", &Value::Null)], [404, 404, 404]);
    assert_eq!([status("PUT", &value), status("PUT", &value), status("PATCH", &json!({ "value": "two" }))], [201, 409, 204]);
    assert_eq!(cluster.admin(ROOT, "GET", path, &Value::Null).json(), json!({ "value": "two" }));
    let list = cluster.admin(ROOT, "GET", "/secrets/v1/secret/default/registry?list=true", &Value::Null);
    assert_eq!(list.json(), json!({ "array": ["key"] }));
    assert_eq!(status("DELETE", &Value::Null), 204);
    for bad in [json!({ "value": 1 }), json!({ "value": "x", "other": 1 }), json!([])] {
        assert_eq!(status("PUT", &bad), 400);
    }
    assert_eq!(status("PUT", &json!({ "value": "x".repeat(1024 * 1024 + 1) })), 413);
}

#[test]
fn a_secret_of_bytes_comes_back_as_bytes() {
    let cluster = cluster(Security::Strict);
    let token = format!("token={}", cluster.shared.read(|state| state.enterprise.issue(BOOTSTRAP_USER)));
    let headers = [("authorization", token.as_str()), ("content-type", "application/octet-stream")];
    let path = "/secrets/v1/secret/default/key";
    assert_eq!(cluster.send(&cluster.admin_router, "PUT", path, &headers, b"PEM".to_vec()).status, 201);
    let back = cluster.admin(ROOT, "GET", path, &Value::Null);
    assert_eq!((back.headers["content-type"].to_str().unwrap(), back.text.as_str()), ("application/octet-stream", "PEM"));
}

#[test]
fn the_secret_store_wants_a_permission_for_every_single_secret_and_be_unsealed() {
    let cluster = cluster(Security::Permissive);
    cluster.add(
        "ci",
        &[("dcos:secrets:default:/a/b", "create"), ("dcos:secrets:default:/a", "full"), ("dcos:secrets:list:default:/a", "read")],
    );
    let value = json!({ "value": "x" });
    let status =
        |account, method: &str, path: &str| cluster.admin(account, method, &format!("/secrets/v1/secret/default/{path}"), &value).status;
    let ci = Some("ci");
    assert_eq!([status(None, "PUT", "a/b"), status(ci, "PUT", "a/c"), status(ci, "PUT", "a/b")], [401, 403, 201]);
    assert_eq!([status(ci, "GET", "a/b"), status(ci, "GET", "a?list=true"), status(ci, "GET", "?list=true")], [403, 200, 403]);
    let sealed = |sealed| {
        cluster.shared.change(|state| state.enterprise.sealed = sealed);
        cluster.admin(ROOT, "GET", "/secrets/v1/seal-status/default", &Value::Null).json()["sealed"].clone()
    };
    assert_eq!(sealed(true), true);
    assert_eq!(status(ROOT, "GET", "a/b"), 503);
    assert_eq!(sealed(false), false);
    assert_eq!(status(ROOT, "GET", "a/b"), 200);
}

#[test]
fn admin_router_tells_what_one_needs_to_log_in_and_nothing_more_without_a_token() {
    let cluster = cluster(Security::Strict);
    let get = |account, path: &str| cluster.admin(account, "GET", path, &Value::Null);
    assert_eq!(get(None, "/dcos-metadata/dcos-version.json").json()["dcos-variant"], "enterprise");
    assert!(get(None, "/ca/dcos-ca.crt").text.starts_with("-----BEGIN CERTIFICATE-----"));
    let refused = get(None, "/pkgpanda/active.buildinfo.full.json");
    assert_eq!((refused.status, refused.headers["www-authenticate"].to_str().unwrap()), (401, "acsjwt"));
    assert!(refused.text.contains("<html>"));
    for path in
        ["/dcos-metadata/bootstrap-config.json", "/capabilities", "/metadata", "/service/marathon/v2/apps", "/service/x/", "/mesos/slaves"]
    {
        assert_eq!(get(None, path).status, 401, "{path}");
    }
    assert_eq!(get(ROOT, "/dcos-metadata/bootstrap-config.json").json(), json!({ "security": "strict" }));
    assert!(get(ROOT, "/capabilities").text.contains("SECRETS"));
    cluster.add("ci", &[]);
    for path in ["/service/marathon/v2/apps", "/service/metronome/v1/jobs", "/mesos/slaves", "/package/list", "/cosmos/service/update"] {
        assert_eq!(get(Some("ci"), path).status, 403, "{path}");
    }
    assert_eq!(get(Some("ci"), "/capabilities").status, 200);
}

#[test]
fn only_the_authority_is_to_be_had_without_tls_in_strict_mode() {
    let cluster = cluster(Security::Strict);
    let router = admin_router::only_with_tls(cluster.admin_router.clone());
    let sent = cluster.send(&router, "GET", "/package/list?x=y", &[("host", "192.168.1.69")], Vec::new());
    assert_eq!((sent.status, sent.headers["location"].to_str().unwrap()), (307, "https://192.168.1.69/package/list?x=y"));
    assert_eq!(cluster.send(&router, "GET", "/ca/dcos-ca.crt", &[], Vec::new()).status, 200);
}

#[test]
fn marathon_does_for_an_account_what_its_grants_cover_and_shows_no_more() {
    let cluster = cluster(Security::Strict);
    let service = |id: &str| format!("{SERVICES}{id}");
    cluster.add(
        "ci",
        &[(&service("/infra"), "read"), (&service("/infra/a"), "full"), ("dcos:service:marathon:marathon:admin:config", "read")],
    );
    let app = |id: &str| json!({ "id": id, "cmd": "true", "instances": 0 });
    let call = |account, method: &str, path: &str, body: &Value| cluster.call(&cluster.marathon, account, method, path, body);
    let status = |account, method: &str, path: &str, body: &Value| call(account, method, path, body).status;
    let ci = Some("ci");
    assert_eq!(status(None, "GET", "/v2/apps", &Value::Null), 401);
    assert_eq!(status(ci, "POST", "/v2/apps", &app("/infra/a")), 201);
    let denied = call(ci, "POST", "/v2/apps", &app("/infra/b"));
    assert_eq!((denied.status, denied.json()), (403, json!({ "message": "Not Authorized to perform this action!" })));
    assert_eq!([status(ROOT, "POST", "/v2/apps", &app("/infra/b")), status(ROOT, "POST", "/v2/apps", &app("/other"))], [201, 201]);
    assert_eq!([status(ci, "GET", "/v2/apps//infra/b", &Value::Null), status(ci, "GET", "/v2/apps/other", &Value::Null)], [200, 403]);
    assert_eq!(status(ci, "PUT", "/v2/apps/infra/b", &app("/infra/b")), 403);
    let listed = call(ci, "GET", "/v2/apps", &Value::Null).json();
    let ids: Vec<&Value> = listed["apps"].as_array().unwrap().iter().map(|app| &app["id"]).collect();
    assert_eq!(ids, ["/infra/a", "/infra/b"]);
    let groups = call(ci, "GET", "/v2/groups", &Value::Null).text;
    assert!(groups.contains("/infra/a") && !groups.contains("/other"), "{groups}");
    assert_eq!([status(ci, "GET", "/v2/info", &Value::Null), status(ci, "GET", "/v2/events", &Value::Null)], [200, 403]);
    assert_eq!([status(ci, "POST", "/v2/groups", &json!({ "id": "/new" })), status(None, "GET", "/ping", &Value::Null)], [403, 200]);
    assert_eq!(status(ci, "DELETE", "/v2/apps/infra/a", &Value::Null), 200);
}

#[test]
fn metronome_does_for_an_account_what_its_grants_cover_and_shows_no_more() {
    let cluster = cluster(Security::Strict);
    cluster.add("ci", &[(&format!("{JOBS}:infra"), "full")]);
    let job = |id: &str| json!({ "id": id, "run": { "cpus": 0.1, "mem": 32, "disk": 0, "cmd": "true" } });
    let call = |account, method: &str, path: &str, body: &Value| cluster.call(&cluster.metronome, account, method, path, body);
    assert_eq!(call(None, "GET", "/v1/jobs", &Value::Null).status, 401);
    let made = call(Some("ci"), "POST", "/v1/jobs", &job("infra.proof"));
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(call(Some("ci"), "POST", "/v1/jobs", &job("other")).status, 403);
    assert_eq!(call(ROOT, "POST", "/v1/jobs", &job("other")).status, 201);
    let listed = call(Some("ci"), "GET", "/v1/jobs", &Value::Null).json();
    assert_eq!(listed.as_array().unwrap().iter().map(|job| &job["id"]).collect::<Vec<_>>(), ["infra.proof"]);
    assert_eq!(call(Some("ci"), "GET", "/v1/jobs/other", &Value::Null).status, 403);
}

#[test]
fn in_permissive_mode_nobody_in_particular_is_a_superuser_but_a_token_counts() {
    let cluster = cluster(Security::Permissive);
    cluster.add("ci", &[]);
    let app = json!({ "id": "/a", "cmd": "true", "instances": 0 });
    assert_eq!(cluster.call(&cluster.marathon, Some("ci"), "POST", "/v2/apps", &app).status, 403);
    assert_eq!(cluster.call(&cluster.marathon, None, "POST", "/v2/apps", &app).status, 201);
    let stale = [("authorization", "token=a.b.c")];
    assert_eq!(cluster.send(&cluster.marathon, "GET", "/v2/apps", &stale, Vec::new()).status, 401);
}

#[test]
fn the_authority_signs_for_whoever_may_use_it_and_for_the_hosts_that_are_given() {
    let cluster = cluster(Security::Permissive);
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::new(["other.example".to_owned()]).unwrap().serialize_request(&key).unwrap().pem().unwrap();
    let asked = json!({ "certificate_request": csr, "hosts": ["registry.example", "192.168.0.1"] });
    cluster.shared.change(|state| {
        for account in ["ci", "signer"] {
            state.enterprise.accounts.insert(account.to_owned(), Account::default());
        }
        state.enterprise.grant("signer", "dcos:adminrouter:ops:ca:rw", "full");
    });
    assert_eq!(cluster.admin(None, "POST", "/ca/api/v2/sign", &asked).status, 401);
    assert_eq!(cluster.admin(Some("ci"), "POST", "/ca/api/v2/sign", &asked).status, 403);
    let signed = cluster.admin(Some("signer"), "POST", "/ca/api/v2/sign", &asked);
    assert_eq!((signed.status, &signed.json()["success"]), (200, &json!(true)), "{}", signed.text);
    let (_, pem) = x509_parser::pem::parse_x509_pem(signed.json()["result"]["certificate"].as_str().unwrap().as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!((names, leaf.issuer().to_string()), (2, leaf_issuer(&cluster)));
    let bad = cluster.admin(Some("signer"), "POST", "/ca/api/v2/sign", &json!({ "certificate_request": "x" }));
    assert_eq!((bad.status, &bad.json()["success"]), (400, &json!(false)), "{}", bad.text);
}

fn leaf_issuer(cluster: &Cluster) -> String {
    let info = cluster.admin(Some("signer"), "POST", "/ca/api/v2/info", &json!({ "profile": "" }));
    let (_, pem) = x509_parser::pem::parse_x509_pem(info.json()["result"]["certificate"].as_str().unwrap().as_bytes()).unwrap();
    pem.parse_x509().unwrap().subject().to_string()
}
