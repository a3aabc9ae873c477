//! UDP: a flow for each client and frontend, with a socket of its own towards the endpoint.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{Origin, Target};
use kpng_linux::conntrack::{Conntrack, Tuple};
use kpng_linux::socket::set_transparent;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use crate::activity::Activity;
use crate::engine::Shared;
use crate::routes::Route;
use crate::stats::Open;
use crate::tcp::origin;
use crate::transparent::family_of;

/// The longest run of datagrams that the kernel hands over as one.
const LONGEST: usize = 1 << 16;

/// How many answers of an endpoint are passed on before others have their turn.
const TURN: usize = 64;

/// How many endpoints are tried for one datagram.
const ATTEMPTS: usize = 4;

/// After this long without a datagram connection tracking may have forgotten the client, who may be at
/// another frontend now. Nobody lets it forget sooner: the kernel's default is 30 seconds.
const SILENCE: Duration = Duration::from_secs(1);

/// The socket that the rules lead to.
struct Listener {
    socket: UdpSocket,
    state: UdpSocketState,
    flows: Mutex<HashMap<FlowKey, Arc<Flow>>>,
    /// Tells where a datagram was sent to.
    conntrack: Mutex<Conntrack>,
    shared: Arc<Shared>,
}

/// A client, and the address of the loopback that it was led to.
type FlowKey = (SocketAddr, IpAddr);

/// What one client says to one frontend.
struct Flow {
    key: FlowKey,
    to: SocketAddr,
    origin: Origin,
    upstream: UdpSocket,
    target: Target,
    /// The generation of the routes in which the target was still good.
    generation: AtomicU64,
    /// The last datagram, until an answer comes: for another endpoint if this one refuses.
    unanswered: Mutex<Option<Vec<u8>>>,
    activity: Activity,
}

/// Takes datagrams, for ever.
pub(crate) async fn serve(socket: std::net::UdpSocket, shared: Arc<Shared>) {
    let listener = match listener(socket, shared) {
        Ok(listener) => Arc::new(listener),
        Err(error) => {
            let error: &dyn std::error::Error = &*error;
            return warn!(error, "cannot take UDP datagrams");
        }
    };
    let mut memory = vec![0; LONGEST * BATCH_SIZE];
    let mut metas = [RecvMeta::default(); BATCH_SIZE];
    loop {
        if let Err(error) = listener.socket.readable().await {
            return warn!(%error, "cannot take UDP datagrams");
        }
        let mut buffers: Vec<_> = memory.chunks_mut(LONGEST).map(IoSliceMut::new).collect();
        let received = listener.socket.try_io(Interest::READABLE, || {
            listener.state.recv(UdpSockRef::from(&listener.socket), &mut buffers, &mut metas)
        });
        drop(buffers);
        let Ok(count) = received else { continue };
        for (meta, run) in metas.iter().zip(memory.chunks(LONGEST)).take(count) {
            let Some(led_to) = meta.dst_ip else { continue };
            for datagram in run[..meta.len].chunks(meta.stride.max(1)) {
                listener.take((meta.addr, led_to.to_canonical()), datagram);
            }
        }
    }
}

fn listener(
    socket: std::net::UdpSocket,
    shared: Arc<Shared>,
) -> Result<Listener, Box<dyn std::error::Error + Send + Sync>> {
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    // Answers of endpoints may be longer than a packet, as they may without a proxy.
    if socket.local_addr()?.is_ipv4() {
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::WANT)?;
    } else {
        set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::WANT)?;
    }
    let (flows, conntrack) = (Mutex::default(), Mutex::new(Conntrack::open()?));
    Ok(Listener { socket: UdpSocket::from_std(socket)?, state, flows, conntrack, shared })
}

impl Listener {
    /// Sends a client's datagram to an endpoint. What cannot be sent is lost, as UDP may be.
    fn take(self: &Arc<Self>, key: FlowKey, datagram: &[u8]) {
        self.shared.stats.udp.bytes.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        let known = lock(&self.flows).get(&key).cloned();
        let mut to = None;
        if let Some(flow) = known.filter(|flow| self.is_alive(flow)) {
            if flow.activity.silence() >= SILENCE {
                to = self.original_destination(key);
            }
            if to.is_none_or(|to| to == flow.to) {
                return self.send(&flow, datagram);
            }
        }
        let Some(to) = to.or_else(|| self.original_destination(key)) else { return };
        let Some(origin) = origin(key.1) else { return };
        self.start(key, to, origin, Vec::new(), datagram);
    }

