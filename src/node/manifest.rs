//! What this program remembers on the host: per service which files are its own, and for all services together which
//! directories and settings they found and changed.
//!
//! Both are written before what they name is done, so that a kill in between leaves nothing that nobody owns.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::fstat;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::daemon_json::DockerClaims;
use super::files::{FileError, Found, HostFiles, Item};
use crate::host_paths::HostRoot;
use crate::protocol::{OwnedFile, SignedOrder};

const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// One service's own record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The last order taken.
    pub(crate) order: Option<SignedOrder>,
    /// The files that are ours.
    pub(crate) files: BTreeMap<PathBuf, Entry>,
    /// Whether files in the system's certificate store have changed since its tool has read them.
    #[serde(default)]
    pub(crate) store_is_stale: bool,
}

/// A file that is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Every content that may be there as ours, as digests: while a write is under way the old one and the new one.
    pub(crate) digests: Vec<String>,
    /// Whether a write has ever been completed. Before that only the content can tell that the file is ours.
    pub(crate) written: bool,
}

impl Manifest {
    /// Where it lies.
    pub(crate) fn path(root: &HostRoot, service: &str) -> PathBuf {
        root.node_state(service).join("manifest.json")
    }

    /// The record of a service, empty when there is none.
    pub(crate) fn load(files: &HostFiles, root: &HostRoot, service: &str) -> Result<Self, FileError> {
        Ok(load(files, &Self::path(root, service))?.unwrap_or_default())
    }

    /// Writes it, if it differs from what is there.
    pub(crate) fn save(&self, files: &HostFiles, root: &HostRoot, service: &str) -> Result<(), FileError> {
        save(files, &Self::path(root, service), self)
    }

    /// Whether what was found at `path` may be replaced by us.
    pub(crate) fn owns(&self, path: &Path, found: &Found) -> bool {
        self.files.get(path).is_some_and(|entry| entry.written || found.digest().is_some_and(|digest| entry.digests.contains(&digest)))
    }

    /// Notes that `item` is about to be written.
    pub(crate) fn intend(&mut self, path: &Path, item: &Item) {
        let entry = self.files.entry(path.to_path_buf()).or_default();
        let digest = item.digest();
        if !entry.digests.contains(&digest) {
            entry.digests.push(digest);
        }
    }

    /// Notes that `item` has been written.
    pub(crate) fn complete(&mut self, path: &Path, item: &Item) {
        self.files.insert(path.to_path_buf(), Entry { digests: vec![item.digest()], written: true });
    }

    /// The files as `/status` shows them, with the content that was intended last.
    pub(crate) fn owned(&self) -> Vec<OwnedFile> {
        let shown = |(path, entry): (&PathBuf, &Entry)| OwnedFile {
            path: path.display().to_string(),
            sha256: entry.digests.last().cloned().unwrap_or_default(),
        };
        self.files.iter().map(shown).collect()
    }
}

/// What all services of ours on this host share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostState {
    /// Services that are on this host.
    pub(crate) services: BTreeSet<String>,
    /// Directories that were not there before us. Whoever leaves removes those that are empty by then.
    pub(crate) created_dirs: BTreeSet<PathBuf>,
    /// The sysctl.
    pub(crate) sysctl: Option<SysctlClaims>,
    /// Docker's list of insecure registries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) docker: Option<DockerClaims>,
}

/// Who needs the sysctl, and what to put back after the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SysctlClaims {
    /// The value before the first of us changed it.
    pub(crate) found: String,
    /// Services that want it set.
    pub(crate) claimed_by: BTreeSet<String>,
    /// Whether the file in `/etc/sysctl.d` is ours.
    pub(crate) drop_in: bool,
}

impl HostState {
    /// Where it lies.
    pub(crate) fn path(root: &HostRoot) -> PathBuf {
        root.shared_state().join("host.json")
    }

    /// The shared record, empty when there is none. Hold the [`SharedLock`] from here to the last save.
    pub(crate) fn load(files: &HostFiles, root: &HostRoot) -> Result<Self, FileError> {
        Ok(load(files, &Self::path(root))?.unwrap_or_default())
    }

    /// Writes it, if it differs from what is there.
    pub(crate) fn save(&self, files: &HostFiles, root: &HostRoot) -> Result<(), FileError> {
        save(files, &Self::path(root), self)
    }
}

