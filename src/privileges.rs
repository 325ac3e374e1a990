//! What a role gives up before it does anything else: it runs as root, without the powers of root that it has no use for, and neither it
//! nor what it starts can get them back.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

/// A role that runs as root on an agent, and what it does with that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The controller and the jobs: they keep a directory of their own, and read files that the options name, whosever they are.
    Controller,
    /// The node changes files of the host, some of which are others', and keeps their owners.
    Node,
    /// The registry role keeps files in directories that may be others', as on NFS; the registry that it starts does, too.
    Registry,
}

impl Role {
    /// What it keeps. A sysctl of the network needs none: root may write it, as it may reach the docker daemon and the init system.
    fn keeps(self) -> &'static [Capability] {
        match self {
            Self::Controller => &[Capability::CAP_DAC_OVERRIDE],
            Self::Node | Self::Registry => &[Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER],
        }
    }

    /// Whether it holds keys, which no dump of its memory should.
    fn has_keys(self) -> bool {
        self != Self::Node
    }
}

/// Gives up what the role does not need, for this thread and all that it starts: to be called before there are others.
///
/// # Errors
/// What the kernel did not take. The role can do its work all the same.
pub fn give_up(role: Role) -> Result<(), String> {
    let said = |error: caps::errors::CapsError| error.to_string();
    let present = caps::read(None, CapSet::Permitted).map_err(said)?;
    let kept: CapsHashSet = role.keeps().iter().copied().filter(|capability| present.contains(capability)).collect();
    // The bounding set first, for that takes a capability. It is what a program gets that root starts.
    if present.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(said)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(said)?;
        }
    }
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(said)?;
    caps::set(None, CapSet::Effective, &kept).map_err(said)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(said)?;
    prctl::set_no_new_privs().map_err(|errno| format!("no new privileges: {errno}"))?;
    if role.has_keys() {
        prctl::set_dumpable(false).map_err(|errno| format!("no dumps: {errno}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Of a thread of its own: capabilities are a thread's.
    fn after_giving_up(role: Role) -> (BTreeSet<String>, BTreeSet<String>, bool, String) {
        let of = |set| caps::read(None, set).unwrap().iter().map(ToString::to_string).collect::<BTreeSet<String>>();
        let thread = std::thread::spawn(move || {
            give_up(role).unwrap();
            let started = std::process::Command::new("grep").args(["CapEff", "/proc/self/status"]).output().unwrap();
            let started = String::from_utf8(started.stdout).unwrap().split_whitespace().last().unwrap().to_string();
            assert!(caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).is_err());
            (of(CapSet::Effective), of(CapSet::Bounding), prctl::get_no_new_privs().unwrap(), started)
        });
        thread.join().unwrap()
    }

    #[test]
    fn a_role_and_what_it_starts_keep_only_what_they_need() {
        if !nix::unistd::geteuid().is_root() {
            panic!("run it as root, as ci/test does");
        }
        for (role, mask) in [(Role::Controller, "2"), (Role::Node, "b"), (Role::Registry, "b")] {
            let (effective, bounding, no_new, started) = after_giving_up(role);
            let kept: BTreeSet<String> = role.keeps().iter().map(ToString::to_string).collect();
            assert_eq!((effective, bounding, no_new), (kept.clone(), kept, true), "{role:?}");
            assert_eq!(started.trim_start_matches('0'), mask, "{role:?}");
        }
    }
}
