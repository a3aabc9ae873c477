//! Every name and address that is given to the kernel.
//!
//! They are stable across versions: a restarted process finds its objects by them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kpng_core::model::Family;
use kpng_core::plan::Origin;
use kpng_linux::nft::{Data, Field, SetDef, Table, TableFamily};

pub(crate) const SERVICES: &str = "services";
pub(crate) const NODE_PORTS: &str = "node-ports";
pub(crate) const REJECTED: &str = "rejected";
pub(crate) const REJECTED_NODE_PORTS: &str = "rejected-node-ports";
pub(crate) const DROPPED: &str = "dropped";
pub(crate) const DROPPED_NODE_PORTS: &str = "dropped-node-ports";
pub(crate) const STRANGERS: &str = "strangers";
pub(crate) const GUARDED: &str = "guarded";
pub(crate) const SOURCES: &str = "sources";
pub(crate) const CLUSTER_IPS: &str = "cluster-ips";
pub(crate) const NODE_IPS: &str = "node-ips";
pub(crate) const PODS: &str = "pods";
/// The routing table by which answers to clients end on this node, and the priority of the rule that
/// leads there: before what others make of packets by their addresses.
pub(crate) const ROUTE_TABLE: u32 = 27_504;
pub(crate) const ROUTE_PRIORITY: u32 = 50;

pub(crate) const SERVICE_CIDRS: &str = "service-cidrs";

/// The table of a family.
pub(crate) fn table(family: Family) -> Table {
    let family = match family {
        Family::V4 => TableFamily::Ip,
        Family::V6 => TableFamily::Ip6,
    };
    Table::new(family, "kpng-userspace")
}

/// The address of the loopback to which packets of this origin are led: so a connection tells where it
/// comes from. Link-local for IPv4 (RFC 3927), a unique local one for IPv6 (RFC 4193).
pub(crate) fn address(family: Family, origin: Origin) -> IpAddr {
    let number = number(origin) as u8;
    match family {
        Family::V4 => Ipv4Addr::new(169, 254, 107, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd6b, 0x706e, 0x67, 0, 0, 0, 0, number.into()).into(),
    }
}

/// How keys of sets name an origin.
pub(crate) fn number(origin: Origin) -> u32 {
    match origin {
        Origin::Pod => 1,
        Origin::Node => 2,
        Origin::Outside => 3,
    }
}

/// The prefix length of a single address.
pub(crate) fn single(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

pub(crate) fn vip_key() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport]
}

pub(crate) fn node_port_key() -> Vec<Field> {
    vec![Field::L4Proto, Field::Dport]
}

pub(crate) fn from(mut key: Vec<Field>, origin: Origin) -> Vec<Field> {
    key.push(Field::Constant(number(origin)));
    key
}

/// The sets whose elements count packets: what is found there is refused.
pub(crate) const COUNTED: [&str; 5] =
    [REJECTED, REJECTED_NODE_PORTS, DROPPED, DROPPED_NODE_PORTS, STRANGERS];

/// All sets. A frontend is in those of its origins.
pub(crate) fn sets() -> Vec<SetDef> {
    let set = |name, key: Vec<Field>, interval, comment| {
        let (data, dynamic, counted) = (Data::None, None, COUNTED.contains(&name));
        SetDef { name, key, data, interval, dynamic, counted, comment }
    };
    let vips = |name, comment| set(name, from(vip_key(), Origin::Pod), false, comment);
    let ports = |name, comment| set(name, from(node_port_key(), Origin::Pod), false, comment);
    let guarded = [vip_key(), vec![Field::Saddr]].concat();
    vec![
        vips(SERVICES, "what the proxy serves, for 1 pods, 2 the node, 3 others"),
        ports(NODE_PORTS, "the same on node ports"),
        vips(REJECTED, "what is refused"),
        ports(REJECTED_NODE_PORTS, "the same on node ports"),
        vips(DROPPED, "what is dropped"),
        ports(DROPPED_NODE_PORTS, "the same on node ports"),
        set(GUARDED, vip_key(), false, "not everybody may come in"),
        set(STRANGERS, vip_key(), false, "the same: counts who was dropped"),
        set(SOURCES, guarded, true, "who may"),
        set(CLUSTER_IPS, vec![Field::Daddr], false, "closed but for their ports"),
        set(NODE_IPS, vec![Field::Daddr], false, "where node ports are served"),
        set(PODS, vec![Field::Saddr], true, "where pods have their addresses"),
        set(SERVICE_CIDRS, vec![Field::Daddr], true, "where cluster IPs come from"),
    ]
}
