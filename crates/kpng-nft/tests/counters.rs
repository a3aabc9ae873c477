//! What the kernel counts at frontends, against what the plan decides for each packet, and over the
//! lives of elements and processes.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::net::SocketAddr;
use std::sync::Arc;

use kpng_core::Backend;
use kpng_core::backend::{Counting, Counts, Traffic};
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::Planner;
use kpng_nft::{Config, Nft};
use kpng_testkit::conformance::{OnNode, Telling, all_services, check_counts, network, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::Network;

fn nft_backend() -> Box<dyn Backend> {
    Box::new(Nft::open(Config::default()).unwrap())
}

#[test]
fn each_packet_counts_once_where_the_plan_says() {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, nft_backend);
    let traffic = node.traffic().unwrap();
    let mut wrong = Vec::new();
    node.through_cases(|case, _| {
        wrong.extend(check_counts(case, &network, &*traffic, node.gaps(), Telling::Exact));
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One service, whose endpoints the test changes.
struct OneService<'n> {
    network: &'n Network,
    node: OnNode<'n>,
    traffic: Arc<dyn Traffic>,
}

/// The service with these lines of endpoints; no service without any.
fn state(endpoints: Option<&str>) -> Planner {
    plan_of(&endpoints.map_or(String::new(), |endpoints| {
        format!(
            "service t/web cluster=cluster.1 port=http:80
             slice t/web http=8080
             {endpoints}"
        )
    }))
}

impl<'n> OneService<'n> {
    fn new(network: &'n Network) -> Self {
        let node = OnNode::new(network, nft_backend);
        let traffic = node.traffic().unwrap();
        Self { network, node, traffic }
    }

    fn endpoints(&self, endpoints: Option<&str>) {
        let key = NamespacedName::new("t", "web");
        self.node.sync(state(endpoints).plan(), Some(vec![key]));
    }

    fn connect(&self, times: usize) {
        let to = SocketAddr::new(address("cluster.1", Family::V4), 80);
        for _ in 0..times {
            self.network.pod(3).tcp(None, to);
        }
    }

    /// Connections, rejected and dropped packets of the IPv4 frontend.
    fn counts(&self) -> Option<(u64, u64, u64)> {
        let counts = self.traffic.read().unwrap();
        let mut v4 = counts.into_iter().filter(|(key, _)| key.at.family() == Family::V4);
        v4.next().map(|(_, Counts { connections, rejected, dropped })| {
            (connections, rejected.unwrap(), dropped.unwrap())
        })
    }
}

#[test]
fn counts_outlive_the_elements_that_count() {
    let Some(network) = network() else { return };
    let one = OneService::new(&network);
    assert_eq!(one.counts(), None, "there is no table");
    one.node.sync(state(Some("pod1")).plan(), None);
    one.connect(3);
    assert_eq!(one.counts(), Some((3, 0, 0)));
    one.endpoints(Some("pod1\npod2"));
    one.connect(2);
    assert_eq!(one.counts(), Some((5, 0, 0)), "another class");
    one.endpoints(Some(""));
    one.connect(4);
    // Nobody has looked before the element that counted them goes.
    one.endpoints(Some("pod2"));
    one.connect(1);
    assert_eq!(one.counts(), Some((6, 4, 0)));
    one.endpoints(Some(""));
    one.connect(1);
    assert_eq!(one.counts(), Some((6, 5, 0)));

    let restarted = OneService::new(&network);
    restarted.node.sync(state(Some("")).plan(), None);
    restarted.connect(1);
    assert_eq!(restarted.counts(), Some((6, 2, 0)), "what the kernel holds is taken over");
    restarted.endpoints(None);
    assert_eq!(restarted.counts(), None);
    restarted.endpoints(Some("pod1"));
    assert_eq!(restarted.counts(), Some((0, 0, 0)), "another life");
}

#[test]
fn too_many_service_ports_are_not_counted() {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, nft_backend);
    let traffic = node.traffic().unwrap();
    let ports = |count: usize| {
        let mut text = String::new();
        for number in 0..count {
            if number % 10 == 0 {
                let service = number / 10;
                text += &format!("\nservice t/s{service} cluster=cluster.{service}");
            }
            text += &format!(" port=p{number}:{}", 8000 + number);
        }
        plan_of(&text)
    };
    let mut before = ports(Counting::BOUND);
    node.sync(before.plan(), None);
    let counted = || traffic.read().unwrap().len();
    assert!(counted() >= Counting::BOUND);
    let mut go_to = |count: usize| {
        let next = ports(count);
        node.sync(next.plan(), Some(all_services(before.plan(), next.plan())));
        assert!(node.audit(next.plan()).unwrap().is_equal());
        before = next;
    };
    go_to(Counting::BOUND + 1);
    assert_eq!(counted(), 0);
    go_to(Counting::RESUME + 1);
    assert_eq!(counted(), 0, "it does not come and go");
    go_to(Counting::RESUME);
    assert!(counted() >= Counting::RESUME);
}
