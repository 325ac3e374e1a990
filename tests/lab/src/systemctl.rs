//! The face of a machine's init system: `systemctl` as far as docker is concerned.
//!
//! As with systemd, the program only asks; pid 1 of the machine acts. So it works from a task in a pid namespace of its own.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, host::wait_until, process::spawn_error};

/// Where pid 1 listens.
const SOCKET: &str = "/run/lab/init.sock";
/// Where the unit's program lies.
const DOCKERD: &str = "/usr/sbin/dockerd";

/// How long dockerd may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The one unit that it knows, `docker.service`.
#[derive(Debug)]
pub(crate) struct Docker {
    pid: AtomicI32,
    flags: Vec<String>,
    log: File,
}

impl Docker {
    /// Starts dockerd and waits until it answers.
    pub(crate) fn start(flags: Vec<String>, log: File) -> Result<Self> {
        let docker = Self { pid: AtomicI32::new(0), flags, log };
        docker.spawn()?;
        Ok(docker)
    }

    fn spawn(&self) -> Result<()> {
        let log = || self.log.try_clone().map_err(|source| spawn_error("dockerd", source));
        let mut dockerd = Command::new("dockerd");
        dockerd.args(&self.flags).stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        let child = dockerd.spawn().map_err(|source| spawn_error("dockerd", source))?;
        self.pid.store(i32::try_from(child.id()).expect("a pid fits"), Ordering::SeqCst);
        if wait_until(PATIENCE, dockerd_answers) {
            return Ok(());
        }
        Err(Error::Timeout("dockerd does not answer; its log says why".to_owned()))
    }

    /// The process that was started last.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.pid.load(Ordering::SeqCst))
    }

    /// Delivers a signal to dockerd, or none to see whether it runs, and says whether it is there.
    fn signal(&self, signal: Option<Signal>) -> bool {
        kill(self.pid(), signal).is_ok()
    }

    /// What was started, for whoever asks.
    fn unit(&self) -> Unit {
        Unit { pid: self.pid().as_raw(), flags: self.flags.clone() }
    }

    /// `systemctl start docker`.
    fn begin(&self) -> Answer {
        if self.signal(None) {
            return Answer::default();
        }
        match self.spawn() {
            Ok(()) => Answer::default(),
            Err(error) => Answer { code: 1, stdout: String::new(), stderr: format!("{error}\n") },
        }
    }

    /// `systemctl stop docker`. Pid 1 reaps.
    fn end(&self) -> Answer {
        self.signal(Some(Signal::SIGTERM));
        match wait_until(PATIENCE, || !self.signal(None)) {
            true => Answer::default(),
            false => Answer { code: 1, stdout: String::new(), stderr: "dockerd does not end\n".to_owned() },
        }
    }
}

