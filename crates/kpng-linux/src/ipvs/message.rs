//! Encoding and decoding: `linux/ip_vs.h`, in the order of attributes that ipvsadm has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::{Command, Destination, FoundDestination, Service, ServiceKey, Timeouts};
use crate::genetlink::{HEADER_LEN, begin};
use crate::netlink::{Attr, Message, MessageBuf, attrs};
use crate::rtnetlink::Family;

const VERSION: u8 = 1;

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const SET_DEST: u8 = 6;
const DEL_DEST: u8 = 7;
const GET_DEST: u8 = 8;
const SET_CONFIG: u8 = 12;

/// `IPVS_CMD_ATTR_*`.
const SERVICE: u16 = 1;
const DEST: u16 = 2;
const TIMEOUT_TCP: u16 = 4;
const TIMEOUT_TCP_FIN: u16 = 5;
const TIMEOUT_UDP: u16 = 6;

/// `IPVS_SVC_ATTR_*`.
const SVC_AF: u16 = 1;
const SVC_PROTOCOL: u16 = 2;
const SVC_ADDR: u16 = 3;
const SVC_PORT: u16 = 4;
const SVC_FWMARK: u16 = 5;
const SVC_SCHED_NAME: u16 = 6;
const SVC_FLAGS: u16 = 7;
const SVC_TIMEOUT: u16 = 8;
const SVC_NETMASK: u16 = 9;
/// Statistics with 32-bit numbers, which wrap, and with 64-bit ones (Linux 4.1).
const SVC_STATS: u16 = 10;
const SVC_STATS64: u16 = 12;

/// `IPVS_STATS_ATTR_CONNS`.
const STATS_CONNS: u16 = 1;

/// `IPVS_DEST_ATTR_*`.
const DEST_ADDR: u16 = 1;
const DEST_PORT: u16 = 2;
const DEST_FWD_METHOD: u16 = 3;
const DEST_WEIGHT: u16 = 4;
const DEST_U_THRESH: u16 = 5;
const DEST_L_THRESH: u16 = 6;
const DEST_ACTIVE_CONNS: u16 = 7;
const DEST_INACT_CONNS: u16 = 8;
const DEST_ADDR_FAMILY: u16 = 11;

/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 1;
/// `IP_VS_SVC_F_SCHED1`.
const FALLBACK: u32 = 8;
/// `IP_VS_SVC_F_SCHED3`.
const TAG: u32 = 0x20;
/// `IP_VS_CONN_F_FWD_MASK` and `IP_VS_CONN_F_MASQ`.
const FORWARD_MASK: u32 = 7;
const MASQ: u32 = 0;

pub(super) fn list_services(family: u16) -> MessageBuf {
    let mut message = MessageBuf::new();
    begin(&mut message, family, GET_SERVICE, VERSION);
    message
}

pub(super) fn get_service(family: u16, key: ServiceKey) -> MessageBuf {
    let mut message = list_services(family);
    message.nest(SERVICE, |m| put_key(m, key));
    message
}

pub(super) fn list_destinations(family: u16, key: ServiceKey) -> MessageBuf {
    let mut message = MessageBuf::new();
    begin(&mut message, family, GET_DEST, VERSION);
    message.nest(SERVICE, |m| put_key(m, key));
    message
}

/// All three have to be there; 0 leaves one as it is.
pub(super) fn set_timeouts(family: u16, timeouts: &Timeouts) -> MessageBuf {
    let mut message = MessageBuf::new();
    begin(&mut message, family, SET_CONFIG, VERSION);
    message.put_u32(TIMEOUT_TCP, seconds(timeouts.tcp));
    message.put_u32(TIMEOUT_TCP_FIN, seconds(timeouts.tcp_fin));
    message.put_u32(TIMEOUT_UDP, seconds(timeouts.udp));
    message
}

pub(super) fn command(m: &mut MessageBuf, family: u16, command: &Command) {
    let mut begin = |command| begin(m, family, command, VERSION);
    match command {
        Command::AddService(_) => begin(NEW_SERVICE),
        Command::SetService(_) => begin(SET_SERVICE),
        Command::DeleteService(_) => begin(DEL_SERVICE),
        Command::AddDestination(..) => begin(NEW_DEST),
        Command::SetDestination(..) => begin(SET_DEST),
        Command::DeleteDestination(..) => begin(DEL_DEST),
    }
    match command {
        Command::AddService(service) | Command::SetService(service) => {
            m.nest(SERVICE, |m| put_service(m, service));
        }
        Command::DeleteService(key) => m.nest(SERVICE, |m| put_key(m, *key)),
        Command::AddDestination(key, to)
        | Command::SetDestination(key, to)
        | Command::DeleteDestination(key, to) => {
            m.nest(SERVICE, |m| put_key(m, *key));
            m.nest(DEST, |m| put_destination(m, to));
        }
    }
}

fn put_key(m: &mut MessageBuf, key: ServiceKey) {
    m.put_u16(SVC_AF, key.family().number().into());
    match key {
        ServiceKey::Address { address, protocol, port } => {
            m.put_u16(SVC_PROTOCOL, protocol.into());
            m.put_bytes(SVC_ADDR, &padded(address));
            m.put_u16_be(SVC_PORT, port);
        }
        ServiceKey::Mark { mark, .. } => m.put_u32(SVC_FWMARK, mark),
    }
}

