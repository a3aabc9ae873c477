use expect_test::{Expect, expect};
use kpng_core::plan::Planner;
use kpng_testkit::conformance::{all_services, plan_of};

use super::*;

const DNS: &str = "
    service t/dns cluster=cluster.10 lb=lb.1 port=dns:53/UDP:3053 port=dns-tcp:53/TCP:3054
";

fn dns(slice: &str) -> String {
    format!("{DNS}{slice}")
}

/// A reconciler for which everything is as the cluster says.
fn settled(cluster: &str) -> (Reconciler, Planner) {
    let planner = plan_of(cluster);
    let mut reconciler = Reconciler::new();
    reconciler.update(planner.plan(), None);
    let pass = reconciler.start().expect("everything is looked at once");
    assert!(pass.stale.everything);
    reconciler.finish(pass, &Ok(Report::default()));
    assert_eq!(reconciler.due(), None);
    (reconciler, planner)
}

/// Whose entries are out of date after the cluster's change.
fn check(before: &str, after: &str, expected: Expect) {
    let (mut reconciler, before) = settled(before);
    let after = plan_of(after);
    reconciler.update(after.plan(), Some(&all_services(before.plan(), after.plan())));
    let stale = std::mem::take(&mut reconciler.stale);
    assert!(!stale.everything);
    let lines: Vec<_> = stale.frontends.iter().map(FrontendKey::to_string).collect();
    expected.assert_eq(&lines.join("\n"));
    // Told that all may have changed, it finds the same.
    reconciler.update(before.plan(), None);
    reconciler.stale = Stale::default();
    reconciler.update(after.plan(), None);
    assert_eq!(reconciler.stale, stale);
    // And nothing when nothing changed.
    reconciler.stale = Stale::default();
    reconciler.update(after.plan(), None);
    assert!(reconciler.stale.is_empty());
}

