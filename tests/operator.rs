//! What an operator asks with the real dcos CLI: every verb of the plugin, of a service at the root and of one in a group.

use crate::support::{ADMIN, Cluster, made};
use serde_json::{Value, json};

const PRIVATE: &str = "192.168.1.80";
const GROUP: &str = "infra/images";

#[test]
fn an_operator_learns_everything_with_the_cli() {
    let cluster = Cluster::start(1, 1);
    cluster.install_and_wait(&json!({ "registry": { "host": PRIVATE } }));
    let options = json!({
        "service": { "name": GROUP, "host": PRIVATE },
        "registry": { "name": "image-store", "host": PRIVATE, "storage_path": "/data/images" },
        "names": { "vip": "192.168.0.2:443", "named_vip": "images:5000" },
        "exposure": { "marathon_lb": false },
    });
    assert!(cluster.install(&options).status.success());
    let asked = |name: &str, verb: &[&str]| cluster.dcos(&[&["private-registry", "--name", name], verb].concat());
    cluster.wait("the second service", 90, || asked(GROUP, &["status"]).status.success());
    for (name, node, registry, controller) in [
        ("private-registry", "private-registry-node.", "registry.", "private-registry."),
        (GROUP, "infra.images-node.", "image-store.", "infra_images."),
    ] {
        every_verb_answers_as_json(&cluster, name);
        for (target, task) in [(PRIVATE, node), ("192.168.1.50", node), ("registry", registry), ("controller", controller)] {
            the_logs_are_of(&cluster, name, target, task);
        }
    }
    what_would_be_done_is_foreseen(&cluster);
    diagnostics_and_metrics_are_there(&cluster);
    faults_have_codes(&cluster);
    help_is_that_of_a_command_of_the_cli(&cluster);
    the_cli_itself_reads_logs(&cluster);
    a_machine_without_a_node_trusts_the_registry_by_the_script(&cluster);
    cluster.assert_servers_answered_as_the_real_ones();
}

/// Masters and machines outside are alike in this: no node runs there.
fn a_machine_without_a_node_trusts_the_registry_by_the_script(cluster: &Cluster) {
    let script = cluster.dcos_ok(&["private-registry", "masters", "--name", GROUP]);
    let file = cluster.lab.path().join("agents/192.168.1.200/root/tmp/trust.sh");
    std::fs::write(&file, script).unwrap();
    let said = cluster.sh("outside", "sh /tmp/trust.sh");
    assert!(said.status.success() && said.stdout.contains("192.168.0.2: trusted"), "{}{}", said.stdout, said.stderr);
    cluster.sh_ok("outside", "test -s /etc/docker/certs.d/192.168.0.2/ca.crt");
    cluster.sh_ok("outside", "sh /tmp/trust.sh --remove");
    assert!(!cluster.sh("outside", "ls /etc/docker/certs.d/192.168.0.2").status.success());
    // The lab's master has the disk of the machine under the lab, so there the script gets a root of its own; VIPs lead from it to the
    // registry, so what it has written is proven by what the registry serves.
    let root = cluster.lab.path().join("master-root");
    let on_master = |argument: &str| cluster.sh("master", &format!("ROOT={} sh {} {argument}", root.display(), file.display()));
    for _ in 0..2 {
        let said = on_master("");
        assert!(said.status.success() && said.stdout.contains("192.168.0.2: trusted, it answers 200"), "{}{}", said.stdout, said.stderr);
        let fingerprint = cluster.dcos_ok(&["private-registry", "ca", "--json", "--name", GROUP]);
        let fingerprint = serde_json::from_str::<Value>(&fingerprint).unwrap()["fingerprint"].as_str().unwrap().to_owned();
        assert!(said.stdout.contains(&format!("CA {fingerprint} ")), "{}", said.stdout);
    }
    assert!(on_master("--remove").status.success());
    assert!(!root.join("etc/docker/certs.d").exists());
}

