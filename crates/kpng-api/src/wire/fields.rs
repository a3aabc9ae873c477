//! Fields that several messages have.
//!
//! Each is a pair of functions that undo each other, but for the order of addresses in a set.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kpng_core::model::Protocol;

use super::Invalid;
use crate::proto::localv1;

/// KPNG's form of a set of addresses: by family, sorted as text, each once.
pub(super) fn ip_set(addresses: impl IntoIterator<Item = IpAddr>) -> localv1::IpSet {
    let canonical: BTreeSet<_> = addresses.into_iter().map(|ip| ip.to_canonical()).collect();
    let texts = |of_family: fn(&IpAddr) -> bool| {
        let mut texts: Vec<_> =
            canonical.iter().filter(|ip| of_family(ip)).map(ToString::to_string).collect();
        texts.sort_unstable();
        texts
    };
    localv1::IpSet { v4: texts(IpAddr::is_ipv4), v6: texts(IpAddr::is_ipv6) }
}

/// The addresses of a set, those of IPv4 first. What is no address is left out.
pub(super) fn addresses_of(set: Option<localv1::IpSet>) -> Vec<IpAddr> {
    let set = set.unwrap_or_default();
    address_list(set.v4.iter().chain(&set.v6))
}

/// The addresses of a list. What is no address is left out.
pub(super) fn address_list<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|text| parse_address(text)).collect()
}

pub(super) fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

pub(super) fn address_texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(|ip| ip.to_canonical().to_string()).collect()
}

pub(super) fn network_texts(networks: &[IpNet]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}

/// The networks of a list. What is no CIDR is left out.
pub(super) fn network_list(texts: &[String]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| text.trim().parse().ok()).collect()
}

pub(super) fn string_map(map: &BTreeMap<Box<str>, Box<str>>) -> BTreeMap<String, String> {
    map.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

pub(super) fn boxed_map(map: BTreeMap<String, String>) -> BTreeMap<Box<str>, Box<str>> {
    map.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}

/// The text of an optional name: empty for none.
pub(super) fn text(name: Option<&str>) -> String {
    name.unwrap_or_default().to_owned()
}

/// An optional name: none when the text is empty.
pub(super) fn name<T: From<String>>(text: String) -> Option<T> {
    (!text.is_empty()).then(|| text.into())
}

/// The name of an object or a namespace.
pub(super) fn object_name(field: &str, value: String) -> Result<Arc<str>, Invalid> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if value.is_empty() {
        return Err(Invalid::Missing { field: field.to_owned() });
    }
    if !value.bytes().all(allowed) {
        return Err(Invalid::Name { field: field.to_owned(), value });
    }
    Ok(value.into())
}

/// A port number; `None` for 0.
pub(super) fn optional_port(
    field: fmt::Arguments<'_>,
    number: impl Into<i64>,
) -> Result<Option<u16>, Invalid> {
    let value = number.into();
    match u16::try_from(value) {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) => Err(Invalid::Port { field: field.to_string(), value }),
    }
}

/// A port number, which 0 is not.
pub(super) fn port(field: fmt::Arguments<'_>, number: impl Into<i64>) -> Result<u16, Invalid> {
    optional_port(field, number)?
        .ok_or_else(|| Invalid::Port { field: field.to_string(), value: 0 })
}

pub(super) fn protocol_number(protocol: Protocol) -> i32 {
    let protocol = match protocol {
        Protocol::Tcp => localv1::Protocol::Tcp,
        Protocol::Udp => localv1::Protocol::Udp,
        Protocol::Sctp => localv1::Protocol::Sctp,
    };
    protocol.into()
}

/// A protocol; `None` when it is not given.
pub(super) fn optional_protocol(
    field: fmt::Arguments<'_>,
    number: i32,
) -> Result<Option<Protocol>, Invalid> {
    match localv1::Protocol::try_from(number) {
        Ok(localv1::Protocol::UnknownProtocol) => Ok(None),
        Ok(localv1::Protocol::Tcp) => Ok(Some(Protocol::Tcp)),
        Ok(localv1::Protocol::Udp) => Ok(Some(Protocol::Udp)),
        Ok(localv1::Protocol::Sctp) => Ok(Some(Protocol::Sctp)),
        Err(_) => Err(Invalid::Unknown { field: field.to_string(), value: number.to_string() }),
    }
}

/// The number of a Service port on an endpoint.
pub(super) struct Override {
    pub(super) name: String,
    /// `None` for any.
    pub(super) protocol: Option<Protocol>,
    /// `None` when the endpoint does not have the port.
    pub(super) port: Option<u16>,
}

pub(super) fn port_overrides(
    field: &str,
    overrides: Vec<localv1::PortName>,
) -> Result<Vec<Override>, Invalid> {
    let convert = |(at, port): (usize, localv1::PortName)| {
        Ok(Override {
            name: port.name,
            protocol: optional_protocol(format_args!("{field}[{at}].Protocol"), port.protocol)?,
            port: optional_port(format_args!("{field}[{at}].Port"), port.port)?,
        })
    };
    overrides.into_iter().enumerate().map(convert).collect()
}
