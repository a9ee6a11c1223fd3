//! What a watch tells.

use std::time::Duration;

use crate::{
    client::ClientError,
    reset::ResetReason,
    session::{LeaseId, SessionEvent, SessionKey},
};

/// One step of a [`Watch`](super::Watch).
///
/// To hold exactly what the registry holds, start with [`WatchOptions::snapshot`](super::WatchOptions::snapshot) and
/// without a filter by type: insert the sessions of `Snapshot` and those created by `Events`, remove those destroyed,
/// forget everything at `Reset`. From `Synced` on, what is held is what is. Updates that are of no interest can be
/// left aside.
///
/// With [`WatchOptions::placements`](super::WatchOptions::placements), hold the lease of each session, too: it comes
/// with the session and changes when the session moves. With
/// [`WatchOptions::lease_ids`](super::WatchOptions::lease_ids), insert a session that moves to one of those leases, and
/// remove one that moves to any other.
#[derive(Debug)]
#[non_exhaustive]
pub enum WatchUpdate {
    /// A stream is open: the first update, and again whenever the watch has reconnected.
    Subscribed {
        /// Which registry this is. It changes when the registry was lost and began anew.
        registry_id: String,
        /// The heartbeat interval in force.
        heartbeat: Duration,
        /// The place at which the stream starts.
        cursor: String,
    },
    /// A part of the sessions that exist and pass the filters.
    Snapshot(Vec<SnapshotSession>),
    /// The snapshot is complete; what follows is live.
    Synced {
        /// How many sessions exist that pass the filters.
        session_count: u64,
    },
    /// Changes, in commit order.
    Events(Vec<SessionEvent>),
    /// Nothing else happened for the heartbeat interval.
    Heartbeat,
    /// The watch lost its place: forget what is held; a whole snapshot follows, to `Synced`.
    Reset(ResetReason),
    /// The connection is lost. The watch connects again by itself when it is next polled after the wait, and goes on
    /// where it was.
    Disconnected {
        /// What happened.
        error: ClientError,
        /// The wait before the next try.
        retry_in: Duration,
    },
}

/// A session in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SnapshotSession {
    /// The session.
    pub session: SessionKey,
    /// The lease that it is under. `None` for no lease, and on a watch without placements.
    pub lease: Option<LeaseId>,
}

/// A position in the change log. Within one partition of one registry, positions only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The partition of the log.
    pub partition: u32,
    /// The position of a change in the partition.
    pub position: u64,
}
