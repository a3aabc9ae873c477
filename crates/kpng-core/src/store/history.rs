//! The values of a store and the journal of their changes, behind one lock.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use super::reader::{Extent, Update};
use super::{Applied, Change, Kind, Revision};
use crate::model::{NamespacedName, Node};

/// A key of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Service(NamespacedName),
    Node(Arc<str>),
}

/// Old and new value of a key.
#[derive(Debug)]
enum Values<V> {
    Service(Change<V>),
    Node(Change<Node>),
}

#[derive(Debug)]
struct Entry<V> {
    revision: Revision,
    key: Key,
    values: Values<V>,
    triggered: Option<SystemTime>,
}

/// What readers wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) revision: Revision,
    pub(super) synced: bool,
    pub(super) closed: bool,
}

#[derive(Debug)]
pub(super) struct Shared<V> {
    history: Mutex<History<V>>,
    pub(super) progress: watch::Sender<Progress>,
}

impl<V: PartialEq> Shared<V> {
    pub(super) fn new(journal_capacity: usize) -> Self {
        let progress = Progress { revision: 0, synced: false, closed: false };
        let history = History {
            revision: 0,
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            synced: HashSet::new(),
            journal: VecDeque::new(),
            journal_capacity,
            forgotten: 0,
        };
        Self { history: Mutex::new(history), progress: watch::Sender::new(progress) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, History<V>> {
        // Nothing in here panics half-way through a write, so a poisoned lock holds good data.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does all of `write` as one revision, or none if it changes nothing.
    pub(super) fn transact(
        &self,
        triggered: Option<SystemTime>,
        write: impl FnOnce(&mut Transaction<'_, V>),
    ) -> Applied {
        let (progress, changed) = {
            let mut history = self.lock();
            let next = history.revision + 1;
            let mut tx = Transaction { history: &mut history, next, triggered, changed: 0 };
            write(&mut tx);
            let changed = tx.changed;
            if changed > 0 {
                history.revision = next;
            }
            history.trim_journal();
            let (revision, synced) = (history.revision, history.is_synced());
            (Progress { revision, synced, closed: false }, changed)
        };
        self.progress.send_if_modified(|p| std::mem::replace(p, progress) != progress);
        Applied { revision: progress.revision, changed }
    }

    /// Nobody will write any more.
    pub(super) fn close(&self) {
        self.progress.send_modify(|progress| progress.closed = true);
    }
}

#[derive(Debug)]
pub(super) struct History<V> {
    revision: Revision,
    pub(super) services: BTreeMap<NamespacedName, Arc<V>>,
    pub(super) nodes: BTreeMap<Arc<str>, Arc<Node>>,
    synced: HashSet<Kind>,
    journal: VecDeque<Entry<V>>,
    journal_capacity: usize,
    /// The newest revision that is not, or not wholly, in the journal.
    forgotten: Revision,
}

impl<V: PartialEq> History<V> {
    fn is_synced(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.synced.contains(kind))
    }

    fn trim_journal(&mut self) {
        while self.journal.len() > self.journal_capacity {
            if let Some(oldest) = self.journal.pop_front() {
                self.forgotten = oldest.revision;
            }
        }
    }

    /// What a reader is told that has seen `extent` of the state at `seen` (none: nothing), with at
    /// most `limit` values of what it has not seen yet.
    pub(super) fn read(
        &self,
        seen: Option<Revision>,
        extent: &mut Extent,
        limit: usize,
    ) -> Update<V> {
        let since = seen.and_then(|seen| self.since(seen, extent));
        let mut update = since.unwrap_or_else(|| {
            *extent = Extent::NOTHING;
            Update { full: true, ..Update::empty(self.revision) }
        });
        self.read_on(&mut update, extent, limit);
        update.complete = *extent == Extent::All;
        update
    }

    fn read_on(&self, update: &mut Update<V>, extent: &mut Extent, limit: usize) {
        let mut left = limit;
        if let Extent::Nodes(last) = extent {
            let unread = self.nodes.range::<str, _>((after(last.as_deref()), Bound::Unbounded));
            for (name, node) in unread.take(left) {
                update.nodes.push((Arc::clone(name), Change::created(node)));
                *last = Some(Arc::clone(name));
                left -= 1;
            }
            if left == 0 {
                return;
            }
            *extent = Extent::Services(None);
        }
        if let Extent::Services(last) = extent {
            let unread = self.services.range((after(last.as_ref()), Bound::Unbounded));
            for (key, service) in unread.take(left) {
                update.services.push((key.clone(), Change::created(service)));
                left -= 1;
            }
            match update.services.last() {
                Some((key, _)) if left == 0 => *last = Some(key.clone()),
                _ => *extent = Extent::All,
            }
        }
    }

    /// What changed of `extent` since `seen`; `None` if that is not known any more.
    fn since(&self, seen: Revision, extent: &Extent) -> Option<Update<V>> {
        if seen < self.forgotten || seen > self.revision {
            return None;
        }
        let start = self.journal.partition_point(|entry| entry.revision <= seen);
        let mut update = Update::empty(self.revision);
        let mut services = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        for entry in self.journal.range(start..) {
            match (&entry.key, &entry.values) {
                (Key::Service(key), Values::Service(change)) if extent.has_service(key) => {
                    coalesce(&mut services, key, change);
                }
                (Key::Node(name), Values::Node(change)) if extent.has_node(name) => {
                    coalesce(&mut nodes, name, change);
                }
                _ => {}
            }
            let earliest = |t: SystemTime| update.triggered.map_or(t, |earlier| earlier.min(t));
            update.triggered = entry.triggered.map(earliest).or(update.triggered);
        }
        update.services = services.into_iter().filter(|(_, c)| c.old != c.new).collect();
        update.nodes = nodes.into_iter().filter(|(_, c)| c.old != c.new).collect();
        Some(update)
    }
}

/// Where to go on behind `last`, or to begin.
pub(super) fn after<K: ?Sized>(last: Option<&K>) -> Bound<&K> {
    last.map_or(Bound::Unbounded, Bound::Excluded)
}

fn coalesce<K: Ord + Clone, V>(into: &mut BTreeMap<K, Change<V>>, key: &K, change: &Change<V>) {
    match into.get_mut(key) {
        Some(earlier) => earlier.new = change.new.clone(),
        None => {
            into.insert(key.clone(), change.clone());
        }
    }
}

/// Writes that become one revision.
pub(super) struct Transaction<'a, V> {
    history: &'a mut History<V>,
    next: Revision,
    triggered: Option<SystemTime>,
    changed: usize,
}

impl<V: PartialEq> Transaction<'_, V> {
    pub(super) fn service(&self, key: &NamespacedName) -> Option<&Arc<V>> {
        self.history.services.get(key)
    }

    pub(super) fn services(&self) -> impl Iterator<Item = (&NamespacedName, &Arc<V>)> {
        self.history.services.iter()
    }

    pub(super) fn put_service(&mut self, key: NamespacedName, new: Option<Arc<V>>) {
        if self.history.services.get(&key) == new.as_ref() {
            return;
        }
        let old = match &new {
            Some(service) => self.history.services.insert(key.clone(), Arc::clone(service)),
            None => self.history.services.remove(&key),
        };
        self.record(Key::Service(key), Values::Service(Change { old, new }));
    }

    pub(super) fn put_node(&mut self, name: Arc<str>, new: Option<Arc<Node>>) {
        let old = match &new {
            Some(node) => self.history.nodes.insert(Arc::clone(&name), Arc::clone(node)),
            None => self.history.nodes.remove(&name),
        };
        if old != new {
            self.record(Key::Node(name), Values::Node(Change { old, new }));
        }
    }

    pub(super) fn retain_nodes(&mut self, names: &HashSet<Arc<str>>) {
        let gone = self.history.nodes.keys().filter(|name| !names.contains(*name));
        let gone: Vec<_> = gone.cloned().collect();
        gone.into_iter().for_each(|name| self.put_node(name, None));
    }

    pub(super) fn mark_synced(&mut self, kind: Kind) {
        self.history.synced.insert(kind);
    }

    fn record(&mut self, key: Key, values: Values<V>) {
        self.changed += 1;
        let (revision, triggered) = (self.next, self.triggered);
        if !self.history.is_synced() {
            // Nobody reads yet, and who comes gets the full state.
            self.history.forgotten = revision;
            return;
        }
        self.history.journal.push_back(Entry { revision, key, values, triggered });
        self.history.trim_journal();
    }
}
