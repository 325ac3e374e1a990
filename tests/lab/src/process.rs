//! Processes by pid and start time, and short-lived child commands.

use std::{
    ffi::OsStr,
    fs, io,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in the namespace of whoever looks.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of /proc/pid/stat).
    pub start: u64,
}

impl ProcessId {
    /// The running process with this pid; none when there is none or it is a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start) = parse_stat(&stat)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, start })
    }

    /// This process itself, as the namespace sees it whose `/proc` was handed over as standard input.
    ///
    /// A process in a nested pid namespace cannot ask for its outer pid; but `self` in a foreign procfs resolves to it.
    pub fn of_self_in_proc_on_stdin() -> Option<Self> {
        let pid = fs::read_link("/proc/self/fd/0/self").ok()?.to_str()?.parse().ok()?;
        let (_, start) = parse_stat(&fs::read_to_string("/proc/self/stat").ok()?)?;
        Some(Self { pid, start })
    }

    /// Whether it still runs.
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// State and start time out of a line of /proc/pid/stat. The name in parentheses may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Runs a program to its end and returns its standard output; fails with what it said.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<String> {
    run_with_input(program, arguments, "")
}

/// As [`run`], with text on standard input.
pub(crate) fn run_with_input<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>, input: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| spawn_error(program, source))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading its input says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|source| spawn_error(program, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let stderr = if said.is_empty() { output.status.to_string() } else { said };
    Err(Error::Command { command: format!("{command:?}").replace('"', ""), stderr })
}

/// A missing program is the commonest failure; it gets the remedy.
pub(crate) fn spawn_error(program: &str, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::Missing(program.to_owned()),
        _ => Error::Io { what: format!("starting {program}"), source },
    }
}

/// Writes a file so that readers see the old or the new content, never a part.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    fs::write(temporary, content).map_err(Error::io("writing", temporary))?;
    fs::rename(temporary, path).map_err(Error::io("renaming to", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_does_not_confuse_the_start_time() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 1 2 3 4 20 0 1 0 98765 1000 200";
        assert_eq!(parse_stat(stat), Some(('S', 98765)));
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not_it() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert!(own.alive());
        assert!(!ProcessId { start: own.start + 1, ..own }.alive());
    }

    #[test]
    fn a_missing_program_is_named_with_the_remedy() {
        let error = run("no-such-program-here", ["x"]).unwrap_err().to_string();
        assert_eq!(error, "no-such-program-here is not installed: run ci/setup");
    }
}
