//! What happens to every packet is what the plan decides.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{Packet, Plan, Verdict};
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{plan, plan_of};
use kpng_testkit::fixture::address;

use super::kernel::{self, Fate, Kernel};
use crate::Config;
use crate::dry_run::ruleset_text;

const SOURCES: [&str; 8] =
    ["pod1", "pod2", "pod3", "remote1", "client", "blocked", "node", "node-alt"];
const DESTINATIONS: [&str; 12] = [
    "cluster.1",
    "cluster.2",
    "cluster.50",
    "lb.1",
    "lb.2",
    "ext.1",
    "ext.2",
    "node",
    "node-alt",
    "pod1",
    "localhost",
    "client",
];
const PORTS: [u16; 8] = [53, 80, 81, 8080, 30_001, 30_002, 30_003, 30_053];
/// Bits of others, which stay.
const FOREIGN_MARK: u32 = 0x10;

/// The kernel after it has read the text of a whole plan.
pub(super) fn kernel(plan: &Plan, family: Family) -> Kernel {
    let text = ruleset_text(plan, &Config::default());
    let (v4, v6) = text.split_once("# ip6tables-restore").expect("both families are there");
    let mut kernel = Kernel::new(family);
    kernel.restore(if family == Family::V4 { v4 } else { v6.split_once('\n').unwrap().1 });
    kernel
}

/// Sends every packet that matters through the kernel.
pub(super) fn check(kernel: &Kernel, plan: &Plan, what: &str) {
    let family = kernel.family();
    let local: BTreeSet<IpAddr> =
        ["node", "node-alt", "localhost"].map(|name| address(name, family)).into();
    for packet in packets(family) {
        let verdict = plan.decide(&packet);
        let expected: BTreeSet<Fate> = match &verdict {
            Verdict::Pass => [Fate::Pass].into(),
            Verdict::Reject => [Fate::Reject].into(),
            Verdict::Drop => [Fate::Drop].into(),
            Verdict::Forward { pool, .. } => {
                let masquerade = |target| verdict.masquerades(&packet, target);
                let fate = |target| Fate::Forward { target, masquerade: masquerade(target) };
                pool.targets.iter().copied().map(fate).collect()
            }
        };
        let (found, _) = kernel.trace(&kernel::Packet::new(&packet, FOREIGN_MARK), &local);
        assert_eq!(found, expected, "{what}: {packet:?}");
    }
}

fn packets(family: Family) -> impl Iterator<Item = Packet<'static>> {
    let all = SOURCES.into_iter().flat_map(move |source| {
        DESTINATIONS.into_iter().flat_map(move |destination| {
            Protocol::ALL.into_iter().flat_map(move |protocol| {
                PORTS.into_iter().map(move |port| (source, destination, protocol, port))
            })
        })
    });
    let packet = move |(source, destination, protocol, port): (&'static str, _, _, _)| {
        let from_node = source.starts_with("node");
        let interface = match source {
            "pod1" => "veth-pod1",
            "pod2" => "veth-pod2",
            "pod3" => "veth-pod3",
            _ => "eth0",
        };
        Packet {
            source: address(source, family),
            interface: (!from_node).then_some(interface),
            from_node,
            destination: address(destination, family),
            protocol,
            port,
        }
    };
    // Others' packets to 127.0.0.1 do not get here, or are dropped.
    all.map(packet).filter(|packet| packet.interface.is_none() || !packet.destination.is_loopback())
}

#[test]
fn all_cases() {
    for case in CASES {
        let planner = plan(case);
        for family in Family::ALL {
            check(&kernel(planner.plan(), family), planner.plan(), case.name);
        }
    }
}

#[test]
fn all_cases_at_once() {
    let mut text = String::new();
    for (number, case) in
        CASES.iter().enumerate().filter(|(_, case)| !case.cluster.contains("node "))
    {
        text.push_str(&case.cluster.replace(" t/", &format!(" t{number}/")));
    }
    let planner = plan_of(&text);
    for family in Family::ALL {
        let kernel = kernel(planner.plan(), family);
        check(&kernel, planner.plan(), "all");
        let ours = |key: &&&(crate::names::Table, String)| key.1.starts_with("KPNG-");
        let unused: Vec<_> = kernel.unreferenced().into_iter().collect();
        let unused: Vec<_> = unused.iter().filter(ours).map(|key| &*key.1).collect();
        // Helpers for whom no service asks, and nothing else.
        assert!(unused.iter().all(|name| name.starts_with("KPNG-MARK-")), "{unused:?}");
    }
}
