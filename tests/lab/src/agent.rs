//! `lab machine`: pid 1 of a machine. It makes the machine's own view of the file system, runs dockerd, and reaps.

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{pivot_root, sethostname},
};

use crate::{
    Error, Result, cgroups,
    host::{LAB_ON_AGENT, MASTER, Machine},
    outer::has_marathon_lb,
    process::{ProcessId, run, spawn_error, write_atomically},
    systemctl::{self, Docker},
};

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineKind {
    /// An agent.
    Private,
    /// An agent that also runs Marathon-LB, unless the lab is to have none.
    Public,
    /// No part of the cluster.
    Outside,
}

/// Runs until it is told to end by SIGTERM. Expects its own pid, mount, network, UTS and IPC namespaces, and the outer `/proc` as
/// standard input.
///
/// # Errors
/// The machine cannot be made; the text goes to its log.
pub fn run_agent(lab_dir: &Path, ip: Ipv4Addr, kind: MachineKind) -> Result<()> {
    let machine = Machine::new(lab_dir);
    let own = ProcessId::of_self_in_proc_on_stdin().ok_or_else(|| Error::Refused("`lab machine` is started by the lab only".to_owned()))?;
    let dir = machine.agent_dir(ip);
    let mut ready = File::create(dir.join("ready")).map_err(Error::io("creating", &dir))?;
    // The logs are out of reach once the machine has its own disk.
    let open_log = |program: &str| {
        let path = lab_dir.join(format!("logs/{program}-{ip}.log"));
        File::options().create(true).append(true).open(&path).map_err(Error::io("opening", &path))
    };
    let log = open_log("dockerd")?;
    let marathon_lb_log = (kind == MachineKind::Public && has_marathon_lb(lab_dir)).then(|| open_log("marathon-lb")).transpose()?;
    let images = images(lab_dir);
    let parent = format!("/{}", cgroups::of_machine(lab_dir, ip).display());
    let identity = serde_json::to_vec(&own).map_err(|error| Error::Refused(error.to_string()))?;
    write_atomically(&dir.join("holder.json"), &identity)?;
    sethostname(format!("agent-{}", ip.octets()[3]))?;
    let root = machine.root(ip);
    // An overlay wants its work folder on the disk of the upper one.
    let work = if is_disk(&root, &dir)? { root.join("lost+found") } else { dir.join("overlay-work") };
    Disk { root, work, lab_dir }.enter(&images, kind)?;
    let unit = Docker::start(dockerd_flags(&parent)?, log)?;
    if let Some(log) = marathon_lb_log {
        start_marathon_lb(log)?;
    }
    load_images(images.len())?;
    ready.write_all(b"ready").map_err(Error::io("writing", &dir))?;
    reap_until_told(unit)
}

/// Whether this is a disk of its own, and no folder of the one that the directory is on.
fn is_disk(root: &Path, dir: &Path) -> Result<bool> {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    match (device(root), device(dir)) {
        (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        (Ok(root), Ok(dir)) => Ok(root != dir),
        (Err(error), _) | (_, Err(error)) => Err(Error::io("looking at", root)(error)),
    }
}

/// Archives that every machine loads at start; `lab up` put them there.
fn images(lab_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(lab_dir.join("images")) else { return Vec::new() };
    let mut images: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    images.sort();
    images
}

/// A machine's disk: a folder that becomes `/`. Programs are shared with the host, read-only; `/etc` begins as the host's.
struct Disk<'a> {
    root: PathBuf,
    work: PathBuf,
    lab_dir: &'a Path,
}

const NONE: Option<&str> = None;

