//! The controller is killed at every one of its effects, in every scenario, and started again: what it was about comes to its end, and
//! what must always hold has held.
//!
//! The cluster is played (`fleet`): servers of the lab, nodes and registries that are values, the controller a real process. First a
//! scenario runs undisturbed and its points are counted; then once for each point. `docs/crash-points.md` says what is covered.

#![allow(clippy::unwrap_used)]

mod gate;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use private_registry::certificates::Certificate;
use serde_json::{Value, json};

use crate::fleet::process::{Counts, Watch};
use crate::fleet::{Cluster, HOME, isolated};
use crate::role_points::Step;
use crate::support::made;
use gate::{Gate, Point};

/// Longest time for anything to come about.
const PATIENCE: Duration = Duration::from_secs(60);
const SERVICE: &str = "private-registry";
/// Where the controller keeps its state, below the folder of a run.
const STATE: &str = "private-registry/private-registry/controller";
const NEW_NAME: &str = "late.example.com:8443";

/// What the operator does, and what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scenario {
    Install,
    Update,
    Join,
    Rotation,
    Collection,
    UninstallByCosmos,
    UninstallByJob,
}

impl Scenario {
    const ALL: [Self; 7] =
        [Self::Install, Self::Update, Self::Join, Self::Rotation, Self::Collection, Self::UninstallByCosmos, Self::UninstallByJob];

    /// As the document calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Update => "update of options, with a new name",
            Self::Join => "an agent joins",
            Self::Rotation => "rotation by the job",
            Self::Collection => "garbage collection",
            Self::UninstallByCosmos => "uninstall by Cosmos",
            Self::UninstallByJob => "uninstall by the job",
        }
    }

    /// The job whose run is the order.
    fn job(self) -> Option<&'static str> {
        match self {
            Self::Rotation => Some("rotate"),
            Self::Collection => Some("gc"),
            Self::UninstallByJob => Some("uninstall"),
            _ => None,
        }
    }

    fn removes(self) -> bool {
        matches!(self, Self::UninstallByCosmos | Self::UninstallByJob)
    }

    fn agents(self) -> u64 {
        if self == Self::Join { 3 } else { 2 }
    }

    /// CAs that were ever trusted when all is done: none is made in vain, and none is given up that is needed.
    fn cas(self) -> usize {
        if matches!(self, Self::Update | Self::Rotation) { 2 } else { 1 }
    }
}

/// One run of a scenario.
struct Run {
    scenario: Scenario,
    cluster: Cluster,
    gate: Arc<Gate>,
    watch: Option<Arc<Watch>>,
    /// The CA at the beginning.
    ca: Value,
    /// Runs of the scenario's job that were started.
    started: usize,
    state: std::path::PathBuf,
}

/// What an undisturbed run has counted.
#[derive(Debug, Default, Clone)]
struct Counted {
    writes: BTreeMap<String, usize>,
    reads: BTreeMap<String, usize>,
    files: Vec<String>,
}

impl Counted {
    /// Changes of files whose number is that of the call `after` one which renames a file that was written under this name.
    fn around_rename(&self, file: &str, after: usize) -> impl Iterator<Item = Point> {
        let synced = self.files.iter().enumerate().filter(move |(_, call)| call.starts_with("fsync") && call.contains(file));
        // The next call is the renaming; numbers begin with 1.
        synced.map(move |(at, _)| at + 2 + after).filter(|nth| *nth <= self.files.len()).map(Point::File)
    }

    /// Where it would hurt most.
    fn hard_points(&self, scenario: Scenario) -> Vec<Point> {
        let after = |what: &str| {
            self.writes.keys().filter(|kind| kind.starts_with(what)).map(|kind| Point::After(kind.clone(), 1)).collect::<Vec<_>>()
        };
        let files = |file: &str| self.around_rename(file, 0).chain(self.around_rename(file, 1)).collect::<Vec<_>>();
        match scenario {
            Scenario::Install => [
                after("PUT /v2/apps/private-registry"),
                after("POST /v1/jobs/private-registry.init/runs"),
                after("PUT /order (certificate)"),
            ]
            .concat(),
            Scenario::Update => [after("PUT /v2/apps/registry"), after("PUT /order (certificate)")].concat(),
            Scenario::Join => after("PUT /v2/pods"),
            Scenario::Rotation => [files(".next-ca.pem"), files(".controller.ca.pem"), after("PUT /order (certificate)")].concat(),
            Scenario::Collection => [after("PUT /order (collect, collect)"), after("PUT /order (collect, finish)")].concat(),
            Scenario::UninstallByCosmos => {
                let node = self.writes.keys().filter(|kind| kind.starts_with("PUT /order (restore)"));
                [after("PUT /order (retire)"), after("DELETE /v2/pods"), node.map(|kind| Point::TaskBefore(kind.clone(), 1)).collect()]
                    .concat()
            }
            Scenario::UninstallByJob => {
                [after("DELETE /v1/jobs/private-registry.uninstall"), after("DELETE /v2/apps/private-registry")].concat()
            }
        }
    }

