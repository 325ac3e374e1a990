//! The CA is replaced while clients on every agent pull and push without a pause.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use lab::journal::Content;

use crate::key_watch::KeyWatch;
use crate::support::{ADMIN, Cluster};
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const AWAY: &str = "192.168.1.82";
const SERVED: &str = "openssl s_client -connect 192.168.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -issuer";

/// Pulls and pushes about every half second until `stop` is there; one line an attempt: time, what, exit code, and the first failure's words.
const LOOP: &str = r#"
docker tag canary:1 192.168.0.1/loop/$1:1
n=0
while [ ! -e /tmp/stop ]; do
  n=$((n+1))
  for what in push pull; do
    out=$(docker $what -q 192.168.0.1/loop/$1:1 2>&1); code=$?
    echo "$(date +%s.%N) $what $code $(echo "$out" | tr '\n' ' ')"
  done
  curl -s -o /dev/null --max-time 20 --capath /var/lib/dcos/pki/tls/certs https://192.168.0.1/v2/
  echo "$(date +%s.%N) curl $?"
  sleep 0.3
done
"#;

/// Asks the registry about every 50 ms; one line an answer: time and exit code.
const PROBE: &str = r#"
while [ ! -e /tmp/stop ]; do
  curl -s -o /dev/null --max-time 5 --capath /var/lib/dcos/pki/tls/certs https://192.168.0.1/v2/
  echo "$(date +%s.%N) $?"
  sleep 0.05
done
"#;

struct Clients<'a> {
    cluster: &'a Cluster,
    agents: Vec<String>,
}

impl<'a> Clients<'a> {
    fn start(cluster: &'a Cluster, agents: &[&str]) -> Self {
        for agent in agents {
            fs::write(Self::file(cluster, agent, "loop.sh"), LOOP).unwrap();
            cluster.sh_ok(
                agent,
                &format!("rm -f /tmp/stop; setsid sh /tmp/loop.sh {} >/tmp/loop.log 2>&1 </dev/null &", agent.replace('.', "-")),
            );
        }
        fs::write(Self::file(cluster, agents[0], "probe.sh"), PROBE).unwrap();
        cluster.sh_ok(agents[0], "setsid sh /tmp/probe.sh >/tmp/probe.log 2>&1 </dev/null &");
        Self { cluster, agents: agents.iter().map(|agent| (*agent).to_owned()).collect() }
    }

    fn file(cluster: &Cluster, agent: &str, name: &str) -> PathBuf {
        cluster.lab.path().join("agents").join(agent).join("root/tmp").join(name)
    }

    /// Failures of all clients: when (Unix time), and what was said.
    fn stop(self) -> (usize, Vec<(f64, String)>) {
        let (mut attempts, mut failures) = (0, Vec::new());
        let since = std::time::Instant::now();
        for agent in &self.agents {
            self.cluster.sh_ok(agent, "touch /tmp/stop");
        }
        self.cluster.wait("the clients to end", 30, || {
            let late = self.agents.iter().find(|agent| self.cluster.sh(agent, "pgrep -f '/tmp/[l]oop.sh'").status.success());
            if let Some(agent) = late.filter(|_| since.elapsed() > Duration::from_secs(30)) {
                // Which of its commands it is that does not end, and what came before.
                let doing = self.cluster.sh(
                    agent,
                    "ps -eo pid,etimes,stat,wchan:20,args --sort=etimes | head -12; tail -n 5 /tmp/loop.log; ss -tnp | head -20",
                );
                eprintln!("{agent} is not at its end yet:\n{}", doing.stdout);
                std::thread::sleep(Duration::from_secs(5));
            }
            late.is_none()
        });
        for agent in &self.agents {
            let log = fs::read_to_string(Self::file(self.cluster, agent, "loop.log")).unwrap();
            for line in log.lines() {
                let mut words = line.splitn(4, ' ');
                let (at, what, code) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                attempts += 1;
                if code != "0" {
                    failures.push((at.parse().unwrap(), format!("{agent} {what} {code} {}", words.next().unwrap_or_default())));
                }
            }
        }
        (attempts, failures)
    }

