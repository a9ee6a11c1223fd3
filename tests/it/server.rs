//! Runs a real server inside the test, on free ports and in its own thread, with clients to drive it.

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc, thread, time::Duration};

use sessiond::{
    proto::{lease_service_client::LeaseServiceClient, session_service_client::SessionServiceClient},
    server::{Server, ServerConfig, ServerError},
    storage::StorageUrl,
    subject::SessionSubject,
};
use tokio::{runtime, sync::oneshot};
use tonic::transport::{Channel, Endpoint};

use crate::fake::soon;

pub(crate) type Sessions = SessionServiceClient<Channel>;
pub(crate) type Leases = LeaseServiceClient<Channel>;

/// Returns the program's default configuration, but with two workers, free ports and a short drain timeout.
pub(crate) fn config() -> ServerConfig {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    ServerConfig::new(StorageUrl::Memory)
        .listen(any_port)
        .admin_listen(any_port)
        .workers(NonZeroUsize::new(2).unwrap())
        .drain_timeout(Duration::from_secs(5))
}

/// A running server. Dropping it starts a drain.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) subject: Arc<SessionSubject>,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<Result<(), ServerError>>,
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::with(config()).await
    }

    pub(crate) async fn with(config: ServerConfig) -> Self {
        Self::try_with(config).await.unwrap()
    }

    pub(crate) async fn try_with(config: ServerConfig) -> Result<Self, ServerError> {
        let (bind, bound) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        // Its own thread, so that a busy test does not delay the server.
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = match Server::bind(config).await {
                    Ok(server) => server,
                    Err(error) => return drop(bind.send(Err(error))),
                };
                let addresses = (server.local_addr().unwrap(), server.admin_addr());
                let _ = bind.send(Ok((addresses, Arc::clone(server.subject()))));
                // An error means that the test is over.
                let result = server.run(async { drop(stopped.await) }).await;
                let _ = end.send(result);
            });
        });
        let ((addr, admin), subject) = soon(bound).await.expect("the server's thread is running")?;
        Ok(Self { addr, admin, subject, stop, ended })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns a channel with a new connection, which is opened on first use.
    pub(crate) fn channel(&self) -> Channel {
        Endpoint::from_shared(self.url()).unwrap().connect_lazy()
    }

    /// Returns a session client with a new connection.
    pub(crate) fn sessions(&self) -> Sessions {
        Sessions::new(self.channel())
    }

    /// Returns a lease client with a new connection.
    pub(crate) fn leases(&self) -> Leases {
        Leases::new(self.channel())
    }

    /// Waits until there are exactly `count` observers.
    pub(crate) async fn observers(&self, count: usize) {
        eventually(&format!("{count} observers"), || self.subject.stats().observers == count).await;
    }

    /// Starts a drain. Returns a receiver for the server's result.
    pub(crate) fn stop(self) -> oneshot::Receiver<Result<(), ServerError>> {
        // The server lets go of the storage unless somebody holds the subject.
        drop(self.subject);
        let _ = self.stop.send(());
        self.ended
    }

    /// Waits until the server ends by itself.
    pub(crate) async fn ended(self) -> Result<(), ServerError> {
        let Self { stop: _running, ended, .. } = self;
        soon(ended).await.expect("the server's thread ends without a panic")
    }

    /// Stops the server and waits until it has drained.
    pub(crate) async fn stopped(self) {
        soon(self.stop()).await.expect("the server's thread ends without a panic").unwrap();
    }
}

/// Polls until `is_so` returns true. Panics with `what` if this takes longer than 30 s.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let polls = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), polls).await.unwrap_or_else(|_| panic!("not within 30 s: {what}"));
}
