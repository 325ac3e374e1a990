//! Leads garbage collections: one at a time, as active runs of the jobs ask for them.

use std::collections::BTreeMap;

use super::state::{State, StateError};
use super::{Controller, ControllerError, observe};
use crate::collection::{self, Next, Run};
use crate::controller::CollectionReport;
use crate::documents;
use crate::in_order::InOrder as _;
use crate::options::Options;
use crate::plan::Observed;
use crate::protocol::{CollectStep, OrderKind, SignedOrder};
use crate::turns;

/// What the controller knows of collections. All that matters stands in the registries' answers too.
#[derive(Default)]
pub(crate) struct Collections {
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

    pub(crate) fn reports(&self) -> Vec<CollectionReport> {
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

/// Why garbage cannot be collected, if so.
pub(crate) fn refused(options: &Options, observed: &Observed) -> Option<String> {
    let of_2 = |version: &String| version.starts_with("2.");
    let mut versions = observed.registries.iter().filter_map(|task| task.status.version.as_ref());
    match () {
        () if !options.registry.enabled => Some("this service runs no registry (registry.enabled)".into()),
        () if !options.proxy.remote_url.is_empty() => Some(collection::OF_CACHE.into()),
        () if options.garbage_collection.delete_untagged && versions.any(of_2) => Some(collection::UNTAGGED_BY_2.into()),
        () => None,
    }
}

/// A registry's task is to take a step of a collection.
pub(crate) struct Told {
    run: Run,
    /// Address of the task.
    pub(crate) address: String,
    step: CollectStep,
}

impl Collections {
    /// The next steps of the collection that is asked for, and of what nobody asks for any more. `turn`: a registry may restart. What
    /// has come of a collection that has ended is the second.
    pub(crate) fn steps(&mut self, options: &Options, observed: &Observed, now: i64, turn: &mut bool) -> (Vec<Told>, Option<String>) {
        let jobs = documents::collect_job_ids(options).into_iter().zip([false, true]);
        let runs_of = |(id, dry_run): (String, bool)| {
            let active = observed.jobs.get(&id).map(|job| job.active_runs.clone()).unwrap_or_default();
            active.into_iter().map(move |run| (run, dry_run))
        };
        // They begin with the time at which they were started.
        let active: BTreeMap<String, bool> = jobs.flat_map(runs_of).in_order();
        self.ended.retain(|run, _| active.contains_key(run));
        self.followed.take_if(|(run, _)| !active.contains_key(&run.id));
        let due: Vec<(String, bool)> = active.into_iter().filter(|(run, _)| !self.ended.contains_key(run)).collect();
        if let (None, Some((id, dry_run))) = (&self.followed, due.first().cloned()) {
            tracing::info!(run = id, dry_run, "a garbage collection is asked for");
            let run = match refused(options, observed) {
                Some(reason) => Run::refused(&id, dry_run, now, &reason),
                None => Run::new(&id, dry_run, now),
            };
            self.followed = Some((run, Next::default()));
        }
        let followed = self.followed.as_ref().map(|(run, _)| run.id.clone());
        self.waiting = due.into_iter().filter(|(id, _)| Some(id) != followed.as_ref()).collect();
        let mut told = self.end_forgotten(observed, turn);
        let said = self.follow(observed, now, turn, &mut told);
        (told, said)
    }

    fn end_forgotten(&mut self, observed: &Observed, turn: &mut bool) -> Vec<Told> {
        let followed = self.followed.as_ref().map(|(run, _)| run);
        let forgotten = collection::forgotten(&observed.registries, followed);
        if self.followed.is_none() && forgotten.is_empty() {
            self.orders.clear();
        }
        let mut told = Vec::new();
        for (address, part) in forgotten {
            let run = Run::new(&part.run, part.dry_run, 0);
            if turns::may_take(&observed.registries, address, &run, CollectStep::Finish, turn) {
                tracing::info!(run = run.id, address, "nobody asks for this garbage collection any more; it is ended");
                told.push(Told { run, address: address.into(), step: CollectStep::Finish });
            }
        }
        told
    }

    fn follow(&mut self, observed: &Observed, now: i64, turn: &mut bool, told: &mut Vec<Told>) -> Option<String> {
        let (mut run, before) = self.followed.take()?;
        let next = run.next(&observed.registries, observed.all_registries_answer(), now);
        for (address, step) in &next.steps {
            if turns::may_take(&observed.registries, address, &run, *step, turn) {
                told.push(Told { run: run.clone(), address: address.clone(), step: *step });
            }
        }
        if next.said != before.said {
            tracing::info!(run = run.id, "{}", next.said);
        }
        if !next.ended {
            self.followed = Some((run, next));
            return None;
        }
        let report = report(&run, &next);
        self.orders.retain(|(id, _), _| *id != run.id);
        self.last = Some(report.clone());
        self.ended.insert(run.id, report);
        Some(next.said)
    }

    /// The order for a step: the same as before, unless the task has taken a later one since.
    pub(crate) async fn order(
        &mut self,
        told: &Told,
        options: &Options,
        observed: &Observed,
        state: &mut State,
    ) -> Result<SignedOrder, StateError> {
        let taken = observed.registries.iter().find(|task| task.address == told.address).map_or(0, |task| task.status.order_version);
        let key = (told.run.id.clone(), told.step);
        if let Some((order, _)) = self.orders.get(&key).filter(|(_, version)| *version >= taken) {
            return Ok(order.clone());
        }
        let delete_untagged = options.garbage_collection.delete_untagged;
        let kind = OrderKind::Collect { run: told.run.id.clone(), step: told.step, dry_run: told.run.dry_run, delete_untagged };
        let order = state.order(kind).await?;
        self.orders.insert(key, (order.clone(), state.version()));
        Ok(order)
    }
}

impl Controller {
    /// Has the next steps taken of the collection that is asked for. `turn`: a registry may restart.
    pub(super) async fn collect(&mut self, observed: &Observed, now: i64, turn: &mut bool) -> Result<(), ControllerError> {
        let (told, said) = self.collections.steps(&self.options, observed, now, turn);
        let Some(state) = &mut self.state else { return Ok(()) };
        for told in told {
            let order = self.collections.order(&told, &self.options, observed, state).await?;
            observe::send_to_registry(&self.cluster, &told.address, &order).await;
        }
        if let Some(said) = said {
            self.shared.acted(said);
        }
        Ok(())
    }
}
