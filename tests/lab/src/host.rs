//! The machines of the lab, as the server sees them: it starts and ends agents and launches tasks on them.
//!
//! All functions block; the server calls them from a blocking task. They must run in the lab's own namespaces (pid 1's).

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, cgroups,
    process::{ProcessId, run, run_with_input, spawn_error, write_atomically},
    server::cluster_ca,
    task::{Secrets, TaskStatus},
};

/// The machine on which the servers run and where the operator sits.
pub const MASTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 69);
/// A machine that is no part of the cluster: no VIPs, no names, its own dockerd.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 200);

/// What a machine gets for `PATH` when something is run on it by hand or by an executor.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether an agent is reachable from outside the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentRole {
    /// Resources of role `*`.
    Private,
    /// Resources of role `slave_public`, attribute `public_ip:true`.
    Public,
}

/// An agent that has joined and has not left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AgentHandle {
    /// Its address, which is also its host name in Mesos.
    pub ip: Ipv4Addr,
    /// Private or public.
    pub role: AgentRole,
    /// Whether its processes run.
    pub alive: bool,
}

/// `agent.json`: marks a machine that has joined.
#[derive(Debug, Serialize, Deserialize)]
struct Joined {
    /// Absent for the machine outside.
    role: Option<AgentRole>,
    /// Size of its own disk, where it has one.
    #[serde(default)]
    disk_mib: Option<u32>,
}

/// Access to the machines of one lab.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The lab's directory.
    pub lab_dir: PathBuf,
}

impl Machine {
    /// Access to the lab in this directory.
    pub fn new(lab_dir: &Path) -> Self {
        Self { lab_dir: lab_dir.to_owned() }
    }

    /// Starts a new agent with an empty disk, of its own if a size is given, and waits until its dockerd answers.
    ///
    /// # Errors
    /// The address is taken, or the machine did not come up (the error says what it logged).
    pub fn add_agent(&self, ip: Ipv4Addr, role: AgentRole, disk_mib: Option<u32>) -> Result<()> {
        if self.joined(ip).is_some() {
            return Err(Error::Refused(format!("there is an agent {ip} already")));
        }
        self.erase_disk(ip)?;
        self.mount_disk(ip, disk_mib)?;
        self.start(ip, &Joined { role: Some(role), disk_mib })
    }

    /// Starts the machine outside the cluster.
    ///
    /// # Errors
    /// As [`Machine::add_agent`].
    pub fn add_outside(&self) -> Result<()> {
        self.erase_disk(OUTSIDE)?;
        self.start(OUTSIDE, &Joined { role: None, disk_mib: None })
    }

    /// Shuts an agent down in good order (dockerd stops its containers) and forgets it. Its disk stays until the address is used again.
    ///
    /// # Errors
    /// No such agent, or it would not end.
    pub fn stop_agent(&self, ip: Ipv4Addr) -> Result<()> {
        let joined = self.agent_dir(ip).join("agent.json");
        if let Some(holder) = self.holder(ip) {
            signal(holder, Signal::SIGTERM)?;
            if !wait_until(SHUTDOWN, || !holder.alive()) {
                signal(holder, Signal::SIGKILL)?;
            }
            self.clear_up_after(ip, holder)?;
        }
        fs::remove_file(&joined).map_err(Error::io("removing", &joined))
    }

