//! Real sockets on loopback addresses.

use std::io::{Read, Write};
use std::net::Ipv6Addr;
use std::sync::{Mutex, mpsc};
use std::task::{Context, Poll, Waker};

use expect_test::{Expect, expect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// The whole answer to a GET of `path`, without its date.
pub(crate) async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    request(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
}

/// What a handler answers to a GET of `path`.
pub(crate) async fn ask(handler: &Handler, path: &str) -> Answer {
    handler(Request::get(path).body(()).unwrap().into_parts().0).await
}

/// The same, of a handler that answers at once.
pub(crate) fn ask_at_once(handler: &Handler, path: &str) -> Answer {
    let answering = std::pin::pin!(ask(handler, path));
    match answering.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("no answer at once to {path}"),
    }
}

async fn request(address: SocketAddr, text: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer
        .split("\r\n")
        .filter(|line| !line.starts_with("date: "))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// What this thread logs from now on.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn localhost(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn echo() -> Handler {
    at_once(|path| match path {
        "/missing" => not_found(),
        path => answer(StatusCode::OK, TEXT, format!("this is {path}")),
    })
}

async fn serve_with(limits: Limits) -> (SocketAddr, watch::Sender<bool>) {
    serve_by(echo(), limits)
}

fn serve_by(handler: Handler, limits: Limits) -> (SocketAddr, watch::Sender<bool>) {
    let (closing, closed) = watch::channel(false);
    let listener = bind(localhost(0)).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, handler, limits, closed));
    (address, closing)
}

#[track_caller]
fn check_address(text: &str, expected: &str) {
    let shown = match BindAddress::parse(text, 10256) {
        Ok(address) => address.to_string(),
        Err(error) => error.to_string(),
    };
    assert_eq!(shown, expected, "{text:?}");
}

#[test]
fn addresses_of_flags() {
    check_address("0.0.0.0:10256", "0.0.0.0:10256");
    check_address("127.0.0.1", "127.0.0.1:10256");
    check_address("[::]:80", "[::]:80");
    check_address("::1", "[::1]:10256");
    check_address("[::1]", "[::1]:10256");
    check_address(":10249", "0.0.0.0:10249");
    check_address("", "0");
    check_address("0", "0");
    let hint = "it must be IP:port, [IPv6]:port or an IP; empty or 0 disables";
    check_address("localhost:1", &format!("read the address \"localhost:1\": {hint}"));
    check_address("1.2.3.4:99999", &format!("read the address \"1.2.3.4:99999\": {hint}"));
}

async fn check_answer(text: &str, expected: Expect) {
    let (address, _closing) = serve_with(LIMITS).await;
    expected.assert_eq(&request(address, text).await.unwrap());
}

