//! `kpng local … to-nft`: a node whose view a server works out.

use std::path::Path;

use kpng_testkit::network::Network;
use rustix::process::Signal;

use crate::example::{answered_by, network, state, write};
use crate::file::FLAGS;
use crate::process::{Kpng, eventually, run};

/// Serves the file in the node's own namespace, as a process that is not the node's.
fn serve(network: &Network, path: &Path, api: &str) -> Kpng {
    let input = format!("--input={}", path.display());
    let quiet = ["--healthz-bind-address=", "--metrics-bind-address="];
    let server = Kpng::start(
        &network.node,
        &[&["file", &input, "to-api", "--listen", api], &quiet[..]].concat(),
    );
    eventually("the server listens", || server.log().contains("listening"));
    server
}

fn follow(network: &Network, api: &str) -> Kpng {
    let node = Kpng::start(&network.node, &[&["local", "--api", api], &FLAGS[1..]].concat());
    node.wait_ready(&network.node);
    node
}

#[test]
fn a_server_makes_the_rules_that_a_node_would_make() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    let api = format!("unix://{}", folder.path().join("api.sock").display());
    write(&path, &state(&["10.180.0.1", "10.180.0.2"]));
    let input = format!("--input={}", path.display());
    let rules = |handles: &[&str]| {
        run(&network.node, &[&["nft", "-s"], handles, &["list", "ruleset"]].concat())
    };

    let mut alone = Kpng::start(&network.node, &[&["file", &input], FLAGS].concat());
    alone.wait_ready(&network.node);
    let (expected, with_handles) = (rules(&[]), rules(&["-a"]));
    assert!(expected.contains("172.30.0.1"), "{expected}");
    assert!(alone.terminate().success());

    let server = serve(&network, &path, &api);
    let mut node = follow(&network, &api);
    assert_eq!(rules(&["-a"]), with_handles, "what is right stays untouched");
    node.signal(Signal::KILL);
    node.wait();
    let mut cleanup = Kpng::start(&network.node, &["file", "to-local", "to-nft", "--cleanup"]);
    assert!(cleanup.wait().success(), "{}", cleanup.log());
    assert_eq!(rules(&[]), "");
    let node = follow(&network, &api);
    assert_eq!(rules(&[]), expected, "the same from nothing");

    write(&path, &state(&["10.180.0.2"]));
    eventually("the other pod alone answers", || {
        (0..10).all(|_| answered_by(network.pod(3), "pod2"))
    });
    drop(server);
    eventually("the loss is logged", || node.log().contains("stays in force"));
    assert!(answered_by(network.pod(3), "pod2"), "the data path needs no server");

    write(&path, &state(&["10.180.0.1"]));
    let _server = serve(&network, &path, &api);
    eventually("what changed meanwhile is in force", || answered_by(network.pod(3), "pod1"));
}

#[test]
fn a_lost_table_is_repaired_without_a_server() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    let api = format!("unix://{}", folder.path().join("api.sock").display());
    write(&path, &state(&["10.180.0.1"]));
    let server = serve(&network, &path, &api);
    let _node = follow(&network, &api);
    drop(server);
    run(&network.node, &["nft", "delete", "table", "ip", "kpng"]);
    assert!(!answered_by(network.pod(3), "pod1"));
    eventually("the table is back", || answered_by(network.pod(3), "pod1"));
}
