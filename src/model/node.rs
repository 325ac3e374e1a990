//! A node's task and its host: the node's own board, judgement and rules about orders, over a host that is three fields.

use std::sync::Arc;

use super::World;
use super::trust::{Chain, Trusted};
use crate::certificates::OrderKey;
use crate::host_paths::HostRoot;
use crate::node::board::Board;
use crate::node::converge::judge;
use crate::node::orders::{self, Accepted, Task};
use crate::node::pass::Report;
use crate::node::trust::Bundle;
use crate::node::{NodeConfig, newest};
use crate::protocol::{NodePhase, Proof, ProofOutcome, SignedOrder, SysctlState, SysctlStatus, env};

/// Look-only passes between two proofs of a host that is well.
const PROVE_EVERY: u8 = 20;

/// A running node.
pub(super) struct Node {
    pub(super) board: Board,
    /// The key that it knows.
    pub(super) order_key: String,
    /// What one pass leaves to the next, as in the node's loop.
    digest: String,
    proofs: Vec<Proof>,
    looks: u8,
    asked: bool,
    restored: bool,
}

impl Node {
    /// Starts a node as its definition says, on a host that may keep a newer order.
    ///
    /// # Errors
    /// Why it would end at once.
    pub(super) fn start(world: &World, machine: usize, spec: &serde_json::Value, uuid: &str) -> Result<Self, String> {
        let environment = &spec["environment"];
        let first = world.text_of(&environment[env::FIRST_ORDER]).ok_or("it has no first order")?;
        let first: SignedOrder = crate::json::of_text(&first).map_err(|error| error.to_string())?;
        let order_key = environment[env::ORDER_KEY].as_str().unwrap_or_default().to_string();
        let host = &world.machines[machine];
        let config = NodeConfig {
            root: HostRoot::default(),
            service: environment[env::SERVICE].as_str().unwrap_or_default().into(),
            order_key: OrderKey::from_base64(&order_key).map_err(|error| error.to_string())?,
            first_order: first.clone(),
            port: 1,
            host: host.host.clone(),
            executor: format!("instance-x.{uuid}"),
        };
        let first = orders::open(&config, first).map_err(|error| error.to_string())?;
        let kept = host.kept.clone().and_then(|kept| orders::open(&config, kept).ok());
        let board = Board::new(config, newest(first, kept));
        Ok(Self { board, order_key, digest: String::new(), proofs: Vec::new(), looks: 0, asked: false, restored: false })
    }

    /// Takes an order, or not.
    pub(super) fn take(&mut self, order: SignedOrder) {
        let before = self.board.order().digest.clone();
        if self.board.take(order).is_ok() && self.board.order().digest == before {
            self.asked = true;
        }
    }

    /// One pass over the host.
    pub(super) fn work(&mut self, world: &mut World, machine: usize) {
        let order = self.board.order();
        if self.digest != order.digest {
            (self.digest, self.proofs, self.restored) = (order.digest.clone(), Vec::new(), false);
            self.asked = true;
        }
        match &order.task {
            Task::Trust(bundle) => self.trust(world, machine, &order, bundle),
            Task::Restore => self.restore(world, machine, &order),
        }
    }

    fn trust(&mut self, world: &mut World, machine: usize, order: &Arc<Accepted>, bundle: &Bundle) {
        let host = &mut world.machines[machine];
        let mut report = report();
        if host.unwritable {
            report.errors.push("the file system is read-only".into());
        } else {
            host.kept = Some(order.signed.clone());
            let now = Trusted::by(order, bundle);
            report.changed = host.trusted.as_ref() != Some(&now);
            host.trusted = Some(now);
            report.in_place = true;
        }
        let due = std::mem::take(&mut self.asked) || self.looks >= PROVE_EVERY;
        let well = !due && !report.changed && judge(bundle, &report, &self.proofs).0 == NodePhase::Trusted;
        if well {
            self.looks += 1;
        } else {
            self.looks = 0;
            self.proofs = prove(world, machine, bundle);
            self.board.count_pass();
        }
        let (phase, errors) = judge(bundle, &report, &self.proofs);
        self.board.show(order, &report, &self.proofs, phase, errors);
    }

    fn restore(&mut self, world: &mut World, machine: usize, order: &Arc<Accepted>) {
        if self.restored {
            return;
        }
        let host = &mut world.machines[machine];
        let mut report = report();
        if host.unwritable {
            report.errors.push("the file system is read-only".into());
        } else {
            (host.kept, host.trusted, host.registry) = (None, None, None);
            (host.proven, host.seen) = (None, None);
            self.restored = true;
        }
        let phase = if self.restored { NodePhase::Restored } else { NodePhase::Failed };
        let errors = report.errors.clone();
        self.board.show(order, &report, &[], phase, errors);
        self.board.count_pass();
    }
}

fn report() -> Report {
    let sysctl = SysctlStatus { state: SysctlState::Unmanaged, value: None, found: None };
    Report { errors: Vec::new(), sysctl, ..Report::broken(String::new()) }
}

/// What a client on this host finds at every name that agents reach.
fn prove(world: &mut World, machine: usize, bundle: &Bundle) -> Vec<Proof> {
    let served: Vec<Option<Chain>> = world.served();
    let outcome = if served.is_empty() || !world.machines[machine].up {
        ProofOutcome::Unreachable
    } else {
        let all = served.iter().all(|chain| world.accepts(machine, chain.as_ref()));
        if all { ProofOutcome::Trusted } else { ProofOutcome::Untrusted }
    };
    if outcome == ProofOutcome::Trusted {
        world.note_proof(machine, &served);
    }
    let inside = bundle.names.iter().filter(|trusted| trusted.inside);
    let proof = |name: String| Proof { client: "docker".into(), name, outcome, detail: None, at: 0 };
    inside.flat_map(|trusted| bundle.spellings(&trusted.name)).map(proof).collect()
}
