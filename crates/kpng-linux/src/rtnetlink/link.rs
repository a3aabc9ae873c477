//! Links: listing and changing network interfaces.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};

use super::Rtnetlink;
use crate::netlink::{Message, MessageBuf};
use crate::{Error, Result};

/// The length of `struct ifinfomsg`.
const HEADER_LEN: usize = 16;
const IFF_UP: u32 = libc::IFF_UP as u32;
/// `VETH_INFO_PEER` (linux/veth.h).
const VETH_INFO_PEER: u16 = 1;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The number that names it within its namespace, never 0.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its flags (`IFF_*`).
    pub flags: u32,
    /// The largest packet it carries, in bytes.
    pub mtu: u32,
    /// The index of the bridge or bond that it is part of.
    pub master: Option<u32>,
    /// The driver's name for its type ("veth", "bridge"), for virtual links.
    pub kind: Option<String>,
    /// What its frames look like (`ARPHRD_*`).
    pub hardware: u16,
}

impl Link {
    /// Whether it is switched on.
    pub fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// Whether the kernel has found it operational: it is switched on, and has another end that is
    /// too. The kernel can take a second to say so.
    pub fn is_running(&self) -> bool {
        self.flags & libc::IFF_RUNNING as u32 != 0
    }

    /// Whether it is the loopback interface.
    pub fn is_loopback(&self) -> bool {
        self.flags & libc::IFF_LOOPBACK as u32 != 0
    }

    /// Whether its frames begin with an Ethernet header.
    pub fn is_ethernet(&self) -> bool {
        matches!(self.hardware, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK)
    }

    /// Whether its frames are packets, with no header of a link layer, as those of tunnels.
    pub fn is_bare(&self) -> bool {
        const RAWIP: u16 = 519;
        const IP6GRE: u16 = 823;
        let tunnel = matches!(self.hardware, libc::ARPHRD_TUNNEL | libc::ARPHRD_TUNNEL6);
        let other = matches!(self.hardware, libc::ARPHRD_SIT | libc::ARPHRD_IPGRE | IP6GRE);
        tunnel || other || matches!(self.hardware, libc::ARPHRD_PPP | libc::ARPHRD_NONE | RAWIP)
    }
}

