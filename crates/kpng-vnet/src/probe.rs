//! Clients of the virtual network: what happens to a packet.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, Protocol, RawProtocol, RecvFlags, SendFlags, SocketFlags, SocketType,
    sockopt,
};

use crate::{Host, icmp, sctp};

/// How long a probe waits before it takes a packet for dropped. TCP repeats its first packet only
/// after a second, so that is not waited for.
pub const TIMEOUT: Duration = Duration::from_millis(400);

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A server of [`Host::serve`] answered.
    Answered {
        /// The name of its host.
        by: String,
        /// The address that it saw the probe come from.
        seen_source: IpAddr,
    },
    /// Refused: TCP reset, SCTP abort, or ICMP port unreachable.
    Refused,
    /// Another ICMP error, or no route.
    Unreachable,
    /// No answer within [`TIMEOUT`].
    TimedOut,
}

impl Outcome {
    /// The name of the host that answered, if one did.
    pub fn answered_by(&self) -> Option<&str> {
        match self {
            Self::Answered { by, .. } => Some(by),
            _ => None,
        }
    }

    /// The outcome that an answer or an error means.
    fn of(answer: io::Result<Vec<u8>>) -> Self {
        match answer {
            Ok(line) => Self::parse(&line),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::CONNREFUSED | Errno::CONNRESET) => Self::Refused,
                Some(
                    Errno::HOSTUNREACH
                    | Errno::NETUNREACH
                    | Errno::NOPROTOOPT
                    | Errno::PROTO
                    | Errno::ACCESS
                    | Errno::PERM,
                ) => Self::Unreachable,
                Some(Errno::AGAIN | Errno::TIMEDOUT) => Self::TimedOut,
                _ => panic!("the probe failed: {error}"),
            },
        }
    }

    fn parse(line: &[u8]) -> Self {
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_whitespace();
        let (by, source) = (words.next(), words.next().and_then(|word| word.parse().ok()));
        match (by, source) {
            (Some(by), Some(seen_source)) => Self::Answered { by: by.to_owned(), seen_source },
            _ => panic!("a server of the test network answers differently: {line:?}"),
        }
    }
}

/// Probes from this host. `source` is the address to send from, by default the kernel's choice.
impl Host {
    /// Connects to a TCP port.
    pub fn tcp(&self, source: Option<IpAddr>, to: SocketAddr) -> Outcome {
        let answer = self.connect(source, to).and_then(|mut stream| {
            let mut line = Vec::new();
            stream.read_to_end(&mut line).map(|_| line)
        });
        Outcome::of(answer)
    }

    /// Sends a datagram to a UDP port, from a new port each time.
    pub fn udp(&self, source: Option<IpAddr>, to: SocketAddr) -> Outcome {
        self.udp_flow(source, to).probe()
    }

    /// Asks for an association with an SCTP port, from a new port each time.
    pub fn sctp(&self, source: Option<IpAddr>, to: SocketAddr) -> Outcome {
        Outcome::of(self.sctp_answer(source, to))
    }

    /// A UDP client that keeps its port.
    pub fn udp_flow(&self, source: Option<IpAddr>, to: SocketAddr) -> UdpFlow {
        let socket = self.socket(to, SocketType::DGRAM, None);
        bind(&socket, source).expect("the host has the address");
        let connected = net::connect(&socket, &to);
        UdpFlow { socket: socket.into(), connected }
    }

    /// Connects to a TCP port of [`Host::serve_echo`], and keeps the connection.
    ///
    /// # Errors
    /// The outcome, when no connection comes about.
    pub fn tcp_flow(&self, source: Option<IpAddr>, to: SocketAddr) -> Result<TcpFlow, Outcome> {
        match self.connect(source, to) {
            Ok(stream) => Ok(TcpFlow { stream }),
            Err(error) => Err(Outcome::of(Err(error))),
        }
    }

    fn connect(&self, source: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
        let errors = self.run(move || icmp::socket(to.ip())).expect("raw sockets can be opened");
        let socket = self.socket(to, SocketType::STREAM, None);
        bind(&socket, source).expect("the host has the address");
        match net::connect(&socket, &to) {
            Ok(()) => {}
            Err(Errno::INPROGRESS) => wait_connected(&socket, &errors, to)?,
            Err(errno) => return Err(errno.into()),
        }
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(stream)
    }

