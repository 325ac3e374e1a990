//! The package over its life: other options, a lost controller, a second instance beside it.

#![allow(clippy::unwrap_used)]

use crate::support::Cluster;
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";

fn ca(cluster: &Cluster) -> Value {
    cluster.status().unwrap()["ca_fingerprint"].clone()
}

#[test]
fn updates_a_lost_controller_and_a_second_instance_disturb_nothing() {
    let cluster = Cluster::start(2, 1);
    let before = cluster.pictures();
    let options = json!({ "registry": { "host": HOST }, "names": { "external_host": "192.168.1.50" } });
    cluster.install_and_wait(&options);
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1");

    a_further_name_is_spread_without_replacing_anything(&cluster);
    a_controller_that_was_deleted_is_adopted_by_a_reinstallation(&cluster, &options);
    a_second_instance_in_a_group_lives_beside_and_leaves_the_first_one_alone(&cluster);

    cluster.uninstall();
    cluster.assert_as_before(&before);
    what_an_app_deleted_behind_cosmos_leaves_is_removed_by_the_job(&cluster, &options);
    cluster.assert_as_before(&before);
    the_job_removes_a_service_with_its_controller(&cluster, &options);
    cluster.assert_as_before(&before);
    a_reinstallation_finds_the_images_and_can_be_told_to_take_them_along_in_the_end(&cluster, &options);
    cluster.assert_servers_answered_as_the_real_ones();
}

fn nothing_is_left(cluster: &Cluster) -> bool {
    cluster.ids_at_marathon().is_empty() && cluster.jobs().is_empty() && cluster.is_calm()
}

fn what_an_app_deleted_behind_cosmos_leaves_is_removed_by_the_job(cluster: &Cluster, options: &Value) {
    cluster.install_and_wait(options);
    assert_eq!(cluster.marathon("DELETE", "/apps/private-registry", &Value::Null).0, 200);
    cluster.wait("its end", 30, || cluster.status().is_none() && cluster.is_calm());
    cluster.dcos_ok(&["job", "run", "private-registry.uninstall"]);
    cluster.wait("the end of what it left", 90, || nothing_is_left(cluster));
}

fn the_job_removes_a_service_with_its_controller(cluster: &Cluster, options: &Value) {
    cluster.install_and_wait(options);
    cluster.dcos_ok(&["job", "run", "private-registry.uninstall"]);
    cluster.wait("the end of the service", 90, || nothing_is_left(cluster));
    // The plugin of the CLI stays until somebody removes it.
    let listed = cluster.dcos_ok(&["package", "list", "--json"]);
    assert!(!listed.contains("\"apps\""), "Cosmos still counts it as installed");
}

fn a_further_name_is_spread_without_replacing_anything(cluster: &Cluster) {
    let (nodes, registry) = cluster.running();
    cluster.update(&json!({ "names": { "extra": "registry.example.com:8443" } }));
    let spread = |agent: &String| cluster.sh(agent, "cat /etc/docker/certs.d/registry.example.com:8443/ca.crt").status.success();
    cluster.wait("the new name on every agent", 60, || cluster.agents().iter().all(spread));
    cluster.wait_converged();
    assert_eq!(cluster.running(), (nodes, registry), "an update of a name must not replace a node or the registry");
    let served = "openssl s_client -connect 192.168.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName";
    cluster.wait("the name in the certificate", 30, || cluster.sh(OTHER, served).stdout.contains("registry.example.com"));
    cluster.sh_ok(OTHER, "docker pull -q 192.168.0.1/base/hello:1");
}

fn a_controller_that_was_deleted_is_adopted_by_a_reinstallation(cluster: &Cluster, options: &Value) {
    let (kept, trusted) = (cluster.running(), ca(cluster));
    assert_eq!(cluster.marathon("DELETE", "/apps/private-registry", &Value::Null).0, 200);
    cluster.wait("its end", 30, || cluster.status().is_none() && cluster.is_calm());
    cluster.sh_ok(OTHER, "docker pull -q 192.168.0.1/base/hello:1");
    let mut options = options.clone();
    options["names"]["extra"] = json!("registry.example.com:8443");
    cluster.install_and_wait(&options);
    assert_eq!((cluster.running(), ca(cluster)), (kept, trusted));
}

fn a_second_instance_in_a_group_lives_beside_and_leaves_the_first_one_alone(cluster: &Cluster) {
    let first = cluster.running();
    let options = json!({
        "service": { "name": "infra/images", "host": OTHER },
        "registry": { "name": "image-store", "host": OTHER, "storage_path": "/data/images" },
        "names": { "vip": "192.168.0.2:443", "named_vip": "images:5000" },
        "exposure": { "marathon_lb": false },
    });
    assert!(cluster.install(&options).status.success());
    let state = |name: &str| cluster.dcos(&["private-registry", "status", "--name", name]).status.success();
    cluster.wait("the second instance", 90, || state("infra/images"));
    assert_eq!(cluster.running(), first);
    for agent in cluster.agents() {
        for vip in ["192.168.0.1", "192.168.0.2"] {
            cluster.sh_ok(&agent, &format!("/opt/mesosphere/bin/curl -sf -o /dev/null https://{vip}/v2/"));
        }
    }
    cluster.sh_ok(HOST, "docker tag canary:1 192.168.0.2/other/thing:1 && docker push -q 192.168.0.2/other/thing:1");
    let catalog = |vip: &str| cluster.sh_ok(HOST, &format!("/opt/mesosphere/bin/curl -s https://{vip}/v2/_catalog"));
    assert_eq!((catalog("192.168.0.1").contains("other"), catalog("192.168.0.2").contains("other")), (false, true));

    cluster.dcos_ok(&["package", "uninstall", "private-registry", "--app-id=/infra/images", "--yes"]);
    cluster.wait("the end of the second instance", 90, || {
        cluster.ids_at_marathon().iter().all(|id| !id.contains("image"))
            && !cluster.jobs().contains(&"infra.images.init".to_owned())
            && cluster.is_calm()
    });
    for agent in cluster.agents() {
        assert!(
            !cluster.sh(&agent, "ls -d /etc/docker/certs.d/192.168.0.2* /var/lib/private-registry/infra.images").status.success(),
            "{agent}"
        );
        assert_eq!(cluster.sysctl(&agent), "1", "{agent}: the first instance still wants it");
    }
    cluster.sh_ok(OTHER, "docker pull -q 192.168.0.1/base/hello:1");
    assert_eq!(cluster.running(), first);
}

/// On open DC/OS a new version comes by uninstalling and installing again.
fn a_reinstallation_finds_the_images_and_can_be_told_to_take_them_along_in_the_end(cluster: &Cluster, options: &Value) {
    let mut options = options.clone();
    options["uninstall"] = json!({ "delete_data": true });
    cluster.install_and_wait(&options);
    cluster.sh_ok(OTHER, "docker rmi -f 192.168.0.1/base/hello:1 && docker pull -q 192.168.0.1/base/hello:1");
    cluster.uninstall();
    assert_eq!(cluster.sh_ok(HOST, "find /data/docker-registry -type f"), "");
}
