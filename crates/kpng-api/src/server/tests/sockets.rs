//! What clients can do to a server, with sockets: nobody else is disturbed.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kpng_core::model::{NamespacedName, Service};
use kpng_core::store::{Batch, Kind, Store, Writer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::address::ListenAddress;
use crate::client::{self, Connection, OpStream};
use crate::error::Error;
use crate::proto::localv1::{WatchReq, op_item::Op};
use crate::server::connection::{LIMITS, Limits};
use crate::server::{Authorization, Config, Server, Stats};
use crate::tls::tests::{Authority, Credentials, Folder};
use crate::tls::{ServerTls, TlsFiles};

/// Longer than anything that works takes.
const PATIENCE: Duration = Duration::from_secs(10);

fn config(listen: &str) -> Config {
    Config {
        listen: vec![listen.parse().unwrap()],
        tls: None,
        local_api: true,
        global_api: true,
        authorization: None,
        default_node: None,
        max_connections: 100,
    }
}

const ANY_PORT: &str = "tcp://127.0.0.1:0";

/// A running server, and who writes its store.
struct Running {
    writer: Writer,
    stats: Arc<Stats>,
    address: ListenAddress,
    end: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<()>,
    written: u32,
}

impl Running {
    async fn start(config: Config, limits: Limits) -> Self {
        let stats = Arc::<Stats>::default();
        let mut server = Server::bind(config, Arc::clone(&stats)).await.unwrap();
        server.limits = limits;
        let address = server.addresses()[0].clone();
        let (mut writer, store) = Store::new();
        let mut batch = Batch::new();
        Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        writer.apply(batch);
        let (end, ended) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(server.run(store, async { drop(ended.await) }));
        Self { writer, stats, address, end, task, written: 0 }
    }

    fn port(&self) -> u16 {
        match &self.address {
            ListenAddress::Tcp { port, .. } => *port,
            ListenAddress::Unix(_) => panic!("no port"),
        }
    }

    fn client(&self) -> client::Config {
        self.client_with(TlsFiles::default())
    }

    fn client_with(&self, tls: TlsFiles) -> client::Config {
        let targets = vec![self.address.to_string().parse().unwrap()];
        client::Config { targets, tls, server_name: None }
    }

    async fn connection(&self) -> Connection {
        Connection::connect(&self.client()).await.unwrap()
    }

    /// Writes something that every stream sees.
    fn change(&mut self) {
        self.written += 1;
        self.grow(1);
    }

    fn grow(&mut self, services: u32) {
        let mut batch = Batch::new();
        for number in 0..services {
            let created = Some(i64::from(self.written));
            let service = Service { created, ..Service::default() };
            let annotation = ("revision".into(), self.written.to_string().into());
            let service = Service { annotations: [annotation].into(), ..service };
            batch.set_service(NamespacedName::new("t", format!("s{number}")), service);
        }
        self.writer.apply(batch);
    }

    /// The server has this many connections, soon.
    async fn has_connections(&self, count: u64) {
        let begun = Instant::now();
        while self.stats.connections.get() != count {
            assert!(begun.elapsed() < PATIENCE, "{} connections", self.stats.connections.get());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn push(node: &str) -> WatchReq {
    WatchReq { node_name: node.into(), push: true, ..WatchReq::default() }
}

/// Reads until Sync.
async fn synced(stream: &mut OpStream<WatchReq>) -> usize {
    let mut operations = 0;
    loop {
        let item = timeout(PATIENCE, stream.next()).await.expect("an answer comes");
        match item.unwrap().expect("the stream goes on").op {
            Some(Op::Sync(_)) => return operations,
            _ => operations += 1,
        }
    }
}

/// Somebody who is well, and notices when not.
struct Bystander(OpStream<WatchReq>);

impl Bystander {
    async fn watch(server: &Running) -> Self {
        let mut stream = server.connection().await.local(push("bystander")).await.unwrap();
        synced(&mut stream).await;
        Self(stream)
    }

    async fn is_undisturbed(&mut self, server: &mut Running) {
        server.change();
        let begun = Instant::now();
        synced(&mut self.0).await;
        assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_unix_socket_is_for_its_group_and_replaces_a_dead_servers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kpng.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead server's socket");
    let listen = format!("unix://{}", path.display());
    let server = Running::start(config(&listen), LIMITS).await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut stream = server.connection().await.local(push("n")).await.unwrap();
    synced(&mut stream).await;

    let again = Server::bind(config(&listen), Arc::default()).await.unwrap_err();
    let Error::Listen { source, .. } = again else { panic!("{again:?}") };
    let process = std::process::id();
    assert_eq!(source.to_string(), format!("another process ({process}) is listening there"));

    server.end.send(()).unwrap();
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
    assert!(matches!(stream.next().await, Ok(None)), "the stream ends in order");
    assert!(!path.exists(), "nothing is left");
    std::fs::write(&path, "precious").unwrap();
    Server::bind(config(&listen), Arc::default()).await.unwrap_err();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_removed_socket_is_made_again_and_a_dying_server_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kpng.sock");
    let listen = format!("unix://{}", path.display());
    let dying = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(dying);
    });
    let server = Running::start(config(&listen), LIMITS).await;
    std::fs::remove_file(&path).unwrap();
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut stream = server.connection().await.local(push("n")).await.unwrap();
    synced(&mut stream).await;
}

#[tokio::test]
async fn who_knows_one_node_says_so() {
    let (mut writer, store) = Store::local();
    let mut batch = kpng_core::store::LocalBatch::new();
    batch.mark_synced();
    writer.apply(batch);
    let config = Config { default_node: Some("me".into()), ..config(ANY_PORT) };
    let server = Server::bind(config, Arc::default()).await.unwrap();
    let targets = vec![server.addresses()[0].to_string().parse().unwrap()];
    tokio::spawn(server.run_local(store, std::future::pending()));
    let config = client::Config { targets, tls: TlsFiles::default(), server_name: None };
    for (node, known) in [("me", true), ("", true), ("you", false)] {
        let connection = Connection::connect(&config).await.unwrap();
        let first = match connection.local(push(node)).await {
            Ok(mut stream) => stream.next().await.map(drop),
            Err(error) => Err(error),
        };
        match first {
            Ok(()) => assert!(known, "{node:?}"),
            Err(Error::Stream { code: Code::NotFound, .. }) => assert!(!known, "{node:?}"),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let server = Running::start(config(ANY_PORT), LIMITS).await;
    let url = format!("http://127.0.0.1:{}", server.port());
    let channel = tonic::transport::Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "localv1.Sets", "globalv1.Sets"] {
        let request = HealthCheckRequest { service: service.into() };
        let begun = Instant::now();
        loop {
            let answer = health.check(request.clone()).await.unwrap().into_inner();
            if answer.status().as_str_name() == "SERVING" {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{service:?} is {answer:?}");
        }
    }
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_response};
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = futures_util::stream::iter([request]);
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(requests)
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["localv1.Sets", "globalv1.Sets", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|other| other == name), "{name} is not among {names:?}");
    }
}

#[tokio::test]
async fn an_api_that_is_not_served_is_unimplemented() {
    let server = Running::start(Config { global_api: false, ..config(ANY_PORT) }, LIMITS).await;
    let connection = server.connection().await;
    let refused = match connection.global(Default::default()).await {
        Ok(mut stream) => stream.next().await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(matches!(refused, Err(Error::Stream { code: Code::Unimplemented, .. })), "{refused:?}");
}

#[tokio::test]
async fn a_client_that_never_reads_costs_a_window_and_no_more() {
    let mut server = Running::start(config(ANY_PORT), LIMITS).await;
    server.grow(20_000);
    // Its application does not read; its HTTP/2 does, as far as the windows allow.
    let url = format!("http://127.0.0.1:{}", server.port());
    let endpoint = tonic::transport::Endpoint::from_shared(url).unwrap();
    let endpoint =
        endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let channel = endpoint.connect().await.unwrap();
    let requests = futures_util::stream::iter([push("sleeper")]);
    let mut client = crate::proto::localv1::sets_client::SetsClient::new(channel);
    let sleeper = client.watch(requests).await.unwrap().into_inner();

    let mut bystander = Bystander::watch(&server).await;
    for _ in 0..200 {
        bystander.is_undisturbed(&mut server).await;
    }
    let before = server.stats.bytes.get();
    let mut twin = server.connection().await.local(push("twin")).await.unwrap();
    synced(&mut twin).await;
    let state = server.stats.bytes.get() - before;
    let others = 2 * state + 200 * 1000;
    let sleepers = server.stats.bytes.get() - others.min(server.stats.bytes.get());
    assert!(state > 1_000_000, "{state} bytes of state");
    assert!(sleepers < 200_000, "{sleepers} bytes were made for who does not read");
    drop(sleeper);
}

#[tokio::test]
async fn a_slow_reader_skips_what_happened_meanwhile() {
    let mut server = Running::start(config(ANY_PORT), LIMITS).await;
    let mut stream = server.connection().await.local(WatchReq::default()).await.unwrap();
    synced(&mut stream).await;
    (0..1000).for_each(|_| server.change());
    stream.ask(WatchReq::default());
    assert_eq!(synced(&mut stream).await, 1, "the last state, once");
}

/// Sends bytes, and waits for the end of the connection.
async fn throw(server: &Running, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // How it ends is no matter, but it ends.
    let end = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    drop(end.expect("the server ends the connection"));
    answer
}

#[tokio::test]
async fn garbage_is_turned_away() {
    let short = Duration::from_millis(300);
    let limits = Limits { first_call: short, grace: short, ..LIMITS };
    let mut server = Running::start(config(ANY_PORT), limits).await;
    let mut bystander = Bystander::watch(&server).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: kpng\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[0; 4096],
        &[0xff; 100_000],
        preface,
        &[&preface[..], &[0xff; 1000]].concat(),
        // A frame of 16 MiB, HEADERS of nothing, DATA of no stream.
        &[&preface[..], b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"].concat(),
        &[
            &preface[..],
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
            b"\x00\x00\x05\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff\xff",
        ]
        .concat(),
        &[
            &preface[..],
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
            b"\x00\x00\x01\x00\x00\x00\x00\x00\x07x",
        ]
        .concat(),
        b"",
    ] {
        throw(&server, bytes).await;
        bystander.is_undisturbed(&mut server).await;
    }
    server.has_connections(1).await;
}

/// A call over plain HTTP/2: the gRPC status that it ends with.
async fn call(
    server: &Running,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Option<i32> {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let task = tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://kpng{path}"))
        .header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = http_body_util::Full::new(bytes::Bytes::from(body));
    let response = sender.send_request(request.body(body).unwrap());
    let response = timeout(PATIENCE, response).await.unwrap().unwrap();
    let status = |headers: &http::HeaderMap| {
        headers.get("grpc-status").map(|status| status.to_str().unwrap().parse().unwrap())
    };
    let in_headers = status(response.headers());
    let collected = http_body_util::BodyExt::collect(response.into_body());
    let collected = timeout(PATIENCE, collected).await.unwrap();
    task.abort();
    in_headers.or_else(|| status(collected.ok()?.trailers()?))
}

#[tokio::test]
async fn requests_that_make_no_sense_get_a_status() {
    let mut server = Running::start(config(ANY_PORT), LIMITS).await;
    let mut bystander = Bystander::watch(&server).await;
    let framed = |message: &[u8]| {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0][..], &length, message].concat()
    };
    let local = "/localv1.Sets/Watch";
    let name = |length: usize| {
        use prost::Message as _;
        framed(&WatchReq { node_name: "x".repeat(length), ..WatchReq::default() }.encode_to_vec())
    };
    for (what, path, headers, body, expected) in [
        ("no protobuf", local, &[][..], framed(b"\xff\xff\xff"), Code::Internal),
        ("a long name", local, &[], name(254), Code::InvalidArgument),
        ("a huge message", local, &[], name(1 << 20), Code::OutOfRange),
        ("a promise of 4 GiB", local, &[], b"\0\xff\xff\xff\xff".to_vec(), Code::OutOfRange),
        ("half a message", local, &[], b"\0\0\0\0\x09abc".to_vec(), Code::Internal),
        ("compression", local, &[("grpc-encoding", "gzip")], framed(b""), Code::Unimplemented),
        ("an unknown method", "/localv1.Sets/Dance", &[], framed(b""), Code::Unimplemented),
        ("an unknown service", "/no.Such/Thing", &[], framed(b""), Code::Unimplemented),
        ("nothing", local, &[], Vec::new(), Code::Ok),
        ("one request", local, &[], framed(b""), Code::Ok),
    ] {
        let status = call(&server, path, headers, body).await;
        assert_eq!(status, Some(expected as i32), "{what}");
        bystander.is_undisturbed(&mut server).await;
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_and_idle_ones_are_ended() {
    let first_call = Duration::from_millis(500);
    let limits = Limits { first_call, grace: Duration::ZERO, ..LIMITS };
    let config = Config { max_connections: 5, ..config(ANY_PORT) };
    let mut server = Running::start(config, limits).await;
    let mut bystander = Bystander::watch(&server).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(TcpStream::connect(("127.0.0.1", server.port())).await.unwrap());
    }
    server.has_connections(5).await;
    throw(&server, b"").await;
    assert_eq!(server.stats.refused.get(), 1);
    bystander.is_undisturbed(&mut server).await;
    server.has_connections(1).await;
    Bystander::watch(&server).await.is_undisturbed(&mut server).await;
}

/// Passes bytes on between a client and a server, until it is frozen: then nobody hears anything any
/// more, and nobody is told.
async fn freezable(server: u16) -> (SocketAddr, tokio::sync::watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (freeze, mut frozen) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
        let freeze = async { drop(frozen.wait_for(|frozen| *frozen).await) };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            () = freeze => std::future::pending().await,
        }
    });
    (address, freeze)
}

