//! Metronome 0.6.70.

mod cron;
mod runs;
mod schema;
mod spec;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use axum::Router;
use axum::http::header;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::SharedState;
use super::clock::now;
use super::http::{Answer, Request, serve, unknown_route};
use super::state::State;
use crate::host::MASTER;
use runs::{History, Run};
use schema::{JOB_ID, matches, refusal};
use spec::{JobSpec, Refused, Schedule};

pub(crate) use runs::advance;

/// The Marathon that this Metronome is built upon.
const LIBRARY_VERSION: &str = "1.7.202";
const EMBEDS: [&str; 4] = ["activeRuns", "schedules", "history", "historySummary"];

/// What Metronome keeps.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Metronome {
    /// By id.
    jobs: BTreeMap<String, Job>,
    /// Those that have not ended, by id.
    runs: BTreeMap<String, Run>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    spec: JobSpec,
    history: History,
    /// Unix time of the next scheduled run; none without an enabled schedule.
    due: Option<f64>,
}

impl Job {
    fn new(spec: JobSpec) -> Self {
        let mut job = Self { spec, history: History::default(), due: None };
        job.reschedule();
        job
    }

    fn reschedule(&mut self) {
        self.due = self.spec.schedules.first().filter(|schedule| schedule.enabled).and_then(|schedule| schedule.next(now()));
    }

    fn schedules(&self) -> Vec<Value> {
        self.spec.schedules.iter().map(Schedule::answer).collect()
    }

    /// As it is answered to a change.
    fn answer(&self) -> Value {
        let mut value = json!(self.spec);
        value["schedules"] = self.schedules().into();
        value
    }
}

impl Metronome {
    fn runs_of(&self, job: &str) -> Vec<&Run> {
        self.runs.values().filter(|run| run.spec.id == job).collect()
    }

    /// A run of that job.
    fn run(&self, job: &str, run: &str) -> Option<&Run> {
        self.runs.get(run).filter(|run| run.spec.id == job)
    }

    /// What is wrong with the jobs that this one follows.
    fn dependency_fault(&self, job: &JobSpec) -> Option<String> {
        let unknown: Vec<&str> = job.dependencies.iter().map(|d| d.id.as_str()).filter(|id| !self.jobs.contains_key(*id)).collect();
        if !unknown.is_empty() {
            return Some(format!("Dependencies contain unknown jobs. unknown=[{}]", unknown.join(", ")));
        }
        let mut seen = Vec::new();
        let mut ahead: Vec<&str> = job.dependencies.iter().map(|d| d.id.as_str()).collect();
        while let Some(id) = ahead.pop() {
            if id == job.id {
                return Some("Dependencies have a cycle.".to_owned());
            }
            if !seen.contains(&id) {
                seen.push(id);
                ahead.extend(self.jobs.get(id).into_iter().flat_map(|job| &job.spec.dependencies).map(|d| d.id.as_str()));
            }
        }
        None
    }
}

/// Routes.
pub fn router(state: SharedState) -> Router {
    serve(state, answer)
}

