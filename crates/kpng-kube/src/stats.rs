//! What the watcher counts, as plain atomics: the binary turns them into metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use kpng_core::store::Kind;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

/// Why an object was rejected as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Its bytes are no such object.
    Undecodable,
    /// It has no name, or no namespace where it needs one.
    Unnamed,
    /// It has addresses, and none can be used.
    NoUsableAddress,
    /// A type that is unknown here.
    UnknownType,
}

impl RejectReason {
    /// All reasons.
    pub const ALL: [Self; 4] =
        [Self::Undecodable, Self::Unnamed, Self::NoUsableAddress, Self::UnknownType];

    /// A name for metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Unnamed => "unnamed",
            Self::NoUsableAddress => "no_usable_address",
            Self::UnknownType => "unknown_type",
        }
    }
}

/// The numbers of one kind of object.
#[derive(Debug, Default)]
pub struct KindStats {
    /// Objects received: of lists, and created or changed in watches.
    pub puts: Counter,
    /// Deletions received in watches.
    pub deletes: Counter,
    /// Bookmarks received.
    pub bookmarks: Counter,
    /// Fields and list entries that were left out of otherwise good objects.
    pub left_out: Counter,
    /// Complete lists. More than one means that a watch could not be resumed.
    pub lists: Counter,
    /// Watches opened, streaming lists included.
    pub watches: Counter,
    /// Requests that failed and watches that broke.
    pub errors: Counter,
    rejected: [Counter; RejectReason::ALL.len()],
    /// Milliseconds since the Unix epoch; 0 is never.
    last_contact: AtomicU64,
    problem: Mutex<Option<Arc<str>>>,
}

impl KindStats {
    /// Objects that were rejected for `reason`.
    pub fn rejected(&self, reason: RejectReason) -> u64 {
        self.rejected[reason as usize].get()
    }

    /// When the API server was last heard about this kind.
    pub fn last_contact(&self) -> Option<SystemTime> {
        let millis = self.last_contact.load(Ordering::Relaxed);
        (millis > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(millis))
    }

    /// What keeps this kind from being up to date, in a sentence; `None` while all is well.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn count_rejected(&self, reason: RejectReason) {
        self.rejected[reason as usize].add(1);
    }

    pub(crate) fn contact(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.last_contact.store(millis, Ordering::Relaxed);
    }

    /// Replaces the problem. Returns whether it is another one than before.
    pub(crate) fn set_problem(&self, problem: Option<String>) -> bool {
        let mut current = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = current.as_deref() != problem.as_deref();
        if changed {
            *current = problem.map(Arc::from);
        }
        changed
    }
}

/// What became of Kubernetes Events.
#[derive(Debug, Default)]
pub struct EventStats {
    /// Written.
    pub written: Counter,
    /// Not written, because another process had said the same.
    pub said_by_others: Counter,
    /// Counted up, because the same came again.
    pub repeated: Counter,
    /// Not written, for want of the right to.
    pub refused: Counter,
    /// Not written, because the API server did not take them.
    pub failed: Counter,
    /// Not written, because too many waited.
    pub dropped: Counter,
}

/// The numbers of a watcher. Shared; all methods may be called from anywhere.
#[derive(Debug, Default)]
pub struct Stats {
    services: KindStats,
    slices: KindStats,
    nodes: KindStats,
    /// How often the client was made anew, because credentials were refused or the server was
    /// silent.
    pub reconnects: Counter,
    events: EventStats,
}

impl Stats {
    /// The numbers of one kind.
    pub fn kind(&self, kind: Kind) -> &KindStats {
        match kind {
            Kind::Services => &self.services,
            Kind::EndpointSlices => &self.slices,
            Kind::Nodes => &self.nodes,
        }
    }

    /// What became of Kubernetes Events.
    pub fn events(&self) -> &EventStats {
        &self.events
    }

    /// The first problem of any kind.
    pub fn problem(&self) -> Option<Arc<str>> {
        Kind::ALL.iter().find_map(|&kind| self.kind(kind).problem())
    }
}
