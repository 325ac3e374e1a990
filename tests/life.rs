//! The package's life in a cluster: installed with the real dcos CLI, used by real dockerds, uninstalled without a trace.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{ADMIN, Cluster, Picture};
use lab::host::AgentRole;
use serde_json::json;

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const PUBLIC: &str = "192.168.1.50";

/// Names under which agents reach the registry, as docker and curl are given them.
const INSIDE: [&str; 2] = ["192.168.0.1", "registry.marathon.l4lb.thisdcos.directory:5000"];

#[test]
fn from_install_to_uninstall() {
    let cluster = Cluster::start(3, 1);
    let agents = cluster.agents();
    let before: BTreeMap<String, Picture> = agents.iter().map(|agent| (agent.clone(), cluster.picture(agent))).collect();
    let sysctls: Vec<String> = agents.iter().map(|agent| cluster.sysctl(agent)).collect();
    for agent in &agents {
        cluster.sh_ok(agent, "docker run --detach --name canary canary:1");
    }
    let undisturbed = || -> Vec<String> {
        let pids = "cat /var/run/docker.pid; docker inspect --format '{{.State.Pid}} {{.State.StartedAt}}' canary";
        agents.iter().map(|agent| cluster.sh_ok(agent, pids)).collect()
    };
    let pids = undisturbed();

    cluster.install_and_wait(&json!({ "registry": { "host": HOST }, "names": { "external_host": PUBLIC } }));

    every_agent_has_exactly_the_right_files(&cluster, &agents, &before);
    dockerd_and_curl_of_every_agent_connect(&cluster, &agents);
    the_node_runs_without_an_image(&cluster, &agents);
    a_node_is_small(&cluster, agents.len());
    images_go_from_agent_to_agent_and_to_the_outside(&cluster);
    no_private_key_is_anywhere_but_where_it_is_used(&cluster, &agents);
    an_agent_that_joins_is_covered_by_itself(&cluster);
    the_job_runs_again_and_prints_the_table(&cluster);
    the_plugin_of_the_cli_answers(&cluster);
    assert_eq!(undisturbed(), pids, "a dockerd or a container was restarted");

    cluster.uninstall();
    for (agent, sysctl) in agents.iter().zip(&sysctls) {
        let mut after = cluster.picture(agent);
        if agent == HOST {
            let data: Vec<PathBuf> = after.keys().filter(|path| path.starts_with("data/docker-registry")).cloned().collect();
            assert!(data.len() > 10, "the images are gone, though nobody asked for that");
            data.iter().for_each(|path| drop(after.remove(path)));
        }
        assert_same(&before[agent], &after, agent);
        assert_eq!(cluster.sysctl(agent), *sysctl, "{agent}");
    }
    assert_eq!(undisturbed(), pids, "a dockerd or a container was restarted");
    cluster.assert_servers_answered_as_the_real_ones();
}

fn assert_same(before: &Picture, after: &Picture, agent: &str) {
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let changed: Vec<String> = paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path))
        .map(|path| match (before.get(path), after.get(path)) {
            (None, _) => format!("{} is new", path.display()),
            (_, None) => format!("{} is gone", path.display()),
            _ => format!("{} is changed", path.display()),
        })
        .collect();
    assert!(changed.is_empty(), "{agent}: {}", changed.join(", "));
}

