//! kpng's gRPC API, both ends of it.

pub mod proto;
mod wire;
