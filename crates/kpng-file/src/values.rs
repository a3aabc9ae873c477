//! The values that both formats have: addresses, networks, ports, protocols, times, string maps.
//!
//! A value that is not understood is a fault with advice; nothing is guessed.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use kpng_core::model::{Protocol, ServicePort};

use crate::time;
use crate::yaml::{Node, Read, Value};

/// Labels or annotations.
pub(crate) type StringMap = BTreeMap<Box<str>, Box<str>>;

/// A Service port is referred to by a 16-bit index.
const MAX_PORTS: usize = 65_536;

/// An IP address. IPv4 addresses that are written as IPv6 (`::ffff:a.b.c.d`) count as IPv4, as in
/// Kubernetes.
pub(crate) fn address(node: &Node) -> Read<'_, IpAddr> {
    let text = node.text()?;
    let address: Result<IpAddr, _> = text.parse();
    address.map(|address| address.to_canonical()).map_err(|_| {
        node.fault(format!("{text:?} is no IP address: write one like 10.0.0.1 or \"fd00::1\""))
    })
}

/// A network. Blanks around it are ignored, as by the API.
pub(crate) fn network(node: &Node) -> Read<'_, IpNet> {
    let text = node.text()?;
    text.trim().parse().map_err(|_| {
        node.fault(format!("{text:?} is no CIDR: write one like 10.0.0.0/8 or \"fd00::/64\""))
    })
}

/// A port number.
pub(crate) fn port(node: &Node) -> Read<'_, u16> {
    let number = node.integer()?;
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| node.fault(format!("{number} is no port: give a number from 1 to 65535")))
}

/// A port number, where 0 stands for none.
pub(crate) fn optional_port(node: &Node) -> Read<'_, Option<u16>> {
    if node.integer()? == 0 { Ok(None) } else { port(node).map(Some) }
}

/// Kubernetes' name of a protocol.
pub(crate) fn protocol_name(node: &Node) -> Read<'_, Protocol> {
    let name = node.text()?;
    Protocol::from_name(name).ok_or_else(|| {
        node.fault(format!("unknown protocol {name:?}: the protocols are TCP, UDP and SCTP"))
    })
}

/// The timeout of ClientIP affinity.
pub(crate) fn affinity_timeout(node: &Node) -> Read<'_, Duration> {
    let seconds = node.integer()?;
    u64::try_from(seconds)
        .ok()
        .filter(|seconds| (1..=86_400).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            node.fault(format!("{seconds} is no affinity timeout: give 1 to 86400 seconds"))
        })
}

/// A point in time in seconds since the Unix epoch, given as RFC 3339 or as that number.
pub(crate) fn timestamp(node: &Node) -> Read<'_, i64> {
    let bad = |value: &dyn std::fmt::Debug| {
        node.fault(format!("{value:?} is no time: write one like 2026-11-25T08:17:00Z"))
    };
    match &node.value {
        Value::Integer(seconds) => i64::try_from(*seconds).map_err(|_| bad(seconds)),
        _ => {
            let text = node.text()?;
            time::parse_rfc3339(text).ok_or_else(|| bad(&text))
        }
    }
}

/// Labels or annotations.
pub(crate) fn string_map(node: &Node) -> Read<'_, StringMap> {
    node.entries()?
        .iter()
        .map(|(key, value)| Ok((key.name.as_str().into(), value.text()?.into())))
        .collect()
}

/// Checks that the ports of one Service can be told apart. `nodes` is where they were written.
pub(crate) fn check_ports<'a>(nodes: &'a [Node], ports: &[ServicePort]) -> Read<'a, ()> {
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (node, port) in nodes.iter().zip(ports) {
        let protocol = port.protocol;
        if !names.insert((&port.name, protocol)) {
            let name = &port.name;
            return Err(
                node.fault(format!("another {protocol} port is named {name:?}: rename one"))
            );
        }
        if !numbers.insert((port.port, protocol)) {
            let number = port.port;
            return Err(node.fault(format!("another port is {number}/{protocol}: remove one")));
        }
    }
    match nodes.get(MAX_PORTS) {
        None => Ok(()),
        Some(node) => Err(node.fault(format!("a Service has at most {MAX_PORTS} ports"))),
    }
}

/// The name of an object or of a namespace.
pub(crate) fn object_name(node: &Node) -> Read<'_, &str> {
    let name = node.text()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || !name.bytes().all(allowed) {
        let advice = "names have letters, digits, '-', '_' and '.'";
        return Err(node.fault(format!("{name:?} is no name of an object: {advice}")));
    }
    Ok(name)
}
