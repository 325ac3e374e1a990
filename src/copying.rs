//! Backups and restores as the controller leads them: what is said of a run, from what the registry says. Pure.
//!
//! An active run of the job `….backup`, `….backup-verify` or `….restore` is the order.

use crate::collection::size;
use crate::options::{AuthKind, Options};
use crate::plan::RegistryTask;
use crate::protocol::{CopyCounts, CopyKind, CopyPhase, Copying, RegistryPhase};

/// So long the registry may take to take the order.
const PATIENCE: i64 = 600;

/// How a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Address of the task that is to be told, if one is.
    pub tell: Option<String>,
    /// How it stands, for people.
    pub said: String,
    /// Whether it has come to its end.
    pub ended: bool,
    /// Whether it has failed.
    pub failed: bool,
}

/// Why there can be no such run, if so.
pub fn refused(options: &Options, kind: CopyKind) -> Option<String> {
    let what = word(kind);
    if !options.registry.enabled {
        return Some("this service runs no registry (registry.enabled)".into());
    }
    let Options { storage, registry, auth, proxy, .. } = options;
    if storage.kind.is_object_store() && kind != CopyKind::Restore {
        return Some("the images lie in an object store, of which there is no backup; use that store's own versions and copies".into());
    }
    if options.backup.path.is_empty() {
        return Some(format!("a {what} needs a directory; give backup.path, best on a share that other agents mount too"));
    }
    // Into an object store the images are pushed.
    let pushed = storage.kind.is_object_store();
    if pushed && registry.read_only {
        return Some("the registry takes no pushes, and a restore into an object store is one; set registry.read_only to false".into());
    }
    if pushed && !proxy.remote_url.is_empty() {
        return Some(
            "this registry is a cache, which takes no pushes; a restore into an object store needs proxy.remote_url to be empty".into(),
        );
    }
    if pushed && auth.kind == AuthKind::Token {
        return Some(
            "only the authorisation server could let this service push to the registry; set auth.kind to htpasswd or none for the restore into \
             an object store, and back afterwards"
                .into(),
        );
    }
    None
}

fn word(kind: CopyKind) -> &'static str {
    if matches!(kind, CopyKind::Restore | CopyKind::Addition) { "restore" } else { "backup" }
}

/// How a run stands. `begun`: the task that has taken the order, if one has; `since`: when the run was first seen.
pub fn standing(
    run: &str,
    kind: CopyKind,
    begun: Option<&str>,
    since: i64,
    now: i64,
    tasks: &[RegistryTask],
    all_answer: bool,
) -> Standing {
    let what = word(kind);
    let failed = |said: String| Standing { tell: None, said: format!("the {what} has failed: {said}"), ended: true, failed: true };
    let waiting = |tell: Option<String>, said: &str| Standing { tell, said: said.into(), ended: false, failed: false };
    let part = |task: &RegistryTask| task.status.copying.clone().filter(|copying| copying.run == run);
    if let Some(copying) = tasks.iter().find_map(part) {
        return of_copying(&copying);
    }
    if let Some(begun) = begun {
        let is_there = tasks.iter().any(|task| task.status.task == begun);
        if is_there || all_answer {
            return failed(format!("the registry was started anew meanwhile{}; start it again", unharmed(kind)));
        }
        return waiting(None, "waiting for the registry to answer");
    }
    if now - since > PATIENCE {
        return failed(format!("the registry has not begun within {PATIENCE} s; look at `dcos private-registry status`"));
    }
    match tasks.iter().find(|task| task.status.phase == RegistryPhase::Serving) {
        Some(task) if all_answer => waiting(Some(task.address.clone()), &format!("waiting for the registry to begin the {what}")),
        _ => waiting(None, "waiting for the registry to serve"),
    }
}

fn unharmed(kind: CopyKind) -> &'static str {
    if kind == CopyKind::Restore {
        ", and every image that it serves is whole, one of before or a restored one"
    } else {
        ", and the last complete backup is still good"
    }
}

fn of_copying(copying: &Copying) -> Standing {
    let Copying { kind, counts, seconds, error, .. } = copying;
    let going = |said: String| Standing { tell: None, said, ended: false, failed: false };
    match (copying.phase, error) {
        (CopyPhase::Preparing, _) => going("the registry becomes read-only".into()),
        (CopyPhase::Copying, _) => going(format!(
            "{} images, {} blobs ({}) so far; {} copied",
            counts.images,
            counts.blobs,
            size(counts.bytes),
            size(counts.bytes_copied)
        )),
        (CopyPhase::Switching, _) => going("every blob is verified; the registry changes to the restored images".into()),
        (CopyPhase::Reopening, _) => going("the registry is started again".into()),
        (CopyPhase::Done, Some(error)) => {
            Standing { tell: None, said: format!("the {} has failed: {error}", word(*kind)), ended: true, failed: true }
        }
        (CopyPhase::Done, None) => Standing { tell: None, said: result(*kind, counts, *seconds), ended: true, failed: counts.damaged > 0 },
    }
}

fn result(kind: CopyKind, counts: &CopyCounts, seconds: u64) -> String {
    let CopyCounts { images, blobs, bytes, blobs_copied, bytes_copied, damaged, damaged_images, same_disk } = counts;
    let verb = match kind {
        CopyKind::Restore => "restored and verified",
        CopyKind::Addition => "the registry has, of the backup,",
        CopyKind::Backup | CopyKind::VerifiedBackup => "the backup has",
    };
    let mut said = format!(
        "{verb} {images} images in {blobs} blobs ({}); {blobs_copied} of them ({}) were copied, in {seconds} s",
        size(*bytes),
        size(*bytes_copied)
    );
    if kind == CopyKind::Addition {
        said += ". What it had beside them is still there";
        if *damaged > 0 {
            said += &format!(". It has refused {damaged} images of the backup: {}", damaged_images.join("; "));
        }
        return said;
    }
    if *same_disk && kind != CopyKind::Restore {
        said += ". backup.path and the images lie on the same disk: what breaks one breaks both";
    }
    if *damaged > 0 {
        said += &format!(
            ". {damaged} images of the registry are damaged and are not in the backup; push them again, or delete them: {}",
            damaged_images.join("; ")
        );
    }
    said
}

