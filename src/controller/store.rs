//! Where the controller keeps what it must not forget: a directory of mode 0700 on its host, or the DC/OS secret store.

use std::path::PathBuf;
#[cfg(test)]
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::state::StateError;
use crate::dcos::secrets::{Secrets, path_for};
use crate::host_paths::HostRoot;
use crate::node::files::{Found, HostFiles, Item};
use crate::secret::Secret;

/// One thing that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Certificate and key of the CA together, so that a kill never leaves one without the other.
    Ca,
    /// The same of the CA that is made known beside it during a rotation.
    NextCa,
    /// The key that orders are signed with.
    OrderKey,
    /// The key that authenticates the registry's request.
    EnrolmentKey,
    /// Users of the registry whom this service keeps, and hashes of their passwords.
    Users,
    /// The part that is no secret.
    Record,
}

impl Entry {
    /// All there are.
    pub const ALL: [Self; 6] = [Self::Ca, Self::NextCa, Self::OrderKey, Self::EnrolmentKey, Self::Users, Self::Record];

    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Ca => "ca.pem",
            Self::NextCa => "next-ca.pem",
            Self::OrderKey => "order.key",
            Self::EnrolmentKey => "enrolment.key",
            Self::Users => "users",
            Self::Record => "state.json",
        }
    }

    fn secret(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::NextCa => "next-ca",
            Self::OrderKey => "order-key",
            Self::EnrolmentKey => "enrolment-key",
            Self::Users => "users",
            Self::Record => "state",
        }
    }

    /// Path in the secret store of a service's entry.
    pub fn secret_path(self, service: &str) -> String {
        path_for(service, self.secret())
    }
}

/// See the module.
pub struct Store {
    service: String,
    kept: Kept,
}

enum Kept {
    /// Open DC/OS: on this host.
    Host { files: HostFiles, dir: PathBuf, root: HostRoot },
    /// DC/OS Enterprise.
    Secrets(Secrets),
    #[cfg(test)]
    Shelf(Shelf),
}

/// A store in memory, which tests can look into, lose and refuse.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<Shelved>>);

/// What lies on a [`Shelf`].
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelved {
    pub(crate) entries: std::collections::BTreeMap<String, String>,
    /// How many writes succeed from now on; none: all.
    pub(crate) writes_left: Option<usize>,
    /// Whether nothing is answered.
    pub(crate) denied: bool,
}

#[cfg(test)]
impl Shelf {
    pub(crate) fn look(&self) -> MutexGuard<'_, Shelved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entered(&self, writes: bool) -> Result<MutexGuard<'_, Shelved>, StateError> {
        let mut shelved = self.look();
        let refused = shelved.denied || (writes && shelved.writes_left == Some(0));
        if let Some(left) = shelved.writes_left.as_mut().filter(|_| writes) {
            *left = left.saturating_sub(1);
        }
        if refused { Err(StateError::File("the store refuses".into())) } else { Ok(shelved) }
    }
}

