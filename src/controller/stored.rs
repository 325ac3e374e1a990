//! What Marathon has not kept as it was sent. A definition is compared once: what was seen of it is remembered from pass to pass.

use std::sync::Arc;

use serde_json::Value;

use crate::dcos::versions;
use crate::documents;
use crate::plan::{Observed, Wanted};
use crate::shards::PerShard;

/// What was found in the stored definitions of the last pass that are as we rendered them.
#[derive(Default)]
pub(super) struct Stored {
    marathon: versions::Marathon,
    pods: PerShard<(Arc<Value>, Vec<String>)>,
}

impl Stored {
    /// What stands otherwise in a definition that has our digest, one line each.
    pub(super) fn look(&mut self, wanted: &Wanted, observed: &Observed) -> Vec<String> {
        let (documents, marathon) = (&wanted.documents, observed.marathon);
        let mut before = std::mem::take(&mut self.pods);
        if std::mem::replace(&mut self.marathon, marathon) != marathon {
            before = PerShard::default();
        }
        for (shard, pod) in observed.pods.iter().filter(|(shard, pod)| documents.is_pod(**shard, &pod.spec)) {
            // With the same digest in it, it was compared with the same.
            let known = before.at(*shard).take().filter(|(spec, _)| Arc::ptr_eq(spec, &pod.spec));
            let known = known.unwrap_or_else(|| {
                // Its number of instances is the planner's affair.
                let sent = documents::scaled(&documents.pod(*shard), pod.scale(), marathon);
                (Arc::clone(&pod.spec), problems(&documents.pod_id(*shard), &sent, &pod.spec))
            });
            *self.pods.at(*shard) = Some(known);
        }
        let registry = observed.registry.iter().filter(|app| documents::same(&app.spec, &documents.registry));
        let registry = registry.flat_map(|app| problems(&documents.registry_id, &documents.registry, &app.spec));
        self.pods.iter().flat_map(|(_, problems)| problems.clone()).chain(registry).collect()
    }
}

fn problems(id: &str, sent: &Value, stored: &Value) -> Vec<String> {
    let problem = |path| {
        format!(
            "Marathon has not kept {path} of {id} as it was sent to it; this version of Marathon does not know it or somebody has changed it"
        )
    };
    documents::not_stored(sent, stored).into_iter().map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcos::marathon::{App, Pod};
    use crate::plan::tests::wanted;
    use crate::shards::{Layout, Number, Shard};

    #[test]
    fn what_marathon_has_not_kept_is_told_in_every_pass_as_long_as_it_is_so() {
        let mut wanted = wanted();
        wanted.documents.layout = Layout::Ten(Number::OfName);
        let pod = |digit| {
            let shard = Shard::Digit(digit);
            let spec = documents::scaled(&wanted.documents.pod(shard), 3, versions::Marathon::default());
            (shard, Pod { spec: spec.into(), instances: vec![] })
        };
        let mut observed = Observed { pods: [1, 2].map(pod).into(), ..Observed::default() };
        let lose = |observed: &mut Observed, digit, section: &str, name: &str| {
            let spec = Arc::make_mut(&mut observed.pods.get_mut(&Shard::Digit(digit)).unwrap().spec);
            spec[section].as_object_mut().unwrap().remove(name).unwrap();
        };
        let mut stored = Stored::default();
        let mut look = |observed: &Observed| -> Vec<String> {
            let now = stored.look(&wanted, observed);
            assert_eq!(now, Stored::default().look(&wanted, observed), "what is remembered is what would be found");
            now.iter().map(|line| line.split(' ').skip(4).step_by(2).take(2).collect::<Vec<_>>().join(" of ")).collect()
        };
        assert!(look(&observed).is_empty());
        lose(&mut observed, 2, "environment", "RUST_LOG");
        let lost = ["/environment/RUST_LOG of /private-registry-node-2"];
        assert_eq!([look(&observed), look(&observed)], [lost, lost]);
        // Somebody else's definition is replaced anyway; one that is as it was sent is well.
        let known = observed.pods.clone();
        lose(&mut observed, 2, "labels", "PRIVATE_REGISTRY_DOCUMENT");
        assert!(look(&observed).is_empty());
        observed.pods = known;
        assert_eq!(look(&observed), lost);
        observed.pods.extend([pod(2)]);
        assert!(look(&observed).is_empty());
        // An older Marathon is sent more.
        observed.marathon.version = versions::Version(1, 4, 2);
        let scale = [1, 2].map(|digit| format!("/environment/PRIVATE_REGISTRY_SCALE of /private-registry-node-{digit}"));
        assert_eq!(look(&observed), scale);
        observed.pods.clear();
        assert!(look(&observed).is_empty());
        let mut registry = App { spec: wanted.documents.registry.clone(), tasks: vec![] };
        registry.spec["env"] = Value::Null;
        observed.registry = Some(registry);
        assert_eq!(look(&observed), ["/env of /registry"]);
    }
}
