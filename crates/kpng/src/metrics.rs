//! What Prometheus is told, under kube-proxy's names where the meaning is kube-proxy's.
//!
//! There are no globals: who has something to tell has a clone of [`Metrics`]. Numbers that others
//! keep are read when Prometheus asks.

mod api;
mod backends;
mod changes;
mod conntrack;
mod kube;
mod plan;
mod process;
mod syncs;
mod text;
mod traffic;

use std::future::ready;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use kpng_api::{client, server};
use kpng_core::backend::{self, Capability, Counting, Counts, Usage};
use kpng_core::model;
use kpng_core::model::NamespacedName;
use kpng_core::plan::Plan;
use kpng_core::store::{Revision, Store};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use changes::{Counted, count_changes};
use syncs::{Syncs, now, sync_histogram};
pub(crate) use traffic::Port;

use crate::health::{ByCode, ProxyHealth};
use crate::http::{Blocking, Handler, TEXT, answer, not_found};

/// How many may be answered at once: they want the same numbers, which others keep.
const SCRAPES: usize = 2;

type Label<V> = [(&'static str, V); 1];
type PerFamily<M> = Family<Label<&'static str>, M, fn() -> M>;

/// The metrics of the process. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

/// Where metrics come from that others keep.
#[derive(Debug)]
pub struct Sources<'a, V> {
    /// How often probes were answered.
    pub health: &'a ProxyHealth,
    /// What the cluster says.
    pub store: &'a Store<V>,
    /// What the watcher of an API server counts, if there is one.
    pub kube: Option<Arc<kpng_kube::Stats>>,
    /// What the client of a kpng server counts, if there is one.
    pub client: Option<Arc<client::Stats>>,
    /// What this process's own server of the API counts, if there is one.
    pub server: Option<Arc<server::Stats>>,
    /// What the backend counts, if it does.
    pub backend: Option<Arc<dyn backend::Metrics>>,
    /// What the backend counts at frontends, if it does.
    pub traffic: Option<Arc<dyn backend::Traffic>>,
    /// Whether that is wanted.
    pub counting: Counting,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    sync: Syncs,
    service_changes: Changes,
    endpoint_changes: Changes,
    programming: PerFamily<Histogram>,
    conntrack_deleted: PerFamily<Counter>,
    conntrack_duration: PerFamily<Histogram>,
    synced_revision: Arc<AtomicU64>,
    conflicts: Gauge,
    gaps: Family<Label<&'static str>, Gauge>,
    table_elements: Family<Label<&'static str>, Gauge>,
    table_capacity: Family<Label<&'static str>, Gauge>,
    services: Gauge,
    local_events: Counter,
    no_local_endpoints: Family<Label<&'static str>, Gauge>,
    without_local: Mutex<plan::WithoutLocal>,
    traffic: Option<Arc<traffic::Traffic>>,
}

/// Changes of one kind of object.
#[derive(Debug, Default)]
struct Changes {
    pending: Gauge,
    total: Counter,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new<V: Counted>(sources: Sources<'_, V>) -> Self {
        let mut registry = Registry::default();
        let inner = Inner::register(&mut registry, &sources);
        inner.show_zeros();
        let journal = kube::Journal {
            store: sources.store.clone(),
            synced: Arc::clone(&inner.synced_revision),
        };
        registry.register_collector(Box::new(journal));
        let traffic = sources.traffic.clone().filter(|_| sources.counting != Counting::Never);
        let traffic = traffic.map(|of| Arc::new(traffic::Traffic::new(sources.counting, of)));
        if let Some(traffic) = &traffic {
            registry.register_collector(Box::new(traffic::OfPorts(Arc::clone(traffic))));
        }
        registry.register_collector(Box::new(conntrack::Table));
        register_others(&mut registry, sources);
        Self(Arc::new(Inner { registry, traffic, ..inner }))
    }

    /// A sync was asked for.
    pub fn queued(&self) {
        self.0.sync.last_queued.set(now());
    }

    /// So many changes of Services and of EndpointSlices were taken over, and wait to be synced.
    /// [`count_changes`] counts them.
    pub fn changes(&self, services: u64, endpoints: u64) {
        self.0.service_changes.add(services);
        self.0.endpoint_changes.add(endpoints);
    }

    /// A sync of all services (`full`) or of those that changed ended after `duration`.
    pub fn sync_done<E>(&self, full: bool, duration: Duration, result: &Result<(), E>) {
        self.0.sync.done(full, duration, result.is_ok());
        if result.is_ok() {
            self.0.service_changes.pending.set(0);
            self.0.endpoint_changes.pending.set(0);
        }
    }

    /// A sync was about so many services.
    pub fn sync_size(&self, services: usize) {
        self.0.sync.services.observe(f64::from(u32::try_from(services).unwrap_or(u32::MAX)));
    }

    /// This plan is in force. `changed` names the services that differ from the last call; `None`
    /// means all.
    pub fn planned(&self, plan: &Plan, changed: Option<&[NamespacedName]>) {
        let services = plan.services().len();
        self.0.services.set(gauge(services));
        self.0.local_events.inc_by(changed.map_or(services, <[_]>::len) as u64);
        if let Some(traffic) = &self.0.traffic {
            traffic.update(plan, changed);
        }
        let mut without_local = self.0.without_local.lock().unwrap_or_else(PoisonError::into_inner);
        without_local.update(plan, changed);
        let count = without_local.ports();
        for (policy, ports) in [("internal", count.internal), ("external", count.external)] {
            self.0.no_local_endpoints.get_or_create(&[("traffic_policy", policy)]).set(ports);
        }
    }

    /// What the cluster changed at `triggered` is in force now, in the families of the services
    /// that `changed` names.
    pub fn programmed(&self, triggered: SystemTime, plan: &Plan, changed: &[NamespacedName]) {
        let seconds = triggered.elapsed().unwrap_or_default().as_secs_f64();
        for family in plan::families(plan, changed) {
            self.0.programming.get_or_create(&of(family)).observe(seconds);
        }
    }

    /// Everything up to this revision of the store is in force.
    pub fn set_synced_revision(&self, revision: Revision) {
        self.0.synced_revision.store(revision, std::sync::atomic::Ordering::Relaxed);
    }

    /// So many services need each of the things that the backend cannot do.
    pub(crate) fn set_gaps(&self, counts: impl Iterator<Item = (Capability, usize)>) {
        for (what, services) in counts {
            self.0.gaps.get_or_create(&[("what", what.name())]).set(gauge(services));
        }
    }

    /// The backend's tables are this full.
    pub(crate) fn set_usage(&self, usage: &[Usage]) {
        for Usage { table, elements, capacity } in usage {
            let label = [("table", *table)];
            self.0.table_elements.get_or_create(&label).set(gauge(*elements));
            self.0.table_capacity.get_or_create(&label).set(gauge(*capacity));
        }
    }

    /// So many claims to frontends are not met.
    pub fn set_conflicts(&self, conflicts: usize) {
        self.0.conflicts.set(gauge(conflicts));
    }

    /// So many conntrack entries were deleted, after looking for `duration`.
    pub fn conntrack_cleaned(&self, family: model::Family, deleted: u64, duration: Duration) {
        self.0.conntrack_deleted.get_or_create(&of(family)).inc_by(deleted);
        self.0.conntrack_duration.get_or_create(&of(family)).observe(duration.as_secs_f64());
    }

    /// The backend could not remove what it had installed.
    pub fn cleanup_failed(&self) {
        self.0.sync.cleanup_failures.inc();
    }

    /// What was counted at the ports of a service, as `/metrics` tells it; nothing where nobody counts.
    /// It asks the backend, so it blocks.
    pub(crate) fn traffic(&self, service: &NamespacedName) -> Vec<(Port, Counts)> {
        self.0.traffic.as_ref().map(|traffic| traffic.of(service)).unwrap_or_default()
    }

    /// Everything, in Prometheus' text format.
    pub fn encode(&self) -> String {
        encode(&self.0.registry)
    }

    /// Answers `/metrics`, and `/proxyMode` with kube-proxy's name for `backend`.
    pub fn handler(&self, backend: &'static str) -> Handler {
        let metrics = self.clone();
        handler(move || metrics.encode(), Some(proxy_mode(backend)))
    }
}

/// kube-proxy's name for a mode, or ours where it has none.
fn proxy_mode(backend: &'static str) -> &'static str {
    match backend {
        "nft" => "nftables",
        other => other,
    }
}

impl Changes {
    fn add(&self, count: u64) {
        self.pending.inc_by(i64::try_from(count).unwrap_or(i64::MAX));
        self.total.inc_by(count);
    }

    fn register(registry: &mut Registry, name: &str, of: &str) -> Self {
        let this = Self::default();
        let pending = format!("Changes of {of} that are not synced yet");
        let total = format!("Changes of {of}");
        let prefix = format!("kubeproxy_sync_proxy_rules_{name}_changes");
        registry.register(format!("{prefix}_pending"), pending, this.pending.clone());
        registry.register(prefix, total, this.total.clone());
        this
    }
}

impl Inner {
    fn register<V>(registry: &mut Registry, sources: &Sources<'_, V>) -> Self {
        let sync = Syncs::register(registry);
        let service_changes = Changes::register(registry, "service", "Services");
        let endpoint_changes = Changes::register(registry, "endpoint", "EndpointSlices");
        let (healthz, livez) = sources.health.answers();
        let this = Self {
            registry: Registry::default(),
            sync,
            service_changes,
            endpoint_changes,
            programming: PerFamily::new_with_constructor(programming_histogram),
            conntrack_deleted: PerFamily::new_with_constructor(Counter::default),
            conntrack_duration: PerFamily::new_with_constructor(sync_histogram),
            synced_revision: Arc::default(),
            conflicts: Gauge::default(),
            gaps: Family::default(),
            table_elements: Family::default(),
            table_capacity: Family::default(),
            services: Gauge::default(),
            local_events: Counter::default(),
            no_local_endpoints: Family::default(),
            without_local: Mutex::default(),
            traffic: None,
        };
        let kube_proxy = registry.sub_registry_with_prefix("kubeproxy");
        kube_proxy.register(
            "network_programming_duration_seconds",
            "From a change of endpoints in the cluster to its being in force on this node",
            this.programming.clone(),
        );
        kube_proxy.register(
            "conntrack_reconciler_deleted_entries",
            "Conntrack entries deleted because their endpoint serves no more",
            this.conntrack_deleted.clone(),
        );
        kube_proxy.register(
            "conntrack_reconciler_sync_duration_seconds",
            "Duration of looking for conntrack entries to delete",
            this.conntrack_duration.clone(),
        );
        // A gauge, whatever its name says, in kube-proxy too.
        kube_proxy.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local traffic policy and endpoints on other nodes only",
            this.no_local_endpoints.clone(),
        );
        register_answers(kube_proxy, healthz, livez);
        this.register_own(registry.sub_registry_with_prefix("kpng"));
        this
    }

    /// What kube-proxy has not.
    fn register_own(&self, own: &mut Registry) {
        own.register(
            "frontend_conflicts",
            "Claims to frontends that are not met because another service has them",
            self.conflicts.clone(),
        );
        own.register(
            "services_with_gaps",
            "Services that need what the backend cannot do",
            self.gaps.clone(),
        );
        own.register(
            "backend_table_elements",
            "Elements in tables of the backend that have a size",
            self.table_elements.clone(),
        );
        own.register(
            "backend_table_capacity",
            "Elements that such tables can hold; they grow by themselves",
            self.table_capacity.clone(),
        );
        let about = self.sync.services.clone();
        own.register("sync_services", "Services that a sync was about", about);
        own.register("services", "Services that this node serves", self.services.clone());
        own.register(
            "node_local_events",
            "Services whose plan for this node changed",
            self.local_events.clone(),
        );
    }
}

impl Inner {
    /// A series that exists before its first event shows that event as an increase.
    fn show_zeros(&self) {
        for label in model::Family::ALL.map(of) {
            drop(self.programming.get_or_create(&label));
            drop(self.conntrack_deleted.get_or_create(&label));
            drop(self.conntrack_duration.get_or_create(&label));
        }
        for policy in ["internal", "external"] {
            drop(self.no_local_endpoints.get_or_create(&[("traffic_policy", policy)]));
        }
    }
}

/// What a process tells that programs no kernel: of its sources, its server and itself.
pub fn without_node<V: Counted>(sources: Sources<'_, V>) -> Handler {
    let mut registry = Registry::default();
    let (healthz, livez) = sources.health.answers();
    register_answers(registry.sub_registry_with_prefix("kubeproxy"), healthz, livez);
    if let Some(stats) = &sources.server {
        registry.register_collector(Box::new(api::LocalEvents(Arc::clone(stats))));
    }
    register_others(&mut registry, sources);
    handler(move || encode(&registry), None)
}

/// Answers `/metrics`, on a thread that may block, and `/proxyMode` where there is one.
fn handler(
    encode: impl Fn() -> String + Send + Sync + 'static,
    proxy_mode: Option<&'static str>,
) -> Handler {
    let (encode, blocking) = (Arc::new(encode), Blocking::new(SCRAPES));
    Arc::new(move |request| match (request.uri.path(), proxy_mode) {
        ("/metrics", _) => {
            let (encode, blocking) = (Arc::clone(&encode), blocking.clone());
            let work = move || answer(StatusCode::OK, text::CONTENT_TYPE, encode());
            Box::pin(async move { blocking.answer(work).await })
        }
        ("/proxyMode", Some(mode)) => Box::pin(ready(answer(StatusCode::OK, TEXT, mode))),
        _ => Box::pin(ready(not_found())),
    })
}

fn encode(registry: &Registry) -> String {
    let mut encoded = String::new();
    prometheus_client::encoding::text::encode(&mut encoded, registry)
        .expect("writing to a string does not fail");
    text::classic(&encoded)
}

fn register_answers(kube_proxy: &mut Registry, healthz: ByCode, livez: ByCode) {
    kube_proxy.register("proxy_healthz", "Answers to /healthz by status code", healthz);
    kube_proxy.register("proxy_livez", "Answers to /livez by status code", livez);
}

fn register_others<V: Counted>(registry: &mut Registry, sources: Sources<'_, V>) {
    let build = Family::<Label<&'static str>, Gauge>::default();
    build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
    registry.register("kpng_build_info", "The version of kpng, as a label", build);
    let count_events = sources.kube.is_none();
    let contents = kube::Contents { store: sources.store.clone(), count_events };
    registry.register_collector(Box::new(contents));
    if let Some(stats) = sources.kube {
        registry.register_collector(Box::new(kube::Watcher(stats)));
    }
    if let Some(stats) = sources.client {
        registry.register_collector(Box::new(api::Client(stats)));
    }
    if let Some(stats) = sources.server {
        registry.register_collector(Box::new(api::Server(stats)));
    }
    if let Some(metrics) = sources.backend {
        registry.register_collector(Box::new(backends::OfBackend(metrics)));
    }
    registry.register_collector(Box::new(process::Process));
}

fn of(family: model::Family) -> Label<&'static str> {
    [("ip_family", family.name())]
}

/// kube-proxy's buckets, made for the scalability objective on network programming.
fn programming_histogram() -> Histogram {
    let steps = |from: u16, to: u16, width: usize| (from..=to).step_by(width).map(f64::from);
    let seconds = steps(1, 59, 1).chain(steps(60, 115, 5)).chain(steps(120, 300, 30));
    Histogram::new([0.25, 0.5].into_iter().chain(seconds))
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