#[tokio::test]
async fn answers() {
    check_answer(
        "GET /a/b?c HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        expect![[r#"
            HTTP/1.1 200 OK
            content-type: text/plain; charset=utf-8
            connection: close
            content-length: 12

            this is /a/b"#]],
    )
    .await;
    check_answer(
        "GET /missing HTTP/1.0\r\n\r\n",
        expect![[r#"
            HTTP/1.0 404 Not Found
            content-type: text/plain; charset=utf-8
            content-length: 19

            404 page not found
        "#]],
    )
    .await;
    check_answer(
        "HEAD /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        expect![[r#"
            HTTP/1.1 200 OK
            content-type: text/plain; charset=utf-8
            connection: close
            content-length: 10

        "#]],
    )
    .await;
    check_answer(
        "no http\r\n\r\n",
        expect![[r#"
            HTTP/1.1 400 Bad Request
            connection: close
            content-length: 0

        "#]],
    )
    .await;
}

#[tokio::test]
async fn an_unspecified_address_serves_both_families() {
    let listener = bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_closing, closed) = watch::channel(false);
    tokio::spawn(serve(listener, echo(), LIMITS, closed));
    assert!(get(localhost(port), "/4").await.unwrap().contains("this is /4"));
    let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
    assert!(get(v6, "/6").await.unwrap().contains("this is /6"));
}

#[tokio::test]
async fn a_full_server_answers_when_a_silent_client_has_had_its_time() {
    let header = Duration::from_millis(30);
    let (address, _closing) = serve_with(Limits { connections: 1, header, ..LIMITS }).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(b"GET / HT").await.unwrap();
    let start = std::time::Instant::now();
    assert!(get(address, "/").await.unwrap().contains("this is /"));
    assert!(start.elapsed() >= header / 2, "{:?}: the limit held nobody back", start.elapsed());
    let mut rest = String::new();
    silent.read_to_string(&mut rest).await.unwrap();
    assert!(!rest.contains("this is"), "{rest}");
}

#[tokio::test]
async fn idle_and_old_connections_are_closed() {
    let short = Duration::from_millis(30);
    for limits in [Limits { header: short, ..LIMITS }, Limits { life: short, ..LIMITS }] {
        let (address, _closing) = serve_with(limits).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /once HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let end = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(5), end).await.expect("it is closed").unwrap();
        assert_eq!(answer.matches("this is /once").count(), 1, "{answer}");
    }
}

/// Answers with what is asked, once `gate` is open: its sender gone.
fn blocking(turns: usize, gate: mpsc::Receiver<()>) -> Handler {
    let (blocking, gate) = (Blocking::new(turns), Arc::new(Mutex::new(gate)));
    Arc::new(move |request: Parts| {
        let (blocking, gate) = (blocking.clone(), Arc::clone(&gate));
        let work = move || {
            let asked = request.uri.query().unwrap_or_default();
            assert_ne!(asked, "panic");
            gate.lock().unwrap().recv().unwrap_err();
            answer(StatusCode::OK, TEXT, format!("{} {asked}", request.method))
        };
        Box::pin(async move { blocking.answer(work).await })
    })
}

#[tokio::test]
async fn work_that_blocks_delays_nobody_else_and_takes_turns() {
    let (closed, gate) = mpsc::channel();
    let short = Limits { answer: Duration::from_millis(100), ..LIMITS };
    let (address, _closing) = serve_by(blocking(1, gate), short);
    let (other, _closing_too) = serve_by(echo(), LIMITS);
    let late = tokio::spawn(async move { get(address, "/?first").await.unwrap() });
    // The one thread of this runtime is free meanwhile.
    assert!(get(other, "/").await.unwrap().contains("this is /"));
    let late = late.await.unwrap();
    assert!(late.starts_with("HTTP/1.1 503 ") && late.contains("too long"), "{late}");
    // Its client has gone, but the work goes on, and has the only turn.
    let waiting = get(address, "/?second").await.unwrap();
    assert!(waiting.starts_with("HTTP/1.1 503 "), "{waiting}");
    drop(closed);
    while !get(address, "/?third").await.unwrap().ends_with("GET third") {}
}

#[tokio::test]
async fn a_panic_is_answered_and_gives_its_turn_back() {
    let (_, open) = mpsc::channel();
    let (address, _closing) = serve_by(blocking(1, open), LIMITS);
    let failed = get(address, "/?panic").await.unwrap();
    assert!(failed.starts_with("HTTP/1.1 500 ") && failed.contains("panicked"), "{failed}");
    assert!(get(address, "/?next").await.unwrap().ends_with("GET next"));
}

#[tokio::test]
async fn connections_are_kept_for_more_requests() {
    let (address, _closing) = serve_with(LIMITS).await;
    let last = "GET /2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answers =
        request(address, &format!("GET /1 HTTP/1.1\r\nhost: x\r\n\r\n{last}")).await.unwrap();
    assert!(answers.contains("this is /1") && answers.contains("this is /2"), "{answers}");
}

#[tokio::test]
async fn a_taken_port_is_tried_again() {
    let taken = std::net::TcpListener::bind(localhost(0)).unwrap();
    let address = taken.local_addr().unwrap();

    let error = Server::try_start("probes", address, echo()).unwrap_err();
    assert_eq!(error.to_string(), format!("listen for probes on {address}"));
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("in use"), "{source}");

    let (log, _guard) = Log::capture();
    let mut server = Server::start("probes", address, echo());
    while log.text().is_empty() {
        let early = tokio::time::timeout(Duration::from_millis(5), server.address()).await;
        assert!(early.is_err(), "bound a port that somebody else has");
    }
    // Enough for one more attempt, which is not reported again.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let report = "ERROR cannot listen for probes; trying again";
    assert!(log.text().starts_with(report) && log.text().lines().count() == 1, "{}", log.text());
    drop(taken);
    let bound = tokio::time::timeout(Duration::from_secs(5), server.address()).await;
    assert_eq!(bound.expect("the port is free"), Some(address));
    assert!(log.text().contains("INFO listening for probes after "), "{}", log.text());
    assert!(get(address, "/").await.unwrap().contains("this is /"));
}

#[tokio::test]
async fn shutdown_ends_what_is_under_way_and_frees_the_port() {
    let mut server = Server::start("probes", localhost(0), echo());
    let address = server.address().await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    assert!(get(address, "/").await.unwrap().contains("this is /"));
    server.shutdown().await;
    let again = std::net::TcpListener::bind(address);
    assert!(again.is_ok(), "{again:?}");
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_dropped_server_is_gone() {
    let mut server = Server::start("probes", localhost(0), echo());
    let address = server.address().await.unwrap();
    let mut open = TcpStream::connect(address).await.unwrap();
    open.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(open.read(&mut [0; 512]).await.unwrap() > 0);
    drop(server);
    tokio::task::yield_now().await;
    assert!(TcpStream::connect(address).await.is_err());
    assert!(matches!(open.read(&mut [0; 512]).await, Ok(0) | Err(_)));
}

/// What is served to a blocking client from another thread: nothing here needs the test's runtime.
#[tokio::test]
async fn clients_of_other_threads_are_served() {
    let (address, _closing) = serve_with(LIMITS).await;
    let client = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /t HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(client.await.unwrap().ends_with("this is /t"));
}
