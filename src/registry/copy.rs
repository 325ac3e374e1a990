//! A backup or restore in this task: when it begins, what the registry does meanwhile, and what has come of it.
//!
//! A backup lets the registry be, and so does a restore into an object store, which goes through its API. For any other a restore the registry is read-only while the images are put together beside those that it
//! serves, then stops for the moment of the change, and is started again. A task that is started anew has forgotten both.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::access::Access;
use super::backup::{self, CopyError, Place};
use super::config::RegistryConfig;
use super::role::now;
use super::upload::{self, Registry};
use crate::protocol::{CopyCounts, CopyKind, CopyPhase, Copying};

/// Between two counts that are worth telling.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What the role has to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// Start the registry anew, as [`Copier::is_read_only`] says.
    Restart,
    /// Stop the registry, then [`Copier::switch`].
    Stop,
}

/// What the thread that copies has to say.
#[derive(Debug, Clone, Default)]
struct Told {
    counts: CopyCounts,
    /// How it has ended.
    ended: Option<Result<(), String>>,
}

/// The last backup or restore in this task.
pub(super) struct Copier {
    pub(super) status: Copying,
    place: Place,
    registry: Registry,
    called_off: Arc<AtomicBool>,
    /// From the thread, while there is one.
    told: Option<watch::Receiver<Told>>,
    began: Instant,
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.called_off.store(true, Ordering::Relaxed);
    }
}

impl Copier {
    /// Takes an order. `answers`: the registry does.
    ///
    /// # Errors
    /// Why it cannot be taken now.
    pub(super) fn order(
        present: &mut Option<Self>,
        run: &str,
        kind: CopyKind,
        stop: bool,
        config: &RegistryConfig,
        access: &Access,
        answers: bool,
    ) -> Result<Then, String> {
        if let Some(copier) = present.as_mut().filter(|copier| copier.status.run == run) {
            if stop {
                copier.called_off.store(true, Ordering::Relaxed);
            }
            return Ok(Then::Nothing);
        }
        if stop {
            return Ok(Then::Nothing);
        }
        if let Some(other) = present.as_ref().filter(|copier| copier.is_active()) {
            return Err(format!("the run {} copies here; it has to end first", other.status.run));
        }
        let Some(directory) = config.backup.clone() else {
            return Err("this registry has no directory for backups (backup.path)".into());
        };
        let kind = match kind {
            _ if config.is_directory() => kind,
            CopyKind::Restore if *access == Access::NotPossible => return Err("only the authorisation server lets this role in".into()),
            CopyKind::Restore => CopyKind::Addition,
            _ => return Err("there is no backup of an object store".into()),
        };
        if !answers {
            return Err("this registry does not serve".into());
        }
        let place = Place {
            service: config.service.clone(),
            data: config.data.clone(),
            backup: directory,
            now: u64::try_from(now()).unwrap_or_default(),
        };
        let status = Copying { run: run.into(), kind, phase: CopyPhase::Copying, counts: CopyCounts::default(), seconds: 0, error: None };
        tracing::info!(run, ?kind, "copying the images");
        let registry = Registry::of(config, access);
        let copier = present.insert(Self { status, place, registry, called_off: Arc::default(), told: None, began: Instant::now() });
        if kind == CopyKind::Restore && !config.settings.read_only {
            copier.status.phase = CopyPhase::Preparing;
            return Ok(Then::Restart);
        }
        Ok(copier.start())
    }

    pub(super) fn is_active(&self) -> bool {
        self.status.is_active()
    }

    /// Whether the registry has to refuse pushes, whatever the options say.
    pub(super) fn is_read_only(&self) -> bool {
        self.status.kind == CopyKind::Restore && self.status.phase < CopyPhase::Reopening
    }

    pub(super) fn is_switching(&self) -> bool {
        self.status.phase == CopyPhase::Switching
    }

    /// The registry answers after it was started anew.
    pub(super) fn answers(&mut self) {
        match self.status.phase {
            CopyPhase::Preparing => drop(self.start()),
            CopyPhase::Reopening => self.done(),
            _ => {}
        }
    }

