//! RFC 3339, the time format of the API in annotations and JSON.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

/// Seconds since the Unix epoch and nanoseconds of `2026-11-25T08:17:00.123Z` or with an offset
/// like `+01:00`. `None` for anything else.
pub(crate) fn parse_rfc3339(text: &str) -> Option<(i64, i32)> {
    let time: Timestamp = text.parse().ok()?;
    Some((time.as_second(), time.subsec_nanosecond()))
}

/// The same as a point in time; `None` also for times before 1970.
pub(crate) fn parse_system_time(text: &str) -> Option<SystemTime> {
    let (seconds, nanos) = parse_rfc3339(text)?;
    let since_epoch = Duration::new(seconds.try_into().ok()?, nanos.try_into().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since_epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_go_writes() {
        assert_eq!(parse_rfc3339("2026-11-25T08:17:00Z"), Some((1_795_594_620, 0)));
        let with_offset = parse_rfc3339("2026-11-25T09:17:00.123456789+01:00");
        assert_eq!(with_offset, Some((1_795_594_620, 123_456_789)));
        for bad in ["", "2026-11-25", "2026-02-29T08:17:00Z", "yesterday", "2026-11-25T08:17:00"] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
        assert_eq!(parse_system_time("1960-01-01T00:00:00Z"), None);
    }
}
