//! The table of error reasons: the code of each reason, the calls that return it, and whether to retry.
//!
//! Every gRPC error of sessiond carries an [`ErrorReason`] in its `google.rpc.ErrorInfo`, with the domain
//! [`ERROR_DOMAIN`]. [`REASONS`] has a row for each. Use it to handle errors of a client other than [`client`], whose
//! [`ClientError::is_retryable`](crate::client::ClientError::is_retryable) reads this table:
//!
//! ```
//! use sessiond::reason::{ErrorReason, Retry};
//!
//! let reason = ErrorReason::from_name("LEASE_GONE").expect("a known reason");
//! assert_eq!(reason.row().retry, Retry::Never);
//! ```
//!
//! The server builds its statuses from the same table. A test compares it with
//! `proto/sessiond/v1/error_reason.proto` and the README.
//!
//! [`client`]: crate::client

use std::fmt;

use tonic::Code;

pub use crate::proto::ErrorReason;

/// The `domain` of the `google.rpc.ErrorInfo` in every error of sessiond.
pub const ERROR_DOMAIN: &str = "sessiond";

/// Whether to make the same call again. Every call is safe to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// No: it would fail again.
    Never,
    /// Yes, with backoff.
    WithBackoff,
    /// Yes, after the delay in the error's `google.rpc.RetryInfo`.
    AfterRetryInfo,
}

/// The calls that return a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Calls {
    /// Every call.
    Any,
    /// Every call except this one.
    AnyBut(&'static str),
    /// These calls.
    Of(&'static [&'static str]),
}

/// One row of the table: a reason with its codes, its calls and its retry policy.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ReasonRow {
    /// The reason.
    pub reason: ErrorReason,
    /// The gRPC codes with which the reason is returned, and the calls that return each.
    pub returned: &'static [(Code, Calls)],
    /// Whether to retry the call.
    pub retry: Retry,
}

const CREATES: &[&str] = &["CreateSession", "BatchCreateSessions"];
const BATCHES: &[&str] = &["BatchHasSessions", "BatchLookupSessions", "BatchCreateSessions", "BatchDestroySessions"];
const LISTS: &[&str] =
    &["BatchHasSessions", "BatchLookupSessions", "BatchCreateSessions", "BatchDestroySessions", "ListLeases"];
const SINGLES: &[&str] = &["HasSession", "LookupSession", "CreateSession", "DestroySession"];
const CHANGES: &[&str] = &[
    "CreateSession",
    "DestroySession",
    "BatchCreateSessions",
    "BatchDestroySessions",
    "GrantLease",
    "KeepLeaseAlive",
    "RevokeLease",
];

