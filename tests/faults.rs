//! Every fault of docs/faults.md, in a lab: what the user sees, what goes on, how it heals, and after how long.
//!
//! A row of that table is the one place where the words stand. Here is what causes a fault and what ends it; whatever its row quotes must
//! be seen by `dcos private-registry status` meanwhile, and the pulls that its row promises must not fail.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod agents;
mod clocks;
mod controller;
mod enterprise;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Cluster, made};

const IMAGE: &str = "192.168.0.1/base/hello:1";
const DOCUMENT: &str = "docs/faults.md";

/// Every fault that a test of this room causes.
const FAULTS: &[&[&str]] = &[agents::FAULTS, clocks::FAULTS, controller::FAULTS, enterprise::FAULTS, servers::FAULTS];

/// A row of the document.
#[derive(Debug, Clone)]
struct Row {
    /// What is seen: the words that it quotes.
    seen: Vec<String>,
    /// Seconds until all is well again, as they were measured once; none where nothing is to be waited for.
    back_after: Option<f64>,
}

/// The rows by their titles.
fn rows() -> BTreeMap<String, Row> {
    let text = fs::read_to_string(made(DOCUMENT)).unwrap();
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim().trim_start_matches("| ").trim_end_matches(" |");
        line.split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| fault |");
    let faults = text.split("\n## Over time\n").next().unwrap();
    faults
        .lines()
        .filter(is_row)
        .map(|line| {
            let cells = cells(line);
            assert_eq!(cells.len(), 5, "{DOCUMENT}: {line}");
            let quoted = cells[1].split('`').skip(1).step_by(2).map(str::to_owned);
            let back_after = cells[4].strip_suffix(" s").map(|seconds| seconds.parse().unwrap());
            assert!(back_after.is_some() || cells[4] == "—", "{DOCUMENT}: {line}");
            (cells[0].clone(), Row { seen: quoted.collect(), back_after })
        })
        .collect()
}

#[test]
fn every_fault_has_its_row_and_every_row_its_fault() {
    let rows = rows();
    let listed: BTreeSet<&str> = FAULTS.iter().flat_map(|faults| faults.iter().copied()).collect();
    let written: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
    assert_eq!(listed, written);
    // What no lab can show is seen by nobody there.
    for (title, row) in rows.iter().filter(|(title, _)| !clocks::FAULTS.contains(&title.as_str())) {
        assert!(!row.seen.is_empty(), "{title}: the row quotes nothing that can be seen");
    }
}

