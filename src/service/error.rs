//! From errors to gRPC statuses, by the table of [reasons](crate::reason).

use std::{error::Error, time::Duration};

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    access::Refusal,
    reason::{ERROR_DOMAIN, ErrorReason, Retry},
    session::MAX_BATCH,
    storage::{StorageError, WriteRefusal},
    subject::ObserveError,
};

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The request has no session id.
    #[error("session_id is missing: set it (0 is an id like any other, and must be sent)")]
    SessionIdMissing,
    /// The request says which lease to take sessions from, and not which to move them to.
    #[error("lease_id is missing: only_from_lease_id moves sessions to a lease, so name it")]
    LeaseIdMissing,
    /// The lists of a batch do not fit together.
    #[error("auth_key_ids has {auth_key_ids} entries and session_ids {session_ids}: send none, or one for each")]
    UnequalLists {
        /// The length of `session_ids`.
        session_ids: usize,
        /// The length of `auth_key_ids`.
        auth_key_ids: usize,
    },
    /// A batch names too many sessions.
    #[error("session_ids has {count} entries: send at most {limit} a call{}", of_flag(*.limit))]
    BatchTooLarge {
        /// How many it names.
        count: usize,
        /// How many it may name.
        limit: usize,
    },
    /// The heartbeat interval is not between 100 ms and 1 h.
    #[error("heartbeat is not between 100 ms and 1 h: set it within, or leave it out for 15 s")]
    BadHeartbeat,
    /// The cursor is empty.
    #[error(
        "the cursor is empty: leave it unset to start with the next change, or set snapshot to start with a snapshot"
    )]
    EmptyCursor,
    /// The cursor is none.
    #[error("cursor is not one of ours: send one just as it was received, or start with a snapshot")]
    MalformedCursor,
    /// A type to filter by is none.
    #[error("types has {0}, which is no type of event: send CREATED (1), DESTROYED (2) or none")]
    UnknownEventType(i32),
    /// No such method.
    #[error("there is no method {0:?}: see proto/sessiond/v1 for those there are")]
    UnknownMethod(String),
    /// The request is no message of its type.
    #[error("the request cannot be read ({0}): send one message of the type that proto/sessiond/v1 gives")]
    MalformedRequest(String),
    /// The request is compressed, which was not agreed on.
    #[error("the request is compressed: send it without grpc-encoding")]
    Compressed,
    /// The request is longer than it may be.
    #[error("the request is longer than {limit} bytes: raise the server's --max-message-bytes")]
    RequestTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// All requests that are yet to come whole take too much memory.
    #[error("requests that have not come whole take {limit} bytes already: raise the server's --max-pending-bytes")]
    TooManyPendingBytes {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The caller is not known, or may not do this.
    #[error(transparent)]
    Access(#[from] Refusal),
    /// The caller makes too many calls.
    #[error("too many calls: wait as long as RetryInfo says, or raise the server's --rate-limit")]
    RateLimited {
        /// When one more may be made.
        retry_after: Duration,
    },
    /// The call took as long as its client wished to wait.
    #[error("the call took longer than its grpc-timeout: allow more time, or see why the storage is slow")]
    DeadlineExceeded,
    /// The call took as long as any may.
    #[error("the call took longer than {limit:?}: raise the server's --call-timeout, or see why the storage is slow")]
    CallTimeout {
        /// The limit.
        limit: Duration,
    },
    /// The ttl of a lease is not between 1 s and 24 h.
    #[error("ttl is not between 1 s and 24 h: set it within")]
    BadTtl,
    /// The linger of a revoked lease is not between 0 and 1 h.
    #[error("linger is not between 0 and 1 h: set it within")]
    BadLinger,
    /// A list of leases cannot go on from this page token.
    #[error("page_token is not one that ListLeases returned: send the last next_page_token, or none to begin anew")]
    MalformedPageToken,
    /// Too many leases are asked about at once.
    #[error("lease_ids has {count} ids: split it into requests of at most {limit}")]
    TooManyLeaseIds {
        /// How many there are.
        count: usize,
        /// How many may be.
        limit: usize,
    },
    /// The owner of a lease is too long a text.
    #[error("owner has {0} bytes: send at most 128")]
    OwnerTooLong(usize),
    /// A session cannot be created under a lease that is not there.
    #[error("lease {0} is gone: grant a new one, and create the sessions again under it")]
    CreateUnderUnknownLease(u64),
    /// A lease that is not there cannot be kept alive or revoked.
    #[error("lease {0} is gone: grant a new one, and create the sessions again under it")]
    LeaseGone(u64),
    /// An observer cannot start.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The storage did not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The server closes the connection.
    #[error("the server closes the connection, which was idle for its --idle-timeout: go on over a new one")]
    ConnectionClosing,
    /// The connection has been open for as long as any may.
    #[error("the connection is as old as the server's --max-connection-age lets it become: go on over a new one")]
    ConnectionTooOld,
    /// The server is about to stop.
    #[error("the server is draining: go on at another replica, or here when it is back")]
    Draining,
}

/// Where the limit of a batch is a lower one than the protocol's, what sets it.
fn of_flag(limit: usize) -> &'static str {
    if limit < MAX_BATCH { ", or raise the server's --max-batch" } else { "" }
}

