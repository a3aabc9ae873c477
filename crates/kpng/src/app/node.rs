//! The local side: everything that runs beside a backend on a node.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, bail};
use kpng_core::Backend;
use kpng_core::backend::Counting;
use kpng_core::local::Localize;
use kpng_core::model::Family;
use kpng_core::plan::Planner;
use kpng_core::store::Store;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::admin::Admin;
use crate::backends::{self, Choice, Row};
use crate::cli::{DetectLocalMode, LocalArgs, NodeArgs};
use crate::conntrack::{Cleaner, Report};
use crate::events::Events;
use crate::gaps::GapWatch;
use crate::health::ProxyHealth;
use crate::kube_proxy;
use crate::metrics::{Counted, Metrics, Sources};
use crate::node_facts::{self, Interfaces, NodeSettings, PodDetectionMode};
use crate::node_setup::{self, ConntrackConfig};
use crate::pipeline::Pipeline;
use crate::service_health::ServiceHealth;
use crate::signals::Shutdown;
use crate::web::{Board, Web};

use super::observe::Observer;
use super::serving::{self, Beside, Serve};
use super::source::{Running, Source};

/// The name of this node: as told, or the host's.
pub(super) fn name(told: Option<&str>) -> anyhow::Result<Arc<str>> {
    if let Some(name) = told {
        return Ok(name.trim().to_ascii_lowercase().into());
    }
    let uname = rustix::system::uname();
    let name = uname.nodename().to_str().context("the host name is no text; give --node-name")?;
    Ok(name.to_ascii_lowercase().into())
}

/// Keeps the kernel equal to what the source says, until a signal comes.
pub(super) async fn run<S: Source<Value: Serve>>(
    source: S,
    node: Arc<str>,
    local: LocalArgs,
    choice: Arc<dyn Choice>,
    replace_kube_proxy: bool,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let settings = settings(&local.node)?;
    let backend = choice.open()?;
    let api = Beside::bind(&local, &node).await?;
    let row = choice.row();
    if row.has_data_path {
        for problem in node_setup::apply(&setup(&local)) {
            warn!("{problem}");
        }
    }

    let source = source.start(shutdown.clone())?;
    let store = source.store.clone();
    info!(node = &*node, "waiting for the first complete state");
    let health = ProxyHealth::new(local.serving.health_timeout);
    let metrics = metrics(&source, &api, &*backend, &health, local.serving.service_metrics);
    let api = api.serve(&store);

    let (facts, facts_receiver) = watch::channel(None);
    let synced = Arc::new(AtomicU64::new(0));
    let admin = Admin {
        store: store.clone(),
        node: Arc::clone(&node),
        facts: facts_receiver.clone(),
        choice,
        synced: Arc::clone(&synced),
    };
    let board = Board::default();
    let web = Web {
        process: admin.clone(),
        board: board.clone(),
        source: source.tells(),
        health: health.clone(),
        metrics: metrics.clone(),
    };
    let pages = serving::pages(&local.serving, web, metrics.handler(row.mode));
    let _probes = serving::probes(&local.serving, &health, pages)?;
    let _admin = serving::admin(local.admin_socket.as_deref(), admin).await?;
    let cleaner = Arc::new(Cleaner::new());
    let events = Events::new(source.recorder.clone(), Arc::clone(&node), row.name);
    let mut observer = Observer {
        service_health: ServiceHealth::new(health.clone(), events.clone()),
        health: health.clone(),
        metrics: metrics.clone(),
        gaps: GapWatch::new(backend.gaps()),
        events,
        board,
        synced,
        cleaner: row.uses_conntrack.then(|| Arc::clone(&cleaner)),
        at_first_sync: at_first_sync(row, replace_kube_proxy),
    };
    let pipeline = Pipeline {
        reader: store.reader(),
        node: Arc::clone(&node),
        facts: facts_receiver,
        backend,
        min_sync_period: local.min_sync_period,
    };
    let work = async {
        tokio::select! {
            () = pipeline.run(|event| observer.observe(event), shutdown.wait()) => Ok(()),
            () = node_facts::follow(&settings, &node, &store, &facts) => Ok(()),
            () = follow_eligibility(&store, &node, &health) => Ok(()),
            () = cleaner.run(|report| conntrack_cleaned(report, &metrics)) => Ok(()),
        }
    };
    source.beside(work).await?;
    api.end().await
}

/// What the parts of the process count.
fn metrics<V: Counted>(
    source: &Running<V>,
    api: &Beside,
    backend: &dyn Backend,
    health: &ProxyHealth,
    counting: Counting,
) -> Metrics {
    Metrics::new(Sources {
        health,
        store: &source.store,
        kube: source.kube.clone(),
        client: source.client.clone(),
        server: api.stats(),
        backend: backend.metrics(),
        traffic: backend.traffic(),
        counting,
    })
}

