use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::super::{
    Data, Field, Hook, HookKind, HookPoint, Statement, TableFamily, Value, Verdict,
};
use super::*;
use crate::namespace::NetNs;

fn table() -> Table {
    Table::new(TableFamily::Ip, "owned")
}

fn set(name: &'static str, key: Vec<Field>, data: Data) -> SetDef {
    SetDef { name, key, data, interval: false, dynamic: None, counted: false, comment: "" }
}

fn sets() -> [SetDef; 3] {
    let mut dynamic = set("seen", vec![Field::Saddr], Data::None);
    dynamic.dynamic = Some(100);
    [
        set("ips", vec![Field::Daddr], Data::None),
        set("routes", vec![Field::Daddr, Field::Dport], Data::Verdict),
        dynamic,
    ]
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

fn ip(number: u8) -> (&'static str, Element) {
    let key = Bytes::EMPTY.address(address(number));
    ("ips", Element { key, last: None, value: Value::None })
}

fn route(number: u8, chain: &str) -> (&'static str, Element) {
    let key = Bytes::EMPTY.address(address(number)).port(80);
    let value = Value::Verdict(Verdict::Goto(chain.to_owned()));
    ("routes", Element { key, last: None, value })
}

fn chain(name: &str, rules: &[Statement]) -> (Chain, Vec<Rule>) {
    let rules = rules.iter().map(|statement| Rule::new([statement.clone()])).collect();
    (Chain { name: name.to_owned(), hook: None }, rules)
}

fn base_chain(priority: i32) -> (Chain, Vec<Rule>) {
    let hook = Hook { kind: HookKind::Filter, point: HookPoint::Input, priority };
    let rule =
        Rule::new([Statement::VerdictMap { key: vec![Field::Daddr, Field::Dport], map: "routes" }]);
    (Chain { name: "input".to_owned(), hook: Some(hook) }, vec![rule])
}

fn content() -> Content {
    Content {
        chains: vec![
            chain("refuse", &[Statement::Reject]),
            chain("drop", &[Statement::Verdict(Verdict::Drop)]),
            base_chain(0),
        ],
        elements: vec![ip(1), ip(2), ip(1), route(1, "refuse"), route(2, "drop")],
    }
}

/// A new network namespace with our table in it.
fn in_namespace(test: impl FnOnce(OwnedTable) + Send) {
    match NetNs::new() {
        Ok(namespace) => {
            namespace.run(|| test(OwnedTable::open(table(), sets()).unwrap())).unwrap();
        }
        Err(_) if std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") => {}
        Err(error) => panic!("{error}, or set KPNG_SKIP_NET=1 to skip this test"),
    }
}

/// The kernel holds exactly this.
#[track_caller]
fn check(owned: &mut OwnedTable, wanted: &Content) {
    let found = owned.nft.read_table(&table()).unwrap().unwrap();
    let mut wanted_rules = BTreeMap::new();
    for (chain, rules) in &wanted.chains {
        let rules = rules.iter().map(|rule| Some(rule.fingerprint(TableFamily::Ip)));
        wanted_rules.insert(chain.name.clone(), rules.collect::<Vec<_>>());
    }
    let rules =
        |chain: &super::super::FoundChain| chain.rules.iter().map(|r| r.fingerprint).collect();
    let found_rules: BTreeMap<_, Vec<_>> =
        found.chains.iter().map(|(name, chain)| (name.clone(), rules(chain))).collect();
    assert_eq!(found_rules, wanted_rules);
    for name in ["ips", "routes"] {
        let elements = owned.elements(name).unwrap();
        let found: BTreeSet<_> = elements.into_iter().map(|e| (e.key, e.value)).collect();
        let of = wanted.elements.iter().filter(|(set, _)| *set == name);
        let of: BTreeSet<_> = of.map(|(_, e)| (e.key, e.value.clone())).collect();
        assert_eq!(found, of, "{name}");
    }
}

/// Whether somebody who listens hears of changes while `write` runs.
fn is_heard(write: impl FnOnce()) -> bool {
    let mut monitor = Monitor::open(&Nftables::open().unwrap(), [table()]).unwrap();
    write();
    monitor.disturbed().unwrap()
}

#[test]
fn what_is_wanted_is_written_and_the_same_again_changes_nothing() {
    in_namespace(|mut owned| {
        owned.replace(&content()).unwrap();
        check(&mut owned, &content());
        assert!(!is_heard(|| owned.replace(&content()).unwrap()));
        let mut restarted = OwnedTable::open(table(), sets()).unwrap();
        assert!(!is_heard(|| restarted.replace(&content()).unwrap()));
        assert!(!is_heard(|| restarted.change(&Change::default()).unwrap()));

        let text = owned_text(&table(), sets(), &content());
        assert!(text.contains("10.0.0.2 . 80 : goto drop"), "{text}");
    });
}

#[test]
fn an_element_stays_until_its_last_owner_goes() {
    in_namespace(|mut owned| {
        let mut wanted = content();
        owned.replace(&wanted).unwrap();
        let remove = |element| Change { remove: vec![element], ..Change::default() };
        owned.change(&remove(ip(1))).unwrap();
        check(&mut owned, &wanted);
        owned.change(&remove(ip(1))).unwrap();
        wanted.elements.retain(|element| *element != ip(1));
        check(&mut owned, &wanted);
    });
}

#[test]
fn a_change_moves_what_has_another_owner_or_value() {
    in_namespace(|mut owned| {
        let mut wanted = content();
        owned.replace(&wanted).unwrap();
        let change = Change {
            chains: vec![chain("accept", &[Statement::Verdict(Verdict::Accept)])],
            remove: vec![route(1, "refuse"), ip(2)],
            add: vec![route(1, "accept"), ip(2), ip(3)],
            ..Change::default()
        };
        owned.change(&change).unwrap();
        wanted.chains.extend(change.chains);
        wanted.elements.retain(|element| *element != route(1, "refuse"));
        wanted.elements.extend([route(1, "accept"), ip(3)]);
        check(&mut owned, &wanted);

        let rules = chain("accept", &[Statement::NotFromLoopback, Statement::Reject]);
        let change = Change { chains: vec![rules.clone()], ..Change::default() };
        owned.change(&change).unwrap();
        wanted.chains.pop();
        wanted.chains.push(rules);
        check(&mut owned, &wanted);

        let change = Change {
            remove: vec![route(1, "accept")],
            remove_chains: vec!["accept".to_owned(), "never there".to_owned()],
            ..Change::default()
        };
        owned.change(&change).unwrap();
        wanted.chains.pop();
        wanted.elements.retain(|element| *element != route(1, "accept"));
        check(&mut owned, &wanted);
        owned.replace(&content()).unwrap();
        check(&mut owned, &content());
    });
}

#[test]
fn others_are_noticed_and_what_they_did_is_undone() {
    in_namespace(|mut owned| {
        owned.replace(&content()).unwrap();
        let mut somebody = Nftables::open().unwrap();
        let mut disturb = |owned: &mut OwnedTable, batch| {
            assert!(!owned.disturbed().unwrap());
            somebody.commit(batch).unwrap();
            assert!(owned.disturbed().unwrap());
            owned.replace(&content()).unwrap();
            check(owned, &content());
            assert!(!owned.disturbed().unwrap());
        };
        let [ips, ..] = sets();
        let mut batch = Batch::new();
        batch.add_elements(&table(), &ips, &[ip(9).1]);
        batch.delete_elements(&table(), &ips, &[ip(1).1]);
        disturb(&mut owned, batch);
        let mut batch = Batch::new();
        batch.flush_chain(&table(), "input");
        let (chain, rules) = chain("other", &[Statement::Reject]);
        batch.add_chain(&table(), &chain);
        batch.add_rule(&table(), "other", &rules[0]);
        disturb(&mut owned, batch);
        let mut batch = Batch::new();
        batch.delete_table(&table());
        disturb(&mut owned, batch);
    });
}

#[test]
fn a_comparison_tells_what_differs_and_changes_nothing() {
    in_namespace(|mut owned| {
        let nothing = owned.compare(&content()).unwrap();
        assert_eq!((nothing.wanted, nothing.found), (7, 0));
        assert_eq!(nothing.missing, ["table ip owned"]);
        owned.replace(&content()).unwrap();
        let equal = Comparison { wanted: 7, found: 7, ..Comparison::default() };
        assert_eq!(owned.compare(&content()).unwrap(), equal);

        let mut wanted = content();
        wanted.chains[0] = chain("refuse", &[Statement::NotFromLoopback, Statement::Reject]);
        wanted.chains.push(chain("more", &[]));
        wanted.elements = vec![ip(1), ip(3), route(1, "drop"), route(2, "drop")];
        let found = owned.compare(&wanted).unwrap();
        assert_eq!((found.wanted, found.found), (8, 4));
        assert_eq!(
            found.missing,
            ["table ip owned chain more", "table ip owned element ips { 10.0.0.3 }"]
        );
        assert_eq!(
            found.differing,
            [
                "table ip owned chain refuse",
                "table ip owned element routes { 10.0.0.1 . 80 : goto refuse }"
            ]
        );
        assert_eq!(found.foreign, ["table ip owned element ips { 10.0.0.2 }"]);
        assert!(!owned.disturbed().unwrap());
    });
}

#[test]
fn a_table_of_another_shape_is_replaced() {
    in_namespace(|mut owned| {
        owned.replace(&content()).unwrap();
        let mut elsewhere = content();
        elsewhere.chains[2] = base_chain(5);
        owned.replace(&elsewhere).unwrap();
        check(&mut owned, &elsewhere);
        let mut hookless = content();
        hookless.chains.pop();
        owned.replace(&hookless).unwrap();
        check(&mut owned, &hookless);
        let mut other = sets();
        other[0].key.push(Field::Dport);
        let mut other = OwnedTable::open(table(), other).unwrap();
        other.replace(&Content::default()).unwrap();
        owned.replace(&content()).unwrap();
        check(&mut owned, &content());
    });
}

#[test]
fn after_a_failure_all_has_to_be_written() {
    in_namespace(|mut owned| {
        let change = Change { add: vec![ip(1)], ..Change::default() };
        assert!(matches!(owned.change(&change), Err(Error::Unknown { .. })));
        owned.replace(&content()).unwrap();
        let refused = Change { add: vec![route(7, "nowhere")], ..Change::default() };
        assert!(matches!(owned.change(&refused), Err(Error::Kernel { .. })));
        check(&mut owned, &content());
        assert!(matches!(owned.change(&change), Err(Error::Unknown { .. })));
        owned.replace(&content()).unwrap();
        owned.change(&change).unwrap();
    });
}

#[test]
fn more_than_one_transaction_holds_and_deletion() {
    in_namespace(|mut owned| {
        let many = (0..50_000u32).map(|number| {
            let key = Bytes::EMPTY.address(Ipv4Addr::from(0x0a00_0000 + number).into());
            ("ips", Element { key, last: None, value: Value::None })
        });
        let wanted = Content { elements: many.collect(), ..content() };
        owned.replace(&wanted).unwrap();
        check(&mut owned, &wanted);
        let few = Change { remove: wanted.elements[1..].to_vec(), ..Change::default() };
        owned.change(&few).unwrap();
        check(&mut owned, &Content { elements: wanted.elements[..1].to_vec(), ..content() });
        assert!(!owned.disturbed().unwrap());
        owned.delete().unwrap();
        assert_eq!(owned.nft.tables(TableFamily::Ip).unwrap(), [""; 0]);
        owned.delete().unwrap();
    });
}
