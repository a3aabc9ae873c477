//! TCP: from an accepted connection to the endpoint that answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{Origin, Target};
use kpng_linux::socket::{bind_address_only, set_transparent};
use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::engine::{Shared, reset};
use crate::names;
use crate::relay::relay;
use crate::routes::ORIGINS;
use crate::transparent::family_of;

/// How long the first, the second, … attempt may take; the last time for all further ones. A SYN that
/// gets lost is sent again after a second.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(1200),
    Duration::from_millis(1200),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// How many attempts there are for one connection.
const ATTEMPTS: usize = 8;

/// After this long without a free file descriptor it is worth to look again.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Accepts connections.
pub(crate) async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log(&error),
    };
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let permit = permit(&shared).await;
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { connection(stream, client, &shared, permit).await });
            }
            Err(error) => {
                // A client that is gone again is no reason to wait.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    log(&error);
                    tokio::time::sleep(EXHAUSTED).await;
                }
            }
        }
    }
}

fn log(error: &io::Error) {
    let error: &dyn std::error::Error = error;
    warn!(error, "cannot accept connections; trying again");
}

/// Waits until there may be one more connection; further ones wait in the kernel's queue meanwhile.
async fn permit(shared: &Shared) -> OwnedSemaphorePermit {
    let permits = Arc::clone(&shared.permits);
    if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
        return permit;
    }
    shared.stats.at_limit.fetch_add(1, Ordering::Relaxed);
    warn!("there are as many connections as there may be (--max-connections); new ones wait");
    permits.acquire_owned().await.expect("nobody closes the semaphore")
}

async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    shared: &Shared,
    _permit: OwnedSemaphorePermit,
) {
    let _open = shared.stats.tcp.opened();
    let client_ip = client.ip().to_canonical();
    let Some(upstream) = upstream(&stream, client_ip, shared).await else {
        return reset(&stream);
    };
    for stream in [&stream, &upstream] {
        // Whoever wrote has decided already what belongs together.
        drop(stream.set_nodelay(true));
        drop(SockRef::from(stream).set_keepalive(true));
    }
    let bytes = &shared.stats.tcp.bytes;
    if let Err(error) = relay(&stream, &upstream, &shared.pipes, shared.tcp_idle, bytes).await {
        debug!(%client, %error, "a connection failed");
        reset(&stream);
        reset(&upstream);
    }
}

/// Connects to an endpoint of the service that the connection was made to.
async fn upstream(stream: &TcpStream, client: IpAddr, shared: &Shared) -> Option<TcpStream> {
    let origin = origin(stream.local_addr().ok()?.ip())?;
    let to = original_destination(stream).ok()?;
    let route = shared.routes.find(to, Protocol::Tcp)?;
    let pool = route.pool(origin)?;
    route.count();
    let (mut tried, mut silent) = (Vec::new(), Vec::new());
    let mut patience = PATIENCE.into_iter();
    let mut longest = PATIENCE[0];
    for _ in 0..ATTEMPTS {
        let mut target = shared.affinity.choose(&route, pool, client, &tried);
        if target.is_none() {
            // Who did not answer may only be slow.
            tried.retain(|target| !silent.contains(target));
            silent.clear();
            target = shared.affinity.choose(&route, pool, client, &tried);
        }
        let Some(target) = target else { break };
        longest = patience.next().unwrap_or(longest);
        let source = shared.source(pool, client, target);
        match connect(target, source, longest, shared.mark).await {
            Ok(upstream) => return Some(upstream),
            Err(error) => {
                debug!(service = &*route.service_port, ?target, %error, "an endpoint is not there");
                shared.stats.tcp.retries.fetch_add(1, Ordering::Relaxed);
                tried.push(target);
                silent.extend((error.kind() == io::ErrorKind::TimedOut).then_some(target));
            }
        }
    }
    shared.stats.tcp.failed.fetch_add(1, Ordering::Relaxed);
    None
}

async fn connect(
    target: Target,
    source: Option<IpAddr>,
    patience: Duration,
    mark: u32,
) -> io::Result<TcpStream> {
    let socket = match Family::of(target.address) {
        Family::V4 => TcpSocket::new_v4()?,
        Family::V6 => TcpSocket::new_v6()?,
    };
    SockRef::from(&socket).set_mark(mark)?;
    if let Some(source) = source {
        set_transparent(&socket, family_of(source))?;
        bind_address_only(&socket)?;
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let connected = socket.connect(SocketAddr::new(target.address, target.port));
    timeout(patience, connected).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Where a connection comes from, by the address that it was led to.
pub(crate) fn origin(led_to: IpAddr) -> Option<Origin> {
    let led_to = led_to.to_canonical();
    let is_it = |origin: &Origin| names::address(Family::of(led_to), *origin) == led_to;
    ORIGINS.into_iter().find(is_it)
}

/// Where a connection was made to before it was led here (`SO_ORIGINAL_DST`).
fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    Ok(if stream.local_addr()?.is_ipv4() {
        SocketAddr::V4(ip_original_dst(stream)?)
    } else {
        let to = ipv6_original_dst(stream)?;
        SocketAddr::new((*to.ip()).into(), to.port())
    })
}
