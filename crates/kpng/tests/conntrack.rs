//! UDP flows follow their endpoints: real packets through the nft backend, and a table of entries.

#![cfg(feature = "nft")]
#![expect(clippy::disallowed_methods, reason = "the conntrack tool shares no code with ours")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use kpng::conntrack::{Cleaner, Reconciler, Report};
use kpng_core::Backend;
use kpng_core::model::Family;
use kpng_core::plan::Plan;
use kpng_linux::conntrack::{Conntrack, Entry};
use kpng_linux::rtnetlink;
use kpng_nft::{Config, Nft};
use kpng_testkit::conformance::{OnNode, all_services, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::{Host, Network, Outcome, Topology, UdpFlow};

const SERVICE: &str = "
    service t/u cluster=cluster.1 ext=ext.1 lb=lb.1 port=u:5300/UDP:3053 port=t:8080
    slice t/u u=53/UDP t=8080
";

fn with(pods: &str) -> String {
    format!("{SERVICE}\n{pods}")
}

fn network() -> Option<Network> {
    let network = Network::new(Topology { pods: 2, remote_pods: 1 })?;
    for pod in network.pods.iter().chain(&network.remote_pods) {
        pod.serve(&[53]);
        pod.serve_echo(&[8080]);
    }
    Some(network)
}

fn nft_backend() -> Box<dyn Backend> {
    Box::new(Nft::open(Config::default()).unwrap())
}

/// What a pipeline does, step by step.
struct Node<'a> {
    network: &'a Network,
    backend: OnNode<'a>,
    plan: Plan,
    reconciler: Reconciler,
}

impl<'a> Node<'a> {
    fn new(network: &'a Network) -> Self {
        let backend = OnNode::new(network, nft_backend);
        let plan = Plan::default();
        backend.sync(&plan, None);
        let mut node = Self { network, backend, plan, reconciler: Reconciler::new() };
        node.reconciler.update(&node.plan, None);
        node.pass();
        node
    }

    fn sync(&mut self, cluster: &str) {
        let planner = plan_of(cluster);
        let changed = all_services(&self.plan, planner.plan());
        self.plan = planner.plan().clone();
        self.backend.sync(&self.plan, Some(changed.clone()));
        self.reconciler.update(&self.plan, Some(&changed));
    }

    /// `None` when there was nothing to do.
    fn pass(&mut self) -> Option<Report> {
        let pass = self.reconciler.start()?;
        let (pass, result) = self.network.node.run(move || {
            let result = pass.run();
            (pass, result)
        });
        self.reconciler.finish(pass, &result);
        Some(result.unwrap())
    }

    fn apply(&mut self, cluster: &str) -> Option<Report> {
        self.sync(cluster);
        self.pass()
    }
}

/// Flows that keep their port: to each frontend, from everywhere, in both families.
fn flows(network: &Network) -> Vec<(String, UdpFlow)> {
    let mut flows = Vec::new();
    for (from, host) in
        [("client", &network.client), ("pod2", network.pod(2)), ("node", &network.node)]
    {
        for (to, port) in [("cluster.1", 5300), ("ext.1", 5300), ("lb.1", 5300), ("node", 3053)] {
            for family in Family::ALL {
                let flow = host.udp_flow(None, SocketAddr::new(address(to, family), port));
                flows.push((format!("{from} to {to}, {}", family.name()), flow));
            }
        }
    }
    flows
}

fn check(flows: &[(String, UdpFlow)], expected: &str) {
    for (name, flow) in flows {
        let outcome = match flow.probe() {
            Outcome::Answered { by, .. } => by,
            // The kernel refuses the node's own datagrams before they are sent.
            Outcome::Refused | Outcome::Unreachable => "refused".to_owned(),
            Outcome::TimedOut => "nothing".to_owned(),
        };
        assert_eq!(outcome, expected, "{name}");
    }
}