fn answer(shared: &SharedState, request: &Request) -> Answer {
    let segments: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    if let ["v1", "jobs", id, ..] = segments.as_slice()
        && !matches(JOB_ID, id)
    {
        return client_error(request, 400, &format!("Not a valid id: {id}"));
    }
    match (request.method.as_str(), segments.as_slice()) {
        ("GET", ["ping"]) => Answer::text(200, "text/plain; charset=UTF-8", "pong"),
        ("GET", ["info"]) => {
            let version = shared.read(|state| state.pose.metronome.clone());
            Answer::json(200, &json!({ "version": version, "libVersion": LIBRARY_VERSION, "config": {} }))
        }
        ("GET", ["leader"]) => Answer::json(200, &json!({ "leader": format!("{MASTER}:9000") })),
        ("GET", ["v1", "queue"]) => shared.read(|state| queue(&state.metronome)),
        ("GET", ["v1", "jobs"]) => shared.read(|state| list_jobs(&state.metronome, request)),
        ("POST", ["v1", "jobs"]) => create_job(shared, request),
        ("GET", ["v1", "jobs", id]) => shared.read(|state| get_job(&state.metronome, request, id)),
        ("PUT", ["v1", "jobs", id]) => update_job(shared, request, id),
        ("DELETE", ["v1", "jobs", id]) => delete_job(shared, request, id),
        ("GET", ["v1", "jobs", id, "schedules"]) => {
            with_job(shared, id, |state| Answer::json(200, &state.metronome.jobs[*id].schedules().into()))
        }
        ("POST", ["v1", "jobs", id, "schedules"]) => create_schedule(shared, request, id),
        ("GET", ["v1", "jobs", id, "schedules", schedule]) => with_job(shared, id, |state| {
            let found = state.metronome.jobs[*id].spec.schedules.iter().find(|known| known.id == *schedule);
            found.map_or_else(|| not_found(schedule, "Schedule not found"), |found| Answer::json(200, &found.answer()))
        }),
        ("PUT", ["v1", "jobs", id, "schedules", schedule]) => update_schedule(shared, request, id, schedule),
        ("DELETE", ["v1", "jobs", id, "schedules", schedule]) => delete_schedule(shared, request, id, schedule),
        ("GET", ["v1", "jobs", id, "runs"]) => with_job(shared, id, |state| Answer::json(200, &runs_of(&state.metronome, id))),
        ("POST", ["v1", "jobs", id, "runs"]) => with_job(shared, id, |state| {
            let spec = state.metronome.jobs[*id].spec.clone();
            Answer::json(201, &runs::start(state, spec, None, now()).answer())
        }),
        ("GET", ["v1", "jobs", id, "runs", run]) => shared.read(|state| {
            let found = state.metronome.run(id, run);
            found.map_or_else(|| no_such_run(id, run), |found| Answer::json(200, &found.answer()))
        }),
        ("POST", ["v1", "jobs", id, "runs", run, "actions", "stop"]) => with_job(shared, id, |state| {
            let known = state.metronome.run(id, run).is_some();
            let stopped = known.then(|| runs::stop(state, run, now())).flatten();
            stopped.map_or_else(|| no_such_run(id, run), |run| Answer::json(200, &run.answer()))
        }),
        _ => unknown_route(request),
    }
}

/// Answers with a job that is sure to be there.
fn with_job(shared: &SharedState, id: &str, answer: impl FnOnce(&mut State) -> Answer) -> Answer {
    shared.change(|state| if state.metronome.jobs.contains_key(id) { answer(state) } else { no_such_job(id) })
}

fn not_found(id: &str, message: &str) -> Answer {
    Answer::json(404, &json!({ "id": id, "message": message }))
}

fn no_such_job(id: &str) -> Answer {
    not_found(id, "Job not found")
}

fn no_such_run(job: &str, run: &str) -> Answer {
    Answer::json(404, &json!({ "jobSpec": job, "id": run, "message": "Job Run not found" }))
}

fn client_error(request: &Request, status: u16, message: &str) -> Answer {
    Answer::json(status, &json!({ "message": message, "requestPath": request.path }))
}

/// What Metronome says about an exception of its own. Where it waits ten seconds in vain first, the lab does not.
fn server_error(request: &Request) -> Answer {
    Answer::json(500, &json!({ "requestPath": request.path }))
}

