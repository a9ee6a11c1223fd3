//! The errors of a storage.

use std::error::Error;

use super::WriteRefusal;
use crate::session::LeaseId;

/// Why a call to a storage failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The storage cannot be reached or does not answer. A later retry can help.
    #[error("the storage cannot be reached")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// The storage can be read but refuses changes. A later retry can help.
    #[error("the storage refuses changes")]
    Refused(#[source] WriteRefusal),
    /// The registry has reached its limit of sessions.
    #[error("the registry has reached its limit of {limit} sessions")]
    TooManySessions {
        /// The limit.
        limit: u64,
    },
    /// The registry has reached its limit of leases.
    #[error("the registry has reached its limit of {limit} leases")]
    TooManyLeases {
        /// The limit.
        limit: u64,
    },
    /// The lease has expired, was revoked, or never existed.
    #[error("lease {0} is gone")]
    UnknownLease(LeaseId),
    /// The lease was revoked and lingers: it accepts no sessions and cannot be kept alive.
    #[error("lease {0} was revoked and lingers")]
    LeaseLingers(LeaseId),
    /// The storage, or the store that it uses, is broken or does not behave as it must. A retry does not help.
    #[error("the storage is broken")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
}

impl StorageError {
    /// Returns whether the same call may succeed later without any change to it or to the limits.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Refused(_))
    }
}

/// Why the log, or the sessions at some point of it, cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The log no longer holds some of the changes after that position.
    #[error("changes after that position are no longer held")]
    Trimmed,
    /// The log does not contain that point: the storage lost changes, or started over under another registry id.
    #[error("the storage lost changes or started over")]
    Restarted,
    /// The call to the storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