fn every_agent_has_exactly_the_right_files(cluster: &Cluster, agents: &[String], before: &BTreeMap<String, Picture>) {
    let (_, ca) = cluster.lab.http("GET", &format!("{ADMIN}/service/private-registry/v1/ca"), None).unwrap();
    let controller = cluster.get("/marathon/v2/apps/private-registry")["app"]["tasks"][0]["host"].as_str().unwrap().to_owned();
    for agent in agents {
        let now = cluster.picture(agent);
        let new: BTreeMap<String, &[u8]> = now
            .iter()
            .filter(|(path, (mode, _))| !before[agent].contains_key(*path) && mode & 0o170_000 != 0o040_000)
            .map(|(path, (_, content))| (path.display().to_string(), content.as_slice()))
            .collect();
        let hash = cluster.sh_ok(agent, "openssl x509 -subject_hash -noout -in /etc/docker/certs.d/192.168.0.1/ca.crt");
        let mut expected: BTreeSet<String> = [
            "etc/docker/certs.d/192.168.0.1/ca.crt",
            "etc/docker/certs.d/192.168.0.1:443/ca.crt",
            "etc/docker/certs.d/registry.marathon.l4lb.thisdcos.directory:5000/ca.crt",
            "etc/docker/certs.d/192.168.1.50:5000/ca.crt",
            "etc/sysctl.d/60-private-registry.conf",
            "var/lib/private-registry/host.json",
            "var/lib/private-registry/private-registry/node/manifest.json",
        ]
        .map(str::to_owned)
        .into();
        expected.insert(format!("var/lib/dcos/pki/tls/certs/{hash}.0"));
        let mesos: Vec<&String> = new.keys().filter(|p| p.starts_with("var/lib/dcos/pki/tls/certs/private-registry-")).collect();
        assert_eq!(mesos.len(), 1, "{agent}: {mesos:?}");
        expected.insert(mesos[0].clone());
        let also = |path: &&String| {
            (agent == HOST
                && (path.starts_with("data/docker-registry/") || path.starts_with("var/lib/private-registry/private-registry/registry/")))
                || (*agent == controller && path.starts_with("var/lib/private-registry/private-registry/controller/"))
        };
        let found: BTreeSet<String> = new.keys().filter(|path| !also(path)).cloned().collect();
        assert_eq!(found, expected, "{agent}");
        for (path, content) in &new {
            if path.starts_with("etc/docker/certs.d/") {
                assert_eq!(String::from_utf8_lossy(content), ca, "{agent}: {path}");
            }
        }
        assert_eq!(cluster.sysctl(agent), "1", "{agent}");
        for path in before[agent].keys() {
            assert_eq!(before[agent].get(path), now.get(path), "{agent}: {} was there before and is changed", path.display());
        }
    }
}

fn dockerd_and_curl_of_every_agent_connect(cluster: &Cluster, agents: &[String]) {
    for agent in agents {
        for name in INSIDE {
            let pull = cluster.sh(agent, &format!("docker pull {name}/no/such:1"));
            assert!(!pull.status.success());
            assert!(pull.stderr.contains("manifest unknown") || pull.stderr.contains("not found"), "{agent}, {name}: {}", pull.stderr);
            let code = cluster.sh_ok(agent, &format!("/opt/mesosphere/bin/curl -s -o /dev/null -w '%{{http_code}}' https://{name}/v2/"));
            assert_eq!(code, "200", "{agent}, {name}");
        }
    }
}

/// Neither in its definition nor among the containers of any agent.
fn the_node_runs_without_an_image(cluster: &Cluster, agents: &[String]) {
    let pod = cluster.get("/marathon/v2/pods/private-registry-node");
    assert!(pod["containers"][0]["exec"].is_object() && pod["containers"][0].get("image").is_none(), "{pod}");
    for agent in agents {
        let images = cluster.sh_ok(agent, "docker ps --format '{{.Image}}' | sort -u");
        assert!(images.lines().all(|image| ["canary:1", "registry:2.8.3"].contains(&image)), "{agent}: {images}");
    }
}

