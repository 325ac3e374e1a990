//! Registries that the package has not installed: Docker Trusted Registry, Harbor, Artifactory, GitLab and Nexus as their TLS faces are,
//! each a real registry on its own address and ports. Agents trust them without a registry of ours, beside one, and not any more.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::Cluster;
use serde_json::{Value, json};

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const STORAGE: &str = "/data/images";
/// Where docker trusts Nexus' second port.
const NEXUS: &str = "/etc/docker/certs.d/nexus.example.com:18443";

/// Host, address on the machine outside, port, and who has signed: the company's CA, GitLab's own, or Nexus itself.
const SERVERS: [(&str, &str, u16, &str); 7] = [
    ("dtr.example.com", "192.168.1.201", 443, "company"),
    ("harbor.example.com", "192.168.1.202", 443, "company"),
    ("artifactory.example.com", "192.168.1.203", 8082, "company"),
    ("gitlab.example.com", "192.168.1.204", 443, "gitlab"),
    ("gitlab.example.com", "192.168.1.204", 5050, "gitlab"),
    ("nexus.example.com", "192.168.1.205", 8443, "nexus"),
    ("nexus.example.com", "192.168.1.205", 18443, "nexus"),
];

fn names() -> Vec<String> {
    SERVERS.iter().map(|(host, _, port, _)| if *port == 443 { (*host).to_owned() } else { format!("{host}:{port}") }).collect()
}

/// The machine outside with its registries.
struct World {
    dir: PathBuf,
}

impl World {
    fn start(cluster: &Cluster) -> Self {
        let dir = cluster.lab.path().join("agents/192.168.1.200/root/tmp/registries");
        fs::create_dir_all(&dir).unwrap();
        let world = Self { dir };
        for ca in ["company", "gitlab"] {
            world.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {ca}-ca.key -out {ca}-ca.pem -days 30 -subj /CN={ca}-CA"
            ));
        }
        let extensions = "-addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:";
        for host in ["dtr", "harbor", "artifactory", "gitlab", "nexus"] {
            let ca = SERVERS.iter().find(|(name, ..)| name.starts_with(host)).unwrap().3;
            let signer = if ca == "nexus" { String::new() } else { format!("-CA {ca}-ca.pem -CAkey {ca}-ca.key") };
            world.openssl(&format!(
                "req -x509 {signer} -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {host}.key -out {host}.crt -days 30 -subj /CN={host}.example.com {extensions}{host}.example.com"
            ));
            // GitLab's shows its CA as well, as omnibus packages do with a full chain.
            let chain =
                if ca == "gitlab" { world.read("gitlab.crt") + &world.read("gitlab-ca.pem") } else { world.read(&format!("{host}.crt")) };
            fs::write(world.dir.join(format!("{host}.chain")), chain).unwrap();
        }
        let addresses = "dev=$(ip -o -4 addr show | awk '/192.168.1.200/ {print $2}'); for n in 201 202 203 204 205; do ip addr add 192.168.1.$n/24 dev $dev; done";
        cluster.sh_ok("outside", addresses);
        for (host, address, port, _) in SERVERS {
            let name = host.split('.').next().unwrap();
            let tls = format!("\n  tls:\n    certificate: /tmp/registries/{name}.chain\n    key: /tmp/registries/{name}.key");
            world.serve(cluster, &format!("{name}-{port}"), &format!("{address}:{port}{tls}"));
        }
        world.serve(cluster, "filler", "127.0.0.1:5999");
        cluster.wait("the registries", 20, || {
            cluster
                .sh("outside", "docker tag canary:1 127.0.0.1:5999/base/hello:1 && docker push -q 127.0.0.1:5999/base/hello:1")
                .status
                .success()
                && SERVERS.iter().all(|(host, address, port, _)| {
                    cluster
                        .sh("outside", &format!("curl -skf --resolve {host}:{port}:{address} https://{host}:{port}/v2/"))
                        .status
                        .success()
                })
        });
        world
    }

    /// All of them store in one folder: what differs is how they are reached.
    fn serve(&self, cluster: &Cluster, name: &str, address: &str) {
        let config = format!("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /tmp/images\nhttp:\n  addr: {address}\n");
        fs::write(self.dir.join(format!("{name}.yml")), config).unwrap();
        cluster.sh_ok(
            "outside",
            &format!("setsid docker-registry serve /tmp/registries/{name}.yml >/tmp/registries/{name}.log 2>&1 </dev/null &"),
        );
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl").current_dir(&self.dir).args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap()
    }

    /// As an administrator reads it: with `openssl x509 -noout -fingerprint -sha256`.
    fn fingerprint(&self, name: &str) -> String {
        let output = Command::new("openssl")
            .current_dir(&self.dir)
            .args(["x509", "-noout", "-fingerprint", "-sha256", "-in", name])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().rsplit('=').next().unwrap().to_owned()
    }
}

