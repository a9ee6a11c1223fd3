//! The options of a watch: its start and its filters.

use std::time::Duration;

use crate::session::{AuthKeyId, LeaseId, SessionId};

/// Where a watch starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WatchStart {
    /// Starts with the first change after the stream has opened.
    #[default]
    Now,
    /// Starts with a snapshot of the existing sessions.
    Snapshot,
    /// Starts right after the update at which [`Watch::cursor`](super::Watch::cursor) returned this cursor.
    ///
    /// A cursor is exact only with the filters of the watch that it was obtained from.
    After(String),
}

/// The kinds of changes that a watch can filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A session was created.
    Created,
    /// A session was destroyed.
    Destroyed,
    /// A session moved to another lease. Filtering by it implies [`WatchOptions::placements`].
    Moved,
}

/// What a watch returns, and where it starts. The default is every change of every session, from now on.
///
/// A session must match every filter that is set. An empty filter matches everything.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct WatchOptions {
    pub(super) start: WatchStart,
    pub(in crate::client) session_ids: Vec<SessionId>,
    pub(in crate::client) auth_key_ids: Vec<AuthKeyId>,
    pub(in crate::client) lease_ids: Vec<LeaseId>,
    pub(super) types: Vec<EventType>,
    pub(super) placements: bool,
    pub(super) heartbeat: Option<Duration>,
}

impl WatchOptions {
    /// Shows everything from `start` on.
    pub fn from_start(start: WatchStart) -> Self {
        Self { start, ..Self::default() }
    }

    /// Shows everything, starting with a snapshot of the existing sessions.
    pub fn snapshot() -> Self {
        Self::from_start(WatchStart::Snapshot)
    }

    /// Shows everything right after the update at which [`Watch::cursor`](super::Watch::cursor) returned `cursor`.
    pub fn after(cursor: impl Into<String>) -> Self {
        Self::from_start(WatchStart::After(cursor.into()))
    }

    /// Shows only these sessions, under any auth key.
    pub fn session_ids(mut self, ids: impl IntoIterator<Item = SessionId>) -> Self {
        self.session_ids = ids.into_iter().collect();
        self
    }

    /// Shows only sessions of these auth keys.
    pub fn auth_key_ids(mut self, ids: impl IntoIterator<Item = AuthKeyId>) -> Self {
        self.auth_key_ids = ids.into_iter().collect();
        self
    }

    /// Shows only sessions under these leases. Implies [`placements`](Self::placements).
    ///
    /// A session that moves to or from one of these leases is reported as moved. A lease that has ended matches
    /// nothing. A gateway watches its own lease to learn that one of its sessions was moved or destroyed by someone
    /// else.
    pub fn lease_ids(mut self, ids: impl IntoIterator<Item = LeaseId>) -> Self {
        self.lease_ids = ids.into_iter().collect();
        self
    }

    /// Also shows where sessions are, that is, which lease each is under.
    ///
    /// This adds the lease of every session and event, events of sessions that move to another lease, and the
    /// [`places`](super::Watch::places) of updates.
    pub fn placements(mut self) -> Self {
        self.placements = true;
        self
    }

    /// Shows only these kinds of changes. Does not filter snapshots.
    pub fn types(mut self, types: impl IntoIterator<Item = EventType>) -> Self {
        self.types = types.into_iter().collect();
        self
    }

    /// Sets how long the stream may be quiet before the server sends a heartbeat.
    ///
    /// The range is 100 ms to 1 h, the default 15 s. The watch reconnects if it receives nothing for three heartbeats,
    /// and at least a second more than one.
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = Some(heartbeat);
        self
    }
}
