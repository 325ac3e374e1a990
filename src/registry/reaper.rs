//! Reaping: as process 1 of a container, this program inherits every orphan in it.

use std::io;

use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Takes the exit status of processes that nobody else waits for.
pub(super) struct Reaper {
    /// `None` unless this is process 1: anywhere else, every child is somebody's.
    ended: Option<Signal>,
    look: bool,
}

impl Reaper {
    pub(super) fn new() -> io::Result<Self> {
        let ended = if getpid() == Pid::from_raw(1) { Some(signal(SignalKind::child())?) } else { None };
        Ok(Self { ended, look: false })
    }

    /// To be called when a child of our own has ended: while it was not yet waited for, it hid the orphans behind it.
    pub(super) fn look_again(&mut self) {
        self.look = true;
    }

    /// Waits until a child may have ended.
    pub(super) async fn wait(&mut self) {
        let Some(ended) = &mut self.ended else { return std::future::pending().await };
        if !self.look {
            ended.recv().await;
        }
        self.look = false;
    }

    /// Takes every ended child but `own`, which their owners wait for.
    pub(super) fn reap(&self, own: &[u32]) {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Some(pid) = waitid(Id::All, peek).ok().and_then(|status| status.pid()) {
            if u32::try_from(pid.as_raw()).is_ok_and(|pid| own.contains(&pid)) {
                return;
            }
            let reaped = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            tracing::debug!(%pid, ?reaped, "reaped an orphan");
        }
    }
}
