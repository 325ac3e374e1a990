//! Metronome: the jobs by which operators command the controller.

use serde::Deserialize;
use serde_json::Value;

use super::marathon::absent_is_none;
use super::{Api, ApiError, versions};

/// Client of Metronome.
#[derive(Debug, Clone)]
pub struct Metronome(pub Api);

/// A job, its active runs and how often it ran.
#[derive(Debug, Clone)]
pub struct Job {
    /// The stored definition with Metronome's defaults.
    pub spec: Value,
    /// Ids of active runs.
    pub active_runs: Vec<String>,
    /// Runs that have ended, well or not.
    pub finished_runs: u64,
    /// Its schedules.
    pub schedules: Vec<Value>,
}

impl Metronome {
    /// A job; `None` if there is none of that id.
    ///
    /// # Errors
    /// When Metronome does not answer.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, ApiError> {
        let path = format!("/v1/jobs/{id}?embed=activeRuns&embed=history&embed=schedules");
        let Some(spec) = absent_is_none(self.0.get::<Value>(&path).await)? else { return Ok(None) };
        job(spec).map(Some).map_err(|error| ApiError::Unexpected { url: path, reason: error.to_string() })
    }

    /// Which Metronome this is. A version that cannot be read counts as a recent one.
    ///
    /// # Errors
    /// When Metronome does not answer.
    pub async fn version(&self) -> Result<versions::Metronome, ApiError> {
        let info: Value = self.0.get("/info").await?;
        Ok(version_in(&info))
    }

    /// Creates a job, or replaces it when `exists`.
    ///
    /// # Errors
    /// When Metronome does not answer or refuses: it knows no field beyond its schema.
    pub async fn put_job(&self, id: &str, job: &Value, exists: bool) -> Result<(), ApiError> {
        let (method, path) = if exists { ("PUT", format!("/v1/jobs/{id}")) } else { ("POST", "/v1/jobs".to_string()) };
        self.0.call::<Value>(method, &path, Some(job)).await.map(drop)
    }

    /// Gives a job a schedule, or replaces it when `exists`. A job can have one only.
    ///
    /// # Errors
    /// When Metronome does not answer, or does not understand the cron line or the time zone.
    pub async fn put_schedule(&self, id: &str, schedule: &Value, exists: bool) -> Result<(), ApiError> {
        let name = schedule["id"].as_str().unwrap_or_default();
        let (method, path) = if exists { ("PUT", format!("/{name}")) } else { ("POST", String::new()) };
        self.0.call::<Value>(method, &format!("/v1/jobs/{id}/schedules{path}"), Some(schedule)).await.map(drop)
    }

    /// Takes a schedule away.
    ///
    /// # Errors
    /// When Metronome does not answer or refuses.
    pub async fn delete_schedule(&self, id: &str, name: &str) -> Result<(), ApiError> {
        absent_is_none(self.0.call::<Value>("DELETE", &format!("/v1/jobs/{id}/schedules/{name}"), None).await).map(drop)
    }

    /// Starts a run.
    ///
    /// # Errors
    /// When Metronome does not answer or refuses.
    pub async fn start_run(&self, id: &str) -> Result<(), ApiError> {
        self.0.call::<Value>("POST", &format!("/v1/jobs/{id}/runs"), None).await.map(drop)
    }

    /// Deletes a job and stops its runs; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// When Metronome does not answer or refuses.
    pub async fn delete_job(&self, id: &str) -> Result<(), ApiError> {
        absent_is_none(self.0.call::<Value>("DELETE", &format!("/v1/jobs/{id}?stopCurrentJobRuns=true"), None).await).map(drop)
    }
}

fn job(spec: Value) -> serde_json::Result<Job> {
    let embedded = crate::json::of_value::<Embedded>(&spec)?;
    Ok(Job {
        spec,
        active_runs: embedded.active_runs.into_iter().map(|run| run.id).collect(),
        schedules: embedded.schedules,
        finished_runs: embedded.history.map_or(0, |h| h.success_count.saturating_add(h.failure_count)),
    })
}

fn version_in(info: &Value) -> versions::Metronome {
    let version = info["version"].as_str().and_then(|text| text.parse().ok());
    version.map_or_else(versions::Metronome::default, |version| versions::Metronome { version })
}

/// For fuzzing: reads whatever Metronome could answer to any question.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_anything(answer: &[u8]) -> Option<Job> {
    let value: Value = crate::json::of_bytes(answer).ok()?;
    let _ = version_in(&value).has_secrets();
    job(value).ok()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Embedded {
    #[serde(default)]
    active_runs: Vec<Run>,
    history: Option<History>,
    #[serde(default)]
    schedules: Vec<Value>,
}

#[derive(Deserialize)]
struct Run {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct History {
    success_count: u64,
    failure_count: u64,
}