impl Store {
    /// The directory on this host, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn on_host(root: &HostRoot, service: &str) -> Result<Self, StateError> {
        let files = HostFiles::open(root, "controller")?;
        let dir = root.controller_state(service);
        files.create_dirs(&dir, 0o700)?;
        Ok(Self { service: service.to_string(), kept: Kept::Host { files, dir, root: root.clone() } })
    }

    /// The secret store.
    pub fn in_secrets(client: Secrets, service: &str) -> Self {
        Self { service: service.to_string(), kept: Kept::Secrets(client) }
    }

    /// A store in memory.
    #[cfg(test)]
    pub(crate) fn on_shelf(shelf: &Shelf, service: &str) -> Self {
        Self { service: service.to_string(), kept: Kept::Shelf(shelf.clone()) }
    }

    /// Whose state it is.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Where an entry lies, for people.
    pub fn place(&self, entry: Entry) -> String {
        match &self.kept {
            Kept::Host { dir, .. } => dir.join(entry.file()).display().to_string(),
            Kept::Secrets(_) => format!("the secret {}", entry.secret_path(&self.service)),
            #[cfg(test)]
            Kept::Shelf(_) => entry.file().to_string(),
        }
    }

    /// Reads an entry; `None` if it has never been written.
    ///
    /// # Errors
    /// It cannot be read, or is not text.
    pub async fn read(&self, entry: Entry) -> Result<Option<Secret<String>>, StateError> {
        match &self.kept {
            Kept::Host { files, dir, .. } => {
                let damaged = |reason: &str| StateError::Damaged(self.place(entry), reason.to_string());
                match files.look(&dir.join(entry.file()))? {
                    Found::Absent => Ok(None),
                    Found::File(bytes) => {
                        String::from_utf8(bytes).map(|text| Some(Secret::new(text))).map_err(|_| damaged("it is not text"))
                    }
                    Found::Link(_) | Found::Other => Err(damaged("it is not a plain file")),
                }
            }
            Kept::Secrets(client) => Ok(client.get(&entry.secret_path(&self.service)).await?),
            #[cfg(test)]
            Kept::Shelf(shelf) => Ok(shelf.entered(false)?.entries.get(entry.file()).cloned().map(Secret::new)),
        }
    }

    /// Writes an entry whole or not at all; it is kept when this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn write(&self, entry: Entry, text: &Secret<String>) -> Result<(), StateError> {
        match &self.kept {
            Kept::Host { files, dir, .. } => {
                let item = Item::PrivateFile(text.expose().clone().into_bytes());
                files.put(&dir.join(entry.file()), &item)?;
                Ok(())
            }
            Kept::Secrets(client) => Ok(client.put(&entry.secret_path(&self.service), text).await?),
            #[cfg(test)]
            Kept::Shelf(shelf) => {
                shelf.entered(true)?.entries.insert(entry.file().into(), text.expose().clone());
                Ok(())
            }
        }
    }

    /// Writes an entry that is not there: where two controllers make one at the same time, one of them does. On a host there are not two,
    /// for the controller is pinned to it.
    ///
    /// # Errors
    /// As [`Store::write`]; [`StateError::Outdated`] if somebody else has been first.
    pub async fn create(&self, entry: Entry, text: &Secret<String>) -> Result<(), StateError> {
        let created = match &self.kept {
            Kept::Host { .. } => return self.write(entry, text).await,
            Kept::Secrets(client) => client.create(&entry.secret_path(&self.service), text).await?,
            #[cfg(test)]
            Kept::Shelf(shelf) => {
                let mut shelved = shelf.entered(true)?;
                let is_new = !shelved.entries.contains_key(entry.file());
                shelved.entries.entry(entry.file().into()).or_insert_with(|| text.expose().clone());
                is_new
            }
        };
        if created { Ok(()) } else { Err(StateError::Outdated) }
    }

    /// Removes an entry; one that is not there is as good as removed.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn remove(&self, entry: Entry) -> Result<(), StateError> {
        match &self.kept {
            Kept::Host { files, dir, .. } => {
                let path = dir.join(entry.file());
                if let Some(digest) = files.look(&path)?.digest() {
                    files.remove(&path, &[digest])?;
                }
                Ok(())
            }
            Kept::Secrets(client) => Ok(client.delete(&entry.secret_path(&self.service)).await?),
            #[cfg(test)]
            Kept::Shelf(shelf) => {
                shelf.entered(true)?.entries.remove(entry.file());
                Ok(())
            }
        }
    }

    /// Removes all entries, and on a host the directories above them as far as they are empty.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub async fn forget(&self) -> Result<(), StateError> {
        for entry in Entry::ALL {
            self.remove(entry).await?;
        }
        if let Kept::Host { files, dir, root } = &self.kept {
            let service = &self.service;
            for dir in [dir, &root.registry_state(service), &root.service_state(service), &root.shared_state()] {
                files.remove_empty_dir(dir)?;
            }
        }
        Ok(())
    }
}
