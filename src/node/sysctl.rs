//! `net.netfilter.nf_conntrack_tcp_be_liberal`: set while any service of ours on the host wants it, then put back.
//!
//! Without it conntrack takes segments of long pushes through a DC/OS VIP for invalid, does not translate them, and the
//! host resets the connection. DC/OS itself has not set it since 1.9. Anything but 0 switches it on, so only a 0 is changed.

use super::files::{FileError, Found, HostFiles, Item, Removal};
use super::manifest::{HostState, SysctlClaims};
use crate::host_paths::HostRoot;
use crate::protocol::{SysctlState, SysctlStatus};

/// What the kernel says when it is off.
const OFF: &str = "0";
const ON: &str = "1";

/// What has it set at boot.
fn drop_in(key: &str) -> Item {
    let text = format!("# Written by private-registry, removed with it: long pushes through a DC/OS VIP need it.\n{key} = {ON}\n");
    Item::File(text.into_bytes())
}

/// The setting on one host, seen by one service. Hold the shared lock while using it.
pub(crate) struct Sysctl<'a> {
    pub(crate) files: &'a HostFiles,
    pub(crate) root: &'a HostRoot,
    pub(crate) service: &'a str,
}

impl Sysctl<'_> {
    /// Sets the value if it has to be, and tells how it stands.
    pub(crate) fn claim(&self, state: &mut HostState) -> (SysctlStatus, Option<FileError>) {
        let outcome = self.try_claim(state);
        let value = self.read().ok().flatten();
        let found = state.sysctl.as_ref().map(|claims| claims.found.clone());
        match outcome {
            Ok(sysctl) => (SysctlStatus { state: sysctl, value, found }, None),
            Err(error) => (SysctlStatus { state: SysctlState::Failed, value, found }, Some(error)),
        }
    }

    /// Gives the claim up. The last one out puts the old value back and removes the persisted setting.
    pub(crate) fn release(&self, state: &mut HostState) -> Result<(), FileError> {
        let Some(claims) = &mut state.sysctl else { return Ok(()) };
        claims.claimed_by.remove(self.service);
        if !claims.claimed_by.is_empty() {
            return Ok(());
        }
        if claims.drop_in {
            // The kernel, and with it the key, may have changed since.
            let digests = self.root.conntrack_be_liberal().map(|(key, _)| drop_in(key).digest());
            let (Removal::Gone | Removal::Kept) = self.files.remove(&self.drop_in_path(), &digests)?;
        }
        // Any other value than ours was set by somebody after us: it stays.
        if claims.found == OFF
            && let Some(key) = self.key()?.filter(|key| key.value == ON)
        {
            self.write(&key, OFF)?;
        }
        state.sysctl = None;
        Ok(())
    }

    /// The value now; `None` when the key is absent.
    pub(crate) fn read(&self) -> Result<Option<String>, FileError> {
        Ok(self.key()?.map(|key| key.value))
    }

    /// The first key that this kernel has.
    fn key(&self) -> Result<Option<Key>, FileError> {
        for (name, path) in self.root.conntrack_be_liberal() {
            match self.files.look(&path)? {
                Found::Absent => {}
                Found::File(content) => {
                    let value = String::from_utf8_lossy(&content).trim().to_string();
                    return Ok(Some(Key { name, path, value }));
                }
                Found::Link(_) | Found::Other => return Err(FileError::InTheWay(path)),
            }
        }
        Ok(None)
    }

    fn try_claim(&self, state: &mut HostState) -> Result<SysctlState, FileError> {
        let Some(key) = self.key()? else { return Ok(SysctlState::Pending) };
        let unclaimed = || SysctlClaims { found: key.value.clone(), claimed_by: Default::default(), drop_in: false };
        let mut claims = state.sysctl.take().unwrap_or_else(unclaimed);
        claims.claimed_by.insert(self.service.to_string());
        if claims.found != OFF {
            // So far we have changed nothing; what is there now is what we find.
            claims.found.clone_from(&key.value);
        }
        let ours = claims.found == OFF;
        if ours && !claims.drop_in {
            claims.drop_in = self.files.look(&self.drop_in_path())? == Found::Absent;
            state.created_dirs.extend(self.files.missing_dirs(&self.root.sysctl_d())?);
        }
        let persists = claims.drop_in;
        state.sysctl = Some(claims);
        state.save(self.files, self.root)?;
        if !ours {
            return Ok(SysctlState::AlreadySet);
        }
        if key.value == OFF {
            self.write(&key, ON)?;
        }
        if persists {
            self.files.create_dirs(&self.root.sysctl_d(), 0o755)?;
            self.files.put(&self.drop_in_path(), &drop_in(key.name))?;
        }
        Ok(SysctlState::Set)
    }

    fn write(&self, key: &Key, value: &str) -> Result<(), FileError> {
        self.files.set_kernel_value(&key.path, value)?;
        match self.read()? {
            Some(now) if now == value => Ok(()),
            // Some sandboxes accept the write and drop it.
            _ => {
                let doing = "change (the kernel kept the old value of)";
                Err(FileError::System { doing, path: key.path.clone(), source: nix::errno::Errno::EPERM })
            }
        }
    }

    fn drop_in_path(&self) -> std::path::PathBuf {
        self.root.sysctl_d().join("60-private-registry.conf")
    }
}

