//! Netlink: building messages, reading messages, and the socket they travel on.
//!
//! The invariant: no length is ever truncated. An attribute that does not fit its 16-bit length
//! makes the whole buffer unsendable with a typed error, and a datagram that does not fit the
//! receive buffer is an error too.

mod decode;
mod encode;
mod socket;

pub use decode::{Attr, Attrs, Message, Messages, Refusal, attrs, messages};
pub use encode::{MAX_PAYLOAD, MessageBuf, Nest};
pub use socket::{Protocol, RECEIVE_BUFFER, Socket};

/// The length of `struct nlmsghdr`, in bytes.
pub const HEADER_LEN: usize = 16;

/// Rounds up to netlink's alignment of 4 bytes.
const fn align(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests;
