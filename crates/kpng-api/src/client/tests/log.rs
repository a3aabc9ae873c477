//! What an operator reads: each change of the situation, once.

use std::io;
use std::sync::{Arc, Mutex};

use expect_test::expect;
use tonic::Status;
use tracing::Level;

use super::script::*;
use crate::proto::localv1::Set;

/// Collects what is written.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_change_of_the_situation_is_logged_once() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    // With one subscriber only, what other tests have logged before would be taken as disabled.
    let _other = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    // This thread is the only one that the test has.
    let _guard = tracing::subscriber::set_default(subscriber);

    let mut server = Server::start().await;
    let (target, address) = (server.target.clone(), server.target.to_string());
    let following = follow(&[&target]);
    for _ in 0..3 {
        server.stream().await.fail(Status::permission_denied("not you"));
    }
    let stream = server.stream().await;
    for revision in 1..4 {
        stream.reset();
        stream.set_service("default/web", "10.0.0.1", &[]);
        stream.set_bytes(Set::ServicesSet, "default/garbage", vec![0xff]);
        stream.set_bytes(Set::EndpointsSet, "default/web/pod", vec![0xff]);
        stream.set_bytes(Set::ServicesSet, "garbage", vec![]);
        stream.sync_at(revision);
    }
    following.synced(3).await;
    drop((stream, server));
    let failures = following.stats.failures.get();
    until("failures", || following.stats.failures.get() > failures + 3).await;
    let mut server = Server::start_at(&address, None).await;
    let stream = server.stream().await;
    stream.sync_at(3);
    following.synced(4).await;

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    expect![[r#"
        ERROR the stream from SERVER failed: not you; check the node's name, the common name of the client certificate, and what the server allows
         WARN rejected a value of ServicesSet at "garbage": no such path
         WARN rejected service default/garbage: cannot be decoded: failed to decode Protobuf message: invalid varint
         WARN rejected service default/web, endpoint pod: cannot be decoded: failed to decode Protobuf message: invalid varint
         INFO following SERVER
         WARN the stream from SERVER failed: error reading a body from connection: stream closed because of a broken pipe; the last state stays in force until a server answers
         WARN cannot connect to SERVER: Connection refused (os error 111); trying again
         INFO following SERVER
    "#]].assert_eq(&text.replace(&address, "SERVER"));
}
