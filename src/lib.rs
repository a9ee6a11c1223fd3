//! sessiond, the session registry of a fleet of gateways: which client sessions exist, and a stream of what changes.
//!
//! The program is `sessiond`. As a library this crate has, each behind a Cargo feature:
//!
//! - [`client`] (feature `client`): what a gateway or an observer written in Rust uses to talk to a sessiond;
//! - [`storage`] and [`subject`] (feature `subject`): the registry inside a process of your own, without gRPC and in memory;
//! - `storage::file` (feature `file`) and `storage::redis` (feature `redis`): the registry in a file, and in Redis;
//! - [`service`] and [`server`] (feature `server`): the gRPC service over a subject, and the server around it;
//! - [`access`] (feature `server`): who may call, and what;
//! - [`reason`] (features `client` and `server`): why calls fail, and whether to retry them;
//! - [`storage::conformance`] (feature `conformance`): the suite that every storage passes, for storages of your own.
//!
//! Imports run one way: `session`, `storage`, `subject`, `service`, `server`.

/// The examples of the README, which must compile.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "server")]
pub mod access;
#[cfg(feature = "client")]
pub mod client;
#[cfg(any(feature = "client", feature = "server"))]
mod duration;
#[cfg(feature = "subject")]
mod histogram;
#[cfg(feature = "subject")]
mod random;
#[cfg(any(feature = "client", feature = "server"))]
pub mod reason;
#[cfg(feature = "subject")]
mod relay;
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
#[cfg(feature = "subject")]
mod vital;

/// The generated protobuf and gRPC types of `proto/sessiond/v1`.
#[cfg(feature = "grpc")]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
pub mod proto {
    tonic::include_proto!("sessiond.v1");

    /// The encoded `FileDescriptorSet` of these types, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("sessiond");
}