    fn points(&self) -> Vec<Point> {
        let each = self.writes.iter().flat_map(|(kind, count)| (1..=*count).map(move |nth| (kind.clone(), nth)));
        let writes = each.flat_map(|(kind, nth)| [Point::Before(kind.clone(), nth), Point::After(kind, nth)]);
        let reads = self.reads.keys().map(|kind| Point::Read(kind.clone()));
        // Tasks that have not changed between two questions are asked at every pass: the first ones do.
        let heard =
            self.writes.iter().map(|(kind, count)| (kind, *count)).chain(self.reads.iter().map(|(kind, count)| (kind, 4.min(*count))));
        let heard = heard.filter(|(kind, _)| kind.ends_with(" a node") || kind.ends_with(" a registry"));
        let of_tasks = heard.flat_map(|(kind, count)| (1..=count).map(move |nth| (kind.clone(), nth)));
        let of_tasks = of_tasks.flat_map(|(kind, nth)| [Point::TaskBefore(kind.clone(), nth), Point::TaskAfter(kind, nth)]);
        writes.chain(reads).chain(of_tasks).chain((1..=self.files.len()).map(Point::File)).collect()
    }
}

/// How a run has ended.
#[derive(Debug)]
struct Outcome {
    struck: bool,
    counted: Counted,
}

/// Plays a scenario, with a kill at a point or none.
fn play(scenario: Scenario, point: Option<&Point>, counts: bool) -> Result<Outcome, String> {
    let dir = scratch();
    let watched = counts || matches!(point, Some(Point::File(_)));
    unless_it_panics(|| {
        isolated(dir.path(), async || {
            let mut run = Run::start(scenario, dir.path(), watched).await?;
            run.gate.arm(point.filter(|point| !matches!(point, Point::File(_))).cloned());
            if let Some(watch) = &run.watch {
                watch.arm(if let Some(Point::File(nth)) = point { Some(*nth) } else { None });
            }
            run.order().await;
            let ended = run.come_to_its_end().await;
            let files = run.watch.as_ref().map(|watch| watch.seen());
            let (writes, reads) = run.gate.seen();
            let struck = run.gate.has_struck() || files.as_ref().is_some_and(|(_, struck)| *struck);
            let mut faults: Vec<String> = ended.err().into_iter().collect();
            faults.extend(run.gate.faults());
            faults.extend(run.cluster.fleet.world.faults());
            if faults.is_empty() {
                faults = run.check().await;
            }
            if !faults.is_empty() {
                return Err(format!("{}\n{}", faults.join("\n"), run.describe(dir.path()).await));
            }
            let files = files.map(|(files, _)| files).unwrap_or_default();
            Ok(Outcome { struck, counted: Counted { writes, reads, files } })
        })
    })
}

/// One point that fails must not hide what becomes of the others.
pub(crate) fn unless_it_panics<T>(does: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(does)).unwrap_or_else(|_| Err("it panicked; the words stand above".into()))
}

/// A directory in memory: what is asked here is the order of the calls, not the disk's patience.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("private-registry-points-");
    if memory.is_dir() { builder.tempdir_in(memory) } else { builder.tempdir() }.unwrap()
}

impl Run {
    async fn start(scenario: Scenario, dir: &Path, watched: bool) -> Result<Self, String> {
        let watch = watched.then(|| Watch::new(Counts::Files, &["/var/lib/private-registry"]));
        Self::start_with(scenario, dir, watch).await
    }

