//! The session registry of a fleet of gateways.

#[cfg(feature = "client")]
pub mod client;
pub mod session;

/// The generated protobuf and gRPC types of `proto/sessiond/v1`.
#[cfg(feature = "grpc")]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
pub mod proto {
    tonic::include_proto!("sessiond.v1");

    /// The encoded `FileDescriptorSet` of these types, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("sessiond");
}
