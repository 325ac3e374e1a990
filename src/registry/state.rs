//! What the role keeps on its host: the key, the chain, the last order, and the registry's configuration.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;

use super::backup;
use super::config::{RegistryConfig, Rendered};
use crate::certificates::{Certificate, CertificateError, RegistryKey, RegistryKeyError};
use crate::digest::sha256_hex;
use crate::protocol::{Order, SignedOrder};
use crate::secret::Secret;
use crate::users::Users;

/// Larger files are none of ours.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why the state on the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} has mode {mode:04o}, so others than root may have read the key; remove it, and a new key gets a new certificate")]
    ForeignMode { path: PathBuf, mode: u32 },
    #[error("{0} is not a regular file of this user; move it away")]
    Foreign(PathBuf),
    #[error("{path} is not a key of this program: {source}; move it away, and a new key gets a new certificate")]
    Key { path: PathBuf, source: RegistryKeyError },
    #[error("a new key could not be made: {0}")]
    NewKey(RegistryKeyError),
    #[error("what a restore of the images has left: {0}")]
    Images(String),
}

/// Why a chain cannot be served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ChainError {
    #[error("the chain cannot be read: {0}")]
    Unreadable(#[from] CertificateError),
    #[error("the leaf is for another key than this registry's")]
    OtherKey,
    #[error("the leaf must come first, before the certificates of its issuers")]
    NotFirst,
    #[error("the leaf names no host in its subject alternative names, and clients look nowhere else")]
    NoNames,
    #[error("the leaf has ended at Unix time {0}")]
    Expired(i64),
}

/// A chain that belongs to the key that is served with.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    pub(super) pem: String,
    pub(super) leaf_fingerprint: String,
    pub(super) leaf_not_before: i64,
    pub(super) leaf_not_after: i64,
    pub(super) leaf_names: Vec<String>,
}

impl Chain {
    /// Checks that the chain parses, that its leaf is for this key, and that the leaf has not ended.
    pub(super) fn parse(pem: &str, key: &RegistryKey, now: i64) -> Result<Self, ChainError> {
        Self::checked(pem, |leaf| leaf.public_key_spki_der() == key.public_key_spki_der(), now)
    }

    /// The same for any key.
    pub(super) fn checked(pem: &str, is_for_key: impl Fn(&Certificate) -> bool, now: i64) -> Result<Self, ChainError> {
        let certificates = Certificate::parse_bundle(pem)?;
        let leaf = &certificates[0];
        if !is_for_key(leaf) {
            return Err(if certificates.iter().any(is_for_key) { ChainError::NotFirst } else { ChainError::OtherKey });
        }
        if leaf.san_names().is_empty() {
            return Err(ChainError::NoNames);
        }
        if leaf.not_after() <= now {
            return Err(ChainError::Expired(leaf.not_after()));
        }
        let pem = certificates.iter().map(Certificate::pem).collect();
        let leaf_names = leaf.san_names().to_vec();
        let (leaf_not_before, leaf_not_after) = (leaf.not_before(), leaf.not_after());
        Ok(Self { pem, leaf_fingerprint: leaf.fingerprint(), leaf_not_before, leaf_not_after, leaf_names })
    }
}

/// Version and digest of the last order taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LastOrder {
    pub(super) version: u64,
    pub(super) digest: String,
}

impl LastOrder {
    pub(super) fn of(signed: &SignedOrder, order: &Order) -> Self {
        Self { version: order.version, digest: sha256_hex(signed.payload.as_bytes()) }
    }
}

/// The directory, and what was found in it.
pub(super) struct State {
    config: RegistryConfig,
}

