//! What can go wrong on the host side of the lab.

use std::{io, path::Path};

/// Result of the host side.
pub type Result<T> = std::result::Result<T, Error>;

/// Says in a plain sentence what failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or system call.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program that the lab needs is not installed.
    #[error("{0} is not installed: run ci/setup")]
    Missing(String),
    /// A program ended with a failure.
    #[error("`{command}` failed: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// What it said, or its exit status.
        stderr: String,
    },
    /// No such machine, or it is down.
    #[error("there is no running machine {0} in the lab")]
    NoMachine(String),
    /// Waited in vain.
    #[error("{0}")]
    Timeout(String),
    /// The request makes no sense as things stand.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{what} {}", path.display());
        move |source| Self::Io { what, source }
    }
}

impl From<nix::Error> for Error {
    fn from(errno: nix::Error) -> Self {
        Self::Io { what: "system call".to_owned(), source: errno.into() }
    }
}
