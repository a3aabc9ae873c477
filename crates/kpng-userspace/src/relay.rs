//! Moves bytes between two connections, both ways, within the kernel.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::pipe::{SpliceFlags, splice};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::activity::Activity;
use crate::pipes::{CAPACITY, Pipe, Pipes};

/// After how many portions others have their turn: the other direction, and other connections.
const TURN: u32 = 16;

/// The buffer of a direction that has no pipe.
const COPY: usize = 32 << 10;

/// Moves bytes until both sides have said all, one fails, or nothing came for `idle`. A side that has
/// said all can still be told (half-close).
///
/// # Errors
/// When a side fails: the other has to be reset.
pub(crate) async fn relay(
    a: &TcpStream,
    b: &TcpStream,
    pipes: &Pipes,
    idle: Duration,
    bytes: &AtomicU64,
) -> io::Result<()> {
    let activity = Activity::new();
    let one = Way { from: a, to: b, pipes, bytes, activity: &activity };
    let other = Way { from: b, to: a, ..one };
    tokio::select! {
        result = async { tokio::try_join!(one.run(), other.run()) } => result.map(|_| ()),
        () = activity.idle_for(idle) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// One direction.
#[derive(Clone, Copy)]
struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    pipes: &'a Pipes,
    bytes: &'a AtomicU64,
    activity: &'a Activity,
}

impl Way<'_> {
    async fn run(self) -> io::Result<()> {
        loop {
            self.from.readable().await?;
            let more = match self.pipes.take() {
                Ok(pipe) => {
                    let more = self.drain(&pipe).await?;
                    self.pipes.put(pipe);
                    more
                }
                // No file descriptor is left: that is no reason to break what goes on.
                Err(_) => self.copy().await?,
            };
            if !more {
                // Who is gone altogether needs not be told.
                return match SockRef::from(self.to).shutdown(Shutdown::Write) {
                    Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
                    _ => Ok(()),
                };
            }
        }
    }

    /// Moves what there is. Whether more may come.
    async fn drain(&self, pipe: &Pipe) -> io::Result<bool> {
        for portion in 1_u32.. {
            if portion.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
            match self.fill(pipe) {
                Ok(0) => return Ok(false),
                Ok(count) => self.empty(pipe, count).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Moves one portion by a buffer of our own. Whether more may come.
    async fn copy(&self) -> io::Result<bool> {
        let mut buffer = vec![0; COPY];
        let count = match self.from.try_read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        self.activity.note();
        let mut left = &buffer[..count];
        while !left.is_empty() {
            match self.to.try_write(left) {
                Ok(count) => {
                    left = &left[count..];
                    self.activity.note();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.to.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn fill(&self, pipe: &Pipe) -> io::Result<usize> {
        self.from.try_io(Interest::READABLE, || {
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            Ok(splice(self.from, None, &pipe.writer, None, CAPACITY, flags)?)
        })
    }

    async fn empty(&self, pipe: &Pipe, mut left: usize) -> io::Result<()> {
        self.bytes.fetch_add(left as u64, Ordering::Relaxed);
        self.activity.note();
        while left > 0 {
            let moved = self.to.try_io(Interest::WRITABLE, || {
                let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                Ok(splice(&pipe.reader, None, self.to, None, left, flags)?)
            });
            match moved {
                Ok(count) => {
                    left -= count;
                    self.activity.note();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.to.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn without_a_pipe_bytes_arrive_as_they_were_sent() {
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let ((mut client, near), (far, mut server)) = (pair().await, pair().await);
        let (pipes, bytes, activity) = (Pipes::default(), AtomicU64::new(0), Activity::new());
        let way = Way { from: &near, to: &far, pipes: &pipes, bytes: &bytes, activity: &activity };
        let mut received = vec![0; sent.len()];
        let relay = async {
            loop {
                near.readable().await.unwrap();
                if !way.copy().await.unwrap() {
                    break;
                }
            }
        };
        let send = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        };
        tokio::join!(relay, send, async { server.read_exact(&mut received).await.unwrap() });
        assert!(received == sent);
        assert_eq!(bytes.into_inner(), sent.len() as u64);
    }
}
