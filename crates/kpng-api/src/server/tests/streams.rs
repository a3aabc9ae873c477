//! What a stream says, from requests to operations, without sockets.

use std::collections::BTreeMap;
use std::sync::Arc;

use expect_test::{Expect, expect};
use kpng_core::local::{LocalView, Localize};
use kpng_core::model::{
    Endpoint, EndpointSlice, NamespacedName, Node, Protocol, Service, ServicePort, SlicePort,
    TargetPort,
};
use kpng_core::store::{Batch, Kind, Store, Writer};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Status;

use crate::proto::localv1::{self, OpItem, Position, op_item::Op};
use crate::server::cache::Cache;
use crate::server::feed::{GlobalFeed, GlobalViews, LocalFeed, LocalViews};
use crate::server::stats::Stats;
use crate::server::watch::{Open, Request, Requests, Watch};

impl Requests for mpsc::UnboundedReceiver<Request> {
    async fn next(&mut self) -> Result<Option<Request>, Status> {
        Ok(self.recv().await)
    }
}

struct OpenLocal(Arc<LocalViews<kpng_core::model::ServiceState>>);

impl Open for OpenLocal {
    type Feed = LocalFeed<kpng_core::model::ServiceState>;

    fn open(&self, request: &Request, seen: Option<u64>) -> Result<Self::Feed, Status> {
        Ok(LocalFeed::new(&self.0, request.node.as_str().into(), request.details, seen))
    }
}

struct OpenGlobal(Arc<GlobalViews>);

impl Open for OpenGlobal {
    type Feed = GlobalFeed;

    fn open(&self, request: &Request, seen: Option<u64>) -> Result<Self::Feed, Status> {
        Ok(GlobalFeed::new(&self.0, request.details, seen))
    }
}

/// A store, and what its streams share.
struct Cluster {
    writer: Writer,
    local: Arc<LocalViews<kpng_core::model::ServiceState>>,
    global: Arc<GlobalViews>,
    stats: Arc<Stats>,
}

impl Cluster {
    /// Nothing is known.
    fn unsynced(journal: usize) -> Self {
        let (writer, store) = Store::with_journal(journal);
        let stats = Arc::<Stats>::default();
        let cache = Cache::new(Arc::clone(&stats));
        let local = Arc::new(LocalViews { store: store.clone(), cache });
        let global = Arc::new(GlobalViews::new(store, &stats));
        Self { writer, local, global, stats }
    }

    /// An empty cluster.
    fn new() -> Self {
        let mut cluster = Self::unsynced(1000);
        cluster.sync();
        cluster
    }

    fn sync(&mut self) {
        self.write(|batch| Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind)));
    }

    fn write(&mut self, write: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::new();
        write(&mut batch);
        self.writer.apply(batch);
    }

    fn service(&mut self, name: &str, endpoints: &[(&str, &str)]) {
        self.write(|batch| put(batch, name, endpoints));
    }

    fn watch(&self) -> Client<OpenLocal> {
        self.client(OpenLocal(Arc::clone(&self.local)))
    }

    fn watch_global(&self) -> Client<OpenGlobal> {
        self.client(OpenGlobal(Arc::clone(&self.global)))
    }

    fn client<O: Open>(&self, open: O) -> Client<O> {
        let (requests, receiver) = mpsc::unbounded_channel();
        let watch = Watch::new(receiver, open, "me".into(), Arc::clone(&self.stats));
        Client { requests: Some(requests), watch, bytes: Vec::new() }
    }
}

fn key(name: &str) -> NamespacedName {
    NamespacedName::new("t", name)
}

/// A service with one port, and endpoints on nodes, in one slice.
fn put(batch: &mut Batch, name: &str, endpoints: &[(&str, &str)]) {
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        target_port: TargetPort::Unset,
    };
    let cluster_ips = vec!["10.96.0.1".parse().unwrap()];
    batch.set_service(key(name), Service { cluster_ips, ports: vec![port], ..Service::default() });
    let endpoint = |(ip, node): &(&str, &str)| Endpoint {
        node: Some((*node).into()),
        pod: Some(format!("pod-{ip}").into()),
        ..Endpoint::at(ip.parse().unwrap())
    };
    let ports = vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }];
    let endpoints = endpoints.iter().map(endpoint).collect();
    batch.set_slice(key(&format!("{name}-x")), name, EndpointSlice { endpoints, ports });
}

