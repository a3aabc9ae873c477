//! Values of flags: what they may look like, and what is said when they do not.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use kpng_core::backend::Counting;

/// Values separated by commas. A type of its own, as clap takes a `Vec` for a repeated flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

/// A list of CIDRs.
pub(super) fn cidr_list(text: &str) -> Result<List<IpNet>, String> {
    list(text, |part| part.parse().map_err(|_| format!("{part:?} is no CIDR such as 10.0.0.0/8")))
}

/// A list of addresses.
pub(super) fn address_list(text: &str) -> Result<List<IpAddr>, String> {
    list(text, |part| part.parse().map_err(|_| format!("{part:?} is no IP address")))
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<List<T>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(parse).collect::<Result<_, _>>().map(List)
}

/// `--service-metrics`
pub(super) fn counting(text: &str) -> Result<Counting, String> {
    match text {
        "auto" => Ok(Counting::Auto),
        "true" => Ok(Counting::Always),
        "false" => Ok(Counting::Never),
        _ => Err(format!("{text:?} is none of auto, true and false")),
    }
}

/// A duration as Go writes it: `1m30s`, `500ms`, `2h`; a number alone counts seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is no duration such as 500ms, 10s or 1m30s");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| error())?;
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(error()),
        };
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| error())?;
        rest = tail;
    }
    if text.is_empty() { Err(error()) } else { Ok(total) }
}

/// `--nodeport-addresses`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's own primary address of each family.
    Primary,
    /// All addresses of the node.
    All,
    /// The node's addresses in these ranges.
    Cidrs(Vec<IpNet>),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" | "" => Ok(Self::Primary),
            "all" => Ok(Self::All),
            cidrs => cidr_list(cidrs)
                .map(|list| Self::Cidrs(list.0))
                .map_err(|error| format!("{error}; `primary` and `all` are possible too")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let ms = |text| duration(text).map(|duration| duration.as_millis());
        assert_eq!(ms("1m30s"), Ok(90_000));
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("1.5h"), Ok(5_400_000));
        assert_eq!(ms("10"), Ok(10_000));
        assert_eq!(ms("0"), Ok(0));
        for bad in ["", "s", "1x", "1m2", "-1s", "1e400h"] {
            assert!(ms(bad).unwrap_err().contains("is no duration"), "{bad}");
        }
    }
}
