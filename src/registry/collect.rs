//! A garbage collection in this task: read-only, collect, writable again; and never left half-way.
//!
//! The controller gives one order for each step, and gives it again as long as it is there. When it is not heard of any more, the
//! registry becomes writable by itself; it stops collecting well before it does. A task that is started anew is writable.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::config::RegistryConfig;
use super::tool::{Said, Tool};
use crate::collection::{OF_CACHE, UNTAGGED_BY_2};
use crate::protocol::{CollectPhase, CollectStep, Collection};

/// What a failed run is reported with is no longer.
const MAX_COMPLAINT: usize = 300;
/// What both generations end with where nothing was ever pushed: there is nothing to collect, and nothing wrong.
const NOTHING_PUSHED: &str = "Path not found: /docker/registry/v2/repositories";
/// Between two counts of what is in use that are worth telling.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// What an order asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) run: &'a str,
    pub(super) step: CollectStep,
    pub(super) dry_run: bool,
    pub(super) delete_untagged: bool,
}

/// What the role has to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// Start the registry anew, as [`Collecting::is_read_only`] says.
    Restart,
}

/// What happens without the registry's doing.
pub(super) enum Event {
    /// The program has said something.
    Said(Said),
    /// The controller has been silent for too long.
    Forsaken,
}

/// The last collection in this task.
pub(super) struct Collecting {
    pub(super) status: Collection,
    /// The program at work.
    tool: Option<Tool>,
    started: Instant,
    read_only_since: Option<Instant>,
    heard: Instant,
    /// So long the controller may say nothing.
    patience: Duration,
    /// Images, where they lie in a directory.
    data: Option<PathBuf>,
    bytes_before: Option<u64>,
    would_free: u64,
    counted: Instant,
    marked: u64,
    complaint: String,
}

impl Collecting {
    fn new(asked: &Asked<'_>, config: &RegistryConfig) -> Self {
        let now = Instant::now();
        let status = Collection {
            run: asked.run.into(),
            dry_run: asked.dry_run,
            phase: CollectPhase::Preparing,
            marked: 0,
            blobs: 0,
            manifests: 0,
            freed_bytes: None,
            seconds: 0,
            read_only_seconds: 0,
            error: None,
        };
        Self {
            status,
            tool: None,
            started: now,
            read_only_since: None,
            heard: now,
            patience: config.patience,
            data: config.is_directory().then(|| config.data.clone()),
            bytes_before: None,
            would_free: 0,
            counted: now,
            marked: 0,
            complaint: String::new(),
        }
    }

    /// Takes a step. `present`: what there was. `is_ready`: the registry answers and could become read-only.
    ///
    /// # Errors
    /// Why it cannot be taken now.
    pub(super) async fn step(
        present: &mut Option<Self>,
        asked: &Asked<'_>,
        config: &RegistryConfig,
        version: Option<&str>,
        is_ready: bool,
    ) -> Result<Next, String> {
        let same = present.as_ref().is_some_and(|collecting| collecting.status.run == asked.run);
        match present.as_ref().filter(|collecting| !same && collecting.status.is_active()) {
            // The controller knows best which one is under way; this one only has to be ended first.
            Some(other) if asked.step != CollectStep::Finish => {
                return Err(format!("the collection {} is under way here; it has to be finished first", other.status.run));
            }
            _ => {}
        }
        if let Some(collecting) = present.as_mut().filter(|_| same) {
            collecting.heard = Instant::now();
            return match (asked.step, collecting.status.phase) {
                (CollectStep::Finish, _) => Ok(collecting.finish(None)),
                (CollectStep::Collect, CollectPhase::ReadOnly) => {
                    collecting.collect(asked, config).await;
                    Ok(Next::Nothing)
                }
                (CollectStep::Collect, CollectPhase::Preparing) => Err("this registry is not read-only yet".into()),
                _ => Ok(Next::Nothing),
            };
        }
        if config.settings.proxy.is_some() {
            return Err(OF_CACHE.into());
        }
        if asked.delete_untagged && version.is_none_or(|version| version.starts_with("2.")) {
            return Err(UNTAGGED_BY_2.into());
        }
        match asked.step {
            CollectStep::Finish => return Ok(Next::Nothing),
            _ if !is_ready => return Err("this registry does not serve".into()),
            CollectStep::Collect if !asked.dry_run => return Err("this registry is not read-only; it may just have been started".into()),
            CollectStep::Collect => {
                let collecting = present.insert(Self::new(asked, config));
                collecting.collect(asked, config).await;
                return Ok(Next::Nothing);
            }
            CollectStep::Prepare => {}
        }
        let collecting = present.insert(Self::new(asked, config));
        tracing::info!(run = asked.run, "read-only for a garbage collection");
        if config.settings.read_only {
            collecting.answers();
            return Ok(Next::Nothing);
        }
        Ok(Next::Restart)
    }

