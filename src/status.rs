//! The one table from errors to gRPC statuses.

use std::{error::Error, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    access::Refusal,
    storage::{StorageError, WriteRefusal},
    subject::ObserveError,
};

/// The `domain` of the `google.rpc.ErrorInfo` in every error.
pub const ERROR_DOMAIN: &str = "sessiond";

/// The most sessions of one batch call.
pub const MAX_BATCH: usize = 65_536;

/// The reasons in the `google.rpc.ErrorInfo` of errors: all that there are.
pub(crate) const REASONS: [&str; 31] = [
    "BAD_DURATION",
    "BATCH_TOO_LARGE",
    "CALL_TIMEOUT",
    "CERTIFICATE_UNKNOWN",
    "COMPRESSED_REQUEST",
    "CONNECTION_CLOSING",
    "CREDENTIALS_MISSING",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "LEASE_GONE",
    "MALFORMED_CURSOR",
    "MALFORMED_REQUEST",
    "OWNER_TOO_LONG",
    "RATE_LIMITED",
    "REQUEST_TOO_LARGE",
    "SCOPE_MISSING",
    "SERVER_DRAINING",
    "SESSION_ID_MISSING",
    "STORAGE_REFUSES_CHANGES",
    "STORAGE_UNAVAILABLE",
    "TOKEN_EXPIRED",
    "TOKEN_UNKNOWN",
    "TOO_MANY_FILTER_IDS",
    "TOO_MANY_LEASES",
    "TOO_MANY_OBSERVERS",
    "TOO_MANY_PENDING_BYTES",
    "TOO_MANY_SESSIONS",
    "TOO_MANY_TOTAL_FILTER_IDS",
    "UNEQUAL_LISTS",
    "UNKNOWN_EVENT_TYPE",
    "UNKNOWN_METHOD",
];

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The request has no session id.
    #[error("session_id is missing: set it (0 is an id like any other, and must be sent)")]
    SessionIdMissing,
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
    #[error("the request is longer than {limit} bytes")]
    RequestTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// All requests that are yet to come whole take too much memory.
    #[error("requests that have not come whole take {limit} bytes already")]
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

/// What a call is answered that fails, and the reason in it: one of [`REASONS`].
pub(crate) fn answer(error: ServiceError) -> (Status, &'static str) {
    let row = row(&error);
    let mut details = ErrorDetails::new();
    details.set_error_info(row.reason, ERROR_DOMAIN, [] as [(String, String); 0]);
    if let Some(field) = row.field {
        details.add_bad_request_violation(field, &row.message);
    }
    if let ServiceError::RateLimited { retry_after } = error {
        details.set_retry_info(Some(retry_after));
    } else if row.code == Code::Unavailable {
        details.set_retry_info(Some(retry_delay(&error)));
    }
    (Status::with_error_details(row.code, row.message, details), row.reason)
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        answer(error).0
    }
}

impl From<StorageError> for Status {
    fn from(error: StorageError) -> Self {
        ServiceError::from(error).into()
    }
}

struct Row {
    code: Code,
    reason: &'static str,
    /// The field of the request that is wrong.
    field: Option<&'static str>,
    message: String,
}

fn row(error: &ServiceError) -> Row {
    let (code, reason, field) = match error {
        ServiceError::SessionIdMissing => (Code::InvalidArgument, "SESSION_ID_MISSING", Some("session_id")),
        ServiceError::UnequalLists { .. } => (Code::InvalidArgument, "UNEQUAL_LISTS", Some("auth_key_ids")),
        ServiceError::BatchTooLarge { .. } => (Code::InvalidArgument, "BATCH_TOO_LARGE", Some("session_ids")),
        ServiceError::BadHeartbeat => (Code::InvalidArgument, "BAD_DURATION", Some("heartbeat")),
        ServiceError::MalformedCursor => (Code::InvalidArgument, "MALFORMED_CURSOR", Some("cursor")),
        ServiceError::UnknownEventType(_) => (Code::InvalidArgument, "UNKNOWN_EVENT_TYPE", Some("types")),
        ServiceError::UnknownMethod(_) => (Code::Unimplemented, "UNKNOWN_METHOD", None),
        ServiceError::MalformedRequest(_) => (Code::InvalidArgument, "MALFORMED_REQUEST", None),
        ServiceError::Compressed => (Code::Unimplemented, "COMPRESSED_REQUEST", None),
        ServiceError::RequestTooLarge { limit } => {
            let what = format!("the request is longer than {limit} bytes");
            return exhausted("REQUEST_TOO_LARGE", what, "max-message-bytes");
        }
        ServiceError::TooManyPendingBytes { .. } => {
            return exhausted("TOO_MANY_PENDING_BYTES", error.to_string(), "max-pending-bytes");
        }
        ServiceError::Access(refusal) => {
            let (code, reason) = access_row(refusal);
            (code, reason, None)
        }
        ServiceError::RateLimited { .. } => (Code::ResourceExhausted, "RATE_LIMITED", None),
        ServiceError::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", None),
        ServiceError::CallTimeout { .. } => (Code::DeadlineExceeded, "CALL_TIMEOUT", None),
        ServiceError::BadTtl => (Code::InvalidArgument, "BAD_DURATION", Some("ttl")),
        ServiceError::OwnerTooLong(_) => (Code::InvalidArgument, "OWNER_TOO_LONG", Some("owner")),
        ServiceError::CreateUnderUnknownLease(_) => (Code::FailedPrecondition, "LEASE_GONE", None),
        ServiceError::LeaseGone(_) => (Code::NotFound, "LEASE_GONE", None),
        ServiceError::ConnectionClosing | ServiceError::ConnectionTooOld => {
            return Row { message: error.to_string(), ..unavailable("CONNECTION_CLOSING") };
        }
        ServiceError::Draining | ServiceError::Observe(ObserveError::Closed) => {
            return Row { message: ServiceError::Draining.to_string(), ..unavailable("SERVER_DRAINING") };
        }
        ServiceError::Observe(ObserveError::TooManyObservers { limit }) => {
            return exhausted("TOO_MANY_OBSERVERS", format!("there are {limit} observers already"), "max-observers");
        }
        ServiceError::Observe(ObserveError::TooManyFilterIds { count, limit }) => {
            let what = format!("the filters name {count} ids and may name {limit}");
            return exhausted("TOO_MANY_FILTER_IDS", what, "max-filter-ids");
        }
        ServiceError::Observe(ObserveError::TooManyTotalFilterIds { .. }) => {
            return exhausted("TOO_MANY_TOTAL_FILTER_IDS", error.to_string(), "max-total-filter-ids");
        }
        ServiceError::Observe(ObserveError::Storage(error)) | ServiceError::Storage(error) => {
            return storage_row(error);
        }
    };
    Row { code, reason, field, message: error.to_string() }
}