    /// The agent's power cable is pulled: every process on it gets SIGKILL at once, dockerd, containers and executors included.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_agent(&self, ip: Ipv4Addr) -> Result<()> {
        let holder = self.holder(ip).ok_or_else(|| Error::NoMachine(ip.to_string()))?;
        // The holder is pid 1 of the agent's pid namespace: the kernel kills all others with it.
        signal(holder, Signal::SIGKILL)?;
        self.clear_up_after(ip, holder)
    }

    /// Starts an agent again that was killed, with its old disk or an empty one.
    ///
    /// # Errors
    /// It runs, never joined, or does not come up.
    pub fn revive_agent(&self, ip: Ipv4Addr, fresh_disk: bool) -> Result<()> {
        if self.holder(ip).is_some() {
            return Err(Error::Refused(format!("agent {ip} is running")));
        }
        let joined = self.joined(ip).ok_or_else(|| Error::NoMachine(ip.to_string()))?;
        if fresh_disk {
            self.erase_disk(ip)?;
            self.mount_disk(ip, joined.disk_mib)?;
        }
        self.start(ip, &joined)
    }

    /// All agents that have joined and not left, by address.
    pub fn agents(&self) -> Vec<AgentHandle> {
        let Ok(entries) = fs::read_dir(self.lab_dir.join("agents")) else { return Vec::new() };
        let addresses = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<Ipv4Addr>().ok());
        let mut agents: Vec<AgentHandle> =
            addresses.filter_map(|ip| Some(AgentHandle { ip, role: self.joined(ip)?.role?, alive: self.holder(ip).is_some() })).collect();
        agents.sort_by_key(|agent| agent.ip);
        agents
    }

    /// The next address for a new agent of this role; none when they are used up.
    pub fn free_address(&self, role: AgentRole) -> Option<Ipv4Addr> {
        let candidates = match role {
            AgentRole::Private => 80..200,
            AgentRole::Public => 50..69,
        };
        candidates.map(|last| Ipv4Addr::new(192, 168, 1, last)).find(|ip| !self.agent_dir(*ip).exists())
    }

    /// Where the server puts the sandboxes of an agent; the agent sees the same directory as `/var/lib/mesos`.
    pub fn sandbox_root(&self, ip: Ipv4Addr) -> PathBuf {
        self.root(ip).join("var/lib/mesos")
    }

    /// Starts the executor of a task whose `task.json` lies in the sandbox. Returns at once; the executor outlives the server.
    ///
    /// # Errors
    /// The agent is down, or the sandbox is not below [`Machine::sandbox_root`].
    pub fn launch(&self, ip: Ipv4Addr, sandbox: &Path, secrets: &Secrets) -> Result<()> {
        let holder = self.holder(ip).ok_or_else(|| Error::NoMachine(ip.to_string()))?;
        let inside = sandbox
            .strip_prefix(self.root(ip))
            .map_err(|_| Error::Refused(format!("{} is not on the disk of agent {ip}", sandbox.display())))?;
        if !secrets.is_empty() {
            hand_over(secrets, holder, sandbox)?;
        }
        let log = self.log(&format!("executors-{ip}"))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &holder.pid.to_string()]).args(["--pid", "--mount", "--net", "--uts", "--ipc", "--"]);
        command.args(["setsid", "--fork", LAB_ON_AGENT, "executor"]).arg(Path::new("/").join(inside));
        command.env_clear().env("PATH", PATH).env("HOME", "/root");
        let status = command
            .stdin(outer_proc()?)
            .stdout(log.try_clone().map_err(Error::io("opening", sandbox))?)
            .stderr(log)
            .status()
            .map_err(|source| spawn_error("nsenter", source))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Command { command: format!("starting the executor in {}", sandbox.display()), stderr: status.to_string() })
    }

    /// Gives the cluster's CA certificate, once there is one, to the master and to those agents that do not have it yet.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn publish_ca(&self, agents: &[Ipv4Addr]) -> Result<()> {
        let from = cluster_ca(&self.lab_dir);
        if !from.exists() {
            return Ok(());
        }
        let of_agents = agents.iter().filter_map(|ip| self.holder(*ip)).map(view_of);
        for root in of_agents.chain([PathBuf::from("/")]) {
            let to = root.join(CA_BUNDLE);
            if to.exists() {
                continue;
            }
            let folder = to.parent().unwrap_or(&to);
            fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
            fs::copy(&from, &to).map_err(Error::io("writing", &to))?;
        }
        Ok(())
    }

    /// Whether the executor that wrote this status still runs.
    pub fn executor_alive(&self, status: &TaskStatus) -> bool {
        ProcessId { pid: status.executor_pid, start: status.executor_start }.alive()
    }

    /// The process that holds the machine's namespaces; none when the machine is down.
    pub fn holder(&self, ip: Ipv4Addr) -> Option<ProcessId> {
        self.holder_record(ip).filter(|holder| holder.alive())
    }

    /// As recorded by the machine itself at its last start: its pid in the lab's pid namespace.
    pub(crate) fn holder_record(&self, ip: Ipv4Addr) -> Option<ProcessId> {
        serde_json::from_slice(&fs::read(self.agent_dir(ip).join("holder.json")).ok()?).ok()
    }

    /// The machine's disk, as the server sees it: what lies there is what the machine has changed.
    pub fn root(&self, ip: Ipv4Addr) -> PathBuf {
        self.agent_dir(ip).join("root")
    }

    pub(crate) fn agent_dir(&self, ip: Ipv4Addr) -> PathBuf {
        self.lab_dir.join("agents").join(ip.to_string())
    }

    fn joined(&self, ip: Ipv4Addr) -> Option<Joined> {
        serde_json::from_slice(&fs::read(self.agent_dir(ip).join("agent.json")).ok()?).ok()
    }

    /// Gives a machine a disk that can fill up: memory, which is gone with the lab.
    fn mount_disk(&self, ip: Ipv4Addr, mib: Option<u32>) -> Result<()> {
        let Some(mib) = mib else { return Ok(()) };
        let root = self.root(ip);
        fs::create_dir_all(&root).map_err(Error::io("creating", &root))?;
        let size = format!("size={mib}m,mode=755");
        mount(Some("disk"), &root, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .map_err(|errno| Error::io("mounting a disk on", &root)(errno.into()))
    }

    fn erase_disk(&self, ip: Ipv4Addr) -> Result<()> {
        // Mostly none is mounted.
        let _ = umount2(&self.root(ip), MntFlags::MNT_DETACH);
        for part in ["root", "overlay-work", "ready", "holder.json"] {
            let path = self.agent_dir(ip).join(part);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("removing", &path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn start(&self, ip: Ipv4Addr, joined: &Joined) -> Result<()> {
        let dir = self.agent_dir(ip);
        fs::create_dir_all(&dir).map_err(Error::io("creating", &dir))?;
        for stale in ["ready", "holder.json"] {
            // Absent on a new machine.
            let _ = fs::remove_file(dir.join(stale));
        }
        let log = self.log(&format!("machine-{ip}"))?;
        self.spawn_holder(ip, joined.role, log)?;
        wait_until(SHUTDOWN, || self.holder_record(ip).is_some());
        let holder = self.holder(ip).ok_or_else(|| self.not_up(ip))?;
        connect(ip, holder)?;
        let ready = dir.join("ready");
        if !wait_until(START, || !holder.alive() || fs::read(&ready).is_ok_and(|said| said == b"ready")) || !holder.alive() {
            return Err(self.not_up(ip));
        }
        let joined = serde_json::to_vec(joined).map_err(|error| Error::Refused(error.to_string()))?;
        write_atomically(&dir.join("agent.json"), &joined)
    }

    fn spawn_holder(&self, ip: Ipv4Addr, role: Option<AgentRole>, log: File) -> Result<()> {
        let mut command = Command::new("setsid");
        command.args(["--fork", "unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--ipc"]);
        command.arg("--propagation").arg("private").arg(self.lab_dir.join("bin/lab")).arg("machine").arg("--dir").arg(&self.lab_dir);
        command.args(["--ip", &ip.to_string()]);
        command.args(match role {
            Some(AgentRole::Private) => vec!["--kind", "private"],
            Some(AgentRole::Public) => vec!["--kind", "public"],
            None => vec!["--kind", "outside"],
        });
        command.env_clear().env("PATH", PATH).env("HOME", "/root");
        let stderr = log.try_clone().map_err(Error::io("opening a log in", &self.lab_dir))?;
        let status = command.stdin(outer_proc()?).stdout(log).stderr(stderr).status().map_err(|source| spawn_error("setsid", source))?;
        if status.success() { Ok(()) } else { Err(self.not_up(ip)) }
    }

    fn not_up(&self, ip: Ipv4Addr) -> Error {
        let log = fs::read_to_string(self.lab_dir.join(format!("logs/machine-{ip}.log"))).unwrap_or_default();
        let said = log.lines().last().unwrap_or("it said nothing").to_owned();
        Error::Timeout(format!("machine {ip} did not come up: {said}"))
    }

    fn log(&self, name: &str) -> Result<File> {
        let path = self.lab_dir.join("logs").join(format!("{name}.log"));
        File::options().create(true).append(true).open(&path).map_err(Error::io("opening", &path))
    }

    /// Waits until the machine is dead, and removes what the kernel does not remove by itself.
    fn clear_up_after(&self, ip: Ipv4Addr, holder: ProcessId) -> Result<()> {
        if !wait_until(SHUTDOWN, || !holder.alive()) {
            return Err(Error::Timeout(format!("machine {ip} would not die")));
        }
        // The kernel takes a dead network namespace's links away only some time later; a revived machine needs the name now.
        let link = link_name(ip);
        if run("ip", ["link", "show", &link]).is_ok() {
            run("ip", ["link", "delete", &link]).or_else(|error| if link_exists(&link) { Err(error) } else { Ok(String::new()) })?;
        }
        cgroups::remove(&cgroups::of_machine(&self.lab_dir, ip))
    }
}

/// Where machines of the cluster have its CA certificate.
const CA_BUNDLE: &str = "run/dcos/pki/CA/ca-bundle.crt";

/// The file system as a machine sees it, with what lies only in its memory.
fn view_of(holder: ProcessId) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root", holder.pid))
}

/// Where an executor finds the secrets of its task: in the memory of the machine, so that they are never on a disk.
pub(crate) fn secrets_file(sandbox: &Path) -> PathBuf {
    let name = sandbox.file_name().unwrap_or_default().to_string_lossy();
    PathBuf::from(format!("run/lab/secrets-{name}"))
}

fn hand_over(secrets: &Secrets, holder: ProcessId, sandbox: &Path) -> Result<()> {
    let path = view_of(holder).join(secrets_file(sandbox));
    let text = serde_json::to_vec(secrets).map_err(|error| Error::Refused(error.to_string()))?;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(Error::io("creating", &path))?;
    file.write_all(&text).map_err(Error::io("writing", &path))
}

/// The lab's program as an agent sees it.
pub(crate) const LAB_ON_AGENT: &str = "/run/lab/lab";

/// How long a machine may take to come up, loading of images included.
const START: Duration = Duration::from_secs(120);
/// How long a machine may take to end.
const SHUTDOWN: Duration = Duration::from_secs(20);

/// The procfs of the lab's pid namespace, for a child's standard input: see [`ProcessId::of_self_in_proc_on_stdin`].
pub(crate) fn outer_proc() -> Result<Stdio> {
    Ok(File::open("/proc").map_err(Error::io("opening", Path::new("/proc")))?.into())
}

/// Connects a machine to the bridge and gives it its address.
///
/// The default route makes the addresses of VIPs routable at all, which they must be before DNAT sees a packet of a local process.
fn connect(ip: Ipv4Addr, holder: ProcessId) -> Result<()> {
    let (link, pid) = (link_name(ip), holder.pid.to_string());
    run_with_input(
        "ip",
        ["-batch", "-"],
        &format!("link add {link} type veth peer name eth0 netns {pid}\nlink set {link} master br0 up\n"),
    )?;
    let inside = format!("link set lo up\naddress add {ip}/24 dev eth0\nlink set eth0 up\nroute add default via {MASTER}\n");
    run_with_input("nsenter", ["--target", &pid, "--net", "--", "ip", "-batch", "-"], &inside)?;
    Ok(())
}

fn link_name(ip: Ipv4Addr) -> String {
    format!("agent{}", ip.octets()[3])
}

fn link_exists(link: &str) -> bool {
    run("ip", ["link", "show", link]).is_ok()
}

fn signal(process: ProcessId, signal: Signal) -> Result<()> {
    let pid = i32::try_from(process.pid).map_err(|_| Error::NoMachine(process.pid.to_string()))?;
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Polls until the condition holds; false when it did not in time.
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}
