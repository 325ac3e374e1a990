//! Every kind of storage with real stores: a volume of Marathon's, one of docker's, and a server that speaks S3.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::server::{NEWEST, Security};
use serde_json::{Value, json};

use crate::enterprise::commands;
use crate::support::{ADMIN, Cluster, made};

const HOME: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const THIRD: &str = "192.168.1.82";
const IMAGE: &str = "192.168.0.1/base/hello:1";
const ENDPOINT: &str = "http://192.168.1.69:9900";

#[test]
fn images_lie_in_a_volume_of_marathons_or_of_dockers() {
    let cluster = Cluster::start(3, 0);
    in_a_persistent_volume(&cluster);
    in_an_external_volume(&cluster);
    cluster.assert_nothing_was_lost();
}

#[test]
fn several_registries_on_an_object_store_are_one_and_come_and_go_unnoticed() {
    let (cluster, store) = two_on_a_store(&[]);
    two_registries_are_one(&cluster);
    nobody_notices_that_a_replicas_agent_dies(&cluster);
    replicas_restart_one_after_the_other(&cluster);
    more_and_fewer(&cluster);
    leave_the_store(&cluster, &store);
}

#[test]
fn an_object_store_is_missed_leads_clients_to_itself_and_is_moved_out_of_and_into() {
    let (cluster, store) = two_on_a_store(&["registry3.tar"]);
    push_and_pull(&cluster, HOME, THIRD);
    a_store_that_does_not_answer_is_a_problem_of_the_registry_and_not_of_trust(&cluster);
    clients_are_sent_to_the_store_if_they_may(&cluster);
    another_store_needs_a_word(&cluster);
    images_move_into_the_store_by_way_of_a_backup(&cluster);
    leave_the_store(&cluster, &store);
}

/// Three agents, and two registries on an S3 store, whose keys lie on the hosts.
fn two_on_a_store(images: &[&str]) -> (Cluster, PathBuf) {
    let cluster = Cluster::start_with(images, 3, 0, NEWEST, Security::Open);
    let store = start_store(&cluster, "key", "secret");
    cluster.agents().iter().for_each(|agent| {
        cluster.sh_ok(agent, "mkdir -p /etc/store && echo key >/etc/store/id && echo secret >/etc/store/secret && chmod 600 /etc/store/*");
    });
    cluster.install_and_wait(&with_s3(json!({ "registry": { "replicas": 2, "drain_seconds": 2 } })));
    (cluster, store)
}

fn leave_the_store(cluster: &Cluster, store: &Path) {
    cluster.uninstall();
    assert!(store.join("images/docker/registry/v2/repositories/base/hello").exists(), "what the store has is the operator's");
    assert_eq!(keys_of_registries(cluster), Vec::<String>::new());
    cluster.assert_nothing_was_lost();
}

#[test]
fn keys_of_a_store_come_from_secrets() {
    let cluster = Cluster::start_as(2, 0, NEWEST, Security::Strict);
    cluster.make_account("private-registry", "private-registry/service-account");
    cluster.store_secret("registry/store-id", "key");
    cluster.store_secret("registry/store-secret", "secret");
    start_store(&cluster, "key", "secret");
    let installed = cluster.install(&json!({
        "service": { "service_account": "private-registry", "service_account_secret": "private-registry/service-account" },
        "registry": { "replicas": 2 },
        "exposure": { "marathon_lb": false },
        "storage": {
            "kind": "s3", "bucket": "images", "endpoint": ENDPOINT,
            "access_key": "registry/store-id", "secret_key": "registry/store-secret",
        },
    }));
    assert!(installed.status.success(), "{}{}", installed.stdout, installed.stderr);
    for [account, resource, action] in commands(&cluster.dcos_ok(&["private-registry", "grants"])) {
        cluster.grant(&account, &resource, &action);
    }
    cluster.wait_converged();
    push_and_pull(&cluster, HOME, OTHER);
}

