//! sessiond is the session registry of a fleet of gateways: servers that hold client connections on more than one
//! machine. Each gateway registers the client sessions that it holds, and a lease ends them if the gateway dies. Every
//! other service can look up whether a session exists and which gateway holds it, and can observe sessions as they are
//! created, moved and destroyed.
//!
//! Most people run the program `sessiond` and call it over gRPC; the README describes both. This library has the client
//! for Rust, and every part of the server to build on. It serves four tasks:
//!
//! | task | start with | feature |
//! |---|---|---|
//! | [run a server in your process](#run-a-server-in-your-process) | [`server`] | `server` |
//! | [write a storage](#write-a-storage) | [`storage`] | `subject`, `conformance` |
//! | [write an observer](#write-an-observer) | [`subject`] | `subject` |
//! | [write a gateway](#write-a-gateway) | [`client`] | `client` |
//!
//! Three words recur everywhere:
//!
//! - A **session** is a pair of numbers, [`SessionKey`](session::SessionKey). sessiond stores no data about it.
//! - A **lease** belongs to one gateway, which keeps it alive. When it ends, the sessions under it are destroyed. Its
//!   *owner* is the address of the gateway. A session may also be under no lease.
//! - The **registry** is the set of all sessions and leases, with the log of their changes. It is kept by a *storage*,
//!   in memory, in a file or in Redis.
//!
//! # Run a server in your process
//!
//! [`Server::bind`](server::Server::bind) opens the ports and the storage, and [`Server::run`](server::Server::run)
//! serves until a future of yours completes. The rest of the process can use the same registry without gRPC, through
//! the server's [subject](server::Server::subject):
//!
#![cfg_attr(feature = "server", doc = "```no_run")]
#![cfg_attr(not(feature = "server"), doc = "```ignore")]
//! use std::sync::Arc;
//! use sessiond::{server::{Server, ServerConfig}, session::SessionKey, storage::StorageUrl};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // As `sessiond serve --storage redis://localhost:6379` does. `StorageUrl::Memory` needs no other program.
//! let storage: StorageUrl = "redis://localhost:6379".parse()?;
//! let server = Server::bind(ServerConfig::new(storage)).await?;
//! println!("gRPC is at {}, metrics are at http://{}/metrics", server.address()?, server.admin_addr());
//!
//! let subject = Arc::clone(server.subject());
//! tokio::spawn(async move { subject.create(&[SessionKey::new(0, 42)], None).await });
//!
//! server.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The fields of [`ServerConfig`](server::ServerConfig) correspond to the program's flags. The module [`server`] has an
//! example for tests. To put the gRPC services on an HTTP/2 server of your own, see [`service`].
//!
//! # Write a storage
//!
//! A storage implements one trait, [`SessionStorage`](storage::SessionStorage). Its documentation is the contract, and
//! [`storage::conformance`] is a test suite that checks a storage against it. Start by making the suite run, and
//! implement methods until it passes:
//!
//! ```no_run
//! # mod my_storage {
//! #     use sessiond::storage::{StorageOptions, memory::{MemoryOptions, MemoryStorage}};
//! #     pub struct MyStorage;
//! #     impl MyStorage {
//! #         pub fn new(_: StorageOptions) -> MemoryStorage { MemoryStorage::new(MemoryOptions::default()) }
//! #     }
//! # }
//! # use my_storage::MyStorage;
//! use std::sync::Arc;
//! use sessiond::storage::{SessionStorage, StorageOptions, conformance::StorageFactory};
//!
//! struct MyFactory;
//!
//! #[async_trait::async_trait]
//! impl StorageFactory for MyFactory {
//!     async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
//!         vec![Arc::new(MyStorage::new(options))]
//!     }
//! }
//!
//! sessiond::storage_conformance_tests!([#[tokio::test]] MyFactory);
//! # fn main() {}
//! ```
//!
//! To serve the storage over gRPC, pass it to [`ServerConfig::new`](server::ServerConfig::new). To use it in your own
//! process only, start a [`SessionSubject`](subject::SessionSubject) on it: the subject expires its leases and makes it
//! observable. The example `custom_storage` in the repository is a complete storage. The module [`storage`] continues
//! with the terms of the contract.
//!
//! # Write an observer
//!
//! An observer in the same process subscribes to a [`SessionSubject`](subject::SessionSubject): that of a server, or
//! one that you start on a storage. It is called with every change, in order and exactly once. This one mirrors the
//! registry:
//!
//! ```no_run
//! use std::collections::HashSet;
//! use sessiond::{
//!     session::{SessionChange, SessionKey},
//!     subject::{Cursor, ObserveOptions, SessionObserver, Update},
//! };
//!
//! struct Mirror(HashSet<SessionKey>);
//!
//! #[async_trait::async_trait]
//! impl SessionObserver for Mirror {
//!     async fn update(&mut self, update: Update, _cursor: Option<Cursor>) {
//!         match update {
//!             Update::Snapshot(sessions) => self.0.extend(sessions.sessions()),
//!             Update::Events(events) => {
//!                 for event in events.events() {
//!                     match event.change {
//!                         SessionChange::Created => self.0.insert(event.session),
//!                         SessionChange::Destroyed(_) => self.0.remove(&event.session),
//!                         SessionChange::Moved { .. } => false,
//!                     };
//!                 }
//!             }
//!             // The observer has lost its place, perhaps because it fell too far behind. A snapshot follows.
//!             Update::Reset(_) => self.0.clear(),
//!             Update::Synced { .. } => println!("{} sessions exist", self.0.len()),
//!             _ => {}
//!         }
//!     }
//! }
//!
//! # async fn example(subject: sessiond::subject::SessionSubject) -> Result<(), Box<dyn std::error::Error>> {
//! let subscription = subject.subscribe(ObserveOptions::snapshot(), Mirror(HashSet::new())).await?;
//! // Dropping the subscription ends it.
//! # subscription.unsubscribe().await;
//! # Ok(())
//! # }
//! ```
//!
//! To read updates in a loop instead, use [`Observer`](subject::Observer), which is also a `futures` `Stream`. The
//! module [`subject`] continues with cursors and filters. In another process, observe with
//! [`Client::watch`](client::Client::watch).
//!
//! # Write a gateway
//!
//! A [`Gateway`](client::Gateway) registers the sessions of the clients that are connected to it. It also reports which
//! connections to close, because their client has moved to another gateway or a back end has ended the session:
//!
#![cfg_attr(feature = "client", doc = "```no_run")]
#![cfg_attr(not(feature = "client"), doc = "```ignore")]
//! use sessiond::{client::{Client, ClientError, Gateway}, session::SessionKey};
//!
//! # async fn until_it_leaves() {}
//! async fn serve_client(gateway: &Gateway, session: SessionKey) -> Result<(), ClientError> {
//!     let connection = gateway.connect(session).await?;
//!     tokio::select! {
//!         () = until_it_leaves() => {}
//!         reason = connection.closed() => println!("{session:?}: {reason:?}"),
//!     }
//!     Ok(()) // Dropping the connection ends the session, unless it has moved.
//! }
//!
//! # async fn example() -> Result<(), ClientError> {
//! // The address at which other services reach this gateway.
//! let gateway = Client::connect_lazy("http://127.0.0.1:50051")?.gateway("10.0.0.2:443").await?;
//! # serve_client(&gateway, SessionKey::new(0, 42)).await?;
//! gateway.stop().await
//! # }
//! ```
//!
//! Other services look up where a session is, or hold a [`Mirror`](client::Mirror) of the registry, which answers
//! without the network. The module [`client`] continues with lookups, retries and watches.
//!
//! # Features and modules
//!
//! The default features build the program. To use only a part of the library, turn them off and name its feature, as in
//! `default-features = false, features = ["client"]`. The parts are:
//!
//! - [`session`] (always available): the ids and events that all parts share;
//! - [`client`] (feature `client`): the client for gateways and observers written in Rust;
//! - [`storage`] and [`subject`] (feature `subject`): the registry inside your own process, in memory and without gRPC;
//! - `storage::file` (feature `file`) and `storage::redis` (feature `redis`): the registry in a file, and in Redis;
//! - [`service`] and [`server`] (feature `server`): the gRPC service on top of a subject, and the server that runs it;
//! - [`access`] (feature `server`): authentication, and which calls each caller may make;
//! - [`reason`] (features `client` and `server`): the error reasons, and whether to retry each;
//! - [`proto`] (feature `grpc`): the generated protobuf and gRPC types;
//! - [`storage::conformance`] (feature `conformance`): the test suite that every storage passes. Run it on your own
//!   storage.
//!
//! The feature `serde` serializes the ids in [`session`].
//!
//! Of `session`, `storage`, `subject`, `service` and `server`, each module imports only from those before it.

/// Compiles the README's examples as doctests.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the examples of the client's page as doctests.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../docs/clients/rust.md")]
struct RustClient;

#[cfg(feature = "subject")]
#[macro_use]
mod setters;

#[cfg(feature = "server")]
pub mod access;
#[cfg(any(feature = "client", feature = "subject"))]
mod backoff;
#[cfg(feature = "client")]
pub mod client;
#[cfg(any(feature = "client", feature = "server"))]
mod codec;
#[cfg(any(feature = "client", feature = "server"))]
mod duration;
#[cfg(feature = "subject")]
mod histogram;
#[cfg(any(feature = "client", feature = "subject"))]
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
#[cfg(any(feature = "client", feature = "subject"))]
mod table;
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
