//! Turns errors into gRPC statuses, by the table in [`reason`](crate::reason).

use std::{error::Error, sync::Arc, time::Duration};

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    access::Refusal,
    reason::{ERROR_DOMAIN, ErrorReason, Retry},
    session::MAX_BATCH,
    storage::{StorageError, WriteRefusal},
    subject::ObserveError,
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The request has no session id.
    #[error("session_id is missing: set it, even if it is 0")]
    SessionIdMissing,
    /// The request sets `only_from_lease_id` but not `lease_id`.
    #[error("lease_id is missing: name the lease to which only_from_lease_id moves the sessions")]
    LeaseIdMissing,
    /// `auth_key_ids` is neither empty nor as long as `session_ids`.
    #[error("auth_key_ids has {auth_key_ids} entries, session_ids {session_ids}: send one for each session, or none")]
    UnequalLists {
        /// The length of `session_ids`.
        session_ids: usize,
        /// The length of `auth_key_ids`.
        auth_key_ids: usize,
    },
    /// A batch names too many sessions.
    #[error("session_ids has {count} entries: send at most {limit} per call{}", flag_advice(*.limit))]
    BatchTooLarge {
        /// The number of sessions.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The heartbeat interval is not between 100 ms and 1 h.
    #[error("heartbeat is not between 100 ms and 1 h: set it within that range, or leave it unset for 15 s")]
    BadHeartbeat,
    /// The cursor is empty.
    #[error("cursor is empty: leave it unset to start with the next change, or set snapshot to start with a snapshot")]
    EmptyCursor,
    /// The cursor is not a sessiond cursor.
    #[error("cursor is not a sessiond cursor: send one exactly as you received it, or start with a snapshot")]
    MalformedCursor,
    /// An event type to filter by does not exist.
    #[error("types contains {0}, which is not an event type: send CREATED (1), DESTROYED (2), MOVED (3) or none")]
    UnknownEventType(i32),
    /// The method does not exist.
    #[error("there is no method {0:?}: see proto/sessiond/v1 for the methods of this version")]
    UnknownMethod(String),
    /// The request is not exactly one valid message of its type.
    #[error("the request cannot be decoded ({0}): send exactly one message of the type in proto/sessiond/v1")]
    MalformedRequest(String),
    /// The request is compressed.
    #[error("the request is compressed, which the server does not support: send it without grpc-encoding")]
    Compressed,
    /// The request is too large.
    #[error("the request is larger than {limit} bytes: split it, or raise the server's --max-message-bytes")]
    RequestTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The incomplete requests of all clients take too much memory.
    #[error("incomplete requests already take {limit} bytes: retry, or raise the server's --max-pending-bytes")]
    TooManyPendingBytes {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The caller is not authenticated, or not allowed to make this call.
    #[error(transparent)]
    Access(#[from] Refusal),
    /// The caller exceeds the rate limit.
    #[error("the client exceeds its rate limit: retry as RetryInfo says, or raise the server's --rate-limit")]
    RateLimited {
        /// How long until the next call is allowed.
        retry_after: Duration,
    },
    /// The call exceeded the timeout that its client set.
    #[error("the call exceeded its grpc-timeout: allow more time, or see why the storage is slow")]
    DeadlineExceeded,
    /// The call exceeded the server's timeout.
    #[error("the call took longer than {limit:?}: see why the storage is slow, or raise the server's --call-timeout")]
    CallTimeout {
        /// The limit.
        limit: Duration,
    },
    /// The ttl of a lease is not between 1 s and 24 h.
    #[error("ttl is not between 1 s and 24 h: set it within that range")]
    BadTtl,
    /// The linger of a revoked lease is not between 0 and 1 h.
    #[error("linger is not between 0 and 1 h: set it within that range")]
    BadLinger,
    /// The page token was not returned by `ListLeases`.
    #[error("page_token was not returned by ListLeases: send the last next_page_token, or none to start over")]
    MalformedPageToken,
    /// The request names too many leases.
    #[error("lease_ids has {count} entries: send at most {limit} per call")]
    TooManyLeaseIds {
        /// The number of leases.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The owner of a lease is longer than 128 bytes.
    #[error("owner has {0} bytes: send at most 128")]
    OwnerTooLong(usize),
    /// The lease to create a session under has ended or never existed.
    #[error("lease {0} is gone: grant a new one, and create the sessions again under it")]
    CreateUnderUnknownLease(u64),
    /// The lease to keep alive or revoke has ended or never existed.
    #[error("lease {0} is gone: grant a new one, and create the sessions again under it")]
    LeaseGone(u64),
    /// An observer cannot start.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The storage failed or refused the call.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The server closes the connection because it is idle.
    #[error("the connection was idle for the server's --idle-timeout and is being closed: resume on a new one")]
    ConnectionClosing,
    /// The server closes the connection because it is old.
    #[error("the connection has reached the server's --max-connection-age and is being closed: resume on a new one")]
    ConnectionTooOld,
    /// The server is shutting down.
    #[error("the server is draining: resume at another replica, or at this one once it is back")]
    Draining,
}

/// Names the flag that raises the batch limit, if the limit is below the protocol's.
fn flag_advice(limit: usize) -> &'static str {
    if limit < MAX_BATCH { ", or raise the server's --max-batch" } else { "" }
}

/// The error response to a call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) reason: ErrorReason,
    /// How long the caller should wait before it retries. `None` if the response carries no `RetryInfo`.
    pub(crate) retry_after: Option<Duration>,
}

/// Returns the response to a call that failed with `error`.
pub(crate) fn answer(error: ServiceError) -> Answer {
    let reason = reason(&error);
    let row = reason.row();
    // For a create, a missing lease is a failed precondition. For a call about the lease itself, it is not found.
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

/// The source of every status that sessiond makes. Metrics count refusals by it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{}", .0.name())]
pub(crate) struct Refused(pub(crate) ErrorReason);

impl Refused {
    /// Returns the reason of a status that sessiond made.
    pub(crate) fn of(status: &Status) -> Option<Self> {
        status.source()?.downcast_ref().copied()
    }
}

/// The header that tells a library with built-in retries how many milliseconds to wait. A negative number tells it not
/// to retry (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback>).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Makes the status of a call that fails before it has sent a message.
impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let Answer { mut status, reason, retry_after } = answer(error);
        let is_exhausted = status.code() == Code::ResourceExhausted;
        let headers = status.metadata_mut();
        if let Some(delay) = retry_after {
            headers.insert(PUSHBACK, (delay.as_millis() as u64).into());
        } else if is_exhausted {
            // A service config retries RESOURCE_EXHAUSTED, because some limits are reached only for a while. This one
            // is not.
            headers.insert(PUSHBACK, MetadataValue::from_static("-1"));
        }
        if reason == ErrorReason::CompressedRequest {
            headers.insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
        }
        status.set_source(Arc::new(Refused(reason)));
        status
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

/// Returns the invalid field of the request, if the error concerns one.
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

/// Returns the message for callers: what is wrong, and what to do about it.
fn message(error: &ServiceError) -> String {
    match error {
        ServiceError::Observe(ObserveError::Closed) => ServiceError::Draining.to_string(),
        ServiceError::Observe(ObserveError::TooManyObservers { limit }) => {
            format!("the server has reached its --max-observers of {limit}: raise it, or try another replica")
        }
        ServiceError::Observe(ObserveError::TooManyFilterIds { limit }) => {
            format!(
                "the filters name more than {limit} ids: use several streams, or raise the server's --max-filter-ids"
            )
        }
        ServiceError::Observe(ObserveError::TooManyTotalFilterIds { .. }) => {
            format!("{error}: try another replica, or raise the server's --max-total-filter-ids")
        }
        ServiceError::Observe(ObserveError::Storage(error)) | ServiceError::Storage(error) => storage_message(error),
        error => error.to_string(),
    }
}

fn storage_message(error: &StorageError) -> String {
    match error {
        StorageError::TooManySessions { limit } => {
            format!("the registry has reached its limit of {limit} sessions: raise the server's --max-sessions")
        }
        StorageError::TooManyLeases { limit } => {
            format!("the registry has reached its limit of {limit} leases: raise the server's --max-leases")
        }
        StorageError::UnknownLease(lease) => ServiceError::LeaseGone(lease.number()).to_string(),
        StorageError::LeaseLingers(lease) => {
            format!("lease {lease} was revoked and lingers: grant a new one, and create the sessions again under it")
        }
        StorageError::Unavailable(_) => {
            let source: &dyn Error = error;
            // The subject logs the outage once. A warning for each failed call would flood the log.
            tracing::debug!(error = source, "a call failed because the storage is unreachable");
            "the storage is unreachable: try again".to_owned()
        }
        StorageError::Refused(WriteRefusal { cause, .. }) => {
            // The detail is for the log and the admin port only.
            format!("the storage refuses changes because {cause}: try again later; to fix it, {}", cause.advice())
        }
        StorageError::Broken(_) => {
            let source: &dyn Error = error;
            tracing::error!(error = source, "a call failed because the storage is broken");
            // The cause is for the log only.
            "the server failed: see its log for the cause".to_owned()
        }
    }
}

/// Returns how long a caller should wait before it retries. The delay is random, so that callers that fail together do
/// not all come back together.
fn retry_delay(error: &ServiceError) -> Duration {
    let (least, most) = match error {
        ServiceError::RateLimited { retry_after } => {
            let least = retry_after.as_millis() as u64 + 1;
            (least, 2 * least)
        }
        ServiceError::Draining | ServiceError::Observe(ObserveError::Closed) => (100, 3000),
        // The call succeeds once other clients free some capacity, which takes longer than a short outage.
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
    use super::*;
    use crate::{
        access::{Scope, Scopes},
        storage::RefusalCause,
    };

    #[test]
    fn every_error_has_a_code_a_reason_and_a_message_that_says_what_to_do() {
        let io = || Box::new(std::io::Error::other("secret cause"));
        let table = [
            (ServiceError::SessionIdMissing, Code::InvalidArgument, "SESSION_ID_MISSING", "set it"),
            (ServiceError::LeaseIdMissing, Code::InvalidArgument, "LEASE_ID_MISSING", "name the lease"),
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
            (ServiceError::MalformedCursor, Code::InvalidArgument, "MALFORMED_CURSOR", "as you received it"),
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
            assert!(!status.message().contains("secret"), "the internal cause is not sent");
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