    /// Whether the registry has to refuse pushes, whatever the options say.
    pub(super) fn is_read_only(&self) -> bool {
        !self.status.dry_run && self.status.phase < CollectPhase::Reopening
    }

    /// The registry answers after it was started anew.
    pub(super) fn answers(&mut self) {
        match self.status.phase {
            CollectPhase::Preparing => {
                self.status.phase = CollectPhase::ReadOnly;
                self.read_only_since = Some(Instant::now());
            }
            CollectPhase::Reopening => self.done(),
            _ => {}
        }
    }

    fn done(&mut self) {
        self.status.phase = CollectPhase::Done;
        self.status.read_only_seconds = self.read_only_since.map_or(0, |since| since.elapsed().as_secs_f64().ceil() as u64);
        tracing::info!(run = self.status.run, error = self.status.error, "the garbage collection has ended");
    }

    async fn collect(&mut self, asked: &Asked<'_>, config: &RegistryConfig) {
        self.status.phase = CollectPhase::Collecting;
        self.started = Instant::now();
        self.bytes_before = if asked.dry_run { None } else { measured(self.data.as_deref()).await };
        let mut arguments = vec!["garbage-collect".into(), config.config_file().into_os_string()];
        // Both generations know these.
        arguments.extend(asked.dry_run.then(|| "--dry-run".into()));
        arguments.extend(asked.delete_untagged.then(|| "--delete-untagged".into()));
        match Tool::start(&config.program, arguments) {
            Ok(tool) => self.tool = Some(tool),
            Err(error) => self.ended(Some(format!("{} cannot be started: {error}", config.program.display()))).await,
        }
    }

    /// Waits for what happens next without the registry's doing. May be dropped at any await.
    pub(super) async fn event(present: &mut Option<Self>) -> Event {
        let Some(collecting) = present.as_mut().filter(|collecting| collecting.status.phase < CollectPhase::Reopening) else {
            return std::future::pending().await;
        };
        // Where others share the store, they may be written to again only when nothing is deleted any more.
        let patience = match collecting.status.phase {
            CollectPhase::Collecting => collecting.patience,
            _ => collecting.patience + collecting.patience / 2,
        };
        let forsaken = tokio::time::sleep_until(collecting.heard + patience);
        match &mut collecting.tool {
            Some(tool) => tokio::select! {
                said = tool.next() => Event::Said(said),
                () = forsaken => Event::Forsaken,
            },
            None => {
                forsaken.await;
                Event::Forsaken
            }
        }
    }

    /// Takes note of it.
    pub(super) async fn happened(&mut self, event: Event) -> Next {
        match event {
            Event::Said(said) => {
                self.said(said).await;
                Next::Nothing
            }
            Event::Forsaken => {
                let seconds = self.heard.elapsed().as_secs();
                self.finish(Some(format!("the controller was not heard of for {seconds} s, so this registry takes pushes again")))
            }
        }
    }

    /// Process id of the program.
    pub(super) fn child_id(&self) -> Option<u32> {
        self.tool.as_ref().and_then(Tool::id)
    }

    async fn said(&mut self, said: Said) {
        match said {
            Said::Out(line) => self.read(&line),
            Said::Err(line) => {
                if !line.contains("level=info") && !line.contains("level=debug") {
                    tracing::warn!("garbage-collect: {line}");
                    self.complaint = line.chars().take(MAX_COMPLAINT).collect();
                }
            }
            Said::Ended(Ok(status)) if status.success() => self.ended(None).await,
            Said::Ended(Ok(status)) => {
                let complaint = std::mem::take(&mut self.complaint);
                if complaint.contains(NOTHING_PUSHED) {
                    return self.ended(None).await;
                }
                self.ended(Some(format!("registry garbage-collect has failed ({status}): {complaint}"))).await;
            }
            Said::Ended(Err(error)) => self.ended(Some(format!("registry garbage-collect: {error}"))).await,
        }
    }

    fn read(&mut self, line: &str) {
        if let Some(digest) = line.strip_prefix("blob eligible for deletion: ") {
            self.status.blobs += 1;
            self.would_free += self.data.as_deref().filter(|_| self.status.dry_run).map_or(0, |data| size_of_blob(data, digest));
        } else if line.starts_with("manifest eligible for deletion: ") {
            self.status.manifests += 1;
        } else if line.contains(": marking ") {
            self.marked += 1;
            if self.counted.elapsed() >= COUNT_EVERY {
                (self.counted, self.status.marked) = (Instant::now(), self.marked);
            }
        } else if let Some((blobs, manifests)) = eligible(line) {
            tracing::info!(blobs, manifests, "garbage-collect: {line}");
            // The line comes before the list; where a version lists nothing, it is all there is.
            self.status.manifests = manifests;
        }
    }

