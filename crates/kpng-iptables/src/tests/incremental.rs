//! Changes: what is written, and what the kernel holds then.

use std::collections::BTreeSet;

use expect_test::{Expect, expect};
use kpng_core::model::Family;
use kpng_core::plan::Plan;
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{all_services, plan, plan_of};

use super::kernel::Kernel;
use super::packets;
use crate::state::{Change, State};
use crate::text::{Found, inputs};
use crate::{Config, planned};

/// One family of a node, with the kernel that it writes to.
pub(super) struct Node {
    state: State,
    pub(super) kernel: Kernel,
}

impl Node {
    pub(super) fn new(plan: &Plan, family: Family) -> Self {
        let mut node = Self::restarted(Kernel::new(family));
        inputs(&node.take_over(plan), usize::MAX).iter().for_each(|i| node.kernel.restore(i));
        node
    }

    /// A node of whose kernel nothing is known.
    pub(super) fn restarted(kernel: Kernel) -> Self {
        Self { state: State::new(kernel.family(), found(&kernel)), kernel }
    }

    /// What has to be written to go from one plan to another.
    pub(super) fn change(&mut self, before: &Plan, after: &Plan) -> Change {
        let keys = all_services(before, after);
        let mut change = self.state.write_services(after.facts(), planned(after, &keys));
        if before.facts() != after.facts() {
            change.merge(self.state.write_skeleton(after.facts(), &Config::default()));
        }
        change
    }

    /// What has to be written whatever the kernel holds.
    pub(super) fn take_over(&mut self, plan: &Plan) -> Change {
        let keys: Vec<_> = plan.services().keys().cloned().collect();
        let mut change = self.state.write_services(plan.facts(), planned(plan, &keys));
        change.merge(self.state.write_skeleton(plan.facts(), &Config::default()));
        change.merge(self.state.remove_unclaimed());
        change
    }

    /// Goes to another plan, and returns what was written.
    fn go(&mut self, before: &Plan, after: &Plan) -> String {
        let change = self.change(before, after);
        // In the smallest pieces: each has to be right by itself.
        for input in inputs(&change, 1) {
            self.kernel.restore(&input);
        }
        inputs(&change, usize::MAX).concat()
    }
}

#[test]
fn from_each_case_to_the_next() {
    for family in Family::ALL {
        let mut before = Plan::default();
        let mut node = Node::new(&before, family);
        for case in CASES {
            let planner = plan(case);
            node.go(&before, planner.plan());
            before = planner.plan().clone();
            let whole = packets::kernel(&before, family);
            assert_eq!(node.kernel, whole, "{}", case.name);
        }
    }
}

#[test]
fn what_the_kernel_holds_is_taken_over() {
    for pair in CASES.windows(2) {
        let (before, after) = (plan(&pair[0]), plan(&pair[1]));
        for family in Family::ALL {
            let mut node = Node::restarted(packets::kernel(before.plan(), family));
            for input in inputs(&node.take_over(after.plan()), 1) {
                node.kernel.restore(&input);
            }
            assert_eq!(node.kernel, packets::kernel(after.plan(), family), "{}", pair[1].name);
            assert!(node.state.is_intact(&found(&node.kernel)));
            assert_eq!(node.take_over(after.plan()), Change::default(), "nothing is left to do");
        }
    }
}

/// What `iptables-save` would say.
fn found(kernel: &Kernel) -> Found {
    let mut found = Found::default();
    for ((table, name), rules) in kernel.chains() {
        let rules: String = rules.iter().map(|rule| format!("-A {name} {rule}\n")).collect();
        found.add(*table, &format!(":{name} - [0:0]\n{rules}"));
    }
    found
}

const OTHERS: &str = "
    service t/other cluster=cluster.9 port=http:80
    slice t/other http=8080
      remote1
    service t/none cluster=cluster.10 port=http:80
";

fn check(before: &str, after: &str, expected: Expect) {
    let [before, after] = [before, after].map(|text| plan_of(&format!("{OTHERS}{text}")));
    let mut node = Node::new(before.plan(), Family::V4);
    expected.assert_eq(&node.go(before.plan(), after.plan()));
    assert_eq!(node.kernel, packets::kernel(after.plan(), Family::V4));
    let back = node.go(after.plan(), before.plan());
    assert_eq!(node.kernel, packets::kernel(before.plan(), Family::V4), "{back}");
}

