//! kpng's gRPC API, both ends of it: one process watches the cluster, thousands of nodes follow it.
//!
//! ```text
//! Store ──▶ server ══ localv1: what Services mean on one node ══▶ client ──▶ Store<LocalService>
//!                  ══ globalv1: what the cluster says         ══▶ client ──▶ Store
//! ```
//!
//! The schema is KPNG's (`proto/`), so KPNG's clients and servers in any language are served and
//! followed too; what they do not know is sent only to who asks for it. In here the model of
//! `kpng-core` becomes messages and back (`wire`), and nothing else is known of either side.
//!
//! - [`server`]: streams a store. A stream copies no state; a change is encoded once for all that see
//!   it alike.
//! - [`client`]: keeps a store equal to what a server says, through any number of connections.
//! - [`proto`]: the generated messages and services, for those who want them plain.
//! - [`address`], [`tls`]: where, and how secretly.
//!
//! A server and a client in one process:
//!
//! ```
//! use std::sync::Arc;
//!
//! use kpng_api::{client, server, tls::TlsFiles};
//! use kpng_core::model::{NamespacedName, Service};
//! use kpng_core::store::{Batch, Kind, Store};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (mut writer, store) = Store::new();
//! let mut batch = Batch::new();
//! batch.set_service(NamespacedName::new("default", "web"), Service::default());
//! Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
//! writer.apply(batch);
//!
//! let config = server::Config {
//!     listen: vec!["tcp://127.0.0.1:0".parse()?],
//!     tls: None,
//!     local_api: true,
//!     global_api: false,
//!     authorization: None,
//!     default_node: None,
//!     max_connections: 1000,
//! };
//! let server = server::Server::bind(config, Arc::default()).await?;
//! let targets = vec![server.addresses()[0].to_string().parse()?];
//! tokio::spawn(server.run(store, std::future::pending()));
//!
//! let (writer, store) = Store::local();
//! let config = client::Config { targets, tls: TlsFiles::default(), server_name: None };
//! let never = std::future::pending();
//! tokio::spawn(client::follow_local(config, "node-a".into(), writer, Arc::default(), never));
//!
//! let update = store.reader().next().await.expect("the client goes on");
//! assert_eq!(update.services[0].0, NamespacedName::new("default", "web"));
//! # Ok(())
//! # }
//! ```

pub mod address;
pub mod client;
mod count;
pub mod error;
pub mod proto;
pub mod server;
pub mod tls;
mod wire;

pub use count::Count;
pub use error::Error;
