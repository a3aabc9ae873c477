use std::collections::BTreeSet;
use std::ops::ControlFlow;

use expect_test::{Expect, expect};
use kpng_linux::conntrack::{Conntrack, Entry};
use kpng_linux::netlink::{MessageBuf, Protocol, Socket};
use kpng_linux::rtnetlink::Family;

use crate::{in_namespace, output};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

fn entries(conntrack: &mut Conntrack, family: Family, protocol: u8) -> Vec<Entry> {
    let mut entries = Vec::new();
    let push = |entry: &Entry| {
        entries.push(*entry);
        Ok(())
    };
    conntrack.dump(family, protocol, push).unwrap();
    entries.sort_by_cached_key(Entry::to_string);
    entries
}

fn check(conntrack: &mut Conntrack, family: Family, protocol: u8, expected: Expect) {
    let line = |entry: &Entry| format!("{entry} dnat={}\n", entry.is_dnat());
    let lines: String = entries(conntrack, family, protocol).iter().map(line).collect();
    expected.assert_eq(&lines);
}

/// Adds entries with the `conntrack` tool: an oracle that shares no code with ours.
fn add(arguments: &str) {
    let mut command = vec!["conntrack", "-I", "-t", "600"];
    command.extend(arguments.split_whitespace());
    output(&command);
}

fn fill_table() {
    add("-p udp -s 10.0.0.1 -d 172.30.0.1 --sport 1000 --dport 53 -g 10.180.0.1:5353");
    add("-p udp -s 10.0.0.2 -d 172.30.0.9 --sport 1000 --dport 53");
    add("-p udp -s 10.0.0.3 -d 172.30.0.1 --sport 1000 --dport 53 -g 10.180.0.2:5353 -w 7");
    add("-p udp -s fd00::1 -d fd00:172:30::1 --sport 1000 --dport 53");
    add("-p tcp -s 10.0.0.1 -d 172.30.0.1 --sport 1000 --dport 53 --state ESTABLISHED");
    add("-p sctp -s 10.0.0.1 -d 172.30.0.1 --sport 1000 --dport 53 --state ESTABLISHED \
         --orig-vtag 1 --reply-vtag 2");
    add("-p icmp -s 10.0.0.1 -d 172.30.0.1 --icmp-type 8 --icmp-code 0 --icmp-id 1");
}

