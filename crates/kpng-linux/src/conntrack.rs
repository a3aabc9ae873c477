//! The kernel's connection tracking table (ctnetlink).
//!
//! Listing streams: an entry is shown and forgotten, so a table of any size costs the same memory.
//! Filters of the kernel only save work. What they let through is checked again here, because old
//! kernels ignore them; and nothing is ever deleted by a filter, because before Linux 5.8 that
//! empties the whole table.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use crate::Result;
use crate::netlink::{Attr, Attrs, Message, MessageBuf, Protocol, Socket};
use crate::rtnetlink::Family;

/// The length of `struct nfgenmsg`.
const HEADER_LEN: usize = 4;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where its packets come from.
    pub source: SocketAddr,
    /// Where they go.
    pub destination: SocketAddr,
}

/// One tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The IP protocol number (6 TCP, 17 UDP, 132 SCTP, …).
    pub protocol: u8,
    /// The direction of the first packet, as it was before address translation.
    pub original: Tuple,
    /// The direction of the answers: its source is the translated destination.
    pub reply: Tuple,
    /// The zone (0 unless somebody assigns zones).
    pub zone: u16,
    /// The kernel's name for this very entry: a later one with the same addresses has another.
    pub id: u32,
    /// `IPS_*` flags (linux/netfilter/nf_conntrack_common.h).
    pub status: u32,
    /// Whether `zone` holds for the original direction only.
    zone_of_original: bool,
}

impl Entry {
    /// Whether the destination was translated.
    pub fn is_dnat(&self) -> bool {
        self.status & IPS_DST_NAT != 0
    }

    /// The family of the addresses.
    pub fn family(&self) -> Family {
        Family::of(self.original.source.ip())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, original, reply, zone, .. } = self;
        let (from, to, by) = (original.source, original.destination, reply.source);
        write!(f, "protocol {protocol} from {from} to {to}, answered by {by}, zone {zone}")
    }
}

/// A connection to the conntrack table of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    kernel_filters: bool,
}

impl Conntrack {
    /// Opens the table of the calling thread's network namespace.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter, 0)?, kernel_filters: true })
    }

    /// Shows every entry of the family and the protocol to `visit`. Entries may come and go
    /// meanwhile. Protocols without ports (ICMP) are passed over.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] without CAP_NET_ADMIN or without conntrack in the kernel, or the
    /// first error of `visit`.
    pub fn dump(
        &mut self,
        family: Family,
        protocol: u8,
        mut visit: impl FnMut(&Entry) -> Result<()>,
    ) -> Result<()> {
        let what = "list conntrack entries";
        let mut show = |message: Message<'_>| match decode(message) {
            Some(entry) if entry.family() == family && entry.protocol == protocol => visit(&entry),
            _ => Ok(()),
        };
        if self.kernel_filters {
            match self.socket.dump(&what, &mut filtered_dump(family, protocol), &mut show) {
                // Refused before any entry was sent, so nothing is shown twice.
                Err(error) if matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::INVAL)) => {
                    self.kernel_filters = false;
                }
                result => return result,
            }
        }
        self.socket.dump(&what, &mut message(CT_GET, family), show)
    }

    /// Shows every entry of the protocol that was sent to this destination, as [`dump`](Self::dump)
    /// does; without an address, to this port of any address of the family. The kernel passes over
    /// others, which costs much less than showing them, where
    /// [`filters_in_kernel`](Self::filters_in_kernel) says so.
    ///
    /// # Errors
    /// As [`dump`](Self::dump).
    pub fn dump_to(
        &mut self,
        family: Family,
        protocol: u8,
        (address, port): (Option<IpAddr>, u16),
        mut visit: impl FnMut(&Entry) -> Result<()>,
    ) -> Result<()> {
        let mut filter_works = true;
        let mut show = |entry: &Entry| {
            let to = entry.original.destination;
            filter_works &= to.port() == port;
            let fits = to.port() == port && address.is_none_or(|address| to.ip() == address);
            if fits { visit(entry) } else { Ok(()) }
        };
        if self.kernel_filters {
            let what = format_args!("list conntrack entries to port {port}");
            let result =
                self.socket.dump(&what, &mut filtered_dump_to(family, protocol, address, port), {
                    |message: Message<'_>| match decode(message) {
                        Some(entry) if entry.protocol == protocol => show(&entry),
                        _ => Ok(()),
                    }
                });
            match result {
                // Refused before any entry was sent, so nothing is shown twice.
                Err(error) if matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::INVAL)) => {}
                result => {
                    self.kernel_filters = filter_works;
                    return result;
                }
            }
        }
        self.kernel_filters = false;
        self.dump(family, protocol, show)
    }

    /// Where the connection was sent to whose answers go this way, before address translation; `None`
    /// when there is no such connection.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] when the kernel refuses.
    pub fn original_destination(
        &mut self,
        protocol: u8,
        reply: &Tuple,
    ) -> Result<Option<SocketAddr>> {
        let mut message = message(CT_GET, Family::of(reply.source.ip()));
        message.nest(CTA_TUPLE_REPLY, |m| put_tuple(m, protocol, reply));
        let what = format_args!("find the connection that {} answers", reply.source);
        let mut found = None;
        let result = self.socket.query(&what, &mut message, |message| {
            found = decode(message).map(|entry| entry.original.destination);
            Ok(())
        });
        match result {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            result => result.map(|()| found),
        }
    }

    /// Whether the kernel filters listings, as far as is known: Linux before 5.8 does not.
    pub fn filters_in_kernel(&self) -> bool {
        self.kernel_filters
    }

    /// Deletes this very entry. An entry that is gone already is no error.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] when the kernel refuses.
    pub fn delete(&mut self, entry: &Entry) -> Result<()> {
        let what = format_args!("delete conntrack entry ({entry})");
        match self.socket.request(&what, &mut deletion(entry)) {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
            result => result,
        }
    }
}

