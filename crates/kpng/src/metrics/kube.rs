//! Numbers of the store and of the API server's watcher, read when Prometheus asks.
//!
//! They cost nothing until then.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use kpng_core::store::{Kind, Store};
use kpng_kube::{KindStats, RejectReason, Stats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Counted;

pub(super) const NO_LABELS: [(&str, &str); 0] = [];

/// How far the node is behind the store.
#[derive(Debug)]
pub(super) struct Journal<V> {
    pub(super) store: Store<V>,
    /// The revision that is in force.
    pub(super) synced: Arc<AtomicU64>,
}

impl<V: Counted> Collector for Journal<V> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let lag = self.store.revision().saturating_sub(self.synced.load(Ordering::Relaxed));
        let help = "Revisions of the store that are not in force yet";
        encoder
            .encode_descriptor("kpng_journal_lag", help, None, MetricType::Gauge)?
            .encode_gauge(&lag)
    }
}

/// How much the store holds.
#[derive(Debug)]
pub(super) struct Contents<V> {
    pub(super) store: Store<V>,
    /// Nobody else counts what changes it.
    pub(super) count_events: bool,
}

impl<V: Counted> Collector for Contents<V> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (services, nodes) = self.store.len();
        for (name, help, number) in [
            ("kpng_store_services", "Services that are known", services as u64),
            ("kpng_store_nodes", "Nodes that are known", nodes as u64),
            ("kpng_store_revision", "How often what is known has changed", self.store.revision()),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&number)?;
        }
        if self.count_events {
            // KPNG's name, which it uses for every source.
            let help = "Changes that the source has made";
            let changes = [(NO_LABELS, self.store.revision())];
            counters(&mut encoder, "kpng_k8s_api_events", help, changes)?;
        }
        Ok(())
    }
}

/// What the watcher counts.
#[derive(Debug)]
pub(super) struct Watcher(pub(super) Arc<Stats>);

impl Collector for Watcher {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let events = |stats: &KindStats| stats.puts.get() + stats.deletes.get();
        let all = Kind::ALL.iter().map(|&kind| events(self.0.kind(kind))).sum();
        let help = "Objects received from the API server and deletions of such";
        counters(encoder, "kpng_k8s_api_events", help, [(NO_LABELS, all)])?;
        let help = "Watches opened after the first one";
        self.per_kind(encoder, "kpng_watch_restarts", help, |stats| {
            stats.watches.get().saturating_sub(1)
        })?;
        let help = "Requests that failed and watches that broke";
        self.per_kind(encoder, "kpng_watch_errors", help, |stats| stats.errors.get())?;
        let help = "Complete lists; more than one means that a watch could not be resumed";
        self.per_kind(encoder, "kpng_lists", help, |stats| stats.lists.get())?;
        let help = "Fields and list entries that were left out of otherwise good objects";
        self.per_kind(encoder, "kpng_left_out_fields", help, |stats| stats.left_out.get())?;
        self.rejected(encoder)?;
        self.last_contact(encoder)?;
        self.events(encoder)?;
        let help = "How often the client of the API server was made anew";
        counters(encoder, "kpng_api_reconnects", help, [(NO_LABELS, self.0.reconnects.get())])
    }
}

impl Watcher {
    fn per_kind(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        number: impl Fn(&KindStats) -> u64,
    ) -> fmt::Result {
        let of = |kind| ([("kind", kind_name(kind))], number(self.0.kind(kind)));
        counters(encoder, name, help, Kind::ALL.map(of))
    }

    fn rejected(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of = |kind, reason: RejectReason| {
            let labels = [("kind", kind_name(kind)), ("reason", reason.name())];
            (labels, self.0.kind(kind).rejected(reason))
        };
        let rejected =
            Kind::ALL.into_iter().flat_map(|kind| RejectReason::ALL.map(|reason| of(kind, reason)));
        let help = "Objects that could not be used";
        counters(encoder, "kpng_rejected_objects", help, rejected)
    }

    fn events(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.0.events();
        let outcomes = [
            ("written", &stats.written),
            ("said_by_others", &stats.said_by_others),
            ("repeated", &stats.repeated),
            ("refused", &stats.refused),
            ("failed", &stats.failed),
            ("dropped", &stats.dropped),
        ];
        let numbers = outcomes.map(|(outcome, counter)| ([("outcome", outcome)], counter.get()));
        let help = "Kubernetes Events about Services, by what became of them";
        counters(encoder, "kpng_kubernetes_events", help, numbers)
    }

    fn last_contact(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "When the API server was last heard";
        let name = "kpng_last_contact_timestamp_seconds";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for kind in Kind::ALL {
            if let Some(time) = self.0.kind(kind).last_contact() {
                let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                metric.encode_family(&[("kind", kind_name(kind))])?.encode_gauge(&seconds)?;
            }
        }
        Ok(())
    }
}

pub(super) fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    numbers: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, number) in numbers {
        metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&number, None)?;
    }
    Ok(())
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Services => "services",
        Kind::EndpointSlices => "endpointslices",
        Kind::Nodes => "nodes",
    }
}