/// The sysctl as this kernel spells it.
struct Key {
    name: &'static str,
    path: std::path::PathBuf,
    value: String,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NEW: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
    const OLD: &str = "proc/sys/net/ipv4/netfilter/ip_conntrack_tcp_be_liberal";
    const DROP_IN: &str = "etc/sysctl.d/60-private-registry.conf";

    struct TestHost(tempfile::TempDir);

    impl TestHost {
        fn with(keys: &[(&str, &str)]) -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            keys.iter().for_each(|(key, value)| host.set(key, value));
            HostFiles::open(&host.root(), "s").unwrap().create_dirs(&host.root().shared_state(), 0o755).unwrap();
            host
        }

        fn root(&self) -> HostRoot {
            HostRoot::at(self.0.path())
        }

        fn set(&self, key: &str, value: &str) {
            let path = self.0.path().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }

        fn read(&self, below: &str) -> String {
            fs::read_to_string(self.0.path().join(below)).unwrap_or_default().trim().to_owned()
        }

        fn act<T>(&self, act: impl Fn(&Sysctl<'_>, &mut HostState) -> T) -> T {
            let (root, files) = (self.root(), HostFiles::open(&self.root(), "s").unwrap());
            let mut state = HostState::load(&files, &root).unwrap();
            let result = act(&Sysctl { files: &files, root: &root, service: "s" }, &mut state);
            state.save(&files, &root).unwrap();
            result
        }

        fn claim(&self) -> SysctlState {
            let (status, error) = self.act(|sysctl, state| sysctl.claim(state));
            assert!(error.is_none(), "{error:?}");
            status.state
        }

        fn release(&self) {
            self.act(|sysctl, state| sysctl.release(state)).unwrap();
        }
    }

    #[test]
    fn an_old_kernel_is_set_by_its_own_key_and_the_boot_too() {
        let host = TestHost::with(&[(OLD, "0")]);
        assert_eq!(host.claim(), SysctlState::Set);
        assert_eq!(host.read(OLD), "1");
        assert!(host.read(DROP_IN).ends_with("\nnet.ipv4.netfilter.ip_conntrack_tcp_be_liberal = 1"), "{}", host.read(DROP_IN));
        // A newer kernel has booted, and has not understood the file.
        fs::remove_file(host.0.path().join(OLD)).unwrap();
        host.set(NEW, "0");
        assert_eq!(host.claim(), SysctlState::Set);
        assert_eq!(host.read(NEW), "1");
        assert!(host.read(DROP_IN).ends_with("\nnet.netfilter.nf_conntrack_tcp_be_liberal = 1"));
        host.release();
        assert_eq!((host.read(NEW).as_str(), host.0.path().join(DROP_IN).exists()), ("0", false));
    }

    #[test]
    fn any_value_but_0_is_on_already_and_is_neither_changed_nor_put_back() {
        let host = TestHost::with(&[(NEW, "2")]);
        assert_eq!(host.claim(), SysctlState::AlreadySet);
        assert_eq!((host.read(NEW).as_str(), host.0.path().join(DROP_IN).exists()), ("2", false));
        host.release();
        assert_eq!(host.read(NEW), "2");
        // Switched off by somebody since: then it is ours to set.
        host.claim();
        host.set(NEW, "0");
        assert_eq!(host.claim(), SysctlState::Set);
        host.release();
        assert_eq!(host.read(NEW), "0");
    }

    #[test]
    fn a_key_that_is_absent_is_waited_for_and_a_foreign_file_for_the_boot_is_left_alone() {
        let host = TestHost::with(&[(DROP_IN, "# somebody's")]);
        assert_eq!(host.claim(), SysctlState::Pending);
        host.set(NEW, "0");
        assert_eq!(host.claim(), SysctlState::Set);
        host.release();
        assert_eq!((host.read(NEW).as_str(), host.read(DROP_IN).as_str()), ("0", "# somebody's"));
    }
}
