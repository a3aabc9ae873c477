//! One connection: what it may take, and when it ends.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kpng_core::local::Localize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch as channel;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tonic::body::Body;
use tracing::debug;

use super::authority::Lenient;
use super::authorization::Peer;
use super::listener::Stream;
use super::service::{Ending, Shared, call};
use super::stats::{Present, Stats};
use crate::tls::{PeerCertificate, ServerTls};

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// To establish TLS.
    pub(super) handshake: Duration,
    /// To the first call.
    pub(super) first_call: Duration,
    /// Without a call, after the first.
    pub(super) idle: Duration,
    /// To take what is left when a connection is ended.
    pub(super) grace: Duration,
    /// Between the last sign of life and a ping.
    pub(super) ping: Duration,
    /// To answer a ping.
    pub(super) pong: Duration,
}

pub(super) const LIMITS: Limits = Limits {
    handshake: Duration::from_secs(10),
    first_call: Duration::from_secs(20),
    idle: Duration::from_secs(60),
    grace: Duration::from_secs(5),
    ping: Duration::from_secs(20),
    pong: Duration::from_secs(10),
};

/// Streams at once on a connection: relays may carry many nodes' streams on one.
const STREAMS: u32 = 1000;

/// What of a stream's answer waits in a connection, beside what the kernel has.
const SEND_BUFFER: usize = 64 << 10;

/// Longest header that is read.
const MAX_HEADER: u32 = 16 << 10;

/// Serves one connection until its end.
pub(super) async fn serve<V: Localize>(
    stream: Stream,
    tls: Option<ServerTls>,
    shared: Arc<Shared<V>>,
    limits: Limits,
) {
    let _present = Present::new(&shared.stats, |stats| &stats.connections);
    if let Err(error) = converse_over(stream, tls, shared, limits).await {
        // What a client does wrong is its own business.
        debug!("a connection ended: {error}");
    }
}

/// Why a connection ended, for the log.
type Reason = Box<dyn std::error::Error + Send + Sync>;

/// In boxes: there are thousands of connections, and most are of the smallest kind.
async fn converse_over<V: Localize>(
    stream: Stream,
    tls: Option<ServerTls>,
    shared: Arc<Shared<V>>,
    limits: Limits,
) -> Result<(), Reason> {
    let nobody = Peer::default();
    match (stream, tls) {
        (Stream::Tcp(stream), None) => Box::pin(converse(stream, nobody, shared, limits)).await,
        (Stream::Unix(stream), None) => {
            Box::pin(converse(Lenient::new(stream), nobody, shared, limits)).await
        }
        (Stream::Tcp(stream), Some(tls)) => {
            let (stream, peer) = Box::pin(secure(stream, &tls, &shared.stats, limits)).await?;
            Box::pin(converse(stream, peer, shared, limits)).await
        }
        (Stream::Unix(stream), Some(tls)) => {
            let (stream, peer) = Box::pin(secure(stream, &tls, &shared.stats, limits)).await?;
            Box::pin(converse(Lenient::new(stream), peer, shared, limits)).await
        }
    }
}

/// Establishes TLS, and learns who the client is.
async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    tls: &ServerTls,
    stats: &Stats,
    limits: Limits,
) -> Result<(TlsStream<S>, Peer), Reason> {
    let failed = || stats.failed_handshakes.add(1);
    let handshake = timeout(limits.handshake, tls.acceptor().accept(stream)).await;
    let stream = handshake
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .inspect_err(|_| failed())?;
    let certificate = match stream.get_ref().1.peer_certificates() {
        Some([leaf, ..]) => Some(PeerCertificate::of(leaf).inspect_err(|_| failed())?),
        _ => None,
    };
    Ok((stream, Peer { certificate: certificate.map(Arc::new) }))
}

async fn converse<V: Localize>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    shared: Arc<Shared<V>>,
    limits: Limits,
) -> Result<(), Reason> {
    let calls = Arc::new(Calls::default());
    let end = peer.certificate.as_ref().map(|certificate| certificate.not_after);
    let mut closing = shared.closing.clone();
    let (end_streams, ending) = channel::channel(None);
    let ending = Ending(ending);
    let service = service_fn({
        let calls = Arc::clone(&calls);
        move |request: Request<Incoming>| {
            let (shared, peer, calls) = (Arc::clone(&shared), peer.clone(), Arc::clone(&calls));
            let ending = ending.clone();
            async move {
                let call_in_progress = Calls::begin(calls);
                let response = call(shared, peer, ending, request).await;
                let guard = |body| Guarded { body, _call: call_in_progress };
                Ok::<_, std::convert::Infallible>(response.map(guard))
            }
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.ping)
        .keep_alive_timeout(limits.pong)
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let status = tokio::select! {
        result = &mut connection => return Ok(result?),
        _ = closing.wait_for(|closing| *closing) => Status::ok("the server is ending"),
        () = calls.missing(limits) => Status::ok("nothing is asked for"),
        () = expiry(end) => Status::unauthenticated("the client's certificate has expired"),
    };
    debug!("ending a connection: {}", status.message());
    end_streams.send_replace(Some(status));
    connection.as_mut().graceful_shutdown();
    match timeout(limits.grace, connection).await {
        Ok(result) => Ok(result?),
        Err(_) => Ok(()),
    }
}

/// Completes when a certificate is not valid any more.
async fn expiry(end: Option<SystemTime>) {
    match end {
        Some(end) => sleep(end.duration_since(SystemTime::now()).unwrap_or_default()).await,
        None => std::future::pending().await,
    }
}

/// The calls on a connection.
#[derive(Debug, Default)]
struct Calls {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// Counts as a call until it is dropped.
struct CallInProgress(Arc<Calls>);

impl Calls {
    fn begin(calls: Arc<Self>) -> CallInProgress {
        calls.begun.fetch_add(1, Ordering::Relaxed);
        CallInProgress(calls)
    }

    fn counts(&self) -> (u64, u64) {
        (self.begun.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed))
    }

    /// Completes when there were none for too long.
    async fn missing(&self, limits: Limits) {
        sleep(limits.first_call).await;
        let mut before = self.counts();
        if before == (0, 0) {
            return;
        }
        loop {
            sleep(limits.idle).await;
            let (begun, ended) = self.counts();
            if begun == ended && before == (begun, ended) {
                return;
            }
            before = (begun, ended);
        }
    }
}

impl Drop for CallInProgress {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// A response's body, during which its call is in progress.
struct Guarded {
    body: Body,
    _call: CallInProgress,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
