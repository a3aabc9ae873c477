//! Where the cluster's state comes from.

use std::sync::Arc;

use kpng_core::store::Store;
use kpng_kube::{Glob, NodeScope, Selection, Stats, Watcher};
use tokio::task::JoinHandle;

use crate::cli::{FileArgs, KubeArgs, LocalArgs};
use crate::signals::Shutdown;

/// A source that has not begun.
#[derive(Debug)]
pub(super) enum Source {
    Kube(kpng_kube::Config),
    File(FileArgs),
}

/// A source at work.
#[derive(Debug)]
pub(super) struct Running {
    task: JoinHandle<anyhow::Result<()>>,
    store: Store,
    /// What the API watcher counts.
    pub(super) stats: Option<Arc<Stats>>,
}

impl Source {
    /// The API server. Only our own Node matters to the local side.
    pub(super) fn kube(args: KubeArgs, local: &LocalArgs) -> anyhow::Result<Self> {
        let globs = |patterns: &[String]| {
            patterns.iter().map(|pattern| Glob::new(pattern)).collect::<Result<Vec<_>, _>>()
        };
        let selection = Selection {
            service_labels: globs(&args.with_service_labels)?,
            service_annotations: globs(&args.with_service_annotations)?,
            node_labels: globs(&args.with_node_labels)?,
            node_annotations: globs(&args.with_node_annotations)?,
        };
        Ok(Self::Kube(kpng_kube::Config {
            kubeconfig: args.kubeconfig,
            server: args.server,
            service_proxy_name: args.service_proxy_name,
            selection,
            nodes: NodeScope::Only(super::node::name(local)?.to_string()),
        }))
    }

    /// A file.
    pub(super) fn file(args: FileArgs) -> Self {
        Self::File(args)
    }

    /// Begins. The source ends with `shutdown`, or when it cannot begin.
    pub(super) fn start(self, shutdown: Shutdown) -> anyhow::Result<(Store, Running)> {
        let (mut writer, store) = Store::new();
        let running = match self {
            Self::Kube(config) => {
                let watcher = Watcher::new(config, writer)?;
                let stats = Some(watcher.stats());
                let task = tokio::spawn(async move { Ok(watcher.run(shutdown.wait()).await?) });
                Running { task, store: store.clone(), stats }
            }
            Self::File(args) => {
                let task = tokio::spawn(async move {
                    let options = kpng_file::Options::default();
                    let run = kpng_file::run(&args.input, &options, &mut writer, shutdown.wait());
                    Ok(run.await?)
                });
                Running { task, store: store.clone(), stats: None }
            }
        };
        Ok((store, running))
    }
}

impl Running {
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
