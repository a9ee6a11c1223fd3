//! Why an observer must start over with a snapshot.

use std::fmt;

/// Why a stream of changes lost its place, so that the observer starts over with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResetReason {
    /// The cursor is older than the changes that the server has retained.
    CursorExpired,
    /// The cursor comes from another registry.
    CursorForeign,
    /// The observer fell behind the changes that the server retains.
    Lagged,
    /// The storage lost changes or started a new registry, perhaps after the observer got its cursor.
    StorageRestarted,
    /// The connection broke during a snapshot, which cannot be resumed. Only a client reports this.
    SnapshotInterrupted,
    /// A reason that only a newer server knows. Only a client reports this.
    Unknown,
}

impl ResetReason {
    /// Returns the reason's name in lower case, as metrics and the command line print it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CursorExpired => "cursor_expired",
            Self::CursorForeign => "cursor_foreign",
            Self::Lagged => "lagged",
            Self::StorageRestarted => "storage_restarted",
            Self::SnapshotInterrupted => "snapshot_interrupted",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for ResetReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
