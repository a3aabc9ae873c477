//! `kpng kube … to-local to-nft` with a real kube-apiserver and etcd in the node's namespace.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kpng_testkit::apiserver::ApiServer;
use kpng_testkit::network::{Host, Network, Outcome, Topology};
use serde_json::{Value, json};

use crate::process::{Kpng, eventually, http, run, within};

/// A node of a cluster, with a proxy.
struct Cluster {
    // Dropped in this order: the proxy and the API server live in the node's namespace.
    kpng: Kpng,
    api: Arc<Mutex<ApiServer>>,
    network: Network,
}

impl Cluster {
    fn start() -> Option<Self> {
        let network = Network::new(Topology { pods: 4, remote_pods: 1 })?;
        for pod in network.pods.iter().chain(&network.remote_pods) {
            pod.serve(&[8080, 8081]);
        }
        let api = network.node.run(ApiServer::start)?;
        let kubeconfig = format!("--kubeconfig={}", api.kubeconfig_path().display());
        let api = Arc::new(Mutex::new(api));
        let kpng = Kpng::start(
            &network.node,
            &[
                "kube",
                &kubeconfig,
                "to-local",
                "to-nft",
                "--node-name=node-a",
                "--cluster-cidrs=10.180.0.0/16,fd00:180::/32",
                "--service-cidrs=10.96.0.0/16,fd00:10:96::/112",
            ],
        );
        let this = Self { kpng, api, network };
        this.api(|api| {
            let status = json!({"addresses": [
                {"type": "InternalIP", "address": "192.168.0.2"},
                {"type": "InternalIP", "address": "2001:db8::1"},
            ]});
            let labels = json!({"topology.kubernetes.io/zone": "a"});
            api.create_node("node-a", labels, json!({}), status);
        });
        this.kpng.wait_ready(&this.network.node);
        Some(this)
    }

    /// Talks to the API server, from the node.
    fn api<T: Send + 'static>(&self, talk: impl FnOnce(&mut ApiServer) -> T + Send + 'static) -> T {
        let api = Arc::clone(&self.api);
        self.network.node.run(move || talk(&mut api.lock().unwrap()))
    }

    /// Creates a service with one port 80, and returns its addresses.
    fn create_service(&self, name: &'static str, spec: Value) -> Vec<IpAddr> {
        let created = self.api(move |api| {
            let mut all = json!({
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
            });
            merge(&mut all, spec);
            api.create_service("default", name, all)
        });
        let ips = created["spec"]["clusterIPs"].as_array().unwrap();
        ips.iter().map(|ip| ip.as_str().unwrap().parse().unwrap()).collect()
    }

    /// Makes these pods the endpoints of a service, on both families.
    fn set_endpoints(&self, service: &'static str, endpoints: Vec<Value>) {
        self.api(move |api| set_endpoints(api, service, &endpoints, "TCP"));
    }

    fn set_udp_endpoints(&self, service: &'static str, endpoints: Vec<Value>) {
        self.api(move |api| set_endpoints(api, service, &endpoints, "UDP"));
    }
}

fn merge(into: &mut Value, from: Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

fn set_endpoints(api: &ApiServer, service: &str, endpoints: &[Value], protocol: &str) {
    for (family, key) in [("IPv4", "v4"), ("IPv6", "v6")] {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                let mut endpoint = endpoint.clone();
                endpoint["addresses"] = json!([endpoint[key]]);
                let fields = endpoint.as_object_mut().unwrap();
                fields.remove("v4");
                fields.remove("v6");
                endpoint
            })
            .collect();
        let name = format!("{service}-{key}");
        let slice = json!({
            "addressType": family,
            "ports": [{"name": "http", "port": 8080, "protocol": protocol}],
            "endpoints": endpoints,
        });
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{name}");
        if api.rest().has(&path) {
            api.rest().patch(&path, json!({"endpoints": slice["endpoints"]}));
        } else {
            api.create_slice("default", &name, service, slice);
        }
    }
}

