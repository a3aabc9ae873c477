//! The backend against a real kernel, in a guest that has IPVS: the conformance table by real packets,
//! restarts, disturbances, and connections that end gracefully.

#![expect(
    clippy::disallowed_methods,
    reason = "ipvsadm, ip and nft are the judges of what is there"
)]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use kpng_core::Backend;
use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{At, FrontendKey, Planner};
use kpng_ipvs::{Config, GAPS, Ipvs, SCHEDULERS};
use kpng_linux::ipvs::Timeouts;
use kpng_linux::rtnetlink::Rtnetlink;
use kpng_linux::sysctl;
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{
    Conformance, OnNode, Telling, all_services, check_counts, check_packets, network, plan, plan_of,
};
use kpng_testkit::fixture::address;
use kpng_testkit::guest::in_guest;
use kpng_testkit::network::{Host, Network, Topology};

/// How long the longest of these takes at most; most take some seconds.
const LIMIT: Duration = Duration::from_secs(600);

/// The network of the cases, when all its addresses can be used: this kernel looks for duplicates.
fn settled_network() -> Network {
    let network = network().unwrap();
    settle(&network);
    network
}

fn settle(network: &Network) {
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
}

fn backend() -> Box<dyn Backend> {
    Box::new(Ipvs::open(Config::default()).unwrap())
}

#[test]
fn packets_go_where_the_plan_says() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let node = OnNode::new(&network, backend);
        let mut conformance = Conformance::new(GAPS);
        node.through_cases(|case, plan| {
            conformance.check(case, &network);
            let audit = node.audit(plan).unwrap();
            assert!(audit.is_equal(), "{}: {audit:?}", case.name);
        });
        let wrong = conformance.finish();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

#[test]
fn each_packet_counts_once_where_the_plan_says() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let node = OnNode::new(&network, backend);
        let traffic = node.traffic().unwrap();
        let mut wrong = Vec::new();
        node.through_cases(|case, _| {
            wrong.extend(check_counts(case, &network, &*traffic, GAPS, Telling::Rough));
        });
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

/// Runs a program in the host's namespace.
fn run(host: &Host, line: &str) -> String {
    let line = line.to_owned();
    host.run(move || {
        let words: Vec<_> = line.split(' ').collect();
        let output = Command::new(words[0]).args(&words[1..]).output().expect(&line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    })
}

/// What the kernel has of ours, by the programs that operators use, in no order.
fn listed(node: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    for line in [
        "ipvsadm -Sn",
        "ip -o address show dev kpng-ipvs0",
        "nft -s list table ip kpng-ipvs",
        "nft -s list table ip6 kpng-ipvs",
    ] {
        let listing = run(node, line);
        lines.extend(listing.split(['\n', ',', '{', '}']).map(|part| part.trim().to_owned()));
    }
    // The link's number, and its own address.
    let lines = lines.into_iter().filter(|line| !line.is_empty() && !line.contains(" fe80:"));
    let number = |line: String| match line.split_once(": kpng-ipvs0") {
        Some((_, rest)) => rest.to_owned(),
        None => line,
    };
    let mut lines: Vec<_> = lines.map(number).collect();
    lines.sort_unstable();
    lines
}

/// Whether the backend notices a disturbance within the five seconds that it has. It is asked every
/// second, by a pipeline.
fn disturbed_soon(node: &OnNode<'_>) -> bool {
    (0..4).any(|second| {
        if second > 0 {
            std::thread::sleep(Duration::from_secs(1));
        }
        node.disturbed()
    })
}

/// All cases in one state.
fn everything() -> Planner {
    let cases = CASES.iter().enumerate().filter(|(_, case)| !case.cluster.contains("node "));
    let texts: String =
        cases.map(|(number, case)| case.cluster.replace(" t/", &format!(" t{number}/"))).collect();
    // In these few addresses nobody else is, so nothing else can win.
    let local =
        "service u/local cluster=cluster.90 lb=lb.90 port=http:80:30090 etp=Local affinity=60
         slice u/local http=8080
           pod1
           remote1";
    plan_of(&format!("{texts}\n{local}"))
}

#[test]
fn a_restart_changes_nothing() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let planner = everything();
        let node = OnNode::new(&network, backend);
        node.sync(planner.plan(), None);
        assert!(!node.disturbed());
        let before = listed(&network.node);
        let handles = run(&network.node, "nft -a list table ip kpng-ipvs");
        assert!(before.iter().any(|line| line.starts_with("-A -f ")));

        let restarted = OnNode::new(&network, backend);
        restarted.sync(planner.plan(), None);
        assert_eq!(run(&network.node, "nft -a list table ip kpng-ipvs"), handles);
        assert_eq!(listed(&network.node), before);
        assert!(!disturbed_soon(&restarted));
        assert!(!disturbed_soon(&node), "the restart changed nothing, so nobody is disturbed");
    });
}

