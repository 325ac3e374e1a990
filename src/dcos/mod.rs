//! Clients of the cluster's own services. Each asks, parses what it needs and nothing more, and cuts off endless answers.

pub mod ca;
pub(crate) mod calls;
pub mod cosmos;
mod elements;
pub mod grants;
#[cfg(test)]
mod hostile;
pub mod login;
pub mod marathon;
pub mod mesos;
pub mod metronome;
pub mod secrets;
pub mod versions;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::redirect::Policy;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::secret::Secret;
use grants::{Door, Grant};
use login::Login;

/// No answer of a master or of Marathon is larger: 10,000 agents in `/slaves` are about 20 MB.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Marathon answers its own slow writes with 503 after 10 s; a little more than that.
const TIMEOUT: Duration = Duration::from_secs(15);
/// From a master that led to the one that leads, and once more if that has just changed.
const MOST_REDIRECTS: usize = 2;
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
    /// The service, or Admin Router before it, asks for a permission.
    #[error("{method} {url} answered {status}: {denial}")]
    Denied {
        /// HTTP method.
        method: &'static str,
        /// Full URL.
        url: String,
        /// 401 or 403.
        status: u16,
        /// Who lacks what.
        denial: Denial,
    },
    /// The login.
    #[error(
        "the login of the service account {account} at {url} was refused ({status}): is the account's public key the one that belongs to the secret's private key, and is the agent's clock right?"
    )]
    LoginRefused {
        /// Login endpoint.
        url: String,
        /// HTTP status.
        status: u16,
        /// Name of the account.
        account: String,
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

/// Who lacks which permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Service account; none if the call had no token.
    account: Option<String>,
    /// All that the call needs; one of them is missing.
    grants: Vec<Grant>,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(account) = &self.account else {
            return f.write_str("this cluster asks for a login; give the name of a secret with a service account's credential in service.service_account_secret");
        };
        write!(f, "the service account {account} lacks a permission; give it with")?;
        for (index, grant) in self.grants.iter().enumerate() {
            write!(f, "{} {}", if index == 0 { ":" } else { " and" }, grant.command(account))?;
        }
        Ok(())
    }
}

/// An HTTP client for one base URL.
#[derive(Debug, Clone)]
pub struct Api {
    client: reqwest::Client,
    base: String,
    door: Door,
    login: Option<Arc<Login>>,
    calls: Option<Arc<calls::Calls>>,
}

impl Api {
    /// A client for `base`, for example `http://leader.mesos:5050`.
    pub fn new(client: reqwest::Client, base: &str) -> Self {
        Self { client, base: base.trim_end_matches('/').to_string(), door: Door::Own, login: None, calls: None }
    }

    /// The same for a service of the cluster, entered with a service account where there is one.
    #[must_use]
    pub fn entered(self, door: Door, login: Option<Arc<Login>>) -> Self {
        Self { door, login, ..self }
    }

    /// The same client for what lies under a path.
    #[must_use]
    pub(crate) fn under(&self, path: &str) -> Self {
        Self { base: format!("{}{path}", self.base), ..self.clone() }
    }

    /// An answer as it is.
    pub(crate) async fn get_text(&self, path: &str) -> Result<String, ApiError> {
        self.text("GET", &format!("{}{path}", self.base), None).await
    }

    /// The same, and its calls are counted.
    #[must_use]
    pub(crate) fn counted(self, calls: &Arc<calls::Calls>) -> Self {
        Self { calls: Some(calls.clone()), ..self }
    }

    /// A client for tasks' own addresses. Whoever answers there sends it nowhere else.
    ///
    /// # Errors
    /// When the TLS set-up fails.
    pub fn client() -> Result<reqwest::Client, reqwest::Error> {
        Self::builder().redirect(Policy::none()).build()
    }

    /// The same, and it keeps no connection open.
    ///
    /// # Errors
    /// When the TLS set-up fails.
    pub(crate) fn fleeting_client() -> Result<reqwest::Client, reqwest::Error> {
        Self::builder().redirect(Policy::none()).pool_max_idle_per_host(0).build()
    }

