//! The conformance table by real packets, in both families.

use kpng_core::Backend;
use kpng_testkit::conformance::{Conformance, OnNode, network};
use kpng_userspace::{Config, Userspace};

fn userspace(
    folder: &std::path::Path,
    transparent: bool,
) -> impl FnOnce() -> Box<dyn Backend> + Send + 'static {
    let config = Config { state_dir: folder.to_owned(), transparent, ..Config::default() };
    || Box::new(Userspace::open(config).expect("nf_tables can be used"))
}

#[test]
fn every_case_by_changes() {
    every_case(false);
}

#[test]
fn every_case_with_clients_addresses_kept() {
    every_case(true);
}

fn every_case(transparent: bool) {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let node = OnNode::new(&network, userspace(folder.path(), transparent));
    let mut conformance = Conformance::new(node.gaps());
    node.through_cases(|case, plan| {
        conformance.check(case, &network);
        assert!(!node.disturbed(), "{}: only we were here", case.name);
        let audit = node.audit(plan).expect("it can tell");
        assert!(audit.is_equal() && audit.found == audit.wanted, "{}: {audit:?}", case.name);
    });
    assert_eq!(conformance.finish(), [""; 0]);
    node.cleanup();
}