    async fn start_with(scenario: Scenario, dir: &Path, watch: Option<Arc<Watch>>) -> Result<Self, String> {
        let state = dir.join("var-lib").join(STATE);
        let gate = Gate::new(state.clone());
        let cluster = Cluster::start(dir, 2, gate.around(), watch.clone()).await;
        gate.guard(cluster.fleet.clone());
        gate.agents(2);
        let mut run = Self { scenario, cluster, gate, watch, ca: Value::Null, started: 0, state };
        run.foreign("POST").await;
        if scenario != Scenario::Install {
            run.install().await;
            run.wait("the installation", async |run| run.cluster.is_converged().await && run.history("init").await == (1, 0)).await?;
            run.ca = run.cluster.status().await.unwrap_or_default()["ca_fingerprint"].clone();
        }
        Ok(run)
    }

    async fn install(&self) {
        let options = json!({
            "registry": { "host": HOME.to_string() },
            "exposure": { "marathon_lb": false },
            // For the sake of its jobs.
            "backup": { "path": "/backup" },
        });
        self.cluster.install(&options).await;
    }

    /// What others have in the cluster, made or looked at.
    async fn foreign(&self, method: &str) -> [Value; 2] {
        let app = json!({ "id": "/team/other", "cmd": "sleep 1", "cpus": 0.1, "mem": 32, "instances": 0 });
        let job = json!({ "id": "team.other", "run": { "cmd": "sleep 1", "cpus": 0.1, "mem": 32, "disk": 0 } });
        if method == "POST" {
            assert_eq!(self.cluster.marathon("POST", "/v2/apps", Some(&app)).await.0, 201);
            assert_eq!(self.cluster.metronome("POST", "/v1/jobs", Some(&job)).await.0, 201);
        }
        let mut app = self.cluster.marathon("GET", "/v2/apps/team/other", None).await.1["app"].take();
        // Whatever a deployment is doing with it.
        if let Some(fields) = app.as_object_mut() {
            fields.retain(|key, _| ["id", "cmd", "version", "instances"].contains(&key.as_str()));
        }
        [app, self.cluster.metronome("GET", "/v1/jobs/team.other", None).await.1]
    }

