//! The documents are true: every command in them is run, and prints what they show.

#![allow(clippy::unwrap_used)]

use std::fs;

use serde_json::json;

use crate::support::guide::{OPERATOR, Reader, blocks};
use crate::support::{Cluster, made};

const REGISTRY: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const ALPINE: &str = "docker.io/library/alpine:3.20";

/// Who follows a section with commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// A test of this file.
    Operator,
    /// The same, of a registry with users and a backup.
    Keeper,
    /// The same, of the first thing that somebody reads, in both languages.
    Newcomer,
    /// Nobody here, and why.
    Nobody(&'static str),
}

const CLOSED: &str = "`dcos security` is a part of the Enterprise CLI, which is closed; tests/enterprise.rs makes the calls that it makes";

const CHINESE: &str = "README.zh-CN.md";

/// Every section that has commands.
const FOLLOWED: &[(&str, &str, By)] = &[
    ("docs/install.md", "By the CLI", By::Operator),
    ("docs/install.md", "What it does, agent by agent", By::Operator),
    ("docs/install.md", "Other options, later", By::Operator),
    ("docs/install.md", "Without `dcos package install`", By::Operator),
    ("docs/rotate.md", "What there is", By::Operator),
    ("docs/rotate.md", "By hand", By::Operator),
    ("docs/registry.md", "Health and metrics", By::Operator),
    ("docs/registry.md", "Garbage collection", By::Operator),
    ("docs/registry.md", "Which images Mesos can read", By::Operator),
    ("docs/images.md", "By hand, from an agent or any machine inside", By::Operator),
    ("docs/images.md", "By hand, from outside", By::Operator),
    ("docs/images.md", "Where there is no way out at all", By::Operator),
    ("docs/storage.md", "An external volume", By::Operator),
    ("docs/troubleshooting.md", "Troubleshooting", By::Operator),
    ("docs/troubleshooting.md", "A machine outside", By::Operator),
    ("docs/enterprise.md", "The service account", By::Operator),
    ("docs/air-gap.md", "The folder", By::Operator),
    ("docs/air-gap.md", "The registry's image", By::Operator),
    ("docs/air-gap.md", "All other images", By::Operator),
    ("docs/uninstall.md", "Uninstall", By::Operator),
    ("docs/uninstall.md", "If the controller was deleted first", By::Operator),
    (CHINESE, "安装", By::Newcomer),
    (CHINESE, "使用", By::Newcomer),
    (CHINESE, "常用选项", By::Newcomer),
    (CHINESE, "遇到问题", By::Newcomer),
    (CHINESE, "证书轮换", By::Newcomer),
    (CHINESE, "卸载", By::Newcomer),
    ("docs/authentication.md", "Users that the service keeps", By::Keeper),
    ("docs/authentication.md", "Apps that pull with a login", By::Nobody(CLOSED)),
    ("docs/backup-and-migrate.md", "Backup", By::Keeper),
    ("docs/backup-and-migrate.md", "Restore", By::Keeper),
    ("docs/backup-and-migrate.md", "To an object store", By::Nobody("tests/storage.rs moves a backup into an object store")),
    ("docs/cache.md", "A cache of another registry", By::Nobody("tests/cache.rs installs a cache of a registry that asks for a password")),
    ("README.md", "Install", By::Newcomer),
    ("README.md", "Asking it", By::Newcomer),
    ("README.md", "Over its life", By::Newcomer),
    ("docs/storage.md", "S3, and stores that speak it", By::Nobody(CLOSED)),
];

/// Reads with the table in hand, so that nothing that stands there is left out.
struct Course<'a> {
    reader: Reader<'a>,
    left: Vec<(&'static str, &'static str)>,
}

impl<'a> Course<'a> {
    fn new(cluster: &'a Cluster, by: By) -> Self {
        let left = FOLLOWED.iter().filter(|(_, _, who)| *who == by).map(|(file, section, _)| (*file, *section)).collect();
        Self { reader: Reader::new(cluster), left }
    }

    fn follow(&mut self, file: &str, section: &str) {
        let at = self.left.iter().position(|listed| *listed == (file, section));
        self.left.remove(at.unwrap_or_else(|| panic!("{file}, {section:?} does not stand in the table")));
        self.reader.follow(file, section);
    }

    fn end(self) {
        assert!(self.left.is_empty(), "not followed: {:?}", self.left);
    }
}

#[test]
fn every_block_says_what_it_is_and_every_section_with_commands_is_followed() {
    let mut files = ["README.md", CHINESE, "docker/README.md"].map(str::to_owned).to_vec();
    let docs = fs::read_dir(made("docs")).unwrap().map(|entry| format!("docs/{}", entry.unwrap().file_name().to_string_lossy()));
    files.extend(docs.filter(|name| name.ends_with(".md")));
    let mut found = Vec::new();
    for file in &files {
        for block in blocks(file) {
            assert!(!block.info.is_empty(), "{file}, {}: a block says not what it is: {:?}", block.section, block.lines.first());
            if !block.commands().is_empty() {
                found.push((file.clone(), block.section.clone()));
            }
        }
    }
    found.dedup();
    let listed: Vec<(String, String)> = FOLLOWED.iter().map(|(file, section, _)| (file.to_string(), section.to_string())).collect();
    for section in &found {
        assert!(listed.contains(section), "{section:?} has commands that no test runs");
    }
    for section in &listed {
        assert!(found.contains(section), "{section:?} is in the table and has no commands");
    }
}

