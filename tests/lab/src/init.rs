//! The inside of the lab: pid 1 and the core network.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::sethostname,
};

use crate::{
    Error, Result,
    host::{AgentRole, MASTER, Machine},
    outer::record,
    process::{ProcessId, run, run_with_input, spawn_error},
};

/// Ports of the master that must answer before the lab is ready: Admin Router, Marathon, Mesos, Metronome, the lab's control, the package repository.
const PORTS: [u16; 6] = [80, 8080, 5050, 9000, 7070, 8000];

/// Pause before the server is started again.
const RESTART: Duration = Duration::from_millis(100);

/// `lab init`: pid 1. Makes the network, has the machines built, keeps the server running, reaps. Returns only on failure.
///
/// # Errors
/// The lab cannot be made.
pub fn run_init(dir: &Path, agents: u8, public: u8) -> Result<()> {
    let began = Instant::now();
    let own = ProcessId::of_self_in_proc_on_stdin().ok_or_else(|| Error::Refused("`lab init` is started by the lab only".to_owned()))?;
    record(dir, "init.json", own)?;
    sethostname("master")?;
    own_view(dir)?;
    network()?;
    say(&format!("starting {agents} private and {public} public agents and a machine outside"));
    build(dir, agents, public)?;
    say(&format!("machines are up after {:.1} s", began.elapsed().as_secs_f64()));
    keep_server(dir, began)
}

/// `lab build`, a child of pid 1 (which must not wait for several things at once): starts all machines side by side.
///
/// # Errors
/// One did not come up.
pub fn build_machines(dir: &Path, agents: u8, public: u8) -> Result<()> {
    let machine = Machine::new(dir);
    let private = (0..agents).map(|n| (80 + n, AgentRole::Private));
    let all = private.chain((0..public).map(|n| (50 + n, AgentRole::Public)));
    let mut builders: Vec<thread::JoinHandle<Result<()>>> = all
        .map(|(last, role)| {
            let machine = machine.clone();
            thread::spawn(move || machine.add_agent(std::net::Ipv4Addr::new(192, 168, 1, last), role, None))
        })
        .collect();
    builders.push(thread::spawn(move || machine.add_outside()));
    for builder in builders {
        builder.join().map_err(|_| Error::Refused("a thread that starts a machine panicked".to_owned()))??;
    }
    Ok(())
}

fn build(dir: &Path, agents: u8, public: u8) -> Result<()> {
    let program = dir.join("bin/lab");
    let mut build = Command::new(&program);
    build.arg("build").arg("--dir").arg(dir).args(["--agents", &agents.to_string(), "--public", &public.to_string()]).stdin(Stdio::null());
    let status = build.status().map_err(|source| spawn_error("lab", source))?;
    // It has said on the same log why.
    if status.success() { Ok(()) } else { std::process::exit(1) }
}

/// Hides the host's `/run` (with its docker socket) and makes the lab's names known to the master.
fn own_view(dir: &Path) -> Result<()> {
    let resolv = fs::canonicalize("/etc/resolv.conf").ok();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("run"), "/run", Some("tmpfs"), flags, Some("mode=755"))?;
    fs::create_dir_all("/run/lock").map_err(Error::io("creating", Path::new("/run/lock")))?;
    let Some(target) = resolv else { return Ok(()) };
    let content = format!("nameserver {MASTER}\noptions timeout:2 attempts:2\n");
    if target.starts_with("/run") {
        let folder = target.parent().unwrap_or(Path::new("/run"));
        fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
        return fs::write(&target, content).map_err(Error::io("writing", &target));
    }
    let own = dir.join("state/resolv.conf");
    fs::write(&own, content).map_err(Error::io("writing", &own))?;
    mount(Some(&own), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// The bridge that all machines hang on. The master is their router to nowhere: VIPs must be routable to be translated, and what
/// was not translated is refused at once instead of running into a timeout.
fn network() -> Result<()> {
    run_with_input(
        "ip",
        ["-batch", "-"],
        &format!(
            "link set lo up\nlink add br0 type bridge\naddress add {MASTER}/24 dev br0\nlink set br0 up\nroute add default dev br0 src {MASTER}\n"
        ),
    )?;
    for (key, value) in [("ip_forward", "1"), ("conf/all/send_redirects", "0"), ("conf/br0/send_redirects", "0")] {
        let path = Path::new("/proc/sys/net/ipv4").join(key);
        fs::write(&path, value).map_err(Error::io("writing", &path))?;
    }
    for chain in ["OUTPUT", "FORWARD"] {
        let rule =
            ["--wait", "-A", chain, "!", "-d", "192.168.1.0/24", "-o", "br0", "-j", "REJECT", "--reject-with", "icmp-net-unreachable"];
        run("iptables", rule)?;
    }
    Ok(())
}

/// Keeps the server running and reaps for ever.
fn keep_server(dir: &Path, began: Instant) -> Result<()> {
    let mut server = start_server(dir)?;
    let mut ready = false;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => thread::sleep(Duration::from_millis(20)),
            Ok(status) if status.pid().is_some_and(|pid| u32::try_from(pid.as_raw()) == Ok(server.id())) => {
                thread::sleep(RESTART);
                server = start_server(dir)?;
            }
            Ok(_) => {}
        }
        if !ready && PORTS.iter().all(|port| answers(*port)) {
            ready = true;
            say(&format!("ready after {:.1} s", began.elapsed().as_secs_f64()));
            let path = dir.join("ready");
            File::create(&path).map_err(Error::io("creating", &path))?;
        }
    }
}

/// On the cluster's address, or on the master's own: in strict mode some ports are for their neighbours only.
fn answers(port: u16) -> bool {
    [MASTER, Ipv4Addr::LOCALHOST].into_iter().any(|host| TcpStream::connect(SocketAddr::from((host, port))).is_ok())
}

fn start_server(dir: &Path) -> Result<Child> {
    let path = dir.join("logs/server.log");
    let log = File::options().create(true).append(true).open(&path).map_err(Error::io("opening", &path))?;
    let stderr = log.try_clone().map_err(Error::io("opening", &path))?;
    let mut server = Command::new(dir.join("bin/lab"));
    server.arg("server").arg("--dir").arg(dir).stdin(Stdio::null()).stdout(log).stderr(stderr);
    server.spawn().map_err(|source| spawn_error("lab", source))
}

fn say(line: &str) {
    eprintln!("lab: {line}");
}