#[test]
fn the_table_is_read_as_the_tool_wrote_it() {
    in_namespace(|| {
        fill_table();
        let mut table = Conntrack::open().unwrap();
        check(
            &mut table,
            Family::V4,
            UDP,
            expect![[r#"
                protocol 17 from 10.0.0.1:1000 to 172.30.0.1:53, answered by 10.180.0.1:5353, zone 0 dnat=true
                protocol 17 from 10.0.0.2:1000 to 172.30.0.9:53, answered by 172.30.0.9:53, zone 0 dnat=false
                protocol 17 from 10.0.0.3:1000 to 172.30.0.1:53, answered by 10.180.0.2:5353, zone 7 dnat=true
            "#]],
        );
        check(
            &mut table,
            Family::V6,
            UDP,
            expect![[r#"
                protocol 17 from [fd00::1]:1000 to [fd00:172:30::1]:53, answered by [fd00:172:30::1]:53, zone 0 dnat=false
            "#]],
        );
        for protocol in [TCP, SCTP] {
            assert_eq!(entries(&mut table, Family::V4, protocol).len(), 1);
            assert!(entries(&mut table, Family::V6, protocol).is_empty());
        }
        let icmp = 1;
        assert!(entries(&mut table, Family::V4, icmp).is_empty());
    });
}

#[test]
fn exactly_the_entry_is_deleted() {
    in_namespace(|| {
        fill_table();
        let mut table = Conntrack::open().unwrap();
        for (family, protocol) in
            [(Family::V4, UDP), (Family::V6, UDP), (Family::V4, TCP), (Family::V4, SCTP)]
        {
            let mut left = entries(&mut table, family, protocol);
            while let Some(entry) = left.pop() {
                table.delete(&entry).unwrap();
                assert_eq!(entries(&mut table, family, protocol), left);
                table.delete(&entry).unwrap(); // it is gone: no error
            }
        }
        let rest = output(&["conntrack", "-L"]);
        assert!(rest.lines().count() == 1 && rest.starts_with("icmp"), "{rest}");
    });
}

#[test]
fn a_newer_entry_with_the_same_addresses_is_spared() {
    in_namespace(|| {
        let add = || add("-p udp -s 10.0.0.1 -d 172.30.0.1 --sport 1000 --dport 53");
        let mut table = Conntrack::open().unwrap();
        add();
        let old = entries(&mut table, Family::V4, UDP)[0];
        table.delete(&old).unwrap();
        // Ids derive from the memory of the entry: try until it lies elsewhere.
        let renewed = (0..64).try_for_each(|port| {
            let other = format!("-p udp -s 10.0.0.9 -d 172.30.0.9 --sport {port} --dport 9");
            self::add(&other);
            add();
            let all = entries(&mut table, Family::V4, UDP);
            let new = *all.iter().find(|entry| entry.original == old.original).unwrap();
            if new.id != old.id {
                return ControlFlow::Break(new);
            }
            table.delete(&new).unwrap();
            ControlFlow::Continue(())
        });
        let ControlFlow::Break(new) = renewed else { panic!("every entry got the same id") };
        table.delete(&old).unwrap();
        assert!(entries(&mut table, Family::V4, UDP).contains(&new));
    });
}

#[test]
fn an_error_of_the_visitor_ends_the_listing_and_the_table_stays_usable() {
    in_namespace(|| {
        insert(1000, UDP);
        let mut table = Conntrack::open().unwrap();
        let mut seen = 0;
        let stop = |_: &Entry| {
            seen += 1;
            Err(kpng_linux::Error::kernel("stop", rustix::io::Errno::CANCELED))
        };
        let error = table.dump(Family::V4, UDP, stop).unwrap_err();
        assert_eq!((seen, error.errno()), (1, Some(rustix::io::Errno::CANCELED)));
        assert_eq!(entries(&mut table, Family::V4, UDP).len(), 1000);
    });
}

#[test]
fn the_kernel_filters_by_protocol() {
    in_namespace(|| {
        insert(2000, TCP);
        insert(100, UDP);
        let mut table = Conntrack::open().unwrap();
        assert_eq!(entries(&mut table, Family::V4, UDP).len(), 100);
        assert_eq!(entries(&mut table, Family::V4, TCP).len(), 2000);
        assert_eq!(entries(&mut table, Family::V6, TCP).len(), 0);
    });
}

#[test]
fn a_large_table_is_read_completely_in_bounded_memory() {
    const COUNT: u32 = 50_000;
    in_namespace(|| {
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
        let distinct: BTreeSet<_> = entries(&mut table, Family::V4, UDP)
            .iter()
            .map(|entry| entry.original.source)
            .collect();
        assert_eq!(distinct.len(), COUNT as usize);
    });
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Adds `count` entries from different sources.
fn insert(count: u32, protocol: u8) {
    let mut socket = Socket::open(Protocol::Netfilter, 0).unwrap();
    let mut batch = MessageBuf::new();
    for number in 0..count {
        put_insertion(&mut batch, number, protocol);
        if batch.messages() == 1000 || number + 1 == count {
            socket.request(&"insert conntrack entries", &mut batch).unwrap();
            batch.clear();
        }
    }
}

fn put_insertion(m: &mut MessageBuf, number: u32, protocol: u8) {
    let client = (0x0a00_0000 | (number >> 12)).to_be_bytes();
    let port = 1024 + (number & 0xfff) as u16;
    let vip = [172, 30, 0, 1];
    m.begin(0x100, (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16);
    m.put_raw(&[libc::AF_INET as u8, 0, 0, 0]);
    for (direction, source, destination) in
        [(1, (client, port), (vip, 53)), (2, (vip, 53), (client, port))]
    {
        m.nest(direction, |m| {
            m.nest(1, |m| {
                m.put_bytes(1, &source.0);
                m.put_bytes(2, &destination.0);
            });
            m.nest(2, |m| {
                m.put_u8(1, protocol);
                m.put_u16_be(2, source.1);
                m.put_u16_be(3, destination.1);
            });
        });
    }
    m.put_u32_be(7, 600); // CTA_TIMEOUT
    if protocol == TCP {
        m.nest(4, |m| m.nest(1, |m| m.put_u8(1, 3))); // established
    }
}
