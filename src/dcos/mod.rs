//! Clients of the cluster's own services. Each asks, parses what it needs and nothing more, and cuts off endless answers.

pub mod marathon;
pub mod mesos;
pub mod metronome;
pub mod versions;

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// No answer of a master or of Marathon is larger: 10,000 agents in `/slaves` are about 20 MB.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Marathon answers its own slow writes with 503 after 10 s; a little more than that.
const TIMEOUT: Duration = Duration::from_secs(15);
/// A stream is opened anew after this long, in case the other side has gone without a word (Mesos before 1.5 sends no heartbeat).
const STREAM_TIMEOUT: Duration = Duration::from_secs(600);

/// What can go wrong when asking a service of the cluster.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No connection, a time-out, or a broken answer.
    #[error("{method} {url} failed: {reason}")]
    Unreachable {
        /// HTTP method.
        method: &'static str,
        /// Full URL.
        url: String,
        /// The chain of causes.
        reason: String,
    },
    /// The service refused.
    #[error("{method} {url} answered {status}: {message}")]
    Refused {
        /// HTTP method.
        method: &'static str,
        /// Full URL.
        url: String,
        /// HTTP status.
        status: u16,
        /// The service's own message, shortened.
        message: String,
    },
    /// The answer does not have the documented form.
    #[error("{url} answered something unexpected: {reason}")]
    Unexpected {
        /// Full URL.
        url: String,
        /// What does not fit.
        reason: String,
    },
}

impl ApiError {
    /// Whether the service said that the thing does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether a deployment holds the lock, or the thing exists already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }
}

/// An HTTP client for one base URL.
#[derive(Debug, Clone)]
pub struct Api {
    client: reqwest::Client,
    base: String,
}

impl Api {
    /// A client for `base`, for example `http://leader.mesos:5050`.
    pub fn new(client: reqwest::Client, base: &str) -> Self {
        Self { client, base: base.trim_end_matches('/').to_string() }
    }

    /// The HTTP client that all services share: names by hickory, because a static binary has no NSS; no proxies.
    ///
    /// # Errors
    /// When the TLS set-up fails.
    pub fn client() -> Result<reqwest::Client, reqwest::Error> {
        Self::builder().build()
    }

    /// The same, to be added to.
    pub fn builder() -> reqwest::ClientBuilder {
        reqwest::Client::builder().no_proxy().timeout(TIMEOUT).connect_timeout(Duration::from_secs(5)).hickory_dns(true)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call("GET", path, None).await
    }

    pub(crate) async fn call<T: DeserializeOwned>(&self, method: &'static str, path: &str, body: Option<&Value>) -> Result<T, ApiError> {
        let url = format!("{}{path}", self.base);
        let text = self.text(method, &url, body).await?;
        // Some writes answer with nothing.
        let text = if text.is_empty() { "null" } else { &text };
        serde_json::from_str(text).map_err(|error| ApiError::Unexpected { url, reason: error.to_string() })
    }

    /// Opens an answer that does not end.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Result<reqwest::Response, ApiError> {
        let url = format!("{}{path}", self.base);
        let request = self.client.post(&url).header("Accept", "application/json").timeout(STREAM_TIMEOUT).json(body);
        let answer = request.send().await.map_err(|error| self.broken("POST", &error.without_url()))?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(ApiError::Refused { method: "POST", url, status: status.as_u16(), message: "no stream".into() }),
        }
    }

    pub(crate) async fn next_chunk(&self, stream: &mut reqwest::Response) -> Result<Option<axum::body::Bytes>, ApiError> {
        stream.chunk().await.map_err(|error| self.broken("POST", &error.without_url()))
    }

    fn broken(&self, method: &'static str, error: &dyn std::error::Error) -> ApiError {
        ApiError::Unreachable { method, url: self.base.clone(), reason: chain(error) }
    }

    async fn text(&self, method: &'static str, url: &str, body: Option<&Value>) -> Result<String, ApiError> {
        let unreachable = |error: &dyn std::error::Error| ApiError::Unreachable { method, url: url.into(), reason: chain(error) };
        let http_method = method.parse().map_err(|error: axum::http::method::InvalidMethod| unreachable(&error))?;
        let mut request = self.client.request(http_method, url).header("Accept", "application/json");
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(|error| unreachable(&error.without_url()))?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error.without_url()))? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(ApiError::Unexpected { url: url.into(), reason: format!("more than {MAX_ANSWER_BYTES} bytes") });
            }
            bytes.extend_from_slice(&chunk);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        Err(ApiError::Refused { method, url: url.into(), status: status.as_u16(), message: text.chars().take(500).collect() })
    }
}

/// An error and all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
