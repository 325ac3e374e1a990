//! Plain HTTP: docker on every agent is told so without a restart, and forgets it at the end.

#![allow(clippy::unwrap_used)]

use crate::support::Cluster;
use serde_json::{Value, json};

const PRIVATE: &str = "192.168.1.80";
const REFUSED: &str = "192.168.1.81";
const PUBLIC: &str = "192.168.1.50";
const VIP: &str = "192.168.0.1:443";
const NAMED_VIP: &str = "registry.marathon.l4lb.thisdcos.directory:5000";
/// Laid out so that no program would write it like this.
const FOREIGN: &str =
    "{ \"log-level\":\"info\",\n\"insecure-registries\" : [ \"other.example:5000\" ]\n\n  ,\"max-concurrent-downloads\": 4}";

fn insecure_names(cluster: &Cluster, agent: &str) -> Vec<String> {
    let info = cluster.sh_ok(agent, "curl -s --unix-socket /run/docker.sock http://docker/info");
    let info: Value = serde_json::from_str(&info).unwrap();
    let configs = info["RegistryConfig"]["IndexConfigs"].as_object().unwrap();
    configs.iter().filter(|(_, config)| config["Secure"] == false).map(|(name, _)| name.clone()).collect()
}

fn daemon_json(cluster: &Cluster, agent: &str) -> Option<String> {
    let read = cluster.sh(agent, "cat /etc/docker/daemon.json");
    read.status.success().then_some(read.stdout)
}

/// Process id of dockerd, and when a container was started that must not notice anything.
fn untouched(cluster: &Cluster, agent: &str) -> String {
    cluster.sh_ok(agent, "systemctl show docker -p MainPID; docker inspect -f '{{.State.Running}} {{.State.StartedAt}}' bystander")
}

fn push_and_pull(cluster: &Cluster, agents: &[&str]) {
    for agent in agents {
        for name in [VIP, NAMED_VIP] {
            let image = format!("{name}/plain/from-{}:1", agent.replace('.', "-"));
            let line = format!("docker tag canary:1 {image} && docker push -q {image} && docker rmi {image} && docker pull -q {image}");
            cluster.sh_ok(agent, &line);
        }
    }
}

#[test]
fn without_tls_docker_is_told_on_every_agent_and_forgets_it_at_the_end() {
    let cluster = Cluster::start(2, 1);
    cluster.sh_ok(PRIVATE, &format!("printf '%s' '{FOREIGN}' >/etc/docker/daemon.json && chmod 640 /etc/docker/daemon.json"));
    cluster.sh_ok(PRIVATE, "systemctl reload docker");
    // An agent whose dockerd has the flag: its unit says so from the next start on.
    cluster.sh_ok(REFUSED, "echo --insecure-registry=elsewhere.example:5000 >/etc/dockerd.flags");
    cluster.lab.die(REFUSED).unwrap();
    cluster.lab.revive(REFUSED, false).unwrap();
    for agent in [PRIVATE, PUBLIC, REFUSED] {
        cluster.sh_ok(agent, "docker run -d --name bystander canary:1");
    }
    let agents = [PRIVATE, PUBLIC, REFUSED];
    let before = agents.map(|agent| (untouched(&cluster, agent), daemon_json(&cluster, agent), insecure_names(&cluster, agent)));
    assert!(before[0].2.contains(&"other.example:5000".to_owned()), "{:?}", before[0].2);

    let options = |mode: &str| json!({ "security": { "mode": mode }, "service": { "host": PRIVATE }, "registry": { "host": PRIVATE } });
    let output = cluster.install(&options("insecure"));
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    docker_is_told(&cluster);
    an_agent_with_the_flag_is_refused(&cluster);
    push_and_pull(&cluster, &[PRIVATE, PUBLIC]);
    an_entry_that_somebody_removes_comes_back(&cluster);
    it_is_said_aloud(&cluster);

    // The agent with the flag holds nothing up that does not need its daemon.json.
    cluster.update(&options("self_signed"));
    cluster.wait_converged();
    for (index, agent) in agents.into_iter().enumerate() {
        assert_eq!(daemon_json(&cluster, agent), before[index].1, "{agent}");
        assert_eq!(insecure_names(&cluster, agent), before[index].2, "{agent}");
        cluster.sh_ok(agent, "test -s /etc/docker/certs.d/192.168.0.1/ca.crt");
    }
    push_and_pull(&cluster, &[PRIVATE, PUBLIC]);

    cluster.update(&options("insecure"));
    docker_is_told(&cluster);
    for agent in agents {
        cluster.sh_ok(agent, "test ! -e /etc/docker/certs.d");
    }
    cluster.uninstall();
    for (index, agent) in agents.into_iter().enumerate() {
        assert_eq!(daemon_json(&cluster, agent), before[index].1, "{agent}");
        assert_eq!(insecure_names(&cluster, agent), before[index].2, "{agent}");
        assert_eq!(untouched(&cluster, agent), before[index].0, "{agent}");
    }
    assert_eq!(cluster.sh_ok(PRIVATE, "stat -c %a /etc/docker/daemon.json"), "640");
    cluster.assert_servers_answered_as_the_real_ones();
}

