//! Just enough SCTP (RFC 9260) to open an association, for kernels without it.
//!
//! A client sends INIT. A server answers INIT ACK, whose state cookie carries the same line that
//! TCP and UDP servers answer with, or ABORT. Checksums are made and checked, so a translation of
//! addresses or ports that left them wrong would show.

use std::net::IpAddr;

/// The IP protocol number.
pub(crate) const PROTOCOL: u32 = 132;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
/// The parameter of INIT ACK that the server gets back.
const STATE_COOKIE: u16 = 7;
const COMMON_HEADER_LEN: usize = 12;
/// The fields of INIT and INIT ACK before the parameters, with the chunk header.
const INIT_LEN: usize = 20;

/// A packet with its first chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// The tag that the receiver chose for itself; 0 in INIT.
    pub(crate) tag: u32,
    chunk: u8,
    /// The tag that the sender chooses for itself, in INIT and INIT ACK.
    initiate_tag: u32,
    /// The state cookie, in INIT ACK.
    cookie: Vec<u8>,
}

impl Packet {
    /// The first packet of an association.
    pub(crate) fn init(source_port: u16, destination_port: u16, initiate_tag: u32) -> Self {
        let cookie = Vec::new();
        Self { source_port, destination_port, tag: 0, chunk: INIT, initiate_tag, cookie }
    }

    pub(crate) fn is_init(&self) -> bool {
        self.chunk == INIT
    }

    pub(crate) fn is_abort(&self) -> bool {
        self.chunk == ABORT
    }

    /// The state cookie of an INIT ACK.
    pub(crate) fn cookie(&self) -> Option<&[u8]> {
        (self.chunk == INIT_ACK).then_some(&self.cookie)
    }

    /// The INIT ACK for this INIT.
    pub(crate) fn accept(&self, cookie: &[u8]) -> Vec<u8> {
        Self { cookie: cookie.to_vec(), ..self.reply(INIT_ACK) }.encode()
    }

    /// The ABORT for this INIT.
    pub(crate) fn abort(&self) -> Vec<u8> {
        self.reply(ABORT).encode()
    }

    fn reply(&self, chunk: u8) -> Self {
        Self {
            source_port: self.destination_port,
            destination_port: self.source_port,
            tag: self.initiate_tag,
            chunk,
            initiate_tag: self.initiate_tag ^ u32::MAX,
            cookie: Vec::new(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]); // checksum
        bytes.extend([self.chunk, 0, 0, 0]);
        if self.chunk != ABORT {
            bytes.extend(self.initiate_tag.to_be_bytes());
            bytes.extend(65_536_u32.to_be_bytes()); // receiver window
            bytes.extend([0, 1, 0, 1]); // streams out and in
            bytes.extend(1_u32.to_be_bytes()); // first sequence number
        }
        if self.chunk == INIT_ACK {
            let length = (4 + self.cookie.len()) as u16;
            bytes.extend(STATE_COOKIE.to_be_bytes());
            bytes.extend(length.to_be_bytes());
            bytes.extend(&self.cookie);
        }
        let length = (bytes.len() - COMMON_HEADER_LEN) as u16;
        bytes[14..16].copy_from_slice(&length.to_be_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let checksum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The packet in `bytes`, or `None` when it is damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut zeroed = bytes.to_vec();
        zeroed.get_mut(8..12)?.fill(0);
        if crc32c(&zeroed).to_le_bytes() != bytes[8..12] {
            return None;
        }
        let chunk = *bytes.get(12)?;
        let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let port = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
        let mut cookie = Vec::new();
        if chunk == INIT_ACK {
            let parameter = COMMON_HEADER_LEN + INIT_LEN;
            let end = parameter + usize::from(port(parameter + 2)?);
            cookie = bytes.get(parameter + 4..end)?.to_vec();
        }
        Some(Self {
            source_port: port(0)?,
            destination_port: port(2)?,
            tag: number(4)?,
            chunk,
            initiate_tag: if chunk == ABORT { 0 } else { number(16)? },
            cookie,
        })
    }
}

/// The SCTP packet in what a raw socket received: IPv4 comes with its header, IPv6 without.
pub(crate) fn payload(received: &[u8], from: IpAddr) -> &[u8] {
    let header = match from {
        IpAddr::V4(_) => received.first().map_or(0, |first| usize::from(first & 0xf) * 4),
        IpAddr::V6(_) => 0,
    };
    received.get(header..).unwrap_or_default()
}

/// The checksum of RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn packets_survive_encoding_and_damage_is_noticed() {
        let init = Packet::init(1000, 53, 7);
        assert_eq!(Packet::decode(&init.encode()), Some(init.clone()));
        let ack = Packet::decode(&init.accept(b"pod1 10.0.0.1 5\n")).unwrap();
        assert_eq!((ack.source_port, ack.destination_port, ack.tag), (53, 1000, 7));
        assert_eq!(ack.cookie(), Some(&b"pod1 10.0.0.1 5\n"[..]));
        let abort = Packet::decode(&init.abort()).unwrap();
        assert!(abort.is_abort() && abort.cookie().is_none() && abort.tag == 7);
        let bytes = init.encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Packet::decode(&damaged), None, "byte {at}");
            assert_eq!(Packet::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
