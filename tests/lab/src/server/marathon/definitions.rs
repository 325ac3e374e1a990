//! placeholder
#![allow(missing_docs)]
use crate::server::{Pose, http::Answer};
use serde_json::Value;
use std::collections::BTreeSet;
pub(crate) struct Surroundings<'a> {
    pub pose: &'a Pose,
    pub role: &'a str,
    pub enforced_role: bool,
    pub service_ports: &'a BTreeSet<u16>,
    pub version: &'a str,
}
pub(crate) struct Stored {
    pub definition: Value,
    pub dropped: Vec<String>,
    pub poison: Option<String>,
}
pub(crate) fn app(body: &[u8], path_id: Option<&str>, around: &Surroundings) -> Result<Stored, Answer> {
    let mut definition: Value = serde_json::from_slice(body).map_err(|_| Answer::message(400, "Invalid JSON"))?;
    definition["version"] = around.version.into();
    if definition["labels"].is_null() {
        definition["labels"] = serde_json::json!({});
    }
    if definition["instances"].is_null() && definition["scaling"].is_null() {
        definition["instances"] = 1.into();
    }
    definition["role"] = "slave_public".into();
    if let Some(uris) = definition["uris"].as_array().cloned() {
        definition["fetch"] =
            uris.iter().map(|u| serde_json::json!({"uri": u, "extract": true, "executable": false, "cache": false})).collect();
        definition.as_object_mut().unwrap().remove("uris");
    }
    if definition["container"]["docker"]["network"] == "BRIDGE" {
        definition["networks"] = serde_json::json!([{"mode": "container/bridge"}]);
        definition["container"]["portMappings"] = definition["container"]["docker"]["portMappings"].take();
        let d = definition["container"]["docker"].as_object_mut().unwrap();
        d.remove("network");
        d.remove("portMappings");
    }
    if let Some(id) = path_id {
        definition["id"] = id.into();
    }
    Ok(Stored { definition, dropped: vec![], poison: None })
}
pub(crate) fn app_update(body: &[u8], path_id: &str, existing: &Value, around: &Surroundings) -> Result<Stored, Answer> {
    let mut all = existing.clone();
    let new = app(body, Some(path_id), around)?;
    let given: Value = serde_json::from_slice(body).unwrap_or_default();
    for (k, v) in new.definition.as_object().into_iter().flatten() {
        if given.get(k).is_some() || k == "version" {
            all[k] = v.clone();
        }
    }
    Ok(Stored { definition: all, ..new })
}
pub(crate) fn pod(body: &[u8], path_id: Option<&str>, around: &Surroundings) -> Result<Stored, Answer> {
    app(body, path_id, around)
}
pub(crate) fn id_of(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Value>(body).ok()?["id"].as_str().map(str::to_owned)
}