impl State {
    /// Opens the directory and makes it if need be; only its owner may enter it.
    pub(super) fn open(config: &RegistryConfig) -> Result<Self, StateError> {
        let path = &config.state;
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))?;
        // Docker makes the directory of a volume with mode 0755.
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("set the mode of", path))?;
        Ok(Self { config: config.clone() })
    }

    /// The key of this host. Made on the first start, and when another kind is asked for; else kept.
    pub(super) fn load_or_create_key(&self) -> Result<RegistryKey, StateError> {
        let path = self.config.key_file();
        let kind = self.config.settings.key_type;
        if let Some(text) = read_private(&path)? {
            let key = RegistryKey::from_pem(&text).map_err(|source| StateError::Key { path: path.clone(), source })?;
            if key.kind() == kind {
                return Ok(key);
            }
        }
        let key = RegistryKey::generate_as(kind).map_err(StateError::NewKey)?;
        write(&path, key.to_pem().expose(), 0o600)?;
        Ok(key)
    }

    /// Keeps a key and a chain of the operator's.
    pub(super) fn store_provided(&self, chain: &Chain, key: &Secret<String>) -> Result<(), StateError> {
        write(&self.config.key_file(), key.expose(), 0o600)?;
        self.store_chain(chain)
    }

    /// Removes what is served no more since the operator's certificate has given way to one of this host's key.
    pub(super) fn remove_provided(&self) -> Result<(), StateError> {
        self.config.provided_files().iter().try_for_each(|path| remove(path))
    }

    /// Removes key and chain, which nobody uses over plain HTTP.
    pub(super) fn remove_key(&self) -> Result<(), StateError> {
        [self.config.key_file(), self.config.chain_file()].iter().try_for_each(|path| remove(path))
    }

    /// The text of the stored chain, if there is one.
    pub(super) fn stored_chain(&self) -> Result<Option<String>, StateError> {
        read(&self.config.chain_file())
    }

    pub(super) fn store_chain(&self, chain: &Chain) -> Result<(), StateError> {
        write(&self.config.chain_file(), &chain.pem, 0o644)
    }

    /// Notes that the stored chain has been served until now, as the time at which its file was changed.
    pub(super) fn note_service(&self) -> Result<(), StateError> {
        let path = self.config.chain_file();
        let file = File::options().write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path);
        let noted = file.and_then(|file| file.set_modified(SystemTime::now()));
        noted.map_err(failed("set the time of", &path))
    }

    /// Whether the stored chain was stored, or last known to be served, within that time.
    pub(super) fn served_within(&self, time: Duration) -> bool {
        let changed = fs::symlink_metadata(self.config.chain_file()).and_then(|file| file.modified()).ok();
        // A time to come is one of another clock.
        changed.and_then(|changed| changed.elapsed().ok()).is_some_and(|elapsed| elapsed < time)
    }

    /// Writes the configuration and the files that it names.
    pub(super) fn store_config(&self, rendered: &Rendered) -> Result<(), StateError> {
        for (path, text) in &rendered.files {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory).map_err(failed("make", directory))?;
            }
            write(path, text.expose(), 0o600)?;
        }
        write(&self.config.config_file(), rendered.config.expose(), 0o600)
    }

    /// The users whom the service keeps, as the last order has said.
    pub(super) fn users(&self) -> Result<Users, StateError> {
        Ok(Users::parse(&read(&self.config.service_users_file())?.unwrap_or_default()).0)
    }

    pub(super) fn store_users(&self, users: &Users) -> Result<(), StateError> {
        write(&self.config.service_users_file(), users.text().expose(), 0o600)
    }

    /// The file that the registry reads.
    pub(super) fn store_htpasswd(&self, text: &Secret<String>) -> Result<(), StateError> {
        write(&self.config.users_file(), text.expose(), 0o600)
    }

    /// Leaves this role's own account to the node on this host: `name:password`.
    pub(super) fn store_account(&self, text: &Secret<String>) -> Result<(), StateError> {
        write(&self.config.account_file(), text.expose(), 0o600)
    }

    /// Removes the users whom the service has kept, who count no more, and if `all`, what the registry and the node read, too.
    pub(super) fn remove_users(&self, all: bool) -> Result<(), StateError> {
        if all {
            remove(&self.config.users_file())?;
            remove(&self.config.account_file())?;
        }
        remove(&self.config.service_users_file())
    }

    /// The last order taken, if the present order key has signed it.
    ///
    /// An order of another key does not count: a controller that lost its key starts again at version 1.
    pub(super) fn last_order(&self) -> Result<Option<(SignedOrder, Order)>, StateError> {
        let Some(text) = read(&self.config.order_file())? else { return Ok(None) };
        let signed: Option<SignedOrder> = crate::json::of_text(&text).ok();
        Ok(signed.and_then(|signed| self.config.order_key.open(&signed).ok().map(|order| (signed, order))))
    }

    pub(super) fn store_order(&self, signed: &SignedOrder) -> Result<(), StateError> {
        let text = serde_json::to_string(signed).expect("a signed order is two strings");
        write(&self.config.order_file(), &text, 0o644)
    }

    /// Puts the images in order where a restore was killed, before a registry looks at them.
    pub(super) fn recover_images(&self) -> Result<(), StateError> {
        if !self.config.is_directory() {
            return Ok(());
        }
        backup::recover(&self.config.data).map_err(|error| StateError::Images(error.to_string()))
    }

    /// Removes all that this role wrote, and the images too if `delete_data`. The order goes last: until then it is known what is to be done.
    pub(super) fn remove_all(&self, delete_data: bool) -> Result<(), StateError> {
        let config = &self.config;
        for path in config.own_files().iter().chain(&config.provided_files()).chain(&config.written_files()) {
            remove(path)?;
        }
        let cas = config.upstream_ca_directory();
        absent_is_fine(fs::remove_dir_all(&cas)).map_err(failed("remove", &cas))?;
        if delete_data {
            self.recover_images()?;
            let images = config.data.join("docker");
            absent_is_fine(fs::remove_dir_all(&images)).map_err(failed("delete", &images))?;
        }
        remove(&config.order_file())
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_path_buf();
    move |source| StateError::Io { doing, path, source }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".tmp");
    name.into()
}

