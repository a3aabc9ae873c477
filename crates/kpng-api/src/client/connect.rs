//! Connections to servers: sockets, TLS, and HTTP/2 on top.

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use hyper_util::rt::TokioIo;
use kpng_core::backoff::random;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::limits::{LIMITS, Limits};
use super::stream::OpStream;
use super::{Config, stream};
use crate::address::Target;
use crate::error::Error;
use crate::proto::globalv1::GlobalWatchReq;
use crate::proto::globalv1::sets_client::SetsClient as GlobalClient;
use crate::proto::localv1::WatchReq;
use crate::proto::localv1::sets_client::SetsClient as LocalClient;
use crate::tls;

/// What a server may send before it was read: of a stream, and of a connection. HTTP/2's default of
/// 64 KiB makes a large state slow over long distances.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;

/// How long TCP is silent before it asks for a sign of life.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// How long TCP waits for one, in milliseconds.
const TCP_TIMEOUT: u32 = 20_000;

/// What servers on Unix sockets are called in requests, as by grpc-go.
const UNIX_AUTHORITY: &str = "localhost";

/// A connection to a server. It ends when it and its streams are dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
    target: Target,
    tls: bool,
    limits: Limits,
}

impl Connection {
    /// Connects to the first server that can be reached, beginning with some one.
    ///
    /// A host that is gone is noticed by TCP. A server that has stopped on a host that lives is not:
    /// old servers end the connections of clients that ping them.
    ///
    /// # Errors
    /// Why the last one cannot be reached.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let mut result = Err(Error::NoTarget);
        let targets = &config.targets;
        for target in rotated(targets) {
            result = Self::to(target, config, Limits { ping: None, ..LIMITS }).await;
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Connects to one server.
    pub(super) async fn to(
        target: &Target,
        config: &Config,
        limits: Limits,
    ) -> Result<Self, Error> {
        let end = Instant::now() + limits.connect;
        let socket = match timeout_at(end, establish(target, config, end)).await {
            Ok(socket) => socket?,
            Err(_) => {
                return Err(Error::ConnectTimeout {
                    target: target.clone(),
                    limit: limits.connect,
                });
            }
        };
        let failed = |reason| Error::Connect { target: target.clone(), reason };
        let scheme = if config.tls.is_set() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", authority(target)))
            .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
            .map_err(|error| failed(stream::reason(&error)))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        if let Some(interval) = limits.ping {
            endpoint = endpoint
                .http2_keep_alive_interval(interval)
                .keep_alive_timeout(limits.pong)
                .keep_alive_while_idle(true);
        }
        // There is this one socket: a connection that broke is not replaced behind our back.
        let mut socket = Some(TokioIo::new(socket));
        let connector = tower::service_fn(move |_| {
            ready(socket.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
        });
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| failed(stream::reason(&error)))?;
        Ok(Self { channel, target: target.clone(), tls: config.tls.is_set(), limits })
    }

    /// The server.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Asks what Services mean on one node.
    ///
    /// # Errors
    /// When the server does not accept that.
    pub async fn local(&self, request: WatchReq) -> Result<OpStream<WatchReq>, Error> {
        let (requests, outgoing) = stream::requests(request);
        let mut client =
            LocalClient::new(self.channel.clone()).max_decoding_message_size(self.limits.message);
        let answer = timeout(self.limits.accept, client.watch(outgoing)).await;
        OpStream::accepted(requests, answer, &self.target, self.tls, self.limits.accept)
    }

    /// Asks what the cluster says.
    ///
    /// # Errors
    /// When the server does not accept that.
    pub async fn global(&self, request: GlobalWatchReq) -> Result<OpStream<GlobalWatchReq>, Error> {
        let (requests, outgoing) = stream::requests(request);
        let mut client =
            GlobalClient::new(self.channel.clone()).max_decoding_message_size(self.limits.message);
        let answer = timeout(self.limits.accept, client.watch(outgoing)).await;
        OpStream::accepted(requests, answer, &self.target, self.tls, self.limits.accept)
    }
}

const USER_AGENT: &str = concat!("kpng/", env!("CARGO_PKG_VERSION"));

/// All of them once, beginning with some one.
fn rotated<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let first = random_index(all.len());
    all[first..].iter().chain(&all[..first])
}

/// Some index into `length` things; 0 if there are none.
pub(super) fn random_index(length: usize) -> usize {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small numbers, rounded towards 0"
    )]
    let index = (random() * length as f64) as usize;
    index
}

/// What the server is called in requests.
fn authority(target: &Target) -> String {
    match target {
        Target::Tcp { host, port } => {
            Target::Tcp { host: without_zone(host).to_owned(), port: *port }.to_string()
        }
        Target::Unix(_) => UNIX_AUTHORITY.to_owned(),
    }
}

/// The zone of a link local address means something to us only.
fn without_zone(host: &str) -> &str {
    host.split_once('%').map_or(host, |(address, _)| address)
}

/// What HTTP/2 is spoken on.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

async fn establish(
    target: &Target,
    config: &Config,
    end: Instant,
) -> Result<Box<dyn Socket>, Error> {
    let tls = match config.tls.is_set() {
        true => Some((read_tls(config).await?, server_name(target, config)?)),
        false => None,
    };
    let failed = |source: io::Error| Error::Connect {
        target: target.clone(),
        reason: stream::reason(&source),
    };
    let socket: Box<dyn Socket> = match target {
        Target::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(failed)?),
        Target::Tcp { host, port } => {
            Box::new(connect_tcp(host, *port, end).await.map_err(failed)?)
        }
    };
    match tls {
        None => Ok(socket),
        Some((client_config, name)) => {
            let handshake = TlsConnector::from(client_config).connect(name, socket).await;
            Ok(Box::new(handshake.map_err(failed)?))
        }
    }
}

/// Connects to one of the addresses of `host`. None of them takes more than its share of the time.
async fn connect_tcp(host: &str, port: u16, end: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for (tried, address) in rotated(&addresses).enumerate() {
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = end.duration_since(Instant::now()) / left;
        let connected = timeout(share, TcpStream::connect(address)).await;
        result = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Ok(stream) = &result {
            stream.set_nodelay(true)?;
            notice_dead_hosts(stream)?;
            break;
        }
    }
    result
}

/// Lets the kernel end a connection whose other end does not answer any more.
fn notice_dead_hosts(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;

    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, TCP_IDLE)?;
    sockopt::set_tcp_user_timeout(stream, TCP_TIMEOUT)
}

async fn read_tls(config: &Config) -> Result<Arc<ClientConfig>, Error> {
    let files = config.tls.clone();
    tokio::task::spawn_blocking(move || tls::client_config(&files))
        .map(|result| result.expect("reading files does not panic"))
        .await
}

/// Whose certificate the server must show.
pub(super) fn server_name(target: &Target, config: &Config) -> Result<ServerName<'static>, Error> {
    let name = match (&config.server_name, target) {
        (Some(name), _) => name,
        (None, Target::Tcp { host, .. }) => without_zone(host),
        (None, Target::Unix(_)) => UNIX_AUTHORITY,
    };
    ServerName::try_from(name)
        .map(|name| name.to_owned())
        .map_err(|_| Error::ServerName { name: name.to_owned() })
}
