//! Routes.

use std::net::IpAddr;

use super::{Family, Rtnetlink, octets};
use crate::netlink::{Message, MessageBuf};
use crate::{Error, Result};

/// The length of `struct rtmsg`.
const HEADER_LEN: usize = 12;
/// The route is the administrator's (`RTPROT_STATIC`).
const STATIC: u8 = libc::RTPROT_STATIC;
/// The gateway is on the link, whatever the addresses say (linux/rtnetlink.h).
const RTNH_F_ONLINK: u32 = 4;

/// A unicast route in the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads, and the length of the prefix; `0.0.0.0` or `::` with 0 is the default.
    pub destination: (IpAddr, u8),
    /// The router. `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The index of the interface. It can be left out where the gateway decides it.
    pub interface: Option<u32>,
    /// The source address that the node uses on this route.
    pub source: Option<IpAddr>,
    /// Take the gateway to be on the link, even when no address of the interface says so.
    pub on_link: bool,
}

/// Where a packet goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The index of the interface that it leaves by.
    pub interface: u32,
    /// It goes to a router, not to the destination itself.
    pub is_router: bool,
    /// It does not leave: the destination is this node.
    pub is_local: bool,
}

/// Changes of, and questions about, routes.
impl Rtnetlink {
    /// Where a packet of this node to `destination` goes first; `None` when there is no route.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] and the like, when the kernel does not say.
    pub fn next_hop(&mut self, destination: IpAddr) -> Result<Option<NextHop>> {
        self.marked_next_hop(destination, 0)
    }

    /// Does as [`Self::next_hop`], for packets with a mark.
    pub(super) fn marked_next_hop(
        &mut self,
        destination: IpAddr,
        mark: u32,
    ) -> Result<Option<NextHop>> {
        let mut hop = None;
        let mut message = lookup(destination);
        message.put_u32(libc::RTA_MARK, mark);
        let what = format_args!("look up the route to {destination}");
        let result = self.socket.query(&what, &mut message, |reply| {
            let attr = |kind| reply.attrs(HEADER_LEN).find(|attr| attr.kind == kind);
            hop = attr(libc::RTA_OIF).and_then(|attr| attr.u32()).map(|interface| NextHop {
                interface,
                is_router: [libc::RTA_GATEWAY, libc::RTA_VIA]
                    .into_iter()
                    .any(|k| attr(k).is_some()),
                is_local: reply.payload.get(7) == Some(&libc::RTN_LOCAL),
            });
            Ok(())
        });
        match result {
            // There are many errors for "no route".
            Err(Error::Kernel { .. }) => Ok(None),
            result => result.map(|()| hop),
        }
    }

    /// Adds a route, or replaces the one with the same destination.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `ENETUNREACH` when the gateway is not on a link.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let (destination, prefix_len) = route.destination;
        let what = format_args!("add the route to {destination}/{prefix_len}");
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.socket.request(&what, &mut message(libc::RTM_NEWROUTE, flags as u16, route))
    }

    /// Removes a route.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `ESRCH` when there is no such route.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        let (destination, prefix_len) = route.destination;
        let what = format_args!("delete the route to {destination}/{prefix_len}");
        self.socket.request(&what, &mut message(libc::RTM_DELROUTE, 0, route))
    }
}

fn message(kind: u16, flags: u16, route: &Route) -> MessageBuf {
    let (destination, prefix_len) = route.destination;
    let direct = route.gateway.is_none() && destination.is_ipv4();
    let mut message = MessageBuf::new();
    message.begin(kind, flags);
    let mut header = [0; HEADER_LEN];
    header[0] = Family::of(destination).number();
    header[1] = prefix_len;
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = STATIC;
    header[6] = if direct { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
    header[7] = libc::RTN_UNICAST;
    if route.on_link {
        header[8..].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    message.put_raw(&header);
    message.put_bytes(libc::RTA_DST, &octets(destination));
    if let Some(gateway) = route.gateway {
        message.put_bytes(libc::RTA_GATEWAY, &octets(gateway));
    }
    if let Some(interface) = route.interface {
        message.put_u32(libc::RTA_OIF, interface);
    }
    if let Some(source) = route.source {
        message.put_bytes(libc::RTA_PREFSRC, &octets(source));
    }
    message
}

/// The question which route leads to `destination`.
pub(super) fn lookup(destination: IpAddr) -> MessageBuf {
    let mut message = MessageBuf::new();
    message.begin(libc::RTM_GETROUTE, 0);
    let mut header = [0; HEADER_LEN];
    header[0] = Family::of(destination).number();
    header[1] = if destination.is_ipv4() { 32 } else { 128 };
    message.put_raw(&header);
    message.put_bytes(libc::RTA_DST, &octets(destination));
    message
}

/// The source address on the unicast route that the kernel answered with.
pub(super) fn preferred_source(message: Message<'_>) -> Option<IpAddr> {
    let unicast = message.payload.get(7) == Some(&libc::RTN_UNICAST);
    let mut attrs = message.attrs(HEADER_LEN);
    attrs.find(|attr| unicast && attr.kind == libc::RTA_PREFSRC)?.ip()
}
