//! What the owner of a Service reads in `kubectl describe`, with a real kube-apiserver.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kpng_testkit::apiserver::ApiServer;
use kpng_testkit::network::{Network, Topology};
use serde_json::{Value, json};

use crate::process::{Kpng, http, within};

/// A node of a cluster, with two proxies that know themselves by different names.
struct Cluster {
    // Dropped in this order: the proxies and the API server live in the node's namespace.
    proxies: [Kpng; 2],
    api: Arc<Mutex<ApiServer>>,
    network: Network,
}

impl Cluster {
    fn start() -> Option<Self> {
        let network = Network::new(Topology { pods: 1, remote_pods: 0 })?;
        let api = network.node.run(ApiServer::start)?;
        let kubeconfig = format!("--kubeconfig={}", api.kubeconfig_path().display());
        let start = |node: &str, backend: &str, ports: [u16; 2]| {
            let [health, metrics] = ports;
            let arguments = [
                "kube".to_owned(),
                kubeconfig.clone(),
                "to-local".to_owned(),
                backend.to_owned(),
                format!("--node-name={node}"),
                format!("--healthz-bind-address=127.0.0.1:{health}"),
                format!("--metrics-bind-address=127.0.0.1:{metrics}"),
                "--admin-socket=".to_owned(),
                "--nodeport-addresses=192.168.0.0/24".to_owned(),
            ];
            Kpng::start(&network.node, &arguments.each_ref().map(String::as_str))
        };
        // Nobody but the first writes rules.
        let proxies = [
            start("node-a", "to-userspacelin", [10256, 10249]),
            start("node-b", "to-healthchecks", [10257, 10250]),
        ];
        let api = Arc::new(Mutex::new(api));
        let this = Self { proxies, api, network };
        this.api(|api| {
            let status = json!({"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]});
            for name in ["node-a", "node-b"] {
                api.create_node(name, json!({}), json!({}), status.clone());
            }
        });
        for (proxy, port) in this.proxies.iter().zip([10256, 10257]) {
            proxy.wait_ready_at(&this.network.node, port);
        }
        Some(this)
    }

    /// Talks to the API server, from the node.
    fn api<T: Send + 'static>(&self, talk: impl FnOnce(&mut ApiServer) -> T + Send + 'static) -> T {
        let api = Arc::clone(&self.api);
        self.network.node.run(move || talk(&mut api.lock().unwrap()))
    }

    /// All Events with this reason.
    fn events(&self, reason: &'static str) -> Vec<Value> {
        let list = self.api(|api| api.rest().get("/apis/events.k8s.io/v1/events"));
        let events = list["items"].as_array().unwrap().iter();
        events.filter(|event| event["reason"] == reason).cloned().collect()
    }

    /// So many Events with this reason, once they are there.
    fn await_events<const N: usize>(&self, reason: &'static str) -> [Value; N] {
        let mut events = Vec::new();
        let there = within(Duration::from_secs(60), || {
            events = self.events(reason);
            events.len() >= N
        });
        let logs = self.proxies.each_ref().map(Kpng::log);
        assert!(there, "{reason}: {events:#?}\n{}\n{}", logs[0], logs[1]);
        events.try_into().unwrap_or_else(|events| panic!("{reason}: {events:#?}"))
    }

    /// How many Events had such an outcome, for either proxy.
    fn count(&self, outcome: &str) -> u64 {
        let of = |port| {
            let text = http(&self.network.node, port, "/metrics").unwrap();
            let name = format!("kpng_kubernetes_events_total{{outcome=\"{outcome}\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap_or_else(|| panic!("no {name}in {text}")).parse::<u64>().unwrap()
        };
        of(10249) + of(10250)
    }
}

fn note(event: &Value) -> &str {
    event["note"].as_str().unwrap()
}

/// Services that cannot be served as they want to be.
fn create_trouble(api: &ApiServer) {
    let port = json!([{"name": "http", "port": 80}]);
    for name in ["first", "second"] {
        let spec = json!({"ports": port, "externalIPs": ["198.51.100.9"]});
        api.create_service("default", name, spec);
    }
    let spec = json!({
        "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "ports": port,
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 32100,
        "loadBalancerSourceRanges": ["203.0.113.0/24"],
    });
    api.create_service("default", "narrow", spec);
    let ingress = json!({"ingress": [{"ip": "198.51.100.1"}, {"ip": "2001:db8:198::1"}]});
    api.set_load_balancer("default", "narrow", ingress);
    let sctp = json!({"ports": [{"name": "s", "port": 99, "protocol": "SCTP"}]});
    api.create_service("default", "phones", sctp);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "new", "namespace": "default", "uid": "of-tomorrow"},
        "spec": {"type": "Telepathy", "clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"],
                 "ports": [{"port": 80, "protocol": "TCP"}]},
    });
    api.write_unvalidated("services/specs/default/new", &service);
}

