//! The backend against a real kernel: the conformance table by real packets, with both variants of
//! iptables, restarts, and what others do.

#![expect(clippy::disallowed_methods, reason = "iptables-save is the judge of what is written")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kpng_core::Backend;
use kpng_core::plan::{Plan, Planner};
use kpng_iptables::{Config, Iptables, Variant, ruleset_text};
use kpng_testkit::cases::{CASES, PORTS};
use kpng_testkit::conformance::{OnNode, all_services, check_packets, plan, plan_of};
use kpng_testkit::network::{Host, Network, Topology};

fn network() -> Option<Network> {
    let network = Network::new(Topology { pods: 4, remote_pods: 2 })?;
    for pod in network.pods.iter().chain(&network.remote_pods) {
        pod.serve(PORTS);
    }
    network.node.run(|| {
        kpng_linux::sysctl::set("net/ipv4/conf/all/route_localnet", "1").unwrap();
    });
    Some(network)
}

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

/// What iptables-save prints of both families, without time stamps, and with counters if wanted.
fn saved(host: &Host, variant: Variant, counters: bool) -> String {
    let arguments: &[&str] = if counters { &["-c"] } else { &[] };
    let mut text = String::new();
    for family in ["ip", "ip6"] {
        let program = format!("{family}tables-{}-save", variant.name());
        let output = run(host, &program, arguments, "");
        text.extend(output.lines().filter(|line| !line.starts_with('#')).map(|l| format!("{l}\n")));
    }
    text
}

fn conforms(variant: Variant) {
    let Some(network) = network() else { return };
    let node = OnNode::new(&network, backend(variant));
    let mut before = Plan::default();
    node.sync(&before, None);
    let mut wrong = Vec::new();
    // From each state straight to the next: the difference is what gets written.
    for case in CASES {
        let planner = plan(case);
        node.sync(planner.plan(), Some(all_services(&before, planner.plan())));
        wrong.extend(check_packets(case, &network));
        before = planner.plan().clone();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn packets_go_where_the_plan_says() {
    conforms(Variant::Nft);
}

#[test]
fn packets_go_where_the_plan_says_in_legacy() {
    conforms(Variant::Legacy);
}
