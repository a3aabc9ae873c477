//! Reading messages and attributes.
//!
//! Nothing here panics, whatever the bytes: iteration ends where the input stops making sense, and
//! a reader whose payload has the wrong length gives `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use super::{HEADER_LEN, align};

/// One netlink message in a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request which this answers, 0 for notifications.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The kernel's refusal of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The kernel's explanation (extended ACK).
    pub message: Option<String>,
    /// Where in the request the offending attribute starts (extended ACK), in bytes.
    pub offset: Option<u32>,
}

/// The messages of a datagram.
pub fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

/// The attributes in `bytes`, which start behind the protocol's fixed header.
pub fn attrs(bytes: &[u8]) -> Attrs<'_> {
    Attrs { rest: bytes }
}

/// The iterator of [`messages`].
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.rest.get(..HEADER_LEN)?;
        let length = usize::try_from(u32_at(header, 0)?).ok()?;
        let payload = self.rest.get(HEADER_LEN..length)?;
        let message = Message {
            kind: u16_at(header, 4)?,
            flags: u16_at(header, 6)?,
            sequence: u32_at(header, 8)?,
            payload,
        };
        self.rest = self.rest.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

impl<'a> Message<'a> {
    /// The attributes behind a fixed header of `header` bytes.
    pub fn attrs(&self, header: usize) -> Attrs<'a> {
        attrs(self.payload.get(align(header)..).unwrap_or_default())
    }

    /// The answer to a request: `Some(Ok)` for an ACK or the end of a listing, `Some(Err)` for a
    /// refusal, `None` when this is a message of another type.
    pub fn acknowledgement(&self) -> Option<Result<(), Refusal>> {
        let kind = i32::from(self.kind);
        if kind != libc::NLMSG_ERROR && kind != libc::NLMSG_DONE {
            return None;
        }
        // The end of a listing may come without a number.
        let code = i32_at(self.payload, 0).unwrap_or(0);
        if code >= 0 {
            return Some(Ok(()));
        }
        let errno = match code {
            -4095..0 => Errno::from_raw_os_error(-code),
            _ => Errno::PROTO, // no error number of the kernel
        };
        let mut refusal = Refusal { errno, message: None, offset: None };
        for attr in self.extended_ack() {
            match i32::from(attr.kind) {
                NLMSGERR_ATTR_MSG => refusal.message = attr.str().map(str::to_owned),
                NLMSGERR_ATTR_OFFS => refusal.offset = attr.u32(),
                _ => {}
            }
        }
        Some(Err(refusal))
    }

    /// The attributes of an extended ACK. Behind the error number stands the refused request:
    /// only its header when the reply is "capped".
    fn extended_ack(&self) -> Attrs<'a> {
        let mut start = 4;
        if i32::from(self.kind) == libc::NLMSG_ERROR {
            start += HEADER_LEN;
            if self.flags & NLM_F_CAPPED == 0 {
                let request = u32_at(self.payload, 4).unwrap_or(0) as usize;
                start += align(request.saturating_sub(HEADER_LEN));
            }
        }
        let has_attrs = self.flags & NLM_F_ACK_TLVS != 0;
        attrs(if has_attrs { self.payload.get(start..).unwrap_or_default() } else { &[] })
    }
}

const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: i32 = 1;
const NLMSGERR_ATTR_OFFS: i32 = 2;

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr<'a> {
    /// The type, without the flags for nesting and byte order.
    pub kind: u16,
    /// The payload, without padding.
    pub payload: &'a [u8],
}

/// The iterator of [`attrs`].
#[derive(Clone, Debug)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let length = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & libc::NLA_TYPE_MASK as u16;
        let payload = self.rest.get(4..length)?;
        self.rest = self.rest.get(align(length)..).unwrap_or_default();
        Some(Attr { kind, payload })
    }
}

impl<'a> Attr<'a> {
    /// The nested attributes.
    pub fn attrs(&self) -> Attrs<'a> {
        attrs(self.payload)
    }

    /// A byte.
    pub fn u8(&self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// A 16-bit number in host order.
    pub fn u16(&self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    /// A 16-bit number in network order.
    pub fn u16_be(&self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// A 32-bit number in host order.
    pub fn u32(&self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    /// A 32-bit number in network order.
    pub fn u32_be(&self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A 64-bit number in network order.
    pub fn u64_be(&self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string, up to its first NUL.
    pub fn str(&self) -> Option<&'a str> {
        let text = self.payload.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).ok()
    }

    /// An IP address: 4 bytes are IPv4, 16 are IPv6.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.payload.len() {
            4 => self.array::<4>().map(|bytes| Ipv4Addr::from(bytes).into()),
            16 => self.array::<16>().map(|bytes| Ipv6Addr::from(bytes).into()),
            _ => None,
        }
    }

    fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.payload.try_into().ok()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes)
}
