//! How long the cluster's services take to answer, and how: counted for the controller's metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::ApiError;
use super::grants::Door;

/// Upper ends of the buckets, in seconds. The last one is above every time-out of a call.
pub(crate) const BUCKETS: [f64; 10] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Durations, counted by size.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Histogram {
    /// How many were not above each end; all of them are in [`Histogram::count`] only.
    pub(crate) within: [u64; BUCKETS.len()],
    pub(crate) count: u64,
    /// Seconds of all together.
    pub(crate) sum: f64,
}

impl Histogram {
    pub(crate) fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.within.iter_mut().zip(BUCKETS).filter(|(_, end)| seconds <= *end).for_each(|(count, _)| *count += 1);
        self.count += 1;
        self.sum += seconds;
    }
}

/// Service and outcome of a call.
type Kind = (&'static str, &'static str);

/// Counts calls by service and outcome.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<BTreeMap<Kind, Histogram>>);

impl Calls {
    pub(super) fn add(&self, door: Door, outcome: &'static str, took: Duration) {
        let Some(service) = service(door) else { return };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((service, outcome)).or_default().add(took);
    }

    pub(crate) fn all(&self) -> BTreeMap<Kind, Histogram> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn service(door: Door) -> Option<&'static str> {
    Some(match door {
        Door::Mesos => "mesos",
        Door::Marathon => "marathon",
        Door::Metronome => "metronome",
        Door::Secrets => "secrets",
        Door::Ca => "ca",
        Door::Own => return None,
    })
}

/// What has become of a call, in one word. That something is not there yet is an answer like others.
pub(super) fn outcome<T>(result: &Result<T, ApiError>) -> &'static str {
    match result {
        Ok(_) | Err(ApiError::Refused { status: 404, .. }) => "ok",
        Err(ApiError::Refused { status: 500.., .. } | ApiError::Unexpected { .. }) => "failed",
        Err(ApiError::Refused { .. } | ApiError::Denied { .. } | ApiError::LoginRefused { .. }) => "refused",
        Err(ApiError::Unreachable { .. }) => "unreachable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_every_bucket_that_it_is_not_above() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::from_millis(50));
        histogram.add(Duration::from_secs(60));
        assert_eq!((histogram.within[0], histogram.within[1], histogram.within[9], histogram.count), (0, 1, 1, 2));
        assert_eq!(histogram.sum, 60.05);
    }

    #[test]
    fn calls_are_told_apart_by_service_and_outcome_and_our_own_tasks_are_not_counted() {
        let calls = Calls::default();
        calls.add(Door::Marathon, "ok", Duration::from_millis(20));
        calls.add(Door::Marathon, "failed", Duration::from_millis(20));
        calls.add(Door::Own, "ok", Duration::from_millis(20));
        assert_eq!(calls.all().into_keys().collect::<Vec<_>>(), [("marathon", "failed"), ("marathon", "ok")]);
        let refused = |status| ApiError::Refused { method: "GET", url: String::new(), status, message: String::new() };
        let outcomes = [404, 409, 503].map(|status| outcome::<()>(&Err(refused(status))));
        assert_eq!(outcomes, ["ok", "refused", "failed"]);
    }
}
