//! Writing what Services mean on one node, where somebody else has worked it out.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::history::Transaction;
use super::{Applied, Kind, Store};
use crate::local::LocalService;
use crate::model::{NamespacedName, Node};

/// A set of writes that readers see at once. Built without holding any lock.
#[derive(Debug, Default)]
pub struct LocalBatch {
    ops: Vec<Op>,
    triggered: Option<SystemTime>,
}

#[derive(Debug)]
enum Op {
    Service(NamespacedName, Option<Arc<LocalService>>),
    Node(Arc<str>, Option<Arc<Node>>),
    RetainServices(HashSet<NamespacedName>),
    RetainNodes(HashSet<Arc<str>>),
    Synced,
}

impl LocalBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing was put into it.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Creates or replaces a Service with everything that belongs to it.
    pub fn set_service(&mut self, service: LocalService) {
        self.ops.push(Op::Service(service.key.clone(), Some(Arc::new(service))));
    }

    /// Deletes a Service. Deleting what does not exist is not a change.
    pub fn delete_service(&mut self, key: NamespacedName) {
        self.ops.push(Op::Service(key, None));
    }

    /// Creates or replaces a Node.
    pub fn set_node(&mut self, name: impl Into<Arc<str>>, node: Node) {
        self.ops.push(Op::Node(name.into(), Some(Arc::new(node))));
    }

    /// Deletes a Node.
    pub fn delete_node(&mut self, name: impl Into<Arc<str>>) {
        self.ops.push(Op::Node(name.into(), None));
    }

    /// Deletes every Service that is not in `keys`.
    pub fn retain_services(&mut self, keys: HashSet<NamespacedName>) {
        self.ops.push(Op::RetainServices(keys));
    }

    /// Deletes every Node that is not in `names`.
    pub fn retain_nodes(&mut self, names: HashSet<Arc<str>>) {
        self.ops.push(Op::RetainNodes(names));
    }

    /// When the cluster made the earliest of the changes in this batch.
    pub fn triggered_at(&mut self, time: SystemTime) {
        self.triggered = Some(time);
    }

    /// The state is complete. Readers see nothing before.
    pub fn mark_synced(&mut self) {
        self.ops.push(Op::Synced);
    }
}

/// The writing side of a store of what Services mean on one node. There is one per store.
#[derive(Debug)]
pub struct LocalWriter {
    store: Store<LocalService>,
}

impl LocalWriter {
    pub(super) fn new(store: Store<LocalService>) -> Self {
        Self { store }
    }

    /// Applies all of `batch` as one revision. A batch that changes nothing makes none.
    pub fn apply(&mut self, batch: LocalBatch) -> Applied {
        self.store
            .0
            .transact(batch.triggered, |tx| batch.ops.into_iter().for_each(|op| apply(tx, op)))
    }

    /// A handle for readers.
    pub fn store(&self) -> Store<LocalService> {
        self.store.clone()
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        self.store.0.close();
    }
}

fn apply(tx: &mut Transaction<'_, LocalService>, op: Op) {
    match op {
        Op::Service(key, service) => tx.put_service(key, service),
        Op::Node(name, node) => tx.put_node(name, node),
        Op::RetainServices(keys) => {
            let gone = tx.services().map(|(key, _)| key).filter(|key| !keys.contains(key));
            let gone: Vec<_> = gone.cloned().collect();
            gone.into_iter().for_each(|key| tx.put_service(key, None));
        }
        Op::RetainNodes(names) => tx.retain_nodes(&names),
        Op::Synced => Kind::ALL.into_iter().for_each(|kind| tx.mark_synced(kind)),
    }
}
