//! Placeholder.

pub mod apiserver;
pub mod cases;
pub mod conformance;
pub mod fixture;
pub mod network;
