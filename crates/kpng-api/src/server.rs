//! The server: one store, streamed to thousands of clients.
//!
//! ```text
//!           ┌─ Reader ─ LocalFeed ──▶ Watch ──▶ stream of node-1
//! Store ────┼─ Reader ─ LocalFeed ──▶ Watch ──▶ stream of node-2
//!           └─ Reader ─ GlobalFeed ─▶ Watch ──▶ stream of a relay
//!                         │
//!                       Cache: each change, encoded once for all that see it alike
//! ```
//!
//! A stream is a reader's position in the store: it copies no state, and what it has not sent is
//! worked out when the client takes it. So a client that reads slowly, or never, costs nothing more.

mod authority;
mod authorization;
mod cache;
mod connection;
mod feed;
mod listener;
mod page;
mod service;
mod stats;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kpng_core::backoff::random;
use kpng_core::local::{LocalService, Localize};
use kpng_core::store::Store;
use tokio::sync::{Semaphore, watch as channel};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::warn;

pub use authorization::Authorization;
pub use listener::{UnixSocket, listen, listen_everywhere, listen_unix};
pub use stats::Stats;

use crate::address::ListenAddress;
use crate::error::Error;
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::tls::ServerTls;
use cache::Cache;
use connection::{LIMITS, Limits};
use feed::{GlobalViews, LocalViews};
use listener::Listener;
use service::Shared;

/// What a server serves, where, to whom.
#[derive(Debug)]
pub struct Config {
    /// Where it listens.
    pub listen: Vec<ListenAddress>,
    /// With which certificate, on all addresses; `None` for no TLS.
    pub tls: Option<ServerTls>,
    /// It serves `localv1.Sets`.
    pub local_api: bool,
    /// It serves `globalv1.Sets`.
    pub global_api: bool,
    /// Who may see what; `None` means that everybody may see everything. Needs `tls` with a CA.
    pub authorization: Option<Authorization>,
    /// The node that clients mean who name none; `None` means a node without a name.
    pub default_node: Option<Arc<str>>,
    /// Connections at once; more are turned away.
    pub max_connections: usize,
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    addresses: Vec<ListenAddress>,
    config: Config,
    stats: Arc<Stats>,
    limits: Limits,
}

/// How often encodings that nobody needs any more are forgotten.
const AGING: Duration = Duration::from_secs(5);

/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Server {
    /// Listens on all addresses, or on none.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub async fn bind(config: Config, stats: Arc<Stats>) -> Result<Self, Error> {
        let mut listeners = Vec::with_capacity(config.listen.len());
        let mut addresses = Vec::with_capacity(config.listen.len());
        for address in &config.listen {
            let listener = Listener::bind(address).await?;
            let named = |source| Error::Listen { address: address.clone(), source };
            addresses.push(listener.address().map_err(named)?);
            listeners.push(listener);
        }
        Ok(Self { listeners, addresses, config, stats, limits: LIMITS })
    }

    /// What is listened on, with the ports that the kernel chose.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// Serves what the cluster says, and what it means on each node, until `shutdown` completes.
    /// Streams end when the store's source does.
    pub async fn run(self, store: Store, shutdown: impl Future<Output = ()>) {
        let global =
            self.config.global_api.then(|| Arc::new(GlobalViews::new(store.clone(), &self.stats)));
        self.serve(store, global, false, shutdown).await;
    }

    /// Serves what Services mean on one node, `default_node`, until `shutdown` completes.
    pub async fn run_local(self, store: Store<LocalService>, shutdown: impl Future<Output = ()>) {
        self.serve(store, None, true, shutdown).await;
    }

    async fn serve<V: Localize>(
        self,
        store: Store<V>,
        global: Option<Arc<GlobalViews>>,
        one_node: bool,
        shutdown: impl Future<Output = ()>,
    ) {
        let Self { listeners, addresses: _, config, stats, limits } = self;
        let (health_reporter, health) = tonic_health::server::health_reporter();
        let cache = Cache::new(Arc::clone(&stats));
        let local = config.local_api.then(|| Arc::new(LocalViews { store: store.clone(), cache }));
        let (close, closing) = channel::channel(false);
        let served = [(local.is_some(), LOCAL), (global.is_some(), GLOBAL)];
        let served: Vec<_> =
            served.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
        let shared = Arc::new(Shared {
            local,
            global,
            routes: reflection(Routes::new(health)).prepare(),
            instance: format!("{:016x}", (random() * u64::MAX as f64) as u64).into(),
            authorization: config.authorization,
            only_node: config.default_node.clone().filter(|_| one_node),
            default_node: config.default_node,
            stats,
            closing,
        });
        let acceptor = Acceptor {
            shared: Arc::clone(&shared),
            tls: config.tls.clone(),
            limits,
            permits: Arc::new(Semaphore::new(config.max_connections)),
        };
        let mut work = JoinSet::new();
        for listener in listeners {
            work.spawn(acceptor.clone().run(listener));
        }
        tokio::select! {
            () = shutdown => {}
            () = tell_health(&store, &health_reporter, &served) => {}
            () = age(&shared) => {}
            () = follow_files(config.tls.as_ref()) => {}
        }
        close.send_replace(true);
        // Connections know, and have a moment to end; what listens goes with this set.
        work.shutdown().await;
        let everybody = u32::try_from(config.max_connections).unwrap_or(u32::MAX);
        let all_gone = acceptor.permits.acquire_many(everybody);
        drop(tokio::time::timeout(limits.grace, all_gone).await);
    }
}

