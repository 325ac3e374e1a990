//! Whatever ends a lab, it leaves nothing behind: no process, namespace, mount, control group, iptables rule, or file.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What outlives a process, as far as a lab could leave it.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    processes: BTreeSet<String>,
    namespaces: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    groups: BTreeSet<PathBuf>,
    rules: String,
    links: String,
}

impl Traces {
    fn now(dir: &Path) -> Self {
        let pids = || fs::read_dir("/proc").unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
        let of_the_lab = |line: &String| line.contains(&*dir.to_string_lossy());
        let output = |program: &str, arguments: &[&str]| {
            String::from_utf8_lossy(&Command::new(program).args(arguments).output().unwrap().stdout).into_owned()
        };
        let rules = output("iptables-save", &[]);
        Self {
            processes: pids()
                .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
                .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
                .filter(of_the_lab)
                .collect(),
            namespaces: pids().filter_map(|entry| fs::read_link(entry.path().join("ns/net")).ok()).collect(),
            mounts: fs::read_to_string("/proc/self/mounts").unwrap().lines().map(str::to_owned).filter(of_the_lab).collect(),
            groups: groups(),
            rules: rules.lines().filter(|line| !line.starts_with('#') && !line.starts_with(':')).collect(),
            links: output("ip", &["-o", "link"]).lines().filter(|line| line.contains("br0") || line.contains("agent")).collect(),
        }
    }
}

/// Control groups of labs, in every hierarchy.
fn groups() -> BTreeSet<PathBuf> {
    let mut groups = BTreeSet::new();
    for hierarchy in
        fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()])
    {
        let here = fs::read_dir(&hierarchy).into_iter().flatten().flatten().map(|entry| entry.path());
        groups.extend(here.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("lab-")));
    }
    groups
}

fn lab_program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().unwrap().parent().unwrap().join("lab");
    assert!(program.is_file(), "{} is missing: run cargo build -p lab", program.display());
    program
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A lab with a running container, ended as `end` says: given the pids of the lab's outermost process and of its owner.
fn leaves_nothing_when(name: &str, end: impl Fn(&str, &str)) {
    let dir = PathBuf::from(format!("/var/tmp/private-registry-leftovers-{name}-{}", std::process::id()));
    let before = Traces::now(&dir);
    let mut owner = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images/canary.tar");
    let program = lab_program();
    let up = Command::new(&program)
        .args(["up", "--detach", "--agents", "1", "--public", "1", "--owner-pid", &owner.id().to_string(), "--dir"])
        .arg(&dir)
        .arg("--image-tar")
        .arg(images)
        .output()
        .unwrap();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let run =
        Command::new(&program).arg("--dir").arg(&dir).args(["exec", "192.168.1.80", "--", "docker", "run", "-d", "canary:1"]).output();
    assert!(run.unwrap().status.success());
    assert_ne!(Traces::now(&dir), before, "a running lab must be seen, or this test sees nothing");
    let outer: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("outer.json")).unwrap()).unwrap();
    end(&outer["pid"].to_string(), &owner.id().to_string());
    eventually("the lab's directory to go", || !dir.exists());
    let _ = owner.kill();
    let _ = owner.wait();
    let mut after = Traces::now(&dir);
    eventually("every trace to go", || {
        after = Traces::now(&dir);
        // Namespaces of others come and go meanwhile; none may be new.
        after.namespaces.retain(|namespace| !before.namespaces.contains(namespace));
        after.namespaces.is_empty() && after.processes == before.processes && after.mounts == before.mounts && after.groups == before.groups
    });
    assert_eq!((after.rules, after.links), (before.rules, before.links));
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

// One after the other: each compares the whole machine.
#[test]
fn a_lab_that_is_ended_interrupted_killed_or_orphaned_leaves_nothing() {
    leaves_nothing_when("interrupted", |outer, _| kill("-INT", outer));
    leaves_nothing_when("killed", |outer, _| kill("-KILL", outer));
    leaves_nothing_when("orphaned", |_, owner| kill("-KILL", owner));
}