fn put_service(m: &mut MessageBuf, service: &Service) {
    put_key(m, service.key);
    m.put_str(SVC_SCHED_NAME, &service.scheduler);
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let flags = flag(service.persistence.is_some(), PERSISTENT)
        | flag(service.falls_back, FALLBACK)
        | flag(service.tagged, TAG);
    let mut flags_and_mask = flags.to_ne_bytes().to_vec();
    flags_and_mask.extend_from_slice(&u32::MAX.to_ne_bytes());
    m.put_bytes(SVC_FLAGS, &flags_and_mask);
    m.put_u32(SVC_TIMEOUT, seconds(service.persistence));
    // How much of a client's address counts: an address mask, or the length of a prefix.
    match service.key.family() {
        Family::V4 => m.put_u32(SVC_NETMASK, u32::MAX),
        Family::V6 => m.put_u32(SVC_NETMASK, 128),
    }
}

fn put_destination(m: &mut MessageBuf, to: &Destination) {
    m.put_u16(DEST_ADDR_FAMILY, Family::of(to.address).number().into());
    m.put_bytes(DEST_ADDR, &padded(to.address));
    m.put_u16_be(DEST_PORT, to.port);
    m.put_u32(DEST_FWD_METHOD, MASQ);
    m.put_u32(DEST_WEIGHT, to.weight);
    m.put_u32(DEST_U_THRESH, 0);
    m.put_u32(DEST_L_THRESH, 0);
}

/// An address as `union nf_inet_addr` has it.
fn padded(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn seconds(time: Option<Duration>) -> u32 {
    time.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX))
}

fn find(within: &[u8], kind: u16) -> Option<Attr<'_>> {
    attrs(within).find(|attr| attr.kind == kind)
}

fn part(reply: Message<'_>, kind: u16) -> Option<&[u8]> {
    Some(reply.attrs(HEADER_LEN).find(|attr| attr.kind == kind)?.payload)
}

fn number(within: &[u8], kind: u16) -> Option<u32> {
    find(within, kind)?.u32()
}

fn address(within: &[u8], kind: u16, family: Family) -> Option<IpAddr> {
    let bytes: [u8; 16] = find(within, kind)?.payload.try_into().ok()?;
    Some(match family {
        Family::V4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        Family::V6 => Ipv6Addr::from(bytes).into(),
    })
}

/// The key of the virtual service of a reply, and how many connections it was given.
pub(super) fn connections(reply: Message<'_>) -> Option<(ServiceKey, u64)> {
    let all = part(reply, SERVICE)?;
    let conns = |kind| find(find(all, kind)?.payload, STATS_CONNS);
    let wide = conns(SVC_STATS64).and_then(|attr| attr.payload.try_into().ok());
    let narrow = || conns(SVC_STATS)?.u32().map(u64::from);
    Some((key(all)?, wide.map(u64::from_ne_bytes).or_else(narrow)?))
}

/// The virtual service of a reply.
pub(super) fn service(reply: Message<'_>) -> Option<Service> {
    let all = part(reply, SERVICE)?;
    let key = key(all)?;
    let flags = find(all, SVC_FLAGS)?.payload.first_chunk().copied().map(u32::from_ne_bytes)?;
    let timeout = Duration::from_secs(number(all, SVC_TIMEOUT)?.into());
    Some(Service {
        key,
        scheduler: find(all, SVC_SCHED_NAME)?.str()?.to_owned(),
        persistence: (flags & PERSISTENT != 0).then_some(timeout),
        falls_back: flags & FALLBACK != 0,
        tagged: flags & TAG != 0,
    })
}

fn key(all: &[u8]) -> Option<ServiceKey> {
    let family = match i32::from(find(all, SVC_AF)?.u16()?) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    Some(match number(all, SVC_FWMARK) {
        Some(mark) => ServiceKey::Mark { family, mark },
        None => ServiceKey::Address {
            address: address(all, SVC_ADDR, family)?,
            protocol: u8::try_from(find(all, SVC_PROTOCOL)?.u16()?).ok()?,
            port: find(all, SVC_PORT)?.u16_be()?,
        },
    })
}

/// The destination of a reply about a service of this family.
pub(super) fn destination(reply: Message<'_>, family: Family) -> Option<FoundDestination> {
    let all = part(reply, DEST)?;
    // A tunnel's end may be of the other family.
    let family = match find(all, DEST_ADDR_FAMILY).and_then(|attr| attr.u16()).map(i32::from) {
        Some(libc::AF_INET) => Family::V4,
        Some(libc::AF_INET6) => Family::V6,
        _ => family,
    };
    let destination = Destination {
        address: address(all, DEST_ADDR, family)?,
        port: find(all, DEST_PORT)?.u16_be()?,
        weight: number(all, DEST_WEIGHT)?,
    };
    let (active, inactive) = (number(all, DEST_ACTIVE_CONNS)?, number(all, DEST_INACT_CONNS)?);
    Some(FoundDestination {
        destination,
        is_translated: number(all, DEST_FWD_METHOD)? & FORWARD_MASK == MASQ,
        connections: active.saturating_add(inactive),
    })
}
