//! A pass over a large table: what it costs does not depend on the table's size. A program of its
//! own, because it measures its memory.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests too")]

use std::net::{IpAddr, Ipv4Addr};

use kpng::conntrack::{Reconciler, Report};
use kpng_core::model::Family;
use kpng_linux::namespace::NetNs;
use kpng_linux::netlink::{MessageBuf, Protocol, Socket};
use kpng_testkit::conformance::{all_services, plan_of};
use kpng_testkit::fixture::address;

const ENTRIES: u32 = 100_000;
const ONE_POD: &str = "
    service t/u cluster=cluster.1 port=u:53/UDP
    slice t/u u=5353/UDP
      pod1
";

/// Fills the table with flows to the service, answered by pod1; every 1000th by pod2.
fn fill() -> u64 {
    let mut socket = Socket::open(Protocol::Netfilter, 0).unwrap();
    let IpAddr::V4(to) = address("cluster.1", Family::V4) else {
        unreachable!("IPv4 was asked for")
    };
    let mut stale = 0;
    for first in (0..ENTRIES).step_by(500) {
        let mut batch = MessageBuf::new();
        for number in first..first + 500 {
            let is_stale = number % 1000 == 7;
            stale += u64::from(is_stale);
            let by = Ipv4Addr::new(10, 180, 0, if is_stale { 2 } else { 1 });
            let from = Ipv4Addr::from(0x0a00_0000 + number / 50_000);
            let port = 1000 + (number % 50_000) as u16;
            put_entry(&mut batch, (from, port), to, by);
        }
        socket.request(&"add entries", &mut batch).unwrap();
    }
    stale
}

/// The numbers are those of linux/netfilter/nfnetlink_conntrack.h.
fn put_entry(batch: &mut MessageBuf, from: (Ipv4Addr, u16), to: Ipv4Addr, by: Ipv4Addr) {
    const CREATE: u16 = 0x400;
    batch.begin(1 << 8, CREATE);
    batch.put_raw(&[2, 0, 0, 0]);
    let (from, from_port) = from;
    let original = (from, from_port, to, 53);
    let reply = (by, 5353, from, from_port);
    for (kind, (source, source_port, destination, destination_port)) in [(1, original), (2, reply)]
    {
        batch.nest(kind, |m| {
            m.nest(1, |m| {
                m.put_bytes(1, &source.octets());
                m.put_bytes(2, &destination.octets());
            });
            m.nest(2, |m| {
                m.put_u8(1, 17);
                m.put_u16_be(2, source_port);
                m.put_u16_be(3, destination_port);
            });
        });
    }
    batch.put_u32_be(7, 600);
}

/// The most memory that this process ever used, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn pass(reconciler: &mut Reconciler) -> Report {
    let pass = reconciler.start().unwrap();
    let result = pass.run();
    reconciler.finish(pass, &result);
    result.unwrap()
}

#[test]
fn a_large_table_is_cleaned_in_little_memory() {
    let namespace = match NetNs::new() {
        Err(_) if std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") => return,
        namespace => namespace.unwrap(),
    };
    namespace.run(clean_up_large_table).unwrap();
}

fn clean_up_large_table() {
    let stale = fill();
    let one_pod = plan_of(ONE_POD);
    let mut reconciler = Reconciler::new();
    let other = "service t/other cluster=cluster.9 port=u:53/UDP";
    let before = peak_memory();

    // At the start everything is looked at once.
    reconciler.update(one_pod.plan(), None);
    let full = pass(&mut reconciler);
    assert_eq!((full.visited, full.listings), (ENTRIES.into(), 2), "{full:?}");
    assert_eq!(full.deleted(), stale, "{full:?}");

    // A change of another service does not show a single one of them.
    let with_other = plan_of(&format!("{other}\n{ONE_POD}"));
    let changed = all_services(with_other.plan(), with_other.plan());
    reconciler.update(with_other.plan(), Some(&changed));
    let filtered = pass(&mut reconciler);
    assert_eq!((filtered.visited, filtered.listings), (0, 2), "{filtered:?}");

    // The service goes, with all its flows.
    reconciler.update(plan_of("").plan(), Some(&changed));
    let all = pass(&mut reconciler);
    assert_eq!(all.deleted(), u64::from(ENTRIES) - stale, "{all:?}");

    let grown = peak_memory() - before;
    println!("full {full:?}\nfiltered {filtered:?}\nall {all:?}\npeak memory grew by {grown} KiB");
    assert!(grown < 4096, "memory grew by {grown} KiB");
}
