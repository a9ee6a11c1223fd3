//! The server: listeners, workers, limits and drain.

mod admission;
mod lifecycle;
mod monitoring;
mod opening;
mod reload;
mod standard;
#[cfg(test)]
mod tests;
mod wire;

use std::{io, net::SocketAddr, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::rustls;

use crate::{
    access::{AccessList, AccessListError},
    service::{CallTracer, Service, ServiceOptions},
    storage::{OpenError, StorageError},
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
    reload::ConfigFileError,
    wire::{ConnectionOptions, ListenAddress, ListenAddressError, TcpAddress},
};

/// How a server runs.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where gRPC is served.
    pub listen: ListenAddress,
    /// Where `/metrics`, `/live`, `/ready` and `/writable` are served over plain HTTP.
    pub admin_listen: TcpAddress,
    /// The files that make the server speak TLS; without them it does not.
    pub tls: Option<TlsFiles>,
    /// The file of those who may call, an [`AccessList`]; without it everybody may do everything. It is read again when it
    /// changes.
    pub access_file: Option<PathBuf>,
    /// How many calls each client may make; without it, any number.
    pub rate_limit: Option<RateLimit>,
    /// Where the sessions are: a storage to open, or one of your own.
    pub storage: StorageSource,
    /// How long to wait for the storage at the start, while it cannot be opened or does not answer.
    pub storage_wait: StorageWait,
    /// How many threads serve connections, each with a runtime of its own.
    pub workers: NonZeroUsize,
    /// The bounds of the subject.
    pub subject: SubjectOptions,
    /// How many sessions there may be. A storage that is open already has a limit of its own, and this one is only shown in the
    /// metrics.
    pub max_sessions: u64,
    /// How many leases there may be. Not used if the storage is open already.
    pub max_leases: u64,
    /// See [`StorageOptions::outage_grace`](crate::storage::StorageOptions::outage_grace). Not used if the storage is open already.
    pub outage_grace: Duration,
    /// How many connections there may be. More wait to be accepted.
    pub max_connections: usize,
    /// The bounds of each connection.
    pub connections: ConnectionOptions,
    /// The bounds of each call.
    pub calls: ServiceOptions,
    /// Who makes spans of calls.
    pub tracer: Option<Arc<dyn CallTracer>>,
    /// How long a drain may take.
    pub drain_timeout: Duration,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({source}): choose another address with --{flag}")]
    Listen {
        /// The address.
        address: String,
        /// The flag that sets it.
        flag: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A Unix socket speaks no TLS.
    #[error(
        "a Unix socket speaks no TLS, as nothing leaves the machine: leave out --tls-cert, or listen on a TCP port"
    )]
    TlsOverUnix,
    /// A file that is named by a flag cannot be used.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// The storage cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The storage is open and does not answer.
    #[error("the storage does not answer ({}): see that it runs and that --storage is right", source_text(.0))]
    Storage(#[from] StorageError),
    /// A task that the server cannot work without panicked. The log has the panic.
    #[error("a task that the server needs has panicked ({0}): start the server again, and report the panic in its log")]
    FailedTask(&'static str),
    /// A worker cannot be started.
    #[error("cannot start a worker ({0}): try fewer with --workers")]
    Worker(#[source] io::Error),
}

impl ServerError {
    /// Whether the server may start if it tries again later, although nobody has changed anything about it.
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

/// A server that listens and does not serve yet.
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
    /// Opens the ports and the storage. Waits for a storage that cannot be opened yet, as long as
    /// [`storage_wait`](ServerConfig::storage_wait) says.
    ///
    /// The admin port is served from the beginning, and says that the server is not ready and why. The port of gRPC is
    /// taken, and refuses connections until the storage is open. When the future is dropped, both are free again.
    ///
    /// Must be called in the runtime that calls [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// [`ServerError`] when something cannot be opened.
    pub async fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        let tls = config.tls.clone().map(TlsFiles::load).transpose()?;
        let access = config.access_file.clone().map(access_list).transpose()?;
        if tls.is_some() && matches!(config.listen, ListenAddress::Unix(_)) {
            return Err(ServerError::TlsOverUnix);
        }
        let of_listen = || listen_error(&config.listen, "listen");
        let taken = Taken::new(&config.listen).await.map_err(of_listen())?;
        let of_admin = || listen_error(&config.admin_listen, "admin-listen");
        let admin_listener = config.admin_listen.try_each(TcpListener::bind).await.map_err(of_admin())?;
        let admin_addr = admin_listener.local_addr().map_err(of_admin())?;
        let (lifecycle, _) = watch::channel(Lifecycle::Serving);
        let opening = Arc::<Opening>::default();
        let stats = ServerStats::new(config.max_sessions);
        let admin = Admin::new(Arc::clone(&opening), Arc::clone(&stats), lifecycle.subscribe());
        let vitals = Vitals::default();
        let admin = JoinSet::from_iter([vitals.watch("admin port", admin.run(admin_listener))]);
        tracing::info!(storage = %config.storage, admin_address = %admin_addr, "opening the storage");
        let subject = opening.run(&config).await?;
        let listener = taken.listen().await.map_err(of_listen())?;
        Ok(Self { config, tls, access, listener, admin_addr, subject, stats, lifecycle, vitals, admin })
    }

    /// Where gRPC is served, with the port that was taken.
    ///
    /// # Errors
    ///
    /// What the system says of the socket.
    pub fn address(&self) -> io::Result<ListenAddress> {
        self.listener.address()
    }

    /// The TCP address on which gRPC is served.
    ///
    /// # Errors
    ///
    /// What the system says of the socket; `Unsupported` for a Unix socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.tcp_address()
    }

    /// Where the admin port is.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// The subject that is served.
    #[must_use]
    pub fn subject(&self) -> &Arc<SessionSubject> {
        &self.subject
    }

    /// Serves until `shutdown` is ready, or a task that the server needs panics, and then drains: readiness fails,
    /// streams end with their cursors, calls finish. Returns when every connection has ended, or when the drain timeout
    /// has passed. By then it has let go of the storage, unless somebody else still holds the [subject](Self::subject).
    ///
    /// The current thread is the first worker: its runtime also accepts connections, publishes events and serves the
    /// admin port. Whoever else waits for this registry on that thread must leave it to that runtime: a second executor that
    /// blocks there may not be woken.
    ///
    /// # Errors
    ///
    /// [`ServerError::Worker`] when a thread cannot be started, [`ServerError::FailedTask`] when a task panicked.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
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
            reloading.spawn(vitals.watch("reading of certificates", tls.follow()));
        }
        if let Some(access) = access {
            reloading.spawn(vitals.watch("reading of the access file", access.follow()));
        }
        let mut workers = Workers::start(config.workers, &Arc::new(connections), &lifecycle, &vitals)?;
        let acceptor = Acceptor::new(listener, workers.inlets(), config.max_connections);
        let acceptor = vitals.watch("acceptor of connections", acceptor.run(lifecycle.subscribe()));
        let mut accepting = JoinSet::from_iter([acceptor]);
        let mut following = JoinSet::from_iter([vitals.watch("health", health.clone().follow())]);

        let failed_task = tokio::select! {
            () = shutdown => None,
            task = failed_task(&vitals, &subject) => Some(task),
        };
        // It must not say after this that the server serves.
        following.shutdown().await;
        tracing::info!(timeout = ?config.drain_timeout, "draining");
        lifecycle.send_replace(Lifecycle::Draining);
        health.close().await;
        subject.close();
        // It ends with the lifecycle, and its listener with it: no new connections.
        accepting.join_next().await;
        match timeout(config.drain_timeout, workers.ended()).await {
            Ok(()) => tracing::info!("drained"),
            Err(_) => tracing::warn!("the drain timeout has passed; what is left is cut off"),
        }
        lifecycle.send_replace(Lifecycle::Stopped);
        workers.ended().await;
        // Until now it has told that the server is not ready.
        admin.join_next().await;
        drop(health);
        if let Some(subject) = Arc::into_inner(subject) {
            subject.stop().await;
        }
        failed_task.map_or(Ok(()), |task| Err(ServerError::FailedTask(task)))
    }
}

