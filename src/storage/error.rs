//! What can go wrong in a storage.

use std::error::Error;

use super::WriteRefusal;
use crate::session::LeaseId;

/// Why a storage did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The storage cannot be reached or does not answer; a later retry can help.
    #[error("the storage is out of reach")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// The storage can be read but refuses changes; a later retry can help.
    #[error("the storage refuses changes")]
    Refused(#[source] WriteRefusal),
    /// The registry holds as many sessions as it may.
    #[error("the registry holds its limit of {limit} sessions")]
    TooManySessions {
        /// The limit, in sessions.
        limit: u64,
    },
    /// There are as many leases as there may be.
    #[error("there are {limit} leases, which is the limit")]
    TooManyLeases {
        /// The limit.
        limit: u64,
    },
    /// There is no such lease: it expired, was revoked, or never was.
    #[error("lease {0} is gone")]
    UnknownLease(LeaseId),
    /// The lease was revoked and lingers: it takes no sessions and cannot be kept alive.
    #[error("lease {0} was revoked, and lingers")]
    LeaseLingers(LeaseId),
    /// The storage does not keep its own contract: it or what lies beneath it is broken.
    #[error("the storage is broken")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
}

impl StorageError {
    /// Whether the same call may succeed later although nobody has changed it or raised a limit.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Refused(_))
    }
}

/// Why the changes after a position cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Some of them are no longer held.
    #[error("changes after that position are no longer held")]
    Trimmed,
    /// The log does not contain the point: the storage lost changes, or began anew under another registry id.
    #[error("the storage lost changes or began anew")]
    Restarted,
    /// The storage could not be asked.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
