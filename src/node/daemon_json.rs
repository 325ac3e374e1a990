//! Docker on a host that is to use a registry without TLS: its `daemon.json`, its reload, its word that it has understood.
//!
//! Several services share the file: each claims its entries, and an entry leaves with the last claim. What somebody else has put there
//! is nobody's of us.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::docker_reload::{Daemon, Insecure};
use super::files::{FileError, Found, HostFiles, Removal};
use super::insecure::DaemonJson;
use super::manifest::HostState;
use crate::digest::sha256_hex;
use crate::host_paths::HostRoot;

/// After docker has not taken a change, how long the same change is not tried again: every try makes it reload twice.
const LEAVE_ALONE: Duration = Duration::from_secs(600);

/// Which entries are ours, and what else was not there before the first of us.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DockerClaims {
    /// Entries and the services that need them.
    pub(crate) entries: BTreeMap<String, BTreeSet<String>>,
    /// The file was not there.
    pub(crate) created_file: bool,
    /// The key was not there.
    pub(crate) created_key: bool,
}

/// A change that docker has not taken.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Digest of file and wanted entries.
    of: String,
    at: Instant,
    error: String,
}

/// Remembers the last refusal for as long as the node runs.
pub(crate) type LastRefusal = Arc<Mutex<Option<Refused>>>;

/// Docker's list of insecure registries on one host, seen by one service. Hold the shared lock while using it.
pub(crate) struct InsecureList<'a> {
    pub(crate) files: &'a HostFiles,
    pub(crate) root: &'a HostRoot,
    pub(crate) service: &'a str,
    pub(crate) last_refusal: &'a LastRefusal,
}

