//! A cluster of any size, as a source would write it into a store.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use kpng_core::model::{
    Endpoint, EndpointSlice, NamespacedName, Node, Protocol, Service, ServicePort, SlicePort,
    TargetPort,
};
use kpng_core::plan::{NodeFacts, PodDetection};
use kpng_core::store::{Batch, Kind, Store, Writer};

use super::Size;

/// The node that is planned for.
pub(crate) const NODE: &str = "node-0";

/// Objects in one write, as a source reads them in pages.
const PAGE: usize = 500;
const NODES: usize = 500;
/// How many endpoints a service can have beyond those of its size.
pub(crate) const MORE: usize = 64;

/// A cluster, and who writes it.
pub(crate) struct Cluster {
    size: Size,
    writer: Writer,
    port_name: Arc<str>,
    nodes: Vec<Arc<str>>,
}

impl Cluster {
    /// A cluster of this size in a synced store.
    pub(crate) fn new(size: Size) -> (Self, Store) {
        let (writer, store) = Store::new();
        let nodes = (0..NODES).map(|node| format!("node-{node}").into()).collect();
        let mut cluster = Self { size, writer, port_name: "http".into(), nodes };
        for from in (0..size.services).step_by(PAGE) {
            let mut batch = Batch::new();
            for n in from..size.services.min(from + PAGE) {
                batch.set_service(key(n), cluster.service(n));
                cluster.put_slice(&mut batch, n, size.endpoints, 0);
            }
            cluster.writer.apply(batch);
        }
        let mut batch = Batch::new();
        batch.set_node(NODE, Node::default());
        Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        cluster.writer.apply(batch);
        (cluster, store)
    }

    /// Writes the slice of service `n` with this many endpoints. The first one's address differs
    /// with `generation`.
    pub(crate) fn set_endpoints(&mut self, n: usize, count: usize, generation: usize) {
        let mut batch = Batch::new();
        self.put_slice(&mut batch, n, count, generation);
        self.writer.apply(batch);
    }

    /// Adds a service with endpoints.
    pub(crate) fn add_service(&mut self, n: usize) {
        let mut batch = Batch::new();
        batch.set_service(key(n), self.service(n));
        self.put_slice(&mut batch, n, self.size.endpoints, 0);
        self.writer.apply(batch);
    }

    /// Removes a service with its endpoints.
    pub(crate) fn remove_service(&mut self, n: usize) {
        let mut batch = Batch::new();
        batch.delete_service(key(n));
        batch.delete_slice(slice_key(n));
        self.writer.apply(batch);
    }

    fn service(&self, n: usize) -> Service {
        let port = ServicePort {
            name: Arc::clone(&self.port_name),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            target_port: TargetPort::Number(8080),
        };
        let created = Some(1_700_000_000 + i64::try_from(n).unwrap_or_default());
        let cluster_ips = vec![numbered([10, 64, 0, 1], n)];
        Service { cluster_ips, ports: vec![port], created, ..Service::default() }
    }

    fn put_slice(&self, batch: &mut Batch, n: usize, count: usize, generation: usize) {
        let first = n * self.size.endpoints;
        let endpoint = |index: usize| {
            let address = match (index, generation) {
                (0, generation @ 1..) => numbered([12, 0, 0, 1], generation),
                (index, _) if index >= self.size.endpoints => {
                    numbered([11, 0, 0, 1], n * MORE + index - self.size.endpoints)
                }
                (index, _) => numbered([10, 128, 0, 1], first + index),
            };
            let mut endpoint = Endpoint::at(address);
            endpoint.node = Some(Arc::clone(&self.nodes[(first + index) % NODES]));
            endpoint.pod = Some(format!("service-{n}-7d4b9c6f5-{index:05}").into());
            endpoint
        };
        let port =
            SlicePort { name: Arc::clone(&self.port_name), protocol: Protocol::Tcp, port: 8080 };
        let slice =
            EndpointSlice { endpoints: (0..count).map(endpoint).collect(), ports: vec![port] };
        batch.set_slice(slice_key(n), key(n).name, slice);
    }
}

/// The facts of the node.
pub(crate) fn facts() -> NodeFacts {
    let net = |text: &str| text.parse().expect("a CIDR");
    let node: IpAddr = Ipv4Addr::new(192, 168, 0, 1).into();
    NodeFacts {
        pods: PodDetection::Cidrs(vec![net("10.0.0.0/8")]),
        primary_ips: vec![node],
        node_port_addresses: [node].into(),
        service_cidrs: vec![net("10.64.0.0/12")],
        ..NodeFacts::default()
    }
}

fn key(n: usize) -> NamespacedName {
    NamespacedName::new(format!("namespace-{}", n / 100), format!("service-{n}"))
}

fn slice_key(n: usize) -> NamespacedName {
    NamespacedName::new(format!("namespace-{}", n / 100), format!("service-{n}-x7k2p"))
}

fn numbered(base: [u8; 4], n: usize) -> IpAddr {
    let n = u32::try_from(n).expect("a cluster has fewer addresses");
    Ipv4Addr::from_bits(u32::from_be_bytes(base) + n).into()
}
