//! Accepts connections and distributes them over the workers.

use std::{io, net::IpAddr, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{
    PAUSE_WHEN_EXHAUSTED,
    connection::Connection,
    socket::{Accepted, Listener},
    worker::Inlets,
};
use crate::server::lifecycle::{self, Lifecycle};

/// Accepts the connections of one listener, and gives each to the worker that has the fewest.
///
/// The kernel's alternative (`SO_REUSEPORT`) distributes by hash, and can put most of a few long-lived connections on
/// one thread.
pub(crate) struct Acceptor {
    listener: Listener,
    workers: Inlets,
    /// Has one permit for each connection that may be open.
    permits: Arc<Semaphore>,
}

impl Acceptor {
    pub(crate) fn new(listener: Listener, workers: Inlets, max_connections: usize) -> Self {
        let permits = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
        Self { listener, workers, permits }
    }

    /// Runs until the drain begins.
    pub(crate) async fn run(self, mut lifecycle: watch::Receiver<Lifecycle>) {
        tokio::select! {
            () = lifecycle::reached(&mut lifecycle, Lifecycle::Draining) => {}
            () = self.accept_all() => {}
        }
    }

    async fn accept_all(&self) {
        loop {
            // A connection over the limit waits in the listener's queue, until its client's connect timeout.
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if let Err(error) = self.give(stream, peer, permit).await {
                        tracing::debug!(%error, "a new connection failed before a worker could serve it");
                    }
                }
                Err(error) => {
                    // The connection has already ended, or the process has no free file descriptor. The server
                    // continues.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE_WHEN_EXHAUSTED).await;
                }
            }
        }
    }

    async fn give(&self, stream: Accepted, address: IpAddr, permit: OwnedSemaphorePermit) -> io::Result<()> {
        // The worker registers the connection with its own runtime.
        let stream = stream.detach()?;
        self.workers.give(Connection { stream, address, permit }).await;
        Ok(())
    }
}
