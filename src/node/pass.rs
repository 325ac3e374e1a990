//! One pass over the host: everything that the order in force asks for, read, compared and put right.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::daemon_json::{InsecureList, LastRefusal};
use super::files::{FileError, HostFiles, Removal};
use super::leftovers::Leftovers;
use super::manifest::{HostState, Manifest, SharedLock, remove_state};
use super::sysctl::Sysctl;
use super::system_store::SystemStore;
use super::trust::{self, Bundle};
use super::tutorial::Tutorial;
use crate::host_paths::{HostRoot, REGISTRY_FILES};
use crate::protocol::{OwnedFile, SignedOrder, SysctlState, SysctlStatus};

/// The host, and the service that acts on it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) root: HostRoot,
    pub(crate) service: String,
    last_refusal: LastRefusal,
    pub(super) leftovers: Leftovers,
}

/// How the host stands after a pass.
#[derive(Debug)]
pub(crate) struct Report {
    /// Files that are ours.
    pub(crate) files: Vec<OwnedFile>,
    /// The sysctl.
    pub(crate) sysctl: SysctlStatus,
    /// What could not be done. Empty means that all was done.
    pub(crate) errors: Vec<String>,
    /// What people should know though it is no failure.
    pub(crate) notes: Vec<String>,
    /// Whether anything on the host had to change.
    pub(crate) changed: bool,
    /// Whether all files are as the order says.
    pub(crate) in_place: bool,
    /// Path of the private key of a registry made by hand, if it lies here.
    pub(crate) exposed_key: Option<String>,
    /// What was removed of such a registry.
    pub(crate) cleaned: Vec<String>,
}

impl Report {
    fn failed(error: FileError) -> Self {
        Self::broken(error.to_string())
    }

    /// A pass that came to nothing.
    pub(crate) fn broken(error: String) -> Self {
        let sysctl = SysctlStatus { state: SysctlState::Pending, value: None, found: None };
        Self {
            files: Vec::new(),
            sysctl,
            errors: vec![error],
            notes: Vec::new(),
            changed: false,
            in_place: false,
            exposed_key: None,
            cleaned: Vec::new(),
        }
    }
}

impl Host {
    /// A service on a host.
    pub(crate) fn new(root: HostRoot, service: String) -> Self {
        let leftovers = Leftovers::new(root.clone(), service.clone());
        Self { root, service, last_refusal: LastRefusal::default(), leftovers }
    }

    /// The order that the manifest keeps, if there is one.
    pub(crate) fn kept_order(&self) -> Result<Option<SignedOrder>, FileError> {
        let files = self.files()?;
        Ok(Manifest::load(&files, &self.root, &self.service)?.order)
    }

    /// Makes the host trust the bundle, and nothing that an earlier bundle named and this one does not.
    pub(crate) fn apply(&self, signed: &SignedOrder, bundle: &Bundle) -> Report {
        self.try_apply(signed, bundle).unwrap_or_else(Report::failed)
    }

    /// Takes everything back.
    pub(crate) fn restore(&self, signed: &SignedOrder) -> Report {
        self.try_restore(signed).unwrap_or_else(Report::failed)
    }

    fn try_apply(&self, signed: &SignedOrder, bundle: &Bundle) -> Result<Report, FileError> {
        let files = self.files()?;
        let _lock = self.lock(&files)?;
        files.create_dirs(&self.root.node_state(&self.service), 0o700)?;
        let mut state = HostState::load(&files, &self.root)?;
        let mut manifest = Manifest::load(&files, &self.root, &self.service)?;

        let mut wanted = trust::wanted(&files, &self.root, &self.safe_name(), &manifest, bundle);
        let mut errors = std::mem::take(&mut wanted.errors);
        state.services.insert(self.service.clone());
        manifest.order = Some(signed.clone());
        for (path, item) in &wanted.items {
            if SystemStore::holds(&self.root, path) && files.look(path)?.digest() != Some(item.digest()) {
                manifest.store_is_stale = true;
            }
            manifest.intend(path, item);
            state.created_dirs.extend(files.missing_dirs(directory_of(path))?);
        }
        state.save(&files, &self.root)?;
        manifest.save(&files, &self.root, &self.service)?;

        let mut changed = false;
        for (path, item) in &wanted.items {
            match files.create_dirs(directory_of(path), 0o755).and_then(|()| files.put(path, item)) {
                Ok(wrote) => {
                    changed |= wrote;
                    manifest.complete(path, item);
                }
                Err(error) => errors.push(error),
            }
        }
        let mut notes = Vec::new();
        // As long as the new trust is not complete the old one stays.
        if errors.is_empty() {
            let dropped: Vec<PathBuf> = manifest.files.keys().filter(|path| !wanted.items.contains_key(*path)).cloned().collect();
            changed |= !dropped.is_empty();
            self.remove(&files, &mut manifest, &dropped, &mut errors, &mut notes);
        }
        errors.extend(self.refresh_store(&files, &mut manifest).err());
        let in_place = errors.is_empty();
        let tutorial = Tutorial { files: &files, root: &self.root };
        let mut cleaned = Vec::new();
        if bundle.clean_agents && in_place {
            errors.extend(tutorial.clean(&mut state, &manifest, &mut cleaned).err());
            changed |= !cleaned.is_empty();
        }
        let exposed_key = tutorial.exposed_key().unwrap_or_else(|error| {
            errors.push(error);
            None
        });
        self.remove_created_dirs(&files, &mut state)?;
        manifest.save(&files, &self.root, &self.service)?;

        let sysctl = self.sysctl(&files);
        let status = if bundle.conntrack_be_liberal {
            let (status, error) = sysctl.claim(&mut state);
            errors.extend(error);
            status
        } else {
            errors.extend(sysctl.release(&mut state).err());
            SysctlStatus { state: SysctlState::Unmanaged, value: sysctl.read().ok().flatten(), found: None }
        };
        state.save(&files, &self.root)?;
        let mut errors = texts(errors);
        match self.insecure_list(&files).settle(&mut state, &bundle.insecure_entries()) {
            Ok(settled) => changed |= settled,
            Err(error) => errors.push(error),
        }
        let exposed_key = exposed_key.map(|path| path.display().to_string());
        let cleaned = cleaned.iter().map(|path| path.display().to_string()).collect();
        Ok(Report { files: manifest.owned(), sysctl: status, errors, notes, changed, in_place, exposed_key, cleaned })
    }

