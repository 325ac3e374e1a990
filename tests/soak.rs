//! Hours of a cluster in minutes: agents join, die and come back, images are pushed, pulled and collected, registries restart, CAs are
//! replaced; and nothing grows. `ci/soak` runs it.
//!
//! The rule: every series is fitted by a straight line over what was sampled after the first fifth of the time, in which caches fill.
//! Memory may rise by no more than 2 MiB along that line, counts (descriptors, threads, sockets, files, rules) by no more than 2.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::BTreeMap;
use std::time::Instant;

use lab::host::AgentRole;
use serde_json::{Value, json};

use crate::support::Cluster;

const HOST: &str = "192.168.1.80";
const OTHER: &str = "192.168.1.81";
const THIRD: &str = "192.168.1.82";
const PUBLIC: &str = "192.168.1.50";
/// Agents that stay, on which is looked.
const STABLE: [&str; 3] = [HOST, OTHER, PUBLIC];
const ROLES: [&str; 3] = ["controller", "node", "registry"];

/// Prints a line for every process of ours: role, KiB of memory, descriptors, threads, sockets. It has a role after its name, and is no
/// shell that starts one.
const LOOK: &str = r#"
for pid in $(pgrep -f '^(\./|/mnt/mesos/sandbox/)private-registry (controller|node|registry)'); do
  set -- $(tr '\0' ' ' </proc/$pid/cmdline); role=$2
  memory=$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' /proc/$pid/status); threads=$(sed -n 's/^Threads:[^0-9]*//p' /proc/$pid/status)
  descriptors=$(ls /proc/$pid/fd | wc -l); sockets=$(ls -l /proc/$pid/fd | grep -c socket:)
  [ -z "$memory" ] || echo "$role $memory $descriptors $threads $sockets"
done
"#;

/// Files and folders of ours on an agent's disk, in all that a node, a registry or a controller writes to.
const FILES: &str = "find /etc/docker/certs.d /etc/sysctl.d /var/lib/dcos/pki /var/lib/private-registry 2>/dev/null | wc -l";
const RULES: &str = "iptables-save | grep -c '^-A'";

/// Values over time, by what they are of.
type Series = BTreeMap<String, Vec<(f64, f64)>>;

#[test]
#[ignore = "as long as SOAK_MINUTES says; ci/soak runs it"]
fn nothing_grows_however_long_agents_come_and_go() {
    let minutes: f64 = std::env::var("SOAK_MINUTES").map_or(60.0, |text| text.parse().unwrap());
    let cluster = Cluster::start(3, 1);
    cluster.install_and_wait(&json!({
        "registry": { "host": HOST, "drain_seconds": 2 }, "service": { "host": OTHER }, "exposure": { "marathon_lb": false },
    }));
    let (began, mut series, mut churn) = (Instant::now(), Series::new(), Churn::default());
    let mut next_look = 0.0;
    while began.elapsed().as_secs_f64() < minutes * 60.0 {
        churn.round(&cluster);
        let minute = began.elapsed().as_secs_f64() / 60.0;
        if minute >= next_look {
            look(&cluster, minute, &mut series);
            println!("{}", line(minute, &series, &churn));
            next_look = minute.floor() + 1.0;
        }
    }
    println!("\n{:.1} minutes: {}\n", began.elapsed().as_secs_f64() / 60.0, churn.told());
    let grown = judge(&series, minutes);
    cluster.uninstall();
    assert!(grown.is_empty(), "this grows: {}", grown.join("; "));
}

/// What has been done so far.
#[derive(Default)]
struct Churn {
    rounds: usize,
    pushes: usize,
    pulls: usize,
    deaths: usize,
    joins: usize,
    restarts: usize,
    rotations: usize,
    collections: usize,
    guest: Option<String>,
}

impl Churn {
    /// Some of everything; all is well again afterwards.
    fn round(&mut self, cluster: &Cluster) {
        let image = format!("192.168.0.1/soak/image:{}", self.rounds % 5);
        let tidy = format!("docker rmi -f {image} >/dev/null && docker image prune -f >/dev/null");
        let make = "head -c 300000 /dev/urandom >/tmp/junk && tar -C /tmp -cf /tmp/junk.tar junk && docker import /tmp/junk.tar";
        cluster.sh_ok(OTHER, &format!("{make} {image} >/dev/null"));
        // A rotation may just have restarted the one registry, which then takes no connection for half a second.
        let done =
            |agent: &str, what: &str| cluster.wait(what, 60, || cluster.sh(agent, &format!("docker {what} -q {image}")).status.success());
        done(OTHER, "push");
        cluster.sh_ok(OTHER, &tidy);
        self.pushes += 1;
        for agent in [PUBLIC, HOST] {
            done(agent, "pull");
            cluster.sh_ok(agent, &tidy);
            self.pulls += 1;
        }
        match self.rounds % 3 {
            0 => {
                cluster.lab.die(THIRD).unwrap();
                cluster.wait("Mesos to give the agent up", 120, || cluster.agent_state(THIRD).is_none());
                cluster.lab.revive(THIRD, self.rounds.is_multiple_of(2)).unwrap();
                self.deaths += 1;
            }
            1 => {
                if let Some(guest) = self.guest.take() {
                    cluster.lab.leave(&guest).unwrap();
                }
                // There are a hundred addresses, and none is given twice.
                if self.joins < 100 {
                    self.guest = Some(cluster.lab.add_agent(AgentRole::Private).unwrap());
                    self.joins += 1;
                }
            }
            _ => {
                assert_eq!(cluster.marathon("POST", "/apps/registry/restart", &Value::Null).0, 200);
                self.restarts += 1;
            }
        }
        settled(cluster);
        if self.rounds % 4 == 3 {
            cluster.dcos_ok(&["private-registry", "rotate"]);
            self.rotations += 1;
        }
        if self.rounds % 5 == 4 {
            cluster.dcos_ok(&["private-registry", "gc"]);
            self.collections += 1;
        }
        self.rounds += 1;
        settled(cluster);
    }

