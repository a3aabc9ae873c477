//! Keys and data of set elements, without an allocation each.

use std::fmt;
use std::net::IpAddr;

/// Up to 40 bytes: an IPv6 address, protocol, port and another IPv6 address, each padded to the
/// registers of 4 bytes that nf_tables works with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes {
    bytes: [u8; Self::CAPACITY],
    length: u8,
}

impl Bytes {
    /// The longest content.
    pub const CAPACITY: usize = 40;

    /// No bytes.
    pub const EMPTY: Self = Self { bytes: [0; Self::CAPACITY], length: 0 };

    /// The bytes of `slice`, or `None` when they are too many.
    pub fn from_slice(slice: &[u8]) -> Option<Self> {
        let mut this = Self::EMPTY;
        this.bytes.get_mut(..slice.len())?.copy_from_slice(slice);
        this.length = u8::try_from(slice.len()).ok()?;
        Some(this)
    }

    /// The content.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Appends an address.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.component(&address.octets()),
            IpAddr::V6(address) => self.component(&address.octets()),
        }
    }

    /// Appends an IP protocol number.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.component(&[number])
    }

    /// Appends a port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.component(&port.to_be_bytes())
    }

    /// What [`address`](Self::address), if anything, [`protocol`](Self::protocol) and
    /// [`port`](Self::port) put into it, read back; `None` when it is something else.
    pub fn destination(&self) -> Option<(Option<IpAddr>, u8, u16)> {
        let (address, rest) = self.as_slice().split_last_chunk::<8>()?;
        let address = match address.len() {
            0 => None,
            4 => Some(<[u8; 4]>::try_from(address).ok()?.into()),
            16 => Some(<[u8; 16]>::try_from(address).ok()?.into()),
            _ => return None,
        };
        Some((address, rest[0], u16::from_be_bytes([rest[4], rest[5]])))
    }

    /// Appends a number in host order: a priority, or the result of `numgen`.
    #[must_use]
    pub fn number(self, number: u32) -> Self {
        self.component(&number.to_ne_bytes())
    }

    /// Appends a component, padded to a whole number of registers.
    fn component(mut self, component: &[u8]) -> Self {
        let start = usize::from(self.length);
        self.bytes[start..start + component.len()].copy_from_slice(component);
        self.length += u8::try_from(component.len().next_multiple_of(4)).expect("40 at most");
        self
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.as_slice() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
