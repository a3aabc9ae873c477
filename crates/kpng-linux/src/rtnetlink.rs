//! Links, addresses, routes, rules and filters (rtnetlink).
//!
//! Everything happens in the network namespace of the thread that opened the socket, whichever
//! thread uses it later. Links are named by their index: a name can change hands.

mod address;
mod filter;
mod link;
mod monitor;
mod route;
mod rule;

pub use address::InterfaceAddress;
pub use filter::{BpfFilter, Direction, FilterPlace};
pub use link::Link;
pub use monitor::{AddressChange, AddressMonitor};
pub use route::{NextHop, Route};
pub use rule::Rule;

use crate::Result;
use crate::netlink::{Protocol, Socket};

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The kernel's number (`AF_*`), which fits the byte that netlink headers have for it.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    /// The family of `address`.
    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A connection to the kernel's network configuration.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: Socket,
}

impl Rtnetlink {
    /// Opens a connection to the network namespace of the calling thread.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Route, 0)? })
    }
}

/// The bytes of an address, as netlink carries them.
fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}
