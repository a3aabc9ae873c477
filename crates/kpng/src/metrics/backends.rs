//! Numbers that a backend keeps, read when Prometheus asks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kpng_core::backend::{Metric, Metrics};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

/// What the backend counts.
#[derive(Debug)]
pub(super) struct OfBackend(pub(super) Arc<dyn Metrics>);

impl Collector for OfBackend {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut by_name: BTreeMap<&str, Vec<Metric>> = BTreeMap::new();
        for metric in self.0.read() {
            by_name.entry(metric.name).or_default().push(metric);
        }
        for (name, metrics) in by_name {
            let Some(first) = metrics.first() else { continue };
            let kind = if first.is_counter { MetricType::Counter } else { MetricType::Gauge };
            let name = format!("kpng_{name}");
            let mut family = encoder.encode_descriptor(&name, first.help, None, kind)?;
            for Metric { labels, value, is_counter, .. } in &metrics {
                let mut one = family.encode_family(labels)?;
                if *is_counter {
                    one.encode_counter::<[(&str, &str); 0], _, f64>(value, None)?;
                } else {
                    one.encode_gauge(value)?;
                }
            }
        }
        Ok(())
    }
}