    async fn wait(&mut self, what: &str, is_so: impl AsyncFn(&mut Self) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self).await {
            if Instant::now() >= deadline {
                return Err(format!("{what} has not come about within {} s", PATIENCE.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Runs of a job that have succeeded and failed. None are there any more where the job is gone.
    async fn history(&self, job: &str) -> (u64, u64) {
        let (_, answer) = self.cluster.metronome("GET", &format!("/v1/jobs/{SERVICE}.{job}?embed=history"), None).await;
        let count = |what: &str| answer["history"][what].as_u64().unwrap_or(0);
        (count("successCount"), count("failureCount"))
    }

    async fn start_run(&mut self, job: &str) -> bool {
        let (status, _) = self.cluster.metronome("POST", &format!("/v1/jobs/{SERVICE}.{job}/runs"), None).await;
        self.started += usize::from(status == 201);
        status == 201
    }

    /// What the operator does.
    async fn order(&mut self) {
        match self.scenario {
            Scenario::Install => self.install().await,
            Scenario::Update => {
                let options = json!({ "names": { "extra": NEW_NAME }, "registry": { "log_level": "debug" } });
                let body = json!({ "appId": format!("/{SERVICE}"), "options": options, "replace": false });
                let (status, answer) = self.cluster.cosmos("service.update", "cosmos/service/update", "v1", &body).await;
                assert_eq!(status, 200, "{answer}");
            }
            Scenario::Join => {
                self.gate.agents(3);
                self.cluster.join(2);
            }
            Scenario::Rotation | Scenario::Collection | Scenario::UninstallByJob => {
                let job = self.scenario.job().unwrap();
                assert!(self.start_run(job).await);
            }
            Scenario::UninstallByCosmos => {
                let body = json!({ "packageName": SERVICE });
                let (status, answer) = self.cluster.cosmos("package.uninstall", "package/uninstall", "v1", &body).await;
                assert_eq!(status, 200, "{answer}");
            }
        }
    }

    async fn come_to_its_end(&mut self) -> Result<(), String> {
        self.wait(self.scenario.name(), async |run| {
            if let Some(job) = run.scenario.job() {
                run.repeat_a_run_that_failed(job).await;
            }
            run.has_ended().await
        })
        .await
    }

    /// A run whose program could not be fetched while no controller was there, or that was itself killed, is started again.
    async fn repeat_a_run_that_failed(&mut self, job: &str) {
        let (_, failed) = self.history(job).await;
        if failed as usize >= self.started && self.started < 4 {
            self.start_run(job).await;
        }
    }

    async fn has_ended(&self) -> bool {
        if self.scenario.removes() {
            let apps = self.cluster.marathon("GET", "/v2/apps", None).await.1;
            let pods = self.cluster.marathon("GET", "/v2/pods", None).await.1;
            let jobs = self.cluster.metronome("GET", "/v1/jobs", None).await.1;
            let deployments = self.cluster.marathon("GET", "/v2/deployments", None).await.1;
            let count = |list: &Value| list.as_array().map_or(usize::MAX, Vec::len);
            return (count(&apps["apps"]), count(&pods), count(&jobs), count(&deployments)) == (1, 0, 1, 0);
        }
        let Some(status) = self.cluster.status().await else { return false };
        let agents = status["agents"].as_array().map_or(0, Vec::len) as u64;
        if status["converged"] != true || agents != self.scenario.agents() {
            return false;
        }
        match self.scenario {
            // Started once, whenever the controller was killed.
            Scenario::Install => {
                let (succeeded, failed) = self.history("init").await;
                succeeded + failed == 1
            }
            Scenario::Update => status["names"].to_string().contains(NEW_NAME) && status["ca_fingerprint"] != self.ca,
            Scenario::Rotation => status["ca_fingerprint"] != self.ca && self.history("rotate").await.0 >= 1,
            Scenario::Collection => self.history("gc").await.0 >= 1,
            _ => true,
        }
    }

    /// What must hold at the end, as far as it does not.
    async fn check(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut expect = |holds: bool, what: String| {
            if !holds {
                faults.push(what);
            }
        };
        let [app, job] = self.foreign("GET").await;
        expect(app["id"] == "/team/other" && app["instances"] == 0 && job["id"] == "team.other", "what others have is touched".into());
        let documents = [
            self.cluster.marathon("GET", "/v2/apps", None).await.1,
            self.cluster.marathon("GET", "/v2/pods", None).await.1,
            self.cluster.metronome("GET", "/v1/jobs", None).await.1,
        ];
        for document in documents {
            if let Some(what) = self.gate.find_key("a stored document", &document.to_string()) {
                expect(false, what);
            }
        }
        let cas = self.cluster.fleet.world.lock().trusted_ever.len();
        let most = self.scenario.cas().max(if self.scenario == Scenario::Rotation { 1 + self.started } else { 0 });
        expect((self.scenario.cas()..=most).contains(&cas), format!("{cas} CAs were made known"));
        let violations = self.cluster.shared.read(|state| state.violations.clone());
        expect(violations.is_empty(), format!("{violations:?}"));
        if self.scenario.removes() {
            expect(!self.state.exists(), "the controller's state is left".into());
            for (host, disk) in &self.cluster.fleet.world.lock().disks {
                let files = &disk.registry;
                expect(disk.node.is_none(), format!("{host} keeps trust files"));
                expect(files.key.is_none() && files.chain.is_none() && files.order.is_none(), format!("{host} keeps the registry's key"));
            }
            return faults;
        }
        let status = self.cluster.status().await.unwrap_or_default();
        let ca = status["ca"].as_str().unwrap_or_default().to_owned();
        let in_force = Certificate::parse_bundle(&ca).map(|list| list.iter().map(Certificate::pem).collect::<Vec<_>>()).unwrap_or_default();
        expect(in_force.len() == 1, format!("{} CAs are in force", in_force.len()));
        for (host, disk) in &self.cluster.fleet.world.lock().disks {
            let trusts = disk.node.as_ref().is_some_and(|files| files.proven && files.bundle.certificates == in_force);
            expect(trusts, format!("{host} does not trust what is in force"));
        }
        let pod = self.cluster.marathon("GET", "/v2/pods/private-registry-node", None).await.1;
        expect(pod["scaling"]["instances"] == self.scenario.agents(), format!("the pod is scaled to {}", pod["scaling"]));
        expect(!self.state.join("next-ca.pem").exists(), "the key of the next CA is left".into());
        faults
    }

    /// For people: how things stand where something is wrong.
    async fn describe(&self, dir: &Path) -> String {
        let status =
            self.cluster.status().await.map(|status| status.to_string()).unwrap_or_else(|| "the controller does not answer".into());
        let mut logs = Vec::new();
        let mut rest = vec![dir.join("agents")];
        while let Some(at) = rest.pop() {
            for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    rest.push(path);
                } else if path.file_name().is_some_and(|name| name == "stdout" || name == "stderr") {
                    let text = std::fs::read_to_string(&path).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().collect();
                    logs.push(lines[lines.len().saturating_sub(25)..].join("\n"));
                }
            }
        }
        let tasks = self.cluster.shared.read(|state| {
            let line = |task: &lab::server::Task| format!("{} {} {:?}", task.id, task.state_name(), task.message);
            state.tasks.values().chain(&state.completed).map(line).collect::<Vec<_>>().join("\n")
        });
        format!("writes: {:?}\n{status}\n{tasks}\n{}", self.gate.seen().0, logs.join("\n--\n"))
    }
}

/// What came of the points of a scenario.
#[derive(Debug, Default)]
struct Tally {
    before: usize,
    after: usize,
    reads: usize,
    files: usize,
    tasks: usize,
    /// Points that did not come again.
    missed: Vec<String>,
    failed: Vec<String>,
}

impl Tally {
    fn note(&mut self, point: &Point, result: Result<bool, String>) {
        match result {
            Ok(true) => match point {
                Point::Before(..) => self.before += 1,
                Point::After(..) => self.after += 1,
                Point::Read(..) => self.reads += 1,
                Point::File(..) => self.files += 1,
                Point::TaskBefore(..) | Point::TaskAfter(..) => self.tasks += 1,
            },
            Ok(false) => self.missed.push(point.to_string()),
            Err(why) => self.failed.push(format!("{point}: {why}")),
        }
    }
}

/// Kills at a point. How a scenario goes is not the same to the last request every time, so a point that did not come is tried again.
fn strike(scenario: Scenario, point: &Point) -> Result<bool, String> {
    for _ in 0..3 {
        if play(scenario, Some(point), false)?.struck {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Counts the points of every scenario and strikes those that are chosen, so many at a time.
fn strike_all(choose: impl Fn(Scenario, &Counted) -> Vec<Point>, at_once: usize) -> BTreeMap<Scenario, (Counted, Tally)> {
    let counted: Mutex<BTreeMap<Scenario, Counted>> = Mutex::default();
    in_parallel(Scenario::ALL.into(), at_once, |scenario| {
        let outcome = play(scenario, None, true).unwrap_or_else(|why| panic!("{}, undisturbed: {why}", scenario.name()));
        counted.lock().unwrap().insert(scenario, outcome.counted);
    });
    let counted = counted.into_inner().unwrap();
    let points = counted.iter().flat_map(|(scenario, counted)| choose(*scenario, counted).into_iter().map(|point| (*scenario, point)));
    let tallies: Mutex<BTreeMap<Scenario, Tally>> = Mutex::default();
    in_parallel(points.collect(), at_once, |(scenario, point)| {
        let result = strike(scenario, &point);
        tallies.lock().unwrap().entry(scenario).or_default().note(&point, result);
    });
    let mut tallies = tallies.into_inner().unwrap();
    counted.into_iter().map(|(scenario, counted)| (scenario, (counted, tallies.remove(&scenario).unwrap_or_default()))).collect()
}

pub(crate) fn in_parallel<T: Send>(work: VecDeque<T>, at_once: usize, does: impl Fn(T) + Sync) {
    let work = Mutex::new(work);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some(next) = work.lock().unwrap().pop_front() else { return };
                    does(next);
                }
            });
        }
    });
}

