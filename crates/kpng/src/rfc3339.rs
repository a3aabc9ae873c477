//! Times as Go writes them in JSON (RFC 3339, in UTC).
//!
//! The zero time of Go stands for never.

use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_OF_DAY: u64 = 86_400;

/// `2026-10-01T08:17:00.5Z`. Times before 1970 count as 1970.
pub(crate) fn format(time: Option<SystemTime>) -> String {
    let Some(time) = time else { return "0001-01-01T00:00:00Z".to_owned() };
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, of_day) =
        (since_epoch.as_secs() / SECONDS_OF_DAY, since_epoch.as_secs() % SECONDS_OF_DAY);
    let (year, month, day) = date(days);
    let (hours, minutes, seconds) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let mut fraction = format!(".{:09}", since_epoch.subsec_nanos());
    fraction.truncate(fraction.trim_end_matches(['0', '.']).len());
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}{fraction}Z")
}

/// Year, month and day. Years are counted by themselves: this runs only when a probe asks.
fn date(mut days_since_epoch: u64) -> (u64, usize, u64) {
    let mut year = 1970;
    while days_since_epoch >= days_of_year(year) {
        days_since_epoch -= days_of_year(year);
        year += 1;
    }
    let february = days_of_year(year) - 337;
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days_since_epoch >= months[month] {
        days_since_epoch -= months[month];
        month += 1;
    }
    (year, month + 1, days_since_epoch + 1)
}

fn days_of_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    if leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(nanoseconds: u64, expected: &str) {
        assert_eq!(format(Some(UNIX_EPOCH + Duration::from_nanos(nanoseconds))), expected);
    }

    #[test]
    fn times_are_as_go_writes_them() {
        const S: u64 = 1_000_000_000;
        assert_eq!(format(None), "0001-01-01T00:00:00Z");
        check(0, "1970-01-01T00:00:00Z");
        check(500_000_000, "1970-01-01T00:00:00.5Z");
        check(1_000, "1970-01-01T00:00:00.000001Z");
        check(951_782_399 * S, "2000-02-28T23:59:59Z");
        check(951_782_400 * S, "2000-02-29T00:00:00Z");
        check(1_709_251_199 * S + 999_999_999, "2024-02-29T23:59:59.999999999Z");
        check(1_767_225_599 * S, "2025-12-31T23:59:59Z");
        check(4_107_542_400 * S, "2100-03-01T00:00:00Z");
    }
}
