//! Runs one task on its agent: fetches, starts, checks, kills, and keeps `status.json` current.
//!
//! It runs inside the agent's namespaces, as the Mesos executor does, and ends when the task has ended and nothing of it is left.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::{
        ffi::OsStringExt,
        fs::{OpenOptionsExt, PermissionsExt, lchown},
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command as Program, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    Error, Result,
    host::secrets_file,
    process::{ProcessId, spawn_error, write_atomically},
    task::{Artifact, Command, Docker, HealthCheck, HealthKind, KillOrder, Secrets, TaskSpec, TaskState, TaskStatus},
    ucr,
};

/// How often the executor looks for a kill order and at its task.
const TICK: Duration = Duration::from_millis(50);

/// The sandbox inside a container with an image.
pub(crate) const SANDBOX_IN_CONTAINER: &str = "/mnt/mesos/sandbox";

/// Runs the task described by `task.json` in the sandbox until it has ended.
///
/// # Errors
/// The sandbox cannot be read or written. A task that fails is no error: `status.json` says it.
pub fn run(sandbox: &Path) -> Result<()> {
    let spec = fs::read(sandbox.join("task.json")).map_err(Error::io("reading task.json in", sandbox))?;
    let spec: TaskSpec = serde_json::from_slice(&spec).map_err(|error| Error::Refused(format!("task.json: {error}")))?;
    let own = ProcessId::of_self_in_proc_on_stdin()
        .or_else(|| ProcessId::of(std::process::id()))
        .ok_or_else(|| Error::Refused("the executor cannot find itself in /proc".to_owned()))?;
    // Orphans of the task become children of the executor, so that it can end them all, as Mesos does by control group.
    prctl::set_child_subreaper(true)?;
    let secrets = take_secrets(sandbox)?;
    let mut executor = Executor { sandbox, spec, secrets, status: first_status(own) };
    executor.write_status()?;
    let end = executor.run_task();
    let (state, message) = match end {
        Ok(end) => end,
        Err(error) => (TaskState::Failed, Some(error.to_string())),
    };
    end_orphans();
    executor.remove_secret_files();
    executor.enter(state, message)
}

/// Reads what the server handed over for this sandbox, and takes it away.
fn take_secrets(sandbox: &Path) -> Result<Secrets> {
    let path = Path::new("/").join(secrets_file(sandbox));
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Secrets::default()),
        Err(error) => return Err(Error::io("reading", &path)(error)),
    };
    fs::remove_file(&path).map_err(Error::io("removing", &path))?;
    serde_json::from_slice(&text).map_err(|error| Error::Refused(format!("secrets: {error}")))
}

fn first_status(own: ProcessId) -> TaskStatus {
    TaskStatus {
        state: TaskState::Staging,
        healthy: None,
        consecutive_failures: 0,
        message: None,
        since: unix_time(),
        started: None,
        executor_pid: own.pid,
        executor_start: own.start,
    }
}

struct Executor<'a> {
    sandbox: &'a Path,
    spec: TaskSpec,
    secrets: Secrets,
    status: TaskStatus,
}

/// How a task ended.
type End = (TaskState, Option<String>);