#[test]
fn an_endpoint_comes() {
    const WEB: &str = "
        service t/web cluster=cluster.1 port=http:80 port=dns:53/UDP
        slice t/web http=8080 dns=53/UDP
          pod1
          pod2
    ";
    check(WEB, WEB, expect![""]);
    check(
        WEB,
        &format!("{WEB}  pod3"),
        expect![[r#"
            *nat
            :KPNG-E-FSQZWTH3OEG7A - [0:0]
            :KPNG-E-VIWM7UVYBRZQC - [0:0]
            :KPNG-P-42GPNU2O4Y76B - [0:0]
            :KPNG-P-QKSQ6SEET6Z2D - [0:0]
            -A KPNG-E-FSQZWTH3OEG7A -s 10.180.0.3/32 -j KPNG-MARK
            -A KPNG-E-FSQZWTH3OEG7A -p tcp -m comment --comment "t/web:http" -j DNAT --to-destination 10.180.0.3:8080
            -A KPNG-E-VIWM7UVYBRZQC -s 10.180.0.3/32 -j KPNG-MARK
            -A KPNG-E-VIWM7UVYBRZQC -p udp -m comment --comment "t/web:dns" -j DNAT --to-destination 10.180.0.3:53
            -A KPNG-P-42GPNU2O4Y76B -m comment --comment "t/web:dns" -m statistic --mode random --probability 0.33333333349 -g KPNG-E-LBBBY7OWJRSOC
            -A KPNG-P-42GPNU2O4Y76B -m statistic --mode random --probability 0.50000000000 -g KPNG-E-AVWQEZSXPY4XN
            -A KPNG-P-42GPNU2O4Y76B -g KPNG-E-VIWM7UVYBRZQC
            -A KPNG-P-QKSQ6SEET6Z2D -m comment --comment "t/web:http" -m statistic --mode random --probability 0.33333333349 -g KPNG-E-XZA5BRSAWITYN
            -A KPNG-P-QKSQ6SEET6Z2D -m statistic --mode random --probability 0.50000000000 -g KPNG-E-QXKPEZT6ORREI
            -A KPNG-P-QKSQ6SEET6Z2D -g KPNG-E-FSQZWTH3OEG7A
            COMMIT
        "#]],
    );
}

#[test]
fn the_last_endpoint_goes() {
    check(
        "service t/web cluster=cluster.1 port=http:80\nslice t/web http=8080\npod1",
        "service t/web cluster=cluster.1 port=http:80\nslice t/web http=8080\npod1 notready",
        expect![[r#"
            *filter
            :KPNG-VIPS - [0:0]
            -A KPNG-VIPS -d 172.30.0.1/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -g KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.1/32 -m comment --comment "kpng: no such port" -m addrtype ! --dst-type LOCAL -j KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.9/32 -m comment --comment "kpng: no such port" -m addrtype ! --dst-type LOCAL -j KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.10/32 -p tcp -m comment --comment "t/none:http" -m tcp --dport 80 -g KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.10/32 -m comment --comment "kpng: no such port" -m addrtype ! --dst-type LOCAL -j KPNG-REJECT
            COMMIT
            *nat
            :KPNG-VIPS - [0:0]
            :KPNG-E-XZA5BRSAWITYN - [0:0]
            :KPNG-R-2VFOVS63MNA5L - [0:0]
            -A KPNG-VIPS -d 172.30.0.1/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -j ACCEPT
            -A KPNG-VIPS -d 172.30.0.9/32 -p tcp -m comment --comment "t/other:http" -m tcp --dport 80 -g KPNG-R-OO4LVXCPL4AIE
            -A KPNG-VIPS -d 172.30.0.10/32 -p tcp -m comment --comment "t/none:http" -m tcp --dport 80 -j ACCEPT
            -X KPNG-E-XZA5BRSAWITYN
            -X KPNG-R-2VFOVS63MNA5L
            COMMIT
        "#]],
    );
}

#[test]
fn a_service_comes() {
    check(
        "",
        "service t/web cluster=cluster.1 port=http:80\nslice t/web http=8080\npod1",
        expect![[r#"
            *filter
            :KPNG-VIPS - [0:0]
            -A KPNG-VIPS -d 172.30.0.1/32 -m comment --comment "kpng: no such port" -m addrtype ! --dst-type LOCAL -j KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.9/32 -m comment --comment "kpng: no such port" -m addrtype ! --dst-type LOCAL -j KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.10/32 -p tcp -m comment --comment "t/none:http" -m tcp --dport 80 -g KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.10/32 -m comment --comment "kpng: no such port" -m addrtype ! --dst-type LOCAL -j KPNG-REJECT
            COMMIT
            *nat
            :KPNG-E-XZA5BRSAWITYN - [0:0]
            :KPNG-R-2VFOVS63MNA5L - [0:0]
            :KPNG-VIPS - [0:0]
            -A KPNG-E-XZA5BRSAWITYN -s 10.180.0.1/32 -j KPNG-MARK
            -A KPNG-E-XZA5BRSAWITYN -p tcp -m comment --comment "t/web:http" -j DNAT --to-destination 10.180.0.1:8080
            -A KPNG-R-2VFOVS63MNA5L -m comment --comment "t/web:http" -j KPNG-MARK-NO
            -A KPNG-R-2VFOVS63MNA5L -g KPNG-E-XZA5BRSAWITYN
            -A KPNG-VIPS -d 172.30.0.1/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -g KPNG-R-2VFOVS63MNA5L
            -A KPNG-VIPS -d 172.30.0.9/32 -p tcp -m comment --comment "t/other:http" -m tcp --dport 80 -g KPNG-R-OO4LVXCPL4AIE
            -A KPNG-VIPS -d 172.30.0.10/32 -p tcp -m comment --comment "t/none:http" -m tcp --dport 80 -j ACCEPT
            COMMIT
        "#]],
    );
}

#[test]
fn one_of_many_services_writes_its_own_chains_and_the_way_to_it() {
    let service = |n: u16, pods: &str| {
        let ip = format!("cluster.{}", n % 200);
        let port = 1000 + n;
        format!("service t/s{n} cluster={ip} port=http:{port}\nslice t/s{n} http=8080\n{pods}\n")
    };
    let all: String = (0..1000).map(|n| service(n, "pod1\npod2")).collect();
    let before = plan_of(&all);
    let after = plan_of(&all.replace(&service(500, "pod1\npod2"), &service(500, "pod1")));
    let mut node = Node::new(before.plan(), Family::V4);
    let written = node.go(before.plan(), after.plan());
    let chains: BTreeSet<_> = written.lines().filter(|line| line.starts_with(':')).collect();
    // The pool and an endpoint go, and the route leads elsewhere.
    assert!(chains.len() <= 5, "{written}");
    assert!(written.len() < 2000, "{written}");
}