fn read(path: &Path) -> Result<Option<String>, StateError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(found) if !found.is_file() || found.len() > MAX_FILE_BYTES => return Err(StateError::Foreign(path.to_path_buf())),
        Ok(_) => {}
    }
    fs::read_to_string(path).map(Some).map_err(failed("read", path))
}

fn read_private(path: &Path) -> Result<Option<Secret<String>>, StateError> {
    let text = read(path)?.map(Secret::new);
    if text.is_some() {
        let found = fs::symlink_metadata(path).map_err(failed("look at", path))?;
        if found.uid() != nix::unistd::geteuid().as_raw() {
            return Err(StateError::Foreign(path.to_path_buf()));
        }
        let mode = found.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(StateError::ForeignMode { path: path.to_path_buf(), mode });
        }
    }
    Ok(text)
}

/// Puts a complete, synced file in place, or changes nothing.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), StateError> {
    let temporary = temporary(path);
    // What a kill left behind.
    absent_is_fine(fs::remove_file(&temporary)).map_err(failed("remove", &temporary))?;
    let filled = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).and_then(|mut file| {
        // The umask took its part of the mode.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content.as_bytes())?;
        file.sync_all()
    });
    let done = filled.and_then(|()| fs::rename(&temporary, path)).and_then(|()| sync_directory_of(path));
    if done.is_err() {
        // The first error is the one to tell. What cannot be removed now is removed by the next write.
        let _ = fs::remove_file(&temporary);
    }
    done.map_err(failed("write", path))
}