/// Why a garbage collection has to wait.
pub fn holds_back(tasks: &[RegistryTask]) -> bool {
    tasks.iter().any(|task| task.status.copying.as_ref().is_some_and(Copying::is_active))
}

/// Whether there is a job for it.
pub fn is_possible(options: &Options, kind: CopyKind) -> bool {
    !options.backup.path.is_empty() && (kind == CopyKind::Restore || !options.storage.kind.is_object_store())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::RegistryStatus;
    use serde_json::json;

    fn task(copying: Option<Copying>) -> RegistryTask {
        let status = RegistryStatus { phase: RegistryPhase::Serving, starts: 1, copying, ..RegistryStatus::first("s", "task-1", "h") };
        RegistryTask { address: "a".into(), status }
    }

    fn copying(phase: CopyPhase, error: Option<&str>) -> Copying {
        let counts =
            CopyCounts { images: 3, blobs: 10, bytes: 2_000_000, blobs_copied: 4, bytes_copied: 1_000_000, ..CopyCounts::default() };
        Copying { run: "r".into(), kind: CopyKind::Backup, phase, counts, seconds: 5, error: error.map(String::from) }
    }

    #[test]
    fn the_registry_is_told_until_it_has_begun_and_its_words_are_passed_on() {
        let at = |begun: Option<&str>, tasks: &[RegistryTask]| standing("r", CopyKind::Backup, begun, 0, 10, tasks, !tasks.is_empty());
        assert_eq!(at(None, &[task(None)]).tell.as_deref(), Some("a"));
        assert_eq!(at(None, &[]).said, "waiting for the registry to serve");
        let going = at(Some("task-1"), &[task(Some(copying(CopyPhase::Copying, None)))]);
        assert_eq!((going.said.as_str(), going.ended), ("3 images, 10 blobs (2.0 MB) so far; 1.0 MB copied", false));
        let done = at(Some("task-1"), &[task(Some(copying(CopyPhase::Done, None)))]);
        assert_eq!(
            (done.said.as_str(), done.ended, done.failed),
            ("the backup has 3 images in 10 blobs (2.0 MB); 4 of them (1.0 MB) were copied, in 5 s", true, false)
        );
        let failed = at(Some("task-1"), &[task(Some(copying(CopyPhase::Done, Some("no space"))))]);
        assert_eq!((failed.said.as_str(), failed.failed), ("the backup has failed: no space", true));
    }

    #[test]
    fn a_registry_that_was_started_anew_or_never_begins_fails_the_run() {
        let lost = standing("r", CopyKind::Backup, Some("task-0"), 0, 10, &[task(None)], true);
        assert!(lost.failed && lost.said.contains("started anew") && lost.said.contains("last complete backup"), "{lost:?}");
        let away = standing("r", CopyKind::Backup, Some("task-0"), 0, 10, &[], false);
        assert!(!away.ended);
        let late = standing("r", CopyKind::Restore, None, 0, PATIENCE + 1, &[task(None)], true);
        assert!(late.failed && late.said.contains("has not begun"), "{late:?}");
    }

    #[test]
    fn a_damaged_image_fails_the_run_though_there_is_a_backup() {
        let mut part = copying(CopyPhase::Done, None);
        (part.counts.damaged, part.counts.damaged_images) = (1, vec!["a:1: the blob x is missing".into()]);
        let standing = of_copying(&part);
        assert!(standing.failed && standing.said.contains("a:1: the blob x is missing"), "{standing:?}");
    }

    #[test]
    fn what_was_added_to_an_object_store_says_what_is_beside_it_and_what_was_refused() {
        let mut part = copying(CopyPhase::Done, None);
        part.kind = CopyKind::Addition;
        let said = of_copying(&part).said;
        assert_eq!(
            said,
            "the registry has, of the backup, 3 images in 10 blobs (2.0 MB); 4 of them (1.0 MB) were copied, in 5 s. What it had beside them is still there"
        );
        (part.counts.damaged, part.counts.damaged_images) = (1, vec!["a:1: manifest unknown".into()]);
        let standing = of_copying(&part);
        assert!(standing.failed && standing.said.ends_with("It has refused 1 images of the backup: a:1: manifest unknown"), "{standing:?}");
    }

    #[test]
    fn what_cannot_be_copied_is_refused_with_the_remedy() {
        let refused = |given: serde_json::Value, kind| refused(&Options::from_json(&given).unwrap(), kind).unwrap_or_default();
        assert!(refused(json!({}), CopyKind::Backup).contains("backup.path"));
        assert!(refused(json!({ "registry": { "enabled": false } }), CopyKind::Backup).contains("registry.enabled"));
        let store = |more: serde_json::Value| {
            let mut given = json!({ "storage": { "kind": "s3", "bucket": "b" }, "backup": { "path": "/mnt/b" } });
            given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            given
        };
        assert!(refused(store(json!({})), CopyKind::Backup).contains("object store"));
        assert_eq!(refused(store(json!({})), CopyKind::Restore), "");
        assert!(refused(store(json!({ "registry": { "read_only": true } })), CopyKind::Restore).contains("registry.read_only"));
        assert_eq!(refused(json!({ "backup": { "path": "/mnt/b" } }), CopyKind::Restore), "");
    }
}
