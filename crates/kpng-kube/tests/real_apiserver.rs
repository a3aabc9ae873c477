//! The watcher on a real kube-apiserver: what is written there arrives in the store, through
//! restarts, and with the rights that it has.

use std::sync::Arc;
use std::time::Duration;

use kpng_core::model::{NamespacedName, ServiceState, ServiceType};
use kpng_core::store::{Batch, Kind, Reader, Store, Update};
use kpng_kube::{
    Config, Converter, Encoding, Event, Glob, NodeScope, Recorder, Regarding, Scope, Selection,
    Stats, Watcher,
};
use kpng_testkit::apiserver::{ApiServer, Authorization, Options};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// A watcher that runs on a runtime of its own.
struct Run {
    runtime: Runtime,
    store: Store,
    stats: Arc<Stats>,
    recorder: Recorder,
    task: JoinHandle<Result<(), kpng_kube::Error>>,
}

fn config(server: &ApiServer) -> Config {
    Config {
        kubeconfig: Some(server.kubeconfig_path()),
        server: None,
        service_proxy_name: None,
        selection: Selection::default(),
        nodes: NodeScope::All,
    }
}

impl Run {
    fn start(config: Config) -> Self {
        Self::start_as("node-a", config)
    }

    fn start_as(node: &str, config: Config) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build();
        let runtime = runtime.expect("threads can be made");
        let (writer, store) = Store::new();
        let mut watcher = Watcher::new(config, writer).expect("the configuration is good");
        let stats = watcher.stats();
        let recorder = watcher.record_events(node);
        let task = runtime.spawn(watcher.run(std::future::pending()));
        Self { runtime, store, stats, recorder, task }
    }

    fn next(&self, reader: &mut Reader) -> Update {
        let next = async { timeout(Duration::from_secs(60), reader.next()).await };
        let update = self.runtime.block_on(next);
        let update = update.unwrap_or_else(|_| panic!("no update: {:#?}", self.stats));
        update.expect("the watcher runs")
    }

    fn until(&self, what: &str, done: impl Fn(&Store) -> bool) {
        let waiting = async {
            while !done(&self.store) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let result =
            self.runtime.block_on(async { timeout(Duration::from_secs(60), waiting).await });
        assert!(result.is_ok(), "{what}: {:#?}", self.stats);
    }

    fn lists(&self) -> [u64; 3] {
        Kind::ALL.map(|kind| self.stats.kind(kind).lists.get())
    }
}