impl Executor<'_> {
    fn run_task(&mut self) -> Result<End> {
        let name = &self.spec.user;
        let Some(user) = User::of(name)? else {
            return Ok((TaskState::Failed, Some(format!("Failed to change ownership of the sandbox: no such user '{name}'"))));
        };
        for artifact in &self.spec.artifacts {
            if let Some(end) = self.fetch(artifact)? {
                return Ok(end);
            }
        }
        let image = self.spec.docker.as_ref().map(|docker| (docker.image.clone(), docker.force_pull));
        if let Some((image, force)) = image
            && let Some(end) = self.provide_image(&image, force)?
        {
            return Ok(end);
        }
        let root = match self.spec.image.as_ref().map(|image| ucr::provide(image, self.secrets.pull_config.as_deref(), self.sandbox)) {
            Some(Err(why)) => return Ok((TaskState::Failed, Some(format!("Failed to launch container: {why}")))),
            provided => provided.and_then(std::result::Result::ok),
        };
        self.enter(TaskState::Starting, None)?;
        for name in ["stdout", "stderr"] {
            self.output(name)?;
        }
        self.write_secret_files()?;
        give(self.sandbox, &user)?;
        match self.spec.docker.clone() {
            None => self.run_process(&user, root.as_deref()),
            Some(docker) => self.run_container(&docker),
        }
    }

    /// Fetches one artifact; an end when it cannot be had or a kill came first.
    fn fetch(&self, artifact: &Artifact) -> Result<Option<End>> {
        let target = self.sandbox.join(file_name(artifact)?);
        let mut curl = Program::new("curl");
        // DC/OS's fetcher trusts what lies in the agent's store, so this does too.
        curl.args(["--fail", "--silent", "--show-error", "--location", "--capath", "/var/lib/dcos/pki/tls/certs", "--output"]);
        curl.arg(&target).arg(&artifact.uri);
        if let Some(end) = self.run_to_end(curl, &format!("Failed to fetch {}", artifact.uri))? {
            return Ok(Some(end));
        }
        if artifact.executable {
            fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).map_err(Error::io("making executable", &target))?;
        }
        if artifact.extract && [".tar", ".tar.gz", ".tgz"].iter().any(|end| target.to_string_lossy().ends_with(end)) {
            let mut tar = Program::new("tar");
            tar.arg("-C").arg(self.sandbox).arg("-xf").arg(&target);
            return self.run_to_end(tar, &format!("Failed to extract {}", artifact.uri));
        }
        Ok(None)
    }

    fn provide_image(&self, image: &str, force: bool) -> Result<Option<End>> {
        if !force && docker(&["image", "inspect", image]).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
            return Ok(None);
        }
        // As Mesos does it: whatever `.docker/config.json` the fetcher has put into the sandbox is what docker logs in with.
        let mut pull = docker(&["pull", image]);
        pull.env("HOME", self.sandbox);
        self.run_to_end(pull, &format!("Failed to pull image {image}"))
    }

    /// Runs a helper of the preparation; an end when it fails or a kill comes first. What it says goes to the task's stderr.
    fn run_to_end(&self, mut program: Program, what: &str) -> Result<Option<End>> {
        let name = program.get_program().to_string_lossy().into_owned();
        let mut child = program
            .stdin(Stdio::null())
            .stdout(self.output("stdout")?)
            .stderr(self.output("stderr")?)
            .spawn()
            .map_err(|e| spawn_error(&name, e))?;
        loop {
            if let Some(status) = child.try_wait().map_err(|source| spawn_error(&name, source))? {
                return Ok((!status.success()).then(|| (TaskState::Failed, Some(format!("{what}: {name} {}", describe(status))))));
            }
            if self.kill_order().is_some() {
                // Already gone is as good.
                let _ = child.kill();
                let _ = child.wait();
                return Ok(Some((TaskState::Killed, Some("Killed before it was started".to_owned()))));
            }
            thread::sleep(TICK);
        }
    }

    /// Secrets that are files, readable for their owner only.
    fn write_secret_files(&self) -> Result<()> {
        for (name, content) in &self.secrets.files {
            let path = secret_path(self.sandbox, name)?;
            let write = || {
                fs::create_dir_all(path.parent().unwrap_or(self.sandbox))?;
                // Never into something that was fetched under that name, such as a link.
                File::options().write(true).create_new(true).mode(0o600).open(&path)?.write_all(content)
            };
            write().map_err(Error::io("writing the secret", &path))?;
        }
        Ok(())
    }

    /// As with Mesos, which mounts them, they are gone with the task.
    fn remove_secret_files(&self) {
        for path in self.secrets.files.keys().filter_map(|name| secret_path(self.sandbox, name).ok()) {
            // The task may have removed it.
            let _ = fs::remove_file(path);
        }
    }

    fn env(&self) -> impl Iterator<Item = (&String, OsString)> {
        let plain = self.spec.env.iter().map(|(name, value)| (name, OsString::from(value)));
        plain.chain(self.secrets.env.iter().map(|(name, value)| (name, OsString::from_vec(value.clone()))))
    }

    /// With `root`, in an image's file system, with the sandbox mounted into it.
    fn run_process(&mut self, user: &User, root: Option<&Path>) -> Result<End> {
        let argv = match &self.spec.command {
            Some(Command::Shell(line)) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
            Some(Command::Argv(argv)) if !argv.is_empty() => argv.clone(),
            _ => return Ok((TaskState::Failed, Some("The task has no command".to_owned()))),
        };
        // A session of its own, whose number is the pid: the group takes the signals.
        let mut program = Program::new("setsid");
        let sandbox = if let Some(root) = root {
            // The mount is the task's own and ends with it; so the change of user has to come after it.
            let owner = format!("{}:{}", user.uid, user.gid);
            let enter = format!(
                "mount --bind \"$1\" \"$2{SANDBOX_IN_CONTAINER}\" && root=$2 && shift 2 && exec /usr/sbin/chroot --userspec={owner} \"$root\" \"$@\""
            );
            program.args(["unshare", "--mount", "sh", "-c", &enter, "sh"]).arg(self.sandbox).arg(root);
            Path::new(SANDBOX_IN_CONTAINER)
        } else {
            program.uid(user.uid).gid(user.gid);
            self.sandbox
        };
        program.args(argv).current_dir(self.sandbox).env_clear().env("PATH", "/usr/bin:/bin").env("MESOS_SANDBOX", sandbox);
        program.envs(self.env()).stdin(Stdio::null()).stdout(self.output("stdout")?).stderr(self.output("stderr")?);
        let mut child = program.spawn().map_err(|source| spawn_error("setsid", source))?;
        self.enter(TaskState::Running, None)?;
        let group = Pid::from_raw(i32::try_from(child.id()).expect("a pid fits"));
        self.supervise(
            &mut child,
            &|order| {
                let signal = if order.abrupt { Signal::SIGKILL } else { Signal::SIGTERM };
                // Already gone is as good.
                let _ = killpg(group, signal);
            },
            &|| {
                let _ = killpg(group, Signal::SIGKILL);
            },
        )
    }

    fn run_container(&mut self, container: &Docker) -> Result<End> {
        let name = container_name(&self.spec.id);
        let mut program = self.docker_run(container, &name);
        program.stdin(Stdio::null()).stdout(self.output("stdout")?).stderr(self.output("stderr")?);
        let mut child = program.spawn().map_err(|source| spawn_error("docker", source))?;
        let mut killed_early = false;
        while !is_running(&name) && child.try_wait().map_err(|source| spawn_error("docker", source))?.is_none() {
            if self.kill_order().is_some() {
                killed_early = true;
                let _ = child.kill();
                break;
            }
            thread::sleep(TICK);
        }
        if !killed_early {
            self.enter(TaskState::Running, None)?;
        }
        let end = self.supervise(
            &mut child,
            &|order| {
                let (grace, abrupt) = (order.grace_seconds.to_string(), order.abrupt);
                let stop = if abrupt { vec!["kill", &name] } else { vec!["stop", "-t", &grace, &name] };
                // Not waited for: the attached `docker run` ends when the container does.
                let _ = docker(&stop).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            },
            &|| {
                let _ = docker(&["kill", &name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            },
        );
        // A container that was never made is as good as removed.
        let _ = docker(&["rm", "--force", "--volumes", &name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        end
    }

    fn docker_run(&self, container: &Docker, name: &str) -> Program {
        let mut run = docker(&["run", "--name", name, "--network", if container.bridge { "bridge" } else { "host" }]);
        if container.privileged {
            run.arg("--privileged");
        }
        if container.bridge {
            for mapping in &container.port_mappings {
                run.args(["-p", &format!("{}:{}/{}", mapping.host_port, mapping.container_port, mapping.protocol)]);
            }
        }
        for volume in &container.volumes {
            let mode = if volume.read_only { "ro" } else { "rw" };
            run.args(["-v", &format!("{}:{}:{mode}", volume.host_path, volume.container_path)]);
        }
        run.args(["-v", &format!("{}:{SANDBOX_IN_CONTAINER}:rw", self.sandbox.display())]);
        run.args(["-e", &format!("MESOS_SANDBOX={SANDBOX_IN_CONTAINER}"), "-e", &format!("MESOS_CONTAINER_NAME={name}")]);
        for (key, value) in self.env() {
            if key == "PATH" || key == "HOME" || key.starts_with("DOCKER_") {
                run.args(["-e", &format!("{key}={}", value.display())]);
            } else {
                // The client takes the value out of its own environment: it stays out of the argument vector, which everyone may read.
                run.args(["-e", key]).env(key, value);
            }
        }
        for (key, value) in &container.parameters {
            run.arg(format!("--{key}={value}"));
        }
        // As Mesos does (src/docker/docker.cpp, MESOS-1770): a shell line is run by the shell, and not by the image's entrypoint.
        if let Some(Command::Shell(_)) = &self.spec.command {
            run.args(["--entrypoint", "/bin/sh"]);
        }
        run.arg(&container.image);
        match &self.spec.command {
            None => {}
            Some(Command::Shell(line)) => {
                run.args(["-c", line]);
            }
            Some(Command::Argv(argv)) => {
                run.args(argv);
            }
        }
        run
    }

    /// Waits for the end, checks health, obeys a kill order. `stop` begins the end, `finish` forces it.
    fn supervise(&mut self, child: &mut Child, stop: &dyn Fn(&KillOrder), finish: &dyn Fn()) -> Result<End> {
        let place = match &self.spec.docker {
            Some(_) => CheckPlace::Container(container_name(&self.spec.id)),
            None => CheckPlace::Process(User::of(&self.spec.user)?),
        };
        let checks = self.spec.health.clone().map(|check| start_checks(check, place));
        let mut health = Health::default();
        let mut killing: Option<Killing> = None;
        loop {
            if let Some(status) = child.try_wait().map_err(|source| spawn_error("the task", source))? {
                return Ok(match killing {
                    Some(killing) => (TaskState::Killed, Some(killing.reason)),
                    None if status.success() => (TaskState::Finished, Some("Command exited with status 0".to_owned())),
                    None => (TaskState::Failed, Some(format!("Command {}", describe(status)))),
                });
            }
            if let Some(killing) = &mut killing {
                if !killing.forced && Instant::now() >= killing.force_at {
                    killing.forced = true;
                    finish();
                }
            } else if let Some((order, reason)) = self.order_to_end(&health) {
                self.enter(TaskState::Killing, None)?;
                stop(&order);
                killing =
                    Some(Killing { reason, force_at: Instant::now() + Duration::from_secs(order.grace_seconds), forced: order.abrupt });
            }
            let result = checks.as_ref().and_then(|checks| checks.try_recv().ok());
            if let (Some(passed), Some(check), None) = (result, &self.spec.health, &killing) {
                health.take(passed, check, self.status.started.map_or(0.0, |started| unix_time() - started));
                self.set_health(&health)?;
            }
            thread::sleep(TICK);
        }
    }

    fn order_to_end(&self, health: &Health) -> Option<(KillOrder, String)> {
        if let Some(order) = self.kill_order() {
            return Some((order, "Command terminated with signal Terminated".to_owned()));
        }
        let limit = self.spec.health.as_ref()?.max_consecutive_failures;
        let unhealthy = limit > 0 && health.failures >= limit;
        unhealthy.then(|| (KillOrder { grace_seconds: self.spec.grace_seconds, abrupt: false }, "Killed: health check failed".to_owned()))
    }

    fn kill_order(&self) -> Option<KillOrder> {
        serde_json::from_slice(&fs::read(self.sandbox.join("kill.json")).ok()?).ok()
    }

    fn set_health(&mut self, health: &Health) -> Result<()> {
        if self.status.healthy == health.healthy && self.status.consecutive_failures == health.failures {
            return Ok(());
        }
        self.status.healthy = health.healthy;
        self.status.consecutive_failures = health.failures;
        self.write_status()
    }

    fn enter(&mut self, state: TaskState, message: Option<String>) -> Result<()> {
        self.status.state = state;
        self.status.message = message;
        self.status.since = unix_time();
        if state == TaskState::Running {
            self.status.started = Some(self.status.since);
        }
        self.write_status()
    }

    fn write_status(&self) -> Result<()> {
        let status = serde_json::to_vec(&self.status).map_err(|error| Error::Refused(error.to_string()))?;
        write_atomically(&self.sandbox.join("status.json"), &status)
    }

    fn output(&self, name: &str) -> Result<File> {
        let path = self.sandbox.join(name);
        File::options().create(true).append(true).open(&path).map_err(Error::io("opening", &path))
    }
}

struct Killing {
    reason: String,
    force_at: Instant,
    forced: bool,
}

/// What the checks have shown so far.
#[derive(Debug, Default)]
struct Health {
    healthy: Option<bool>,
    failures: u32,
    /// The grace period ends with the first success, as in Mesos.
    succeeded: bool,
}

impl Health {
    fn take(&mut self, passed: bool, check: &HealthCheck, age_seconds: f64) {
        if passed {
            *self = Self { healthy: Some(true), failures: 0, succeeded: true };
        } else if self.succeeded || age_seconds > check.grace_seconds {
            self.healthy = Some(false);
            self.failures += 1;
        }
    }
}

/// Where a check that is a command runs.
enum CheckPlace {
    /// In the container of that name.
    Container(String),
    /// Beside the task, as its user.
    Process(Option<User>),
}

/// Makes the checks on a thread of their own, so that a slow one does not hold up a kill. It ends with the process.
fn start_checks(check: HealthCheck, place: CheckPlace) -> Receiver<bool> {
    let (results, receiver) = mpsc::channel();
    thread::spawn(move || {
        thread::sleep(seconds(check.delay_seconds));
        while results.send(passes(&check, &place)).is_ok() {
            thread::sleep(seconds(check.interval_seconds));
        }
    });
    receiver
}

fn passes(check: &HealthCheck, place: &CheckPlace) -> bool {
    let timeout = seconds(check.timeout_seconds);
    match &check.kind {
        HealthKind::Tcp { port } => TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, *port)), timeout).is_ok(),
        HealthKind::Http { port, path, tls } => {
            let scheme = if *tls { "https" } else { "http" };
            // As Mesos does it, by curl; anything from 400 on fails.
            quiet(
                Program::new("curl")
                    .args(["-f", "-s", "-L", "-k", "-g", "--max-time", &timeout.as_secs_f64().to_string(), "-o", "/dev/null"])
                    .arg(format!("{scheme}://127.0.0.1:{port}{path}")),
            )
        }
        HealthKind::Command(line) => {
            let mut limited = Program::new("timeout");
            limited.args(["-s", "KILL", &timeout.as_secs_f64().to_string()]);
            match place {
                CheckPlace::Container(name) => limited.args(["docker", "exec", name]),
                CheckPlace::Process(Some(user)) => limited.uid(user.uid).gid(user.gid),
                CheckPlace::Process(None) => &mut limited,
            };
            quiet(limited.args(["/bin/sh", "-c", line]))
        }
    }
}

