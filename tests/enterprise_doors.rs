//! DC/OS Enterprise in strict mode, as an operator meets it: TLS, tokens, permissions.

use crate::support::Cluster;
use lab::server::{NEWEST, Security};
use serde_json::{Value, json};

#[test]
fn an_operator_comes_in_by_tls_with_a_token_and_as_far_as_the_permissions_go() {
    let cluster = Cluster::start_as(1, 1, NEWEST, Security::Strict);

    // The real CLI, with the token that the set-up gave it and with one of its own.
    assert!(cluster.dcos_ok(&["package", "repo", "list"]).contains("lab: http://universe.lab:8000/repo.json"));
    assert_eq!(cluster.dcos_ok(&["package", "list", "--json"]).trim(), "[]");
    cluster.dcos_ok(&["config", "unset", "core.dcos_acs_token"]);
    let refused = cluster.dcos(&["package", "list"]);
    assert!(!refused.status.success(), "{}", refused.stdout);
    cluster.dcos_ok(&["auth", "login", "--username=bootstrapuser", "--password=deleteme"]);
    assert_eq!(cluster.dcos_ok(&["package", "search", "private-registry", "--json"]).matches("\"name\": \"private-registry\"").count(), 1);
    let (code, agents) = cluster.http("GET", "/mesos/slaves", None);
    assert!(code == 200 && agents.contains("192.168.1.80"), "{agents}");
    assert_eq!(cluster.dcos_ok(&["marathon", "app", "list", "--json"]).trim(), "[]");
    assert_eq!(cluster.dcos_ok(&["job", "list", "--json"]).trim(), "[]");

    // Whoever has no authority yet gets it without TLS, and nothing else.
    let ca = cluster.sh_ok("master", "curl --silent http://master.mesos/ca/dcos-ca.crt");
    assert_eq!(ca, std::fs::read_to_string(cluster.ca()).unwrap().trim());
    assert_eq!(cluster.sh_ok("master", "cat /run/dcos/pki/CA/ca-bundle.crt"), ca);
    let code = |machine: &str, url: &str| cluster.sh(machine, &format!("curl -s -k -o /dev/null -w '%{{http_code}}' {url}")).stdout;
    assert_eq!(code("master", "http://master.mesos/service/marathon/v2/info"), "307");
    let with_ca = "curl --silent --fail --cacert /run/dcos/pki/CA/ca-bundle.crt https://leader.mesos/dcos-metadata/dcos-version.json";
    assert!(cluster.sh_ok("master", with_ca).contains("\"dcos-variant\":\"enterprise\""));

    // Agents reach neither Marathon, Metronome nor Mesos without TLS; with it they need a token.
    for url in ["http://marathon.mesos:8080/ping", "http://metronome.mesos:9000/ping", "http://leader.mesos:5050/health"] {
        assert_eq!(code("192.168.1.80", url), "000", "{url}");
    }
    assert_eq!(code("192.168.1.80", "https://marathon.mesos:8443/v2/apps"), "401");
    assert_eq!(code("192.168.1.80", "https://metronome.mesos:9443/v1/jobs"), "401");

    // An account of few permissions.
    let account = json!({ "description": "ci", "password": "secret-of-ci" });
    assert_eq!(cluster.http("PUT", "/acs/api/v1/users/ci", Some(&account)).0, 201);
    let grant = |resource: &str, action: &str| {
        let acl = format!("/acs/api/v1/acls/{resource}");
        assert_eq!(cluster.http("PUT", &acl, Some(&json!({ "description": "" }))).0, 201);
        assert_eq!(cluster.http("PUT", &format!("{acl}/users/ci/{action}"), None).0, 204);
    };
    let token = cluster.token("ci", "secret-of-ci");
    let ci = |method: &str, path: &str, body: Option<&Value>| cluster.http_with(Some(&token), method, path, body);
    assert_eq!(ci("GET", "/service/marathon/v2/apps", None).0, 403);
    grant("dcos:adminrouter:service:marathon", "full");
    grant("dcos:service:marathon:marathon:services:%252Fci", "full");
    let app = |id: &str| json!({ "id": id, "cmd": "true", "instances": 0, "cpus": 0.1, "mem": 32 });
    assert_eq!(ci("POST", "/service/marathon/v2/apps", Some(&app("/ci/a"))).0, 201);
    let (code, text) = ci("POST", "/service/marathon/v2/apps", Some(&app("/other")));
    assert_eq!((code, text.as_str()), (403, r#"{"message":"Not Authorized to perform this action!"}"#));

    // Cosmos asks Marathon as its caller: what may be listed of Cosmos, but not installed at Marathon, is refused by Marathon.
    cluster.dcos_ok(&["config", "set", "core.dcos_acs_token", &token]);
    assert!(!cluster.dcos(&["package", "list"]).status.success());
    grant("dcos:adminrouter:package", "full");
    assert_eq!(cluster.dcos_ok(&["package", "list", "--json"]).trim(), "[]");
    let refused = cluster.install(&json!({}));
    assert!(!refused.status.success() && refused.stderr.contains("You are not authorized"), "{}{}", refused.stdout, refused.stderr);
    cluster.dcos_ok(&["auth", "login", "--username=bootstrapuser", "--password=deleteme"]);

    // Secrets.
    let secret = "/secrets/v1/secret/default/ci/key";
    let value = json!({ "value": "x" });
    assert_eq!(cluster.http_with(None, "PUT", secret, Some(&value)).0, 401);
    assert_eq!(ci("PUT", secret, Some(&value)).0, 403);
    grant("dcos:secrets:default:%252Fci%252Fkey", "full");
    assert_eq!([ci("PUT", secret, Some(&value)).0, ci("PUT", secret, Some(&value)).0], [201, 409]);
    assert_eq!(ci("GET", secret, None), (200, value.to_string()));

    // What the lab itself needs of Marathon it still gets; tokens end when they are told to.
    cluster.lab.restart_server().unwrap();
    assert_eq!(ci("GET", secret, None).0, 200, "tokens and secrets outlive a restart");
    let log = cluster.lab.path().join("logs/marathon-lb-192.168.1.50.log");
    let said = std::fs::read_to_string(log).unwrap();
    assert!(!said.lines().any(|line| line.contains("401") || line.contains("403")), "{said}");
    cluster.lab.control("POST", "/enterprise/expire-tokens", None).unwrap();
    assert_eq!(ci("GET", secret, None).0, 401);
    assert!(!cluster.dcos(&["package", "list"]).status.success());
    cluster.lab.control("POST", "/enterprise/seal", None).unwrap();
    assert_eq!(cluster.http("GET", secret, None).0, 503);
    cluster.lab.control("POST", "/enterprise/unseal", None).unwrap();
    assert_eq!(cluster.http("GET", secret, None).0, 200);
    let journal = std::fs::read_to_string(cluster.lab.path().join("journal.jsonl")).unwrap();
    assert!(!journal.contains(&token) && !journal.contains("deleteme"), "tokens and passwords are not journalled");
    cluster.assert_servers_answered_as_the_real_ones();
}
