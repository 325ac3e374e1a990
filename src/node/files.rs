//! The one module that changes files of the host.
//!
//! The process is root and the paths are partly made of names that come from outside. So every path is walked from the
//! [`HostRoot`] one component at a time without following symbolic links, a file appears or changes only by the rename of
//! a complete and synced one, and nothing is written when the content is the same already.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, symlinkat, unlinkat};

use crate::digest::sha256_hex;
use crate::host_paths::HostRoot;

/// The largest file of the host that is read, in bytes. What is larger was not written by us.
pub(crate) const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;

/// Why a file of the host could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// A path that does not lie below the root.
    #[error("{0} is not a path below the host's root; this is a bug")]
    Outside(PathBuf),
    /// A directory on the way is a symbolic link.
    #[error("{0} is a symbolic link, and root does not write through one; make it a real directory (a bind mount does as well)")]
    Symlink(PathBuf),
    /// A directory on the way is something else.
    #[error("{0} is not a directory; move it out of the way")]
    NotADirectory(PathBuf),
    /// The file itself is a directory, a device, a link where a file is due, or too large.
    #[error("{0} is in the way: it is not ours and cannot be replaced; move it away")]
    InTheWay(PathBuf),
    /// The system said no.
    #[error("cannot {doing} {path}: {source}{}", remedy(*.source))]
    System {
        /// What was tried.
        doing: &'static str,
        /// With which path.
        path: PathBuf,
        /// The answer.
        source: Errno,
    },
    /// A state file that this program cannot read.
    #[error(
        "{path} is not readable as state of this program ({reason}); move it away, and the files that it named count as foreign from then on"
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither Debian's nor Red Hat's.
    #[error(
        "this host has no certificate store that we know (ca-certificates of Debian or Red Hat); install it, or switch trust.system off"
    )]
    NoSystemStore,
    /// Somebody else's change came in between.
    #[error("{0} was changed by somebody else at the same time; tried again on the next pass")]
    Changed(PathBuf),
    /// The program that puts the system's store together.
    #[error("{0} failed: {1}; tried again on the next pass")]
    Program(PathBuf, String),
    /// Another service of ours holds the lock for long.
    #[error("another node of this host has held the lock on {0} for more than {1} s; tried again on the next pass")]
    Locked(PathBuf, u64),
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => "; remount the file system writable",
        Errno::ENOSPC | Errno::EDQUOT => "; free space on that file system",
        Errno::EACCES | Errno::EPERM => "; the node must run as root, and an immutable flag or a security module must allow the write",
        Errno::ENAMETOOLONG => "; use a shorter name",
        _ => "",
    }
}

/// What lies at a path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Absent,
    /// A regular file of bounded size.
    File(Vec<u8>),
    /// A symbolic link, with its target.
    Link(OsString),
    /// Anything else.
    Other,
}

impl Found {
    /// SHA-256 of the content, or of the target of a link.
    pub(crate) fn digest(&self) -> Option<String> {
        match self {
            Found::File(content) => Some(sha256_hex(content)),
            Found::Link(target) => Some(sha256_hex(target.as_bytes())),
            Found::Absent | Found::Other => None,
        }
    }
}

/// What should lie at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// A file with this content, mode 0644.
    File(Vec<u8>),
    /// A file with this content, mode 0600.
    PrivateFile(Vec<u8>),
    /// A symbolic link to a name in the same directory.
    Link(String),
}

impl Item {
    /// SHA-256 of the content, or of the target of a link.
    pub(crate) fn digest(&self) -> String {
        match self {
            Item::File(content) | Item::PrivateFile(content) => sha256_hex(content),
            Item::Link(target) => sha256_hex(target.as_bytes()),
        }
    }

    fn equals(&self, found: &Found) -> bool {
        match (self, found) {
            (Item::File(want) | Item::PrivateFile(want), Found::File(have)) => want == have,
            (Item::Link(want), Found::Link(have)) => OsStr::new(want) == have,
            _ => false,
        }
    }
}

