//! Where the package repository and its artifacts are served: the files below `universe` of the lab's folder.

use std::path::{Component, Path, PathBuf};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

/// What Cosmos wants a repository to be.
const REPOSITORY: &str = "application/vnd.dcos.universe.repo+json;charset=utf-8;version=v4";

/// Routes: every file of the folder by its name.
pub(crate) fn router(folder: PathBuf) -> Router {
    Router::new().fallback(file).with_state(folder)
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
