//! What a client counts, for metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::count::Count;

/// What a client counts.
#[derive(Debug, Default)]
pub struct Stats {
    connected: AtomicBool,
    /// Streams that a server has accepted, ever.
    pub connects: Count,
    /// Attempts to get a stream that failed, and streams that ended before they gave a state, ever.
    pub failures: Count,
    /// Consistent states received (Sync), ever.
    pub syncs: Count,
    /// Operations received, Reset and Sync not counted, ever.
    pub operations: Count,
    /// Values that were rejected, ever. One that is sent again as it was does not count again.
    pub rejected: Count,
}

impl Stats {
    /// A server's stream is there.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }
}

/// Connected as long as it lives.
pub(super) struct Connected(Arc<Stats>);

impl Connected {
    pub(super) fn new(stats: &Arc<Stats>) -> Self {
        stats.connects.add(1);
        stats.connected.store(true, Ordering::Relaxed);
        Self(Arc::clone(stats))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connected.store(false, Ordering::Relaxed);
    }
}
