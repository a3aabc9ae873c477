//! The backend against a real kernel, in a guest that has IPVS: the conformance table by real packets,
//! restarts, disturbances, connections that end gracefully, and what changes cost.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::time::Duration;

use kpng_core::Backend;
use kpng_core::plan::Plan;
use kpng_ipvs::{Config, GAPS, Ipvs};
use kpng_linux::rtnetlink::Rtnetlink;
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{Conformance, OnNode, all_services, network, plan};
use kpng_testkit::guest::in_guest;
use kpng_testkit::network::Network;

/// How long the longest of these takes at most; most take some seconds.
const LIMIT: Duration = Duration::from_secs(600);

/// The network of the cases, when all its addresses can be used: this kernel looks for duplicates.
fn settled_network() -> Network {
    let network = network().unwrap();
    let hosts = [&network.node, &network.client].into_iter();
    for host in hosts.chain(&network.pods).chain(&network.remote_pods) {
        let is_settled = || {
            let addresses = Rtnetlink::open().unwrap().addresses().unwrap();
            addresses.iter().all(|address| address.is_usable())
        };
        while !host.run(is_settled) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    network
}

fn backend() -> Box<dyn Backend> {
    Box::new(Ipvs::open(Config::default()).unwrap())
}

#[test]
fn packets_go_where_the_plan_says() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let node = OnNode::new(&network, backend);
        let mut before = Plan::default();
        node.sync(&before, None);
        let mut conformance = Conformance::new(GAPS);
        // From each state straight to the next: the difference is what gets written.
        for case in CASES {
            let planner = plan(case);
            node.sync(planner.plan(), Some(all_services(&before, planner.plan())));
            conformance.check(case, &network);
            before = planner.plan().clone();
        }
        let wrong = conformance.finish();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}