/// What became of a removal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is gone, by us or before.
    Gone,
    /// Its content is not what we wrote, so it stays.
    Kept,
}

/// The host's files, as one service may change them.
pub(crate) struct HostFiles {
    root: HostRoot,
    top: OwnedFd,
    /// Part of the names of temporary files, so that those which a kill left behind are found again.
    owner: String,
}

impl HostFiles {
    /// Opens the root. `owner` is a file-name-safe name of the service.
    pub(crate) fn open(root: &HostRoot, owner: &str) -> Result<Self, FileError> {
        let top = open(root.path(), directory_flags() & !OFlag::O_NOFOLLOW, Mode::empty()).map_err(failed("open", root.path()))?;
        Ok(Self { root: root.clone(), top, owner: owner.to_string() })
    }

    /// Reads what lies at `path`. An absent parent directory means that the file is absent.
    pub(crate) fn look(&self, path: &Path) -> Result<Found, FileError> {
        match self.parent(path)? {
            Some((dir, name)) => look_at(&dir, &name, path),
            None => Ok(Found::Absent),
        }
    }

    /// Puts `item` at `path`, whose directory must exist. Says whether anything had to change.
    ///
    /// A file may replace a file and a link a link; anything else in the way is an error. Whether that file or link may be
    /// replaced is the caller's to know.
    pub(crate) fn put(&self, path: &Path, item: &Item) -> Result<bool, FileError> {
        let (dir, name) = self.parent(path)?.ok_or(Errno::ENOENT).map_err(failed("write", path))?;
        let found = look_at(&dir, &name, path)?;
        if item.equals(&found) {
            return Ok(false);
        }
        match (item, &found) {
            (_, Found::Absent) | (Item::File(_) | Item::PrivateFile(_), Found::File(_)) | (Item::Link(_), Found::Link(_)) => {}
            _ => return Err(FileError::InTheWay(path.to_path_buf())),
        }
        let temporary = self.temporary(&name);
        unlink(&dir, &temporary).map_err(failed("remove the old temporary file of", path))?;
        let done = make(&dir, &temporary, item)
            .map_err(failed("write", path))
            .and_then(|()| renameat(&dir, temporary.as_os_str(), &dir, name.as_os_str()).map_err(failed("replace", path)))
            .and_then(|()| fsync(&dir).map_err(failed("sync the directory of", path)));
        if done.is_err() {
            // The first error is the one to tell; a left-over is removed by the next write or removal of this path.
            let _ = unlink(&dir, &temporary);
        }
        done.map(|()| self.tell("written", path)).map(|()| true)
    }

    /// Replaces the content of a file that is not ours alone; its mode and owner stay. A new one gets mode 0644. `found` is what it was
    /// made from: what somebody has written since is not lost.
    pub(crate) fn rewrite(&self, path: &Path, found: Option<&[u8]>, content: &[u8]) -> Result<bool, FileError> {
        let (dir, name) = self.parent(path)?.ok_or(Errno::ENOENT).map_err(failed("write", path))?;
        let (mode, owner) = match look_at(&dir, &name, path)? {
            Found::File(now) if now == content => return Ok(false),
            Found::Absent if found.is_some() => return Err(FileError::Changed(path.to_path_buf())),
            Found::File(now) if found != Some(now.as_slice()) => return Err(FileError::Changed(path.to_path_buf())),
            Found::Absent => (Mode::from_bits_truncate(0o644), None),
            Found::File(_) => {
                let stat = fstatat(&dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("look at", path))?;
                (Mode::from_bits_truncate(stat.st_mode & 0o7777), Some((stat.st_uid, stat.st_gid)))
            }
            Found::Link(_) => return Err(FileError::Symlink(path.to_path_buf())),
            Found::Other => return Err(FileError::InTheWay(path.to_path_buf())),
        };
        let temporary = self.temporary(&name);
        unlink(&dir, &temporary).map_err(failed("remove the old temporary file of", path))?;
        let done = make_file(&dir, &temporary, content, mode, owner)
            .and_then(|()| renameat(&dir, temporary.as_os_str(), &dir, name.as_os_str()))
            .and_then(|()| fsync(&dir))
            .map_err(failed("write", path));
        if done.is_err() {
            // As in `put`.
            let _ = unlink(&dir, &temporary);
        }
        done.map(|()| self.tell("written", path)).map(|()| true)
    }

