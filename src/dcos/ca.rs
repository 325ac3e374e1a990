//! The certificate authority of DC/OS Enterprise (`/ca/api/v2`), which is a cfssl.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Api, ApiError};
use crate::names::Host;

/// Client of the cluster's CA.
#[derive(Debug, Clone)]
pub struct Ca(pub Api);

/// What cfssl wraps around every answer.
#[derive(Deserialize)]
struct Envelope {
    success: bool,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    errors: Value,
}

#[derive(Deserialize)]
struct Certified {
    certificate: String,
}

impl Ca {
    /// Has a request signed for these hosts: the leaf, PEM.
    ///
    /// # Errors
    /// When the CA does not answer, or refuses.
    pub async fn sign(&self, csr: &str, hosts: &[Host]) -> Result<String, ApiError> {
        let hosts: Vec<String> = hosts.iter().map(Host::to_string).collect();
        self.post::<Certified>("/sign", &json!({ "certificate_request": csr, "hosts": hosts })).await.map(|signed| signed.certificate)
    }

    /// The certificate that it signs with, PEM.
    ///
    /// # Errors
    /// As [`Ca::sign`].
    pub async fn certificate(&self) -> Result<String, ApiError> {
        self.post::<Certified>("/info", &json!({ "profile": "" })).await.map(|info| info.certificate)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, ApiError> {
        let answer: Envelope = self.0.call("POST", path, Some(body)).await?;
        answer.opened().map_err(|reason| ApiError::Unexpected { url: path.into(), reason })
    }
}

impl Envelope {
    fn opened<T: DeserializeOwned>(self) -> Result<T, String> {
        if !self.success {
            return Err(format!("the cluster's CA refuses: {}", self.errors));
        }
        crate::json::of_value(&self.result).map_err(|error| error.to_string())
    }
}

/// For fuzzing: reads whatever the CA could answer.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_anything(answer: &[u8]) -> Option<String> {
    crate::json::of_bytes::<Envelope>(answer).ok()?.opened::<Certified>().ok().map(|certified| certified.certificate)
}
