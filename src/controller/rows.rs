//! The agents' rows in the report, kept from pass to pass: of very many agents only a few stand otherwise than before. What all rows come
//! to is counted in the same walk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::report::AgentReport;
use crate::dcos::mesos::Agent;
use crate::in_order::InOrder as _;
use crate::names::Host;
use crate::plan::{self, Observed, RowState, Wanted};
use crate::protocol::{NodePhase, NodeStatus};

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
    state: RowState,
    /// Version of the trust bundle on it, where its node answers.
    bundle: Option<u64>,
    /// Passes of its node when it was proven last, and when they were seen to have grown to that.
    proof: Option<(u64, Instant)>,
    has_exposed_key: bool,
}

/// What the rows come to.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Agents by state and role.
    pub agents: BTreeMap<(&'static str, &'static str), usize>,
    /// Agents that answer, by the version of the trust bundle they have.
    pub bundles: BTreeMap<u64, usize>,
    /// When the agent was proven that was proven longest ago.
    pub oldest_proof: Option<Instant>,
    /// Agents with the key of a registry made by hand.
    pub exposed: usize,
}

impl Tally {
    /// Agents in this state, of both roles.
    pub(super) fn count(&self, state: RowState) -> usize {
        self.agents.iter().filter(|((word, _), _)| *word == state.word()).map(|(_, count)| count).sum()
    }
}

/// The rows with what they come to.
pub(super) struct Agents {
    pub(super) rows: Vec<Arc<AgentReport>>,
    pub(super) tally: Tally,
}

impl Rows {
    /// One row per agent. A row that says what it has said before is the same one.
    pub(super) fn look(&mut self, wanted: &Wanted, observed: &Observed, now: Instant) -> Agents {
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
        let mut before = Before { kept: std::mem::take(&mut self.kept).into_iter().map(Some).collect(), next: 0 };
        self.kept.reserve(observed.agents.len());
        for (agent, status) in agents() {
            let earlier = before.take(&agent.host);
            let is_same = |kept: &Kept| {
                let same_status = matches!((&kept.status, status), (Some(before), Some(now)) if Arc::ptr_eq(before, now));
                is_same_basis && same_status && !takes_over && kept.public == agent.public
            };
            let kept = match earlier {
                Some(kept) if is_same(&kept) => kept,
                earlier => {
                    let node = status.map(Arc::as_ref);
                    let row = plan::row(agent, node, instances.get(&agent.host).copied(), &self.basis.0, wanted, observed);
                    let (state, proven) = (row.state, node.filter(|node| node.phase == NodePhase::Trusted).map(|node| node.passes));
                    let new = AgentReport::new(row, node);
                    let has_exposed_key = new.exposed_key.is_some();
                    let (row, known) = match earlier {
                        Some(kept) if *kept.row == new => (kept.row, kept.proof),
                        other => (Arc::new(new), other.and_then(|kept| kept.proof)),
                    };
                    let is_new = |passes: &u64| known.is_none_or(|(known, _)| known != *passes);
                    let proof = proven.filter(is_new).map_or(known, |passes| Some((passes, now)));
                    let (host, status) = (agent.host.clone(), status.filter(|_| !takes_over).cloned());
                    let bundle = node.map(|node| node.order_version);
                    Kept { host, public: agent.public, status, row, state, bundle, proof, has_exposed_key }
                }
            };
            self.kept.push(kept);
        }
        Agents { rows: self.kept.iter().map(|kept| Arc::clone(&kept.row)).collect(), tally: self.tally() }
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        let mut agents = RowState::ALL.map(|state| (state, [0; 2]));
        for kept in &self.kept {
            let of_state = agents.iter_mut().filter(|(state, _)| *state == kept.state);
            of_state.for_each(|(_, counts)| counts[usize::from(kept.public)] += 1);
            if let Some(bundle) = kept.bundle {
                *tally.bundles.entry(bundle).or_default() += 1;
            }
            tally.oldest_proof = tally.oldest_proof.into_iter().chain(kept.proof.map(|(_, at)| at)).min();
            tally.exposed += usize::from(kept.has_exposed_key);
        }
        for (state, counts) in agents {
            tally.agents.extend(["private", "public"].into_iter().zip(counts).map(|(role, count)| ((state.word(), role), count)));
        }
        tally
    }
}

