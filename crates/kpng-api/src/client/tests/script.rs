//! Servers that do what a test says, and followers to test.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kpng_core::local::LocalService;
use kpng_core::model::ServiceState;
use kpng_core::store::Store;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status, Streaming};

use crate::address::Target;
use crate::client::follow::Follower;
use crate::client::global::Global;
use crate::client::limits::{LIMITS, Limits};
use crate::client::local::Local;
use crate::client::{Config, Stats};
use crate::proto::globalv1::GlobalWatchReq;
use crate::proto::localv1::op_item::Op;
use crate::proto::localv1::{EmptyOp, OpItem, Position, Ref, Set, Value, WatchReq};
use crate::proto::{globalv1, localv1};
use crate::tls::{ServerTls, TlsFiles};

/// Everything a test waits for happens within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Those of the client, but for pauses.
pub(super) const FAST: Limits = Limits {
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(20),
    denied_pause: Duration::from_millis(20),
    spread: Duration::from_millis(5),
    ..LIMITS
};

/// The same, and little patience with silent servers.
pub(super) const IMPATIENT: Limits = Limits {
    connect: Duration::from_millis(200),
    accept: Duration::from_millis(200),
    ping: Some(Duration::from_millis(100)),
    pong: Duration::from_millis(200),
    first_state: Duration::from_millis(300),
    ..FAST
};

/// Waits for something that must happen soon.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("{what} does not happen"))
}

/// Waits until something is the case.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A server. It ends, with all its connections, when it is dropped.
pub(super) struct Server<R = WatchReq> {
    pub(super) target: Target,
    streams: mpsc::UnboundedReceiver<ServerStream<R>>,
    _work: JoinSet<()>,
}

/// A stream that a server was asked for, before it has said anything.
pub(super) struct ServerStream<R> {
    pub(super) requests: Streaming<R>,
    answer: mpsc::UnboundedSender<Result<OpItem, Status>>,
}

/// What tonic's traits are implemented for.
struct Service<R>(mpsc::UnboundedSender<ServerStream<R>>);

type Operations =
    std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<OpItem, Status>> + Send + 'static>>;

impl<R> Service<R> {
    fn begin(&self, request: Request<Streaming<R>>) -> Response<Operations> {
        let (answer, outgoing) = mpsc::unbounded_channel();
        // The test may have gone.
        self.0.send(ServerStream { requests: request.into_inner(), answer }).ok();
        Response::new(Box::pin(futures_util::stream::unfold(outgoing, |mut outgoing| async {
            outgoing.recv().await.map(|operation| (operation, outgoing))
        })))
    }
}

#[tonic::async_trait]
impl localv1::sets_server::Sets for Service<WatchReq> {
    type WatchStream = Operations;

    async fn watch(
        &self,
        request: Request<Streaming<WatchReq>>,
    ) -> Result<Response<Operations>, Status> {
        Ok(self.begin(request))
    }
}

#[tonic::async_trait]
impl globalv1::sets_server::Sets for Service<GlobalWatchReq> {
    type WatchStream = Operations;

    async fn watch(
        &self,
        request: Request<Streaming<GlobalWatchReq>>,
    ) -> Result<Response<Operations>, Status> {
        Ok(self.begin(request))
    }
}

/// Serves one connection.
async fn serve<S>(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: S)
where
    S: tower::Service<
            http::Request<hyper::body::Incoming>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
        > + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
    // Clients may do what they want.
    connection.await.ok();
}

/// Accepts from a listener and serves: the same for all kinds of listeners and services.
macro_rules! accept {
    ($listener:expr, $service:expr, $tls:expr) => {{
        let (listener, service, tls): (_, _, Option<ServerTls>) = ($listener, $service, $tls);
        async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (service, tls) = (service.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(socket, service).await,
                        Some(tls) => {
                            if let Ok(socket) = tls.acceptor().accept(socket).await {
                                serve(socket, service).await;
                            }
                        }
                    }
                });
            }
        }
    }};
}

