//! A lab in the hands of a test. Everything blocks; nothing needs a runtime.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use serde_json::{Value, json};

use crate::{
    Error, Result, enter,
    host::AgentRole,
    journal::Exchange,
    process::{run, spawn_error},
    server::{Faults, NEWEST, Security},
};

/// What kind of lab a test wants.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Absent: a directory of its own for this process.
    pub dir: Option<PathBuf>,
    /// Number of private agents.
    pub agents: u8,
    /// Number of public agents.
    pub public: u8,
    /// Image archives that every machine loads at start.
    pub images: Vec<PathBuf>,
    /// Folder made by `ci/package`.
    pub package: Option<PathBuf>,
    /// Whether public agents run Marathon-LB from the start.
    pub marathon_lb: bool,
    /// Version of DC/OS; `Pose::of` knows which there are.
    pub dcos: String,
    /// Open or Enterprise.
    pub security: Security,
    /// Keep logs, journal and disks at the end.
    pub keep: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            dir: None,
            agents: 3,
            public: 1,
            images: Vec::new(),
            package: None,
            marathon_lb: true,
            dcos: NEWEST.to_owned(),
            security: Security::Open,
            keep: false,
        }
    }
}

/// What a command on a machine said.
#[derive(Debug, Clone)]
pub struct ExecOutput {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A running lab; its end is that of this value, or of the process.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    program: PathBuf,
}

/// Where the lab's control listens, as seen from the master.
pub(crate) const CONTROL: &str = "http://192.168.1.69:7070";

impl Lab {
    /// Starts a lab and waits until machines and servers answer. The program is `LAB_BIN`, or the `lab` that cargo built beside the test.
    ///
    /// # Errors
    /// A plain sentence about what is missing.
    pub fn start(options: LabOptions) -> Result<Self> {
        let own = std::process::id();
        let dir = options.dir.unwrap_or_else(|| PathBuf::from(format!("/var/tmp/private-registry-lab-{own}")));
        let program = program()?;
        let mut up = Command::new(&program);
        up.args(["up", "--detach", "--owner-pid", &own.to_string(), "--dir"]).arg(&dir);
        up.args(["--agents", &options.agents.to_string(), "--public", &options.public.to_string()]);
        for image in &options.images {
            up.arg("--image-tar").arg(image);
        }
        if let Some(package) = &options.package {
            up.arg("--package").arg(package);
        }
        if !options.marathon_lb {
            up.arg("--no-marathon-lb");
        }
        up.args(["--dcos", &options.dcos, "--security", options.security.word()]);
        if options.keep {
            up.arg("--keep");
        }
        let output = up.stdin(Stdio::null()).output().map_err(|source| spawn_error("lab", source))?;
        if output.status.success() {
            return Ok(Self { dir, program });
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::Refused(said.lines().last().unwrap_or("lab up failed").trim_start_matches("lab: ").to_owned()))
    }

