//! Defects put in on purpose, around the planner's calls: the model is worth something only if it finds each of them.

use std::collections::BTreeMap;

use crate::controller::state::Stage;
use crate::controller::store::Shelf;
use crate::documents;
use crate::plan::{Action, Ca, Leaf, Observed, Plan, Wanted};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mutation {
    /// None: the product as it is.
    #[default]
    None,
    /// One instance more than there are agents.
    ScaleOneTooMany,
    /// One instance less than there are.
    ScaleOneTooFew,
    /// What deployments lock is not looked at.
    IgnoreLocks,
    /// Nobody is waited for in a rotation.
    DropDeadline,
    /// The next CA signs before it is known.
    SwitchAtOnce,
    /// The earlier CA goes before its successor is proven.
    RetireAtOnce,
    /// What nodes had proven before the switch counts.
    BelieveOldProofs,
    /// Whoever does not answer is waited for, for ever.
    WaitForEver,
    /// A controller that is not current goes on.
    SkipCurrentCheck,
    /// Every certificate is due.
    CertifyAlways,
    /// Every node is sent its order at every pass.
    SendAlways,
    /// The registry is put at every pass.
    PutAlways,
    /// Registries restart without waiting for their turns.
    RestartTogether,
    /// A pod that is too large is never made smaller.
    NeverShrink,
    /// The version of the last order is forgotten by a restart.
    ForgetVersions,
    /// An uninstall waits for nobody.
    RemoveWithoutWaiting,
    /// Nor does it name anybody.
    NameNobody,
    /// Nodes are not told of another bundle.
    NeverSend,
    /// Jobs are not put.
    ForgetJobs,
    /// The pod grows by one instance at a time.
    ScaleOneByOne,
}

impl Mutation {
    /// All of them.
    pub(super) const ALL: [Self; 20] = [
        Self::ScaleOneTooMany,
        Self::ScaleOneTooFew,
        Self::IgnoreLocks,
        Self::DropDeadline,
        Self::SwitchAtOnce,
        Self::RetireAtOnce,
        Self::BelieveOldProofs,
        Self::WaitForEver,
        Self::SkipCurrentCheck,
        Self::CertifyAlways,
        Self::SendAlways,
        Self::PutAlways,
        Self::RestartTogether,
        Self::NeverShrink,
        Self::ForgetVersions,
        Self::RemoveWithoutWaiting,
        Self::NameNobody,
        Self::NeverSend,
        Self::ForgetJobs,
        Self::ScaleOneByOne,
    ];

    /// Spoils what the planner is given.
    pub(super) fn spoil_inputs(self, observed: &mut Observed, ca: &mut Ca, leaves: &mut BTreeMap<String, Leaf>) {
        match self {
            Self::IgnoreLocks => observed.locked.clear(),
            Self::DropDeadline => ca.deadline = 0,
            Self::WaitForEver => ca.deadline = i64::MAX,
            Self::CertifyAlways => leaves.values_mut().for_each(|leaf| leaf.renew_at = 0),
            Self::NeverShrink => observed.surplus_for.clear(),
            _ => {}
        }
    }

    /// Spoils what earlier passes have seen.
    pub(super) fn spoil_memory(self, observed: &mut Observed) {
        if self == Self::BelieveOldProofs {
            observed.passes_at_switch.clear();
        }
    }

    /// Spoils what it says.
    pub(super) fn spoil_plan(self, plan: &mut Plan, wanted: &Wanted, observed: &Observed) {
        let stage = wanted.ca.rotation.as_ref().map(|rotation| rotation.stage);
        match self {
            Self::ScaleOneTooMany | Self::ScaleOneTooFew => {
                for action in &mut plan.actions {
                    if let Action::PutPod { pod, instances, .. } = action {
                        *instances = if self == Self::ScaleOneTooMany { *instances + 1 } else { instances.saturating_sub(1) };
                        *pod = documents::scaled(pod, *instances, observed.marathon);
                    }
                }
            }
            Self::ScaleOneByOne => {
                for action in &mut plan.actions {
                    if let Action::PutPod { shard, pod, instances, .. } = action {
                        let before = observed.pods.get(shard).map_or(0, |pod| pod.scale());
                        *instances = (*instances).min(before + 1);
                        *pod = documents::scaled(pod, *instances, observed.marathon);
                    }
                }
            }
            Self::SwitchAtOnce if stage == Some(Stage::Published) && !plan.actions.iter().any(|a| matches!(a, Action::SwitchCa { .. })) => {
                plan.actions.push(Action::SwitchCa { left_behind: Vec::new() });
            }
            Self::RetireAtOnce if stage == Some(Stage::Switched) && !plan.actions.iter().any(|a| matches!(a, Action::RetireCa { .. })) => {
                plan.actions.push(Action::RetireCa { left_behind: Vec::new() });
            }
            Self::SendAlways => {
                let hosts = observed.nodes.keys().cloned();
                plan.actions.extend(hosts.map(|host| Action::SendTrust { host }));
            }
            Self::PutAlways if wanted.registry && observed.registry.is_some() && observed.locked.is_empty() => {
                plan.actions.push(Action::PutRegistry { app: wanted.documents.registry.clone(), force: false, reason: String::new() });
            }
            Self::RestartTogether => {
                for task in observed.registries.iter().filter(|task| task.status.restart_due) {
                    plan.actions.push(Action::Restart { address: task.address.clone() });
                }
                for task in observed.registries.iter().filter(|task| !wanted.ca.signs_nothing && task.status.request.is_some()) {
                    let in_force = wanted.leaves.get(&task.address).map(|leaf| &leaf.fingerprint);
                    if in_force != task.status.leaf_fingerprint.as_ref() {
                        plan.actions.push(Action::Certify { address: task.address.clone(), reason: String::new() });
                    }
                }
            }
            Self::NeverSend => plan.actions.retain(|action| !matches!(action, Action::SendTrust { .. })),
            Self::ForgetJobs => plan.actions.retain(|action| !matches!(action, Action::PutJob { .. })),
            _ => {}
        }
    }

    /// Spoils what a controller that starts anew finds.
    pub(super) fn spoil_start(self, shelf: &Shelf) {
        if self == Self::ForgetVersions
            && let Some(record) = shelf.look().entries.get_mut("state.json")
            && let Ok(mut parsed) = crate::json::of_text::<serde_json::Value>(record)
        {
            let version = parsed["version"].as_u64().unwrap_or_default();
            parsed["version"] = version.saturating_sub(2).into();
            parsed["trust"] = serde_json::Value::Null;
            *record = parsed.to_string();
        }
    }
}
