//! Uninstalling an app: at once, or with the clean-up handshake of packages that carry the label for it.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use super::error::Error;
use super::{Cosmos, package, success};

/// Its presence, whatever its value, asks for the handshake.
const LABEL: &str = "DCOS_COMMONS_UNINSTALL";
/// Tells the app to clean up.
const VARIABLE: &str = "SDK_UNINSTALL";
/// The real one looks every 10 s.
const INTERVAL: Duration = Duration::from_secs(1);
/// As often as the real one.
const ATTEMPTS: u32 = 10_000;

/// Deletes the app, or tells it to clean up and goes on in the background: the user gets an answer at once.
///
/// # Errors
/// What Marathon refuses.
pub(crate) async fn begin(cosmos: &Arc<Cosmos>, app: &Value, authorization: &HeaderMap) -> Result<(), Error> {
    let id = app["id"].as_str().unwrap_or_default();
    if app.pointer(&format!("/labels/{LABEL}")).is_none() {
        let (status, body) = cosmos.marathon(Method::DELETE, &format!("/v2/apps/{id}?force=true"), None, authorization).await?;
        success(status, body)?;
        return teardown(cosmos, app, authorization).await;
    }
    let (status, body) = cosmos.marathon(Method::GET, &format!("/v2/apps/{id}"), None, authorization).await?;
    let mut stored = success(status, body)?["app"].take();
    if let Some(fields) = stored.as_object_mut() {
        fields.remove("uris");
        fields.remove("version");
    }
    stored["env"][VARIABLE] = json!("true");
    let path = format!("/v2/apps/{id}?force=true");
    let (status, body) = cosmos.marathon(Method::PUT, &path, Some(&stored), authorization).await?;
    success(status, body)?;
    {
        let mut kept = cosmos.kept();
        if !kept.uninstalling.iter().any(|known| known == id) {
            kept.uninstalling.push(id.to_owned());
        }
        cosmos.save(&kept);
    }
    tokio::spawn(finish(cosmos.clone(), id.to_owned(), authorization.clone()));
    Ok(())
}

/// A framework of that name is torn down. More than one is an error; none is fine.
async fn teardown(cosmos: &Cosmos, app: &Value, authorization: &HeaderMap) -> Result<(), Error> {
    let Some(name) = app.pointer("/labels/DCOS_PACKAGE_FRAMEWORK_NAME").and_then(Value::as_str) else { return Ok(()) };
    let unreachable = |error: reqwest::Error| Error::new("EndpointUriConnection", error.to_string()).status(StatusCode::BAD_GATEWAY);
    let url = format!("{}/master/frameworks", cosmos.upstreams.mesos);
    let answer = cosmos.client.get(url).headers(authorization.clone()).send().await.map_err(unreachable)?;
    let answer: Value = answer.json().await.map_err(unreachable)?;
    let frameworks = answer["frameworks"].as_array().into_iter().flatten();
    let ids: Vec<&str> =
        frameworks.filter(|framework| framework["name"] == name).filter_map(|framework| framework["id"].as_str()).collect();
    match ids.as_slice() {
        [] => Ok(()),
        [id] => {
            let url = format!("{}/master/teardown", cosmos.upstreams.mesos);
            let request = cosmos.client.post(url).headers(authorization.clone()).body(format!("frameworkId={id}"));
            request.send().await.map_err(unreachable)?;
            Ok(())
        }
        ids => Err(Error::new("MultipleFrameworkIds", format!("Uninstalled package, but there are multiple frameworks named [{name}]"))
            .data(json!({ "frameworkName": name, "ids": ids }))),
    }
}

/// Waits until the app says that it has cleaned up, then deletes it.
pub(crate) async fn finish(cosmos: Arc<Cosmos>, id: String, authorization: HeaderMap) {
    for _ in 0..ATTEMPTS {
        match step(&cosmos, &id, &authorization).await {
            Ok(true) => break,
            Ok(false) => {}
            Err(Stop(why)) => {
                tracing::warn!(app = id, why, "uninstall given up");
                break;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
    let mut kept = cosmos.kept();
    kept.uninstalling.retain(|known| *known != id);
    cosmos.save(&kept);
}

/// Why the real one gives up without telling anybody.
struct Stop(String);

/// Whether the app is gone. Servers that do not answer are asked again.
async fn step(cosmos: &Cosmos, id: &str, authorization: &HeaderMap) -> Result<bool, Stop> {
    let Ok((status, deployments)) = cosmos.marathon(Method::GET, "/v2/deployments", None, authorization).await else { return Ok(false) };
    if status == StatusCode::UNAUTHORIZED {
        return Err(Stop("401 on /v2/deployments".to_owned()));
    }
    let affected = |deployment: &Value| deployment["affectedApps"].as_array().is_some_and(|apps| apps.iter().any(|app| app == id));
    if !status.is_success() || deployments.as_array().is_none_or(|all| all.iter().any(affected)) {
        return Ok(false);
    }
    let Ok((status, answer)) = cosmos.marathon(Method::GET, &format!("/v2/apps/{id}"), None, authorization).await else { return Ok(false) };
    if status == StatusCode::NOT_FOUND {
        return Ok(true);
    }
    if answer.pointer(&format!("/app/env/{VARIABLE}")).is_none() {
        return Ok(false);
    }
    let plan = format!("{}/service/{id}/v1/plans/deploy", cosmos.upstreams.admin_router);
    let plan = cosmos.client.get(plan).headers(authorization.clone()).send().await;
    if !plan.is_ok_and(|answer| answer.status() == StatusCode::OK) {
        return Ok(false);
    }
    let Ok((status, body)) = cosmos.marathon(Method::DELETE, &format!("/v2/apps/{id}"), None, authorization).await else {
        return Ok(false);
    };
    match status {
        StatusCode::NOT_FOUND => Ok(true),
        status if status.is_client_error() => Err(Stop(format!("{:?}", package::marathon_error(status, &body)))),
        status => Ok(status.is_success()),
    }
}
