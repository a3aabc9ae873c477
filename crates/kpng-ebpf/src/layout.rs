//! Keys and values of the maps, byte by byte as `bpf/types.h` has them.
//!
//! Structures are written and read here and nowhere else. Ports are in network order, all other
//! numbers in the machine's.

mod read;

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use kpng_core::model::{Family, Protocol};
use kpng_core::plan::Target;

pub(crate) use read::{address_of, endpoint_of, frontend_of, frontend_text, member_of, range_of};

/// A key or a value.
pub(crate) type Bytes<const N: usize> = [u8; N];

/// `struct frontend_key`.
pub(crate) type FrontendKey = Bytes<20>;
/// `struct frontend`.
pub(crate) type Frontend = Bytes<40>;
/// `struct target_key`.
pub(crate) type TargetKey = Bytes<8>;
/// `struct endpoint`.
pub(crate) type Endpoint = Bytes<20>;
/// `struct member_key`.
pub(crate) type MemberKey = Bytes<32>;
/// `struct range_key`.
pub(crate) type RangeKey = Bytes<24>;
/// `struct address`.
pub(crate) type Address = Bytes<16>;
/// `struct config`.
pub(crate) type Config = Bytes<48>;

/// The set of ranges that pods have their addresses in.
pub(crate) const POD_RANGES: u32 = 1;
/// The set of ranges that cluster IPs are from.
pub(crate) const SERVICE_RANGES: u32 = 2;
/// The first number of a frontend's set.
pub(crate) const FIRST_SOURCES: u32 = 16;

/// Flags of the node's addresses: node ports are served there, for the node's own sockets only.
pub(crate) const NODE_PORTS: u32 = 1;
/// See [`NODE_PORTS`].
pub(crate) const ONLY_NODE: u32 = 2;

/// Puts fields one after the other.
struct Writer<const N: usize> {
    bytes: Bytes<N>,
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put<const M: usize>(mut self, field: [u8; M]) -> Self {
        self.bytes[self.at..self.at + M].copy_from_slice(&field);
        self.at += M;
        self
    }
}

/// An address, IPv4 as ::ffff:a.b.c.d.
pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The unspecified address of a family, which stands for the node's own.
pub(crate) fn any(family: Family) -> Address {
    match family {
        Family::V4 => Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0).octets(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.octets(),
    }
}

/// The key of a frontend.
pub(crate) fn frontend_key(at: Address, port: u16, protocol: Option<Protocol>) -> FrontendKey {
    let protocol = protocol.map_or(0, Protocol::number);
    Writer::new().put(at).put(port.to_be_bytes()).put([protocol]).bytes
}

/// What becomes of a packet of one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    Forward { pool: u32, count: u16, masquerade: bool },
    Reject,
    Drop,
}

impl Choice {
    fn bytes(self) -> Bytes<8> {
        let (pool, count, action, masquerade) = match self {
            Self::Forward { pool, count, masquerade } => (pool, count, 1, masquerade),
            Self::Reject => (0, 0, 2, false),
            Self::Drop => (0, 0, 3, false),
        };
        let writer = Writer::new().put(pool.to_ne_bytes()).put(count.to_ne_bytes());
        writer.put([action, u8::from(masquerade)]).bytes
    }
}

/// The value of a frontend; choices by origin: pod, node, outside.
pub(crate) fn frontend(
    choices: [Choice; 3],
    service_port: u64,
    affinity_seconds: u32,
    sources: u32,
) -> Frontend {
    let [pod, node, outside] = choices.map(Choice::bytes);
    let writer = Writer::new().put(pod).put(node).put(outside).put(service_port.to_ne_bytes());
    writer.put(affinity_seconds.to_ne_bytes()).put(sources.to_ne_bytes()).bytes
}

/// The key of what closes the other ports of a cluster IP.
pub(crate) fn closed_key(ip: IpAddr) -> FrontendKey {
    frontend_key(address(ip), 0, None)
}

/// The value of what closes the other ports of a cluster IP.
pub(crate) fn closed() -> Frontend {
    frontend([Choice::Reject; 3], 0, 0, 0)
}

/// The key of a target of a pool.
pub(crate) fn target_key(pool: u32, index: u32) -> TargetKey {
    Writer::new().put(pool.to_ne_bytes()).put(index.to_ne_bytes()).bytes
}

/// An address with a port.
pub(crate) fn endpoint(target: Target) -> Endpoint {
    Writer::new().put(address(target.address)).put(target.port.to_be_bytes()).bytes
}

/// The membership of an endpoint in a set.
pub(crate) fn member_key(set: u64, target: Target) -> MemberKey {
    Writer::new().put(set.to_ne_bytes()).put(endpoint(target)).bytes
}

/// What is known of a socket that was sent to `target`.
pub(crate) fn peer_key(socket: u64, target: Target) -> MemberKey {
    member_key(socket, target)
}

/// The key of the frontend at this endpoint, for UDP.
pub(crate) fn udp_frontend_key(endpoint: &Endpoint) -> FrontendKey {
    let mut key = FrontendKey::from(*endpoint);
    key[18] = Protocol::Udp.number();
    key
}

/// Whether the frontend belongs to the service port whose endpoint `member` is.
pub(crate) fn is_of_service_port(frontend: &Frontend, member: &MemberKey) -> bool {
    frontend[24..32] == member[..8]
}

/// The membership of a range of addresses in a set.
pub(crate) fn range_key(set: u32, range: IpNet) -> RangeKey {
    let before = if range.addr().is_ipv4() { 32 + 96 } else { 32 };
    let length = before + u32::from(range.prefix_len());
    let writer = Writer::new().put(length.to_ne_bytes()).put(set.to_ne_bytes());
    writer.put(address(range.network())).bytes
}

/// What programs take for constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Constants {
    pub(crate) node_netns: u64,
    pub(crate) node: [Address; 2],
    pub(crate) snat_first: u16,
    pub(crate) snat_count: u16,
    pub(crate) detects_pods: [bool; 2],
    pub(crate) pods_by_device: bool,
}

impl Constants {
    pub(crate) fn bytes(&self) -> Config {
        let writer = Writer::new().put(self.node_netns.to_ne_bytes());
        let writer = writer.put(self.node[0]).put(self.node[1]);
        let writer = writer.put(self.snat_first.to_ne_bytes()).put(self.snat_count.to_ne_bytes());
        let [v4, v6] = self.detects_pods.map(u8::from);
        writer.put([v4, v6, u8::from(self.pods_by_device)]).bytes
    }
}
