//! The messages and services of `proto/`, as prost and tonic generate them.
//!
//! Fields are documented in the `.proto` files.

/// Package `localv1`: what Services mean on one node.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod localv1 {
    tonic::include_proto!("localv1");
}

/// Package `globalv1`: what the cluster says.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod globalv1 {
    tonic::include_proto!("globalv1");
}

/// The encoded `FileDescriptorSet` of both packages, for reflection and for generic tools.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