/// The lock on what services share: an `flock` on the directory itself, so that no lock file is left behind.
pub(crate) struct SharedLock {
    _held: Flock<OwnedFd>,
}

impl SharedLock {
    /// Takes the lock on `dir`, or gives up after some seconds. `None` if the directory does not exist.
    pub(crate) fn take(files: &HostFiles, dir: &Path) -> Result<Option<Self>, FileError> {
        let started = Instant::now();
        loop {
            let Some(fd) = files.open_dir(dir)? else { return Ok(None) };
            match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
                // The last holder may have removed the directory; then this is a lock on nothing.
                Ok(held) if is_still(files, dir, &held)? => return Ok(Some(Self { _held: held })),
                Ok(_) => continue,
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {}
                Err((_, source)) => return Err(FileError::System { doing: "lock", path: dir.to_path_buf(), source }),
            }
            if started.elapsed() > LOCK_PATIENCE {
                return Err(FileError::Locked(dir.to_path_buf(), LOCK_PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn is_still(files: &HostFiles, dir: &Path, held: &OwnedFd) -> Result<bool, FileError> {
    let system = |source| FileError::System { doing: "look at", path: dir.to_path_buf(), source };
    let Some(now) = files.open_dir(dir)? else { return Ok(false) };
    Ok(fstat(held).map_err(system)?.st_ino == fstat(&now).map_err(system)?.st_ino)
}

/// A state file, if it is there.
pub(super) fn load<T: DeserializeOwned>(files: &HostFiles, path: &Path) -> Result<Option<T>, FileError> {
    let unreadable = |reason: String| FileError::State { path: path.to_path_buf(), reason };
    match files.look(path)? {
        Found::Absent => Ok(None),
        Found::File(content) => crate::json::of_bytes(&content).map(Some).map_err(|e| unreadable(e.to_string())),
        Found::Link(_) | Found::Other => Err(unreadable("it is not a regular file".into())),
    }
}

/// Writes a state file, if it differs from what is there.
pub(super) fn save<T: Serialize>(files: &HostFiles, path: &Path, state: &T) -> Result<(), FileError> {
    let json = serde_json::to_vec_pretty(state).map_err(|e| FileError::State { path: path.to_path_buf(), reason: e.to_string() })?;
    files.put(path, &Item::PrivateFile(json)).map(drop)
}

/// Removes a state file.
pub(super) fn remove_state(files: &HostFiles, path: &Path) -> Result<(), FileError> {
    let found = files.look(path)?;
    let digest: Vec<String> = found.digest().into_iter().collect();
    files.remove(path, &digest).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_write_is_complete_only_the_content_says_that_a_file_is_ours() {
        let (path, ours) = (Path::new("/etc/x"), Item::File(b"ours".to_vec()));
        let mut manifest = Manifest::default();
        manifest.intend(path, &ours);
        assert!(manifest.owns(path, &Found::File(b"ours".to_vec())));
        assert!(!manifest.owns(path, &Found::File(b"theirs".to_vec())));
        manifest.complete(path, &ours);
        assert!(manifest.owns(path, &Found::File(b"edited later".to_vec())));
    }

    #[test]
    fn while_a_file_is_replaced_both_contents_are_ours() {
        let (path, old, new) = (Path::new("/etc/x"), Item::File(b"old".to_vec()), Item::File(b"new".to_vec()));
        let mut manifest = Manifest::default();
        manifest.complete(path, &old);
        manifest.intend(path, &new);
        assert_eq!(manifest.files[path].digests, [old.digest(), new.digest()]);
        assert_eq!(manifest.owned()[0].sha256, new.digest());
    }

    #[test]
    fn the_lock_keeps_a_second_holder_out_and_a_removed_directory_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let files = HostFiles::open(&HostRoot::at(dir.path()), "a").unwrap();
        let shared = dir.path().join("shared");
        assert!(SharedLock::take(&files, &shared).unwrap().is_none());
        files.create_dirs(&shared, 0o755).unwrap();
        let held = SharedLock::take(&files, &shared).unwrap().unwrap();
        let fd = files.open_dir(&shared).unwrap().unwrap();
        assert!(matches!(Flock::lock(fd, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK))));
        drop(held);
        let fd = files.open_dir(&shared).unwrap().unwrap();
        std::fs::remove_dir(&shared).unwrap();
        assert!(!is_still(&files, &shared, &fd).unwrap());
    }
}
