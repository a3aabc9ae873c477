//! What a change costs beside few services and beside many, in a guest that has IPVS.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests too")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use kpng_core::Backend;
use kpng_core::model::{
    Endpoint, EndpointSlice, NamespacedName, Protocol, Service, ServicePort, SlicePort, TargetPort,
};
use kpng_core::plan::{NodeFacts, Planner};
use kpng_core::store::{Batch, Kind, Store};
use kpng_ipvs::{Config, Ipvs};
use kpng_linux::namespace::NetNs;
use kpng_linux::rtnetlink::Rtnetlink;
use kpng_testkit::guest::in_guest;

/// How long it takes at most; most of it is the first write.
const LIMIT: Duration = Duration::from_secs(300);

/// A cluster of many services, each with an address of its own. The endpoints of the last are `pods`.
fn large_cluster(services: u16, pods: &[u8]) -> Planner {
    let (mut writer, store) = Store::new();
    let mut batch = Batch::new();
    for number in 0..services {
        let key = NamespacedName::new("t", format!("s{number}"));
        let [high, low] = (number + 1).to_be_bytes();
        let service = Service {
            cluster_ips: vec![[172, 30, high, low].into()],
            ports: vec![ServicePort {
                name: "".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
                target_port: TargetPort::Unset,
            }],
            ..Service::default()
        };
        let pods = if number + 1 == services { pods } else { &[1, 2] };
        let at = |pod: &u8| Endpoint::at([10, 180, 0, *pod].into());
        let port = SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 };
        let slice = EndpointSlice { ports: vec![port], endpoints: pods.iter().map(at).collect() };
        batch.set_slice(key.clone(), Arc::clone(&key.name), slice);
        batch.set_service(key, service);
    }
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    writer.apply(batch);
    let mut planner = Planner::new("node", NodeFacts::default());
    planner.update(&store.reader().try_next().unwrap());
    planner
}

/// How many changes make a round. A round is short, so some are not disturbed by whoever else uses this
/// machine's processors.
const CHANGES: u32 = 10;

/// How many rounds there are, the ones beside few services between those beside many.
const ROUNDS: u32 = 150;

/// A backend in a network namespace of its own, with so many services.
struct Node {
    services: u16,
    namespace: NetNs,
    backend: Ipvs,
    plans: [Planner; 2],
    /// The shortest time for a change.
    best: Duration,
}

impl Node {
    fn new(services: u16) -> Self {
        let plans = [&[1, 2], &[1, 3]].map(|pods| large_cluster(services, pods));
        let namespace = NetNs::new().unwrap();
        let run = || {
            // Without an address the kernel takes every destination for a broadcast address.
            let mut rtnetlink = Rtnetlink::open().unwrap();
            let loopback = rtnetlink.link("lo").unwrap().index;
            rtnetlink.set_up(loopback).unwrap();
            let config = Config { graceful_timeout: Duration::ZERO, ..Config::default() };
            let mut backend = Ipvs::open(config).unwrap();
            let start = Instant::now();
            backend.sync(plans[0].plan(), None).unwrap();
            println!("{services} services: {:?} at first", start.elapsed());
            backend
        };
        let backend = namespace.run(run).unwrap();
        Self { services, namespace, backend, plans, best: Duration::MAX }
    }

    /// Changes an endpoint to and fro.
    fn round(&mut self) {
        let changed = [NamespacedName::new("t", format!("s{}", self.services - 1))];
        let start = Instant::now();
        for number in 1..=CHANGES {
            let planner = &self.plans[number as usize % 2];
            self.backend.sync(planner.plan(), Some(&changed)).unwrap();
        }
        self.best = self.best.min(start.elapsed() / CHANGES);
    }

    fn finish(mut self) -> Duration {
        let (services, best) = (self.services, self.best);
        let run = || {
            let start = Instant::now();
            assert!(!self.backend.disturbed().unwrap());
            println!("{services} services: {:?} to look for disturbances", start.elapsed());
            let start = Instant::now();
            let mut restarted = Ipvs::open(Config::default()).unwrap();
            restarted.sync(self.plans[0].plan(), None).unwrap();
            println!(
                "{services} services: {best:?} for a change, {:?} to restart",
                start.elapsed()
            );
        };
        self.namespace.run(run).unwrap();
        best
    }
}

#[test]
fn a_change_costs_the_same_beside_ten_times_as_many_services() {
    in_guest(LIMIT, || {
        let (mut few, mut many) = (Node::new(1_000), Node::new(10_000));
        for _ in 0..ROUNDS {
            few.round();
            many.round();
        }
        let (few, many) = (few.finish(), many.finish());
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        println!("ratio {ratio:.2}");
        assert!(ratio <= 1.5, "{few:?} beside 1,000 services, {many:?} beside 10,000");
    });
}
