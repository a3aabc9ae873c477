//! Notices when somebody else changes a table.

use super::{Nftables, SUBSYSTEM, Table};
use crate::error::{Error, Result};
use crate::netlink::{Protocol, RECEIVE_BUFFER, Socket, attrs};

/// `NFNLGRP_NFTABLES` as a bit of the group mask.
const GROUP: u32 = 1 << 6;

/// Watches the kernel's notifications for changes of tables by others.
///
/// The kernel reports every element that anybody adds while such a socket is open, which costs the
/// one who adds: it is best opened after a large change of one's own.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
    own_port: u32,
    tables: Vec<Table>,
}

impl Monitor {
    /// Watches these tables; changes made through `own` do not count.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses the subscription.
    pub fn open(own: &Nftables, tables: impl IntoIterator<Item = Table>) -> Result<Self> {
        let socket = Socket::open(Protocol::Netfilter, GROUP)?;
        let tables = tables.into_iter().collect();
        let own_port = own.socket.port()?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BUFFER], own_port, tables })
    }

    /// Whether somebody else changed one of the tables since the last call, or may have: when
    /// notifications were lost, that is not known. Never blocks.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket cannot be read.
    pub fn disturbed(&mut self) -> Result<bool> {
        let mut disturbed = false;
        loop {
            match self.socket.recv(&mut self.buffer) {
                Ok(Some(datagram)) => {
                    disturbed |= is_disturbance(datagram, self.own_port, &self.tables);
                }
                Ok(None) => return Ok(disturbed),
                Err(Error::Overrun { .. }) => disturbed = true,
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_disturbance(mut datagram: &[u8], own_port: u32, tables: &[Table]) -> bool {
    while let Some((header, rest)) = datagram.split_at_checked(16) {
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let length = word(0) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let (by, payload) = (word(12), rest.get(..length.saturating_sub(16)).unwrap_or_default());
        // Attribute 1 is the table's name in every message of the subsystem but that of a new
        // generation, where it is 4 bytes of number.
        let table = attrs(payload.get(4..).unwrap_or_default()).find(|attr| attr.kind == 1);
        let name = table.and_then(|attr| attr.str());
        let is_it = |table: &Table| {
            name == Some(&table.name) && payload.first() == Some(&table.family.number())
        };
        let ours = tables.iter().any(is_it);
        if kind >> 8 == SUBSYSTEM && by != own_port && ours {
            return true;
        }
        datagram = datagram.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    false
}
