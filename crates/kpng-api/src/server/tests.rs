//! Streams of a server: their rules without sockets, and what clients can do to one with sockets.

mod sockets;
mod streams;
