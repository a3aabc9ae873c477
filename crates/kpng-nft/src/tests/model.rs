//! Random states of a cluster, written in the language of fixtures, and every packet that matters.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{Packet, Plan, Verdict};
use kpng_testkit::conformance::plan_of;
use kpng_testkit::fixture::address;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::tracer::{self, Fate, Tracer};
use crate::Config;
use crate::dry_run::ruleset;

const SOURCES: [&str; 8] =
    ["pod1", "pod2", "pod3", "remote1", "client", "blocked", "node", "node-alt"];
const DESTINATIONS: [&str; 11] = [
    "cluster.1",
    "cluster.2",
    "cluster.50",
    "lb.1",
    "lb.2",
    "ext.1",
    "node",
    "node-alt",
    "pod1",
    "localhost",
    "client",
];
const PORTS: [u16; 6] = [80, 81, 8080, 30_001, 30_002, 30_003];
/// Bits of others, which stay.
const FOREIGN_MARK: u32 = 0x10;

/// What happens to every packet is what the plan decides.
pub(super) fn check(plan: &Plan, what: &str) {
    let config = Config::default();
    for family in Family::ALL {
        let local: BTreeSet<IpAddr> =
            ["node", "node-alt", "localhost"].map(|name| address(name, family)).into();
        let mut tracer = Tracer::new(ruleset(plan, &config, family), local, config.mark());
        for packet in packets(family) {
            let expected = expected(plan, &packet);
            let found = tracer.trace(&tracer::Packet::new(&packet, FOREIGN_MARK));
            assert_eq!(found, expected, "{what}: {packet:?}");
        }
    }
}

fn packets(family: Family) -> impl Iterator<Item = Packet<'static>> {
    let protocols = [Protocol::Tcp, Protocol::Udp];
    let all = SOURCES.iter().flat_map(move |source| {
        DESTINATIONS.iter().flat_map(move |destination| {
            protocols.into_iter().flat_map(move |protocol| {
                PORTS.iter().map(move |port| (*source, *destination, protocol, *port))
            })
        })
    });
    all.filter_map(move |(source, destination, protocol, port)| {
        let from_node = source.starts_with("node");
        // From elsewhere, the kernel or our own rule drops packets to it.
        if destination == "localhost" && !(from_node && family == Family::V4) {
            return None;
        }
        let interface = match source {
            source if source.starts_with("pod") => "veth-pod",
            _ => "eth0",
        };
        Some(Packet {
            source: address(source, family),
            interface: (!from_node).then_some(interface),
            from_node,
            destination: address(destination, family),
            protocol,
            port,
        })
    })
}

fn expected(plan: &Plan, packet: &Packet<'_>) -> BTreeSet<Fate> {
    let verdict = plan.decide(packet);
    match verdict {
        Verdict::Pass => [Fate::Pass].into(),
        Verdict::Reject => [Fate::Reject].into(),
        Verdict::Drop => [Fate::Drop].into(),
        Verdict::Forward { pool, .. } => {
            let fate = |target: &kpng_core::plan::Target| Fate::Forward {
                target: *target,
                masquerade: verdict.masquerades(packet, *target),
            };
            pool.targets.iter().map(fate).collect()
        }
    }
}

fn node() -> impl Strategy<Value = String> {
    let pods = select(&["", "", "pods=none", "pods=interface"][..]);
    let rest =
        subsequence(vec!["zone=a", "nodeports=all", "localhost=yes", "masquerade-all"], 0..4);
    (pods, rest).prop_map(|(pods, rest)| format!("node {pods} {}\n", rest.join(" ")))
}

fn endpoint() -> impl Strategy<Value = String> {
    let name = select(&["pod1", "pod2", "pod3", "remote1", "remote2"][..]);
    let state = select(&["", "", "", "notready", "serving-terminating", "terminating"][..]);
    let hint = select(&["", "", "hint=a", "hint=b", "hint=a nodehint=node-a"][..]);
    let family = select(&["", "", "", "v4", "v6"][..]);
    (name, state, hint, family)
        .prop_map(|(name, state, hint, family)| format!("  {name} {state} {hint} {family}\n"))
}

fn service() -> impl Strategy<Value = String> {
    let addresses = (
        select(&["cluster=cluster.1", "cluster=cluster.2", "cluster4=cluster.1", ""][..]),
        // The node's own address can be an external address too.
        select(&["", "ext=ext.1", "ext=node", "ext=ext.1,node-alt"][..]),
        select(&["", "lb=lb.1", "lb=lb.1,lb.2", "proxy-lb=lb.2"][..]),
    );
    let port = (
        select(&["80", "81", "80/UDP", "30001", "30002"][..]),
        select(&["", ":30001", ":30002"][..]),
    );
    let options = (
        select(&["", "itp=Local"][..]),
        select(&["", "etp=Local"][..]),
        select(&["", "", "affinity=60"][..]),
        select(
            &[
                "",
                "ranges=client-net",
                "ranges=client-net,node-net",
                "ranges=client-net4",
                "ranges=nobody",
            ][..],
        ),
        select(&["", "created=1", "created=2"][..]),
    );
    let slices = vec(
        (
            select(&["a=8080", "b=8081", "a=8080 b=8081/UDP", "a=80/UDP b=81"][..]),
            vec(endpoint(), 0..4),
        ),
        0..3,
    );
    (select(&["t/a", "t/b", "t/c", "u/a"][..]), addresses, vec(port, 1..3), options, slices).prop_map(
        |(name, (cluster, external, lb), ports, (itp, etp, affinity, ranges, created), slices)| {
            let ports: Vec<_> = ["a", "b"]
                .iter()
                .zip(ports)
                .map(|(name, (port, node_port))| format!("port={name}:{port}{node_port}"))
                .collect();
            let mut text = format!(
                "service {name} {cluster} {external} {lb} {} {itp} {etp} {affinity} {ranges} {created}\n",
                ports.join(" ")
            );
            for (ports, endpoints) in slices {
                text += &format!("slice {name} {ports}\n{}", endpoints.concat());
            }
            text
        },
    )
}

/// A state of the cluster in the language of fixtures.
pub(super) fn cluster() -> impl Strategy<Value = String> {
    (node(), vec(service(), 0..5)).prop_map(|(node, services)| node + &services.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_clusters_are_traced_as_planned(cluster in cluster()) {
        check(plan_of(&cluster).plan(), &cluster);
    }
}