/// The README promises it: a node runs on every agent, so what it takes counts once for each.
fn a_node_is_small(cluster: &Cluster, agents: usize) {
    let measured = cluster.sh_ok("master", "grep -h VmRSS $(pgrep -f '^./private-registry node' | sed 's:.*:/proc/&/status:')");
    let sizes: Vec<u64> = measured.lines().map(|line| line.split_whitespace().nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!(sizes.len(), agents, "{measured}");
    assert!(sizes.iter().all(|kib| *kib <= 4 * 1024), "{measured}");
}

fn images_go_from_agent_to_agent_and_to_the_outside(cluster: &Cluster) {
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");
    let dockerfile = r#"FROM 192.168.0.1/base/hello:1\nRUN echo built >/built\nCMD ["/bin/busybox", "cat", "/built"]\n"#;
    cluster.sh_ok("192.168.1.82", &format!("mkdir -p /tmp/b && printf '{dockerfile}' >/tmp/b/Dockerfile"));
    let pushed = "DOCKER_BUILDKIT=0 docker build -q -t 192.168.0.1/team/app:1 /tmp/b && docker push -q 192.168.0.1/team/app:1";
    cluster.sh_ok("192.168.1.82", pushed);
    assert_eq!(cluster.sh_ok(PUBLIC, "docker run --rm 192.168.0.1/team/app:1"), "built");
    let catalog = cluster.sh_ok(OTHER, "/opt/mesosphere/bin/curl -s https://192.168.0.1/v2/_catalog");
    assert_eq!(catalog, r#"{"repositories":["base/hello","team/app"]}"#);

    // A machine outside is told to trust by its owner, then goes through Marathon-LB, which sees only TLS.
    let (_, ca) = cluster.lab.http("GET", &format!("{ADMIN}/service/private-registry/v1/ca"), None).unwrap();
    let certs = cluster.lab.path().join("agents/192.168.1.200/root/etc/docker/certs.d/192.168.1.50:5000");
    cluster.sh_ok("outside", "mkdir -p /etc/docker/certs.d/192.168.1.50:5000");
    fs::write(certs.join("ca.crt"), ca).unwrap();
    cluster.wait("Marathon-LB", 30, || cluster.sh("outside", "curl -sfk -o /dev/null https://192.168.1.50:5000/v2/").status.success());
    cluster.sh_ok("outside", "docker pull -q 192.168.1.50:5000/team/app:1");
    cluster.sh_ok("outside", "docker tag canary:1 192.168.1.50:5000/outside/tool:1 && docker push -q 192.168.1.50:5000/outside/tool:1");
    cluster.sh_ok(HOST, "docker pull -q 192.168.0.1/outside/tool:1");
}

fn no_private_key_is_anywhere_but_where_it_is_used(cluster: &Cluster, agents: &[String]) {
    let mut keys: Vec<(String, Vec<u8>)> = Vec::new();
    let mut holders: BTreeSet<(String, PathBuf)> = BTreeSet::new();
    for agent in agents {
        for (path, (mode, content)) in cluster.picture(agent) {
            let text = String::from_utf8_lossy(&content).into_owned();
            let ours = path.starts_with("var/lib/private-registry");
            if ours && text.contains("PRIVATE KEY") {
                assert_eq!(mode & 0o777, 0o600, "{agent}: {}", path.display());
                let body = text.lines().skip_while(|line| !line.contains("BEGIN PRIVATE KEY")).nth(1).unwrap();
                keys.push((format!("{agent}:{}", path.display()), body.as_bytes().to_vec()));
                holders.insert((agent.clone(), path));
            } else {
                assert!(!text.contains("PRIVATE KEY"), "{agent}: {} holds a private key", path.display());
            }
        }
    }
    let controller = cluster.get("/marathon/v2/apps/private-registry")["app"]["tasks"][0]["host"].as_str().unwrap().to_owned();
    let base = Path::new("var/lib/private-registry/private-registry");
    let expected: BTreeSet<(String, PathBuf)> = [
        (controller.clone(), base.join("controller/ca.pem")),
        (controller, base.join("controller/order.key")),
        (HOST.to_owned(), base.join("registry/tls.key")),
    ]
    .into();
    assert_eq!(holders, expected);

    // Sandboxes, logs, everything that the servers were asked and answered, their state.
    let mut places: Vec<(String, Vec<u8>)> = Vec::new();
    for folder in ["journal.jsonl", "logs", "state"] {
        collect(&cluster.lab.path().join(folder), &mut places);
    }
    for agent in agents {
        collect(&cluster.lab.path().join("agents").join(agent).join("root/var/lib/mesos"), &mut places);
    }
    let processes = cluster.lab.exec("master", &["sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null"]).unwrap();
    assert!(processes.stdout.contains("PRIVATE_REGISTRY_FIRST_ORDER"), "the tasks' environments were not among what was searched");
    places.push(("environments and argument vectors".to_owned(), processes.stdout.into_bytes()));
    assert!(places.len() > 20 && places.iter().map(|(_, content)| content.len()).sum::<usize>() > 100_000);
    for (place, content) in &places {
        for (key, body) in &keys {
            assert!(!contains(content, body), "{place} holds {key}");
        }
        assert!(!contains(content, b"BEGIN PRIVATE KEY") && !contains(content, b"BEGIN EC PRIVATE KEY"), "{place} holds a private key");
    }
}

fn contains(content: &[u8], part: &[u8]) -> bool {
    content.windows(part.len()).any(|window| window == part)
}

fn collect(path: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    if path.is_dir() {
        fs::read_dir(path).into_iter().flatten().flatten().for_each(|entry| collect(&entry.path(), into));
    } else if path.file_name().is_some_and(|name| name != "private-registry")
        && let Ok(content) = fs::read(path)
    {
        into.push((path.display().to_string(), content));
    }
}

fn an_agent_that_joins_is_covered_by_itself(cluster: &Cluster) {
    for role in [AgentRole::Private, AgentRole::Public] {
        let new = cluster.lab.add_agent(role).unwrap();
        cluster.wait("the new agent to be trusted", 60, || cluster.agent_state(&new).is_some_and(|(state, _)| state == "trusted"));
        assert_eq!(cluster.sh_ok(&new, "docker run --rm 192.168.0.1/team/app:1"), "built");
    }
}

fn the_job_runs_again_and_prints_the_table(cluster: &Cluster) {
    let history = || cluster.get("/metronome/v1/jobs/private-registry.init?embed=history")["history"].clone();
    assert_eq!(history()["successCount"], 1, "the run that the controller started");
    cluster.dcos_ok(&["job", "run", "private-registry.init"]);
    cluster.wait("the run to end", 60, || history()["successCount"] == 2 || history()["failureCount"] != 0);
    assert_eq!(history()["failureCount"], 0);
    let runs = history()["successfulFinishedRuns"].as_array().unwrap().clone();
    let last = runs.iter().max_by_key(|run| run["createdAt"].as_str().unwrap().to_owned()).unwrap();
    let id = last["id"].as_str().unwrap();
    let tasks = cluster.lab.control("GET", "/tasks", None).unwrap();
    let task = tasks.as_array().unwrap().iter().find(|task| task["id"].as_str().unwrap().contains(id)).unwrap();
    let log = fs::read_to_string(Path::new(task["sandbox"].as_str().unwrap()).join("stdout")).unwrap();
    for agent in cluster.agents() {
        let row = log.lines().find(|line| line.starts_with(&format!("{agent} "))).unwrap_or_else(|| panic!("no row of {agent}: {log}"));
        assert!(row.contains("trusted") && row.contains("set"), "{row}");
    }
}

fn the_plugin_of_the_cli_answers(cluster: &Cluster) {
    let said = cluster.dcos_ok(&["private-registry", "status"]);
    for agent in cluster.agents() {
        assert!(said.lines().any(|line| line.starts_with(&format!("{agent} ")) && line.contains("trusted")), "{said}");
    }
    assert_eq!(cluster.dcos_ok(&["private-registry", "agents"]).lines().count(), 1 + cluster.agents().len());
    assert_eq!(cluster.dcos_ok(&["private-registry", "plan"]), "nothing is to be done\n");
    let json: serde_json::Value = serde_json::from_str(&cluster.dcos_ok(&["private-registry", "status", "--json"])).unwrap();
    assert_eq!(json["converged"], true);
    let (_, ca) = cluster.lab.http("GET", &format!("{ADMIN}/service/private-registry/v1/ca"), None).unwrap();
    assert_eq!(cluster.dcos_ok(&["private-registry", "ca"]), ca);
    assert!(cluster.dcos_ok(&["private-registry", "ca", "--for", "docker"]).contains("/etc/docker/certs.d/192.168.1.50:5000/ca.crt"));
    let runs = || cluster.get("/metronome/v1/jobs/private-registry.init?embed=history")["history"]["successCount"].as_u64().unwrap();
    let before = runs();
    cluster.dcos_ok(&["private-registry", "converge"]);
    cluster.wait("the run to end", 30, || runs() == before + 1);
    let wrong = cluster.dcos(&["private-registry", "status", "--name", "no-such"]);
    assert_eq!(wrong.status.code(), Some(69), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("no-such does not answer") && wrong.stderr.contains("--name"), "{}", wrong.stderr);
}