fn remove(path: &Path) -> Result<(), StateError> {
    for path in [temporary(path).as_path(), path] {
        absent_is_fine(fs::remove_file(path)).map_err(failed("remove", path))?;
    }
    sync_directory_of(path).map_err(failed("sync the directory of", path))
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use std::collections::BTreeMap;

    use nix::errno::Errno;

    use super::*;
    use crate::certificates::{EnrolmentKey, OrderKey, OrderSigner};
    use crate::interrupted::{Fault, asked, at_every_call, directory, work};

    const TEST: &str = "registry::state::tests::the_work_itself";

    fn state(dir: &Path) -> State {
        let settings = r#"{"log_level":"info","delete_enabled":true,"drain_seconds":30}"#;
        let config = RegistryConfig {
            service: "s".into(),
            order_key: OrderKey::from_base64(&OrderSigner::generate().unwrap().verifying_key_base64()).unwrap(),
            enrolment_key: EnrolmentKey::generate().unwrap(),
            settings: crate::json::of_text(settings).unwrap(),
            host: "192.168.1.80".into(),
            task: String::new(),
            state: dir.join("state"),
            data: dir.join("data"),
            backup: None,
            patience: std::time::Duration::from_secs(900),
            listen: ([127, 0, 0, 1], 0).into(),
            status_listen: ([127, 0, 0, 1], 0).into(),
            debug_listen: ([127, 0, 0, 1], 0).into(),
            program: "registry".into(),
        };
        State::open(&config).unwrap()
    }

    /// Keeps the first or the second of everything, or removes all. Says what went wrong.
    fn does(what: &str, state: &State) -> String {
        let text = |of: &str| format!("{what} {of}");
        let chain =
            Chain { pem: text("chain"), leaf_fingerprint: String::new(), leaf_not_before: 0, leaf_not_after: 0, leaf_names: Vec::new() };
        let order = SignedOrder { payload: text("order"), signature: String::new() };
        let done = match what {
            "remove" => state.remove_all(false),
            _ => state
                .store_provided(&chain, &Secret::new(text("key")))
                .and_then(|()| state.store_config(&Rendered { config: Secret::new(text("configuration")), files: Vec::new() }))
                .and_then(|()| state.store_account(&Secret::new(text("account"))))
                .and_then(|()| state.store_order(&order)),
        };
        done.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    #[ignore = "the work that the other test interrupts"]
    fn the_work_itself() {
        let (what, dir) = asked();
        let state = state(&dir);
        work(|| does(&what, &state));
    }

    fn files(dir: &Path) -> BTreeMap<String, (u32, String)> {
        let entries = fs::read_dir(dir.join("state")).unwrap().map(Result::unwrap);
        let read = |entry: fs::DirEntry| {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            (entry.file_name().into_string().unwrap(), (mode, fs::read_to_string(entry.path()).unwrap()))
        };
        entries.map(read).collect()
    }

    #[test]
    fn that_a_chain_was_served_is_noted_at_its_own_file_and_through_no_link() {
        let dir = directory();
        let state = state(dir.path());
        assert_eq!(does("first", &state), "");
        let (chain, ago) = (state.config.chain_file(), SystemTime::now() - Duration::from_secs(3600));
        let age = |path: &Path| File::options().write(true).open(path).unwrap().set_modified(ago).unwrap();
        age(&chain);
        assert!(!state.served_within(Duration::from_secs(60)));
        state.note_service().unwrap();
        assert!(state.served_within(Duration::from_secs(60)));
        let foreign = dir.path().join("foreign");
        fs::rename(&chain, &foreign).unwrap();
        age(&foreign);
        std::os::unix::fs::symlink(&foreign, &chain).unwrap();
        assert!(state.note_service().is_err());
        assert_eq!(fs::metadata(&foreign).unwrap().modified().unwrap(), ago);
    }

    #[test]
    fn a_kill_or_an_error_at_any_system_call_leaves_key_chain_and_order_old_or_new() {
        let mut points = 0;
        for (before, what) in [("", "first"), ("first", "second"), ("second", "remove")] {
            let prepare = |dir: &Path| {
                let state = state(dir);
                fs::write(dir.join("state/foreign"), "somebody's").unwrap();
                if !before.is_empty() {
                    assert_eq!(does(before, &state), "");
                }
                dir.to_owned()
            };
            let clean = directory();
            prepare(clean.path());
            let old = files(clean.path());
            assert_eq!(does(what, &state(clean.path())), "");
            let new = files(clean.path());
            for fault in [Fault::Kill, Fault::Tear, Fault::Fail(Errno::ENOSPC), Fault::Fail(Errno::EIO), Fault::Fail(Errno::EROFS)] {
                points += at_every_call(TEST, what, fault, prepare, |at, dir, words| {
                    let point = format!("{what}, {fault:?} at call {at}");
                    let now = files(&dir);
                    for (name, found) in &now {
                        let part = name.ends_with(".tmp") && words.is_none() && found.0 & !0o644 == 0;
                        assert!(part || [old.get(name), new.get(name)].contains(&Some(found)), "{point}: {name}: {found:?}");
                        assert!(
                            ![".key", "account"].iter().any(|part| name.contains(part)) || found.0 == 0o600,
                            "{point}: {name} has mode {:o}",
                            found.0
                        );
                    }
                    assert!(old.keys().filter(|name| new.contains_key(*name)).all(|name| now.contains_key(name)), "{point}");
                    if let Some(words) = words {
                        assert!(words.contains(&dir.join("state").display().to_string()), "{point}: {words:?}");
                    }
                    assert_eq!(does(what, &state(&dir)), "", "{point}");
                    assert_eq!(files(&dir), new, "{point}");
                });
            }
        }
        println!("{points} points");
        assert!(points > 200, "{points}");
    }
}
