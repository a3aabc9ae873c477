//! RFC 3339, the only time format of the Kubernetes API, to and from seconds since the Unix epoch.

use jiff::Timestamp;

/// The second of `2026-11-25T08:17:00.5Z`, or of a time with an offset like `+01:00`. `None` for
/// anything else. Fractions are cut off.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    text.parse().ok().map(Timestamp::as_second)
}

/// The text of a second; `None` outside of the years that can be written.
pub(crate) fn format_rfc3339(seconds: i64) -> Option<String> {
    Timestamp::from_second(seconds).ok().map(|time| time.to_string())
}