/// All reasons in the order of their numbers, which start at 1.
#[rustfmt::skip]
pub const REASONS: [ReasonRow; 34] = [
    row(ErrorReason::BadDuration, &[(Code::InvalidArgument, Calls::Of(&["GrantLease", "RevokeLease", "Subscribe"]))], Retry::Never),
    row(ErrorReason::BatchTooLarge, &[(Code::InvalidArgument, Calls::Of(LISTS))], Retry::Never),
    row(ErrorReason::CallTimeout, &[(Code::DeadlineExceeded, Calls::Any)], Retry::WithBackoff),
    row(ErrorReason::CertificateUnknown, &[(Code::PermissionDenied, Calls::Any)], Retry::Never),
    row(ErrorReason::CompressedRequest, &[(Code::Unimplemented, Calls::Any)], Retry::Never),
    row(ErrorReason::ConnectionClosing, &[(Code::Unavailable, Calls::Of(&["Subscribe", "Health.Watch"]))], Retry::AfterRetryInfo),
    row(ErrorReason::CredentialsMissing, &[(Code::Unauthenticated, Calls::Any)], Retry::Never),
    row(ErrorReason::DeadlineExceeded, &[(Code::DeadlineExceeded, Calls::Any)], Retry::WithBackoff),
    row(ErrorReason::Internal, &[(Code::Internal, Calls::Any)], Retry::WithBackoff),
    row(ErrorReason::LeaseGone, &[
        (Code::FailedPrecondition, Calls::Of(CREATES)),
        (Code::NotFound, Calls::Of(&["KeepLeaseAlive", "RevokeLease"])),
    ], Retry::Never),
    row(ErrorReason::MalformedCursor, &[(Code::InvalidArgument, Calls::Of(&["Subscribe"]))], Retry::Never),
    row(ErrorReason::MalformedRequest, &[(Code::InvalidArgument, Calls::Any)], Retry::Never),
    row(ErrorReason::OwnerTooLong, &[(Code::InvalidArgument, Calls::Of(&["GrantLease"]))], Retry::Never),
    row(ErrorReason::RateLimited, &[(Code::ResourceExhausted, Calls::AnyBut("KeepLeaseAlive"))], Retry::AfterRetryInfo),
    row(ErrorReason::RequestTooLarge, &[(Code::ResourceExhausted, Calls::Any)], Retry::Never),
    row(ErrorReason::ScopeMissing, &[(Code::PermissionDenied, Calls::Any)], Retry::Never),
    row(ErrorReason::ServerDraining, &[(Code::Unavailable, Calls::Of(&["Subscribe"]))], Retry::AfterRetryInfo),
    row(
        ErrorReason::SessionIdMissing, &[(Code::InvalidArgument, Calls::Of(SINGLES))], Retry::Never,
    ),
    row(ErrorReason::StorageRefusesChanges, &[(Code::Unavailable, Calls::Of(CHANGES))], Retry::AfterRetryInfo),
    row(ErrorReason::StorageUnavailable, &[(Code::Unavailable, Calls::Any)], Retry::AfterRetryInfo),
    row(ErrorReason::TokenExpired, &[(Code::Unauthenticated, Calls::Any)], Retry::Never),
    row(ErrorReason::TokenUnknown, &[(Code::Unauthenticated, Calls::Any)], Retry::Never),
    row(ErrorReason::TooManyFilterIds, &[(Code::ResourceExhausted, Calls::Of(&["Subscribe"]))], Retry::Never),
    row(ErrorReason::TooManyLeases, &[(Code::ResourceExhausted, Calls::Of(&["GrantLease"]))], Retry::AfterRetryInfo),
    row(ErrorReason::TooManyObservers, &[(Code::ResourceExhausted, Calls::Of(&["Subscribe"]))], Retry::AfterRetryInfo),
    row(ErrorReason::TooManyPendingBytes, &[(Code::ResourceExhausted, Calls::Any)], Retry::AfterRetryInfo),
    row(ErrorReason::TooManySessions, &[(Code::ResourceExhausted, Calls::Of(CREATES))], Retry::AfterRetryInfo),
    row(
        ErrorReason::TooManyTotalFilterIds, &[(Code::ResourceExhausted, Calls::Of(&["Subscribe"]))], Retry::AfterRetryInfo,
    ),
    row(ErrorReason::UnequalLists, &[(Code::InvalidArgument, Calls::Of(BATCHES))], Retry::Never),
    row(ErrorReason::UnknownEventType, &[(Code::InvalidArgument, Calls::Of(&["Subscribe"]))], Retry::Never),
    row(ErrorReason::UnknownMethod, &[(Code::Unimplemented, Calls::Any)], Retry::Never),
    row(ErrorReason::LeaseIdMissing, &[(Code::InvalidArgument, Calls::Of(CREATES))], Retry::Never),
    row(
        ErrorReason::LeaseLingers,
        &[(Code::FailedPrecondition, Calls::Of(&["CreateSession", "BatchCreateSessions", "KeepLeaseAlive"]))],
        Retry::Never,
    ),
    row(ErrorReason::MalformedPageToken, &[(Code::InvalidArgument, Calls::Of(&["ListLeases"]))], Retry::Never),
];

const fn row(reason: ErrorReason, returned: &'static [(Code, Calls)], retry: Retry) -> ReasonRow {
    ReasonRow { reason, returned, retry }
}

/// The prefix of the enum's names. It is not sent.
const PREFIX: &str = "ERROR_REASON_";

impl ErrorReason {
    /// Returns the reason's name as `google.rpc.ErrorInfo` carries it, such as `LEASE_GONE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.as_str_name().strip_prefix(PREFIX).unwrap_or_default()
    }

    /// Returns the reason with this name, or `None` if this version does not know it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        REASONS.iter().map(|row| row.reason).find(|reason| reason.name() == name)
    }

    /// Returns the index of the reason in [`REASONS`].
    pub(crate) fn index(self) -> usize {
        (self as usize).saturating_sub(1)
    }

    /// Returns the reason's row in [`REASONS`].
    #[must_use]
    pub fn row(self) -> &'static ReasonRow {
        &REASONS[self.index()]
    }
}

impl Calls {
    /// Returns whether `call` is one of these calls.
    #[must_use]
    pub fn include(self, call: &str) -> bool {
        match self {
            Self::Any => true,
            Self::AnyBut(but) => call != but,
            Self::Of(calls) => calls.contains(&call),
        }
    }
}

/// Formats the calls as the proto and the README show them.
impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any call"),
            Self::AnyBut(but) => write!(f, "any call but {but}"),
            Self::Of(calls) => f.write_str(&calls.join(", ")),
        }
    }
}

/// Formats the policy as the proto and the README show it.
impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "no",
            Self::WithBackoff => "with backoff",
            Self::AfterRetryInfo => "after RetryInfo",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_row() {
        for (index, row) in REASONS.iter().enumerate() {
            assert_eq!(row.reason.index(), index, "{row:?}");
            assert_eq!(ErrorReason::from_name(row.reason.name()), Some(row.reason));
        }
        assert!(ErrorReason::try_from(REASONS.len() as i32 + 1).is_err(), "the enum has no value without a row");
        assert_eq!(ErrorReason::from_name("UNSPECIFIED"), None);
    }
}