fn access_row(refusal: &Refusal) -> (Code, &'static str) {
    match refusal {
        Refusal::NoCredentials => (Code::Unauthenticated, "CREDENTIALS_MISSING"),
        Refusal::UnknownToken => (Code::Unauthenticated, "TOKEN_UNKNOWN"),
        Refusal::ExpiredToken { .. } => (Code::Unauthenticated, "TOKEN_EXPIRED"),
        Refusal::UnknownCertificate { .. } => (Code::PermissionDenied, "CERTIFICATE_UNKNOWN"),
        Refusal::ScopeMissing { .. } => (Code::PermissionDenied, "SCOPE_MISSING"),
    }
}

fn storage_row(error: &StorageError) -> Row {
    match error {
        StorageError::TooManySessions { limit } => {
            exhausted("TOO_MANY_SESSIONS", format!("the registry holds its limit of {limit} sessions"), "max-sessions")
        }
        StorageError::TooManyLeases { limit } => {
            exhausted("TOO_MANY_LEASES", format!("there are {limit} leases already"), "max-leases")
        }
        StorageError::UnknownLease(lease) => row(&ServiceError::LeaseGone(lease.number())),
        StorageError::Unavailable(_) => {
            let source: &dyn Error = error;
            // The subject tells of the outage once; a line for each call would be a flood.
            tracing::debug!(error = source, "a call failed: the storage is out of reach");
            Row { message: "the storage is out of reach: try again".to_owned(), ..unavailable("STORAGE_UNAVAILABLE") }
        }
        StorageError::Refused(WriteRefusal { cause, .. }) => {
            // The detail is for the log and the admin port, and not for callers.
            let message =
                format!("the storage refuses changes because {cause}: try again later; to fix it, {}", cause.advice());
            Row { message, ..unavailable("STORAGE_REFUSES_CHANGES") }
        }
        StorageError::Broken(_) => {
            let source: &dyn Error = error;
            tracing::error!(error = source, "a call failed: the storage is broken");
            // The cause is for the log of the server and not for its callers.
            let message = "the server failed; its log says why".to_owned();
            Row { code: Code::Internal, reason: "INTERNAL", field: None, message }
        }
    }
}

fn unavailable(reason: &'static str) -> Row {
    Row { code: Code::Unavailable, reason, field: None, message: String::new() }
}

fn exhausted(reason: &'static str, what: String, flag: &str) -> Row {
    let message = format!("{what}: raise the server's --{flag}");
    Row { code: Code::ResourceExhausted, reason, field: None, message }
}

/// How long a caller should wait. By chance, so that all who are told at once do not come back at once.
fn retry_delay(error: &ServiceError) -> Duration {
    let (least, most) = match error {
        ServiceError::Draining | ServiceError::Observe(ObserveError::Closed) => (100, 3000),
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
    fn every_error_has_its_code_its_reason_and_a_message_that_says_what_to_do() {
        let io = || Box::new(std::io::Error::other("secret cause"));
        let table = [
            (ServiceError::SessionIdMissing, Code::InvalidArgument, "SESSION_ID_MISSING", "set it"),
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
                "takes write",
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
                ObserveError::TooManyFilterIds { count: 4, limit: 3 }.into(),
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
            assert!(REASONS.contains(&reason), "{reason} is counted");
            let is_field = matches!(code, Code::InvalidArgument | Code::Unimplemented);
            let is_whole = ["MALFORMED_REQUEST", "COMPRESSED_REQUEST", "UNKNOWN_METHOD"].contains(&reason);
            assert_eq!(details.bad_request().is_some(), is_field && !is_whole, "{reason}");
            let delay = details.retry_info().and_then(|info| info.retry_delay);
            let has_delay = code == Code::Unavailable || reason == "RATE_LIMITED";
            assert_eq!(delay.is_some_and(|delay| !delay.is_zero()), has_delay, "{reason}");
        }
    }
}