    /// Removes `path` if its content is one of `ours` (digests), and what an interrupted write left beside it.
    pub(crate) fn remove(&self, path: &Path, ours: &[String]) -> Result<Removal, FileError> {
        let Some((dir, name)) = self.parent(path)? else { return Ok(Removal::Gone) };
        unlink(&dir, &self.temporary(&name)).map_err(failed("remove the temporary file of", path))?;
        let found = look_at(&dir, &name, path)?;
        match found.digest() {
            _ if found == Found::Absent => return Ok(Removal::Gone),
            Some(digest) if ours.contains(&digest) => {}
            _ => return Ok(Removal::Kept),
        }
        unlink(&dir, &name).map_err(failed("remove", path))?;
        fsync(&dir).map_err(failed("sync the directory of", path))?;
        self.tell("removed", path);
        Ok(Removal::Gone)
    }

    /// The names in a directory, in order; none if it is absent, or no directory that is reached without symbolic links.
    pub(crate) fn names_in(&self, path: &Path) -> Result<Vec<OsString>, FileError> {
        let fd = match self.open_dir(path) {
            Ok(Some(fd)) => fd,
            Ok(None) | Err(FileError::Symlink(_) | FileError::NotADirectory(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in Dir::from_fd(fd).map_err(failed("list", path))?.iter() {
            let entry = entry.map_err(failed("list", path))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_os_string());
            }
        }
        crate::in_order::sort_by(&mut names, Ord::cmp);
        Ok(names)
    }

    /// The directories on the way to and including `path` that do not exist, outermost first.
    pub(crate) fn missing_dirs(&self, path: &Path) -> Result<Vec<PathBuf>, FileError> {
        let mut missing = Vec::new();
        for dir in self.lineage(path)? {
            if !missing.is_empty() || self.open_dir(&dir)?.is_none() {
                missing.push(dir);
            }
        }
        Ok(missing)
    }

    /// Makes the directory `path` and those on the way to it. The last one gets `mode`, the others 0755.
    pub(crate) fn create_dirs(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        for dir in self.missing_dirs(path)? {
            let bits = if dir == path { mode } else { 0o755 };
            let (parent, name) = self.parent(&dir)?.ok_or(Errno::ENOENT).map_err(failed("create", &dir))?;
            match mkdirat(&parent, name.as_os_str(), Mode::from_bits_truncate(bits)) {
                Ok(()) => {}
                Err(Errno::EEXIST) => continue,
                Err(errno) => return Err(failed("create", &dir)(errno)),
            }
            let made = self.open_dir(&dir)?.ok_or(Errno::ENOENT).map_err(failed("create", &dir))?;
            // The umask took its part of the mode.
            fchmod(&made, Mode::from_bits_truncate(bits)).map_err(failed("set the mode of", &dir))?;
            fsync(&parent).map_err(failed("sync the directory of", &dir))?;
        }
        Ok(())
    }

    /// Removes a directory if it is empty. Says whether it is gone.
    pub(crate) fn remove_empty_dir(&self, path: &Path) -> Result<bool, FileError> {
        let Some((parent, name)) = self.parent(path)? else { return Ok(true) };
        match unlinkat(&parent, name.as_os_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) => {
                fsync(&parent).map_err(failed("sync the directory of", path))?;
                Ok(true)
            }
            Err(Errno::ENOENT) => Ok(true),
            // EBUSY: something is mounted there. ENOTDIR: somebody put something else in its place.
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EBUSY | Errno::ENOTDIR) => Ok(false),
            Err(errno) => Err(failed("remove", path)(errno)),
        }
    }

    /// Writes a value into an existing file of the kernel, which knows no rename.
    pub(crate) fn set_kernel_value(&self, path: &Path, value: &str) -> Result<(), FileError> {
        let (dir, name) = self.parent(path)?.ok_or(Errno::ENOENT).map_err(failed("set", path))?;
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&dir, name.as_os_str(), flags, Mode::empty()).map_err(failed("set", path))?;
        File::from(file).write_all(format!("{value}\n").as_bytes()).map_err(|e| failed("set", path)(errno(&e)))?;
        tracing::info!(path = %path.display(), value, "set");
        Ok(())
    }

    /// Whoever reads a node's log sees every change of the host there. Its own notes are of use to us alone.
    fn tell(&self, what: &str, path: &Path) {
        if path.starts_with(self.root.shared_state()) {
            tracing::debug!(path = %path.display(), "{what}");
        } else {
            tracing::info!(path = %path.display(), "{what}");
        }
    }

    /// Opens a directory without following links. `None` if it, or one on the way, is absent.
    pub(crate) fn open_dir(&self, path: &Path) -> Result<Option<OwnedFd>, FileError> {
        let mut fd = self.top.try_clone().map_err(|e| failed("open", path)(errno(&e)))?;
        for dir in self.lineage(path)? {
            let name = dir.file_name().unwrap_or_default();
            fd = match openat(&fd, name, directory_flags(), Mode::empty()) {
                Ok(next) => next,
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(not_a_directory(&fd, name, &dir)),
                Err(errno) => return Err(failed("open", &dir)(errno)),
            };
        }
        Ok(Some(fd))
    }

    /// Every directory from the root's first child down to `path`.
    fn lineage(&self, path: &Path) -> Result<Vec<PathBuf>, FileError> {
        let outside = || FileError::Outside(path.to_path_buf());
        let below = path.strip_prefix(self.root.path()).map_err(|_| outside())?;
        let mut at = self.root.path().to_path_buf();
        below
            .components()
            .map(|component| match component {
                Component::Normal(name) => {
                    at.push(name);
                    Ok(at.clone())
                }
                _ => Err(outside()),
            })
            .collect()
    }

    fn parent(&self, path: &Path) -> Result<Option<(OwnedFd, OsString)>, FileError> {
        let outside = || FileError::Outside(path.to_path_buf());
        let name = path.file_name().ok_or_else(outside)?.to_os_string();
        let dir = self.open_dir(path.parent().ok_or_else(outside)?)?;
        Ok(dir.map(|dir| (dir, name)))
    }

    /// Docker reads `.crt`, `.cert` and `.key` in its directories, so a temporary file has none of these endings.
    fn temporary(&self, name: &OsStr) -> OsString {
        let mut temporary = OsString::from(format!(".private-registry.{}.", self.owner));
        temporary.push(name);
        temporary.push(".tmp");
        temporary
    }
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(Errno) -> FileError {
    let path = path.to_path_buf();
    move |source| FileError::System { doing, path: path.clone(), source }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn kind_of(dir: impl AsFd, name: &OsStr) -> Result<SFlag, Errno> {
    let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
}

fn not_a_directory(parent: &OwnedFd, name: &OsStr, path: &Path) -> FileError {
    match kind_of(parent, name) {
        Ok(SFlag::S_IFLNK) => FileError::Symlink(path.to_path_buf()),
        _ => FileError::NotADirectory(path.to_path_buf()),
    }
}

fn look_at(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<Found, FileError> {
    match kind_of(dir, name) {
        Err(Errno::ENOENT) => Ok(Found::Absent),
        Err(errno) => Err(failed("look at", path)(errno)),
        Ok(SFlag::S_IFLNK) => readlinkat(dir, name).map(Found::Link).map_err(failed("read the link", path)),
        Ok(SFlag::S_IFREG) => read(dir, name).map_err(failed("read", path)),
        Ok(_) => Ok(Found::Other),
    }
}

fn read(dir: &OwnedFd, name: &OsStr) -> Result<Found, Errno> {
    // Non-blocking: a FIFO put there after the look at its kind must not stop us.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(dir, name, flags, Mode::empty())?);
    let mut content = Vec::new();
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut content).map_err(|e| errno(&e))?;
    Ok(if content.len() > MAX_FILE_BYTES { Found::Other } else { Found::File(content) })
}

fn make(dir: &OwnedFd, name: &OsStr, item: &Item) -> Result<(), Errno> {
    match item {
        Item::Link(target) => symlinkat(target.as_str(), dir, name),
        Item::File(content) => make_file(dir, name, content, Mode::from_bits_truncate(0o644), None),
        Item::PrivateFile(content) => make_file(dir, name, content, Mode::from_bits_truncate(0o600), None),
    }
}

fn make_file(dir: &OwnedFd, name: &OsStr, content: &[u8], mode: Mode, owner: Option<(u32, u32)>) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(dir, name, flags, mode)?);
    file.write_all(content).map_err(|e| errno(&e))?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&file, Some(user), Some(group)).map_err(|e| errno(&e))?;
    }
    fchmod(&file, mode)?;
    fsync(&file)
}