/// Options of a registry in the S3 store, and more.
fn with_s3(more: Value) -> Value {
    let mut options = json!({
        "exposure": { "marathon_lb": false },
        "registry": { "replicas": 2, "drain_seconds": 2 },
        "storage": {
            "kind": "s3", "bucket": "images", "endpoint": ENDPOINT, "access_key": "/etc/store/id", "secret_key": "/etc/store/secret",
        },
    });
    for (section, values) in more.as_object().unwrap() {
        for (key, value) in values.as_object().unwrap() {
            options[section][key] = value.clone();
        }
    }
    options
}

/// A server that speaks S3 on the master's address, with an empty bucket. Returns where it keeps the buckets.
fn start_store(cluster: &Cluster, id: &str, secret: &str) -> PathBuf {
    let (program, store) = (made("target/tools/s3/versitygw"), cluster.lab.path().join("store"));
    fs::create_dir_all(store.join("images")).unwrap();
    let line = format!(
        "ROOT_ACCESS_KEY={id} ROOT_SECRET_KEY={secret} setsid {} --port 192.168.1.69:9900 --quiet posix {} >{2}.log 2>&1 </dev/null & echo $! >{2}.pid",
        program.display(),
        store.display(),
        store.display(),
    );
    cluster.sh_ok("master", &line);
    cluster.wait("the store", 20, || cluster.sh("master", &format!("curl -s -o /dev/null {ENDPOINT}")).status.success());
    store
}

fn push_and_pull(cluster: &Cluster, from: &str, to: &str) {
    cluster.sh_ok(from, &format!("docker tag canary:1 {IMAGE} && docker push -q {IMAGE}"));
    cluster.sh_ok(to, &format!("docker pull -q {IMAGE}"));
}

fn wait_for_pull(cluster: &Cluster, agent: &str) {
    cluster.wait("the image", 60, || cluster.sh(agent, &format!("docker pull -q {IMAGE}")).status.success());
}

fn tasks(cluster: &Cluster) -> Vec<Value> {
    cluster.get("/marathon/v2/apps/registry/tasks")["tasks"].as_array().unwrap().clone()
}

fn hosts(cluster: &Cluster) -> BTreeSet<String> {
    tasks(cluster).iter().map(|task| task["host"].as_str().unwrap().to_owned()).collect()
}

/// Private keys of registries on the disks of agents, the directories of containers included; the controller's CA is another matter.
fn keys_of_registries(cluster: &Cluster) -> Vec<String> {
    let find =
        "find / -xdev -name tls.key -not -path '/proc/*'; find /var/lib/private-registry/private-registry/registry -type f 2>/dev/null";
    let agents = cluster.agents();
    agents
        .iter()
        .flat_map(|agent| cluster.sh(agent, find).stdout.lines().map(|line| format!("{agent}:{line}")).collect::<Vec<_>>())
        .collect()
}

/// The controller refuses its options and names this field; the text with the remedy.
fn refusal(cluster: &Cluster, field: &str) -> String {
    let mut text = String::new();
    cluster.wait("the refusal", 60, || {
        text = cluster.status().unwrap_or(Value::Null).to_string();
        text.contains(field)
    });
    text
}

