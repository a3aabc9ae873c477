//! Notifications about links and addresses.
//!
//! For most readers a notification says only that something changed, and they list again. So lost
//! notifications cost nothing: an overrun is a change too.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use super::{InterfaceAddress, Link, address, link};
use crate::netlink::{Protocol, RECEIVE_BUFFER, Socket, messages};
use crate::{Error, Result};

/// What happened to a link or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressChange {
    /// A link came or changed.
    Link(Link),
    /// A link went.
    LinkGone(Link),
    /// An address came or changed. Its `name` is empty.
    Address(InterfaceAddress),
    /// An address went. Its `name` is empty.
    AddressGone(InterfaceAddress),
    /// Something that is not known, as notifications were lost.
    Unknown,
}

/// Tells when links or addresses of a network namespace change.
///
/// For an event loop: wait until the descriptor ([`AsFd`]) is readable, then call
/// [`changed`](Self::changed), which never blocks.
#[derive(Debug)]
pub struct AddressMonitor {
    socket: Socket,
    buffer: Vec<u8>,
}

impl AddressMonitor {
    /// Watches the network namespace of the calling thread. Open it before the first listing, so
    /// that nothing is missed in between.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn open() -> Result<Self> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let socket = Socket::open(Protocol::Route, groups.cast_unsigned())?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Whether anything changed since the last call. Takes all waiting notifications.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket fails.
    pub fn changed(&mut self) -> Result<bool> {
        let mut changed = false;
        loop {
            match self.socket.recv(&mut self.buffer) {
                Ok(Some(_)) | Err(Error::Overrun { .. }) => changed = true,
                Ok(None) => return Ok(changed),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives everything that changed since the last call to `visit`, whoever changed it.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket fails.
    pub fn read(&mut self, mut visit: impl FnMut(AddressChange)) -> Result<()> {
        loop {
            let datagram = match self.socket.recv(&mut self.buffer) {
                Ok(Some(datagram)) => datagram,
                Ok(None) => return Ok(()),
                Err(Error::Overrun { .. }) => {
                    visit(AddressChange::Unknown);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for message in messages(datagram) {
                let change = match message.kind {
                    libc::RTM_NEWLINK => link::decode(message).map(AddressChange::Link),
                    libc::RTM_DELLINK => link::decode(message).map(AddressChange::LinkGone),
                    libc::RTM_NEWADDR => address::decode(message).map(AddressChange::Address),
                    libc::RTM_DELADDR => address::decode(message).map(AddressChange::AddressGone),
                    _ => None,
                };
                change.into_iter().for_each(&mut visit);
            }
        }
    }

    /// Blocks until there is something to [`read`](Self::read). `false` when `timeout` passed first.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel cannot wait.
    pub fn wait_readable(&self, timeout: Duration) -> Result<bool> {
        self.socket.wait(timeout)
    }

    /// Blocks until something changes. `false` when `timeout` passed first.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket fails.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        self.socket.wait(timeout)?;
        self.changed()
    }
}

impl AsFd for AddressMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for AddressMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