fn key(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

fn service(store: &Store, name: &str) -> Option<Arc<ServiceState>> {
    store.service(&key(name))
}

fn names(update: &Update) -> Vec<String> {
    update.services.iter().map(|(key, _)| key.to_string()).collect()
}

#[test]
fn changes_arrive() {
    let Some(server) = ApiServer::start() else { return };
    let mut config = config(&server);
    config.selection.service_labels = vec![Glob::new("*").unwrap()];
    let run = Run::start(config);
    let mut reader = run.store.reader();
    let first = run.next(&mut reader);
    assert!(first.full);
    // The API server itself creates this one, and has no endpoints for it here.
    assert_eq!(names(&first), ["default/kubernetes"]);
    assert!(first.nodes.is_empty());

    let spec = json!({
        "type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack",
        "ports": [{"name": "http", "port": 80, "targetPort": "web"}],
    });
    server.create_service("shop", "web", spec);
    run.until("the Service", |store| service(store, "web").is_some());
    let web = service(&run.store, "web").unwrap().service.clone().unwrap();
    assert_eq!(web.service_type, ServiceType::LoadBalancer);
    assert_eq!(web.cluster_ips.len(), 2, "{web:?}");
    assert_eq!(&*web.ports[0].name, "http");
    assert!(web.ports[0].node_port.is_some() && web.created.is_some());

    let ingress = json!({"ingress": [{"ip": "192.0.2.7", "ipMode": "Proxy"}]});
    server.set_load_balancer("shop", "web", ingress);
    let proxied = |store: &Store| {
        let state = service(store, "web").unwrap();
        state.service.as_ref().is_some_and(|s| s.load_balancer_ips.iter().any(|ip| ip.proxied))
    };
    run.until("the load balancer", proxied);

    let slice = json!({
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "node-1", "zone": "a",
                       "conditions": {"ready": true}, "hints": {"forZones": [{"name": "a"}]}}],
        "ports": [{"name": "http", "port": 8080}],
    });
    server.create_slice("shop", "web-1", "web", slice);
    run.until("the slice", |store| !service(store, "web").unwrap().slices.is_empty());
    let endpoint = service(&run.store, "web").unwrap().slices[0].1.endpoints[0].clone();
    assert_eq!(endpoint.address.to_string(), "10.0.0.1");
    assert_eq!((endpoint.node.as_deref(), &*endpoint.zone_hints[0]), (Some("node-1"), "a"));

    let status = json!({"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]});
    let labels = json!({"topology.kubernetes.io/zone": "a"});
    server.create_node("node-1", labels, json!({"podCIDRs": ["10.1.0.0/24"]}), status);
    let addressed =
        |store: &Store| store.node("node-1").is_some_and(|n| !n.internal_ips.is_empty());
    run.until("the Node", addressed);
    assert_eq!(run.store.node("node-1").unwrap().zone.as_deref(), Some("a"));

    server.rest().delete("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-1");
    run.until("no slice", |store| service(store, "web").unwrap().slices.is_empty());
    server.rest().delete("/api/v1/namespaces/shop/services/web");
    run.until("no Service", |store| service(store, "web").is_none());
    server.rest().delete("/api/v1/nodes/node-1");
    run.until("no Node", |store| store.node("node-1").is_none());
    assert_eq!(run.lists(), [1, 1, 1], "{:#?}", run.stats);
    assert_eq!(run.stats.problem(), None);
    assert!(!run.task.is_finished());
}

#[test]
fn what_is_not_ours_is_never_fetched() {
    let Some(server) = ApiServer::start() else { return };
    let create = |name: &str, labels: serde_json::Value, spec: serde_json::Value| {
        let object = json!({"metadata": {"name": name, "labels": labels}, "spec": spec});
        server.rest().create("/api/v1/namespaces/shop/services", object);
    };
    server.ensure_namespace("shop");
    let ports = || json!({"ports": [{"port": 80}]});
    create("plain", json!({}), ports());
    create("foreign", json!({"service.kubernetes.io/service-proxy-name": "mine"}), ports());
    create("labelled", json!({"service.kubernetes.io/headless": ""}), ports());
    create("headless", json!({}), json!({"clusterIP": "None", "ports": [{"port": 80}]}));
    create("alias", json!({}), json!({"type": "ExternalName", "externalName": "example.com"}));

    let ours = Run::start(config(&server));
    let first = ours.next(&mut ours.store.reader());
    assert_eq!(names(&first), ["default/kubernetes", "shop/plain"]);
    // Those two come, and nothing is wrong with them; the labelled ones do not come.
    assert_eq!(ours.stats.kind(Kind::Services).puts.get(), 4);

    let mine = Some("mine".to_owned());
    let theirs = Run::start(Config { service_proxy_name: mine, ..config(&server) });
    let first = theirs.next(&mut theirs.store.reader());
    assert_eq!(names(&first), ["shop/foreign"]);
    assert_eq!(theirs.stats.kind(Kind::Services).puts.get(), 1);
}

#[test]
fn only_the_node_that_is_asked_for() {
    let Some(server) = ApiServer::start() else { return };
    for name in ["node-1", "node-2"] {
        server.create_node(name, json!({}), json!({}), json!({}));
    }
    let run = Run::start(Config { nodes: NodeScope::Only("node-2".to_owned()), ..config(&server) });
    let first = run.next(&mut run.store.reader());
    let nodes: Vec<_> = first.nodes.iter().map(|(name, _)| &**name).collect();
    assert_eq!(nodes, ["node-2"]);
}

#[test]
fn json_and_protobuf_say_the_same() {
    let Some(server) = ApiServer::start() else { return };
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "ipFamilyPolicy": "PreferDualStack", "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "externalIPs": ["192.0.2.1"],
        "ports": [{"name": "a", "port": 80, "targetPort": "web"},
                  {"name": "b", "port": 53, "protocol": "UDP", "targetPort": 5353}],
    });
    server.create_service("shop", "web", spec);
    server.set_load_balancer(
        "shop",
        "web",
        json!({"ingress": [{"ip": "192.0.2.7", "ipMode": "VIP"}]}),
    );
    let slice = json!({
        "addressType": "IPv6",
        "endpoints": [
            {"addresses": ["fd00::1"], "hostname": "web-0", "targetRef": {"kind": "Pod", "name": "p"},
             "conditions": {"ready": false, "serving": true, "terminating": true},
             "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n"}]}},
            {"addresses": ["fd00::2"]},
        ],
        "ports": [{"name": "a", "port": 8080}, {"name": "b"}],
    });
    server.create_slice("shop", "web-1", "web", slice);
    server.create_slice("shop", "empty", "web", json!({"addressType": "IPv4", "endpoints": []}));
    let taints = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    let spec = json!({"podCIDRs": ["10.1.0.0/24", "fd01::/64"], "taints": taints});
    server.create_node("node-1", json!({"topology.kubernetes.io/zone": "a"}), spec, json!({}));

    let everything = Selection {
        service_labels: vec![Glob::new("*").unwrap()],
        service_annotations: vec![Glob::new("*").unwrap()],
        node_labels: vec![Glob::new("*").unwrap()],
        node_annotations: vec![Glob::new("*").unwrap()],
    };
    let run = Run::start(Config { selection: everything.clone(), ..config(&server) });
    let by_protobuf = run.next(&mut run.store.reader());

    let (mut writer, store) = Store::new();
    let mut converter = Converter::new(everything);
    for (kind, path) in Kind::ALL.into_iter().zip([
        "/api/v1/services",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/api/v1/nodes",
    ]) {
        let mut batch = Batch::new();
        let body = server.rest().get(path).to_string().into();
        let page = converter.page(kind, Encoding::Json, &body, &mut batch).unwrap();
        assert_eq!(page.complaints, []);
        batch.mark_synced(kind);
        writer.apply(batch);
    }
    let by_json = store.reader().try_next().unwrap();
    assert_eq!(by_protobuf.services, by_json.services);
    assert_eq!(by_protobuf.nodes, by_json.nodes);
    assert_eq!(by_json.services.len(), 2);
    assert!(by_json.nodes[0].1.new.as_ref().unwrap().going_away);
}

