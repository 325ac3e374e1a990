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
            self.files.rewrite(&path, found.as_deref(), new.text().as_bytes()).map_err(text_of)?;
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
                let taken_back = self.take_back(found.as_deref(), new.text().as_bytes(), &daemon, &missing);
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
            let mut rest = new.clone();
            if claims.created_key {
                rest.remove_empty_list();
            }
            if claims.created_file && rest.is_empty() {
                let ours = sha256_hex(new.text().as_bytes());
                let (Removal::Gone | Removal::Kept) = self.files.remove(&path, &[ours]).map_err(text_of)?;
            } else {
                self.files.rewrite(&path, Some(new.text().as_bytes()), rest.text().as_bytes()).map_err(text_of)?;
            }
        }
        state.docker = (!claims.entries.is_empty()).then_some(claims);
        state.save(self.files, self.root).map_err(text_of)?;
        Ok(changed)
    }

    /// Puts the file back as it was found, for a daemon that does not take it.
    fn take_back(&self, found: Option<&[u8]>, ours: &[u8], daemon: &Daemon, missing: &[String]) -> String {
        let path = self.root.docker_daemon_json();
        let put_back = match found {
            Some(content) => self.files.rewrite(&path, Some(ours), content).map(drop),
            None => self.files.remove(&path, &[sha256_hex(ours)]).map(drop),
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};

    use super::*;

    const FILE: &str = "etc/docker/daemon.json";
    const OURS: &str = "192.168.0.1:443";

    /// A host with a docker daemon that treats its `daemon.json` as the real one does.
    struct TestHost {
        dir: tempfile::TempDir,
        root: HostRoot,
    }

    impl TestHost {
        /// `deaf`: the daemon does not take what it is to read.
        fn new(file: Option<&str>, deaf: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for path in ["etc/docker", "usr/bin", "var/run", "var/lib/private-registry"] {
                fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            if let Some(text) = file {
                fs::write(dir.path().join(FILE), text).unwrap();
            }
            let host = Self { root: HostRoot::at(dir.path()), dir };
            host.unit("dockerd -H fd://");
            let listener = UnixListener::bind(host.root.docker_socket()).unwrap();
            let path = host.dir.path().to_path_buf();
            let mut live = listed(&path).unwrap_or_default();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let told = fs::remove_file(path.join("told")).is_ok();
                    // A list that is not there changes nothing: what was listed before stays in force.
                    if let Some(list) = listed(&path).filter(|_| told && !deaf) {
                        live = list;
                    }
                    let mut question = [0; 64];
                    let _ = stream.read(&mut question).unwrap();
                    let configs: serde_json::Map<String, Value> =
                        live.iter().map(|name| (name.clone(), json!({ "Secure": false }))).collect();
                    let info = json!({ "RegistryConfig": { "IndexConfigs": configs, "InsecureRegistryCIDRs": ["127.0.0.0/8"] } });
                    write!(stream, "HTTP/1.0 200 OK\r\n\r\n{info}").unwrap();
                }
            });
            host
        }

        /// Installs a systemctl that shows this command line.
        fn unit(&self, line: &str) {
            let (program, dir) = (self.dir.path().join("usr/bin/systemctl"), self.dir.path().display());
            let script = format!(
                "#!/bin/sh\ncase $1 in reload) echo >>{dir}/reloads; touch {dir}/told;; *) echo 'ExecStart={{ argv[]={line} }}';; esac\n"
            );
            fs::write(&program, script).unwrap();
            fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn settle(&self, service: &str, wanted: &[&str]) -> Result<bool, String> {
            self.settle_again(service, wanted, &LastRefusal::default())
        }

        fn settle_again(&self, service: &str, wanted: &[&str], last_refusal: &LastRefusal) -> Result<bool, String> {
            let files = HostFiles::open(&self.root, service).unwrap();
            let mut state = HostState::load(&files, &self.root).unwrap();
            let wanted = wanted.iter().map(|entry| (*entry).to_string()).collect();
            let list = InsecureList { files: &files, root: &self.root, service, last_refusal };
            let settled = list.settle(&mut state, &wanted);
            state.save(&files, &self.root).unwrap();
            settled
        }

        fn file(&self) -> Option<String> {
            fs::read_to_string(self.dir.path().join(FILE)).ok()
        }

        fn live(&self) -> Vec<String> {
            let insecure = Daemon { root: &self.root }.insecure().unwrap().unwrap();
            [OURS, "b.example:5000", "theirs:1"].into_iter().filter(|name| insecure.has_entry(name)).map(String::from).collect()
        }

        fn reloads(&self) -> usize {
            fs::read_to_string(self.dir.path().join("reloads")).map_or(0, |text| text.lines().count())
        }

        fn claims(&self) -> Option<DockerClaims> {
            let files = HostFiles::open(&self.root, "x").unwrap();
            HostState::load(&files, &self.root).unwrap().docker
        }
    }

    fn listed(dir: &Path) -> Option<Vec<String>> {
        let json: Value = serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()?;
        serde_json::from_value(json.get("insecure-registries")?.clone()).ok()
    }

    #[test]
    fn docker_is_told_once_and_forgets_it_before_the_file_is_as_it_was() {
        for before in [None, Some("{\"debug\" : true}"), Some("{}"), Some("{\"insecure-registries\":[\"theirs:1\"]}")] {
            let host = TestHost::new(before, false);
            let foreign = host.live();
            assert_eq!(host.settle("a", &[OURS]), Ok(true), "{before:?}");
            assert_eq!(host.settle("a", &[OURS]), Ok(false));
            assert_eq!((host.live().contains(&OURS.to_string()), host.reloads()), (true, 1));
            host.settle("a", &[]).unwrap();
            assert_eq!((host.file().as_deref(), host.live(), host.claims()), (before, foreign, None));
            assert_eq!(host.settle("a", &[]), Ok(false));
        }
    }

    #[test]
    fn mode_and_owner_of_the_file_stay() {
        let host = TestHost::new(Some("{}"), false);
        let path = host.dir.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let owner = fs::metadata(&path).unwrap().uid();
        host.settle("a", &[OURS]).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, owner));
    }

    #[test]
    fn two_services_share_the_file_and_an_entry_leaves_with_the_last_claim() {
        let host = TestHost::new(None, false);
        host.settle("a", &[OURS]).unwrap();
        host.settle("b", &[OURS, "b.example:5000"]).unwrap();
        host.settle("a", &[]).unwrap();
        assert_eq!(host.live(), [OURS, "b.example:5000"]);
        host.settle("b", &["b.example:5000"]).unwrap();
        assert_eq!(host.live(), ["b.example:5000"]);
        host.settle("b", &[]).unwrap();
        assert_eq!((host.file(), host.live()), (None, vec![]));
    }

    #[test]
    fn an_entry_of_ours_comes_back_and_one_of_somebody_else_is_never_ours() {
        let host = TestHost::new(Some(r#"{"insecure-registries":["192.168.0.1:443"]}"#), false);
        assert_eq!(host.settle("a", &[OURS, "127.0.0.1:5000"]), Ok(false), "docker has both already");
        assert_eq!(host.claims(), None);
        host.settle("a", &[OURS, "b.example:5000"]).unwrap();
        fs::write(host.dir.path().join(FILE), r#"{"insecure-registries":["192.168.0.1:443"], "debug": true}"#).unwrap();
        assert_eq!(host.settle("a", &[OURS, "b.example:5000"]), Ok(true));
        host.settle("a", &[]).unwrap();
        assert_eq!(host.file().unwrap(), r#"{"insecure-registries":["192.168.0.1:443"], "debug": true}"#);
    }

    #[test]
    fn what_a_flag_or_the_file_itself_forbids_is_refused_and_nothing_is_written() {
        let host = TestHost::new(None, false);
        host.unit("dockerd --insecure-registry=x:1");
        let error = host.settle("a", &[OURS]).unwrap_err();
        assert!(error.contains("--insecure-registry on its command line"), "{error}");
        assert_eq!((host.file(), host.reloads(), host.claims()), (None, 0, None));
        let host = TestHost::new(Some("{ oops"), false);
        let error = host.settle("a", &[OURS]).unwrap_err();
        assert!(error.contains("is left as it is: it is not JSON"), "{error}");
        assert_eq!((host.file().as_deref(), host.reloads(), host.claims()), (Some("{ oops"), 0, None));
    }

    #[test]
    fn what_docker_does_not_take_is_taken_back_and_not_tried_at_once_again() {
        for before in [None, Some("{\"insecure-registries\": []}")] {
            let (host, last) = (TestHost::new(before, true), LastRefusal::default());
            let error = host.settle_again("a", &[OURS], &last).unwrap_err();
            assert!(error.contains("does not show the change") && error.contains("was taken back, and docker reloaded"), "{error}");
            assert_eq!((host.file().as_deref(), host.reloads(), host.claims()), (before, 2, None));
            assert_eq!(host.settle_again("a", &[OURS], &last), Err(error));
            assert_eq!(host.reloads(), 2);
        }
    }

    #[test]
    fn a_link_in_the_file_s_place_is_not_followed() {
        let host = TestHost::new(None, false);
        let target: PathBuf = host.dir.path().join("elsewhere");
        fs::write(&target, "{}").unwrap();
        symlink(&target, host.dir.path().join(FILE)).unwrap();
        assert!(host.settle("a", &[OURS]).unwrap_err().contains("is a symbolic link"));
        assert_eq!(fs::read_to_string(target).unwrap(), "{}");
    }

    #[test]
    fn a_kill_after_any_write_is_made_good() {
        let host = TestHost::new(Some("{}"), false);
        host.settle("a", &[OURS]).unwrap();
        // Noted and written, and docker was not told yet.
        fs::write(host.dir.path().join(FILE), "{\"insecure-registries\": []}").unwrap();
        fs::write(host.dir.path().join("told"), "").unwrap();
        assert_eq!(host.settle("a", &[OURS]), Ok(true));
        // Taken out, and docker has forgotten it; the empty list is still there.
        fs::write(host.dir.path().join(FILE), "{\"insecure-registries\": []}").unwrap();
        fs::write(host.dir.path().join("told"), "").unwrap();
        host.settle("a", &[]).unwrap();
        assert_eq!((host.file().as_deref(), host.live(), host.claims()), (Some("{}"), vec![], None));
    }
}
