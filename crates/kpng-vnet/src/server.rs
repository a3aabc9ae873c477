//! Servers of the virtual network.
//!
//! One thread per server waits for all its sockets, and ends when the server is dropped.

use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use crate::{Host, probe, sctp};

/// What a server does with what it receives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Style {
    /// Tell who answers, and whom.
    Answer,
    /// Send it back.
    Echo,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    /// Closing it ends the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Opens the ports, and serves them from then on.
    pub(crate) fn start(host: &Host, ports: &[u16], style: Style) -> Self {
        let (stopped, stop) = pipe().expect("file descriptors are left");
        let name = host.name().to_owned();
        let (addresses, ports) = (host.addresses().to_vec(), ports.to_vec());
        let sockets = host.run(move || open(&addresses, &ports, style));
        let sockets = sockets.unwrap_or_else(|error| panic!("cannot open a port: {error}"));
        let mut work = Work { name, sockets };
        let thread = thread::Builder::new().name(format!("{} server", host.name()));
        let thread = thread.spawn(move || work.run(&stopped)).expect("threads are left");
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        let result = self.thread.take().map(JoinHandle::join);
        if let Some(Err(panic)) = result
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

enum Socket {
    Tcp(TcpListener, Style),
    Connection(TcpStream),
    Udp(UdpSocket, Style),
    Sctp(OwnedFd, Vec<u16>),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket, _) => socket.as_fd(),
            Self::Connection(socket) => socket.as_fd(),
            Self::Udp(socket, _) => socket.as_fd(),
            Self::Sctp(socket, _) => socket.as_fd(),
        }
    }
}

fn open(addresses: &[IpAddr], ports: &[u16], style: Style) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for &port in ports {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
        listener.set_nonblocking(true)?;
        sockets.push(Socket::Tcp(listener, style));
        // One socket per address, so that answers come from the address that was asked.
        for address in addresses {
            let socket = UdpSocket::bind((*address, port))?;
            socket.set_nonblocking(true)?;
            sockets.push(Socket::Udp(socket, style));
        }
    }
    if matches!(style, Style::Answer) {
        for any in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
            sockets.push(Socket::Sctp(probe::sctp_socket(any)?, ports.to_vec()));
        }
    }
    Ok(sockets)
}

struct Work {
    name: String,
    sockets: Vec<Socket>,
}

impl Work {
    fn run(&mut self, stopped: &PipeReader) {
        loop {
            let mut fds = vec![PollFd::new(stopped, PollFlags::IN)];
            fds.extend(self.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => panic!("cannot wait for clients: {errno}"),
            }
            let mut ready = fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>();
            if ready.remove(0) {
                return;
            }
            let sockets = std::mem::take(&mut self.sockets);
            for (socket, ready) in sockets.into_iter().zip(ready) {
                // A client that goes away, or an ICMP error, is no concern of the server.
                match if ready { self.serve(socket) } else { Ok(vec![socket]) } {
                    Ok(kept) => self.sockets.extend(kept),
                    Err(error) => drop(error),
                }
            }
        }
    }

    /// Serves a socket that is readable, and returns the sockets to go on with.
    fn serve(&self, mut socket: Socket) -> io::Result<Vec<Socket>> {
        match &mut socket {
            Socket::Tcp(listener, style) => {
                if let Ok((mut stream, peer)) = listener.accept() {
                    match style {
                        Style::Echo => return Ok(vec![Socket::Connection(stream), socket]),
                        // The client may be gone already.
                        Style::Answer => stream.write_all(&self.answer(peer)).unwrap_or(()),
                    }
                }
            }
            Socket::Connection(stream) => {
                let mut buffer = [0; 2048];
                let length = stream.read(&mut buffer)?;
                if length == 0 {
                    return Ok(Vec::new());
                }
                stream.write_all(&buffer[..length])?;
            }
            Socket::Udp(socket, style) => {
                let mut buffer = [0; 2048];
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    let sent = match style {
                        Style::Echo => socket.send_to(&buffer[..length], peer),
                        Style::Answer => socket.send_to(&self.answer(peer), peer),
                    };
                    sent.unwrap_or(0);
                }
            }
            Socket::Sctp(socket, ports) => self.serve_sctp(socket, ports),
        }
        Ok(vec![socket])
    }

    fn serve_sctp(&self, socket: &OwnedFd, ports: &[u16]) {
        let mut buffer = [0; 2048];
        let Ok((_, length, Some(peer))) = recvfrom(socket, &mut buffer[..], RecvFlags::empty())
        else {
            return;
        };
        let Ok(mut peer) = SocketAddr::try_from(peer) else { return };
        let packet = sctp::payload(&buffer[..length], peer.ip());
        let Some(init) = sctp::Packet::decode(packet).filter(|packet| packet.is_init()) else {
            return;
        };
        peer.set_port(init.source_port);
        let reply = if ports.contains(&init.destination_port) {
            init.accept(&self.answer(peer))
        } else {
            init.abort()
        };
        // A raw socket takes no port.
        peer.set_port(0);
        sendto(socket, &reply, SendFlags::empty(), &peer).unwrap_or(0);
    }

    /// The line that tells who answers, and whom.
    fn answer(&self, peer: SocketAddr) -> Vec<u8> {
        format!("{} {} {}\n", self.name, peer.ip().to_canonical(), peer.port()).into_bytes()
    }
}
