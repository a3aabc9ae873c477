//! The core of kpng: values, and pure functions from one to the next.
//!
//! ```text
//! Store ──▶ Reader::next ──▶ localize(service, here) ──▶ plan_service(local, facts) ──▶ Plan ──▶ Backend
//! ```
//!
//! - [`model`]: what the cluster says.
//! - [`store`]: who writes it, and how readers learn what changed.
//! - [`local`]: which endpoints of a Service may serve whom on one node.
//! - [`plan`]: what must happen to packets; [`plan::Plan::decide`] is the specification.
//! - [`explain`]: why something happens to a packet.
//! - [`backend`]: the interface of those who make it happen.
//! - [`backoff`]: how long to wait after a failure.
//!
//! Nothing in here does I/O, knows a Kubernetes type, or can fail.
//!
//! ```
//! use kpng_core::model::{NamespacedName, Service, ServicePort, Protocol, TargetPort};
//! use kpng_core::plan::{NodeFacts, Planner};
//! use kpng_core::store::{Batch, Kind, Store};
//!
//! let (mut writer, store) = Store::new();
//! let mut batch = Batch::new();
//! let web = Service { cluster_ips: vec!["10.96.0.7".parse()?], ..Service::default() };
//! batch.set_service(NamespacedName::new("default", "web"), web);
//! Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
//! writer.apply(batch);
//!
//! let mut planner = Planner::new("node-a", NodeFacts::default());
//! let update = store.reader().try_next().expect("the store is synced");
//! assert_eq!(planner.update(&update).services, [NamespacedName::new("default", "web")]);
//! # Ok::<(), std::net::AddrParseError>(())
//! ```

pub mod backend;
pub mod backoff;
pub mod explain;
pub mod local;
pub mod model;
pub mod plan;
pub mod store;

pub use backend::Backend;
pub use plan::{Plan, Planner};
pub use store::{Store, Writer};
