//! A garbage collection as the controller leads it: what each registry is to do next, from what all of them say. Pure.
//!
//! An active run of the job `….gc` or `….gc-dry-run` is the order. All registries become read-only, one of them collects, and all
//! become writable again; a dry run is one registry's affair, and nobody else notices.

use std::collections::BTreeMap;

use crate::in_order::InOrder as _;
use crate::plan::RegistryTask;
use crate::protocol::{CollectPhase, CollectStep, Collection, RegistryPhase};

/// So long a registry may take to become read-only: its uploads are waited for, and it may just have been started. They do it one
/// after the other.
const PREPARATION: i64 = 600;

fn preparation(tasks: &[RegistryTask]) -> i64 {
    PREPARATION * i64::try_from(tasks.len().max(1)).unwrap_or(1)
}

/// A run that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Metronome's id.
    pub id: String,
    /// Whether nothing is deleted.
    pub dry_run: bool,
    /// Unix time at which it was first seen.
    pub since: i64,
    /// The task that was told to collect.
    collector: Option<String>,
    /// Why it fails, as soon as that is known.
    failure: Option<String>,
}

/// What is to be done for a run, and how it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Next {
    /// Which task is to take which step. The same step again says that the controller is still there.
    pub steps: BTreeMap<String, CollectStep>,
    /// How it stands, for people.
    pub said: String,
    /// Whether it has come to its end.
    pub ended: bool,
    /// Whether it has failed.
    pub failed: bool,
}

impl Run {
    /// A run that is seen for the first time, perhaps by a controller that was started anew in the middle of it.
    pub fn new(id: &str, dry_run: bool, now: i64) -> Self {
        Self { id: id.into(), dry_run, since: now, collector: None, failure: None }
    }

    /// A run that cannot be done at all.
    pub fn refused(id: &str, dry_run: bool, now: i64, reason: &str) -> Self {
        Self { failure: Some(reason.into()), ..Self::new(id, dry_run, now) }
    }

