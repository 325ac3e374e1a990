//! Cosmos' error answers: `{type, message, data}`.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// An error as Cosmos words it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Error {
    status: StatusCode,
    kind: &'static str,
    message: String,
    data: Option<Value>,
}

impl Error {
    /// Status 400, as nearly all of them.
    pub(crate) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind, message: message.into(), data: None }
    }

    /// With the fields that a program can read.
    pub(crate) fn data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }

    /// With another status.
    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// An exception that Cosmos does not expect, for example a schema that is none.
    pub(crate) fn unhandled(message: impl Into<String>) -> Self {
        Self::new("unhandled_exception", message).status(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What the JSON parser said.
    pub(crate) fn parsing_message(&self) -> String {
        let message = self.data.as_ref().and_then(|data| data["parsingErrorMessage"].as_str());
        message.unwrap_or(&self.message).to_owned()
    }

    /// A 400 about a repository is a 500 once the repository is in the list: then it is not the caller's fault.
    pub(crate) fn of_listed_repository(mut self) -> Self {
        if self.status == StatusCode::BAD_REQUEST && self.kind == "UniverseClientHttpError" {
            self.status = StatusCode::INTERNAL_SERVER_ERROR;
            if let Some(data) = &mut self.data {
                data["status"] = json!(500);
            }
        }
        self
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut body = json!({ "type": self.kind, "message": self.message });
        if let Some(data) = self.data {
            body["data"] = data;
        }
        let media_type = "application/vnd.dcos.package.error+json;charset=utf-8;version=v1";
        (self.status, [(header::CONTENT_TYPE, media_type)], Body::from(body.to_string())).into_response()
    }
}
