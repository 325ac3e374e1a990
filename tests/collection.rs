//! Garbage is collected while somebody pushes without a pause, and images that Mesos cannot read are found before an app needs them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use crate::support::Cluster;
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";

/// Pushes a new image about every second until `stop` is there, and again whatever was refused; one line for each try: code, tag, words.
const PUSHER: &str = r#"
n=0
while [ ! -e /tmp/stop ]; do
  n=$((n+1))
  echo "$n" >/tmp/content
  tar -C /tmp -cf /tmp/content.tar content
  docker import /tmp/content.tar 192.168.0.1/loop/pushed:$n >/dev/null
  until out=$(docker push -q 192.168.0.1/loop/pushed:$n 2>&1); do
    echo "1 $n $(echo "$out" | tr '\n' ' ')"
    [ -e /tmp/stop ] && exit
    sleep 0.2
  done
  echo "0 $n"
done
"#;

#[test]
fn garbage_is_collected_while_somebody_pushes_and_what_mesos_cannot_read_is_listed() {
    let cluster = Cluster::start(2, 0);
    let output = cluster.install(&json!({
        "registry": { "host": HOST, "cpus": 0.3, "mem": 256 },
        "exposure": { "marathon_lb": false },
        "garbage_collection": { "schedule": "0 3 * * 0", "time_zone": "Mars/Base" },
    }));
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    // A schedule that Metronome does not understand is named, and keeps nothing else from being done.
    let says =
        |status: &Value| status["problems"].to_string().contains("time zone") && status["registry"].to_string().contains("serving on");
    cluster.wait("the problem with the time zone", 60, || cluster.status().as_ref().is_some_and(says));
    cluster.update(&json!({ "garbage_collection": { "time_zone": "UTC" } }));
    cluster.wait_converged();
    let schedule = cluster.get("/metronome/v1/jobs/private-registry.gc/schedules")[0].clone();
    assert_eq!((&schedule["cron"], &schedule["timezone"], &schedule["enabled"]), (&json!("0 3 * * 0"), &json!("UTC"), &json!(true)));
    the_limits_are_those_of_the_options(&cluster);
    images_that_mesos_cannot_read_are_listed_with_the_fix(&cluster);
    garbage_is_collected_and_no_push_is_lost(&cluster);
    a_collection_whose_registry_is_killed_fails_and_leaves_it_writable(&cluster);
    cluster.uninstall();
    cluster.assert_servers_answered_as_the_real_ones();
}

fn container(cluster: &Cluster) -> String {
    cluster.sh_ok(HOST, "docker ps -q --filter name=mesos- | head -1")
}

fn the_limits_are_those_of_the_options(cluster: &Cluster) {
    // What Mesos makes of them is its own affair.
    let app = cluster.get("/marathon/v2/apps/registry")["app"].clone();
    assert_eq!((app["cpus"].as_f64(), app["mem"].as_f64()), (Some(0.3), Some(256.0)));
}

fn images_that_mesos_cannot_read_are_listed_with_the_fix(cluster: &Cluster) {
    let copy = "skopeo copy -q --dest-cert-dir /etc/docker/certs.d/192.168.0.1 --format";
    for (format, name) in [("oci", "oci"), ("v2s2", "docker")] {
        cluster.sh_ok(OTHER, "docker save -o /tmp/canary.tar canary:1");
        cluster.sh_ok(OTHER, &format!("{copy} {format} docker-archive:/tmp/canary.tar docker://192.168.0.1/team/{name}:1"));
    }
    let table = cluster.dcos_ok(&["private-registry", "images"]);
    let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("team/oci:1 ").contains("no: it is a manifest of the OCI"), "{table}");
    assert!(line("team/docker:1 ").ends_with("yes") && table.contains("skopeo copy --format v2s2"), "{table}");
    let listed: Value = serde_json::from_str(&cluster.dcos_ok(&["private-registry", "images", "--unreadable", "--json"])).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["tag"], &listed[0]["repository"]), (1, &json!("1"), &json!("team/oci")));

    // Indeed.
    let app = |name: &str| {
        json!({
            "id": format!("/{name}"), "instances": 1, "cpus": 0.01, "mem": 32, "cmd": "sleep 1000",
            "container": { "type": "MESOS", "docker": { "image": format!("192.168.0.1/team/{name}:1") } },
        })
    };
    for name in ["oci", "docker"] {
        assert_eq!(cluster.marathon("POST", "/apps", &app(name)).0, 201);
    }
    let task = |name: &str| cluster.get(&format!("/marathon/v2/apps/{name}"))["app"].clone();
    cluster.wait("Mesos to run the image that it reads", 40, || task("docker")["tasksRunning"] == 1);
    cluster.wait("Mesos to refuse the other", 40, || task("oci")["lastTaskFailure"]["message"].is_string());
    assert_eq!(task("oci")["tasksRunning"], 0);
    for name in ["oci", "docker"] {
        assert_eq!(cluster.marathon("DELETE", &format!("/apps/{name}?force=true"), &Value::Null).0, 200);
    }
}