/// Changes of, and questions about, links.
impl Rtnetlink {
    /// All links, by index.
    ///
    /// # Errors
    /// As [`crate::netlink::Socket::list`].
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut message = message(libc::RTM_GETLINK, 0, 0, None);
        let mut links = self.socket.list(&"list links", &mut message, decode)?;
        links.sort_unstable_by_key(|link| link.index);
        Ok(links)
    }

    /// The link with this name.
    ///
    /// # Errors
    /// [`Error::NoLink`] when there is none.
    pub fn link(&mut self, name: &str) -> Result<Link> {
        let no_link = || Error::NoLink { name: name.to_owned() };
        let mut message = message(libc::RTM_GETLINK, 0, 0, None);
        message.put_str(libc::IFLA_IFNAME, name);
        let mut link = None;
        let result = self.socket.query(&format_args!("find link {name}"), &mut message, |reply| {
            link = decode(reply);
            Ok(())
        });
        match result {
            Err(error) if error.errno() == Some(rustix::io::Errno::NODEV) => Err(no_link()),
            Err(error) => Err(error),
            Ok(()) => link.ok_or_else(no_link),
        }
    }

    /// Creates a pair of virtual Ethernet interfaces: `name` here, and `peer` in the network
    /// namespace `peer_namespace`.
    ///
    /// # Errors
    /// [`Error::Kernel`] with `EEXIST` when a name is taken.
    pub fn add_veth(&mut self, name: &str, peer: &str, peer_namespace: impl AsFd) -> Result<()> {
        let fd = peer_namespace.as_fd().as_raw_fd().cast_unsigned();
        self.add_link(name, "veth", |m| {
            m.nest(libc::IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.put_raw(&[0; HEADER_LEN]);
                    m.put_str(libc::IFLA_IFNAME, peer);
                    m.put_u32(libc::IFLA_NET_NS_FD, fd);
                });
            });
        })
    }

    /// Creates a bridge.
    ///
    /// # Errors
    /// [`Error::Kernel`] with `EEXIST` when the name is taken.
    pub fn add_bridge(&mut self, name: &str) -> Result<()> {
        self.add_link(name, "bridge", |_| {})
    }

    /// Creates a dummy, which is there to have addresses: what is sent through it disappears.
    ///
    /// # Errors
    /// [`Error::Kernel`] with `EEXIST` when the name is taken, with `EOPNOTSUPP` when the kernel has no
    /// dummies.
    pub fn add_dummy(&mut self, name: &str) -> Result<()> {
        self.add_link(name, "dummy", |_| {})
    }

    /// Removes a link, and with it the other end of a veth pair.
    ///
    /// # Errors
    /// [`Error::Kernel`] with `EOPNOTSUPP` for a physical link.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut message = message(libc::RTM_DELLINK, 0, index, None);
        self.socket.request(&format_args!("delete link {index}"), &mut message)
    }

    /// Switches a link on.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let mut message = message(libc::RTM_NEWLINK, 0, index, Some(true));
        self.socket.request(&format_args!("switch link {index} on"), &mut message)
    }

    /// Switches a link off.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub fn set_down(&mut self, index: u32) -> Result<()> {
        let mut message = message(libc::RTM_NEWLINK, 0, index, Some(false));
        self.socket.request(&format_args!("switch link {index} off"), &mut message)
    }

    /// Makes a link part of the bridge with the index `master`, or of none.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> Result<()> {
        self.change(index, &format_args!("set the master of link {index} to {master:?}"), |m| {
            m.put_u32(libc::IFLA_MASTER, master.unwrap_or(0));
        })
    }

    /// Renames a link.
    ///
    /// # Errors
    /// [`Error::Kernel`] with `EEXIST` when the name is taken.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<()> {
        self.change(index, &format_args!("rename link {index} to {name}"), |m| {
            m.put_str(libc::IFLA_IFNAME, name);
        })
    }

    /// Sets the largest packet that a link carries, in bytes.
    ///
    /// # Errors
    /// [`Error::Kernel`] with `EINVAL` when the link does not support it.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        self.change(index, &format_args!("set the MTU of link {index} to {mtu}"), |m| {
            m.put_u32(libc::IFLA_MTU, mtu);
        })
    }

    fn add_link(
        &mut self,
        name: &str,
        kind: &str,
        data: impl FnOnce(&mut MessageBuf),
    ) -> Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = message(libc::RTM_NEWLINK, flags as u16, 0, None);
        message.put_str(libc::IFLA_IFNAME, name);
        message.nest(libc::IFLA_LINKINFO, |m| {
            m.put_str(libc::IFLA_INFO_KIND, kind);
            data(m);
        });
        self.socket.request(&format_args!("add {kind} link {name}"), &mut message)
    }

    fn change(
        &mut self,
        index: u32,
        what: &dyn fmt::Display,
        fill: impl FnOnce(&mut MessageBuf),
    ) -> Result<()> {
        let mut message = message(libc::RTM_NEWLINK, 0, index, None);
        fill(&mut message);
        self.socket.request(what, &mut message)
    }
}

/// A message with `struct ifinfomsg`; `up` switches the link on or off.
fn message(kind: u16, flags: u16, index: u32, up: Option<bool>) -> MessageBuf {
    let mut header = [0; HEADER_LEN];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Some(up) = up {
        let state = if up { IFF_UP } else { 0 };
        header[8..12].copy_from_slice(&state.to_ne_bytes());
        header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    let mut message = MessageBuf::new();
    message.begin(kind, flags);
    message.put_raw(&header);
    message
}

/// The link that a message tells of.
pub(super) fn decode(message: Message<'_>) -> Option<Link> {
    if message.kind != libc::RTM_NEWLINK && message.kind != libc::RTM_DELLINK {
        return None;
    }
    let number =
        |at: usize| message.payload.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let mut link = Link {
        index: number(4)?,
        name: String::new(),
        flags: number(8)?,
        mtu: 0,
        master: None,
        kind: None,
        hardware: message.payload.get(2..4)?.try_into().ok().map(u16::from_ne_bytes)?,
    };
    for attr in message.attrs(HEADER_LEN) {
        match attr.kind {
            libc::IFLA_IFNAME => attr.str()?.clone_into(&mut link.name),
            libc::IFLA_MTU => link.mtu = attr.u32()?,
            libc::IFLA_MASTER => link.master = attr.u32(),
            libc::IFLA_LINKINFO => {
                let mut parts = attr.attrs();
                let kind = parts.find(|part| part.kind == libc::IFLA_INFO_KIND);
                link.kind = kind.and_then(|kind| kind.str()).map(str::to_owned);
            }
            _ => {}
        }
    }
    Some(link)
}
