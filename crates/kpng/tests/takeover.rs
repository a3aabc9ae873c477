//! Starting one backend where another ran: every backend takes over from every other, by packets.
//!
//! A process of its own, as eBPF programs are attached to the control group of hosts.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "the binary is what is tested")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kpng_testkit::bpf::BpfPlace;
use kpng_testkit::guest::in_guest;
use kpng_testkit::network::Network;

#[path = "node/example.rs"]
mod example;
#[path = "node/process.rs"]
mod process;

use example::{answered_by, network, state, write};
use process::{Kpng, eventually, run};

/// A backend, and whether what it wrote is there.
type Backend = (&'static str, fn(&Network) -> bool);

const NFT: Backend =
    ("nft", |network| tables(network).lines().any(|table| table == "table ip kpng"));
const IPTABLES: Backend =
    ("iptables", |network| run(&network.node, &["iptables-save"]).contains("KPNG-"));
const EBPF: Backend = ("ebpf", |_| pins().is_some_and(|pins| pins.exists()));
const IPVS: Backend = ("ipvs", |network| {
    let links = run(&network.node, &["ip", "link"]);
    tables(network).contains("kpng-ipvs") || links.contains("kpng-ipvs0")
});
const USERSPACELIN: Backend =
    ("userspacelin", |network| tables(network).contains("kpng-userspace"));

/// Where eBPF programs are pinned and attached in this process.
static PLACE: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();

fn pins() -> Option<&'static PathBuf> {
    PLACE.get().map(|(pins, _)| pins)
}

fn tables(network: &Network) -> String {
    run(&network.node, &["nft", "list", "tables"])
}

/// Starts kpng, where `/sys/fs/bpf` is the file system of the test if there is one.
fn start(network: &Network, path: &Path, backend: &str, health: u16) -> Kpng {
    const SCRIPT: &str = r#"mount --bind "$0" /sys/fs/bpf && exec "$@""#;
    let input = format!("--input={}", path.display());
    let (sink, health) =
        (format!("to-{backend}"), format!("--healthz-bind-address=127.0.0.1:{health}"));
    let mut arguments = vec!["file", &input, "to-local", &sink, &health, "--admin-socket="];
    arguments.extend(["--node-name=node-a", "--cluster-cidrs=10.0.0.0/8,fd00:180::/32"]);
    let Some((pins, cgroup)) = PLACE.get() else { return Kpng::start(&network.node, &arguments) };
    let cgroup = format!("--cgroup-root={}", cgroup.display());
    arguments.extend((backend == "ebpf").then_some(&*cgroup));
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT]).arg(pins.parent().unwrap());
    command.arg(env!("CARGO_BIN_EXE_kpng")).args(arguments);
    Kpng::spawn(&network.node, command)
}

/// A way through all ordered pairs of backends.
fn all_pairs(count: usize) -> Vec<usize> {
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
    let place = BpfPlace::new(&network);
    PLACE.set((place.pins.clone(), place.cgroup.clone())).expect("one test sets it");
    let bpf = place.pins.parent().unwrap().to_str().unwrap();
    run(&network.node, &["mount", "-t", "bpf", "bpf", bpf]);
    take_over(&network, &[NFT, IPTABLES, EBPF, USERSPACELIN]);
}

#[test]
fn with_another_kernel_ipvs_does_so_too() {
    in_guest(Duration::from_secs(300), || {
        take_over(&network().unwrap(), &[NFT, IPVS, USERSPACELIN]);
    });
}

fn take_over(network: &Network, backends: &[Backend]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let way: Vec<_> = all_pairs(backends.len()).into_iter().map(|index| backends[index]).collect();
    let mut running = start(network, &path, way[0].0, 10256);
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
            let mut old = std::mem::replace(&mut running, start(network, &path, now.0, health));
            running.wait_ready_at(&network.node, health);
            eventually(&format!("what to-{} wrote goes", before.0), || !before.1(network));
            assert!(now.1(network), "to-{} is in force", now.0);
            let status = ended.get_or_insert_with(|| old.terminate());
            assert!(status.success(), "{}", old.log());
            let served = asked.load(Ordering::Relaxed) + 5;
            eventually("clients go on", || asked.load(Ordering::Relaxed) >= served);
            assert!(!before.1(network), "to-{} left something at its end", before.0);
            let refused = refused.load(Ordering::Relaxed);
            assert_eq!(refused, 0, "to-{} after to-{}: {}", now.0, before.0, running.log());
        }
        end.store(true, Ordering::Relaxed);
    });
}