fn in_a_persistent_volume(cluster: &Cluster) {
    let options = |mem: u32| {
        json!({
            "exposure": { "marathon_lb": false },
            "registry": { "mem": mem },
            "storage": { "kind": "persistent_volume", "volume_mib": 500 },
            "uninstall": { "delete_data": true },
        })
    };
    cluster.install_and_wait(&options(512));
    push_and_pull(cluster, OTHER, THIRD);
    let first = tasks(cluster).remove(0);
    let (host, volume) = (first["host"].as_str().unwrap().to_owned(), &first["localVolumes"][0]);
    let directory = format!("/var/lib/mesos/volumes/roles/slave_public/{}", volume["persistenceId"].as_str().unwrap());
    cluster.sh_ok(&host, &format!("ls '{directory}/docker/registry/v2/repositories/base/hello'"));
    // Its agent is seen as the private one that it is, although Marathon has reserved something there for the role of public agents.
    let rows = cluster.status().unwrap()["agents"].clone();
    assert!(rows.as_array().unwrap().iter().all(|row| row["role"] == "private"), "{rows}");
    cluster.update(&options(1024));
    let text = refusal(cluster, "registry.mem");
    assert!(text.contains("Set it back to 512"), "{text}");
    cluster.update(&options(512));
    cluster.wait_converged();
    // Another task, the same agent and images.
    assert_eq!(cluster.marathon("POST", "/apps/registry/restart", &Value::Null).0, 200);
    cluster.wait("another task", 60, || {
        tasks(cluster).first().is_some_and(|task| task["id"] != first["id"] && task["state"] == "TASK_RUNNING")
    });
    cluster.wait_converged();
    assert_eq!(tasks(cluster)[0]["host"], first["host"]);
    wait_for_pull(cluster, OTHER);
    cluster.uninstall();
    assert!(!cluster.sh(&host, &format!("ls '{directory}'")).status.success(), "the volume went with the app");
}

fn in_an_external_volume(cluster: &Cluster) {
    // As for a share, which every agent mounts where the registry happens to be.
    cluster.sh_ok(HOME, "mkdir -p /mnt/share && docker volume create --driver local -o type=none -o o=bind -o device=/mnt/share images");
    cluster.install_and_wait(&json!({
        "exposure": { "marathon_lb": false },
        "registry": { "host": HOME },
        "storage": { "kind": "external_volume", "volume_name": "images", "volume_driver": "local" },
    }));
    push_and_pull(cluster, OTHER, THIRD);
    cluster.uninstall();
    cluster.sh_ok(HOME, "ls /mnt/share/docker/registry/v2/repositories/base/hello && docker volume inspect images");
}

/// An upload that one began is gone on with by the other and ended by the first; keys lie in memory only.
fn two_registries_are_one(cluster: &Cluster) {
    assert_eq!(hosts(cluster).len(), 2);
    push_and_pull(cluster, HOME, THIRD);
    let tasks = tasks(cluster);
    let at = |task: &Value| format!("192.168.0.1:443:{}:{}", task["host"].as_str().unwrap(), task["ports"][0]);
    let script = format!(
        r#"set -e
call() {{ curl -sS --fail --cacert /etc/docker/certs.d/192.168.0.1/ca.crt -D /tmp/headers -o /dev/null --connect-to "$@"; }}
next() {{ sed -n 's/^[Ll]ocation: *//p' /tmp/headers | tr -d '\r'; }}
call {first} -X POST https://192.168.0.1/v2/base/hello/blobs/uploads/
printf half | call {second} -X PATCH --data-binary @- -H 'Content-Type: application/octet-stream' "https://192.168.0.1$(next)"
digest=$(printf half | sha256sum | cut -d' ' -f1)
call {first} -X PUT "https://192.168.0.1$(next)&digest=sha256:$digest"
call {second} "https://192.168.0.1/v2/base/hello/blobs/sha256:$digest"
"#,
        first = at(&tasks[0]),
        second = at(&tasks[1]),
    );
    cluster.sh_ok(HOME, &script);
    assert_eq!(keys_of_registries(cluster), Vec::<String>::new(), "a key on a disk");
}

fn nobody_notices_that_a_replicas_agent_dies(cluster: &Cluster) {
    let controller = cluster.get("/marathon/v2/apps/private-registry")["app"]["tasks"][0]["host"].as_str().unwrap().to_owned();
    let dead = hosts(cluster).into_iter().find(|host| *host != controller).unwrap();
    let client = cluster.agents().into_iter().find(|agent| *agent != dead).unwrap();
    cluster.lab.die(&dead).unwrap();
    cluster.wait("Mesos to miss it", 30, || cluster.agent_state(&dead).is_none());
    for _ in 0..3 {
        cluster.sh_ok(&client, &format!("docker push -q {IMAGE} && docker pull -q {IMAGE}"));
    }
    cluster.wait("another replica in its place", 60, || {
        let serving =
            tasks(cluster).iter().filter(|task| task["healthCheckResults"][0]["alive"] == true && task["host"] != dead.as_str()).count();
        serving == 2
    });
    cluster.lab.revive(&dead, false).unwrap();
    cluster.wait_converged();
    assert_eq!(keys_of_registries(cluster), Vec::<String>::new(), "a key on a disk");
}