/// Reads a definition out of the body, or answers what is wrong with it.
fn definition<T>(request: &Request, read: impl FnOnce(&Value) -> Result<T, Refused>) -> Result<T, Answer> {
    let declared = request.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type != "application/json" && media_type != "text/json" {
        return Err(client_error(request, 415, "Expecting text/json or application/json body"));
    }
    let value = serde_json::from_slice(&request.body).map_err(|error| {
        let (what, column) = match error {
            _ if request.body.is_empty() => ("No content to map due to end-of-input", 0),
            _ if error.is_eof() => ("Unexpected end-of-input within/between Object entries", error.column() + 1),
            _ => ("Unexpected character", error.column()),
        };
        let source = "(akka.util.ByteIterator$ByteArrayIterator$$anon$1)";
        let line = error.line().max(1);
        client_error(request, 400, &format!("Invalid Json: {what}\n at [Source: {source}; line: {line}, column: {column}]"))
    })?;
    read(&value).map_err(|refused| match refused {
        Refused::Invalid(faults) => refusal(&faults),
        Refused::Crash => server_error(request),
    })
}

fn queue(metronome: &Metronome) -> Answer {
    let mut queued: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for run in metronome.runs.values().filter(|run| run.is_queued()) {
        queued.entry(&run.spec.id).or_default().push(json!({ "runId": run.id }));
    }
    let jobs: Vec<Value> = queued.into_iter().map(|(job, runs)| json!({ "jobId": job, "runs": runs })).collect();
    Answer::json(200, &jobs.into())
}

fn runs_of(metronome: &Metronome, job: &str) -> Value {
    metronome.runs_of(job).into_iter().map(Run::answer).collect()
}

/// What the query wants to have in the answer.
fn embeds(request: &Request) -> Result<Vec<&str>, Answer> {
    let wanted: Vec<&str> = request.params("embed").flat_map(|value| value.split(',')).collect();
    if wanted.iter().all(|name| EMBEDS.contains(name)) {
        return Ok(wanted);
    }
    Err(client_error(request, 400, &format!("Unknown embed options. Valid options are: {}", EMBEDS.join(", "))))
}

fn info(job: &Job, embeds: &[&str], active_runs: Option<Value>) -> Value {
    let mut value = job.answer();
    if let Some(runs) = active_runs {
        value["activeRuns"] = runs;
    }
    if embeds.contains(&"history") {
        value["history"] = job.history.answer();
    }
    if embeds.contains(&"historySummary") {
        value["historySummary"] = job.history.summary();
    }
    value
}

fn list_jobs(metronome: &Metronome, request: &Request) -> Answer {
    let embeds = match embeds(request) {
        Ok(embeds) => embeds,
        Err(answer) => return answer,
    };
    let job = |job: &Job| {
        // In the list, a job without runs has no `activeRuns` at all.
        let active = embeds.contains(&"activeRuns") && !metronome.runs_of(&job.spec.id).is_empty();
        info(job, &embeds, active.then(|| runs_of(metronome, &job.spec.id)))
    };
    Answer::json(200, &metronome.jobs.values().map(job).collect())
}

fn get_job(metronome: &Metronome, request: &Request, id: &str) -> Answer {
    let embeds = match embeds(request) {
        Ok(embeds) => embeds,
        Err(answer) => return answer,
    };
    let Some(job) = metronome.jobs.get(id) else { return no_such_job(id) };
    let active = embeds.contains(&"activeRuns").then(|| runs_of(metronome, id));
    Answer::json(200, &info(job, &embeds, active))
}

fn create_job(shared: &SharedState, request: &Request) -> Answer {
    let spec = match definition(request, |body| shared.read(|state| JobSpec::read(body, None, &state.pose))) {
        Ok(spec) => spec,
        Err(answer) => return answer,
    };
    shared.change(|state| {
        if let Some(fault) = state.metronome.dependency_fault(&spec) {
            return Answer::message(422, fault);
        }
        if state.metronome.jobs.contains_key(&spec.id) {
            return Answer::message(409, "Job with this id already exists");
        }
        let job = Job::new(spec);
        let answer = Answer::json(201, &job.answer());
        state.metronome.jobs.insert(job.spec.id.clone(), job);
        state.touch();
        answer
    })
}

