//! How much is written to the kernel.

use std::sync::atomic::{AtomicU64, Ordering};

use kpng_core::backend::{Metric, Metrics};
use kpng_linux::nft::Batch;

/// The counters, shared by the backend and its readers.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    transactions: AtomicU64,
    bytes: AtomicU64,
    elements: AtomicU64,
}

impl Stats {
    /// This is about to be committed.
    pub(crate) fn count(&self, batch: &Batch) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.elements.fetch_add(batch.elements() as u64, Ordering::Relaxed);
    }
}

impl Metrics for Stats {
    #[expect(clippy::cast_precision_loss, reason = "monitoring has floating point numbers")]
    fn read(&self) -> Vec<Metric> {
        let counter = |name, help, counter: &AtomicU64| {
            let value = counter.load(Ordering::Relaxed) as f64;
            Metric { name, help, is_counter: true, labels: Vec::new(), value }
        };
        vec![
            counter(
                "nft_transactions",
                "Transactions that nf_tables was given",
                &self.transactions,
            ),
            counter("nft_sent_bytes", "Bytes of these transactions", &self.bytes),
            counter("nft_changed_elements", "Elements that they add and delete", &self.elements),
        ]
    }
}
