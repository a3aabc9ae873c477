//! How long a connection or flow has been silent. Noting that something moved takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When something moved last.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    /// Milliseconds since the start.
    last: AtomicU64,
}

impl Activity {
    /// Something moves now, for the first time.
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Something moves now.
    pub(crate) fn note(&self) {
        let now = u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// How long it is since the first time.
    pub(crate) fn age(&self) -> Duration {
        self.start.elapsed()
    }

    /// How long it is since the last time.
    pub(crate) fn silence(&self) -> Duration {
        self.age().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }

    /// Waits until nothing has moved for so long.
    pub(crate) async fn idle_for(&self, limit: Duration) {
        while let Some(left) = limit.checked_sub(self.silence()) {
            tokio::time::sleep(left.max(Duration::from_millis(1))).await;
        }
    }
}
