//! A docker inside a container uses the trust of the host that it runs on.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::support::{Cluster, made};
use lab::ExecOutput;
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
/// The folder as a whole, as docker/README.md says.
const FOLDER: &str = "--volume /etc/docker/certs.d:/etc/docker/certs.d:ro";
/// What should not be done: a file that is mounted alone stays the one that it was when the container was started.
const FILE: &str = "--volume /etc/docker/certs.d/192.168.0.1/ca.crt:/etc/docker/certs.d/192.168.0.1/ca.crt:ro";
/// What `--privileged` gives. A machine that is a container itself may lack a capability, and this docker then refuses the word as a whole.
const PRIVILEGED: &str = "--cap-add ALL --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
    --security-opt systempaths=unconfined --device-cgroup-rule 'a *:* rwm' --volume /sys/fs/cgroup:/sys/fs/cgroup";
/// An image of nothing but one file.
const PUSH: &str = "echo hello >/hello && tar -cf - /hello 2>/dev/null | docker import - 192.168.0.1/inner/file:1 >/dev/null && docker push 192.168.0.1/inner/file:1";

#[test]
fn a_docker_in_a_container_trusts_the_registry_by_the_hosts_folder_and_goes_on_through_rotations() {
    let cluster = Cluster::start(2, 0);
    load(&cluster, &made("target/images/docker-in-docker.tar"));
    cluster.install_and_wait(&json!({ "registry": { "host": HOST } }));
    cluster.sh_ok(HOST, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");
    snippets_are_taken_as_they_are(&cluster);
    for (name, mounts) in [("by-folder", FOLDER), ("by-file", FILE), ("without", "")] {
        start(&cluster, name, mounts);
    }
    without_the_folder_it_is_refused(&cluster);
    what_it_builds_is_pulled_elsewhere(&cluster);
    the_folder_follows_rotations_and_a_file_does_not(&cluster);
    cluster.assert_servers_answered_as_the_real_ones();
}

fn snippets_are_taken_as_they_are(cluster: &Cluster) {
    let printed = |place: &str| cluster.dcos_ok(&["private-registry", "snippet", "--for", place]);
    let app: Value = serde_json::from_str(&printed("marathon-app")).unwrap();
    let image = app["container"]["docker"]["image"].as_str().unwrap();
    cluster.sh_ok(HOST, &format!("docker tag canary:1 {image} && docker push -q {image} && docker rmi {image}"));
    let (code, said) = cluster.marathon("POST", "/apps", &app);
    assert_eq!(code, 201, "{said}");
    cluster.wait("the app of the snippet", 30, || cluster.get("/marathon/v2/apps/app")["app"]["tasksRunning"] == 1);
    assert_eq!(cluster.marathon("DELETE", "/apps/app", &Value::Null).0, 200);
    // It is run below; what Marathon starts is privileged in a way that not every machine allows.
    let mut app: Value = serde_json::from_str(&printed("docker-in-docker")).unwrap();
    app["instances"] = json!(0);
    let (code, said) = cluster.marathon("POST", "/apps", &app);
    assert_eq!(code, 201, "{said}");
    assert_eq!(cluster.marathon("DELETE", "/apps/docker-in-docker", &Value::Null).0, 200);
    assert!(printed("jenkins").contains("192.168.0.1/jenkins-agent:1") && printed("gitlab-runner").contains("[[runners]]"));
}

fn without_the_folder_it_is_refused(cluster: &Cluster) {
    let refused = inside(cluster, "without", PUSH);
    assert!(!refused.status.success() && refused.stderr.contains("x509"), "{}{}", refused.stdout, refused.stderr);
    inside_ok(cluster, "by-folder", PUSH);
    inside_ok(cluster, "by-file", PUSH);
    // It cannot be used to change what the host trusts.
    let written = inside(cluster, "by-folder", "echo x >/etc/docker/certs.d/192.168.0.1/ca.crt");
    assert!(!written.status.success() && written.stderr.contains("Read-only file system"), "{}", written.stderr);
    assert_eq!(inside_ok(cluster, "by-folder", "find /etc/docker -type f -not -name '*.crt' -not -name key.json"), "");
}

fn what_it_builds_is_pulled_elsewhere(cluster: &Cluster) {
    let build = "mkdir /tmp/b && printf 'FROM 192.168.0.1/base/hello:1\nRUN echo built inside >/hello\n' >/tmp/b/Dockerfile && \
                 DOCKER_BUILDKIT=0 docker build -q -t 192.168.0.1/inner/app:1 /tmp/b && docker push -q 192.168.0.1/inner/app:1";
    inside_ok(cluster, "by-folder", build);
    assert_eq!(cluster.sh_ok(HOST, "docker run --rm 192.168.0.1/inner/app:1 /bin/busybox cat /hello"), "built inside");
}

fn the_folder_follows_rotations_and_a_file_does_not(cluster: &Cluster) {
    const CA: &str = "cat /etc/docker/certs.d/192.168.0.1/ca.crt";
    let (first, life) = (cluster.sh_ok(OTHER, CA), life(cluster));
    // After one, what the registry serves still leads back to the CA before.
    for _ in 0..2 {
        cluster.dcos_ok(&["private-registry", "rotate"]);
        let now = cluster.sh_ok(OTHER, CA);
        assert_ne!(now, first);
        assert_eq!(inside_ok(cluster, "by-folder", CA), now);
        assert_eq!(inside_ok(cluster, "by-file", CA), first);
        inside_ok(cluster, "by-folder", PUSH);
        inside_ok(cluster, "by-folder", "docker pull -q 192.168.0.1/inner/app:1");
    }
    let stale = inside(cluster, "by-file", PUSH);
    assert!(!stale.status.success() && stale.stderr.contains("x509"), "{}{}", stale.stdout, stale.stderr);
    assert_eq!(self::life(cluster), life, "the inner dockerd was restarted");
}

#[test]
#[ignore = "needs the image that `ci/images jenkins-agent` makes (424 MB)"]
fn an_agent_of_jenkins_builds_and_pushes_with_a_docker_of_its_own() {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images/jenkins-agent.tar");
    assert!(archive.exists(), "make it with ci/images jenkins-agent");
    let cluster = Cluster::start(2, 0);
    load(&cluster, &archive);
    cluster.install_and_wait(&json!({ "registry": { "host": HOST } }));
    // The Mesos plugin gives the container a command; here it ends as a job's shell step would.
    let job = format!("java -version && git --version && {PUSH}");
    let output =
        cluster.lab.exec(OTHER, &["sh", "-c", &format!("docker run --rm {} {FOLDER} jenkins-agent:1 sh -c '{job}'", privileged())]);
    let output = output.unwrap();
    assert!(output.status.success() && output.stdout.contains("git version"), "{}{}", output.stdout, output.stderr);
    cluster.sh_ok(HOST, "docker pull -q 192.168.0.1/inner/file:1");
    cluster.assert_servers_answered_as_the_real_ones();
}

/// Gives an image to the docker of the agent.
fn load(cluster: &Cluster, archive: &Path) {
    let there = cluster.lab.path().join("agents").join(OTHER).join("root/tmp/image.tar");
    fs::hard_link(archive, &there).or_else(|_| fs::copy(archive, &there).map(drop)).unwrap();
    cluster.sh_ok(OTHER, "docker load --quiet --input /tmp/image.tar");
}

/// A running container with a dockerd of its own.
fn start(cluster: &Cluster, name: &str, mounts: &str) {
    cluster.sh_ok(OTHER, &format!("docker run --detach {} --name {name} {mounts} docker-in-docker:1", privileged()));
    cluster.wait("the inner dockerd", 30, || inside(cluster, name, "docker version").status.success());
}

/// The options of a privileged container on this machine.
fn privileged() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    if u64::from_str_radix(bounding.trim(), 16).unwrap() == (1 << (last + 1)) - 1 {
        return "--privileged".to_owned();
    }
    format!("{PRIVILEGED} --cap-drop SYS_RESOURCE")
}

/// Runs a shell line in one of them.
fn inside(cluster: &Cluster, name: &str, line: &str) -> ExecOutput {
    cluster.lab.exec(OTHER, &["docker", "exec", name, "sh", "-c", line]).unwrap()
}

/// The same; its failure fails the test.
fn inside_ok(cluster: &Cluster, name: &str, line: &str) -> String {
    let output = inside(cluster, name, line);
    assert!(output.status.success(), "{name}: {line}: {}{}", output.stdout, output.stderr);
    output.stdout.trim().to_owned()
}

/// When the container was started, and the process ids of what runs in it.
fn life(cluster: &Cluster) -> String {
    cluster.sh_ok(OTHER, "docker inspect --format '{{.State.StartedAt}}' by-folder; docker exec by-folder pidof dockerd containerd")
}
