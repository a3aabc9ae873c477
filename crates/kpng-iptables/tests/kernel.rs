//! The backend against a real kernel: the conformance table by real packets, with both variants of
//! iptables, restarts, and what others do.

#![expect(clippy::disallowed_methods, reason = "iptables-save is the judge of what is written")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kpng_core::Backend;
use kpng_core::model::Family;
use kpng_core::plan::{Plan, Planner};
use kpng_iptables::{Config, Iptables, Variant, ruleset_text};
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{Conformance, OnNode, all_services, network, plan, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::Host;

fn backend(variant: Variant) -> impl FnOnce() -> Box<dyn Backend> {
    move || {
        let config = Config { variant: Some(variant), ..Config::default() };
        Box::new(Iptables::open(config).unwrap())
    }
}

/// Runs a program in the host's namespace, with `input` on its standard input.
fn run(host: &Host, program: &str, arguments: &[&str], input: &str) -> String {
    let (program, input) = (program.to_owned(), input.to_owned());
    let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    host.run(move || {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &input).unwrap();
        let mut command = Command::new(&program);
        command.args(&arguments).stdin(Stdio::from(file.reopen().unwrap()));
        let output = command.output().expect("iptables is installed (apt-get install iptables)");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {errors}\n{input}");
        String::from_utf8(output.stdout).unwrap()
    })
}

/// What iptables-save prints of both families, without what changes by itself.
fn saved(host: &Host, variant: Variant) -> String {
    let mut text = String::new();
    for family in ["ip", "ip6"] {
        let program = format!("{family}tables-{}-save", variant.name());
        for line in run(host, &program, &[], "").lines().filter(|line| !line.starts_with('#')) {
            // Built-in chains count packets that nobody here has sent.
            let line = if line.starts_with(':') { line.split(" [").next().unwrap() } else { line };
            text += &format!("{line}\n");
        }
    }
    text
}

fn an_audit_tells_what_others_did(variant: Variant) {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, backend(variant));
    let planner = plan_of(
        "service t/web cluster=cluster.1 port=http:80
         slice t/web http=8080
           pod1
           remote1
         service t/none cluster=cluster.2 port=http:80",
    );
    let audit = || node.audit(planner.plan()).unwrap();
    let before = saved(&network.node, variant);
    let empty = audit();
    assert!(empty.found == 0 && empty.missing.count == empty.wanted, "{empty:?}");
    assert_eq!(saved(&network.node, variant), before, "an audit changes nothing");
    node.sync(planner.plan(), None);
    let all = audit();
    assert!(all.is_equal() && all.found == all.wanted && all.wanted > 10, "{all:?}");

    let iptables = |arguments: &str| {
        let arguments: Vec<_> = arguments.split(' ').collect();
        run(&network.node, &format!("iptables-{}", variant.name()), &arguments, "")
    };
    iptables("-t nat -F KPNG-VIPS");
    iptables("-t nat -N KPNG-THEIRS");
    iptables("-t nat -A OUTPUT -d 10.0.0.1 -j KPNG-VIPS");
    let changed = audit();
    assert_eq!(changed.differing.names, ["iptables -t nat chain KPNG-VIPS"], "{changed:?}");
    assert_eq!(
        changed.foreign.names,
        [
            "iptables -t nat -A OUTPUT -d 10.0.0.1/32 -j KPNG-VIPS",
            "iptables -t nat chain KPNG-THEIRS"
        ]
    );
    assert_eq!((changed.missing.count, changed.found), (0, all.found - 1), "{changed:?}");
}

#[test]
fn an_audit_tells_what_others_did_legacy() {
    an_audit_tells_what_others_did(Variant::Legacy);
}

#[test]
fn an_audit_tells_what_others_did_nft() {
    an_audit_tells_what_others_did(Variant::Nft);
}

/// The rules of our chains with their counters.
fn counted(host: &Host, variant: Variant) -> Vec<String> {
    let output = run(host, &format!("iptables-{}-save", variant.name()), &["-c"], "");
    output.lines().filter(|line| line.contains(" -A KPNG-")).map(str::to_owned).collect()
}

fn conforms(variant: Variant) {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, backend(variant));
    let mut conformance = Conformance::new(node.gaps());
    node.through_cases(|case, plan| {
        conformance.check(case, &network);
        let audit = node.audit(plan).unwrap();
        assert!(audit.is_equal(), "{}: {audit:?}", case.name);
    });
    let wrong = conformance.finish();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!disturbed_soon(&node), "nobody else has changed anything");
}

#[test]
fn packets_go_where_the_plan_says() {
    conforms(Variant::Nft);
}

#[test]
fn packets_go_where_the_plan_says_in_legacy() {
    conforms(Variant::Legacy);
}