    /// What all clients have in common, to be added to: names by hickory, because a static binary has no NSS; no proxies.
    #[allow(clippy::disallowed_methods, reason = "this is the place for it")]
    pub fn builder() -> reqwest::ClientBuilder {
        crate::tls::for_clients();
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
        crate::json::of_text(text).map_err(|error| ApiError::Unexpected { url, reason: error.to_string() })
    }

    /// Hands the objects in the lists of an answer to `each`, one by one as they come, with the name of the list's field. It must have
    /// the field `list`, or be a list where that is empty.
    pub(crate) async fn get_each(
        &self,
        path: &str,
        list: &'static str,
        mut each: impl FnMut(&str, &[u8]) -> serde_json::Result<()>,
    ) -> Result<(), ApiError> {
        let (url, started) = (format!("{}{path}", self.base), Instant::now());
        let result = self.elements(&url, list, &mut each).await;
        if let Some(calls) = &self.calls {
            calls.add(self.door, calls::outcome(&result), started.elapsed());
        }
        result
    }

    async fn elements(
        &self,
        url: &str,
        list: &'static str,
        each: &mut impl FnMut(&str, &[u8]) -> serde_json::Result<()>,
    ) -> Result<(), ApiError> {
        let mut response = self.send("GET", url, None, TIMEOUT).await?;
        let status = response.status();
        let unreachable =
            |error: reqwest::Error| ApiError::Unreachable { method: "GET", url: url.into(), reason: chain(&error.without_url()) };
        let unexpected = |reason: String| ApiError::Unexpected { url: url.into(), reason };
        if !status.is_success() {
            let text = read_to_end(response, MAX_ANSWER_BYTES).await.map_err(|end| match end {
                End::Broken(error) => unreachable(error),
                End::TooMuch(bytes) => unexpected(format!("more than {bytes} bytes")),
            })?;
            return Err(self.refused("GET", url.into(), None, status.as_u16(), &text));
        }
        let (mut elements, mut bytes) = (elements::Elements::new(list), 0);
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            bytes += chunk.len();
            if bytes > MAX_ANSWER_BYTES {
                return Err(unexpected(format!("more than {MAX_ANSWER_BYTES} bytes")));
            }
            elements.feed(&chunk, each).map_err(|error| unexpected(error.to_string()))?;
        }
        if elements.is_whole() { Ok(()) } else { Err(unexpected("it has no end, or is not the list that it should be".into())) }
    }

    /// Opens an answer that does not end.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Result<reqwest::Response, ApiError> {
        let url = format!("{}{path}", self.base);
        let answer = self.send("POST", &url, Some(body), STREAM_TIMEOUT).await?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(self.refused("POST", url, None, status.as_u16(), "no stream")),
        }
    }

    pub(crate) async fn next_chunk(&self, stream: &mut reqwest::Response) -> Result<Option<axum::body::Bytes>, ApiError> {
        stream.chunk().await.map_err(|error| self.broken("POST", &error.without_url()))
    }

    fn broken(&self, method: &'static str, error: &dyn std::error::Error) -> ApiError {
        ApiError::Unreachable { method, url: self.base.clone(), reason: chain(error) }
    }

    /// Sends a request; a token that is not taken any more is renewed once.
    async fn send(&self, method: &'static str, url: &str, body: Option<&Value>, timeout: Duration) -> Result<reqwest::Response, ApiError> {
        let token = self.token(None).await?;
        let response = self.send_once(method, url, body, timeout, token.as_ref()).await?;
        if token.is_none() || response.status() != reqwest::StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let renewed = self.token(token.as_ref()).await?;
        self.send_once(method, url, body, timeout, renewed.as_ref()).await
    }

    async fn token(&self, refused: Option<&Secret<String>>) -> Result<Option<Secret<String>>, ApiError> {
        match &self.login {
            Some(login) => login.token(refused).await.map(Some),
            None => Ok(None),
        }
    }

    async fn send_once(
        &self,
        method: &'static str,
        url: &str,
        body: Option<&Value>,
        timeout: Duration,
        token: Option<&Secret<String>>,
    ) -> Result<reqwest::Response, ApiError> {
        let unreachable = |error: &dyn std::error::Error| ApiError::Unreachable { method, url: url.into(), reason: chain(error) };
        let http_method = method.parse::<reqwest::Method>().map_err(|error| unreachable(&error))?;
        let mut request = self.client.request(http_method, url).header("Accept", "application/json").timeout(timeout);
        if let Some(header) = token.and_then(authorization) {
            request = request.header(reqwest::header::AUTHORIZATION, header);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.map_err(|error| unreachable(&error.without_url()))
    }

    async fn text(&self, method: &'static str, url: &str, body: Option<&Value>) -> Result<String, ApiError> {
        let started = Instant::now();
        let result = self.answer(method, url, body).await;
        if let Some(calls) = &self.calls {
            calls.add(self.door, calls::outcome(&result), started.elapsed());
        }
        result
    }

    async fn answer(&self, method: &'static str, url: &str, body: Option<&Value>) -> Result<String, ApiError> {
        let unreachable = |error: &dyn std::error::Error| ApiError::Unreachable { method, url: url.into(), reason: chain(error) };
        let response = self.send(method, url, body, TIMEOUT).await?;
        let status = response.status();
        let text = read_to_end(response, MAX_ANSWER_BYTES).await.map_err(|end| match end {
            End::Broken(error) => unreachable(&error.without_url()),
            End::TooMuch(bytes) => ApiError::Unexpected { url: url.into(), reason: format!("more than {bytes} bytes") },
        })?;
        if status.is_success() { Ok(text) } else { Err(self.refused(method, url.into(), body, status.as_u16(), &text)) }
    }

    /// What a refusal means, and what helps.
    fn refused(&self, method: &'static str, url: String, body: Option<&Value>, status: u16, text: &str) -> ApiError {
        match status {
            401 | 403 if self.door != Door::Own => {
                // What is created is named in the body, not in the path.
                let id = body.filter(|_| method == "POST").and_then(|body| body["id"].as_str());
                let path = url.strip_prefix(&self.base).unwrap_or_default();
                let path = id.map_or_else(|| path.to_string(), |id| format!("{path}/{id}"));
                let grants = grants::for_call(self.door, &path);
                ApiError::Denied {
                    method,
                    url,
                    status,
                    denial: Denial { account: self.login.as_ref().map(|l| l.uid().to_string()), grants },
                }
            }
            _ => ApiError::Refused { method, url, status, message: text.chars().take(500).collect() },
        }
    }
}

