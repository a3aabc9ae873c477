//! The loop against an API server that follows a script.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use expect_test::{Expect, expect};
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kpng_core::store::Store;
use kpng_linux::namespace::NetNs;
use kpng_linux::rtnetlink::Rtnetlink;
use prost::Message as _;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::envelope::encode;
use crate::stats::{RejectReason, Stats};
use crate::watcher::{Timing, Watcher};
use crate::wire;
use crate::{Config, NodeScope, Selection};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON: &str = "application/json";

/// What the server does with a request.
#[derive(Debug)]
struct Reply {
    status: u16,
    content_type: &'static str,
    pieces: Vec<Bytes>,
    then: Then,
    /// Gives the pieces time to leave before the connection breaks.
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// What follows the pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The body ends as it should.
    End,
    /// The connection breaks.
    Cut,
    /// Nothing, for ever.
    Silence,
}

impl Reply {
    fn new(status: u16, content_type: &'static str, pieces: Vec<Bytes>, then: Then) -> Self {
        Self { status, content_type, pieces, then, pause: None }
    }

    fn list(body: Bytes) -> Self {
        Self::new(200, PROTOBUF, vec![body], Then::End)
    }

    fn watch(events: &[Vec<u8>], then: Then) -> Self {
        let content_type = "application/vnd.kubernetes.protobuf;stream=watch";
        let pieces = events.iter().cloned().map(Bytes::from).collect();
        Self::new(200, content_type, pieces, then)
    }

    fn refusal(status: u16, message: &str) -> Self {
        let body = json!({"kind": "Status", "message": message, "code": status}).to_string();
        Self::new(status, JSON, vec![body.into()], Then::End)
    }

    fn nothing() -> Self {
        Self::new(0, JSON, Vec::new(), Then::Silence)
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if !self.pieces.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.pieces.remove(0)))));
        }
        match self.then {
            Then::End => Poll::Ready(None),
            Then::Cut => {
                let pause = || Box::pin(sleep(Duration::from_millis(20)));
                let pause = self.pause.get_or_insert_with(pause).as_mut();
                pause.poll(context).map(|()| Some(Err("cut by the script")))
            }
            Then::Silence => Poll::Pending,
        }
    }
}

/// Follows its script for Services; has no slices and nodes; answers questions while `alive`.
#[derive(Debug, Default)]
struct Script {
    services: VecDeque<Reply>,
    requests: Vec<String>,
    hung: bool,
    /// The server's version, if it is one that went back in time.
    newest: Option<&'static str>,
    /// The only good token.
    token: String,
}

type Shared = Arc<Mutex<Script>>;

