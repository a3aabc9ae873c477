//! The whole state of one revision, for those who look at all of it once.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::history::after;
use super::{Change, Revision, Store, Update};
use crate::model::{NamespacedName, Node, ServiceState};

/// Everything that a store holds, as of one revision.
#[derive(Clone, Debug)]
pub struct Snapshot<V = ServiceState> {
    /// The revision.
    pub revision: Revision,
    /// All Services (or orphaned slices' owners).
    pub services: BTreeMap<NamespacedName, Arc<V>>,
    /// All Nodes.
    pub nodes: BTreeMap<Arc<str>, Arc<Node>>,
}

/// How many values are taken under the store's lock at once.
const PAGE: usize = 1000;

/// How many values are looked at under the store's lock at once.
const LOOKS: usize = 200;

impl<V: PartialEq> Store<V> {
    /// Everything; `None` while the store is not complete. Who writes meanwhile waits for a thousand
    /// values at most.
    pub fn snapshot(&self) -> Option<Snapshot<V>> {
        let mut snapshot =
            Snapshot { revision: 0, services: BTreeMap::new(), nodes: BTreeMap::new() };
        let mut reader = self.reader();
        loop {
            let page = reader.try_next_page(PAGE)?;
            let complete = page.complete;
            snapshot.take(page);
            if complete {
                return Some(snapshot);
            }
        }
    }

    /// Shows all Services (or orphaned slices' owners) to `look`, sorted, each as it is by then. Nothing
    /// is copied. Who writes meanwhile waits for a few hundred looks at most. `false` while the store is
    /// not complete.
    pub fn look_through(&self, mut look: impl FnMut(&NamespacedName, &Arc<V>)) -> bool {
        let mut last = None;
        while self.is_synced() {
            let history = self.0.lock();
            let mut seen = None;
            let unseen = history.services.range((after(last.as_ref()), Bound::Unbounded));
            let mut count = 0;
            for (key, value) in unseen.take(LOOKS) {
                look(key, value);
                seen = Some(key);
                count += 1;
            }
            if count < LOOKS {
                return true;
            }
            last = seen.cloned();
        }
        false
    }
}

impl<V> Snapshot<V> {
    /// What a reader would be told that has seen nothing.
    pub fn into_update(self) -> Update<V> {
        fn new<K, T>((key, value): (K, Arc<T>)) -> (K, Change<T>) {
            (key, Change { old: None, new: Some(value) })
        }
        Update {
            revision: self.revision,
            full: true,
            complete: true,
            services: self.services.into_iter().map(new).collect(),
            nodes: self.nodes.into_iter().map(new).collect(),
            triggered: None,
        }
    }

    fn take(&mut self, page: Update<V>) {
        self.revision = page.revision;
        if page.full {
            self.services.clear();
            self.nodes.clear();
        }
        for (key, change) in page.services {
            match change.new {
                Some(state) => self.services.insert(key, state),
                None => self.services.remove(&key),
            };
        }
        for (name, change) in page.nodes {
            match change.new {
                Some(node) => self.nodes.insert(name, node),
                None => self.nodes.remove(&name),
            };
        }
    }
}
