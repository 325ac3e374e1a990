//! Options that cannot work are refused at once, with field and remedy, and leave nothing behind.

#![allow(clippy::unwrap_used)]

use crate::support::Cluster;
use serde_json::{Value, json};

const CONTROLLER: &str = "/private-registry";

#[test]
fn unusable_options_are_refused_with_field_and_remedy_and_leave_nothing_behind() {
    let cluster = Cluster::start(2, 1);
    let agents = cluster.agents();
    let before: Vec<_> = agents.iter().map(|agent| cluster.picture(agent)).collect();
    // Somebody else's app has a service port and a VIP.
    let other = json!({
        "id": "/other", "cpus": 0.1, "mem": 32, "cmd": "sleep 100000",
        "container": { "type": "DOCKER", "docker": { "image": "canary:1", "network": "BRIDGE", "portMappings": [
            { "containerPort": 80, "servicePort": 5001, "hostPort": 10123, "labels": { "VIP_0": "192.168.0.9:443", "VIP_1": "/other:80" } },
        ] } },
    });
    assert_eq!(cluster.marathon("POST", "/apps", &other).0, 201);

    // Cosmos itself sees what the schema says; the CLI then tells nothing but this, and nothing is installed.
    for options in [
        json!({ "names": { "vipp": "192.168.0.1:443" } }),
        json!({ "names": { "vip": "registry" } }),
        json!({ "registry": { "storage_path": "" } }),
        json!({ "registry": { "storage_path": "data" } }),
        json!({ "exposure": { "service_port": 70_000 } }),
    ] {
        let output = cluster.install(&options);
        assert!(!output.status.success(), "{options} was accepted");
        assert!(output.stderr.contains("Options JSON failed validation"), "{options}: {}{}", output.stdout, output.stderr);
        assert_eq!(cluster.ids_at_marathon(), ["/other"], "{options}");
    }

    // The rest is seen by the controller.
    for (options, field, remedy) in [
        (json!({ "names": { "vip": "192.168.0.300:443" } }), "names.vip", "Give an unused IPv4 address"),
        (json!({ "names": { "vip": "192.168.0.9:443" } }), "names.vip", "Choose another address or port"),
        (json!({ "names": { "named_vip": "other:80" } }), "names.named_vip", "Choose another name or port"),
        (json!({ "names": { "vip": "", "named_vip": "" } }), "names.vip", "Give at least one of the three"),
        (json!({ "exposure": { "host_port": 22 } }), "exposure.host_port", "Choose one of these"),
        (json!({ "exposure": { "host_port": 10_123 } }), "exposure.host_port", "pin that app to another agent"),
        (json!({ "exposure": { "allowed_sources": "10.1.2.3/16" } }), "exposure.allowed_sources", "Give IPv4 addresses or networks"),
        (json!({ "names": { "external_host": "bad_host" } }), "names.external_host", "Give the address or DNS name"),
        (json!({ "names": { "extra": "registry.example.com" } }), "names.extra", "Give host:port"),
        (json!({ "registry": { "host": "192.168.1.222" } }), "registry.host", "Give the agent's host name as Mesos shows it"),
        (json!({ "registry": { "host": "192.168.1.50" } }), "registry.host", "Name a private agent"),
        (json!({ "exposure": { "service_port": 5001 } }), "exposure.service_port", "Choose a port that no app has"),
        (json!({ "exposure": { "service_port": 9090 } }), "exposure.service_port", "Choose another one, best from 10000"),
        (json!({ "registry": { "storage_path": "/data/../etc" } }), "registry.storage_path", "Give the plain absolute path"),
    ] {
        let output = cluster.install(&options);
        assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
        cluster.wait("the refusal", 30, || cluster.status().is_some_and(|status| status["refused"] == true));
        let problems = cluster.status().unwrap()["problems"].clone();
        let said = problems.as_array().unwrap().iter().find_map(Value::as_str).unwrap_or_default();
        assert!(said.starts_with(field) && said.contains(remedy), "{options}: {problems}");
        let mut ids = cluster.ids_at_marathon();
        ids.sort();
        assert_eq!(ids, ["/other", CONTROLLER], "{options}");
        assert_eq!(cluster.jobs(), Vec::<String>::new(), "{options}");
        cluster.dcos_ok(&["package", "uninstall", "private-registry", "--yes"]);
        cluster.wait("the end of the uninstall", 60, || cluster.ids_at_marathon() == ["/other"] && cluster.is_calm());
        for (agent, before) in agents.iter().zip(&before) {
            let after = cluster.picture(agent);
            let changed: Vec<_> = after.iter().filter(|(path, found)| before.get(*path) != Some(*found)).map(|(path, _)| path).collect();
            assert!(changed.is_empty() && before.len() == after.len(), "{options}: {agent}: {changed:?}");
        }
    }
    a_registry_that_was_made_by_hand_is_neither_taken_over_nor_removed(&cluster);
    cluster.assert_servers_answered_as_the_real_ones();
}

/// The tutorial calls its registry as we call ours.
fn a_registry_that_was_made_by_hand_is_neither_taken_over_nor_removed(cluster: &Cluster) {
    let theirs = json!({ "id": "/registry", "cpus": 0.1, "mem": 32, "cmd": "sleep 100000" });
    assert_eq!(cluster.marathon("POST", "/apps", &theirs).0, 201);
    cluster.wait("the registry made by hand", 30, || cluster.is_calm());
    let version = cluster.get("/marathon/v2/apps/registry")["app"]["version"].clone();
    assert!(cluster.install(&json!({})).status.success());
    cluster.wait("the refusal", 30, || cluster.status().is_some_and(|status| status["refused"] == true));
    let problems = cluster.status().unwrap()["problems"].to_string();
    assert!(problems.contains("registry.name = /registry") && problems.contains("Choose another name"), "{problems}");
    cluster.dcos_ok(&["package", "uninstall", "private-registry", "--yes"]);
    cluster.wait("the end of the uninstall", 60, || !cluster.ids_at_marathon().contains(&CONTROLLER.to_owned()) && cluster.is_calm());
    assert_eq!(cluster.get("/marathon/v2/apps/registry")["app"]["version"], version);
}

#[test]
fn check_tells_before_the_installation_what_cosmos_and_the_controller_would_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("options.json");
    let check = |options: &str| {
        std::fs::write(&file, options).unwrap();
        std::process::Command::new(env!("CARGO_BIN_EXE_private-registry")).args(["check", "--options"]).arg(&file).output().unwrap()
    };
    let said = check(r#"{"names": {"vipp": "x", "vip": "192.168.0.1"}, "registry": {"mem": 1}}"#);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(64));
    for field in ["names.vipp", "names.vip =", "registry.mem"] {
        assert!(text.contains(field), "{text}");
    }
    assert_eq!(check("{").status.code(), Some(64));
    assert_eq!(check("{}").status.code(), Some(0));
}
