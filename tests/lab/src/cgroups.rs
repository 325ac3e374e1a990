//! The control groups that dockerds of the lab make: they outlive namespaces and must be removed by hand.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The parent of all control groups of the lab in this directory. It depends on the directory only, so that what a crashed lab left
/// is found by the next one.
pub(crate) fn of_lab(lab_dir: &Path) -> PathBuf {
    let hash = lab_dir.as_os_str().as_encoded_bytes().iter();
    let hash = hash.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    PathBuf::from(format!("lab-{hash:08x}"))
}

/// `--cgroup-parent` of a machine's dockerd, without the leading slash.
pub(crate) fn of_machine(lab_dir: &Path, ip: Ipv4Addr) -> PathBuf {
    of_lab(lab_dir).join(ip.to_string())
}

/// Removes a control group and all below it in every hierarchy. All its processes must have ended.
///
/// # Errors
/// One is in use.
pub(crate) fn remove(group: &Path) -> Result<()> {
    for hierarchy in hierarchies()? {
        remove_tree(&hierarchy.join(group))?;
    }
    Ok(())
}

/// Where control groups are mounted, of version 1 and 2.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(Error::io("reading", Path::new("/proc/self/mounts")))?;
    let of_cgroups = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(path))
    });
    Ok(of_cgroups.collect())
}

fn remove_tree(group: &Path) -> Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("reading", group))?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", group)(error)),
        _ => Ok(()),
    }
}
