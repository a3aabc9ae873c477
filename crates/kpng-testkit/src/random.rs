//! Random states of a cluster, in the language of fixtures: few names, so that they meet.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

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
pub fn cluster() -> impl Strategy<Value = String> {
    (node(), vec(service(), 0..5)).prop_map(|(node, services)| node + &services.concat())
}

/// So many states, and with each so many packets of those that matter, `FROM -> TO:PORT/PROTOCOL`. The
/// environment's `PROPTEST_RNG_SEED` makes them the same each time.
///
/// # Panics
/// Never: nothing is filtered out.
pub fn with_packets(states: usize, packets: usize) -> Vec<(String, Vec<String>)> {
    let packet = (
        select(&["pod1", "pod2", "remote1", "client", "blocked", "node"][..]),
        select(&["cluster.1", "cluster.2", "lb.1", "lb.2", "ext.1", "node", "node-alt"][..]),
        select(&["80", "81", "30001", "30002"][..]),
        select(&["TCP", "TCP", "UDP"][..]),
    );
    let packet =
        packet.prop_map(|(from, to, port, protocol)| format!("{from} -> {to}:{port}/{protocol}"));
    let strategy = (cluster(), vec(packet, packets));
    let mut runner = TestRunner::default();
    let mut next = || strategy.new_tree(&mut runner).expect("nothing is filtered out").current();
    (0..states).map(|_| next()).collect()
}