    /// The lab's directory: `agents/<ip>/root` is an agent's disk, `logs` has the logs.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Runs a command on `master`, `outside` or an agent.
    ///
    /// # Errors
    /// The machine is not up. A command that fails is no error.
    pub fn exec(&self, machine: &str, argv: &[&str]) -> Result<ExecOutput> {
        let output = enter::output(&self.dir, machine, argv)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(ExecOutput { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// A request from the master: status and body of the answer.
    ///
    /// # Errors
    /// No answer came.
    pub fn http(&self, method: &str, url: &str, body: Option<&Value>) -> Result<(u16, String)> {
        request(&self.dir, method, url, body)
    }

    /// Adds an agent and returns its address once its dockerd answers.
    ///
    /// # Errors
    /// It did not come up.
    pub fn add_agent(&self, role: AgentRole) -> Result<String> {
        let answer = self.control("POST", "/agents", Some(&json!({ "role": role })))?;
        let address = answer["ip"].as_str().ok_or_else(|| Error::Refused(format!("the lab's control answered {answer}")))?;
        Ok(address.to_owned())
    }

    /// An agent leaves in good order.
    ///
    /// # Errors
    /// No such agent.
    pub fn leave(&self, agent: &str) -> Result<()> {
        self.control("POST", &format!("/agents/{agent}/leave"), None).map(drop)
    }

    /// An agent dies; Mesos notices after a delay.
    ///
    /// # Errors
    /// No such agent.
    pub fn die(&self, agent: &str) -> Result<()> {
        self.control("POST", &format!("/agents/{agent}/die"), None).map(drop)
    }

    /// A dead agent comes back, with its disk or an empty one.
    ///
    /// # Errors
    /// No such agent, or it is not dead.
    pub fn revive(&self, agent: &str, fresh_disk: bool) -> Result<()> {
        self.control("POST", &format!("/agents/{agent}/revive?fresh={fresh_disk}"), None).map(drop)
    }

    /// Leaves no room for further tasks on an agent.
    ///
    /// # Errors
    /// No such agent.
    pub fn fill(&self, agent: &str) -> Result<()> {
        self.control("POST", &format!("/agents/{agent}/fill"), None).map(drop)
    }

    /// Takes [`Lab::fill`] back.
    ///
    /// # Errors
    /// No such agent.
    pub fn empty(&self, agent: &str) -> Result<()> {
        self.control("POST", &format!("/agents/{agent}/empty"), None).map(drop)
    }

    /// Adds a private agent with a disk of its own of that size, which can fill up.
    ///
    /// # Errors
    /// It did not come up.
    pub fn add_agent_with_disk(&self, mib: u32) -> Result<String> {
        let answer = self.control("POST", "/agents", Some(&json!({ "role": AgentRole::Private, "disk_mib": mib })))?;
        let address = answer["ip"].as_str().ok_or_else(|| Error::Refused(format!("the lab's control answered {answer}")))?;
        Ok(address.to_owned())
    }

    /// Puts these faults in force, and ends all others.
    ///
    /// # Errors
    /// The control does not answer.
    pub fn set_faults(&self, faults: &Faults) -> Result<()> {
        set_faults(&self.dir, faults)
    }

    /// Another Mesos master takes over; the agents come back to it one after the other, the last after so many seconds.
    ///
    /// # Errors
    /// The control does not answer.
    pub fn fail_over(&self, seconds: u32) -> Result<()> {
        self.control("POST", &format!("/mesos/fail-over?seconds={seconds}"), None).map(drop)
    }

    /// All that the servers were asked and answered so far.
    ///
    /// # Errors
    /// The control does not answer.
    pub fn journal(&self) -> Result<Vec<Exchange>> {
        let answer = self.control("GET", "/journal", None)?;
        serde_json::from_value(answer).map_err(|error| Error::Refused(format!("the journal: {error}")))
    }

    /// Ends the server process and waits until its successor answers.
    ///
    /// # Errors
    /// None came up.
    pub fn restart_server(&self) -> Result<()> {
        restart_server(&self.dir)
    }

    /// A request to the lab's control API (routes: `server/control.rs`); the JSON of its answer, null when empty.
    ///
    /// # Errors
    /// It refused, with its words.
    pub fn control(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        control(&self.dir, method, path, body)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = run(&self.program.to_string_lossy(), [Path::new("down"), Path::new("--dir"), &self.dir]) {
            eprintln!("lab: {error}");
        }
    }
}

/// See [`Lab::control`]; for the lab in this directory.
///
/// # Errors
/// It refused, with its words.
pub fn control(dir: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let (status, text) = request(dir, method, &format!("{CONTROL}{path}"), body)?;
    let answer = serde_json::from_str(&text).unwrap_or(Value::Null);
    if status < 300 {
        return Ok(answer);
    }
    Err(Error::Refused(answer["message"].as_str().unwrap_or(&text).to_owned()))
}

/// See [`Lab::set_faults`]; for the lab in this directory.
///
/// # Errors
/// The control does not answer.
pub fn set_faults(dir: &Path, faults: &Faults) -> Result<()> {
    let faults = serde_json::to_value(faults).map_err(|error| Error::Refused(error.to_string()))?;
    control(dir, "POST", "/faults", Some(&faults))?;
    // The next round of the server, a tenth of a second later at most, puts them in force on the machines.
    std::thread::sleep(std::time::Duration::from_millis(500));
    Ok(())
}

/// See [`Lab::restart_server`]; for the lab in this directory.
///
/// # Errors
/// None came up.
pub fn restart_server(dir: &Path) -> Result<()> {
    control(dir, "POST", "/restart", None)?;
    // The old process answers for a moment more; a restart takes some tenths of a second.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let answers = || control(dir, "GET", "/agents", None).is_ok();
    if crate::host::wait_until(std::time::Duration::from_secs(20), answers) {
        return Ok(());
    }
    Err(Error::Timeout("the server did not come back; logs/server.log says why".to_owned()))
}

fn request(dir: &Path, method: &str, url: &str, body: Option<&Value>) -> Result<(u16, String)> {
    let mut argv = vec!["curl", "--silent", "--show-error", "--max-time", "150", "--write-out", "\n%{http_code}", "--request", method, url];
    let body = body.map(Value::to_string);
    if let Some(body) = &body {
        argv.extend(["--header", "Content-Type: application/json", "--data-binary", body]);
    }
    let output = enter::output(dir, "master", &argv)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Command { command: format!("{method} {url}"), stderr });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
    let status = status.parse().map_err(|_| Error::Refused(format!("{url} answered without a status")))?;
    Ok((status, body.to_owned()))
}

fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("LAB_BIN") {
        return Ok(program.into());
    }
    let own = std::env::current_exe().map_err(Error::io("finding", Path::new("/proc/self/exe")))?;
    // Test executables lie in `deps`, programs one up.
    let candidates = own.ancestors().skip(1).take(2).map(|dir| dir.join("lab"));
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Refused("the lab is not built: run cargo build -p lab".to_owned()))
}
