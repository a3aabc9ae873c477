//! Random states of a cluster, written in the language of fixtures, and every packet that matters.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{Packet, Plan, Verdict};
use kpng_testkit::conformance::plan_of;
use kpng_testkit::fixture::address;
use kpng_testkit::random::cluster;
use proptest::prelude::*;

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

/// Ports of one number, which a file may have, stick to the endpoints of their own.
#[test]
fn ports_of_the_same_number_have_affinity_of_their_own() {
    let cluster = "node
                   service t/a cluster=cluster.1 port=a:80 port=b:80:30001 affinity=60
                   slice t/a a=8080 b=8081
                   pod1";
    check(plan_of(cluster).plan(), cluster);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_clusters_are_traced_as_planned(cluster in cluster()) {
        check(plan_of(&cluster).plan(), &cluster);
    }
}
