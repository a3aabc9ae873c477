//! The eBPF backend as a process. It has a control group and a place for pins of its own, so it is
//! apart from the other tests.

#![cfg(feature = "ebpf")]
#![expect(clippy::disallowed_methods, reason = "the binary under test is a child process")]
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

#[path = "node/example.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod example;
#[path = "node/process.rs"]
mod process;

use std::net::{IpAddr, SocketAddr};

use kpng_testkit::bpf::BpfPlace;
use kpng_testkit::network::{Host, Network};
use rustix::process::Signal;

use crate::example::{network, state, write};
use crate::process::{Kpng, eventually, http, run};

/// Both ways lead to this pod: by a socket of another pod, and by packets from outside.
fn answers(network: &Network, pod: &str) -> bool {
    let ask = |from: &Host, ip: [u8; 4], port| {
        let outcome = from.tcp(None, SocketAddr::new(IpAddr::from(ip), port));
        outcome.answered_by() == Some(pod)
    };
    ask(network.pod(3), [172, 30, 0, 1], 80) && ask(&network.client, [192, 168, 0, 2], 30080)
}

#[test]
fn the_data_path_outlives_the_process_until_it_is_cleaned_up() {
    outlives_the_process("--attach=auto");
}

#[test]
fn the_data_path_outlives_the_process_by_filters_too() {
    outlives_the_process("--attach=clsact");
}

fn outlives_the_process(attach: &str) {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let qdiscs = || run(&network.node, &["tc", "qdisc", "show"]);
    let qdiscs_before = qdiscs();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let input = format!("--input={}", path.display());
    let pins = format!("--bpffs-root={}", place.pins.display());
    let cgroup = format!("--cgroup-root={}", place.cgroup.display());
    let start = |more: &[&str]| {
        let flags =
            ["--node-name=node-a", "--cluster-cidrs=10.0.0.0/8,fd00:180::/32", "--admin-socket="];
        let command = ["file", &input, "to-local", "to-ebpf", &pins, &cgroup, attach];
        Kpng::start(&network.node, &[&command[..], &flags, more].concat())
    };
    let mut kpng = start(&[]);
    kpng.wait_ready(&network.node);
    eventually("the endpoint answers", || answers(&network, "pod1"));
    write(&path, &state(&["10.180.0.2"]));
    eventually("the new endpoint answers", || answers(&network, "pod2"));
    let metrics = http(&network.node, 10249, "/metrics").unwrap();
    // The service's cluster IP, its node port, and the closed cluster IP.
    let elements = "kpng_backend_table_elements{table=\"frontends\"} 3";
    assert!(metrics.contains(elements), "{metrics}");
    assert!(metrics.contains("kpng_backend_table_capacity{table=\"targets\"} 1024"), "{metrics}");
    let value = |name: &str, map: &str| {
        let start = format!("kpng_ebpf_map_{name}{{map=\"{map}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&start)).map(str::parse);
        let value = value.unwrap_or_else(|| panic!("{start} is not in\n{metrics}"));
        value.unwrap_or_else(|_| panic!("{start} is no number in\n{metrics}"))
    };
    // Connections came in from outside, and each has two flows.
    let [flows, capacity, bytes]: [f64; 3] =
        ["elements", "capacity", "bytes"].map(|name| value(name, "flows"));
    assert!(flows >= 2.0 && capacity == f64::from(1 << 18), "{metrics}");
    // Keys and values alone take 96 bytes.
    assert!(bytes > 96.0 * capacity && value("bytes", "frontends") > 0.0, "{metrics}");
    assert_eq!(qdiscs() != qdiscs_before, attach == "--attach=clsact", "{}", qdiscs());
    kpng.signal(Signal::KILL);
    kpng.wait();
    assert!(answers(&network, "pod2"), "{}", kpng.log());

    write(&path, &state(&["10.180.0.1"]));
    let mut kpng = start(&[]);
    kpng.wait_ready(&network.node);
    assert!(answers(&network, "pod1"), "{}", kpng.log());
    assert!(kpng.terminate().success());
    assert!(answers(&network, "pod1"), "SIGTERM leaves the data path as it is");

    let mut cleanup = start(&["--cleanup"]);
    assert!(cleanup.wait().success(), "{}", cleanup.log());
    assert!(!place.pins.exists());
    assert_eq!(qdiscs(), qdiscs_before);
    eventually("nobody answers", || !answers(&network, "pod1"));
}

#[test]
fn a_check_tells_what_is_missing() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let folder = tempfile::tempdir().unwrap();
    let [path, socket] = ["state.yaml", "admin.sock"].map(|name| folder.path().join(name));
    write(&path, &state(&["10.180.0.1"]));
    let input = format!("--input={}", path.display());
    let pins = format!("--bpffs-root={}", place.pins.display());
    let cgroup = format!("--cgroup-root={}", place.cgroup.display());
    let socket = format!("--admin-socket={}", socket.display());
    let flags = ["--node-name=node-a", "--cluster-cidrs=10.0.0.0/8,fd00:180::/32", &socket];
    let command = ["file", &input, "to-local", "to-ebpf", &pins, &cgroup];
    let running = Kpng::start(&network.node, &[&command[..], &flags].concat());
    running.wait_ready(&network.node);
    let kpng = env!("CARGO_BIN_EXE_kpng");
    let check = || {
        let line = format!("{kpng} check {socket}; echo code $?");
        run(&network.node, &["sh", "-c", &line])
    };
    assert!(check().starts_with("equal") && check().ends_with("code 0\n"), "{}", check());
    let explained = run(&network.node, &[kpng, "explain", &socket, "10.180.0.3", "172.30.0.1:80"]);
    let (_, kernel) = explained.split_once("kernel\n").unwrap();
    assert!(kernel.contains("frontends 172.30.0.1:80/TCP: pod pool "), "{kernel}");
    assert!(kernel.contains(": 10.180.0.1:8080\n") && !kernel.contains("missing"), "{kernel}");

    eventually("a check sees a program go before the process repairs it", || {
        std::fs::remove_file(place.pins.join("links/kpng_connect4")).unwrap();
        let checked = check();
        let seen = checked.ends_with("code 1\n");
        let missing = "missing: 1\n  attachment of kpng_connect4 to the control group";
        assert_eq!(seen, checked.contains(missing), "{checked}");
        eventually("it is repaired", || check().ends_with("code 0\n"));
        seen
    });
    // What nobody repairs, as the kernel does not report it: a table that is gone.
    std::fs::remove_file(place.pins.join("tables/frontends")).unwrap();
    let checked = check();
    assert!(checked.ends_with("code 1\n"), "{checked}");
    for missing in ["table frontends", "frontends 172.30.0.1:80/TCP"] {
        assert!(checked.contains(&format!("  {missing}\n")), "{checked}");
    }
    assert!(answers(&network, "pod1"), "a check disturbs nobody: {}", running.log());
}
