//! The store: one writer, many readers, a bounded journal between them.
//!
//! A store holds one value for each Service: what the cluster says ([`ServiceState`], the default), or
//! what that means on one node ([`LocalService`], where somebody else works it out).
//!
//! A reader's whole state is one revision number. It asks for what changed since then and gets each
//! key at most once, whatever happened in between; when it fell behind the journal it gets the full
//! state. So a slow reader costs nothing, and memory is bounded.

mod history;
mod local;
mod reader;
mod snapshot;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

pub use local::{LocalBatch, LocalWriter};
pub use reader::{Reader, Update};
pub use snapshot::Snapshot;
pub use writer::{Batch, Writer};

use crate::local::LocalService;
use crate::model::{NamespacedName, Node, ServiceState};
use history::Shared;

/// A point in the history of one store. Revision 0 is the empty store before anything was written.
pub type Revision = u64;

/// The kinds of objects that a source lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Nodes.
    Nodes,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Services, Self::EndpointSlices, Self::Nodes];
}

/// What [`Writer::apply`] and [`LocalWriter::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The store's revision afterwards.
    pub revision: Revision,
    /// How many keys really changed. With 0 there is no new revision.
    pub changed: usize,
}

/// A value before and after.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<T> {
    /// The value that the reader saw last; `None` when there was none, or in a full state.
    pub old: Option<Arc<T>>,
    /// The value now; `None` when it is gone.
    pub new: Option<Arc<T>>,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        Self { old: self.old.clone(), new: self.new.clone() }
    }
}

impl<T> Change<T> {
    fn created(value: &Arc<T>) -> Self {
        Self { old: None, new: Some(Arc::clone(value)) }
    }
}

/// The reading side: makes readers and looks up single values.
#[derive(Debug)]
pub struct Store<V = ServiceState>(Arc<Shared<V>>);

impl<V> Clone for Store<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// How many changes the journal of [`Store::new`] holds: at 50 changes a second a reader may sleep
/// for 80 seconds before it is given the full state.
pub const JOURNAL_CAPACITY: usize = 4096;

impl Store {
    /// An empty store with the default journal.
    pub fn new() -> (Writer, Self) {
        Self::with_journal(JOURNAL_CAPACITY)
    }

    /// An empty store whose journal holds `capacity` changes.
    pub fn with_journal(capacity: usize) -> (Writer, Self) {
        let store = Self(Arc::new(Shared::new(capacity)));
        (Writer::new(store.clone()), store)
    }
}

impl Store<LocalService> {
    /// An empty store of what Services mean on one node, with the default journal.
    pub fn local() -> (LocalWriter, Self) {
        let store = Self(Arc::new(Shared::new(JOURNAL_CAPACITY)));
        (LocalWriter::new(store.clone()), store)
    }
}

impl<V: PartialEq> Store<V> {
    /// A reader that starts from the full state.
    pub fn reader(&self) -> Reader<V> {
        Reader::new(self.clone(), None)
    }

    /// A reader that has seen the revision `seen` of this store. If the journal does not reach back
    /// to it any more, the reader starts from the full state.
    pub fn reader_at(&self, seen: Revision) -> Reader<V> {
        Reader::new(self.clone(), Some(seen))
    }

    /// The current revision.
    pub fn revision(&self) -> Revision {
        self.0.progress.borrow().revision
    }

    /// All kinds have been listed.
    pub fn is_synced(&self) -> bool {
        self.0.progress.borrow().synced
    }

    /// The writer is gone: nothing will change any more.
    pub fn is_closed(&self) -> bool {
        self.0.progress.borrow().closed
    }

    /// The current value of one Service.
    pub fn service(&self, key: &NamespacedName) -> Option<Arc<V>> {
        self.0.lock().services.get(key).cloned()
    }

    /// The current value of one Node.
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.0.lock().nodes.get(name).cloned()
    }

    /// How many Services (or orphaned slices' owners) and Nodes are known.
    pub fn len(&self) -> (usize, usize) {
        let history = self.0.lock();
        (history.services.len(), history.nodes.len())
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }
}
