use std::collections::BTreeSet;
use std::time::Duration;

use expect_test::{Expect, expect};

use super::text::Ruleset;
use super::*;
use crate::namespace::NetNs;

fn goto(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.to_owned()))
}

fn vip() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport]
}

/// Every statement, with every value that matters.
fn statements(address: &str) -> Vec<Statement> {
    let address = address.parse().unwrap();
    vec![
        Statement::Connection(Connection::New),
        Statement::Connection(Connection::Invalid),
        Statement::Connection(Connection::Dnat),
        Statement::InSet { key: vec![Field::Saddr], set: "s", negate: false },
        Statement::InSet { key: vip(), set: "s", negate: true },
        Statement::L4Proto(6),
        Statement::L4Proto(132),
        Statement::L4Proto(1),
        Statement::DaddrInLoopbackNet,
        Statement::NotFromLoopback,
        Statement::Iifname { name: "cni0".to_owned(), prefix: false },
        Statement::Iifname { name: "veth".to_owned(), prefix: true },
        Statement::SourceIsLocal,
        Statement::OnceIn(3),
        Statement::MarkHas(0x4000),
        Statement::SetMark(0x4000),
        Statement::ClearMark(0x4000),
        Statement::SetPriority { key: vip(), map: "m" },
        Statement::PriorityTo(0),
        Statement::PriorityTo(3),
        Statement::PriorityIs(0x1_0003),
        Statement::VerdictMap { key: vec![Field::Priority], map: "v" },
        Statement::Update {
            set: "d",
            key: vec![Field::Saddr, Field::Constant(7), Field::Constant(9)],
            timeout: Duration::from_secs(10_800),
        },
        Statement::DnatMap { key: [vip(), vec![Field::Random(3)]].concat(), map: "e" },
        Statement::Dnat { address, port: 8080 },
        Statement::Masquerade,
        Statement::RejectWithReset,
        Statement::Reject,
        Statement::Verdict(Verdict::Accept),
        Statement::Verdict(Verdict::Drop),
        Statement::Verdict(Verdict::Return),
        Statement::Verdict(Verdict::Jump("c".to_owned())),
        goto("c"),
    ]
}

