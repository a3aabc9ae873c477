//! Traffic control, as far as it is needed to give packets of a link to a BPF program: the qdisc `clsact`,
//! and filters with a program that decides itself (`tc filter … bpf direct-action`).
//!
//! A filter is known by its place, and one that takes the place of another does so between two packets.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Rtnetlink;
use crate::Result;
use crate::netlink::{Message, MessageBuf};

/// The length of `struct tcmsg`.
const HEADER_LEN: usize = 20;

/// `TCA_*` (linux/rtnetlink.h).
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// `TCA_BPF_*` (linux/pkt_cls.h).
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// `TC_H_CLSACT`: where this qdisc, and `ingress` in its stead, is at a link.
const PARENT: u32 = 0xffff_fff1;
/// Its handle.
const HANDLE: u32 = 0xffff_0000;
/// `ETH_P_ALL` in network order.
const ALL_PROTOCOLS: u32 = 3_u16.to_be() as u32;

const CLSACT: &str = "clsact";
const BPF: &str = "bpf";

/// Which packets of a link a filter is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Those that arrive.
    Ingress,
    /// Those that leave.
    Egress,
}

impl Direction {
    /// Where filters of the qdisc are (`TC_H_MIN_INGRESS`, `TC_H_MIN_EGRESS`).
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// Where a filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilterPlace {
    /// The index of the link.
    pub link: u32,
    /// Which packets it is given.
    pub direction: Direction,
    /// Filters with lower ones come first; not 0. All of one priority are of one kind.
    pub priority: u16,
    /// Its number among those of the same priority; not 0.
    pub handle: u32,
}

/// A filter that gives packets to a BPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfFilter {
    /// Its name, for people.
    pub name: String,
    /// The kernel's number of the program.
    pub program: u32,
}

/// Changes of, and questions about, filters.
impl Rtnetlink {
    /// The qdiscs that have filters for packets that arrive, by link: their kinds, `clsact` or `ingress`.
    ///
    /// # Errors
    /// As [`crate::netlink::Socket::list`].
    pub fn ingress_qdiscs(&mut self) -> Result<Vec<(u32, String)>> {
        let mut message = message(libc::RTM_GETQDISC, 0, [0; 4]);
        self.socket.list(&"list qdiscs", &mut message, |entry| {
            let [link, _, parent, _] = numbers(entry)?;
            (parent == PARENT).then(|| Some((link, kind(entry)?)))?
        })
    }

    /// Gives a link the qdisc `clsact`, which lets all packets pass but for what filters do.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `EEXIST` when it has it, or the older `ingress`.
    pub fn add_clsact(&mut self, link: u32) -> Result<()> {
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        let mut message = message(libc::RTM_NEWQDISC, flags, [link, HANDLE, PARENT, 0]);
        message.put_str(TCA_KIND, CLSACT);
        self.socket.request(&format_args!("add the qdisc clsact to link {link}"), &mut message)
    }

    /// Takes the qdisc `clsact` from a link, with all filters.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] when the kernel refuses.
    pub fn delete_clsact(&mut self, link: u32) -> Result<()> {
        let mut message = message(libc::RTM_DELQDISC, 0, [link, HANDLE, PARENT, 0]);
        message.put_str(TCA_KIND, CLSACT);
        self.socket.request(&format_args!("delete the qdisc clsact of link {link}"), &mut message)
    }

