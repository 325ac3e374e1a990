//! The part of the lab outside its namespaces: starts it, watches its owner, and removes every trace of it, also after SIGKILL.
//!
//! Namespaces, mounts, links and processes vanish by themselves: they hang on the lab's pid 1, which the kernel kills with the outer
//! process. Control groups and files do not; the outer process removes them, or a janitor does when the outer process was killed.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Error, Result, cgroups,
    host::{outer_proc, wait_until},
    process::{ProcessId, spawn_error, write_atomically},
    server::{self, Pose},
};

/// What kind of lab to start.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Everything of the lab lies here; emptied at its end.
    pub dir: PathBuf,
    /// Number of private agents.
    pub agents: u8,
    /// Number of public agents.
    pub public: u8,
    /// Image archives (`docker save`) that every machine loads.
    pub images: Vec<PathBuf>,
    /// Folder with a package repository, served at `http://universe.lab:8000/`.
    pub package: Option<PathBuf>,
    /// Whether public agents run Marathon-LB from the start; else it comes as a package.
    pub marathon_lb: bool,
    /// What kind of cluster it pretends to be.
    pub pose: Pose,
    /// The lab ends when this process does.
    pub owner_pid: Option<u32>,
    /// Keep logs, journal and disks (not dockers' data) at the end.
    pub keep: bool,
}

/// Marks a lab whose public agents run no Marathon-LB from the start.
const NO_MARATHON_LB: &str = "state/no-marathon-lb";

/// Whether public agents of the lab in this directory run Marathon-LB from the start.
pub(crate) fn has_marathon_lb(dir: &Path) -> bool {
    !dir.join(NO_MARATHON_LB).exists()
}

/// How long a lab may take to come up.
const START: Duration = Duration::from_secs(180);
/// How long the end may take.
const END: Duration = Duration::from_secs(60);
/// How often the outer process and the janitor look around.
const WATCH: Duration = Duration::from_millis(200);

/// Starts a lab and stays until it ends: by SIGTERM, SIGINT or SIGHUP, by the end of the owner, or by itself.
///
/// # Errors
/// It cannot be started; nothing is left then.
pub fn up(options: &UpOptions) -> Result<()> {
    let dir = prepare(options)?;
    let janitor = start_janitor(&dir, options.keep);
    let ended = janitor.and_then(|()| keep_up(&dir, options));
    let cleaned = clean(&dir, options.keep);
    ended.and(cleaned)
}

/// As [`up`], but returns as soon as the lab is ready; the lab goes on.
///
/// # Errors
/// As [`up`].
pub fn up_detached(options: &UpOptions) -> Result<()> {
    let dir = prepare(options)?;
    let program = std::env::current_exe().map_err(Error::io("finding", Path::new("/proc/self/exe")))?;
    let mut outer = Command::new("setsid");
    outer.arg(program).arg("up").arg("--dir").arg(&dir);
    outer.args(["--agents", &options.agents.to_string(), "--public", &options.public.to_string()]);
    for image in &options.images {
        outer.arg("--image-tar").arg(image);
    }
    if let Some(package) = &options.package {
        outer.arg("--package").arg(package);
    }
    if !options.marathon_lb {
        outer.arg("--no-marathon-lb");
    }
    outer.args(["--dcos", &options.pose.dcos, "--security", options.pose.security.word()]);
    if let Some(owner) = options.owner_pid {
        outer.args(["--owner-pid", &owner.to_string()]);
    }
    if options.keep {
        outer.arg("--keep");
    }
    outer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut outer = outer.spawn().map_err(|source| spawn_error("setsid", source))?;
    let mut progress = Progress::new(&dir);
    let came_up = wait_until(START, || {
        progress.show();
        dir.join("ready").exists() || !matches!(outer.try_wait(), Ok(None))
    });
    progress.show();
    if came_up && matches!(outer.try_wait(), Ok(None)) {
        return Ok(());
    }
    // It cleans up after itself when told to end.
    let _ = kill(pid_of(outer.id()), Signal::SIGTERM);
    let _ = outer.wait();
    Err(progress.failure())
}

/// Ends the lab in this directory and removes what is left of it. No lab is no error.
///
/// # Errors
/// It would not end, or something cannot be removed.
pub fn down(dir: &Path) -> Result<()> {
    if let Some(outer) = recorded(dir, "outer.json") {
        // Already gone is as good.
        let _ = kill(pid_of(outer.pid), Signal::SIGTERM);
        if !wait_until(END, || !outer.alive()) {
            return Err(Error::Timeout(format!("process {} of the lab would not end", outer.pid)));
        }
    }
    if dir.join("outer.json").exists() { clean(dir, false) } else { Ok(()) }
}

