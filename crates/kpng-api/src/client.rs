//! The client: keeps a store equal to what a server says, through any number of servers and broken
//! connections.
//!
//! ```text
//! Connection ── OpStream ──▶ Replica ── at Sync, what differs ──▶ Api ──▶ store's writer
//!                            (values as bytes)                    (local or global)
//! ```
//!
//! The store only ever shows states that a server has declared consistent with Sync. While there is
//! no server the last one stays in force.
//!
//! Those who want the operations themselves take an [`OpStream`] from a [`Connection`]:
//!
//! ```no_run
//! use kpng_api::client::{Config, Connection};
//! use kpng_api::proto::localv1::WatchReq;
//! use kpng_api::tls::TlsFiles;
//!
//! # async fn example() -> Result<(), kpng_api::error::Error> {
//! let config = Config {
//!     targets: vec!["unix:///run/kpng.sock".parse()?],
//!     tls: TlsFiles::default(),
//!     server_name: None,
//! };
//! let connection = Connection::connect(&config).await?;
//! let request = WatchReq { node_name: "node-1".to_owned(), push: true, ..WatchReq::default() };
//! let mut operations = connection.local(request).await?;
//! while let Some(operation) = operations.next().await? {
//!     println!("{operation:?}");
//! }
//! # Ok(())
//! # }
//! ```

mod connect;
mod follow;
mod global;
mod limits;
mod local;
mod replica;
mod stats;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kpng_core::store::{LocalWriter, Writer};

pub use connect::Connection;
pub use stats::Stats;
pub use stream::OpStream;

use crate::address::Target;
use crate::error::Error;
use crate::tls::TlsFiles;
use follow::Follower;
use global::Global;
use limits::LIMITS;
use local::Local;

/// Whom to ask, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The servers, which all say the same. One is used at a time: some one at first, the next one
    /// after a failure.
    pub targets: Vec<Target>,
    /// TLS, if any file is given. They are read at each attempt to connect, so that renewed ones
    /// count.
    pub tls: TlsFiles,
    /// The name or address that the server's certificate must be for; `None` for the target's own.
    pub server_name: Option<String>,
}

/// Follows what Services mean on `node`, until `shutdown` completes.
///
/// A server that cannot be reached or refuses is tried again for ever, with growing pauses.
///
/// # Errors
/// When `config` can never work: no targets, or TLS files that cannot be used at the beginning.
pub async fn follow_local(
    config: Config,
    node: Arc<str>,
    writer: LocalWriter,
    stats: Arc<Stats>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let follower = Follower::new(Local::new(node, writer), config, LIMITS, stats)?;
    tokio::select! {
        () = shutdown => Ok(()),
        never = follower.run() => match never {},
    }
}

/// Follows what the cluster says, until `shutdown` completes.
///
/// # Errors
/// As for [`follow_local`].
pub async fn follow_global(
    config: Config,
    writer: Writer,
    stats: Arc<Stats>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let follower = Follower::new(Global::new(writer), config, LIMITS, stats)?;
    tokio::select! {
        () = shutdown => Ok(()),
        never = follower.run() => match never {},
    }
}
