//! The host's own certificate store: we put files where its tool reads them, and the tool puts the store together.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::files::FileError;
use crate::host_paths::HostRoot;

/// The tool reads some hundred certificates. One that hangs must not hold the node up for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store that this host has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SystemStore {
    /// Where the operator's certificates lie.
    pub(crate) dir: PathBuf,
    /// The program that adds them.
    program: PathBuf,
}

impl SystemStore {
    /// The store whose directory and program are both there.
    pub(crate) fn on(root: &HostRoot) -> Option<Self> {
        let there = |(dir, program): &(PathBuf, PathBuf)| dir.is_dir() && program.is_file();
        root.system_stores().into_iter().find(there).map(|(dir, program)| Self { dir, program })
    }

    /// Whether a file of ours lies in this host's store, whichever it is.
    pub(crate) fn holds(root: &HostRoot, path: &Path) -> bool {
        root.system_stores().iter().any(|(dir, _)| path.starts_with(dir))
    }

    /// Has the store put together anew.
    pub(crate) fn refresh(&self) -> Result<(), FileError> {
        let failed = |reason: String| FileError::Program(self.program.clone(), reason);
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let started = Instant::now();
        loop {
            match child.try_wait().map_err(|error| failed(error.to_string()))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(failed(status.to_string())),
                None if started.elapsed() > PATIENCE => {
                    // What it says of that is of no use to anybody.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(failed(format!("it has not ended within {} s", PATIENCE.as_secs())));
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}