/// From nothing to nothing, by the documents alone.
#[test]
fn an_operator_who_follows_the_documents_comes_to_what_they_show() {
    let cluster = Cluster::start(3, 1);
    let mut course = Course::new(&cluster, By::Operator);
    cluster.dcos_ok(&["package", "repo", "remove", "lab"]);
    course.follow("docs/install.md", "By the CLI");
    course.follow("docs/install.md", "What it does, agent by agent");
    course.follow("docs/registry.md", "Health and metrics");
    course.follow("docs/troubleshooting.md", "Troubleshooting");
    course.follow("docs/troubleshooting.md", "A machine outside");
    course.follow("docs/enterprise.md", "The service account");
    course.follow("docs/air-gap.md", "The folder");
    course.follow("docs/air-gap.md", "The registry's image");
    course.follow("docs/air-gap.md", "All other images");

    // The lab has no way out: what the documents pull is there already.
    for machine in [OTHER, "outside"] {
        cluster.sh_ok(machine, &format!("docker tag canary:1 {ALPINE}"));
    }
    course.reader.reads("docker pull --quiet docker.io/library/alpine:3.20", "echo docker.io/library/alpine:3.20");
    course.reader.reads("docker://docker.io/library/alpine:3.20 docker", "docker://192.168.0.1/library/alpine:3.20 docker");
    course.follow("docs/images.md", "By hand, from an agent or any machine inside");
    course.reader.carries("trust.sh", OPERATOR, "outside");
    course.reader.carries("alpine.tar.gz", "outside", OTHER);
    course.follow("docs/images.md", "By hand, from outside");
    course.follow("docs/images.md", "Where there is no way out at all");
    oci_image(&cluster);
    course.follow("docs/registry.md", "Which images Mesos can read");
    make_garbage(&cluster);
    course.follow("docs/registry.md", "Garbage collection");
    course.follow("docs/storage.md", "An external volume");

    course.follow("docs/rotate.md", "What there is");
    course.follow("docs/rotate.md", "By hand");
    cluster.wait_converged();
    course.follow("docs/install.md", "Other options, later");
    cluster.wait("the further name", 60, || {
        cluster.status().is_some_and(|status| status["converged"] == true && status["names"].to_string().contains("registry.example.com"))
    });
    course.follow("docs/uninstall.md", "Uninstall");
    gone(&cluster);
    course.follow("docs/install.md", "Without `dcos package install`");
    cluster.wait_converged();
    assert_eq!(cluster.marathon("DELETE", "/apps/private-registry", &json!(null)).0, 200);
    cluster.wait("the end of the controller", 60, || cluster.status().is_none() && cluster.is_calm());
    course.follow("docs/uninstall.md", "If the controller was deleted first");
    gone(&cluster);
    course.end();
}

/// An image as newer dockers push it.
fn oci_image(cluster: &Cluster) {
    let copy = "skopeo copy -q --format oci --dest-cert-dir /etc/docker/certs.d/192.168.0.1 docker-daemon:canary:1 docker://192.168.0.1/team/oci:1";
    cluster.sh_ok(OTHER, copy);
}

/// A tag that is moved leaves a layer behind.
fn make_garbage(cluster: &Cluster) {
    for _ in 0..2 {
        let push = "head -c 3000000 /dev/urandom >/tmp/junk && tar -C /tmp -cf /tmp/junk.tar junk && \
                    docker import /tmp/junk.tar 192.168.0.1/team/junk:1 >/dev/null && docker push --quiet 192.168.0.1/team/junk:1";
        cluster.sh_ok(OTHER, push);
    }
}

#[test]
fn a_keeper_of_users_and_backups_who_follows_the_documents_comes_to_what_they_show() {
    let cluster = Cluster::start(2, 0);
    let mut course = Course::new(&cluster, By::Keeper);
    cluster.sh_ok(REGISTRY, "mkdir -p /mnt/share && mount -t tmpfs none /mnt/share && mkdir /mnt/share/registry");
    course.reader.reads("{ \"auth\": { \"kind\": \"htpasswd\" } }", KEEPER);
    course.follow("docs/authentication.md", "Users that the service keeps");
    course.follow("docs/backup-and-migrate.md", "Backup");
    course.follow("docs/backup-and-migrate.md", "Restore");
    course.end();
    cluster.uninstall();
}

const KEEPER: &str = r#"{ "auth": { "kind": "htpasswd" }, "registry": { "host": "192.168.1.80" }, "exposure": { "marathon_lb": false },
                          "backup": { "path": "/mnt/share/registry", "schedule": "30 2 * * *" } }"#;

#[test]
fn a_newcomer_who_follows_what_is_read_first_comes_to_what_it_shows_in_both_languages() {
    let cluster = Cluster::start(3, 1);
    let mut course = Course::new(&cluster, By::Newcomer);
    cluster.dcos_ok(&["package", "repo", "remove", "lab"]);
    for section in ["Install", "Asking it", "Over its life"] {
        course.follow("README.md", section);
    }
    gone(&cluster);
    cluster.dcos_ok(&["package", "repo", "remove", "private-registry"]);
    for section in ["安装", "使用", "常用选项", "遇到问题", "证书轮换", "卸载"] {
        course.follow(CHINESE, section);
    }
    gone(&cluster);
    course.end();
}

fn gone(cluster: &Cluster) {
    cluster
        .wait("the end of the uninstall", 120, || cluster.ids_at_marathon().is_empty() && cluster.jobs().is_empty() && cluster.is_calm());
}
