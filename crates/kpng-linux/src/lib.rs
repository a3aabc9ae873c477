//! The Linux kernel interfaces that kpng needs, and nothing about services or policy.
//!
//! The one crate that makes system calls for the others. Everything here is plain values in and
//! out; nothing starts a child process, and no function prints or retries by itself.

pub mod conntrack;
pub mod error;
mod genetlink;
pub mod ipset;
pub mod ipvs;
pub mod memory;
pub mod namespace;
pub mod netlink;
pub mod nft;
pub mod rtnetlink;
pub mod sock_diag;
pub mod socket;
pub mod sysctl;

pub use error::{Error, Result};
