//! Conntrack entries made by hand.

use kpng_linux::netlink::{MessageBuf, Protocol, Socket};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Adds `count` entries from different sources.
pub(crate) fn insert(count: u32, protocol: u8) {
    let mut socket = Socket::open(Protocol::Netfilter, 0).unwrap();
    let mut batch = MessageBuf::new();
    for number in 0..count {
        put_insertion(&mut batch, number, protocol);
        if batch.messages() == 1000 || number + 1 == count {
            socket.request(&"insert conntrack entries", &mut batch).unwrap();
            batch.clear();
        }
    }
}

fn put_insertion(m: &mut MessageBuf, number: u32, protocol: u8) {
    let client = (0x0a00_0000 | (number >> 12)).to_be_bytes();
    let port = 1024 + (number & 0xfff) as u16;
    let vip = [172, 30, 0, 1];
    m.begin(0x100, (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16);
    m.put_raw(&[libc::AF_INET as u8, 0, 0, 0]);
    for (direction, source, destination) in
        [(1, (client, port), (vip, 53)), (2, (vip, 53), (client, port))]
    {
        m.nest(direction, |m| {
            m.nest(1, |m| {
                m.put_bytes(1, &source.0);
                m.put_bytes(2, &destination.0);
            });
            m.nest(2, |m| {
                m.put_u8(1, protocol);
                m.put_u16_be(2, source.1);
                m.put_u16_be(3, destination.1);
            });
        });
    }
    m.put_u32_be(7, 600); // CTA_TIMEOUT
    if protocol == TCP {
        m.nest(4, |m| m.nest(1, |m| m.put_u8(1, 3))); // established
    }
}