fn update_job(shared: &SharedState, request: &Request, id: &str) -> Answer {
    let spec = match definition(request, |body| shared.read(|state| JobSpec::read(body, Some(id), &state.pose))) {
        Ok(spec) => spec,
        Err(answer) => return answer,
    };
    shared.change(|state| {
        if !state.metronome.jobs.contains_key(id) {
            return no_such_job(id);
        }
        if let Some(fault) = state.metronome.dependency_fault(&spec) {
            return Answer::message(422, fault);
        }
        let Some(job) = state.metronome.jobs.get_mut(id) else { return no_such_job(id) };
        // Schedules have calls of their own; those in the body are not looked at.
        let schedules = std::mem::take(&mut job.spec.schedules);
        job.spec = JobSpec { schedules, ..spec };
        job.reschedule();
        let answer = Answer::json(200, &job.answer());
        state.touch();
        answer
    })
}

fn delete_job(shared: &SharedState, request: &Request, id: &str) -> Answer {
    let stop_runs = match request.param("stopCurrentJobRuns") {
        None | Some("false" | "0") => false,
        Some("true" | "1") => true,
        Some(_) => {
            let message = "Cannot parse parameter stopCurrentJobRuns as Boolean: should be true, false, 0 or 1";
            return client_error(request, 400, message);
        }
    };
    with_job(shared, id, |state| {
        let runs: Vec<String> = state.metronome.runs_of(id).into_iter().map(|run| run.id.clone()).collect();
        if !runs.is_empty() && !stop_runs {
            return Answer::message(409, "There are active job runs. Override with stopCurrentJobRuns=true");
        }
        for run in runs {
            runs::stop(state, &run, now());
        }
        let follows = |job: &&Job| job.spec.dependencies.iter().any(|dependency| dependency.id == id);
        let children: Vec<&str> = state.metronome.jobs.values().filter(follows).map(|job| job.spec.id.as_str()).collect();
        if !children.is_empty() {
            return Answer::message(409, format!("There are jobs with a dependency on {id}. children=[{}]", children.join(", ")));
        }
        let deleted = state.metronome.jobs.remove(id);
        state.touch();
        deleted.map_or_else(|| no_such_job(id), |job| Answer::json(200, &job.answer()))
    })
}

fn create_schedule(shared: &SharedState, request: &Request, id: &str) -> Answer {
    let schedule = match definition(request, |body| Schedule::read(body, None)) {
        Ok(schedule) => schedule,
        Err(answer) => return answer,
    };
    // Metronome means to answer 409 to a second schedule, but throws.
    change_schedules(shared, request, id, |schedules| {
        let answer = Answer::json(201, &schedule.answer());
        schedules.is_empty().then(|| schedules.push(schedule)).map(|()| answer)
    })
}

fn update_schedule(shared: &SharedState, request: &Request, id: &str, schedule_id: &str) -> Answer {
    let schedule = match definition(request, |body| Schedule::read(body, Some(schedule_id))) {
        Ok(schedule) => schedule,
        Err(answer) => return answer,
    };
    change_schedules(shared, request, id, |schedules| {
        let known = schedules.iter_mut().find(|known| known.id == schedule_id)?;
        *known = schedule;
        Some(Answer::json(200, &known.answer()))
    })
}

fn delete_schedule(shared: &SharedState, request: &Request, id: &str, schedule_id: &str) -> Answer {
    change_schedules(shared, request, id, |schedules| {
        let index = schedules.iter().position(|known| known.id == schedule_id)?;
        schedules.remove(index);
        Some(Answer::empty(200))
    })
}

/// Changes a job's schedules; a change that cannot be made is an exception within Metronome.
fn change_schedules(
    shared: &SharedState,
    request: &Request,
    id: &str,
    change: impl FnOnce(&mut Vec<Schedule>) -> Option<Answer>,
) -> Answer {
    shared.change(|state| {
        let Some(job) = state.metronome.jobs.get_mut(id) else { return no_such_job(id) };
        let Some(answer) = change(&mut job.spec.schedules) else { return server_error(request) };
        job.reschedule();
        state.touch();
        answer
    })
}
