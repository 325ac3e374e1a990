//! How much room there is for images, and how much they take, where they lie in a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use crate::protocol::Room;

/// Between two looks at the disk. Every one is a new state for whoever looks at the page.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between two counts, and so many times the duration of the last one if that is longer.
const COUNT_EVERY: Duration = Duration::from_secs(900);
const REST: u32 = 50;
/// After each directory: a count is never in a hurry, and clients of the disk are.
const PAUSE: Duration = Duration::from_millis(1);

/// Looks at the disk of a directory.
pub(super) struct Surveyor {
    data: PathBuf,
    looked: Option<Instant>,
    counts: Receiver<u64>,
    room: Option<Room>,
}

impl Surveyor {
    /// Begins to count, on a thread of its own that ends with the process.
    pub(super) fn new(data: PathBuf) -> Self {
        let (tell, counts) = mpsc::channel();
        let blobs = data.join("docker/registry/v2/blobs");
        let spawned = std::thread::Builder::new().name("count".into()).spawn(move || count_for_ever(&blobs, &tell));
        if let Err(error) = spawned {
            tracing::warn!(%error, "the images are not counted");
        }
        Self { data, looked: None, counts, room: None }
    }

    /// How things stand; the same for a while.
    pub(super) fn look(&mut self) -> Option<Room> {
        let counted = self.counts.try_iter().last();
        if counted.is_some() || self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked = Some(Instant::now());
            let images_bytes = counted.or(self.room.and_then(|room| room.images_bytes));
            self.room = room_of(&self.data).map(|(total_bytes, free_bytes)| Room { total_bytes, free_bytes, images_bytes });
        }
        self.room
    }
}

/// Bytes of a directory's disk in all, and those that are free.
fn room_of(directory: &Path) -> Option<(u64, u64)> {
    // The registry makes its directory when it needs it.
    let at = directory.ancestors().find(|path| path.exists())?;
    let found = statvfs(at).ok()?;
    let bytes = |blocks: u64| blocks * found.fragment_size() as u64;
    Some((bytes(found.blocks() as u64), bytes(found.blocks_available() as u64)))
}

fn count_for_ever(blobs: &Path, tell: &Sender<u64>) {
    loop {
        let began = Instant::now();
        if tell.send(count(blobs, PAUSE)).is_err() {
            return;
        }
        std::thread::sleep(COUNT_EVERY.max(began.elapsed() * REST));
    }
}

/// Bytes of all blobs. What comes and goes meanwhile does not matter.
fn count(blobs: &Path, pause: Duration) -> u64 {
    let (mut bytes, mut ahead) = (0, vec![blobs.to_path_buf()]);
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => ahead.push(entry.path()),
                Ok(kind) if kind.is_file() => bytes += entry.metadata().map_or(0, |found| found.len()),
                _ => {}
            }
        }
        std::thread::sleep(pause);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blobs_are_counted_and_the_disk_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("docker/registry/v2/blobs/sha256/ab").join("ab".repeat(32));
        fs::create_dir_all(&blob).unwrap();
        fs::write(blob.join("data"), "12345").unwrap();
        // An upload that is not over is no image.
        let upload = dir.path().join("docker/registry/v2/repositories/a/_uploads/1");
        fs::create_dir_all(&upload).unwrap();
        fs::write(upload.join("data"), "123").unwrap();
        let mut surveyor = Surveyor::new(dir.path().to_path_buf());
        let end = Instant::now() + Duration::from_secs(20);
        let room = loop {
            let room = surveyor.look().unwrap();
            if room.images_bytes.is_some() || Instant::now() > end {
                break room;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(room.images_bytes, Some(5));
        assert!(room.free_bytes > 0 && room.free_bytes <= room.total_bytes, "{room:?}");
        // What changes between two looks is seen at the next one only.
        fs::write(blob.join("data"), "1234567").unwrap();
        assert_eq!(surveyor.look(), Some(room));
    }

    #[test]
    fn a_directory_that_is_not_made_yet_has_the_room_of_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(room_of(&dir.path().join("not/there")).map(|(total, _)| total), room_of(dir.path()).map(|(total, _)| total));
        assert_eq!(count(&dir.path().join("not/there"), Duration::ZERO), 0);
    }
}
