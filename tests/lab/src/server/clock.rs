//! Time as the servers print it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Unix time in seconds.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// Calendar fields in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Civil {
    pub(crate) year: i64,
    pub(crate) month: u32,
    pub(crate) day: u32,
    pub(crate) hour: u32,
    pub(crate) minute: u32,
    pub(crate) second: u32,
    pub(crate) millisecond: u32,
    /// 0 is Sunday.
    pub(crate) weekday: u32,
}

/// Splits Unix seconds into the proleptic Gregorian calendar.
pub(crate) fn civil(seconds: f64) -> Civil {
    let milliseconds = (seconds * 1000.0).floor() as i64;
    let (days, in_day) = (milliseconds.div_euclid(86_400_000), milliseconds.rem_euclid(86_400_000));
    // Years begin in March here, so that the leap day is the last one of a year.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * march_month + 2) / 5 + 1) as u32;
    let month = (if march_month < 10 { march_month + 3 } else { march_month - 9 }) as u32;
    Civil {
        year: year_of_era + era * 400 + i64::from(month <= 2),
        month,
        day,
        hour: (in_day / 3_600_000) as u32,
        minute: (in_day / 60_000 % 60) as u32,
        second: (in_day / 1000 % 60) as u32,
        millisecond: (in_day % 1000) as u32,
        weekday: (days + 4).rem_euclid(7) as u32,
    }
}

/// As Marathon prints it: `2026-11-23T23:02:03.119Z`.
pub(crate) fn iso(seconds: f64) -> String {
    let c = civil(seconds);
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", c.year, c.month, c.day, c.hour, c.minute, c.second, c.millisecond)
}

/// As Metronome prints it: `2026-11-23T22:59:01.121+0000`.
pub(crate) fn iso_offset(seconds: f64) -> String {
    iso(seconds).replace('Z', "+0000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_printed_as_marathon_and_metronome_do() {
        assert_eq!(iso(1_795_478_013.25), "2026-11-23T23:53:33.250Z");
        assert_eq!(iso(0.0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso_offset(951_782_400.0), "2000-02-29T00:00:00.000+0000");
        assert_eq!(civil(1_795_478_013.0).weekday, 1, "23 November 2026 is a Monday");
    }
}
