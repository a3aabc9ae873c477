//! Where the JSON form of a field differs from its protobuf form.

use serde::{Deserialize, Deserializer};

use super::{IntOrString, Time};
use crate::time;

/// Go writes an empty list or map without `omitempty` as `null`.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An RFC 3339 string, or `null` for none.
pub(super) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let (seconds, nanos) = time::parse_rfc3339(&text)
        .ok_or_else(|| serde::de::Error::custom(format_args!("{text:?} is no RFC 3339 time")))?;
    Ok(Some(Time { seconds, nanos }))
}

/// A number, a string, or `null` for none.
pub(super) fn int_or_string<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<IntOrString>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i32),
        String(String),
    }
    Ok(Option::deserialize(deserializer)?.map(|either| match either {
        Either::Number(number) => IntOrString { kind: 0, number, string: String::new() },
        Either::String(string) => IntOrString { kind: 1, number: 0, string },
    }))
}
