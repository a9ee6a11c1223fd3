//! Accepts connections and spreads them over the workers.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{
    connection::Connection,
    socket::{Accepted, Listener},
    worker::Inlets,
};
use crate::server::lifecycle::{self, Lifecycle};

/// How long to wait when the system has no descriptor left for a connection.
const PAUSE_WHEN_EXHAUSTED: Duration = Duration::from_millis(100);

/// Takes connections from one listener and gives each to the worker that has the fewest. The kernel's own spreading
/// (`SO_REUSEPORT`) goes by hash and can give most of a few long-lived connections to one thread.
pub(crate) struct Acceptor {
    listener: Listener,
    workers: Inlets,
    places: Arc<Semaphore>,
}

impl Acceptor {
    pub(crate) fn new(listener: Listener, workers: Inlets, max_connections: usize) -> Self {
        let places = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
        Self { listener, workers, places }
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
            // A connection over the limit waits in the listener's queue, and its client's connect time-out decides.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if let Err(error) = self.give(stream, peer, place).await {
                        tracing::debug!(%error, "a connection was lost before it was served");
                    }
                }
                Err(error) => {
                    // Of a connection that ended already, or of a process without free descriptors: neither ends the server.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE_WHEN_EXHAUSTED).await;
                }
            }
        }
    }

    async fn give(&self, stream: Accepted, address: IpAddr, place: OwnedSemaphorePermit) -> io::Result<()> {
        // The worker registers it with its own runtime.
        let stream = stream.detach()?;
        self.workers.give(Connection { stream, address, place }).await;
        Ok(())
    }
}