/// A ready endpoint.
fn endpoint(pod: &Host) -> Value {
    let node = if pod.name().starts_with("pod") { "node-a" } else { "node-b" };
    json!({
        "v4": pod.v4(), "v6": pod.v6(), "nodeName": node,
        "conditions": {"ready": true, "serving": true, "terminating": false},
    })
}

/// An endpoint that drains.
fn draining(pod: &Host) -> Value {
    let mut endpoint = endpoint(pod);
    endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    endpoint
}

fn by(from: &Host, ip: IpAddr, port: u16) -> Option<String> {
    from.tcp(None, SocketAddr::new(ip, port)).answered_by().map(str::to_owned)
}

#[test]
fn services_of_a_real_cluster() {
    let Some(cluster) = Cluster::start() else { return };
    let network = &cluster.network;
    let ips = cluster.create_service("web", json!({"type": "NodePort"}));
    for ip in &ips {
        eventually("a service without endpoints rejects", || {
            network.pod(4).tcp(None, SocketAddr::new(*ip, 80)) == Outcome::Refused
        });
    }
    cluster.set_endpoints("web", vec![endpoint(network.pod(1))]);
    for ip in &ips {
        eventually("the pod answers", || by(network.pod(4), *ip, 80).as_deref() == Some("pod1"));
        let closed = network.pod(4).tcp(None, SocketAddr::new(*ip, 81));
        assert_eq!(closed, Outcome::Refused, "a port that no service has");
    }
    let unallocated = SocketAddr::new([10, 96, 200, 200].into(), 80);
    assert_eq!(network.pod(4).tcp(None, unallocated), Outcome::TimedOut);

    let node_port = cluster.api(|api| {
        let service = api.rest().get("/api/v1/namespaces/default/services/web");
        service["spec"]["ports"][0]["nodePort"].as_u64().unwrap()
    });
    for ip in [network.node.v4(), network.node.v6()] {
        let answer = by(&network.client, ip, u16::try_from(node_port).unwrap());
        assert_eq!(answer.as_deref(), Some("pod1"), "node port on {ip}");
    }

    cluster.set_endpoints("web", vec![endpoint(network.pod(2)), draining(network.pod(1))]);
    eventually("the drained pod gets nothing", || {
        (0..10).all(|_| by(network.pod(4), ips[0], 80).as_deref() == Some("pod2"))
    });
    cluster.set_endpoints("web", vec![draining(network.pod(1))]);
    eventually("a draining pod is better than none", || {
        by(network.pod(4), ips[0], 80).as_deref() == Some("pod1")
    });

    cluster.api(|api| api.rest().delete("/api/v1/namespaces/default/services/web"));
    eventually("its address leads nowhere", || {
        network.pod(4).tcp(None, SocketAddr::new(ips[0], 80)) == Outcome::TimedOut
    });
}

#[test]
fn in_a_pod_the_service_account_is_used() {
    let Some(network) = Network::new(Topology { pods: 1, remote_pods: 0 }) else { return };
    let Some(api) = network.node.run(ApiServer::start) else { return };
    // A file system of its own, with what kubelet puts into pods.
    let script = "mount -t tmpfs none /run && d=/run/secrets/kubernetes.io/serviceaccount && \
        mkdir -p $d && cp $CA $d/ca.crt && printf %s $TOKEN > $d/token && printf default > $d/namespace && \
        exec $KPNG kube to-local to-nft --node-name=node-a";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]);
    command.env_remove("KUBECONFIG").env("KPNG", env!("CARGO_BIN_EXE_kpng"));
    command.env("CA", api.ca_path()).env("TOKEN", api.token());
    command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    command.env("KUBERNETES_SERVICE_PORT", api.port().to_string());
    let kpng = Kpng::spawn(&network.node, command);
    kpng.wait_ready(&network.node);
    assert!(run(&network.node, &["nft", "list", "tables"]).contains("table ip6 kpng"));
}

