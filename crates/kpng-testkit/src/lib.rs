//! What kpng's tests stand on. Never published.
//!
//! - [`fixture`]: a terse language for cluster states.
//! - [`cases`], [`conformance`]: the table of what must become of packets, and how it is run, by the
//!   plan and by any backend with real packets.
//! - [`random`]: random cluster states in that language.
//! - [`network`]: a node, pods and a client, each a network namespace: the crate `kpng-vnet`.
//! - [`guest`]: another kernel for tests that this machine's kernel cannot run.
//! - [`apiserver`]: etcd and kube-apiserver.
//!
//! What cannot run fails, unless the environment asks to skip it (`KPNG_SKIP_NET=1`,
//! `KPNG_SKIP_APISERVER=1`); then the reason is printed.

pub mod apiserver;
pub mod bpf;
pub mod cases;
pub mod conformance;
pub mod fixture;
pub mod guest;
pub use kpng_vnet as network;
pub mod random;
