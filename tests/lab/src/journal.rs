//! Every exchange of the servers, as JSON lines: what the conformance test holds against the recordings.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Bodies beyond so many bytes are passed on unseen: neither artifacts nor streams belong into a journal.
const LIMIT: u64 = 256 * 1024;

/// Below these, bodies are passwords, tokens and secrets: they stay out of a file that outlives the lab.
const SECRETS: [&str; 2] = ["/acs/api/v1/auth/", "/secrets/v1/secret/"];

/// A request and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// Which server: `marathon`, `mesos`, `metronome`, `admin_router`, `cosmos`.
    pub service: String,
    /// `GET` and so on.
    pub method: String,
    /// As it was sent, still escaped.
    pub path: String,
    /// Without the question mark; empty when absent.
    #[serde(default)]
    pub query: String,
    /// `Content-Type` of the request.
    #[serde(default)]
    pub request_type: Option<String>,
    /// `Accept` of the request.
    #[serde(default)]
    pub accept: Option<String>,
    /// Of the request.
    #[serde(default)]
    pub request_body: Content,
    /// HTTP status.
    pub status: u16,
    /// `Content-Type` of the answer.
    #[serde(default)]
    pub response_type: Option<String>,
    /// Of the answer.
    #[serde(default)]
    pub response_body: Content,
    /// No server of the lab knows this call: it was answered with 501.
    #[serde(default)]
    pub unknown: bool,
}

/// A body.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// No byte.
    #[default]
    Empty,
    /// It parses as JSON.
    Json(Value),
    /// UTF-8 that is not JSON.
    Text(String),
    /// A stream, a secret, longer than the journal takes, or not UTF-8.
    Unseen,
}

impl Content {
    /// Reads a body: JSON when it parses as such, whatever its media type says.
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Empty;
        }
        match (serde_json::from_slice(bytes), std::str::from_utf8(bytes)) {
            (Ok(value), _) => Self::Json(value),
            (_, Ok(text)) => Self::Text(text.to_owned()),
            _ => Self::Unseen,
        }
    }
}

/// The fallback of the lab's servers: 501, which the journal flags, so that the test fails which caused it.
pub async fn unknown() -> Response {
    (StatusCode::NOT_IMPLEMENTED, axum::Json(json!({ "message": "the lab does not know this call" }))).into_response()
}

struct Journal {
    service: &'static str,
    file: Mutex<File>,
}

/// Has `router` write what it is asked and answers to `file`, one JSON object per line.
///
/// Bodies that are streams or beyond 256 KiB are noted as such and never held back.
///
/// # Errors
/// The file cannot be opened.
pub fn wrap(router: Router, service: &'static str, file: &Path) -> io::Result<Router> {
    let file = Mutex::new(OpenOptions::new().create(true).append(true).open(file)?);
    Ok(router.layer(from_fn_with_state(Arc::new(Journal { service, file }), record)))
}

/// Reads a journal; a half-written last line is left out.
///
/// # Errors
/// The file is there but cannot be read.
pub fn read(file: &PathBuf) -> io::Result<Vec<Exchange>> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

async fn record(State(journal): State<Arc<Journal>>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let (request_body, body) = look(body).await;
    let is_secret = SECRETS.iter().any(|prefix| head.uri.path().starts_with(prefix));
    let mut exchange = Exchange {
        service: journal.service.to_owned(),
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        request_type: text(&head.headers, header::CONTENT_TYPE),
        accept: text(&head.headers, header::ACCEPT),
        request_body: if is_secret { Content::Unseen } else { request_body },
        status: 0,
        response_type: None,
        response_body: Content::Empty,
        unknown: false,
    };
    let response = next.run(Request::from_parts(head, body)).await;
    let (head, body) = response.into_parts();
    let (response_body, body) = look(body).await;
    exchange.status = head.status.as_u16();
    exchange.response_type = text(&head.headers, header::CONTENT_TYPE);
    exchange.response_body = if is_secret { Content::Unseen } else { response_body };
    exchange.unknown = head.status == StatusCode::NOT_IMPLEMENTED;
    journal.write(&exchange);
    Response::from_parts(head, body)
}

/// A body whose length is known and small is read and put back; any other goes through untouched.
async fn look(body: Body) -> (Content, Body) {
    match body.size_hint().exact() {
        Some(0) => (Content::Empty, body),
        Some(length) if length <= LIMIT => match to_bytes(body, usize::MAX).await {
            Ok(bytes) => (Content::of(&bytes), Body::from(bytes)),
            // The peer went away within its body: what follows sees no body either.
            Err(_) => (Content::Unseen, Body::empty()),
        },
        _ => (Content::Unseen, body),
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

impl Journal {
    fn write(&self, exchange: &Exchange) {
        let line = match serde_json::to_string(exchange) {
            Ok(line) => line + "\n",
            Err(error) => return tracing::error!(%error, "exchange not journalled"),
        };
        // One write per line, so that lines of several servers in one file do not mix.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::error!(%error, "exchange not journalled");
        }
    }
}
