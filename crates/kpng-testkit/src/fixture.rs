//! A terse language for cluster states, so that a test case shows what matters and nothing else.
//!
//! Every name stands for an address in both families, so each case is two:
//!
//! ```text
//! node zone=a
//! service default/web cluster=cluster.41 lb=lb.1 port=http:80:3001 etp=Local ranges=client-net
//! slice default/web http=8080
//!   pod1 zone=a hint=a
//!   remote1 zone=b hint=b terminating
//! ```
//!
//! Pods are those of the virtual network (`crate::network`): `podN` on this node, `remoteN` on
//! another. A port is `name:port[/PROTOCOL][:nodePort]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kpng_core::model::{
    Conditions, Endpoint, EndpointSlice, Family, LoadBalancerIp, NamespacedName, Node, Protocol,
    Service, ServicePort, SlicePort, TargetPort, TrafficPolicy,
};
use kpng_core::plan::{NodeFacts, PodDetection};
use kpng_core::store::{Batch, Kind, Store};

use crate::network::addresses as net;

/// The node that all cases are about.
pub const NODE: &str = "node-a";

/// A state of the cluster, and what the node is told.
#[derive(Debug)]
pub struct Fixture {
    /// Everything in it, synced.
    pub store: Store,
    /// The node's facts: pods are told by their addresses, node ports are on the primary addresses,
    /// service ranges are known, unless the case says otherwise.
    pub facts: NodeFacts,
}

/// Reads a state.
///
/// # Panics
/// When the text makes no sense: it is part of a test.
pub fn fixture(text: &str) -> Fixture {
    let mut reader = Reader { batch: Batch::new(), facts: facts(), slices: 0, open: None };
    let mut node = Node { internal_ips: primary_ips(), ..Node::default() };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        match words.next().expect("the line is not empty") {
            "node" => words.for_each(|word| reader.node(&mut node, word)),
            "service" => reader.service(words),
            "slice" => reader.slice(words),
            endpoint => reader.endpoint(endpoint, words),
        }
    }
    reader.close();
    let mut batch = reader.batch;
    batch.set_node(NODE, node);
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    let (mut writer, store) = Store::new();
    writer.apply(batch);
    Fixture { store, facts: reader.facts }
}

/// The address that a name stands for.
///
/// # Panics
/// When there is no such name.
pub fn address(name: &str, family: Family) -> IpAddr {
    let (kind, number) = match name.split_once('.') {
        Some((kind, number)) => (kind, number),
        None => name.split_at(name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len())),
    };
    let number: u8 = if number.is_empty() { 0 } else { number.parse().expect("a small number") };
    let wide = u16::from(number);
    let (v4, v6): (Ipv4Addr, Ipv6Addr) = match kind {
        "pod" => ([10, 180, 0, number].into(), [0xfd00, 0x180, 0, 0, 0, 0, 0, wide].into()),
        "remote" => ([10, 180, 1, number].into(), [0xfd00, 0x180, 1, 0, 0, 0, 0, wide].into()),
        "cluster" => ([172, 30, 0, number].into(), [0xfd00, 0x172, 0x30, 0, 0, 0, 0, wide].into()),
        "lb" => ([198, 51, 100, number].into(), [0x2001, 0xdb8, 0x100, 0, 0, 0, 0, wide].into()),
        "ext" => ([198, 18, 0, number].into(), [0x2001, 0xdb8, 0x18, 0, 0, 0, 0, wide].into()),
        "node" => (net::NODE_V4, net::NODE_V6),
        "node-alt" => (net::NODE_ALT_V4, net::NODE_ALT_V6),
        "client" => (net::CLIENT_V4, net::CLIENT_V6),
        "blocked" => (net::BLOCKED_V4, net::BLOCKED_V6),
        "localhost" => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        _ => panic!("nothing is called {name:?}"),
    };
    if family == Family::V4 { v4.into() } else { v6.into() }
}

fn both(name: &str) -> [IpAddr; 2] {
    Family::ALL.map(|family| address(name, family))
}

fn primary_ips() -> Vec<IpAddr> {
    both("node").to_vec()
}

fn facts() -> NodeFacts {
    let parse = |cidr: &str| cidr.parse().expect("the constants are CIDRs");
    NodeFacts {
        pods: PodDetection::Cidrs(vec![parse(net::POD_NETWORK_V4), parse(net::POD_NETWORK_V6)]),
        primary_ips: primary_ips(),
        node_port_addresses: primary_ips().into_iter().collect(),
        localhost_node_ports: false,
        masquerade_all: false,
        service_cidrs: vec![parse("172.30.0.0/16"), parse("fd00:172:30::/112")],
    }
}

/// A slice per family, while its endpoints are being read.
struct OpenSlice {
    service: NamespacedName,
    slices: [EndpointSlice; 2],
}

struct Reader {
    batch: Batch,
    facts: NodeFacts,
    slices: usize,
    open: Option<OpenSlice>,
}

impl Reader {
    fn node(&mut self, node: &mut Node, word: &str) {
        match key_value(word) {
            ("zone", zone) => node.zone = (!zone.is_empty()).then(|| zone.into()),
            ("pods", "none") => self.facts.pods = PodDetection::None,
            ("pods", "interface") => {
                self.facts.pods = PodDetection::InterfacePrefix(net::POD_INTERFACE_PREFIX.into());
            }
            ("nodeports", "all") => {
                self.facts.node_port_addresses.extend(both("node-alt"));
            }
            ("localhost", _) => self.facts.localhost_node_ports = true,
            ("masquerade-all", _) => self.facts.masquerade_all = true,
            _ => panic!("a node has no {word:?}"),
        }
    }