fn replicas_restart_one_after_the_other(cluster: &Cluster) {
    let kept: BTreeSet<String> = tasks(cluster).iter().map(|task| task["id"].to_string()).collect();
    let most = cluster.get("/marathon/v2/apps/registry")["app"]["healthChecks"][0]["maxConsecutiveFailures"].as_u64().unwrap();
    let client = "rm -f /tmp/stop; while [ ! -e /tmp/stop ]; do curl -s -m 20 -o /dev/null --capath /var/lib/dcos/pki/tls/certs \
                  https://192.168.0.1/v2/base/hello/manifests/1; echo \"$(date +%s.%N) $?\"; sleep 0.05; done >/tmp/loop.log";
    cluster.sh_ok(HOME, &format!("setsid sh -c '{client}' >/dev/null 2>&1 </dev/null &"));
    for (what, said) in [("rotate", "3 of 3 agents are proven to trust the registry"), ("gc", "the registry was read-only for")] {
        let (over, began) = (AtomicBool::new(false), Instant::now());
        let (answer, seen) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| watch_health(cluster, &over));
            let answer = cluster.dcos(&["private-registry", what]);
            over.store(true, Ordering::Relaxed);
            (answer, watch.join().unwrap())
        });
        assert!(answer.status.success() && answer.stdout.contains(said), "{what}: {}{}", answer.stdout, answer.stderr);
        println!("{what} in {:.0} s: {seen:?} of at most {most} failures of a task's health check", began.elapsed().as_secs_f64());
        assert_eq!(seen.unwell.len(), 2, "{what}: each has left before it restarted");
        assert!(!seen.both && seen.failures > 0 && seen.failures + 2 <= most, "{what}: {seen:?}");
    }
    let log = cluster.sh_ok(HOME, "touch /tmp/stop; sleep 1; cat /tmp/loop.log");
    let failed: Vec<&str> = log.lines().filter(|line| !line.ends_with(" 0")).collect();
    println!("{} attempts while the registries restarted, {} failed: {failed:?}", log.lines().count(), failed.len());
    assert!(log.lines().count() > 200 && failed.is_empty(), "{failed:?}");
    assert_eq!(tasks(cluster).iter().map(|task| task["id"].to_string()).collect::<BTreeSet<_>>(), kept, "none was killed for its health");
}

/// What Marathon has shown of the replicas' health.
#[derive(Debug, Default)]
struct Health {
    /// Who was unhealthy at some time.
    unwell: BTreeSet<String>,
    /// Whether all of them were at the same time.
    both: bool,
    /// The most failures of one's check in a row.
    failures: u64,
}