fn dockerd_answers() -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut socket = UnixStream::connect("/run/docker.sock")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
        let mut status = [0; 12];
        socket.read_exact(&mut status)?;
        Ok(status.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

/// The unit as it was started.
#[derive(Debug, Clone)]
struct Unit {
    pid: i32,
    flags: Vec<String>,
}

/// What the program prints, and how it ends.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Opens pid 1's socket.
pub(crate) fn listen() -> Result<UnixListener> {
    UnixListener::bind(SOCKET).map_err(Error::io("listening on", Path::new(SOCKET)))
}

/// Answers until the machine ends.
pub(crate) fn serve(socket: &UnixListener, docker: &Docker) {
    for mut stream in socket.incoming().flatten() {
        // Who does not ask or does not listen is not waited for.
        let mut exchange = || -> std::io::Result<()> {
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut question = Vec::new();
            stream.read_to_end(&mut question)?;
            let arguments: Vec<String> = serde_json::from_slice(&question)?;
            let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let said = match words.as_slice() {
                ["start", unit] if is_docker(unit) => docker.begin(),
                ["stop", unit] if is_docker(unit) => docker.end(),
                ["restart", unit] if is_docker(unit) => match docker.end() {
                    ended if ended.code == 0 => docker.begin(),
                    failed => failed,
                },
                _ => answer(&words, &docker.unit(), |signal| docker.signal(signal)),
            };
            stream.write_all(&serde_json::to_vec(&said)?)
        };
        let _ = exchange();
    }
}

/// The program itself: asks, prints, and ends with the answer's code.
///
/// # Errors
/// Pid 1 does not answer.
pub fn run(arguments: &[String]) -> Result<()> {
    let ask = || -> std::io::Result<Answer> {
        let mut stream = UnixStream::connect(SOCKET)?;
        stream.write_all(&serde_json::to_vec(arguments)?)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        Ok(serde_json::from_reader(stream)?)
    };
    let answer = ask().map_err(Error::io("asking", Path::new(SOCKET)))?;
    print!("{}", answer.stdout);
    eprint!("{}", answer.stderr);
    std::process::exit(answer.code)
}

fn is_docker(unit: &str) -> bool {
    unit.strip_suffix(".service").unwrap_or(unit) == "docker"
}

/// `signal` delivers a signal to dockerd, or none to see whether it runs, and says whether it is there.
fn answer(words: &[&str], docker: &Unit, signal: impl Fn(Option<Signal>) -> bool) -> Answer {
    let failed = |code, stderr: String| Answer { code, stdout: String::new(), stderr };
    let printed = |code, stdout: String| Answer { code, stdout, stderr: String::new() };
    match words {
        ["reload", unit] if !is_docker(unit) => failed(5, format!("Failed to reload {unit}: Unit {unit} not found.\n")),
        ["reload", _] if signal(Some(Signal::SIGHUP)) => Answer::default(),
        ["reload", _] => failed(1, "docker.service is not active, cannot reload.\n".to_owned()),
        ["is-active", unit] if is_docker(unit) && signal(None) => printed(0, "active\n".to_owned()),
        ["is-active", _] => printed(3, "inactive\n".to_owned()),
        ["show", unit, options @ ..] if is_docker(unit) => {
            let asked: Vec<&str> = options.chunks(2).filter(|pair| pair[0] == "-p").filter_map(|pair| pair.get(1).copied()).collect();
            let line = format!("{DOCKERD} {}", docker.flags.join(" "));
            let properties = [
                ("MainPID", docker.pid.to_string()),
                ("ActiveState", if signal(None) { "active" } else { "inactive" }.to_owned()),
                ("ExecStart", format!("{{ path={DOCKERD} ; argv[]={} ; ignore_errors=no ; pid={} }}", line.trim_end(), docker.pid)),
                ("Environment", String::new()),
            ];
            let shown = properties.iter().filter(|(name, _)| asked.contains(name));
            printed(0, shown.map(|(name, value)| format!("{name}={value}\n")).collect())
        }
        _ => failed(1, format!("the lab's systemctl does not know: {}\n", words.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn ask(line: &str, runs: bool) -> (Answer, Option<Signal>) {
        let (docker, sent) = (Unit { pid: 7, flags: vec!["--debug".into()] }, Cell::new(None));
        let words: Vec<&str> = line.split(' ').collect();
        let answer = answer(&words, &docker, |signal| {
            sent.set(signal.or(sent.get()));
            runs
        });
        (answer, sent.get())
    }

    #[test]
    fn a_reload_is_a_signal_to_dockerd_and_nothing_else_is() {
        assert_eq!(ask("reload docker", true), (Answer::default(), Some(Signal::SIGHUP)));
        assert_eq!(ask("reload docker.service", true).1, Some(Signal::SIGHUP));
        assert_eq!(ask("reload docker", false).0.code, 1);
        assert_eq!((ask("reload sshd", true).0.code, ask("reload sshd", true).1), (5, None));
        assert_eq!(ask("restart docker", true).1, None);
        assert_eq!(ask("is-active docker", true), (Answer { stdout: "active\n".into(), ..Answer::default() }, None));
        assert_eq!(ask("is-active docker", false).0.code, 3);
    }

    #[test]
    fn the_unit_shows_how_dockerd_was_started() {
        let shown = ask("show docker -p ExecStart -p Environment -p MainPID", true).0.stdout;
        let start = "ExecStart={ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd --debug ; ignore_errors=no ; pid=7 }";
        assert_eq!(shown, format!("MainPID=7\n{start}\nEnvironment=\n"));
    }
}
