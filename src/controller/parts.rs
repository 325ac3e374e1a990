//! Parts of the report on what the service is made of: certificates, the replacement of the CA, the registry's tasks.

use serde::{Deserialize, Serialize};

use super::report::words;
use super::state::{Rotation, Stage};
use crate::certificates::{Certificate, CertificateError};
use crate::collection::size;
use crate::plan::RegistryTask;
use crate::protocol::Room;

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
    /// The room for images, where they lie in a directory.
    #[serde(default)]
    pub room: Option<Room>,
}

impl RegistryReport {
    /// The room for images in a sentence.
    pub fn room_in_words(&self) -> Option<String> {
        let Room { total_bytes, free_bytes, images_bytes } = self.room?;
        let images = images_bytes.map_or("not counted yet".into(), size);
        Some(format!("images: {images}; free: {} of {}", size(free_bytes), size(total_bytes)))
    }

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
            room: status.room,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::RegistryStatus;

    #[test]
    fn the_room_for_images_is_told_where_there_is_a_disk() {
        let said = |room| {
            let status = RegistryStatus { room, ..RegistryStatus::first("s", "t", "10.0.0.1") };
            RegistryReport::new(&RegistryTask { address: String::new(), status }).room_in_words()
        };
        let room = Room { total_bytes: 100_000_000_000, free_bytes: 40_100_000_000, images_bytes: None };
        assert_eq!(said(None), None);
        assert_eq!(said(Some(room)).unwrap(), "images: not counted yet; free: 40.1 GB of 100.0 GB");
        let counted = Room { images_bytes: Some(1_234_000_000), ..room };
        assert_eq!(said(Some(counted)).unwrap(), "images: 1.2 GB; free: 40.1 GB of 100.0 GB");
    }
}
