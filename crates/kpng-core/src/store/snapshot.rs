//! The whole state of one revision, for those who look at all of it once.

use std::collections::BTreeMap;
use std::sync::Arc;

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