/// Prints the ruleset for the first complete state.
pub(super) async fn dry_run<S: Source>(
    source: S,
    node: Arc<str>,
    local: &LocalArgs,
    choice: &dyn Choice,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let settings = settings(&local.node)?;
    let source = source.start(shutdown.clone())?;
    let store = source.store.clone();
    let work = async {
        let mut reader = store.reader();
        let update = tokio::select! {
            () = shutdown.wait() => return Ok(()),
            update = reader.next() => update,
        };
        let Some(update) = update else { return Ok(()) };
        let facts =
            node_facts::facts(&settings, store.node(&node).as_deref(), &Interfaces::read()?);
        let mut planner = Planner::new(Arc::clone(&node), facts);
        planner.update(&update);
        super::print(&choice.ruleset_text(planner.plan()))
    };
    source.beside(work).await
}

/// What the flags say about the node.
pub(super) fn settings(local: &NodeArgs) -> anyhow::Result<NodeSettings> {
    let list = |list: &Option<crate::cli::List<_>>| list.as_ref().map(|list| list.0.clone());
    // An empty list says nothing, as in kube-proxy's manifests.
    let cluster_cidrs = list(&local.cluster_cidrs).filter(|cidrs| !cidrs.is_empty());
    let pods = match (local.detect_local_mode, cluster_cidrs) {
        (None | Some(DetectLocalMode::ClusterCidr), Some(cidrs)) => {
            PodDetectionMode::ClusterCidr(cidrs)
        }
        (Some(DetectLocalMode::ClusterCidr), None) => {
            bail!("--detect-local-mode=cluster-cidr needs --cluster-cidrs");
        }
        (Some(DetectLocalMode::NodeCidr), _) => PodDetectionMode::NodeCidr,
        (Some(DetectLocalMode::BridgeInterface), _) => match &local.pod_bridge_interface {
            Some(name) => PodDetectionMode::BridgeInterface(name.clone()),
            None => bail!("--detect-local-mode=bridge-interface needs --pod-bridge-interface"),
        },
        (Some(DetectLocalMode::InterfaceNamePrefix), _) => match &local.pod_interface_name_prefix {
            Some(prefix) => PodDetectionMode::InterfaceNamePrefix(prefix.clone()),
            None => {
                bail!("--detect-local-mode=interface-name-prefix needs --pod-interface-name-prefix")
            }
        },
        (None, None) | (Some(DetectLocalMode::None), _) => PodDetectionMode::None,
    };
    Ok(NodeSettings {
        pods,
        node_port_addresses: local.nodeport_addresses.clone(),
        localhost_node_ports: local.localhost_nodeports,
        masquerade_all: local.masquerade_all,
        service_cidrs: list(&local.service_cidrs).unwrap_or_default(),
        bind_addresses: local.bind_address.as_ref().map(|l| l.0.clone()).unwrap_or_default(),
    })
}

/// What the flags ask of the kernel's parameters.
fn setup(local: &LocalArgs) -> node_setup::Config {
    let conntrack = &local.conntrack;
    node_setup::Config {
        localhost_node_ports: local.node.localhost_nodeports,
        conntrack: ConntrackConfig {
            max_per_core: conntrack.conntrack_max_per_core,
            min: conntrack.conntrack_min,
            tcp_timeout_established: conntrack.conntrack_tcp_timeout_established,
            tcp_timeout_close_wait: conntrack.conntrack_tcp_timeout_close_wait,
            udp_timeout: conntrack.conntrack_udp_timeout,
            udp_timeout_stream: conntrack.conntrack_udp_timeout_stream,
            tcp_be_liberal: conntrack.conntrack_be_liberal,
        },
    }
}

/// Tells load balancers when the node is going away.
async fn follow_eligibility<V: Localize>(store: &Store<V>, node: &str, health: &ProxyHealth) {
    let mut reader = store.reader();
    while reader.ready().await {
        reader.skip();
        let going_away = store.node(node).is_some_and(|node| node.going_away);
        health.set_node_eligible(!going_away);
    }
    std::future::pending().await
}

fn conntrack_cleaned(result: &kpng_linux::Result<Report>, metrics: &Metrics) {
    match result {
        Ok(report) => {
            metrics.conntrack_cleaned(Family::V4, report.deleted_v4, report.duration);
            metrics.conntrack_cleaned(Family::V6, report.deleted_v6, report.duration);
            let (deleted, milliseconds) = (report.deleted(), report.duration.as_millis());
            debug!(deleted, visited = report.visited, milliseconds, "looked for dead UDP flows");
        }
        Err(error) => {
            let error: &dyn std::error::Error = error;
            warn!(error, "cannot end dead UDP flows; trying again");
        }
    }
}

/// What follows when our rules are in force. It may take a while, and whatever comes of it is in the log.
fn at_first_sync(row: Row, replace_kube_proxy: bool) -> Option<Box<dyn FnOnce()>> {
    let work = move || take_over(row.name, replace_kube_proxy);
    row.has_data_path.then(|| Box::new(move || drop(tokio::task::spawn_blocking(work))) as _)
}

/// Our rules are in force: what others left for the same purpose goes.
fn take_over(backend: &str, replace_kube_proxy: bool) {
    if let Err(error) = backends::cleanup_all(Some(backend)) {
        warn!("{error:#}");
    }
    if !replace_kube_proxy {
        return;
    }
    match kube_proxy::remove() {
        Ok(removed) if removed.is_empty() => debug!("kube-proxy left nothing"),
        Ok(removed) => info!(removed = removed.join(", "), "removed what kube-proxy left"),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            warn!(error, "cannot remove all that kube-proxy left");
        }
    }
}
