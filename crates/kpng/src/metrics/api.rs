//! Numbers of both ends of kpng's API, read when Prometheus asks.

use std::fmt;
use std::sync::Arc;

use kpng_api::{client, server};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::kube::{NO_LABELS, counters};

/// What a client counts.
#[derive(Debug)]
pub(super) struct Client(pub(super) Arc<client::Stats>);

impl Collector for Client {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (encoder, stats) = (&mut encoder, &self.0);
        let help = "A kpng server has accepted our stream";
        encoder
            .encode_descriptor("kpng_api_client_connected", help, None, MetricType::Gauge)?
            .encode_gauge(&u64::from(stats.is_connected()))?;
        for (name, help, count) in [
            ("connects", "Streams that a kpng server has accepted", &stats.connects),
            (
                "failures",
                "Streams that a kpng server did not give, or not a state",
                &stats.failures,
            ),
            ("syncs", "Consistent states received", &stats.syncs),
            ("operations", "Values received and deletions of such", &stats.operations),
            ("rejected_values", "Values received that could not be used", &stats.rejected),
        ] {
            let name = format!("kpng_api_client_{name}");
            counters(encoder, &name, help, [(NO_LABELS, count.get())])?;
        }
        Ok(())
    }
}

/// What a server counts.
#[derive(Debug)]
pub(super) struct Server(pub(super) Arc<server::Stats>);

impl Collector for Server {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (encoder, stats) = (&mut encoder, &self.0);
        let help = "Open connections of clients";
        encoder
            .encode_descriptor("kpng_api_connections", help, None, MetricType::Gauge)?
            .encode_gauge(&stats.connections.get())?;
        let help = "Open streams of clients";
        let mut streams =
            encoder.encode_descriptor("kpng_api_streams", help, None, MetricType::Gauge)?;
        for (api, count) in [("local", &stats.local_streams), ("global", &stats.global_streams)] {
            streams.encode_family(&[("api", api)])?.encode_gauge(&count.get())?;
        }
        for (name, help, count) in [
            ("answers", "Consistent states sent", &stats.answers),
            ("operations", "Values sent and deletions of such", &stats.operations),
            ("sent_bytes", "Bytes of messages sent", &stats.bytes),
            (
                "encodings",
                "Values encoded; clients that see them alike share them",
                &stats.encodings,
            ),
            ("refused_connections", "Connections turned away, being too many", &stats.refused),
            ("failed_handshakes", "Connections never established", &stats.failed_handshakes),
            ("denied", "Requests denied by authorization", &stats.denied),
        ] {
            let name = format!("kpng_api_{name}");
            counters(encoder, &name, help, [(NO_LABELS, count.get())])?;
        }
        Ok(())
    }
}

/// What KPNG counts for who works out views for others.
#[derive(Debug)]
pub(super) struct LocalEvents(pub(super) Arc<server::Stats>);

impl Collector for LocalEvents {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Values sent and deletions of such";
        let sent = [(NO_LABELS, self.0.operations.get())];
        counters(&mut encoder, "kpng_node_local_events", help, sent)
    }
}
