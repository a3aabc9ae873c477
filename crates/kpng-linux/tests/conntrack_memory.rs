//! Listing a large conntrack table, in a process of its own: its memory is what is looked at.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::BTreeSet;

use kpng_linux::conntrack::{Conntrack, Entry};
use kpng_linux::namespace::NetNs;
use kpng_linux::rtnetlink::Family;

#[path = "kernel/insertion.rs"]
mod insertion;

use insertion::{UDP, insert};

#[test]
fn a_large_table_is_read_completely_in_bounded_memory() {
    const COUNT: u32 = 50_000;
    let namespace = match NetNs::new() {
        Ok(namespace) => namespace,
        Err(error) if std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") => {
            println!("skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}, or set KPNG_SKIP_NET=1 to skip this test"),
    };
    let listed = namespace.run(|| {
        insert(COUNT, UDP);
        let mut table = Conntrack::open().unwrap();
        let before = resident_kib();
        let (mut count, mut sum) = (0, 0_u64);
        let visit = |entry: &Entry| {
            count += 1;
            sum += u64::from(entry.original.source.port());
            Ok(())
        };
        table.dump(Family::V4, UDP, visit).unwrap();
        let grown = resident_kib().saturating_sub(before);
        assert_eq!(count, COUNT);
        assert!(sum > 0);
        // The entries alone, as they are sent, are some 10 MiB.
        assert!(grown < 4096, "the listing took {grown} KiB");
        let mut distinct = BTreeSet::new();
        let visit = |entry: &Entry| {
            distinct.insert(entry.original.source);
            Ok(())
        };
        table.dump(Family::V4, UDP, visit).unwrap();
        assert_eq!(distinct.len(), COUNT as usize);
    });
    listed.unwrap();
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