impl Disk<'_> {
    fn enter(&self, images: &[PathBuf], kind: MachineKind) -> Result<()> {
        self.make_folders()?;
        // Before the folder becomes a mount of its own: an overlay wants its work folder on the same mount as the upper one.
        self.overlay_etc(kind)?;
        rbind(&self.root, &self.root)?;
        self.share_programs()?;
        self.give_systemctl()?;
        self.mount_kernel_files()?;
        self.mount_run(images)?;
        let old = self.root.join("mnt/old");
        make_dir(&old)?;
        pivot_root(&self.root, &old)?;
        std::env::set_current_dir("/").map_err(Error::io("entering", Path::new("/")))?;
        umount2("/mnt/old", MntFlags::MNT_DETACH)?;
        fs::remove_dir("/mnt/old").map_err(Error::io("removing", Path::new("/mnt/old")))
    }

    fn make_folders(&self) -> Result<()> {
        const FOLDERS: [&str; 18] = [
            "dev",
            "proc",
            "sys",
            "run",
            "mnt",
            "usr",
            "etc",
            "root",
            "tmp",
            "home",
            "data",
            "opt/mesosphere/bin",
            "var/lib/docker",
            "var/lib/dcos",
            "var/lib/mesos",
            "var/log",
            "var/cache",
            "var/tmp",
        ];
        for folder in FOLDERS {
            make_dir(&self.root.join(folder))?;
        }
        for folder in ["tmp", "var/tmp"] {
            let folder = self.root.join(folder);
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).map_err(Error::io("opening up", &folder))?;
        }
        link("/run", &self.root.join("var/run"))?;
        // DC/OS' curl is built with the agent's trust store as its CA path.
        let curl = self.root.join("opt/mesosphere/bin/curl");
        fs::write(&curl, "#!/bin/sh\nexec /usr/bin/curl --capath /var/lib/dcos/pki/tls/certs \"$@\"\n")
            .map_err(Error::io("writing", &curl))?;
        fs::set_permissions(&curl, fs::Permissions::from_mode(0o755)).map_err(Error::io("making executable", &curl))
    }

    fn share_programs(&self) -> Result<()> {
        share_read_only(Path::new("/usr"), &self.root.join("usr"))?;
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            let (host, here) = (Path::new("/").join(name), self.root.join(name));
            if let Ok(target) = fs::read_link(&host) {
                link(target, &here)?;
            } else if host.is_dir() {
                make_dir(&here)?;
                share_read_only(&host, &here)?;
            }
        }
        Ok(())
    }

    /// The machine's init system is the lab's, so its `systemctl` lies over that of the host.
    fn give_systemctl(&self) -> Result<()> {
        let (own, bin) = (self.root.join("opt/lab/bin"), self.root.join("usr/bin"));
        make_dir(&own)?;
        let systemctl = own.join("systemctl");
        fs::write(&systemctl, format!("#!/bin/sh\nexec {LAB_ON_AGENT} systemctl \"$@\"\n")).map_err(Error::io("writing", &systemctl))?;
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).map_err(Error::io("making executable", &systemctl))?;
        let options = format!("lowerdir={}:{}", own.display(), bin.display());
        mount(Some("overlay"), &bin, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str()))
            .map_err(|errno| Error::io("mounting an overlay on", &bin)(errno.into()))
    }

    /// What the machine changes below `/etc` lies on its disk; the host's own files shine through, but for what concerns docker and the
    /// cluster.
    fn overlay_etc(&self, kind: MachineKind) -> Result<()> {
        let etc = self.root.join("etc");
        make_dir(&self.work)?;
        let first_boot = !etc.join("hostname").exists();
        let options = format!("lowerdir=/etc,upperdir={},workdir={}", etc.display(), self.work.display());
        mount(Some("overlay"), &etc, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .map_err(|errno| Error::io("mounting an overlay on", &etc)(errno.into()))?;
        if !first_boot {
            return Ok(());
        }
        for own in ["docker", "sysctl.d", "privateregistry"] {
            let own = etc.join(own);
            if own.exists() {
                fs::remove_dir_all(&own).map_err(Error::io("emptying", &own))?;
            }
            make_dir(&own)?;
        }
        let names =
            if kind == MachineKind::Outside { String::new() } else { format!("nameserver {MASTER}\noptions timeout:2 attempts:2\n") };
        for (name, content) in [("resolv.conf", names), ("hosts", "127.0.0.1 localhost\n".to_owned()), ("hostname", hostname()?)] {
            let file = etc.join(name);
            // It may be a link to a place that does not exist here.
            let _ = fs::remove_file(&file);
            fs::write(&file, content).map_err(Error::io("writing", &file))?;
        }
        Ok(())
    }

    fn mount_kernel_files(&self) -> Result<()> {
        mount(Some("proc"), &self.root.join("proc"), Some("proc"), MsFlags::empty(), NONE)?;
        let sys = self.root.join("sys");
        mount(Some("sysfs"), &sys, Some("sysfs"), MsFlags::empty(), NONE)?;
        rbind(Path::new("/sys/fs/cgroup"), &sys.join("fs/cgroup"))?;
        rbind(Path::new("/dev"), &self.root.join("dev"))?;
        mount(Some("shm"), &self.root.join("dev/shm"), Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, NONE)?;
        Ok(())
    }

    /// `/run` is empty at every boot. The lab's own program and the image archives are handed in there.
    fn mount_run(&self, images: &[PathBuf]) -> Result<()> {
        let run = self.root.join("run");
        mount(Some("run"), &run, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))?;
        make_dir(&run.join("lab"))?;
        hand_in(&self.lab_dir.join("bin/lab"), &run.join("lab/lab"))?;
        for (index, image) in images.iter().enumerate() {
            hand_in(image, &run.join(format!("lab/image-{index}")))?;
        }
        Ok(())
    }
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("creating", path))
}

