//! What the tutorial for DC/OS 1.9 leaves on every agent: the private key of a registry made by hand, readable by whoever gets on one of
//! them, its certificate, and copies of the certificate where docker looks for it.

use std::path::{Component, Path, PathBuf};

use super::files::{FileError, Found, HostFiles, Removal};
use super::manifest::{HostState, Manifest};
use crate::certificates::Certificate;
use crate::digest::sha256_hex;
use crate::host_paths::HostRoot;

/// See the module.
pub(crate) struct Tutorial<'a> {
    pub(crate) files: &'a HostFiles,
    pub(crate) root: &'a HostRoot,
}

impl Tutorial<'_> {
    /// The path of the key, if one lies there.
    pub(crate) fn exposed_key(&self) -> Result<Option<PathBuf>, FileError> {
        let path = self.root.exposed_key();
        Ok(self.key(&path)?.map(|_| path))
    }

    /// Removes key, certificate and its copies, and adds them to `gone`. The certificate goes last, since it tells its copies from other
    /// files: killed at any point, the next pass goes on. Directories that may be empty afterwards are noted in `state` beforehand.
    pub(crate) fn clean(&self, state: &mut HostState, ours: &Manifest, gone: &mut Vec<PathBuf>) -> Result<(), FileError> {
        let (key, certificate) = (self.root.exposed_key(), self.root.exposed_certificate());
        let mut paths: Vec<(PathBuf, String)> = self.key(&key)?.map(|digest| (key, digest)).into_iter().collect();
        if let Some(content) = self.certificate(&certificate)? {
            let copies = self.copies(&certificate, &content)?;
            paths.extend(copies.into_iter().filter(|(path, _)| !ours.files.contains_key(path)));
            paths.push((certificate, sha256_hex(&content)));
        }
        if paths.is_empty() {
            return Ok(());
        }
        let certs = self.root.tutorial_certs();
        state.created_dirs.extend(paths.iter().filter_map(|(path, _)| path.parent()).map(Path::to_path_buf));
        state.created_dirs.extend(certs.parent().map(Path::to_path_buf));
        state.save(self.files, self.root)?;
        for (path, digest) in paths {
            if self.files.remove(&path, &[digest])? == Removal::Gone {
                gone.push(path);
            }
        }
        Ok(())
    }

    /// The digest of the file at `path`, if it is a private key.
    fn key(&self, path: &Path) -> Result<Option<String>, FileError> {
        let Found::File(content) = self.look(path)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&content);
        let is_key = |line: &str| line.trim().strip_prefix("-----BEGIN ").is_some_and(|label| label.ends_with("PRIVATE KEY-----"));
        Ok(text.lines().any(is_key).then(|| sha256_hex(&content)))
    }

    fn certificate(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        let Found::File(content) = self.look(path)? else { return Ok(None) };
        let is_certificate = std::str::from_utf8(&content).is_ok_and(|text| Certificate::parse_bundle(text).is_ok());
        Ok(is_certificate.then_some(content))
    }

    /// What docker reads of this certificate, with digests: files of the same content, and links to it, which docker would stumble over
    /// once it is gone.
    fn copies(&self, certificate: &Path, content: &[u8]) -> Result<Vec<(PathBuf, String)>, FileError> {
        let certs = self.root.docker_certs();
        let mut copies = Vec::new();
        for name in self.files.names_in(&certs)? {
            let dir = certs.join(name);
            for file in self.files.names_in(&dir)? {
                let path = dir.join(file);
                if path.extension().is_none_or(|extension| extension != "crt") {
                    continue;
                }
                let found = self.look(&path)?;
                let is_copy = match &found {
                    Found::File(copy) => copy == content,
                    Found::Link(target) => plain(&dir.join(target)) == certificate,
                    Found::Absent | Found::Other => false,
                };
                copies.extend(found.digest().filter(|_| is_copy).map(|digest| (path, digest)));
            }
        }
        Ok(copies)
    }

    /// What is reached through symbolic links only is not of the tutorial.
    fn look(&self, path: &Path) -> Result<Found, FileError> {
        match self.files.look(path) {
            Err(FileError::Symlink(_) | FileError::NotADirectory(_)) => Ok(Found::Absent),
            other => other,
        }
    }
}

/// A path without `.` and `..`, as it is written.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}
