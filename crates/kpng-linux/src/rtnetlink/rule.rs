//! Policy routing: which routes a packet with a mark takes.
//!
//! The way to let packets for any address end on this node is a rule that sends marked packets to a
//! routing table of their own, with one route in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Family, Rtnetlink, octets};
use crate::Result;
use crate::netlink::{Message, MessageBuf};

/// The length of `struct fib_rule_hdr`, and of `struct rtmsg`.
const HEADER_LEN: usize = 12;
/// The index of `lo` in every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// `FR_ACT_TO_TBL`: look in a table (linux/fib_rules.h, as the attributes).
const TO_TABLE: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;

/// A rule that packets with a mark take the routes of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// Lower ones are asked first. The kernel's own are 0, for the node's addresses, and 32766.
    pub priority: u32,
    /// The mark, where the mask has bits.
    pub mark: u32,
    /// Which bits of the mark count.
    pub mask: u32,
    /// The table.
    pub table: u32,
}

/// Changes of, and questions about, policy routing.
impl Rtnetlink {
    /// All rules of a family that look at marks and then in a table.
    ///
    /// # Errors
    /// As [`crate::netlink::Socket::list`].
    pub fn rules(&mut self, family: Family) -> Result<Vec<Rule>> {
        let mut message = MessageBuf::new();
        message.begin(libc::RTM_GETRULE, 0);
        let mut header = [0; HEADER_LEN];
        header[0] = family.number();
        message.put_raw(&header);
        self.socket.list(&"list routing rules", &mut message, decode)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `EEXIST` when it is there.
    pub fn add_rule(&mut self, family: Family, rule: &Rule) -> Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let what = format_args!("add the routing rule for mark {:#x}", rule.mark);
        self.socket.request(&what, &mut rule_message(libc::RTM_NEWRULE, flags as u16, family, rule))
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `ENOENT` when it is not there.
    pub fn delete_rule(&mut self, family: Family, rule: &Rule) -> Result<()> {
        let what = format_args!("delete the routing rule for mark {:#x}", rule.mark);
        self.socket.request(&what, &mut rule_message(libc::RTM_DELRULE, 0, family, rule))
    }

    /// Puts a route into `table` by which all packets end on this node. It may be there.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] when the kernel refuses.
    pub fn add_local_route(&mut self, family: Family, table: u32) -> Result<()> {
        let what = format_args!("add the local default route of table {table}");
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut message = route_message(libc::RTM_NEWROUTE, flags as u16, family, table);
        self.socket.request(&what, &mut message)
    }

    /// Removes the route of [`Self::add_local_route`].
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `ESRCH` when it is not there.
    pub fn delete_local_route(&mut self, family: Family, table: u32) -> Result<()> {
        let what = format_args!("delete the local default route of table {table}");
        self.socket.request(&what, &mut route_message(libc::RTM_DELROUTE, 0, family, table))
    }

    /// Whether a packet with this mark to somewhere in the world ends on this node.
    ///
    /// # Errors
    /// As [`Self::next_hop`].
    pub fn is_local_by_mark(&mut self, family: Family, mark: u32) -> Result<bool> {
        // Addresses for documentation: no node has one.
        let world: IpAddr = match family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
        };
        Ok(self.marked_next_hop(world, mark)?.is_some_and(|hop| hop.is_local))
    }
}

fn rule_message(kind: u16, flags: u16, family: Family, rule: &Rule) -> MessageBuf {
    let mut message = MessageBuf::new();
    message.begin(kind, flags);
    let mut header = [0; HEADER_LEN];
    header[0] = family.number();
    header[7] = TO_TABLE;
    message.put_raw(&header);
    message.put_u32(FRA_PRIORITY, rule.priority);
    message.put_u32(FRA_FWMARK, rule.mark);
    message.put_u32(FRA_FWMASK, rule.mask);
    message.put_u32(FRA_TABLE, rule.table);
    message
}

fn decode(message: Message<'_>) -> Option<Rule> {
    if message.payload.get(7) != Some(&TO_TABLE) {
        return None;
    }
    let number =
        |kind| message.attrs(HEADER_LEN).find(|attr| attr.kind == kind).and_then(|attr| attr.u32());
    Some(Rule {
        priority: number(FRA_PRIORITY).unwrap_or_default(),
        mark: number(FRA_FWMARK)?,
        mask: number(FRA_FWMASK).unwrap_or(u32::MAX),
        table: number(FRA_TABLE)?,
    })
}

fn route_message(kind: u16, flags: u16, family: Family, table: u32) -> MessageBuf {
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut message = MessageBuf::new();
    message.begin(kind, flags);
    let mut header = [0; HEADER_LEN];
    header[0] = family.number();
    header[5] = libc::RTPROT_STATIC;
    header[6] = libc::RT_SCOPE_HOST;
    header[7] = libc::RTN_LOCAL;
    message.put_raw(&header);
    message.put_bytes(libc::RTA_DST, &octets(any));
    message.put_u32(libc::RTA_OIF, LOOPBACK_INDEX);
    message.put_u32(libc::RTA_TABLE, table);
    message
}