fn docker_is_told(cluster: &Cluster) {
    for agent in [PRIVATE, PUBLIC] {
        let proven = ("trusted".to_owned(), "proven by docker; Mesos' own image puller speaks http only on port 80".to_owned());
        cluster.wait(&format!("{agent} to be told"), 60, || cluster.agent_state(agent).as_ref() == Some(&proven));
        let names = insecure_names(cluster, agent);
        assert!([VIP, NAMED_VIP].iter().all(|name| names.contains(&(*name).to_owned())), "{agent}: {names:?}");
    }
    let registry = cluster.get("/marathon/v2/apps/registry")["app"]["healthChecks"][0]["protocol"].clone();
    assert_eq!(registry, "MESOS_HTTP");
    let foreign = daemon_json(cluster, PRIVATE).unwrap();
    assert!(foreign.starts_with("{ \"log-level\":\"info\",\n\"insecure-registries\" : [ \"other.example:5000\", \""), "{foreign}");
    assert!(foreign.ends_with(" ]\n\n  ,\"max-concurrent-downloads\": 4}"), "{foreign}");
}

fn an_agent_with_the_flag_is_refused(cluster: &Cluster) {
    cluster.wait("the refusal", 30, || cluster.agent_state(REFUSED).is_some_and(|(state, _)| state == "failed"));
    let detail = cluster.agent_state(REFUSED).unwrap().1;
    assert!(detail.contains("--insecure-registry") && detail.contains("move the flag's values"), "{detail}");
    assert_eq!(daemon_json(cluster, REFUSED), None);
}

fn an_entry_that_somebody_removes_comes_back(cluster: &Cluster) {
    cluster.sh_ok(PUBLIC, "echo '{\"insecure-registries\": []}' >/etc/docker/daemon.json && systemctl reload docker");
    cluster.dcos_ok(&["job", "run", "private-registry.init"]);
    let is_back = || insecure_names(cluster, PUBLIC).contains(&VIP.to_owned());
    cluster.wait("the entry to come back", 30, is_back);
}

fn it_is_said_aloud(cluster: &Cluster) {
    let status = cluster.status().unwrap();
    let said = |text: &Value| text.as_str().unwrap().starts_with("INSECURE: images and passwords travel unencrypted");
    assert!(said(&status["summary"]) && said(&status["problems"][0]), "{status:#}");
    assert_eq!((status["ca_fingerprint"].clone(), status["ca"].clone()), (Value::Null, json!("")));
    let page = cluster.http("GET", "/service/private-registry/", None).1;
    assert!(page.contains("INSECURE: images") && !page.contains("v1/ca"), "{page}");
    assert_eq!(cluster.http("GET", "/service/private-registry/v1/ca", None).0, 404);
    assert!(!cluster.dcos(&["private-registry", "ca"]).status.success());
    // The logs of controller and registry.
    let logs = cluster.sh_ok(PRIVATE, "grep -rl --include=stderr 'INSECURE: ' /var/lib/mesos | wc -l");
    assert!(logs.parse::<usize>().unwrap() >= 2, "{logs}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({ "security": { "mode": "insecure" } }).to_string()).unwrap();
    let check = cluster.dcos(&["private-registry", "check", "--options", file.path().to_str().unwrap()]);
    assert!(check.status.success() && check.stderr.contains("warning: security.mode: INSECURE: "), "{}{}", check.stdout, check.stderr);
    let trust = cluster.dcos_ok(&["private-registry", "ca", "--for", "docker"]);
    assert!(trust.contains(&format!("\"insecure-registries\": [\"{VIP}\"")), "{trust}");
    let keys = cluster.sh_ok(PRIVATE, "grep -rl 'PRIVATE KEY' /var/lib/private-registry");
    assert_eq!(keys, "/var/lib/private-registry/private-registry/controller/order.key");
}
