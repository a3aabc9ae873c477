use expect_test::{Expect, expect};
use kpng_core::store::{Batch, Kind};
use kpng_linux::namespace::NetNs;

use super::*;

fn settings() -> NodeSettings {
    NodeSettings {
        pods: PodDetectionMode::None,
        node_port_addresses: NodePortAddresses::Primary,
        localhost_node_ports: false,
        masquerade_all: false,
        service_cidrs: Vec::new(),
        bind_addresses: Vec::new(),
    }
}

/// The interfaces of an ordinary node: `lo`, `eth0`, a second network, and a pod.
const ADDRESSES: &str = "
    lo 127.0.0.1/8 host
    lo ::1/128 host
    eth0 192.168.0.2/24
    eth0 2001:db8::1/64
    eth0 fe80::1/64 link
    eth1 10.0.7.2/16
    eth1 2001:db8:1::1/64 tentative
    veth-pod1 fe80::2/64 link
";

fn interfaces(towards_world: &str) -> Interfaces {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, net) = (words.next().unwrap(), words.next().unwrap());
        let (address, prefix_len) = net.split_once('/').unwrap();
        let state = words.next();
        InterfaceAddress {
            index: 1,
            name: name.to_owned(),
            address: address.parse().unwrap(),
            prefix_len: prefix_len.parse().unwrap(),
            scope: match state {
                Some("host") => 254,
                Some("link") => 253,
                _ => 0,
            },
            flags: if state == Some("tentative") { 0x40 } else { 0x80 },
        }
    };
    let lines = ADDRESSES.lines().map(str::trim).filter(|line| !line.is_empty());
    Interfaces { addresses: lines.map(address).collect(), towards_world: ips(towards_world) }
}

fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

fn cidrs(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|cidr| cidr.parse().unwrap()).collect()
}

fn node(internal_ips: &str) -> Node {
    let pod_cidrs = cidrs("10.180.0.0/24 fd00:180::/64");
    Node { internal_ips: ips(internal_ips), pod_cidrs, ..Node::default() }
}

fn check_addresses(
    settings: NodeSettings,
    node: Option<Node>,
    towards_world: &str,
    expected: Expect,
) {
    let facts = facts(&settings, node.as_ref(), &interfaces(towards_world));
    let node_ports = list(&facts.node_port_addresses);
    expected.assert_eq(&format!("{:?} node ports {node_ports}", facts.primary_ips));
}

#[test]
fn the_primary_addresses() {
    let world = "192.168.0.2 2001:db8::1";
    // Without a Node: towards the world.
    check_addresses(
        settings(),
        None,
        world,
        expect!["[192.168.0.2, 2001:db8::1] node ports 192.168.0.2,2001:db8::1"],
    );
    // The Node's, per family; an address that no interface has is none.
    let ours = Some(node("203.0.113.9 10.0.7.2 192.168.0.2"));
    check_addresses(
        settings(),
        ours.clone(),
        world,
        expect!["[10.0.7.2, 2001:db8::1] node ports 10.0.7.2,2001:db8::1"],
    );
    let elsewhere = Some(node("203.0.113.9"));
    check_addresses(
        settings(),
        elsewhere,
        world,
        expect!["[192.168.0.2, 2001:db8::1] node ports 192.168.0.2,2001:db8::1"],
    );
    // The operator's word counts most, where it says something.
    let told = |ip: &str| NodeSettings { bind_addresses: ips(ip), ..settings() };
    check_addresses(
        told("198.51.100.1"),
        ours.clone(),
        world,
        expect!["[198.51.100.1, 2001:db8::1] node ports 198.51.100.1,2001:db8::1"],
    );
    check_addresses(
        told("0.0.0.0"),
        ours,
        world,
        expect!["[10.0.7.2, 2001:db8::1] node ports 10.0.7.2,2001:db8::1"],
    );
    // A family that the node does not have.
    check_addresses(
        settings(),
        None,
        "192.168.0.2",
        expect!["[192.168.0.2] node ports 192.168.0.2"],
    );
    check_addresses(settings(), None, "", expect!["[] node ports none"]);
}

#[test]
fn the_node_port_addresses() {
    let world = "192.168.0.2 2001:db8::1";
    let on = |node_port_addresses| NodeSettings { node_port_addresses, ..settings() };
    let within = |text: &str| on(NodePortAddresses::Cidrs(cidrs(text)));
    check_addresses(
        on(NodePortAddresses::All),
        None,
        world,
        expect!["[192.168.0.2, 2001:db8::1] node ports 10.0.7.2,192.168.0.2,2001:db8::1"],
    );
    check_addresses(
        within("10.0.0.0/8"),
        None,
        world,
        expect!["[192.168.0.2, 2001:db8::1] node ports 10.0.7.2"],
    );
    check_addresses(
        within("192.168.0.0/24 2001:db8::/32"),
        None,
        world,
        expect!["[192.168.0.2, 2001:db8::1] node ports 192.168.0.2,2001:db8::1"],
    );
    check_addresses(
        within("127.0.0.0/8"),
        None,
        world,
        expect!["[192.168.0.2, 2001:db8::1] node ports none"],
    );
}