fn watch_health(cluster: &Cluster, over: &AtomicBool) -> Health {
    let mut seen = Health::default();
    while !over.load(Ordering::Relaxed) {
        let tasks = tasks(cluster);
        let unwell: Vec<&Value> = tasks.iter().filter(|task| task["healthCheckResults"][0]["alive"] != true).collect();
        seen.both |= unwell.len() == tasks.len();
        for task in unwell {
            seen.unwell.insert(task["id"].to_string());
            seen.failures = seen.failures.max(task["healthCheckResults"][0]["consecutiveFailures"].as_u64().unwrap_or(0));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    seen
}

fn a_store_that_does_not_answer_is_a_problem_of_the_registry_and_not_of_trust(cluster: &Cluster) {
    let pid = cluster.lab.path().join("store.pid");
    cluster.sh_ok("master", &format!("kill $(cat {})", pid.display()));
    let mut asked = cluster.dcos(&["private-registry", "status"]);
    cluster.wait("the store to be missed", 120, || {
        asked = cluster.dcos(&["private-registry", "status"]);
        asked.stdout.contains("with a problem on")
    });
    println!("{}", asked.stdout);
    assert_eq!(asked.status.code(), Some(1));
    let summary = asked.stdout.lines().next().unwrap();
    assert!(summary.starts_with("3 of 3 agents are proven to trust the registry; the registry is serving on"), "{summary}");
    assert!(summary.contains("the registry's store cannot be used") && summary.contains("storage.endpoint"), "{summary}");
    start_store(cluster, "key", "secret");
    cluster.wait_converged();
    assert_eq!(cluster.dcos(&["private-registry", "status"]).status.code(), Some(0));
}

fn more_and_fewer(cluster: &Cluster) {
    for replicas in [3, 1] {
        cluster.update(&with_s3(json!({ "registry": { "replicas": replicas } })));
        cluster.wait("the replicas", 90, || hosts(cluster).len() == replicas && cluster.is_calm());
        cluster.wait_converged();
        wait_for_pull(cluster, THIRD);
    }
}

fn clients_are_sent_to_the_store_if_they_may(cluster: &Cluster) {
    let blob = "digest=$(curl -s --capath /var/lib/dcos/pki/tls/certs -H 'Accept: application/vnd.docker.distribution.manifest.v2+json' \
                https://192.168.0.1/v2/base/hello/manifests/1 | sed -n 's/.*\"digest\": *\"\\([^\"]*\\)\".*/\\1/p' | head -1); \
                curl -s -o /dev/null -w '%{http_code} %{redirect_url}' --capath /var/lib/dcos/pki/tls/certs https://192.168.0.1/v2/base/hello/blobs/$digest";
    assert_eq!(cluster.sh_ok(OTHER, blob), "200");
    // And with the other generation of the registry, over the same images.
    let options = json!({ "registry": { "replicas": 1, "generation": "3" }, "storage": { "redirect": true } });
    cluster.update(&with_s3(options));
    cluster.wait("a redirect", 90, || cluster.sh(OTHER, blob).stdout.starts_with(&format!("307 {ENDPOINT}/images/")));
    cluster.wait_converged();
    cluster.sh_ok(OTHER, &format!("docker rmi -f {IMAGE} >/dev/null"));
    wait_for_pull(cluster, OTHER);
}

fn another_store_needs_a_word(cluster: &Cluster) {
    let on_a_host = |abandon: &str| {
        json!({
            "exposure": { "marathon_lb": false },
            "registry": { "replicas": 1, "generation": "2", "host": HOME },
            "storage": { "kind": "host_path", "bucket": "", "endpoint": "", "access_key": "", "secret_key": "", "redirect": false, "abandon": abandon },
        })
    };
    cluster.update(&on_a_host(""));
    let text = refusal(cluster, "storage.kind");
    let former = format!("s3 {ENDPOINT}/images/");
    assert!(text.contains(&former), "{text}");
    cluster.sh_ok(OTHER, &format!("docker pull -q {IMAGE}"));
    cluster.update(&on_a_host(&former));
    cluster.wait_converged();
    assert!(!cluster.sh(OTHER, &format!("docker pull -q {IMAGE}")).status.success(), "the new store is empty");
    let said = || cluster.dcos_ok(&["private-registry", "status"]);
    cluster.wait("the room to be measured", 30, || said().contains(&format!("\nOn {HOME}, images: 0 bytes; free: ")));
    println!("{}", said());
    let metrics = cluster.lab.http("GET", &format!("{ADMIN}/service/private-registry/metrics"), None).unwrap().1;
    assert!(metrics.contains("\nprivate_registry_images_bytes 0\n"), "{metrics}");
}

fn images_move_into_the_store_by_way_of_a_backup(cluster: &Cluster) {
    const BACKUP: &str = "/mnt/backup/registry";
    const REPOSITORY: &str = "https://192.168.0.1/v2/base/moved";
    let with = |storage: Value| json!({ "registry": { "replicas": 1, "host": HOME }, "storage": storage, "backup": { "path": BACKUP } });
    cluster.update(&with(json!({ "kind": "host_path" })));
    // What is converged at first is what was there before the update.
    cluster.wait("the job", 60, || cluster.jobs().contains(&"private-registry.backup".to_owned()));
    cluster.wait_converged();
    // Two images, and a list of both that is made by hand.
    for tag in [1, 2] {
        let make = format!("echo {tag} >/tmp/content && tar -C /tmp -cf /tmp/content.tar content && docker import /tmp/content.tar");
        cluster.sh_ok(OTHER, &format!("{make} 192.168.0.1/base/moved:{tag} >/dev/null && docker push -q 192.168.0.1/base/moved:{tag}"));
    }
    let schema_2 = "application/vnd.docker.distribution.manifest.v2+json";
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let fetch = |reference: &str, kind: &str| {
        format!("curl -sf --capath /var/lib/dcos/pki/tls/certs -H 'Accept: {kind}' {REPOSITORY}/manifests/{reference}")
    };
    let digest = |reference: &str, kind: &str| {
        let digest = cluster.sh_ok(OTHER, &format!("{} | sha256sum", fetch(reference, kind)));
        format!("sha256:{}", digest.split_whitespace().next().unwrap())
    };
    let images = ["1", "2"].map(|tag| digest(tag, schema_2));
    let size = |tag: &str| cluster.sh_ok(OTHER, &format!("{} | wc -c", fetch(tag, schema_2))).trim().parse::<u64>().unwrap();
    let children: Vec<Value> = ["amd64", "arm64"]
        .iter()
        .zip(images.iter().zip([size("1"), size("2")]))
        .map(|(architecture, (digest, size))| {
            json!({ "mediaType": schema_2, "digest": digest, "size": size, "platform": { "os": "linux", "architecture": architecture } })
        })
        .collect();
    let text = json!({ "schemaVersion": 2, "mediaType": list, "manifests": children });
    let put = "curl -sf --capath /var/lib/dcos/pki/tls/certs -X PUT";
    cluster.sh_ok(OTHER, &format!("{put} -H 'Content-Type: {list}' --data-binary '{text}' {REPOSITORY}/manifests/both"));
    let both = digest("both", list);
    cluster.dcos_ok(&["private-registry", "backup"]);

    let store = |abandon: &str| {
        let keys = json!({ "kind": "s3", "bucket": "images", "endpoint": ENDPOINT, "access_key": "/etc/store/id", "secret_key": "/etc/store/secret" });
        let mut options = with(keys);
        options["storage"]["abandon"] = json!(abandon);
        options
    };
    cluster.update(&store("host_path 192.168.1.80:/data/docker-registry"));
    cluster.wait("the registry to be in the store", 90, || cluster.sh(OTHER, &format!("docker pull -q {IMAGE}")).status.success());
    cluster.wait_converged();
    assert!(!cluster.sh(OTHER, &fetch("both", list)).status.success(), "the store does not have them yet");
    let said = cluster.dcos_ok(&["private-registry", "restore-images", "--yes"]);
    assert!(said.contains("the registry has, of the backup, 3 images in 7 blobs (") && said.contains("7 of them"), "{said}");
    assert_eq!(digest(&both, list), both);
    images.iter().for_each(|image| assert_eq!(digest(image, schema_2), *image));
    cluster.sh_ok(OTHER, "docker rmi -f 192.168.0.1/base/moved:1 >/dev/null; docker pull -q 192.168.0.1/base/moved:1");
    // Again, and nothing is sent.
    let said = cluster.dcos_ok(&["private-registry", "restore-images", "--yes"]);
    assert!(said.contains("; 0 of them (0 bytes)"), "{said}");
    cluster.sh_ok(OTHER, &format!("docker pull -q {IMAGE}"));
}
