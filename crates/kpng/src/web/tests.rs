//! Asked as a browser asks, without one.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use expect_test::{expect, expect_file};
use kpng_core::backend::{BackendError, Counting, Counts, Traffic};
use kpng_core::local::{LocalService, Localize, Place};
use kpng_core::model::{Protocol, ServiceState};
use kpng_core::plan::{At, Changes, FrontendKey, Planner};
use kpng_core::store::{Batch, LocalBatch, Reader, Store, Writer};
use kpng_testkit::fixture::{NODE, fixture};
use tokio::sync::watch;

use super::*;
use crate::backends;
use crate::http::{self, tests::ask};
use crate::metrics::{Counted, Sources};
use crate::pipeline::{Event, Synced};

const CLUSTER: &str = "
    node zone=a
    service default/web cluster4=cluster.1 port=http:80 port=more:81
    slice default/web http=8080
      pod1 zone=a hint=a
      remote1 zone=b hint=b
      pod2 notready
    service default/shop cluster4=cluster.2 lb=lb.1 port=http:80:30080 etp=Local ranges=client-net4
    slice default/shop http=8080
      pod1 terminating
      remote1
    service default/thief cluster4=cluster.3 lb=lb.1 port=http:80 created=7
    service kube-system/dns cluster=cluster.53 port=dns:53/UDP
    slice kube-system/dns dns=5353
      pod3
      remote3";

fn process(cluster: &str) -> Admin<ServiceState> {
    let fixture = fixture(cluster);
    let healthchecks = backends::ALL.last().unwrap();
    Admin {
        store: fixture.store,
        node: NODE.into(),
        facts: watch::channel(Some(fixture.facts)).1,
        choice: (healthchecks.default)().into(),
        synced: Arc::new(AtomicU64::new(1)),
    }
}

fn handler<V: Inspect + Counted>(process: Admin<V>, board: Board) -> Handler {
    let health = ProxyHealth::new(Duration::from_secs(60));
    let metrics = Metrics::new(Sources {
        health: &health,
        store: &process.store,
        kube: None,
        client: None,
        server: None,
        backend: None,
        traffic: Some(Arc::new(Told)),
        counting: Counting::Always,
    });
    let fixture = fixture(CLUSTER);
    let mut planner = Planner::new(NODE, fixture.facts);
    planner.update(&fixture.store.snapshot().unwrap().into_update());
    metrics.planned(planner.plan(), None);
    let web = Web { process, board, source: Source::default(), health, metrics };
    web.handler(http::at_once(|path| answer(StatusCode::OK, TEXT, format!("others: {path}"))))
}

/// A backend that has counted at one frontend, of default/shop.
#[derive(Debug)]
struct Told;

impl Traffic for Told {
    fn read(&self) -> Result<Vec<(FrontendKey, Counts)>, BackendError> {
        let at = At::Vip([172, 30, 0, 2].into());
        let counts = Counts { connections: 5, rejected: Some(2), dropped: None };
        Ok(vec![(FrontendKey { at, protocol: Protocol::Tcp, port: 80 }, counts)])
    }
}

/// The status and the JSON of an answer about a cluster.
async fn json_of(cluster: &str, path: &str) -> (u16, Value) {
    let answer = ask(&handler(process(cluster), Board::default()), path).await;
    assert_eq!(answer.headers()["content-type"], JSON);
    (answer.status().as_u16(), serde_json::from_str(answer.body()).unwrap())
}

