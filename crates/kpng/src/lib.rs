//! kpng, whole: sources, the pipeline of a node, backends, and what operators need around them.
//!
//! The binary is [`app::run`]. Who embeds kpng takes single crates ([`kpng_core`], [`kpng_kube`],
//! [`kpng_file`], [`kpng_api`], [`kpng_nft`]) or this one, and composes them as `app` does:
//!
//! ```text
//! source ──▶ Store ──▶ Pipeline (Planner ──▶ Backend) ──▶ events ──▶ health, metrics, conntrack
//! ```

pub mod app;
pub mod backends;
pub mod cli;
pub mod conntrack;
pub mod health;
pub mod http;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod node_facts;
pub mod node_setup;
pub mod pipeline;
mod rfc3339;
pub mod service_health;
pub mod signals;
pub mod sinks;

pub use {kpng_api, kpng_core, kpng_file, kpng_iptables, kpng_kube, kpng_linux, kpng_nft};
