//! The run of the jobs `<service>.init`, `….rotate`, `….gc`, `….backup`, `….restore` and their variants: gives the order by being there, watches, prints, ends.
//!
//! It writes nothing anywhere. The controller sees the active run at Metronome and has every agent proven anew, the CA replaced, garbage
//! collected, or the images copied; the run ends well only when that has happened.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::controller::{Report, RunReport};
use crate::dcos::{Api, chain};
use crate::protocol::env;

/// Between two looks at the controller.
const PAUSE: Duration = Duration::from_secs(1);
/// Of what the controller does between two looks at most so much is printed: at 10,000 agents a line for each would hide the rest.
const MOST_STEPS: usize = 20;
/// An agent that cannot be covered must not keep the run for ever; what is missing is then in the table.
const DEADLINE: Duration = Duration::from_secs(900);

/// Why the run failed.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Not started by Metronome.
    #[error("{} is not set: this role is started by the Metronome job", env::CONTROLLER_URL)]
    Environment,
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made")]
    Client(#[from] reqwest::Error),
    /// The controller refuses the options.
    #[error("the controller refuses the options; see above")]
    Refused,
    /// The garbage collection, backup or restore has failed.
    #[error("it has failed; see above")]
    Failed,
    /// Time is over.
    #[error("not every agent is proven after {} s; see the table for what is missing. The controller goes on trying; run this job again to look anew", DEADLINE.as_secs())]
    Deadline,
}

/// Watches until all is proven.
///
/// # Errors
/// When the options are refused or the deadline has passed.
pub async fn run() -> Result<(), InitError> {
    let url = std::env::var(env::CONTROLLER_URL).map_err(|_| InitError::Environment)?;
    // Metronome names a run's task after the run.
    let task = std::env::var("MESOS_TASK_ID").map_err(|_| InitError::Environment)?;
    let controller = Api::new(Api::client()?, &url);
    let started = Instant::now();
    let mut last_line = String::new();
    let mut told = BTreeSet::new();
    loop {
        let (line, report) = match controller.get::<Report>("/v1/status").await {
            Ok(report) => match work_of(&report, &task) {
                Some(work) => (work.said, Some(report)),
                None => (report.progress(), Some(report)),
            },
            Err(error) => (format!("the controller does not answer: {}", chain(&error)), None),
        };
        if line != last_line {
            println!("{:>4} s  {line}", started.elapsed().as_secs());
            last_line = line;
        }
        for step in report.iter().flat_map(|report| new_steps(&report.next, &mut told)) {
            println!("        {step}");
        }
        let late = started.elapsed() >= DEADLINE;
        match report {
            Some(report) if report.refused => {
                report.problems.iter().for_each(|problem| println!("{problem}"));
                return Err(InitError::Refused);
            }
            // It takes as long as it takes.
            Some(report) if work_of(&report, &task).is_some() => match work_of(&report, &task) {
                Some(work) if work.ended && work.failed => return Err(InitError::Failed),
                Some(work) if work.ended => return Ok(()),
                _ => tokio::time::sleep(PAUSE).await,
            },
            Some(report) if is_done(&report, &task) || late => {
                print!("\n{}", report.table());
                report.problems.iter().for_each(|problem| println!("{problem}"));
                println!("\n{}", report.summary);
                report.rotation.iter().filter(|_| rotates(&report, &task)).for_each(|what| println!("{what}"));
                return if is_done(&report, &task) { Ok(()) } else { Err(InitError::Deadline) };
            }
            None if late => return Err(InitError::Deadline),
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// What the controller does or waits for, in the words of `plan`, as far as it was not printed yet.
fn new_steps(next: &[String], told: &mut BTreeSet<String>) -> Vec<String> {
    let new: Vec<String> = next.iter().filter(|step| told.insert((*step).clone())).cloned().collect();
    let more = new.len().saturating_sub(MOST_STEPS);
    let rest = (more > 0).then(|| format!("and {more} more"));
    new.into_iter().take(MOST_STEPS).chain(rest).collect()
}

/// The garbage collection, backup or restore that the run of this task asks for, once the controller has seen it.
fn work_of(report: &Report, task: &str) -> Option<RunReport> {
    report.works().find(|work| task.contains(&work.run))
}

/// All is in place, and the controller has seen the run of this task and done what it asks for.
fn is_done(report: &Report, task: &str) -> bool {
    report.converged && report.orders.iter().any(|order| task.contains(&order.run) && order.fresh)
}

/// Whether this is a run of the job that replaces the CA: Metronome puts the job's id before the run's, with underscores for dots.
fn rotates(report: &Report, task: &str) -> bool {
    let jobs = report.orders.iter().filter_map(|order| task.split_once(&order.run)).map(|(job, _)| job.trim_end_matches(['_', '.']));
    jobs.into_iter().any(|job| job.ends_with("_rotate") || job.ends_with(".rotate"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::OrderReport;

    #[test]
    fn every_step_is_printed_once_and_many_are_counted() {
        let mut told = BTreeSet::new();
        let steps: Vec<String> = (0..25).map(|n| format!("step {n}")).collect();
        assert_eq!(new_steps(&steps[..2], &mut told), ["step 0", "step 1"]);
        let rest = new_steps(&steps, &mut told);
        assert_eq!((rest.len(), rest[20].as_str()), (21, "and 3 more"));
        assert!(new_steps(&steps, &mut told).is_empty());
    }

    #[test]
    fn a_run_is_done_when_the_controller_has_seen_it_and_not_another_one() {
        let task = "private-registry_rotate_20261124203338rmNQV.5441d435-e846-11f1-951a-0242fe1ec08b";
        let mut report = Report { converged: true, ..Report::default() };
        assert!(!is_done(&report, task));
        report.orders = vec![OrderReport { run: "20261124203334FXJrz".into(), fresh: true }];
        assert!(!is_done(&report, task), "that is the run of another job");
        report.orders.push(OrderReport { run: "20261124203338rmNQV".into(), fresh: false });
        assert!(!is_done(&report, task));
        report.orders[1].fresh = true;
        assert!(is_done(&report, task) && rotates(&report, task));
        assert!(!rotates(&report, "a_rotate_init_20261124203338rmNQV.5441d435-e846-11f1-951a-0242fe1ec08b"));
        report.converged = false;
        assert!(!is_done(&report, task));
    }
}