async fn serve(listener: TcpListener, script: Shared) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let script = Arc::clone(&script);
        let answer = service_fn(move |request: Request<Incoming>| {
            let script = Arc::clone(&script);
            async move { Ok::<_, Infallible>(respond(&script, &request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(async move { drop(connection.await) });
    }
}

async fn respond(script: &Shared, request: &Request<Incoming>) -> Response<Reply> {
    let reply = script.lock().unwrap().reply(request);
    if reply.status == 0 {
        std::future::pending::<()>().await;
    }
    let response = Response::builder().status(reply.status);
    response.header("content-type", reply.content_type).body(reply).unwrap()
}

impl Script {
    fn reply(&mut self, request: &Request<Incoming>) -> Reply {
        let uri = request.uri();
        let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        if token != Some(&format!("Bearer {}", self.token)) {
            return Reply::refusal(401, "bad token");
        }
        match uri.path() {
            "/version" if self.hung => Reply::nothing(),
            "/version" => Reply::list(Bytes::from_static(b"{}")),
            "/api/v1/services" => {
                let query = uri.query().unwrap_or_default().split('&');
                let query = query.filter(|p| !p.starts_with("label") && !p.starts_with("timeout"));
                let query = query.collect::<Vec<_>>().join("&");
                if query == "limit=1" {
                    return list(self.newest.unwrap_or("1000000"), "", &[]);
                }
                self.requests.push(query);
                self.services.pop_front().unwrap_or_else(Reply::nothing)
            }
            _ => Reply::watch(&[end_of_list("1")], Then::Silence),
        }
    }
}

fn service(name: &str, version: &str) -> Bytes {
    let metadata = ObjectMeta {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        resource_version: version.to_owned(),
        ..ObjectMeta::default()
    };
    let spec =
        wire::ServiceSpec { cluster_ip: "10.96.0.1".to_owned(), ..wire::ServiceSpec::default() };
    let (metadata, spec) = (Some(metadata), Some(spec));
    wire::Service { metadata, spec, status: None }.encode_to_vec().into()
}

fn added(name: &str, version: &str) -> Vec<u8> {
    encode::event("ADDED", service(name, version))
}

fn deleted(name: &str, version: &str) -> Vec<u8> {
    encode::event("DELETED", service(name, version))
}

fn bookmark(version: &str) -> Vec<u8> {
    encode::event("BOOKMARK", service("", version))
}

fn end_of_list(version: &str) -> Vec<u8> {
    let annotations = [(INITIAL_EVENTS_END.to_owned(), "true".to_owned())].into();
    let resource_version = version.to_owned();
    let metadata = ObjectMeta { resource_version, annotations, ..ObjectMeta::default() };
    let object = wire::AnyObject { metadata: Some(metadata) };
    encode::event("BOOKMARK", object.encode_to_vec().into())
}

fn error_event(code: i32) -> Vec<u8> {
    let status = wire::Status { code, message: "scripted".to_owned(), ..wire::Status::default() };
    encode::event("ERROR", status.encode_to_vec().into())
}

fn list(version: &str, continue_token: &str, names: &[&str]) -> Reply {
    let metadata = wire::ListMeta {
        resource_version: version.to_owned(),
        continue_token: continue_token.to_owned(),
    };
    let items = names.iter().map(|name| service(name, "1")).collect();
    Reply::list(encode::list(metadata, items))
}

fn refused() -> Reply {
    Reply::refusal(422, "sendInitialEvents is forbidden")
}

fn silence(events: &[Vec<u8>]) -> Reply {
    Reply::watch(events, Then::Silence)
}

const FAST: Timing = Timing {
    backoff: (Duration::from_millis(5), Duration::from_millis(40)),
    healthy: Duration::from_secs(60),
    silence: Duration::from_secs(60),
    probe: Duration::from_millis(200),
    list_patience: Duration::from_millis(500),
    watch_patience: Duration::from_millis(500),
    short_watch: Duration::from_millis(1),
};

/// A watcher on a scripted server.
struct Run {
    script: Shared,
    store: Store,
    stats: Arc<Stats>,
    dir: TempDir,
}

impl Run {
    async fn start(timing: Timing, services: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = "old".to_owned();
        let script = Script { services: services.into(), token, ..Script::default() };
        let script = Arc::new(Mutex::new(script));
        tokio::spawn(serve(listener, Arc::clone(&script)));
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            kubeconfig: Some(kubeconfig(&dir, &format!("http://{address}"))),
            server: None,
            service_proxy_name: None,
            selection: Selection::default(),
            nodes: NodeScope::All,
        };
        let (writer, store) = Store::new();
        let watcher = Watcher::with_timing(config, writer, timing).unwrap();
        let stats = watcher.stats();
        tokio::spawn(watcher.run(std::future::pending()));
        Self { script, store, stats, dir }
    }

    fn services(&self) -> String {
        let mut reader = self.store.reader();
        let Some(update) = reader.try_next() else { return "not synced".to_owned() };
        let names = update.services.iter().map(|(key, _)| &*key.name);
        names.collect::<Vec<_>>().join(" ")
    }

    /// Waits until `done`, which must come about within 10 s.
    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !done(self) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        let result = timeout(Duration::from_secs(10), waiting).await;
        assert!(result.is_ok(), "{what}: services {:?}, {:#?}", self.services(), self.stats);
    }

    fn stats(&self) -> &KindStats {
        self.stats.kind(Kind::Services)
    }
}

fn kubeconfig(dir: &TempDir, server: &str) -> PathBuf {
    let token = dir.path().join("token");
    std::fs::write(&token, "old").unwrap();
    let config = json!({
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"tokenFile": token}}],
        "current-context": "c",
    });
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// Runs a script to its end. The store must then have `expected`, and the requests for Services must
/// have been `requests`.
async fn check(script: Vec<Reply>, expected: &str, requests: Expect) -> Run {
    let run = Run::start(FAST, script).await;
    let done =
        |run: &Run| run.script.lock().unwrap().services.is_empty() && run.services() == expected;
    run.until("the end of the script", done).await;
    let seen = run.script.lock().unwrap().requests.join("\n");
    requests.assert_eq(&seen);
    run
}

