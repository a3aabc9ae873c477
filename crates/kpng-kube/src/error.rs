//! What can go wrong for good. What may get better by waiting is retried, logged and counted.

use std::path::PathBuf;

use kube::config::{InClusterError, KubeconfigError};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kubeconfig that was asked for cannot be used.
    #[error("cannot use the kubeconfig {}: {}", path.display(), reason(source))]
    Kubeconfig {
        /// The file of `--kubeconfig`.
        path: PathBuf,
        /// Why.
        #[source]
        source: KubeconfigError,
    },
    /// The kubeconfig that the environment names cannot be used.
    #[error(
        "cannot use the kubeconfig named by the environment variable KUBECONFIG: {}",
        reason(source)
    )]
    KubeconfigOfEnvironment {
        /// Why.
        #[source]
        source: KubeconfigError,
    },
    /// No kubeconfig was given and this is no pod of a cluster.
    #[error(
        "no API server to talk to: give --kubeconfig FILE, set KUBECONFIG, or run in a pod with a \
         mounted service account ({source})"
    )]
    NotInCluster {
        /// What an in-cluster configuration lacks.
        #[source]
        source: InClusterError,
    },
    /// `--server` is no URL of an API server.
    #[error("the server {server:?} is no URL like https://HOST:PORT")]
    Server {
        /// What was given.
        server: String,
    },
    /// The client cannot be made from its configuration: bad certificates or credentials.
    #[error("cannot make a client for {server}: {source}")]
    Client {
        /// The API server's URL.
        server: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// A pattern for label or annotation keys is wrong.
    #[error("bad pattern {pattern:?}: {reason}")]
    Glob {
        /// The pattern.
        pattern: String,
        /// What is wrong and what would be right.
        reason: &'static str,
    },
    /// `--service-proxy-name` is no label value, so no Service could ever have it.
    #[error(
        "the service proxy name {name:?} is no label value: at most 63 letters, digits, '-', '_' or \
         '.', with a letter or digit at both ends"
    )]
    ServiceProxyName {
        /// What was given.
        name: String,
    },
    /// Bytes from the API server are not what their content type promises.
    #[error("cannot read {what} from the API server: {reason}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// Where it went wrong.
        reason: String,
    },
}

/// kube's message, with what to do where it does not say.
fn reason(source: &KubeconfigError) -> String {
    let hint = match source {
        KubeconfigError::CurrentContextNotSet => ": set `current-context` in it",
        KubeconfigError::LoadContext(_) => " (it names a context that it does not define)",
        KubeconfigError::LoadClusterOfContext(_) => " (the context names an undefined cluster)",
        KubeconfigError::MissingClusterUrl => ": give the cluster a `server`, or give --server URL",
        _ => "",
    };
    format!("{source}{hint}")
}
