//! A registry made by hand as in the tutorial for DC/OS 1.9, with its key on every agent, is taken over together with its images.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::Cluster;
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const PUBLIC: &str = "192.168.1.50";
const KEY: &str = "/etc/privateregistry/certs/domain.key";
const COPY: &str = "/etc/docker/certs.d/192.168.0.1/ca.crt";

/// The tutorial's commands on the machine where the certificate is made.
const CERTIFICATE: &str = r#"
cd "$(mktemp -d)" && openssl req -newkey rsa:2048 -nodes -keyout domain.key -x509 -days 365 -out domain.crt \
  -subj "/C=CN/ST=SH/L=Shang Hai/O=example.com/CN=192.168.0.1" -addext "subjectAltName = IP:192.168.0.1" 2>/dev/null
cat domain.key domain.crt
"#;

/// Pulls the old image until `stop` is there; one line an attempt: time, exit code, words.
const LOOP: &str = r#"
while [ ! -e /tmp/stop ]; do
  docker rmi -f 192.168.0.1/base/hello:1 >/dev/null 2>&1
  out=$(docker pull -q 192.168.0.1/base/hello:1 2>&1); code=$?
  echo "$(date +%s.%N) $code $(echo "$out" | tr '\n' ' ')"
  sleep 0.3
done
touch /tmp/ended
"#;

#[test]
fn a_registry_made_by_hand_is_taken_over_with_its_images_and_its_exposed_keys_go_when_that_is_asked_for() {
    let cluster = Cluster::start(3, 1);
    a_registry_is_made_by_hand(&cluster);
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");
    let before = cluster.pictures();

    without_being_told_nothing_is_taken_over(&cluster, &before);
    told_to_the_package_goes_on_with_its_images(&cluster);
    the_exposed_keys_are_reported(&cluster);
    the_agents_are_cleaned_when_that_is_asked_for(&cluster);
    what_is_left_are_the_images(&cluster);
    cluster.assert_servers_answered_as_the_real_ones();
}

fn a_registry_is_made_by_hand(cluster: &Cluster) {
    let pem = cluster.sh_ok("master", CERTIFICATE);
    let (key, certificate) = pem.split_at(pem.find("-----BEGIN CERTIFICATE").unwrap());
    for agent in cluster.agents() {
        for (path, text) in [(KEY, key), ("/etc/privateregistry/certs/domain.crt", certificate)] {
            cluster.sh_ok(&agent, &format!("mkdir -p /etc/privateregistry/certs && cat >{path} <<'END'\n{}\nEND", text.trim()));
        }
        cluster.sh_ok(&agent, &format!("mkdir -p /etc/docker/certs.d/192.168.0.1 && cp /etc/privateregistry/certs/domain.crt {COPY}"));
    }
    let app = json!({
        "id": "/registry", "cpus": 0.5, "mem": 128, "disk": 0, "instances": 1,
        "constraints": [["hostname", "LIKE", HOST]],
        "container": {
            "docker": {
                "image": "registry:2.8.3", "forcePullImage": false, "privileged": false,
                "portMappings": [{
                    "containerPort": 5000, "protocol": "tcp", "servicePort": 5000, "labels": { "VIP_0": "192.168.0.1:443" },
                }],
                "network": "BRIDGE",
            },
            "type": "DOCKER",
            "volumes": [
                { "containerPath": "/certs/", "hostPath": "/etc/privateregistry/certs/", "mode": "RO" },
                { "containerPath": "/var/lib/registry", "hostPath": "/data/docker-registry", "mode": "RW" },
            ],
        },
        // The tutorial also has portDefinitions, which Marathon drops without a word; and its check is TCP, which Marathon itself
        // makes: the lab has those of Mesos.
        "healthChecks": [{
            "protocol": "MESOS_TCP", "portIndex": 0, "gracePeriodSeconds": 60, "intervalSeconds": 60, "timeoutSeconds": 20,
            "maxConsecutiveFailures": 3, "delaySeconds": 1,
        }],
        "labels": { "HAPROXY_GROUP": "external" },
        "env": {
            "REGISTRY_HTTP_TLS_CERTIFICATE": "/certs/domain.crt", "REGISTRY_HTTP_TLS_KEY": "/certs/domain.key",
            "REGISTRY_HTTP_SECRET": "123456secret",
        },
    });
    let (code, said) = cluster.marathon("POST", "/apps", &app);
    assert_eq!(code, 201, "{said}");
    let answers = "/opt/mesosphere/bin/curl -sf -k -o /dev/null https://192.168.0.1/v2/";
    cluster.wait("the registry made by hand", 60, || cluster.is_calm() && cluster.sh(OTHER, answers).status.success());
}