#[test]
fn packets_go_where_the_text_says() {
    let Some(network) = network() else { return };
    let text = ruleset_text(everything().plan(), &Config::default());
    let (v4, v6) = text.split_once("# ip6tables-restore").unwrap();
    let v6 = format!("#{v6}");
    for variant in Variant::ALL {
        for (program, text) in [("iptables", v4), ("ip6tables", &v6)] {
            let program = format!("{program}-{}-restore", variant.name());
            run(&network.node, &program, &["--noflush"], text);
        }
        let by_text = saved(&network.node, variant);
        // What the text makes is what the backend would write.
        let node = OnNode::new(&network, backend(variant));
        node.sync(everything().plan(), None);
        assert_eq!(saved(&network.node, variant), by_text);
        node.cleanup();
    }
}

/// Whether the backend notices a disturbance within the five seconds that it has.
fn disturbed_soon(node: &OnNode<'_>) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        if node.disturbed() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}

/// All cases in one state.
fn everything() -> Planner {
    let mut text = String::new();
    for (number, case) in
        CASES.iter().enumerate().filter(|(_, case)| !case.cluster.contains("node "))
    {
        text.push_str(&case.cluster.replace(" t/", &format!(" t{number}/")));
    }
    plan_of(&text)
}

#[test]
fn many_services_come_in_several_inputs() {
    let Some(network) = network() else { return };
    let service = |n: u16| {
        let (ip, port) = (n % 200, 1000 + n);
        format!(
            "service t/s{n} cluster=cluster.{ip} port=http:{port}\nslice t/s{n} http=8080\npod1\n"
        )
    };
    let cluster: String = (0..1200).map(service).collect();
    let planner = plan_of(&cluster);
    let node = OnNode::new(&network, backend(Variant::Nft));
    node.sync(planner.plan(), None);
    for port in [1000, 1599, 2199] {
        let ip = address(&format!("cluster.{}", (port - 1000) % 200), Family::V6);
        let outcome = network.pod(2).tcp(None, SocketAddr::new(ip, port));
        assert_eq!(outcome.answered_by(), Some("pod1"));
    }
    let in_several = saved(&network.node, Variant::Nft);
    node.cleanup();
    let text = ruleset_text(planner.plan(), &Config::default());
    let (v4, v6) = text.split_once("# ip6tables-restore").unwrap();
    for (program, text) in [("iptables", v4), ("ip6tables", &format!("#{v6}"))] {
        run(&network.node, &format!("{program}-nft-restore"), &["--noflush"], text);
    }
    assert_eq!(sorted(&in_several), sorted(&saved(&network.node, Variant::Nft)));
}

#[test]
fn a_restart_writes_nothing() {
    let Some(network) = network() else { return };
    for variant in Variant::ALL {
        let node = OnNode::new(&network, backend(variant));
        node.sync(everything().plan(), None);
        // Counters of rules, which would be lost if they were written.
        network.client.tcp(None, "192.168.0.2:30001".parse().unwrap());
        let before = counted(&network.node, variant);
        assert!(before.iter().any(|line| !line.starts_with("[0:0]")), "{before:?}");
        let restarted = OnNode::new(&network, backend(variant));
        restarted.sync(everything().plan(), None);
        assert_eq!(counted(&network.node, variant), before, "{variant:?}");
        assert!(!disturbed_soon(&restarted));
        restarted.cleanup();
    }
}

#[test]
fn a_restart_with_another_state_changes_only_the_difference() {
    let Some(network) = network() else { return };
    for variant in Variant::ALL {
        for pair in CASES.chunks(2).filter(|pair| pair.len() == 2) {
            let (before, after) = (plan(&pair[0]), plan(&pair[1]));
            OnNode::new(&network, backend(variant)).sync(before.plan(), None);
            let restarted = OnNode::new(&network, backend(variant));
            restarted.sync(after.plan(), None);
            let adopted = saved(&network.node, variant);
            restarted.cleanup();
            restarted.sync(after.plan(), None);
            let fresh = saved(&network.node, variant);
            assert_eq!(sorted(&adopted), sorted(&fresh), "{}", pair[1].name);
        }
    }
}

/// Chains in any order, rules of a chain in theirs.
fn sorted(saved: &str) -> BTreeMap<(&str, &str), Vec<&str>> {
    let mut chains: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut table = "";
    for line in saved.lines() {
        if line.starts_with('*') {
            table = line;
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap();
            chains.entry((table, chain)).or_default().push(rule);
        } else if let Some(chain) = line.strip_prefix(':') {
            chains.entry((table, chain.split(' ').next().unwrap())).or_default();
        }
    }
    chains
}

/// Rules as others on a node have them.
const FOREIGN: &str = "\
*filter
:CNI-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -m comment --comment \"of a CNI\" -j CNI-FORWARD
-A CNI-FORWARD -i cni0 -j ACCEPT
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
*nat
:CNI-HOSTPORT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT
-A CNI-HOSTPORT -p tcp -m tcp --dport 8888 -j REDIRECT --to-ports 80
-A POSTROUTING -o eth0 -p tcp -m tcp --dport 9999 -j MASQUERADE
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
";

#[test]
fn rules_of_others_stay_as_they_are() {
    let Some(network) = network() else { return };
    for variant in Variant::ALL {
        for family in ["ip", "ip6"] {
            let program = format!("{family}tables-{}-restore", variant.name());
            run(&network.node, &program, &["--noflush"], FOREIGN);
        }
        let foreign = saved(&network.node, variant);
        let node = OnNode::new(&network, backend(variant));
        let mut before = Plan::default();
        node.sync(&before, None);
        for case in CASES.iter().step_by(7) {
            let planner = plan(case);
            node.sync(planner.plan(), Some(all_services(&before, planner.plan())));
            before = planner.plan().clone();
            let with_ours = saved(&network.node, variant);
            let others = with_ours.lines().filter(|line| !line.contains("KPNG-"));
            let others: String = others.map(|line| format!("{line}\n")).collect();
            assert_eq!(others, foreign);
        }
        node.cleanup();
        assert_eq!(saved(&network.node, variant), foreign, "{variant:?}");
    }
}

#[test]
fn the_variant_is_that_of_others() {
    let Some(network) = network() else { return };
    let detected = || network.node.run(|| Iptables::open(Config::default()).unwrap().variant());
    assert_eq!(detected(), Variant::Nft, "without any sign");
    run(&network.node, "iptables-legacy", &["-A", "INPUT", "-j", "ACCEPT"], "");
    assert_eq!(detected(), Variant::Legacy, "which has more rules");
    run(&network.node, "ip6tables-nft", &["-t", "mangle", "-N", "KUBE-KUBELET-CANARY"], "");
    assert_eq!(detected(), Variant::Nft, "where kubelet left a hint");
    run(&network.node, "ip6tables-nft", &["-t", "mangle", "-X", "KUBE-KUBELET-CANARY"], "");
    run(&network.node, "iptables-legacy", &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"], "");
    run(&network.node, "iptables-nft", &["-A", "INPUT", "-j", "ACCEPT"], "");
    run(&network.node, "iptables-nft", &["-A", "INPUT", "-j", "ACCEPT"], "");
    assert_eq!(detected(), Variant::Legacy, "where kubelet left a hint");
}

#[test]
fn cleanup_removes_both_variants() {
    let Some(network) = network() else { return };
    let empty = Variant::ALL.map(|variant| {
        OnNode::new(&network, backend(variant)).sync(everything().plan(), None);
        saved(&network.node, variant)
    });
    assert!(empty.iter().all(|text| text.contains("KPNG-")));
    OnNode::new(&network, backend(Variant::Nft)).cleanup();
    for variant in Variant::ALL {
        let left = saved(&network.node, variant);
        assert!(!left.contains("KPNG-"), "{left}");
    }
}

#[test]
fn changes_by_others_are_noticed_and_repaired() {
    let Some(network) = network() else { return };
    for variant in Variant::ALL {
        let node = OnNode::new(&network, backend(variant));
        node.sync(everything().plan(), None);
        let intact = saved(&network.node, variant);
        for (program, arguments) in [
            ("iptables", "-t nat -F"),
            ("ip6tables", "-t filter -F"),
            ("iptables", "-t nat -F KPNG-VIPS"),
            ("ip6tables", "-t filter -D INPUT 1"),
            ("iptables", "-t nat -I KPNG-PREROUTING -j RETURN"),
        ] {
            let program = format!("{program}-{}", variant.name());
            let arguments: Vec<_> = arguments.split(' ').collect();
            run(&network.node, &program, &arguments, "");
            assert!(disturbed_soon(&node), "{program} {arguments:?}");
            node.sync(everything().plan(), None);
            let repaired = saved(&network.node, variant);
            assert_eq!(sorted(&repaired), sorted(&intact), "{program} {arguments:?}");
        }
        let program = format!("iptables-{}", variant.name());
        run(&network.node, &program, &["-A", "FORWARD", "-j", "ACCEPT"], "");
        run(&network.node, &program, &["-t", "nat", "-N", "OTHER"], "");
        assert!(!disturbed_soon(&node), "rules of others are none of our business");
        node.cleanup();
    }
}

#[test]
fn clients_stick_to_an_endpoint() {
    const CLUSTER: &str = "
        service t/sticky cluster=cluster.1 port=http:80:30001 affinity=10800
        slice t/sticky http=8080
          pod1
          pod2
          remote1
          remote2
    ";
    let Some(network) = network() else { return };
    let (before, after) = (plan_of(CLUSTER), plan_of(&format!("{CLUSTER} pod3")));
    for variant in Variant::ALL {
        let node = OnNode::new(&network, backend(variant));
        node.sync(before.plan(), None);
        for family in Family::ALL {
            let ask = |to: &str, port| {
                let to = SocketAddr::new(address(to, family), port);
                network.pod(4).tcp(None, to).answered_by().map(str::to_owned)
            };
            let first = ask("cluster.1", 80).expect("somebody answers");
            let sticks = || (0..10).all(|_| ask("cluster.1", 80).as_ref() == Some(&first));
            assert!(sticks(), "{variant:?}");
            assert_eq!(ask("node", 30_001).as_ref(), Some(&first), "by any frontend");
            node.sync(after.plan(), Some(all_services(before.plan(), after.plan())));
            assert!(sticks(), "an endpoint more");
            let restarted = OnNode::new(&network, backend(variant));
            restarted.sync(before.plan(), None);
            assert!(sticks(), "an endpoint less, and a restart");
            let gone = plan_of(&CLUSTER.replace(&format!("{first}\n"), "\n"));
            restarted.sync(gone.plan(), Some(all_services(before.plan(), gone.plan())));
            let second = ask("cluster.1", 80).expect("somebody answers");
            assert_ne!(second, first);
            assert!((0..10).all(|_| ask("cluster.1", 80).as_ref() == Some(&second)));
            node.sync(before.plan(), None);
        }
        node.cleanup();
    }
}

const ONE: &str = "
    service t/web cluster=cluster.1 port=http:80
    slice t/web http=8080
      pod1
";

#[test]
fn a_rule_of_others_that_leads_to_our_chain_stops_nothing() {
    let Some(network) = network() else { return };
    let (one, none) = (plan_of(ONE), plan_of("service t/web cluster=cluster.1 port=http:80"));
    for variant in Variant::ALL {
        let node = OnNode::new(&network, backend(variant));
        node.sync(one.plan(), None);
        let text = saved(&network.node, variant);
        let endpoint = text.lines().find(|line| line.starts_with(":KPNG-E-")).unwrap();
        let endpoint = endpoint.trim_matches([':', ' ', '-']).trim_end_matches(" -");
        let program = format!("iptables-{}", variant.name());
        run(&network.node, &program, &["-t", "nat", "-N", "OTHER"], "");
        run(&network.node, &program, &["-t", "nat", "-A", "OTHER", "-j", endpoint], "");
        let error = node.try_sync(none.plan(), Some(all_services(one.plan(), none.plan())));
        let error = error.expect_err("the chain cannot be deleted").to_string();
        assert!(error.contains("-restore --noflush -w 5 failed"), "{error}");
        // As the pipeline does it after a failure.
        node.sync(none.plan(), None);
        let to = SocketAddr::new(address("cluster.1", Family::V4), 80);
        assert!(network.pod(1).tcp(None, to).answered_by().is_none());
        assert!(!disturbed_soon(&node));
        run(&network.node, &program, &["-t", "nat", "-F", "OTHER"], "");
        node.cleanup();
        assert!(!saved(&network.node, variant).contains("KPNG-"));
        run(&network.node, &program, &["-t", "nat", "-X", "OTHER"], "");
    }
}

#[test]
fn nobody_is_refused_while_endpoints_come_and_go() {
    let Some(network) = network() else { return };
    let (one, four) = (plan_of(ONE), plan_of(&format!("{ONE}pod2\npod3\nremote1")));
    for variant in Variant::ALL {
        let node = OnNode::new(&network, backend(variant));
        node.sync(one.plan(), None);
        let ends = AtomicBool::new(false);
        let ask = || {
            let to = SocketAddr::new(address("cluster.1", Family::V4), 80);
            let (mut asked, mut unanswered) = (0, Vec::new());
            while !ends.load(Ordering::Relaxed) {
                let outcome = network.pod(4).tcp(None, to);
                asked += 1;
                if outcome.answered_by().is_none() {
                    unanswered.push(outcome);
                }
            }
            (asked, unanswered)
        };
        std::thread::scope(|scope| {
            let client = scope.spawn(ask);
            let (start, mut changes) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_secs(4) {
                for (before, after) in [(&one, &four), (&four, &one)] {
                    node.sync(after.plan(), Some(all_services(before.plan(), after.plan())));
                    // A restart on the way is no different.
                    let restarted = OnNode::new(&network, backend(variant));
                    restarted.sync(after.plan(), None);
                    changes += 1;
                }
            }
            ends.store(true, Ordering::Relaxed);
            let (asked, unanswered) = client.join().unwrap();
            assert!(asked > 100 && changes > 10, "{changes} changes, {asked} connections");
            assert!(unanswered.is_empty(), "{unanswered:?} of {asked}, {changes} changes");
        });
        node.cleanup();
    }
}