/// Removes a name that may be absent.
fn unlink(dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn host() -> (tempfile::TempDir, HostFiles) {
        let dir = tempfile::tempdir().unwrap();
        let files = HostFiles::open(&HostRoot::at(dir.path()), "test").unwrap();
        (dir, files)
    }

    fn file(text: &str) -> Item {
        Item::File(text.as_bytes().to_vec())
    }

    #[test]
    fn an_equal_file_keeps_its_inode_and_time() {
        let (dir, files) = host();
        let path = dir.path().join("ca.crt");
        assert!(files.put(&path, &file("one")).unwrap());
        let before = fs::metadata(&path).unwrap();
        assert!(!files.put(&path, &file("one")).unwrap());
        let after = fs::metadata(&path).unwrap();
        assert_eq!((before.ino(), before.mtime_nsec(), before.ctime_nsec()), (after.ino(), after.mtime_nsec(), after.ctime_nsec()));
        assert!(files.put(&path, &file("two")).unwrap());
        assert_ne!(fs::metadata(&path).unwrap().ino(), before.ino(), "a changed file is a new file, so that readers see the whole of one");
    }

    #[test]
    fn a_write_leaves_only_the_file_with_its_mode() {
        let (dir, files) = host();
        files.put(&dir.path().join("public"), &file("x")).unwrap();
        files.put(&dir.path().join("private"), &Item::PrivateFile(b"x".to_vec())).unwrap();
        assert_eq!(fs::metadata(dir.path().join("public")).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(dir.path().join("private")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn no_directory_on_the_way_may_be_a_symbolic_link() {
        let (dir, files) = host();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("etc")).unwrap();
        let path = dir.path().join("etc/ca.crt");
        assert!(matches!(files.put(&path, &file("x")), Err(FileError::Symlink(_))));
        assert!(matches!(files.create_dirs(&dir.path().join("etc/docker"), 0o755), Err(FileError::Symlink(_))));
        assert!(matches!(files.remove(&path, &[]), Err(FileError::Symlink(_))));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_file_is_neither_followed_nor_replaced() {
        let (dir, files) = host();
        let victim = dir.path().join("victim");
        fs::write(&victim, "victim").unwrap();
        symlink(&victim, dir.path().join("ca.crt")).unwrap();
        assert!(matches!(files.put(&dir.path().join("ca.crt"), &file("x")), Err(FileError::InTheWay(_))));
        assert!(matches!(files.set_kernel_value(&dir.path().join("ca.crt"), "1"), Err(FileError::System { source: Errno::ELOOP, .. })));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "victim");
    }

    #[test]
    fn a_planted_temporary_name_is_not_written_through() {
        let (dir, files) = host();
        let victim = dir.path().join("victim");
        fs::write(&victim, "victim").unwrap();
        symlink(&victim, dir.path().join(files.temporary(OsStr::new("ca.crt")))).unwrap();
        files.put(&dir.path().join("ca.crt"), &file("x")).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "victim");
        assert_eq!(fs::read_to_string(dir.path().join("ca.crt")).unwrap(), "x");
    }

    #[test]
    fn no_path_leaves_the_root() {
        let (dir, files) = host();
        for bad in [dir.path().join("../x"), PathBuf::from("/etc/x"), dir.path().to_path_buf()] {
            assert!(matches!(files.put(&bad, &file("x")), Err(FileError::Outside(_))), "{bad:?}");
        }
    }

    #[test]
    fn only_our_content_is_removed() {
        let (dir, files) = host();
        let path = dir.path().join("ca.crt");
        fs::write(&path, "theirs").unwrap();
        assert_eq!(files.remove(&path, &[file("ours").digest()]).unwrap(), Removal::Kept);
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(files.remove(&path, &[file("ours").digest(), file("theirs").digest()]).unwrap(), Removal::Gone);
        assert!(!path.exists());
        assert_eq!(files.remove(&path, &[]).unwrap(), Removal::Gone);
    }

    #[test]
    fn what_an_interrupted_write_left_is_removed_with_the_file() {
        let (dir, files) = host();
        let left_over = dir.path().join(files.temporary(OsStr::new("ca.crt")));
        fs::write(&left_over, "half").unwrap();
        assert_eq!(files.remove(&dir.path().join("ca.crt"), &[]).unwrap(), Removal::Gone);
        assert!(!left_over.exists());
        fs::write(&left_over, "half").unwrap();
        files.put(&dir.path().join("ca.crt"), &file("whole")).unwrap();
        assert!(!left_over.exists());
    }

    #[test]
    fn a_link_is_replaced_by_a_link_only() {
        let (dir, files) = host();
        let path = dir.path().join("0a1b2c3d.0");
        assert!(files.put(&path, &Item::Link("a.crt".into())).unwrap());
        assert!(!files.put(&path, &Item::Link("a.crt".into())).unwrap());
        assert!(files.put(&path, &Item::Link("b.crt".into())).unwrap());
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("b.crt"));
        fs::write(dir.path().join("f"), "x").unwrap();
        assert!(matches!(files.put(&dir.path().join("f"), &Item::Link("a.crt".into())), Err(FileError::InTheWay(_))));
    }

    #[test]
    fn a_huge_file_counts_as_something_else() {
        let (dir, files) = host();
        let path = dir.path().join("huge");
        File::create(&path).unwrap().set_len(MAX_FILE_BYTES as u64 + 1).unwrap();
        assert_eq!(files.look(&path).unwrap(), Found::Other);
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(files.look(&dir.path().join("fifo")).unwrap(), Found::Other);
    }

    #[test]
    fn a_directory_is_listed_unless_it_is_reached_through_a_link() {
        let (dir, files) = host();
        fs::create_dir(dir.path().join("a")).unwrap();
        ["x", ".y"].iter().for_each(|name| fs::write(dir.path().join("a").join(name), "").unwrap());
        symlink(dir.path().join("a"), dir.path().join("link")).unwrap();
        assert_eq!(files.names_in(&dir.path().join("a")).unwrap(), [".y", "x"]);
        for none in ["link", "a/x", "absent"] {
            assert!(files.names_in(&dir.path().join(none)).unwrap().is_empty(), "{none}");
        }
    }

    #[test]
    fn directories_are_made_and_removed_only_when_empty() {
        let (dir, files) = host();
        let deep = dir.path().join("a/b/c");
        assert_eq!(files.missing_dirs(&deep).unwrap(), [dir.path().join("a"), dir.path().join("a/b"), deep.clone()]);
        files.create_dirs(&deep, 0o700).unwrap();
        assert!(files.missing_dirs(&deep).unwrap().is_empty());
        assert_eq!(fs::metadata(&deep).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!files.remove_empty_dir(&dir.path().join("a")).unwrap());
        assert!(files.remove_empty_dir(&deep).unwrap());
        assert!(files.remove_empty_dir(&deep).unwrap());
    }
}