fn every_verb_answers_as_json(cluster: &Cluster, name: &str) {
    let json = |verb: &str| -> Value {
        let text = cluster.dcos_ok(&["private-registry", verb, "--json", "--name", name]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{verb}: {error}: {text}"))
    };
    let status = json("status");
    assert_eq!((&status["service"], &status["converged"]), (&json!(name), &json!(true)));
    assert_eq!(json("agents"), status["agents"]);
    assert_eq!(json("plan"), json!({ "next": [] }));
    assert_eq!(
        json("ca"),
        json!({ "ca": status["ca"], "fingerprint": status["ca_fingerprint"], "names": status["names"], "public": false })
    );
    let text = cluster.dcos_ok(&["private-registry", "discovery", "--name", name]);
    let discovery: Value = serde_json::from_str(&text).unwrap();
    let vip = status["names"][0].as_str().unwrap().trim_end_matches(":443");
    assert_eq!((&discovery["version"], &discovery["service"], &discovery["preferred"]), (&json!(1), &json!(name), &json!(vip)));
    assert_eq!((&discovery["ca"]["pem"], &discovery["ca"]["sha256"]), (&status["ca"], &status["ca_fingerprint"]));
    // Twice at once: the second run may end before anybody has looked.
    for _ in 0..2 {
        assert_eq!(json("converge")["converged"], true);
    }
}

/// The real documents are known again, so that options which change nothing change nothing.
fn what_would_be_done_is_foreseen(cluster: &Cluster) {
    let plan = |arguments: &[&str]| -> Value {
        let text = cluster.dcos_ok(&[&["private-registry", "plan", "--json", "--name", GROUP], arguments].concat());
        serde_json::from_str(&text).unwrap()
    };
    let with = |options: Value| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), options.to_string()).unwrap();
        plan(&["--options", file.path().to_str().unwrap()])
    };
    let writes = || {
        let journal = cluster.lab.journal().unwrap();
        journal.iter().filter(|e| e.method != "GET" && ["marathon", "metronome", "cosmos"].contains(&e.service.as_str())).count()
    };
    let before = writes();
    assert_eq!(with(json!({}))["steps"], json!([]));
    let more = with(json!({ "registry": { "cpus": 0.3 } }));
    let steps: Vec<&str> = more["steps"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(steps[0].contains("registry.cpus: ") && steps.contains(&"run the registry: its definition has changed"), "{more:#}");
    let app = &more["documents"][0];
    assert_eq!((&app["kind"], &app["id"], &app["document"]["cpus"]), (&json!("app"), &json!("/image-store"), &json!(0.3)), "{more:#}");
    assert_eq!(app["document"]["env"]["PRIVATE_REGISTRY_ENROLMENT_KEY"], "<redacted>");
    let rotation = plan(&["--rotate"])["steps"].to_string();
    assert!(rotation.contains("send the trust bundle to 2 agents") && rotation.contains("trust the old CA no more"), "{rotation}");
    assert!(plan(&["--uninstall"])["steps"].to_string().contains("delete the job infra.images.init"));
    let status: Value = serde_json::from_str(&cluster.dcos_ok(&["private-registry", "status", "--json", "--name", GROUP])).unwrap();
    assert_eq!((&status["converged"], writes()), (&json!(true), before), "nothing was changed");
}

