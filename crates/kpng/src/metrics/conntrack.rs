//! How full the kernel's table of connections is: when it is full, new ones are dropped.
//!
//! Read when Prometheus asks; no numbers where the kernel tracks none.

use std::fmt;

use kpng_linux::sysctl;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

/// The table of this network namespace.
#[derive(Debug)]
pub(super) struct Table;

impl Collector for Table {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, parameter) in [
            ("kpng_conntrack_entries", "Connections that the kernel tracks", "count"),
            ("kpng_conntrack_capacity", "Connections that the kernel can track", "max"),
        ] {
            let path = format!("net/netfilter/nf_conntrack_{parameter}");
            let number = sysctl::get(&path).ok().and_then(|text| text.parse::<u64>().ok());
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            if let Some(number) = number {
                metric.encode_gauge(&number)?;
            }
        }
        Ok(())
    }
}