/// The rows of the last pass, mostly in the order of the agents now, but for those that have come or gone.
struct Before {
    kept: Vec<Option<Kept>>,
    next: usize,
}

impl Before {
    /// None also where the order is another one: that row is then made anew.
    fn take(&mut self, host: &Host) -> Option<Kept> {
        let left = self.kept[self.next..].iter().map_while(Option::as_ref).enumerate();
        let at = self.next + left.take_while(|(at, kept)| *at < 2 || kept.host <= *host).position(|(_, kept)| kept.host == *host)?;
        self.next = at + 1;
        self.kept[at].take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            let now = rows.look(wanted, observed, Instant::now()).rows;
            assert_eq!(now, Rows::default().look(wanted, observed, Instant::now()).rows);
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

    #[test]
    fn a_proof_is_as_old_as_it_is_since_the_passes_of_its_node_have_grown_whoever_answers_meanwhile() {
        let (wanted, mut rows) = (wanted(), Rows::default());
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let trusted = |host: &str, passes| node(host, "d", NodePhase::Trusted, passes);
        let agents = |hosts: &[&str]| hosts.iter().map(|host| agent(host)).collect();
        let mut observed = Observed { agents: agents(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]), ..Observed::default() };
        let mut ages = |observed: &Observed, now: u64| -> Vec<(String, u64)> {
            let oldest = rows.look(&wanted, observed, after(now)).tally.oldest_proof;
            assert_eq!(oldest, rows.kept.iter().filter_map(|kept| kept.proof).map(|(_, at)| at).min());
            let age = |kept: &Kept| Some((kept.host.to_string(), (after(now) - kept.proof?.1).as_secs()));
            rows.kept.iter().filter_map(age).collect()
        };
        let of = |ages: &[(&str, u64)]| ages.iter().map(|(host, age)| (host.to_string(), *age)).collect::<Vec<_>>();
        observed.nodes = answering([trusted("10.0.0.2", 1), trusted("10.0.0.3", 1)]);
        assert_eq!(ages(&observed, 0), of(&[("10.0.0.2", 0), ("10.0.0.3", 0)]));
        // One proves anew, one fails, one is new.
        observed.nodes = answering([trusted("10.0.0.1", 1), node("10.0.0.2", "d", NodePhase::Failed, 2), trusted("10.0.0.3", 2)]);
        assert_eq!(ages(&observed, 5), of(&[("10.0.0.1", 0), ("10.0.0.2", 5), ("10.0.0.3", 0)]));
        observed.nodes = answering([trusted("10.0.0.1", 1)]);
        assert_eq!(ages(&observed, 7), of(&[("10.0.0.1", 2), ("10.0.0.2", 7), ("10.0.0.3", 2)]));
        observed.agents = agents(&["10.0.0.1", "10.0.0.3"]);
        observed.nodes = answering([trusted("10.0.0.3", 3)]);
        assert_eq!(ages(&observed, 9), of(&[("10.0.0.1", 4), ("10.0.0.3", 0)]));
    }

    #[test]
    fn agents_are_counted_by_state_and_role_and_bundles_by_version() {
        let wanted = wanted();
        let digest = plan::order_digest(&wanted.trust);
        let hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
        let mut observed = Observed { agents: hosts.map(agent).to_vec(), ..Observed::default() };
        observed.agents[3].public = true;
        let (host, mut older) = node("10.0.0.2", &digest, NodePhase::Failed, 1);
        (older.order_version, older.exposed_key) = (0, Some("/certs/domain.key".into()));
        let well = |host| node(host, &digest, NodePhase::Trusted, 1);
        observed.nodes = answering([well("10.0.0.1"), (host, older), well("10.0.0.4")]);
        let version = observed.nodes.values().next().unwrap().order_version;
        let mut rows = Rows::default();
        // What is kept counts as what is new.
        for _ in 0..2 {
            let Tally { agents, bundles, exposed, .. } = rows.look(&wanted, &observed, Instant::now()).tally;
            let states = ["trusted", "pending", "failed"];
            let counts = states.map(|state| ["private", "public"].map(|role| agents[&(state, role)]));
            assert_eq!((counts, agents.len()), ([[1, 1], [1, 0], [1, 0]], 6));
            assert_eq!((bundles, exposed), ([(version, 2), (0, 1)].into(), 1));
        }
    }
}
