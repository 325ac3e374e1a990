//! What Marathon makes of a definition that a client sends: what it stores and shows, or why it refuses it.
//!
//! Pure: no state is looked at but what the caller hands in.

mod app;
mod app_schema;
#[cfg(test)]
mod tests_app;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::server::Pose;
use crate::server::http::Answer;

pub(crate) use app::{app, app_update};

/// What a definition is read with.
pub(crate) struct Surroundings<'a> {
    /// The posed Marathon.
    pub(crate) pose: &'a Pose,
    /// Role that services of the id's top-level group get.
    pub(crate) role: &'a str,
    /// Whether that is the only role they may have.
    pub(crate) enforced_role: bool,
    /// Service ports that other apps have.
    pub(crate) service_ports: &'a BTreeSet<u16>,
    /// Version (a time in ISO form) that the definition gets.
    pub(crate) version: &'a str,
}

/// A definition that Marathon accepts.
#[derive(Debug)]
pub(crate) struct Stored {
    /// As it is kept and shown, but for what changes by itself: counts, deployments, tasks.
    pub(crate) definition: Value,
    /// Paths of what was sent and is not in force, without a word about it to the client.
    pub(crate) dropped: Vec<String>,
    /// Why this definition, once launched, would stop the posed Marathon's launcher for good.
    pub(crate) poison: Option<String>,
}

pub(crate) fn pod(body: &[u8], path_id: Option<&str>, around: &Surroundings) -> Result<Stored, Answer> {
    let mut definition: Value = serde_json::from_slice(body).map_err(|_| Answer::message(400, "Invalid JSON"))?;
    definition["version"] = around.version.into();
    if let Some(id) = path_id {
        definition["id"] = id.into();
    }
    Ok(Stored { definition, dropped: vec![], poison: None })
}

/// The id in a body, as far as there is one; with `/` in front and without `.` and `..`.
pub(crate) fn id_of(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Value>(body).ok()?["id"].as_str().map(canonical_id)
}

/// An absolute id: relative to the root group, without `.` and `..`.
fn canonical_id(id: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in id.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

/// Errors by path, in the order in which the paths were first complained about.
#[derive(Debug, Default)]
struct Errors(Vec<(String, Vec<String>)>);

impl Errors {
    fn add(&mut self, path: impl Into<String>, error: impl Into<String>) {
        let (path, error) = (path.into(), error.into());
        match self.0.iter_mut().find(|(at, _)| *at == path) {
            Some((_, errors)) if errors.contains(&error) => {}
            Some((_, errors)) => errors.push(error),
            None => self.0.push((path, vec![error])),
        }
    }

    /// 422 if there are any. The message is `Invalid JSON` for types and patterns, `Object is not valid` for meaning.
    fn refuse(&self, message: &str) -> Result<(), Answer> {
        if self.0.is_empty() {
            return Ok(());
        }
        let details: Vec<Value> = self.0.iter().map(|(path, errors)| json!({ "path": path, "errors": errors })).collect();
        Err(Answer::json(422, &json!({ "message": message, "details": details })))
    }
}
