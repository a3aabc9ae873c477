//! Lets clients in that name a Unix socket in `:authority`.
//!
//! gRPC's C core (Python, C++, Ruby, PHP) and Java put the path of the socket there, escaped or as it
//! is. HTTP/2 servers on `h2` reject such a request before anybody can look at it (hyperium/h2#487).
//! Nobody here needs the name of a socket, so on Unix sockets what cannot stand in an authority is
//! replaced by `-` while it is read. All else passes as it is: lengths stay, so nothing else changes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `PRI * HTTP/2.0…`, before the first frame.
const PREFACE: usize = 24;

/// The length of a frame's header.
const HEADER: usize = 9;

/// The longest frame that a server accepts which asked for nothing else (RFC 9113, 4.2).
const MAX_FRAME: usize = 16_384;

/// RFC 9113, 6.2.
const HEADERS: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The index of the name `:authority` in HPACK's static table (RFC 7541, A).
const AUTHORITY: usize = 1;

/// A connection whose client may name a Unix socket.
#[derive(Debug)]
pub(super) struct Lenient<S> {
    inner: S,
    /// Bytes of the preface that are to come.
    preface: usize,
    /// An incomplete frame.
    partial: Vec<u8>,
    /// What was looked at and is to be read.
    passed: Vec<u8>,
    /// Nothing is looked at any more: the end has come, or what is no HTTP/2.
    blind: bool,
}

impl<S> Lenient<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, preface: PREFACE, partial: Vec::new(), passed: Vec::new(), blind: false }
    }

    /// Passes on the frames that are complete.
    fn pass(&mut self) {
        let mut at = self.preface.min(self.partial.len());
        self.preface -= at;
        while let [a, b, c, kind, flags, _, _, _, _, ..] = self.partial[at..] {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > MAX_FRAME {
                self.blind = true;
                at = self.partial.len();
                break;
            }
            let end = at + HEADER + length;
            let Some(payload) = self.partial.get_mut(at + HEADER..end) else { break };
            if kind == HEADERS && flags & END_HEADERS != 0 {
                let begin =
                    usize::from(flags & PADDED != 0) + 5 * usize::from(flags & PRIORITY != 0);
                payload.get_mut(begin..).and_then(make_authority_valid);
            }
            at = end;
        }
        self.passed.extend(self.partial.drain(..at));
    }
}

/// Looks for the authority in a header block. `None` when there is none, or the block makes no sense.
fn make_authority_valid(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    loop {
        // RFC 7541, 6: which representation, and how many bits of the first byte are its index.
        let (bits, literal) = match *block.get(at)? {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let name = integer(block, &mut at, bits)?;
        if !literal {
            continue;
        }
        // gRPC's C core spells names out that have an index.
        let is_authority = match name {
            0 => block[string(block, &mut at)?.0] == *b":authority",
            index => index == AUTHORITY,
        };
        let (value, huffman) = string(block, &mut at)?;
        if is_authority {
            // Who compresses the names of sockets is not known to exist.
            let invalid = |byte: &&mut u8| {
                !matches!(**byte, b'-' | b'.' | b':' | b'[' | b']') && !byte.is_ascii_alphanumeric()
            };
            if !huffman {
                block[value].iter_mut().filter(invalid).for_each(|byte| *byte = b'-');
            }
            return Some(());
        }
    }
}

/// RFC 7541, 5.1.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Where a string is, and whether it is compressed (RFC 7541, 5.2).
fn string(block: &[u8], at: &mut usize) -> Option<(std::ops::Range<usize>, bool)> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let range = *at..at.checked_add(length)?;
    *at = range.end;
    block.get(range.clone())?;
    Some((range, huffman))
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.passed.is_empty() {
                let length = this.passed.len().min(buf.remaining());
                buf.put_slice(&this.passed[..length]);
                this.passed.drain(..length);
                return Poll::Ready(Ok(()));
            }
            if this.blind {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            let mut bytes = [0; 2048];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                this.blind = true;
                this.passed = std::mem::take(&mut this.partial);
                if this.passed.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            } else {
                this.partial.extend_from_slice(read.filled());
                this.pass();
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// `:method: POST`, a literal name and value, then the authority.
    fn block(authority: &[u8]) -> Vec<u8> {
        let length = u8::try_from(authority.len()).unwrap();
        [&[0x83, 0x40, 1, b'a', 2, b'%', b'/', 0x41, length], authority].concat()
    }

    /// What comes out of `bytes`, in pieces of every length.
    async fn check(bytes: &[u8], expected: &[u8]) {
        let preface = [b'/'; PREFACE];
        for piece in [1, 2, 7, 23, 4000, 100_000] {
            let (mut client, server) = tokio::io::duplex(200_000);
            for part in [&preface, bytes].concat().chunks(piece) {
                client.write_all(part).await.unwrap();
            }
            drop(client);
            let mut read = Vec::new();
            Lenient::new(server).read_to_end(&mut read).await.unwrap();
            assert_eq!(read, [&preface, expected].concat(), "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn names_of_sockets_become_valid() {
        for (authority, valid) in [
            (&b"%2Frun%2Fkpng.sock"[..], &b"-2Frun-2Fkpng.sock"[..]),
            (b"/run/kpng.sock", b"-run-kpng.sock"),
            (b"localhost:80", b"localhost:80"),
            (b"[::1]:80", b"[::1]:80"),
            (b"", b""),
        ] {
            let frames = |authority: &[u8]| {
                let length = u8::try_from(authority.len()).unwrap();
                let spelled = [b"\x83\x40\x0a:authority", &[length][..], authority].concat();
                let block = block(authority);
                let padded = [&[2][..], &[0; 5], &block, &[0; 2]].concat();
                [
                    frame(4, 0, b"/%/%/%"),
                    frame(HEADERS, END_HEADERS, &block),
                    frame(HEADERS, END_HEADERS, &spelled),
                    frame(0, 0, b"\x41\x01/"),
                    frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
                ]
                .concat()
            };
            check(&frames(authority), &frames(valid)).await;
        }
    }

    #[tokio::test]
    async fn all_else_passes_as_it_is() {
        for bytes in [
            frame(HEADERS, END_HEADERS, &[0x41]),
            frame(HEADERS, END_HEADERS, &[0x41, 0x05, b'/']),
            frame(HEADERS, END_HEADERS, &[0x41, 0x81, b'/']),
            frame(HEADERS, END_HEADERS, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff]),
            frame(HEADERS, END_HEADERS, &[0x40, 0x7f, 0xff, 0xff, 0x7f]),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &[]),
            frame(HEADERS, 0, &block(b"/")),
            vec![0xff; 100_000],
            vec![0; 8],
            frame(0, 0, &[b'/'; 16_000]),
        ] {
            check(&bytes, &bytes).await;
        }
    }
}
