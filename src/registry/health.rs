//! Whether the store can be used: what the registry itself says about it, and whether its disk has room.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::{FsFlags, statvfs};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;

use super::config::RegistryConfig;
use super::room::Surveyor;
use crate::dcos::{Api, read_to_end};
use crate::protocol::Room;

/// Between two looks. The registry itself looks every 10 s.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_BYTES: usize = 64 * 1024;
/// With less room than this an upload of any size fails.
const LEAST_ROOM: u64 = 64 * 1024 * 1024;

/// What is found of the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// What is wrong with it, for people.
    pub(super) problems: Vec<String>,
    pub(super) room: Option<Room>,
}

/// The store, looked at for ever.
pub(super) fn watch(config: &RegistryConfig) -> watch::Receiver<Found> {
    let (told, found) = watch::channel(Found::default());
    let directory = config.is_directory().then(|| config.data.clone());
    let (debug, writes) = (config.debug_listen, !config.settings.read_only);
    tokio::spawn(async move {
        let Ok(client) = Api::client() else { return };
        let mut surveyor = directory.clone().map(Surveyor::new);
        while !told.is_closed() {
            let disk = directory.as_deref().and_then(|directory| disk(directory, writes));
            let problems = disk.into_iter().chain(said(&client, debug).await).collect();
            let now = Found { problems, room: surveyor.as_mut().and_then(Surveyor::look) };
            told.send_if_modified(|old| {
                let changed = *old != now;
                *old = now;
                changed
            });
            sleep(LOOK_EVERY).await;
        }
    });
    found
}

/// What the running registry says; nothing while it does not run.
pub(super) async fn said(client: &reqwest::Client, debug: SocketAddr) -> Vec<String> {
    let Ok(answer) = client.get(format!("http://{debug}/debug/health")).timeout(PATIENCE).send().await else { return Vec::new() };
    if answer.status().is_success() {
        return Vec::new();
    }
    let text = read_to_end(answer, MAX_BYTES).await.unwrap_or_default();
    let checks: Value = crate::json::of_text(&text).unwrap_or_default();
    let problem = |(check, reason): (&String, &Value)| {
        // Some say it in several lines.
        let reason = &reason.as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        format!("the registry's store cannot be used ({check}): {reason}; {}", remedy(reason))
    };
    checks.as_object().into_iter().flatten().map(problem).collect()
}

/// What to do about an error of a storage driver.
fn remedy(reason: &str) -> &'static str {
    let reason = reason.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    match () {
        () if says(&["no space left", "disk quota"]) => FULL,
        () if says(&["permission denied", "read-only file system", "operation not permitted"]) => {
            "let root on this agent write there: look at the mount, and at root_squash where it is NFS"
        }
        () if says(&["nosuchbucket", "containernotfound", "bucket doesn't exist", "404"]) => {
            "the bucket does not exist there: look at storage.bucket, storage.region and storage.endpoint"
        }
        () if says(&[
            "accessdenied",
            "forbidden",
            "invalidaccesskeyid",
            "signaturedoesnotmatch",
            "authenticationfailed",
            "nocredentialproviders",
            "403",
            "401",
        ]) =>
        {
            "the store does not accept the keys: look at what storage.access_key, storage.secret_key or storage.credentials name, at the \
             rights of that account, and at this agent's clock"
        }
        () if says(&["no such host", "connection refused", "timeout", "no route", "unreachable", "dial tcp", "send request failed"]) => {
            "the store cannot be reached from this agent: look at storage.endpoint and storage.region, and whether the agent may connect there"
        }
        () => "`dcos private-registry logs registry` says more",
    }
}

const FULL: &str = "make room: delete images and run `dcos private-registry gc`, or give it a larger disk in registry.storage_path";

/// What is wrong with a directory's disk.
fn disk(directory: &Path, writes: bool) -> Option<String> {
    // The registry makes its directory when it needs it.
    let at = directory.ancestors().find(|path| path.exists()).map(PathBuf::from)?;
    let found = statvfs(&at).ok()?;
    let room = found.blocks_available() as u64 * found.fragment_size() as u64;
    if writes && found.flags().contains(FsFlags::ST_RDONLY) {
        return Some(format!("the disk of {} is mounted read-only; {}", directory.display(), remedy("read-only file system")));
    }
    // Some file systems count no files.
    if found.files() > 0 && found.files_available() == 0 {
        return Some(format!("the disk of {} has no room for another file, whatever its size; {FULL}", directory.display()));
    }
    (room < LEAST_ROOM).then(|| format!("the disk of {} is full: {} MiB are left; {FULL}", directory.display(), room >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_trouble_has_its_remedy() {
        for (reason, word) in [
            ("filesystem: write /var/lib/registry/x: no space left on device", "make room"),
            ("filesystem: stat /var/lib/registry/docker: permission denied", "root_squash"),
            ("s3aws: NoSuchBucket: The specified bucket does not exist status code: 404", "storage.bucket"),
            ("s3aws: NoCredentialProviders: no valid providers in chain", "storage.access_key"),
            ("s3aws: InvalidAccessKeyId: status code: 403", "storage.access_key"),
            ("RequestError: send request failed caused by: dial tcp 10.0.0.9:9000: connect: connection refused", "storage.endpoint"),
            ("something else", "logs registry"),
        ] {
            assert!(remedy(reason).contains(word), "{reason}: {}", remedy(reason));
        }
    }

    #[test]
    fn a_disk_with_room_is_no_problem() {
        assert_eq!(disk(Path::new("/tmp/not/there/yet"), true), None);
    }
}