fn quiet(program: &mut Program) -> bool {
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A duration out of a definition; nonsense such as a negative one counts as none.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

fn docker(arguments: &[&str]) -> Program {
    let mut program = Program::new("docker");
    program.args(arguments);
    program
}

fn is_running(container: &str) -> bool {
    let inspect = docker(&["inspect", "--format", "{{.State.Running}}", container]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    inspect.is_ok_and(|output| output.stdout.starts_with(b"true"))
}

/// As Mesos names them, but by task: docker allows letters, digits, `_`, `.` and `-`.
fn container_name(task: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    format!("mesos-{}", task.replace(|c| !allowed(c), "_"))
}

/// The name under which an artifact lies in the sandbox.
fn file_name(artifact: &Artifact) -> Result<PathBuf> {
    let path = artifact.uri.split(['?', '#']).next().unwrap_or_default();
    let name = artifact.dest.as_deref().unwrap_or_else(|| path.rsplit('/').next().unwrap_or_default());
    let plain = !name.is_empty() && Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if plain { Ok(PathBuf::from(name)) } else { Err(Error::Refused(format!("artifact {} has no file name", artifact.uri))) }
}

/// A Linux user of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// The C library's own search would load modules, which a program that is linked statically cannot.
    fn of(name: &str) -> Result<Option<Self>> {
        let path = Path::new("/etc/passwd");
        Ok(Self::find(&fs::read_to_string(path).map_err(Error::io("reading", path))?, name))
    }

    fn find(passwd: &str, name: &str) -> Option<Self> {
        let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let entry = entries.find(|entry| entry.first() == Some(&name))?;
        Some(Self { uid: entry.get(2)?.parse().ok()?, gid: entry.get(3)?.parse().ok()? })
    }
}

/// Where a secret lies in the sandbox.
fn secret_path(sandbox: &Path, name: &str) -> Result<PathBuf> {
    let inside = !name.is_empty() && Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if inside { Ok(sandbox.join(name)) } else { Err(Error::Refused(format!("the path '{name}' of a secret does not lie in the sandbox"))) }
}

/// Makes a folder and all in it the user's.
fn give(path: &Path, user: &User) -> Result<()> {
    lchown(path, Some(user.uid), Some(user.gid)).map_err(Error::io("changing the owner of", path))?;
    if path.is_symlink() || !path.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(Error::io("reading", path))? {
        give(&entry.map_err(Error::io("reading", path))?.path(), user)?;
    }
    Ok(())
}

/// In Mesos' words.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(Ok(signal))) => format!("terminated with signal {signal}"),
        (None, _) => "ended".to_owned(),
    }
}

