//! kpng's gRPC API, both ends of it.

pub mod address;
pub mod client;
pub mod error;
pub mod proto;
pub mod server;
pub mod tls;
mod wire;
