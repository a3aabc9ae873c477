//! What the proxy counts.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use kpng_core::backend::{Metric, Metrics};

/// The counters, shared by everything that runs.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) tcp: Flows,
    pub(crate) udp: Flows,
    /// How often somebody had to wait because there were as many connections as there may be.
    pub(crate) at_limit: AtomicU64,
    pub(crate) limit: AtomicU64,
}

/// Counters of one protocol.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    pub(crate) open: AtomicI64,
    pub(crate) total: AtomicU64,
    /// Another endpoint was tried, as one refused or did not answer.
    pub(crate) retries: AtomicU64,
    /// No endpoint could be reached.
    pub(crate) failed: AtomicU64,
    /// Bytes of clients and for them.
    pub(crate) bytes: AtomicU64,
}

/// Counts an open connection until it is dropped.
#[derive(Debug)]
pub(crate) struct Open<'a>(&'a Flows);

impl Flows {
    pub(crate) fn opened(&self) -> Open<'_> {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        Open(self)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics for Stats {
    #[expect(clippy::cast_precision_loss, reason = "monitoring has floating point numbers")]
    fn read(&self) -> Vec<Metric> {
        let one = |name, help, is_counter, protocol: Option<&str>, value: f64| {
            let labels = protocol.map(|protocol| ("protocol", protocol.to_owned()));
            Metric { name, help, is_counter, labels: labels.into_iter().collect(), value }
        };
        let mut all = Vec::new();
        let both = [("TCP", &self.tcp), ("UDP", &self.udp)];
        let mut of_both = |name, help, is_counter, of: fn(&Flows) -> f64| {
            all.extend(both.map(|(p, flows)| one(name, help, is_counter, Some(p), of(flows))));
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        of_both("proxy_connections_open", "Connections and UDP flows that are open", false, |f| {
            f.open.load(Ordering::Relaxed) as f64
        });
        of_both("proxy_connections", "Connections and UDP flows there were", true, |f| {
            f.total.load(Ordering::Relaxed) as f64
        });
        of_both("proxy_retries", "Endpoints that refused or did not answer", true, |f| {
            f.retries.load(Ordering::Relaxed) as f64
        });
        of_both("proxy_failed", "Connections for which no endpoint was found", true, |f| {
            f.failed.load(Ordering::Relaxed) as f64
        });
        of_both("proxy_bytes", "Bytes that went through, both ways", true, |f| {
            f.bytes.load(Ordering::Relaxed) as f64
        });
        let help = "Times that connections waited because there were as many as there may be";
        all.push(one("proxy_limit_reached", help, true, None, read(&self.at_limit)));
        let help = "How many connections and UDP flows there may be";
        all.push(one("proxy_connections_limit", help, false, None, read(&self.limit)));
        all
    }
}
