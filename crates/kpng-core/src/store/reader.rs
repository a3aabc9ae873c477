//! Readers: each knows one revision, and is told what differs from it.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::{Change, Progress, Revision, Store};
use crate::model::{NamespacedName, Node, ServiceState};

/// What a reader gets: everything that differs from what it saw last.
#[derive(Clone, Debug)]
pub struct Update {
    /// The revision that the reader has seen with this.
    pub revision: Revision,
    /// This is the whole state: what is not in it does not exist.
    pub full: bool,
    /// Services that changed, each once, sorted.
    pub services: Vec<(NamespacedName, Change<ServiceState>)>,
    /// Nodes that changed, each once, sorted.
    pub nodes: Vec<(Arc<str>, Change<Node>)>,
    /// The earliest known time at which the cluster made one of these changes.
    pub triggered: Option<SystemTime>,
}

impl Update {
    pub(super) fn empty(revision: Revision) -> Self {
        Self { revision, full: false, services: Vec::new(), nodes: Vec::new(), triggered: None }
    }

    /// Nothing differs (changes may cancel out).
    pub fn is_empty(&self) -> bool {
        !self.full && self.services.is_empty() && self.nodes.is_empty()
    }
}

/// One reader's position in a store.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    progress: watch::Receiver<Progress>,
    seen: Option<Revision>,
}

impl Reader {
    /// A reader that has seen nothing.
    pub(super) fn new(store: Store) -> Self {
        Self { progress: store.0.progress.subscribe(), store, seen: None }
    }

    /// Waits until the store is synced and differs from what this reader saw, then says how.
    /// The first update is the full state, also when it is empty. Returns `None` when the writer is
    /// gone and everything was seen. Cancel safe.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            if !self.ready().await {
                return None;
            }
            if let Some(update) = self.try_next() {
                return Some(update);
            }
        }
    }

    /// Waits until [`try_next`](Self::try_next) gives something. `false` when the writer is gone and
    /// everything was seen. Cancel safe.
    pub async fn ready(&mut self) -> bool {
        loop {
            let progress = *self.progress.borrow_and_update();
            if progress.synced && self.seen != Some(progress.revision) {
                return true;
            }
            if progress.closed || self.progress.changed().await.is_err() {
                return false;
            }
        }
    }

    /// The same without waiting.
    pub fn try_next(&mut self) -> Option<Update> {
        let progress = *self.progress.borrow_and_update();
        if !progress.synced || self.seen == Some(progress.revision) {
            return None;
        }
        let inner = self.store.0.lock();
        let update = match self.seen.and_then(|seen| inner.since(seen)) {
            Some(update) => update,
            None => inner.snapshot(),
        };
        drop(inner);
        self.seen = Some(update.revision);
        Some(update)
    }

    /// Takes note of the current revision without looking at what changed: for those who only look
    /// up single values.
    pub fn skip(&mut self) {
        self.seen = Some(self.progress.borrow_and_update().revision);
    }

    /// How many revisions this reader is behind.
    pub fn lag(&self) -> u64 {
        self.store.revision() - self.seen.unwrap_or(0)
    }

    /// Makes the next update the full state.
    pub fn rewind(&mut self) {
        self.seen = None;
    }
}
