//! Five cron fields, evaluated in UTC.

use crate::server::clock::civil;

const MINUTE: f64 = 60.0;
const DAY: f64 = 86_400.0;
/// A leap day falls on a given day of the week at least once in 40 years.
const DAYS_TO_SEARCH: u32 = 40 * 366;

const MONTHS: [&str; 12] = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// A cron expression: one bit for each value that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
}

impl Cron {
    /// None when the text is no expression, or one that never comes true, as 30 February.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_whitespace();
        let mut next = |low, high, names, first| field(fields.next()?, low, high, names, first);
        let cron = Self {
            minutes: next(0, 59, &[], 0)?,
            hours: next(0, 23, &[], 0)?,
            days: next(1, 31, &[], 0)?,
            months: next(1, 12, &MONTHS, 1)?,
            weekdays: next(0, 7, &WEEKDAYS, 0)?,
        };
        // Both 0 and 7 are Sunday.
        let cron = Self { weekdays: (cron.weekdays | cron.weekdays >> 7) & 0x7f, ..cron };
        (fields.next().is_none() && cron.next(0.0).is_some()).then_some(cron)
    }

    /// The first moment after `after` that matches. Unlike in Unix, day of month and day of week must both match.
    pub(super) fn next(&self, after: f64) -> Option<f64> {
        let begin = (after / MINUTE).floor() * MINUTE + MINUTE;
        let mut day = (begin / DAY).floor() * DAY;
        for _ in 0..DAYS_TO_SEARCH {
            let date = civil(day);
            if has(self.days, date.day) && has(self.months, date.month) && has(self.weekdays, date.weekday) {
                let minutes = (0..24 * 60).filter(|minute| has(self.hours, minute / 60) && has(self.minutes, minute % 60));
                let mut moments = minutes.map(|minute| day + f64::from(minute) * MINUTE);
                if let Some(moment) = moments.find(|moment| *moment >= begin) {
                    return Some(moment);
                }
            }
            day += DAY;
        }
        None
    }
}

fn has(bits: u64, value: u32) -> bool {
    bits >> value & 1 == 1
}

/// `names` stand for the values from `first` on.
fn field(text: &str, low: u32, high: u32, names: &[&str], first: u32) -> Option<u64> {
    let value = |text: &str| {
        let named = names.iter().zip(first..).find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, value)| value);
        named.or_else(|| text.parse().ok()).filter(|value| (low..=high).contains(value))
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let step: u32 = step.map_or(Some(1), |step| step.parse().ok()).filter(|step| *step > 0)?;
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (low, high),
            Some((from, to)) => (value(from)?, value(to)?),
            None if part.contains('/') => (value(range)?, high),
            None => (value(range)?, value(range)?),
        };
        if from > to {
            return None;
        }
        bits = (from..=to).step_by(step as usize).fold(bits, |bits, value| bits | 1 << value);
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::clock::iso;

    /// 23 November 2026, a Monday, 22:59:46.
    const NOW: f64 = 1_795_474_786.0;

    fn next(text: &str) -> String {
        iso(Cron::parse(text).unwrap().next(NOW).unwrap())
    }

    #[test]
    fn the_next_moment_is_found_for_steps_lists_ranges_and_names() {
        assert_eq!(iso(NOW), "2026-11-23T22:59:46.000Z");
        assert_eq!(next("*/5 * * * *"), "2026-11-23T23:00:00.000Z");
        assert_eq!(next("0 2 * * *"), "2026-11-24T02:00:00.000Z");
        assert_eq!(next("15,45 8-17/3 * * *"), "2026-11-24T08:15:00.000Z");
        assert_eq!(next("0 0 1 jan,mar-Dec *"), "2026-12-01T00:00:00.000Z");
    }

    #[test]
    fn both_days_must_match_and_sunday_has_two_numbers() {
        assert_eq!(next("0 0 13 * FRI"), "2027-08-13T00:00:00.000Z");
        assert_eq!(next("0 0 * * 7"), next("0 0 * * sun"));
        assert_eq!(next("0 0 29 2 *"), "2028-02-29T00:00:00.000Z");
    }

    #[test]
    fn what_is_no_expression_or_never_comes_true_is_refused() {
        for text in ["nope", "* * * *", "60 * * * *", "*/0 * * * *", "5-1 * * * *", "0 0 30 2 *", "* * * * * *", ""] {
            assert_eq!(Cron::parse(text), None, "{text}");
        }
    }
}