#[test]
fn the_owner_of_a_service_is_told() {
    let Some(cluster) = Cluster::start() else { return };
    let taken = cluster.network.node.run(|| TcpListener::bind(("192.168.0.2", 32100)).unwrap());
    cluster.api(|api| create_trouble(api));

    let [conflict] = cluster.await_events("FrontendConflict");
    assert_eq!(
        note(&conflict),
        "default/second claims 198.51.100.9:80/TCP, which belongs to default/first; it is not served \
         for default/second until default/first gives it up"
    );
    let second = cluster.api(|api| api.rest().get("/api/v1/namespaces/default/services/second"));
    assert_eq!(conflict["regarding"]["uid"], second["metadata"]["uid"], "kubectl looks for it");
    assert_eq!(conflict["regarding"]["kind"], "Service");
    assert_eq!(conflict["related"]["name"], "first");
    assert_eq!(conflict["reportingController"], "kpng");
    assert_eq!(conflict["type"], "Warning");

    let [ranges] = cluster.await_events("NoSourceRangeOfFamily");
    assert!(note(&ranges).starts_with("loadBalancerSourceRanges has no IPv6 range"), "{ranges:#}");
    let [rejected] = cluster.await_events("Rejected");
    let expected = "rejected, its last good state stays: spec.type \"Telepathy\" is unknown";
    assert_eq!(note(&rejected), expected);
    let [gap] = cluster.await_events("UnsupportedByBackend");
    assert!(note(&gap).starts_with("kpng's backend userspacelin cannot do SCTP"), "{gap:#}");
    let ports: [Value; 2] = cluster.await_events("FailedToStartServiceHealthcheck");
    for node in ["node-a", "node-b"] {
        let of_node = |event: &&Value| event["reportingInstance"] == node;
        let event = ports.iter().find(of_node).unwrap_or_else(|| panic!("{node}: {ports:#?}"));
        assert!(note(event).contains("192.168.0.2:32100: Address already in use"), "{event:#}");
    }
    drop(taken);

    // The conflict, the ranges and the rejected object are the same to both.
    let everything = within(Duration::from_secs(60), || cluster.count("said_by_others") == 3);
    let counts = ["written", "said_by_others", "failed"].map(|outcome| cluster.count(outcome));
    assert!(everything && counts == [6, 3, 0], "{counts:?}");
    assert_eq!(cluster.events("FrontendConflict").len(), 1, "nobody says it twice");

    // It comes again: the one who wrote it counts.
    for ips in [json!([]), json!(["198.51.100.9"])] {
        cluster.api(move |api| {
            let path = "/api/v1/namespaces/default/services/second";
            api.rest().patch(path, json!({"spec": {"externalIPs": ips}}))
        });
        std::thread::sleep(Duration::from_millis(500));
    }
    let counted = within(Duration::from_secs(60), || {
        cluster.events("FrontendConflict").iter().any(|event| event["series"]["count"] == 2)
    });
    let counts = ["repeated", "said_by_others", "failed"].map(|outcome| cluster.count(outcome));
    let logs = cluster.proxies.each_ref().map(Kpng::log);
    assert!(counted, "{counts:?}\n{}\n{}", logs[0], logs[1]);
    assert_eq!(cluster.events("FrontendConflict").len(), 1);
}

#[test]
fn who_only_looks_says_nothing() {
    let Some(network) = Network::new(Topology { pods: 1, remote_pods: 0 }) else { return };
    let Some(api) = network.node.run(ApiServer::start) else { return };
    let api = Arc::new(Mutex::new(api));
    let kubeconfig = format!("--kubeconfig={}", api.lock().unwrap().kubeconfig_path().display());
    let there = Arc::clone(&api);
    network.node.run(move || {
        let spec = json!({"ports": [{"port": 80}], "externalIPs": ["198.51.100.9"]});
        for name in ["first", "second"] {
            there.lock().unwrap().create_service("default", name, spec.clone());
        }
    });
    let ports = ["--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address="];
    let quiet = ["kube", &kubeconfig, "to-local", "to-healthchecks", "--events=false"];
    let quiet = Kpng::start(&network.node, &[&quiet[..], &ports].concat());
    quiet.wait_ready(&network.node);
    assert!(quiet.log().contains("default/second claims"), "{}", quiet.log());
    let dry = ["kube", &kubeconfig, "to-local", "to-nft", "--dry-run"];
    crate::process::run(&network.node, &[&[env!("CARGO_BIN_EXE_kpng")][..], &dry].concat());
    std::thread::sleep(Duration::from_secs(12));
    let events = network.node.run(move || {
        let list = api.lock().unwrap().rest().get("/apis/events.k8s.io/v1/events");
        let events = list["items"].as_array().unwrap().clone();
        events.into_iter().filter(|event| event["reportingController"] == "kpng").count()
    });
    assert_eq!(events, 0);
}
