//! A small HTTP/1.1 server for probes, metrics and the page, shared by everything here that listens.
//!
//! A port that cannot be bound stops nobody: it is reported once and tried again until it can. What
//! a client may take is bounded: connections, the time for a request and for its answer, the life of a
//! connection; and what blocks takes turns.

mod blocking;
mod query;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kpng_api::server::{listen, listen_everywhere};
use kpng_core::backoff::Backoff;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use blocking::Blocking;
pub(crate) use query::{decode, encode, parameters};

/// What is answered.
pub type Answer = Response<String>;

/// An answer that is being worked out. It is dropped when its client goes away or its time is over.
pub type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Answers a request, whose body nobody reads. It runs on the runtime's thread, so it does not block:
/// what does is given to a [`Blocking`].
pub type Handler = Arc<dyn Fn(Parts) -> Answering + Send + Sync>;

/// Answers by the path alone, at once. The method is not looked at, as in kube-proxy.
pub fn at_once(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Handler {
    Arc::new(move |request| Box::pin(std::future::ready(answer(request.uri.path()))))
}

/// An answer of one of the types that [`TEXT`] and [`JSON`] are.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<String>) -> Answer {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// The answer to a path that nobody knows.
pub fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

/// The content type of plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// The content type of JSON.
pub const JSON: &str = "application/json";

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket could not be made, bound or listened on.
    #[error("listen for {what} on {address}")]
    Listen {
        /// What would be served.
        what: String,
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The value of a flag is no address.
    #[error(
        "read the address {text:?}: it must be IP:port, [IPv6]:port or an IP; empty or 0 disables"
    )]
    Address {
        /// The value.
        text: String,
    },
}

/// Where to listen, as flags say it: `IP:port`, `[IPv6]:port`, `:port` or an IP; nowhere if it is
/// empty or `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress(pub Option<SocketAddr>);

impl BindAddress {
    /// Reads the value of a flag. An IP alone gets the port `default_port`.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn parse(text: &str, default_port: u16) -> Result<Self, Error> {
        if text.is_empty() || text == "0" {
            return Ok(Self(None));
        }
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self(Some(SocketAddr::new(ip, default_port))));
        }
        let port = text.strip_prefix(':').and_then(|port| port.parse().ok());
        let everywhere = port.map(|port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
        everywhere
            .or_else(|| text.parse().ok())
            .map(|address| Self(Some(address)))
            .ok_or_else(|| Error::Address { text: text.to_owned() })
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("0"),
        }
    }
}

/// Something that listens and answers until it is dropped. Dropping it closes the port and all
/// connections.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
    closing: watch::Sender<bool>,
    address: watch::Receiver<Option<SocketAddr>>,
}

impl Server {
    /// Serves `what` on `address` from now on. A port that cannot be bound is reported and tried
    /// again until it can. Must be called inside a tokio runtime.
    pub fn start(what: impl Into<String>, address: SocketAddr, handler: Handler) -> Self {
        Self::start_telling(what, address, handler, |_| {})
    }

    /// The same; and `tell` is called once if the port cannot be bound.
    pub fn start_telling(
        what: impl Into<String>,
        address: SocketAddr,
        handler: Handler,
        tell: impl FnOnce(&io::Error) + Send + 'static,
    ) -> Self {
        let what = what.into();
        Self::spawn(handler, async move { bind_until_it_works(&what, address, tell).await })
    }