#[tokio::test]
async fn a_half_open_connection_is_noticed() {
    let short = Duration::from_millis(100);
    let limits = Limits { ping: short, pong: short, ..LIMITS };
    let mut server = Running::start(config(ANY_PORT), limits).await;
    let (proxy, freeze) = freezable(server.port()).await;
    let targets = vec![proxy.to_string().parse().unwrap()];
    let config = client::Config { targets, ..server.client() };
    let mut stream =
        Connection::connect(&config).await.unwrap().local(push("frozen")).await.unwrap();
    synced(&mut stream).await;
    tokio::time::sleep(4 * short).await;
    assert_eq!(server.stats.connections.get(), 1, "who answers pings stays");
    let mut bystander = Bystander::watch(&server).await;
    freeze.send(true).unwrap();
    server.has_connections(1).await;
    assert_eq!(server.stats.local_streams.get(), 1);
    bystander.is_undisturbed(&mut server).await;
}

/// A server that knows its clients, and a client of it.
struct Secured {
    authority: Authority,
    server: Running,
    _files: Folder,
}

impl Secured {
    async fn start() -> Self {
        let authority = Authority::new("ca");
        let files = Folder::new();
        let own = authority.issue_valid("server");
        let tls = ServerTls::load(&files.files(Some(&own), Some(&authority))).unwrap();
        let config = Config {
            tls: Some(tls),
            authorization: Some(Authorization { global: vec!["relay".into()] }),
            ..config("tcp://localhost:0")
        };
        let server = Running::start(config, LIMITS).await;
        Self { authority, server, _files: files }
    }