/// The error that a call returns.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) reason: ErrorReason,
    /// How long the caller should wait before it retries, where that can help.
    pub(crate) retry_after: Option<Duration>,
}

/// Makes the status for an error.
pub(crate) fn answer(error: ServiceError) -> Answer {
    let reason = reason(&error);
    let row = reason.row();
    // A create fails because its lease is missing. A call about the lease itself does not find it.
    let is_not_found = reason == ErrorReason::LeaseGone && !matches!(error, ServiceError::CreateUnderUnknownLease(_));
    let (code, _) = row.returned[usize::from(is_not_found)];
    let message = message(&error);
    let mut details = ErrorDetails::new();
    details.set_error_info(reason.name(), ERROR_DOMAIN, [] as [(String, String); 0]);
    if let Some(field) = field(&error) {
        details.add_bad_request_violation(field, &message);
    }
    let retry_after = (row.retry == Retry::AfterRetryInfo).then(|| retry_delay(&error));
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Answer { status: Status::with_error_details(code, message, details), reason, retry_after }
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        answer(error).status
    }
}

impl From<StorageError> for Status {
    fn from(error: StorageError) -> Self {
        ServiceError::from(error).into()
    }
}

fn reason(error: &ServiceError) -> ErrorReason {
    match error {
        ServiceError::SessionIdMissing => ErrorReason::SessionIdMissing,
        ServiceError::UnequalLists { .. } => ErrorReason::UnequalLists,
        ServiceError::BatchTooLarge { .. } | ServiceError::TooManyLeaseIds { .. } => ErrorReason::BatchTooLarge,
        ServiceError::MalformedPageToken => ErrorReason::MalformedPageToken,
        ServiceError::BadHeartbeat | ServiceError::BadTtl | ServiceError::BadLinger => ErrorReason::BadDuration,
        ServiceError::EmptyCursor | ServiceError::MalformedCursor => ErrorReason::MalformedCursor,
        ServiceError::UnknownEventType(_) => ErrorReason::UnknownEventType,
        ServiceError::UnknownMethod(_) => ErrorReason::UnknownMethod,
        ServiceError::MalformedRequest(_) => ErrorReason::MalformedRequest,
        ServiceError::Compressed => ErrorReason::CompressedRequest,
        ServiceError::RequestTooLarge { .. } => ErrorReason::RequestTooLarge,
        ServiceError::TooManyPendingBytes { .. } => ErrorReason::TooManyPendingBytes,
        ServiceError::Access(Refusal::NoCredentials) => ErrorReason::CredentialsMissing,
        ServiceError::Access(Refusal::UnknownToken) => ErrorReason::TokenUnknown,
        ServiceError::Access(Refusal::ExpiredToken { .. }) => ErrorReason::TokenExpired,
        ServiceError::Access(Refusal::UnknownCertificate { .. }) => ErrorReason::CertificateUnknown,
        ServiceError::Access(Refusal::ScopeMissing { .. }) => ErrorReason::ScopeMissing,
        ServiceError::RateLimited { .. } => ErrorReason::RateLimited,
        ServiceError::DeadlineExceeded => ErrorReason::DeadlineExceeded,
        ServiceError::CallTimeout { .. } => ErrorReason::CallTimeout,
        ServiceError::OwnerTooLong(_) => ErrorReason::OwnerTooLong,
        ServiceError::LeaseIdMissing => ErrorReason::LeaseIdMissing,
        ServiceError::CreateUnderUnknownLease(_) | ServiceError::LeaseGone(_) => ErrorReason::LeaseGone,
        ServiceError::ConnectionClosing | ServiceError::ConnectionTooOld => ErrorReason::ConnectionClosing,
        ServiceError::Draining | ServiceError::Observe(ObserveError::Closed) => ErrorReason::ServerDraining,
        ServiceError::Observe(ObserveError::TooManyObservers { .. }) => ErrorReason::TooManyObservers,
        ServiceError::Observe(ObserveError::TooManyFilterIds { .. }) => ErrorReason::TooManyFilterIds,
        ServiceError::Observe(ObserveError::TooManyTotalFilterIds { .. }) => ErrorReason::TooManyTotalFilterIds,
        ServiceError::Observe(ObserveError::Storage(error)) | ServiceError::Storage(error) => match error {
            StorageError::TooManySessions { .. } => ErrorReason::TooManySessions,
            StorageError::TooManyLeases { .. } => ErrorReason::TooManyLeases,
            StorageError::UnknownLease(_) => ErrorReason::LeaseGone,
            StorageError::LeaseLingers(_) => ErrorReason::LeaseLingers,
            StorageError::Unavailable(_) => ErrorReason::StorageUnavailable,
            StorageError::Refused(_) => ErrorReason::StorageRefusesChanges,
            StorageError::Broken(_) => ErrorReason::Internal,
        },
    }
}

