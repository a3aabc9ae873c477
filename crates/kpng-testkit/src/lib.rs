//! Placeholder.

pub mod apiserver;
pub mod network;
