//! A client's connection, as the gateway's book sees it.

use std::{
    pin::pin,
    sync::{Arc, OnceLock},
};

use tokio::sync::Notify;

use super::Shared;
use crate::session::{DestroyReason, LeaseId, SessionKey};

/// Why a client's connection must be closed. Returned by [`Connection::closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The session has moved to another lease: its client has connected elsewhere.
    Moved {
        /// The lease that the session is under now. [`Client::lookup`](crate::client::Client::lookup) also returns its
        /// owner.
        to: LeaseId,
    },
    /// Someone else has destroyed the session.
    Destroyed {
        /// Why it was destroyed. `None` if that happened while the gateway could not reach the registry.
        reason: Option<DestroyReason>,
    },
    /// The gateway was stopped or dropped. The client should reconnect to another one.
    Stopped,
}

/// A client that is connected to this gateway. Returned by [`Gateway::connect`](super::Gateway::connect).
///
/// Keep it for as long as the client is connected. Dropping it destroys the session under the gateway's lease, unless
/// the session has another connection in this gateway, or has moved elsewhere. Dropping never blocks.
#[derive(Debug)]
#[must_use = "dropping a connection ends its session"]
pub struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) session: SessionKey,
    pub(super) signal: Arc<Signal>,
}

impl Connection {
    /// Returns the session of the client.
    #[must_use]
    pub fn session(&self) -> SessionKey {
        self.session
    }

    /// Waits until the client's connection must be closed, and returns why.
    ///
    /// Close the connection to the client then, and drop this value. Dropping it destroys nothing, because the session
    /// is no longer here. Any number of tasks may wait, and later calls return the same reason at once.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe.
    pub async fn closed(&self) -> CloseReason {
        self.signal.wait().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.book().close(self.session, &self.signal);
        self.shared.wake();
    }
}

/// Notifies the holder of a connection that it must be closed.
#[derive(Debug, Default)]
pub(super) struct Signal {
    reason: OnceLock<CloseReason>,
    given: Notify,
}

impl Signal {
    /// Gives the reason, unless one was given before.
    pub(super) fn give(&self, reason: CloseReason) {
        if self.reason.set(reason).is_ok() {
            self.given.notify_waiters();
        }
    }

    #[cfg(test)]
    pub(super) fn reason(&self) -> Option<CloseReason> {
        self.reason.get().copied()
    }

    async fn wait(&self) -> CloseReason {
        loop {
            let mut given = pin!(self.given.notified());
            // From here on, no reason is missed.
            given.as_mut().enable();
            if let Some(reason) = self.reason.get() {
                return *reason;
            }
            given.await;
        }
    }
}
