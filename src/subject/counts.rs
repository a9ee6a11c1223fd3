//! Counts of the changes that a subject has published, of the observers that it has reset, and of the runs of buckets
//! that it has read for snapshots.

use crate::{
    reset::ResetReason,
    session::{DestroyReason, SessionChange, SessionEvent},
};

/// How many changes a subject has published since it started, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangeCounts {
    /// Sessions created.
    pub created: u64,
    /// Sessions moved to another lease.
    pub moved: u64,
    /// Sessions destroyed by a request that named no lease.
    pub destroyed_by_request: u64,
    /// Sessions destroyed by a request that named their lease.
    pub released: u64,
    /// Sessions destroyed because their lease expired.
    pub lease_expired: u64,
    /// Sessions destroyed because their lease was revoked.
    pub lease_revoked: u64,
}

impl ChangeCounts {
    /// Counts one event.
    pub(super) fn count(&mut self, event: &SessionEvent) {
        let count = match event.change {
            SessionChange::Created => &mut self.created,
            SessionChange::Moved { .. } => &mut self.moved,
            SessionChange::Destroyed(DestroyReason::Requested) => &mut self.destroyed_by_request,
            SessionChange::Destroyed(DestroyReason::Released) => &mut self.released,
            SessionChange::Destroyed(DestroyReason::LeaseExpired) => &mut self.lease_expired,
            SessionChange::Destroyed(DestroyReason::LeaseRevoked) => &mut self.lease_revoked,
        };
        *count += 1;
    }
}

/// How many observers a subject has reset since it started, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResetCounts {
    /// Resets by [`ResetReason::CursorExpired`].
    pub cursor_expired: u64,
    /// Resets by [`ResetReason::CursorForeign`].
    pub cursor_foreign: u64,
    /// Resets by [`ResetReason::Lagged`].
    pub lagged: u64,
    /// Resets by [`ResetReason::StorageRestarted`].
    pub storage_restarted: u64,
}

impl ResetCounts {
    /// Returns the number of all resets together.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { cursor_expired, cursor_foreign, lagged, storage_restarted } = self;
        cursor_expired + cursor_foreign + lagged + storage_restarted
    }

    /// Counts one reset.
    pub(super) fn count(&mut self, reason: ResetReason) {
        match reason {
            ResetReason::CursorExpired => self.cursor_expired += 1,
            ResetReason::CursorForeign => self.cursor_foreign += 1,
            ResetReason::Lagged => self.lagged += 1,
            ResetReason::StorageRestarted => self.storage_restarted += 1,
            // Only clients find these.
            ResetReason::SnapshotInterrupted | ResetReason::Unknown => {}
        }
    }
}

/// How many runs of buckets the snapshots of a subject have taken since it started. Snapshots with a filter by id are not
/// counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunCounts {
    /// Runs that were read from the storage.
    pub read: u64,
    /// Runs that another observer had read at the same time.
    pub shared: u64,
}
