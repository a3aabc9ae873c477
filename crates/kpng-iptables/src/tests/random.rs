//! Random states of a cluster, written in the language of fixtures, and the way between them.

use std::collections::BTreeSet;

use kpng_core::model::{Family, Protocol};
use kpng_core::plan::Packet;
use kpng_testkit::conformance::plan_of;
use kpng_testkit::fixture::address;
use kpng_testkit::random::cluster;
use proptest::collection::vec;
use proptest::prelude::*;

use super::incremental::Node;
use super::kernel::{self, Fate, Kernel};
use super::packets;
use crate::text::inputs;

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_clusters_are_as_planned(cluster in cluster()) {
        let planner = plan_of(&cluster);
        for family in Family::ALL {
            packets::check(&packets::kernel(planner.plan(), family), planner.plan(), &cluster);
        }
    }

    #[test]
    fn from_any_state_to_any_other(clusters in vec(crowd(), 5)) {
        let planners: Vec<_> = clusters.iter().map(|cluster| plan_of(cluster)).collect();
        for family in Family::ALL {
            let mut node = Node::new(planners[0].plan(), family);
            for pair in planners.windows(2) {
                // The smallest pieces: each has to be right by itself.
                for input in inputs(&node.change(pair[0].plan(), pair[1].plan()), 1) {
                    node.kernel.restore(&input);
                    check_steady(&node.kernel);
                }
                prop_assert_eq!(&node.kernel, &packets::kernel(pair[1].plan(), family));
                // And as a process does it that knows only what the kernel holds.
                let mut restarted = Node::restarted(node.kernel.clone());
                for input in inputs(&restarted.take_over(pair[0].plan()), 1) {
                    restarted.kernel.restore(&input);
                    check_steady(&restarted.kernel);
                }
                prop_assert_eq!(&restarted.kernel, &packets::kernel(pair[0].plan(), family));
            }
        }
    }
}

/// A service that is the same in all states, between others that come and go.
fn crowd() -> impl Strategy<Value = String> {
    let others = vec((3_u8..250, 1_u16..4), 0..40);
    (cluster(), others).prop_map(|(cluster, others)| {
        let steady = "service z/steady cluster=cluster.77 port=p:80 created=0
                      slice z/steady p=8080\nremote2\n";
        let others = others.iter().filter(|(ip, _)| *ip != 77);
        let other = |(ip, port): &(u8, u16)| {
            format!("service z/s{ip}-{port} cluster=cluster.{ip} port=p:{port}\n")
        };
        format!("{cluster}{steady}{}", others.map(other).collect::<String>())
    })
}

fn check_steady(kernel: &Kernel) {
    let address = |name| address(name, kernel.family());
    let packet = Packet {
        source: address("pod3"),
        interface: Some("veth-pod3"),
        from_node: false,
        destination: address("cluster.77"),
        protocol: Protocol::Tcp,
        port: 80,
    };
    let (fates, _) = kernel.trace(&kernel::Packet::new(&packet, 0), &BTreeSet::new());
    let to = |fate: &Fate| matches!(fate, Fate::Forward { target, .. } if target.address == address("remote2"));
    assert!(fates.len() == 1 && fates.iter().all(to), "{fates:?}");
}