/// The other end of a stream.
struct Client<O: Open> {
    requests: Option<mpsc::UnboundedSender<Request>>,
    watch: Watch<mpsc::UnboundedReceiver<Request>, O>,
    bytes: Vec<u8>,
}

impl<O: Open> Client<O> {
    fn ask(&self, request: Request) {
        self.requests.as_ref().unwrap().send(request).unwrap();
    }

    fn ask_as(&self, node: &str) {
        self.ask(Request { node: node.into(), ..Request::default() });
    }

    /// All operations that come without waiting.
    async fn operations(&mut self) -> Vec<Op> {
        while let Ok(piece) =
            tokio::time::timeout(std::time::Duration::ZERO, self.watch.next()).await
        {
            match piece.unwrap() {
                Some(bytes) => self.bytes.extend_from_slice(&bytes),
                None => break,
            }
        }
        let mut operations = Vec::new();
        let mut rest = &self.bytes[..];
        while let [0, a, b, c, d, tail @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            operations.push(OpItem::decode(&tail[..length]).unwrap().op.unwrap());
            rest = &tail[length..];
        }
        assert!(rest.is_empty(), "whole messages only");
        self.bytes.clear();
        operations
    }

    async fn check(&mut self, expected: Expect) {
        let mut text = String::new();
        for operation in self.operations().await {
            text += &show(&operation);
            text.push('\n');
        }
        expected.assert_eq(&text);
    }
}