    async fn ended(&mut self, error: Option<String>) {
        self.tool = None;
        let after = if self.bytes_before.is_some() { measured(self.data.as_deref()).await } else { None };
        let status = &mut self.status;
        (status.marked, status.seconds) = (self.marked, self.started.elapsed().as_secs_f64().ceil() as u64);
        status.freed_bytes = match (&self.data, self.bytes_before, after) {
            (Some(_), None, _) => Some(self.would_free),
            (Some(_), Some(before), Some(after)) => Some(before.saturating_sub(after)),
            _ => None,
        };
        if let Some(error) = &error {
            tracing::error!("{error}");
        }
        status.error = error;
        status.phase = CollectPhase::Collected;
        if status.dry_run {
            self.done();
        }
    }

    /// Stops what is being done. A run that is not at its end has failed.
    pub(super) fn finish(&mut self, why: Option<String>) -> Next {
        let phase = self.status.phase;
        if phase >= CollectPhase::Reopening {
            return Next::Nothing;
        }
        // Who was only read-only for another one's sake has nothing to fail at.
        let called_off =
            || (phase == CollectPhase::Collecting).then(|| "it was called off before its end; what it had deleted nobody used".into());
        if phase < CollectPhase::Collected && self.status.error.is_none() {
            self.status.error = why.or_else(called_off);
        }
        // Dropped, it is killed. It deletes only what no manifest refers to, so it may end anywhere.
        self.tool = None;
        if self.status.dry_run {
            self.done();
            return Next::Nothing;
        }
        self.status.phase = CollectPhase::Reopening;
        // For the cache in its memory too: what it believes to have may be gone.
        Next::Restart
    }
}

/// The numbers in `3 blobs marked, 2 blobs and 0 manifests eligible for deletion`.
fn eligible(line: &str) -> Option<(u64, u64)> {
    let (_, rest) = line.split_once(" blobs marked, ")?;
    let (blobs, rest) = rest.split_once(" blobs and ")?;
    let (manifests, _) = rest.split_once(" manifests eligible for deletion")?;
    Some((blobs.parse().ok()?, manifests.parse().ok()?))
}

/// Bytes of all files below a directory. What comes and goes meanwhile does not matter.
fn size_of(directory: &Path) -> u64 {
    let (mut bytes, mut ahead) = (0, vec![directory.to_path_buf()]);
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => ahead.push(entry.path()),
                Ok(kind) if kind.is_file() => bytes += entry.metadata().map_or(0, |found| found.len()),
                _ => {}
            }
        }
    }
    bytes
}

/// The same for a store with very many of them: meanwhile others are answered.
async fn measured(directory: Option<&Path>) -> Option<u64> {
    let directory = directory?.to_path_buf();
    tokio::task::spawn_blocking(move || size_of(&directory)).await.ok()
}

fn size_of_blob(data: &Path, digest: &str) -> u64 {
    let Some((algorithm, hex)) = digest.split_once(':').filter(|(_, hex)| hex.chars().all(|c| c.is_ascii_hexdigit())) else { return 0 };
    let Some(first) = hex.get(..2).filter(|_| algorithm.chars().all(|c| c.is_ascii_alphanumeric())) else { return 0 };
    let file = data.join("docker/registry/v2/blobs").join(algorithm).join(first).join(hex).join("data");
    fs::metadata(file).map_or(0, |found| found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_counts_is_read() {
        assert_eq!(eligible("3 blobs marked, 2 blobs and 0 manifests eligible for deletion"), Some((2, 0)));
        assert_eq!(eligible("base/hello: marking blob sha256:51"), None);
    }

    #[test]
    fn the_size_of_a_blob_is_that_of_its_file_and_no_digest_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let hex = "ab".repeat(32);
        let blob = dir.path().join("docker/registry/v2/blobs/sha256/ab").join(&hex);
        fs::create_dir_all(&blob).unwrap();
        fs::write(blob.join("data"), "12345").unwrap();
        assert_eq!(size_of_blob(dir.path(), &format!("sha256:{hex}")), 5);
        assert_eq!(size_of(dir.path()), 5);
        for odd in ["", "sha256:", "sha256:a", "sha256:../../x", "..:abcd", "sha256:éé"] {
            assert_eq!(size_of_blob(dir.path(), odd), 0, "{odd}");
        }
    }
}