/// A listing that the kernel filters by protocol (since Linux 5.8; older ones send everything).
fn filtered_dump(family: Family, protocol: u8) -> MessageBuf {
    let mut message = message(CT_GET, family);
    message.nest(CTA_FILTER, |m| {
        m.put_u32(CTA_FILTER_ORIG_FLAGS, CTA_FILTER_PROTO_NUM);
        m.put_u32(CTA_FILTER_REPLY_FLAGS, 0);
    });
    message.nest(CTA_TUPLE_ORIG, |m| {
        m.nest(CTA_TUPLE_PROTO, |m| m.put_u8(CTA_PROTO_NUM, protocol));
    });
    message
}

/// As [`filtered_dump`], and by the destination of the original direction. Not by IPv6 addresses:
/// the kernel (5.8 to 6.18 at least) passes over those that are equal and shows the others.
fn filtered_dump_to(
    family: Family,
    protocol: u8,
    address: Option<IpAddr>,
    port: u16,
) -> MessageBuf {
    let mut message = message(CT_GET, family);
    let address = address.filter(IpAddr::is_ipv4);
    let by_address = if address.is_some() { CTA_FILTER_IP_DST } else { 0 };
    message.nest(CTA_FILTER, |m| {
        let flags = CTA_FILTER_PROTO_NUM | CTA_FILTER_PROTO_DST_PORT | by_address;
        m.put_u32(CTA_FILTER_ORIG_FLAGS, flags);
        m.put_u32(CTA_FILTER_REPLY_FLAGS, 0);
    });
    message.nest(CTA_TUPLE_ORIG, |m| {
        if let Some(address) = address {
            m.nest(CTA_TUPLE_IP, |m| put_ip(m, [CTA_IP_V4_DST, CTA_IP_V6_DST], address));
        }
        m.nest(CTA_TUPLE_PROTO, |m| {
            m.put_u8(CTA_PROTO_NUM, protocol);
            m.put_u16_be(CTA_PROTO_DST_PORT, port);
        });
    });
    message
}

/// Tuple, zone and id together: the kernel deletes nothing when one of them differs.
fn deletion(entry: &Entry) -> MessageBuf {
    let mut message = message(CT_DELETE, entry.family());
    message.nest(CTA_TUPLE_ORIG, |m| {
        put_tuple(m, entry.protocol, &entry.original);
        if entry.zone_of_original {
            m.put_u16_be(CTA_TUPLE_ZONE, entry.zone);
        }
    });
    if !entry.zone_of_original {
        message.put_u16_be(CTA_ZONE, entry.zone);
    }
    message.put_u32_be(CTA_ID, entry.id);
    message
}