fn app(cluster: &Cluster) -> Value {
    cluster.get("/marathon/v2/apps/registry")["app"].clone()
}

fn pulls(cluster: &Cluster, agent: &str) {
    cluster.sh_ok(agent, "docker rmi -f 192.168.0.1/base/hello:1 >/dev/null 2>&1; docker pull -q 192.168.0.1/base/hello:1");
}

fn without_being_told_nothing_is_taken_over(cluster: &Cluster, before: &std::collections::BTreeMap<String, crate::support::Picture>) {
    let version = app(cluster)["version"].clone();
    assert!(cluster.install(&json!({ "names": { "external_host": PUBLIC } })).status.success());
    cluster.wait("the refusal", 30, || cluster.status().is_some_and(|status| status["refused"] == true));
    let problems = cluster.status().unwrap()["problems"].clone();
    assert_eq!(
        problems,
        json!([
            "registry.name = /registry: there is something called /registry already, which this service has not made: a registry made by \
             hand that has its images in /data/docker-registry on 192.168.1.80. Set takeover.adopt to true to take it over together \
             with these images, or choose another name."
        ])
    );
    println!("refused: {problems:#}");
    assert_eq!((app(cluster)["version"].clone(), cluster.jobs()), (version, vec![]));
    for (agent, before) in before {
        assert_eq!(cluster.picture(agent), *before, "{agent}");
    }
}

/// What a task has written, found by part of its id.
fn output(cluster: &Cluster, part: &str, file: &str) -> String {
    let tasks = cluster.lab.control("GET", "/tasks", None).unwrap();
    let task = tasks.as_array().unwrap().iter().find(|task| task["id"].as_str().unwrap().contains(part)).unwrap();
    fs::read_to_string(format!("{}/{file}", task["sandbox"].as_str().unwrap())).unwrap()
}

fn told_to_the_package_goes_on_with_its_images(cluster: &Cluster) {
    let file = |name: &str| cluster.lab.path().join("agents").join(OTHER).join("root/tmp").join(name);
    fs::write(file("loop.sh"), LOOP).unwrap();
    cluster.sh_ok(OTHER, "setsid sh /tmp/loop.sh >/tmp/loop.log 2>&1 </dev/null &");
    let old = cluster.sh_ok(OTHER, &format!("cat {COPY}"));
    cluster.update(&json!({ "takeover": { "adopt": true } }));
    let mut seen: Vec<String> = Vec::new();
    cluster.wait("the takeover", 120, || {
        let Some(status) = cluster.status() else { return false };
        let rows = status["agents"].as_array().unwrap().iter().map(|row| format!("{}: {}", row["state"], row["detail"]));
        let now = format!("{} | {} | {}", status["summary"], status["next"], rows.collect::<Vec<_>>().join(" | "));
        if seen.last() != Some(&now) {
            println!("{now}");
            seen.push(now);
        }
        status["converged"] == true
    });
    let said = |what: &str| seen.iter().any(|now| now.contains(what));
    assert!(said("until then the registry made by hand goes on serving"), "{seen:#?}");
    assert!(!said("failed"), "{seen:#?}");
    let controller = cluster.get("/marathon/v2/apps/private-registry")["app"]["tasks"][0]["id"].as_str().unwrap().to_owned();
    let log = output(cluster, &controller, "stderr");
    let action = "take over from the registry made by hand, and go on with its images in /data/docker-registry on 192.168.1.80: \
                  the new CA is known to every agent";
    assert_eq!(log.matches(action).count(), 1, "{log}");

    std::thread::sleep(std::time::Duration::from_secs(1));
    cluster.sh_ok(OTHER, "touch /tmp/stop");
    cluster.wait("the end of the loop", 20, || cluster.sh(OTHER, "test -e /tmp/ended").status.success());
    let log = fs::read_to_string(file("loop.log")).unwrap();
    let failures: Vec<&str> = log.lines().filter(|line| line.split(' ').nth(1) != Some("0")).collect();
    assert!(log.lines().count() > failures.len() + 5, "{log}");
    assert!(!failures.iter().any(|line| line.contains("x509") || line.contains("certificate")), "{failures:#?}");
    let at = |line: &&str| line.split(' ').next().unwrap().parse::<f64>().unwrap();
    let gap = failures.last().map_or(0.0, at) - failures.first().map_or(0.0, at);
    println!("{} pulls, {} failures within {gap:.1} s: {failures:#?}", log.lines().count(), failures.len());
    assert!(gap < 30.0, "{failures:#?}");
    for agent in cluster.agents() {
        pulls(cluster, &agent);
        cluster.sh_ok(&agent, "/opt/mesosphere/bin/curl -sf -o /dev/null https://192.168.0.1/v2/");
        assert_eq!(cluster.sh_ok(&agent, &format!("cat {COPY}")), old, "{agent}: somebody else's file was touched");
    }
    assert_eq!(app(cluster)["tasks"][0]["host"], HOST);
}

