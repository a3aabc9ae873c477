//! Random states of a cluster, written in the language of fixtures, and the way between them.

use std::collections::BTreeSet;

use kpng_core::model::{Family, Protocol};
use kpng_core::plan::Packet;
use kpng_testkit::conformance::plan_of;
use kpng_testkit::fixture::address;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::incremental::Node;
use super::kernel::{self, Fate, Kernel};
use super::packets;
use crate::text::inputs;

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
fn cluster() -> impl Strategy<Value = String> {
    (node(), vec(service(), 0..5)).prop_map(|(node, services)| node + &services.concat())
}

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
