//! Images are copied: into a backup and out of it, to another agent, and in from other registries.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::Cluster;
use crate::upstream::{UPSTREAM, Upstream};
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const SHARE: &str = "/mnt/share/registry";

#[test]
fn a_backup_gives_the_images_back_to_the_same_registry_and_to_one_on_another_agent() {
    let cluster = Cluster::start(2, 0);
    let options = |host: &str, abandon: &str| {
        json!({
            "registry": { "host": host },
            "storage": { "abandon": abandon },
            "exposure": { "marathon_lb": false },
            "backup": { "path": SHARE, "schedule": "30 2 * * *" },
        })
    };
    cluster.install_and_wait(&options(HOST, ""));
    let schedule = cluster.get("/metronome/v1/jobs/private-registry.backup/schedules")[0].clone();
    assert_eq!((&schedule["cron"], &schedule["enabled"]), (&json!("30 2 * * *"), &json!(true)));
    a_backup_takes_what_is_new_and_names_what_is_damaged(&cluster);
    a_restore_brings_back_what_was_and_refuses_a_damaged_backup(&cluster);
    a_killed_registry_fails_the_run_and_keeps_the_backup(&cluster);
    the_registry_moves_to_another_agent_by_way_of_the_backup(&cluster, &options);
    cluster.uninstall();
    assert!(cluster.sh(OTHER, &format!("ls {SHARE}/index")).status.success(), "an uninstall leaves backups");
    let left = cluster.sh(HOST, "find /var/lib/private-registry").stdout;
    assert_eq!(left, "", "nor is anything left where the registry was before");
    // No recording shows the health of a registry that was stopped for a moment, as for a restore.
    cluster.assert_nothing_was_lost();
}

fn push(cluster: &Cluster, name: &str, content: &str) {
    let make = format!("echo {content} >/tmp/content && tar -C /tmp -cf /tmp/content.tar content && docker import /tmp/content.tar");
    cluster.sh_ok(OTHER, &format!("{make} 192.168.0.1/{name} >/dev/null && docker push -q 192.168.0.1/{name}"));
}

/// What an image in the registry holds, seen from an agent that does not have it yet; nothing if it is not there.
fn content(cluster: &Cluster, name: &str) -> String {
    let image = format!("192.168.0.1/{name}");
    let line = format!(
        "docker rmi -f {image} >/dev/null 2>&1; docker pull -q {image} >/dev/null && docker create --name look {image} x >/dev/null && docker cp look:/content - | tar -xOf -; docker rm look >/dev/null"
    );
    cluster.sh(OTHER, &line).stdout.trim().to_owned()
}

fn run(cluster: &Cluster, arguments: &[&str]) -> (bool, String) {
    let output = cluster.dcos(&[&["private-registry"], arguments].concat());
    (output.status.success(), output.stdout.trim().to_owned() + &output.stderr)
}

fn a_backup_takes_what_is_new_and_names_what_is_damaged(cluster: &Cluster) {
    push(cluster, "team/app:1", "one");
    let (good, said) = run(cluster, &["backup"]);
    assert!(good && said.starts_with("the backup has 1 images in 3 blobs (") && said.contains("3 of them"), "{said}");
    push(cluster, "team/app:2", "two");
    let (good, said) = run(cluster, &["backup", "--verify", "--json"]);
    let report: Value = serde_json::from_str(&said[..=said.rfind('}').unwrap()]).unwrap();
    let text = report["said"].as_str().unwrap();
    assert!(good && text.starts_with("the backup has 2 images in 6 blobs (") && text.contains("3 of them"), "{said}");
    let tree = cluster.sh_ok(HOST, &format!("find {SHARE} -type f | wc -l"));
    assert_eq!(tree, "8", "six blobs and two indexes");
}

