//! What a server counts, for metrics.

use std::sync::Arc;

use crate::count::Count;

/// Which count of a server is meant.
pub(super) type Which = fn(&Stats) -> &Count;

/// Counts one as long as it lives.
#[derive(Debug)]
pub(super) struct Present {
    stats: Arc<Stats>,
    which: Which,
}

impl Present {
    pub(super) fn new(stats: &Arc<Stats>, which: Which) -> Self {
        which(stats).add(1);
        Self { stats: Arc::clone(stats), which }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        (self.which)(&self.stats).sub(1);
    }
}

/// What a server counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Open connections.
    pub connections: Count,
    /// Open streams of the local API.
    pub local_streams: Count,
    /// Open streams of the global API.
    pub global_streams: Count,
    /// Answers sent (each ends with Sync), ever.
    pub answers: Count,
    /// Operations sent, Reset and Sync not counted, ever.
    pub operations: Count,
    /// Bytes of messages sent, ever.
    pub bytes: Count,
    /// Changes that were encoded for some view, ever. Others shared the result.
    pub encodings: Count,
    /// Connections that were turned away because there were too many, ever.
    pub refused: Count,
    /// Connections that ended before they were established: TLS, or silence, ever.
    pub failed_handshakes: Count,
    /// Requests that were denied by authorization, ever.
    pub denied: Count,
}