/// A master that does not lead names the one that does, which listens on the same port. Nothing else of the cluster sends clients away.
pub(crate) fn to_the_leader() -> Policy {
    Policy::custom(|attempt| {
        let same = |from: &reqwest::Url| {
            let to = attempt.url();
            (from.scheme(), from.port_or_known_default(), from.path()) == (to.scheme(), to.port_or_known_default(), to.path())
        };
        let follows = attempt.previous().len() <= MOST_REDIRECTS && attempt.previous().first().is_some_and(same);
        if follows { attempt.follow() } else { attempt.stop() }
    })
}

/// For fuzzing: what every other service of the cluster could answer.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_anything(answer: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    for status in [200, 401, 409, 500] {
        let _ = cosmos::judge(status, &text, "").map_err(|error| error.to_string());
    }
    let secrets = crate::json::of_bytes::<Value>(answer).ok().and_then(|value| secrets::text_in(&value));
    let secrets = secrets.into_iter().chain(login::token_in(&text)).chain([Secret::new(text.to_string())]);
    for secret in secrets {
        let _ = authorization(&secret);
        if let Err(error) = login::Credential::parse(&secret) {
            assert!(error.to_string().len() < 400, "{error}");
        }
    }
}

/// Why an answer was not read to its end.
pub(crate) enum End {
    /// The connection.
    Broken(reqwest::Error),
    /// It has more bytes than this.
    TooMuch(usize),
}

