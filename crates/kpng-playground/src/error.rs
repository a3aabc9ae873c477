//! What can go wrong in the playground.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] kpng_linux::Error),
    /// The state file cannot be used.
    #[error(transparent)]
    State(#[from] kpng_file::Error),
    /// The state file cannot be written.
    #[error("cannot write the state file {}: {source}; choose another one with --state", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The terminal cannot be used.
    #[error("cannot draw on the terminal: {source}; try --plain")]
    Terminal {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pipeline did not follow.
    #[error("the backend did not follow the state file within {0:?}")]
    NotInForce(Duration),
    /// The backend failed.
    #[error("the backend cannot do what the state file asks: {0}")]
    Backend(String),
    /// No playground runs.
    #[error("no playground of yours runs; start `kpng playground` in another terminal")]
    NoPlayground,
    /// The playground has no such host.
    #[error("the playground has no {name:?}; there are: {}", hosts.join(", "))]
    NoHost {
        /// What was asked for.
        name: String,
        /// What there is.
        hosts: Vec<String>,
    },
    /// A process of the system cannot be looked at, or a program cannot be started.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}
