//! Leads garbage collections: one at a time, as active runs of the jobs ask for them.

use std::collections::BTreeMap;

use super::{Controller, ControllerError, observe};
use crate::collection::{self, Next, Run};
use crate::controller::CollectionReport;
use crate::documents;
use crate::plan::Observed;
use crate::protocol::{CollectStep, OrderKind, SignedOrder};
use crate::turns;

/// What the controller knows of collections. All that matters stands in the registries' answers too.
#[derive(Default)]
pub(super) struct Collections {
    /// Those that have ended and whose jobs still run.
    ended: BTreeMap<String, CollectionReport>,
    /// The one under way.
    followed: Option<(Run, Next)>,
    /// Runs that wait for it: whether each is a dry one.
    waiting: Vec<(String, bool)>,
    /// The last one that has ended.
    last: Option<CollectionReport>,
    /// Orders by run and step, with their versions: an order that is given again is the same one.
    orders: BTreeMap<(String, CollectStep), (SignedOrder, u64)>,
}

impl Collections {
    /// Whether one is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.followed.is_some()
    }

    pub(super) fn reports(&self) -> Vec<CollectionReport> {
        let under_way = self.followed.iter().map(|(run, next)| report(run, next));
        let waiting = self.waiting.iter().map(|(run, dry_run)| CollectionReport {
            run: run.clone(),
            dry_run: *dry_run,
            said: "waiting for another garbage collection to end".into(),
            ended: false,
            failed: false,
        });
        let last = self.last.iter().filter(|last| !self.ended.contains_key(&last.run)).cloned();
        under_way.chain(waiting).chain(self.ended.values().cloned()).chain(last).collect()
    }
}

fn report(run: &Run, next: &Next) -> CollectionReport {
    let Next { said, ended, failed, .. } = next.clone();
    CollectionReport { run: run.id.clone(), dry_run: run.dry_run, said, ended, failed }
}

impl Controller {
    /// Takes the next steps of the collection that is asked for, and ends what nobody asks for any more. `turn`: a registry may
    /// restart.
    pub(super) async fn collect(&mut self, observed: &Observed, now: i64, turn: &mut bool) -> Result<(), ControllerError> {
        let jobs = documents::collect_job_ids(&self.options).into_iter().zip([false, true]);
        let runs_of = |(id, dry_run): (String, bool)| {
            let active = observed.jobs.get(&id).map(|job| job.active_runs.clone()).unwrap_or_default();
            active.into_iter().map(move |run| (run, dry_run))
        };
        // They begin with the time at which they were started.
        let active: BTreeMap<String, bool> = jobs.flat_map(runs_of).collect();
        let known = &mut self.collections;
        known.ended.retain(|run, _| active.contains_key(run));
        known.followed.take_if(|(run, _)| !active.contains_key(&run.id));
        let due: Vec<(String, bool)> = active.into_iter().filter(|(run, _)| !known.ended.contains_key(run)).collect();
        if let (None, Some((id, dry_run))) = (&known.followed, due.first().cloned()) {
            tracing::info!(run = id, dry_run, "a garbage collection is asked for");
            let run = match self.cannot_collect(observed) {
                Some(reason) => Run::refused(&id, dry_run, now, &reason),
                None => Run::new(&id, dry_run, now),
            };
            self.collections.followed = Some((run, Next::default()));
        }
        let followed = self.collections.followed.as_ref().map(|(run, _)| run.id.clone());
        self.collections.waiting = due.into_iter().filter(|(id, _)| Some(id) != followed.as_ref()).collect();
        self.end_forgotten(observed, turn).await?;
        self.follow_collection(observed, now, turn).await
    }

    /// Why there can be none, if so.
    fn cannot_collect(&self, observed: &Observed) -> Option<String> {
        let of_2 = |version: &String| version.starts_with("2.");
        let mut versions = observed.registries.iter().filter_map(|task| task.status.version.as_ref());
        match () {
            () if !self.options.registry.enabled => Some("this service runs no registry (registry.enabled)".into()),
            () if !self.options.proxy.remote_url.is_empty() => Some(collection::OF_CACHE.into()),
            () if self.options.garbage_collection.delete_untagged && versions.any(of_2) => Some(collection::UNTAGGED_BY_2.into()),
            () => None,
        }
    }

    async fn end_forgotten(&mut self, observed: &Observed, turn: &mut bool) -> Result<(), ControllerError> {
        let followed = self.collections.followed.as_ref().map(|(run, _)| run);
        let forgotten: Vec<(String, Run)> = collection::forgotten(&observed.registries, followed)
            .into_iter()
            .map(|(address, part)| (address.to_string(), Run::new(&part.run, part.dry_run, 0)))
            .collect();
        if followed.is_none() && forgotten.is_empty() {
            self.collections.orders.clear();
        }
        for (address, run) in forgotten {
            if !turns::may_take(&observed.registries, &address, &run, CollectStep::Finish, turn) {
                continue;
            }
            tracing::info!(run = run.id, address, "nobody asks for this garbage collection any more; it is ended");
            self.order_step(observed, &run, &address, CollectStep::Finish).await?;
        }
        Ok(())
    }

    async fn follow_collection(&mut self, observed: &Observed, now: i64, turn: &mut bool) -> Result<(), ControllerError> {
        let Some((mut run, before)) = self.collections.followed.take() else { return Ok(()) };
        let next = run.next(&observed.registries, observed.all_registries_answer(), now);
        for (address, step) in &next.steps {
            if !turns::may_take(&observed.registries, address, &run, *step, turn) {
                continue;
            }
            self.order_step(observed, &run, address, *step).await?;
        }
        if next.said != before.said {
            tracing::info!(run = run.id, "{}", next.said);
        }
        if next.ended {
            let report = report(&run, &next);
            self.shared.acted(report.said.clone());
            self.collections.orders.retain(|(id, _), _| *id != run.id);
            self.collections.last = Some(report.clone());
            self.collections.ended.insert(run.id, report);
        } else {
            self.collections.followed = Some((run, next));
        }
        Ok(())
    }

    async fn order_step(&mut self, observed: &Observed, run: &Run, address: &str, step: CollectStep) -> Result<(), ControllerError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let taken = observed.registries.iter().find(|task| task.address == address).map_or(0, |task| task.status.order_version);
        let key = (run.id.clone(), step);
        let present = self.collections.orders.get(&key).filter(|(_, version)| *version >= taken);
        let order = match present {
            Some((order, _)) => order.clone(),
            None => {
                let delete_untagged = self.options.garbage_collection.delete_untagged;
                let kind = OrderKind::Collect { run: run.id.clone(), step, dry_run: run.dry_run, delete_untagged };
                let order = state.order(kind).await?;
                self.collections.orders.insert(key, (order.clone(), state.version()));
                order
            }
        };
        observe::send_to_registry(&self.cluster, address, &order).await;
        Ok(())
    }
}