fn check_text(family: TableFamily, address: &str, expected: Expect) {
    let rules = statements(address).into_iter().map(|statement| Rule::new([statement])).collect();
    let text = text::render(&Ruleset {
        table: Table::new(family, "t"),
        sets: Vec::new(),
        chains: vec![(Chain { name: "c".to_owned(), hook: None }, rules)],
    });
    let lines: Vec<_> = text.lines().skip(4).map(str::trim).take_while(|l| *l != "}").collect();
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn statements_as_text() {
    check_text(
        TableFamily::Ip,
        "10.0.0.1",
        expect![[r#"
            ct state new
            ct state invalid
            ct status dnat
            ip saddr @s
            ip daddr . meta l4proto . th dport != @s
            meta l4proto tcp
            meta l4proto sctp
            meta l4proto 1
            ip daddr 127.0.0.0/8
            iif != "lo"
            iifname "cni0"
            iifname "veth*"
            fib saddr type local
            numgen random mod 3 0
            meta mark & 0x4000 == 0x4000
            meta mark set meta mark | 0x4000
            meta mark set meta mark & 0xffffbfff
            meta priority set ip daddr . meta l4proto . th dport map @m
            meta priority set none
            meta priority set 0:3
            meta priority 1:3
            meta priority vmap @v
            update @d { ip saddr . numgen random mod 1 offset 7 . numgen random mod 1 offset 9 timeout 10800s }
            dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @e
            dnat ip to 10.0.0.1:8080
            masquerade fully-random
            reject with tcp reset
            reject
            accept
            drop
            return
            jump c
            goto c"#]],
    );
}

#[test]
fn statements_as_text_in_ip6() {
    check_text(
        TableFamily::Ip6,
        "fd00::1",
        expect![[r#"
            ct state new
            ct state invalid
            ct status dnat
            ip6 saddr @s
            ip6 daddr . meta l4proto . th dport != @s
            meta l4proto tcp
            meta l4proto sctp
            meta l4proto 1
            ip6 daddr 127.0.0.0/8
            iif != "lo"
            iifname "cni0"
            iifname "veth*"
            fib saddr type local
            numgen random mod 3 0
            meta mark & 0x4000 == 0x4000
            meta mark set meta mark | 0x4000
            meta mark set meta mark & 0xffffbfff
            meta priority set ip6 daddr . meta l4proto . th dport map @m
            meta priority set none
            meta priority set 0:3
            meta priority 1:3
            meta priority vmap @v
            update @d { ip6 saddr . numgen random mod 1 offset 7 . numgen random mod 1 offset 9 timeout 10800s }
            dnat ip6 to ip6 daddr . meta l4proto . th dport . numgen random mod 3 map @e
            dnat ip6 to [fd00::1]:8080
            masquerade fully-random
            reject with tcp reset
            reject
            accept
            drop
            return
            jump c
            goto c"#]],
    );
}

#[test]
fn sets_and_hooks_as_text() {
    let text = text::render(&ruleset(TableFamily::Ip, "t"));
    expect![[r#"
        table ip t
        delete table ip t
        table ip t {
        	set s {
        		typeof ip daddr
        		counter
        		comment "what it is for"
        		elements = { 10.0.0.1 }
        	}

        	map m {
        		typeof ip daddr . meta l4proto . th dport : meta priority
        		comment "what it is for"
        		elements = { 10.0.0.1 . tcp . 80 : dead:beef }
        	}

        	map v {
        		typeof meta priority : verdict
        		comment "what it is for"
        		elements = { 0:1 : accept,
        		             0:2 : drop,
        		             0:3 : return,
        		             0:4 : jump c,
        		             0:5 : goto c }
        	}

        	map e {
        		typeof ip daddr . meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport
        		comment "what it is for"
        		elements = { 10.0.0.1 . tcp . 80 . 2 : 10.0.0.9 . 8080 }
        	}

        	set i {
        		typeof ip saddr
        		flags interval
        		comment "what it is for"
        		elements = { 10.0.0.1,
        		             10.0.0.4-10.0.0.7,
        		             10.0.0.8-255.255.255.255 }
        	}

        	set g {
        		typeof ip daddr . meta l4proto . th dport . ip saddr
        		flags interval
        		comment "what it is for"
        		elements = { 10.0.0.1 . tcp . 80 . 10.0.0.4-10.0.0.7 }
        	}

        	set d {
        		typeof ip saddr . numgen random mod 2 . numgen random mod 2
        		size 1000
        		flags dynamic,timeout
        		comment "what it is for"
        		elements = { 10.0.0.1 . 7 . 9 }
        	}

        	chain c {
        		numgen random mod 2 0 goto c2
        		fib saddr type local
        	}

        	chain c2 {
        	}

        	chain n {
        		type nat hook prerouting priority -100; policy accept;
        		goto c
        	}

        	chain f {
        		type filter hook output priority -90; policy accept;
        	}

        }
    "#]]
    .assert_eq(&text);
}

/// The fingerprint of a rule is written into the kernel: another version must find it the same.
#[cfg(target_endian = "little")]
#[test]
fn fingerprints_do_not_change() {
    let rule = Rule::new(statements("10.0.0.1"));
    let of = |family| format!("{:016x}", rule.fingerprint(family));
    expect!["870b731d7a3656e1"].assert_eq(&of(TableFamily::Ip));
    expect!["dff468baaeacaabb"].assert_eq(&of(TableFamily::Ip6));
}

#[test]
fn different_rules_have_different_fingerprints() {
    let all = statements("10.0.0.1");
    let fingerprint =
        |statement: &Statement| Rule::new([statement.clone()]).fingerprint(TableFamily::Ip);
    let different: BTreeSet<_> = all.iter().map(fingerprint).collect();
    assert_eq!(different.len(), all.len());
    let rule = |timeout| {
        let timeout = Duration::from_secs(timeout);
        Rule::new([Statement::Update { set: "d", key: vec![Field::Saddr], timeout }])
    };
    let family = TableFamily::Ip;
    assert_ne!(rule(1).fingerprint(family), rule(2).fingerprint(family));
}

/// Runs `test` in a new network namespace.
fn in_namespace(test: impl FnOnce(Nftables) + Send) {
    match NetNs::new() {
        Ok(namespace) => namespace.run(|| test(Nftables::open().unwrap())).unwrap(),
        Err(_) if std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") => {}
        Err(error) => panic!("{error}, or set KPNG_SKIP_NET=1 to skip this test"),
    }
}

fn element(key: Bytes, value: Value) -> Element {
    Element { key, last: None, value }
}

fn range(first: Bytes, last: Bytes) -> Element {
    Element { key: first, last: Some(last), value: Value::None }
}

fn def(name: &'static str, key: Vec<Field>, data: Data) -> SetDef {
    SetDef {
        name,
        key,
        data,
        interval: false,
        dynamic: None,
        counted: false,
        comment: "what it is for",
    }
}

/// One of everything.
fn ruleset(family: TableFamily, name: &str) -> Ruleset {
    let address = |last: u8| -> Bytes {
        let address = match family {
            TableFamily::Ip => std::net::Ipv4Addr::new(10, 0, 0, last).into(),
            TableFamily::Ip6 => {
                std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)).into()
            }
        };
        Bytes::EMPTY.address(address)
    };
    let highest = Bytes::from_slice(&vec![0xff; address(0).as_slice().len()]).unwrap();
    let append = |to: Bytes, more: Bytes| {
        Bytes::from_slice(&[to.as_slice(), more.as_slice()].concat()).unwrap()
    };
    let frontend = |last| address(last).protocol(6).port(80);
    let target = Data::Fields(vec![Field::Daddr, Field::Dport]);
    let (jump, goto_c) = (Verdict::Jump("c".to_owned()), Verdict::Goto("c".to_owned()));
    let verdicts = [Verdict::Accept, Verdict::Drop, Verdict::Return, jump, goto_c];
    let verdict = |(number, verdict): (u32, &Verdict)| {
        element(Bytes::EMPTY.number(number), Value::Verdict(verdict.clone()))
    };
    let dynamic = SetDef {
        dynamic: Some(1000),
        ..def("d", vec![Field::Saddr, Field::Constant(0), Field::Constant(0)], Data::None)
    };
    let interval = |set| SetDef { interval: true, ..set };
    let counted = |set| SetDef { counted: true, ..set };
    let sets = vec![
        (counted(def("s", vec![Field::Daddr], Data::None)), vec![element(address(1), Value::None)]),
        (
            def("m", vip(), Data::Fields(vec![Field::Priority])),
            vec![element(frontend(1), Value::Data(Bytes::EMPTY.number(0xdead_beef)))],
        ),
        (
            def("v", vec![Field::Priority], Data::Verdict),
            (1..).zip(&verdicts).map(verdict).collect(),
        ),
        (
            def("e", [vip(), vec![Field::Random(2)]].concat(), target),
            vec![element(frontend(1).number(2), Value::Data(address(9).port(8080)))],
        ),
        (
            interval(def("i", vec![Field::Saddr], Data::None)),
            vec![
                range(address(1), address(1)),
                range(address(4), address(7)),
                range(address(8), highest),
            ],
        ),
        (
            interval(def("g", [vip(), vec![Field::Saddr]].concat(), Data::None)),
            vec![range(append(frontend(1), address(4)), append(frontend(1), address(7)))],
        ),
        (dynamic, vec![element(address(1).number(7).number(9), Value::None)]),
    ];
    Ruleset { table: Table::new(family, name), sets, chains: chains() }
}

fn chains() -> Vec<(Chain, Vec<Rule>)> {
    let hook = |kind, point, priority| Some(Hook { kind, point, priority });
    let chain = |name: &str, hook| Chain { name: name.to_owned(), hook };
    vec![
        (
            chain("c", None),
            vec![
                Rule::new([Statement::OnceIn(2), goto("c2")]),
                Rule::new([Statement::SourceIsLocal]),
            ],
        ),
        (chain("c2", None), Vec::new()),
        (
            chain("n", hook(HookKind::Nat, HookPoint::Prerouting, -100)),
            vec![Rule::new([goto("c")])],
        ),
        (chain("f", hook(HookKind::Filter, HookPoint::Output, -90)), Vec::new()),
    ]
}

fn write(ruleset: &Ruleset) -> Batch {
    let mut batch = Batch::new();
    let table = &ruleset.table;
    batch.add_table(table);
    ruleset.chains.iter().for_each(|(chain, _)| batch.add_chain(table, chain));
    for (set, elements) in &ruleset.sets {
        batch.add_set(table, set);
        batch.add_elements(table, set, elements);
    }
    for (chain, rules) in &ruleset.chains {
        rules.iter().for_each(|rule| batch.add_rule(table, &chain.name, rule));
    }
    batch
}

fn sorted(mut elements: Vec<Element>) -> Vec<Element> {
    elements.sort_by_key(|element| element.key);
    elements
}

#[test]
fn what_is_written_is_read_back() {
    in_namespace(|mut nft| {
        for family in [TableFamily::Ip, TableFamily::Ip6] {
            let wanted = ruleset(family, "t");
            nft.commit(write(&wanted)).unwrap();
            assert_eq!(nft.tables(family).unwrap(), ["t"]);
            let found = nft.read_table(&wanted.table).unwrap().unwrap();

            assert_eq!(found.sets.len(), wanted.sets.len());
            for (set, elements) in &wanted.sets {
                assert!(found.sets[set.name].fits(family, set), "{}", set.name);
                let mut other = set.clone();
                other.key.push(Field::Dport);
                assert!(!found.sets[set.name].fits(family, &other), "{}", set.name);
                let other = SetDef { counted: !set.counted, ..set.clone() };
                assert!(!found.sets[set.name].fits(family, &other), "{}", set.name);
                let read = nft.elements(&wanted.table, set).unwrap();
                assert_eq!(sorted(read), sorted(elements.clone()), "{}", set.name);
            }
            assert_eq!(found.chains.len(), wanted.chains.len());
            for (chain, rules) in &wanted.chains {
                let found = &found.chains[&chain.name];
                assert_eq!(found.hook, chain.hook.map(|hook| hook.position()), "{}", chain.name);
                let of = |rule: &Rule| Some(rule.fingerprint(family));
                let fingerprints: Vec<_> = rules.iter().map(of).collect();
                let read: Vec<_> = found.rules.iter().map(|rule| rule.fingerprint).collect();
                assert_eq!(read, fingerprints, "{}", chain.name);
            }
            let targets = |chain: &str| {
                found.chains[chain]
                    .rules
                    .iter()
                    .map(|rule| rule.targets.clone())
                    .collect::<Vec<_>>()
            };
            assert_eq!(targets("c"), [vec!["c2".to_owned()], vec![]]);
            assert_eq!(targets("n"), [["c"]]);
        }
        let nowhere = Table::new(TableFamily::Ip, "nowhere");
        assert!(nft.read_table(&nowhere).unwrap().is_none());
    });
}

#[test]
fn what_is_deleted_is_gone() {
    in_namespace(|mut nft| {
        let wanted = ruleset(TableFamily::Ip, "t");
        nft.commit(write(&wanted)).unwrap();
        let mut batch = Batch::new();
        for (set, elements) in &wanted.sets {
            batch.delete_elements(&wanted.table, set, elements);
        }
        batch.flush_chain(&wanted.table, "n");
        batch.flush_chain(&wanted.table, "c");
        batch.delete_chain(&wanted.table, "c2");
        batch.delete_set(&wanted.table, "s");
        nft.commit(batch).unwrap();
        let found = nft.read_table(&wanted.table).unwrap().unwrap();
        assert!(found.chains.values().all(|chain| chain.rules.is_empty()));
        assert!(!found.chains.contains_key("c2") && !found.sets.contains_key("s"));
        for (set, _) in wanted.sets.iter().filter(|(set, _)| set.name != "s") {
            assert_eq!(nft.elements(&wanted.table, set).unwrap(), [], "{}", set.name);
        }
        let mut batch = Batch::new();
        batch.delete_table(&wanted.table);
        nft.commit(batch).unwrap();
        assert!(nft.read_table(&wanted.table).unwrap().is_none());
    });
}

/// Packets count where they are found, not where they are looked for in vain; who deletes an element
/// learns what it had counted.
#[test]
fn elements_of_a_counted_set_count() {
    let table = Table::new(TableFamily::Ip, "t");
    let set = SetDef { counted: true, ..def("k", vec![Field::Daddr], Data::None) };
    let element = |last| element(Bytes::EMPTY.address([127, 0, 0, last].into()), Value::None);
    let (one, two) = (element(1), element(2));
    let hook = Some(Hook { kind: HookKind::Filter, point: HookPoint::Output, priority: 0 });
    let chain = Chain { name: "out".to_owned(), hook };
    let look = |negate| Statement::InSet { key: vec![Field::Daddr], set: "k", negate };
    let mut batch = Batch::new();
    batch.add_table(&table);
    batch.add_chain(&table, &Chain { name: "nowhere".to_owned(), hook: None });
    batch.add_chain(&table, &chain);
    batch.add_set(&table, &set);
    batch.add_elements(&table, &set, [&one, &two]);
    batch.add_rule(&table, &chain.name, &Rule::new([look(true), goto("nowhere")]));
    batch.add_rule(&table, &chain.name, &Rule::new([look(false)]));
    in_namespace(move |mut nft| {
        nft.commit(batch).unwrap();
        let mut links = crate::rtnetlink::Rtnetlink::open().unwrap();
        let lo = links.link("lo").unwrap();
        links.set_up(lo.index).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..3 {
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        }
        let mut counters = nft.counters(&table, &set).unwrap();
        counters.sort_unstable();
        assert_eq!(counters, [(one.key, 3), (two.key, 0)]);

        let mut batch = Batch::new();
        batch.delete_elements(&table, &set, [&one]);
        batch.add_elements(&table, &set, [&one]);
        let taken = nft.commit_and_take(batch).unwrap();
        let expected =
            Taken { family: table.family, set: "k".to_owned(), key: one.key, packets: 3 };
        assert_eq!(taken, [expected]);
        assert!(nft.counters(&table, &set).unwrap().contains(&(one.key, 0)), "from 0 again");
    });
}

#[test]
fn so_many_counters_are_asked_for_that_the_answers_fit() {
    let table = Table::new(TableFamily::Ip6, "t");
    let set = SetDef { counted: true, ..def("k", vec![Field::Daddr], Data::None) };
    let address = |number: u32| std::net::Ipv6Addr::from_bits(u128::from(number)).into();
    let elements: Vec<_> =
        (0..3000).map(|n| element(Bytes::EMPTY.address(address(n)), Value::None)).collect();
    in_namespace(|mut nft| {
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_set(&table, &set);
        batch.add_elements(&table, &set, &elements);
        nft.commit(batch).unwrap();
        let mut batch = Batch::new();
        batch.delete_elements(&table, &set, &elements);
        // The kernel packs some into the last datagram that were not asked for.
        let taken = nft.commit_and_take(batch).unwrap().len();
        assert!((1000..1500).contains(&taken), "{taken}");
        assert_eq!(nft.elements(&table, &set).unwrap(), []);
    });
}

#[test]
fn many_elements_are_cut_into_lists_of_one_transaction() {
    let table = Table::new(TableFamily::Ip6, "t");
    let set = def("m", vip(), Data::Fields(vec![Field::Priority]));
    let of = |number: u32| {
        let address = std::net::Ipv6Addr::from_bits(u128::from(number));
        let key = Bytes::EMPTY.address(address.into()).protocol(6).port(80);
        element(key, Value::Data(Bytes::EMPTY.number(number)))
    };
    let elements: Vec<_> = (0..20_000).map(of).collect();
    let mut batch = Batch::new();
    assert!(batch.is_empty());
    batch.add_table(&table);
    batch.add_set(&table, &set);
    batch.add_elements(&table, &set, &elements);
    assert_eq!(batch.elements(), 20_000);
    assert!(batch.len() > 10 * 65_536, "{} bytes", batch.len());
    in_namespace(|mut nft| {
        nft.commit(batch).unwrap();
        assert_eq!(sorted(nft.elements(&table, &set).unwrap()), sorted(elements));
    });
}

#[test]
fn a_refused_batch_changes_nothing_and_names_the_object() {
    in_namespace(|mut nft| {
        let wanted = ruleset(TableFamily::Ip, "t");
        nft.commit(write(&wanted)).unwrap();
        let table = &wanted.table;
        let (set, map) = (&wanted.sets[0].0, &wanted.sets[1].0);
        let other_value = element(wanted.sets[1].1[0].key, Value::Data(Bytes::EMPTY.number(1)));
        let new = element(Bytes::EMPTY.address([10, 0, 0, 99].into()), Value::None);
        let mut check = |refused: &dyn Fn(&mut Batch), expected: Expect| {
            let mut batch = Batch::new();
            batch.add_chain(table, &Chain { name: "before".to_owned(), hook: None });
            batch.add_elements(table, set, [&new]);
            refused(&mut batch);
            batch.add_chain(table, &Chain { name: "after".to_owned(), hook: None });
            let error = nft.commit(batch).unwrap_err();
            expected.assert_eq(&error.to_string());
            let found = nft.read_table(table).unwrap().unwrap();
            assert!(!found.chains.contains_key("before") && !found.chains.contains_key("after"));
            assert_eq!(nft.elements(table, set).unwrap(), wanted.sets[0].1);
        };
        check(
            &|batch| batch.add_elements(table, map, [&other_value]),
            expect!["cannot add elements of m of table ip t"],
        );
        let missing = element(Bytes::EMPTY.address([10, 0, 0, 98].into()), Value::None);
        check(
            &|batch| batch.delete_elements(table, set, [&missing]),
            expect!["cannot delete elements of s of table ip t"],
        );
        check(
            &|batch| batch.delete_chain(table, "c2"),
            expect!["cannot delete chain c2 of table ip t"],
        );
        check(
            &|batch| batch.delete_chain(table, "nothing"),
            expect!["cannot delete chain nothing of table ip t"],
        );
        check(
            &|batch| batch.add_rule(table, "c", &Rule::new([goto("nothing")])),
            expect!["cannot add rule to chain c of table ip t"],
        );
        check(
            &|batch| batch.delete_set(table, "nothing"),
            expect!["cannot delete set nothing of table ip t"],
        );
        check(
            &|batch| batch.delete_table(&Table::new(TableFamily::Ip, "nothing")),
            expect!["cannot delete table ip nothing"],
        );
    });
}

#[test]
fn the_monitor_tells_others_changes_from_our_own() {
    in_namespace(|mut nft| {
        let (ours, other) = (ruleset(TableFamily::Ip, "t"), ruleset(TableFamily::Ip, "other"));
        let mut monitor = Monitor::open(&nft, [ours.table.clone()]).unwrap();
        assert!(!monitor.disturbed().unwrap());
        nft.commit(write(&ours)).unwrap();
        assert!(!monitor.disturbed().unwrap(), "our own change");
        let mut somebody = Nftables::open().unwrap();
        somebody.commit(write(&other)).unwrap();
        somebody.commit(write(&ruleset(TableFamily::Ip6, "t"))).unwrap();
        assert!(!monitor.disturbed().unwrap(), "other tables");
        let mut batch = Batch::new();
        batch.flush_chain(&ours.table, "c");
        somebody.commit(batch).unwrap();
        assert!(monitor.disturbed().unwrap());
        assert!(!monitor.disturbed().unwrap(), "told once");
    });
}

/// Marks that come from a map, and the destination that a connection had at first.
#[test]
fn marks_and_original_destinations() {
    let statements = [
        Statement::MarkIs { mask: 0xfff0_0000, value: 0x6b70_0000 },
        Statement::MarkFrom { key: vip(), map: "marks" },
        Statement::InSet { key: vec![Field::OriginalDaddr], set: "ips", negate: false },
    ];
    let rules: Vec<_> = statements.map(|statement| Rule::new([statement])).into();
    for (family, address) in [(TableFamily::Ip, "10.0.0.1"), (TableFamily::Ip6, "fd00::1")] {
        let address = address.parse().unwrap();
        let mark = Value::Data(Bytes::EMPTY.number(0x6b70_0001));
        let marks = def("marks", vip(), Data::Fields(vec![Field::Mark]));
        let key = Bytes::EMPTY.address(address).protocol(6).port(80);
        let ips = def("ips", vec![Field::Daddr], Data::None);
        let wanted = Ruleset {
            table: Table::new(family, "t"),
            sets: vec![
                (marks, vec![element(key, mark)]),
                (ips, vec![element(Bytes::EMPTY.address(address), Value::None)]),
            ],
            chains: vec![(Chain { name: "c".to_owned(), hook: None }, rules.clone())],
        };
        let text = text::render(&wanted);
        let family = family.name();
        for part in [
            "meta mark & 0xfff00000 == 0x6b700000".to_owned(),
            format!("meta mark set {family} daddr . meta l4proto . th dport map @marks"),
            format!("ct original {family} daddr @ips"),
            format!("typeof {family} daddr . meta l4proto . th dport : meta mark"),
            format!("{address} . tcp . 80 : 0x6b700001"),
        ] {
            assert!(text.contains(&part), "{part}\n{text}");
        }
        in_namespace(|mut nft| {
            nft.commit(write(&wanted)).unwrap();
            let found = nft.read_table(&wanted.table).unwrap().unwrap();
            assert_eq!(found.chains["c"].rules.len(), 3);
            let (marks, elements) = &wanted.sets[0];
            assert_eq!(&nft.elements(&wanted.table, marks).unwrap(), elements);
        });
    }
}

/// What a transparent proxy needs: the kernel takes it, and nft would.
#[test]
fn transparent_sockets() {
    for (family, address) in [(TableFamily::Ip, "127.0.0.1"), (TableFamily::Ip6, "::1")] {
        let address = address.parse().unwrap();
        let tproxy = |protocol, port| {
            let steer = Statement::Tproxy { address, port };
            Rule::new([Statement::L4Proto(protocol), steer, Statement::SetMark(0x4000)])
        };
        let inward = vec![
            Rule::new([Statement::L4Proto(6), Statement::ToTransparentSocket]),
            tproxy(6, 1001),
            tproxy(17, 1002),
        ];
        let hook = |kind, point| Some(Hook { kind, point, priority: -150 });
        let chain = |name: &str, hook| Chain { name: name.to_owned(), hook };
        let wanted = Ruleset {
            table: Table::new(family, "t"),
            sets: Vec::new(),
            chains: vec![
                (chain("in", hook(HookKind::Filter, HookPoint::Prerouting)), inward),
                (
                    chain("out", hook(HookKind::Route, HookPoint::Output)),
                    vec![Rule::new([Statement::SetMark(0x4000)])],
                ),
            ],
        };
        let text = text::render(&wanted);
        let at = std::net::SocketAddr::new(address, 1001);
        for part in [
            "meta l4proto tcp socket transparent 1 socket wildcard 0".to_owned(),
            format!("meta l4proto tcp tproxy to {at} meta mark set meta mark | 0x4000"),
            "type route hook output priority -150; policy accept;".to_owned(),
        ] {
            assert!(text.contains(&part), "{part}\n{text}");
        }
        in_namespace(|mut nft| {
            nft.commit(write(&wanted)).unwrap();
            let found = nft.read_table(&wanted.table).unwrap().unwrap();
            assert_eq!(found.chains["in"].rules.len(), 3);
            assert_eq!(found.chains["out"].hook, Some((3, -150)));
        });
    }
}
