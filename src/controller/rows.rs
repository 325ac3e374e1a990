//! The agents' rows in the report, kept from pass to pass: of very many agents only a few stand otherwise than before.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::report::AgentReport;
use crate::dcos::mesos::Agent;
use crate::in_order::InOrder as _;
use crate::names::Host;
use crate::plan::{self, Observed, Wanted};
use crate::protocol::NodeStatus;

/// The rows of the last pass, in the order of its agents, and what they were made of.
#[derive(Default)]
pub(super) struct Rows {
    /// Digest of the order that nodes should have taken, and whether the registry speaks plain HTTP.
    basis: (String, bool),
    kept: Vec<Kept>,
}

struct Kept {
    host: Host,
    public: bool,
    /// None where the row was made of more than that: it is made anew the next time.
    status: Option<Arc<NodeStatus>>,
    row: Arc<AgentReport>,
}

impl Rows {
    /// One row per agent. A row that says what it has said before is the same one.
    pub(super) fn look(&mut self, wanted: &Wanted, observed: &Observed) -> Vec<Arc<AgentReport>> {
        let basis = (plan::order_digest(&wanted.trust), wanted.ca.plain_http);
        let is_same_basis = self.basis == basis;
        self.basis = basis;
        let takes_over = wanted.takeover.is_some() || !observed.passes_at_takeover.is_empty();
        let mut nodes = observed.nodes.iter().peekable();
        // Mostly both are in the hosts' order, and nothing has to be looked up.
        let mut status_of = |agent: &Agent| {
            while nodes.next_if(|(host, _)| **host < agent.host).is_some() {}
            let next = nodes.peek().filter(|(host, _)| **host == agent.host).map(|(_, status)| *status);
            next.or_else(|| observed.nodes.get(&agent.host))
        };
        let statuses: Vec<Option<&Arc<NodeStatus>>> = observed.agents.iter().map(&mut status_of).collect();
        let agents = || observed.agents.iter().zip(&statuses);
        let silent: BTreeSet<&Host> = agents().filter(|(_, status)| status.is_none()).map(|(agent, _)| &agent.host).in_order();
        let instances = plan::instances_on(&silent, observed);
        let mut before = Before { kept: std::mem::take(&mut self.kept), next: 0 };
        let digest = &self.basis.0;
        let look = |(agent, status): (&Agent, &Option<&Arc<NodeStatus>>)| {
            let earlier = before.of(&agent.host);
            let is_same = |kept: &&Kept| {
                let same_status = matches!((&kept.status, status), (Some(before), Some(now)) if Arc::ptr_eq(before, now));
                is_same_basis && same_status && !takes_over && kept.public == agent.public
            };
            let row = match earlier.filter(is_same) {
                Some(kept) => Arc::clone(&kept.row),
                None => {
                    let node = status.map(Arc::as_ref);
                    let row = plan::row(agent, node, instances.get(&agent.host).copied(), digest, wanted, observed);
                    let new = AgentReport::new(row, node);
                    earlier.filter(|kept| *kept.row == new).map_or_else(|| Arc::new(new), |kept| Arc::clone(&kept.row))
                }
            };
            let status = status.filter(|_| !takes_over).cloned();
            Kept { host: agent.host.clone(), public: agent.public, status, row }
        };
        self.kept = agents().map(look).collect();
        self.kept.iter().map(|kept| Arc::clone(&kept.row)).collect()
    }
}

/// The rows of the last pass. Agents are mostly in the order in which they were then, but for one that has come or gone.
struct Before {
    kept: Vec<Kept>,
    next: usize,
}

impl Before {
    /// None also where the order is another one: that row is then made anew.
    fn of(&mut self, host: &Host) -> Option<&Kept> {
        let at = (self.next..self.next + 2).find(|at| self.kept.get(*at).is_some_and(|kept| kept.host == *host))?;
        self.next = at + 1;
        self.kept.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{agent, answering, node, wanted};
    use crate::protocol::NodePhase;

    #[test]
    fn a_row_is_kept_as_long_as_it_says_the_same_and_no_longer() {
        let mut wanted = wanted();
        let digest = plan::order_digest(&wanted.trust);
        let well = |host: &str| node(host, &digest, NodePhase::Trusted, 1);
        let hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
        let mut observed = Observed { agents: hosts.map(agent).to_vec(), nodes: answering(hosts.map(well)), ..Observed::default() };
        let mut rows = Rows::default();
        // How many rows are those of the time before; what they say is what they would say if none were kept.
        let mut before: Vec<Arc<AgentReport>> = Vec::new();
        let mut look = |wanted: &Wanted, observed: &Observed| {
            let now = rows.look(wanted, observed);
            assert_eq!(now, Rows::default().look(wanted, observed));
            let kept = now.iter().filter(|row| before.iter().any(|earlier| Arc::ptr_eq(earlier, row))).count();
            before = now;
            kept
        };
        assert_eq!(look(&wanted, &observed), 0);
        assert_eq!(look(&wanted, &observed), 4);
        // Asked again, one says the same, another one something else.
        observed.nodes.extend(answering([well("10.0.0.1"), node("10.0.0.2", &digest, NodePhase::Failed, 2)]));
        assert_eq!(look(&wanted, &observed), 3);
        observed.agents[2].public = true;
        assert_eq!(look(&wanted, &observed), 3);
        // One goes, one comes; that one is silent, and has another reason each time.
        observed.agents.remove(1);
        observed.agents.insert(1, agent("10.0.0.9"));
        assert_eq!(look(&wanted, &observed), 3);
        observed.agents[1].active = false;
        assert_eq!(look(&wanted, &observed), 3);
        assert_eq!(look(&wanted, &observed), 4);
        observed.agents.remove(1);
        observed.agents.push(agent("10.0.0.9"));
        assert_eq!(look(&wanted, &observed), 3);
        observed.agents.reverse();
        look(&wanted, &observed);
        assert_eq!(look(&wanted, &observed), 4);
        // All are about another order, or another registry, than before.
        observed.passes_at_takeover = [("10.0.0.1".parse().unwrap(), 1)].into();
        assert_eq!(look(&wanted, &observed), 3);
        observed.passes_at_takeover.clear();
        assert_eq!(look(&wanted, &observed), 3);
        wanted.ca.plain_http = true;
        assert_eq!(look(&wanted, &observed), 1);
        wanted.trust.payload = "e30K".into();
        assert_eq!(look(&wanted, &observed), 1);
    }
}
