//! The backends side by side: what there is, and cleaning up.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use kpng_testkit::network::Network;

use crate::example::{network, state, write};
use crate::process::{Kpng, eventually, run};

/// Whether what a backend wrote is there.
type IsThere = fn(&Network) -> bool;

/// Backends that program a kernel like this one.
const BACKENDS: [(&str, IsThere); 3] =
    [("nft", has_nft), ("iptables", has_iptables), ("userspacelin", has_userspacelin)];

fn has_nft(network: &Network) -> bool {
    run(&network.node, &["nft", "list", "tables"]).lines().any(|table| table == "table ip kpng")
}

fn has_userspacelin(network: &Network) -> bool {
    let addresses = run(&network.node, &["ip", "address", "show", "dev", "lo"]);
    run(&network.node, &["nft", "list", "tables"]).contains("kpng-userspace")
        || addresses.contains("169.254.107.1")
}

fn has_iptables(network: &Network) -> bool {
    run(&network.node, &["iptables-save"]).contains("KPNG-")
}

fn start(network: &Network, path: &Path, backend: &str) -> Kpng {
    let input = format!("--input={}", path.display());
    let flags =
        ["--node-name=node-a", "--cluster-cidrs=10.0.0.0/8,fd00:180::/32", "--admin-socket="];
    let sink = format!("to-{backend}");
    let arguments = [&["file", &input, "to-local", &sink], &flags[..]].concat();
    Kpng::start(&network.node, &arguments)
}

#[test]
fn cleanup_removes_what_any_backend_left() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    run(&network.node, &["nft", "add", "table", "inet", "theirs"]);
    run(&network.node, &["iptables", "-t", "nat", "-N", "THEIRS"]);
    for (backend, is_there) in BACKENDS {
        let mut kpng = start(&network, &path, backend);
        kpng.wait_ready(&network.node);
        assert!(kpng.terminate().success());
        assert!(is_there(&network), "{}", kpng.log());
        let mut cleanup = Kpng::start(&network.node, &["cleanup"]);
        assert!(cleanup.wait().success(), "{}", cleanup.log());
        assert!(BACKENDS.iter().all(|(_, is_there)| !is_there(&network)), "after to-{backend}");
    }
    assert!(run(&network.node, &["nft", "list", "tables"]).contains("inet theirs"));
    assert!(run(&network.node, &["iptables-save", "-t", "nat"]).contains(":THEIRS"));
}

#[test]
fn health_checks_alone_touch_no_data_path() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    let state = |pods: &[&str]| {
        state(pods).replace(
            "type: NodePort\n",
            "type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 32100\n",
        )
    };
    write(&path, &state(&["10.180.0.1"]));
    let mut nft = start(&network, &path, "nft");
    nft.wait_ready(&network.node);
    assert!(nft.terminate().success());
    let before = run(&network.node, &["nft", "-s", "list", "ruleset"]);

    let kpng = start(&network, &path, "healthchecks");
    kpng.wait_ready(&network.node);
    let node = network.node.v4();
    let answers = |status: &str| {
        let answer = network.client.run(move || {
            let mut stream = TcpStream::connect((node, 32100)).ok()?;
            write!(stream, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        });
        answer.is_some_and(|answer| answer.contains(status))
    };
    eventually("the port says that there is an endpoint", || answers(" 200 "));
    write(&path, &state(&[]));
    eventually("the port says that there is none", || answers(" 503 "));
    assert_eq!(run(&network.node, &["nft", "-s", "list", "ruleset"]), before, "it is another's");
}

#[test]
fn the_table_of_backends_is_that_of_the_command_line() {
    let Some(network) = network() else { return };
    let json = run(&network.node, &[env!("CARGO_BIN_EXE_kpng"), "backends", "--output=json"]);
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let text = run(&network.node, &[env!("CARGO_BIN_EXE_kpng"), "backends"]);
    let help = run(&network.node, &[env!("CARGO_BIN_EXE_kpng"), "local", "--help"]);
    for row in rows.as_array().unwrap() {
        let command = row["command"].as_str().unwrap();
        assert!(text.contains(command) && help.contains(command), "{command}");
    }
    let readme = include_str!("../../../../README.md");
    let table = run(&network.node, &[env!("CARGO_BIN_EXE_kpng"), "backends", "--output=markdown"]);
    assert!(readme.contains(&table), "README.md needs this table:\n{table}");
    for (backend, _) in BACKENDS {
        assert!(rows.as_array().unwrap().iter().any(|row| row["name"] == backend));
    }
}
