//! How long a client waits, and how much it takes.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// To connect, from the resolution of a name to the end of the TLS handshake.
    pub(super) connect: Duration,
    /// To the first sign that a stream was accepted. All servers send Reset or Sync at once.
    pub(super) accept: Duration,
    /// Between two operations of a server that has given no state yet.
    pub(super) first_state: Duration,
    /// Between the last sign of life and a ping of HTTP/2; `None` for no pings.
    pub(super) ping: Option<Duration>,
    /// To the answer to a ping.
    pub(super) pong: Duration,
    /// Before all servers are tried again for the first time.
    pub(super) first_pause: Duration,
    /// The same after many failures.
    pub(super) longest_pause: Duration,
    /// The same when servers refuse us: that gets better only when somebody does something.
    pub(super) denied_pause: Duration,
    /// A server that ends was the server of many: they come back spread over this time.
    pub(super) spread: Duration,
    /// Bytes of one message.
    pub(super) message: usize,
    /// Bytes of one answer.
    pub(super) answer: usize,
}

pub(super) const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    accept: Duration::from_secs(5),
    first_state: Duration::from_secs(10),
    ping: Some(Duration::from_secs(10)),
    pong: Duration::from_secs(10),
    first_pause: Duration::from_millis(200),
    longest_pause: Duration::from_secs(15),
    denied_pause: Duration::from_secs(30),
    spread: Duration::from_secs(1),
    message: 64 << 20,
    answer: 1 << 30,
};
