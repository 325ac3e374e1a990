//! Whose CA the agents are to trust, and who signs the registry's certificate.

use std::collections::BTreeMap;

use super::cluster::{self, Cluster};
use super::state::State;
use super::{ControllerError, Setting};
use crate::certificates::Certificate;
use crate::digest::sha256_hex;
use crate::in_order::InOrder as _;
use crate::names::{Host, HostPort};
use crate::options::{Options, SecurityMode};
use crate::plan::{Leaf, RegistryTask};
use crate::protocol::{RegistryPhase, RegistryStatus, SignedOrder};
use crate::security;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// A CA of the service's own.
    Own,
    /// The operator's certificate, and the private CA that it is from, PEM; none for a public one.
    Provided(Vec<String>),
    /// The CA of DC/OS Enterprise, PEM.
    Cluster(Vec<String>),
    /// Plain HTTP, or no registry at all.
    Nobody,
}

impl Anchor {
    /// What the options say. The cluster's CA is that of the file with which its services are entered.
    pub(crate) fn of(setting: &Setting, options: &Options) -> Result<Self, ControllerError> {
        Ok(match options.security.mode {
            _ if !options.registry.enabled => Self::Nobody,
            SecurityMode::Provided => Self::Provided(security::private_ca(&options.security)),
            SecurityMode::DcosCa => Self::Cluster(cluster_ca(setting, options)?),
            SecurityMode::SelfSigned => Self::Own,
            SecurityMode::Insecure => Self::Nobody,
        })
    }

    pub(crate) fn is_own(&self) -> bool {
        *self == Self::Own
    }

    /// The CA certificates that agents trust, PEM, one each. What they trusted before stays until the registry has been seen to serve
    /// as it should now (`settled`): another mode is no reason to refuse what is still served.
    pub(crate) fn certificates(&self, state: &State, settled: bool) -> Vec<String> {
        let mut certificates = match self {
            Self::Own => state.trusted_certificates(),
            Self::Provided(certificates) | Self::Cluster(certificates) => certificates.clone(),
            Self::Nobody => return Vec::new(),
        };
        let before = if settled { Vec::new() } else { state.certificates_in_force() };
        let before: Vec<String> = before.into_iter().filter(|pem| !certificates.contains(pem)).collect();
        certificates.extend(before);
        certificates
    }

    /// The certificate in force of a registry's task, if this service has had it signed.
    fn leaf(&self, state: &State, status: &RegistryStatus, names: &[HostPort]) -> Option<Leaf> {
        let leaf = match self {
            Self::Own => state.leaf(status, names),
            Self::Provided(_) | Self::Nobody => None,
            Self::Cluster(_) => state.leaf_of(status, names, &self.id()),
        };
        leaf.map(|leaf| Leaf { fingerprint: leaf.fingerprint.clone(), renew_at: leaf.renew_at })
    }

    /// The certificates in force, by the addresses of the tasks that they are for.
    pub(crate) fn leaves(&self, state: &State, tasks: &[RegistryTask], names: &[HostPort]) -> BTreeMap<String, Leaf> {
        tasks.iter().filter_map(|task| Some((task.address.clone(), self.leaf(state, &task.status, names)?))).in_order()
    }

    /// Whether the registry's task serves with a certificate that is from here.
    pub(crate) fn is_served(&self, state: &State, status: &RegistryStatus, names: &[HostPort]) -> bool {
        let is_serving = status.phase == RegistryPhase::Serving;
        let Some(served) = status.leaf_fingerprint.as_deref().filter(|_| is_serving) else {
            return *self == Self::Nobody && is_serving;
        };
        match self {
            Self::Provided(_) => !state.has_given(served),
            Self::Nobody => false,
            Self::Own | Self::Cluster(_) => self.leaf(state, status, names).is_some_and(|leaf| leaf.fingerprint == served),
        }
    }

    /// The order that carries a certificate of the cluster's CA for the registry's request: the one in force, if that suits.
    pub(crate) async fn certify_by_cluster(
        &self,
        cluster: &Cluster,
        state: &mut State,
        status: &RegistryStatus,
        names: &[HostPort],
        now: i64,
    ) -> Result<SignedOrder, ControllerError> {
        let csr = state.request(status)?.to_string();
        if let Some(order) = state.leaf_order(status, names, Some(&self.id()), now).await? {
            return Ok(order);
        }
        let mut hosts: Vec<Host> = Vec::new();
        for name in names {
            if !hosts.contains(&name.host) {
                hosts.push(name.host.clone());
            }
        }
        let leaf = Certificate::parse_pem(&cluster.ca.sign(&csr, &hosts).await?)?;
        let issuer = Certificate::parse_pem(&cluster.ca.certificate().await?)?;
        let chain = leaf.pem() + &issuer.pem();
        Ok(state.keep_leaf(chain, names, self.id(), now).await?)
    }

    /// Tells one CA from the next.
    fn id(&self) -> String {
        match self {
            Self::Own | Self::Nobody => String::new(),
            Self::Provided(certificates) | Self::Cluster(certificates) => sha256_hex(certificates.concat().as_bytes()),
        }
    }
}

fn cluster_ca(setting: &Setting, options: &Options) -> Result<Vec<String>, ControllerError> {
    let path = cluster::cluster_ca_file(setting, options)
        .ok_or_else(|| ControllerError::ClusterCa(cluster::CLUSTER_CA.into(), "there is no such file".into()))?;
    let unreadable = |reason: String| ControllerError::ClusterCa(path.display().to_string(), reason);
    let text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    let certificates = Certificate::parse_bundle(&text).map_err(|error| unreadable(error.to_string()))?;
    let cas: Vec<String> = certificates.iter().filter(|certificate| certificate.is_ca()).map(Certificate::pem).collect();
    if cas.is_empty() { Err(unreadable("it holds no CA certificate".into())) } else { Ok(cas) }
}
