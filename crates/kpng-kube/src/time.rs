//! The two time formats of the API: RFC 3339 text, in annotations and JSON, and nothing else.

use std::time::{Duration, SystemTime};

/// Seconds since the Unix epoch and nanoseconds of `2026-11-25T08:17:00.123Z` or with an offset
/// like `+01:00`. `None` for anything else. Leap seconds count as the second after.
pub(crate) fn parse_rfc3339(text: &str) -> Option<(i64, i32)> {
    let (date, time) = text.split_once(['T', 't'])?;
    let days = days_since_epoch(date)?;
    let offset_at = time.find(['Z', 'z', '+', '-'])?;
    let (time, offset) = time.split_at(offset_at);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hours, minutes, seconds] = numbers(time, ':', [2, 2, 2])?;
    if hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    let seconds = days * 86_400 + hours * 3600 + minutes * 60 + seconds;
    Some((seconds - offset_seconds(offset)?, nanoseconds(fraction)?))
}

/// The same as a point in time; `None` also for times before 1970.
pub(crate) fn parse_system_time(text: &str) -> Option<SystemTime> {
    let (seconds, nanos) = parse_rfc3339(text)?;
    let since_epoch = Duration::new(seconds.try_into().ok()?, nanos.try_into().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since_epoch)
}

/// Days between 1970-01-01 and a date of the Gregorian calendar.
fn days_since_epoch(date: &str) -> Option<i64> {
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let february = if leap { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month = usize::try_from(month).ok()?.checked_sub(1)?;
    if year == 0 || !(1..=*months.get(month)?).contains(&day) {
        return None;
    }
    let before = year - 1;
    let days_before_year = before * 365 + before / 4 - before / 100 + before / 400;
    let days_in_year: i64 = months[..month].iter().sum::<i64>() + day - 1;
    // 719,162 days lie between 0001-01-01 and 1970-01-01.
    Some(days_before_year + days_in_year - 719_162)
}

fn offset_seconds(offset: &str) -> Option<i64> {
    if offset.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let [hours, minutes] = numbers(offset.get(1..)?, ':', [2, 2])?;
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

fn nanoseconds(fraction: &str) -> Option<i32> {
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    digits.parse().ok()
}

/// Exactly `N` numbers of the given lengths between separators.
fn numbers<const N: usize>(text: &str, separator: char, lengths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next()?;
        if part.len() != length || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(i64, i32)>) {
        assert_eq!(parse_rfc3339(text), expected, "{text}");
    }

    #[test]
    fn times_that_go_writes() {
        check("1970-01-01T00:00:00Z", Some((0, 0)));
        check("2000-02-29T12:30:15Z", Some((951_827_415, 0)));
        check("2026-11-25T08:17:00.5Z", Some((1_795_594_620, 500_000_000)));
        check("2026-11-25T09:17:00.123456789+01:00", Some((1_795_594_620, 123_456_789)));
        check("2026-11-25T02:47:00-05:30", Some((1_795_594_620, 0)));
        check("1969-12-31T23:59:59Z", Some((-1, 0)));
    }

    #[test]
    fn what_is_no_time() {
        for text in [
            "",
            "now",
            "2026-11-25",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-11-25T24:00:00Z",
            "2026-11-25T08:17:00",
            "2026-11-25T08:17:00.Z",
            "2026-11-25T08:17:00+1:00",
            "2026-11-25T08:17:00Zé",
            "+026-11-25T08:17:00Z",
            "2026-11-25T08:17:00+é",
        ] {
            check(text, None);
        }
        assert_eq!(parse_system_time("1969-12-31T23:59:59Z"), None);
    }

    #[test]
    fn the_calendar_agrees_with_counting() {
        let mut days = 0;
        for year in 1970..2405 {
            for month in 1..=12 {
                for day in 1..=31 {
                    if let Some(found) = days_since_epoch(&format!("{year:04}-{month:02}-{day:02}"))
                    {
                        assert_eq!(found, days, "{year}-{month}-{day}");
                        days += 1;
                    }
                }
            }
        }
        assert_eq!(days, 435 * 365 + 106, "435 years with 106 leap days");
    }
}