    fn try_restore(&self, signed: &SignedOrder) -> Result<Report, FileError> {
        let files = self.files()?;
        let shared = self.root.shared_state();
        let (mut errors, mut notes) = (Vec::new(), Vec::new());
        if let Some(_lock) = SharedLock::take(&files, &shared)? {
            let mut state = HostState::load(&files, &self.root)?;
            let mut manifest = Manifest::load(&files, &self.root, &self.service)?;
            if manifest != Manifest::default() {
                manifest.order = Some(signed.clone());
                manifest.save(&files, &self.root, &self.service)?;
            }
            let owned: Vec<PathBuf> = manifest.files.keys().cloned().collect();
            self.remove(&files, &mut manifest, &owned, &mut errors, &mut notes);
            errors.extend(self.refresh_store(&files, &mut manifest).err());
            errors.extend(self.sysctl(&files).release(&mut state).err());
            let mut errors = texts(std::mem::take(&mut errors));
            errors.extend(self.insecure_list(&files).settle(&mut state, &BTreeSet::new()).err());
            errors.extend(self.leftovers.clean().err());
            if errors.is_empty() {
                self.forget(&files, state)?;
            } else {
                manifest.save(&files, &self.root, &self.service)?;
                state.save(&files, &self.root)?;
                return Ok(self.restored(&files, manifest.owned(), errors, notes));
            }
        }
        Ok(self.restored(&files, Vec::new(), Vec::new(), notes))
    }

    fn restored(&self, files: &HostFiles, owned: Vec<OwnedFile>, errors: Vec<String>, notes: Vec<String>) -> Report {
        let value = self.sysctl(files).read().ok().flatten();
        let sysctl = SysctlStatus { state: SysctlState::Unmanaged, value, found: None };
        let (exposed_key, cleaned) = (None, Vec::new());
        Report { files: owned, sysctl, errors, notes, changed: true, in_place: false, exposed_key, cleaned }
    }

    /// Removes our own record, what a registry has left that moved away, and what all services share if this was the last one.
    fn forget(&self, files: &HostFiles, mut state: HostState) -> Result<(), FileError> {
        let registry = self.root.registry_state(&self.service);
        for name in REGISTRY_FILES {
            // What it was writing when it was killed, too.
            for name in [name.to_string(), format!("{name}.tmp")] {
                remove_state(files, &registry.join(name))?;
            }
        }
        files.remove_empty_dir(&registry.join("upstream-ca"))?;
        state.services.remove(&self.service);
        self.remove_created_dirs(files, &mut state)?;
        if state.services.is_empty() {
            remove_state(files, &HostState::path(&self.root))?;
        } else {
            state.save(files, &self.root)?;
        }
        // Last: until here a kill makes the next start go on with the restore.
        remove_state(files, &Manifest::path(&self.root, &self.service))?;
        // Docker has made the registry's directory as a mount point, so the registry itself could not remove it.
        let dirs = [self.root.node_state(&self.service), registry, self.root.service_state(&self.service), self.root.shared_state()];
        for dir in dirs {
            files.remove_empty_dir(&dir)?;
        }
        Ok(())
    }

    /// Removes files of ours and takes them off the manifest; one that somebody changed is let go of.
    fn remove(&self, files: &HostFiles, manifest: &mut Manifest, paths: &[PathBuf], errors: &mut Vec<FileError>, notes: &mut Vec<String>) {
        if paths.iter().any(|path| SystemStore::holds(&self.root, path)) {
            manifest.store_is_stale = true;
            // Before the files go: after a kill nothing else would tell that the store still holds them.
            if let Err(error) = manifest.save(files, &self.root, &self.service) {
                return errors.push(error);
            }
        }
        for path in paths {
            let ours = manifest.files.get(path).map(|entry| entry.digests.clone()).unwrap_or_default();
            match files.remove(path, &ours) {
                Ok(Removal::Gone) => {}
                Ok(Removal::Kept) => {
                    notes.push(format!("{} stays: somebody changed it after us; look at it and remove it by hand", path.display()));
                }
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            }
            manifest.files.remove(path);
        }
    }

    /// Has the system's certificate store put together anew, if files of ours in it have changed.
    fn refresh_store(&self, files: &HostFiles, manifest: &mut Manifest) -> Result<(), FileError> {
        if !manifest.store_is_stale {
            return Ok(());
        }
        // A store that is gone has nothing of ours any more.
        if let Some(store) = SystemStore::on(&self.root) {
            store.refresh()?;
        }
        manifest.store_is_stale = false;
        manifest.save(files, &self.root, &self.service)
    }

    /// Removes the directories that we made and nobody uses, innermost first.
    fn remove_created_dirs(&self, files: &HostFiles, state: &mut HostState) -> Result<(), FileError> {
        for dir in state.created_dirs.clone().iter().rev() {
            if files.remove_empty_dir(dir)? {
                state.created_dirs.remove(dir);
            }
        }
        Ok(())
    }

    fn lock(&self, files: &HostFiles) -> Result<SharedLock, FileError> {
        let shared = self.root.shared_state();
        loop {
            files.create_dirs(&shared, 0o755)?;
            // None: the last other service removed the directory just now.
            if let Some(lock) = SharedLock::take(files, &shared)? {
                return Ok(lock);
            }
        }
    }

