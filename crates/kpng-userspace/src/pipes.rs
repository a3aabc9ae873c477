//! Pipes for splicing, shared by all connections: an idle connection has none.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// The capacity asked for, in bytes. What an ordinary user may not have any more is what pipes have
/// by default.
pub(crate) const CAPACITY: usize = 256 * 1024;

/// How many empty pipes are kept.
const KEPT: usize = 128;

/// An empty pipe, while it is in the pool.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) reader: OwnedFd,
    pub(crate) writer: OwnedFd,
}

/// Pipes that nobody uses.
#[derive(Debug, Default)]
pub(crate) struct Pipes(Mutex<Vec<Pipe>>);

impl Pipes {
    /// An empty pipe.
    pub(crate) fn take(&self) -> io::Result<Pipe> {
        if let Some(pipe) = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(pipe);
        }
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Refused when the user has too many pages in pipes: a small one works too.
        fcntl_setpipe_size(&writer, CAPACITY).ok();
        Ok(Pipe { reader, writer })
    }

    /// Takes back a pipe that is empty again.
    pub(crate) fn put(&self, pipe: Pipe) {
        let mut pipes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pipes.len() < KEPT {
            pipes.push(pipe);
        }
    }
}