    /// Part of a task in this run.
    pub fn of<'a>(&self, task: &'a RegistryTask) -> Option<&'a Collection> {
        task.status.collection.as_ref().filter(|collection| collection.run == self.id)
    }

    /// What is next. `all_answer`: every task that Marathon knows has.
    pub fn next(&mut self, tasks: &[RegistryTask], all_answer: bool, now: i64) -> Next {
        if self.collector.is_none() {
            let collects = |task: &&RegistryTask| self.of(task).is_some_and(|part| part.phase >= CollectPhase::Collecting);
            self.collector = tasks.iter().find(collects).map(|task| task.status.task.clone());
        }
        if self.failure.is_none() {
            self.failure = self.failed(tasks, all_answer, now);
        }
        if let Some(reason) = self.failure.clone() {
            let steps = self.all_that_are_active(tasks, CollectStep::Finish);
            let (ended, said) = (steps.is_empty(), format!("the garbage collection has failed: {reason}"));
            return Next { steps, said, ended, failed: true };
        }
        if self.dry_run {
            return self.next_of_dry_run(tasks);
        }
        let collector = tasks.iter().find(|task| self.is_collector(task)).and_then(|task| self.of(task));
        match collector {
            Some(part) if part.phase >= CollectPhase::Collected => {
                let steps = self.all_that_are_active(tasks, CollectStep::Finish);
                let ended = steps.is_empty();
                let said = if ended { result(part) } else { format!("{}; the registry becomes writable", collected(part)) };
                Next { steps, said, ended, failed: false }
            }
            Some(part) => {
                let said = format!("collecting; {} blobs are in use so far", part.marked);
                let mut steps = self.all_that_are_active(tasks, CollectStep::Prepare);
                steps.extend(self.address_of_collector(tasks).map(|address| (address, CollectStep::Collect)));
                Next { steps, said, ..Next::default() }
            }
            None => self.prepare(tasks, all_answer),
        }
    }

    fn prepare(&mut self, tasks: &[RegistryTask], all_answer: bool) -> Next {
        let mut steps = self.all_that_are_active(tasks, CollectStep::Prepare);
        let is_read_only = |task: &RegistryTask| self.of(task).is_some_and(|part| part.phase == CollectPhase::ReadOnly);
        let lacking: Vec<&RegistryTask> = tasks.iter().filter(|task| !is_read_only(task)).collect();
        if let ([], Some(first)) = (lacking.as_slice(), tasks.first().filter(|_| all_answer)) {
            steps.insert(first.address.clone(), CollectStep::Collect);
            self.collector = Some(first.status.task.clone());
            return Next { steps, said: "every registry is read-only; collecting".into(), ..Next::default() };
        }
        // What serves can drain.
        let ready = lacking.iter().filter(|task| self.of(task).is_none() && task.status.phase == RegistryPhase::Serving);
        steps.extend(ready.map(|task| (task.address.clone(), CollectStep::Prepare)));
        let hosts: Vec<&str> = lacking.iter().map(|task| task.status.host.as_str()).collect();
        let whom = if hosts.is_empty() { "every registry to answer".into() } else { format!("{} to be read-only", hosts.join(" and ")) };
        Next { steps, said: format!("waiting for {whom}"), ..Next::default() }
    }

    fn next_of_dry_run(&mut self, tasks: &[RegistryTask]) -> Next {
        if let Some(part) = tasks.iter().find_map(|task| self.of(task)) {
            let ended = !part.is_active();
            let steps = self.all_that_are_active(tasks, CollectStep::Collect);
            let said = if ended { result(part) } else { format!("looking; {} blobs are in use so far", part.marked) };
            return Next { steps, said, ended, failed: false };
        }
        let Some(first) = tasks.iter().find(|task| task.status.phase == RegistryPhase::Serving) else {
            return Next { said: "waiting for the registry to serve".into(), ..Next::default() };
        };
        self.collector = Some(first.status.task.clone());
        Next { steps: std::iter::once((first.address.clone(), CollectStep::Collect)).in_order(), said: "looking".into(), ..Next::default() }
    }

    fn failed(&self, tasks: &[RegistryTask], all_answer: bool, now: i64) -> Option<String> {
        if let Some(error) = tasks.iter().filter_map(|task| self.of(task)).find_map(|part| part.error.clone()) {
            return Some(error);
        }
        if let Some(collector) = &self.collector {
            let there = tasks.iter().find(|task| task.status.task == *collector);
            // It has had time to take the order.
            let lost = there.is_some_and(|task| {
                self.of(task).is_none_or(|part| part.phase < CollectPhase::Collecting) && now - self.since > preparation(tasks)
            });
            if lost || (there.is_none() && all_answer) {
                return Some("the registry's task ended while it collected; start it again".into());
            }
            let part = there.and_then(|task| self.of(task));
            let stranger = tasks.iter().find(|task| self.of(task).is_none()).filter(|_| !self.dry_run);
            // Whoever was started anew takes pushes, and what they bring must not be deleted before a manifest names it.
            if let (Some(CollectPhase::Collecting), Some(stranger)) = (part.map(|part| part.phase), stranger) {
                return Some(format!("the registry on {} was started anew meanwhile; start it again", stranger.status.host));
            }
            return None;
        }
        let longest = preparation(tasks);
        let waited = now - self.since > longest;
        waited.then(|| format!("not every registry has become read-only within {longest} s; look at `dcos private-registry status`"))
    }

    fn is_collector(&self, task: &RegistryTask) -> bool {
        self.collector.as_ref() == Some(&task.status.task)
    }

    fn address_of_collector(&self, tasks: &[RegistryTask]) -> Option<String> {
        tasks.iter().find(|task| self.is_collector(task)).map(|task| task.address.clone())
    }

    fn all_that_are_active(&self, tasks: &[RegistryTask], step: CollectStep) -> BTreeMap<String, CollectStep> {
        let active = tasks.iter().filter(|task| self.of(task).is_some_and(Collection::is_active));
        active.map(|task| (task.address.clone(), step)).in_order()
    }
}

/// Runs that registries are still at and that nobody asks for any more, by the addresses of the tasks.
pub fn forgotten<'a>(tasks: &'a [RegistryTask], followed: Option<&Run>) -> Vec<(&'a str, &'a Collection)> {
    let active = tasks.iter().filter_map(|task| Some((task.address.as_str(), task.status.collection.as_ref()?)));
    active.filter(|(_, part)| part.is_active() && followed.is_none_or(|run| run.id != part.run)).collect()
}