    /// The longest time without an answer of the registry, in seconds.
    fn longest_outage(cluster: &Cluster, agent: &str) -> f64 {
        let log = fs::read_to_string(Self::file(cluster, agent, "probe.log")).unwrap();
        let answered = log.lines().filter_map(|line| line.strip_suffix(" 0")?.parse::<f64>().ok());
        let times: Vec<f64> = answered.collect();
        assert!(times.len() > 20, "{log}");
        times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
    }
}

/// What a failure of trust looks like; any other is one of a registry that does not answer.
fn of_trust(failures: &[(f64, String)]) -> Vec<&(f64, String)> {
    failures.iter().filter(|(_, said)| ["x509", "certificate", "curl 60"].iter().any(|word| said.contains(word))).collect()
}

/// Where an agent's disk is.
fn disk(cluster: &Cluster, agent: &str) -> PathBuf {
    cluster.lab.path().join("agents").join(agent).join("root")
}

fn controllers_agent(cluster: &Cluster) -> String {
    cluster.get("/marathon/v2/apps/private-registry")["app"]["tasks"][0]["host"].as_str().unwrap().to_owned()
}

#[test]
fn a_ca_is_replaced_without_a_gap_and_an_agent_that_was_away_goes_on_pulling() {
    let cluster = Cluster::start(3, 1);
    cluster.install_and_wait(&json!({
        "registry": { "host": HOST },
        "names": { "external_host": "192.168.1.50" },
        "trust": { "rotation_deadline_seconds": 20 },
    }));
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");
    no_key_leaves_its_place(&cluster, || nobody_notices_a_rotation(&cluster));
    an_agent_that_was_away_pulls_before_it_is_told_and_is_told(&cluster);
    a_lost_key_is_a_rotation_too(&cluster);
    cluster.uninstall();
    cluster.assert_servers_answered_as_the_real_ones();
}

/// Looks for keys during all of a rotation. First it is shown that they would be seen.
fn no_key_leaves_its_place(cluster: &Cluster, rotation: impl FnOnce()) {
    let home = controllers_agent(cluster);
    let watch = KeyWatch::start(cluster, &[(&home, "controller"), (HOST, "registry")]);
    let looks = |times: usize| {
        let from = watch.looks();
        cluster.wait("the next looks", 30, || watch.looks() >= from + times);
    };
    looks(2);
    assert_eq!(watch.take_outside(), std::collections::BTreeSet::new(), "before the rotation");
    let ca = fs::read_to_string(disk(cluster, &home).join("var/lib/private-registry/private-registry/controller/ca.pem")).unwrap();
    let key = &ca[ca.find("-----BEGIN PRIVATE KEY-----").unwrap()..];
    let base64: String = key.lines().filter(|line| !line.starts_with('-')).collect();
    fs::write(disk(cluster, OTHER).join("var/lib/mesos/planted"), key).unwrap();
    fs::write(disk(cluster, OTHER).join("etc/planted"), format!("{{\"key\": \"{base64}\"}}")).unwrap();
    cluster.sh_ok(OTHER, "cp /var/lib/mesos/planted /run/planted");
    cluster.sh_ok(OTHER, &format!("PLANTED='{base64}' setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $! >/tmp/planted"));
    cluster.sh_ok(OTHER, &format!("setsid sh -c 'sleep 600; : {base64}' </dev/null >/dev/null 2>&1 & echo $! >>/tmp/planted"));
    looks(2);
    let seen = watch.take_outside();
    for place in ["/var/lib/mesos/planted", "/etc/planted", "/run/planted", "/environ", "/cmdline"] {
        assert!(seen.iter().any(|path| path.ends_with(place)), "{place} was not seen: {seen:?}");
    }
    assert!(watch.holds_key(key.as_bytes()) && watch.holds_key(base64.as_bytes()));
    cluster.sh_ok(OTHER, "kill $(cat /tmp/planted); rm /tmp/planted /var/lib/mesos/planted /etc/planted /run/planted");
    looks(2);
    watch.take_outside();

    let before = watch.looks();
    rotation();
    // What was sent and answered meanwhile, and before.
    let journal = cluster.lab.journal().unwrap();
    for exchange in &journal {
        for body in [&exchange.request_body, &exchange.response_body] {
            let text = match body {
                Content::Json(value) => value.to_string(),
                Content::Text(text) => text.clone(),
                Content::Empty | Content::Unseen => continue,
            };
            assert!(!watch.holds_key(text.as_bytes()), "{} {} carries a key", exchange.method, exchange.path);
        }
    }
    let found = watch.stop();
    println!("{} looks during the rotation, {} exchanges; keys in {:?}", found.looks - before, journal.len(), found.inside);
    assert_eq!(found.outside, std::collections::BTreeSet::new());
    let names = ["ca.pem", "order.key", "tls.key"];
    assert!(names.iter().all(|name| found.inside.iter().any(|path| path.ends_with(name))), "{:?}", found.inside);
    assert!(found.inside.iter().any(|path| path.contains("next-ca.pem")), "the next CA's key was not caught in its place");
    assert!(found.looks - before > 30, "only {} looks", found.looks - before);
}

