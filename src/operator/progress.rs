//! How an order goes on, on standard error: on a terminal one line that is written over, elsewhere a line per change.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::controller::Report;

/// Shows how an order goes on.
pub struct Progress {
    is_terminal: bool,
    started: Instant,
    /// Agents that were proven at first, of those that there were.
    first: Option<usize>,
    width: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), started: Instant::now(), first: None, width: 0 }
    }
}

impl Progress {
    /// Shows a report.
    pub fn report(&mut self, report: &Report) {
        let total = report.agents.len();
        let done = report.agents.iter().filter(|agent| agent.state == "trusted").count();
        let first = *self.first.get_or_insert(done);
        let left = time_left(self.started.elapsed(), first, done, total).map(|left| format!(" About {} left.", words(left)));
        let counts = if total > 0 { format!("[{done}/{total}] ") } else { String::new() };
        self.line(&format!("{counts}{}{}", report.progress(), left.unwrap_or_default()));
    }

    /// Shows a line.
    pub fn line(&mut self, text: &str) {
        let mut out = std::io::stderr().lock();
        // Whoever does not read it has the result all the same.
        let _ = match self.is_terminal {
            true => write!(out, "\r{text:<width$}", width = self.width).and_then(|()| out.flush()),
            false => writeln!(out, "{text}"),
        };
        self.width = text.chars().count();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal && self.width > 0 {
            eprintln!();
        }
    }
}

/// As long as the rest takes if it goes on like this; unknown before the first agent, and where all is done.
fn time_left(elapsed: Duration, first: usize, done: usize, total: usize) -> Option<Duration> {
    let (gained, missing) =
        (done.checked_sub(first).filter(|gained| *gained > 0)?, total.checked_sub(done).filter(|missing| *missing > 0)?);
    Some(elapsed.mul_f64(missing as f64 / gained as f64))
}

fn words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..90 => format!("{} s", seconds.max(1)),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_known_as_soon_as_an_agent_more_is_proven() {
        let ten = Duration::from_secs(10);
        assert_eq!(time_left(ten, 3, 3, 10), None);
        assert_eq!(time_left(ten, 3, 10, 10), None);
        assert_eq!(time_left(ten, 3, 2, 10), None);
        assert_eq!(time_left(ten, 0, 5, 10), Some(ten));
        assert_eq!(
            (words(Duration::from_millis(10)), words(Duration::from_secs(61)), words(Duration::from_secs(100))),
            ("1 s".into(), "61 s".into(), "2 min".into())
        );
    }
}