/// `lab janitor`: waits for the end of the outer process and cleans when it did not do so itself.
///
/// # Errors
/// Something cannot be removed.
pub fn janitor(dir: &Path, outer: ProcessId, keep: bool) -> Result<()> {
    while outer.alive() {
        thread::sleep(WATCH);
    }
    // Only what that outer process left: a new lab may have begun in the same place.
    if recorded_any(dir, "outer.json") == Some(outer) { clean(dir, keep) } else { Ok(()) }
}

/// The lab's pid 1, as this process sees it; none when no lab runs there.
pub(crate) fn init_of(dir: &Path) -> Option<ProcessId> {
    recorded(dir, "init.json")
}

fn recorded(dir: &Path, name: &str) -> Option<ProcessId> {
    recorded_any(dir, name).filter(|process| process.alive())
}

fn recorded_any(dir: &Path, name: &str) -> Option<ProcessId> {
    serde_json::from_slice(&fs::read(dir.join(name)).ok()?).ok()
}

/// Checks what can be checked and makes the directory, after removing what an earlier lab left there.
fn prepare(options: &UpOptions) -> Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::Refused("the lab makes namespaces and mounts: run it as root".to_owned()));
    }
    for program in PROGRAMS {
        if !on_path(program) {
            return Err(Error::Missing(program.to_owned()));
        }
    }
    for image in &options.images {
        if !image.is_file() {
            return Err(Error::Refused(format!("there is no image archive {}", image.display())));
        }
    }
    if let Some(package) = options.package.as_ref().filter(|package| !package.join("repo.json").is_file()) {
        return Err(Error::Refused(format!("{} has no repo.json: make it with ci/package", package.display())));
    }
    let dir = &options.dir;
    fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
    let dir = fs::canonicalize(dir).map_err(Error::io("finding", dir))?;
    let is_own = dir.join("outer.json").exists() || dir.join("logs").exists();
    let is_empty = fs::read_dir(&dir).map_err(Error::io("reading", &dir))?.next().is_none();
    if let Some(outer) = recorded(&dir, "outer.json") {
        return Err(Error::Refused(format!("a lab is up in {} already (process {}): run lab down", dir.display(), outer.pid)));
    }
    if !is_own && !is_empty {
        return Err(Error::Refused(format!("{} holds files that are not the lab's: choose an empty directory", dir.display())));
    }
    clean(&dir, false)?;
    for folder in ["logs", "bin", "images", "agents", "state", "universe"] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder).map_err(Error::io("creating", &folder))?;
    }
    let pose = serde_json::to_vec(&options.pose).map_err(|error| Error::Refused(error.to_string()))?;
    write_atomically(&server::pose_file(&dir), &pose)?;
    if !options.marathon_lb {
        write_atomically(&dir.join(NO_MARATHON_LB), b"")?;
    }
    Ok(dir)
}

/// What the lab runs.
const PROGRAMS: [&str; 13] = [
    "dockerd",
    "docker",
    "unshare",
    "nsenter",
    "setsid",
    "setpriv",
    "ip",
    "iptables",
    "iptables-restore",
    "curl",
    "haproxy",
    "tar",
    "timeout",
];

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn start_janitor(dir: &Path, keep: bool) -> Result<()> {
    let own = ProcessId::of(std::process::id()).ok_or_else(|| Error::Refused("/proc is not mounted".to_owned()))?;
    record(dir, "outer.json", own)?;
    let program = std::env::current_exe().map_err(Error::io("finding", Path::new("/proc/self/exe")))?;
    let here = dir.join("bin/lab");
    fs::copy(&program, &here).map_err(Error::io("copying the lab's program to", &here))?;
    // In a session of its own, so that a Ctrl-C or the end of a terminal does not reach it.
    let mut janitor = Command::new("setsid");
    janitor.arg("--fork").arg(&here).arg("janitor").arg("--dir").arg(dir);
    janitor.args(["--pid", &own.pid.to_string(), "--start", &own.start.to_string()]);
    if keep {
        janitor.arg("--keep");
    }
    let status = janitor.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.map(drop).map_err(|source| spawn_error("setsid", source))
}

pub(crate) fn record(dir: &Path, name: &str, process: ProcessId) -> Result<()> {
    let json = serde_json::to_vec(&process).map_err(|error| Error::Refused(error.to_string()))?;
    write_atomically(&dir.join(name), &json)
}