fn nobody_notices_a_rotation(cluster: &Cluster) {
    let (kept, old) = (cluster.running(), cluster.status().unwrap()["ca_fingerprint"].clone());
    let clients = Clients::start(cluster, &[HOST, OTHER, AWAY, "192.168.1.50"]);
    std::thread::sleep(Duration::from_secs(2));
    let said = cluster.dcos_ok(&["private-registry", "rotate"]);
    assert!(said.contains("4 of 4 agents are proven to trust the registry"), "{said}");
    std::thread::sleep(Duration::from_secs(2));
    let (attempts, failures) = clients.stop();
    assert_ne!(cluster.status().unwrap()["ca_fingerprint"], old);
    assert_eq!(cluster.running(), kept, "a rotation must not replace a node or the registry's task");
    for agent in cluster.agents() {
        let stored = cluster.sh_ok(&agent, "grep -c BEGIN /etc/docker/certs.d/192.168.0.1/ca.crt");
        assert_eq!(stored, "1", "{agent} still trusts the old CA");
    }
    // The registry reads its certificate when it starts: that moment alone may be seen.
    assert!(attempts > 60, "only {attempts} attempts");
    assert!(of_trust(&failures).is_empty(), "{:?}", of_trust(&failures));
    let outage = Clients::longest_outage(cluster, HOST);
    assert!(outage < 2.0, "the registry did not answer for {outage} s");
    let times: Vec<f64> = failures.iter().map(|(at, _)| *at).collect();
    let spread = times.iter().copied().fold(f64::MIN, f64::max) - times.iter().copied().fold(f64::MAX, f64::min);
    assert!(times.is_empty() || spread < 2.0, "failures over {spread} s: {failures:?}");
    println!("{attempts} attempts, {} failures within {:.1} s; longest outage {outage:.2} s", failures.len(), spread.max(0.0));
}

