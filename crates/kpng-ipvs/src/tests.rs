//! Pure tests: what is rendered, and what follows from changes.

mod model;

use expect_test::{Expect, expect};
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{plan, plan_of};

use crate::{Config, dry_run};

/// What would be written for a node that has nothing: addresses, virtual services, and elements.
fn check(cluster: &str, expected: Expect) {
    let planner = plan_of(cluster);
    let config = Config::default();
    let work = dry_run::whole(planner.plan(), &config);
    let mut text = String::new();
    for address in work.bind.iter().filter(|address| address.is_ipv4()) {
        text += &format!("{address}\n");
    }
    for command in &work.commands.grow {
        let command = command.to_string();
        if !command.contains('[') && !command.contains(" -6") {
            text += &format!("{command}\n");
        }
    }
    let ruleset = crate::ruleset_text(planner.plan(), &config);
    let (v4, _) = ruleset.split_once("table ip6").unwrap();
    let mut set = "";
    for line in v4.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("set ").or_else(|| line.strip_prefix("map ")) {
            set = name.trim_end_matches(" {");
        }
        let first = line.strip_prefix("elements = { ");
        let more = line.ends_with(',') || line.ends_with(" }");
        if first.is_some() || more && !line.starts_with("chain") && !set.is_empty() {
            let element = first.unwrap_or(line).trim_end_matches(" }").trim_end_matches(',');
            text += &format!("{set}: {element}\n");
        }
    }
    expected.assert_eq(&text);
}

