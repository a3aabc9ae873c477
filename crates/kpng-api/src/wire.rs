//! Between the model and the messages of the API, in both directions.
//!
//! Whatever a server sends about one thing is [`Ops`], a function of what that thing was and what it
//! is: nothing in here knows a stream or a clock. Equal values give equal bytes.
//!
//! Decoding understands our own servers and KPNG's. An address in a list that cannot be read is left
//! out, as for Kubernetes' own objects; anything else that makes no sense rejects the message.

mod fields;
mod global;
mod invalid;
mod local;
mod ops;
mod service;
#[cfg(test)]
mod tests;

pub(crate) use global::{
    SliceEndpoint, decode_endpoint_info, decode_node_info, decode_service_info, global_node_ops,
    global_ops,
};
pub(crate) use invalid::Invalid;
pub(crate) use local::{decode_local_endpoints, decode_local_node, local_node_op, local_ops};
pub(crate) use ops::{Ops, reset, sync, triggered};
pub(crate) use service::decode_service;
