//! Paging and resuming: whatever happens in between, a reader ends with the state.

use std::collections::BTreeMap;

use super::*;
use crate::model::Service;

/// A small generator of numbers, the same in each run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn key(number: u64) -> NamespacedName {
    NamespacedName::new("ns", format!("svc-{number:02}"))
}

/// A reader's copy of a store; it checks that each change starts from what the copy has.
#[derive(Default, PartialEq, Debug)]
struct Copy {
    services: BTreeMap<NamespacedName, Arc<ServiceState>>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
}

impl Copy {
    fn apply(&mut self, update: &Update) {
        if update.full {
            *self = Self::default();
        }
        for (key, change) in &update.services {
            assert_eq!(self.services.remove(key), change.old, "{key}");
            self.services.extend(change.new.iter().map(|new| (key.clone(), Arc::clone(new))));
        }
        for (name, change) in &update.nodes {
            assert_eq!(self.nodes.remove(name), change.old, "{name}");
            self.nodes.extend(change.new.iter().map(|new| (Arc::clone(name), Arc::clone(new))));
        }
        assert!(update.services.is_sorted_by_key(|(key, _)| key));
    }
}

fn random_batch(random: &mut Random) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..=random.below(3) {
        let created = Some(i64::try_from(random.below(4)).unwrap());
        let number = random.below(40);
        match random.below(5) {
            0 => batch.delete_service(key(number)),
            1 => batch.set_node(
                format!("node-{number}"),
                Node { going_away: created == Some(1), ..Node::default() },
            ),
            2 => batch.delete_node(format!("node-{number}")),
            _ => batch.set_service(key(number), Service { created, ..Service::default() }),
        }
    }
    batch
}

#[test]
fn pages_bring_the_whole_state_whatever_changes_meanwhile() {
    let mut random = Random(7);
    for round in 0..200 {
        let (mut writer, store) = Store::with_journal(if round % 5 == 0 { 3 } else { 1000 });
        let mut batch = random_batch(&mut random);
        Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        writer.apply(batch);
        for _ in 0..random.below(40) {
            writer.apply(random_batch(&mut random));
        }

        let (mut reader, mut copy) = (store.reader(), Copy::default());
        let limit = usize::try_from(1 + random.below(7)).unwrap();
        let mut complete = false;
        for _ in 0..20 {
            for _ in 0..random.below(3) {
                writer.apply(random_batch(&mut random));
            }
            if let Some(update) = reader.try_next_page(limit) {
                let unseen = update.services.iter().filter(|(_, change)| change.old.is_none());
                assert!(
                    round % 5 == 0 || complete || unseen.count() <= limit + 9,
                    "a page is small"
                );
                copy.apply(&update);
                complete = update.complete;
            }
        }
        while let Some(update) = reader.try_next_page(limit) {
            copy.apply(&update);
            assert_eq!(
                update.complete,
                reader.try_next_page(limit).is_none_or(|next| {
                    copy.apply(&next);
                    false
                })
            );
        }
        let mut whole = Copy::default();
        whole.apply(&store.reader().try_next().unwrap());
        assert_eq!(copy, whole, "round {round}");
    }
}

#[test]
fn a_reader_resumes_at_a_revision() {
    let (mut writer, store) = Store::with_journal(2);
    let set = |number| {
        let mut batch = Batch::new();
        batch.set_service(key(number), Service::default());
        batch
    };
    let mut batch = set(0);
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    let seen = writer.apply(batch).revision;

    assert!(store.reader_at(seen).try_next().is_none(), "nothing happened since");
    writer.apply(set(1));
    let update = store.reader_at(seen).try_next().unwrap();
    assert!(!update.full);
    assert_eq!(update.services.len(), 1);

    writer.apply(set(2));
    writer.apply(set(3));
    assert!(store.reader_at(seen).try_next().unwrap().full, "that is forgotten");
    assert!(store.reader_at(seen + 99).try_next().unwrap().full, "that never was");
}

#[test]
fn a_store_of_local_services_tells_what_changed() {
    let (mut writer, store) = Store::local();
    let mut reader = store.reader();
    assert!(reader.try_next().is_none(), "nothing is known");
    let local =
        |number| LocalService { key: key(number), service: Arc::default(), endpoints: Vec::new() };
    let mut batch = LocalBatch::new();
    batch.set_service(local(1));
    batch.set_service(local(2));
    batch.set_node("here", Node::default());
    batch.mark_synced();
    writer.apply(batch);
    assert_eq!(reader.try_next().unwrap().services.len(), 2);

    let mut batch = LocalBatch::new();
    batch.set_service(local(1));
    assert_eq!(writer.apply(batch).changed, 0, "equal values are no change");
    let mut batch = LocalBatch::new();
    batch.retain_services([key(2)].into());
    batch.retain_nodes(["here".into()].into());
    writer.apply(batch);
    let update = reader.try_next().unwrap();
    assert_eq!(update.services.len(), 1);
    assert!(update.services[0].1.new.is_none());
    drop(writer);
    assert!(store.is_closed());
}

#[test]
fn all_services_are_looked_through_in_order_however_many() {
    let (mut writer, store) = Store::new();
    assert!(!store.look_through(|_, _| panic!("it is not complete")));
    for count in [0, 1, 199, 200, 201, 1000] {
        let mut batch = Batch::new();
        (0..count).for_each(|number| batch.set_service(key(number), Service::default()));
        Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        writer.apply(batch);
        let mut seen = Vec::new();
        assert!(store.look_through(|key, _| seen.push(key.clone())));
        assert!(seen.is_sorted() && seen.len() as u64 == count, "{count}");
        seen.dedup();
        assert_eq!(seen.len() as u64, count);
    }
}
