//! The gRPC server: everything that `sessiond serve` runs.
//!
//! A [`Server`] is configured by a [`ServerConfig`]. It opens the storage, serves the gRPC calls of [`service`] on one
//! port and metrics and probes on another, checks who may call, limits what clients use, and drains when it stops. A
//! process may run several servers.
//!
//! This one keeps its sessions in memory and listens on free ports, as a test would:
//!
//! ```no_run
//! use std::net::SocketAddr;
//! use sessiond::{server::{Server, ServerConfig}, storage::StorageUrl};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let free_port = SocketAddr::from(([127, 0, 0, 1], 0));
//!     let config = ServerConfig::new(StorageUrl::Memory).listen(free_port).admin_listen(free_port);
//!     let server = Server::bind(config).await?;
//!     println!("gRPC is at {}, metrics are at http://{}/metrics", server.address()?, server.admin_addr());
//!     server.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
//!     Ok(())
//! }
//! ```
//!
//! The server logs through [`tracing`]. Install a subscriber to see its log.
//!
//! [`service`]: crate::service

mod admission;
mod lifecycle;
mod monitoring;
mod opening;
mod reload;
mod standard;
#[cfg(test)]
mod tests;
mod wire;

use std::{io, net::SocketAddr, num::NonZeroUsize, path::PathBuf, sync::Arc, thread, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::rustls;

use crate::{
    access::{AccessList, AccessListError},
    service::{CallTracer, Service, ServiceOptions},
    storage::{OpenError, StorageError, StorageOptions},
    subject::{SessionSubject, SubjectOptions},
    vital::Vitals,
};

use self::{
    admission::{Gate, RateLimiter},
    lifecycle::Lifecycle,
    monitoring::{Admin, ServerStats},
    opening::Opening,
    reload::{NamedFile, Reloaded},
    standard::{Health, Standard},
    wire::{Acceptor, Connections, Listener, Taken, Workers},
};

pub use self::{
    admission::{RateLimit, TlsFiles},
    opening::{StorageSource, StorageWait},
    reload::{ConfigFile, ConfigFileError},
    wire::{ConnectionOptions, ListenAddress, ListenAddressError, TcpAddress},
};

/// The configuration of a [`Server`]. The [module](self) has an example.
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
    /// The file with the [`AccessList`], which is read again when it changes. If `None`, every client may make every
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

/// One of the two ports of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Endpoint {
    /// The gRPC port, at [`ServerConfig::listen`].
    Grpc,
    /// The admin port, at [`ServerConfig::admin_listen`].
    Admin,
}

/// Why a server cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The server cannot listen on an address.
    #[error("cannot listen on {address} ({cause}): choose another address")]
    Listen {
        /// The port that was to be opened there.
        endpoint: Endpoint,
        /// The address.
        address: String,
        /// What the operating system reported.
        cause: io::Error,
    },
    /// TLS is configured for a Unix socket.
    #[error("TLS is not supported on a Unix socket: leave out the certificate, or listen on a TCP port")]
    TlsOverUnix,
    /// A configuration file cannot be used.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// The storage cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The storage was opened but does not answer.
    #[error("the storage does not answer ({}): check that it runs and that its URL is correct", source_text(.0))]
    Storage(StorageError),
    /// An essential task panicked. The log has the panic.
    #[error("a task that the server needs has panicked ({0}): restart the server, and report the panic in its log")]
    FailedTask(&'static str),
    /// A worker thread cannot be started.
    #[error("cannot start a worker thread ({0}): use fewer workers")]
    Worker(io::Error),
}

impl ServerError {
    /// Returns whether the error may go away by itself, so that a later attempt may succeed.
    fn may_pass(&self) -> bool {
        match self {
            Self::Open(error) => error.may_pass(),
            Self::Storage(error) => error.may_pass(),
            _ => false,
        }
    }
}

fn source_text(error: &StorageError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// A server that is bound to its ports but does not serve calls yet.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    tls: Option<Reloaded<rustls::ServerConfig>>,
    access: Option<Reloaded<AccessList>>,
    listener: Listener,
    admin_addr: SocketAddr,
    subject: Arc<SessionSubject>,
    stats: Arc<ServerStats>,
    lifecycle: watch::Sender<Lifecycle>,
    vitals: Vitals,
    admin: JoinSet<()>,
}

