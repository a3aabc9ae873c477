//! Options of sockets that the usual crates do not offer for both families.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::rtnetlink::Family;

/// Lets a socket be bound to an address that is not this node's (`IP_TRANSPARENT`).
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN.
pub fn set_transparent(socket: impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set(socket, libc::SOL_IP, libc::IP_TRANSPARENT, 1),
        Family::V6 => set(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

/// A later `bind` to port 0 chooses no port: `connect` does, so that connections to different places
/// share ports (`IP_BIND_ADDRESS_NO_PORT`).
///
/// # Errors
/// As the kernel reports it.
pub fn bind_address_only(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set(socket: impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    #[expect(unsafe_code, reason = "rustix does not offer these options")]
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let result =
        unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
