//! The backend against a real kernel: the conformance table by real packets.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use kpng_core::Backend;
use kpng_core::plan::Plan;
use kpng_ebpf::{Config, Ebpf, GAPS};
use kpng_testkit::bpf::BpfPlace;
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{Conformance, OnNode, all_services, network, plan};

fn config(place: &BpfPlace) -> Config {
    Config {
        root: place.pins.clone(),
        cgroup_root: Some(place.cgroup.clone()),
        ..Config::default()
    }
}

fn ebpf(place: &BpfPlace) -> impl FnOnce() -> Box<dyn Backend> + Send + 'static {
    let config = config(place);
    move || Box::new(Ebpf::open(config).unwrap())
}

#[test]
fn packets_go_where_the_plan_says() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, ebpf(&place));
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
}