    fn files(&self) -> Result<HostFiles, FileError> {
        HostFiles::open(&self.root, &self.safe_name())
    }

    fn sysctl<'a>(&'a self, files: &'a HostFiles) -> Sysctl<'a> {
        Sysctl { files, root: &self.root, service: &self.service }
    }

    fn insecure_list<'a>(&'a self, files: &'a HostFiles) -> InsecureList<'a> {
        InsecureList { files, root: &self.root, service: &self.service, last_refusal: &self.last_refusal }
    }

    /// The service's name as part of a file name.
    fn safe_name(&self) -> String {
        self.service.trim_matches('/').replace('/', ".")
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().expect("every wanted file lies in a directory")
}

fn texts(errors: Vec<FileError>) -> Vec<String> {
    errors.iter().map(FileError::to_string).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::certificates::{Authority, Certificate};
    use crate::protocol::{OtherTrust, Stores, TrustBundle, TrustedName};

    const SYSCTL: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

    struct TestHost {
        dir: tempfile::TempDir,
    }

    impl TestHost {
        /// A host as it is before us: some directories, the sysctl off.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for path in ["etc/docker", "etc/sysctl.d", "var/lib", "proc/sys/net/netfilter"] {
                fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            fs::write(dir.path().join(SYSCTL), "0\n").unwrap();
            Self { dir }
        }

        fn service(&self, service: &str) -> Host {
            Host::new(HostRoot::at(self.dir.path()), service.into())
        }

        fn path(&self, below: &str) -> PathBuf {
            self.dir.path().join(below)
        }

        fn write(&self, below: &str, text: &str) {
            fs::create_dir_all(self.path(below).parent().unwrap()).unwrap();
            fs::write(self.path(below), text).unwrap();
        }

        fn read(&self, below: &str) -> String {
            fs::read_to_string(self.path(below)).unwrap_or_else(|e| panic!("{below}: {e}"))
        }

        /// Every path with kind, mode and content: what "byte for byte" means.
        fn picture(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
            let mut picture = BTreeMap::new();
            let mut rest = vec![self.dir.path().to_path_buf()];
            while let Some(dir) = rest.pop() {
                for entry in fs::read_dir(dir).unwrap() {
                    let path = entry.unwrap().path();
                    let meta = fs::symlink_metadata(&path).unwrap();
                    let content = if meta.is_symlink() {
                        fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                    } else if meta.is_dir() {
                        rest.push(path.clone());
                        Vec::new()
                    } else {
                        fs::read(&path).unwrap()
                    };
                    picture.insert(path, (meta.permissions().mode(), content));
                }
            }
            picture
        }
    }

    fn signed(payload: &str) -> SignedOrder {
        SignedOrder { payload: payload.into(), signature: String::new() }
    }

    fn ca(generation: u32) -> Certificate {
        let names = ["192.168.0.1:443".parse().unwrap()];
        Authority::create("test", generation, &names, 1_700_000_000, 3650).unwrap().certificate().clone()
    }

    fn bundle(names: &[&str], certificates: &[&Certificate]) -> Bundle {
        let names = names.iter().map(|name| TrustedName { name: name.parse().unwrap(), inside: true }).collect();
        let certificates = certificates.iter().map(|c| c.pem()).collect();
        Bundle::parse(&TrustBundle { names, certificates, conntrack_be_liberal: true, ..TrustBundle::default() }).unwrap()
    }

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
    const CERTS: &str = "etc/privateregistry/certs";

    /// A host prepared by hand as in the tutorial: what was there, and its certificate.
    fn prepared_by_hand() -> (TestHost, String) {
        let (host, certificate) = (TestHost::new(), ca(7).pem());
        host.write(&format!("{CERTS}/domain.key"), KEY);
        for path in [&format!("{CERTS}/domain.crt"), "etc/docker/certs.d/192.168.0.1/ca.crt", "etc/docker/certs.d/a:5000/old.crt"] {
            host.write(path, &certificate);
        }
        (host, certificate)
    }