fn diagnostics_and_metrics_are_there(cluster: &Cluster) {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("diagnostics");
    let app = cluster.sh_ok("master", &format!("curl -fsS {ADMIN}/service/marathon/v2/apps/registry"));
    let key = serde_json::from_str::<Value>(&app).unwrap()["app"]["env"]["PRIVATE_REGISTRY_ENROLMENT_KEY"].as_str().unwrap().to_owned();
    let said = cluster.dcos_ok(&["private-registry", "diagnostics", "--json", "--out", out.to_str().unwrap()]);
    let said: Value = serde_json::from_str(&said).unwrap();
    let texts: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    assert_eq!(said["files"].as_array().unwrap().len(), texts.len());
    assert_eq!(said["missing"], json!([]), "nothing is missing that is not there anyway");
    assert!(texts.iter().any(|text| text.contains("controller started")) && texts.iter().all(|text| !text.contains(&key)));
    let metrics = cluster.sh_ok("master", &format!("curl -fsS {ADMIN}/service/private-registry/metrics"));
    for sample in
        ["private_registry_converged 1", r#"private_registry_agents{state="trusted",role="public"} 1"#, "private_registry_registry_up 1"]
    {
        assert!(metrics.lines().any(|line| line == sample), "{metrics}");
    }
    prometheus_takes_them(cluster);
}

/// By the judgement of Prometheus' own tool.
fn prometheus_takes_them(cluster: &Cluster) {
    let tool = made("target/tools/promtool/promtool").display().to_string();
    let rules = made("docs/monitoring/alerts.yml").display().to_string();
    let said = cluster.sh_ok("master", &format!("{tool} check rules {rules}"));
    assert!(said.contains("rules found"), "{said}");
    cluster.sh_ok("master", &format!("curl -fsS {ADMIN}/service/private-registry/metrics | {tool} check metrics"));
    let registry = cluster.status().unwrap()["registries"][0]["status_address"].as_str().unwrap().to_owned();
    let said = cluster.sh_ok("master", &format!("curl -fsS {registry}/metrics | grep ^private_registry"));
    assert!(said.contains("private_registry_serving 1"), "{said}");
}

fn the_logs_are_of(cluster: &Cluster, name: &str, target: &str, task: &str) {
    let logs: Value = serde_json::from_str(&cluster.dcos_ok(&["private-registry", "logs", target, "--json", "--name", name])).unwrap();
    assert!(logs["task"].as_str().unwrap().starts_with(task), "{logs}");
    assert!(!logs["stderr"].as_str().unwrap().is_empty(), "{logs}");
    let text = cluster.dcos_ok(&["private-registry", "logs", target, "--lines", "1", "--name", name]);
    let titles = text.lines().filter(|line| line.starts_with("==> ") && line.contains(task)).count();
    let lines = text.lines().filter(|line| !line.is_empty()).count();
    assert!(titles >= 1 && lines == 2 * titles, "a title and a line for each file: {text}");
}

fn faults_have_codes(cluster: &Cluster) {
    let code = |arguments: &[&str]| {
        let output = cluster.dcos(&[&["private-registry"], arguments].concat());
        (output.status.code(), output.stderr)
    };
    let (status, said) = code(&["logs", "10.0.0.1"]);
    assert!(status == Some(64) && said.contains("192.168.1.50, 192.168.1.80"), "{said}");
    assert_eq!(code(&["no-such-verb"]).0, Some(64));
    let (status, said) = code(&["backup"]);
    assert!(status == Some(69) && said.contains("there is no job private-registry.backup") && said.contains("backup.path"), "{said}");
    assert_eq!(code(&["logs", "registry", "--name", "no-such"]).0, Some(69));
    let check = |options: &Value| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), options.to_string()).unwrap();
        let output = cluster.dcos(&["private-registry", "check", "--json", "--options", file.path().to_str().unwrap()]);
        (output.status.code(), serde_json::from_str::<Value>(&output.stdout).unwrap())
    };
    assert_eq!(check(&json!({})), (Some(0), json!([])));
    let (status, faults) = check(&json!({ "names": { "vip": "x" } }));
    let fault = faults[0].as_object().unwrap();
    assert_eq!((status, fault["field"].as_str()), (Some(64), Some("names.vip")));
    assert_eq!(fault.keys().collect::<Vec<_>>(), ["field", "value", "reason", "remedy"]);
}

fn help_is_that_of_a_command_of_the_cli(cluster: &Cluster) {
    let help = cluster.dcos_ok(&["private-registry", "--help"]);
    assert!(help.contains("Usage: dcos private-registry [OPTIONS] <COMMAND>") && help.contains("Exit codes:"), "{help}");
    assert!(!help.contains("controller ") && help.lines().all(|line| line.chars().count() <= 110), "{help}");
    assert_eq!(cluster.dcos_ok(&["help", "private-registry"]), help);
    assert_eq!(cluster.dcos_ok(&["private-registry", "--info"]).lines().count(), 1);
    // As the CLI of DC/OS 1.12 and later starts it.
    let plugin = made("target/package/private-registry");
    let url = format!("DCOS_URL={ADMIN}");
    let argv = ["env", &url, "DCOS_CLI_VERSION=1.2.0", "DCOS_VERBOSITY=1", "DCOS_LOG_LEVEL=info", plugin.to_str().unwrap()];
    let output = cluster.lab.exec("master", &[&argv[..], &["private-registry", "plan"]].concat()).unwrap();
    assert_eq!(output.stdout, "nothing is to be done\n");
    assert!(output.stderr.contains("GET /service/private-registry/v1/status"), "{}", output.stderr);
}

fn the_cli_itself_reads_logs(cluster: &Cluster) {
    let log = cluster.dcos(&["task", "log", "--lines=3", "private-registry-node", "stderr"]);
    assert!(log.status.success() && log.stdout.contains("proven by its own clients"), "{}{}", log.stdout, log.stderr);
    assert!(cluster.dcos_ok(&["task", "ls", "image-store"]).contains("stderr"));
}