    fn start(&mut self) -> Then {
        self.status.phase = CopyPhase::Copying;
        let (tell, told) = watch::channel(Told::default());
        let (place, registry) = (self.place.clone(), self.registry.clone());
        let (kind, called_off) = (self.status.kind, self.called_off.clone());
        // A thread of its own: it may take hours, and asks nobody.
        let spawned = std::thread::Builder::new().name("copy".into()).spawn(move || work(&place, &registry, kind, &called_off, &tell));
        match spawned {
            Ok(_) => {
                self.told = Some(told);
                Then::Nothing
            }
            Err(error) => self.failed(format!("no thread can be started: {error}")),
        }
    }

    /// Waits for what the thread says next. May be dropped at any await.
    pub(super) async fn event(present: &mut Option<Self>) {
        match present.as_mut().and_then(|copier| copier.told.as_mut()) {
            // That it is gone is looked at next.
            Some(told) => drop(told.changed().await),
            None => std::future::pending().await,
        }
    }

    /// Takes note of it.
    pub(super) fn goes_on(&mut self) -> Then {
        let Some(told) = &mut self.told else { return Then::Nothing };
        let is_gone = told.has_changed().is_err();
        let Told { counts, ended } = told.borrow_and_update().clone();
        self.status.counts = counts;
        self.status.seconds = self.began.elapsed().as_secs();
        match ended {
            None if is_gone => self.failed("it has ended without saying why; see the task's output".into()),
            None => Then::Nothing,
            Some(Err(reason)) => self.failed(reason),
            Some(Ok(())) if self.status.kind == CopyKind::Restore => {
                self.told = None;
                self.status.phase = CopyPhase::Switching;
                Then::Stop
            }
            Some(Ok(())) => {
                self.done();
                Then::Nothing
            }
        }
    }

    fn failed(&mut self, reason: String) -> Then {
        tracing::error!("{:?} has failed: {reason}", self.status.kind);
        let was_read_only = self.is_read_only();
        (self.told, self.status.error) = (None, Some(reason));
        if was_read_only {
            self.status.phase = CopyPhase::Reopening;
            return Then::Restart;
        }
        self.done();
        Then::Nothing
    }

    /// Changes to what was restored. The registry does not run.
    pub(super) fn switch(&mut self) {
        if let Err(error) = backup::switch(&self.place.data) {
            tracing::error!("the restored images cannot be brought into force: {error}");
            self.status.error = Some(format!("{error}; the registry is as it was"));
        }
        self.status.phase = CopyPhase::Reopening;
        let data = self.place.data.clone();
        // What is left is removed while the registry serves; a task that is killed before does it at its next start.
        std::thread::spawn(move || {
            if let Err(error) = backup::recover(&data) {
                tracing::warn!("what a restore has left is still there: {error}");
            }
        });
    }

    fn done(&mut self) {
        self.told = None;
        self.status.phase = CopyPhase::Done;
        self.status.seconds = self.began.elapsed().as_secs_f64().ceil() as u64;
        tracing::info!(run = self.status.run, error = self.status.error, "the copying has ended");
    }
}

fn work(place: &Place, registry: &Registry, kind: CopyKind, called_off: &AtomicBool, tell: &watch::Sender<Told>) {
    let last = Cell::new(Instant::now());
    let watcher = |counts: &CopyCounts| {
        if last.get().elapsed() >= TELL_EVERY {
            last.set(Instant::now());
            tell.send_replace(Told { counts: counts.clone(), ended: None });
        }
    };
    let done = match kind {
        CopyKind::Restore => backup::prepare_restore(place, called_off, &watcher),
        CopyKind::Addition => upload::upload(&place.backup, registry, called_off, &watcher),
        CopyKind::Backup | CopyKind::VerifiedBackup => backup::back_up(place, kind == CopyKind::VerifiedBackup, called_off, &watcher),
    };
    let same_disk = kind != CopyKind::Addition && backup::same_disk(&place.data, &place.backup);
    tell.send_modify(|told| match done {
        Ok(counts) => *told = Told { counts: CopyCounts { same_disk, ..counts }, ended: Some(Ok(())) },
        Err(error) => told.ended = Some(Err(reason(&error))),
    });
}

fn reason(error: &CopyError) -> String {
    match error {
        CopyError::CalledOff => "it was called off; the last complete backup is still good".into(),
        other => other.to_string(),
    }
}