/// Why a task must wait for its certificate: what it would take must not be deleted.
pub fn holds_back(tasks: &[RegistryTask]) -> Option<&str> {
    tasks.iter().find_map(|task| {
        let part = task.status.collection.as_ref()?;
        (part.phase == CollectPhase::Collecting && !part.dry_run).then_some(task.status.host.as_str())
    })
}

fn collected(part: &Collection) -> String {
    let verb = if part.dry_run { "would free" } else { "freed" };
    let manifests = if part.manifests == 0 { String::new() } else { format!(" and {} manifests", part.manifests) };
    let things = format!("{} blobs{manifests}", part.blobs);
    match part.freed_bytes {
        Some(bytes) => format!("{verb} {} in {things} in {} s", size(bytes), part.seconds),
        None => format!("{} {things} in {} s", if part.dry_run { "would delete" } else { "deleted" }, part.seconds),
    }
}

fn result(part: &Collection) -> String {
    match part.dry_run {
        true => format!("{}; nothing was deleted", collected(part)),
        false => format!("{}; the registry was read-only for {} s", collected(part), part.read_only_seconds),
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let (mut number, mut unit) = (bytes as f64 / 1000.0, UNITS[0]);
    for next in &UNITS[1..] {
        if number < 999.95 {
            break;
        }
        (number, unit) = (number / 1000.0, next);
    }
    format!("{number:.1} {unit}")
}

/// Why a cache is not collected.
pub const OF_CACHE: &str = "this registry is a cache of another one, which deletes by itself what nobody asks for any more";

/// Why one of generation 2 must not delete what has no tag.
pub const UNTAGGED_BY_2: &str = "this registry is of generation 2, which would also delete the images that a tag for several platforms consists \
    of, because these have no tag of their own; set garbage_collection.delete_untagged to false, or registry.generation to 3";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::RegistryStatus;

    const NOW: i64 = 1_700_000_000;

    fn task(name: &str, part: Option<(&str, CollectPhase)>) -> RegistryTask {
        let collection = part.map(|(run, phase)| Collection {
            run: run.into(),
            dry_run: false,
            phase,
            marked: 7,
            blobs: 34,
            manifests: 0,
            freed_bytes: Some(1_234_000_000),
            seconds: 12,
            read_only_seconds: 15,
            error: None,
        });
        let status = RegistryStatus {
            phase: RegistryPhase::Serving,
            starts: 1,
            collection,
            ..RegistryStatus::first("s", &format!("task-{name}"), &format!("host-{name}"))
        };
        RegistryTask { address: name.into(), status }
    }

    fn steps(next: &Next) -> Vec<(&str, CollectStep)> {
        next.steps.iter().map(|(address, step)| (address.as_str(), *step)).collect()
    }

    #[test]
    fn all_become_read_only_before_one_collects_and_all_come_back() {
        use CollectPhase::*;
        let mut run = Run::new("r", false, NOW);
        let at = |run: &mut Run, a: Option<CollectPhase>, b: Option<CollectPhase>| {
            run.next(&[task("a", a.map(|phase| ("r", phase))), task("b", b.map(|phase| ("r", phase)))], true, NOW)
        };
        assert_eq!(steps(&at(&mut run, None, None)), [("a", CollectStep::Prepare), ("b", CollectStep::Prepare)]);
        let half = at(&mut run, Some(ReadOnly), Some(Preparing));
        assert_eq!(
            (steps(&half), half.said.as_str()),
            (vec![("a", CollectStep::Prepare), ("b", CollectStep::Prepare)], "waiting for host-b to be read-only")
        );
        assert_eq!(steps(&at(&mut run, Some(ReadOnly), Some(ReadOnly))), [("a", CollectStep::Collect), ("b", CollectStep::Prepare)]);
        assert_eq!(steps(&at(&mut run, Some(Collecting), Some(ReadOnly))), [("a", CollectStep::Collect), ("b", CollectStep::Prepare)]);
        let collected = at(&mut run, Some(Collected), Some(ReadOnly));
        assert_eq!(steps(&collected), [("a", CollectStep::Finish), ("b", CollectStep::Finish)]);
        assert!(!at(&mut run, Some(Done), Some(Reopening)).ended);
        let done = at(&mut run, Some(Done), Some(Done));
        assert_eq!(
            (done.ended, done.failed, done.said.as_str()),
            (true, false, "freed 1.2 GB in 34 blobs in 12 s; the registry was read-only for 15 s")
        );
    }

    #[test]
    fn nobody_collects_while_one_that_marathon_knows_does_not_answer() {
        let mut run = Run::new("r", false, NOW);
        let alone = [task("a", Some(("r", CollectPhase::ReadOnly)))];
        assert_eq!(steps(&run.next(&alone, false, NOW)), [("a", CollectStep::Prepare)]);
        let late = run.next(&alone, false, NOW + PREPARATION + 1);
        assert!(late.failed && !late.ended && steps(&late) == [("a", CollectStep::Finish)], "{late:?}");
        let after = run.next(&[task("a", Some(("r", CollectPhase::Done)))], true, NOW + PREPARATION + 2);
        assert!(after.failed && after.ended);
    }

    #[test]
    fn a_controller_that_is_started_anew_goes_on_where_the_registries_are() {
        let tasks = [task("a", Some(("r", CollectPhase::Collecting))), task("b", Some(("r", CollectPhase::ReadOnly)))];
        assert_eq!(steps(&Run::new("r", false, NOW).next(&tasks, true, NOW)), [("a", CollectStep::Collect), ("b", CollectStep::Prepare)]);
        let done = [task("a", Some(("r", CollectPhase::Done)))];
        assert!(Run::new("r", false, NOW).next(&done, true, NOW).ended);
    }

    #[test]
    fn a_run_fails_when_a_registry_is_started_anew_in_its_middle() {
        let mut run = Run::new("r", false, NOW);
        run.next(&[task("a", Some(("r", CollectPhase::Collecting))), task("b", Some(("r", CollectPhase::ReadOnly)))], true, NOW);
        // The other one may take pushes by now.
        let tasks = [task("a", Some(("r", CollectPhase::Collecting))), task("b2", None)];
        let next = run.next(&tasks, true, NOW);
        assert!(next.failed && steps(&next) == [("a", CollectStep::Finish)], "{next:?}");

        let mut run = Run::new("r", false, NOW);
        run.next(&[task("a", Some(("r", CollectPhase::Collecting)))], true, NOW);
        assert!(!run.next(&[], false, NOW).failed, "its successor is not there yet");
        let next = run.next(&[task("a2", None)], true, NOW);
        assert!(next.failed && next.ended && next.said.contains("ended while it collected"), "{next:?}");
    }

    #[test]
    fn a_dry_run_makes_nobody_read_only() {
        let mut run = Run::new("r", true, NOW);
        assert_eq!(steps(&run.next(&[task("a", None), task("b", None)], true, NOW)), [("a", CollectStep::Collect)]);
        let mut done = task("a", Some(("r", CollectPhase::Done)));
        done.status.collection.as_mut().unwrap().dry_run = true;
        let next = run.next(&[done, task("b", None)], true, NOW);
        assert_eq!((next.ended, next.said.as_str()), (true, "would free 1.2 GB in 34 blobs in 12 s; nothing was deleted"));
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_ended() {
        let tasks = [task("a", Some(("old", CollectPhase::ReadOnly))), task("b", Some(("old", CollectPhase::Done)))];
        let of = |run: Option<&Run>| forgotten(&tasks, run).into_iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>();
        assert_eq!(of(None), ["a"]);
        assert_eq!(of(Some(&Run::new("new", false, NOW))), ["a"]);
        assert!(of(Some(&Run::new("old", false, NOW))).is_empty());
    }

    #[test]
    fn sizes_are_for_people() {
        let of = [0, 999, 1000, 999_949, 999_960, 1_234_000_000].map(size);
        assert_eq!(of, ["0 bytes", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "1.2 GB"]);
    }
}