#[test]
fn flows_follow_the_endpoints() {
    let Some(network) = network() else { return };
    let mut node = Node::new(&network);
    node.apply(&with("pod1"));
    let flows = flows(&network);
    let count = u64::try_from(flows.len()).unwrap();
    check(&flows, "pod1");

    // The pod is replaced.
    let report = node.apply(&with("remote1")).unwrap();
    assert_eq!((report.deleted_v4, report.deleted_v6), (count / 2, count / 2), "{report:?}");
    check(&flows, "remote1");

    // All endpoints go, and one comes back.
    let report = node.apply(&with("remote1 terminating")).unwrap();
    assert_eq!(report.deleted(), count, "{report:?}");
    check(&flows, "refused");
    node.apply(&with("pod1"));
    check(&flows, "pod1");

    // A new endpoint disturbs nobody, and nobody looks.
    assert_eq!(node.apply(&with("pod1\nremote1")), None);
    check(&flows, "pod1");
    assert_eq!(node.apply(&with("pod1 serving-terminating\nremote1")), None);
    check(&flows, "pod1");

    // The service goes, and comes again with another endpoint.
    let report = node.apply("").unwrap();
    assert_eq!(report.deleted(), count, "{report:?}");
    node.apply(&with("remote1"));
    check(&flows, "remote1");

    // A restarted proxy cleans up what changed while it was away.
    drop(node);
    let mut restarted = Node::new(&network);
    restarted.reconciler = Reconciler::new();
    let report = restarted.apply(&with("pod1")).unwrap();
    assert_eq!(report.deleted(), count, "{report:?}");
    check(&flows, "pod1");
}

/// While nobody served the addresses, the packets went their way, and the kernel remembers that.
#[test]
fn flows_that_met_nobody_are_not_stuck() {
    let Some(network) = network() else { return };
    let mut node = Node::new(&network);
    let client = &network.client;
    let to = |name, family| SocketAddr::new(address(name, family), 5300);
    let flows: Vec<_> = Family::ALL
        .into_iter()
        .flat_map(|family| ["ext.1", "lb.1"].map(|name| client.udp_flow(None, to(name, family))))
        .collect();
    for flow in &flows {
        assert_eq!(flow.probe().answered_by(), None);
    }
    node.sync(&with("pod1"));
    for flow in &flows {
        assert_eq!(flow.probe().answered_by(), None, "the kernel remembers the way");
    }
    let report = node.pass().unwrap();
    assert_eq!(report.deleted(), 4, "{report:?}");
    for flow in &flows {
        assert_eq!(flow.probe().answered_by(), Some("pod1"));
    }
}

#[test]
fn tcp_connections_are_kept() {
    let Some(network) = network() else { return };
    let mut node = Node::new(&network);
    node.apply(&with("pod1"));
    let mut connections: Vec<_> = Family::ALL
        .into_iter()
        .map(|family| SocketAddr::new(address("cluster.1", family), 8080))
        .map(|to| network.client.tcp_flow(None, to).unwrap())
        .collect();
    node.apply(&with("remote1"));
    node.apply("");
    for connection in &mut connections {
        connection.echo("still there?").unwrap();
    }
}

/// The cleaner as it runs in a node: it is told of syncs, and works by itself.
#[test]
fn a_client_that_sends_all_the_time_notices_little() {
    const PATIENCE: Duration = Duration::from_secs(2);
    let Some(network) = network() else { return };
    let mut node = Node::new(&network);
    let cleaner = Arc::new(Cleaner::new());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    thread::scope(|scope| {
        let running = Arc::clone(&cleaner);
        scope.spawn(|| {
            network.node.namespace().run(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    let observe = |result: &kpng_linux::Result<Report>| {
                        result.as_ref().expect("passes succeed");
                    };
                    tokio::select! {
                        () = running.run(observe) => {}
                        _ = stopped => {}
                    }
                });
            })
        });
        let to = SocketAddr::new(address("cluster.1", Family::V4), 5300);
        let flow = network.client.udp_flow(None, to);
        for pods in ["pod1", "remote1", "", "pod2", "pod1", "remote1 terminating", "remote1"] {
            node.sync(&with(pods));
            cleaner.update(&node.plan, None);
            let expected = pods.split_whitespace().next().filter(|_| !pods.contains(' '));
            let end = Instant::now() + PATIENCE;
            while flow.probe().answered_by() != expected {
                assert!(Instant::now() < end, "{pods:?} is not reached");
                thread::sleep(Duration::from_millis(50));
            }
        }
        stop.send(()).unwrap();
    });
}

