//! `kpng file … to-local to-nft`: reload, restarts, repair, clean-up.

use std::path::Path;
use std::time::Duration;

use kpng_testkit::network::{Network, Outcome};
use rustix::process::Signal;

use crate::example::{answered_by, ask, network, state, write};
use crate::process::{Kpng, eventually, http, run, within};

pub(crate) const FLAGS: &[&str] =
    &["to-local", "to-nft", "--node-name=node-a", "--cluster-cidrs=10.0.0.0/8,fd00:180::/32"];

fn start(network: &Network, path: &Path) -> Kpng {
    let input = format!("--input={}", path.display());
    Kpng::start(&network.node, &[&["file", &input], FLAGS].concat())
}

#[test]
fn the_file_is_followed_and_a_broken_one_changes_nothing() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let kpng = start(&network, &path);
    kpng.wait_ready(&network.node);
    assert!(answered_by(network.pod(3), "pod1"));

    write(&path, &state(&["10.180.0.2"]));
    eventually("the other pod answers", || answered_by(network.pod(3), "pod2"));

    write(&path, "services: [{service: {name: 1");
    eventually("the error is logged", || kpng.log().contains("state.yaml:1:"));
    assert!(answered_by(network.pod(3), "pod2"), "the last good state stays in force");

    write(&path, &state(&[]));
    eventually("nobody is left", || ask(network.pod(3)) == Outcome::Refused);
    assert_eq!(ask(&network.client), Outcome::Refused);
}

#[test]
fn rules_outlive_the_process_and_a_restart_changes_none() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1", "10.180.0.2"]));
    let list = || run(&network.node, &["nft", "-s", "-a", "list", "ruleset"]);

    let mut kpng = start(&network, &path);
    kpng.wait_ready(&network.node);
    let rules = list();
    assert!(kpng.terminate().success(), "{}", kpng.log());
    assert_eq!(list(), rules, "SIGTERM leaves the data path as it is");
    assert!(matches!(ask(network.pod(3)), Outcome::Answered { .. }));

    let mut kpng = start(&network, &path);
    kpng.wait_ready(&network.node);
    assert_eq!(list(), rules, "a restart with the same state changes no rule");

    kpng.signal(Signal::KILL);
    kpng.wait();
    write(&path, &state(&["10.180.0.2"]));
    let _kpng = {
        let kpng = start(&network, &path);
        kpng.wait_ready(&network.node);
        kpng
    };
    assert!(
        (0..20).all(|_| answered_by(network.pod(3), "pod2")),
        "what changed meanwhile is in force"
    );
}

#[test]
fn a_deleted_table_is_back_within_five_seconds() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let kpng = start(&network, &path);
    kpng.wait_ready(&network.node);
    run(&network.node, &["nft", "delete", "table", "ip", "kpng"]);
    assert!(!answered_by(network.pod(3), "pod1"));
    let back = within(Duration::from_secs(5), || answered_by(network.pod(3), "pod1"));
    assert!(back, "{}", kpng.log());
}

#[test]
fn cleanup_removes_ours_and_only_ours() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    run(&network.node, &["nft", "add", "table", "inet", "theirs"]);
    let mut kpng = start(&network, &path);
    kpng.wait_ready(&network.node);
    assert!(kpng.terminate().success());
    let mut cleanup = Kpng::start(&network.node, &["file", "to-local", "to-nft", "--cleanup"]);
    assert!(cleanup.wait().success(), "{}", cleanup.log());
    assert_eq!(run(&network.node, &["nft", "list", "tables"]), "table inet theirs\n");
}

#[test]
fn kube_proxys_tables_are_replaced_on_request() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    for command in [
        "nft add table ip kube-proxy",
        "nft add chain ip kube-proxy services",
        "iptables-nft -t nat -N KUBE-SERVICES",
        "iptables-nft -t nat -N KUBE-SVC-X",
        "iptables-nft -t nat -A KUBE-SERVICES -d 172.30.0.1 -j KUBE-SVC-X",
        "iptables-nft -t nat -A PREROUTING -m comment --comment kube -j KUBE-SERVICES",
        "iptables-nft -t nat -A PREROUTING -d 192.0.2.1 -j RETURN",
        "iptables-nft -t mangle -N KUBE-IPTABLES-HINT",
        "iptables-nft -N KUBE-FIREWALL",
        "iptables-nft -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
        "iptables-nft -A INPUT -j KUBE-FIREWALL",
        "iptables-nft -N KUBE-ROUTER-INPUT",
        "iptables-nft -A INPUT -j KUBE-ROUTER-INPUT",
        "iptables-nft -N KUBE-FORWARD",
        "iptables-nft -A FORWARD -j KUBE-FORWARD",
        "ipset create KUBE-LOOP-BACK hash:ip,port,ip",
        "ipset create KUBE-6-NODE-PORT-TCP bitmap:port range 0-65535",
        "ipset create KUBE-ROUTER-PODS hash:ip",
        "iptables-nft -A KUBE-FORWARD -m set --match-set KUBE-LOOP-BACK dst,dst,src -j ACCEPT",
    ] {
        run(&network.node, &command.split(' ').collect::<Vec<_>>());
    }
    let input = format!("--input={}", path.display());
    let arguments = [&["file", &input], FLAGS, &["--replace-kube-proxy"]].concat();
    let kpng = Kpng::start(&network.node, &arguments);
    kpng.wait_ready(&network.node);
    eventually("kube-proxy's table goes", || {
        !run(&network.node, &["nft", "list", "tables"]).contains("kube-proxy")
    });
    let nat = run(&network.node, &["iptables-nft-save", "-t", "nat"]);
    assert!(!nat.contains("KUBE-") && nat.contains("192.0.2.1"), "{nat}");
    assert!(
        run(&network.node, &["iptables-nft-save", "-t", "mangle"]).contains("KUBE-IPTABLES-HINT")
    );
    let filter = run(&network.node, &["iptables-nft-save", "-t", "filter"]);
    for theirs in ["-A INPUT -j KUBE-FIREWALL", "-A KUBE-FIREWALL", "-A INPUT -j KUBE-ROUTER-INPUT"]
    {
        assert!(filter.contains(theirs), "{theirs} is not in\n{filter}");
    }
    assert!(!filter.contains("KUBE-FORWARD"), "{filter}");
    eventually("kube-proxy's ipsets go", || {
        run(&network.node, &["ipset", "list", "-name"]) == "KUBE-ROUTER-PODS\n"
    });
    assert!(answered_by(network.pod(3), "pod1"));
}

#[test]
fn metrics_and_health_are_served() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let kpng = start(&network, &path);
    kpng.wait_ready(&network.node);
    let get = |port, path| http(&network.node, port, path).unwrap_or_default();
    assert!(get(10256, "/healthz").contains(" 200 "), "{}", get(10256, "/healthz"));
    assert!(get(10256, "/livez").contains(" 200 "));
    let metrics = get(10249, "/metrics");
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "kpng_node_local_events_total",
        "kpng_frontend_conflicts 0",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    assert!(get(10249, "/proxyMode").ends_with("nftables"));
}