/// The names of our services, as health checks call them.
const LOCAL: &str = "localv1.Sets";
const GLOBAL: &str = "globalv1.Sets";

fn reflection(routes: Routes) -> Routes {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let why = "the descriptors were made by the build";
    routes
        .add_service(builder().build_v1().expect(why))
        .add_service(builder().build_v1alpha().expect(why))
}

/// Healthy when the store is complete.
async fn tell_health<V: PartialEq>(
    store: &Store<V>,
    reporter: &HealthReporter,
    served: &[&'static str],
) {
    let tell = |status| async move {
        for name in std::iter::once("").chain(served.iter().copied()) {
            reporter.set_service_status(name, status).await;
        }
    };
    tell(ServingStatus::NotServing).await;
    if store.reader().ready().await {
        tell(ServingStatus::Serving).await;
    }
    std::future::pending().await
}

async fn age<V: Localize>(shared: &Shared<V>) {
    loop {
        tokio::time::sleep(AGING).await;
        if let Some(local) = &shared.local {
            local.cache.age();
        }
        if let Some(global) = &shared.global {
            global.services.age();
            global.nodes.age();
        }
    }
}

async fn follow_files(tls: Option<&ServerTls>) {
    match tls {
        Some(tls) => tls.follow().await,
        None => std::future::pending().await,
    }
}

/// Takes connections from listeners.
struct Acceptor<V: Localize> {
    shared: Arc<Shared<V>>,
    tls: Option<ServerTls>,
    limits: Limits,
    permits: Arc<Semaphore>,
}

impl<V: Localize> Clone for Acceptor<V> {
    fn clone(&self) -> Self {
        let Self { shared, tls, limits, permits } = self;
        Self {
            shared: Arc::clone(shared),
            tls: tls.clone(),
            limits: *limits,
            permits: Arc::clone(permits),
        }
    }
}

impl<V: Localize> Acceptor<V> {
    /// Takes connections until it is aborted.
    async fn run(self, mut listener: Listener) {
        let mut warned = false;
        loop {
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    // A client that went away again, or no more file descriptors: they come back.
                    if !std::mem::replace(&mut warned, !is_the_clients(&error)) {
                        warn!("cannot accept a connection: {error}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                self.shared.stats.refused.add(1);
                if !std::mem::replace(&mut warned, true) {
                    warn!("too many connections; more are turned away");
                }
                continue;
            };
            warned = false;
            let serving =
                connection::serve(stream, self.tls.clone(), Arc::clone(&self.shared), self.limits);
            tokio::spawn(async move {
                serving.await;
                drop(permit);
            });
        }
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}