fn show(operation: &Op) -> String {
    let reference = |r: &localv1::Ref| format!("{} {}", r.set().as_str_name(), r.path);
    match operation {
        Op::Reset(_) => "reset".into(),
        Op::Sync(sync) => match &sync.position {
            Some(at) => format!("sync {} {}", at.instance, at.revision),
            None => "sync".into(),
        },
        Op::Set(value) => format!("+ {}", reference(value.r#ref.as_ref().unwrap())),
        Op::Delete(r) => format!("- {}", reference(r)),
    }
}

#[tokio::test]
async fn each_request_gets_one_answer_and_the_first_one_everything() {
    let mut cluster = Cluster::unsynced(1000);
    let mut client = cluster.watch();
    client.check(expect![""]).await;
    client.ask_as("n1");
    client.check(expect!["reset\n"]).await;
    cluster.service("web", &[("10.0.0.1", "n1")]);
    client.check(expect![""]).await;
    cluster.sync();
    client
        .check(expect![[r#"
            + ServicesSet t/web
            + EndpointsSet t/web/pod-10.0.0.1
            sync
        "#]])
        .await;

    cluster.service("web", &[("10.0.0.2", "n1")]);
    cluster.service("web", &[("10.0.0.3", "n1")]);
    client.check(expect![""]).await;
    client.ask_as("n1");
    client
        .check(expect![[r#"
            + EndpointsSet t/web/pod-10.0.0.3
            - EndpointsSet t/web/pod-10.0.0.1
            sync
        "#]])
        .await;
    client.ask_as("n1");
    client.check(expect![""]).await;
    cluster.write(|batch| batch.set_node("n9", Node::default()));
    client.check(expect![""]).await;
    cluster.write(|batch| batch.delete_service(key("web")));
    client
        .check(expect![[r#"
            - EndpointsSet t/web/pod-10.0.0.3
            - ServicesSet t/web
            sync
        "#]])
        .await;
    client.requests = None;
    client.check(expect![""]).await;
    assert_eq!(client.watch.next().await.unwrap(), None, "nothing more is asked for");
}

#[tokio::test]
async fn an_empty_cluster_is_an_answer() {
    let cluster = Cluster::new();
    let mut client = cluster.watch();
    client.ask_as("n1");
    client.check(expect!["reset\nsync\n"]).await;
    let mut client = cluster.watch_global();
    client.ask(Request::default());
    client.check(expect!["reset\nsync\n"]).await;
}

#[tokio::test]
async fn changes_are_pushed_to_who_wants_them() {
    let mut cluster = Cluster::new();
    let mut client = cluster.watch();
    client.ask(Request { node: "n1".into(), push: true, ..Request::default() });
    client.requests = None; // a client that can say no more still gets answers
    client.check(expect!["reset\nsync\n"]).await;
    for (ip, expected) in [
        ("10.0.0.1", "+ ServicesSet t/web\n+ EndpointsSet t/web/pod-10.0.0.1\nsync\n"),
        ("10.0.0.1", ""),
        (
            "10.0.0.2",
            "+ EndpointsSet t/web/pod-10.0.0.2\n- EndpointsSet t/web/pod-10.0.0.1\nsync\n",
        ),
    ] {
        cluster.service("web", &[(ip, "n1")]);
        let operations = client.operations().await;
        assert_eq!(operations.iter().map(|op| show(op) + "\n").collect::<String>(), expected);
    }
    drop(cluster.writer);
    assert_eq!(client.watch.next().await.unwrap(), None, "the source is gone");
}

#[tokio::test]
async fn another_node_begins_anew() {
    let mut cluster = Cluster::new();
    cluster.service("web", &[("10.0.0.1", "n1")]);
    let mut client = cluster.watch();
    client.ask(Request { node: "n1".into(), push: true, ..Request::default() });
    let local = |operations: Vec<Op>| {
        let mut set = operations.iter().filter_map(|op| match op {
            Op::Set(value) => Some(value),
            _ => None,
        });
        let last = set.next_back().unwrap();
        localv1::Endpoint::decode(&last.bytes[..]).unwrap().local
    };
    assert!(local(client.operations().await));
    client.ask(Request { node: "n2".into(), push: true, ..Request::default() });
    let operations = client.operations().await;
    assert!(matches!(operations[0], Op::Reset(_)));
    assert!(!local(operations));
}

#[tokio::test]
async fn a_node_that_learns_its_zone_is_told_what_differs() {
    let mut cluster = Cluster::new();
    cluster.service("web", &[("10.0.0.1", "n1")]);
    cluster.write(|batch| {
        put(batch, "hinted", &[("10.0.1.1", "n1"), ("10.0.1.2", "n2")]);
        let hint = |ip: &str, zone: &str| Endpoint {
            zone_hints: [zone.into()].into(),
            pod: Some(zone.into()),
            ..Endpoint::at(ip.parse().unwrap())
        };
        let endpoints = vec![hint("10.0.1.1", "a"), hint("10.0.1.2", "b")];
        let ports = vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }];
        batch.set_slice(key("hinted-x"), "hinted", EndpointSlice { endpoints, ports });
    });
    let (mut client, mut old) = (cluster.watch(), cluster.watch());
    let have = Some(Position::default());
    let request = Request { node: "n1".into(), push: true, details: true, have };
    client.ask(request.clone());
    old.ask(Request { push: true, node: "n1".into(), ..Request::default() });
    old.operations().await;
    let operations = client.operations().await;
    assert_eq!(operations.len(), 7);
    let Some(Op::Sync(sync)) = operations.last() else { panic!("{operations:?}") };
    let position = sync.position.clone();

    let in_zone = |zone: &str| Node { zone: Some(zone.into()), ..Node::default() };
    cluster.write(|batch| batch.set_node("n1", in_zone("a")));
    client
        .check(expect![[r#"
            + LocalNodesSet n1
            + EndpointsSet t/hinted/b
            sync me/local/n1/true 3
        "#]])
        .await;
    old.check(expect![[r#"
        - EndpointsSet t/hinted/b
        sync
    "#]])
        .await;
    cluster.write(|batch| batch.set_node("n1", Node { going_away: true, ..in_zone("a") }));
    client.check(expect!["+ LocalNodesSet n1\nsync me/local/n1/true 4\n"]).await;
    cluster.write(|batch| batch.set_node("n1", in_zone("b")));
    old.check(expect![[r#"
        + EndpointsSet t/hinted/b
        - EndpointsSet t/hinted/a
        sync
    "#]])
        .await;
    cluster.write(|batch| batch.delete_node("n1"));
    old.check(expect![[r#"
        + EndpointsSet t/hinted/a
        sync
    "#]])
        .await;

    cluster.write(|batch| batch.set_node("n1", in_zone("b")));
    let mut resumed = cluster.watch();
    resumed.ask(Request { have: position, ..request });
    resumed
        .check(expect![[r#"
            + LocalNodesSet n1
            + EndpointsSet t/hinted/a
            sync me/local/n1/true 7
        "#]])
        .await;
}

#[tokio::test]
async fn a_client_resumes_where_it_was() {
    let mut cluster = Cluster::unsynced(4);
    cluster.sync();
    cluster.service("web", &[("10.0.0.1", "n1")]);
    let resume = |have: Position| Request {
        node: "n1".into(),
        push: true,
        have: Some(have),
        details: false,
    };
    let at = |operations: Vec<Op>| match operations.last() {
        Some(Op::Sync(sync)) => sync.position.clone().unwrap(),
        other => panic!("{other:?}"),
    };
    let mut client = cluster.watch();
    client.ask(resume(Position::default()));
    let position = at(client.operations().await);

    let mut client = cluster.watch();
    client.ask(resume(position.clone()));
    client.check(expect!["sync me/local/n1/false 1\n"]).await;

    cluster.service("web", &[("10.0.0.2", "n1")]);
    let mut client = cluster.watch();
    client.ask(resume(position.clone()));
    client
        .check(expect![[r#"
            + EndpointsSet t/web/pod-10.0.0.2
            - EndpointsSet t/web/pod-10.0.0.1
            sync me/local/n1/false 2
        "#]])
        .await;

    let mut client = cluster.watch();
    client.ask(Request { node: "n2".into(), ..resume(position.clone()) });
    assert!(matches!(client.operations().await[0], Op::Reset(_)), "that is another view");

    for number in 0..9 {
        cluster.service("web", &[(&format!("10.0.1.{number}"), "n1")]);
    }
    let mut client = cluster.watch();
    client.ask(resume(position));
    let operations = client.operations().await;
    assert!(matches!(operations[0], Op::Reset(_)), "that is forgotten: {operations:?}");
    assert_eq!(at(operations).revision, cluster.local.store.revision());
}

#[tokio::test]
async fn an_old_client_that_is_too_far_behind_has_to_come_again() {
    let new = Request { details: true, ..Request::default() };
    for (request, old) in [(Request::default(), true), (new, false)] {
        let mut cluster = Cluster::unsynced(4);
        cluster.sync();
        let mut client = cluster.watch();
        client.ask(request.clone());
        client.operations().await;
        (0..9).for_each(|number| cluster.service("web", &[(&format!("10.0.1.{number}"), "n1")]));
        client.ask(request.clone());
        if old {
            assert_eq!(client.watch.next().await.unwrap_err().code(), tonic::Code::Aborted);
        } else {
            assert!(matches!(client.operations().await[0], Op::Reset(_)));
        }
    }
}

#[tokio::test]
async fn an_answer_says_when_its_earliest_change_was_made() {
    let at = |seconds| Some(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
    for details in [true, false] {
        let mut cluster = Cluster::new();
        let mut client = cluster.watch();
        let request = Request { node: "n1".into(), details, ..Request::default() };
        client.ask(request.clone());
        client.operations().await;
        for (seconds, name) in [(9, "a"), (7, "b"), (8, "c")] {
            cluster.write(|batch| {
                put(batch, name, &[]);
                batch.triggered_at(at(seconds).unwrap());
            });
        }
        let mut times = Vec::new();
        for _ in 0..2 {
            client.ask(request.clone());
            let operations = client.operations().await;
            let Some(Op::Sync(sync)) = operations.last() else { panic!("{operations:?}") };
            times.push(crate::wire::triggered(sync));
            cluster.service("d", &[]);
        }
        assert_eq!(times, if details { [at(7), None] } else { [None, None] });
    }
}

/// What a client has after its operations.
fn apply(mirror: &mut BTreeMap<(i32, String), Vec<u8>>, operations: Vec<Op>) {
    for operation in operations {
        match operation {
            Op::Reset(_) => mirror.clear(),
            Op::Sync(_) => {}
            Op::Set(value) => {
                let reference = value.r#ref.unwrap();
                mirror.insert((reference.set, reference.path), value.bytes);
            }
            Op::Delete(r) => drop(mirror.remove(&(r.set, r.path)).expect("what is deleted exists")),
        }
    }
}

#[tokio::test]
async fn pages_and_changes_meanwhile_end_in_the_state() {
    let mut cluster = Cluster::new();
    cluster.write(|batch| {
        (0..500).for_each(|number| {
            put(batch, &format!("s{number:03}"), &[(&format!("10.0.{}.1", number % 250), "n1")]);
        });
    });
    let (mut client, mut global) = (cluster.watch(), cluster.watch_global());
    client.ask(Request { node: "n1".into(), push: true, details: true, ..Request::default() });
    global.ask(Request { push: true, details: true, ..Request::default() });
    for number in 0..200_u32 {
        // A piece of each, then a change: before, within and after what was sent.
        let piece = client.watch.next().await.unwrap().unwrap();
        client.bytes.extend_from_slice(&piece);
        let piece = global.watch.next().await.unwrap().unwrap();
        global.bytes.extend_from_slice(&piece);
        let name = format!("s{:03}", number * 37 % 510);
        match number % 3 {
            0 => cluster.write(|batch| batch.delete_service(key(&name))),
            _ => cluster.service(&name, &[(&format!("10.1.0.{number}"), "n2")]),
        }
        if number == 2 {
            let zone = Some("a".into());
            cluster.write(|batch| batch.set_node("n1", Node { zone, ..Node::default() }));
        }
    }
    let mut mirrors = [BTreeMap::new(), BTreeMap::new()];
    apply(&mut mirrors[0], client.operations().await);
    apply(&mut mirrors[1], global.operations().await);

    let (mut client, mut global) = (cluster.watch(), cluster.watch_global());
    client.ask(Request { node: "n1".into(), details: true, ..Request::default() });
    global.ask(Request { details: true, ..Request::default() });
    let mut fresh = [BTreeMap::new(), BTreeMap::new()];
    apply(&mut fresh[0], client.operations().await);
    apply(&mut fresh[1], global.operations().await);
    assert!(fresh[0].len() > 800, "{}", fresh[0].len());
    assert_eq!(mirrors, fresh);
}

#[tokio::test]
async fn a_change_is_encoded_once_for_all_who_see_it_alike() {
    let mut cluster = Cluster::new();
    cluster.service("web", &[("10.0.0.1", "n1"), ("10.0.0.2", "n2")]);
    let mut clients = Vec::new();
    for number in 0..100 {
        let client = cluster.watch();
        client.ask(Request { node: format!("n{number}"), push: true, ..Request::default() });
        clients.push(client);
    }
    let mut encodings = Vec::new();
    for endpoints in [
        &[("10.0.0.1", "n1"), ("10.0.0.2", "n2")][..],
        &[("10.0.0.1", "n1"), ("10.0.0.3", "n3")],
        &[("10.0.0.1", "n1"), ("10.0.0.4", "n3")],
    ] {
        cluster.service("web", endpoints);
        let before = cluster.stats.encodings.get();
        for client in &mut clients {
            assert!(!client.operations().await.is_empty());
        }
        encodings.push(cluster.stats.encodings.get() - before);
    }
    // The nodes of the endpoints before and after, and everybody else.
    assert_eq!(encodings, [3, 4, 3]);
}

#[tokio::test]
async fn what_a_client_is_told_is_the_local_view() {
    let mut cluster = Cluster::new();
    cluster.service("web", &[("10.0.0.1", "n1"), ("10.0.0.2", "n2")]);
    let mut client = cluster.watch();
    client.ask(Request { node: "n2".into(), details: true, ..Request::default() });
    let mut mirror = BTreeMap::new();
    apply(&mut mirror, client.operations().await);

    let mut view = LocalView::new("n2");
    view.update(&cluster.local.store.reader().try_next().unwrap());
    let local = view.get(&key("web")).unwrap();
    let place = view.place();
    assert_eq!(
        *local,
        *cluster.local.store.service(&key("web")).unwrap().localize(&key("web"), place).unwrap()
    );
    let service = localv1::Set::ServicesSet as i32;
    let bytes = &mirror[&(service, "t/web".into())];
    let (_, decoded) = crate::wire::decode_service(bytes).unwrap();
    let endpoints = localv1::Set::EndpointsSet as i32;
    let endpoints = mirror.range((endpoints, String::new())..(endpoints + 1, String::new()));
    let endpoints = endpoints
        .flat_map(|(_, bytes)| crate::wire::decode_local_endpoints(bytes, &decoded).unwrap());
    assert_eq!(endpoints.collect::<Vec<_>>(), local.endpoints);
}
