//! The backends side by side: what there is, taking over from each other, and cleaning up.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kpng_testkit::network::Network;

use crate::file::{answered_by, network, state, write};
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
    start_at(network, path, backend, 10256)
}

fn start_at(network: &Network, path: &Path, backend: &str, health: u16) -> Kpng {
    let input = format!("--input={}", path.display());
    let health = format!("--healthz-bind-address=127.0.0.1:{health}");
    let flags =
        ["--node-name=node-a", "--cluster-cidrs=10.0.0.0/8,fd00:180::/32", "--admin-socket="];
    let sink = format!("to-{backend}");
    let arguments = [&["file", &input, &health, "to-local", &sink], &flags[..]].concat();
    Kpng::start(&network.node, &arguments)
}

/// A way through all ordered pairs of backends.
fn all_pairs() -> Vec<usize> {
    let count = BACKENDS.len();
    let mut left: BTreeSet<_> = (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).collect();
    left.retain(|(a, b)| a != b);
    let mut way = vec![0];
    while let Some(&(first, _)) = left.first() {
        let here = way[way.len() - 1];
        let next = left.iter().find(|(a, _)| *a == here).map_or(first, |(_, b)| *b);
        left.remove(&(here, next));
        way.push(next);
    }
    way
}

#[test]
fn every_backend_takes_over_from_every_other_and_nobody_is_refused() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let way: Vec<_> = all_pairs().into_iter().map(|index| &BACKENDS[index]).collect();
    let mut running = start(&network, &path, way[0].0);
    running.wait_ready(&network.node);

    let end = Arc::new(AtomicBool::new(false));
    let (asked, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let answered = answered_by(network.pod(3), "pod1");
                asked.fetch_add(1, Ordering::Relaxed);
                refused.fetch_add(usize::from(!answered), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        for (number, pair) in way.windows(2).enumerate() {
            let (before, now) = (pair[0], pair[1]);
            let health = 10257 + u16::from(number % 2 == 1);
            // What serves only while it runs has to be there until the other one is.
            let overlap = before.0 == "userspacelin";
            let mut ended = (!overlap).then(|| running.terminate());
            let mut old = std::mem::replace(&mut running, start_at(&network, &path, now.0, health));
            running.wait_ready_at(&network.node, health);
            eventually(&format!("what to-{} wrote goes", before.0), || !before.1(&network));
            assert!(now.1(&network), "to-{} is in force", now.0);
            let status = ended.get_or_insert_with(|| old.terminate());
            assert!(status.success(), "{}", old.log());
            let served = asked.load(Ordering::Relaxed) + 5;
            eventually("clients go on", || asked.load(Ordering::Relaxed) >= served);
            assert!(!before.1(&network), "to-{} left something at its end", before.0);
            let refused = refused.load(Ordering::Relaxed);
            assert_eq!(refused, 0, "to-{} after to-{}: {}", now.0, before.0, running.log());
        }
        end.store(true, Ordering::Relaxed);
    });
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
    let before = run(&network.node, &["nft", "list", "ruleset"]);

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
    assert_eq!(run(&network.node, &["nft", "list", "ruleset"]), before, "it is another's");
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