impl Server<WatchReq> {
    /// A server of the local API.
    pub(super) async fn start() -> Self {
        Self::start_at("127.0.0.1:0", None).await
    }

    pub(super) async fn start_at(address: &str, tls: Option<ServerTls>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let target = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let mut work = JoinSet::new();
        let service = localv1::sets_server::SetsServer::new(Service(sender));
        work.spawn(accept!(listener, service, tls));
        Self { target, streams, _work: work }
    }

    /// The same on a Unix socket.
    pub(super) fn start_unix(path: PathBuf) -> Self {
        std::fs::remove_file(&path).ok();
        let listener = UnixListener::bind(&path).unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let mut work = JoinSet::new();
        let service = localv1::sets_server::SetsServer::new(Service(sender));
        work.spawn(accept!(listener, service, None));
        Self { target: Target::Unix(path), streams, _work: work }
    }
}

impl Server<GlobalWatchReq> {
    /// A server of the global API.
    pub(super) async fn start_global() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let mut work = JoinSet::new();
        let service = globalv1::sets_server::SetsServer::new(Service(sender));
        work.spawn(accept!(listener, service, None));
        Self { target, streams, _work: work }
    }
}

impl Server<WatchReq> {
    /// The stream with which a client stays that has noticed that this is an old server.
    pub(super) async fn second_stream(&mut self) -> ServerStream<WatchReq> {
        let first = self.stream().await;
        first.reset();
        first.sync();
        self.stream().await
    }
}

impl<R> Server<R> {
    /// The next stream that a client asks for.
    pub(super) async fn stream(&mut self) -> ServerStream<R> {
        soon("a stream", self.streams.recv()).await.unwrap()
    }
}

impl<R> ServerStream<R> {
    pub(super) async fn request(&mut self) -> R {
        soon("a request", self.requests.message()).await.unwrap().unwrap()
    }

    /// Whether another request has come, or comes within a moment.
    pub(super) async fn is_asked(&mut self) -> bool {
        let moment = Duration::from_millis(30);
        tokio::time::timeout(moment, self.requests.message()).await.is_ok()
    }

    pub(super) fn send(&self, op: Op) {
        self.answer.send(Ok(OpItem { op: Some(op) })).unwrap();
    }

    /// Ends the stream.
    pub(super) fn fail(self, status: Status) {
        self.answer.send(Err(status)).unwrap();
    }

    pub(super) fn reset(&self) {
        self.send(Op::Reset(EmptyOp::default()));
    }

    /// Sync as old servers send it.
    pub(super) fn sync(&self) {
        self.send(Op::Sync(EmptyOp::default()));
    }

    /// Sync as new servers send it.
    pub(super) fn sync_at(&self, revision: u64) {
        self.send(Op::Sync(EmptyOp { position: Some(position(revision)), ..EmptyOp::default() }));
    }

    pub(super) fn set(&self, set: Set, path: &str, message: &impl Message) {
        self.set_bytes(set, path, message.encode_to_vec());
    }

