//! The netlink socket.
//!
//! A socket belongs to the network namespace of the thread that opened it, for good. The kernel
//! handles a request within the `sendmsg`, so replies are there when it returns: waiting is only a
//! safeguard, and it is bounded.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::{HEADER_LEN, Message, MessageBuf, Refusal, messages};
use crate::{Error, Result};

/// The size of a buffer that every datagram of the kernel fits in: listings come in up to 32 KiB,
/// and a refusal may echo a request whose attributes have up to 64 KiB.
pub const RECEIVE_BUFFER: usize = 128 << 10;

/// The send and receive buffers that are asked for at first. (The kernel's default is 208 KiB.)
const SOCKET_BUFFER: usize = 4 << 20;

/// How long to wait for an answer that should be there already.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a listing is repeated that the kernel calls inconsistent.
const LISTING_ATTEMPTS: usize = 16;

/// A family of netlink sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes (`NETLINK_ROUTE`).
    Route,
    /// nf_tables, conntrack, ipset (`NETLINK_NETFILTER`).
    Netfilter,
    /// Families by name, such as IPVS (`NETLINK_GENERIC`).
    Generic,
    /// Sockets (`NETLINK_SOCK_DIAG`).
    SockDiag,
}

/// A netlink socket that talks to the kernel. It never blocks, except in calls that say so.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread, and subscribes it to the
    /// multicast groups in the mask `groups` (0 for none).
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel lacks the protocol or refuses the groups.
    pub fn open(protocol: Protocol, groups: u32) -> Result<Self> {
        let fail = |errno| Error::kernel(format_args!("open a {protocol:?} netlink socket"), errno);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let number = match protocol {
            Protocol::Route => None, // NETLINK_ROUTE is 0
            Protocol::Netfilter => Some(net::netlink::NETFILTER),
            Protocol::Generic => Some(net::netlink::GENERIC),
            Protocol::SockDiag => Some(net::netlink::SOCK_DIAG),
        };
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, number)
            .map_err(fail)?;
        net::bind(&fd, &SocketAddrNetlink::new(0, groups)).map_err(fail)?;
        grow_receive_buffer(&fd, SOCKET_BUFFER).map_err(fail)?;
        grow_send_buffer(&fd, SOCKET_BUFFER).map_err(fail)?;
        // Both only make errors more telling; Linux before 4.12 lacks the first.
        enable(&fd, libc::NETLINK_EXT_ACK);
        enable(&fd, libc::NETLINK_CAP_ACK);
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// The port id that the kernel gave this socket: notifications carry that of their cause.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel does not tell.
    pub fn port(&self) -> Result<u32> {
        let what = "read the address of a netlink socket";
        let address = net::getsockname(&self.fd).map_err(|errno| Error::kernel(what, errno))?;
        let address = SocketAddrNetlink::try_from(address);
        address.map(|address| address.pid()).map_err(|errno| Error::kernel(what, errno))
    }

    /// Sends the messages, of which there must be one at least, in one datagram, and waits for the
    /// ACK of the last. `what` completes "cannot …" in errors.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the kernel's reason when it refuses one of them; the kernel may have
    /// carried out the others, unless the protocol makes them a transaction.
    pub fn request(&mut self, what: &dyn fmt::Display, message: &mut MessageBuf) -> Result<()> {
        self.query(what, message, |_| Ok(()))
    }

    /// Does as [`request`](Self::request) does, and gives every reply to `visit`.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the kernel's reason when it refuses, or the first error of `visit`.
    pub fn query(
        &mut self,
        what: &dyn fmt::Display,
        message: &mut MessageBuf,
        visit: impl FnMut(Message<'_>) -> Result<()>,
    ) -> Result<()> {
        message.change_flags(libc::NLM_F_ACK as u16, 0);
        self.exchange(what, message, visit)
    }

    /// Sends the messages, of which there must be one at least, in one datagram, waits for the ACK of
    /// the last, and gives every refusal to `visit`, with the number of the message.
    ///
    /// # Errors
    /// [`Error::Kernel`] when they cannot be sent or the answers not be read; some may have been carried
    /// out then.
    pub fn request_each(
        &mut self,
        name: &dyn Fn(usize) -> String,
        messages: &mut MessageBuf,
        mut visit: impl FnMut(usize, Error),
    ) -> Result<()> {
        messages.change_flags(libc::NLM_F_ACK as u16, 0);
        let count = messages.messages();
        let all = format!("carry out {count} requests");
        let first = self.send_batch(&all, messages)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let answer = self.read_all_answers(&all, first, count, &mut buffer, |number, refusal| {
            let number = number as usize;
            visit(number, refused(&name(number), refusal));
        });
        self.buffer = buffer;
        answer
    }

    /// Asks for a listing, and gives every entry to `visit` as it arrives.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses, [`Error::Interrupted`] when the listing is not
    /// consistent (what `visit` has seen is then to be discarded; see [`list`](Self::list)), or
    /// the first error of `visit`.
    pub fn dump(
        &mut self,
        what: &dyn fmt::Display,
        message: &mut MessageBuf,
        visit: impl FnMut(Message<'_>) -> Result<()>,
    ) -> Result<()> {
        message.change_flags(libc::NLM_F_DUMP as u16, libc::NLM_F_ACK as u16);
        self.exchange(what, message, visit)
    }

    /// Asks for a listing and collects what `decode` makes of the entries. Asks again, a bounded
    /// number of times, when the kernel's table changed meanwhile.
    ///
    /// # Errors
    /// As [`dump`](Self::dump).
    pub fn list<T>(
        &mut self,
        what: &dyn fmt::Display,
        message: &mut MessageBuf,
        mut decode: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut attempt = 1;
        loop {
            let mut entries = Vec::new();
            let result = self.dump(what, message, |entry| {
                entries.extend(decode(entry));
                Ok(())
            });
            match result {
                Err(Error::Interrupted { .. }) if attempt < LISTING_ATTEMPTS => attempt += 1,
                other => return other.map(|()| entries),
            }
        }
    }

    /// Sends all messages in one datagram, growing the send buffer where needed, and returns the
    /// sequence number of the first (the others follow it). The caller reads the answers with
    /// [`recv`](Self::recv): those that the kernel gives are there when this returns.
    ///
    /// # Errors
    /// [`Error::AttributeTooLong`] and [`Error::BatchTooLong`] when it cannot be sent as it is.
    pub fn send_batch(&mut self, what: &dyn fmt::Display, batch: &mut MessageBuf) -> Result<u32> {
        if let Some(attr) = batch.too_long() {
            let (kind, length) = (attr.kind, attr.length);
            return Err(Error::AttributeTooLong { what: what.to_string(), kind, length });
        }
        let first = self.sequence.wrapping_add(1).max(1);
        self.sequence = first.wrapping_add(batch.messages().saturating_sub(1));
        batch.number(first);
        let length = batch.len();
        let mut grown = false;
        loop {
            match net::send(&self.fd, batch.as_bytes(), SendFlags::empty()) {
                Ok(sent) if sent == length => return Ok(first),
                Ok(_) => return Err(Error::kernel(what, Errno::MSGSIZE)),
                Err(Errno::INTR) => {}
                Err(Errno::MSGSIZE) if !grown => {
                    grown = true;
                    // The kernel keeps room for its own header.
                    grow_send_buffer(&self.fd, length + 4096)
                        .map_err(|errno| Error::kernel(what, errno))?;
                }
                Err(Errno::MSGSIZE) => {
                    return Err(Error::BatchTooLong { what: what.to_string(), length });
                }
                Err(errno) => return Err(Error::kernel(what, errno)),
            }
        }
    }

    /// Receives one datagram of the kernel into `buffer` (see [`RECEIVE_BUFFER`]), or `None` when
    /// none is waiting. [`messages`] splits it.
    ///
    /// # Errors
    /// [`Error::Overrun`] when datagrams were lost since the last call.
    pub fn recv<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>> {
        let length = recv(&self.fd, &"receive from netlink", buffer)?;
        Ok(length.map(|length| &buffer[..length]))
    }

    /// Blocks until a datagram is waiting. `false` when `timeout` passed first.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel cannot wait.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(timeout).ok();
        loop {
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::kernel("wait for netlink", errno)),
            }
        }
    }

    /// Sends the messages and reads until the last is answered, or one is refused. After an error
    /// of `visit` it reads on, so that the next request does not meet the rest of this answer.
    fn exchange(
        &mut self,
        what: &dyn fmt::Display,
        request: &mut MessageBuf,
        mut visit: impl FnMut(Message<'_>) -> Result<()>,
    ) -> Result<()> {
        let first = self.send_batch(what, request)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut result = Ok(());
        let answer = self.read_answer(what, first, request.messages(), &mut buffer, |message| {
            if result.is_ok() {
                result = visit(message);
            }
        });
        self.buffer = buffer;
        answer.and(result)
    }

    /// Reads until the last of `count` requests is answered, and gives every refusal to `visit`.
    fn read_all_answers(
        &self,
        what: &dyn fmt::Display,
        first: u32,
        count: u32,
        buffer: &mut [u8],
        mut visit: impl FnMut(u32, Refusal),
    ) -> Result<()> {
        loop {
            let Some(length) = recv(&self.fd, what, buffer)? else {
                if self.wait(ANSWER_TIMEOUT)? {
                    continue;
                }
                return Err(Error::NoAnswer { what: what.to_string() });
            };
            for message in messages(&buffer[..length]) {
                let number = message.sequence.wrapping_sub(first);
                let Some(answer) = message.acknowledgement().filter(|_| number < count) else {
                    continue;
                };
                if let Err(refusal) = answer {
                    visit(number, refusal);
                }
                if number + 1 == count {
                    return Ok(());
                }
            }
        }
    }

    /// Reads the answers to the `count` requests whose sequence numbers start with `first`.
    fn read_answer(
        &self,
        what: &dyn fmt::Display,
        first: u32,
        count: u32,
        buffer: &mut [u8],
        mut visit: impl FnMut(Message<'_>),
    ) -> Result<()> {
        let mut interrupted = false;
        loop {
            let Some(length) = recv(&self.fd, what, buffer)? else {
                if self.wait(ANSWER_TIMEOUT)? {
                    continue;
                }
                return Err(Error::NoAnswer { what: what.to_string() });
            };
            for message in messages(&buffer[..length]) {
                let number = message.sequence.wrapping_sub(first);
                if number >= count {
                    continue; // the rest of an earlier answer, or a notification
                }
                interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match message.acknowledgement() {
                    None => visit(message),
                    Some(Err(refusal)) => return Err(refused(what, refusal)),
                    Some(Ok(())) if number + 1 < count => {}
                    Some(Ok(())) if interrupted => {
                        return Err(Error::Interrupted { what: what.to_string() });
                    }
                    Some(Ok(())) => return Ok(()),
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// The error for a request that the kernel refused.
fn refused(what: &dyn fmt::Display, refusal: Refusal) -> Error {
    let Refusal { errno, message, offset } = refusal;
    Error::Kernel { what: what.to_string(), message, offset, errno }
}

fn recv(fd: &OwnedFd, what: &dyn fmt::Display, buffer: &mut [u8]) -> Result<Option<usize>> {
    loop {
        // With MSG_TRUNC the kernel tells the length of the datagram, not of what fitted.
        let (_, length, from) = match net::recvfrom(fd, &mut *buffer, RecvFlags::TRUNC) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::NOBUFS) => return Err(Error::Overrun { what: what.to_string() }),
            Err(errno) => return Err(Error::kernel(what, errno)),
        };
        let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
        if from.is_none_or(|from| from.pid() != 0) {
            continue; // another process, not the kernel
        }
        if length > buffer.len() || length < HEADER_LEN {
            let why = "a datagram of unexpected length";
            return Err(Error::Malformed { what: what.to_string(), why });
        }
        return Ok(Some(length));
    }
}

/// Raises the send buffer as far as the process may: beyond `net.core.wmem_max` only with
/// CAP_NET_ADMIN in the initial user namespace.
fn grow_send_buffer(fd: &OwnedFd, size: usize) -> Result<(), Errno> {
    sockopt::set_socket_send_buffer_size_force(fd, size)
        .or_else(|_| sockopt::set_socket_send_buffer_size(fd, size))
}

/// Raises the receive buffer, as [`grow_send_buffer`] (`net.core.rmem_max`).
fn grow_receive_buffer(fd: &OwnedFd, size: usize) -> Result<(), Errno> {
    sockopt::set_socket_recv_buffer_size_force(fd, size)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(fd, size))
}

/// Sets a boolean option of `SOL_NETLINK`, where the kernel has it.
fn enable(fd: &OwnedFd, option: libc::c_int) {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    #[expect(unsafe_code, reason = "rustix does not offer the options of SOL_NETLINK")]
    // SAFETY: the pointer and the length describe `on`, which outlives the call.
    unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), length);
    }
}