    fn service<'a>(&mut self, mut words: impl Iterator<Item = &'a str>) {
        self.close();
        let key = name(words.next().expect("a service has a name"));
        let mut service = Service::default();
        for word in words {
            service_field(&mut service, word);
        }
        self.batch.set_service(key, service);
    }

    fn slice<'a>(&mut self, mut words: impl Iterator<Item = &'a str>) {
        self.close();
        let service = name(words.next().expect("a slice has a service"));
        let mut slices = [EndpointSlice::default(), EndpointSlice::default()];
        for word in words {
            let (name, port) = key_value(word);
            let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
            let port = SlicePort {
                name: name.into(),
                protocol: Protocol::from_name(protocol).expect("a protocol"),
                port: port.parse().expect("a port"),
            };
            slices.iter_mut().for_each(|slice| slice.ports.push(port.clone()));
        }
        self.open = Some(OpenSlice { service, slices });
    }

    fn endpoint<'a>(&mut self, pod: &str, words: impl Iterator<Item = &'a str> + Clone) {
        let open = self.open.as_mut().expect("an endpoint is in a slice");
        for (slice, family) in open.slices.iter_mut().zip(Family::ALL) {
            if words.clone().any(|word| word == "v4" && family == Family::V6)
                || words.clone().any(|word| word == "v6" && family == Family::V4)
            {
                continue;
            }
            let mut endpoint = Endpoint::at(address(pod, family));
            endpoint.node = Some(if pod.starts_with("pod") { NODE } else { "node-b" }.into());
            endpoint.pod = Some(pod.into());
            words.clone().for_each(|word| endpoint_field(&mut endpoint, word));
            slice.endpoints.push(endpoint);
        }
    }

    fn close(&mut self) {
        let Some(OpenSlice { service, slices }) = self.open.take() else { return };
        for slice in slices {
            self.slices += 1;
            let name = format!("{}-{}", service.name, self.slices);
            let key = NamespacedName::new(Arc::clone(&service.namespace), name);
            self.batch.set_slice(key, Arc::clone(&service.name), slice);
        }
    }
}

fn service_field(service: &mut Service, word: &str) {
    let (key, value) = key_value(word);
    let addresses = || value.split(',').flat_map(both);
    let policy = || match value {
        "Local" => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    };
    let lb = |proxied| addresses().map(move |ip| LoadBalancerIp { ip, proxied });
    match key {
        "cluster" => service.cluster_ips = addresses().collect(),
        "cluster4" => service.cluster_ips = vec![address(value, Family::V4)],
        "ext" => service.external_ips = addresses().collect(),
        "lb" => service.load_balancer_ips.extend(lb(false)),
        "proxy-lb" => service.load_balancer_ips.extend(lb(true)),
        "port" => service.ports.push(port(value)),
        "itp" => service.internal_traffic_policy = policy(),
        "etp" => service.external_traffic_policy = policy(),
        "affinity" => {
            service.session_affinity = Some(Duration::from_secs(value.parse().expect("seconds")));
        }
        "health" => service.health_check_node_port = Some(value.parse().expect("a port")),
        "created" => service.created = Some(value.parse().expect("seconds")),
        "ranges" => {
            service.load_balancer_source_ranges = Some(value.split(',').flat_map(net_of).collect())
        }
        _ => panic!("a service has no {word:?}"),
    }
}

/// `name:port[/PROTOCOL][:nodePort]`
fn port(text: &str) -> ServicePort {
    let mut parts = text.split(':');
    let name = parts.next().expect("split gives something");
    let port = parts.next().expect("a port has a number");
    let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
    ServicePort {
        name: name.into(),
        protocol: Protocol::from_name(protocol).expect("a protocol"),
        port: port.parse().expect("a port"),
        node_port: parts.next().map(|port| port.parse().expect("a port")),
        target_port: TargetPort::Unset,
    }
}

fn net_of(name: &str) -> Vec<IpNet> {
    let nets: &[&str] = match name {
        "client-net" => &["203.0.113.0/25", "2001:db8:203::/64"],
        "client-net4" => &["203.0.113.0/25"],
        "node-net" => &["192.168.0.0/24", "2001:db8::/64"],
        "nobody" => &[],
        _ => panic!("no network is called {name:?}"),
    };
    nets.iter().map(|net| net.parse().expect("the constants are CIDRs")).collect()
}

fn endpoint_field(endpoint: &mut Endpoint, word: &str) {
    let list = |value: &str| -> Box<[Arc<str>]> { value.split(',').map(Arc::from).collect() };
    match key_value(word) {
        ("zone", zone) => endpoint.zone = Some(zone.into()),
        ("hint", zones) => endpoint.zone_hints = list(zones),
        ("nodehint", nodes) => endpoint.node_hints = list(nodes),
        ("notready", _) => {
            endpoint.conditions = Conditions { ready: false, serving: false, terminating: false };
        }
        ("serving-terminating", _) => {
            endpoint.conditions = Conditions { ready: false, serving: true, terminating: true };
        }
        ("terminating", _) => {
            endpoint.conditions = Conditions { ready: false, serving: false, terminating: true };
        }
        ("v4" | "v6", _) => {}
        _ => panic!("an endpoint has no {word:?}"),
    }
}

fn key_value(word: &str) -> (&str, &str) {
    word.split_once('=').unwrap_or((word, ""))
}

fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    NamespacedName::new(namespace, name)
}