fn the_exposed_keys_are_reported(cluster: &Cluster) {
    let said = cluster.dcos(&["private-registry", "status"]);
    println!("{}", said.stdout);
    let problem = "EXPOSED KEY: /etc/privateregistry/certs/domain.key on 192.168.1.50, 192.168.1.80, 192.168.1.81, 192.168.1.82 is the \
                   private key of a registry made by hand";
    assert!(said.status.success(), "a warning is no failure: {}", said.stdout);
    for what in [problem, "holds an exposed key", "A private key is exposed.", "Set takeover.clean_agents to true"] {
        assert!(said.stdout.contains(what), "no {what:?} in {}", said.stdout);
    }
    for agent in cluster.agents() {
        cluster.sh_ok(&agent, &format!("test -s {KEY}"));
    }
    cluster.wait("the end of the job", 30, || output(cluster, "private-registry_init", "stdout").contains(problem));
    println!("{}", output(cluster, "private-registry_init", "stdout"));
    let page = cluster.http("GET", "/service/private-registry/", None).1;
    assert!(page.contains("EXPOSED KEY"), "{page}");
}

fn the_agents_are_cleaned_when_that_is_asked_for(cluster: &Cluster) {
    cluster.sh_ok(HOST, "echo mine >/etc/privateregistry/certs/note.txt; echo mine >/etc/docker/certs.d/192.168.0.1/note.txt");
    cluster.update(&json!({ "takeover": { "clean_agents": true } }));
    let is_clean = |agent: &String| cluster.sh(agent, "find /etc/privateregistry -name 'domain.*'").stdout.is_empty();
    cluster.wait("the end of the keys", 90, || cluster.agents().iter().all(is_clean));
    cluster.wait_converged();
    println!("{}", cluster.dcos_ok(&["private-registry", "status"]));
    for agent in cluster.agents() {
        assert_eq!(cluster.sh(&agent, "test -e /etc/privateregistry").status.success(), agent == HOST, "{agent}");
        cluster.sh_ok(&agent, "! grep -rl 'PRIVATE KEY' /etc/privateregistry /etc/docker 2>/dev/null");
        pulls(cluster, &agent);
    }
    for dir in ["/etc/privateregistry/certs", "/etc/docker/certs.d/192.168.0.1"] {
        assert_eq!(cluster.sh_ok(HOST, &format!("cat {dir}/note.txt && rm {dir}/note.txt")), "mine");
    }
    let status = cluster.status().unwrap();
    assert!(!status.to_string().contains("EXPOSED"), "{status:#}");
    let cleaned = status["agents"][0]["cleaned"].to_string();
    assert!(["domain.key", "domain.crt", COPY].iter().all(|path| cleaned.contains(path)), "{cleaned}");
}

fn what_is_left_are_the_images(cluster: &Cluster) {
    cluster.uninstall();
    cluster.sh_ok(HOST, "test -d /data/docker-registry/docker/registry/v2/repositories/base/hello");
    for agent in cluster.agents() {
        let left = cluster.sh_ok(&agent, "find /etc/docker/certs.d /var/lib/private-registry -mindepth 1 2>/dev/null; true");
        assert_eq!(left, "", "{agent}");
    }
}
