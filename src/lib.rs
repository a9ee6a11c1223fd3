//! sessiond is the session registry of a fleet of gateways. It knows which client sessions exist, and streams their
//! changes to observers.
//!
//! The program is `sessiond`. The library has these parts, each behind a Cargo feature:
//!
//! - [`client`] (feature `client`): the client for gateways and observers written in Rust;
//! - [`storage`] and [`subject`] (feature `subject`): the registry inside your own process, in memory and without gRPC;
//! - `storage::file` (feature `file`) and `storage::redis` (feature `redis`): the registry in a file, and in Redis;
//! - [`service`] and [`server`] (feature `server`): the gRPC service on top of a subject, and the server that runs it;
//! - [`access`] (feature `server`): authentication, and which calls each caller may make;
//! - [`reason`] (features `client` and `server`): the error reasons, and whether to retry each;
//! - [`storage::conformance`] (feature `conformance`): the test suite that every storage passes. Run it on your own
//!   storage.
//!
//! Each module imports only from those before it in this list: `session`, `storage`, `subject`, `service`, `server`.

/// Compiles the README's examples as doctests.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "server")]
pub mod access;
#[cfg(any(feature = "client", feature = "subject"))]
mod backoff;
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
#[cfg(any(feature = "client", feature = "subject"))]
mod reset;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod service;
pub mod session;
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

    /// The encoded `FileDescriptorSet` of these types, which server reflection uses.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("sessiond");
}
