use std::ops::ControlFlow;

use expect_test::{Expect, expect};
use kpng_linux::conntrack::{Conntrack, Entry};
use kpng_linux::rtnetlink::Family;

use crate::insertion::{TCP, UDP, insert};
use crate::{in_namespace, output};

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
