//! The updates that a watch returns.

use std::time::Duration;

use crate::{
    client::ClientError,
    reset::ResetReason,
    session::{LeaseId, SessionEvent, SessionKey},
};

/// An update from a [`Watch`](super::Watch).
///
/// To mirror the registry exactly, start with [`WatchOptions::snapshot`](super::WatchOptions::snapshot) and set no
/// filter by type. Apply the updates in order:
///
/// - `Snapshot`: insert its sessions.
/// - `Events`: insert sessions that were created, and remove those that were destroyed.
/// - `Reset`: discard everything.
///
/// From `Synced` on, the mirror equals the registry. You may ignore the other updates.
///
/// With [`WatchOptions::placements`](super::WatchOptions::placements), also store the lease of each session. It comes
/// with the session and changes when the session moves. With
/// [`WatchOptions::lease_ids`](super::WatchOptions::lease_ids), insert a session that moves to one of those leases and
/// remove one that moves to any other.
#[derive(Debug)]
#[non_exhaustive]
pub enum WatchUpdate {
    /// A stream is open. This is the first update, and comes again after each reconnect.
    Subscribed {
        /// The identity of the registry. It changes if the registry has lost its data and started over.
        registry_id: String,
        /// The heartbeat interval of the stream.
        heartbeat: Duration,
        /// The place at which the stream starts.
        cursor: String,
    },
    /// Some of the existing sessions that match the filters.
    Snapshot(Vec<SnapshotSession>),
    /// The snapshot is complete, and live events follow.
    Synced {
        /// The number of existing sessions that match the filters.
        session_count: u64,
    },
    /// Changes, in commit order.
    Events(Vec<SessionEvent>),
    /// Nothing else was sent for one heartbeat interval.
    Heartbeat,
    /// The watch has lost its place. Discard everything; a full snapshot follows, up to `Synced`.
    Reset(ResetReason),
    /// The connection is lost.
    ///
    /// The next call of [`Watch::next`](super::Watch::next) waits, reconnects and resumes where the watch stopped.
    Disconnected {
        /// Why the connection was lost.
        error: ClientError,
        /// The delay before the next try.
        retry_in: Duration,
    },
}

/// A session in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SnapshotSession {
    /// The session.
    pub session: SessionKey,
    /// The lease that it is under. `None` if it is under no lease or the watch has no placements.
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
