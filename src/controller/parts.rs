//! Parts of the report on what the service is made of: certificates, the replacement of the CA, the registry's tasks.

use serde::{Deserialize, Serialize};

use super::report::words;
use super::state::{Rotation, Stage};
use crate::certificates::{Certificate, CertificateError};
use crate::plan::RegistryTask;

/// A CA certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateReport {
    /// Its name; where the service has made it, with the number of its generation.
    pub subject: String,
    /// SHA-256 (hex) of its DER.
    pub fingerprint: String,
    /// Unix time at which it ends.
    pub not_after: i64,
}

impl CertificateReport {
    pub(super) fn of(pems: &[String]) -> Result<Vec<Self>, CertificateError> {
        let read = |pem: &String| {
            let certificate = Certificate::parse_pem(pem)?;
            let (subject, fingerprint) = (certificate.subject().to_string(), certificate.fingerprint());
            Ok(Self { subject, fingerprint, not_after: certificate.not_after() })
        };
        pems.iter().map(read).collect()
    }
}

/// The replacement of the CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationReport {
    /// Whether the next CA signs already; before, it is only made known.
    pub switched: bool,
    /// Why.
    pub reason: String,
    /// Unix time at which this step began.
    pub since: i64,
}

impl RotationReport {
    pub(super) fn new(rotation: &Rotation) -> Self {
        Self { switched: rotation.stage == Stage::Switched, reason: rotation.reason.to_string(), since: rotation.since }
    }
}

/// A task of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryReport {
    /// Host name of the agent.
    pub host: String,
    /// `host:port` where it answers `/status` and `/metrics`, inside the cluster.
    #[serde(default)]
    pub status_address: String,
    /// How it stands, in a few words.
    pub phase: String,
    /// Version of its program, as it says itself.
    pub version: Option<String>,
    /// How often its program was started in this task.
    pub starts: u64,
    /// Names that its certificate is for.
    pub names: Vec<String>,
    /// SHA-256 (hex) of the certificate's DER; none over plain HTTP.
    pub fingerprint: Option<String>,
    /// Unix time at which the certificate ends.
    pub not_after: Option<i64>,
}

impl RegistryReport {
    pub(super) fn new(task: &RegistryTask) -> Self {
        let status = &task.status;
        Self {
            host: status.host.clone(),
            status_address: task.address.clone(),
            phase: words(&status.phase).into(),
            version: status.version.clone(),
            starts: status.starts,
            names: status.leaf_names.clone(),
            fingerprint: status.leaf_fingerprint.clone(),
            not_after: status.leaf_not_after,
        }
    }
}
