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
mod config;
mod error;
mod lifecycle;
mod monitoring;
mod opening;
mod reload;
mod standard;
#[cfg(test)]
mod tests;
mod wire;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

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
    service::Service,
    subject::SessionSubject,
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
    config::ServerConfig,
    error::{Endpoint, ServerError},
    opening::{StorageSource, StorageWait},
    reload::{ConfigFile, ConfigFileError},
    wire::{ConnectionOptions, ListenAddress, ListenAddressError, TcpAddress},
};

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

    /// Boxed, so that this crate compiles the future. Otherwise each program that awaits it would compile it again,
    /// with the storages and all that they need.
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
    /// connection has ended, or after the drain timeout. By then the server has dropped its storage, unless somebody
    /// else still holds the [subject](Self::subject).
    ///
    /// The current thread is the first worker. Its runtime also accepts connections, publishes events and serves the
    /// admin port. Other work on that runtime delays all of this; to avoid that, run the server on a thread of its own.
    /// Do not block this thread with a second executor, such as `futures::executor::block_on`, to wait for the
    /// registry: that executor may never be woken.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the server stops without a drain: calls and streams are cut off.
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
