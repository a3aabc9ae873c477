//! Readers: each knows one revision, and is told what differs from it.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::history::Progress;
use super::{Change, Revision, Store};
use crate::model::{NamespacedName, Node, ServiceState};

/// What a reader gets: everything that differs from what it saw last.
#[derive(Clone, Debug)]
pub struct Update<V = ServiceState> {
    /// The revision that the reader has seen with this.
    pub revision: Revision,
    /// It starts from nothing: what the reader saw before does not count.
    pub full: bool,
    /// With this the reader has seen the whole state; otherwise the next page follows. Only
    /// [`Reader::try_next_page`] gives pages.
    pub complete: bool,
    /// Services that changed, each once, sorted.
    pub services: Vec<(NamespacedName, Change<V>)>,
    /// Nodes that changed, each once, sorted.
    pub nodes: Vec<(Arc<str>, Change<Node>)>,
    /// The earliest known time at which the cluster made one of these changes.
    pub triggered: Option<SystemTime>,
}

impl<V> Update<V> {
    pub(super) fn empty(revision: Revision) -> Self {
        Self {
            revision,
            full: false,
            complete: true,
            services: Vec::new(),
            nodes: Vec::new(),
            triggered: None,
        }
    }

    /// Nothing differs (changes may cancel out).
    pub fn is_empty(&self) -> bool {
        !self.full && self.services.is_empty() && self.nodes.is_empty()
    }
}

/// How much of the state a reader has seen: Nodes come first, then Services, by their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Nodes up to this one.
    Nodes(Option<Arc<str>>),
    /// All Nodes, and Services up to this one.
    Services(Option<NamespacedName>),
    All,
}

impl Extent {
    pub(super) const NOTHING: Self = Self::Nodes(None);

    pub(super) fn has_node(&self, name: &Arc<str>) -> bool {
        match self {
            Self::Nodes(last) => last.as_ref().is_some_and(|last| name <= last),
            Self::Services(_) | Self::All => true,
        }
    }

    pub(super) fn has_service(&self, key: &NamespacedName) -> bool {
        match self {
            Self::Nodes(_) => false,
            Self::Services(last) => last.as_ref().is_some_and(|last| key <= last),
            Self::All => true,
        }
    }
}

/// One reader's position in a store.
#[derive(Debug)]
pub struct Reader<V = ServiceState> {
    store: Store<V>,
    progress: watch::Receiver<Progress>,
    seen: Option<Revision>,
    extent: Extent,
}

impl<V: PartialEq> Reader<V> {
    /// A reader that has seen all of the revision `seen`, or nothing.
    pub(super) fn new(store: Store<V>, seen: Option<Revision>) -> Self {
        let extent = if seen.is_some() { Extent::All } else { Extent::NOTHING };
        Self { progress: store.0.progress.subscribe(), store, seen, extent }
    }

    /// Waits until the store is synced and differs from what this reader saw, then says how.
    /// The first update is the full state, also when it is empty. Returns `None` when the writer is
    /// gone and everything was seen. Cancel safe.
    pub async fn next(&mut self) -> Option<Update<V>> {
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
            if self.has_news(progress) {
                return true;
            }
            if progress.closed || self.progress.changed().await.is_err() {
                return false;
            }
        }
    }

    fn has_news(&self, progress: Progress) -> bool {
        progress.synced && (self.seen != Some(progress.revision) || self.extent != Extent::All)
    }

    /// The same as [`next`](Self::next) without waiting.
    pub fn try_next(&mut self) -> Option<Update<V>> {
        self.try_next_page(usize::MAX)
    }

    /// The same, with at most `limit` values of what this reader has never seen: so a full state
    /// comes in pages, and each brings what was seen before up to its revision.
    pub fn try_next_page(&mut self, limit: usize) -> Option<Update<V>> {
        let progress = *self.progress.borrow_and_update();
        if !self.has_news(progress) {
            return None;
        }
        let update = self.store.0.lock().read(self.seen, &mut self.extent, limit);
        self.seen = Some(update.revision);
        Some(update)
    }

    /// Takes note of the current revision without looking at what changed: for those who only look
    /// up single values.
    pub fn skip(&mut self) {
        self.seen = Some(self.progress.borrow_and_update().revision);
        self.extent = Extent::All;
    }

    /// What this reader has seen, wholly or in part; `None` at the beginning.
    pub fn revision(&self) -> Option<Revision> {
        self.seen
    }

    /// How many revisions this reader is behind.
    pub fn lag(&self) -> u64 {
        self.store.revision() - self.seen.unwrap_or(0)
    }

    /// Makes the next update the full state.
    pub fn rewind(&mut self) {
        self.seen = None;
        self.extent = Extent::NOTHING;
    }
}