/// Prints the table and fails where anything has.
fn report(results: &BTreeMap<Scenario, (Counted, Tally)>) {
    println!("| scenario | before | after | reads | file operations | node or registry | passed |\n|---|---|---|---|---|---|---|");
    let mut failed = Vec::new();
    for (scenario, (_, tally)) in results {
        let Tally { before, after, reads, files, tasks, .. } = tally;
        let passed = if tally.failed.is_empty() { "all".to_owned() } else { format!("all but {}", tally.failed.len()) };
        println!("| {} | {before} | {after} | {reads} | {files} | {tasks} | {passed} |", scenario.name());
        failed.extend(tally.failed.iter().map(|why| format!("{}, {why}", scenario.name())));
    }
    for (scenario, (_, tally)) in results.iter().filter(|(_, (_, tally))| !tally.missed.is_empty()) {
        println!("{}: {} points did not come again: {}", scenario.name(), tally.missed.len(), tally.missed.join("; "));
    }
    assert!(failed.is_empty(), "{} points have failed:\n{}", failed.len(), failed.join("\n\n"));
}

fn at_once() -> usize {
    std::env::var("CRASH_POINTS_AT_ONCE").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// Of the points that are not hard one in so many is taken, from the first or, by `CRASH_POINTS_SEED`, from a later one.
const ONE_IN: usize = 60;

#[test]
fn the_hard_points_and_a_part_of_the_others() {
    let seed: usize = std::env::var("CRASH_POINTS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let results = strike_all(
        |scenario, counted| {
            let hard = counted.hard_points(scenario);
            assert!(!hard.is_empty(), "{}: the hard points are gone: {counted:?}", scenario.name());
            // Every scenario begins elsewhere.
            let others = counted.points().into_iter().filter(|point| !hard.contains(point));
            let others: Vec<Point> = others.skip((seed + 7 * scenario as usize) % ONE_IN).step_by(ONE_IN).collect();
            hard.into_iter().chain(others).collect()
        },
        at_once(),
    );
    let struck: usize = results.values().map(|(_, tally)| tally.before + tally.after + tally.reads + tally.files + tally.tasks).sum();
    assert!(struck > 20, "only {struck} points were struck");
    report(&results);
}

/// Those of these names that no line of the document's tables begins with.
fn documented(names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let text = std::fs::read_to_string(made("docs/crash-points.md")).unwrap();
    let has = |name: &&str| text.lines().any(|line| line.starts_with(&format!("| {name} |")) && line.trim_end().ends_with("| all |"));
    names.filter(|name| !has(name)).collect()
}

#[test]
fn the_document_has_every_scenario_and_every_step() {
    let missing = documented(Scenario::ALL.into_iter().map(Scenario::name).chain(Step::ALL.into_iter().map(Step::name)));
    assert!(missing.is_empty(), "docs/crash-points.md has no line for {missing:?}; ci/crash-points prints them");
}

#[test]
fn a_controller_whose_clock_is_a_day_off_installs_and_replaces_its_ca_and_goes_on_when_the_clock_is_set() {
    const DAY: i64 = 24 * 60 * 60;
    for ahead in [DAY, -DAY] {
        let dir = scratch();
        let played = unless_it_panics(|| {
            isolated(dir.path(), async || {
                let watch = Watch::with_clock(ahead);
                let mut run = Run::start_with(Scenario::Rotation, dir.path(), Some(watch.clone())).await?;
                let ca = run.cluster.status().await.unwrap_or_default()["ca"].as_str().unwrap_or_default().to_owned();
                let ca = Certificate::parse_bundle(&ca).map_err(|error| error.to_string())?.swap_remove(0);
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
                // It was made a day and an hour after it begins, by the clock of its maker.
                let made = ca.not_before() + DAY + 3600;
                if ca.not_before() > now || (made - now - ahead).abs() > 600 {
                    return Err(format!("the CA begins at {}, and it is {now}", ca.not_before()));
                }
                run.order().await;
                run.come_to_its_end().await?;
                watch.set_clock(0);
                run.wait("another pass", async |run| run.has_ended().await).await?;
                let faults = run.check().await;
                if faults.is_empty() { Ok(()) } else { Err(format!("{faults:?}\n{}", run.describe(dir.path()).await)) }
            })
        });
        played.unwrap_or_else(|why| panic!("{ahead} s ahead: {why}"));
    }
}

#[test]
#[ignore = "by ci/crash-points: it takes many minutes"]
fn every_point() {
    report(&strike_all(|_, counted| counted.points(), at_once()));
}

/// One scenario, by a part of its name: what it asks, and the points whose names have another text in them.
#[test]
#[ignore = "for development: CRASH_SCENARIO and CRASH_POINT say which"]
fn chosen() {
    let asked = |name: &str| std::env::var(name).unwrap_or_default();
    let (scenario, point) = (asked("CRASH_SCENARIO"), asked("CRASH_POINT"));
    let is_chosen = |what: Scenario, counted: &Counted| match what.name().contains(&scenario) {
        true => counted.points().into_iter().filter(|at| at.to_string().contains(&point)).collect(),
        false => Vec::new(),
    };
    report(&strike_all(is_chosen, at_once()));
}
