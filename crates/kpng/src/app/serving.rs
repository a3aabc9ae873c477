//! What a process serves beside its work: health, metrics, and kpng's API.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use kpng_api::server::{Authorization, Config, Server, Stats};
use kpng_api::tls::ServerTls;
use kpng_core::local::LocalService;
use kpng_core::model::ServiceState;
use kpng_core::store::Store;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{info, warn};

use crate::admin::{self, Admin};
use crate::cli::{ListenTlsArgs, LocalArgs, ServingArgs, ToApiArgs};
use crate::health::ProxyHealth;
use crate::http::{self, Handler};
use crate::inspect::Inspect;
use crate::memory;
use crate::metrics::{self, Counted, Sources};
use crate::signals::Shutdown;
use crate::web::Web;

use super::source::{Cluster, Source};

/// How many clients there may be beside a backend: agents on the same node.
const MAX_CONNECTIONS_BESIDE: usize = 1000;

/// What a store must hold to be served.
pub(super) trait Serve: Counted + Inspect + Sized {
    /// Serves a store of it until `shutdown` completes.
    fn serve(
        server: Server,
        store: Store<Self>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> impl Future<Output = ()> + Send;
}

impl Serve for ServiceState {
    async fn serve(server: Server, store: Store, shutdown: impl Future<Output = ()> + Send) {
        server.run(store, shutdown).await;
    }
}

impl Serve for LocalService {
    async fn serve(server: Server, store: Store<Self>, shutdown: impl Future<Output = ()> + Send) {
        server.run_local(store, shutdown).await;
    }
}

/// What is served at the address of the metrics: they, and the page where the flags say so.
pub(super) fn pages<V: Serve>(serving: &ServingArgs, web: Web<V>, metrics: Handler) -> Handler {
    if serving.web { web.handler(metrics) } else { metrics }
}

/// Serves health and metrics where the flags say.
pub(super) fn probes(
    serving: &ServingArgs,
    health: &ProxyHealth,
    metrics: Handler,
) -> anyhow::Result<Vec<http::Server>> {
    let start = |what: &str, address, handler: Handler| match address {
        Some(address) if serving.bind_address_hard_fail => {
            http::Server::try_start(what, address, handler).map(Some)
        }
        Some(address) => Ok(Some(http::Server::start(what, address, handler))),
        None => Ok(None),
    };
    let servers = [
        start("health", serving.healthz_bind_address.0, health.handler())?,
        start("metrics", serving.metrics_bind_address.0, metrics)?,
    ];
    Ok(servers.into_iter().flatten().collect())
}

/// Answers by the admin socket where the flags say; by default where that is possible. It ends when the
/// set is dropped.
pub(super) async fn admin<V: Serve>(
    socket: Option<&OsStr>,
    admin: Admin<V>,
) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    match socket.map(Path::new) {
        Some(path) if path.as_os_str().is_empty() => {}
        Some(path) => {
            let bound = admin::bind(path).await;
            let socket = bound.with_context(|| format!("cannot listen at {}", path.display()))?;
            tasks.spawn(admin.serve(socket));
        }
        // It may be another kpng's, whose end would be waited for.
        None => drop(tasks.spawn(async move {
            match admin::bind(Path::new(admin::DEFAULT_SOCKET)).await {
                Ok(socket) => admin.serve(socket).await,
                Err(error) => warn!(
                    "cannot listen at {}: {error}; kpng explain, dump and check cannot ask this \
                     process (--admin-socket says where else)",
                    admin::DEFAULT_SOCKET
                ),
            }
        })),
    }
    Ok(tasks)
}

