//! Notices at once when somebody changes what lies beside files of ours: a folder made a link, a file removed or overwritten.
//!
//! The look every minute stays: not every change makes an event, as when a file system is mounted over ours.

use crate::in_order::InOrder as _;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// What belongs together comes together: whoever replaces a folder does it in several steps.
const SETTLE: Duration = Duration::from_millis(500);
/// Between two looks that events have caused. A folder in which something is always going on must not keep the node busy.
const PAUSE: Duration = Duration::from_secs(5);
/// Folders of a file that are watched: its own and two above it. A folder that is replaced shows in the one above it.
const DEPTH: usize = 3;

/// See the module.
///
/// Our own writes make events too, and are not told from those of others: forgetting what has come in during a pass would forget what
/// somebody else did after the pass had read it. So a pass that has changed something is followed by a look, which changes nothing.
pub(crate) struct Watch {
    /// Before the reader, whose thread ends when nobody listens.
    events: watch::Receiver<()>,
    told: watch::Sender<()>,
    /// None where the system has no more to give, so the look every minute has to do.
    reader: Option<Reader>,
    /// A look is due: something has happened, or may have, before it could be seen.
    due: bool,
    woken: Option<Instant>,
    settle: Duration,
    pause: Duration,
}

/// Reads events on a thread of its own, which waits nearly always.
struct Reader {
    inotify: Arc<Inotify>,
    thread: JoinHandle<()>,
    watched: BTreeMap<PathBuf, WatchDescriptor>,
}

impl Watch {
    /// Watches nothing yet.
    pub(crate) fn new() -> Self {
        Self::with(SETTLE, PAUSE)
    }

    fn with(settle: Duration, pause: Duration) -> Self {
        let (told, events) = watch::channel(());
        Self { events, told, reader: None, due: false, woken: None, settle, pause }
    }

    /// Watches the folders of these files from now on. To be told after every pass: a folder that was replaced is another one. Where one is
    /// watched that was not before, something may have happened between the pass and now, so a further look is due.
    pub(crate) fn follow<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let folders = folders(files);
        if folders.is_empty() {
            return;
        }
        if self.reader.as_ref().is_none_or(|reader| reader.thread.is_finished()) {
            self.reader = Reader::start(self.told.clone()).inspect_err(tell).ok();
        }
        if let Some(reader) = &mut self.reader {
            self.due |= reader.watch(&folders);
        }
    }

    /// Waits until something has changed. May be dropped at any await.
    pub(crate) async fn changed(&mut self) {
        if !self.due {
            // This end holds a sender.
            let _ = self.events.changed().await;
            self.due = true;
        }
        if let Some(woken) = self.woken {
            sleep_until(woken + self.pause).await;
        }
        sleep(self.settle).await;
        self.woken = Some(Instant::now());
        self.events.borrow_and_update();
        self.due = false;
    }
}

fn tell(error: &std::io::Error) {
    tracing::warn!(%error, "changes beside our files are seen within a minute only");
}

impl Reader {
    fn start(told: watch::Sender<()>) -> std::io::Result<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
        let reading = Arc::clone(&inotify);
        let read = move || {
            loop {
                match reading.read_events() {
                    Ok(_) if told.is_closed() => return,
                    // A watch has ended, by our own doing or after what has been told already.
                    Ok(events) if events.iter().all(|event| event.mask == AddWatchFlags::IN_IGNORED) => {}
                    Ok(_) => told.send_modify(|()| {}),
                    Err(Errno::EINTR) => {}
                    Err(error) => return tell(&error.into()),
                }
            }
        };
        let thread = std::thread::Builder::new().name("watch".into()).stack_size(64 * 1024).spawn(read)?;
        Ok(Self { inotify, thread, watched: BTreeMap::new() })
    }

    /// Watches these folders and no others; true if one of them was not watched.
    fn watch(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            // The one above the first of them is not watched.
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF;
        let flags = changes | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        let mut watched = BTreeMap::new();
        for folder in folders {
            match self.inotify.add_watch(folder, flags) {
                Ok(descriptor) => drop(watched.insert(folder.clone(), descriptor)),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => tracing::debug!(folder = %folder.display(), %error, "not watched"),
            }
        }
        let known: BTreeSet<WatchDescriptor> = self.watched.values().copied().in_order();
        let now: BTreeSet<WatchDescriptor> = watched.values().copied().in_order();
        for gone in known.difference(&now) {
            // A folder that is deleted takes its watch with it; one that was moved away is no concern of ours any more.
            let _ = self.inotify.rm_watch(*gone);
        }
        self.watched = watched;
        !now.is_subset(&known)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Wakes the thread, which then finds that nobody listens.
        if let Ok(any) = self.inotify.add_watch("/", AddWatchFlags::IN_DELETE_SELF) {
            let _ = self.inotify.rm_watch(any);
        }
    }
}