impl Server {
    /// Binds the ports and opens the storage. Waits up to [`storage_wait`](ServerConfig::storage_wait) for a storage
    /// that cannot be opened yet.
    ///
    /// While the storage is being opened, the admin port already answers: it reports that the server is not ready, and
    /// why. The gRPC port is reserved and refuses connections. Dropping the future frees both ports.
    ///
    /// Call this and [`run`](Self::run) in the same runtime.
    ///
    /// # Errors
    ///
    /// Returns a [`ServerError`] if a file, a port or the storage cannot be opened.
    pub async fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        Self::open(config).await
    }

    /// Boxed, so that this crate compiles the future. Otherwise each program that awaits it would compile it again, with
    /// the storages and all that they need.
    fn open(config: ServerConfig) -> BoxFuture<'static, Result<Self, ServerError>> {
        Box::pin(Self::bind_all(config))
    }

    async fn bind_all(config: ServerConfig) -> Result<Self, ServerError> {
        let tls = config.tls.clone().map(TlsFiles::load).transpose()?;
        let access = config.access_file.clone().map(access_list).transpose()?;
        if tls.is_some() && matches!(config.listen, ListenAddress::Unix(_)) {
            return Err(ServerError::TlsOverUnix);
        }
        let cannot_listen = || listen_error(&config.listen, Endpoint::Grpc);
        let taken = Taken::new(&config.listen).await.map_err(cannot_listen())?;
        let cannot_serve_admin = || listen_error(&config.admin_listen, Endpoint::Admin);
        let admin_listener = config.admin_listen.try_each(TcpListener::bind).await.map_err(cannot_serve_admin())?;
        let admin_addr = admin_listener.local_addr().map_err(cannot_serve_admin())?;
        let (lifecycle, _) = watch::channel(Lifecycle::Serving);
        let opening = Arc::<Opening>::default();
        let stats = ServerStats::new(config.max_sessions);
        let admin = Admin::new(Arc::clone(&opening), Arc::clone(&stats), lifecycle.subscribe());
        let vitals = Vitals::default();
        let admin = JoinSet::from_iter([vitals.watch("admin port", admin.run(admin_listener))]);
        tracing::info!(storage = %config.storage, admin_address = %admin_addr, "opening the storage");
        let subject = opening.run(&config).await?;
        let listener = taken.listen().await.map_err(cannot_listen())?;
        Ok(Self { config, tls, access, listener, admin_addr, subject, stats, lifecycle, vitals, admin })
    }

    /// Returns the address of the gRPC port: a TCP address, with the actual port if the configured one was 0, or the
    /// path of a Unix socket.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error for the socket.
    pub fn address(&self) -> io::Result<ListenAddress> {
        self.listener.address()
    }

    /// Returns the TCP address of the gRPC port.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error for the socket, or `Unsupported` if it is a Unix socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.tcp_address()
    }

    /// Returns the address of the admin port.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Returns the subject that the server serves. Through it, the rest of the process can change and observe the
    /// registry without gRPC.
    #[must_use]
    pub fn subject(&self) -> &Arc<SessionSubject> {
        &self.subject
    }

    /// Serves until `shutdown` completes or an essential task panics, then drains.
    ///
    /// During the drain readiness fails, streams end with their cursors, and calls finish. Returns when every
    /// connection has ended, or after the drain timeout. By then the server has dropped its storage, unless somebody else
    /// still holds the [subject](Self::subject).
    ///
    /// The current thread is the first worker. Its runtime also accepts connections, publishes events and serves the
    /// admin port. Other work on that runtime delays all of this; to avoid that, run the server on a thread of its own.
    /// Do not block this thread with a second executor, such as `futures::executor::block_on`, to wait for the
    /// registry: that executor may never be woken.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError::Worker`] if a thread cannot be started, and [`ServerError::FailedTask`] if an essential
    /// task panicked.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let (stop, stopped) = oneshot::channel();
        let mut serving = self.start(stopped);
        tokio::select! {
            result = &mut serving => return result,
            () = shutdown => drop(stop),
        }
        serving.await
    }

    /// Boxed, so that this crate compiles the future, as in [`open`](Self::open).
    fn start(self, stopped: oneshot::Receiver<()>) -> BoxFuture<'static, Result<(), ServerError>> {
        Box::pin(self.serve(stopped))
    }

    /// Serves until the sender of `stopped` is dropped.
    async fn serve(self, stopped: oneshot::Receiver<()>) -> Result<(), ServerError> {
        let Self { config, tls, access, listener, subject, stats, lifecycle, vitals, mut admin, .. } = self;
        warn_of_exposure(&config, &listener);
        let health = Health::new(Arc::clone(&subject)).await;
        let rate = config.rate_limit.map(RateLimiter::new);
        let connections = Connections {
            service: Service::new(Arc::clone(&subject), config.calls),
            standard: Arc::new(Standard::new(health.reporter())),
            gate: Gate::new(access.as_ref().map(Reloaded::subscribe), rate).map(Arc::new),
            tracer: config.tracer,
            options: config.connections,
            stats,
            tls: tls.as_ref().map(Reloaded::subscribe),
        };
        let mut reloading = JoinSet::new();
        if let Some(tls) = tls {
            reloading.spawn(vitals.watch("certificate reload", tls.follow()));
        }
        if let Some(access) = access {
            reloading.spawn(vitals.watch("access file reload", access.follow()));
        }
        let mut workers = Workers::start(config.workers, &Arc::new(connections), &lifecycle, &vitals)?;
        let acceptor = Acceptor::new(listener, workers.inlets(), config.max_connections);
        let acceptor = vitals.watch("connection acceptor", acceptor.run(lifecycle.subscribe()));
        let mut accepting = JoinSet::from_iter([acceptor]);
        let mut following = JoinSet::from_iter([vitals.watch("health", health.clone().follow())]);

        let failed_task = tokio::select! {
            _ = stopped => None,
            task = failed_task(&vitals, &subject) => Some(task),
        };
        // Once this task has ended, it can no longer report SERVING.
        following.shutdown().await;
        tracing::info!(timeout = ?config.drain_timeout, "draining");
        lifecycle.send_replace(Lifecycle::Draining);
        health.close().await;
        subject.close();
        // The acceptor ends when the drain begins, and drops its listener: no new connections are accepted.
        accepting.join_next().await;
        match timeout(config.drain_timeout, workers.ended()).await {
            Ok(()) => tracing::info!("drained"),
            Err(_) => tracing::warn!("the drain timed out: closing the remaining connections"),
        }
        lifecycle.send_replace(Lifecycle::Stopped);
        workers.ended().await;
        // The admin port has reported until now that the server is not ready.
        admin.join_next().await;
        drop(health);
        if let Some(subject) = Arc::into_inner(subject) {
            subject.stop().await;
        }
        failed_task.map_or(Ok(()), |task| Err(ServerError::FailedTask(task)))
    }
}

