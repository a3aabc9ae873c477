//! What is counted at frontends, against what the plan decides for each packet, and over changes.

use std::net::SocketAddr;

use kpng_core::Backend;
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::Plan;
use kpng_testkit::conformance::{OnNode, Telling, check_counts, network, plan_of};
use kpng_testkit::fixture::address;
use kpng_userspace::{Config, Userspace};

fn userspace(
    folder: &std::path::Path,
) -> impl FnOnce() -> Box<dyn Backend> + Send + 'static + use<> {
    let config = Config { state_dir: folder.to_owned(), ..Config::default() };
    || Box::new(Userspace::open(config).expect("nf_tables can be used"))
}

#[test]
fn each_packet_counts_once_where_the_plan_says() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let node = OnNode::new(&network, userspace(folder.path()));
    let traffic = node.traffic().expect("it counts");
    let mut wrong = Vec::new();
    node.through_cases(|case, _| {
        wrong.extend(check_counts(case, &network, &*traffic, node.gaps(), Telling::Exact));
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    node.cleanup();
}

#[test]
fn counts_outlive_changes() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let node = OnNode::new(&network, userspace(folder.path()));
    let traffic = node.traffic().expect("it counts");
    let state = |endpoints: &str| {
        plan_of(&format!(
            "service t/web cluster=cluster.1 port=http:80
             slice t/web http=8080
             {endpoints}"
        ))
    };
    let connect = |times: usize| {
        let to = SocketAddr::new(address("cluster.1", Family::V4), 80);
        (0..times).for_each(|_| drop(network.pod(3).tcp(None, to)));
    };
    let counts = || {
        let counts = traffic.read().expect("counts can be read");
        let mut v4 = counts.into_iter().filter(|(key, _)| key.at.family() == Family::V4);
        v4.next().map(|(_, counts)| (counts.connections, counts.rejected, counts.dropped))
    };
    let changed = || Some(vec![NamespacedName::new("t", "web")]);
    node.sync(state("pod1").plan(), None);
    connect(2);
    node.sync(state("").plan(), changed());
    connect(3);
    node.sync(state("pod2").plan(), changed());
    connect(1);
    assert_eq!(counts(), Some((3, Some(3), Some(0))));
    node.sync(state("pod2").plan(), None);
    assert_eq!(counts(), Some((3, Some(3), Some(0))));
    node.sync(&Plan::default(), changed());
    assert_eq!(counts(), None);
    node.sync(state("pod1").plan(), changed());
    assert_eq!(counts(), Some((0, Some(0), Some(0))), "another life");
    node.cleanup();
}