/// The field of the request that is wrong.
fn field(error: &ServiceError) -> Option<&'static str> {
    Some(match error {
        ServiceError::SessionIdMissing => "session_id",
        ServiceError::LeaseIdMissing => "lease_id",
        ServiceError::UnequalLists { .. } => "auth_key_ids",
        ServiceError::BatchTooLarge { .. } => "session_ids",
        ServiceError::BadHeartbeat => "heartbeat",
        ServiceError::BadTtl => "ttl",
        ServiceError::BadLinger => "linger",
        ServiceError::MalformedPageToken => "page_token",
        ServiceError::TooManyLeaseIds { .. } => "lease_ids",
        ServiceError::EmptyCursor | ServiceError::MalformedCursor => "cursor",
        ServiceError::UnknownEventType(_) => "types",
        ServiceError::OwnerTooLong(_) => "owner",
        _ => return None,
    })
}

/// What is wrong, and what to do about it.
fn message(error: &ServiceError) -> String {
    match error {
        ServiceError::Observe(ObserveError::Closed) => ServiceError::Draining.to_string(),
        ServiceError::Observe(ObserveError::TooManyObservers { limit }) => {
            format!("there are {limit} observers already: raise the server's --max-observers")
        }
        ServiceError::Observe(ObserveError::TooManyFilterIds { limit }) => {
            format!("the filters name more than {limit} ids: raise the server's --max-filter-ids")
        }
        ServiceError::Observe(ObserveError::TooManyTotalFilterIds { .. }) => {
            format!("{error}: raise the server's --max-total-filter-ids")
        }
        ServiceError::Observe(ObserveError::Storage(error)) | ServiceError::Storage(error) => storage_message(error),
        error => error.to_string(),
    }
}

fn storage_message(error: &StorageError) -> String {
    match error {
        StorageError::TooManySessions { limit } => {
            format!("the registry holds its limit of {limit} sessions: raise the server's --max-sessions")
        }
        StorageError::TooManyLeases { limit } => {
            format!("there are {limit} leases already: raise the server's --max-leases")
        }
        StorageError::UnknownLease(lease) => ServiceError::LeaseGone(lease.number()).to_string(),
        StorageError::LeaseLingers(lease) => {
            format!("lease {lease} was revoked, and lingers: grant a new one, and create the sessions again under it")
        }
        StorageError::Unavailable(_) => {
            let source: &dyn Error = error;
            // The subject tells of the outage once; a line for each call would be a flood.
            tracing::debug!(error = source, "a call failed: the storage is out of reach");
            "the storage is out of reach: try again".to_owned()
        }
        StorageError::Refused(WriteRefusal { cause, .. }) => {
            // The detail is for the log and the admin port, and not for callers.
            format!("the storage refuses changes because {cause}: try again later; to fix it, {}", cause.advice())
        }
        StorageError::Broken(_) => {
            let source: &dyn Error = error;
            tracing::error!(error = source, "a call failed: the storage is broken");
            // The cause is for the log of the server and not for its callers.
            "the server failed; its log says why".to_owned()
        }
    }
}