#[test]
fn a_restart_with_another_state_changes_only_the_difference() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let config = || Config { graceful_timeout: Duration::ZERO, ..Config::default() };
        let backend = move || Box::new(Ipvs::open(config()).unwrap()) as Box<dyn Backend>;
        let node = OnNode::new(&network, backend);
        for pair in CASES.windows(2).step_by(3) {
            let (before, after) = (plan(&pair[0]), plan(&pair[1]));
            node.sync(before.plan(), None);
            let restarted = OnNode::new(&network, backend);
            restarted.sync(after.plan(), None);
            let adopted = listed(&network.node);
            restarted.cleanup();
            restarted.sync(after.plan(), None);
            assert_eq!(adopted, listed(&network.node), "{}", pair[1].name);
        }
    });
}

#[test]
fn others_changes_are_noticed_and_repaired_and_others_objects_stay() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let others = [
            "ipvsadm -A -t 192.168.0.2:9999 -s rr",
            "ipvsadm -a -t 192.168.0.2:9999 -r 10.180.0.1:8080 -m",
            "ipvsadm -A -f 77 -s wlc",
            "nft add table ip other",
            "ip link add other0 type dummy",
            "ip address add 192.0.2.77/32 dev other0",
        ];
        for line in others {
            run(&network.node, line);
        }
        let planner = plan_of(
            "service t/web cluster=cluster.1 lb=lb.1 port=http:80:30001 etp=Local
             slice t/web http=8080
               pod1
               remote1",
        );
        let node = OnNode::new(&network, backend);
        node.sync(planner.plan(), None);
        assert!(!disturbed_soon(&node));
        let intact = listed(&network.node);
        let of_others = |lines: &[String]| {
            let is_others = |line: &&String| line.contains("9999") || line.contains("-f 77");
            lines.iter().filter(is_others).count()
        };
        assert_eq!(of_others(&intact), 3);
        for change in [
            "ipvsadm -D -t 172.30.0.1:80",
            "ipvsadm -D -f 1802502145",
            "ipvsadm -E -t 172.30.0.1:80 -s lc",
            "ipvsadm -d -t 198.51.100.1:80 -r 10.180.0.1:8080",
            "ipvsadm -e -t 198.51.100.1:80 -r 10.180.0.1:8080 -m -w 0",
            "ipvsadm -a -t 192.168.0.2:30001 -r 10.180.0.4:8080 -m -w 1",
            "ip address delete 172.30.0.1/32 dev kpng-ipvs0",
            "ip address delete fd00:172:30::1/128 dev kpng-ipvs0",
            "ip address add 172.30.0.99/32 dev kpng-ipvs0",
            "ip link set kpng-ipvs0 down",
            "ip link delete kpng-ipvs0",
            "nft delete table ip kpng-ipvs",
            "nft flush chain ip6 kpng-ipvs filter-input",
        ] {
            run(&network.node, change);
            assert!(disturbed_soon(&node), "{change}");
            node.sync(planner.plan(), None);
            // An endpoint that somebody added waits for its connections first.
            assert!(!node.disturbed(), "{change}");
            assert_eq!(listed(&network.node), intact, "{change}");
        }
        run(&network.node, "ipvsadm -C");
        assert!(disturbed_soon(&node));
        node.sync(planner.plan(), None);
        assert_eq!(listed(&network.node).len(), intact.len() - 3);
        for line in &others[..3] {
            run(&network.node, line);
        }
        assert!(!disturbed_soon(&node), "others' objects are none of our business");

        node.cleanup();
        assert_eq!(run(&network.node, "ipvsadm -Sn").lines().count(), 3);
        assert_eq!(run(&network.node, "nft list tables"), "table ip other\n");
        let links = run(&network.node, "ip -o link");
        assert!(links.contains("other0") && !links.contains("kpng-ipvs0"), "{links}");
    });
}

