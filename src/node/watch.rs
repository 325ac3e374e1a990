//! Notices at once when somebody changes what lies beside files of ours: a folder made a link, a file removed or overwritten.
//!
//! The look every minute stays: not every change makes an event, as when a file system is mounted over ours.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// What belongs together comes together: whoever replaces a folder does it in several steps.
const SETTLE: Duration = Duration::from_millis(500);
/// Between two looks that events have caused. A folder in which something is always going on must not keep the node busy.
const PAUSE: Duration = Duration::from_secs(5);
/// Folders of a file that are watched: its own and two above it. A folder that is replaced shows in the one above it.
const DEPTH: usize = 3;

/// See the module.
pub(crate) struct Watch {
    /// None where the system has no more to give, so the look every minute has to do.
    inotify: Option<Arc<Inotify>>,
    events: watch::Receiver<()>,
    woken: Option<Instant>,
}

impl Watch {
    /// Watches nothing yet.
    pub(crate) fn new() -> Self {
        let (told, events) = watch::channel(());
        let inotify = begin(told).inspect_err(|error| tracing::warn!(%error, "changes beside our files are seen within a minute only"));
        Self { inotify: inotify.ok(), events, woken: None }
    }

    /// Watches the folders of these files from now on, beside those that it watches already. Told again and again: a folder that was
    /// replaced is another one.
    pub(crate) fn follow<'a>(&self, files: impl Iterator<Item = &'a Path>) {
        let Some(inotify) = &self.inotify else { return };
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE;
        let flags = changes | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        for folder in folders(files) {
            match inotify.add_watch(&folder, flags) {
                Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => tracing::debug!(folder = %folder.display(), %error, "not watched"),
            }
        }
    }

    /// Forgets what has happened so far: it was our own doing. What comes a moment late costs a look too many.
    pub(crate) fn forget(&mut self) {
        self.events.borrow_and_update();
    }

    /// Waits until something has changed. May be dropped at any await.
    pub(crate) async fn changed(&mut self) {
        if self.events.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(woken) = self.woken {
            sleep_until(woken + PAUSE).await;
        }
        sleep(SETTLE).await;
        self.woken = Some(Instant::now());
        self.events.borrow_and_update();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Wakes the thread, which then finds that nobody listens.
        if let Some(inotify) = &self.inotify
            && let Ok(any) = inotify.add_watch("/", AddWatchFlags::IN_DELETE_SELF)
        {
            let _ = inotify.rm_watch(any);
        }
    }
}

/// Reads events on a thread of its own, which waits nearly always, and tells that there were some.
fn begin(told: watch::Sender<()>) -> std::io::Result<Arc<Inotify>> {
    let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
    let reading = Arc::clone(&inotify);
    let read = move || {
        loop {
            match reading.read_events() {
                Ok(_) if told.is_closed() => return,
                Ok(_) => told.send_modify(|()| {}),
                Err(Errno::EINTR) => {}
                Err(error) => return tracing::warn!(%error, "changes beside our files are seen within a minute only"),
            }
        }
    };
    std::thread::Builder::new().name("watch".into()).stack_size(64 * 1024).spawn(read)?;
    Ok(inotify)
}

/// The folders that these files lie in, and those above them that are not everybody's.
fn folders<'a>(files: impl Iterator<Item = &'a Path>) -> BTreeSet<PathBuf> {
    let above = |file: &'a Path| file.ancestors().skip(1).take(DEPTH);
    // `/etc` and `/var/lib` change for reasons that are no concern of ours.
    let is_everybodys = |folder: &&Path| folder.ancestors().count() <= 2 || *folder == Path::new("/var/lib");
    files.flat_map(above).filter(|folder| !is_everybodys(folder)).map(Path::to_path_buf).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    async fn is_woken(watch: &mut Watch) -> bool {
        timeout(SETTLE + Duration::from_secs(2), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn a_folder_that_becomes_a_link_a_file_that_is_removed_and_one_that_is_overwritten_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("certs.d/192.168.0.1");
        let file = folder.join("ca.crt");
        fs::create_dir_all(&folder).unwrap();
        fs::write(&file, "ours").unwrap();
        let mut watch = Watch::new();
        watch.follow([file.as_path()].into_iter());
        assert!(!is_woken(&mut watch).await, "nothing has changed");
        fs::write(&file, "theirs").unwrap();
        assert!(is_woken(&mut watch).await);
        watch.woken = None;
        fs::remove_file(&file).unwrap();
        assert!(is_woken(&mut watch).await);
        watch.woken = None;
        fs::rename(&folder, dir.path().join("elsewhere")).unwrap();
        symlink(dir.path().join("elsewhere"), &folder).unwrap();
        assert!(is_woken(&mut watch).await);
        fs::write(dir.path().join("certs.d/other"), "").unwrap();
        // The thread that reads may take its time.
        sleep(Duration::from_secs(1)).await;
        watch.forget();
        watch.woken = None;
        assert!(!is_woken(&mut watch).await, "that was our own doing");
    }

    #[test]
    fn folders_that_everybody_uses_are_not_watched() {
        let files = ["/etc/docker/certs.d/a/ca.crt", "/etc/sysctl.d/60-private-registry.conf"].map(Path::new);
        let expected = ["/etc/docker", "/etc/docker/certs.d", "/etc/docker/certs.d/a", "/etc/sysctl.d"].map(PathBuf::from);
        assert_eq!(folders(files.into_iter()).into_iter().collect::<Vec<_>>(), expected);
    }
}