fn a_restore_brings_back_what_was_and_refuses_a_damaged_backup(cluster: &Cluster) {
    push(cluster, "team/app:2", "overwritten");
    push(cluster, "team/later:1", "later");
    assert!(!run(cluster, &["restore-images"]).0, "it asks for --yes");
    // A blob of another size.
    let blob = cluster.sh_ok(HOST, &format!("ls {SHARE}/blobs/sha256/*/* | head -1"));
    cluster.sh_ok(HOST, &format!("cp {blob} /tmp/good && echo x >>{blob}"));
    let (good, said) = run(cluster, &["restore-images", "--yes"]);
    let digest = blob.rsplit('/').next().unwrap();
    assert!(!good && said.contains(&format!("the blob sha256:{digest} of the backup is damaged")), "{said}");
    assert_eq!((content(cluster, "team/app:2").as_str(), content(cluster, "team/later:1").as_str()), ("overwritten", "later"));
    cluster.sh_ok(HOST, &format!("cp /tmp/good {blob}"));

    let (good, said) = run(cluster, &["restore-images", "--yes"]);
    assert!(good && said.starts_with("restored and verified 2 images in 6 blobs ("), "{said}");
    assert_eq!((content(cluster, "team/app:1").as_str(), content(cluster, "team/app:2").as_str()), ("one", "two"));
    assert_eq!(content(cluster, "team/later:1"), "");
    let left = cluster.sh_ok(HOST, "ls -A /data/docker-registry");
    assert_eq!(left.lines().filter(|name| name.starts_with(".re")).count(), 0, "{left}");
    push(cluster, "team/after:1", "after");
    let runs = cluster.get("/metronome/v1/jobs/private-registry.restore?embed=history");
    assert_eq!((&runs["history"]["successCount"], &runs["history"]["failureCount"]), (&json!(1), &json!(1)));
}

fn a_killed_registry_fails_the_run_and_keeps_the_backup(cluster: &Cluster) {
    // Something that takes its time: a backup that cannot be read at once.
    cluster.sh_ok(OTHER, "head -c 60000000 /dev/urandom >/tmp/content && tar -C /tmp -cf /tmp/content.tar content && docker import /tmp/content.tar 192.168.0.1/big:1 >/dev/null && docker push -q 192.168.0.1/big:1");
    let before = cluster.sh_ok(HOST, &format!("cat {SHARE}/index"));
    let container = cluster.sh_ok(HOST, "docker ps -q --filter name=mesos- | head -1");
    cluster.dcos_ok(&["job", "run", "private-registry.backup"]);
    let copies = || cluster.status().map(|status| status["copies"].clone()).unwrap_or_default();
    cluster.wait("the backup to begin", 30, || copies().as_array().is_some_and(|all| all.iter().any(|copy| copy["ended"] == false)));
    cluster.sh_ok(HOST, &format!("docker kill {container}"));
    cluster.wait("the end of the run", 60, || copies().as_array().is_some_and(|all| all.iter().all(|copy| copy["ended"] == true)));
    cluster.wait_converged();
    let index = cluster.sh_ok(HOST, &format!("cat {SHARE}/index"));
    let last = copies()[0].clone();
    assert!(last["failed"] == false || index == before, "{last}");
    let (good, said) = run(cluster, &["backup"]);
    assert!(good && said.contains("the backup has 4 images in 12 blobs"), "{said}");
}