fn garbage_is_collected_and_no_push_is_lost(cluster: &Cluster) {
    let file = |name: &str| cluster.lab.path().join("agents").join(OTHER).join("root/tmp").join(name);
    // Something to be deleted.
    let push = "head -c 3000000 /dev/urandom >/tmp/junk && tar -C /tmp -cf /tmp/junk.tar junk && docker import /tmp/junk.tar 192.168.0.1/junk:1 && docker push -q 192.168.0.1/junk:1";
    cluster.sh_ok(OTHER, push);
    let find = "curl -sI --capath /var/lib/dcos/pki/tls/certs -H 'Accept: application/vnd.docker.distribution.manifest.v2+json' https://192.168.0.1/v2/junk/manifests/1 | tr -d '\\r' | sed -n 's/^docker-content-digest: //Ip'";
    let digest = cluster.sh_ok(OTHER, find);
    cluster
        .sh_ok(OTHER, &format!("curl -sf -X DELETE --capath /var/lib/dcos/pki/tls/certs https://192.168.0.1/v2/junk/manifests/{digest}"));

    let dry = cluster.dcos_ok(&["private-registry", "gc", "--dry-run"]);
    assert!(dry.starts_with("would free 3.0 MB in ") && dry.contains("nothing was deleted"), "{dry}");
    let starts = || {
        cluster.sh_ok(HOST, &format!("curl -s http://{}/metrics | sed -n 's/^private_registry_starts_total //p'", status_address(cluster)))
    };
    assert_eq!(starts(), "1", "a dry run restarts nothing");

    fs::write(file("pusher.sh"), PUSHER).unwrap();
    cluster.sh_ok(OTHER, "setsid sh /tmp/pusher.sh >/tmp/pusher.log 2>&1 </dev/null &");
    cluster.wait("the first push", 20, || fs::read_to_string(file("pusher.log")).is_ok_and(|log| log.contains("0 1")));
    let said = cluster.dcos_ok(&["private-registry", "gc"]);
    assert!(said.starts_with("freed 3.0 MB in ") && said.contains("; the registry was read-only for "), "{said}");
    assert_eq!(starts(), "3", "read-only, and writable again");
    let successes = || fs::read_to_string(file("pusher.log")).unwrap().lines().filter(|line| line.starts_with("0 ")).count();
    let meanwhile = successes();
    cluster.wait("pushes to go on", 30, || successes() >= meanwhile.max(2) + 2);
    cluster.sh_ok(OTHER, "touch /tmp/stop");
    std::thread::sleep(Duration::from_secs(2));
    let log = fs::read_to_string(file("pusher.log")).unwrap();
    let pushed: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("0 ")).collect();
    assert!(pushed.len() > 3, "{log}");
    cluster.sh_ok(OTHER, "docker rmi -f $(docker images -q 192.168.0.1/loop/pushed) >/dev/null");
    for tag in pushed {
        cluster.sh_ok(OTHER, &format!("docker pull -q 192.168.0.1/loop/pushed:{tag}"));
    }
    println!("{log}{said}");
    let runs = cluster.get("/metronome/v1/jobs/private-registry.gc?embed=history");
    assert_eq!((&runs["history"]["successCount"], &runs["history"]["failureCount"]), (&json!(1), &json!(0)));
}

/// Where the registry's task shows its status.
fn status_address(cluster: &Cluster) -> String {
    let task = cluster.get("/marathon/v2/apps/registry")["app"]["tasks"][0].clone();
    format!("{}:{}", task["host"].as_str().unwrap(), task["ports"][1])
}

fn a_collection_whose_registry_is_killed_fails_and_leaves_it_writable(cluster: &Cluster) {
    // Stopped, the registry takes long to become read-only: time enough to kill it.
    let first = container(cluster);
    cluster.dcos_ok(&["job", "run", "private-registry.gc"]);
    let collections = || cluster.status().map(|status| status["collections"].clone()).unwrap_or_default();
    cluster.wait("the collection to begin", 30, || collections().as_array().is_some_and(|all| all.iter().any(|c| c["ended"] == false)));
    cluster.sh_ok(HOST, &format!("docker kill {first}"));
    let ended = || collections().as_array().is_some_and(|all| !all.is_empty() && all.iter().all(|c| c["ended"] == true));
    cluster.wait("the end of the collection", 60, ended);
    cluster.wait_converged();
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/after:1 && docker push -q 192.168.0.1/after:1");
}