fn an_agent_that_was_away_pulls_before_it_is_told_and_is_told(cluster: &Cluster) {
    cluster.lab.die(AWAY).unwrap();
    let old = cluster.status().unwrap()["ca_fingerprint"].clone();
    cluster.wait("Mesos to miss it", 30, || cluster.agent_state(AWAY).is_none());
    // Its node is not waited for beyond the deadline.
    cluster.dcos_ok(&["job", "run", "private-registry.rotate"]);
    let rotated = || cluster.status().is_some_and(|status| status["ca_fingerprint"] != old && status["converged"] == true);
    cluster.wait("the rotation", 90, rotated);
    cluster.lab.revive(AWAY, false).unwrap();
    // Its trust is still that of the old CA; what the registry serves leads back to it.
    let before = cluster.sh_ok(AWAY, "cat /etc/docker/certs.d/192.168.0.1/ca.crt");
    let pulled = cluster.sh(AWAY, "docker pull -q 192.168.0.1/base/hello:1");
    let after = cluster.sh_ok(AWAY, "cat /etc/docker/certs.d/192.168.0.1/ca.crt");
    assert!(pulled.status.success(), "{}", pulled.stderr);
    assert_ne!(before, cluster.sh_ok(OTHER, "cat /etc/docker/certs.d/192.168.0.1/ca.crt"), "it was told before it could be tried: {after}");
    let ca = || cluster.lab.http("GET", &format!("{ADMIN}/service/private-registry/v1/ca"), None).unwrap().1;
    cluster.wait("its new bundle", 60, || cluster.sh_ok(AWAY, "cat /etc/docker/certs.d/192.168.0.1/ca.crt").trim() == ca().trim());
    cluster.wait_converged();
}

fn a_lost_key_is_a_rotation_too(cluster: &Cluster) {
    let (served, kept) = (cluster.sh_ok(OTHER, SERVED), cluster.running());
    let home = controllers_agent(cluster);
    cluster.sh_ok(&home, "rm /var/lib/private-registry/private-registry/controller/ca.pem");
    assert_eq!(cluster.marathon("POST", "/apps/private-registry/restart", &Value::Null).0, 200);
    cluster.wait("another CA to be served", 60, || cluster.sh(OTHER, SERVED).stdout.trim() != served);
    cluster.wait_converged();
    assert_eq!(cluster.running(), kept);
    cluster.sh_ok(OTHER, "docker pull -q 192.168.0.1/base/hello:1");
}

/// Lets the node on an agent seem dead to the controller, and only to it.
fn hide(cluster: &Cluster, agent: &str) -> String {
    let status = cluster.get("/marathon/v2/pods/private-registry-node::status");
    let instance = status["instances"].as_array().unwrap().iter().find(|i| i["agentHostname"] == agent).unwrap().clone();
    let port = instance["containers"][0]["endpoints"][0]["allocatedHostPort"].as_u64().unwrap();
    let rule = format!("INPUT ! -i lo -p tcp --dport {port} -j DROP");
    cluster.sh_ok(agent, &format!("iptables -I {rule}"));
    rule
}

/// The stages of a rotation, as the controller's own record has them.
struct Stages<'a> {
    cluster: &'a Cluster,
    record: PathBuf,
}

impl<'a> Stages<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        let home = disk(cluster, &controllers_agent(cluster));
        Self { cluster, record: home.join("var/lib/private-registry/private-registry/controller/state.json") }
    }

    /// Kills the controller as soon as a stage is on its record, and waits for its successor. The empty stage is that of no rotation.
    fn kill_controller(&self, stage: &str) {
        let now = || serde_json::from_slice::<Value>(&fs::read(&self.record).unwrap_or_default()).unwrap_or(json!({ "rotation": "?" }));
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while now()["rotation"]["stage"].as_str().unwrap_or_default() != stage || now()["rotation"] == "?" {
            assert!(std::time::Instant::now() < deadline, "the stage {stage:?} does not come");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(self.cluster.kill_role("controller", None), "there was no controller to kill at {stage:?}");
    }
}

