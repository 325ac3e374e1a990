//! Whose certificate the registry serves with: the operator's, from a private CA or a public one, and that of DC/OS Enterprise.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::Cluster;
use lab::server::{NEWEST, Security};
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const LB: &str = "192.168.1.50";
/// Where the operator keeps his certificate on the registry's agent.
const FOLDER: &str = "/etc/registry-tls";
const NAMED: &str = "registry.marathon.l4lb.thisdcos.directory";
const ACCOUNT: &str = "private-registry";
const ACCOUNT_SECRET: &str = "private-registry/service-account";

/// The only name that a public CA signs for.
const OWN: &str = "registry.example.com";

/// An operator with a CA.
struct Operator {
    dir: tempfile::TempDir,
}

impl Operator {
    fn new() -> Self {
        let operator = Self { dir: tempfile::tempdir().unwrap() };
        operator.openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 30 -subj /O=Example/CN=Example-CA");
        operator
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl").current_dir(self.dir.path()).args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    /// Certificate and key for these names, both PEM.
    fn certify(&self, names: &str, days: u32) -> (String, String) {
        self.openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout leaf.key -out leaf.csr -subj /CN=registry");
        fs::write(self.dir.path().join("ext"), format!("subjectAltName={names}\n")).unwrap();
        self.openssl(&format!("x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -days {days} -extfile ext -out leaf.pem"));
        (self.read("leaf.pem"), self.read("leaf.key"))
    }
}

/// Puts a certificate and its key where the options say, as renewing programs do: each in one step.
fn put(cluster: &Cluster, pair: &(String, String)) {
    for (name, text) in [("fullchain.pem", &pair.0), ("privkey.pem", &pair.1)] {
        cluster.sh_ok(HOST, &format!("mkdir -p {FOLDER} && printf %s '{text}' >{FOLDER}/new && mv {FOLDER}/new {FOLDER}/{name}"));
    }
}

fn root(cluster: &Cluster, agent: &str) -> PathBuf {
    cluster.lab.path().join("agents").join(agent).join("root")
}

fn options(ca: &str) -> Value {
    let (certificate, key) = (format!("{FOLDER}/fullchain.pem"), format!("{FOLDER}/privkey.pem"));
    json!({
        "registry": { "host": HOST },
        "names": { "external_host": LB },
        "security": { "mode": "provided", "certificate": certificate, "key": key, "ca": ca },
    })
}

fn serial(cluster: &Cluster, agent: &str, name: &str) -> String {
    cluster.sh(agent, &format!("openssl s_client -connect {name} </dev/null 2>/dev/null | openssl x509 -noout -serial")).stdout
}

fn problems(cluster: &Cluster) -> Vec<String> {
    let status = cluster.status().unwrap_or_default();
    status["problems"].as_array().into_iter().flatten().map(|problem| problem.as_str().unwrap().to_owned()).collect()
}

fn push_and_pull(cluster: &Cluster, name: &str) {
    cluster.sh_ok(OTHER, &format!("docker tag canary:1 {name}/base/hello:1 && docker push -q {name}/base/hello:1"));
    cluster.sh_ok(HOST, &format!("docker pull -q {name}/base/hello:1"));
}

#[test]
fn a_certificate_of_the_operators_from_a_private_ca_is_served_trusted_and_replaced_without_touching_a_node() {
    let (cluster, operator) = (Cluster::start(2, 1), Operator::new());
    let inside = format!("IP:192.168.0.1,DNS:{NAMED}");
    put(&cluster, &operator.certify(&inside, 20));
    cluster.install_and_wait(&options(&operator.read("ca.pem")));
    push_and_pull(&cluster, "192.168.0.1");
    for agent in [HOST, OTHER, LB] {
        let stored = cluster.sh_ok(agent, "cat /etc/docker/certs.d/192.168.0.1/ca.crt");
        assert_eq!(stored, operator.read("ca.pem").trim(), "{agent}");
    }
    let status = cluster.status().unwrap();
    assert_eq!(status["ca"].as_str().unwrap(), operator.read("ca.pem"));
    let home = root(&cluster, status["registry"].as_str().unwrap().rsplit(' ').next().unwrap());
    assert!(!home.join("var/lib/private-registry/private-registry/controller/ca.pem").exists(), "no CA of its own is made");
    let found = problems(&cluster);
    assert!(found.iter().any(|problem| problem.starts_with(&format!("the certificate does not speak for {LB}: add it"))), "{found:?}");
    assert!(found.iter().any(|problem| problem.contains("certificate ends on")), "{found:?}");

    // The operator renews it, with the name that was missing.
    let (nodes, before) = (cluster.get("/marathon/v2/pods/private-registry-node::status"), serial(&cluster, OTHER, "192.168.0.1:443"));
    put(&cluster, &operator.certify(&format!("{inside},IP:{LB}"), 90));
    cluster.wait("the new certificate", 30, || {
        let now = serial(&cluster, OTHER, "192.168.0.1:443");
        now.starts_with("serial=") && now != before && problems(&cluster).is_empty()
    });
    cluster.wait_converged();
    let instances = |status: &Value| status["instances"].as_array().unwrap().iter().map(|i| i["id"].clone()).collect::<Vec<_>>();
    assert_eq!(instances(&cluster.get("/marathon/v2/pods/private-registry-node::status")), instances(&nodes));
    push_and_pull(&cluster, "192.168.0.1");
    cluster.wait("Marathon-LB to lead there", 30, || {
        cluster.sh(OTHER, &format!("curl -sf --cacert /etc/docker/certs.d/192.168.0.1/ca.crt https://{LB}:5000/v2/")).status.success()
    });
    push_and_pull(&cluster, &format!("{LB}:5000"));
    another_mode_and_back(&cluster, &operator);
    cluster.uninstall();
    cluster.sh_ok(HOST, &format!("test -s {FOLDER}/privkey.pem"));
    cluster.assert_servers_answered_as_the_real_ones();
}

fn another_mode_and_back(cluster: &Cluster, operator: &Operator) {
    let own_ca = "/var/lib/private-registry/private-registry/controller/ca.pem";
    let provided = cluster.get("/marathon/v2/apps/private-registry")["app"]["env"].clone();
    let mut own = provided.clone();
    for key in ["CERTIFICATE", "KEY", "CA"] {
        own[format!("OPTION_SECURITY_{key}")] = json!("");
    }
    own["OPTION_SECURITY_MODE"] = json!("self_signed");
    own["OPTION_SECURITY_ORGANIZATION"] = json!("Example");
    let switch = |env: Value, is_ca: &dyn Fn(&str) -> bool| {
        assert_eq!(cluster.marathon("PUT", "/apps/private-registry", &json!({ "env": env })).0, 200);
        let switched = |status: Value| status["converged"] == true && is_ca(status["ca"].as_str().unwrap());
        cluster.wait("the other mode", 90, || cluster.status().is_some_and(switched));
        push_and_pull(cluster, "192.168.0.1");
    };
    let theirs = operator.read("ca.pem");
    switch(own, &|ca| !ca.contains(&theirs));
    let subject = cluster.sh_ok(OTHER, "openssl x509 -noout -subject -in /etc/docker/certs.d/192.168.0.1/ca.crt");
    assert!(subject.starts_with("subject=O = Example, CN = private-registry CA"), "{subject}");
    cluster.sh_ok(HOST, "! test -e /var/lib/private-registry/private-registry/registry/provided.key");
    switch(provided, &|ca| ca == theirs);
    for agent in [HOST, OTHER] {
        assert_eq!(cluster.sh_ok(agent, "cat /etc/docker/certs.d/192.168.0.1/ca.crt"), theirs.trim(), "{agent}");
        cluster.sh_ok(agent, &format!("! test -e {own_ca}"));
    }
}

#[test]
fn a_certificate_from_a_public_ca_needs_no_files_on_agents() {
    let (cluster, operator) = (Cluster::start(2, 1), Operator::new());
    for machine in cluster.agents().into_iter().chain(["outside".into()]) {
        // What the vendor of the operating system has done for a public CA.
        cluster.sh_ok(&machine, &format!("printf %s '{}' >>/etc/ssl/certs/ca-certificates.crt", operator.read("ca.pem")));
        // And what the operator has told his DNS: inside the name is the VIP, outside it is Marathon-LB.
        let address = if machine == "outside" { LB } else { "192.168.0.1" };
        cluster.sh_ok(&machine, &format!("echo '{address} {OWN}' >>/etc/hosts"));
    }
    // A public CA signs for neither the VIP nor a name below .directory.
    put(&cluster, &operator.certify(&format!("DNS:{OWN}"), 90));
    let mut given = options("");
    given["names"] = json!({ "external_host": OWN, "inside": format!("{OWN}:443") });
    cluster.install_and_wait(&given);
    push_and_pull(&cluster, OWN);
    assert_eq!(problems(&cluster), Vec::<String>::new());
    let names = cluster.status().unwrap()["names"].clone();
    assert_eq!(names, json!([format!("{OWN}:443"), format!("{OWN}:5000")]));
    cluster.wait("Marathon-LB to lead there", 30, || cluster.sh("outside", &format!("curl -sf https://{OWN}:5000/v2/")).status.success());
    cluster.sh_ok("outside", &format!("docker pull -q {OWN}:5000/base/hello:1"));
    for agent in cluster.agents() {
        cluster.sh_ok(&agent, "[ -z \"$(ls -A /etc/docker/certs.d /var/lib/dcos/pki/tls/certs 2>/dev/null | grep -v :)\" ]");
        assert_eq!(cluster.sysctl(&agent), "1", "{agent}");
    }
    let (code, text) = cluster.http("GET", "/service/private-registry/v1/ca", None);
    assert_eq!(code, 404);
    assert!(text.contains("public CA"), "{text}");
    let told = cluster.dcos(&["private-registry", "ca"]);
    assert!(told.status.success() && told.stdout.is_empty() && told.stderr.contains("public CA"), "{}{}", told.stdout, told.stderr);
    cluster.uninstall();
}

/// An account with what `grants` prints.
fn make_account(cluster: &Cluster, options: &Value) {
    cluster.make_account(ACCOUNT, ACCOUNT_SECRET);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), options.to_string()).unwrap();
    cluster.dcos_ok(&["package", "install", "private-registry", "--cli", "--yes"]);
    let grants = cluster.dcos_ok(&["private-registry", "grants", "--options", file.path().to_str().unwrap(), "--json"]);
    for entry in serde_json::from_str::<Value>(&grants).unwrap().as_array().unwrap() {
        let word = |key: &str| entry[key].as_str().unwrap();
        cluster.grant(word("account"), word("resource"), word("action"));
    }
}