/// How long a caller should wait: a random time, so that callers that fail together do not all come back together.
fn retry_delay(error: &ServiceError) -> Duration {
    let (least, most) = match error {
        ServiceError::RateLimited { retry_after } => {
            let least = retry_after.as_millis() as u64 + 1;
            (least, 2 * least)
        }
        ServiceError::Draining | ServiceError::Observe(ObserveError::Closed) => (100, 3000),
        // Room comes when others leave, which takes longer than a short outage.
        ServiceError::Observe(ObserveError::TooManyObservers { .. } | ObserveError::TooManyTotalFilterIds { .. })
        | ServiceError::Storage(StorageError::TooManySessions { .. } | StorageError::TooManyLeases { .. }) => {
            (1000, 5000)
        }
        _ => (100, 1000),
    };
    Duration::from_millis(fastrand::u64(least..=most))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::{
        access::{Scope, Scopes},
        storage::RefusalCause,
    };

    #[test]
    fn every_error_has_its_code_its_reason_and_a_message_that_says_what_to_do() {
        let io = || Box::new(std::io::Error::other("secret cause"));
        let table = [
            (ServiceError::SessionIdMissing, Code::InvalidArgument, "SESSION_ID_MISSING", "set it"),
            (ServiceError::LeaseIdMissing, Code::InvalidArgument, "LEASE_ID_MISSING", "name it"),
            (
                ServiceError::UnequalLists { session_ids: 2, auth_key_ids: 1 },
                Code::InvalidArgument,
                "UNEQUAL_LISTS",
                "one for each",
            ),
            (
                ServiceError::BatchTooLarge { count: 65_537, limit: MAX_BATCH },
                Code::InvalidArgument,
                "BATCH_TOO_LARGE",
                "at most 65536",
            ),
            (
                ServiceError::BatchTooLarge { count: 6, limit: 5 },
                Code::InvalidArgument,
                "BATCH_TOO_LARGE",
                "--max-batch",
            ),
            (
                ServiceError::TooManyPendingBytes { limit: 3 },
                Code::ResourceExhausted,
                "TOO_MANY_PENDING_BYTES",
                "--max-pending-bytes",
            ),
            (Refusal::NoCredentials.into(), Code::Unauthenticated, "CREDENTIALS_MISSING", "authorization: Bearer"),
            (Refusal::UnknownToken.into(), Code::Unauthenticated, "TOKEN_UNKNOWN", "withdrawn"),
            (
                Refusal::ExpiredToken { name: "n".to_owned() }.into(),
                Code::Unauthenticated,
                "TOKEN_EXPIRED",
                "ask for a new one",
            ),
            (
                Refusal::UnknownCertificate { names: vec!["n".to_owned()] }.into(),
                Code::PermissionDenied,
                "CERTIFICATE_UNKNOWN",
                "(n)",
            ),
            (
                Refusal::ScopeMissing { name: "n".to_owned(), has: Scopes::default(), takes: Scope::Write }.into(),
                Code::PermissionDenied,
                "SCOPE_MISSING",
                "requires write",
            ),
            (
                ServiceError::RateLimited { retry_after: Duration::from_secs(1) },
                Code::ResourceExhausted,
                "RATE_LIMITED",
                "--rate-limit",
            ),
            (ServiceError::DeadlineExceeded, Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "grpc-timeout"),
            (
                ServiceError::CallTimeout { limit: Duration::from_secs(1) },
                Code::DeadlineExceeded,
                "CALL_TIMEOUT",
                "--call-timeout",
            ),
            (ServiceError::BadHeartbeat, Code::InvalidArgument, "BAD_DURATION", "100 ms"),
            (ServiceError::EmptyCursor, Code::InvalidArgument, "MALFORMED_CURSOR", "leave it unset"),
            (ServiceError::MalformedCursor, Code::InvalidArgument, "MALFORMED_CURSOR", "as it was received"),
            (ServiceError::UnknownEventType(9), Code::InvalidArgument, "UNKNOWN_EVENT_TYPE", "CREATED"),
            (ServiceError::UnknownMethod("/x".into()), Code::Unimplemented, "UNKNOWN_METHOD", "proto/sessiond/v1"),
            (
                ServiceError::MalformedRequest("eof".into()),
                Code::InvalidArgument,
                "MALFORMED_REQUEST",
                "proto/sessiond/v1",
            ),
            (ServiceError::Compressed, Code::Unimplemented, "COMPRESSED_REQUEST", "grpc-encoding"),
            (
                ServiceError::RequestTooLarge { limit: 3 },
                Code::ResourceExhausted,
                "REQUEST_TOO_LARGE",
                "--max-message-bytes",
            ),
            (ServiceError::BadTtl, Code::InvalidArgument, "BAD_DURATION", "24 h"),
            (ServiceError::OwnerTooLong(129), Code::InvalidArgument, "OWNER_TOO_LONG", "at most 128"),
            (ServiceError::CreateUnderUnknownLease(7), Code::FailedPrecondition, "LEASE_GONE", "grant a new one"),
            (ServiceError::LeaseGone(7), Code::NotFound, "LEASE_GONE", "grant a new one"),
            (
                StorageError::TooManyLeases { limit: 3 }.into(),
                Code::ResourceExhausted,
                "TOO_MANY_LEASES",
                "--max-leases",
            ),
            (ServiceError::ConnectionClosing, Code::Unavailable, "CONNECTION_CLOSING", "--idle-timeout"),
            (ServiceError::ConnectionTooOld, Code::Unavailable, "CONNECTION_CLOSING", "--max-connection-age"),
            (ServiceError::Draining, Code::Unavailable, "SERVER_DRAINING", "another replica"),
            (ObserveError::Closed.into(), Code::Unavailable, "SERVER_DRAINING", "another replica"),
            (
                ObserveError::TooManyObservers { limit: 3 }.into(),
                Code::ResourceExhausted,
                "TOO_MANY_OBSERVERS",
                "--max-observers",
            ),
            (
                ObserveError::TooManyFilterIds { limit: 3 }.into(),
                Code::ResourceExhausted,
                "TOO_MANY_FILTER_IDS",
                "--max-filter-ids",
            ),
            (
                ObserveError::TooManyTotalFilterIds { count: 4, limit: 30 }.into(),
                Code::ResourceExhausted,
                "TOO_MANY_TOTAL_FILTER_IDS",
                "--max-total-filter-ids",
            ),
            (
                StorageError::TooManySessions { limit: 3 }.into(),
                Code::ResourceExhausted,
                "TOO_MANY_SESSIONS",
                "--max-sessions",
            ),
            (
                StorageError::Refused(WriteRefusal::new(RefusalCause::DiskFull, "secret detail")).into(),
                Code::Unavailable,
                "STORAGE_REFUSES_CHANGES",
                "because the disk is full: try again later; to fix it, free some space",
            ),
            (StorageError::Unavailable(io()).into(), Code::Unavailable, "STORAGE_UNAVAILABLE", "try again"),
            (StorageError::Broken(io()).into(), Code::Internal, "INTERNAL", "log"),
        ];
        for (error, code, reason, says) in table {
            let status = Status::from(error);
            assert_eq!(status.code(), code);
            assert!(status.message().contains(says), "{}", status.message());
            assert!(!status.message().contains("secret"), "a cause stays inside");
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, ERROR_DOMAIN));
            let is_field = matches!(code, Code::InvalidArgument | Code::Unimplemented);
            let is_whole = ["MALFORMED_REQUEST", "COMPRESSED_REQUEST", "UNKNOWN_METHOD"].contains(&reason);
            assert_eq!(details.bad_request().is_some(), is_field && !is_whole, "{reason}");
            let delay = details.retry_info().and_then(|info| info.retry_delay);
            let has_delay = ErrorReason::from_name(reason).unwrap().row().retry == Retry::AfterRetryInfo;
            assert_eq!(delay.is_some_and(|delay| !delay.is_zero()), has_delay, "{reason}");
        }
    }
}
