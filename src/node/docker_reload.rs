//! The docker daemon, asked what it treats as insecure, and made to read its `daemon.json` again without a restart.
//!
//! A task has its own pid namespace, so no signal of ours reaches dockerd. The host's init system sends it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::host_paths::HostRoot;
use crate::names::{Host, HostPort};

/// How long the daemon may take to answer; it is slow under load.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a reload may take until its outcome is seen.
const RELOAD: Duration = Duration::from_secs(4);
/// How long a program of the init system may run.
const COMMAND: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// Files that hold dockerd's flags where there is no systemd.
const FLAG_FILES: [&str; 2] = ["etc/default/docker", "etc/sysconfig/docker"];

/// What the daemon treats as insecure, by its own words.
#[derive(Debug, Default)]
pub(crate) struct Insecure {
    names: Vec<String>,
    networks: Vec<String>,
}

impl Insecure {
    /// Whether the very entry is known.
    pub(crate) fn has_entry(&self, entry: &str) -> bool {
        self.names.iter().any(|name| name == entry)
    }

    /// Whether the daemon treats `entry` as insecure, for whatever reason.
    pub(crate) fn covers(&self, entry: &str) -> bool {
        let host = entry.parse::<HostPort>().map(|name| name.host).or_else(|_| entry.parse::<Host>());
        let Ok(Host::Ip(address)) = host else { return self.has_entry(entry) };
        self.has_entry(entry) || self.networks.iter().any(|network| contains(network, u32::from(address)))
    }
}

/// Whether a network in CIDR notation contains an address.
fn contains(network: &str, address: u32) -> bool {
    let Some((start, length)) = network.split_once('/') else { return false };
    let (Ok(start), Ok(length)) = (start.parse::<std::net::Ipv4Addr>(), length.parse::<u32>()) else { return false };
    let shift = 32_u32.saturating_sub(length);
    (u64::from(u32::from(start)) >> shift) == (u64::from(address) >> shift)
}

/// The daemon and the init system of one host.
pub(crate) struct Daemon<'a> {
    pub(crate) root: &'a HostRoot,
}

impl Daemon<'_> {
    /// What the daemon treats as insecure. `None` if this host has no daemon.
    pub(crate) fn insecure(&self) -> Result<Option<Insecure>, String> {
        let socket = self.root.docker_socket();
        if !socket.exists() {
            return Ok(None);
        }
        let silent = |reason: String| format!("the docker daemon does not answer at {}: {reason}", socket.display());
        let info = info(&socket).map_err(|error| silent(error.to_string()))?;
        let registries = &info["RegistryConfig"];
        let configs = registries["IndexConfigs"].as_object().ok_or_else(|| silent("it does not tell its registries".into()))?;
        let networks = registries["InsecureRegistryCIDRs"].as_array().into_iter().flatten();
        Ok(Some(Insecure {
            names: configs.iter().filter(|(_, config)| config["Secure"] == false).map(|(name, _)| name.clone()).collect(),
            networks: networks.filter_map(|network| network.as_str().map(String::from)).collect(),
        }))
    }

    /// Why an entry in `daemon.json` would keep the daemon from reading it, now or at its next start.
    pub(crate) fn conflict(&self) -> Option<String> {
        let flags = self.flags();
        if flags.contains("--insecure-registry") {
            return Some(
                "dockerd has --insecure-registry on its command line, so with insecure-registries in daemon.json it would neither reload nor \
                 start; move the flag's values from docker's unit into daemon.json, and restart docker once at a time that suits you"
                    .into(),
            );
        }
        let elsewhere = flags.split_whitespace().skip_while(|word| !word.starts_with("--config-file"));
        let file = elsewhere.flat_map(|word| word.split('=')).nth(1)?.trim_matches(['"', '\'']);
        (file != "/etc/docker/daemon.json").then(|| {
            format!("dockerd has --config-file {file} on its command line, and only /etc/docker/daemon.json is changed; use that file for docker")
        })
    }

    /// Everything that may hold flags of dockerd.
    fn flags(&self) -> String {
        let mut texts = Vec::new();
        let mut files: Vec<PathBuf> = Vec::new();
        let shown = self.program("systemctl").and_then(|systemctl| {
            let properties = ["-p", "ExecStart", "-p", "Environment", "-p", "EnvironmentFiles"];
            run(Command::new(systemctl).args(["show", "docker"]).args(properties)).ok()
        });
        match shown {
            Some(unit) => {
                let start: Vec<&str> = unit.lines().filter(|line| line.starts_with("ExecStart=")).collect();
                texts.push(start.join("\n"));
                // Variables count only if the command line has any.
                if start.iter().any(|line| line.contains('$')) {
                    texts.extend(unit.lines().filter(|line| line.starts_with("Environment=")).map(String::from));
                    let named = unit.lines().filter_map(|line| line.strip_prefix("EnvironmentFiles="));
                    files.extend(named.filter_map(|line| line.split_whitespace().next()).map(|path| self.below(path)));
                }
            }
            None => files.extend(FLAG_FILES.map(|file| self.root.path().join(file))),
        }
        for text in files.iter().filter_map(|file| std::fs::read_to_string(file).ok()) {
            texts.extend(text.lines().filter(|line| !line.trim_start().starts_with('#')).map(String::from));
        }
        texts.join("\n")
    }

    /// Makes the daemon read `daemon.json` again, and waits until it has: `settled` looks at what it then says.
    pub(crate) fn reload(&self, settled: impl Fn(&Insecure) -> bool) -> Result<(), String> {
        self.ask_init()?;
        let started = Instant::now();
        loop {
            let said = self.insecure();
            match &said {
                Ok(Some(insecure)) if settled(insecure) => return Ok(()),
                _ if started.elapsed() < RELOAD => std::thread::sleep(Duration::from_millis(100)),
                Ok(_) => return Err("docker was told to reload, and its /info does not show the change; its log says why".into()),
                Err(error) => return Err(error.clone()),
            }
        }
    }

    fn ask_init(&self) -> Result<(), String> {
        let mut tried = Vec::new();
        for (name, arguments) in [("systemctl", ["reload", "docker"]), ("service", ["docker", "reload"])] {
            let Some(program) = self.program(name) else { continue };
            match run(Command::new(program).args(arguments)) {
                Ok(_) => return Ok(()),
                Err(error) => tried.push(format!("{name} {}: {error}", arguments.join(" "))),
            }
        }
        let tried = if tried.is_empty() { "this host has neither systemctl nor service".into() } else { tried.join("; ") };
        Err(format!("docker cannot be made to reload ({tried}); reload it by hand, or use another security.mode"))
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        ["usr/bin", "bin", "usr/sbin", "sbin"].iter().map(|dir| self.root.path().join(dir).join(name)).find(|path| path.exists())
    }

    fn below(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }
}