#[test]
fn on_enterprise_the_certificate_comes_from_secrets_or_is_signed_by_the_clusters_ca() {
    let (cluster, operator) = (Cluster::start_as(2, 0, NEWEST, Security::Permissive), Operator::new());
    let account = json!({ "service_account": ACCOUNT, "service_account_secret": ACCOUNT_SECRET });
    let with = |security: Value| json!({ "service": account, "registry": { "host": HOST }, "exposure": { "marathon_lb": false }, "security": security });
    let signed = with(json!({ "mode": "dcos_ca", "key_type": "p384" }));
    make_account(&cluster, &signed);

    let (certificate, key) = operator.certify(&format!("IP:192.168.0.1,DNS:{NAMED}"), 90);
    cluster.store_secret("registry/certificate", &certificate);
    cluster.store_secret("registry-key", &key);
    let names = json!({ "mode": "provided", "certificate": "registry/certificate", "key": "registry-key", "ca": operator.read("ca.pem") });
    cluster.install_and_wait(&with(names));
    push_and_pull(&cluster, "192.168.0.1");
    assert_eq!(problems(&cluster), Vec::<String>::new());
    let app = cluster.get("/marathon/v2/apps/registry")["app"].to_string();
    assert!(app.contains("registry/certificate") && !app.contains("BEGIN"), "{app}");
    let said = cluster.dcos_ok(&["private-registry", "rotate"]);
    assert!(said.contains("renew the secret registry/certificate and the secret registry-key, then restart the app /registry"), "{said}");
    cluster.uninstall();

    cluster.install_and_wait(&signed);
    push_and_pull(&cluster, "192.168.0.1");
    let ca = fs::read_to_string(cluster.ca()).unwrap();
    assert_eq!(cluster.sh_ok(OTHER, "cat /etc/docker/certs.d/192.168.0.1/ca.crt"), ca.trim());
    let leaf = "openssl s_client -connect 192.168.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -issuer -text";
    let leaf = cluster.sh_ok(OTHER, leaf);
    assert!(leaf.contains("DC/OS Root CA") && leaf.contains("P-384") && leaf.contains("IP Address:192.168.0.1"), "{leaf}");
    let served = "openssl s_client -connect 192.168.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -fingerprint";
    let before = cluster.sh_ok(OTHER, served);
    let said = cluster.dcos_ok(&["private-registry", "rotate"]);
    assert!(said.contains("the registry got another certificate of it"), "{said}");
    assert_ne!(cluster.sh_ok(OTHER, served), before);
    assert_eq!(problems(&cluster), Vec::<String>::new());
    cluster.uninstall();
    cluster.assert_servers_answered_as_the_real_ones();
}