    /// Starts a flow with this datagram, to an endpoint that was not tried.
    fn start(
        self: &Arc<Self>,
        key: FlowKey,
        to: SocketAddr,
        origin: Origin,
        mut tried: Vec<Target>,
        datagram: &[u8],
    ) {
        let shared = &self.shared;
        let generation = shared.routes.generation();
        let Some(route) = shared.routes.find(to, Protocol::Udp) else { return };
        let Some(pool) = route.pool(origin) else { return };
        let Ok(permit) = Arc::clone(&shared.permits).try_acquire_owned() else {
            shared.stats.at_limit.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if tried.is_empty() {
            route.count();
        }
        let client = key.0.ip().to_canonical();
        while tried.len() < ATTEMPTS
            && let Some(target) = shared.affinity.choose(&route, pool, client, &tried)
        {
            let source = shared.source(pool, client, target);
            let upstream = match connect(target, source, shared.mark) {
                Ok(upstream) => upstream,
                Err(error) => {
                    debug!(?target, %error, "an endpoint cannot be reached");
                    tried.push(target);
                    continue;
                }
            };
            let flow = Arc::new(Flow {
                key,
                to,
                origin,
                upstream,
                target,
                generation: AtomicU64::new(generation),
                unanswered: Mutex::default(),
                activity: Activity::new(),
            });
            lock(&self.flows).insert(key, Arc::clone(&flow));
            self.send(&flow, datagram);
            let listener = Arc::clone(self);
            tokio::spawn(async move { listener.follow(flow, tried, permit).await });
            return;
        }
        shared.stats.udp.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn send(&self, flow: &Flow, datagram: &[u8]) {
        flow.activity.note();
        let mut unanswered = lock(&flow.unanswered);
        if let Some(last) = &mut *unanswered {
            last.clear();
            last.extend_from_slice(datagram);
        } else if flow.is_new() {
            *unanswered = Some(datagram.to_vec());
        }
        drop(unanswered);
        // Not by tokio, which waits until the kernel has said that a new socket can be written to.
        if let Err(error) = SockRef::from(&flow.upstream).send(datagram) {
            debug!(target = ?flow.target, %error, "a datagram is lost");
        }
    }

    /// Passes on answers, until the flow is idle or its endpoint is gone.
    async fn follow(
        self: Arc<Self>,
        flow: Arc<Flow>,
        mut tried: Vec<Target>,
        permit: OwnedSemaphorePermit,
    ) {
        let open: Open<'_> = self.shared.stats.udp.opened();
        let mut buffer = Vec::new();
        let refused = loop {
            tokio::select! {
                ready = flow.upstream.ready(Interest::READABLE | Interest::ERROR) => {
                    if ready.is_err() { break false }
                }
                () = flow.activity.idle_for(self.shared.udp_idle) => break false,
            }
            buffer.resize(LONGEST, 0);
            match self.answers(&flow, &mut buffer) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break true,
                Err(error) => debug!(target = ?flow.target, %error, "an endpoint has a problem"),
            }
            buffer = Vec::new(); // an idle flow holds nothing
        };
        let mut flows = lock(&self.flows);
        let is_current = flows.get(&flow.key).is_some_and(|current| Arc::ptr_eq(current, &flow));
        if is_current {
            flows.remove(&flow.key);
        }
        drop((flows, open, permit));
        let unanswered = lock(&flow.unanswered).take();
        if let (true, true, Some(datagram)) = (refused, is_current, unanswered) {
            self.shared.stats.udp.retries.fetch_add(1, Ordering::Relaxed);
            tried.push(flow.target);
            self.start(flow.key, flow.to, flow.origin, tried, &datagram);
        }
    }

    fn answers(&self, flow: &Flow, buffer: &mut [u8]) -> io::Result<()> {
        // An ICMP error makes a socket of tokio ready for nothing but itself.
        let error = flow.upstream.try_io(Interest::ERROR, || {
            flow.upstream.take_error()?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
        });
        if let Ok(error) = error {
            return Err(error);
        }
        for _ in 0..TURN {
            let length = match flow.upstream.try_recv(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            flow.activity.note();
            *lock(&flow.unanswered) = None;
            self.shared.stats.udp.bytes.fetch_add(length as u64, Ordering::Relaxed);
            let (client, led_to) = flow.key;
            let answer = Transmit {
                destination: client,
                ecn: None,
                contents: &buffer[..length],
                segment_size: None,
                src_ip: Some(led_to),
            };
            let sent = self.state.try_send(UdpSockRef::from(&self.socket), &answer);
            if let Err(error) = sent {
                debug!(%client, %error, "an answer is lost");
            }
        }
        Ok(())
    }

    /// The flow's endpoint still serves.
    fn is_alive(&self, flow: &Flow) -> bool {
        let generation = self.shared.routes.generation();
        if flow.generation.load(Ordering::Relaxed) == generation {
            return true;
        }
        let route = self.shared.routes.find(flow.to, Protocol::Udp);
        let serves = |route: &Arc<Route>| route.serving.contains(&flow.target);
        let alive = route.as_ref().is_some_and(serves);
        if alive {
            flow.generation.store(generation, Ordering::Relaxed);
        } else {
            lock(&self.flows).remove(&flow.key);
        }
        alive
    }

    /// Where a client's datagrams were sent to: the kernel gives two of its frontends two ports here,
    /// so the client's port tells them apart.
    fn original_destination(&self, (client, led_to): FlowKey) -> Option<SocketAddr> {
        let port = self.socket.local_addr().ok()?.port();
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let reply = Tuple { source: SocketAddr::new(led_to, port), destination: client };
        match lock(&self.conntrack).original_destination(Protocol::Udp.number(), &reply) {
            Ok(to) => to,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                warn!(error, "cannot tell where a datagram was sent to");
                None
            }
        }
    }
}

impl Flow {
    /// No answer has come yet, as far as is known.
    fn is_new(&self) -> bool {
        self.activity.age() < Duration::from_secs(5)
    }
}

fn connect(target: Target, source: Option<IpAddr>, mark: u32) -> io::Result<UdpSocket> {
    let (domain, any): (_, IpAddr) = match Family::of(target.address) {
        Family::V4 => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        Family::V6 => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    SockRef::from(&socket).set_mark(mark)?;
    socket.set_nonblocking(true)?;
    if let Some(source) = source {
        set_transparent(&socket, family_of(source))?;
    }
    socket.bind(&SocketAddr::new(source.unwrap_or(any), 0).into())?;
    socket.connect(&SocketAddr::new(target.address, target.port).into())?;
    UdpSocket::from_std(socket.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
