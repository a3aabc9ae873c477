//! Sockets of a network namespace, as the kernel lists them (sock_diag(7)), and their end by force.
//!
//! Everything happens in the network namespace of the thread that opened the connection.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::netlink::{Message, MessageBuf, Protocol, Socket};
use crate::{Error, Result};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// A UDP socket that is connected has the state that TCP calls established.
const ESTABLISHED: u32 = 1 << 1;
/// The length of `struct inet_diag_sockid`, and where it is in `struct inet_diag_msg`.
const ID_LEN: usize = 48;
const ID_AT: usize = 4;

/// A connection to the kernel's list of sockets.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
}

/// A socket that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedSocket {
    /// Its number, unique until the machine restarts (`SO_COOKIE`).
    pub cookie: u64,
    family: u8,
    id: [u8; ID_LEN],
}

impl SockDiag {
    /// Opens a connection to the network namespace of the calling thread.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::SockDiag, 0)? })
    }

    /// The UDP sockets that are connected to `peer`, also those of IPv6 to an IPv4 peer.
    ///
    /// # Errors
    /// As [`Socket::list`].
    pub fn udp_sockets_to(&mut self, peer: SocketAddr) -> Result<Vec<ConnectedSocket>> {
        let mut sockets = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let mut id = [0; ID_LEN];
            id[2..4].copy_from_slice(&peer.port().to_be_bytes());
            let mut message = request(BY_FAMILY, 0, family, &id);
            let what = format_args!("list UDP sockets to {peer}");
            let found = self.socket.list(&what, &mut message, |message| decode(message, peer))?;
            sockets.extend(found);
        }
        Ok(sockets)
    }

    /// Ends a UDP socket: whoever uses it gets `ECONNABORTED`. `false` when it is gone already.
    ///
    /// # Errors
    /// [`Error::Kernel`] with `EOPNOTSUPP` when the kernel is built without `INET_DIAG_DESTROY`.
    pub fn destroy_udp(&mut self, socket: &ConnectedSocket) -> Result<bool> {
        let mut message = request(DESTROY, libc::NLM_F_ACK as u16, socket.family, &socket.id);
        let what = format_args!("end UDP socket {}", socket.cookie);
        match self.socket.request(&what, &mut message) {
            Ok(()) => Ok(true),
            Err(Error::Kernel { errno: rustix::io::Errno::NOENT, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A message with `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID_LEN]) -> MessageBuf {
    let mut header = [0; 8];
    header[0] = family;
    header[1] = libc::IPPROTO_UDP as u8;
    header[4..8].copy_from_slice(&ESTABLISHED.to_ne_bytes());
    let mut message = MessageBuf::new();
    message.begin(kind, flags);
    message.put_raw(&header);
    message.put_raw(id);
    message
}

fn decode(message: Message<'_>, peer: SocketAddr) -> Option<ConnectedSocket> {
    let family = *message.payload.first()?;
    let id: [u8; ID_LEN] = message.payload.get(ID_AT..ID_AT + ID_LEN)?.try_into().ok()?;
    let port = u16::from_be_bytes([id[2], id[3]]);
    let address = if family == libc::AF_INET as u8 {
        IpAddr::from(<[u8; 4]>::try_from(&id[20..24]).ok()?)
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(&id[20..36]).ok()?).to_canonical()
    };
    if (address, port) != (peer.ip(), peer.port()) {
        return None;
    }
    let half = |at: usize| id[at..at + 4].try_into().map(u32::from_ne_bytes).ok();
    let cookie = u64::from(half(44)?) << 32 | u64::from(half(40)?);
    Some(ConnectedSocket { cookie, family, id })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::namespace::NetNs;
    use crate::rtnetlink::Rtnetlink;

    #[test]
    fn sockets_to_a_peer_are_found_and_ended() {
        let namespace = NetNs::new().unwrap();
        let ended = namespace.run(|| {
            let mut rtnetlink = Rtnetlink::open().unwrap();
            let loopback = rtnetlink.link("lo").unwrap().index;
            rtnetlink.set_up(loopback).unwrap();
            let peer: SocketAddr = "127.0.0.1:53".parse().unwrap();
            let sockets = ["127.0.0.1:0", "[::]:0"].map(|any| UdpSocket::bind(any).unwrap());
            for (socket, peer) in sockets.iter().zip(["127.0.0.1:53", "[::ffff:127.0.0.1]:53"]) {
                socket.connect(peer).unwrap();
            }
            let other = UdpSocket::bind("127.0.0.1:0").unwrap();
            other.connect("127.0.0.1:54").unwrap();
            let mut diag = SockDiag::open().unwrap();
            let found = diag.udp_sockets_to(peer).unwrap();
            let ended = found.iter().filter(|socket| diag.destroy_udp(socket).unwrap()).count();
            for socket in &sockets {
                let error = socket.recv(&mut [0]).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
            }
            assert!(other.take_error().unwrap().is_none());
            ended
        });
        assert_eq!(ended.unwrap(), 2);
    }
}