impl InsecureList<'_> {
    /// Makes docker treat exactly `wanted` as insecure for this service, and says whether anything had to change.
    ///
    /// An error leaves the file as it was, or with entries of ours that docker has not yet forgotten.
    pub(crate) fn settle(&self, state: &mut HostState, wanted: &BTreeSet<String>) -> Result<bool, String> {
        let before = state.docker.clone().unwrap_or_default();
        if wanted.is_empty() && !before.entries.values().any(|services| services.contains(self.service)) {
            return Ok(false);
        }
        let daemon = Daemon { root: self.root };
        let path = self.root.docker_daemon_json();
        let unusable = |reason: String| format!("{} is left as it is: {reason}", path.display());
        let docker = daemon.insecure()?;
        if docker.is_none() && !wanted.is_empty() {
            return Err(format!(
                "there is no docker daemon at {}, and nothing else here can be told to do without TLS",
                self.root.docker_socket().display()
            ));
        }
        let found = match self.files.look(&path).map_err(text_of)? {
            Found::Absent => None,
            Found::File(content) => Some(content),
            Found::Link(_) => return Err(FileError::Symlink(path).to_string()),
            Found::Other => return Err(FileError::InTheWay(path).to_string()),
        };
        let old = DaemonJson::parse(found.as_deref()).map_err(|error| unusable(error.to_string()))?;
        let present = old.entries();
        let knows = |entry: &str| docker.as_ref().is_some_and(|docker| docker.covers(entry));

        let mut claims = before.clone();
        let mut leaving = Vec::new();
        for (entry, services) in &mut claims.entries {
            if !wanted.contains(entry) && services.remove(self.service) && services.is_empty() {
                leaving.push(entry.clone());
            }
        }
        let is_missing = |entry: &&String| !present.contains(*entry) && (before.entries.contains_key(*entry) || !knows(entry));
        let missing: Vec<String> = wanted.iter().filter(is_missing).cloned().collect();
        for entry in wanted.iter().filter(|entry| missing.contains(*entry) || before.entries.contains_key(*entry)) {
            claims.entries.entry(entry.clone()).or_default().insert(self.service.to_string());
        }
        if !missing.is_empty() {
            if let Some(conflict) = daemon.conflict() {
                return Err(unusable(conflict));
            }
            claims.created_file |= found.is_none();
            claims.created_key |= !old.has_list();
        }
        let mut new = old.clone();
        leaving.iter().for_each(|entry| new.remove(entry));
        missing.iter().for_each(|entry| new.add(entry));
        let settled = |docker: &Insecure| {
            let listed = wanted.iter().filter(|entry| present.contains(entry) || missing.contains(entry));
            listed.into_iter().all(|entry| docker.has_entry(entry)) && !leaving.iter().any(|entry| docker.has_entry(entry))
        };
        let change = sha256_hex(format!("{}{wanted:?}", old.text()).as_bytes());
        if let Some(error) = self.refused_before(&change) {
            return Err(error);
        }
        // Noted before it is done: what a kill leaves behind is known to be ours.
        let noted = DockerClaims { entries: union(&before.entries, &claims.entries), ..claims.clone() };
        state.docker = (!noted.entries.is_empty()).then_some(noted);
        state.created_dirs.extend(self.files.missing_dirs(&self.root.docker_etc()).map_err(text_of)?);
        state.save(self.files, self.root).map_err(text_of)?;

        let mut changed = new != old;
        if changed {
            self.files.create_dirs(&self.root.docker_etc(), 0o755).map_err(text_of)?;
            self.files.rewrite(&path, new.text().as_bytes()).map_err(text_of)?;
        }
        if docker.is_some_and(|docker| !settled(&docker)) {
            changed = true;
            if let Err(error) = daemon.reload(settled) {
                if missing.is_empty() {
                    if leaving.is_empty() {
                        *self.refusal() = Some(Refused { of: change, at: Instant::now(), error: error.clone() });
                    }
                    return Err(error);
                }
                let taken_back = self.take_back(found.as_deref(), &daemon, &missing);
                state.docker = (!before.entries.is_empty()).then_some(before);
                state.save(self.files, self.root).map_err(text_of)?;
                let error = format!("{error}. {taken_back}");
                *self.refusal() = Some(Refused { of: change, at: Instant::now(), error: error.clone() });
                return Err(error);
            }
        }
        leaving.iter().for_each(|entry| drop(claims.entries.remove(entry)));
        // Docker forgets entries only when it reads a list without them, so an empty list goes after that.
        if claims.entries.is_empty() && !leaving.is_empty() {
            let mut rest = new;
            if claims.created_key {
                rest.remove_empty_list();
            }
            if claims.created_file && rest.is_empty() {
                let ours = self.files.look(&path).map_err(text_of)?.digest().into_iter().collect::<Vec<_>>();
                let (Removal::Gone | Removal::Kept) = self.files.remove(&path, &ours).map_err(text_of)?;
            } else {
                self.files.rewrite(&path, rest.text().as_bytes()).map_err(text_of)?;
            }
        }
        state.docker = (!claims.entries.is_empty()).then_some(claims);
        state.save(self.files, self.root).map_err(text_of)?;
        Ok(changed)
    }

    /// Puts the file back as it was found, for a daemon that does not take it.
    fn take_back(&self, found: Option<&[u8]>, daemon: &Daemon, missing: &[String]) -> String {
        let path = self.root.docker_daemon_json();
        let put_back = match found {
            Some(content) => self.files.rewrite(&path, content).map(drop),
            None => self.files.look(&path).and_then(|now| {
                let ours: Vec<String> = now.digest().into_iter().collect();
                self.files.remove(&path, &ours).map(drop)
            }),
        };
        if let Err(error) = put_back {
            return format!("The change could not be taken back: {error}; take insecure-registries out of {} by hand", path.display());
        }
        match daemon.reload(|docker| !missing.iter().any(|entry| docker.has_entry(entry))) {
            Ok(()) => format!("The change of {} was taken back, and docker reloaded without it", path.display()),
            Err(error) => format!("The change of {} was taken back, but docker may not have read that: {error}", path.display()),
        }
    }

    fn refused_before(&self, change: &str) -> Option<String> {
        let refusal = self.refusal();
        refusal.as_ref().filter(|refused| refused.of == change && refused.at.elapsed() < LEAVE_ALONE).map(|refused| refused.error.clone())
    }

    fn refusal(&self) -> std::sync::MutexGuard<'_, Option<Refused>> {
        // Only ever replaced as a whole.
        self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Entries = BTreeMap<String, BTreeSet<String>>;

fn union(one: &Entries, other: &Entries) -> Entries {
    let mut all = one.clone();
    for (entry, services) in other {
        all.entry(entry.clone()).or_default().extend(services.iter().cloned());
    }
    all
}

fn text_of(error: FileError) -> String {
    error.to_string()
}
