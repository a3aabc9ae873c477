//! The conformance table: every case by real packets, in both families, one after the other on one
//! node, once by changes and once after a restart.

use kpng_core::Backend;
use kpng_example_backend::Example;
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{Conformance, OnNode, network, plan};

fn example() -> Box<dyn Backend> {
    Box::new(Example::open().expect("nf_tables can be used"))
}

#[test]
fn every_case_by_changes() {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, example);
    let mut conformance = Conformance::new(node.gaps());
    node.through_cases(|case, _| {
        conformance.check(case, &network);
        assert!(!node.disturbed(), "{}: only we were here", case.name);
    });
    assert_eq!(conformance.finish(), [""; 0]);
    node.cleanup();
}

#[test]
fn every_case_by_a_new_process_on_what_the_one_before_left() {
    let Some(network) = network() else { return };
    let mut conformance = Conformance::new(&[]);
    for case in CASES {
        let node = OnNode::new(&network, example);
        node.sync(plan(case).plan(), None);
        conformance.check(case, &network);
    }
    assert_eq!(conformance.finish(), [""; 0]);
}