#[test]
fn another_has_the_place_of_a_service() {
    in_guest(LIMIT, || {
        let network = settled_network();
        run(&network.node, "ipvsadm -A -t 172.30.0.1:80 -s wlc");
        run(&network.node, "ipvsadm -a -t 172.30.0.1:80 -r 10.180.0.4:8080 -m");
        let theirs = run(&network.node, "ipvsadm -Sn");
        let planner = plan_of(
            "service t/web cluster4=cluster.1 port=http:80
             slice t/web http=8080
               pod1",
        );
        let node = OnNode::new(&network, backend);
        node.sync(planner.plan(), None);
        assert_eq!(run(&network.node, "ipvsadm -Sn"), theirs);
        assert!(!disturbed_soon(&node));
        node.cleanup();
        assert_eq!(run(&network.node, "ipvsadm -Sn"), theirs);

        let config = Config { take_over: true, ..Config::default() };
        let node = OnNode::new(&network, || Box::new(Ipvs::open(config).unwrap()));
        node.sync(planner.plan(), None);
        let vip = SocketAddr::new(address("cluster.1", Family::V4), 80);
        assert_eq!(network.pod(3).tcp(None, vip).answered_by(), Some("pod1"));
        node.cleanup();
        assert_eq!(run(&network.node, "ipvsadm -Sn"), "");
    });
}

/// A network whose pods send back what they get.
fn echoing_network() -> Network {
    let network = Network::new(Topology { pods: 3, remote_pods: 0 }).unwrap();
    for pod in &network.pods[..2] {
        pod.serve_echo(&[8080]);
    }
    network.pods[2].serve(&[8080]);
    settle(&network);
    network
}

fn web(pods: &str) -> Planner {
    plan_of(&format!(
        "service t/web cluster=cluster.1 port=http:80 port=dns:53/UDP
         slice t/web http=8080 dns=8080/UDP
         {pods}"
    ))
}

#[test]
fn connections_live_on_when_their_endpoint_or_service_goes() {
    in_guest(LIMIT, || {
        let network = echoing_network();
        let client = &network.client;
        let node = OnNode::new(&network, backend);
        let (one, other, none) = (web("pod1"), web("pod3"), plan_of(""));
        node.sync(one.plan(), None);
        let vips = Family::ALL.map(|family| SocketAddr::new(address("cluster.1", family), 80));
        let mut flows = vips.map(|vip| client.tcp_flow(None, vip).unwrap());
        let mut alive = || flows.iter_mut().for_each(|flow| flow.echo("hello").unwrap());
        let answering = |name: &str| {
            for vip in vips {
                assert_eq!(client.tcp(None, vip).answered_by(), Some(name));
            }
        };
        alive();

        node.sync(other.plan(), Some(all_services(one.plan(), other.plan())));
        answering("pod3");
        alive();
        assert!(!disturbed_soon(&node), "waiting is no disturbance");
        alive();

        let restarted = OnNode::new(&network, backend);
        restarted.sync(other.plan(), None);
        assert!(run(&network.node, "ipvsadm -Sn").contains("10.180.0.1:8080 -m -w 0"));
        answering("pod3");
        alive();

        restarted.sync(none.plan(), Some(all_services(other.plan(), none.plan())));
        assert!(!disturbed_soon(&restarted));
        alive();
        for vip in vips {
            assert_eq!(client.tcp(None, vip).answered_by(), None);
        }
        alive();
        restarted.cleanup();
        assert_eq!(run(&network.node, "ipvsadm -Sn"), "");
    });
}