/// Reads an answer of at most so many bytes.
pub(crate) async fn read_to_end(mut response: reqwest::Response, most: usize) -> Result<String, End> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(End::Broken)? {
        if bytes.len() + chunk.len() > most {
            return Err(End::TooMuch(most));
        }
        bytes.extend_from_slice(&chunk);
    }
    // Without a second copy of what may be large.
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

fn authorization(token: &Secret<String>) -> Option<reqwest::header::HeaderValue> {
    let mut header: reqwest::header::HeaderValue = format!("token={}", token.expose()).parse().ok()?;
    header.set_sensitive(true);
    Some(header)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::{get, post};
    use serde_json::json;

    use super::*;
    use login::Credential;

    /// A cluster whose tokens are numbers; only the newest counts.
    async fn cluster(status: StatusCode) -> (String, Arc<AtomicU32>) {
        let newest = Arc::new(AtomicU32::new(0));
        let log_in = async |State(newest): State<Arc<AtomicU32>>| {
            axum::Json(json!({ "token": (newest.fetch_add(1, Ordering::SeqCst) + 1).to_string() }))
        };
        let thing = async move |State(newest): State<Arc<AtomicU32>>, headers: HeaderMap| {
            let expected = format!("token={}", newest.load(Ordering::SeqCst));
            match headers.get("authorization").is_some_and(|token| token.as_bytes() == expected.as_bytes()) {
                true => (status, "{}"),
                false => (StatusCode::UNAUTHORIZED, ""),
            }
        };
        let router = Router::new().route("/login", post(log_in)).fallback(get(thing)).with_state(newest.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, newest)
    }

    fn entered(url: &str, door: Door) -> Api {
        let key = include_str!("../../tests/fixtures/service-account/private-key.pem");
        let login_url = format!("{url}/login");
        let stored = json!({ "scheme": "RS256", "uid": "registry-account", "private_key": key, "login_endpoint": login_url });
        let credential = Credential::parse(&Secret::new(stored.to_string())).unwrap();
        let client = Api::client().unwrap();
        Api::new(client.clone(), url).entered(door, Some(Arc::new(Login::new(credential, client))))
    }

    #[tokio::test]
    async fn a_token_is_kept_until_it_is_refused_and_then_renewed_once() {
        let (url, newest) = cluster(StatusCode::OK).await;
        let api = entered(&url, Door::Marathon);
        for _ in 0..3 {
            api.get::<Value>("/v2/info").await.unwrap();
        }
        assert_eq!(newest.load(Ordering::SeqCst), 1);
        // The token expires.
        newest.store(5, Ordering::SeqCst);
        api.get::<Value>("/v2/info").await.unwrap();
        assert_eq!(newest.load(Ordering::SeqCst), 6);
    }

    #[tokio::test]
    async fn a_missing_permission_is_named_with_the_command_that_gives_it() {
        let (url, _) = cluster(StatusCode::FORBIDDEN).await;
        let refused = entered(&url, Door::Secrets).get::<Value>("/secret/default/private-registry/ca").await.unwrap_err();
        let expected = "dcos security org users grant registry-account dcos:secrets:default:/private-registry/ca full";
        assert!(refused.to_string().contains(expected), "{refused}");
    }

    #[tokio::test]
    async fn a_cluster_that_wants_a_login_is_told_apart_from_one_that_denies() {
        let (url, _) = cluster(StatusCode::OK).await;
        let api = Api::new(Api::client().unwrap(), &url).entered(Door::Marathon, None);
        let refused = api.get::<Value>("/v2/info").await.unwrap_err();
        assert!(refused.to_string().contains("service.service_account_secret"), "{refused}");
    }
}