    /// Gives packets to a program, which decides what becomes of them. It takes the place of the
    /// program that is given them there now, if one is.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `EINVAL` when the link has no `clsact`, with `ENOENT` when the kernel
    /// has no BPF filters.
    pub fn set_bpf_filter(
        &mut self,
        place: FilterPlace,
        name: &str,
        program: BorrowedFd<'_>,
    ) -> Result<()> {
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        let mut message = filter_message(libc::RTM_NEWTFILTER, flags, place);
        message.put_str(TCA_KIND, BPF);
        message.nest(TCA_OPTIONS, |m| {
            m.put_u32(TCA_BPF_FD, program.as_raw_fd().cast_unsigned());
            m.put_str(TCA_BPF_NAME, name);
            m.put_u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
        self.socket.request(&format_args!("set the {place}"), &mut message)
    }

    /// The BPF filter at a place; `None` when there is none, one of another kind, or no qdisc.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `ENODEV` when there is no such link.
    pub fn bpf_filter(&mut self, place: FilterPlace) -> Result<Option<BpfFilter>> {
        let mut message = filter_message(libc::RTM_GETTFILTER, 0, place);
        let mut found = None;
        let result = self.socket.query(&format_args!("read the {place}"), &mut message, |reply| {
            found = decode(reply);
            Ok(())
        });
        match result {
            // The latter without a qdisc, and where the qdisc has no filter at all.
            Err(error) if error.is_not_there() || error.is_invalid() => Ok(None),
            result => result.map(|()| found),
        }
    }

    /// Removes the filter at a place.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `ENOENT` when there is none.
    pub fn delete_filter(&mut self, place: FilterPlace) -> Result<()> {
        let mut message = filter_message(libc::RTM_DELTFILTER, 0, place);
        self.socket.request(&format_args!("delete the {place}"), &mut message)
    }

    /// Whether any filter is given the packets of a link in this direction.
    ///
    /// # Errors
    /// As [`crate::netlink::Socket::list`].
    pub fn has_filters(&mut self, link: u32, direction: Direction) -> Result<bool> {
        let mut message = message(libc::RTM_GETTFILTER, 0, [link, 0, direction.parent(), 0]);
        let what = format_args!("list the filters of link {link}");
        let found = self.socket.list(&what, &mut message, |entry| {
            (entry.kind == libc::RTM_NEWTFILTER).then_some(())
        })?;
        Ok(!found.is_empty())
    }
}

impl fmt::Display for FilterPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { link, direction, priority, handle } = self;
        let direction = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        write!(f, "{direction} filter {priority}/{handle:#x} of link {link}")
    }
}

/// A message with `struct tcmsg`: the link, the handle, the parent and `tcm_info`.
fn message(kind: u16, flags: u16, numbers: [u32; 4]) -> MessageBuf {
    let mut header = [0; HEADER_LEN];
    for (field, number) in header[4..].chunks_exact_mut(4).zip(numbers) {
        field.copy_from_slice(&number.to_ne_bytes());
    }
    let mut message = MessageBuf::new();
    message.begin(kind, flags);
    message.put_raw(&header);
    message
}

fn filter_message(kind: u16, flags: u16, place: FilterPlace) -> MessageBuf {
    let info = u32::from(place.priority) << 16 | ALL_PROTOCOLS;
    message(kind, flags, [place.link, place.handle, place.direction.parent(), info])
}

/// The numbers that [`message`] is given.
fn numbers(message: Message<'_>) -> Option<[u32; 4]> {
    let number = |at: usize| {
        let field = message.payload.get(at..at + 4)?;
        field.try_into().ok().map(u32::from_ne_bytes)
    };
    Some([number(4)?, number(8)?, number(12)?, number(16)?])
}

fn kind(message: Message<'_>) -> Option<String> {
    let mut attrs = message.attrs(HEADER_LEN);
    attrs.find(|attr| attr.kind == TCA_KIND)?.str().map(str::to_owned)
}

fn decode(message: Message<'_>) -> Option<BpfFilter> {
    if kind(message)? != BPF {
        return None;
    }
    let options = message.attrs(HEADER_LEN).find(|attr| attr.kind == TCA_OPTIONS)?;
    let option = |kind| options.attrs().find(|attr| attr.kind == kind);
    let name = option(TCA_BPF_NAME).and_then(|name| name.str()).unwrap_or_default();
    // A program in the old instruction set has no number.
    let program = option(TCA_BPF_ID).and_then(|id| id.u32()).unwrap_or_default();
    Some(BpfFilter { name: name.to_owned(), program })
}
