//! Addresses of interfaces.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use super::{Family, Link, Rtnetlink, octets, route};
use crate::Result;
use crate::netlink::{Message, MessageBuf};

/// The length of `struct ifaddrmsg`.
const HEADER_LEN: usize = 8;

/// An IP address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The index of the interface.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The node's own address, also on point-to-point links.
    pub address: IpAddr,
    /// The length of the prefix of the network that is on the link.
    pub prefix_len: u8,
    /// How far the address is valid (`RT_SCOPE_*`): see [`is_global`](Self::is_global).
    pub scope: u8,
    /// Its flags (`IFA_F_*`).
    pub flags: u32,
}

impl InterfaceAddress {
    /// Whether the address is valid beyond its link.
    pub fn is_global(&self) -> bool {
        self.scope == libc::RT_SCOPE_UNIVERSE
    }

    /// Whether the address can be used: not one that still is, or failed to be, checked for
    /// duplicates, and not one that runs out.
    pub fn is_usable(&self) -> bool {
        let unfit = libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED | libc::IFA_F_DEPRECATED;
        self.flags & unfit == 0
    }
}

/// Changes of, and questions about, addresses.
impl Rtnetlink {
    /// All addresses of all interfaces of both families, by interface.
    ///
    /// # Errors
    /// As [`crate::netlink::Socket::list`].
    pub fn addresses(&mut self) -> Result<Vec<InterfaceAddress>> {
        let links = self.links()?;
        self.addresses_of(&links)
    }

    /// The address of the given family that the kernel uses to reach the world: the source of its
    /// default route, or else the first usable global address of an interface that is up and not
    /// the loopback. `None` when the node has none.
    ///
    /// # Errors
    /// As [`crate::netlink::Socket::list`].
    pub fn primary_address(&mut self, family: Family) -> Result<Option<IpAddr>> {
        // Any address on the Internet does: nothing is sent.
        let world: IpAddr = match family {
            Family::V4 => Ipv4Addr::new(1, 1, 1, 1).into(),
            Family::V6 => Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111).into(),
        };
        match self.source_of_route_to(world) {
            Ok(Some(source)) => return Ok(Some(source)),
            Ok(None) => {}
            Err(error) => match error.errno() {
                // These are what "no route" is called.
                Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL) => {}
                _ => return Err(error),
            },
        }
        let mut links = self.links()?;
        links.retain(|link| link.is_up() && !link.is_loopback());
        let addresses = self.addresses_of(&links)?;
        let fits = |candidate: &InterfaceAddress| {
            Family::of(candidate.address) == family && candidate.is_global()
        };
        let mut candidates = addresses.iter().filter(|candidate| fits(candidate));
        Ok(candidates.find(|candidate| candidate.is_usable()).map(|found| found.address))
    }

    /// Gives an interface an address. An IPv6 address is usable at once: duplicates are not looked
    /// for.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `EEXIST` when the interface has it.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix_len: u8) -> Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = message(libc::RTM_NEWADDR, flags as u16, index, address, prefix_len);
        let what = format_args!("add address {address}/{prefix_len} to link {index}");
        self.socket.request(&what, &mut message)
    }

    /// Gives an interface a single address that packets may be sent to, and that the kernel chooses to
    /// send from only when there is no other: one for use within this node.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `EEXIST` when the interface has it.
    pub fn add_inner_address(&mut self, index: u32, address: IpAddr) -> Result<()> {
        let address_and_len = (address, if address.is_ipv4() { 32 } else { 128 });
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        // The scope tells for IPv4.
        let scope = libc::RT_SCOPE_HOST;
        let mut message = scoped_message(libc::RTM_NEWADDR, flags, index, address_and_len, scope);
        if address.is_ipv6() {
            // It is valid for ever, and never preferred (`struct ifa_cacheinfo`).
            let (preferred, valid) = (0_u32, u32::MAX);
            let lifetimes = [preferred, valid, 0, 0].map(u32::to_ne_bytes).concat();
            message.put_bytes(libc::IFA_CACHEINFO, &lifetimes);
        }
        let what = format_args!("add address {address} to link {index}, for use within the node");
        self.socket.request(&what, &mut message)
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `EADDRNOTAVAIL` when the interface does not have it.
    pub fn delete_address(&mut self, index: u32, address: IpAddr, prefix_len: u8) -> Result<()> {
        let mut message = message(libc::RTM_DELADDR, 0, index, address, prefix_len);
        let what = format_args!("delete address {address}/{prefix_len} of link {index}");
        self.socket.request(&what, &mut message)
    }

    fn addresses_of(&mut self, links: &[Link]) -> Result<Vec<InterfaceAddress>> {
        let names: BTreeMap<u32, &str> =
            links.iter().map(|link| (link.index, link.name.as_str())).collect();
        let mut message = MessageBuf::new();
        message.begin(libc::RTM_GETADDR, 0);
        message.put_raw(&[0; HEADER_LEN]);
        self.socket.list(&"list addresses", &mut message, |entry| {
            let mut address = decode(entry)?;
            // An interface that is not listed has come or gone between the two listings: there is
            // a notification for it.
            (*names.get(&address.index)?).clone_into(&mut address.name);
            Some(address)
        })
    }

    fn source_of_route_to(&mut self, destination: IpAddr) -> Result<Option<IpAddr>> {
        let mut source = None;
        let mut message = route::lookup(destination);
        let what = format_args!("look up the route to {destination}");
        self.socket.query(&what, &mut message, |reply| {
            source = route::preferred_source(reply);
            Ok(())
        })?;
        Ok(source)
    }
}

fn message(kind: u16, flags: u16, index: u32, address: IpAddr, prefix_len: u8) -> MessageBuf {
    let scope = if address.is_loopback() { libc::RT_SCOPE_HOST } else { libc::RT_SCOPE_UNIVERSE };
    scoped_message(kind, flags, index, (address, prefix_len), scope)
}

fn scoped_message(
    kind: u16,
    flags: u16,
    index: u32,
    (address, prefix_len): (IpAddr, u8),
    scope: u8,
) -> MessageBuf {
    let no_dad = if address.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
    let mut message = MessageBuf::new();
    message.begin(kind, flags);
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&[Family::of(address).number(), prefix_len, no_dad, scope]);
    header[4..].copy_from_slice(&index.to_ne_bytes());
    message.put_raw(&header);
    message.put_bytes(libc::IFA_LOCAL, &octets(address));
    message.put_bytes(libc::IFA_ADDRESS, &octets(address));
    message
}

/// The address that a message tells of, without the name of its interface.
pub(super) fn decode(message: Message<'_>) -> Option<InterfaceAddress> {
    let &[_family, prefix_len, flags, scope, i0, i1, i2, i3] =
        message.payload.first_chunk::<HEADER_LEN>()?;
    if message.kind != libc::RTM_NEWADDR && message.kind != libc::RTM_DELADDR {
        return None;
    }
    let (mut address, mut local, mut flags) = (None, None, u32::from(flags));
    for attr in message.attrs(HEADER_LEN) {
        match attr.kind {
            libc::IFA_ADDRESS => address = attr.ip(),
            libc::IFA_LOCAL => local = attr.ip(),
            // The header has room for 8 of the flags only.
            libc::IFA_FLAGS => flags = attr.u32()?,
            _ => {}
        }
    }
    Some(InterfaceAddress {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        name: String::new(),
        // On a point-to-point link IFA_ADDRESS is the other end.
        address: local.or(address)?,
        prefix_len,
        scope,
        flags,
    })
}
