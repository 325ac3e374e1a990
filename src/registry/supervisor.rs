//! Runs the registry process: starts it, waits until it answers, starts it again when it ends, drains it when asked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::tool::command;

/// The registry gives up draining by itself after its own time; this much later it is killed.
pub(super) const KILL_MARGIN: Duration = Duration::from_secs(3);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// After this long a run counts as good, and the next end starts with the first backoff again.
const GOOD_RUN: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// How the registry is started, and where it then answers.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) config_file: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) drain: Duration,
    /// Where CA certificates are beside those of the image.
    pub(super) further_cas: Option<PathBuf>,
}

/// What has just happened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The process was started.
    Started,
    /// It answers on its port.
    Answers,
    /// It ended, or could not be started, without having been asked to.
    Failed(String),
    /// It ended as asked.
    Stopped,
}

enum Process {
    None,
    Waiting { until: Instant },
    Running { child: Child, since: Instant, answers: bool },
    Stopping { child: Child, kill_at: Instant },
}

/// The one registry process.
pub(super) struct Supervisor {
    launch: Launch,
    process: Process,
    /// Whether a process should run. The rest follows from this and from what there is.
    wanted: bool,
    backoff: Duration,
    starts: u64,
}

impl Supervisor {
    pub(super) fn new(launch: Launch) -> Self {
        Self { launch, process: Process::None, wanted: false, backoff: FIRST_BACKOFF, starts: 0 }
    }

    pub(super) fn starts(&self) -> u64 {
        self.starts
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.process, Process::None)
    }

    /// Whether no registry runs at this moment, though it may be started at the next one.
    pub(super) fn is_stopped_now(&self) -> bool {
        matches!(self.process, Process::None | Process::Waiting { .. })
    }

    /// Process id of the registry, while there is one.
    pub(super) fn child_id(&self) -> Option<u32> {
        match &self.process {
            Process::Running { child, .. } | Process::Stopping { child, .. } => child.id(),
            Process::None | Process::Waiting { .. } => None,
        }
    }

    /// Starts the registry, or drains the one that runs and then starts it anew.
    pub(super) fn restart(&mut self) {
        self.wanted = true;
        match self.process {
            Process::None | Process::Waiting { .. } => self.process = Process::Waiting { until: Instant::now() },
            _ => self.drain(),
        }
    }

    /// Drains the registry and starts it no more.
    pub(super) fn stop(&mut self) {
        self.wanted = false;
        match self.process {
            Process::None | Process::Waiting { .. } => self.process = Process::None,
            _ => self.drain(),
        }
    }

    fn drain(&mut self) {
        self.process = match std::mem::replace(&mut self.process, Process::None) {
            Process::Running { child, .. } => {
                signal(&child, Signal::SIGTERM);
                Process::Stopping { child, kill_at: Instant::now() + self.launch.drain + KILL_MARGIN }
            }
            other => other,
        };
    }

    /// Waits for the next event. May be dropped at any await without losing one.
    pub(super) async fn next_event(&mut self) -> Event {
        loop {
            match &mut self.process {
                Process::None => std::future::pending().await,
                Process::Waiting { until } => {
                    sleep_until(*until).await;
                    return self.start();
                }
                Process::Running { child, answers: true, .. } => {
                    let status = child.wait().await;
                    return self.ended(status);
                }
                Process::Running { child, answers, .. } => {
                    tokio::select! {
                        status = child.wait() => return self.ended(status),
                        () = answer(self.launch.listen) => {
                            *answers = true;
                            return Event::Answers;
                        }
                    }
                }
                Process::Stopping { child, kill_at } => {
                    tokio::select! {
                        status = child.wait() => return self.ended(status),
                        () = sleep_until(*kill_at) => {
                            tracing::warn!("the registry has not ended in its time; it is killed");
                            signal(child, Signal::SIGKILL);
                            // A process in an uninterruptible wait ends when that is over.
                            *kill_at = Instant::now() + KILL_MARGIN;
                        }
                    }
                }
            }
        }
    }

    fn start(&mut self) -> Event {
        let launch = &self.launch;
        // It is read beside the bundle of the image; naming a bundle would take the place of that.
        let cas = launch.further_cas.as_ref().map(|directory| ("SSL_CERT_DIR", format!("{}:/etc/ssl/certs", directory.display())));
        let spawned = command(&launch.program).envs(cas).arg("serve").arg(&launch.config_file).spawn();
        match spawned {
            Ok(child) => {
                self.starts += 1;
                self.process = Process::Running { child, since: Instant::now(), answers: false };
                Event::Started
            }
            Err(error) => {
                let program = launch.program.display().to_string();
                self.failed(format!("{program} cannot be started: {error}; is the image a registry image?"))
            }
        }
    }

    fn ended(&mut self, status: std::io::Result<ExitStatus>) -> Event {
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        match std::mem::replace(&mut self.process, Process::None) {
            Process::Stopping { .. } => {
                if self.wanted {
                    self.process = Process::Waiting { until: Instant::now() };
                }
                Event::Stopped
            }
            Process::Running { since, .. } => {
                if since.elapsed() >= GOOD_RUN {
                    self.backoff = FIRST_BACKOFF;
                }
                self.failed(format!("the registry ended by itself ({how}); its own output above says why"))
            }
            Process::None | Process::Waiting { .. } => self.failed(how),
        }
    }

    fn failed(&mut self, reason: String) -> Event {
        let backoff = self.backoff;
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        self.process = Process::Waiting { until: Instant::now() + backoff };
        Event::Failed(format!("{reason}; it is started again {} s later", backoff.as_secs()))
    }
}

fn signal(child: &Child, signal: Signal) {
    let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) else { return };
    if let Err(error) = kill(Pid::from_raw(id), signal) {
        tracing::warn!(%error, %signal, "the registry could not be signalled");
    }
}

/// Waits until somebody listens there.
async fn answer(listen: SocketAddr) {
    let address = if listen.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { listen.ip() };
    while !matches!(timeout(Duration::from_secs(1), TcpStream::connect((address, listen.port()))).await, Ok(Ok(_))) {
        sleep(PROBE_INTERVAL).await;
    }
}