fn keep_up(dir: &Path, options: &UpOptions) -> Result<()> {
    for file in options.package.iter().flat_map(fs::read_dir).flatten().flatten() {
        let here = dir.join("universe").join(file.file_name());
        fs::copy(file.path(), &here).map_err(Error::io("copying a part of the package to", &here))?;
    }
    for (index, image) in options.images.iter().enumerate() {
        let here = dir.join(format!("images/{index:02}.tar"));
        if fs::hard_link(image, &here).is_err() {
            fs::copy(image, &here).map_err(Error::io("copying an image archive to", &here))?;
        }
    }
    let owner =
        options.owner_pid.map(|pid| ProcessId::of(pid).ok_or_else(|| Error::Refused(format!("there is no process {pid} to own the lab"))));
    let owner = owner.transpose()?;
    // Signals are caught before there is anything to clean up.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| spawn_error("the watch", source))?;
    runtime.block_on(async {
        let mut signals = Signals::catch().map_err(|source| spawn_error("the watch", source))?;
        let mut init = start_init(dir, options)?;
        let mut progress = Progress::new(dir);
        let mut ready = false;
        let ended = loop {
            tokio::select! {
                () = signals.any() => break Ok(()),
                () = tokio::time::sleep(WATCH / if ready { 1 } else { 8 }) => {}
            }
            if !ready {
                progress.show();
                ready = dir.join("ready").exists();
            }
            if owner.is_some_and(|owner| !owner.alive()) {
                break Ok(());
            }
            if !matches!(init.try_wait(), Ok(None)) {
                progress.show();
                break Err(progress.failure());
            }
        };
        end_init(dir, &mut init);
        ended
    })
}

struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn catch() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?]))
    }

    async fn any(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Starts pid 1 in new namespaces. It dies with `unshare`, which dies with this process, whatever ends it.
fn start_init(dir: &Path, options: &UpOptions) -> Result<Child> {
    let log = dir.join("logs/lab.log");
    let log = File::options().create(true).append(true).open(&log).map_err(Error::io("opening", &log))?;
    let mut init = Command::new("setpriv");
    init.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "--ipc", "--uts", "--mount-proc"]);
    init.arg(dir.join("bin/lab")).arg("init").arg("--dir").arg(dir);
    init.args(["--agents", &options.agents.to_string(), "--public", &options.public.to_string()]);
    // Neither proxies nor a docker context of the caller mean anything inside.
    init.env_clear().env("PATH", crate::host::PATH).env("HOME", "/root");
    if let Some(filter) = std::env::var_os("RUST_LOG") {
        init.env("RUST_LOG", filter);
    }
    // A group of its own: a Ctrl-C is for this process, which then ends the lab.
    init.process_group(0).stdin(outer_proc()?).stdout(log.try_clone().map_err(Error::io("opening", dir))?).stderr(log);
    init.spawn().map_err(|source| spawn_error("setpriv", source))
}

fn end_init(dir: &Path, unshare: &mut Child) {
    match init_of(dir) {
        // Its parent reaps it and ends with it.
        Some(init) => drop(kill(pid_of(init.pid), Signal::SIGKILL)),
        None => drop(unshare.kill()),
    }
    let _ = unshare.wait();
}

/// Removes control groups and files of the lab in this directory, whose processes are ended first if any run.
fn clean(dir: &Path, keep: bool) -> Result<()> {
    if let Some(init) = init_of(dir) {
        let _ = kill(pid_of(init.pid), Signal::SIGKILL);
        if !wait_until(END, || !init.alive()) {
            return Err(Error::Timeout(format!("pid 1 of the lab (process {}) would not die", init.pid)));
        }
    }
    // A control group stays busy for a moment after its last process.
    retry(|| cgroups::remove(&cgroups::of_lab(dir)))?;
    if keep {
        return retry(|| remove_bulk(dir));
    }
    retry(|| remove_tree(dir))
}

/// Kept: logs, journal and what machines wrote to their disks. Removed: what dockers stored, and the lab's claim on the directory.
fn remove_bulk(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir.join("agents")).into_iter().flatten().flatten() {
        remove_tree(&entry.path().join("root/var/lib/docker"))?;
        remove_tree(&entry.path().join("overlay-work"))?;
    }
    for part in ["bin", "images", "universe"] {
        remove_tree(&dir.join(part))?;
    }
    for file in ["outer.json", "init.json", "ready"] {
        remove_file(&dir.join(file))?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("removing", path)(error)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("removing", path)(error)),
        _ => Ok(()),
    }
}

fn retry(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 0..50 {
        if attempt().is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    attempt()
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a pid fits"))
}

/// Passes the lines of the lab's log on to standard error.
struct Progress {
    log: PathBuf,
    file: Option<File>,
    seen: String,
}

impl Progress {
    fn new(dir: &Path) -> Self {
        Self { log: dir.join("logs/lab.log"), file: None, seen: String::new() }
    }

    fn show(&mut self) {
        if self.file.is_none() {
            self.file = File::open(&self.log).ok();
        }
        let mut new = String::new();
        if let Some(file) = &mut self.file
            && file.read_to_string(&mut new).is_ok()
        {
            // A closed terminal must not end the lab.
            let _ = std::io::stderr().write_all(new.as_bytes());
            self.seen.push_str(&new);
        }
    }

    /// The last thing that was said, as an error.
    fn failure(&self) -> Error {
        let said = self.seen.lines().last().unwrap_or("it said nothing");
        Error::Refused(format!("the lab ended: {}", said.trim_start_matches("lab: ")))
    }
}
