//! What happens at each port of a Service, read from the backend when Prometheus asks.
//!
//! A backend counts at frontends, which come and go. The numbers of a service port only grow for as long
//! as it is there: what a frontend has counted since the last reading is added to the port that has it
//! now. Its series end with it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kpng_core::backend::{self, Counting, Counts};
use kpng_core::model::{NamespacedName, Protocol};
use kpng_core::plan::{FrontendKey, Plan, ServicePlan};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use tracing::warn;

/// Counts of service ports.
#[derive(Debug)]
pub(super) struct Traffic {
    counting: Counting,
    backend: Arc<dyn backend::Traffic>,
    services: Mutex<Services>,
    /// Locked for as long as the backend is read, by those who read only.
    totals: Mutex<Totals>,
}

/// Whose ports are counted.
#[derive(Debug, Default)]
struct Services {
    /// `None` when nothing was planned yet.
    counted: Option<bool>,
    /// Empty while nothing is counted.
    plans: BTreeMap<NamespacedName, Arc<ServicePlan>>,
}

#[derive(Debug, Default)]
struct Totals {
    /// As of the last reading.
    seen: HashMap<FrontendKey, Counts>,
    ports: BTreeMap<Port, Counts>,
}

/// A port of a Service, as its series are labelled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) service: NamespacedName,
    pub(crate) number: u16,
    pub(crate) protocol: Protocol,
    pub(crate) name: Arc<str>,
}

impl Traffic {
    pub(super) fn new(counting: Counting, backend: Arc<dyn backend::Traffic>) -> Self {
        Self { counting, backend, services: Mutex::default(), totals: Mutex::default() }
    }

    /// This plan is in force. `changed` names the services that differ from the last call; `None` means
    /// all.
    pub(super) fn update(&self, plan: &Plan, changed: Option<&[NamespacedName]>) {
        let mut services = lock(&self.services);
        let before = services.counted;
        let counts = self.counting.counts(plan.service_ports(), before);
        services.counted = Some(counts);
        match changed {
            _ if !counts => services.plans = BTreeMap::new(),
            Some(changed) if before == Some(true) => {
                for key in changed {
                    match plan.service(key) {
                        Some(service) => services.plans.insert(key.clone(), Arc::clone(service)),
                        None => services.plans.remove(key),
                    };
                }
            }
            _ => services.plans.clone_from(plan.services()),
        }
    }

    /// The ports of a service that are counted. Reads the backend.
    pub(super) fn of(&self, service: &NamespacedName) -> Vec<(Port, Counts)> {
        let totals = self.read();
        let of_service = totals.ports.iter().filter(|(port, _)| port.service == *service);
        of_service.map(|(port, counts)| (port.clone(), *counts)).collect()
    }

    /// Reads the backend, and adds what is new. When it cannot be read, the numbers are as before.
    fn read(&self) -> MutexGuard<'_, Totals> {
        let mut totals = lock(&self.totals);
        match self.backend.read() {
            Ok(counts) => totals.add(counts, &lock(&self.services).plans),
            Err(error) => warn!(
                error = &*error as &dyn std::error::Error,
                "cannot read what the backend has counted"
            ),
        }
        totals
    }
}

impl Totals {
    fn add(
        &mut self,
        counts: Vec<(FrontendKey, Counts)>,
        plans: &BTreeMap<NamespacedName, Arc<ServicePlan>>,
    ) {
        let counts: HashMap<_, _> = counts.into_iter().collect();
        let mut ports = BTreeMap::new();
        for (service, plan) in plans {
            for frontend in &plan.frontends {
                let key = frontend.key();
                let port = &plan.ports[usize::from(frontend.service_port)];
                let port = Port {
                    service: service.clone(),
                    number: port.port,
                    protocol: port.protocol,
                    name: Arc::clone(&port.name),
                };
                let (before, now) = (self.ports.get(&port).copied(), counts.get(&key));
                if before.is_none() && now.is_none() {
                    continue;
                }
                let total = ports.entry(port).or_insert_with(|| before.unwrap_or_default());
                if let Some(now) = now {
                    grow(total, now, self.seen.get(&key));
                }
            }
        }
        (self.seen, self.ports) = (counts, ports);
    }
}

/// Adds what was counted since `seen`.
fn grow(total: &mut Counts, now: &Counts, seen: Option<&Counts>) {
    let seen = seen.copied().unwrap_or_default();
    // What is less than before began again.
    let since = |now: u64, seen: u64| if now < seen { now } else { now - seen };
    total.connections += since(now.connections, seen.connections);
    let packets = |total: &mut Option<u64>, now: Option<u64>, seen: Option<u64>| {
        if let Some(now) = now {
            *total.get_or_insert(0) += since(now, seen.unwrap_or_default());
        }
    };
    packets(&mut total.rejected, now.rejected, seen.rejected);
    packets(&mut total.dropped, now.dropped, seen.dropped);
}

/// The collector of a [`Traffic`].
#[derive(Debug)]
pub(super) struct OfPorts(pub(super) Arc<Traffic>);

/// A number of a service port, where it is counted.
type Number = fn(&Counts) -> Option<u64>;

const NUMBERS: [(&str, &str, Number); 3] = [
    (
        "kpng_service_connections",
        "New connections to a port of a Service that were forwarded, and flows of UDP",
        |counts| Some(counts.connections),
    ),
    (
        "kpng_service_rejected_packets",
        "Packets to a port of a Service that were rejected: it has no endpoint",
        |counts| counts.rejected,
    ),
    (
        "kpng_service_dropped_packets",
        "Packets to a port of a Service that were dropped: no endpoint on this node under policy \
         Local, or a source outside loadBalancerSourceRanges",
        |counts| counts.dropped,
    ),
];

impl Collector for OfPorts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let totals = self.0.read();
        let help =
            "Service ports that are counted: 0 when there are too many, see --service-metrics";
        encoder
            .encode_descriptor("kpng_counted_service_ports", help, None, MetricType::Gauge)?
            .encode_gauge(&(totals.ports.len() as u64))?;
        for (name, help, number) in NUMBERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (port, counts) in &totals.ports {
                let Some(number) = number(counts) else { continue };
                let labels = [
                    ("namespace", port.service.namespace.to_string()),
                    ("service", port.service.name.to_string()),
                    ("port", port.number.to_string()),
                    ("port_name", port.name.to_string()),
                    ("protocol", port.protocol.name().to_owned()),
                ];
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&number, None)?;
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
