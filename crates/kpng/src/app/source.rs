//! Where a store's contents come from.

use std::sync::Arc;

use kpng_api::client;
use kpng_core::local::LocalService;
use kpng_core::model::ServiceState;
use kpng_core::store::Store;
use kpng_kube::{Glob, NodeScope, Recorder, Selection, Watcher};
use tokio::task::JoinHandle;

use crate::cli::{FileArgs, KubeArgs};
use crate::metrics::Counted;
use crate::signals::Shutdown;
use crate::web;

/// A source that has not begun.
pub(super) trait Source {
    /// What its store holds for each Service.
    type Value: Counted;

    /// Begins. The source ends with `shutdown`, or when it cannot begin.
    fn start(self, shutdown: Shutdown) -> anyhow::Result<Running<Self::Value>>;
}

/// A source of what the cluster says.
#[derive(Debug)]
pub(super) enum Cluster {
    Kube {
        config: kpng_kube::Config,
        /// Who we are in Kubernetes Events, if we write them.
        events_of: Option<Arc<str>>,
    },
    File(FileArgs),
    Api(client::Config),
}

/// A server that works out what Services mean on one node.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) config: client::Config,
    pub(super) node: Arc<str>,
}

/// A source at work.
#[derive(Debug)]
pub(super) struct Running<V> {
    task: JoinHandle<anyhow::Result<()>>,
    /// Where it writes.
    pub(super) store: Store<V>,
    /// What the API watcher counts.
    pub(super) kube: Option<Arc<kpng_kube::Stats>>,
    /// Who takes Kubernetes Events.
    pub(super) recorder: Option<Recorder>,
    /// What the client of a kpng server counts.
    pub(super) client: Option<Arc<client::Stats>>,
}

impl Cluster {
    /// The API server, and so much of its Nodes. Events are written as `events_of`.
    pub(super) fn kube(
        args: KubeArgs,
        nodes: NodeScope,
        events_of: Option<Arc<str>>,
    ) -> anyhow::Result<Self> {
        let globs = |patterns: &[String]| {
            patterns.iter().map(|pattern| Glob::new(pattern)).collect::<Result<Vec<_>, _>>()
        };
        let selection = Selection {
            service_labels: globs(&args.with_service_labels)?,
            service_annotations: globs(&args.with_service_annotations)?,
            node_labels: globs(&args.with_node_labels)?,
            node_annotations: globs(&args.with_node_annotations)?,
        };
        let config = kpng_kube::Config {
            kubeconfig: args.kubeconfig,
            server: args.server,
            service_proxy_name: args.service_proxy_name,
            selection,
            nodes,
        };
        Ok(Self::Kube { config, events_of })
    }
}

impl Source for Cluster {
    type Value = ServiceState;

    fn start(self, shutdown: Shutdown) -> anyhow::Result<Running<ServiceState>> {
        let (mut writer, store) = Store::new();
        let (mut kube, mut recorder, mut client) = (None, None, None);
        let task = match self {
            Self::Kube { config, events_of } => {
                let mut watcher = Watcher::new(config, writer)?;
                kube = Some(watcher.stats());
                recorder = events_of.map(|instance| watcher.record_events(&instance));
                tokio::spawn(async move { Ok(watcher.run(shutdown.wait()).await?) })
            }
            Self::File(args) => tokio::spawn(async move {
                let options = kpng_file::Options::default();
                let run = kpng_file::run(&args.input, &options, &mut writer, shutdown.wait());
                Ok(run.await?)
            }),
            Self::Api(config) => {
                let stats = Arc::clone(client.insert(Arc::default()));
                let run = client::follow_global(config, writer, stats, shutdown.wait());
                tokio::spawn(async move { Ok(run.await?) })
            }
        };
        Ok(Running { task, store, kube, recorder, client })
    }
}

impl Source for Remote {
    type Value = LocalService;

    fn start(self, shutdown: Shutdown) -> anyhow::Result<Running<LocalService>> {
        let (writer, store) = Store::local();
        let stats: Arc<client::Stats> = Arc::default();
        let client = Some(Arc::clone(&stats));
        let run = client::follow_local(self.config, self.node, writer, stats, shutdown.wait());
        let task = tokio::spawn(async move { Ok(run.await?) });
        Ok(Running { task, store, kube: None, recorder: None, client })
    }
}

impl<V: PartialEq> Running<V> {
    /// What tells how it does.
    pub(super) fn tells(&self) -> web::Source {
        web::Source { kube: self.kube.clone(), client: self.client.clone() }
    }

    /// Runs `sink` until it ends, or until the source has failed.
    pub(super) async fn beside(
        mut self,
        sink: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        tokio::pin!(sink);
        tokio::select! {
            result = &mut sink => {
                result?;
                // A sink ends when its source does; then the source knows why.
                if self.store.is_closed() { self.task.await? } else { Ok(()) }
            }
            source = &mut self.task => {
                source??;
                sink.await // the source ended in order: so will the sink
            }
        }
    }
}