fn other<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["others"].as_array().unwrap().iter().find(|other| other["name"] == name).unwrap()
}

#[test]
fn every_agent_trusts_registries_of_others_with_and_without_one_of_ours() {
    let cluster = Cluster::start(2, 1);
    let world = World::start(&cluster);
    // Somebody trusts one of them already, and rightly.
    cluster.sh_ok(OTHER, &format!("mkdir -p {NEXUS}"));
    let theirs = cluster.lab.path().join("agents").join(OTHER).join("root").join(&NEXUS[1..]).join("ca.crt");
    fs::write(&theirs, world.read("nexus.crt")).unwrap();
    let before: BTreeMap<String, _> = cluster.agents().into_iter().map(|agent| (agent.clone(), cluster.picture(&agent))).collect();
    let refused = cluster.sh(HOST, "docker pull -q harbor.example.com/base/hello:1");
    assert!(!refused.status.success() && refused.stderr.contains("x509"), "{}", refused.stderr);

    let (gitlab, nexus) = (world.fingerprint("gitlab-ca.pem"), world.fingerprint("nexus.crt"));
    let list = [
        "dtr.example.com".to_owned(),
        "harbor.example.com".to_owned(),
        "artifactory.example.com:8082".to_owned(),
        format!("gitlab.example.com sha256:{gitlab}"),
        format!("gitlab.example.com:5050 sha256:{gitlab}"),
        format!("nexus.example.com:8443 sha256:{nexus}"),
        format!("nexus.example.com:18443 sha256:{nexus}"),
        // What does not work: another fingerprint than is shown, and nobody there.
        format!("192.168.1.202:443 sha256:{}", "ab".repeat(32)),
        "192.168.1.250:5000".to_owned(),
    ];
    let options = json!({
        "registry": { "enabled": false, "host": HOST, "storage_path": STORAGE },
        "other_registries": { "list": list.join(", "), "ca": world.read("company-ca.pem") },
        "trust": { "containerd": true, "podman": true },
        "uninstall": { "delete_data": true },
    });
    cluster.install_and_wait(&options);
    without_a_registry_of_ours(&cluster, &nexus);
    // dcos-net, Marathon and Mesos-DNS know nothing of a registry.
    assert_eq!(cluster.ids_at_marathon(), ["/private-registry", "/private-registry-node"]);
    let nodes = cluster.get("/marathon/v2/pods/private-registry-node::status")["instances"][0]["id"].clone();

    switch(&cluster, true);
    cluster.sh_ok(OTHER, "docker tag canary:1 192.168.0.1/base/ours:1 && docker push -q 192.168.0.1/base/ours:1");
    assert_eq!(cluster.get("/marathon/v2/pods/private-registry-node::status")["instances"][0]["id"], nodes, "a node was replaced");
    let joined = cluster.lab.add_agent(lab::host::AgentRole::Private).unwrap();
    cluster.wait("the new agent", 60, || cluster.agent_state(&joined).is_some_and(|(state, _)| state == "trusted"));
    cluster.sh_ok(&joined, "docker pull -q 192.168.0.1/base/ours:1");
    every_client_pulls(&cluster, &joined);

    switch(&cluster, false);
    assert_eq!(cluster.ids_at_marathon(), ["/private-registry", "/private-registry-node"]);
    cluster.sh_ok(HOST, &format!("test -d {STORAGE}/docker && ! ls /var/lib/private-registry/private-registry/registry/tls.key 2>&-"));
    assert!(!cluster.sh(HOST, "ls /etc/docker/certs.d/192.168.0.1").status.success(), "nothing of ours is trusted any more");
    every_client_pulls(&cluster, &joined);

    switch(&cluster, true);
    cluster.sh_ok(&joined, "docker rmi 192.168.0.1/base/ours:1; docker pull -q 192.168.0.1/base/ours:1");
    cluster.uninstall();
    for (agent, picture) in &before {
        let mut now = cluster.picture(agent);
        // The folder of the images is the operator's. The other two are the machine's own: a write below them puts them on this disk.
        let is_ours =
            |path: &Path| !path.starts_with("data") && ["etc/containerd", "etc/containers"].iter().all(|own| path != Path::new(own));
        now.retain(|path, _| picture.contains_key(path) || is_ours(path));
        let changed: Vec<_> = now.iter().filter(|(path, what)| picture.get(*path) != Some(what)).map(|(path, _)| path).collect();
        let gone: Vec<_> = picture.keys().filter(|path| !now.contains_key(*path)).collect();
        assert!(changed.is_empty() && gone.is_empty(), "{agent}: changed {changed:?}, gone {gone:?}");
    }
    cluster.assert_servers_answered_as_the_real_ones();
}