#[test]
fn the_detection_of_pods() {
    let detection = |pods, node: Option<&Node>| {
        facts(&NodeSettings { pods, ..settings() }, node, &Interfaces::default()).pods
    };
    let ours = node("192.168.0.2");
    let cluster = cidrs("10.0.0.0/8");
    assert_eq!(detection(PodDetectionMode::None, Some(&ours)), PodDetection::None);
    assert_eq!(
        detection(PodDetectionMode::ClusterCidr(cluster.clone()), Some(&ours)),
        PodDetection::Cidrs(cluster)
    );
    assert_eq!(
        detection(PodDetectionMode::NodeCidr, Some(&ours)),
        PodDetection::Cidrs(cidrs("10.180.0.0/24 fd00:180::/64"))
    );
    assert_eq!(detection(PodDetectionMode::NodeCidr, None), PodDetection::Cidrs(Vec::new()));
    assert_eq!(
        detection(PodDetectionMode::BridgeInterface("cbr0".into()), None),
        PodDetection::Bridge("cbr0".into())
    );
    assert_eq!(
        detection(PodDetectionMode::InterfaceNamePrefix("veth".into()), None),
        PodDetection::InterfacePrefix("veth".into())
    );
}

#[test]
fn flags_are_passed_on() {
    let told = NodeSettings {
        localhost_node_ports: true,
        masquerade_all: true,
        service_cidrs: cidrs("172.30.0.0/16"),
        ..settings()
    };
    let facts = facts(&told, None, &Interfaces::default());
    assert!(facts.localhost_node_ports && facts.masquerade_all);
    assert_eq!(facts.service_cidrs, told.service_cidrs);
}

/// In a network namespace of its own, on an interface that changes.
#[test]
fn facts_follow_the_interfaces_and_the_node() {
    let namespace = match NetNs::new() {
        Err(_) if std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") => return,
        namespace => namespace.unwrap(),
    };
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(follow_changes());
    };
    namespace.run(run).unwrap();
}

async fn follow_changes() {
    let mut rtnetlink = Rtnetlink::open().unwrap();
    let loopback = rtnetlink.link("lo").unwrap().index;
    rtnetlink.set_up(loopback).unwrap();
    let add = |rtnetlink: &mut Rtnetlink, ip: &str| {
        rtnetlink.add_address(loopback, ip.parse().unwrap(), 32).unwrap();
    };
    let (mut writer, store) = Store::new();
    let settings = NodeSettings { node_port_addresses: NodePortAddresses::All, ..settings() };
    let (sender, mut facts) = watch::channel(None);
    let following = follow(&settings, "node-a", &store, &sender);
    let changes = async {
        // Nothing is known before the store is complete.
        let wait = tokio::time::timeout(DEBOUNCE * 2, facts.changed()).await;
        assert!(wait.is_err());
        let mut batch = Batch::new();
        Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        writer.apply(batch);
        facts.changed().await.unwrap();
        assert_eq!(known(&mut facts), "[] none");

        add(&mut rtnetlink, "192.0.2.1");
        add(&mut rtnetlink, "192.0.2.2");
        facts.changed().await.unwrap();
        assert_eq!(known(&mut facts), "[] 192.0.2.1,192.0.2.2", "one change, not two");

        let mut batch = Batch::new();
        batch.set_node("node-b", node("192.0.2.1"));
        writer.apply(batch);
        let mut batch = Batch::new();
        batch.set_node("node-a", node("192.0.2.2"));
        writer.apply(batch);
        facts.changed().await.unwrap();
        assert_eq!(known(&mut facts), "[192.0.2.2] 192.0.2.1,192.0.2.2");

        // It outlives the source.
        drop(writer);
        rtnetlink.delete_address(loopback, "192.0.2.1".parse().unwrap(), 32).unwrap();
        facts.changed().await.unwrap();
        assert_eq!(known(&mut facts), "[192.0.2.2] 192.0.2.2");
    };
    let limit = tokio::time::timeout(Duration::from_secs(5), changes);
    tokio::select! {
        () = following => unreachable!("it never ends"),
        result = limit => result.expect("changes are noticed"),
    }
}

fn known(facts: &mut watch::Receiver<Option<NodeFacts>>) -> String {
    let facts = facts.borrow_and_update().clone().expect("facts are known");
    format!("{:?} {}", facts.primary_ips, list(&facts.node_port_addresses))
}