#[test]
fn a_server_without_streaming_lists() {
    let paged = Options { streaming_lists: false, ..Options::default() };
    let Some(server) = ApiServer::start_with(paged) else { return };
    // More than a page.
    for i in 0..600 {
        server.create_service("shop", &format!("s{i}"), json!({"ports": [{"port": 80}]}));
    }
    let run = Run::start(config(&server));
    assert_eq!(run.next(&mut run.store.reader()).services.len(), 601);
    server.create_service("shop", "after", json!({"ports": [{"port": 80}]}));
    run.until("the watch", |store| service(store, "after").is_some());
    assert_eq!(run.lists(), [1, 1, 1]);
    assert_eq!(run.stats.problem(), None);
}

#[test]
fn a_restart_of_the_server_is_survived_and_only_differences_arrive() {
    let Some(mut server) = ApiServer::start() else { return };
    for i in 0..20 {
        server.create_service("shop", &format!("s{i:02}"), json!({"ports": [{"port": 80}]}));
    }
    let run = Run::start(config(&server));
    let mut reader = run.store.reader();
    assert_eq!(run.next(&mut reader).services.len(), 21);
    let revision = run.store.revision();

    server.stop();
    run.until("a problem", |_| run.stats.problem().is_some());
    assert_eq!(run.store.revision(), revision, "an absent server changes nothing");
    server.restart();
    server.rest().delete("/api/v1/namespaces/shop/services/s07");
    server.create_service("shop", "new", json!({"ports": [{"port": 80}]}));

    let mut changed = Vec::new();
    while changed.len() < 2 {
        let update = run.next(&mut reader);
        assert!(!update.full);
        changed.extend(names(&update));
    }
    changed.sort_unstable();
    assert_eq!(changed, ["shop/new", "shop/s07"]);
    run.until("no problem", |_| run.stats.problem().is_none());
}

#[test]
fn a_frozen_server_is_noticed() {
    let Some(server) = ApiServer::start() else { return };
    let run = Run::start(config(&server));
    let mut reader = run.store.reader();
    run.next(&mut reader);
    // Something has come by each watch: all are open.
    server.create_service("shop", "first", json!({"ports": [{"port": 80}]}));
    let slice = json!({"addressType": "IPv4", "ports": [], "endpoints": []});
    server.create_slice("shop", "first-1", "first", slice);
    server.create_node("node-a", json!({}), json!({}), json!({}));
    run.until("three watches", |store| {
        let first = store.service(&key("first"));
        let whole = first.is_some_and(|state| state.service.is_some() && state.slices.len() == 1);
        whole && store.node("node-a").is_some()
    });
    reader.skip();
    server.pause();
    let before = std::time::Instant::now();
    run.until("a reconnect", |_| run.stats.reconnects.get() > 0);
    assert!(before.elapsed() < Duration::from_secs(30), "{:?}", before.elapsed());
    server.resume();
    server.create_service("shop", "web", json!({"ports": [{"port": 80}]}));
    assert_eq!(names(&run.next(&mut reader)), ["shop/web"]);
    assert_eq!(run.lists(), [1, 1, 1]);
}

