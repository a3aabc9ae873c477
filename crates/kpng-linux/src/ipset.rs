//! The kernel's ipsets (ip_set over nfnetlink): their names, and their end.

use rustix::io::Errno;

use crate::Result;
use crate::netlink::{MessageBuf, Protocol, Socket};

/// The length of `struct nfgenmsg`.
const HEADER_LEN: usize = 4;

// linux/netfilter/ipset/ip_set.h
const PROTOCOL_VERSION: u8 = 6;
const DESTROY: u16 = 3;
const LIST: u16 = 7;
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_FLAGS: u16 = 6;
const FLAG_LIST_SETNAME: u32 = 1 << 1;

/// A connection to the ipsets of one network namespace.
#[derive(Debug)]
pub struct Ipsets {
    socket: Socket,
}

impl Ipsets {
    /// Opens those of the calling thread's network namespace.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter, 0)? })
    }

    /// The names of all sets. None in a kernel without ipsets.
    ///
    /// # Errors
    /// As [`Socket::list`].
    pub fn names(&mut self) -> Result<Vec<String>> {
        let mut message = message(LIST);
        message.put_u32_be(ATTR_FLAGS, FLAG_LIST_SETNAME);
        let names = self.socket.list(&"list ipsets", &mut message, |set| {
            let name = set.attrs(HEADER_LEN).find(|attr| attr.kind == ATTR_SETNAME)?;
            name.str().map(str::to_owned)
        });
        match names {
            // nfnetlink's answer for a subsystem that is not there.
            Err(error) if error.errno() == Some(Errno::INVAL) => Ok(Vec::new()),
            names => names,
        }
    }

    /// Destroys the set `name`.
    ///
    /// # Errors
    /// [`Errno::PROTO`] when a rule or another set refers to it (the kernel's own error number for that
    /// is none of the system's), and when there is no such set.
    pub fn destroy(&mut self, name: &str) -> Result<()> {
        let mut message = message(DESTROY);
        message.put_str(ATTR_SETNAME, name);
        self.socket.request(&format_args!("destroy ipset {name}"), &mut message)
    }
}

fn message(command: u16) -> MessageBuf {
    let mut message = MessageBuf::new();
    message.begin(((libc::NFNL_SUBSYS_IPSET as u16) << 8) | command, 0);
    message.put_raw(&[libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8, 0, 0]);
    message.put_u8(ATTR_PROTOCOL, PROTOCOL_VERSION);
    message
}