/// Ends what the task left behind. The executor is their reaper, so they are its children.
fn end_orphans() {
    loop {
        for child in children() {
            // Already gone is as good.
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) | Err(_) => thread::sleep(Duration::from_millis(5)),
            Ok(_) => {}
        }
    }
}

fn children() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split_ascii_whitespace().nth(1) == Some(&own))
    })
    .map(Pid::from_raw)
    .collect()
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(grace_seconds: f64) -> HealthCheck {
        HealthCheck {
            kind: HealthKind::Tcp { port: 1 },
            delay_seconds: 0.0,
            grace_seconds,
            interval_seconds: 1.0,
            timeout_seconds: 1.0,
            max_consecutive_failures: 3,
        }
    }

    #[test]
    fn a_failure_in_the_grace_period_does_not_count_unless_a_success_came_first() {
        let mut health = Health::default();
        health.take(false, &check(10.0), 1.0);
        assert_eq!((health.healthy, health.failures), (None, 0));
        health.take(true, &check(10.0), 2.0);
        health.take(false, &check(10.0), 3.0);
        assert_eq!((health.healthy, health.failures), (Some(false), 1));
    }

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533::/:/bin/false\nbroken\n";
        assert_eq!(User::find(passwd, "nobody"), Some(User { uid: 65534, gid: 65533 }));
        assert_eq!((User::find(passwd, "body"), User::find(passwd, "broken")), (None, None));
    }

    #[test]
    fn a_secret_that_is_a_file_lies_in_the_sandbox_and_nowhere_else() {
        let sandbox = Path::new("/s");
        assert_eq!(secret_path(sandbox, "a/b").unwrap(), Path::new("/s/a/b"));
        assert!(["", "/etc/x", "../x", "a/../../x"].iter().all(|name| secret_path(sandbox, name).is_err()));
    }

    #[test]
    fn an_artifact_lies_under_the_last_segment_of_its_uri_and_never_outside_the_sandbox() {
        let artifact = |uri: &str, dest: Option<&str>| Artifact {
            uri: uri.to_owned(),
            extract: false,
            executable: false,
            dest: dest.map(str::to_owned),
        };
        assert_eq!(file_name(&artifact("http://m/a/b.bin?x=/y", None)).unwrap(), Path::new("b.bin"));
        assert!(file_name(&artifact("http://m/a", Some("../b"))).is_err());
        assert!(file_name(&artifact("http://m/", None)).is_err());
    }
}