    fn told(&self) -> String {
        format!(
            "{} rounds, {} pushes, {} pulls, {} agents died and came back, {} joined, the registry was restarted {} times, the CA replaced {} times, \
             garbage collected {} times",
            self.rounds, self.pushes, self.pulls, self.deaths, self.joins, self.restarts, self.rotations, self.collections
        )
    }
}

fn settled(cluster: &Cluster) {
    cluster.wait("no deployment to be under way", 180, || cluster.is_calm());
    cluster.wait_converged();
}

/// Adds a value to every series. Of several processes of a role the largest counts.
fn look(cluster: &Cluster, minute: f64, series: &mut Series) {
    let mut now: BTreeMap<String, f64> = BTreeMap::new();
    let mut most = |name: String, value: f64| {
        let kept = now.entry(name).or_default();
        *kept = kept.max(value);
    };
    for process in cluster.sh_ok("master", LOOK).lines() {
        let words: Vec<&str> = process.split_whitespace().collect();
        for (index, what) in ["memory (KiB)", "descriptors", "threads", "sockets"].iter().enumerate() {
            most(format!("{}: {what}", words[0]), words[index + 1].parse().unwrap());
        }
    }
    for role in ROLES {
        assert!(now.contains_key(&format!("{role}: threads")), "no {role} is seen: {now:?}");
    }
    for agent in STABLE {
        for (what, line) in [("files", FILES), ("iptables rules", RULES)] {
            now.insert(format!("{agent}: {what}"), cluster.sh_ok(agent, line).parse().unwrap());
        }
    }
    for (name, value) in now {
        series.entry(name).or_default().push((minute, value));
    }
}

/// The newest values in one line.
fn line(minute: f64, series: &Series, churn: &Churn) -> String {
    let last = |name: &str| series[name].last().map_or(0.0, |(_, value)| *value);
    let of_role = |role: &str| {
        let value = |what: &str| last(&format!("{role}: {what}"));
        format!("{role} {:.0} KiB, {} fds, {} threads", value("memory (KiB)"), value("descriptors"), value("threads"))
    };
    let roles: Vec<String> = ROLES.into_iter().map(of_role).collect();
    let sum = |what: &str| STABLE.iter().map(|agent| last(&format!("{agent}: {what}"))).sum::<f64>();
    format!("{minute:5.1} min  round {:3}  {}  {} files, {} rules", churn.rounds, roles.join("; "), sum("files"), sum("iptables rules"))
}

/// Slope per minute of the line that fits best.
fn slope(points: &[(f64, f64)]) -> f64 {
    let number = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / number;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if below == 0.0 { 0.0 } else { above / below }
}

/// Prints every series, and names those that have grown.
fn judge(series: &Series, minutes: f64) -> Vec<String> {
    println!("{:<34} {:>9} {:>9} {:>9} {:>16}", "", "first", "last", "largest", "growth, fitted");
    let mut grown = Vec::new();
    for (name, points) in series {
        let warm: Vec<(f64, f64)> = points.iter().copied().filter(|(minute, _)| *minute >= minutes / 5.0).collect();
        assert!(warm.len() >= 3, "{name}: too few samples to say anything; let it run longer");
        let (first, last) = (warm[0], warm[warm.len() - 1]);
        let rise = slope(&warm) * (last.0 - first.0);
        let largest = warm.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        println!("{name:<34} {:>9} {:>9} {largest:>9} {rise:>16.1}", first.1, last.1);
        let most = if name.contains("memory") { 2048.0 } else { 2.0 };
        if rise > most {
            grown.push(format!("{name}: {rise:.1} in {:.0} minutes", last.0 - first.0));
        }
    }
    grown
}

#[test]
fn a_leak_is_told_from_noise() {
    let series = |value: fn(f64) -> f64| {
        Series::from([("node: descriptors".to_owned(), (0..60).map(|m| (f64::from(m), value(f64::from(m)))).collect())])
    };
    assert!(judge(&series(|minute| 12.0 + (minute % 3.0)), 60.0).is_empty());
    // What fills once is no leak.
    assert!(judge(&series(|minute| 12.0 + minute.min(8.0)), 60.0).is_empty());
    assert_eq!(judge(&series(|minute| 12.0 + minute / 10.0), 60.0).len(), 1);
}
