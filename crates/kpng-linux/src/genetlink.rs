//! Generic netlink: families that are known by name.
//!
//! A family's number is given out when its module is loaded, and stays until the module goes.

use rustix::io::Errno;

use crate::netlink::{MessageBuf, Socket};
use crate::{Error, Result};

/// The family that knows the others.
const CONTROL: u16 = libc::GENL_ID_CTRL as u16;
const GET_FAMILY: u8 = libc::CTRL_CMD_GETFAMILY as u8;
const FAMILY_ID: u16 = libc::CTRL_ATTR_FAMILY_ID as u16;
const FAMILY_NAME: u16 = libc::CTRL_ATTR_FAMILY_NAME as u16;

/// The length of `struct genlmsghdr`.
pub(crate) const HEADER_LEN: usize = 4;

/// Starts a message of a family.
pub(crate) fn begin(message: &mut MessageBuf, family: u16, command: u8, version: u8) {
    message.begin(family, 0);
    message.put_raw(&[command, version, 0, 0]);
}

/// The number of the family `name`. The kernel loads the module that has it, if there is one.
///
/// # Errors
/// [`Error::NoFamily`] when this kernel does not have it.
pub(crate) fn family(socket: &mut Socket, name: &'static str) -> Result<u16> {
    let mut message = MessageBuf::new();
    begin(&mut message, CONTROL, GET_FAMILY, 1);
    message.put_str(FAMILY_NAME, name);
    let mut number = None;
    let what = format_args!("find the generic netlink family {name}");
    let result = socket.query(&what, &mut message, |reply| {
        let id = reply.attrs(HEADER_LEN).find(|attr| attr.kind == FAMILY_ID);
        number = id.and_then(|id| id.u16());
        Ok(())
    });
    match result {
        Err(error) if error.errno() == Some(Errno::NOENT) => Err(Error::NoFamily { name }),
        Err(error) => Err(error),
        Ok(()) => number.ok_or_else(|| Error::Malformed {
            what: what.to_string(),
            why: "a family without a number",
        }),
    }
}