fn link(target: impl AsRef<Path>, at: &Path) -> Result<()> {
    if at.is_symlink() {
        return Ok(());
    }
    symlink(target, at).map_err(Error::io("linking", at))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).map_err(|errno| Error::io("binding", to)(errno.into()))
}

fn rbind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(|errno| Error::io("binding", to)(errno.into()))
}

fn share_read_only(from: &Path, to: &Path) -> Result<()> {
    rbind(from, to)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NONE, to, NONE, flags, NONE).map_err(|errno| Error::io("write-protecting", to)(errno.into()))
}

fn hand_in(file: &Path, at: &Path) -> Result<()> {
    File::create(at).map_err(Error::io("creating", at))?;
    bind(file, at)
}

fn hostname() -> Result<String> {
    let name = nix::unistd::gethostname()?;
    Ok(format!("{}\n", name.to_string_lossy()))
}

/// Further flags of a machine's dockerd, one a line, read when the machine starts.
const DOCKERD_FLAGS: &str = "/etc/dockerd.flags";

fn dockerd_flags(cgroup_parent: &str) -> Result<Vec<String>> {
    let mut flags = ["--cgroup-parent", cgroup_parent, "--shutdown-timeout", "5"].map(String::from).to_vec();
    match fs::read_to_string(DOCKERD_FLAGS) {
        Ok(text) => flags.extend(text.lines().map(String::from)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("reading", Path::new(DOCKERD_FLAGS))(error)),
    }
    Ok(flags)
}

/// Nobody waits for it in particular: whatever ends on this machine is reaped, and what still runs at its end is killed.
fn start_marathon_lb(log: File) -> Result<()> {
    let mut marathon_lb = Command::new(LAB_ON_AGENT);
    let stderr = log.try_clone().map_err(|source| spawn_error("marathon-lb", source))?;
    marathon_lb.arg("marathon-lb").stdin(Stdio::null()).stdout(log).stderr(stderr);
    marathon_lb.spawn().map(drop).map_err(|source| spawn_error("marathon-lb", source))
}

fn load_images(count: usize) -> Result<()> {
    for index in 0..count {
        run("docker", ["load", "--quiet", "--input", &format!("/run/lab/image-{index}")])?;
    }
    Ok(())
}

/// Pid 1's duty. On SIGTERM dockerd is ended in good order; the kernel ends the rest when this process does.
fn reap_until_told(docker: Docker) -> Result<()> {
    let docker = Arc::new(docker);
    let (socket, unit) = (systemctl::listen()?, Arc::clone(&docker));
    thread::spawn(move || systemctl::serve(&socket, &unit));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| spawn_error("the reaper", source))?;
    runtime.block_on(async {
        let signals = || -> std::io::Result<_> {
            use tokio::signal::unix::{SignalKind, signal};
            Ok((signal(SignalKind::child())?, signal(SignalKind::terminate())?))
        };
        let (mut child, mut terminate) = signals().map_err(|source| spawn_error("the reaper", source))?;
        loop {
            while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
            tokio::select! {
                _ = child.recv() => {}
                _ = terminate.recv() => break,
            }
        }
        Ok::<_, Error>(())
    })?;
    let pid = docker.pid();
    // It may have ended before.
    let _ = kill(pid, Signal::SIGTERM);
    while matches!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)) {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