fn put_tuple(message: &mut MessageBuf, protocol: u8, tuple: &Tuple) {
    let Tuple { source, destination } = tuple;
    message.nest(CTA_TUPLE_IP, |m| {
        put_ip(m, [CTA_IP_V4_SRC, CTA_IP_V6_SRC], source.ip());
        put_ip(m, [CTA_IP_V4_DST, CTA_IP_V6_DST], destination.ip());
    });
    message.nest(CTA_TUPLE_PROTO, |m| {
        m.put_u8(CTA_PROTO_NUM, protocol);
        m.put_u16_be(CTA_PROTO_SRC_PORT, source.port());
        m.put_u16_be(CTA_PROTO_DST_PORT, destination.port());
    });
}

fn put_ip(message: &mut MessageBuf, kinds: [u16; 2], address: IpAddr) {
    match address {
        IpAddr::V4(address) => message.put_bytes(kinds[0], &address.octets()),
        IpAddr::V6(address) => message.put_bytes(kinds[1], &address.octets()),
    }
}

/// A message with `struct nfgenmsg`.
fn message(kind: u16, family: Family) -> MessageBuf {
    let mut message = MessageBuf::new();
    message.begin(((libc::NFNL_SUBSYS_CTNETLINK as u16) << 8) | kind, 0);
    message.put_raw(&[family.number(), libc::NFNETLINK_V0 as u8, 0, 0]);
    message
}

/// The entry in a message, or `None` for one without ports.
fn decode(message: Message<'_>) -> Option<Entry> {
    let (mut original, mut reply, mut zone, mut id, mut status) = (None, None, None, None, 0);
    for attr in message.attrs(HEADER_LEN) {
        match attr.kind {
            CTA_TUPLE_ORIG => original = DecodedTuple::from(attr.attrs()),
            CTA_TUPLE_REPLY => reply = DecodedTuple::from(attr.attrs()),
            CTA_ZONE => zone = attr.u16_be(),
            CTA_ID => id = attr.u32_be(),
            CTA_STATUS => status = attr.u32_be()?,
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    Some(Entry {
        protocol: original.protocol,
        original: original.tuple,
        reply: reply.tuple,
        zone: original.zone.or(zone).unwrap_or(0),
        id: id?,
        status,
        zone_of_original: original.zone.is_some(),
    })
}

struct DecodedTuple {
    protocol: u8,
    tuple: Tuple,
    zone: Option<u16>,
}

impl DecodedTuple {
    fn from(attrs: Attrs<'_>) -> Option<Self> {
        let (mut source, mut destination, mut zone) = (None, None, None);
        let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
        for attr in attrs {
            match attr.kind {
                CTA_TUPLE_IP => {
                    source = find(attr, [CTA_IP_V4_SRC, CTA_IP_V6_SRC]).and_then(|ip| ip.ip());
                    destination = find(attr, [CTA_IP_V4_DST, CTA_IP_V6_DST]).and_then(|ip| ip.ip());
                }
                CTA_TUPLE_PROTO => {
                    protocol = find(attr, [CTA_PROTO_NUM; 2]).and_then(|number| number.u8());
                    source_port =
                        find(attr, [CTA_PROTO_SRC_PORT; 2]).and_then(|port| port.u16_be());
                    destination_port =
                        find(attr, [CTA_PROTO_DST_PORT; 2]).and_then(|port| port.u16_be());
                }
                CTA_TUPLE_ZONE => zone = attr.u16_be(),
                _ => {}
            }
        }
        let tuple = Tuple {
            source: SocketAddr::new(source?, source_port?),
            destination: SocketAddr::new(destination?, destination_port?),
        };
        Some(Self { protocol: protocol?, tuple, zone })
    }
}

/// The first attribute within `nest` that is one of `kinds`.
fn find<'a>(nest: Attr<'a>, kinds: [u16; 2]) -> Option<Attr<'a>> {
    nest.attrs().find(|attr| kinds.contains(&attr.kind))
}

// linux/netfilter/nfnetlink_conntrack.h
const CT_GET: u16 = 1;
const CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
// `CTA_FILTER_F_*` (net/netfilter/nf_internals.h).
const CTA_FILTER_IP_DST: u32 = 1 << 1;
const CTA_FILTER_PROTO_NUM: u32 = 1 << 3;
const CTA_FILTER_PROTO_DST_PORT: u32 = 1 << 5;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
// linux/netfilter/nf_conntrack_common.h
const IPS_DST_NAT: u32 = 1 << 5;

#[cfg(test)]
mod tests;