/// `to-api`: serves the store of `source`, until a signal comes.
pub(super) async fn to_api(
    source: Cluster,
    local: LocalArgs,
    args: ToApiArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let config = Config {
        tls: tls(&local.listen_tls)?,
        local_api: args.local_api,
        global_api: args.globalv1_api,
        authorization: authorization(&args, &local.listen_tls)?,
        default_node: None,
        max_connections: args.max_connections,
        listen: args.listen,
    };
    if !config.local_api && !config.global_api {
        bail!("with --globalv1-api=false and --local-api=false there is nothing to serve");
    }
    raise_open_files();
    let (server, stats) = bind(config).await?;
    let source = source.start(shutdown.clone())?;
    let store = source.store.clone();
    let health = ProxyHealth::new(local.serving.health_timeout);
    let metrics = metrics::without_node(Sources {
        health: &health,
        store: &store,
        kube: source.kube.clone(),
        client: source.client.clone(),
        server: Some(Arc::clone(&stats)),
        backend: None,
        traffic: None,
        counting: local.serving.service_metrics,
    });
    let _probes = probes(&local.serving, &health, metrics)?;
    let ready = async {
        if store.reader().ready().await {
            let (services, nodes) = store.len();
            info!(services, nodes, "the state is complete and served");
            health.synced();
        }
        std::future::pending().await
    };
    let work = async {
        tokio::select! {
            () = server.run(store.clone(), shutdown.wait()) => Ok(()),
            never = ready => never,
            never = memory::give_back_after_peaks(store.reader(), &stats) => never,
        }
    };
    source.beside(work).await
}

fn tls(args: &ListenTlsArgs) -> anyhow::Result<Option<ServerTls>> {
    let files = args.files();
    Ok(if files.is_set() { Some(ServerTls::load(&files)?) } else { None })
}

fn authorization(args: &ToApiArgs, tls: &ListenTlsArgs) -> anyhow::Result<Option<Authorization>> {
    if !args.authorize_node_name {
        return Ok(None);
    }
    if tls.listen_tls_ca.is_none() {
        bail!(
            "--authorize-node-name knows clients by their certificates: it needs --listen-tls-ca, \
             --listen-tls-crt and --listen-tls-key"
        );
    }
    Ok(Some(Authorization { global: args.authorize_global.clone() }))
}

async fn bind(config: Config) -> anyhow::Result<(Server, Arc<Stats>)> {
    let stats = Arc::default();
    let secure = config.tls.is_some();
    let server = Server::bind(config, Arc::clone(&stats)).await?;
    for address in server.addresses() {
        info!(%address, tls = secure, "listening");
    }
    Ok((server, stats))
}

/// A connection is a file, and there may be one for each node.
fn raise_open_files() {
    let limits = getrlimit(Resource::Nofile);
    if limits.current == limits.maximum {
        return;
    }
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "cannot raise the limit of open files");
    }
}

/// A server of the API that listens, beside a backend (`--also-listen`).
pub(super) struct Beside {
    server: Option<(Server, Arc<Stats>)>,
}

impl Beside {
    /// Listens where the flags say, if they do.
    pub(super) async fn bind(local: &LocalArgs, node: &Arc<str>) -> anyhow::Result<Self> {
        if local.also_listen.is_empty() {
            return Ok(Self { server: None });
        }
        let config = Config {
            listen: local.also_listen.clone(),
            tls: tls(&local.listen_tls)?,
            local_api: true,
            // A node follows no other Nodes than its own.
            global_api: false,
            authorization: None,
            default_node: Some(Arc::clone(node)),
            max_connections: MAX_CONNECTIONS_BESIDE,
        };
        Ok(Self { server: Some(bind(config).await?) })
    }

    /// What the server counts.
    pub(super) fn stats(&self) -> Option<Arc<Stats>> {
        self.server.as_ref().map(|(_, stats)| Arc::clone(stats))
    }

    /// Serves `store` from now on.
    pub(super) fn serve<V: Serve>(self, store: &Store<V>) -> Serving {
        let (stop, stopped) = oneshot::channel::<()>();
        let store = store.clone();
        let task = self.server.map(|(server, _)| {
            tokio::spawn(V::serve(server, store, async { drop(stopped.await) }))
        });
        Serving { _stop: stop, task }
    }
}

/// A server of the API at work. It ends when this is dropped.
pub(super) struct Serving {
    _stop: oneshot::Sender<()>,
    task: Option<JoinHandle<()>>,
}

impl Serving {
    /// Ends it, and waits until clients know.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        let Self { _stop: stop, task } = self;
        drop(stop);
        match task {
            Some(task) => Ok(task.await?),
            None => Ok(()),
        }
    }
}
