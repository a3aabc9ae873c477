//! Kernel parameters, by their files under `/proc/sys`.
//!
//! Names have slashes (`net/ipv4/ip_forward`), because interface names may have dots. Those under
//! `net/` belong to the network namespace of the calling thread.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The value of a parameter, without surrounding white space.
///
/// # Errors
/// [`Error::File`] when the kernel does not have it.
pub fn get(name: &str) -> Result<String> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim().to_owned()),
        Err(error) => Err(failure("read", path, error)),
    }
}

/// Sets a parameter.
///
/// # Errors
/// [`Error::File`] when the kernel does not have it, refuses the value, or `/proc/sys` is
/// read-only, as it is in most containers.
pub fn set(name: &str, value: &str) -> Result<()> {
    let path = path(name);
    fs::write(&path, value).map_err(|error| failure(&format!("write {value:?} to"), path, error))
}

/// Sets a parameter unless it has the value already, so that nothing needs to be writable on a
/// node that was prepared. Returns whether it was changed.
///
/// # Errors
/// As [`set`].
pub fn set_if_needed(name: &str, value: &str) -> Result<bool> {
    if get(name)? == value {
        return Ok(false);
    }
    set(name, value).map(|()| true)
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn failure(what: &str, path: PathBuf, source: io::Error) -> Error {
    let hint = match source.kind() {
        io::ErrorKind::NotFound => {
            "this kernel does not have it, or the module that provides it is not loaded"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "/proc/sys is read-only here; run the container privileged, or set the value on the \
             node beforehand"
        }
        io::ErrorKind::PermissionDenied => {
            "needs root on the node; run as root, or set the value on the node beforehand"
        }
        io::ErrorKind::InvalidInput => "the kernel does not accept this value",
        _ => "",
    };
    Error::File { what: what.to_owned(), path, hint, source }
}