#[test]
fn missing_rights_are_named_and_waited_for() {
    let rbac = Options { authorization: Authorization::Rbac, ..Options::default() };
    let Some(server) = ApiServer::start_with(rbac) else { return };
    let kubeconfig = Some(server.powerless_kubeconfig_path());
    let run = Run::start(Config { kubeconfig, ..config(&server) });
    let services = run.stats.kind(Kind::Services);
    run.until("a problem", |_| services.problem().is_some());
    let problem = services.problem().unwrap();
    assert!(
        problem
            .starts_with("not allowed to list services: bind the ClusterRole system:node-proxier"),
        "{problem}"
    );
    bind(&server, "system:node-proxier");
    let first = run.next(&mut run.store.reader());
    assert_eq!(names(&first), ["default/kubernetes"]);
    run.until("no problem", |_| run.stats.problem().is_none());
}

/// Gives a role to whom nothing is allowed.
fn bind(server: &ApiServer, role: &str) {
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "metadata": {"name": format!("nobody-{role}")},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "nobody"}],
    });
    server.rest().create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding);
}

#[test]
fn events_need_a_right_of_their_own() {
    let rbac = Options { authorization: Authorization::Rbac, ..Options::default() };
    let Some(server) = ApiServer::start_with(rbac) else { return };
    let looking = json!({
        "metadata": {"name": "looking"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "nodes"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    });
    server.rest().create("/apis/rbac.authorization.k8s.io/v1/clusterroles", looking);
    bind(&server, "looking");
    let kubeconfig = Some(server.powerless_kubeconfig_path());
    let run = Run::start(Config { kubeconfig, ..config(&server) });
    run.next(&mut run.store.reader());
    let record = |name: &str, note: &str| {
        let regarding = Regarding::Service(NamespacedName::new("default", name));
        let (related, reason, action, scope) = (None, "Reason", "Act", Scope::Node);
        run.recorder.record(Event {
            regarding,
            related,
            reason,
            action,
            note: note.to_owned(),
            scope,
        });
    };
    let events = run.stats.events();
    record("kubernetes", "a note");
    run.until("refused", |_| events.refused.get() == 1);
    assert_eq!(run.stats.problem(), None, "services go on");

    bind(&server, "system:node-proxier");
    run.until("written", |_| {
        record("kubernetes", "a note");
        sleep_a_little();
        events.written.get() == 1
    });
    record("nobody", "about what is not there");
    record("kubernetes", &"a long note ".repeat(200));
    run.until("the long one", |_| events.written.get() == 2);
    run.until("a repetition", |_| {
        events.repeated.get() >= 1 || {
            record("kubernetes", "a note");
            sleep_a_little();
            false
        }
    });
    let list = server.rest().get("/apis/events.k8s.io/v1/namespaces/default/events");
    let list = list["items"].as_array().unwrap();
    let ours = list.iter().filter(|event| event["reportingInstance"] == "node-a").count();
    assert_eq!((ours, events.failed.get(), events.dropped.get()), (2, 0, 0), "{list:#?}");
}

#[test]
fn many_nodes_say_it_once() {
    const NODES: usize = 20;
    let Some(server) = ApiServer::start() else { return };
    let runs: Vec<_> =
        (0..NODES).map(|node| Run::start_as(&format!("node-{node}"), config(&server))).collect();
    let record = |run: &Run, reason, scope| {
        let regarding = Regarding::Service(NamespacedName::new("default", "kubernetes"));
        let (related, action, note) = (None, "Act", "a note".to_owned());
        run.recorder.record(Event { regarding, related, reason, action, note, scope });
    };
    for run in &runs {
        record(run, "First", Scope::Cluster);
        record(run, "Second", Scope::Cluster);
        record(run, "Own", Scope::Node);
    }
    for run in &runs {
        let events = run.stats.events();
        run.until("all three", |_| events.written.get() + events.said_by_others.get() == 3);
    }
    let list = server.rest().get("/apis/events.k8s.io/v1/namespaces/default/events");
    let list = list["items"].as_array().unwrap();
    let count = |reason| list.iter().filter(|event| event["reason"] == reason).count();
    assert_eq!(["First", "Second", "Own"].map(count), [1, 1, NODES], "{list:#?}");
}

fn sleep_a_little() {
    std::thread::sleep(Duration::from_millis(200));
}