/// Runs the conntrack tool on the node.
fn tool(node: &Host, arguments: &str) {
    let arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
    node.run(move || {
        let mut command = Command::new("conntrack");
        let output = command.args(&arguments).output();
        let output = output.expect("conntrack is installed (apt-get install conntrack)");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "conntrack {arguments:?}: {errors}");
    });
}

/// All entries of the node, those of IPv4 first.
fn entries(node: &Host) -> Vec<String> {
    node.run(|| {
        let mut table = Conntrack::open().unwrap();
        let mut lines = Vec::new();
        for family in [rtnetlink::Family::V4, rtnetlink::Family::V6] {
            for protocol in [6, 17, 132] {
                let note = |entry: &Entry| {
                    let (to, by) = (entry.original.destination, entry.reply.source);
                    let name = entry.original.source.port();
                    lines.push(format!("{name}: {protocol} {to} by {by}"));
                    Ok(())
                };
                table.dump(family, protocol, note).unwrap();
            }
        }
        lines.sort_unstable();
        lines
    })
}

/// Which of the entries are deleted when pod1 is the only one that serves `cluster`.
fn check_entries(network: &Network, cluster: &str, add: &[&str], expected: Expect) {
    tool(&network.node, "-F");
    let base = plan_of("");
    let mut reconciler = Reconciler::new();
    reconciler.update(base.plan(), None);
    let pass = reconciler.start().unwrap();
    reconciler.finish(pass, &Ok(Report::default()));
    for (number, entry) in (1001..).zip(add) {
        let (protocol, rest) = entry.split_once(' ').expect("a protocol and addresses");
        let source = if rest.contains("::") { "2001:db8:203::2" } else { "203.0.113.2" };
        let state = match protocol {
            "tcp" => "--state ESTABLISHED",
            "sctp" => "--state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
            _ => "",
        };
        tool(
            &network.node,
            &format!("-I -t 600 -p {protocol} -s {source} --sport {number} {rest} {state}"),
        );
    }
    let before = entries(&network.node);
    assert_eq!(before.len(), add.len(), "{before:?}");
    for full in [false, true] {
        let planner = plan_of(cluster);
        let mut reconciler = if full { Reconciler::new() } else { std::mem::take(&mut reconciler) };
        reconciler.update(planner.plan(), None);
        let pass = reconciler.start().unwrap();
        let report = network.node.run(move || pass.run()).unwrap();
        let after = entries(&network.node);
        let deleted: Vec<_> = before.iter().filter(|entry| !after.contains(entry)).collect();
        let deleted: String = deleted.iter().map(|line| format!("{line}\n")).collect();
        expected.assert_eq(&deleted);
        // The second, full pass finds nothing that the first one left.
        let count = if full { 0 } else { deleted.lines().count() };
        assert_eq!(usize::try_from(report.deleted()).unwrap(), count, "{report:?}");
    }
}

