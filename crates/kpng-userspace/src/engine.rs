//! The running proxy: its sockets, its threads, and its end.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kpng_core::model::Family;
use kpng_core::plan::Target;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tracing::debug;

use crate::affinity::Affinity;
use crate::pipes::Pipes;
use crate::routes::{Pool, Routes};
use crate::stats::Stats;
use crate::transparent::Transparent;
use crate::{Config, Error, successor, tcp, udp};

/// More threads than this are in each other's way.
const MAX_THREADS: usize = 4;

/// File descriptors that are not those of connections.
const OTHER_FILES: u64 = 512;

/// How often affinity is written into its file, if it changed.
const SAVE_PERIOD: Duration = Duration::from_secs(1);

/// The ports on which the proxy listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) tcp: u16,
    pub(crate) udp: u16,
}

/// What everything that runs shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) routes: Arc<Routes>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) affinity: Affinity,
    pub(crate) pipes: Pipes,
    /// As many permits as there may be connections more.
    pub(crate) permits: Arc<Semaphore>,
    /// The mark of the proxy's own packets.
    pub(crate) mark: u32,
    pub(crate) tcp_idle: Duration,
    pub(crate) udp_idle: Duration,
    /// Clients' addresses are kept where that works; `None` for nowhere.
    pub(crate) transparent: Option<Transparent>,
}

impl Shared {
    /// The client's address, if the endpoint shall see it and its answers come back here.
    pub(crate) fn source(&self, pool: &Pool, client: IpAddr, target: Target) -> Option<IpAddr> {
        let transparent = self.transparent.as_ref().filter(|_| !pool.masquerade)?;
        transparent.leads_back(client, target.address).then_some(client)
    }
}

/// The proxy. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) ports: Ports,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    /// A successor has come.
    retired: Arc<AtomicBool>,
}

impl Engine {
    /// Listens, in the network namespace of the calling thread.
    pub(crate) fn start(
        config: &Config,
        routes: Arc<Routes>,
        stats: Arc<Stats>,
        retired: Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let limit = config.max_connections.map_or_else(limit_of_files, u64::from);
        stats.limit.store(limit, Ordering::Relaxed);
        let permits = usize::try_from(limit).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let shared = Arc::new(Shared {
            routes,
            stats,
            affinity: Affinity::load(&config.state_dir),
            pipes: Pipes::default(),
            permits: Arc::new(Semaphore::new(permits)),
            mark: config.mark(),
            tcp_idle: config.tcp_idle_timeout,
            udp_idle: config.udp_idle_timeout,
            transparent: config.transparent.then(Transparent::open).transpose()?,
        });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.min(MAX_THREADS))
            .thread_name("proxy")
            .enable_all()
            .build()
            .map_err(|source| Error::Socket { what: "event queue", source })?;
        let (stop, stopped) = watch::channel(false);
        let mut ports = Ports { tcp: 0, udp: 0 };
        for family in Family::ALL {
            let what = "TCP socket";
            let listener = listen(family, Type::STREAM, ports.tcp)
                .map_err(|source| Error::Socket { what, source })?;
            ports.tcp = port(&listener).map_err(|source| Error::Socket { what, source })?;
            spawn(&runtime, stopped.clone(), tcp::serve(listener.into(), Arc::clone(&shared)));
            let what = "UDP socket";
            let socket = listen(family, Type::DGRAM, ports.udp)
                .map_err(|source| Error::Socket { what, source })?;
            ports.udp = port(&socket).map_err(|source| Error::Socket { what, source })?;
            spawn(&runtime, stopped.clone(), udp::serve(socket.into(), Arc::clone(&shared)));
        }
        let saved = Arc::clone(&shared);
        spawn(&runtime, stopped, async move {
            loop {
                tokio::time::sleep(SAVE_PERIOD).await;
                saved.affinity.save();
            }
        });
        let what = "socket for a successor";
        successor::wait(ports, Arc::clone(&shared), Arc::clone(&retired))
            .map_err(|source| Error::Socket { what, source })?;
        Ok(Self { ports, shared, runtime: Some(runtime), stop, retired })
    }

    /// Accepts nothing more, and lets what runs go on until it ends, but no longer than `limit`.
    pub(crate) fn drain(mut self, limit: Duration) {
        self.stop.send_replace(true);
        let (start, stats) = (Instant::now(), &self.shared.stats);
        let open = || stats.tcp.open.load(Ordering::Relaxed) > 0;
        while open() && start.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.end();
    }

    fn end(&mut self) {
        self.shared.affinity.save();
        // Else the one who waits is another process.
        if !self.retired.load(Ordering::Acquire)
            && let Err(error) = successor::succeed()
        {
            debug!(%error, "cannot end the wait for a successor");
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `work` until it ends or the proxy shall accept nothing more.
fn spawn(
    runtime: &Runtime,
    mut stopped: watch::Receiver<bool>,
    work: impl Future<Output = ()> + Send + 'static,
) {
    runtime.spawn(async move {
        tokio::select! {
            () = work => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    });
}

/// A socket on this port, or any, of all addresses of the family: only the rules lead anybody to it.
fn listen(family: Family, kind: Type, port: u16) -> io::Result<Socket> {
    let (domain, any): (_, IpAddr) = match family {
        Family::V4 => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        Family::V6 => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(any, port).into())?;
    if kind == Type::STREAM {
        socket.listen(4096)?;
    } else {
        // Many clients may speak at once. What the system allows is what we get.
        drop(socket.set_recv_buffer_size(4 << 20));
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn port(socket: &Socket) -> io::Result<u16> {
    let address = socket.local_addr()?.as_socket();
    address.map(|address| address.port()).ok_or_else(|| io::Error::other("it has no port"))
}

/// Raises the limit of open files as far as may be; two files make a connection.
fn limit_of_files() -> u64 {
    const ENOUGH: u64 = 1 << 20;
    let now = getrlimit(Resource::Nofile);
    for wanted in [Some(ENOUGH), now.maximum] {
        let Some(wanted) = wanted else { continue };
        let maximum = now.maximum.map(|maximum| maximum.max(wanted));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok() {
            break;
        }
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH);
    files.saturating_sub(OTHER_FILES).max(2) / 2
}

/// Closes the connection with a reset.
pub(crate) fn reset(stream: &tokio::net::TcpStream) {
    // It is closed in any case; a peer that is gone needs no reset.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}
