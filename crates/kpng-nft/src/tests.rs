//! The rendered objects, traced: what they do with a packet is what the plan decides.

mod incremental;
mod model;
mod tracer;

use expect_test::{expect, expect_file};
use kpng_core::plan::Planner;
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{plan, plan_of};

use crate::Config;
use crate::ruleset_text;

/// A service with policy Local, source ranges and affinity; one without endpoints; and DNS.
const SMALL: &str = "
    service kube-system/dns cluster=cluster.10 port=dns:53/UDP port=dns-tcp:53
    slice kube-system/dns dns=53/UDP dns-tcp=53
      pod1
      remote1
    service shop/web cluster=cluster.41 lb=lb.1 port=http:80:30001 etp=Local ranges=client-net
    slice shop/web http=8080
      pod1
      remote1
    service shop/cart cluster=cluster.42 port=http:80 affinity=60
    slice shop/cart http=8080
      pod1
      pod2
    service shop/none cluster=cluster.43 port=http:80";

#[test]
fn the_text_of_a_small_cluster() {
    let text = ruleset_text(plan_of(SMALL).plan(), &Config::default());
    expect_file!["tests/small.nft"].assert_eq(&text);
}

#[test]
fn options_change_the_text_where_they_shall() {
    let planner = plan_of("node localhost=yes");
    let text = |bit, liberal| {
        let config =
            Config { masquerade_bit: bit, conntrack_be_liberal: liberal, ..Config::default() };
        ruleset_text(planner.plan(), &config)
    };
    let (plain, optional) = (text(14, false), text(3, true));
    let only_in = |text: &str, other: &str| {
        let lines = text.lines().filter(|line| !other.contains(line)).map(str::trim);
        lines.collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        ct state invalid ip saddr . ip saddr @hairpin drop
        ct state invalid ip daddr @cluster-ips drop
        meta mark & 0x4000 == 0x4000 meta mark set meta mark & 0xffffbfff masquerade fully-random
        ct state invalid ip6 saddr . ip6 saddr @hairpin drop
        ct state invalid ip6 daddr @cluster-ips drop
        meta mark & 0x4000 == 0x4000 meta mark set meta mark & 0xffffbfff masquerade fully-random"#]].assert_eq(&only_in(&plain, &optional));
    expect![[r#"
        meta mark & 0x8 == 0x8 meta mark set meta mark & 0xfffffff7 masquerade fully-random
        meta mark & 0x8 == 0x8 meta mark set meta mark & 0xfffffff7 masquerade fully-random"#]]
    .assert_eq(&only_in(&optional, &plain));
}

#[test]
fn every_case_of_the_conformance_table_is_traced_as_planned() {
    let planners: Vec<Planner> = CASES.iter().map(plan).collect();
    for (case, planner) in CASES.iter().zip(&planners) {
        model::check(planner.plan(), case.name);
    }
}