fn switch(cluster: &Cluster, on: bool) {
    cluster.update(&json!({ "registry": { "enabled": on } }));
    let names = |status: &Value| status["names"].as_array().is_some_and(|names| !names.is_empty());
    cluster.wait("the switch", 120, || cluster.status().is_some_and(|status| status["converged"] == true && names(&status) == on));
}

fn without_a_registry_of_ours(cluster: &Cluster, nexus: &str) {
    let agents = cluster.agents();
    let all_proven = || {
        let status = cluster.status().unwrap();
        let proven = |name: &String| {
            let name = if name.contains(':') { name.clone() } else { format!("{name}:443") };
            other(&status, &name)["proven"] == agents.len()
        };
        names().iter().all(proven)
    };
    cluster.wait("the proofs", 60, all_proven);
    let status = cluster.status().unwrap();
    assert_eq!((&status["names"], &status["ca_fingerprint"], &status["ca"]), (&json!([]), &Value::Null, &json!("")));
    let summary = status["summary"].as_str().unwrap();
    assert_eq!(summary, "3 of 3 agents are as wanted; no registry is to run. Every agent is proven to trust 7 of 9 other registries.");
    let pinned = &other(&status, "nexus.example.com:8443")["fingerprints"][0];
    assert_eq!(*pinned, nexus.replace(':', "").to_lowercase());
    let wrong = &other(&status, "192.168.1.202:443")["detail"];
    assert!(wrong.as_str().unwrap().contains("CN=harbor.example.com"), "{wrong}");
    let absent = &other(&status, "192.168.1.250:5000")["detail"];
    assert!(absent.as_str().unwrap().contains("it cannot be reached"), "{absent}");
    let said = cluster.dcos_ok(&["private-registry", "agents"]);
    let row = said.lines().find(|line| line.starts_with("nexus.example.com:18443 ")).unwrap();
    assert!(row.contains(" 3 of 3  sha256:"), "{said}");
    for agent in agents {
        every_client_pulls(cluster, &agent);
        assert_eq!(cluster.sysctl(&agent), "1");
    }
    cluster.sh_ok(OTHER, &format!("ls {NEXUS}/private-registry.crt"));
}

/// Docker, the fetcher's curl, skopeo with podman's store, and containerd.
fn every_client_pulls(cluster: &Cluster, agent: &str) {
    for name in names() {
        let image = format!("{name}/base/hello:1");
        cluster.sh_ok(agent, &format!("docker pull -q {image} && docker rmi {image}"));
        cluster.sh_ok(agent, &format!("curl -sf -o /dev/null --capath /var/lib/dcos/pki/tls/certs https://{name}/v2/"));
        cluster.sh_ok(agent, &format!("skopeo inspect --cert-dir /etc/containers/certs.d/{name} docker://{image}"));
        cluster.sh_ok(
            agent,
            &format!("ctr -a /var/run/docker/containerd/containerd.sock content fetch --hosts-dir /etc/containerd/certs.d {image}"),
        );
    }
}
