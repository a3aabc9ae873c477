//! ICMP errors, as a raw socket sees them.
//!
//! TCP probes look for them on their own: a router in the same kernel answers while the client is
//! still within `connect`, and then Linux puts the error aside until it repeats the first packet
//! a second later (`TcpExtLockDroppedIcmps`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketType, ipproto, recv};

use crate::probe;

const TCP: u8 = 6;

/// A raw ICMP socket in the calling thread's namespace, of the family of `like`.
pub(crate) fn socket(like: IpAddr) -> io::Result<OwnedFd> {
    let protocol = if like.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    probe::open(like, SocketType::RAW, Some(protocol))
}

/// The error that the waiting messages report for a TCP connection to `to`, if one does.
pub(crate) fn tcp_error(socket: &OwnedFd, source_port: u16, to: SocketAddr) -> Option<Errno> {
    let mut buffer = [0; 2048];
    while let Ok((_, length)) = recv(socket, &mut buffer[..], RecvFlags::empty()) {
        let (errno, about) = match to.ip() {
            IpAddr::V4(_) => unreachable_v4(&buffer[..length]),
            IpAddr::V6(_) => unreachable_v6(&buffer[..length]),
        }
        .unzip();
        if about == Some((source_port, to)) {
            return errno;
        }
    }
    None
}

/// The error in an ICMP message, with its IP header, and the TCP connection that it is about.
fn unreachable_v4(packet: &[u8]) -> Option<(Errno, (u16, SocketAddr))> {
    let header_len = |packet: &[u8]| packet.first().map(|first| usize::from(first & 0xf) * 4);
    let icmp = packet.get(header_len(packet)?..)?;
    let errno = match icmp.first_chunk()? {
        [3, 3] => Errno::CONNREFUSED,
        [3, _] => Errno::HOSTUNREACH,
        _ => return None,
    };
    let inner = icmp.get(8..)?;
    let destination = Ipv4Addr::from(*inner.get(16..)?.first_chunk::<4>()?);
    let tcp = inner.get(header_len(inner)?..)?;
    (inner.get(9) == Some(&TCP)).then_some((errno, connection(tcp, destination.into())?))
}

/// The error in an ICMPv6 message, and the TCP connection that it is about.
fn unreachable_v6(icmp: &[u8]) -> Option<(Errno, (u16, SocketAddr))> {
    let errno = match icmp.first_chunk()? {
        [1, 4] => Errno::CONNREFUSED,
        [1, _] => Errno::HOSTUNREACH,
        _ => return None,
    };
    let inner = icmp.get(8..)?;
    let destination = Ipv6Addr::from(*inner.get(24..)?.first_chunk::<16>()?);
    let tcp = inner.get(40..)?;
    (inner.get(6) == Some(&TCP)).then_some((errno, connection(tcp, destination.into())?))
}

/// The source port, and the destination, of a TCP header.
fn connection(tcp: &[u8], destination: IpAddr) -> Option<(u16, SocketAddr)> {
    let [s0, s1, d0, d1] = *tcp.first_chunk::<4>()?;
    let port = u16::from_be_bytes([d0, d1]);
    Some((u16::from_be_bytes([s0, s1]), SocketAddr::new(destination, port)))
}