#[test]
fn a_rotation_that_is_interrupted_or_turned_back_ends_well_and_names_change_without_a_gap() {
    let cluster = Cluster::start(2, 0);
    cluster.install_and_wait(&json!({
        "registry": { "host": HOST },
        "exposure": { "marathon_lb": false },
        "trust": { "rotation_deadline_seconds": 300 },
    }));
    let fingerprint = || cluster.status().unwrap()["ca_fingerprint"].clone();
    let says = |what: &str| cluster.status().is_some_and(|status| status["summary"].as_str().unwrap().contains(what));
    let certificates = |agent: &str| cluster.sh_ok(agent, "grep -c BEGIN /etc/docker/certs.d/192.168.0.1/ca.crt");
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");
    let kept = cluster.running().0;

    // Interrupted: the controller is killed at every stage, first while an agent has not got the new CA yet, and the registry once.
    let old = fingerprint();
    let rule = hide(&cluster, OTHER);
    let clients = Clients::start(&cluster, &[HOST, OTHER]);
    let stage = Stages::of(&cluster);
    cluster.dcos_ok(&["job", "run", "private-registry.rotate"]);
    stage.kill_controller("published");
    cluster.wait("another controller to go on with it", 60, || says("is known beside it") && certificates(HOST) == "2");
    assert_eq!(
        (fingerprint(), certificates(HOST).as_str()),
        (old.clone(), "2"),
        "nobody may switch while an agent does not know the new CA"
    );
    cluster.sh_ok(OTHER, &format!("iptables -D {rule}"));
    stage.kill_controller("switched");
    assert!(cluster.kill_role("registry", None));
    stage.kill_controller("");
    cluster.wait("the rotation", 60, || cluster.status().is_some_and(|status| status["ca_fingerprint"] != old));
    cluster.wait_converged();
    assert_eq!((certificates(HOST), certificates(OTHER)), ("1".to_owned(), "1".to_owned()));
    let (attempts, failures) = clients.stop();
    assert!(attempts > 20 && of_trust(&failures).is_empty(), "{attempts} attempts: {:?}", of_trust(&failures));

    // Turned back: a name is asked for, and not any more before all know the CA that may speak for it.
    let (old, rule) = (fingerprint(), hide(&cluster, OTHER));
    cluster.update(&json!({ "names": { "extra": "late.example.com:8443" } }));
    cluster.wait("the new CA to be published", 60, || says("is known beside it") && certificates(HOST) == "2");
    cluster.update(&json!({ "names": { "extra": "" } }));
    cluster.wait("the new CA to be dropped", 60, || certificates(HOST) == "1");
    cluster.sh_ok(OTHER, &format!("iptables -D {rule}"));
    cluster.wait_converged();
    assert_eq!((fingerprint(), certificates(OTHER)), (old, "1".to_owned()));

    // A name comes, and clients of the others do not notice.
    let clients = Clients::start(&cluster, &[HOST, OTHER]);
    cluster.update(&json!({ "names": { "extra": "registry.example.com:443" } }));
    let served = "openssl s_client -connect 192.168.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName";
    cluster.wait("the name in the certificate", 60, || cluster.sh(OTHER, served).stdout.contains("registry.example.com"));
    cluster.wait_converged();
    let (attempts, failures) = clients.stop();
    assert!(attempts > 20 && of_trust(&failures).is_empty(), "{attempts} attempts: {:?}", of_trust(&failures));
    cluster.sh_ok(OTHER, "echo 192.168.0.1 registry.example.com >>/etc/hosts; curl -sf -o /dev/null --capath /var/lib/dcos/pki/tls/certs https://registry.example.com/v2/");

    // Another VIP: it works as soon as it is there.
    cluster.update(&json!({ "names": { "vip": "192.168.0.9:443" } }));
    let pulls = |agent: &str| cluster.sh(agent, "docker pull -q 192.168.0.9/base/hello:1").status.success();
    cluster.wait("the other VIP", 90, || pulls(HOST) && pulls(OTHER));
    cluster.wait_converged();
    assert_eq!(cluster.running().0, kept, "no node was replaced in all this");
    cluster.uninstall();
    cluster.assert_servers_answered_as_the_real_ones();
}