#[test]
fn a_lost_target_makes_all_udp_frontends_of_the_port_stale() {
    let two = dns("slice t/dns dns=5353/UDP dns-tcp=5353\n pod1\n pod2");
    let one = dns("slice t/dns dns=5353/UDP dns-tcp=5353\n pod1");
    check(
        &two,
        &one,
        expect![[r#"
            172.30.0.10:53/UDP
            198.51.100.1:53/UDP
            [2001:db8:100::1]:53/UDP
            [fd00:172:30::a]:53/UDP
            IPv4 node port 3053/UDP
            IPv6 node port 3053/UDP"#]],
    );
    check(&one, &two, expect![""]);
}

#[test]
fn families_are_stale_by_themselves() {
    let both = dns("slice t/dns dns=5353/UDP\n pod1\n pod2");
    let less_v6 = dns("slice t/dns dns=5353/UDP\n pod1\n pod2 v4");
    let expected = expect![[r#"
        [2001:db8:100::1]:53/UDP
        [fd00:172:30::a]:53/UDP
        IPv6 node port 3053/UDP"#]];
    check(&both, &less_v6, expected);
}

#[test]
fn another_port_of_the_same_pod_is_another_target() {
    let old = "service t/u cluster4=cluster.1 port=u:53/UDP\nslice t/u u=8080/UDP\n pod1";
    let new = "service t/u cluster4=cluster.1 port=u:53/UDP\nslice t/u u=9090/UDP\n pod1";
    check(old, new, expect!["172.30.0.1:53/UDP"]);
}

#[test]
fn a_terminating_target_serves_until_it_does_not() {
    let with = |state: &str| {
        format!(
            "service t/u cluster4=cluster.1 port=u:53/UDP\nslice t/u u=53/UDP\n pod1\n pod2 {state}"
        )
    };
    check(&with(""), &with("serving-terminating"), expect![""]);
    check(&with("serving-terminating"), &with("terminating"), expect!["172.30.0.1:53/UDP"]);
    check(&with(""), &with("notready"), expect!["172.30.0.1:53/UDP"]);
}

#[test]
fn the_first_and_the_last_target_count() {
    let none = "service t/u cluster4=cluster.1 port=u:53/UDP";
    let one = "service t/u cluster4=cluster.1 port=u:53/UDP\nslice t/u u=53/UDP\n pod1";
    check(none, one, expect!["172.30.0.1:53/UDP"]);
    check(one, none, expect!["172.30.0.1:53/UDP"]);
}

#[test]
fn services_that_come_and_go_count() {
    let one = "service t/u cluster4=cluster.1 port=u:53/UDP\nslice t/u u=53/UDP\n pod1";
    check("", one, expect!["172.30.0.1:53/UDP"]);
    check(one, "", expect!["172.30.0.1:53/UDP"]);
    check(
        one,
        &one.replace("u:53/UDP", "u:54/UDP"),
        expect![[r#"
        172.30.0.1:53/UDP
        172.30.0.1:54/UDP"#]],
    );
}

#[test]
fn tcp_and_sctp_never_count() {
    let with = |pods: &str| {
        format!(
            "service t/u cluster=cluster.1 port=t:53:3000 port=s:53/SCTP:3000\n\
             slice t/u t=53 s=53/SCTP\n {pods}"
        )
    };
    check(&with("pod1\n pod2"), &with("pod2"), expect![""]);
    check(&with("pod1"), "", expect![""]);
}

/// The new owner has another target: what the old one's clients got is out of date.
#[test]
fn a_frontend_that_changes_hands_counts() {
    let of = |first: &str| {
        format!(
            "service t/a cluster4=cluster.1 ext=ext.1 port=u:53/UDP created={first}\n\
             slice t/a u=53/UDP\n pod1\n\
             service t/b cluster4=cluster.2 ext=ext.1 port=u:53/UDP created=2\n\
             slice t/b u=53/UDP\n pod2"
        )
    };
    check(&of("1"), &of("3"), expect!["198.18.0.1:53/UDP"]);
    check(&of("3"), &of("1"), expect!["198.18.0.1:53/UDP"]);
}

#[test]
fn new_node_port_addresses_make_everything_stale() {
    let cluster = dns("slice t/dns dns=5353/UDP\n pod1");
    let (mut reconciler, _) = settled(&cluster);
    let all = plan_of(&format!("node nodeports=all\n{cluster}"));
    reconciler.update(all.plan(), Some(&[]));
    assert!(reconciler.stale.everything);
}

#[test]
fn a_failed_pass_is_made_up_for() {
    let one = "service t/u cluster4=cluster.1 port=u:53/UDP\nslice t/u u=53/UDP\n pod1";
    let (mut reconciler, before) = settled(one);
    let after = plan_of("");
    reconciler.update(after.plan(), Some(&all_services(before.plan(), after.plan())));
    let pass = reconciler.start().unwrap();
    assert_eq!((reconciler.due(), reconciler.start().is_none()), (None, true), "one at a time");
    let failure = kpng_linux::Error::kernel("list entries", rustix::io::Errno::NOBUFS);
    reconciler.finish(pass, &Err(failure));
    assert!(reconciler.due().unwrap() > Instant::now() + RETRY / 2);
    assert_eq!(reconciler.stale.frontends.len(), 1);
}

#[test]
fn passes_are_rare_under_churn() {
    let one = "service t/u cluster4=cluster.1 port=u:53/UDP\nslice t/u u=53/UDP\n pod1";
    for (took, pause) in [(0, 1000), (300, 700), (2000, 2000)] {
        let (mut reconciler, before) = settled(one);
        let after = plan_of("");
        let changed = all_services(before.plan(), after.plan());
        reconciler.update(after.plan(), Some(&changed));
        let pass = reconciler.start().unwrap();
        let report = Report { duration: Duration::from_millis(took), ..Report::default() };
        let end = Instant::now();
        reconciler.finish(pass, &Ok(report));
        reconciler.update(before.plan(), Some(&changed));
        let wait = reconciler.due().unwrap() - end;
        let expected = Duration::from_millis(pause);
        assert!(wait >= expected && wait < expected + Duration::from_millis(500), "{wait:?}");
    }
}

/// A pass sees the frontends of its start, and updates meanwhile see their own.
#[test]
fn updates_do_not_disturb_a_running_pass() {
    let one = "service t/u cluster4=cluster.1 port=u:53/UDP\nslice t/u u=53/UDP\n pod1";
    let planner = plan_of(one);
    let mut reconciler = Reconciler::new();
    reconciler.update(planner.plan(), None);
    let pass = reconciler.start().unwrap();
    let changed = all_services(planner.plan(), planner.plan());
    reconciler.update(plan_of("").plan(), Some(&changed));
    assert_eq!((pass.frontends.len(), reconciler.frontends.len()), (1, 0));
    assert_eq!(reconciler.stale.frontends.len(), 1);
}