    async fn connect(&self, own: Option<&Credentials>) -> Result<Connection, Error> {
        let files = Folder::new();
        let tls = files.files(own, Some(&self.authority));
        let port = self.server.port();
        let targets = vec![format!("localhost:{port}").parse().unwrap()];
        Connection::connect(&client::Config { targets, ..self.server.client_with(tls) }).await
    }

    async fn watch(&self, name: &str, node: &str) -> Result<usize, Error> {
        let credentials = self.authority.issue_valid(name);
        let mut stream = self.connect(Some(&credentials)).await?.local(push(node)).await?;
        match stream.next().await? {
            Some(_) => Ok(synced(&mut stream).await),
            None => Ok(0),
        }
    }
}

#[tokio::test]
async fn a_node_gets_its_own_view_only() {
    let secured = Secured::start().await;
    for (name, node, allowed) in [
        ("system:node:a", "a", true),
        ("a", "a", true),
        ("a", "b", false),
        ("a", "", false),
        ("relay", "b", true),
    ] {
        match secured.watch(name, node).await {
            Ok(_) => assert!(allowed, "{name} as {node}"),
            Err(Error::Stream { code: Code::PermissionDenied, .. }) => {
                assert!(!allowed, "{name} as {node}");
            }
            Err(error) => panic!("{name} as {node}: {error:?}"),
        }
    }
    assert_eq!(secured.server.stats.denied.get(), 2);
    for (name, allowed) in [("a", false), ("relay", true)] {
        let credentials = secured.authority.issue_valid(name);
        let connection = secured.connect(Some(&credentials)).await.unwrap();
        let first = match connection.global(Default::default()).await {
            Ok(mut stream) => stream.next().await,
            Err(error) => Err(error),
        };
        assert_eq!(first.is_ok(), allowed, "{name}: {first:?}");
    }
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let mut secured = Secured::start().await;
    let renewed = secured.authority.issue_valid("b");
    let mut bystander =
        Bystander(secured.connect(Some(&renewed)).await.unwrap().local(push("b")).await.unwrap());
    synced(&mut bystander.0).await;

    let end = SystemTime::now() + Duration::from_secs(2);
    let short = secured.authority.issue("a", end);
    let mut stream = secured.connect(Some(&short)).await.unwrap().local(push("a")).await.unwrap();
    synced(&mut stream).await;
    let ended = timeout(PATIENCE, stream.next()).await.expect("the stream ends");
    assert!(
        matches!(ended, Err(Error::Stream { code: Code::Unauthenticated, .. })),
        "it says why: {ended:?}"
    );
    assert!(SystemTime::now() + Duration::from_secs(1) > end);
    tokio::time::sleep(Duration::from_secs(1)).await; // it is valid for the rest of its last second
    let expired = secured.connect(Some(&short)).await;
    let refused = match expired {
        Ok(connection) => connection.local(push("a")).await.map(|_| ()),
        Err(error) => Err(error),
    };
    refused.expect_err("an expired certificate is refused");
    assert!(
        secured.connect(None).await.is_err() || secured.server.stats.failed_handshakes.get() > 0
    );
    bystander.is_undisturbed(&mut secured.server).await;
}