/// `GET /info`. HTTP 1.0, so that the answer is plain and ends with the connection.
fn info(socket: &Path) -> std::io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /info HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    // The time-out is for each read; a daemon that sends a byte now and then must not hold the node up either.
    let deadline = Instant::now() + 2 * PATIENCE;
    let (mut answer, mut piece) = (Vec::new(), [0; 64 * 1024]);
    loop {
        let length = stream.read(&mut piece)?;
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..length]);
        if answer.len() > MAX_ANSWER_BYTES || Instant::now() > deadline {
            return Err(std::io::Error::other("its answer does not end"));
        }
    }
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(&[][..], |at| &answer[at + 4..]);
    Ok(crate::json::of_bytes(body)?)
}

/// Runs a program to its end and returns what it printed. Nothing of our environment: DC/OS' libraries are not for the host's programs.
fn run(command: &mut Command) -> Result<String, String> {
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let started = Instant::now();
    // What these programs print fits into the pipe.
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if started.elapsed() > COMMAND {
            // It may end just now; it is waited for below in any case.
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("it has not ended within {} s", COMMAND.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(if said.is_empty() { output.status.to_string() } else { said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_within_an_insecure_network_is_covered_and_a_name_is_not() {
        let insecure = Insecure { names: vec!["a.example:5000".into()], networks: vec!["127.0.0.0/8".into(), "192.168.0.0/24".into()] };
        for entry in ["a.example:5000", "192.168.0.1:443", "192.168.0.1"] {
            assert!(insecure.covers(entry), "{entry}");
        }
        for entry in ["b.example:5000", "a.example", "192.168.1.1:443"] {
            assert!(!insecure.covers(entry), "{entry}");
        }
        assert!(!insecure.has_entry("192.168.0.1:443"));
        assert!(contains("0.0.0.0/0", 1) && !contains("x/8", 1) && !contains("10.0.0.0/99", 1));
    }

    #[test]
    fn flags_are_found_in_the_unit_its_environment_and_the_files_that_it_names() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        std::fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        std::fs::create_dir_all(dir.path().join("etc/sysconfig")).unwrap();
        let flags = dir.path().join("etc/sysconfig/docker");
        let unit = |text: &str| {
            let program = dir.path().join("usr/bin/systemctl");
            std::fs::write(&program, format!("#!/bin/sh\ncat <<'END'\n{text}\nEND\n")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            Daemon { root: &root }.conflict()
        };
        std::fs::write(&flags, "# --insecure-registry x\nOPTIONS='--debug'\n").unwrap();
        assert_eq!(unit("ExecStart={ path=/usr/bin/dockerd ; argv[]=/usr/bin/dockerd -H fd:// ; }"), None);
        let said = unit("ExecStart={ path=/usr/bin/dockerd ; argv[]=/usr/bin/dockerd --insecure-registry=a:1 ; }").unwrap();
        assert!(said.contains("--insecure-registry") && said.contains("move the flag's values"), "{said}");
        let variable = "ExecStart={ argv[]=/usr/bin/dockerd $OPTIONS ; }";
        assert_eq!(unit("ExecStart={ argv[]=/usr/bin/dockerd ; }\nEnvironment=OPTIONS=--insecure-registry=a:1"), None, "nobody uses it");
        assert!(unit(&format!("{variable}\nEnvironment=OPTIONS=--insecure-registry=a:1")).is_some());
        let with_file = format!("{variable}\nEnvironmentFiles=/etc/sysconfig/docker (ignore_errors=yes)");
        assert_eq!(unit(&with_file), None);
        std::fs::write(&flags, "OPTIONS='--insecure-registry a:1'\n").unwrap();
        assert!(unit(&with_file).is_some());
        assert!(unit("ExecStart={ argv[]=dockerd --config-file=/x.json ; }").unwrap().contains("/x.json"));
        assert!(unit("ExecStart={ argv[]=dockerd --config-file /x.json ; }").unwrap().contains("/x.json"));
        assert_eq!(unit("ExecStart={ argv[]=dockerd --config-file /etc/docker/daemon.json ; }"), None);
    }
}