/// The folders that these files lie in, and those above them that are not everybody's.
fn folders<'a>(files: impl Iterator<Item = &'a Path>) -> BTreeSet<PathBuf> {
    let above = |file: &'a Path| file.ancestors().skip(1).take(DEPTH);
    // `/etc` and `/var/lib` change for reasons that are no concern of ours.
    let is_everybodys = |folder: &&Path| folder.ancestors().count() <= 2 || *folder == Path::new("/var/lib");
    files.flat_map(above).filter(|folder| !is_everybodys(folder)).map(Path::to_path_buf).in_order()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    const FOLDER: &str = "certs.d/192.168.0.1";

    fn tree() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("ca.crt"), "ours").unwrap();
        let file = folder.join("ca.crt");
        (dir, folder, file)
    }

    fn quick() -> Watch {
        Watch::with(Duration::from_millis(1), Duration::ZERO)
    }

    async fn is_woken(watch: &mut Watch, within: Duration) -> bool {
        timeout(within, watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn a_folder_that_becomes_a_link_a_file_that_is_removed_and_one_that_is_overwritten_are_noticed() {
        const SOON: Duration = Duration::from_secs(5);
        let (dir, folder, file) = tree();
        let mut watch = quick();
        let follow = |watch: &mut Watch| watch.follow([file.as_path()].into_iter());
        follow(&mut watch);
        assert!(is_woken(&mut watch, SOON).await, "what has happened before it was watched nobody knows");
        follow(&mut watch);
        assert!(!is_woken(&mut watch, Duration::from_millis(300)).await, "nothing has changed");
        fs::write(&file, "theirs").unwrap();
        assert!(is_woken(&mut watch, SOON).await);
        fs::remove_file(&file).unwrap();
        assert!(is_woken(&mut watch, SOON).await);
        fs::rename(&folder, dir.path().join("elsewhere")).unwrap();
        symlink(dir.path().join("elsewhere"), &folder).unwrap();
        assert!(is_woken(&mut watch, SOON).await);
        // The thread that reads may take its time.
        sleep(Duration::from_millis(300)).await;
        watch.events.borrow_and_update();
        follow(&mut watch);
        fs::write(dir.path().join("elsewhere/file"), "").unwrap();
        assert!(!is_woken(&mut watch, Duration::from_millis(300)).await, "what was moved away is no concern of ours");
        // Three folders of the file are watched; the uppermost one by itself.
        fs::rename(dir.path(), dir.path().with_extension("moved")).unwrap();
        assert!(is_woken(&mut watch, SOON).await);
        fs::rename(dir.path().with_extension("moved"), dir.path()).unwrap();
    }

    /// A node's loop, in short, while a folder becomes a link and a folder again at any moment of it.
    #[tokio::test]
    async fn whenever_a_folder_becomes_a_link_the_next_look_comes_at_once() {
        for round in 0..150_u32 {
            let (dir, folder, file) = tree();
            let (aside, copy) = (dir.path().join("aside"), dir.path().join("copy"));
            fs::create_dir(&copy).unwrap();
            let (mut watch, mut links) = (quick(), 0);
            for _ in 0..2 {
                for becomes_link in [true, false] {
                    let (folder, aside, copy) = (folder.clone(), aside.clone(), copy.clone());
                    let at = Duration::from_micros(u64::from(round * 97 % 2500));
                    let change = std::thread::spawn(move || {
                        std::thread::sleep(at);
                        if becomes_link {
                            fs::rename(&folder, &aside).unwrap();
                            symlink(&copy, &folder).unwrap();
                        } else {
                            fs::remove_file(&folder).unwrap();
                            fs::rename(&aside, &folder).unwrap();
                        }
                    });
                    let is_as_it_becomes = || fs::symlink_metadata(dir.path().join(FOLDER)).is_ok_and(|it| it.is_symlink() == becomes_link);
                    while !is_as_it_becomes() {
                        // Between what a pass reads and its end lie proofs.
                        sleep(Duration::from_micros(800)).await;
                        watch.follow([file.as_path()].into_iter());
                        assert!(is_woken(&mut watch, Duration::from_secs(5)).await, "round {round}: it is not noticed");
                    }
                    change.join().unwrap();
                    links += 1;
                }
            }
            assert_eq!(links, 4);
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_something_else_meanwhile_loses_nothing() {
        let (_dir, _, file) = tree();
        let mut watch = quick();
        watch.follow([file.as_path()].into_iter());
        assert!(is_woken(&mut watch, Duration::from_secs(5)).await);
        watch.pause = Duration::from_secs(1);
        fs::write(&file, "theirs").unwrap();
        assert!(!is_woken(&mut watch, Duration::from_millis(200)).await, "the pause is not over");
        assert!(is_woken(&mut watch, Duration::from_secs(5)).await);
    }

    #[test]
    fn nothing_is_left_of_a_watch_that_has_ended() {
        let (_dir, _, file) = tree();
        let mut watch = quick();
        watch.follow([file.as_path()].into_iter());
        let inotify = watch.reader.as_ref().map(|reader| Arc::clone(&reader.inotify)).unwrap();
        drop(watch);
        let ended = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            Arc::strong_count(&inotify) == 1
        });
        assert!(ended, "its thread reads on");
    }

    #[test]
    fn folders_that_everybody_uses_are_not_watched() {
        let files = ["/etc/docker/certs.d/a/ca.crt", "/etc/sysctl.d/60-private-registry.conf"].map(Path::new);
        let expected = ["/etc/docker", "/etc/docker/certs.d", "/etc/docker/certs.d/a", "/etc/sysctl.d"].map(PathBuf::from);
        assert_eq!(folders(files.into_iter()).into_iter().collect::<Vec<_>>(), expected);
    }
}
