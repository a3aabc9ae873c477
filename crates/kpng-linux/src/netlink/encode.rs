//! The message builder.
//!
//! Lengths are kept right at every step, so a buffer can be sent at any time; the one thing that
//! can go wrong, an attribute over 65,531 bytes, is remembered and reported when it is sent.

use super::{HEADER_LEN, align};

/// The longest payload that an attribute can have: its 16-bit length counts its 4-byte header too.
pub const MAX_PAYLOAD: usize = u16::MAX as usize - ATTR_HEADER_LEN;

const ATTR_HEADER_LEN: usize = 4;

/// One or more netlink messages, back to back, as one datagram carries them.
///
/// ```
/// use kpng_linux::netlink::MessageBuf;
///
/// let mut m = MessageBuf::new();
/// m.begin(16, 0); // RTM_NEWLINK
/// m.put_raw(&[0; 16]); // struct ifinfomsg
/// m.put_str(3, "br0"); // IFLA_IFNAME
/// m.nest(18, |m| m.put_str(1, "bridge")); // IFLA_LINKINFO, IFLA_INFO_KIND
/// ```
#[derive(Debug, Default)]
pub struct MessageBuf {
    bytes: Vec<u8>,
    /// Where the message under construction starts.
    current: usize,
    messages: u32,
    too_long: Option<TooLong>,
}

/// The first attribute that did not fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooLong {
    pub(super) kind: u16,
    pub(super) length: usize,
}

/// A nested attribute that is open: see [`MessageBuf::open`].
#[derive(Debug)]
#[must_use = "a nest has to be closed"]
pub struct Nest {
    start: usize,
    kind: u16,
}

impl MessageBuf {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes all messages and keeps the memory.
    pub fn clear(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        *self = Self { bytes, ..Self::default() };
        self.bytes.clear();
    }

    /// The number of messages.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// The length of all messages, in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The messages as they are. [`super::Socket`] fills in the sequence numbers.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Starts a message of type `kind`, which ends the one before. `flags` are `NLM_F_*`;
    /// `NLM_F_REQUEST` is always set.
    pub fn begin(&mut self, kind: u16, flags: u16) {
        self.current = self.bytes.len();
        self.messages += 1;
        self.bytes.extend_from_slice(&(HEADER_LEN as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]); // sequence number and port id
    }

    /// Appends the fixed header that follows `nlmsghdr` in most protocols, padded to 4 bytes.
    pub fn put_raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.finish();
    }

    /// Appends an attribute with the payload `bytes`.
    pub fn put_bytes(&mut self, kind: u16, bytes: &[u8]) {
        self.put_bytes_with(kind, bytes.len(), |out| out.extend_from_slice(bytes));
    }

    /// Appends an attribute without a payload.
    pub fn put_flag(&mut self, kind: u16) {
        self.put_bytes(kind, &[]);
    }

    /// Appends a byte.
    pub fn put_u8(&mut self, kind: u16, value: u8) {
        self.put_bytes(kind, &[value]);
    }

    /// Appends a 16-bit number in host order.
    pub fn put_u16(&mut self, kind: u16, value: u16) {
        self.put_bytes(kind, &value.to_ne_bytes());
    }

    /// Appends a 16-bit number in network order.
    pub fn put_u16_be(&mut self, kind: u16, value: u16) {
        self.put_bytes(kind, &value.to_be_bytes());
    }

    /// Appends a 32-bit number in host order.
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put_bytes(kind, &value.to_ne_bytes());
    }

    /// Appends a 32-bit number in network order.
    pub fn put_u32_be(&mut self, kind: u16, value: u32) {
        self.put_bytes(kind, &value.to_be_bytes());
    }

    /// Appends a 64-bit number in network order.
    pub fn put_u64_be(&mut self, kind: u16, value: u64) {
        self.put_bytes(kind, &value.to_be_bytes());
    }

    /// Appends a string with the closing NUL that the kernel expects.
    pub fn put_str(&mut self, kind: u16, value: &str) {
        self.put_bytes_with(kind, value.len() + 1, |out| {
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        });
    }

    /// Appends an attribute whose payload is the attributes that `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let nest = self.open(kind);
        fill(self);
        self.close(nest);
    }

    /// Starts a nested attribute, to be closed by [`close`](Self::close). For callers that cut a
    /// long list in chunks; all others use [`nest`](Self::nest).
    pub fn open(&mut self, kind: u16) -> Nest {
        let start = self.bytes.len();
        self.put_header(kind | libc::NLA_F_NESTED as u16, 0);
        Nest { start, kind }
    }

    /// The length of the payload of an open nest, in bytes. It must stay within [`MAX_PAYLOAD`].
    pub fn payload_len(&self, nest: &Nest) -> usize {
        self.bytes.len() - nest.start - ATTR_HEADER_LEN
    }

    /// Ends a nested attribute.
    pub fn close(&mut self, nest: Nest) {
        let length = self.payload_len(&nest);
        let field = self.checked_length(nest.kind, length);
        self.bytes[nest.start..nest.start + 2].copy_from_slice(&field.to_ne_bytes());
        self.finish();
    }

    /// The first attribute that did not fit, if any: then the buffer must not be sent.
    pub(super) fn too_long(&self) -> Option<TooLong> {
        self.too_long
    }

    /// Adds flags to, and removes flags from, the header of the last message.
    pub(crate) fn change_flags(&mut self, add: u16, remove: u16) {
        let at = self.current + 6;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&((flags & !remove) | add).to_ne_bytes());
    }

    /// Gives the messages the sequence numbers `first`, `first + 1`, ….
    pub(super) fn number(&mut self, first: u32) {
        let (mut at, mut sequence) = (0, first);
        while at < self.bytes.len() {
            let length = &self.bytes[at..at + 4];
            let length = u32::from_ne_bytes(length.try_into().expect("a slice of 4 bytes"));
            self.bytes[at + 8..at + 12].copy_from_slice(&sequence.to_ne_bytes());
            sequence = sequence.wrapping_add(1);
            at += align(length as usize);
        }
    }

    fn put_bytes_with(&mut self, kind: u16, length: usize, fill: impl FnOnce(&mut Vec<u8>)) {
        let field = self.checked_length(kind, length);
        self.put_header(kind, field);
        fill(&mut self.bytes);
        self.finish();
    }

    fn put_header(&mut self, kind: u16, length: u16) {
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
    }

    /// The length field of an attribute with `length` bytes of payload.
    fn checked_length(&mut self, kind: u16, length: usize) -> u16 {
        match u16::try_from(length + ATTR_HEADER_LEN) {
            Ok(field) => field,
            Err(_) => {
                self.too_long.get_or_insert(TooLong { kind, length });
                u16::MAX
            }
        }
    }

    /// Pads, and brings the length of the message up to date.
    fn finish(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
        let length = (self.bytes.len() - self.current) as u32;
        self.bytes[self.current..self.current + 4].copy_from_slice(&length.to_ne_bytes());
    }
}
