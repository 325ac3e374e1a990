//! What a preload has brought into this host's docker and takes out again. It is on record before docker gets it, so that nothing stays
//! where the node is killed meanwhile: the next node of the service removes it, or the restore of the host does.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::files::{FileError, HostFiles};
use super::manifest::{load, remove_state, save};
use crate::host_paths::HostRoot;

/// Docker deletes the layers of an image before it answers.
const PATIENCE: Duration = Duration::from_secs(120);
/// What docker says of an image that it has removed is shorter.
const LONGEST_ANSWER: u64 = 1024 * 1024;

/// The record of one service on one host.
#[derive(Debug, Clone)]
pub(crate) struct Leftovers {
    root: HostRoot,
    service: String,
    /// Whoever reads and writes the record.
    held: Arc<Mutex<()>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    images: BTreeSet<String>,
}

impl Leftovers {
    pub(super) fn new(root: HostRoot, service: String) -> Self {
        Self { root, service, held: Arc::default() }
    }

    /// Where the record lies while there is something on it.
    fn path(&self) -> PathBuf {
        self.root.node_state(&self.service).join("preload.json")
    }

    fn files(&self) -> Result<HostFiles, FileError> {
        HostFiles::open(&self.root, &self.service.trim_matches('/').replace('/', "."))
    }

    fn hold(&self) -> MutexGuard<'_, ()> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts images on record that docker does not have and gets now. `wanted` is asked when nobody else can come in between any more: after
    /// the host has been restored nothing may be written.
    pub(super) fn note(&self, images: &[String], wanted: impl Fn() -> bool) -> Result<(), String> {
        let _held = self.hold();
        if !wanted() {
            return Err("these images are not to be copied any more".into());
        }
        let noted = self.files().and_then(|files| {
            let mut record: Record = load(&files, &self.path())?.unwrap_or_default();
            record.images.extend(images.iter().cloned());
            if record.images.is_empty() { Ok(()) } else { save(&files, &self.path(), &record) }
        });
        noted.map_err(|error| error.to_string())
    }

    /// Has docker remove all that is on record, and says what stays and why.
    pub(super) fn clean(&self) -> Result<(), String> {
        let _held = self.hold();
        let files = self.files().map_err(|error| error.to_string())?;
        let Some(mut record) = load::<Record>(&files, &self.path()).map_err(|error| error.to_string())? else { return Ok(()) };
        let mut errors = Vec::new();
        for image in std::mem::take(&mut record.images) {
            match remove(&self.root.docker_socket(), &image) {
                Ok(200 | 404) => {}
                Ok(409) => tracing::warn!(image, "a container here uses what was copied into the registry, so it stays in docker"),
                Ok(status) => errors.push((image, format!("docker answers {status}"))),
                Err(error) => errors.push((image, format!("docker does not answer at {}: {error}", self.root.docker_socket().display()))),
            }
        }
        record.images.extend(errors.iter().map(|(image, _)| image.clone()));
        let path = self.path();
        let kept = if errors.is_empty() { remove_state(&files, &path) } else { save(&files, &path, &record) };
        kept.map_err(|error| error.to_string())?;
        let told =
            errors.iter().map(|(image, why)| format!("{image}, which was copied into the registry, is still in this host's docker: {why}"));
        if errors.is_empty() { Ok(()) } else { Err(told.collect::<Vec<_>>().join("; ")) }
    }
}

/// Has docker remove an image by its name, and returns what it answers.
fn remove(socket: &Path, image: &str) -> io::Result<u16> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "DELETE /images/{image} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
    let line = String::from_utf8_lossy(answer.split(|byte| *byte == b'\n').next().unwrap_or_default());
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("it is no HTTP: {line:?}")))
}