#[test]
fn local_policy_and_health_check_port() {
    let Some(cluster) = Cluster::start() else { return };
    let network = &cluster.network;
    cluster.create_service(
        "lb",
        json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32100,
            "loadBalancerSourceRanges": ["203.0.113.0/25", "2001:db8:203::/64"],
        }),
    );
    cluster.api(|api| {
        let ingress = json!({"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}]});
        api.set_load_balancer("default", "lb", ingress)
    });
    let vip: IpAddr = [198, 51, 100, 1].into();
    let health = || {
        let node = network.node.v4();
        let answer = network.client.run(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect((node, 32100)).ok()?;
            write!(stream, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        });
        answer.unwrap_or_default()
    };

    cluster.set_endpoints("lb", vec![endpoint(network.remote_pod(1))]);
    // Refused until the endpoint elsewhere is known.
    eventually("no local endpoint", || {
        network.client.tcp(None, SocketAddr::new(vip, 80)) == Outcome::TimedOut
    });
    assert!(health().contains(" 503 "), "{}", health());
    assert_eq!(by(network.pod(1), vip, 80), None, "not in the source ranges");

    cluster.set_endpoints("lb", vec![endpoint(network.remote_pod(1)), endpoint(network.pod(1))]);
    eventually("a local endpoint", || health().contains(" 200 "));
    assert!(health().contains("x-load-balancing-endpoint-weight: 1"), "{}", health());
    let answer = network.client.tcp(None, SocketAddr::new(vip, 80));
    let kept = Outcome::Answered { by: "pod1".to_owned(), seen_source: network.client.v4() };
    assert_eq!(answer, kept, "the source is kept");
    let blocked = kpng_testkit::network::addresses::BLOCKED_V4.into();
    assert_eq!(network.client.tcp(Some(blocked), SocketAddr::new(vip, 80)), Outcome::TimedOut);
    assert_eq!(by(&network.client, [198, 51, 100, 2].into(), 80), None, "ipMode Proxy");
}

#[test]
fn udp_flows_follow_their_endpoints() {
    let Some(cluster) = Cluster::start() else { return };
    let network = &cluster.network;
    let ports = json!([{"name": "http", "port": 80, "protocol": "UDP"}]);
    let ips = cluster.create_service("dns", json!({"ports": ports}));
    for ip in ips {
        cluster.set_udp_endpoints("dns", vec![]);
        let flow = network.pod(4).udp_flow(None, SocketAddr::new(ip, 80));
        flow.probe();
        cluster.set_udp_endpoints("dns", vec![endpoint(network.pod(1))]);
        eventually("a flow that was refused works", || flow.probe().answered_by() == Some("pod1"));
        cluster.set_udp_endpoints("dns", vec![endpoint(network.pod(2))]);
        let moved = within(Duration::from_secs(3), || flow.probe().answered_by() == Some("pod2"));
        assert!(moved, "the flow moves to the new pod: {}", cluster.kpng.log());
    }
}

#[test]
fn the_api_server_may_be_away() {
    let Some(cluster) = Cluster::start() else { return };
    let network = &cluster.network;
    let ips = cluster.create_service("web", json!({}));
    cluster.set_endpoints("web", vec![endpoint(network.pod(1))]);
    eventually("the pod answers", || by(network.pod(4), ips[0], 80).as_deref() == Some("pod1"));
    cluster.api(ApiServer::stop);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(by(network.pod(4), ips[0], 80).as_deref(), Some("pod1"), "the data path goes on");
    let rules = run(&network.node, &["nft", "-s", "-a", "list", "ruleset"]);
    cluster.api(|api| {
        api.restart();
        let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-v4";
        let endpoint = json!([{"addresses": ["10.180.0.2"], "conditions": {"ready": true}}]);
        api.rest().patch(slice, json!({"endpoints": endpoint}));
    });
    let caught_up = within(Duration::from_secs(45), || {
        by(network.pod(4), ips[0], 80).as_deref() == Some("pod2")
    });
    assert!(caught_up, "{}", cluster.kpng.log());
    let after = run(&network.node, &["nft", "-s", "-a", "list", "ruleset"]);
    let differing = rules.lines().zip(after.lines()).filter(|(a, b)| a != b).count();
    assert!(differing <= 4 && rules.lines().count() == after.lines().count(), "{after}");
}

#[test]
fn no_connection_is_lost_under_churn() {
    let Some(cluster) = Cluster::start() else { return };
    let network = &cluster.network;
    let ips = cluster.create_service("web", json!({}));
    let stable = endpoint(network.pod(1));
    cluster.set_endpoints("web", vec![stable.clone(), endpoint(network.pod(2))]);
    eventually("the pods answer", || ips.iter().all(|ip| by(network.pod(4), *ip, 80).is_some()));
    let others =
        [endpoint(network.pod(2)), endpoint(network.pod(3)), endpoint(network.remote_pod(1))];
    let api = Arc::clone(&cluster.api);
    let churn = network.node.namespace().try_clone().unwrap();
    let churn = std::thread::spawn(move || {
        churn.run(|| {
            let api = api.lock().unwrap();
            let start = Instant::now();
            let mut changes = 0;
            while start.elapsed() < Duration::from_secs(5) {
                let endpoints = [std::slice::from_ref(&stable), &others[..changes % 4]].concat();
                set_endpoints(&api, "web", &endpoints, "TCP");
                changes += 1;
            }
            changes
        })
    });
    let mut asked = 0;
    while !churn.is_finished() {
        for ip in &ips {
            let outcome = network.pod(4).tcp(None, SocketAddr::new(*ip, 80));
            assert!(outcome.answered_by().is_some(), "{outcome:?} after {asked} connections");
            asked += 1;
        }
    }
    let changes = churn.join().unwrap().unwrap();
    assert!(changes > 20 && asked > 200, "{changes} changes, {asked} connections");
    let healthz = http(&network.node, 10256, "/healthz").unwrap();
    assert!(healthz.contains(" 200 "), "{healthz}");
}

#[test]
fn a_server_of_a_real_cluster_knows_all_its_nodes() {
    let Some(cluster) = Cluster::start() else { return };
    let node = &cluster.network.node;
    cluster.create_service("web", json!({"sessionAffinity": "ClientIP"}));
    let (here, there) =
        (endpoint(cluster.network.pod(1)), endpoint(&cluster.network.remote_pods[0]));
    cluster.set_endpoints("web", vec![here, there]);
    let (kubeconfig, api) = cluster.api(|api| {
        let labels = json!({"topology.kubernetes.io/zone": "b"});
        api.create_node("node-b", labels, json!({}), json!({}));
        let path = api.kubeconfig_path();
        let socket = path.with_file_name("kpng.sock");
        (format!("--kubeconfig={}", path.display()), format!("unix://{}", socket.display()))
    });
    let quiet = ["--healthz-bind-address=", "--metrics-bind-address="];
    let listen = ["kube", &kubeconfig, "to-api", "--listen", &api];
    let server = Kpng::start(node, &[&listen[..], &quiet].concat());
    eventually("the server has everything", || server.log().contains("the state is complete"));
    let ask = |arguments: &[&str]| run(node, &[&[env!("CARGO_BIN_EXE_kpng")], arguments].concat());

    let seen = ask(&["watch", "local", "--once", "--json", "--node-name=node-b", "--api", &api]);
    assert!(seen.contains(r#""path":"node-b""#) && seen.contains(r#""Zone":"b""#), "{seen}");
    let file = |source: &[&str]| ask(&[source, &["to-file", "--once", "-o/dev/stdout"]].concat());
    let expected = file(&["kube", &kubeconfig]);
    for part in ["node-a", "node-b", "web", "timeoutseconds: 10800"] {
        assert!(expected.contains(part), "{part} is not in\n{expected}");
    }
    assert_eq!(file(&["api", "--api", &api]), expected);
}