/// How often the server looks whether a task has panicked.
const TASK_CHECK: Duration = Duration::from_millis(250);

/// Waits until a task that the server, the subject or the storage needs has panicked, and returns its name.
async fn failed_task(vitals: &Vitals, subject: &SessionSubject) -> &'static str {
    loop {
        if let Some(task) = vitals.failed().or_else(|| subject.failed_task()) {
            return task;
        }
        sleep(TASK_CHECK).await;
    }
}

fn access_list(path: PathBuf) -> Result<Reloaded<AccessList>, ConfigFileError> {
    Reloaded::load(vec![NamedFile { flag: "access-file", path }], |files, contents| {
        let text = str::from_utf8(&contents[0]).map_err(|error| files[0].wrong(error.to_string()))?;
        text.parse().map_err(|error: AccessListError| files[0].wrong(error.to_string()))
    })
}

/// Says loudly what others than this machine's users can do.
fn warn_of_exposure(config: &ServerConfig, listener: &Listener) {
    let Ok(address) = listener.tcp_address() else { return };
    if address.ip().is_loopback() {
        return;
    }
    if config.tls.is_none() {
        tracing::warn!(
            %address,
            "NO TLS: whoever is on the way reads and changes what is sent: set --tls-cert and --tls-key"
        );
    }
    let has_client_ca = config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if config.access_file.is_none() && !has_client_ca {
        tracing::warn!(
            %address,
            "NO AUTHENTICATION: whoever reaches this port may do everything: set --access-file, or --tls-client-ca"
        );
    }
}

fn listen_error(address: &impl ToString, flag: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    let address = address.to_string();
    move |source| ServerError::Listen { address, flag, source }
}
