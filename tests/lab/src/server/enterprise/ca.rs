//! The certificate authority's API, below `/ca/api/v2` of Admin Router: a cfssl, of which signing and its own certificate are here.

use serde_json::{Value, json};

use super::certificates;
use crate::server::SharedState;
use crate::server::http::{Answer, Request, unknown_route};

/// What comes before every path of the API.
pub(crate) const PREFIX: &str = "/ca/api/v2";

/// Answers a call whose caller may use the API.
pub(crate) fn answer(shared: &SharedState, request: &Request) -> Answer {
    let path = request.path.strip_prefix(PREFIX).unwrap_or_default();
    let answered = match (request.method.as_str(), path) {
        ("POST", "/sign") => body(request).and_then(|body| sign(shared, &body)),
        ("POST", "/info") => body(request).and_then(|_| info(shared)),
        _ => return unknown_route(request),
    };
    match answered {
        Ok(result) => Answer::json(200, &json!({ "success": true, "result": result, "errors": [], "messages": [] })),
        Err((code, message)) => {
            let errors = json!([{ "code": code, "message": message }]);
            Answer::json(400, &json!({ "success": false, "result": null, "errors": errors, "messages": [] }))
        }
    }
}

/// Code and message of cfssl.
type Fault = (u16, String);

fn body(request: &Request) -> Result<Value, Fault> {
    serde_json::from_slice(&request.body).map_err(|_| (400, "Unable to parse sign request".to_owned()))
}

/// `hosts` take the place of what the request asks for; without any, that counts.
fn sign(shared: &SharedState, body: &Value) -> Result<Value, Fault> {
    let csr = body["certificate_request"].as_str().ok_or_else(|| (400, "missing parameter 'certificate_request'".to_owned()))?;
    let hosts = match &body["hosts"] {
        Value::Null => Vec::new(),
        hosts => serde_json::from_value(hosts.clone()).map_err(|_| (400, "Unable to parse sign request".to_owned()))?,
    };
    let dir = shared.dir.clone();
    let certificate = certificates::sign(&dir, csr, &hosts).map_err(|error| (1200, error.to_string()))?;
    Ok(json!({ "certificate": certificate }))
}

fn info(shared: &SharedState) -> Result<Value, Fault> {
    let dir = shared.dir.clone();
    let certificate = std::fs::read_to_string(certificates::ca_file(&dir)).map_err(|error| (500, error.to_string()))?;
    let usages = ["signing", "key encipherment", "server auth", "client auth"];
    Ok(json!({ "certificate": certificate.trim_end(), "usages": usages, "expiry": "8760h" }))
}
