//! A restart that nobody notices: one of several registries leaves the VIP before it.
//!
//! DC/OS gives no new connection to a task that Mesos finds unhealthy, and leaves those that it has alone. So the task answers 503 to
//! Mesos' health check, waits until it has been asked and all agents have had time to hear of it, and restarts then. Mesos kills a
//! task that stays unhealthy, so all of this has an end: [`most_failures`] is more than the checks that fit into it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::supervisor::KILL_MARGIN;

/// Between two of Mesos' health checks, in seconds.
pub const CHECK_EVERY: u64 = 5;
/// dcos-net asks the agent for its tasks every 2 s and gossips to the others within about one; half as much again for slow ones.
const SPREADS_IN: Duration = Duration::from_secs(4);
/// A check comes every 5 s and may take 5 s. If two have failed to come, nobody is asking.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than that the program does not take from its start to its first answer.
const STARTS_IN: Duration = Duration::from_secs(10);

/// `maxConsecutiveFailures` for one of several registries that drains so long.
pub fn most_failures(drain: Duration) -> u64 {
    // One check may come right at the begin, and one more is allowed to fail.
    longest_absence(drain).as_secs().div_ceil(CHECK_EVERY) + 2
}

fn longest_absence(drain: Duration) -> Duration {
    PATIENCE + drain + KILL_MARGIN + STARTS_IN
}

/// A restart that is to come.
#[derive(Debug)]
pub(super) struct Leaving {
    /// How often the health check was answered with 503.
    refusals: watch::Receiver<u64>,
    /// The restart does not wait any longer than until then.
    until: Instant,
    seen: bool,
}

impl Leaving {
    /// From now on the health check has to be answered with 503.
    pub(super) fn new(mut refusals: watch::Receiver<u64>) -> Self {
        refusals.mark_unchanged();
        Self { refusals, until: Instant::now() + PATIENCE, seen: false }
    }

    /// Waits until nobody is sent here any more, or long enough. May be dropped at any await.
    pub(super) async fn over(present: &mut Option<Self>) {
        let Some(leaving) = present else { return std::future::pending().await };
        if !leaving.seen {
            tokio::select! {
                // Without a server nobody asks, and the time ends it.
                Ok(()) = leaving.refusals.changed() => {
                    leaving.seen = true;
                    leaving.until = leaving.until.min(Instant::now() + SPREADS_IN);
                }
                () = sleep_until(leaving.until) => {}
            }
        }
        sleep_until(leaving.until).await;
    }

    /// Whether Mesos knows.
    pub(super) fn was_seen(&self) -> bool {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that fail one after the other in an absence, when the first comes so long after its begin.
    fn failures(absence: Duration, first: Duration) -> u64 {
        let mut at = first;
        let mut failed = 0;
        while at <= absence {
            failed += 1;
            at += Duration::from_secs(CHECK_EVERY);
        }
        failed
    }

    #[test]
    fn mesos_never_kills_a_registry_that_leaves_however_long_it_drains() {
        for drain in (0..=600).map(Duration::from_secs) {
            for first in (0..CHECK_EVERY * 10).map(|tenths| Duration::from_millis(tenths * 100)) {
                let failed = failures(longest_absence(drain), first);
                assert!(failed < most_failures(drain), "{failed} failures of {} with a drain of {drain:?}", most_failures(drain));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_leaves_when_a_check_has_been_refused_and_everybody_has_heard() {
        let (refused, refusals) = watch::channel(7);
        let mut leaving = Some(Leaving::new(refusals));
        let begin = Instant::now();
        let asked = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            refused.send_modify(|count| *count += 1);
        };
        tokio::join!(Leaving::over(&mut leaving), asked);
        assert_eq!(begin.elapsed(), Duration::from_secs(3) + SPREADS_IN);
        assert!(leaving.unwrap().was_seen());
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_asks_for_its_health_it_leaves_in_the_end() {
        let (refused, refusals) = watch::channel(0);
        // Before it was to leave: this says nothing.
        refused.send_modify(|count| *count += 1);
        let mut leaving = Some(Leaving::new(refusals));
        let begin = Instant::now();
        Leaving::over(&mut leaving).await;
        assert_eq!(begin.elapsed(), PATIENCE);
        assert!(!leaving.unwrap().was_seen());
        drop(refused);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_check_does_not_put_the_restart_off_beyond_its_time() {
        let (refused, refusals) = watch::channel(0);
        let mut leaving = Some(Leaving::new(refusals));
        let begin = Instant::now();
        let asked = async {
            tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
            refused.send_modify(|count| *count += 1);
        };
        tokio::join!(Leaving::over(&mut leaving), asked);
        assert_eq!(begin.elapsed(), PATIENCE);
    }
}