fn the_registry_moves_to_another_agent_by_way_of_the_backup(cluster: &Cluster, options: &dyn Fn(&str, &str) -> Value) {
    // The share, as the other agent sees it.
    let root = |agent: &str| cluster.lab.path().join("agents").join(agent).join("root").join(&SHARE[1..]);
    fs::create_dir_all(root(OTHER).parent().unwrap()).unwrap();
    let copied = std::process::Command::new("cp").arg("-a").arg(root(HOST)).arg(root(OTHER)).status().unwrap();
    assert!(copied.success());
    cluster.update(&options(OTHER, ""));
    let said = || cluster.status().map(|status| status.to_string()).unwrap_or_default();
    cluster.wait("the word that the images would be lost", 60, || said().contains("set storage.abandon to"));
    cluster.update(&options(OTHER, "host_path 192.168.1.80:/data/docker-registry"));
    let moved = || cluster.get("/marathon/v2/apps/registry")["app"]["tasks"][0]["host"] == OTHER;
    cluster.wait("the registry to be on the other agent", 90, moved);
    cluster.wait_converged();
    assert_eq!(content(cluster, "team/app:1"), "");
    let (good, said) = run(cluster, &["backup"]);
    assert!(!good && said.contains("the registry holds no image, and the last backup has 4"), "{said}");
    let (good, said) = run(cluster, &["restore-images", "--yes"]);
    assert!(good && said.starts_with("restored and verified 4 images in 12 blobs ("), "{said}");
    assert_eq!((content(cluster, "team/app:2").as_str(), content(cluster, "team/after:1").as_str()), ("two", "after"));
}

fn preloaded<'a>(status: &'a Value, image: &str) -> Option<&'a Value> {
    status["preload"].as_array()?.iter().find(|entry| entry["image"] == image)
}

#[test]
fn images_of_a_registry_outside_are_copied_in_after_the_install_and_leave_nothing_behind() {
    let cluster = Cluster::start(2, 0);
    let upstream = Upstream::start(&cluster, false);
    // Somebody uses one of them here already.
    upstream.push(&cluster, "base/used:1");
    let before = cluster.pictures();
    let (hello, used, absent) =
        (format!("{UPSTREAM}/base/hello:1"), format!("{UPSTREAM}/base/used:1"), format!("{UPSTREAM}/base/absent:1"));
    cluster.install_and_wait(&json!({
        "registry": { "host": HOST },
        "exposure": { "marathon_lb": false },
        "other_registries": { "list": UPSTREAM, "ca": upstream.ca() },
        "preload": { "images": format!("{hello}, {absent}") },
    }));
    let state = |image: &str| cluster.status().and_then(|status| preloaded(&status, image).map(|entry| entry["state"].clone()));
    cluster.wait("the image", 60, || state(&hello) == Some(json!("done")));
    cluster.wait("the word about the other", 30, || state(&absent) == Some(json!("failed")));
    let status = cluster.status().unwrap();
    assert_eq!(status["converged"], true, "a failure keeps nothing else from being done");
    let problems = status["problems"].to_string();
    assert!(problems.contains(&format!("preload.images: {absent}: ")) && problems.contains("name and the tag"), "{problems}");
    let entry = preloaded(&status, &hello).unwrap();
    assert!(entry["copied"]["target"].as_str().unwrap().starts_with("sha256:") && entry["bytes"].as_u64().unwrap() > 0, "{entry}");
    assert_eq!(of_base(&cluster), Vec::<String>::new());
    cluster.sh_ok(OTHER, "docker pull -q 192.168.0.1/base/hello:1");

    // Another list; what failed is there now, and what is there already is not copied again.
    cluster.sh_ok(HOST, &format!("docker pull -q {used}"));
    upstream.push(&cluster, "base/absent:1");
    cluster.update(&json!({ "preload": { "images": format!("{hello}, {absent}, {used}") } }));
    cluster.wait("all images", 90, || [&hello, &absent, &used].iter().all(|image| state(image) == Some(json!("done"))));
    let status = cluster.status().unwrap();
    assert_eq!(preloaded(&status, &hello).unwrap()["detail"], "it was there already");
    assert_eq!(preloaded(&status, &used).unwrap()["detail"], "copied");
    assert_eq!(of_base(&cluster), [used.as_str()], "the operator's stays");
    cluster.sh_ok(OTHER, "docker pull -q 192.168.0.1/base/used:1");
    images_are_copied_in_also_where_users_log_in(&cluster, &upstream, &[&hello, &used]);
    a_killed_node_leaves_nothing_in_docker(&cluster, &used);
    cluster.uninstall();
    assert_eq!(of_base(&cluster), [used.as_str()]);
    cluster.assert_as_before(&before);
    cluster.assert_servers_answered_as_the_real_ones();
}

