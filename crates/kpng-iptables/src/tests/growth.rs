//! The number of rules that a first packet meets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kpng_core::model::{
    Endpoint, EndpointSlice, Family, NamespacedName, Protocol, Service, ServicePort, SlicePort,
    TargetPort,
};
use kpng_core::plan::{NodeFacts, Packet, Planner, PodDetection};
use kpng_core::store::{Batch, Kind, Store};

use super::kernel;
use super::packets;

fn address(n: u32, pods: bool, family: Family) -> IpAddr {
    match (family, pods) {
        (Family::V4, false) => std::net::Ipv4Addr::from(0x0a60_0001 + n).into(),
        (Family::V4, true) => std::net::Ipv4Addr::from(0x0af4_0001 + n).into(),
        (Family::V6, false) => std::net::Ipv6Addr::from((0xfd00_0096 << 96) + u128::from(n)).into(),
        (Family::V6, true) => std::net::Ipv6Addr::from((0xfd00_0244 << 96) + u128::from(n)).into(),
    }
}

/// A cluster of this many services with two endpoints each, in both families.
fn cluster(services: u32) -> Planner {
    let (mut writer, store) = Store::new();
    let mut batch = Batch::new();
    for n in 0..services {
        let key = NamespacedName::new("default", format!("service-{n}"));
        let port = ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: (n % 4 == 0).then(|| u16::try_from(30_000 + n / 4).unwrap()),
            target_port: TargetPort::Unset,
        };
        // Spread over a /16, as the allocator does it.
        let ip = |family| address(n.wrapping_mul(40_503) % 65_536, false, family);
        let cluster_ips = Family::ALL.map(ip).to_vec();
        let service = Service { cluster_ips, ports: vec![port], ..Service::default() };
        batch.set_service(key.clone(), service);
        for family in Family::ALL {
            let endpoints = [2 * n, 2 * n + 1].map(|n| Endpoint::at(address(n, true, family)));
            let port = SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
            let slice = EndpointSlice { endpoints: endpoints.to_vec(), ports: vec![port] };
            let name = NamespacedName::new("default", format!("slice-{n}-{}", family.name()));
            batch.set_slice(name, key.name.clone(), slice);
        }
    }
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    writer.apply(batch);
    let facts = NodeFacts {
        pods: PodDetection::Cidrs(
            ["10.244.0.0/16", "fd00:244::/32"].map(|n| n.parse().unwrap()).to_vec(),
        ),
        node_port_addresses: ["192.168.0.2", "2001:db8::1"].map(|n| n.parse().unwrap()).into(),
        ..NodeFacts::default()
    };
    let mut planner = Planner::new("node-a", facts);
    planner.update(&store.reader().try_next().expect("the store is synced"));
    planner
}

/// The most rules that a first packet to any of a hundred of the services' cluster IPs and node ports meets.
fn most_rules(services: u32, family: Family) -> usize {
    let planner = cluster(services);
    let kernel = packets::kernel(planner.plan(), family);
    let node = if family == Family::V4 { "192.168.0.2" } else { "2001:db8::1" };
    let node: IpAddr = node.parse().unwrap();
    let local = BTreeSet::from([node]);
    let mut most = 0;
    for n in (0..services).step_by(services as usize / 100) {
        let cluster_ip = address(n.wrapping_mul(40_503) % 65_536, false, family);
        let node_port = (node, u16::try_from(30_000 + n / 4).unwrap());
        for (destination, port) in [(cluster_ip, 80), node_port] {
            let packet = Packet {
                source: address(3 * services, true, family),
                interface: Some("veth"),
                from_node: false,
                destination,
                protocol: Protocol::Tcp,
                port,
            };
            let (fates, met) = kernel.trace(&kernel::Packet::new(&packet, 0), &local);
            assert_eq!(fates.len(), 2, "two endpoints");
            most = most.max(met);
        }
    }
    most
}

#[test]
fn the_way_grows_with_the_logarithm_of_the_number_of_services() {
    for family in Family::ALL {
        let [few, more, many] = [100, 1_000, 10_000].map(|n| most_rules(n, family));
        println!("{}: {few}, {more}, {many} rules", family.name());
        // Sixteen rules for a factor of 16 are less than 14 for a factor of ten.
        assert!(few < 60 && more <= few + 20 && many <= more + 20, "{few}, {more}, {many}");
    }
}
