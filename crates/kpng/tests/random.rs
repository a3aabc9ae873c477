//! Every backend, by real packets, in random states: what becomes of each is
//! what the plan decides. The table of cases has what people thought of.
//!
//! A process of its own, and one backend after the other, as eBPF programs are attached to the control
//! group of all hosts in the process.
#![cfg(all(
    feature = "nft",
    feature = "iptables",
    feature = "ebpf",
    feature = "ipvs",
    feature = "userspacelin"
))]
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kpng::backends::{ALL, Choice};
use kpng_core::plan::Plan;
use kpng_testkit::bpf::BpfPlace;
use kpng_testkit::conformance::{
    Conformance, OnNode, all_services, network, plan_of, worth_sending,
};
use kpng_testkit::guest::in_guest;
use kpng_testkit::network::Network;
use kpng_testkit::random::with_packets;

const STATES: usize = 6;
/// Those that are looked at, and of them those that are sent although they are not forwarded.
const PACKETS: usize = 200;
const REFUSED: usize = 3;

#[test]
fn nft() {
    check("nft");
}

#[test]
fn iptables() {
    check("iptables");
}

#[test]
fn ebpf() {
    check("ebpf");
}

#[test]
fn ipvs() {
    in_guest(Duration::from_secs(300), || check("ipvs"));
}

#[test]
fn userspacelin() {
    check("userspacelin");
}

fn check(backend: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (choice, _place) = choice(backend, &network, folder.path());
    let node = OnNode::new(&network, move || choice.open().unwrap());
    let mut conformance = Conformance::new(node.gaps());
    let mut before = Plan::default();
    node.sync(&before, None);
    for (cluster, packets) in with_packets(STATES, PACKETS) {
        let cluster = served(&cluster);
        let planner = plan_of(&cluster);
        node.sync(planner.plan(), Some(all_services(&before, planner.plan())));
        for packet in worth_sending(planner.plan(), &packets, REFUSED) {
            conformance.check_decided(&cluster, planner.plan(), packet, &network);
        }
        before = planner.plan().clone();
    }
    let wrong = conformance.finish_some();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    node.cleanup();
}

/// Endpoints have ports that pods of the network serve; a client meets all endpoints, not only the one
/// that it would stick to.
fn served(cluster: &str) -> String {
    cluster.replace("=80/UDP", "=8080/UDP").replace("b=81\n", "b=8082\n").replace("affinity=60", "")
}

/// The backend with its defaults, but for its place.
fn choice(name: &str, network: &Network, folder: &Path) -> (Box<dyn Choice>, Option<BpfPlace>) {
    match name {
        "ebpf" => {
            let place = BpfPlace::new(network);
            let (root, cgroup_root) = (place.pins.clone(), Some(place.cgroup.clone()));
            let config = kpng_ebpf::Config { root, cgroup_root, ..Default::default() };
            (Box::new(config), Some(place))
        }
        "userspacelin" => {
            let state_dir = folder.to_owned();
            (Box::new(kpng_userspace::Config { state_dir, ..Default::default() }), None)
        }
        name => ((ALL.iter().find(|row| row.name == name).unwrap().default)(), None),
    }
}
