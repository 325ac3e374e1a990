//! Which orders a node takes.

use super::config::NodeConfig;
use super::trust::Bundle;
use crate::certificates::OrderError;
use crate::digest::order_digest;
use crate::protocol::{Order, OrderKind, PreloadOrder, SignedOrder};

/// An order that verified and whose every part has been looked at.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) signed: SignedOrder,
    pub(crate) version: u64,
    pub(crate) digest: String,
    pub(crate) task: Task,
}

/// What it asks of the host.
#[derive(Debug)]
pub(crate) enum Task {
    Trust(Bundle),
    Restore,
}

/// Why an order was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It cannot be read, or asks for what no node can do.
    #[error("the order cannot be read: {0}")]
    Unreadable(String),
    /// It is not from our controller.
    #[error("the order is not for this node: {0}")]
    Forbidden(String),
    /// Something newer is in force.
    #[error("{0}")]
    Conflict(String),
}

fn verified(config: &NodeConfig, signed: &SignedOrder) -> Result<Order, Refusal> {
    let order = config.order_key.open(signed).map_err(|error| match error {
        OrderError::BadSignature => Refusal::Forbidden(error.to_string()),
        other => Refusal::Unreadable(other.to_string()),
    })?;
    if order.service == config.service {
        return Ok(order);
    }
    Err(Refusal::Forbidden(format!("it is for the service {:?}, and this node belongs to {:?}", order.service, config.service)))
}

/// The images to be copied and the version, if the order is one that does not touch the host.
pub(crate) fn preload(config: &NodeConfig, signed: &SignedOrder) -> Result<Option<(u64, PreloadOrder)>, Refusal> {
    let order = verified(config, signed)?;
    Ok(match order.kind {
        OrderKind::Preload(images) => Some((order.version, images)),
        _ => None,
    })
}

/// Verifies and reads an order about the host, whatever its version.
pub(crate) fn open(config: &NodeConfig, signed: SignedOrder) -> Result<Accepted, Refusal> {
    let order = verified(config, &signed)?;
    let task = match &order.kind {
        OrderKind::Trust(bundle) => Task::Trust(Bundle::parse(bundle).map_err(|error| Refusal::Unreadable(error.to_string()))?),
        OrderKind::Restore => Task::Restore,
        OrderKind::Preload(_) => return Err(Refusal::Unreadable("it does not say how this host is to be".into())),
        OrderKind::Certificate { .. }
        | OrderKind::Users { .. }
        | OrderKind::Collect { .. }
        | OrderKind::Copy { .. }
        | OrderKind::Restart
        | OrderKind::Retire { .. } => {
            return Err(Refusal::Unreadable("it is meant for a registry task, not for a node".into()));
        }
    };
    Ok(Accepted { version: order.version, digest: order_digest(&signed), signed, task })
}

impl Accepted {
    /// Whether this one may come after `current`. The same order again may.
    pub(crate) fn may_follow(&self, current: &Accepted) -> Result<(), Refusal> {
        if self.version < current.version {
            return Err(Refusal::Conflict(format!("version {} is older than {}, which is in force", self.version, current.version)));
        }
        if self.version == current.version && self.digest != current.digest {
            return Err(Refusal::Conflict(format!("another order of version {} is in force; give a new one a new version", self.version)));
        }
        Ok(())
    }
}