/// The service of kube-proxy's tests of the same thing, with a serving endpoint pod1.
#[test]
fn exactly_the_entries_of_our_frontends_without_a_serving_target_go() {
    let Some(network) = network() else { return };
    let cluster = "
        service t/u cluster=cluster.1 ext=ext.1 lb=lb.1 port=u:8000/UDP:32000 port=t:8000:32000 port=s:8000/SCTP
        slice t/u u=9090/UDP t=9090 s=9090/SCTP
          pod1
          pod2 notready
    ";
    let entries = [
        // Those that serve stay, on every frontend.
        "udp -d 172.30.0.1 --dport 8000 -g 10.180.0.1:9090",
        "udp -d 192.168.0.2 --dport 32000 -g 10.180.0.1:9090",
        // Not serving, gone, another port of one that serves, never translated.
        "udp -d 172.30.0.1 --dport 8000 -g 10.180.0.2:9090",
        "udp -d 172.30.0.1 --dport 8000 -g 10.180.0.9:9090",
        "udp -d 172.30.0.1 --dport 8000 -g 10.180.0.1:8080",
        "udp -d 172.30.0.1 --dport 8000",
        "udp -d 198.18.0.1 --dport 8000 -g 10.180.0.2:9090",
        "udp -d 198.51.100.1 --dport 8000 -g 10.180.0.2:9090",
        "udp -d 192.168.0.2 --dport 32000 -g 10.180.0.2:9090",
        // Not ours: other ports, other addresses, a zone that somebody keeps.
        "udp -d 172.30.0.1 --dport 3000 -g 10.180.0.2:9090",
        "udp -d 172.30.0.2 --dport 8000 -g 10.180.0.2:9090",
        "udp -d 192.168.1.2 --dport 32000 -g 10.180.0.2:9090",
        "udp -d 203.0.113.9 --dport 32000",
        "udp -d 172.30.0.1 --dport 8000 -w 7",
        // Other protocols.
        "tcp -d 172.30.0.1 --dport 8000 -g 10.180.0.2:9090",
        "sctp -d 172.30.0.1 --dport 8000 -g 10.180.0.2:9090",
        // And in the other family.
        "udp -d fd00:172:30::1 --dport 8000 -g [fd00:180::1]:9090",
        "udp -d fd00:172:30::1 --dport 8000 -g [fd00:180::2]:9090",
        "udp -d 2001:db8::1 --dport 32000 -g [fd00:180::2]:9090",
        "udp -d fd00:172:30::1 --dport 8000",
        "udp -d fd00:172:30::2 --dport 8000",
        "udp -d 2001:db8::2 --dport 32000 -g [fd00:180::2]:9090",
    ];
    check_entries(
        &network,
        cluster,
        &entries,
        expect![[r#"
        1003: 17 172.30.0.1:8000 by 10.180.0.2:9090
        1004: 17 172.30.0.1:8000 by 10.180.0.9:9090
        1005: 17 172.30.0.1:8000 by 10.180.0.1:8080
        1006: 17 172.30.0.1:8000 by 172.30.0.1:8000
        1007: 17 198.18.0.1:8000 by 10.180.0.2:9090
        1008: 17 198.51.100.1:8000 by 10.180.0.2:9090
        1009: 17 192.168.0.2:32000 by 10.180.0.2:9090
        1018: 17 [fd00:172:30::1]:8000 by [fd00:180::2]:9090
        1019: 17 [2001:db8::1]:32000 by [fd00:180::2]:9090
        1020: 17 [fd00:172:30::1]:8000 by [fd00:172:30::1]:8000
    "#]],
    );
}

#[test]
fn many_stale_frontends_take_one_listing_per_family() {
    let Some(network) = network() else { return };
    let mut node = Node::new(&network);
    let services = |pods: &str| -> String {
        let service = |n| {
            format!(
                "service t/u{n} cluster=cluster.{n} port=u:53/UDP\nslice t/u{n} u=53/UDP\n{pods}\n"
            )
        };
        (1..=20).map(service).collect()
    };
    node.apply(&services("pod1"));
    let to = SocketAddr::new(address("cluster.17", Family::V4), 53);
    let flow = network.client.udp_flow(None, to);
    assert_eq!(flow.probe().answered_by(), Some("pod1"));
    let report = node.apply(&services("pod2")).unwrap();
    assert_eq!((report.listings, report.deleted()), (2, 1), "{report:?}");
    assert_eq!(flow.probe().answered_by(), Some("pod2"));
}
