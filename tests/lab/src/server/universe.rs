//! Where the package repository and its artifacts are served: the files below `universe` of the lab's folder; and beside them
//! `/marathon-lb.json`, a repository with the package marathon-lb.

use std::path::{Component, Path, PathBuf};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::host::LAB_ON_AGENT;

/// What Cosmos wants a repository to be.
const REPOSITORY: &str = "application/vnd.dcos.universe.repo+json;charset=utf-8;version=v4";

/// Routes: every file of the folder by its name.
pub(crate) fn router(folder: PathBuf) -> Router {
    let marathon_lb = || async { ([(header::CONTENT_TYPE, REPOSITORY)], marathon_lb().to_string()) };
    Router::new().route("/marathon-lb.json", get(marathon_lb)).fallback(file).with_state(folder)
}

/// The package as far as the lab can run it: the real one's place, ports and health check, and the lab's program in place of its image.
fn marathon_lb() -> Value {
    let ports: Vec<Value> = [80, 443, 9090, 9091].into_iter().chain(10_000..=10_100).map(|port| json!({ "port": port })).collect();
    let app = json!({
        "id": "/{{marathon-lb.name}}",
        "cmd": format!("PATH=$PATH:/usr/sbin exec {LAB_ON_AGENT} marathon-lb"),
        "user": "root",
        "cpus": 0.1,
        "mem": 64,
        "instances": 1,
        "acceptedResourceRoles": ["slave_public"],
        "constraints": [["hostname", "UNIQUE"]],
        "portDefinitions": ports,
        "requirePorts": true,
        "healthChecks": [{ "protocol": "MESOS_HTTP", "path": "/_haproxy_health_check", "portIndex": 2, "gracePeriodSeconds": 60 }],
    });
    let name = json!({ "type": "string", "description": "Id of the app.", "default": "marathon-lb" });
    let section = json!({ "type": "object", "properties": { "name": name } });
    json!({ "packages": [{
        "packagingVersion": "4.0",
        "name": "marathon-lb",
        "version": "1.15.0",
        "releaseVersion": 45,
        "maintainer": "lab@example.com",
        "description": "HAProxy configured using Marathon state",
        "tags": ["loadbalancer"],
        "config": { "type": "object", "properties": { "marathon-lb": section } },
        "marathon": { "v2AppMustacheTemplate": STANDARD.encode(app.to_string()) },
    }]})
}

async fn file(State(folder): State<PathBuf>, method: Method, uri: Uri) -> Response {
    let below = Path::new(uri.path().trim_start_matches('/'));
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if !matches!(method, Method::GET | Method::HEAD) || !plain {
        return StatusCode::NOT_FOUND.into_response();
    }
    let Ok(content) = tokio::fs::read(folder.join(below)).await else { return StatusCode::NOT_FOUND.into_response() };
    let kind = match below.extension().and_then(|extension| extension.to_str()) {
        Some("json") => REPOSITORY,
        Some("png") => "image/png",
        _ => "application/octet-stream",
    };
    ([(header::CONTENT_TYPE, kind)], Body::from(content)).into_response()
}
