//! Which of several registries may restart: one at a time, while all others serve and the VIP leads to them. Pure.
//!
//! Each leaves the VIP before it restarts (`registry::leave`), so two at the same moment could leave nobody behind it.

use crate::collection::Run;
use crate::plan::{Action, Observed, RegistryTask};
use crate::protocol::{CollectPhase, CollectStep, RegistryPhase};

/// Whether one of them may restart now. Where there is only one, nobody is waited for.
pub fn one_may_restart(observed: &Observed) -> bool {
    let tasks = observed.registry.as_ref().map_or(&[][..], |app| &app.tasks);
    let serves = |task: &RegistryTask| task.status.phase == RegistryPhase::Serving;
    // Who serves again is back behind the VIP when Mesos has seen it.
    let all_serve = || observed.all_registries_answer() && observed.registries.iter().all(serves) && tasks.iter().all(|task| task.healthy);
    tasks.len() <= 1 || all_serve()
}

/// Whether an action makes a registry restart.
pub fn is_restart(action: &Action) -> bool {
    matches!(action, Action::Certify { .. } | Action::Restart { .. })
}

/// Whether a task may be told to take a step of a collection. One that makes it restart uses up the `turn`.
pub fn may_take(tasks: &[RegistryTask], address: &str, run: &Run, step: CollectStep, turn: &mut bool) -> bool {
    let part = tasks.iter().find(|task| task.address == address).and_then(|task| run.of(task));
    let restarts = !run.dry_run
        && match step {
            CollectStep::Prepare => part.is_none(),
            CollectStep::Collect => false,
            CollectStep::Finish => part.is_some_and(|part| part.phase < CollectPhase::Reopening),
        };
    !restarts || std::mem::replace(turn, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcos::marathon::{App, AppTask};
    use crate::protocol::{Collection, RegistryStatus};

    fn task(name: &str, phase: RegistryPhase) -> RegistryTask {
        RegistryTask { address: name.into(), status: RegistryStatus { phase, ..RegistryStatus::first("s", name, name) } }
    }

    #[test]
    fn a_registry_restarts_only_while_all_others_serve_and_are_healthy() {
        use RegistryPhase::{Restarting, Serving};
        let may = |phases: &[RegistryPhase], healthy: &[bool]| {
            let known = healthy.iter().map(|healthy| AppTask {
                id: String::new(),
                host: "10.0.0.1".parse().unwrap(),
                ports: vec![],
                healthy: *healthy,
            });
            let registry = Some(App { spec: serde_json::Value::Null, tasks: known.collect() });
            let registries = phases.iter().map(|phase| task("a", *phase)).collect();
            one_may_restart(&Observed { registry, registries, ..Observed::default() })
        };
        assert!(may(&[Serving, Serving], &[true, true]));
        assert!(!may(&[Serving, Restarting], &[true, true]), "it is on its way out, or not back");
        assert!(!may(&[Serving, Serving], &[true, false]), "the VIP does not lead to it yet");
        assert!(!may(&[Serving], &[true, true]), "one does not answer");
        assert!(may(&[Serving], &[false]), "there is no other");
    }

    #[test]
    fn steps_of_a_collection_that_restart_a_registry_are_taken_one_after_the_other() {
        let at = |phase| Collection {
            run: "r".into(),
            dry_run: false,
            phase,
            marked: 0,
            blobs: 0,
            manifests: 0,
            freed_bytes: None,
            seconds: 0,
            read_only_seconds: 0,
            error: None,
        };
        let taken = |phase: Option<CollectPhase>, step, dry_run| {
            let with = |name| {
                let mut task = task(name, RegistryPhase::Serving);
                task.status.collection = phase.map(at);
                task
            };
            let (tasks, run, mut turn) = ([with("a"), with("b")], Run::new("r", dry_run, 0), true);
            let may = ["a", "b"].map(|address| may_take(&tasks, address, &run, step, &mut turn));
            (may, turn)
        };
        use CollectStep::{Collect, Finish, Prepare};
        assert_eq!(taken(None, Prepare, false), ([true, false], false));
        assert_eq!(taken(Some(CollectPhase::ReadOnly), Prepare, false), ([true, true], true), "it only says that the controller is there");
        assert_eq!(taken(Some(CollectPhase::ReadOnly), Collect, false), ([true, true], true));
        assert_eq!(taken(Some(CollectPhase::Collected), Finish, false), ([true, false], false));
        assert_eq!(taken(Some(CollectPhase::Reopening), Finish, false), ([true, true], true));
        assert_eq!(taken(None, Collect, true), ([true, true], true));
    }
}