    /// Like [`Server::start`], but a port that cannot be bound now is an error.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn try_start(
        what: impl Into<String>,
        address: SocketAddr,
        handler: Handler,
    ) -> Result<Self, Error> {
        let listener =
            bind(address).map_err(|source| Error::Listen { what: what.into(), address, source })?;
        Ok(Self::spawn(handler, std::future::ready(listener)))
    }

    fn spawn(handler: Handler, bind: impl Future<Output = TcpListener> + Send + 'static) -> Self {
        let (closing, mut closed) = watch::channel(false);
        let (bound, address) = watch::channel(None);
        let task = tokio::spawn(async move {
            let listener = tokio::select! {
                () = is_closed(&mut closed) => return,
                listener = bind => listener,
            };
            bound.send_replace(listener.local_addr().ok());
            serve(listener, handler, LIMITS, closed).await;
        });
        Self { task, closing, address }
    }

    /// The address that is listened on, once it is. `None` if the server ended before.
    pub async fn address(&mut self) -> Option<SocketAddr> {
        self.address.wait_for(Option::is_some).await.ok().and_then(|address| *address)
    }

    /// Closes the port, and lets answers that are under way end, for a second at most.
    pub async fn shutdown(mut self) {
        self.closing.send_replace(true);
        // A task that panicked or was cancelled is as gone as one that ended.
        (&mut self.task).await.ok();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What clients may take.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    connections: usize,
    /// From the start of a connection, or the end of an answer, to the end of a request's header.
    header: Duration,
    /// From there to the beginning of the answer.
    answer: Duration,
    /// Of one connection.
    life: Duration,
    /// To take the last answer.
    pub(crate) grace: Duration,
}

/// What clients may take here.
pub(crate) const LIMITS: Limits = Limits {
    connections: 128,
    header: Duration::from_secs(10),
    answer: Duration::from_secs(30),
    life: Duration::from_secs(300),
    grace: Duration::from_secs(1),
};

/// How many connections the kernel keeps for us.
const BACKLOG: u32 = 128;

/// More than any request needs, and the least that hyper allows.
const MAX_REQUEST: usize = 8192;

async fn serve(
    listener: TcpListener,
    handler: Handler,
    limits: Limits,
    mut closed: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < limits.connections;
        tokio::select! {
            () = is_closed(&mut closed) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if room => match accepted {
                Ok((stream, _)) => {
                    let handler = Arc::clone(&handler);
                    let service = service_fn(move |request: Request<Incoming>| {
                        let answering = handler(request.into_parts().0);
                        async move { Ok::<_, Infallible>(in_time(answering, limits.answer).await) }
                    });
                    connections.spawn(converse(stream, service, limits, closed.clone()));
                }
                // A client that went away again, or no more file descriptors: they come back.
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn in_time(answering: Answering, limit: Duration) -> Answer {
    tokio::time::timeout(limit, answering).await.unwrap_or_else(|_| {
        answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "it takes too long; try again later\n")
    })
}

/// Answers one client by `service`, within limits.
pub(crate) async fn converse<S, B>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: S,
    limits: Limits,
    mut closed: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body<Error = Infallible> + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // What a client does wrong is its own business.
        _ = &mut connection => return,
        () = is_closed(&mut closed) => {}
        () = tokio::time::sleep(limits.life) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::time::timeout(limits.grace, connection).await.ok();
}

async fn is_closed(closed: &mut watch::Receiver<bool>) {
    // The sender goes away only with the server itself.
    closed.wait_for(|closed| *closed).await.ok();
}

/// The first failure is not reported: whoever had the port may just be about to let it go.
async fn bind_until_it_works(
    what: &str,
    address: SocketAddr,
    tell: impl FnOnce(&io::Error),
) -> TcpListener {
    let mut tell = Some(tell);
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(10));
    let mut failures = 0_u64;
    loop {
        match bind(address) {
            Ok(listener) if failures > 1 => {
                tracing::info!(%address, "listening for {what} after {failures} failures");
                return listener;
            }
            Ok(listener) => return listener,
            Err(error) => {
                failures += 1;
                if failures == 2 {
                    tracing::error!(%address, %error, "cannot listen for {what}; trying again");
                    if let Some(tell) = tell.take() {
                        tell(&error);
                    }
                }
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Listens on `address`; on an unspecified one for both families, where the kernel has both.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        listen_everywhere(address.port(), BACKLOG)
    } else {
        listen(address, BACKLOG)
    }
}

#[cfg(test)]
pub(crate) mod tests;