    #[test]
    fn an_exposed_key_is_reported_and_left_where_it_is() {
        let (host, certificate) = prepared_by_hand();
        let before = host.picture();
        let (service, first) = (host.service("private-registry"), ca(1));
        let report = service.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&first]));
        assert_eq!(report.exposed_key, Some(host.path(&format!("{CERTS}/domain.key")).display().to_string()));
        assert!(report.in_place && report.cleaned.is_empty());
        // Docker goes on trusting the old certificate beside the new CA.
        assert_eq!(host.read("etc/docker/certs.d/192.168.0.1/ca.crt"), certificate);
        assert_eq!(host.read("etc/docker/certs.d/192.168.0.1/private-registry.crt"), first.pem());
        service.restore(&signed("2"));
        assert_eq!(host.picture(), before);

        for other in ["not a key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            host.write(&format!("{CERTS}/domain.key"), other);
            assert_eq!(service.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&first])).exposed_key, None, "{other}");
        }
        host.write("elsewhere", KEY);
        fs::remove_file(host.path(&format!("{CERTS}/domain.key"))).unwrap();
        symlink(host.path("elsewhere"), host.path(&format!("{CERTS}/domain.key"))).unwrap();
        let report = service.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&first]));
        assert_eq!((report.exposed_key, report.errors), (None, vec![]));
    }

    #[test]
    fn a_host_is_cleaned_of_the_tutorials_files_and_of_nothing_else_whenever_the_node_is_killed() {
        let (service, first) = ("private-registry", ca(1));
        let cleaning = || Bundle { clean_agents: true, ..bundle(&["192.168.0.1:443"], &[&first]) };
        let files = [
            format!("{CERTS}/domain.key"),
            "etc/docker/certs.d/192.168.0.1/ca.crt".into(),
            "etc/docker/certs.d/a:5000/old.crt".into(),
            "etc/docker/certs.d/b:5000/link.crt".into(),
            format!("{CERTS}/domain.crt"),
        ];
        // Killed after so many files; the next start goes on.
        for killed_after in 0..=files.len() {
            let (host, certificate) = prepared_by_hand();
            host.write("etc/docker/certs.d/192.168.0.1/note.txt", "mine");
            host.write("etc/docker/certs.d/c:5000/ca.crt", &(certificate.clone() + "\n"));
            fs::create_dir(host.path("etc/docker/certs.d/empty")).unwrap();
            fs::create_dir(host.path("etc/docker/certs.d/b:5000")).unwrap();
            symlink("../../../privateregistry/certs/domain.crt", host.path("etc/docker/certs.d/b:5000/link.crt")).unwrap();
            let node = host.service(service);
            node.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&first]));
            {
                // What a pass notes before it removes anything.
                let shared = HostFiles::open(&node.root, service).unwrap();
                let mut state = HostState::load(&shared, &node.root).unwrap();
                let dirs = files.iter().map(|file| directory_of(Path::new(file)).to_path_buf());
                state.created_dirs.extend(dirs.chain(["etc/privateregistry".into()]).map(|dir| host.dir.path().join(dir)));
                state.save(&shared, &node.root).unwrap();
            }
            files[..killed_after].iter().for_each(|file| fs::remove_file(host.path(file)).unwrap());

            let report = node.apply(&signed("2"), &cleaning());
            assert_eq!(report.errors, [""; 0], "{killed_after}");
            assert_eq!((report.cleaned.len(), report.exposed_key), (files.len() - killed_after, None), "{killed_after}");
            for gone in ["etc/privateregistry", "etc/docker/certs.d/a:5000", "etc/docker/certs.d/b:5000"] {
                assert!(!host.path(gone).exists(), "{killed_after}: {gone}");
            }
            assert_eq!(host.read("etc/docker/certs.d/192.168.0.1/note.txt"), "mine");
            assert_eq!(host.read("etc/docker/certs.d/c:5000/ca.crt"), certificate.clone() + "\n");
            assert!(host.path("etc/docker/certs.d/empty").exists());
            // The next pass takes the place that has become free; then nothing is left to do.
            let next = node.apply(&signed("2"), &cleaning());
            assert_eq!((next.cleaned.len(), host.read("etc/docker/certs.d/192.168.0.1/ca.crt")), (0, first.pem()));
            assert!(!node.apply(&signed("2"), &cleaning()).changed);
            node.restore(&signed("3"));
            assert!(!host.path("etc/docker/certs.d/192.168.0.1/ca.crt").exists());
        }
    }

    #[test]
    fn foreign_files_beside_the_tutorials_keep_their_directories() {
        let (host, certificate) = prepared_by_hand();
        let (service, first) = (host.service("private-registry"), ca(1));
        let cleaning = Bundle { clean_agents: true, ..bundle(&["192.168.0.1:443"], &[&first]) };
        host.write(&format!("{CERTS}/other.key"), KEY);
        host.write("etc/docker/certs.d/a:5000/key.txt", &certificate);
        assert_eq!(service.apply(&signed("1"), &cleaning).errors, [""; 0]);
        service.restore(&signed("2"));
        assert_eq!(host.read(&format!("{CERTS}/other.key")), KEY);
        assert_eq!(host.read("etc/docker/certs.d/a:5000/key.txt"), certificate);
        assert!(!host.path("etc/docker/certs.d/192.168.0.1").exists(), "it has become empty");

        // Nothing is known of files whose certificate is none, or lies behind a link.
        let (host, _) = prepared_by_hand();
        fs::rename(host.path("etc/privateregistry"), host.path("elsewhere")).unwrap();
        symlink(host.path("elsewhere"), host.path("etc/privateregistry")).unwrap();
        let report = host.service("private-registry").apply(&signed("1"), &cleaning);
        assert_eq!((report.errors.len(), report.cleaned.len(), host.read("elsewhere/certs/domain.key").as_str()), (0, 0, KEY));
    }

    fn link_of(certificate: &Certificate, number: u32) -> String {
        format!("var/lib/dcos/pki/tls/certs/{:08x}.{number}", certificate.subject_hash())
    }

    fn file_of(service: &str, certificate: &Certificate) -> String {
        format!("var/lib/dcos/pki/tls/certs/{service}-{}.crt", &certificate.fingerprint()[..8])
    }

    #[test]
    fn a_bundle_becomes_exactly_its_files_and_the_restore_takes_every_byte_back() {
        let host = TestHost::new();
        let before = host.picture();
        let (old, new) = (ca(1), ca(2));
        let report = host.service("a/b").apply(&signed("1"), &bundle(&["192.168.0.1:443", "registry.marathon.mesos:5000"], &[&old, &new]));
        assert_eq!((report.errors, report.notes), (vec![], vec![]));
        let both = host.read("etc/docker/certs.d/192.168.0.1/ca.crt");
        assert!(both.contains(&old.pem()) && both.contains(&new.pem()));
        for spelling in ["192.168.0.1:443", "registry.marathon.mesos:5000"] {
            assert_eq!(host.read(&format!("etc/docker/certs.d/{spelling}/ca.crt")), both);
        }
        for certificate in [&old, &new] {
            assert_eq!(host.read(&link_of(certificate, 0)), certificate.pem());
            let target = fs::read_link(host.path(&link_of(certificate, 0))).unwrap();
            assert_eq!(Path::new("var/lib/dcos/pki/tls/certs").join(target), Path::new(&file_of("a.b", certificate)));
        }
        assert_eq!(report.files.len(), 3 + 4);
        assert_eq!(report.sysctl, SysctlStatus { state: SysctlState::Set, value: Some("1".into()), found: Some("0".into()) });
        assert!(host.read("etc/sysctl.d/60-private-registry.conf").contains("be_liberal = 1"));

        let report = host.service("a/b").restore(&signed("2"));
        assert_eq!((report.errors, report.notes, report.files), (vec![], vec![], vec![]));
        assert_eq!(host.picture(), before);
    }

    /// Our bundle, with registries of others and further stores.
    fn with_others(own: &[&Certificate], others: &[(&str, &Certificate)], stores: Stores) -> Bundle {
        let others = others.iter().map(|(name, ca)| OtherTrust { name: name.parse().unwrap(), certificates: vec![ca.pem()] }).collect();
        let name = TrustedName { name: "192.168.0.1:443".parse().unwrap(), inside: true };
        let names = if own.is_empty() { vec![] } else { vec![name] };
        let certificates = own.iter().map(|ca| ca.pem()).collect();
        Bundle::parse(&TrustBundle { names, certificates, others, stores, conntrack_be_liberal: true, ..TrustBundle::default() }).unwrap()
    }

    #[test]
    fn other_registries_get_their_own_ca_and_one_that_two_of_them_share_lies_in_the_store_of_mesos_once() {
        let host = TestHost::new();
        let before = host.picture();
        let (own, theirs) = (ca(1), ca(2));
        let service = host.service("pr");
        let others = [("gitlab.example.com:443", &theirs), ("gitlab.example.com:5050", &theirs)];
        let report = service.apply(&signed("a"), &with_others(&[&own], &others, Stores::default()));
        assert_eq!(report.errors, Vec::<String>::new());
        for name in ["gitlab.example.com", "gitlab.example.com:443", "gitlab.example.com:5050"] {
            assert_eq!(host.read(&format!("etc/docker/certs.d/{name}/ca.crt")), theirs.pem(), "{name}");
        }
        assert_eq!(host.read("etc/docker/certs.d/192.168.0.1/ca.crt"), own.pem(), "the CA of another must not speak for our registry");
        assert_eq!(host.read(&link_of(&theirs, 0)), theirs.pem());
        assert!(!host.path(&link_of(&theirs, 1)).exists());
        // Without a registry of our own; and then a host that keeps nothing.
        let report = service.apply(&signed("b"), &with_others(&[], &others, Stores::default()));
        assert_eq!(report.errors, Vec::<String>::new());
        assert!(!host.path("etc/docker/certs.d/192.168.0.1").exists() && !host.path(&link_of(&own, 0)).exists());
        service.restore(&signed("c"));
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn a_foreign_directory_of_another_registry_is_left_alone_in_every_store() {
        let host = TestHost::new();
        host.write("etc/docker/certs.d/nexus.example.com:8443/ca.crt", "foreign");
        host.write("etc/containers/certs.d/nexus.example.com:8443/ca.crt", "foreign");
        host.write("etc/containerd/certs.d/nexus.example.com:8443/ca.crt", "foreign");
        host.write("etc/containerd/certs.d/harbor.example.com/hosts.toml", "foreign");
        let before = host.picture();
        let theirs = ca(2);
        let stores = Stores { containerd: true, podman: true, system: false };
        let others = [("nexus.example.com:8443", &theirs), ("harbor.example.com:443", &theirs)];
        let report = host.service("pr").apply(&signed("a"), &with_others(&[], &others, stores));
        assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
        assert!(report.errors[0].contains("harbor.example.com/hosts.toml is in the way"), "{:?}", report.errors);
        for store in ["docker", "containers", "containerd"] {
            let dir = format!("etc/{store}/certs.d/nexus.example.com:8443");
            assert_eq!((host.read(&format!("{dir}/ca.crt")), host.read(&format!("{dir}/pr.crt"))), ("foreign".into(), theirs.pem()));
            assert!(!host.path(&format!("{dir}/hosts.toml")).exists(), "it would take the foreign file out of use");
        }
        host.service("pr").restore(&signed("b"));
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn further_stores_are_written_and_taken_back_when_switched_off() {
        let host = TestHost::new();
        let (own, theirs) = (ca(1), ca(2));
        let service = host.service("pr");
        service.apply(&signed("a"), &with_others(&[&own], &[], Stores::default()));
        let without = host.picture();
        let stores = Stores { containerd: true, podman: true, system: false };
        let report = service.apply(&signed("a"), &with_others(&[&own], &[("10.0.0.9:5050", &theirs)], stores));
        assert_eq!(report.errors, Vec::<String>::new());
        let hosts = host.read("etc/containerd/certs.d/192.168.0.1:443/hosts.toml");
        assert!(hosts.contains("[host.\"https://192.168.0.1:443\"]\n  ca = \"ca.crt\""), "{hosts}");
        for path in ["etc/containerd/certs.d/192.168.0.1/ca.crt", "etc/containers/certs.d/192.168.0.1/ca.crt"] {
            assert_eq!(host.read(path), own.pem(), "{path}");
        }
        assert_eq!(host.read("etc/containers/certs.d/10.0.0.9:5050/ca.crt"), theirs.pem());
        service.apply(&signed("a"), &with_others(&[&own], &[], Stores::default()));
        let left: Vec<PathBuf> = host.picture().into_keys().filter(|path| !without.contains_key(path)).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }

    #[test]
    fn the_systems_store_is_put_together_by_debians_own_tool_and_is_afterwards_as_it_was() {
        let host = TestHost::new();
        let system = |on| Stores { system: on, ..Stores::default() };
        let (own, theirs, company) = (ca(1), ca(2), ca(3));
        let service = host.service("pr");
        let report = service.apply(&signed("a"), &with_others(&[&own], &[], system(true)));
        assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
        assert!(report.errors[0].contains("trust.system"), "{:?}", report.errors);

        let local = "usr/local/share/ca-certificates";
        fs::create_dir_all(host.path(local)).unwrap();
        fs::create_dir_all(host.path("etc/ssl/certs")).unwrap();
        fs::create_dir_all(host.path("usr/share/ca-certificates")).unwrap();
        fs::create_dir_all(host.path("etc/ca-certificates/update.d")).unwrap();
        host.write("etc/ca-certificates.conf", "");
        host.write("usr/local/share/ca-certificates/company.crt", &company.pem());
        host.write("usr/local/share/ca-certificates/second.crt", &ca(4).pem());
        let at = |path: &str| host.path(path).display().to_string();
        let tool = format!(
            "#!/bin/sh\n[ ! -e {} ] || exit 3\nexec /usr/sbin/update-ca-certificates --certsconf {} --certsdir {} --localcertsdir {} --etccertsdir {} --hooksdir {}\n",
            at("broken"),
            at("etc/ca-certificates.conf"),
            at("usr/share/ca-certificates"),
            at(local),
            at("etc/ssl/certs"),
            at("etc/ca-certificates/update.d")
        );
        host.write("usr/sbin/update-ca-certificates", &tool);
        fs::set_permissions(host.path("usr/sbin/update-ca-certificates"), fs::Permissions::from_mode(0o755)).unwrap();
        let bundle = || host.read("etc/ssl/certs/ca-certificates.crt");
        let refresh = || SystemStore::on(&HostRoot::at(host.dir.path())).unwrap().refresh();
        service.restore(&signed("a"));
        refresh().unwrap();
        let before = host.picture();

        // One that fails is tried again, though the files are there by then.
        host.write("broken", "");
        let report = service.apply(&signed("b"), &with_others(&[&own], &[("10.0.0.9:5050", &theirs)], system(true)));
        assert!(report.errors[0].contains("update-ca-certificates failed: exit status: 3"), "{:?}", report.errors);
        fs::remove_file(host.path("broken")).unwrap();
        let report = service.apply(&signed("b"), &with_others(&[&own], &[("10.0.0.9:5050", &theirs)], system(true)));
        assert_eq!(report.errors, Vec::<String>::new());
        assert!([&own, &theirs, &company].iter().all(|ca| bundle().contains(&ca.pem())));
        let stamp = || fs::metadata(host.path("etc/ssl/certs/ca-certificates.crt")).unwrap().mtime_nsec();
        let written = stamp();
        service.apply(&signed("b"), &with_others(&[&own], &[("10.0.0.9:5050", &theirs)], system(true)));
        assert_eq!(stamp(), written, "a pass that changes nothing does not run the tool");
        service.apply(&signed("c"), &with_others(&[&own], &[], system(false)));
        assert!(bundle().contains(&company.pem()) && !bundle().contains(&own.pem()));
        service.apply(&signed("d"), &with_others(&[&own], &[], system(true)));
        service.restore(&signed("e"));
        let after = host.picture();
        let differs: Vec<&PathBuf> = before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
        assert_eq!(differs, Vec::<&PathBuf>::new());
    }

    #[test]
    fn a_second_pass_writes_nothing() {
        let host = TestHost::new();
        let bundle = bundle(&["192.168.0.1:443"], &[&ca(1)]);
        assert!(host.service("s").apply(&signed("1"), &bundle).changed);
        let times = |host: &TestHost| -> Vec<_> {
            host.picture()
                .keys()
                .map(|path| fs::symlink_metadata(path).unwrap())
                .map(|m| (m.ino(), m.mtime_nsec(), m.ctime_nsec()))
                .collect()
        };
        let before = times(&host);
        assert!(!host.service("s").apply(&signed("1"), &bundle).changed);
        assert_eq!(times(&host), before);
    }

    #[test]
    fn drift_is_repaired() {
        let host = TestHost::new();
        let (service, certificate) = (host.service("s"), ca(1));
        let bundle = bundle(&["192.168.0.1:443"], &[&certificate]);
        service.apply(&signed("1"), &bundle);
        host.write("etc/docker/certs.d/192.168.0.1/ca.crt", "edited");
        fs::remove_file(host.path(&link_of(&certificate, 0))).unwrap();
        fs::remove_dir_all(host.path("etc/docker/certs.d/192.168.0.1:443")).unwrap();
        host.write(SYSCTL, "0\n");
        let report = service.apply(&signed("1"), &bundle);
        assert!(report.changed && report.errors.is_empty());
        for spelling in ["192.168.0.1", "192.168.0.1:443"] {
            assert_eq!(host.read(&format!("etc/docker/certs.d/{spelling}/ca.crt")), certificate.pem());
        }
        assert_eq!(host.read(&link_of(&certificate, 0)), certificate.pem());
        assert_eq!(host.read(SYSCTL), "1\n");
    }

    #[test]
    fn a_foreign_ca_file_is_left_alone_and_ours_lies_beside_it() {
        let host = TestHost::new();
        host.write("etc/docker/certs.d/192.168.0.1/ca.crt", "theirs");
        host.write("etc/docker/certs.d/other.example:5000/ca.crt", "other");
        let before = host.picture();
        let certificate = ca(1);
        let report = host.service("s").apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&certificate]));
        assert_eq!(report.errors, Vec::<String>::new());
        assert_eq!(host.read("etc/docker/certs.d/192.168.0.1/ca.crt"), "theirs");
        assert_eq!(host.read("etc/docker/certs.d/192.168.0.1/s.crt"), certificate.pem());
        host.service("s").restore(&signed("2"));
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn a_foreign_link_of_the_same_hash_is_left_alone_and_ours_takes_the_next_number() {
        let host = TestHost::new();
        let certificate = ca(1);
        host.write("var/lib/dcos/pki/tls/certs/theirs.crt", "theirs");
        symlink("theirs.crt", host.path(&link_of(&certificate, 0))).unwrap();
        let before = host.picture();
        let bundle = bundle(&["192.168.0.1:443"], &[&certificate]);
        assert_eq!(host.service("s").apply(&signed("1"), &bundle).errors, Vec::<String>::new());
        assert_eq!(host.read(&link_of(&certificate, 0)), "theirs");
        assert_eq!(host.read(&link_of(&certificate, 1)), certificate.pem());

        // OpenSSL stops at a gap: once the foreign link is gone, ours has to move down.
        fs::remove_file(host.path(&link_of(&certificate, 0))).unwrap();
        host.service("s").apply(&signed("1"), &bundle);
        assert_eq!(host.read(&link_of(&certificate, 0)), certificate.pem());
        assert!(!host.path(&link_of(&certificate, 1)).exists());

        host.service("s").restore(&signed("2"));
        symlink("theirs.crt", host.path(&link_of(&certificate, 0))).unwrap();
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn for_a_public_ca_no_file_is_written_and_those_of_an_earlier_ca_go() {
        let host = TestHost::new();
        let before = host.picture();
        let service = host.service("registry");
        assert_eq!(service.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&ca(1)])).files.len(), 4);
        let report = service.apply(&signed("2"), &bundle(&["192.168.0.1:443"], &[]));
        assert_eq!((report.files, report.errors, report.sysctl.state), (vec![], vec![], SysctlState::Set));
        assert!(!host.path("etc/docker/certs.d/192.168.0.1").exists());
        service.restore(&signed("3"));
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn what_drops_out_of_the_bundle_leaves_the_host() {
        let host = TestHost::new();
        let (service, old, new) = (host.service("s"), ca(1), ca(2));
        service.apply(&signed("1"), &bundle(&["192.168.0.1:443", "old.example:5000"], &[&old, &new]));
        let report = service.apply(&signed("2"), &bundle(&["192.168.0.1:443"], &[&new]));
        assert_eq!((report.errors, report.notes), (vec![], vec![]));
        assert!(!host.path("etc/docker/certs.d/old.example:5000").exists());
        assert!(!host.path(&link_of(&old, 0)).exists() && !host.path(&file_of("s", &old)).exists());
        assert_eq!(host.read("etc/docker/certs.d/192.168.0.1/ca.crt"), new.pem());
        assert_eq!(report.files.len(), 2 + 2);
    }

    #[test]
    fn old_trust_stays_while_the_new_one_cannot_be_written() {
        let host = TestHost::new();
        let (service, old, new) = (host.service("s"), ca(1), ca(2));
        service.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&old]));
        host.write("etc/docker/certs.d/new.example:5000", "a file where a directory is due");
        let report = service.apply(&signed("2"), &bundle(&["new.example:5000"], &[&new]));
        assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
        assert!(report.errors[0].contains("new.example:5000 is not a directory; move it out of the way"), "{:?}", report.errors);
        assert_eq!(host.read(&link_of(&old, 0)), old.pem());
        assert_eq!(host.read(&link_of(&new, 0)), new.pem(), "one place in the way does not hold up the others");
    }

    #[test]
    fn a_directory_that_is_a_link_is_refused_and_the_rest_is_done() {
        let host = TestHost::new();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::create_dir_all(host.path("etc/docker/certs.d")).unwrap();
        symlink(elsewhere.path(), host.path("etc/docker/certs.d/192.168.0.1")).unwrap();
        let report = host.service("s").apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&ca(1)]));
        assert_eq!(report.errors.len(), 1);
        assert!(report.errors[0].contains("is a symbolic link"), "{:?}", report.errors);
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert!(host.path("etc/docker/certs.d/192.168.0.1:443/ca.crt").exists());
    }

    #[test]
    fn a_kill_between_the_manifest_and_the_files_leaves_nothing_behind() {
        let (host, bundle_of) = (TestHost::new(), bundle(&["192.168.0.1:443"], &[&ca(1)]));
        let before = host.picture();
        let service = host.service("s");
        service.apply(&signed("1"), &bundle_of);
        let manifest_path = Manifest::path(&service.root, "s");
        let complete = fs::read_to_string(&manifest_path).unwrap();
        // The state right after the intent: nothing counts as written, one file is there, one is not, one is half there.
        fs::write(&manifest_path, complete.replace("true", "false")).unwrap();
        fs::remove_file(host.path("etc/docker/certs.d/192.168.0.1/ca.crt")).unwrap();
        host.write("etc/docker/certs.d/192.168.0.1/.private-registry.s.ca.crt.tmp", "-----BEG");

        let report = service.apply(&signed("1"), &bundle_of);
        assert_eq!(report.errors, Vec::<String>::new());
        assert_eq!(fs::read_to_string(&manifest_path).unwrap(), complete);
        assert!(!host.path("etc/docker/certs.d/192.168.0.1/.private-registry.s.ca.crt.tmp").exists());

        fs::write(&manifest_path, complete.replace("true", "false")).unwrap();
        fs::remove_file(host.path("etc/docker/certs.d/192.168.0.1/ca.crt")).unwrap();
        host.write("etc/docker/certs.d/192.168.0.1/.private-registry.s.ca.crt.tmp", "-----BEG");
        assert_eq!(service.restore(&signed("2")).errors, Vec::<String>::new());
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn a_file_that_somebody_changed_after_us_survives_the_restore_and_is_named() {
        let host = TestHost::new();
        let service = host.service("s");
        service.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&ca(1)]));
        host.write("etc/docker/certs.d/192.168.0.1/ca.crt", "edited");
        let report = service.restore(&signed("2"));
        assert_eq!(report.errors, Vec::<String>::new());
        assert_eq!(report.notes.len(), 1);
        assert!(report.notes[0].contains("192.168.0.1/ca.crt stays"), "{:?}", report.notes);
        assert_eq!(host.read("etc/docker/certs.d/192.168.0.1/ca.crt"), "edited");
        assert!(!host.path("etc/docker/certs.d/192.168.0.1:443").exists());
    }

    #[test]
    fn two_services_share_a_host_and_the_last_one_out_restores_it() {
        let host = TestHost::new();
        let before = host.picture();
        let (a, b) = (host.service("a"), host.service("b"));
        let other = ca(2);
        a.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&ca(1)]));
        let b_bundle = bundle(&["192.168.0.2:443"], &[&other]);
        let report = b.apply(&signed("1"), &b_bundle);
        assert_eq!(report.sysctl.found.as_deref(), Some("0"), "what was there before the first of us, not before the second");
        a.restore(&signed("2"));
        assert_eq!(host.read(SYSCTL), "1\n");
        assert!(host.path("etc/sysctl.d/60-private-registry.conf").exists());
        assert_eq!(host.read("etc/docker/certs.d/192.168.0.2/ca.crt"), other.pem());
        assert!(!host.path("etc/docker/certs.d/192.168.0.1").exists());
        assert!(!b.apply(&signed("1"), &b_bundle).changed);
        b.restore(&signed("2"));
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn a_sysctl_that_was_on_before_us_is_not_ours() {
        let host = TestHost::new();
        host.write(SYSCTL, "1\n");
        let before = host.picture();
        let report = host.service("s").apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&ca(1)]));
        assert_eq!(report.sysctl, SysctlStatus { state: SysctlState::AlreadySet, value: Some("1".into()), found: Some("1".into()) });
        assert!(!host.path("etc/sysctl.d/60-private-registry.conf").exists());
        host.service("s").restore(&signed("2"));
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn an_absent_sysctl_is_pending_and_set_as_soon_as_it_appears() {
        let host = TestHost::new();
        let (service, bundle) = (host.service("s"), bundle(&["192.168.0.1:443"], &[&ca(1)]));
        fs::remove_file(host.path(SYSCTL)).unwrap();
        let report = service.apply(&signed("1"), &bundle);
        assert_eq!((report.sysctl.state, report.errors), (SysctlState::Pending, vec![]));
        host.write(SYSCTL, "0\n");
        assert_eq!(service.apply(&signed("1"), &bundle).sysctl.state, SysctlState::Set);
        assert_eq!(host.read(SYSCTL), "1\n");
    }

    #[test]
    fn a_reboot_with_our_setting_does_not_make_it_the_found_one() {
        let host = TestHost::new();
        let (service, bundle) = (host.service("s"), bundle(&["192.168.0.1:443"], &[&ca(1)]));
        service.apply(&signed("1"), &bundle);
        // The boot applied our own file; then the node starts with no memory but the host's.
        let report = service.apply(&signed("1"), &bundle);
        assert_eq!((report.sysctl.state, report.sysctl.found.as_deref()), (SysctlState::Set, Some("0")));
        service.restore(&signed("2"));
        assert_eq!(host.read(SYSCTL), "0\n");
    }

    #[test]
    fn a_value_that_somebody_set_after_us_stays() {
        let host = TestHost::new();
        let service = host.service("s");
        host.write(SYSCTL, "0\n");
        service.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&ca(1)]));
        host.write(SYSCTL, "2\n");
        service.restore(&signed("2"));
        assert_eq!(host.read(SYSCTL), "2\n");
    }

    #[test]
    fn an_unreadable_manifest_stops_the_pass_before_it_changes_anything() {
        let host = TestHost::new();
        host.write("var/lib/private-registry/s/node/manifest.json", "{");
        let before = host.picture();
        let report = host.service("s").apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&ca(1)]));
        assert!(report.errors[0].contains("manifest.json is not readable as state"), "{:?}", report.errors);
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn a_restore_on_a_host_that_never_had_us_touches_nothing() {
        let host = TestHost::new();
        let before = host.picture();
        assert_eq!(host.service("s").restore(&signed("1")).errors, Vec::<String>::new());
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn what_a_registry_has_left_that_moved_away_goes_with_the_restore_and_nothing_else_beside_it() {
        let host = TestHost::new();
        let before = host.picture();
        let service = host.service("s");
        let left =
            |names: &[&str]| names.iter().for_each(|name| host.write(&format!("var/lib/private-registry/s/registry/{name}"), "left"));
        assert!(service.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&ca(1)])).in_place);
        left(&["tls.key", "account", "config.yml.tmp", "upstream-ca/ca.pem"]);
        assert_eq!(service.restore(&signed("2")).errors, Vec::<String>::new());
        assert_eq!(host.picture(), before);

        assert!(service.apply(&signed("3"), &bundle(&["192.168.0.1:443"], &[&ca(1)])).in_place);
        left(&["tls.key", "notes-of-an-operator"]);
        assert_eq!(service.restore(&signed("4")).errors, Vec::<String>::new());
        let stays: Vec<_> =
            fs::read_dir(host.path("var/lib/private-registry/s/registry")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(stays, ["notes-of-an-operator"]);
    }

    #[test]
    fn the_manifest_is_for_root_only() {
        let host = TestHost::new();
        let service = host.service("s");
        service.apply(&signed("1"), &bundle(&["192.168.0.1:443"], &[&ca(1)]));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(Manifest::path(&service.root, "s")), 0o600);
        assert_eq!(mode(service.root.node_state("s")), 0o700);
        assert_eq!(service.kept_order().unwrap(), Some(signed("1")));
    }
}