#[test]
fn what_has_no_connections_goes_soon_and_what_has_goes_at_the_limit() {
    in_guest(LIMIT, || {
        let network = echoing_network();
        let config = Config { graceful_timeout: Duration::from_secs(5), ..Config::default() };
        let node = OnNode::new(&network, || Box::new(Ipvs::open(config).unwrap()));
        let (both, none) = (web("pod1\npod2"), plan_of(""));
        node.sync(both.plan(), None);
        let vip = SocketAddr::new(address("cluster.1", Family::V4), 80);
        let mut flow = network.client.tcp_flow(None, vip).unwrap();
        flow.echo("hello").unwrap();
        node.sync(none.plan(), Some(all_services(both.plan(), none.plan())));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            assert!(!node.disturbed());
            std::thread::sleep(Duration::from_millis(500));
        }
        let left = run(&network.node, "ipvsadm -Sn");
        assert_eq!(left.lines().count(), 2, "the service, and where the connection is: {left}");
        assert!(run(&network.node, "ip address").contains("172.30.0.1/32"));
        flow.echo("hello").unwrap();
        std::thread::sleep(Duration::from_secs(3));
        assert!(!node.disturbed());
        assert_eq!(run(&network.node, "ipvsadm -Sn"), "");
        assert!(!run(&network.node, "ip address").contains("172.30.0.1/32"));
    });
}

#[test]
fn udp_flows_leave_an_endpoint_that_goes() {
    in_guest(LIMIT, || {
        let network = Network::new(Topology { pods: 2, remote_pods: 0 }).unwrap();
        network.pods.iter().for_each(|pod| pod.serve(&[8080]));
        settle(&network);
        let node = OnNode::new(&network, backend);
        let (one, other) = (web("pod1"), web("pod2"));
        node.sync(one.plan(), None);
        let vips = Family::ALL.map(|family| SocketAddr::new(address("cluster.1", family), 53));
        let flows = vips.map(|vip| network.client.udp_flow(None, vip));
        for flow in &flows {
            assert_eq!(flow.probe().answered_by(), Some("pod1"));
        }
        node.sync(other.plan(), Some(all_services(one.plan(), other.plan())));
        for flow in &flows {
            // The first packet may end the old flow.
            flow.probe();
            assert_eq!(flow.probe().answered_by(), Some("pod2"));
        }
    });
}

#[test]
fn all_schedulers_and_options_work() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let case =
            CASES.iter().find(|case| case.name.starts_with("external policy Local: ")).unwrap();
        for scheduler in SCHEDULERS {
            let config = Config {
                scheduler: scheduler.to_owned(),
                weight: 3,
                strict_arp: true,
                timeouts: Timeouts {
                    tcp: Some(Duration::from_secs(1000)),
                    tcp_fin: None,
                    udp: Some(Duration::from_secs(77)),
                },
                masquerade_bit: 20,
                ..Config::default()
            };
            let node = OnNode::new(&network, || Box::new(Ipvs::open(config).unwrap()));
            node.sync(plan(case).plan(), None);
            let saved = run(&network.node, "ipvsadm -Sn");
            assert!(
                saved.contains(&format!(" -s {scheduler}")) && saved.contains(" -w 3"),
                "{saved}"
            );
            // The others give one client at a time the same endpoint, as they are meant to.
            let vip = SocketAddr::new(address("lb.1", Family::V6), 80);
            assert!(network.client.tcp(None, vip).answered_by().is_some(), "{scheduler}");
            if matches!(scheduler, "rr" | "wrr" | "lc" | "wlc") {
                let wrong = check_packets(case, &network);
                assert!(wrong.is_empty(), "{scheduler}: {}", wrong.join("\n"));
            }
        }
        let timeouts = run(&network.node, "ipvsadm -l --timeout");
        assert!(timeouts.contains(": 1000 ") && timeouts.trim_end().ends_with(" 77"), "{timeouts}");
        let get = |name| network.node.run(move || sysctl::get(name).unwrap());
        assert_eq!(get("net/ipv4/conf/all/arp_ignore"), "1");
        assert_eq!(get("net/ipv4/conf/all/arp_announce"), "2");
        assert_eq!(get("net/ipv4/vs/conntrack"), "1");
    });
}