/// Whether a text has these words; `…` stands for any others on the same line.
fn has(text: &str, words: &str) -> bool {
    text.lines().any(|line| {
        let mut rest = line;
        words.split('…').map(str::trim).all(|part| match rest.find(part) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    })
}

/// Pulls on some agents, again and again, each time without the image being there.
struct Pulls {
    stop: Arc<AtomicBool>,
    loops: Vec<(String, JoinHandle<Pulled>)>,
}

/// What has come of the pulls on one agent: how many there were, when some failed, and what was said then.
#[derive(Default)]
struct Pulled {
    count: usize,
    failed: Vec<(Duration, String)>,
}

impl Pulls {
    fn start(cluster: &Cluster, agents: &[&str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let on = |agent: &&str| {
            let (dir, agent, stop) = (cluster.lab.path().to_owned(), (*agent).to_owned(), Arc::clone(&stop));
            ((*agent).to_owned(), std::thread::spawn(move || pull_until(&dir, &agent, &stop)))
        };
        let loops = agents.iter().map(|agent| (agent.to_string(), on(agent).1)).collect();
        Self { stop, loops }
    }

    /// Ends them; what each agent has to tell.
    fn stop(self) -> Vec<(String, Pulled)> {
        self.stop.store(true, Ordering::SeqCst);
        self.loops.into_iter().map(|(agent, thread)| (agent, thread.join().unwrap())).collect()
    }
}

fn pull_until(dir: &Path, agent: &str, stop: &AtomicBool) -> Pulled {
    let (began, mut pulled) = (Instant::now(), Pulled::default());
    let line = format!("docker rmi -f {IMAGE} >/dev/null 2>&1; docker pull -q {IMAGE}");
    while !stop.load(Ordering::SeqCst) {
        let at = began.elapsed();
        let output = lab::enter::output(dir, agent, &["sh", "-c", &line]).unwrap();
        pulled.count += 1;
        if !output.status.success() {
            pulled.failed.push((at, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    pulled
}

/// A fault from its beginning to its end.
struct Fault<'a> {
    cluster: &'a Cluster,
    title: &'static str,
    row: Row,
    pulls: Option<Pulls>,
    /// What else the user could have read, as the log of a task.
    read: String,
    back_after: Option<f64>,
}

impl<'a> Fault<'a> {
    /// Begins: from now on these agents pull.
    fn begin(cluster: &'a Cluster, title: &'static str, pulling: &[&str]) -> Self {
        assert!(FAULTS.iter().any(|faults| faults.contains(&title)), "{title} is in no list");
        let row = rows().remove(title).unwrap_or_else(|| panic!("{DOCUMENT} has no row {title:?}"));
        cluster.wait("all to be well before the fault", 90, || is_well(cluster));
        eprintln!("== {title}");
        Self { cluster, title, row, pulls: Some(Pulls::start(cluster, pulling)), read: String::new(), back_after: None }
    }

    /// What the user could read elsewhere than in `status`.
    fn reads(&mut self, text: &str) {
        self.read += text;
        self.read += "\n";
    }

    /// Waits until all that the row quotes has been seen: in the report, or in what the CLI makes of it.
    fn is_seen(&mut self, seconds: u64) {
        let (began, mut missing) = (Instant::now(), self.row.seen.clone());
        let mut last = String::new();
        while !missing.is_empty() {
            if began.elapsed() > Duration::from_secs(seconds) {
                self.cluster.explain();
                panic!("{}: not seen within {seconds} s: {missing:?}\nlast: {last}\nread: {}", self.title, self.read);
            }
            // What passes in seconds the CLI, which takes its time to start, could miss.
            for _ in 0..10 {
                let report = self.cluster.status().as_ref().map(lines).unwrap_or_default();
                missing.retain(|words| !has(&report, words) && !has(&self.read, words));
                if missing.is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            let said = self.cluster.dcos(&["private-registry", "status"]);
            last = format!("{}{}\nexit code {}\n", said.stdout, said.stderr, said.status.code().unwrap_or(-1));
            missing.retain(|words| !has(&last, words) && !has(&self.read, words));
        }
        eprintln!("   seen after {:.1} s", began.elapsed().as_secs_f64());
    }

    /// Measures how long it takes from now on until all is well.
    fn is_healed(&mut self, seconds: u64) {
        self.is_healed_when(seconds, is_well);
    }

    /// The same for another sign of it.
    fn is_healed_when(&mut self, seconds: u64, well: impl Fn(&Cluster) -> bool) {
        let began = Instant::now();
        self.cluster.wait(&format!("the end of: {}", self.title), seconds, || well(self.cluster));
        self.back_after = Some(began.elapsed().as_secs_f64());
    }

    /// Ends: no pull may have failed.
    fn ends(mut self) {
        for (agent, pulled) in self.pulls.take().unwrap().stop() {
            assert!(
                pulled.failed.is_empty(),
                "{}: {} of {} pulls on {agent} failed: {:?}",
                self.title,
                pulled.failed.len(),
                pulled.count,
                pulled.failed
            );
            assert!(pulled.count >= 3, "{}: only {} pulls on {agent}", self.title, pulled.count);
            eprintln!("   {} pulls on {agent}, none failed", pulled.count);
        }
        self.tell();
    }

    /// Ends: pulls may have failed for at most so many seconds, as they cannot go on. Returns for how long they have.
    fn ends_after_an_outage(mut self, seconds: f64) {
        for (agent, pulled) in self.pulls.take().unwrap().stop() {
            let of = |found: Option<&(Duration, String)>| found.map_or(0.0, |(at, _)| at.as_secs_f64());
            let outage = of(pulled.failed.last()) - of(pulled.failed.first());
            assert!(outage <= seconds, "{}: pulls on {agent} failed for {outage:.0} s: {:?}", self.title, pulled.failed.last());
            eprintln!("   {} pulls on {agent}, {} failed, for {outage:.0} s", pulled.count, pulled.failed.len());
        }
        self.tell();
    }

    /// Holds the time against the document, and leaves it for the table.
    fn tell(self) {
        let measured = self.back_after.map_or("—".to_owned(), |seconds| format!("{:.0} s", seconds.ceil()));
        eprintln!("   back after {measured}");
        // Where the tests put what `ci/faults` shows.
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/faults");
        fs::create_dir_all(&folder).unwrap();
        let name: String = self.title.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        fs::write(folder.join(name), format!("{}\t{measured}\n", self.title)).unwrap();
        match (self.row.back_after, self.back_after) {
            (None, None) => {}
            // Another machine, and a busy one, may take longer; a wrong order of magnitude is a lie.
            (Some(written), Some(found)) => {
                assert!(found <= written * 3.0 + 15.0, "{}: {DOCUMENT} says {written} s, and it took {found:.1} s", self.title)
            }
            (written, found) => panic!("{}: {DOCUMENT} says {written:?} s, and it took {found:?} s", self.title),
        }
    }
}

/// What `status` prints of a report, line by line.
fn lines(report: &Value) -> String {
    let texts = |key: &str| report[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    let row = |agent: &Value| ["host", "role", "state", "sysctl", "detail"].map(|key| agent[key].as_str().unwrap_or_default()).join("  ");
    let rows = report["agents"].as_array().into_iter().flatten().map(row);
    let sentences = ["summary", "trouble"].into_iter().filter_map(|key| report[key].as_str()).map(str::to_owned);
    sentences.chain(rows).chain(texts("problems")).chain(texts("next")).collect::<Vec<_>>().join("\n")
}

/// Whether the controller finds nothing wrong.
fn is_well(cluster: &Cluster) -> bool {
    cluster.status().is_some_and(|status| status["converged"] == true && status["trouble"] == Value::Null)
}

/// Pushes what is pulled.
fn push_image(cluster: &Cluster, agent: &str) {
    cluster.sh_ok(agent, &format!("docker tag canary:1 {IMAGE} && docker push -q {IMAGE}"));
}

/// The standard error of a task on an agent, and its standard output.
fn log_of(cluster: &Cluster, name: &str, agent: &str) -> String {
    let tasks = cluster.lab.control("GET", "/tasks", None).unwrap();
    let of_it = |task: &&Value| task["name"] == name && task["agent"] == agent;
    let sandboxes = tasks.as_array().unwrap().iter().filter(of_it).filter_map(|task| task["sandbox"].as_str());
    let line = |sandbox: &str| format!("cat {sandbox}/stdout {sandbox}/stderr 2>/dev/null");
    // As the master sees it: the disk of an agent may be one of its own.
    sandboxes.map(|sandbox| cluster.sh("master", &line(sandbox)).stdout).collect()
}

/// Trusted, pending or failed.
fn state_of(cluster: &Cluster, agent: &str) -> String {
    cluster.agent_state(agent).map(|(state, _)| state).unwrap_or_default()
}