/// The images of the upstream, and copies of them, that docker on the registry's agent has.
fn of_base(cluster: &Cluster) -> Vec<String> {
    let images = cluster.sh_ok(HOST, "docker images --format '{{.Repository}}:{{.Tag}}'");
    images.lines().filter(|image| image.contains("/base/")).map(str::to_owned).collect()
}

fn images_are_copied_in_also_where_users_log_in(cluster: &Cluster, upstream: &Upstream, known: &[&str]) {
    upstream.push(cluster, "base/later:1");
    let later = format!("{UPSTREAM}/base/later:1");
    cluster.update(&json!({ "auth": { "kind": "htpasswd" }, "preload": { "images": format!("{}, {later}", known.join(", ")) } }));
    let entry = |image: &str| cluster.status().and_then(|status| preloaded(&status, image).cloned());
    cluster.wait("the image", 120, || entry(&later).is_some_and(|entry| entry["state"] == "done"));
    assert_eq!(entry(&later).unwrap()["detail"], "copied");
    for image in known {
        assert_eq!(entry(image).unwrap()["detail"], "it was there already");
    }
    assert!(!cluster.sh(OTHER, "docker pull -q 192.168.0.1/base/later:1").status.success(), "without a login");
    let account = "/var/lib/private-registry/private-registry/registry/account";
    assert_eq!(cluster.sh_ok(HOST, &format!("stat -c '%a %u' {account} $(dirname {account})")), "600 0\n700 0");
    let text = cluster.sh_ok(HOST, &format!("cat {account}"));
    let pulled =
        format!("curl -sf -o /dev/null --capath /var/lib/dcos/pki/tls/certs -u '{text}' https://192.168.0.1/v2/base/later/manifests/1");
    cluster.sh_ok(OTHER, &pulled);
    let password = text.split_once(':').unwrap().1;
    let shown = cluster.status().unwrap().to_string()
        + &cluster.get("/marathon/v2/apps").to_string()
        + &cluster.get("/marathon/v2/pods").to_string();
    assert!(!shown.contains(password));
    let logged = cluster.sh(HOST, &format!("grep -rlF -- '{password}' /var/lib/mesos /tmp /var/log"));
    assert_eq!(logged.stdout, "", "it is in no log and no sandbox");
}

fn a_killed_node_leaves_nothing_in_docker(cluster: &Cluster, used: &str) {
    let big =
        "head -c 300000000 /dev/urandom >/tmp/content && tar -C /tmp -cf - content | docker import - 127.0.0.1:5443/base/big:1 >/dev/null";
    cluster.sh_ok("outside", big);
    cluster.sh_ok("outside", "HOME=/tmp/home docker push -q 127.0.0.1:5443/base/big:1");
    let big = format!("{UPSTREAM}/base/big:1");
    cluster.update(&json!({ "preload": { "images": big } }));
    // It is pulled, and on its way into the registry.
    cluster.wait("the image in docker", 60, || of_base(cluster).contains(&big));
    let record = "/var/lib/private-registry/private-registry/node/preload.json";
    // The brackets: this line of shell is not meant.
    cluster.sh_ok(HOST, &format!("cat {record} && kill -9 $(pgrep -f '[p]rivate-registry node')"));
    assert!(of_base(cluster).contains(&big));
    let done = || cluster.status().and_then(|status| Some(preloaded(&status, &big)?["state"] == "done")) == Some(true);
    cluster.wait("the copy by the next node", 120, done);
    assert_eq!(of_base(cluster), [used]);
    assert!(!cluster.sh(HOST, &format!("cat {record}")).status.success());
}
