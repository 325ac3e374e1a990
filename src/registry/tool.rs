//! A run of the registry's program that is no server: it ends by itself, and says something on its way.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

/// Such a run. It is killed when it is dropped.
pub(super) struct Tool {
    child: Child,
    /// What it says and where it complains; none once that has ended.
    out: Option<Lines<BufReader<ChildStdout>>>,
    err: Option<Lines<BufReader<ChildStderr>>>,
}

/// What has just happened.
#[derive(Debug)]
pub(super) enum Said {
    /// A line of its output.
    Out(String),
    /// A line of its complaints.
    Err(String),
    /// It has ended, and said everything before.
    Ended(io::Result<ExitStatus>),
}

impl Tool {
    pub(super) fn start<A: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = A>) -> io::Result<Self> {
        let mut child = command(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let out = child.stdout.take().map(|out| BufReader::new(out).lines());
        let err = child.stderr.take().map(|err| BufReader::new(err).lines());
        Ok(Self { child, out, err })
    }

    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the next event. May be dropped at any await without losing one.
    pub(super) async fn next(&mut self) -> Said {
        loop {
            // A line that is no text ends the reading, not the run.
            let (line, from) = match (&mut self.out, &mut self.err) {
                (Some(out), Some(err)) => tokio::select! {
                    line = out.next_line() => (line, Stream::Out),
                    line = err.next_line() => (line, Stream::Err),
                },
                (Some(out), None) => (out.next_line().await, Stream::Out),
                (None, Some(err)) => (err.next_line().await, Stream::Err),
                (None, None) => return Said::Ended(self.child.wait().await),
            };
            match (line.ok().flatten(), from) {
                (Some(line), Stream::Out) => return Said::Out(line),
                (Some(line), Stream::Err) => return Said::Err(line),
                (None, Stream::Out) => self.out = None,
                (None, Stream::Err) => self.err = None,
            }
        }
    }
}

enum Stream {
    Out,
    Err,
}

/// The registry's program with nothing of our environment: it takes every REGISTRY_… variable as configuration, and our keys are
/// none of its business.
pub(super) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        // Newer images export traces to localhost unless told not to.
        .env("OTEL_TRACES_EXPORTER", "none")
        .kill_on_drop(true);
    command
}

/// The version in what `registry --version` prints, as in `registry github.com/distribution/distribution/v3 v3.1.1`.
pub(super) fn version(line: &str) -> Option<String> {
    let word = line.split_whitespace().next_back()?;
    let version = word.strip_prefix('v').unwrap_or(word);
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_as_each_generation_prints_it() {
        assert_eq!(version("docker-registry github.com/docker/distribution 2.8.2+ds1").as_deref(), Some("2.8.2+ds1"));
        assert_eq!(version("registry github.com/docker/distribution v2.8.3").as_deref(), Some("2.8.3"));
        assert_eq!(version("registry github.com/distribution/distribution/v3 v3.1.1").as_deref(), Some("3.1.1"));
        assert_eq!(version("usage: registry"), None);
        assert_eq!(version(""), None);
    }
}