#[test]
fn a_client_with_affinity_comes_to_one_endpoint_by_all_frontends() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let cluster = |pods: &str| {
            plan_of(&format!(
                "service t/web cluster=cluster.1 ext=ext.1 port=http:80:30001 affinity=60
                 slice t/web http=8080
                 {pods}"
            ))
        };
        let two = cluster("pod1\nremote1");
        let many = cluster("pod1\npod2\npod3\nremote1\nremote2");
        let node = OnNode::new(&network, backend);
        node.sync(two.plan(), None);
        let by_all = || -> Vec<String> {
            let at = [("cluster.1", 80), ("ext.1", 80), ("node", 30001)];
            let ask = |(name, port)| {
                let to = SocketAddr::new(address(name, Family::V4), port);
                network.client.tcp(None, to).answered_by().unwrap().to_owned()
            };
            (0..5).flat_map(|_| at).map(ask).collect()
        };
        let before = by_all();
        assert!(before.iter().all(|pod| *pod == before[0]), "{before:?}");
        node.sync(many.plan(), Some(all_services(two.plan(), many.plan())));
        assert_eq!(by_all(), before, "more endpoints move nobody");
        let restarted = OnNode::new(&network, backend);
        restarted.sync(many.plan(), None);
        assert_eq!(by_all(), before);
        let without = many_without(&before[0]);
        let without = cluster(&without);
        restarted.sync(without.plan(), Some(all_services(many.plan(), without.plan())));
        let after = by_all();
        assert!(after.iter().all(|pod| *pod == after[0] && *pod != before[0]), "{after:?}");
    });
}