#[test]
fn a_service_with_every_kind_of_frontend() {
    check(
        "service t/web cluster=cluster.1 ext=ext.1 port=http:80:30001
         slice t/web http=8080
           pod1
           remote1",
        expect![[r#"
            172.30.0.1
            198.18.0.1
            -A -t 172.30.0.1:80 -s rr -b flag-3
            -a -t 172.30.0.1:80 -r 10.180.0.1:8080 -m -w 1
            -a -t 172.30.0.1:80 -r 10.180.1.1:8080 -m -w 1
            -A -t 198.18.0.1:80 -s rr -b flag-3
            -a -t 198.18.0.1:80 -r 10.180.0.1:8080 -m -w 1
            -a -t 198.18.0.1:80 -r 10.180.1.1:8080 -m -w 1
            -A -t 192.168.0.2:30001 -s rr -b flag-3
            -a -t 192.168.0.2:30001 -r 10.180.0.1:8080 -m -w 1
            -a -t 192.168.0.2:30001 -r 10.180.1.1:8080 -m -w 1
            services: 172.30.0.1 . tcp . 80
            services: 192.168.0.2 . tcp . 30001
            services: 198.18.0.1 . tcp . 80
            masqueraded-from-pods: 192.168.0.2 . tcp . 30001
            masqueraded-from-pods: 198.18.0.1 . tcp . 80
            masqueraded-from-node: 172.30.0.1 . tcp . 80
            masqueraded-from-node: 192.168.0.2 . tcp . 30001
            masqueraded-from-node: 198.18.0.1 . tcp . 80
            masqueraded-from-outside: 172.30.0.1 . tcp . 80
            masqueraded-from-outside: 192.168.0.2 . tcp . 30001
            masqueraded-from-outside: 198.18.0.1 . tcp . 80
            cluster-ips: 172.30.0.1
            service-ips: 172.30.0.1
            service-ips: 198.18.0.1
            node-ips: 192.168.0.2
            hairpin: 10.180.0.1 . 10.180.0.1
            hairpin: 10.180.1.1 . 10.180.1.1
            pod-cidrs: 10.0.0.0-10.255.255.255
            service-cidrs: 172.30.0.0-172.30.255.255
        "#]],
    );
}

#[test]
fn packets_from_outside_have_a_list_of_their_own_by_a_mark() {
    check(
        "service t/web cluster=cluster.1 lb=lb.1 port=http:80:30001 etp=Local
         slice t/web http=8080
           pod1
           remote1",
        expect![[r#"
            172.30.0.1
            198.51.100.1
            -A -t 172.30.0.1:80 -s rr -b flag-3
            -a -t 172.30.0.1:80 -r 10.180.0.1:8080 -m -w 1
            -a -t 172.30.0.1:80 -r 10.180.1.1:8080 -m -w 1
            -A -t 198.51.100.1:80 -s rr -b flag-3
            -a -t 198.51.100.1:80 -r 10.180.0.1:8080 -m -w 1
            -a -t 198.51.100.1:80 -r 10.180.1.1:8080 -m -w 1
            -A -t 192.168.0.2:30001 -s rr -b flag-3
            -a -t 192.168.0.2:30001 -r 10.180.0.1:8080 -m -w 1
            -a -t 192.168.0.2:30001 -r 10.180.1.1:8080 -m -w 1
            -A -f 1802502145 -s rr -b flag-3
            -a -f 1802502145 -r 10.180.0.1:8080 -m -w 1
            services: 172.30.0.1 . tcp . 80
            services: 192.168.0.2 . tcp . 30001
            services: 198.51.100.1 . tcp . 80
            masqueraded-from-node: 172.30.0.1 . tcp . 80
            masqueraded-from-node: 192.168.0.2 . tcp . 30001
            masqueraded-from-node: 198.51.100.1 . tcp . 80
            masqueraded-from-outside: 172.30.0.1 . tcp . 80
            marks-from-outside: 192.168.0.2 . tcp . 30001 : 0x6b700001
            marks-from-outside: 198.51.100.1 . tcp . 80 : 0x6b700001
            cluster-ips: 172.30.0.1
            service-ips: 172.30.0.1
            service-ips: 198.51.100.1
            node-ips: 192.168.0.2
            hairpin: 10.180.0.1 . 10.180.0.1
            hairpin: 10.180.1.1 . 10.180.1.1
            pod-cidrs: 10.0.0.0-10.255.255.255
            service-cidrs: 172.30.0.0-172.30.255.255
        "#]],
    );
}

#[test]
fn affinity_is_persistence_of_hashed_clients() {
    check(
        "service t/web cluster=cluster.1 lb=lb.1 port=http:80 etp=Local affinity=60
         slice t/web http=8080
           pod1
           remote1",
        expect![[r#"
            172.30.0.1
            198.51.100.1
            -A -t 172.30.0.1:80 -s mh -p 60 -b mh-fallback,flag-3
            -a -t 172.30.0.1:80 -r 10.180.0.1:8080 -m -w 1
            -a -t 172.30.0.1:80 -r 10.180.1.1:8080 -m -w 1
            -A -t 198.51.100.1:80 -s mh -p 60 -b mh-fallback,flag-3
            -a -t 198.51.100.1:80 -r 10.180.0.1:8080 -m -w 1
            -a -t 198.51.100.1:80 -r 10.180.1.1:8080 -m -w 1
            -A -f 1802502145 -s mh -b mh-fallback,flag-3
            -a -f 1802502145 -r 10.180.0.1:8080 -m -w 1
            services: 172.30.0.1 . tcp . 80
            services: 198.51.100.1 . tcp . 80
            masqueraded-from-node: 172.30.0.1 . tcp . 80
            masqueraded-from-node: 198.51.100.1 . tcp . 80
            masqueraded-from-outside: 172.30.0.1 . tcp . 80
            marks-from-outside: 198.51.100.1 . tcp . 80 : 0x6b700001
            cluster-ips: 172.30.0.1
            service-ips: 172.30.0.1
            service-ips: 198.51.100.1
            hairpin: 10.180.0.1 . 10.180.0.1
            hairpin: 10.180.1.1 . 10.180.1.1
            pod-cidrs: 10.0.0.0-10.255.255.255
            service-cidrs: 172.30.0.0-172.30.255.255
        "#]],
    );
}

#[test]
fn refusals_and_source_ranges_are_elements() {
    check(
        "service t/none cluster=cluster.1 port=dns:53/UDP:30053
         service t/remote cluster=cluster.2 ext=ext.2 port=http:80 etp=Local itp=Local
         slice t/remote http=8080
           remote1
         service t/guarded lb=lb.3 port=http:80 ranges=client-net,node-net
         slice t/guarded http=8080
           pod1",
        expect![[r#"
            172.30.0.1
            172.30.0.2
            198.18.0.2
            198.51.100.3
            -A -t 198.51.100.3:80 -s rr -b flag-3
            -a -t 198.51.100.3:80 -r 10.180.0.1:8080 -m -w 1
            -A -t 198.18.0.2:80 -s rr -b flag-3
            -a -t 198.18.0.2:80 -r 10.180.1.1:8080 -m -w 1
            services: 198.18.0.2 . tcp . 80
            services: 198.51.100.3 . tcp . 80
            guarded-services: 198.51.100.3 . tcp . 80
            strangers: 198.51.100.3 . tcp . 80
            source-ranges: 198.51.100.3 . tcp . 80 . 192.168.0.0-192.168.0.255
            source-ranges: 198.51.100.3 . tcp . 80 . 198.51.100.3
            source-ranges: 198.51.100.3 . tcp . 80 . 203.0.113.0-203.0.113.127
            rejected-from-pods: 172.30.0.1 . udp . 53
            rejected-from-pods: 192.168.0.2 . udp . 30053
            dropped-from-pods: 172.30.0.2 . tcp . 80
            masqueraded-from-pods: 198.51.100.3 . tcp . 80
            rejected-from-node: 172.30.0.1 . udp . 53
            rejected-from-node: 192.168.0.2 . udp . 30053
            dropped-from-node: 172.30.0.2 . tcp . 80
            masqueraded-from-node: 198.18.0.2 . tcp . 80
            masqueraded-from-node: 198.51.100.3 . tcp . 80
            rejected-from-outside: 172.30.0.1 . udp . 53
            rejected-from-outside: 192.168.0.2 . udp . 30053
            dropped-from-outside: 172.30.0.2 . tcp . 80
            dropped-from-outside: 198.18.0.2 . tcp . 80
            masqueraded-from-outside: 198.51.100.3 . tcp . 80
            cluster-ips: 172.30.0.1
            cluster-ips: 172.30.0.2
            service-ips: 172.30.0.1
            service-ips: 172.30.0.2
            service-ips: 198.18.0.2
            service-ips: 198.51.100.3
            node-ips: 192.168.0.2
            hairpin: 10.180.0.1 . 10.180.0.1
            hairpin: 10.180.1.1 . 10.180.1.1
            pod-cidrs: 10.0.0.0-10.255.255.255
            service-cidrs: 172.30.0.0-172.30.255.255
        "#]],
    );
}

#[test]
fn a_virtual_address_comes_before_a_node_port() {
    check(
        "service t/a cluster=cluster.1 port=http:80:30001
         slice t/a http=8080
           pod1
         service t/b cluster=cluster.2 ext=node port=http:30001
         slice t/b http=8080
           pod2",
        expect![[r#"
            172.30.0.1
            172.30.0.2
            -A -t 172.30.0.1:80 -s rr -b flag-3
            -a -t 172.30.0.1:80 -r 10.180.0.1:8080 -m -w 1
            -A -t 192.168.0.2:30001 -s rr -b flag-3
            -a -t 192.168.0.2:30001 -r 10.180.0.2:8080 -m -w 1
            -A -t 172.30.0.2:30001 -s rr -b flag-3
            -a -t 172.30.0.2:30001 -r 10.180.0.2:8080 -m -w 1
            services: 172.30.0.1 . tcp . 80
            services: 172.30.0.2 . tcp . 30001
            services: 192.168.0.2 . tcp . 30001
            masqueraded-from-pods: 192.168.0.2 . tcp . 30001
            masqueraded-from-node: 172.30.0.1 . tcp . 80
            masqueraded-from-node: 172.30.0.2 . tcp . 30001
            masqueraded-from-node: 192.168.0.2 . tcp . 30001
            masqueraded-from-outside: 172.30.0.1 . tcp . 80
            masqueraded-from-outside: 172.30.0.2 . tcp . 30001
            masqueraded-from-outside: 192.168.0.2 . tcp . 30001
            cluster-ips: 172.30.0.1
            cluster-ips: 172.30.0.2
            service-ips: 172.30.0.1
            service-ips: 172.30.0.2
            node-ips: 192.168.0.2
            hairpin: 10.180.0.1 . 10.180.0.1
            hairpin: 10.180.0.2 . 10.180.0.2
            pod-cidrs: 10.0.0.0-10.255.255.255
            service-cidrs: 172.30.0.0-172.30.255.255
        "#]],
    );
}

#[test]
fn the_same_plan_gives_the_same_text() {
    for case in CASES {
        let text = || crate::ruleset_text(plan(case).plan(), &Config::default());
        assert_eq!(text(), text(), "{}", case.name);
    }
}
