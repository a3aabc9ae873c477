//! Clients' addresses: what is installed for them, and where they cannot be kept.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::net::SocketAddr;

use kpng_core::Backend;
use kpng_core::model::Family;
use kpng_linux::rtnetlink::{self, Route, Rtnetlink, Rule};
use kpng_testkit::conformance::{OnNode, network, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::{Host, Network, Outcome};
use kpng_userspace::{Config, Userspace};

const CLUSTER: &str = "
    service t/web cluster=cluster.1 port=http:80 port=dns:53/UDP
    slice t/web http=8080 dns=53/UDP
      remote1";

fn start<'n>(network: &'n Network, folder: &tempfile::TempDir, transparent: bool) -> OnNode<'n> {
    let config = Config { state_dir: folder.path().to_owned(), transparent, ..Config::default() };
    let make = || Box::new(Userspace::open(config).unwrap()) as Box<dyn Backend>;
    let node = OnNode::new(network, make);
    node.sync(plan_of(CLUSTER).plan(), None);
    node
}

fn rules(host: &Host) -> Vec<Rule> {
    host.run(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        let both = [rtnetlink::Family::V4, rtnetlink::Family::V6];
        both.into_iter().flat_map(|family| rtnetlink.rules(family).unwrap()).collect()
    })
}

#[test]
fn the_way_back_is_repaired_and_removed_and_others_rules_stay() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let foreign = Rule { priority: 60, mark: 1, mask: 1, table: 100 };
    network.node.run(move || {
        Rtnetlink::open().unwrap().add_rule(rtnetlink::Family::V4, &foreign).unwrap();
    });
    let node = start(&network, &folder, true);
    let intact = rules(&network.node);
    let ours = *intact.iter().find(|rule| **rule != foreign).unwrap();
    assert_eq!((intact.len(), ours.mark), (3, 0x8000), "{intact:?}");
    assert!(!node.disturbed());

    type Damage = fn(&mut Rtnetlink, &Rule) -> kpng_linux::Result<()>;
    let damages: [Damage; 2] = [
        |rtnetlink, ours| rtnetlink.delete_rule(rtnetlink::Family::V6, ours),
        |rtnetlink, ours| rtnetlink.delete_local_route(rtnetlink::Family::V4, ours.table),
    ];
    for damage in damages {
        network.node.run(move || damage(&mut Rtnetlink::open().unwrap(), &ours).unwrap());
        assert!(node.disturbed());
        node.sync(plan_of(CLUSTER).plan(), None);
        assert!(!node.disturbed());
        assert_eq!(rules(&network.node), intact);
    }

    let without = start(&network, &folder, false);
    assert_eq!(rules(&network.node), [foreign], "nobody asks for it any more");
    assert!(!without.disturbed());
    let again = start(&network, &folder, true);
    assert_eq!(rules(&network.node), intact);
    again.cleanup();
    assert_eq!(rules(&network.node), [foreign]);
}

#[test]
fn without_it_endpoints_see_the_address_that_the_node_has_for_others() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let node = start(&network, &folder, false);
    for family in Family::ALL {
        let outcome = network.pod(3).tcp(None, SocketAddr::new(address("cluster.1", family), 80));
        let Outcome::Answered { seen_source, .. } = outcome else { panic!("{outcome:?}") };
        assert!(network.node.addresses().contains(&seen_source), "{seen_source}");
    }
    node.cleanup();
}

#[test]
fn an_endpoint_behind_a_router_sees_the_node() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let seen = || {
        let vip = address("cluster.1", Family::V4);
        let pod = network.pod(3);
        [pod.tcp(None, SocketAddr::new(vip, 80)), pod.udp(None, SocketAddr::new(vip, 53))].map(
            |outcome| match outcome {
                Outcome::Answered { by, seen_source } if by == "remote1" => seen_source,
                other => panic!("{other:?}"),
            },
        )
    };
    let next_to_it = start(&network, &folder, true);
    assert_eq!(seen(), [network.pod(3).v4(); 2]);
    next_to_it.cleanup();

    // As if it were on another node: answers would go there, and to the client without us.
    let remote = network.remote_pod(1).v4();
    network.node.run(move || {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        let interface = Some(rtnetlink.link("remote1").unwrap().index);
        let (destination, gateway) = ((remote, 32), Some(remote));
        let route = Route { destination, gateway, interface, source: None, on_link: true };
        rtnetlink.add_route(&route).unwrap();
    });
    let behind_a_router = start(&network, &folder, true);
    let sources = seen();
    assert!(sources.iter().all(|ip| network.node.addresses().contains(ip)), "{sources:?}");
    behind_a_router.cleanup();
}
