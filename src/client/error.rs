//! Why a call failed, and whether a retry can help.

use std::{error::Error, io, time::Duration};

use tokio_rustls::rustls;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::reason::{ERROR_DOMAIN, ErrorReason, Retry};

/// Why a call or a watch failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address names no server.
    #[error("{addr:?} is not the address of a server: write http://HOST:PORT, https://HOST:PORT for TLS, or unix:PATH")]
    InvalidAddress {
        /// The address as it was given.
        addr: String,
    },
    /// The certificates or the key cannot be used.
    #[error("TLS cannot be used: {reason}")]
    InvalidTls {
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The token is none that can be sent.
    #[error("the token is not one: give it just as `sessiond token new` printed it")]
    InvalidToken,
    /// The server could not be reached, or the connection broke before it answered.
    #[error("the connection to the server failed: {}", root_cause(.0))]
    Unreachable(#[source] Status),
    /// The server answered with an error.
    #[error("the server answered {}: {}", code_name(.0.code()), .0.message())]
    Status(#[source] Status),
    /// The answer took longer than the client's timeout.
    #[error("the server did not answer within {after:?}")]
    Timeout {
        /// The timeout.
        after: Duration,
    },
    /// A watched stream carried nothing, not even heartbeats, for longer than a live one can.
    #[error("the stream was silent for {limit:?}, heartbeats included")]
    Silent {
        /// How much silence is allowed.
        limit: Duration,
    },
    /// The server, or something between, ended a watched stream without saying why.
    #[error("the stream ended without a reason")]
    StreamEnded,
    /// The server answered something that this client does not understand: it is no sessiond, or a newer one.
    #[error("the server does not speak this client's protocol: {0}")]
    Protocol(&'static str),
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        // A status that was sent by the server has no source; one that tonic made of a broken connection has.
        if status.source().is_some() { Self::Unreachable(status) } else { Self::Status(status) }
    }
}

impl ClientError {
    /// Whether the same call may succeed later, with nothing changed by the caller. Wait between tries, at least for
    /// [`retry_after`](Self::retry_after). The table of [reasons](crate::reason::REASONS) decides, or the code if the reason is not
    /// in it.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::InvalidAddress { .. } | Self::InvalidTls { .. } | Self::InvalidToken | Self::Protocol(_) => false,
            // The server, or this client, speaks no TLS: that is how they were set up.
            Self::Unreachable(status) if status.code() == Code::PermissionDenied => false,
            Self::Unreachable(_) | Self::Timeout { .. } | Self::Silent { .. } | Self::StreamEnded => true,
            Self::Status(status) => match (self.known_reason(), status.code()) {
                (Some(reason), _) => reason.row().retry != Retry::Never,
                (None, code) => may_pass(code),
            },
        }
    }

    fn known_reason(&self) -> Option<ErrorReason> {
        ErrorReason::from_name(&self.reason()?)
    }

    /// Whether the call failed because the lease that it names is gone: expired, revoked (if only to linger), or lost with a
    /// registry that began anew. A new lease is the way on, and the sessions are to be created again under it.
    #[must_use]
    pub fn is_lease_gone(&self) -> bool {
        match self.status().map(Status::code) {
            // What a call is about is not found; only leases are called about in a way that can miss.
            Some(Code::NotFound) => true,
            Some(Code::FailedPrecondition) => {
                matches!(self.known_reason(), Some(ErrorReason::LeaseGone | ErrorReason::LeaseLingers))
            }
            _ => false,
        }
    }

    /// How long the server asks to wait before a retry (`google.rpc.RetryInfo`), where it does.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.status()?.get_details_retry_info()?.retry_delay
    }

    /// The server's own name for the error (`google.rpc.ErrorInfo`), in UPPER_SNAKE, where it sent one. Unlike the
    /// message it stays the same between versions.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let info = self.status()?.get_details_error_info()?;
        (info.domain == ERROR_DOMAIN).then_some(info.reason)
    }

    /// The gRPC status, where there is one.
    #[must_use]
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Unreachable(status) | Self::Status(status) => Some(status),
            _ => None,
        }
    }
}

/// What is at the end of the chain of sources: "Connection refused" rather than "transport error".
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => "the server does not speak TLS there: try http://".to_owned(),
        _ => cause.to_string(),
    }
}

/// Whether a call may succeed later that failed with this code, for a reason that is not known: a proxy's, or a newer server's.
fn may_pass(code: Code) -> bool {
    match code {
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => false,
    }
}

/// The code as the gRPC specification spells it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn details_are_read_from_the_status() {
        let mut details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1500)));
        details.set_error_info("DRAINING", ERROR_DOMAIN, HashMap::new());
        let status = Status::with_error_details(Code::Unavailable, "draining: call again", details);
        let error = ClientError::from(status);
        assert!(error.is_retryable());
        assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));
        assert_eq!(error.reason().as_deref(), Some("DRAINING"));
        assert_eq!(error.to_string(), "the server answered UNAVAILABLE: draining: call again");
    }

    #[test]
    fn only_what_may_pass_by_itself_is_retryable() {
        let retryable = |code| ClientError::from(Status::new(code, "")).is_retryable();
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::Unknown, Code::Aborted] {
            assert!(retryable(code), "{code:?}");
        }
        for code in [
            Code::InvalidArgument,
            Code::Unauthenticated,
            Code::PermissionDenied,
            Code::Unimplemented,
            Code::FailedPrecondition,
        ] {
            assert!(!retryable(code), "{code:?}");
        }
        for (reason, is_retryable) in [("TOO_MANY_OBSERVERS", true), ("TOO_MANY_FILTER_IDS", false)] {
            let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
            let error = ClientError::from(Status::with_error_details(Code::ResourceExhausted, "", details));
            assert_eq!(error.is_retryable(), is_retryable, "{reason}");
        }
    }

    #[test]
    fn a_lease_that_is_gone_is_told_from_other_preconditions() {
        let error = |code, reason| {
            let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
            ClientError::from(Status::with_error_details(code, "", details))
        };
        assert!(error(Code::NotFound, "LEASE_GONE").is_lease_gone());
        assert!(error(Code::FailedPrecondition, "LEASE_GONE").is_lease_gone());
        assert!(error(Code::FailedPrecondition, "LEASE_LINGERS").is_lease_gone());
        assert!(!error(Code::FailedPrecondition, "OTHER").is_lease_gone());
        assert!(!error(Code::Unavailable, "LEASE_GONE").is_lease_gone());
        // A proxy may drop the details.
        assert!(ClientError::from(Status::not_found("")).is_lease_gone());
    }

    #[test]
    fn another_domain_names_no_reason() {
        let details = ErrorDetails::with_error_info("QUOTA", "proxy.example", HashMap::new());
        let error = ClientError::from(Status::with_error_details(Code::ResourceExhausted, "", details));
        assert_eq!(error.reason(), None);
        assert_eq!(error.retry_after(), None);
    }
}
