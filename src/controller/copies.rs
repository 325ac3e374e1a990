//! Leads backups and restores: one at a time, as active runs of the jobs ask for them, and never while garbage is collected.

use std::collections::BTreeMap;

use super::{Controller, ControllerError, CopyReport, observe};
use crate::copying::{self, Standing};
use crate::documents;
use crate::in_order::InOrder as _;
use crate::plan::Observed;
use crate::protocol::{CopyKind, Copying, OrderKind, SignedOrder};
use crate::settings;

/// A run that is followed.
struct Followed {
    run: String,
    kind: CopyKind,
    since: i64,
    /// The task that has taken the order.
    begun: Option<String>,
    standing: Standing,
}

impl Followed {
    fn report(&self) -> CopyReport {
        let Standing { said, ended, failed, .. } = self.standing.clone();
        CopyReport { run: self.run.clone(), kind: self.kind, said, ended, failed }
    }
}

/// What the controller knows of backups and restores. All that matters stands in the registry's answer too.
#[derive(Default)]
pub(super) struct Copies {
    /// Those that have ended and whose jobs still run.
    ended: BTreeMap<String, CopyReport>,
    followed: Option<Followed>,
    waiting: Vec<(String, CopyKind)>,
    last: Option<CopyReport>,
    /// Orders by run, and whether they stop it, with their versions.
    orders: BTreeMap<(String, bool), (SignedOrder, u64)>,
}

impl Copies {
    pub(super) fn reports(&self) -> Vec<CopyReport> {
        let waiting = self.waiting.iter().map(|(run, kind)| CopyReport {
            run: run.clone(),
            kind: *kind,
            said: "waiting for another run of its kind, or a garbage collection, to end".into(),
            ended: false,
            failed: false,
        });
        let last = self.last.iter().filter(|last| !self.ended.contains_key(&last.run)).cloned();
        self.followed.iter().map(Followed::report).chain(waiting).chain(self.ended.values().cloned()).chain(last).collect()
    }

    /// Whether one is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.followed.is_some()
    }
}

impl Controller {
    /// Takes the next step of what is asked for, and stops what nobody asks for any more. `collects`: a garbage collection is under way.
    pub(super) async fn copy(&mut self, observed: &Observed, now: i64, collects: bool) -> Result<(), ControllerError> {
        let jobs = documents::copy_job_ids(&self.options);
        let runs_of = |(id, kind): (String, CopyKind)| {
            let active = observed.jobs.get(&id).map(|job| job.active_runs.clone()).unwrap_or_default();
            active.into_iter().map(move |run| (run, kind))
        };
        // They begin with the time at which they were started.
        let active: BTreeMap<String, CopyKind> = jobs.into_iter().flat_map(runs_of).in_order();
        let known = &mut self.copies;
        known.ended.retain(|run, _| active.contains_key(run));
        known.followed.take_if(|followed| !active.contains_key(&followed.run));
        let due: Vec<(String, CopyKind)> = active.into_iter().filter(|(run, _)| !known.ended.contains_key(run)).collect();
        if let (None, false, Some((run, kind))) = (&known.followed, collects, due.first().cloned()) {
            tracing::info!(run, ?kind, "a copy of the images is asked for");
            let standing = match copying::refused(&self.options, kind) {
                Some(reason) => Standing { tell: None, said: reason, ended: true, failed: true },
                None => Standing { tell: None, said: String::new(), ended: false, failed: false },
            };
            known.followed = Some(Followed { run, kind, since: now, begun: None, standing });
        }
        let followed = known.followed.as_ref().map(|followed| followed.run.clone());
        known.waiting = due.into_iter().filter(|(run, _)| Some(run) != followed.as_ref()).collect();
        self.stop_forgotten(observed).await?;
        self.follow_copy(observed, now).await
    }

    async fn stop_forgotten(&mut self, observed: &Observed) -> Result<(), ControllerError> {
        let followed = self.copies.followed.as_ref().map(|followed| followed.run.clone());
        let active = observed.registries.iter().filter_map(|task| Some((&task.address, task.status.copying.as_ref()?)));
        let forgotten = active.filter(|(_, copying)| copying.is_active() && followed.as_ref() != Some(&copying.run));
        let forgotten: Vec<(String, Copying)> = forgotten.map(|(address, copying)| (address.clone(), copying.clone())).collect();
        for (address, copying) in forgotten {
            tracing::info!(run = copying.run, address, "nobody asks for this copy of the images any more; it is stopped");
            self.order_copy(observed, &copying.run, copying.kind, true, &address).await?;
        }
        Ok(())
    }

    async fn follow_copy(&mut self, observed: &Observed, now: i64) -> Result<(), ControllerError> {
        let Some(mut followed) = self.copies.followed.take() else { return Ok(()) };
        if !followed.standing.ended {
            let task =
                observed.registries.iter().find(|task| task.status.copying.as_ref().is_some_and(|copying| copying.run == followed.run));
            if let Some(task) = task {
                followed.begun = Some(task.status.task.clone());
            }
            let (tasks, all_answer) = (&observed.registries, observed.all_registries_answer());
            let begun = followed.begun.as_deref();
            let standing = copying::standing(&followed.run, followed.kind, begun, followed.since, now, tasks, all_answer);
            // The registry knows the directory by another path.
            let said = standing.said.replace(settings::BACKUP, &self.options.backup.path);
            let standing = Standing { said, ..standing };
            if standing.said != followed.standing.said {
                tracing::info!(run = followed.run, "{}", standing.said);
            }
            followed.standing = standing;
            if let Some(address) = followed.standing.tell.clone() {
                self.order_copy(observed, &followed.run, followed.kind, false, &address).await?;
            }
        }
        if followed.standing.ended {
            let report = followed.report();
            self.shared.acted(report.said.clone());
            self.copies.orders.retain(|(run, _), _| *run != followed.run);
            self.copies.last = Some(report.clone());
            self.copies.ended.insert(followed.run, report);
        } else {
            self.copies.followed = Some(followed);
        }
        Ok(())
    }

    async fn order_copy(
        &mut self,
        observed: &Observed,
        run: &str,
        kind: CopyKind,
        stop: bool,
        address: &str,
    ) -> Result<(), ControllerError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let taken = observed.registries.iter().find(|task| task.address == address).map_or(0, |task| task.status.order_version);
        let key = (run.to_string(), stop);
        let order = match self.copies.orders.get(&key).filter(|(_, version)| *version >= taken) {
            Some((order, _)) => order.clone(),
            None => {
                let order = state.order(OrderKind::Copy { run: run.into(), kind, stop }).await?;
                self.copies.orders.insert(key, (order.clone(), state.version()));
                order
            }
        };
        observe::send_to_registry(&self.cluster, address, &order).await;
        Ok(())
    }
}