/// How often the server checks whether an essential task has panicked.
const TASK_CHECK: Duration = Duration::from_millis(250);

/// Waits until an essential task of the server, the subject or the storage panics, and returns its name.
async fn failed_task(vitals: &Vitals, subject: &SessionSubject) -> &'static str {
    loop {
        if let Some(task) = vitals.failed().or_else(|| subject.failed_task()) {
            return task;
        }
        sleep(TASK_CHECK).await;
    }
}

fn access_list(path: PathBuf) -> Result<Reloaded<AccessList>, ConfigFileError> {
    Reloaded::load(vec![NamedFile { file: ConfigFile::AccessList, path }], |files, contents| {
        let text = str::from_utf8(&contents[0]).map_err(|error| files[0].wrong(error.to_string()))?;
        text.parse().map_err(|error: AccessListError| files[0].wrong(error.to_string()))
    })
}

/// Logs warnings if other machines can reach the server without TLS or authentication.
fn warn_of_exposure(config: &ServerConfig, listener: &Listener) {
    let Ok(address) = listener.tcp_address() else { return };
    if address.ip().is_loopback() {
        return;
    }
    if config.tls.is_none() {
        tracing::warn!(
            %address,
            "NO TLS: anyone on the network path can read and change the traffic: set --tls-cert and --tls-key"
        );
    }
    let has_client_ca = config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if config.access_file.is_none() && !has_client_ca {
        tracing::warn!(
            %address,
            "NO AUTHENTICATION: anyone who can reach this port can make any call: set --access-file or --tls-client-ca"
        );
    }
}

fn listen_error(address: &impl ToString, endpoint: Endpoint) -> impl FnOnce(io::Error) -> ServerError {
    let address = address.to_string();
    move |cause| ServerError::Listen { endpoint, address, cause }
}
