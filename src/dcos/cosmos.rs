//! Cosmos, DC/OS' package manager: only to install a package that another service of the cluster is.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Api, chain, read_to_end};

/// What Cosmos wants a request for an installation to be, and what it answers.
const REQUEST: &str = "application/vnd.dcos.package.install-request+json;charset=utf-8;version=v1";
const RESPONSE: &str = "application/vnd.dcos.package.install-response+json;charset=utf-8;version=v2";
/// It reads all its repositories first; the Universe takes it half a minute.
const TIMEOUT: Duration = Duration::from_secs(120);
/// No answer is longer: it may hold a package's whole definition.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Client of Cosmos, at Admin Router. It has no token: see [`crate::exposure`].
#[derive(Debug, Clone)]
pub struct Cosmos(pub Api);

/// Why a package was not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CosmosError {
    /// No connection or a broken answer.
    #[error("{0} does not answer: {1}")]
    Unreachable(String, String),
    /// Admin Router lets in only who has logged in, and services of open DC/OS have no login.
    #[error("Admin Router at {0} asks for a login, which a service cannot have on open DC/OS")]
    LoginWanted(String),
    /// Its own words.
    #[error("Cosmos says: {0}")]
    Refused(String),
}

impl Cosmos {
    /// Installs the newest version of a package with its defaults. One that is there already is as good.
    ///
    /// # Errors
    /// See [`CosmosError`].
    pub async fn install(&self, package: &str) -> Result<(), CosmosError> {
        self.install_within(package, TIMEOUT).await
    }

    pub(super) async fn install_within(&self, package: &str, patience: Duration) -> Result<(), CosmosError> {
        let (api, url) = (&self.0, format!("{}/package/install", self.0.base));
        let unreachable = |reason: String| CosmosError::Unreachable(url.clone(), reason);
        let request = api.client.post(&url).timeout(patience);
        let request = request.header("Content-Type", REQUEST).header("Accept", RESPONSE).json(&json!({ "packageName": package }));
        let response = request.send().await.map_err(|error| unreachable(chain(&error.without_url())))?;
        let status = response.status().as_u16();
        let text =
            read_to_end(response, MAX_ANSWER_BYTES).await.map_err(|_| unreachable("its answer breaks off, or is too long".into()))?;
        judge(status, &text, &api.base)
    }
}

/// What an answer means.
pub(super) fn judge(status: u16, text: &str, base: &str) -> Result<(), CosmosError> {
    let answer: Value = crate::json::of_text(text).unwrap_or_default();
    match status {
        200..=299 if answer["packageName"].is_string() => Ok(()),
        409 if answer["type"] == "PackageAlreadyInstalled" => Ok(()),
        401 | 403 => Err(CosmosError::LoginWanted(base.to_string())),
        _ => Err(CosmosError::Refused(answer["message"].as_str().map_or_else(|| format!("status {status}"), String::from))),
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;

    use super::*;

    /// What an installation says when Admin Router answers so.
    async fn installed(status: u16, body: Value) -> Result<(), CosmosError> {
        let answer = async move |headers: HeaderMap, axum::Json(sent): axum::Json<Value>| {
            assert_eq!((headers["content-type"].to_str().unwrap(), headers["accept"].to_str().unwrap()), (REQUEST, RESPONSE));
            assert_eq!(sent, json!({ "packageName": "marathon-lb" }));
            (StatusCode::from_u16(status).unwrap(), axum::Json(body))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().route("/package/install", post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Cosmos(Api::new(Api::client().unwrap(), &url)).install("marathon-lb").await
    }

    /// Answer of a recorded call of the real Cosmos.
    fn recorded(text: &str) -> (u16, Value) {
        let recorded: Value = crate::json::of_text(text).unwrap();
        let status = recorded["response"]["status"].as_u64().unwrap();
        (u16::try_from(status).unwrap(), recorded["response"]["body"].clone())
    }

    #[tokio::test]
    async fn a_package_that_is_there_is_as_good_as_installed_and_a_refusal_is_told_in_cosmos_words() {
        let of = async |text| {
            let (status, body) = recorded(text);
            installed(status, body).await
        };
        assert_eq!(of(include_str!("../../tests/fixtures/cosmos/77-install-tricky.json")).await, Ok(()));
        assert_eq!(of(include_str!("../../tests/fixtures/cosmos/78-install-tricky-again.json")).await, Ok(()));
        let missing = of(include_str!("../../tests/fixtures/cosmos/37-describe-missing.json")).await.unwrap_err().to_string();
        assert!(missing.starts_with("Cosmos says: Package [") && missing.ends_with("not found"), "{missing}");
        assert!(installed(401, json!({})).await.unwrap_err().to_string().contains("asks for a login"));
    }
}