#[tokio::test]
async fn a_streaming_list_turns_into_a_watch() {
    let events =
        [added("a", "3"), added("b", "1"), end_of_list("9"), deleted("a", "10"), added("c", "11")];
    let run = check(vec![silence(&events)], "b c", expect!["watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"]).await;
    assert_eq!((run.stats().lists.get(), run.stats().watches.get()), (1, 1));
    assert_eq!((run.stats().puts.get(), run.stats().deletes.get()), (3, 1));
    assert_eq!(run.stats().problem(), None);
}

#[tokio::test]
async fn an_empty_cluster_is_a_state() {
    check(vec![silence(&[end_of_list("9")])], "", expect!["watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"]).await;
}

#[tokio::test]
async fn a_server_that_went_back_in_time_is_listed_again() {
    let before = [added("a", "800"), added("b", "801"), end_of_list("900")];
    let after = [added("b", "3"), end_of_list("5")];
    let run = Run::start(FAST, vec![Reply::watch(&before, Then::Cut), silence(&after)]).await;
    run.script.lock().unwrap().newest = Some("5");
    run.until("what is gone goes", |run| run.services() == "b").await;
    assert_eq!(run.stats().lists.get(), 2);
}

#[tokio::test]
async fn without_streaming_lists_pages_are_listed() {
    let script = vec![
        refused(),
        list("7", "p2", &["a", "b"]),
        list("7", "", &["c"]),
        silence(&[added("d", "8")]),
    ];
    check(
        script,
        "a b c d",
        expect![[r#"
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan
        limit=500&resourceVersion=0
        limit=500&continue=p2
        watch=1&allowWatchBookmarks=true&resourceVersion=7"#]],
    )
    .await;
}

#[tokio::test]
async fn an_expired_page_starts_the_list_again_from_the_newest() {
    let script = vec![
        refused(),
        list("7", "p2", &["a", "gone"]),
        Reply::refusal(410, "the continue token is too old"),
        list("8", "", &["a"]),
        silence(&[]),
    ];
    check(
        script,
        "a",
        expect![[r#"
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan
        limit=500&resourceVersion=0
        limit=500&continue=p2
        limit=500
        watch=1&allowWatchBookmarks=true&resourceVersion=8"#]],
    )
    .await;
}

#[tokio::test]
async fn a_broken_watch_resumes_where_the_last_bookmark_was() {
    let script = vec![
        Reply::watch(&[added("a", "3"), end_of_list("9")], Then::Cut),
        Reply::watch(&[added("b", "10"), bookmark("40")], Then::End),
        Reply::watch(&[added("c", "41")], Then::Cut),
        silence(&[added("d", "42")]),
    ];
    let run = check(
        script,
        "a b c d",
        expect![[r#"
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan
        watch=1&allowWatchBookmarks=true&resourceVersion=9
        watch=1&allowWatchBookmarks=true&resourceVersion=40
        watch=1&allowWatchBookmarks=true&resourceVersion=41"#]],
    )
    .await;
    assert_eq!(run.stats().lists.get(), 1);
    assert_eq!(run.stats().bookmarks.get(), 2);
}

#[tokio::test]
async fn a_cut_inside_an_event_loses_nothing() {
    let whole = added("b", "10");
    let half = whole[..whole.len() / 2].to_vec();
    let script = vec![
        Reply::watch(&[end_of_list("9"), added("a", "10"), half], Then::Cut),
        silence(&[added("b", "11")]),
    ];
    check(
        script,
        "a b",
        expect![[r#"
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan
        watch=1&allowWatchBookmarks=true&resourceVersion=10"#]],
    )
    .await;
}

#[tokio::test]
async fn a_list_that_breaks_off_is_started_again() {
    let script = vec![
        Reply::watch(&[added("a", "3")], Then::Cut),
        silence(&[added("b", "3"), end_of_list("9")]),
    ];
    check(script, "b", expect![[r#"
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"#]]).await;
}

#[tokio::test]
async fn a_lost_history_is_listed_and_only_differences_are_written() {
    for gone in [silence(&[error_event(410)]), Reply::refusal(410, "too old")] {
        let first = [added("a", "1"), added("b", "1"), end_of_list("9")];
        let run = Run::start(FAST, vec![Reply::watch(&first, Then::Cut)]).await;
        run.until("the first list", |run| run.services() == "a b").await;
        let mut reader = run.store.reader();
        assert!(reader.try_next().unwrap().full);
        let second = [added("a", "1"), added("c", "1"), end_of_list("20")];
        run.script.lock().unwrap().services.extend([gone, silence(&second)]);
        run.until("the second list", |run| run.services() == "a c").await;
        let update = reader.try_next().unwrap();
        let changed = update.services.iter().map(|(key, _)| &*key.name).collect::<Vec<_>>();
        assert_eq!((update.full, changed), (false, vec!["b", "c"]));
        assert_eq!(run.stats().lists.get(), 2);
    }
}

#[tokio::test]
async fn a_server_that_only_speaks_json() {
    let event = |kind: &str, object: serde_json::Value| {
        Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
    };
    let service = |name: &str, version: &str| {
        json!({"metadata": {"namespace": "ns", "name": name, "resourceVersion": version},
               "spec": {"clusterIP": "10.96.0.1"}})
    };
    let body = json!({"metadata": {"resourceVersion": "7"}, "items": [service("a", "1")]});
    let end =
        json!({"metadata": {"resourceVersion": "20", "annotations": {INITIAL_EVENTS_END: "true"}}});
    let json = |pieces, then| Reply::new(200, JSON, pieces, then);
    let script = vec![
        refused(),
        json(vec![body.to_string().into()], Then::End),
        json(
            vec![event("ADDED", service("b", "8")), event("DELETED", service("a", "9"))],
            Then::End,
        ),
        json(vec![event("ERROR", json!({"code": 410, "message": "old"}))], Then::End),
        json(vec![event("ADDED", service("c", "1")), event("BOOKMARK", end)], Then::Silence),
    ];
    check(script, "c", expect![[r#"
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan
        limit=500&resourceVersion=0
        watch=1&allowWatchBookmarks=true&resourceVersion=7
        watch=1&allowWatchBookmarks=true&resourceVersion=9
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"#]]).await;
}

#[tokio::test]
async fn a_bad_object_is_rejected_once_and_alone() {
    let bad = |version: &str| {
        let mut object = service("b", version).to_vec();
        // Field 2, the spec, with a length that is more than there is.
        object.extend([0x12, 0x7f]);
        encode::event("MODIFIED", object.into())
    };
    let events = [
        added("a", "1"),
        added("b", "1"),
        end_of_list("9"),
        bad("10"),
        bad("10"),
        bad("11"),
        added("c", "12"),
    ];
    let run = check(vec![silence(&events)], "a b c", expect!["watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"]).await;
    assert_eq!(run.stats().rejected(RejectReason::Undecodable), 2, "once for each version");
    let unknown = |version: &str| {
        let mut object: wire::Service = wire::Service::decode(service("b", version)).unwrap();
        object.spec.as_mut().unwrap().service_type = "Magic".to_owned();
        encode::event("MODIFIED", object.encode_to_vec().into())
    };
    let events = [added("b", "1"), end_of_list("9"), unknown("10"), unknown("10"), unknown("11")];
    let run = check(vec![silence(&events)], "b", expect!["watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"]).await;
    run.until("the last event", |run| run.stats().puts.get() == 4).await;
    assert_eq!(run.stats().rejected(RejectReason::UnknownType), 2);
}

#[tokio::test]
async fn garbage_in_a_watch_is_not_believed_for_ever() {
    let garbage = || Reply::watch(&[b"\0\0\0\x04junk".to_vec()], Then::Silence);
    let script = vec![
        Reply::watch(&[added("a", "1"), end_of_list("9")], Then::Cut),
        garbage(),
        garbage(),
        garbage(),
        silence(&[added("b", "1"), end_of_list("20")]),
    ];
    check(script, "b", expect![[r#"
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan
        watch=1&allowWatchBookmarks=true&resourceVersion=9
        watch=1&allowWatchBookmarks=true&resourceVersion=9
        watch=1&allowWatchBookmarks=true&resourceVersion=9
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"#]]).await;
}

#[tokio::test]
async fn refusals_are_retried_and_named() {
    let script = vec![
        Reply::refusal(403, "User \"nobody\" cannot watch"),
        Reply::refusal(403, "User \"nobody\" cannot list"),
    ];
    let run = Run::start(FAST, script).await;
    run.until("a problem", |run| run.stats().problem().is_some()).await;
    expect![[r#"not allowed to list services: bind the ClusterRole system:node-proxier to this identity (User "nobody" cannot list)"#]].assert_eq(&run.stats().problem().unwrap());

    let again =
        [Reply::refusal(429, "too many"), Reply::refusal(500, "boom"), list("7", "", &["a"])];
    run.script.lock().unwrap().services.extend(again);
    run.until("a list", |run| run.services() == "a").await;
    assert_eq!(run.stats().problem(), None);
}

#[tokio::test]
async fn a_busy_server_says_for_how_long() {
    let busy = json!({"message": "busy", "code": 429, "details": {"retryAfterSeconds": 1}});
    let busy = Reply::new(429, JSON, vec![busy.to_string().into()], Then::End);
    let before = Instant::now();
    let run = Run::start(FAST, vec![busy, silence(&[added("a", "1"), end_of_list("9")])]).await;
    run.until("the list", |run| run.services() == "a").await;
    assert!(before.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn only_changes_say_when_they_happened() {
    let with_time = |name: &str, time: &str| {
        let mut object = wire::Service::decode(service(name, "10")).unwrap();
        let annotation = "endpoints.kubernetes.io/last-change-trigger-time".to_owned();
        let metadata = object.metadata.as_mut().unwrap();
        metadata.annotations.insert(annotation, time.to_owned());
        encode::event("ADDED", object.encode_to_vec().into())
    };
    let first = [with_time("a", "1970-01-01T00:00:01Z"), end_of_list("9")];
    let run = Run::start(FAST, vec![Reply::watch(&first, Then::Cut)]).await;
    run.until("the list", |run| run.services() == "a").await;
    let mut reader = run.store.reader();
    assert_eq!(reader.try_next().unwrap().triggered, None);
    let both = [with_time("b", "1970-01-01T00:00:09Z"), with_time("c", "1970-01-01T00:00:05Z")];
    run.script.lock().unwrap().services.push_back(silence(&[both.concat()]));
    run.until("the changes", |run| run.services() == "a b c").await;
    let triggered = reader.try_next().unwrap().triggered.unwrap();
    assert_eq!(triggered.duration_since(std::time::UNIX_EPOCH).unwrap(), Duration::from_secs(5));
}

#[tokio::test]
async fn refused_credentials_make_a_new_client() {
    let events = [added("a", "1"), end_of_list("9")];
    let script = vec![
        Reply::watch(&events, Then::Cut),
        Reply::refusal(401, "token expired"),
        silence(&[added("b", "10")]),
    ];
    let run = check(
        script,
        "a b",
        expect![[r#"
        watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan
        watch=1&allowWatchBookmarks=true&resourceVersion=9
        watch=1&allowWatchBookmarks=true&resourceVersion=9"#]],
    )
    .await;
    assert_eq!(run.stats.reconnects.get(), 1);
}

#[tokio::test]
async fn a_rotated_token_is_read_again() {
    let events = [added("a", "1"), end_of_list("9")];
    let run = Run::start(FAST, vec![Reply::watch(&events, Then::Cut)]).await;
    run.until("the list", |run| run.services() == "a").await;
    // The server is first: in between only the old token is there, and is refused.
    run.script.lock().unwrap().token = "new".to_owned();
    run.script.lock().unwrap().services.push_back(silence(&[added("b", "10")]));
    run.until("a refusal", |run| run.stats.reconnects.get() > 0).await;
    std::fs::write(run.dir.path().join("token"), "new").unwrap();
    run.until("the watch", |run| run.services() == "a b").await;
    assert_eq!(run.stats().lists.get(), 1);
}

#[tokio::test]
async fn a_hung_server_is_noticed_and_a_quiet_one_is_not_disturbed() {
    let timing = Timing { silence: Duration::from_millis(100), ..FAST };
    let events = [added("a", "1"), end_of_list("9")];
    let run = Run::start(timing, vec![silence(&events), silence(&[added("b", "10")])]).await;
    run.until("the list", |run| run.services() == "a").await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(run.stats.reconnects.get(), 0, "it answered all questions");
    run.script.lock().unwrap().hung = true;
    run.until("the new connection", |run| run.services() == "a b").await;
    assert!(run.stats.reconnects.get() >= 1);
    assert_eq!(run.stats().lists.get(), 1, "it resumed");
}

/// Only the kernel's keep-alive can notice this one: nobody asks.
#[test]
fn a_dead_connection_is_noticed_within_30_seconds() {
    let namespace = match NetNs::new() {
        Ok(namespace) => namespace,
        Err(error) => {
            let skip = std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1");
            assert!(skip, "{error}, or set KPNG_SKIP_NET=1 to skip this test");
            return;
        }
    };
    let cut_and_mend = async {
        let mut kernel = Rtnetlink::open().unwrap();
        let loopback = kernel.link("lo").unwrap().index;
        kernel.set_up(loopback).unwrap();
        let timing = Timing { silence: Duration::from_secs(3600), ..FAST };
        let events = [added("a", "1"), end_of_list("9")];
        let run = Run::start(timing, vec![silence(&events)]).await;
        run.until("the list", |run| run.services() == "a").await;
        kernel.set_down(loopback).unwrap();
        let before = Instant::now();
        while run.stats().problem().is_none() && before.elapsed() < Duration::from_secs(30) {
            sleep(Duration::from_millis(50)).await;
        }
        let noticed = before.elapsed();
        assert!(
            (10..30).contains(&noticed.as_secs()),
            "after {noticed:?}: {:?}",
            run.stats().problem()
        );
        run.script.lock().unwrap().services.push_back(silence(&[added("b", "10")]));
        kernel.set_up(loopback).unwrap();
        run.until("the watch", |run| run.services() == "a b").await;
        assert_eq!(run.stats().lists.get(), 1, "it resumed");
    };
    let inside = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(cut_and_mend);
    };
    namespace.run(inside).unwrap();
}

#[tokio::test]
async fn what_arrives_together_becomes_few_revisions() {
    let burst: Vec<u8> = (0..1000).flat_map(|i| added(&format!("s{i:03}"), "10")).collect();
    let run = Run::start(FAST, vec![Reply::watch(&[end_of_list("9")], Then::Cut)]).await;
    run.until("the list", |run| run.services().is_empty()).await;
    let before = run.store.revision();
    run.script.lock().unwrap().services.push_back(silence(&[burst]));
    run.until("the burst", |run| run.store.len().0 == 1000).await;
    let revisions = run.store.revision() - before;
    assert!((4..=40).contains(&revisions), "{revisions} revisions");
}
