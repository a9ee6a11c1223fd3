//! What a watch shows and where it starts.

use std::time::Duration;

use crate::session::{AuthKeyId, LeaseId, SessionId};

/// Where a watch starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WatchStart {
    /// With the first change after the stream opened.
    #[default]
    Now,
    /// With a snapshot of the sessions that exist.
    Snapshot,
    /// Right after the update at which [`Watch::cursor`](super::Watch::cursor) gave this cursor. The cursor is exact
    /// only with the filters of that watch.
    After(String),
}

/// What can happen to a session, to filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// It was created.
    Created,
    /// It was destroyed.
    Destroyed,
    /// It came under another lease. Implies [`WatchOptions::placements`].
    Moved,
}

/// What a watch shows and where it starts. By default: everything, from now on.
///
/// A session passes when it passes every filter given; a filter that is empty lets all pass.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct WatchOptions {
    pub(super) start: WatchStart,
    pub(super) session_ids: Vec<SessionId>,
    pub(super) auth_key_ids: Vec<AuthKeyId>,
    pub(super) lease_ids: Vec<LeaseId>,
    pub(super) types: Vec<EventType>,
    pub(super) placements: bool,
    pub(super) heartbeat: Option<Duration>,
}

impl WatchOptions {
    /// Everything, from `start` on.
    pub fn from_start(start: WatchStart) -> Self {
        Self { start, ..Self::default() }
    }

    /// Everything, after a snapshot of the sessions that exist.
    pub fn snapshot() -> Self {
        Self::from_start(WatchStart::Snapshot)
    }

    /// Everything, right after the update at which [`Watch::cursor`](super::Watch::cursor) gave `cursor`.
    pub fn after(cursor: impl Into<String>) -> Self {
        Self::from_start(WatchStart::After(cursor.into()))
    }

    /// Only these sessions, under any auth key.
    pub fn session_ids(mut self, ids: impl IntoIterator<Item = SessionId>) -> Self {
        self.session_ids = ids.into_iter().collect();
        self
    }

    /// Only sessions of these auth keys.
    pub fn auth_key_ids(mut self, ids: impl IntoIterator<Item = AuthKeyId>) -> Self {
        self.auth_key_ids = ids.into_iter().collect();
        self
    }

    /// Only sessions under these leases. Implies [`placements`](Self::placements).
    ///
    /// A session that comes under one of these leases, or leaves it for another, is reported as moved. A lease that has
    /// ended matches nothing. A gateway watches its own lease to learn which of its sessions others moved or destroyed.
    pub fn lease_ids(mut self, ids: impl IntoIterator<Item = LeaseId>) -> Self {
        self.lease_ids = ids.into_iter().collect();
        self
    }

    /// Also tells where sessions are: the lease of every session and event, sessions that move to another lease, and
    /// the [`places`](super::Watch::places) of updates.
    pub fn placements(mut self) -> Self {
        self.placements = true;
        self
    }

    /// Only these changes. Does not narrow snapshots.
    pub fn types(mut self, types: impl IntoIterator<Item = EventType>) -> Self {
        self.types = types.into_iter().collect();
        self
    }

    /// How long the stream may be quiet before the server sends a heartbeat: 100 ms to 1 h, 15 s by default. A stream
    /// that carries nothing for three times as long (at least a second longer) is taken for dead.
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = Some(heartbeat);
        self
    }
}
