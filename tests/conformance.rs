//! The conformance suite of OCI against the registry as clients reach it, with the bare registry as its measure.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::support::{Cluster, made};
use lab::server::{NEWEST, Security};
use serde_json::{Value, json};

const VIP: &str = "192.168.0.1";
const MARATHON_LB: &str = "192.168.1.50:5000";

#[test]
fn through_the_vip_and_through_marathon_lb_the_registry_fails_nothing_that_its_bare_program_does_not() {
    let cluster = Cluster::start_with(&["registry3.tar"], 1, 1, NEWEST, Security::Open);
    cluster.install_and_wait(&json!({ "registry": { "host": "192.168.1.80" }, "names": { "external_host": "192.168.1.50" } }));
    let ca = cluster.lab.path().join("ca.pem");
    fs::write(&ca, cluster.status().unwrap()["ca"].as_str().unwrap()).unwrap();
    let url = format!("https://{MARATHON_LB}/v2/");
    let answers = || cluster.lab.exec("master", &["curl", "-sf", "--cacert", ca.to_str().unwrap(), &url]).unwrap().status.success();
    cluster.wait("Marathon-LB", 30, answers);

    conforms(&cluster, &ca, "2", &[VIP, MARATHON_LB]);

    // Small layers here; `ci/acceptance --large` pushes 2 GiB.
    let script = made("ci/large");
    let argv = [script.to_str().unwrap(), "--ca", ca.to_str().unwrap(), "--mib", "64", MARATHON_LB];
    let output = cluster.lab.exec("master", &argv).unwrap();
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    assert_eq!(output.stdout.matches("64 MiB in 4 images of 16 layers").count(), 2, "{}", output.stdout);

    // A registry that cannot be trusted is no registry.
    let script = made("ci/conformance");
    let refused = cluster.lab.exec("master", &[script.to_str().unwrap(), VIP]).unwrap();
    assert!(
        !refused.status.success() && refused.stderr.contains("192.168.0.1 cannot be reached from here: curl: (60)"),
        "{}",
        refused.stderr
    );

    cluster.update(&json!({ "registry": { "generation": "3" } }));
    let is_three = |status: &Value| status["registry_version"].as_str().is_some_and(|version| version.starts_with("3."));
    cluster.wait("generation 3", 90, || cluster.status().is_some_and(|status| status["converged"] == true && is_three(&status)));
    cluster.wait("Marathon-LB", 30, answers);
    conforms(&cluster, &ca, "3", &[MARATHON_LB]);
    cluster.assert_servers_answered_as_the_real_ones();
}

fn conforms(cluster: &Cluster, ca: &Path, generation: &str, names: &[&str]) {
    let script = made("ci/conformance");
    let argv = [&[script.to_str().unwrap(), "--ca", ca.to_str().unwrap(), "--generation", generation], names].concat();
    let output = cluster.lab.exec("master", &argv).unwrap();
    println!("{}", output.stdout);
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    for name in [&["the bare registry"], names].concat() {
        let line = output.stdout.lines().find(|line| line.contains(&format!(" skipped: {name}"))).unwrap_or_else(|| panic!("{name}"));
        let passed: u32 = line.split(' ').next().unwrap().parse().unwrap();
        assert!(passed > 500, "{line}");
    }
}
