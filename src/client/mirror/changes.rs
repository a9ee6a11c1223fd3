//! Sends the changes of a mirror to its readers.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::session::{DestroyReason, LeaseId, SessionKey};

/// The most batches that wait for a slow reader, and the most changes in one.
const BATCHES: usize = 64;
const CHANGES_A_BATCH: usize = 4096;

/// An update from [`MirrorChanges`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MirrorUpdate {
    /// The changes that the mirror has made, in order.
    Changed(Arc<[MirrorChange]>),
    /// The reader was too slow, and changes were dropped. Read the mirror again, and continue from there.
    Resync,
}

/// A change of one session in a mirror: whether the session exists now, and under which lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MirrorChange {
    /// The session.
    pub session: SessionKey,
    /// Whether the session exists after the change.
    pub exists: bool,
    /// The lease that the session is under after the change, if any.
    pub lease: Option<LeaseId>,
    /// Why the session was destroyed. `None` if it was not, or while the mirror could not follow the registry.
    pub reason: Option<DestroyReason>,
}

/// The changes of a mirror. Returned by [`Mirror::changes`](super::Mirror::changes).
///
/// At most 64 batches of up to 4,096 changes wait to be read. If there are more, the reader gets
/// [`MirrorUpdate::Resync`].
#[derive(Debug)]
#[must_use]
pub struct MirrorChanges(broadcast::Receiver<Arc<[MirrorChange]>>);

impl MirrorChanges {
    /// Waits for the next changes. Returns `None` once the mirror was dropped.
    ///
    /// When this returns, the mirror already holds the changes, and perhaps later ones.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe: if the future is dropped, no change is lost.
    pub async fn next(&mut self) -> Option<MirrorUpdate> {
        match self.0.recv().await {
            Ok(changes) => Some(MirrorUpdate::Changed(changes)),
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // The mirror already holds the changes that are still waiting, so skip them.
                self.0 = self.0.resubscribe();
                Some(MirrorUpdate::Resync)
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Collects changes and sends them in batches, if anyone reads them.
#[derive(Clone, Debug)]
pub(super) struct ChangeSender {
    readers: broadcast::Sender<Arc<[MirrorChange]>>,
    batch: Vec<MirrorChange>,
}

impl ChangeSender {
    pub(super) fn new() -> Self {
        Self { readers: broadcast::Sender::new(BATCHES), batch: Vec::new() }
    }

    pub(super) fn subscribe(&self) -> MirrorChanges {
        MirrorChanges(self.readers.subscribe())
    }

    pub(super) fn has_readers(&self) -> bool {
        self.readers.receiver_count() > 0
    }

    pub(super) fn add(&mut self, change: MirrorChange) {
        if self.has_readers() {
            self.batch.push(change);
            if self.batch.len() == CHANGES_A_BATCH {
                self.send();
            }
        }
    }

    /// Sends what was added.
    pub(super) fn send(&mut self) {
        if !self.batch.is_empty() {
            // An error means that nobody reads any more.
            let _ = self.readers.send(self.batch.drain(..).collect());
        }
    }
}
