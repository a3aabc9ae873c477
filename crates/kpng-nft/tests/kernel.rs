//! The backend against a real kernel: the conformance table by real packets, restarts, and what
//! nft makes of our objects.

#![expect(clippy::disallowed_methods, reason = "nft, the program, is the judge of what it reads")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use expect_test::expect;
use kpng_core::Backend;
use kpng_core::model::Family;
use kpng_core::plan::Planner;
use kpng_nft::{Config, Nft, ruleset_text};
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{OnNode, all_services, check_packets, network, plan, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::Host;

fn nft_backend() -> Box<dyn Backend> {
    Box::new(Nft::open(Config::default()).unwrap())
}

/// Runs nft in the host's namespace, with `input` on its standard input.
fn nft(host: &Host, arguments: &[&str], input: &str) -> String {
    let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let input = input.to_owned();
    host.run(move || {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &input).unwrap();
        let mut command = Command::new("nft");
        command.args(&arguments);
        if !input.is_empty() {
            command.arg("-f").arg(file.path());
        }
        let output = command.output().expect("nft is installed (apt-get install nftables)");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft {arguments:?}: {errors}\n{input}");
        String::from_utf8(output.stdout).unwrap()
    })
}

#[test]
fn packets_go_where_the_plan_says() {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, nft_backend);
    let mut wrong = Vec::new();
    node.through_cases(|case, plan| {
        wrong.extend(check_packets(case, &network));
        let audit = node.audit(plan).unwrap();
        if !audit.is_equal() {
            wrong.push(format!("{}: {audit:?}", case.name));
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn packets_go_where_the_text_says() {
    let Some(network) = network() else { return };
    let mut wrong = Vec::new();
    for case in CASES {
        let text = ruleset_text(plan(case).plan(), &Config::default());
        nft(&network.node, &[], &text);
        wrong.extend(check_packets(case, &network));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What nft lists, without what changes by itself.
fn listed(host: &Host) -> String {
    let both = ["ip", "ip6"].map(|family| nft(host, &["list", "table", family, "kpng"], ""));
    both.join("\n\n")
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
fn nft_lists_what_we_write_and_takes_over_on_restart() {
    let Some(network) = network() else { return };
    let planner = everything();
    let node = OnNode::new(&network, nft_backend);
    node.sync(planner.plan(), None);
    let first = listed(&network.node);
    assert!(first.contains("map @service-ips meta priority vmap @routes"), "{first}");
    let handles = nft(&network.node, &["-a", "list", "table", "ip", "kpng"], "");

    let restarted = OnNode::new(&network, nft_backend);
    restarted.sync(planner.plan(), None);
    assert_eq!(nft(&network.node, &["-a", "list", "table", "ip", "kpng"], ""), handles);
    assert!(!restarted.disturbed());
    assert!(!node.disturbed(), "the restart changed nothing, so nobody is disturbed");
}

#[test]
fn an_audit_tells_what_others_did() {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, nft_backend);
    let planner = everything();
    let audit = || node.audit(planner.plan()).unwrap();
    let empty = audit();
    assert!(empty.found == 0 && empty.missing.count == empty.wanted, "{empty:?}");
    assert_eq!(nft(&network.node, &["list", "tables"], ""), "", "an audit changes nothing");
    node.sync(planner.plan(), None);
    let all = audit();
    assert!(all.is_equal() && all.found == all.wanted && all.unused == 0, "{all:?}");

    let change = |text: &str| nft(&network.node, &[], text);
    change("delete element ip kpng cluster-ips { 172.30.0.1 }");
    change("add element ip6 kpng cluster-ips { fd00:172:30::99 }");
    change("add chain ip kpng theirs");
    change("add rule ip kpng theirs counter");
    change("add chain ip kpng their-base { type filter hook input priority 0; policy drop; }");
    change("add set ip kpng their-set { type ipv4_addr; }");
    change("insert rule ip kpng services counter");
    let changed = audit();
    assert_eq!(changed.missing.names, ["ip kpng cluster-ips { 172.30.0.1 }"], "{changed:?}");
    assert_eq!(changed.differing.names, ["ip kpng chain services"], "{changed:?}");
    assert_eq!(
        changed.foreign.names,
        [
            "table ip kpng set their-set",
            "table ip kpng base chain their-base",
            "ip kpng chain theirs",
            "ip6 kpng cluster-ips { fd00:172:30::99 }"
        ]
    );
    assert_eq!((changed.wanted, changed.found), (all.wanted, all.found - 2), "{changed:?}");

    // What others put into our chains is repaired; what they have beside them is theirs.
    node.sync(planner.plan(), None);
    let repaired = audit();
    assert_eq!(repaired.found, all.found, "{repaired:?}");
    change("delete set ip kpng their-set\ndelete chain ip kpng their-base");
    // Without its services, what the table keeps for a while is not taken for foreign.
    assert!(audit().is_equal(), "{:?}", audit());
    let nothing = Planner::<kpng_core::model::ServiceState>::new(
        "node-a",
        planner.plan().facts().as_ref().clone(),
    );
    node.sync(nothing.plan(), Some(all_services(planner.plan(), nothing.plan())));
    let idle = node.audit(nothing.plan()).unwrap();
    assert!(idle.is_equal() && idle.unused > 0, "{idle:?}");
    nft(&network.node, &[], "delete table ip6 kpng\nadd table ip6 kpng");
    assert_eq!(node.audit(nothing.plan()).unwrap().differing.count, 1);
}

#[test]
fn what_is_held_for_a_frontend_is_told() {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, nft_backend);
    let planner = plan_of(
        "service t/web cluster=cluster.1 port=http:80
         slice t/web http=8080
           pod1
           remote1",
    );
    let plan = planner.plan();
    let frontend = plan.services().values().next().unwrap().frontends[0].key();
    assert_eq!(node.holds(plan, frontend).unwrap(), ["table ip kpng is not there"]);
    node.sync(plan, None);
    let missing = "delete element ip kpng endpoints { 172.30.0.1 . tcp . 80 . 1 }";
    nft(&network.node, &[], missing);
    expect![[r#"
        ip kpng service-ips { 172.30.0.1 . tcp . 80 : f45b:26b7 }
        ip kpng forwarded-services { 172.30.0.1 . tcp . 80 }
        ip kpng endpoints { 172.30.0.1 . tcp . 80 . 0 : 10.180.0.1 . 8080 }
        ip kpng endpoints { 172.30.0.1 . tcp . 80 . 1 : 10.180.1.1 . 8080 } (missing)
        ip kpng routes { f45b:26b7 : goto service-pod-2-node-2m-outside-2m }
        ip kpng chain service-to-2
          ip daddr . meta l4proto . th dport @forwarded-services
          meta priority set 0:2 goto pick-endpoint
        ip kpng chain service-to-2m
          ip daddr . meta l4proto . th dport @forwarded-services
          meta mark set meta mark | 0x4000 meta priority set 0:2 goto pick-endpoint
        ip kpng chain service-pod-2-node-2m-outside-2m
          ip saddr @pod-cidrs goto service-to-2
          goto service-to-2m
    "#]]
    .assert_eq(&(node.holds(plan, frontend).unwrap().join("\n") + "\n"));
}

#[test]
fn a_restart_with_another_state_changes_only_the_difference() {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, nft_backend);
    for pair in CASES.windows(2) {
        let (before, after) = (plan(&pair[0]), plan(&pair[1]));
        node.sync(before.plan(), None);
        let restarted = OnNode::new(&network, nft_backend);
        restarted.sync(after.plan(), None);
        let adopted = listed(&network.node);
        restarted.cleanup();
        restarted.sync(after.plan(), None);
        assert_eq!(sorted(&adopted), sorted(&listed(&network.node)), "{}", pair[1].name);
    }
}

/// The numbers of endpoints depend on what was there before: `KEY . NUMBER : ENDPOINT` without them.
fn unnumbered(line: &str) -> String {
    match line.split_once(" : ") {
        Some((key, endpoint)) if endpoint.contains(" . ") && !line.starts_with("typeof") => {
            let key = key.rsplit_once(" . ").map_or(key, |(key, _)| key);
            format!("{key} : {endpoint}")
        }
        _ => line.to_owned(),
    }
}

/// Lines without order, and without the chains that wait empty for their deletion.
fn sorted(listing: &str) -> Vec<String> {
    let blocks = listing.split("\n\n").map(|block| {
        let mut lines: Vec<_> =
            block.split([',', '\n', '{', '}']).map(|line| unnumbered(line.trim())).collect();
        lines.retain(|line| !line.is_empty());
        lines.sort_unstable();
        lines
    });
    let mut blocks: Vec<_> = blocks.filter(|lines| lines.len() > 1).collect();
    blocks.sort_unstable();
    blocks.concat()
}

#[test]
fn others_changes_are_noticed_and_repaired() {
    let Some(network) = network() else { return };
    let planner = everything();
    let node = OnNode::new(&network, nft_backend);
    node.sync(planner.plan(), None);
    assert!(!node.disturbed());
    let intact = listed(&network.node);
    for change in [
        "delete table ip kpng",
        "flush chain ip6 kpng services",
        "flush map ip kpng service-ips",
        "add rule ip kpng services drop",
        "delete table ip kpng; delete table ip6 kpng",
    ] {
        nft(&network.node, &[], change);
        assert!(node.disturbed(), "{change}");
        node.sync(planner.plan(), None);
        assert_eq!(sorted(&listed(&network.node)), sorted(&intact), "{change}");
        assert!(!node.disturbed(), "{change}");
    }
    nft(&network.node, &[], "add table ip other; add chain ip other services");
    assert!(!node.disturbed(), "other tables are none of our business");
    node.cleanup();
    assert_eq!(nft(&network.node, &["list", "tables"], ""), "table ip other\n");
}

#[test]
fn frontends_change_hands_also_in_changes_that_are_too_large_for_one_transaction() {
    let Some(network) = network() else { return };
    // 60 ports, each with 250 endpoints of both families: 30,000 elements.
    let cluster = |namespace: &str| {
        let ports: String = (0..60).map(|n| format!(" port=p{n}:{}", 1000 + n)).collect();
        let targets: String = (0..60).map(|n| format!(" p{n}=8080")).collect();
        let pods: String = (1..=250).map(|n| format!("pod{n}\n")).collect();
        let name = format!("{namespace}/web");
        plan_of(&format!("service {name} cluster=cluster.1{ports}\nslice {name}{targets}\n{pods}"))
    };
    let node = OnNode::new(&network, nft_backend);
    let before = cluster("b");
    node.sync(before.plan(), None);
    let intact = sorted(&listed(&network.node));
    for namespace in ["a", "c"] {
        let after = cluster(namespace);
        node.sync(after.plan(), Some(all_services(before.plan(), after.plan())));
        assert!(sorted(&listed(&network.node)) == intact, "the service is now in {namespace}");
        assert!(!node.disturbed());
        node.sync(before.plan(), None);
    }
}

#[test]
fn a_service_with_affinity_leaves_nothing_behind() {
    let Some(network) = network() else { return };
    const OTHER: &str =
        "service t/other cluster=cluster.1 port=http:80\nslice t/other http=8080\npod1\n";
    let with = |service: &str| plan_of(&format!("{OTHER}{service}"));
    let sticky = with(
        "service t/sticky cluster=cluster.2 port=http:80 affinity=60\nslice t/sticky http=8080\npod2\npod3",
    );
    let other = with("");
    let another = with("service t/another cluster=cluster.3 port=http:80");
    let node = OnNode::new(&network, nft_backend);
    node.sync(other.plan(), None);
    let mut before = other.plan();
    for after in [&sticky, &other, &another, &other] {
        node.sync(after.plan(), Some(all_services(before, after.plan())));
        before = after.plan();
        // Chains without references may be deleted from now on.
        std::thread::sleep(Duration::from_millis(1100));
    }
    let listed = listed(&network.node);
    assert!(!listed.contains("sticky"), "{listed}");
}

#[test]
fn nobody_is_refused_while_endpoints_come_and_go() {
    let Some(network) = network() else { return };
    let cluster = |pods: &str| {
        plan_of(&format!(
            "service t/web cluster=cluster.1 port=http:80\nslice t/web http=8080\n{pods}"
        ))
    };
    let (one, four) = (cluster("pod1"), cluster("pod1\npod2\npod3\nremote1"));
    let node = OnNode::new(&network, nft_backend);
    node.sync(one.plan(), None);
    let ends = AtomicBool::new(false);
    let ask = || {
        let vip = SocketAddr::new(address("cluster.1", Family::V4), 80);
        let (mut asked, mut unanswered) = (0, Vec::new());
        while !ends.load(Ordering::Relaxed) {
            let outcome = network.pod(4).tcp(None, vip);
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
        while start.elapsed() < Duration::from_secs(5) {
            for (before, after) in [(&one, &four), (&four, &one)] {
                node.sync(after.plan(), Some(all_services(before.plan(), after.plan())));
                changes += 1;
            }
        }
        ends.store(true, Ordering::Relaxed);
        let (asked, unanswered) = client.join().unwrap();
        assert!(asked > 100 && changes > 100, "{changes} changes, {asked} connections");
        assert!(unanswered.is_empty(), "{unanswered:?} of {asked}, {changes} changes");
    });
}
