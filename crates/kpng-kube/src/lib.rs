//! Watches Services, EndpointSlices and Nodes of a Kubernetes API server, and keeps a
//! [`kpng_core::store`] equal to them.
//!
//! The one invariant: the store only ever moves towards what the API server says. Whatever fails,
//! the last known state stays; what comes back is compared, and only the differences are written.
//!
//! ```text
//! Config ── client (kube: TLS, credentials) ──▶ API server
//!                                                   │ protobuf, or JSON
//!   KindLoop × 3   list, watch, resume              ▼
//!                  envelope ──▶ RawObject ──▶ wire ──▶ Converter ──▶ Batch ──▶ store::Writer
//! ```
//!
//! What people should know of an object's fate is written as a Kubernetes Event, where that is asked for
//! ([`Watcher::record_events`]).
//!
//! Lists are streamed by the watch itself where the server offers that, and paged otherwise.
//!
//! ```no_run
//! use kpng_core::store::Store;
//! use kpng_kube::{Config, NodeScope, Selection, Watcher};
//!
//! # async fn example() -> Result<(), kpng_kube::Error> {
//! let (writer, store) = Store::new();
//! let config = Config {
//!     kubeconfig: None, // KUBECONFIG, then the pod's service account
//!     server: None,
//!     service_proxy_name: None,
//!     selection: Selection::default(),
//!     nodes: NodeScope::All,
//! };
//! let watcher = Watcher::new(config, writer)?;
//! let mut reader = store.reader();
//! let print = async {
//!     while let Some(update) = reader.next().await {
//!         println!("{} services changed", update.services.len());
//!     }
//! };
//! let shutdown = std::future::pending();
//! let (result, ()) = tokio::join!(watcher.run(shutdown), print);
//! result
//! # }
//! ```

mod config;
mod convert;
mod envelope;
mod error;
mod events;
mod request;
mod selectors;
mod stats;
mod time;
mod watch;
mod watcher;
mod wire;

pub use config::Config;
pub use convert::{Complaint, Converter, Page};
pub use envelope::Encoding;
pub use error::Error;
pub use events::{Event, Recorder, Regarding, Scope};
pub use selectors::{Glob, NodeScope, Selection};
pub use stats::{Counter, EventStats, KindStats, RejectReason, Stats};
pub use watcher::Watcher;
