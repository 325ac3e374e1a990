//! What a node gets from its pod's definition.

use crate::certificates::OrderKey;
use crate::host_paths::HostRoot;
use crate::names::Host;
use crate::protocol::{SignedOrder, env};

/// Why the node cannot start or go on. Faults of the host are not among them: those it reports.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A variable of the environment is absent.
    #[error("{0} is not set; the node runs as a pod that the controller defines, not by hand")]
    Missing(&'static str),
    /// A variable of the environment cannot be used.
    #[error("{name} cannot be used: {reason}")]
    Invalid {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a node is told at its start.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The host's file system.
    pub root: HostRoot,
    /// Name of the service.
    pub service: String,
    /// What orders must be signed with.
    pub order_key: OrderKey,
    /// The order in the definition.
    pub first_order: SignedOrder,
    /// The port to answer on.
    pub port: u16,
    /// The agent's own name or address.
    pub host: Host,
    /// `MESOS_EXECUTOR_ID`.
    pub executor: String,
}

impl NodeConfig {
    /// Reads the environment of a pod task.
    ///
    /// # Errors
    /// Names the variable that is absent or cannot be used.
    pub fn from_env() -> Result<Self, NodeError> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, NodeError> {
        let get = |name| var(name).filter(|value| !value.is_empty()).ok_or(NodeError::Missing(name));
        Ok(Self {
            root: HostRoot::default(),
            service: service_name(get(env::SERVICE)?)?,
            order_key: parse(env::ORDER_KEY, &get(env::ORDER_KEY)?, OrderKey::from_base64)?,
            first_order: parse(env::FIRST_ORDER, &get(env::FIRST_ORDER)?, |text: &str| crate::json::of_text(text))?,
            port: parse("ENDPOINT_STATUS", &get("ENDPOINT_STATUS")?, str::parse)?,
            host: parse("HOST", &get("HOST")?, str::parse)?,
            executor: get("MESOS_EXECUTOR_ID")?,
        })
    }
}

/// The name becomes part of paths that root writes to.
pub(super) fn service_name(name: String) -> Result<String, NodeError> {
    let label = |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if name.trim_matches('/').split('/').all(label) && name.len() <= 128 {
        return Ok(name);
    }
    let reason = format!("{name:?} is no service name (letters, digits and '-', in parts divided by '/')");
    Err(NodeError::Invalid { name: env::SERVICE, reason })
}

fn parse<T, E: std::fmt::Display>(name: &'static str, value: &str, read: impl Fn(&str) -> Result<T, E>) -> Result<T, NodeError> {
    read(value).map_err(|error| NodeError::Invalid { name, reason: error.to_string() })
}
