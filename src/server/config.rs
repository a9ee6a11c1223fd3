//! The configuration of a server.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, sync::Arc, thread, time::Duration};

use super::{ConnectionOptions, ListenAddress, RateLimit, StorageSource, StorageWait, TcpAddress, TlsFiles};
use crate::{
    service::{CallTracer, ServiceOptions},
    storage::StorageOptions,
    subject::SubjectOptions,
};

/// The configuration of a [`Server`](super::Server). The [module](super) has an example.
///
/// Most fields correspond to flags of `sessiond serve`, whose help describes them further.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerConfig {
    /// The address of the gRPC port.
    pub listen: ListenAddress,
    /// The address of the admin port, which serves `/metrics`, `/live`, `/ready` and `/writable` over plain HTTP.
    pub admin_listen: TcpAddress,
    /// The certificate files for TLS. If `None`, the server speaks plaintext.
    pub tls: Option<TlsFiles>,
    /// The file with the [`AccessList`](crate::access::AccessList), which is read again when it changes. If `None`, every client may make every
    /// call.
    pub access_file: Option<PathBuf>,
    /// The rate limit of each client. If `None`, there is no limit.
    pub rate_limit: Option<RateLimit>,
    /// The storage that holds the sessions: one to open, or one of your own.
    pub storage: StorageSource,
    /// How long a starting server waits for a storage that cannot be opened yet or does not answer.
    pub storage_wait: StorageWait,
    /// The number of threads that serve connections, each with its own runtime.
    pub workers: NonZeroUsize,
    /// The limits on observers, and on the events that they can resume from.
    pub subject: SubjectOptions,
    /// The maximum number of sessions. An open storage has its own limit, and this one only appears in the metrics.
    pub max_sessions: u64,
    /// The maximum number of leases. Ignored if the storage is already open.
    pub max_leases: u64,
    /// The storage's [outage grace](crate::storage::StorageOptions::outage_grace). Ignored if the storage is already open.
    pub outage_grace: Duration,
    /// The maximum number of open connections. Further ones wait to be accepted.
    pub max_connections: usize,
    /// The limits of each connection.
    pub connections: ConnectionOptions,
    /// The limits of each call.
    pub calls: ServiceOptions,
    /// Creates the trace spans of calls. If `None`, calls are not traced.
    pub tracer: Option<Arc<dyn CallTracer>>,
    /// How long a drain may take. Calls and streams that are still open then are cut off.
    pub drain_timeout: Duration,
}

impl ServerConfig {
    /// Creates the configuration that `sessiond serve` has without flags, for this storage: gRPC on 127.0.0.1:50051, the
    /// admin port on 127.0.0.1:9090, no TLS, no access control, and as many workers as cores.
    #[must_use]
    pub fn new(storage: impl Into<StorageSource>) -> Self {
        let storage = storage.into();
        let StorageOptions { retain_events, max_sessions, max_leases, outage_grace } = StorageOptions::default();
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            listen: local(50051).into(),
            admin_listen: local(9090).into(),
            tls: None,
            access_file: None,
            rate_limit: None,
            storage_wait: StorageWait::default_for(&storage),
            storage,
            workers: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            subject: SubjectOptions { retain_events, ..SubjectOptions::default() },
            max_sessions,
            max_leases,
            outage_grace,
            max_connections: 100_000,
            connections: ConnectionOptions::default(),
            calls: ServiceOptions::default(),
            tracer: None,
            drain_timeout: Duration::from_secs(10),
        }
    }

    setters!(into
        listen: ListenAddress,
        admin_listen: TcpAddress,
        tls: Option<TlsFiles>,
        access_file: Option<PathBuf>,
        rate_limit: Option<RateLimit>,
        storage: StorageSource,
        tracer: Option<Arc<dyn CallTracer>>,
    );

    setters!(plain
        storage_wait: StorageWait,
        workers: NonZeroUsize,
        subject: SubjectOptions,
        max_sessions: u64,
        max_leases: u64,
        outage_grace: Duration,
        max_connections: usize,
        connections: ConnectionOptions,
        calls: ServiceOptions,
        drain_timeout: Duration,
    );
}