    fn sctp_answer(&self, source: Option<IpAddr>, to: SocketAddr) -> io::Result<Vec<u8>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let source_port = 20_000 + (number % 40_000) as u16;
        let init = sctp::Packet::init(source_port, to.port(), number + 1);
        let socket = self.socket(to, SocketType::RAW, sctp_protocol());
        bind(&socket, source).expect("the host has the address");
        // Connected, so that ICMP errors are reported; a raw socket takes no port.
        net::connect(&socket, &SocketAddr::new(to.ip(), 0))?;
        net::send(&socket, &init.encode(), SendFlags::empty())?;
        let end = Instant::now() + TIMEOUT;
        let mut buffer = [0; 2048];
        loop {
            wait(&socket, PollFlags::IN, end.saturating_duration_since(Instant::now()))?;
            let (_, length) = net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
            let reply = sctp::Packet::decode(sctp::payload(&buffer[..length], to.ip()));
            let ours = |reply: &sctp::Packet| {
                (reply.source_port, reply.destination_port) == (to.port(), source_port)
                    && reply.tag == number + 1
            };
            // The socket sees all SCTP packets of the host.
            let Some(reply) = reply.filter(ours) else { continue };
            if reply.is_abort() {
                return Err(Errno::CONNRESET.into());
            }
            if let Some(cookie) = reply.cookie() {
                return Ok(cookie.to_vec());
            }
        }
    }

    /// A socket of this host that can reach `to`; it does not block.
    fn socket(&self, to: SocketAddr, kind: SocketType, protocol: Option<Protocol>) -> OwnedFd {
        let socket = self.run(move || open(to.ip(), kind, protocol));
        socket.expect("the process may open sockets in its own namespaces")
    }
}

/// A UDP client that keeps its port, as one connection to the kernel's connection tracking.
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
    connected: Result<(), Errno>,
}

impl UdpFlow {
    /// Sends a datagram to a port of [`Host::serve`].
    pub fn probe(&self) -> Outcome {
        Outcome::of(self.exchange(b"who are you?\n"))
    }

    /// Sends a datagram to a port of [`Host::serve_echo`]: whether it comes back.
    ///
    /// # Errors
    /// As the kernel reports it; `WouldBlock` when nothing comes back.
    pub fn echo(&self, text: &str) -> io::Result<bool> {
        self.exchange(text.as_bytes()).map(|answer| answer == text.as_bytes())
    }

    /// The address and port that it sends from.
    ///
    /// # Errors
    /// As the kernel reports it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn exchange(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        self.connected?;
        let mut buffer = [0; 2048];
        // Late answers, and errors, of earlier datagrams are not this one's.
        while !matches!(self.socket.recv(&mut buffer), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
        {
        }
        self.socket.send(request)?;
        wait(&self.socket, PollFlags::IN, TIMEOUT)?;
        let length = self.socket.recv(&mut buffer)?;
        Ok(buffer[..length].to_vec())
    }
}

/// An open TCP connection.
#[derive(Debug)]
pub struct TcpFlow {
    stream: TcpStream,
}

impl TcpFlow {
    /// Sends a text and waits for it to come back.
    ///
    /// # Errors
    /// As the kernel reports it: `ConnectionReset` and the like when the connection is broken,
    /// `WouldBlock` when nothing comes back.
    pub fn echo(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes())?;
        let mut answer = vec![0; text.len()];
        self.stream.read_exact(&mut answer)?;
        assert_eq!(answer, text.as_bytes(), "an echo server sends back what it gets");
        Ok(())
    }

    /// The address and port that it sends from.
    ///
    /// # Errors
    /// As the kernel reports it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }
}

/// A raw SCTP socket in the calling thread's namespace, of the family of `any`.
pub(crate) fn sctp_socket(any: IpAddr) -> io::Result<OwnedFd> {
    open(any, SocketType::RAW, sctp_protocol())
}

fn sctp_protocol() -> Option<Protocol> {
    RawProtocol::new(sctp::PROTOCOL).map(Protocol::from_raw)
}

pub(crate) fn open(
    like: IpAddr,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> io::Result<OwnedFd> {
    let family = if like.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(family, kind, flags, protocol)?)
}

fn bind(socket: &OwnedFd, source: Option<IpAddr>) -> io::Result<()> {
    source.map_or(Ok(()), |source| Ok(net::bind(socket, &SocketAddr::new(source, 0))?))
}

/// Waits until a connection is there, or is refused by TCP or by an ICMP message to `errors`.
fn wait_connected(socket: &OwnedFd, errors: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let source_port = SocketAddr::try_from(net::getsockname(socket)?)?.port();
    let end = Instant::now() + TIMEOUT;
    loop {
        let fds = [PollFd::new(socket, PollFlags::OUT), PollFd::new(errors, PollFlags::IN)];
        let [connected, error] = wait_any(fds, end)?;
        if connected {
            return Ok(sockopt::socket_error(socket)??);
        }
        if error && let Some(errno) = icmp::tcp_error(errors, source_port, to) {
            return Err(errno.into());
        }
    }
}

/// Waits for a socket; `WouldBlock` when it is not ready in time.
fn wait(socket: impl AsFd, events: PollFlags, timeout: Duration) -> io::Result<()> {
    wait_any([PollFd::new(&socket, events)], Instant::now() + timeout).map(drop)
}

/// Waits until one of the sockets is ready, and tells which are; `WouldBlock` when none is in time.
fn wait_any<const N: usize>(mut fds: [PollFd<'_>; N], end: Instant) -> io::Result<[bool; N]> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a short time");
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(Errno::AGAIN.into()),
            Ok(_) => return Ok(fds.map(|fd| !fd.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