    pub(super) fn set_bytes(&self, set: Set, path: &str, bytes: Vec<u8>) {
        self.send(Op::Set(Value { r#ref: Some(reference(set, path)), bytes }));
    }

    pub(super) fn delete(&self, set: Set, path: &str) {
        self.send(Op::Delete(reference(set, path)));
    }

    /// Sets a Service with one port, and as many endpoints as there are addresses, as an old server
    /// does for endpoints that are no pods.
    pub(super) fn set_service(&self, path: &str, cluster_ip: &str, endpoints: &[&str]) {
        self.set(Set::ServicesSet, path, &service(path, cluster_ip));
        for endpoint in endpoints {
            let message = self::endpoint(&[endpoint]);
            self.set(Set::EndpointsSet, &format!("{path}/{endpoint}"), &message);
        }
    }
}

fn reference(set: Set, path: &str) -> Ref {
    Ref { set: set.into(), path: path.to_owned() }
}

/// A position of the one server instance that tests have.
pub(super) fn position(revision: u64) -> Position {
    Position { instance: "one".into(), revision }
}

/// A Service with the port 80, called http.
pub(super) fn service(path: &str, cluster_ip: &str) -> localv1::Service {
    let (namespace, name) = path.split_once('/').unwrap();
    localv1::Service {
        namespace: namespace.into(),
        name: name.into(),
        r#type: "ClusterIP".into(),
        i_ps: Some(localv1::ServiceIPs {
            cluster_i_ps: Some(ip_set(&[cluster_ip])),
            ..Default::default()
        }),
        ports: vec![localv1::PortMapping {
            name: "http".into(),
            protocol: localv1::Protocol::Tcp.into(),
            port: 80,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A ready endpoint on another node that serves http at 8080, as KPNG sends it.
pub(super) fn endpoint(addresses: &[&str]) -> localv1::Endpoint {
    localv1::Endpoint {
        i_ps: Some(ip_set(addresses)),
        port_overrides: vec![localv1::PortName {
            name: "http".into(),
            port: 8080,
            ..Default::default()
        }],
        scopes: Some(localv1::EndpointScopes { internal: true, external: true }),
        ..Default::default()
    }
}

pub(super) fn ip_set(addresses: &[&str]) -> localv1::IpSet {
    let of = |v6: bool| {
        let addresses = addresses.iter().filter(|address| address.contains(':') == v6);
        addresses.map(ToString::to_string).collect()
    };
    localv1::IpSet { v4: of(false), v6: of(true) }
}

/// A follower at work, and the store that it feeds.
pub(super) struct Following<V> {
    pub(super) store: Store<V>,
    pub(super) stats: Arc<Stats>,
    _work: JoinSet<Infallible>,
}

/// Whom to follow, without TLS.
pub(super) fn config(targets: &[&Target]) -> Config {
    let targets = targets.iter().copied().cloned().collect();
    Config { targets, tls: TlsFiles::default(), server_name: None }
}

/// Follows the local API as `node-a`.
pub(super) fn follow(targets: &[&Target]) -> Following<LocalService> {
    follow_with(config(targets), FAST)
}

pub(super) fn follow_with(config: Config, limits: Limits) -> Following<LocalService> {
    let (writer, store) = Store::local();
    let stats = Arc::new(Stats::default());
    let local = Local::new("node-a".into(), writer);
    let follower = Follower::new(local, config, limits, Arc::clone(&stats)).unwrap();
    let mut work = JoinSet::new();
    work.spawn(follower.run());
    Following { store, stats, _work: work }
}

/// Follows the global API.
pub(super) fn follow_global(targets: &[&Target]) -> Following<ServiceState> {
    let (writer, store) = Store::new();
    let stats = Arc::new(Stats::default());
    let config = config(targets);
    let follower = Follower::new(Global::new(writer), config, FAST, Arc::clone(&stats)).unwrap();
    let mut work = JoinSet::new();
    work.spawn(follower.run());
    Following { store, stats, _work: work }
}

impl<V: PartialEq> Following<V> {
    /// Waits until so many states were received.
    pub(super) async fn synced(&self, syncs: u64) {
        until("a sync", || self.stats.syncs.get() >= syncs).await;
        assert_eq!(self.stats.syncs.get(), syncs);
    }
}

impl Following<LocalService> {
    /// The state, a line for each Service: its address, and its endpoints.
    pub(super) fn state(&self) -> String {
        if !self.store.is_synced() {
            return "not synced".to_owned();
        }
        let update = self.store.reader().try_next().expect("a synced store has a state");
        let mut text = String::new();
        for (name, _) in update.nodes {
            writeln!(text, "node {name}").unwrap();
        }
        for (key, change) in update.services {
            let local = change.new.unwrap();
            write!(text, "{key} {:?}:", local.service.cluster_ips[0]).unwrap();
            for endpoint in &local.endpoints {
                write!(text, " {}:{}", endpoint.address, endpoint.ports[0].port).unwrap();
                text += if endpoint.local { "(local)" } else { "" };
            }
            text.push('\n');
        }
        text
    }
}