fn many_without(pod: &str) -> String {
    let all = ["pod1", "pod2", "pod3", "remote1", "remote2"].into_iter();
    all.filter(|name| *name != pod).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_endpoint_that_can_be_none_keeps_nobody_from_being_served() {
    in_guest(LIMIT, || {
        let network = settled_network();
        // A broadcast address of the node's: the kernel takes it for no destination.
        run(&network.node, "ip address add 10.180.0.5/30 broadcast 10.180.0.7 dev eth0");
        let planner = plan_of(
            "service t/web cluster=cluster.1 port=http:80
             slice t/web http=8080
               pod1
               pod7
             service t/other cluster=cluster.2 port=http:80
             slice t/other http=8080
               pod2",
        );
        let node = OnNode::new(&network, backend);
        node.sync(planner.plan(), None);
        for (vip, pod) in [("cluster.1", "pod1"), ("cluster.2", "pod2")] {
            let to = SocketAddr::new(address(vip, Family::V4), 80);
            assert_eq!(network.client.tcp(None, to).answered_by(), Some(pod));
        }
        assert!(!disturbed_soon(&node));
    });
}

#[test]
fn an_audit_tells_what_others_did() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let planner = plan_of(
            "service t/web cluster=cluster.1 lb=lb.1 port=http:80 etp=Local
             slice t/web http=8080
               pod1
               remote1",
        );
        let node = OnNode::new(&network, backend);
        let audit = || node.audit(planner.plan()).unwrap();
        let empty = audit();
        assert_eq!((empty.found, empty.is_equal()), (0, false));
        assert!(!run(&network.node, "ip link").contains("kpng-ipvs0"), "an audit changes nothing");
        node.sync(planner.plan(), None);
        let all = audit();
        assert!(all.is_equal() && all.found == all.wanted && all.wanted > 40, "{all:?}");

        for change in [
            "ip address delete 172.30.0.1/32 dev kpng-ipvs0",
            "ipvsadm -D -t [2001:db8:100::1]:80",
            "ipvsadm -d -t 172.30.0.1:80 -r 10.180.0.1:8080",
            "ipvsadm -a -f 1802502145 -r 10.180.0.4:8080 -m",
            "ipvsadm -E -t 198.51.100.1:80 -s lc -b flag-3",
            "nft delete element ip kpng-ipvs services { 172.30.0.1 . tcp . 80 }",
        ] {
            run(&network.node, change);
        }
        let changed = audit();
        assert_eq!(
            changed.missing.names,
            [
                "address 172.30.0.1 of link kpng-ipvs0",
                "-t 172.30.0.1:80 -r 10.180.0.1:8080 -m -w 1",
                "virtual service -t [2001:db8:100::1]:80 -s rr -b flag-3",
                "table ip kpng-ipvs element services { 172.30.0.1 . tcp . 80 }",
            ]
        );
        assert_eq!(changed.missing.count, 6, "with two destinations");
        assert_eq!(changed.differing.names, ["virtual service -t 198.51.100.1:80 -s lc -b flag-3"]);
        assert_eq!(changed.foreign.names, ["-f 1802502145 -r 10.180.0.4:8080 -m -w 1"]);

        let key = FrontendKey {
            at: At::Vip(address("lb.1", Family::V4)),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let lines = node.holds(planner.plan(), key).unwrap();
        let expected = "\
            address 198.51.100.1 of link kpng-ipvs0
            table ip kpng-ipvs element services { 198.51.100.1 . tcp . 80 }
            table ip kpng-ipvs element masqueraded-from-node { 198.51.100.1 . tcp . 80 }
            table ip kpng-ipvs element marks-from-outside { 198.51.100.1 . tcp . 80 : 0x6b700001 }
            ipvs -t 198.51.100.1:80 -s rr -b flag-3 (differs: -t 198.51.100.1:80 -s lc -b flag-3)
            ipvs -t 198.51.100.1:80 -r 10.180.0.1:8080 -m -w 1: 0 connections
            ipvs -t 198.51.100.1:80 -r 10.180.1.1:8080 -m -w 1: 0 connections
            ipvs -f 1802502145 -s rr -b flag-3
            ipvs -f 1802502145 -r 10.180.0.1:8080 -m -w 1: 0 connections";
        let expected: Vec<_> = expected.lines().map(str::trim).collect();
        assert_eq!(lines, expected);
    });
}

#[test]
fn the_programs_that_the_text_is_for_make_of_it_what_the_backend_writes() {
    in_guest(LIMIT, || {
        let network = settled_network();
        let planner = everything();
        let text = kpng_ipvs::ruleset_text(planner.plan(), &Config::default());
        for part in text.split("\n# ").map(|part| part.trim_start_matches("# ")) {
            let (program, input) = part.split_once('\n').unwrap();
            std::fs::write("/run/input", input.to_owned() + "\n").unwrap();
            let program = program.trim_end_matches(" -").to_owned();
            let file = if program == "ipvsadm -R" { "</run/input" } else { "/run/input" };
            let line = format!("{program} {file}");
            network.node.run(move || {
                let status = Command::new("sh").args(["-c", &line]).status().unwrap();
                assert!(status.success(), "{line}");
            });
        }
        let node = OnNode::new(&network, backend);
        let audit = node.audit(planner.plan()).unwrap();
        // nft does not write the fingerprints by which we know our rules.
        assert_eq!((audit.missing.count, audit.foreign.count), (0, 0), "{audit:?}");
        let is_chain = |name: &String| name.contains(" chain ");
        assert!(audit.differing.names.iter().all(is_chain), "{audit:?}");
        let vip = SocketAddr::new(address("cluster.90", Family::V6), 80);
        let answers = (0..20).any(|_| network.pod(3).tcp(None, vip).answered_by().is_some());
        assert!(answers, "{}", listed(&network.node).join("\n"));
    });
}
