//! What metrics say about syncs, under kube-proxy's names.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Seconds = Gauge<f64, AtomicU64>;

/// Numbers of syncs.
#[derive(Debug)]
pub(super) struct Syncs {
    pub(super) services: Histogram,
    all: Histogram,
    full: Histogram,
    partial: Histogram,
    failures: Counter,
    pub(super) cleanup_failures: Counter,
    pub(super) last: Seconds,
    pub(super) last_queued: Seconds,
}

impl Syncs {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self {
            services: Histogram::new(exponential_buckets(1.0, 4.0, 9)),
            all: sync_histogram(),
            full: sync_histogram(),
            partial: sync_histogram(),
            failures: Counter::default(),
            cleanup_failures: Counter::default(),
            last: Seconds::default(),
            last_queued: Seconds::default(),
        };
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        let mut histogram = |name, help, histogram: &Histogram| {
            registry.register(name, help, histogram.clone());
        };
        histogram("sync_proxy_rules_duration_seconds", "Duration of syncs", &this.all);
        histogram(
            "sync_full_proxy_rules_duration_seconds",
            "Duration of syncs of all services",
            &this.full,
        );
        histogram(
            "sync_partial_proxy_rules_duration_seconds",
            "Duration of syncs of changed services",
            &this.partial,
        );
        let mut counter = |name, help, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        counter("sync_proxy_rules_nftables_sync_failures", "Failed syncs", &this.failures);
        counter(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Failed cleanups",
            &this.cleanup_failures,
        );
        let mut seconds = |name, help, gauge: &Seconds| {
            registry.register(name, help, gauge.clone());
        };
        seconds(
            "sync_proxy_rules_last_timestamp_seconds",
            "When a sync last succeeded",
            &this.last,
        );
        seconds(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a sync was last asked for",
            &this.last_queued,
        );
        this
    }

    /// A sync of all services (`full`) or of those that changed ended after `duration`.
    pub(super) fn done(&self, full: bool, duration: Duration, succeeded: bool) {
        let seconds = duration.as_secs_f64();
        self.all.observe(seconds);
        if full { &self.full } else { &self.partial }.observe(seconds);
        if succeeded {
            self.last.set(now());
        } else {
            self.failures.inc();
        }
    }
}

/// kube-proxy's buckets: 1 ms to 16 s.
pub(super) fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