async fn found(cluster: &str, query: &str) -> String {
    let (_, value) = json_of(cluster, &format!("/api/services?{query}")).await;
    let rows = value["services"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    format!("{} of {}: {}", value["found"], value["all"], names.join(" "))
}

#[tokio::test]
async fn services_are_found_by_what_is_typed() {
    let all = "4 of 4: shop thief web dns";
    for (typed, expected) in [
        ("", all),
        ("  ", all),
        ("web", "1 of 4: web"),
        ("WEB", "1 of 4: web"),
        ("default/web", "1 of 4: web"),
        ("ault/sh", "1 of 4: shop"),
        ("web/default", "0 of 4: "),
        ("system", "1 of 4: dns"),
        ("80", "3 of 4: shop thief web"),
        ("30080", "1 of 4: shop"),
        ("80 th", "1 of 4: thief"),
        ("172.30.0.2", "1 of 4: shop"),
        ("198.51.100.1", "2 of 4: shop thief"),
        ("198.51.100.1:80/TCP", "2 of 4: shop thief"),
        ("198.51.100.1:81", "0 of 4: "),
        ("172.30.", "4 of 4: shop thief web dns"),
        ("[fd00:172:30::35]:53/udp", "1 of 4: dns"),
        ("fd00:172:30::35", "1 of 4: dns"),
        ("fd00:172", "1 of 4: dns"),
        ("10.180.0.1", "2 of 4: shop web"),
        ("10.180.0.1:8080", "2 of 4: shop web"),
        ("::ffff:10.180.0.3", "1 of 4: dns"),
    ] {
        let query = format!("search={}", http::encode(typed));
        assert_eq!(found(CLUSTER, &query).await, expected, "{typed:?}");
        // So browsers write blanks.
        let query = query.replace("%20", "+");
        assert_eq!(found(CLUSTER, &query).await, expected, "{typed:?}");
    }
}

#[tokio::test]
async fn a_row_says_what_a_service_is_in_short() {
    let (_, value) = json_of(CLUSTER, "/api/services?search=shop").await;
    expect![[r#"
        [
          {
            "affinitySeconds": null,
            "endpoints": {
              "all": 4,
              "chosen": 1,
              "ready": 2,
              "serving": 2
            },
            "externalTrafficPolicy": "Local",
            "frontends": {
              "count": 3,
              "names": [
                "172.30.0.2:80/TCP",
                "198.51.100.1:80/TCP",
                "IPv4 node port 30080/TCP"
              ]
            },
            "internalTrafficPolicy": "Cluster",
            "name": "shop",
            "namespace": "default",
            "type": "ClusterIP"
          }
        ]"#]]
    .assert_eq(&format!("{:#}", value["services"]));
}

#[tokio::test]
async fn pages_have_bounds() {
    let cluster: String =
        (0..120).map(|number| format!("service t/s{number:03} port=http:80\n")).collect();
    for (page, first, rows) in [(1, "s000", 50), (2, "s050", 50), (3, "s100", 20), (99, "s100", 20)]
    {
        let (_, value) = json_of(&cluster, &format!("/api/services?page={page}")).await;
        let services = value["services"].as_array().unwrap();
        assert_eq!((services[0]["name"].as_str(), services.len()), (Some(first), rows));
        assert_eq!((&value["page"], &value["pages"]), (&json!(page.min(3)), &json!(3)));
    }
    assert_eq!(found(&cluster, "page=0&search=s11").await.split_once(':').unwrap().0, "10 of 120");
    let (_, nothing) = json_of(&cluster, "/api/services?search=none&page=7").await;
    assert_eq!((&nothing["page"], &nothing["pages"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn one_service_with_all_that_decides_about_it() {
    let (_, value) = json_of(CLUSTER, "/api/services/default/shop").await;
    expect_file!["tests/service.json"].assert_eq(&format!("{value:#}\n"));
}

#[tokio::test]
async fn endpoints_come_in_pages_too() {
    let mut cluster = "service t/large cluster4=cluster.1 port=http:80\n".to_owned();
    cluster += "slice t/large http=8080\n";
    (0..250).for_each(|number| cluster += &format!("remote{number}\n"));
    for (page, first, shown) in
        [(1, "10.180.1.0", 200), (2, "10.180.1.200", 50), (5, "10.180.1.200", 50)]
    {
        let (_, value) = json_of(&cluster, &format!("/api/services/t/large?page={page}")).await;
        let family = &value["ports"][0]["endpoints"][0];
        let endpoints = family["page"].as_array().unwrap();
        assert_eq!((endpoints[0]["address"].as_str(), endpoints.len()), (Some(first), shown));
        assert_eq!((&family["all"], &value["pages"]), (&json!(250), &json!(2)));
    }
}

#[tokio::test]
async fn many_ports_share_a_page() {
    let mut cluster = "service t/wide cluster4=cluster.1".to_owned();
    (1..=100).for_each(|number| cluster += &format!(" port=p{number}:{number}"));
    cluster += "\nslice t/wide";
    (1..=100).for_each(|number| cluster += &format!(" p{number}={number}"));
    (0..30).for_each(|number| cluster += &format!("\nremote{number} v4"));
    let (_, value) = json_of(&cluster, "/api/services/t/wide").await;
    let shown = |port: &Value| port["endpoints"][0]["page"].as_array().unwrap().len();
    let ports = value["ports"].as_array().unwrap();
    assert_eq!((ports.len(), ports.iter().map(shown).sum()), (100, 2000));
    assert_eq!(value["pages"], 2);
}

/// What a server has worked out for the node is shown as far as it is known.
#[tokio::test]
async fn the_view_of_a_node_from_a_server() {
    let fixture = fixture(CLUSTER);
    let snapshot = fixture.store.snapshot().unwrap();
    let place = Place::of(&NODE.into(), None);
    let (mut writer, store) = Store::local();
    let mut batch = LocalBatch::new();
    for (key, state) in &snapshot.services {
        batch.set_service(LocalService::clone(&state.localize(key, &place).unwrap()));
    }
    batch.mark_synced();
    writer.apply(batch);
    let Admin { node, facts, choice, synced, .. } = process(CLUSTER);
    let handler = handler(Admin { store, node, facts, choice, synced }, Board::default());
    let answers =
        async |path| -> Value { serde_json::from_str(ask(&handler, path).await.body()).unwrap() };
    assert_eq!(answers("/api/services?search=10.180.1.1").await["found"], 2);
    let service = answers("/api/services/default/shop").await;
    let family = &service["ports"][0]["endpoints"][0];
    assert_eq!((&family["all"], &family["hints"]), (&json!(1), &Value::Null));
    assert_eq!(family["page"][0]["excluded"]["local"]["name"], "not-local");
    assert_eq!(service["ports"][0]["frontends"][1]["owner"], "default/thief");
}

#[tokio::test]
async fn an_explanation_is_the_one_of_kpng_explain() {
    let question = "source=10.180.0.3&destination=172.30.0.1&port=80";
    let (status, value) = json_of(CLUSTER, &format!("/api/explain?{question}")).await;
    assert_eq!(status, 200);
    let uri = format!("/explain?{question}").parse().unwrap();
    let question = Question::parse(&Method::GET, &uri).unwrap();
    let explained = process(CLUSTER).explain(&question).unwrap();
    assert_eq!(value["text"], explained.to_string());
    assert_eq!(value["outcome"], explained.json()["outcome"]);
    assert_eq!(value["outcome"]["is"], "forward");
}

#[tokio::test]
async fn what_cannot_be_answered_says_why() {
    let long = format!("/api/services?search={}", "x".repeat(MAX_SEARCH + 1));
    for (path, status, word) in [
        ("/api/", 404, "/api/"),
        ("/api/secrets", 404, "docs/web.md"),
        ("/api/services/default", 404, "/api/services/default"),
        ("/api/services/default/none", 404, "no Service default/none"),
        ("/api/services/a%20b/%F0%9F", 404, "no Service a b/"),
        ("/api/services?page=x", 400, "page: \"x\""),
        (&long, 400, "search"),
        ("/api/explain?source=node", 400, "destination is not given"),
        ("/api/explain?source=node&destination=x&port=1", 400, "destination \"x\""),
        ("/api/explain?source=node&destination=10.0.0.1&port=x", 400, "10.0.0.1:x"),
    ] {
        let (found, value) = json_of(CLUSTER, path).await;
        let error = value["error"].as_str().unwrap();
        assert!(found == status && error.contains(word), "{path}: {found} {error}");
    }
    let unknown = Admin { facts: watch::channel(None).1, ..process(CLUSTER) };
    let handler = handler(unknown, Board::default());
    for path in ["/api/services", "/api/services/default/web"] {
        let answer = ask(&handler, path).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.body().contains("does not know the node yet"), "{}", answer.body());
    }
    assert_eq!(ask(&handler, "/api/status").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn nothing_can_be_loaded_from_elsewhere_and_other_paths_are_others() {
    let handler = handler(process(CLUSTER), Board::default());
    for path in ["/", "/page.js", "/page.css", "/icon.svg", "/api/status", "/api/none"] {
        let answer = ask(&handler, path).await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap();
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("cache-control"), "no-store");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert!(answer.body().len() < 30_000, "{path}");
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!answer.body().contains(word), "{word} in {path}");
        }
        let elsewhere = answer.body().replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("://") && !elsewhere.contains("style="), "{path}");
    }
    for path in ["/metrics", "/proxyMode", "/page", "/api"] {
        assert_eq!(ask(&handler, path).await.body(), &format!("others: {path}"));
    }
}

#[tokio::test]
async fn only_who_means_this_process_may_ask_and_only_ask() {
    let handler = handler(process(CLUSTER), Board::default());
    let status = async |method: &str, host: &str, path: &str| {
        let request = hyper::Request::builder().method(method).uri(path).header(HOST, host);
        handler(request.body(()).unwrap().into_parts().0).await.status().as_u16()
    };
    let own = ["127.0.0.1:10249", "10.0.0.1", "[::1]:10249", "[fd00::1]", "localhost:1", "NODE-A."];
    for host in own {
        assert_eq!(status("GET", host, "/").await, 200, "{host}");
        assert_eq!(status("HEAD", host, "/api/status").await, 200, "{host}");
        assert_eq!(status("POST", host, "/api/status").await, 405, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "node-a.evil", "1.2.3.4.evil", "a b", ""]
    {
        assert_eq!(status("GET", host, "/").await, 403, "{host}");
        assert_eq!(status("GET", host, "/api/status").await, 403, "{host}");
        assert_eq!(status("GET", host, "/metrics").await, 200, "{host}");
    }
}

/// A pipeline without one: a planner whose changes are told to a board.
struct Node {
    writer: Writer,
    reader: Reader,
    planner: Planner,
    board: Board,
}

impl Node {
    fn new(cluster: &str) -> Self {
        let fixture = fixture(cluster);
        let (mut writer, store) = Store::new();
        let mut batch = Batch::new();
        let snapshot = fixture.store.snapshot().unwrap();
        for (key, state) in snapshot.services {
            batch.set_service(key, (**state.service.as_ref().unwrap()).clone());
        }
        kpng_core::store::Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        writer.apply(batch);
        let planner = Planner::new(NODE, fixture.facts);
        let mut node = Self { writer, reader: store.reader(), planner, board: Board::default() };
        node.sync(Ok(()));
        node
    }

    /// Takes over a service, or its end.
    fn set(&mut self, key: &str, cluster: Option<&str>) {
        let (namespace, name) = key.split_once('/').unwrap();
        let key = NamespacedName::new(namespace, name);
        let mut batch = Batch::new();
        match cluster {
            None => batch.delete_service(key),
            Some(cluster) => {
                let state = fixture(cluster).store.service(&key).unwrap();
                for (slice, value) in &state.slices {
                    let slice = NamespacedName::new(namespace, Arc::clone(slice));
                    batch.set_slice(slice, name, (**value).clone());
                }
                batch.set_service(key, (**state.service.as_ref().unwrap()).clone());
            }
        }
        self.writer.apply(batch);
    }

    fn sync(&mut self, result: Result<(), BackendError>) {
        let update = self.reader.try_next();
        let changes = update.map(|update| self.planner.update(&update)).unwrap_or_default();
        self.told(&changes, &result);
    }

    fn told(&self, changes: &Changes, result: &Result<(), BackendError>) {
        self.board.observe(&Event::Synced(&Synced {
            plan: self.planner.plan(),
            changes,
            full: false,
            duration: Duration::from_millis(2),
            triggered: None,
            taken: (0, 0),
            revision: 1,
            conflicts: self.planner.conflict_count(),
            usage: Vec::new(),
            result,
        }));
    }

    /// The newest entries, without their times, the oldest of them first.
    fn last(&self, count: usize) -> String {
        let mut value = self.board.lately().json();
        let changes = value["changes"].as_array_mut().unwrap();
        let mut lines: Vec<_> = changes.drain(..count.min(changes.len())).collect();
        lines.iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("at")));
        lines.iter().rev().map(|line| format!("{line}\n")).collect()
    }
}

#[test]
fn changes_are_told_in_terms_of_frontends_and_endpoints() {
    let mut node = Node::new("");
    let web = "service t/web cluster4=cluster.1 port=http:80";
    node.set("t/web", Some(&format!("{web}\nslice t/web http=8080\npod1\npod2")));
    node.sync(Ok(()));
    expect![[r#"
        {"endpoints":{"added":{"count":2,"names":["10.180.0.1:8080","10.180.0.2:8080"]},"removed":{"count":0,"names":[]}},"frontends":{"added":{"count":1,"names":["172.30.0.1:80/TCP"]},"changed":{"count":0,"names":[]},"removed":{"count":0,"names":[]}},"is":"added","number":0,"service":{"name":"web","namespace":"t"}}
    "#]].assert_eq(&node.last(1));
    node.set("t/web", Some(&format!("{web} port=more:81\nslice t/web http=8080\npod2\npod3")));
    node.sync(Ok(()));
    expect![[r#"
        {"endpoints":{"added":{"count":1,"names":["10.180.0.3:8080"]},"removed":{"count":1,"names":["10.180.0.1:8080"]}},"frontends":{"added":{"count":1,"names":["172.30.0.1:81/TCP"]},"changed":{"count":0,"names":[]},"removed":{"count":0,"names":[]}},"is":"changed","number":1,"service":{"name":"web","namespace":"t"}}
    "#]].assert_eq(&node.last(1));
    node.set("t/web", Some(&format!("{web} affinity=10\nslice t/web http=8080\npod2\npod3")));
    node.sync(Ok(()));
    expect![[r#"
        {"endpoints":{"added":{"count":0,"names":[]},"removed":{"count":0,"names":[]}},"frontends":{"added":{"count":0,"names":[]},"changed":{"count":1,"names":["172.30.0.1:80/TCP"]},"removed":{"count":1,"names":["172.30.0.1:81/TCP"]}},"is":"changed","number":2,"service":{"name":"web","namespace":"t"}}
    "#]].assert_eq(&node.last(1));
    node.set("t/thief", Some(&web.replace("web", "thief")));
    node.sync(Ok(()));
    node.set("t/web", None);
    node.sync(Err("the kernel said no".into()));
    node.told(&Changes::default(), &Err("the kernel said no".into()));
    node.board.observe(&Event::Disturbed);
    expect![[r#"
        {"endpoints":{"added":{"count":0,"names":[]},"removed":{"count":0,"names":[]}},"frontends":{"added":{"count":1,"names":["172.30.0.1:80/TCP"]},"changed":{"count":0,"names":[]},"removed":{"count":0,"names":[]}},"is":"added","number":3,"service":{"name":"thief","namespace":"t"}}
        {"endpoints":{"added":{"count":0,"names":[]},"removed":{"count":0,"names":[]}},"frontends":{"added":{"count":0,"names":[]},"changed":{"count":0,"names":[]},"removed":{"count":1,"names":["172.30.0.1:80/TCP"]}},"is":"changed","number":4,"service":{"name":"web","namespace":"t"}}
        {"is":"conflict","number":5,"service":{"name":"web","namespace":"t"},"text":"t/web claims 172.30.0.1:80/TCP, which belongs to t/thief; it is not served for t/web until t/thief gives it up"}
        {"endpoints":{"added":{"count":0,"names":[]},"removed":{"count":2,"names":["10.180.0.2:8080","10.180.0.3:8080"]}},"frontends":{"added":{"count":0,"names":[]},"changed":{"count":0,"names":[]},"removed":{"count":0,"names":[]}},"is":"removed","number":6,"service":{"name":"web","namespace":"t"}}
        {"is":"failed","number":7,"text":"the kernel said no"}
        {"is":"disturbed","number":8}
    "#]].assert_eq(&node.last(6));
    assert_eq!(node.board.lately().failure.as_deref(), Some("the kernel said no"));
    node.told(&Changes { facts: true, ..Changes::default() }, &Ok(()));
    assert!(node.last(1).contains(r#""is":"node""#));
    assert_eq!(node.board.lately().failure, None);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut node = Node::new("");
    let service = |port| format!("service t/s1 port=http:{port} cluster4=cluster.1");
    for number in 1..=51 {
        let named = service(number).replace("t/s1 ", &format!("t/s{number} "));
        node.set(&format!("t/s{number}"), Some(&named));
    }
    node.sync(Ok(()));
    let last = node.last(1);
    assert!(last.contains(r#""is":"many""#) && last.contains(r#""added":{"count":51,"#), "{last}");
    assert!(!last.contains("s50"), "only the first are named: {last}");
    for number in 1..=300 {
        node.set("t/s1", Some(&service(1000 + number)));
        node.sync(Ok(()));
    }
    let lately = node.board.lately();
    assert_eq!((lately.entries.len(), lately.count), (board::ENTRIES, 301));
    assert_eq!(lately.json()["changes"][0]["number"], 300);
}
