//! The session registry of a fleet of gateways.

#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod service;
pub mod session;
#[cfg(feature = "server")]
pub mod status;
#[cfg(feature = "subject")]
pub mod storage;
#[cfg(feature = "subject")]
pub mod subject;

/// The generated protobuf and gRPC types of `proto/sessiond/v1`.
#[cfg(feature = "grpc")]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
pub mod proto {
    tonic::include_proto!("sessiond.v1");

    /// The encoded `FileDescriptorSet` of these types, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("sessiond");
}
