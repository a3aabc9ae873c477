//! kpng, whole: sources, the pipeline of a node, backends, and what operators need around them.
//!
//! The binary is [`app::run`]. Who embeds kpng takes single crates ([`kpng_core`], [`kpng_kube`],
//! [`kpng_file`], [`kpng_api`], a backend's) or this one, and composes them as `app` does:
//!
//! ```text
//! source ──▶ Store ──▶ Pipeline (Planner ──▶ Backend) ──▶ events ──▶ health, metrics, conntrack
//! ```

pub mod admin;
pub mod app;
pub mod backends;
pub mod cli;
pub mod conntrack;
pub mod events;
mod gaps;
pub mod health;
pub mod http;
pub mod inspect;
pub mod kube_proxy;
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
pub mod web;

#[cfg(feature = "ebpf")]
pub use kpng_ebpf;
#[cfg(feature = "iptables")]
pub use kpng_iptables;
#[cfg(feature = "ipvs")]
pub use kpng_ipvs;
#[cfg(feature = "nft")]
pub use kpng_nft;
#[cfg(feature = "userspacelin")]
pub use kpng_userspace;
pub use {kpng_api, kpng_core, kpng_file, kpng_kube, kpng_linux};
