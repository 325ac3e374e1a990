//! `net.netfilter.nf_conntrack_tcp_be_liberal`: set while any service of ours on the host wants it, then put back.
//!
//! Without it conntrack takes segments of long pushes through a DC/OS VIP for invalid, does not translate them, and the
//! host resets the connection. DC/OS itself has not set it since 1.9.

use super::files::{FileError, Found, HostFiles, Item, Removal};
use super::manifest::{HostState, SysctlClaims};
use crate::host_paths::HostRoot;
use crate::protocol::{SysctlState, SysctlStatus};

const DROP_IN: &str = "# Written by private-registry, removed with it: long pushes through a DC/OS VIP need it.\n\
                       net.netfilter.nf_conntrack_tcp_be_liberal = 1\n";

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
            let digest = Item::File(DROP_IN.into()).digest();
            let (Removal::Gone | Removal::Kept) = self.files.remove(&self.drop_in_path(), &[digest])?;
        }
        // Any other value than ours was set by somebody after us: it stays.
        if claims.found != "1" && self.read()?.as_deref() == Some("1") {
            self.write(&claims.found)?;
        }
        state.sysctl = None;
        Ok(())
    }

    /// The value now; `None` when the key is absent.
    pub(crate) fn read(&self) -> Result<Option<String>, FileError> {
        let path = self.root.conntrack_be_liberal();
        match self.files.look(&path)? {
            Found::Absent => Ok(None),
            Found::File(content) => Ok(Some(String::from_utf8_lossy(&content).trim().to_string())),
            Found::Link(_) | Found::Other => Err(FileError::InTheWay(path)),
        }
    }

    fn try_claim(&self, state: &mut HostState) -> Result<SysctlState, FileError> {
        let Some(value) = self.read()? else { return Ok(SysctlState::Pending) };
        let mut claims =
            state.sysctl.take().unwrap_or_else(|| SysctlClaims { found: value.clone(), claimed_by: Default::default(), drop_in: false });
        claims.claimed_by.insert(self.service.to_string());
        if claims.found == "1" {
            // So far we have changed nothing; what is there now is what we find.
            claims.found.clone_from(&value);
        }
        let ours = claims.found != "1";
        if ours && !claims.drop_in {
            claims.drop_in = self.files.look(&self.drop_in_path())? == Found::Absent;
            state.created_dirs.extend(self.files.missing_dirs(&self.root.sysctl_d())?);
        }
        let drop_in = claims.drop_in;
        state.sysctl = Some(claims);
        state.save(self.files, self.root)?;
        if !ours {
            return Ok(SysctlState::AlreadySet);
        }
        if value != "1" {
            self.write("1")?;
        }
        if drop_in {
            self.files.create_dirs(&self.root.sysctl_d(), 0o755)?;
            self.files.put(&self.drop_in_path(), &Item::File(DROP_IN.into()))?;
        }
        Ok(SysctlState::Set)
    }

    fn write(&self, value: &str) -> Result<(), FileError> {
        let path = self.root.conntrack_be_liberal();
        self.files.set_kernel_value(&path, value)?;
        match self.read()? {
            Some(now) if now == value => Ok(()),
            // Some sandboxes accept the write and drop it.
            _ => Err(FileError::System { doing: "change (the kernel kept the old value of)", path, source: nix::errno::Errno::EPERM }),
        }
    }

    fn drop_in_path(&self) -> std::path::PathBuf {
        self.root.sysctl_d().join("60-private-registry.conf")
    }
}
