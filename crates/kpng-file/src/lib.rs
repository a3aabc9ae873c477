//! The file source of kpng: Services, EndpointSlices and Nodes from YAML, and back.
//!
//! ```text
//! text ──parse──▶ State ──into_batch──▶ store          run: the same again whenever the file changes
//! text ◀─render── State ◀────apply───── store
//! ```
//!
//! A file has one or more documents, each in one of two formats. JSON is YAML, too.
//!
//! - **Kubernetes manifests**: Service, EndpointSlice, Node (and the old Endpoints) objects, or lists
//!   of them as `kubectl get -o yaml` prints. Objects of other kinds and fields that do not matter
//!   here are skipped.
//! - **KPNG's state**: `nodes: [...]` and `services: [{service: ..., endpoints: [...]}]`, as KPNG's
//!   `to-file` writes it and [`render`] does. Keys are KPNG's names in any mix of upper and lower
//!   case; an unknown key is an error. Beyond KPNG's own there are:
//!
//!   | key | meaning |
//!   |---|---|
//!   | `service.created` | creation time, RFC 3339 or seconds since 1970; the older Service owns a contested frontend |
//!   | `service.ips.proxiedips` | those of `loadbalancerips` that have `ipMode: Proxy` |
//!   | `endpoint.portoverrides[].protocol` | tells two ports of the same name apart; port 0: the endpoint does not have the port |
//!   | `conditions.serving`, `conditions.terminating` | as in EndpointSlices |
//!   | `hints.nodes` | `forNodes` of EndpointSlices |
//!   | `nodes[].internalips`, `.podcidrs`, `.goingaway` | addresses, pod networks, and whether load balancers shall avoid the node |
//!   | `services[].slices` | instead of `endpoints`: EndpointSlices as they are, with `name`, `ports` and `endpoints` |
//!   | `seenfrom` | the node of a dump ([`dump`]), with all that explanations need; it is no part of the cluster |
//!
//! An error rejects the whole file and says where it is: a file is written by one hand, and half of
//! it is not what that hand meant. (One bad object of a cluster never stops the others.)
//!
//! ```
//! use kpng_core::store::Store;
//! use kpng_file::{Options, parse, render};
//!
//! let text = "
//! services:
//! - service:
//!     name: web
//!     ips: {clusterips: {v4: [10.96.0.7]}}
//!     ports: [{name: http, protocol: TCP, port: 80, targetport: 8080}]
//!   endpoints:
//!   - endpoint: {ips: {v4: [10.244.0.10]}}
//! ";
//! let state = parse(text, &Options::default())?;
//! assert_eq!(parse(&render(&state), &Options::default())?, state);
//!
//! let (mut writer, store) = Store::new();
//! writer.apply(state.into_batch());
//! assert!(store.is_synced());
//!
//! let problem = parse("services: [{service: {name: web, prots: []}}]", &Options::default());
//! assert!(problem.unwrap_err().to_string().starts_with("1:34: services[0].service.prots: unknown"));
//! # Ok::<(), kpng_file::Problem>(())
//! ```

mod dump_format;
mod emit;
mod error;
mod kpng_format;
mod kubernetes;
mod parse;
mod render;
mod state;
mod time;
mod values;
mod watch;
mod yaml;

#[cfg(test)]
mod tests;

pub use error::{Error, Problem};
pub use parse::{Options, parse};
pub use render::{dump, render};
pub use state::State;
pub use watch::{read, run};
