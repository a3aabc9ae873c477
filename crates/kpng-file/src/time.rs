//! RFC 3339, the only time format of the Kubernetes API, to and from seconds since the Unix epoch.
//!
//! Whatever [`format_rfc3339`] writes, [`parse_rfc3339`] reads as the same second.

/// Days from 0000-03-01, where the calculations below start, to 1970-01-01.
const EPOCH: i64 = 719_468;
const DAYS_OF_400_YEARS: i64 = 146_097;

/// The second of `2026-11-25T08:17:00.5Z`, or of a time with an offset like `+01:00`. `None` for
/// anything else. Fractions are cut off, a leap second counts as the one after.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    if !(1..=12).contains(&month) || !(1..=days_in_month(year, month)).contains(&day) {
        return None;
    }
    let (time, offset) = time.split_at(time.find(['Z', '+', '-'])?);
    let time = match time.split_once('.') {
        Some((time, fraction)) if is_number(fraction) => time,
        Some(_) => return None,
        None => time,
    };
    let [hours, minutes, seconds] = numbers(time, ':', [2, 2, 2])?;
    if hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    let of_day = hours * 3600 + minutes * 60 + seconds;
    Some(days_since_epoch(year, month, day) * 86_400 + of_day - offset_seconds(offset)?)
}

/// The text of a second; `None` outside of the years 0 to 9999.
pub(crate) fn format_rfc3339(seconds: i64) -> Option<String> {
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hours, minutes, seconds) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    (0..=9999)
        .contains(&year)
        .then(|| format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}Z"))
}

/// In the Gregorian calendar. Years are counted from March, so that the leap day is the last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = days_before_month((month + 9) % 12) + day - 1;
    let century_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + century_days + day_of_year - EPOCH
}

/// The inverse.
fn date(days_since_epoch: i64) -> (i64, i64, i64) {
    let days = days_since_epoch + EPOCH;
    let (era, of_era) = (days.div_euclid(DAYS_OF_400_YEARS), days.rem_euclid(DAYS_OF_400_YEARS));
    let leap_days = of_era / 1460 - of_era / 36_524 + of_era / 146_096;
    let year_of_era = (of_era - leap_days) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - days_before_month(from_march) + 1;
    let month = (from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

/// Days of the months before the given one, counted from March as 0.
fn days_before_month(from_march: i64) -> i64 {
    (153 * from_march + 2) / 5
}

fn days_in_month(year: i64, month: i64) -> i64 {
    let (next_year, next) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    days_since_epoch(next_year, next, 1) - days_since_epoch(year, month, 1)
}

fn offset_seconds(offset: &str) -> Option<i64> {
    if offset == "Z" {
        return Some(0);
    }
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let [hours, minutes] = numbers(offset.get(1..)?, ':', [2, 2])?;
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Exactly `N` numbers of the given lengths between separators.
fn numbers<const N: usize>(text: &str, separator: char, lengths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next().filter(|part| part.len() == length && is_number(part))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1969-12-31T23:59:59Z", Some(-1)),
            ("2000-02-29T12:30:15Z", Some(951_827_415)),
            ("2026-11-25T08:17:00.5Z", Some(1_795_594_620)),
            ("2026-11-25T09:17:00+01:00", Some(1_795_594_620)),
            ("2026-11-25T02:47:00-05:30", Some(1_795_594_620)),
            ("2026-12-31T23:59:60Z", Some(1_798_761_600)),
            ("", None),
            ("2026-11-25", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-02-29T00:00:00Z", None),
            ("2026-01-00T00:00:00Z", None),
            ("2026-11-25T24:00:00Z", None),
            ("2026-11-25T08:17:00", None),
            ("2026-11-25T08:17:00.Z", None),
            ("2026-11-25T08:17:00+é", None),
            ("+026-11-25T08:17:00Z", None),
        ] {
            assert_eq!(parse_rfc3339(text), expected, "{text}");
        }
    }

    #[test]
    fn the_calendar_agrees_with_counting() {
        let mut days = 0;
        for year in 1970..2405 {
            for month in 1..=12 {
                for day in 1..=days_in_month(year, month) {
                    assert_eq!(days_since_epoch(year, month, day), days, "{year}-{month}-{day}");
                    assert_eq!(date(days), (year, month, day));
                    days += 1;
                }
            }
        }
        assert_eq!(days, 435 * 365 + 106, "435 years with 106 leap days");
        assert_eq!(format_rfc3339(951_827_415).as_deref(), Some("2000-02-29T12:30:15Z"));
        assert_eq!(format_rfc3339(-62_167_219_201), None);
        assert_eq!(format_rfc3339(i64::MAX), None);
    }
}
