//! Processes of every role are killed at chosen moments of installation, rotation, garbage collection and uninstallation, with real
//! dockerds and the real registry. The moments are requests in the journal of the lab's servers; `crash_points.rs` has all of them.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use lab::journal::Exchange;
use serde_json::json;

use crate::support::Cluster;

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";

/// Follows the journal from where it ends now.
struct Journal {
    file: File,
    /// The beginning of a line.
    rest: String,
}

impl Journal {
    fn of(cluster: &Cluster) -> Self {
        let mut file = File::open(cluster.lab.path().join("journal.jsonl")).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        Self { file, rest: String::new() }
    }

    /// Waits for a request of the package that took effect.
    fn wait_for(&mut self, method: &str, path: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            self.file.read_to_string(&mut self.rest).unwrap();
            while let Some((line, rest)) = self.rest.split_once('\n') {
                let exchange: Exchange = serde_json::from_str(line).unwrap();
                let is_it =
                    exchange.service != "admin_router" && exchange.method == method && exchange.path == path && exchange.status < 300;
                self.rest = rest.to_owned();
                if is_it {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "{method} {path} has not come");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The cluster, and how often somebody was killed.
struct Killer<'a> {
    cluster: &'a Cluster,
    kills: usize,
}

impl Killer<'_> {
    fn kill(&mut self, role: &str, agent: Option<&str>) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.cluster.kill_role(role, agent) {
            assert!(Instant::now() < deadline, "there is no {role} to kill");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kills += 1;
    }

    /// As soon as this request has taken effect.
    fn kill_after(&mut self, journal: &mut Journal, method: &str, path: &str, role: &str) {
        journal.wait_for(method, path);
        self.kill(role, None);
    }
}

#[test]
fn whoever_is_killed_when_it_hurts_most_is_started_again_and_all_comes_to_its_end() {
    let cluster = Cluster::start(2, 0);
    let before = cluster.pictures();
    let mut killer = Killer { cluster: &cluster, kills: 0 };
    it_is_installed(&mut killer);
    let pushed = "docker tag canary:1 192.168.0.1/base/hello:1 && docker push -q 192.168.0.1/base/hello:1";
    cluster.sh_ok(OTHER, pushed);
    the_ca_is_replaced(&mut killer);
    garbage_is_collected(&mut killer);
    it_is_uninstalled(&mut killer);
    cluster.assert_as_before(&before);
    assert_eq!(killer.kills, 13);
    cluster.assert_servers_answered_as_the_real_ones();
}

fn pulls(cluster: &Cluster) {
    for agent in [HOST, OTHER] {
        cluster.sh_ok(agent, "docker rmi -f 192.168.0.1/base/hello:1 >/dev/null 2>&1; docker pull -q 192.168.0.1/base/hello:1");
    }
}

fn it_is_installed(killer: &mut Killer) {
    let mut journal = Journal::of(killer.cluster);
    let options = json!({ "registry": { "host": HOST }, "exposure": { "marathon_lb": false } });
    assert!(killer.cluster.install(&options).status.success());
    killer.kill_after(&mut journal, "PUT", "/v2/pods/private-registry-node", "controller");
    killer.kill_after(&mut journal, "PUT", "/v2/apps/registry", "controller");
    killer.kill("node", Some(OTHER));
    killer.kill_after(&mut journal, "POST", "/v1/jobs/private-registry.init/runs", "controller");
    killer.kill("registry", None);
    killer.cluster.wait_converged();
}

fn the_ca_is_replaced(killer: &mut Killer) {
    let cluster = killer.cluster;
    let ca = || cluster.status().map(|status| status["ca_fingerprint"].clone());
    let (old, mut journal) = (ca(), Journal::of(cluster));
    cluster.dcos_ok(&["job", "run", "private-registry.rotate"]);
    journal.wait_for("GET", "/v1/jobs/private-registry.rotate");
    killer.kill("node", Some(OTHER));
    cluster.wait("the next CA to be made known", 60, || cluster.status().is_some_and(|status| !status["rotating"].is_null()));
    killer.kill("controller", None);
    killer.kill("registry", None);
    cluster.wait("another CA", 60, || ca().is_some_and(|now| !now.is_null() && Some(now) != old));
    cluster.wait_converged();
    pulls(cluster);
}

fn garbage_is_collected(killer: &mut Killer) {
    let cluster = killer.cluster;
    let phase = || {
        let status = cluster.status()?;
        status["collections"].as_array()?.iter().find(|part| part["ended"] != true)?["said"].as_str().map(str::to_owned)
    };
    let writable = "curl -s -o /dev/null -w '%{http_code}' -X POST --capath /var/lib/dcos/pki/tls/certs https://192.168.0.1/v2/base/hello/blobs/uploads/";
    for role in ["controller", "registry"] {
        cluster.dcos_ok(&["job", "run", "private-registry.gc"]);
        cluster.wait("the collection", 30, || phase().is_some());
        killer.kill(role, None);
        cluster.wait("its end", 90, || {
            let runs = cluster.get("/metronome/v1/jobs/private-registry.gc?embed=activeRuns");
            runs["activeRuns"] == json!([]) && cluster.sh(OTHER, writable).stdout == "202"
        });
        cluster.wait_converged();
    }
    pulls(cluster);
}

fn it_is_uninstalled(killer: &mut Killer) {
    let cluster = killer.cluster;
    let mut journal = Journal::of(cluster);
    cluster.dcos_ok(&["package", "uninstall", "private-registry", "--yes"]);
    killer.kill_after(&mut journal, "DELETE", "/v2/apps/registry", "controller");
    killer.kill("node", Some(OTHER));
    killer.kill_after(&mut journal, "DELETE", "/v2/pods/private-registry-node", "controller");
    let gone = |cluster: &Cluster| cluster.ids_at_marathon().is_empty() && cluster.jobs().is_empty() && cluster.is_calm();
    cluster.wait("the end of the uninstall", 120, || gone(cluster));
}
