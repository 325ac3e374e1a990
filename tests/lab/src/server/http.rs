//! What the hand-written routes share.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State as Extracted;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use serde_json::Value;

use super::SharedState;

/// A request, read whole.
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Path without the query, percent-decoded, without a trailing slash.
    pub(crate) path: String,
    /// Decoded pairs in order.
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Request {
    pub(crate) fn new(method: Method, uri: &Uri, headers: HeaderMap, body: Bytes) -> Self {
        let path = decode(uri.path(), false);
        let path = if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path };
        let query = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(key, true), decode(value, true))
            })
            .collect();
        Self { method, path, query, headers, body }
    }

    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn params(&self, name: &str) -> impl Iterator<Item = &str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.param(name) == Some("true")
    }

    /// Whether `Accept` allows the media type.
    pub(crate) fn accepts(&self, media_type: &str) -> bool {
        let Some(accept) = self.headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()) else { return true };
        let family = media_type.split('/').next().unwrap_or_default();
        accept
            .split(',')
            .map(|part| part.split(';').next().unwrap_or_default().trim())
            .any(|part| part == "*/*" || part == media_type || part.strip_suffix("/*") == Some(family))
    }

    /// Whether the body is declared as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.headers
            .get(header::CONTENT_TYPE)
            .and_then(|t| t.to_str().ok())
            .is_some_and(|t| t.split(';').next().unwrap_or_default().trim().ends_with("json"))
    }
}

/// Percent-decodes; `plus` also turns `+` into a space.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        let escaped = text.get(index + 1..index + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, escaped) {
            (b'%', Some(value)) => {
                decoded.push(value);
                index += 2;
            }
            (b'+', _) if plus => decoded.push(b' '),
            _ => decoded.push(byte),
        }
        index += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// A response under construction.
pub(crate) struct Answer {
    status: StatusCode,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Answer {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: vec![("content-type", "application/json".to_owned())],
            body: body.to_string(),
        }
    }

    pub(crate) fn text(status: u16, content_type: &str, body: &str) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: vec![("content-type", content_type.to_owned())],
            body: body.to_owned(),
        }
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self { status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), headers: Vec::new(), body: String::new() }
    }

    /// `{"message": …}`.
    pub(crate) fn message(status: u16, message: impl Into<String>) -> Self {
        Self::json(status, &serde_json::json!({ "message": message.into() }))
    }

    pub(crate) fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// With another media type in place of JSON's, or of none.
    pub(crate) fn with_media_type(mut self, media_type: &str) -> Self {
        self.headers.retain(|(name, value)| *name != "content-type" || value != "application/json");
        if !self.headers.iter().any(|(name, _)| *name == "content-type") {
            self.headers.push(("content-type", media_type.to_owned()));
        }
        self
    }

    pub(crate) fn body(&self) -> &str {
        &self.body
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Header names are given in lower case; HTTP does not care.
    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            if let Ok(value) = value.parse() {
                response.headers_mut().append(name, value);
            }
        }
        response
    }
}

/// A server whose answers may take their time: machines are started, files written.
pub(crate) fn serve(state: SharedState, answer: fn(&SharedState, &Request) -> Answer) -> Router {
    let handle = move |Extracted(shared): Extracted<SharedState>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes| async move {
        let request = Request::new(method, &uri, headers, body);
        let answer = tokio::task::spawn_blocking(move || answer(&shared, &request)).await;
        answer.unwrap_or_else(|error| Answer::message(500, error.to_string())).into_response()
    };
    Router::new().fallback(handle).with_state(state)
}

/// What the lab does not know. The journal finds it by its status.
pub(crate) fn unknown_route(request: &Request) -> Answer {
    Answer::message(501, format!("the lab does not know {} {}", request.method, request.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_may_repeat() {
        let uri: Uri = "/v2/apps/?label=HAPROXY_GROUP%3D%3Dexternal&embed=a&embed=b+c".parse().unwrap();
        let request = Request::new(Method::GET, &uri, HeaderMap::new(), Bytes::new());
        assert_eq!(request.path, "/v2/apps");
        assert_eq!(request.param("label"), Some("HAPROXY_GROUP==external"));
        assert_eq!(request.params("embed").collect::<Vec<_>>(), ["a", "b c"]);
    }
}
