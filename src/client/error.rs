//! The errors of the client, and whether a retry can help.

use std::{error::Error, io, path::PathBuf, time::Duration};

use tokio_rustls::rustls;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    reason::{ERROR_DOMAIN, ErrorReason, Retry},
    session::LeaseId,
};

/// Why a call or a watch failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address has none of the supported forms.
    #[error("{addr:?} is not a server address: use http://HOST:PORT, https://HOST:PORT for TLS, or unix:PATH")]
    InvalidAddress {
        /// The address that was passed.
        addr: String,
    },
    /// The certificates or the key cannot be used.
    #[error("invalid TLS settings: {reason}")]
    InvalidTls {
        /// What is wrong and how to fix it.
        reason: String,
    },
    /// The token is empty or contains characters that cannot be sent.
    #[error("the token is malformed: pass it exactly as `sessiond token new` printed it")]
    InvalidToken,
    /// The file of the token cannot be read.
    #[error("cannot read the token in {path:?}: {reason}")]
    InvalidTokenFile {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// The server could not be reached, or the connection broke before it answered.
    #[error("the connection to the server failed: {}", root_cause(.0))]
    Unreachable(#[source] Status),
    /// The server answered with an error.
    #[error("the server answered {}: {}", code_name(.0.code()), .0.message())]
    Status(#[source] Status),
    /// The server did not answer within the client's timeout.
    #[error("the server did not answer within {after:?}")]
    Timeout {
        /// The timeout.
        after: Duration,
    },
    /// A stream received nothing, not even a heartbeat, for longer than a live stream can be silent.
    #[error("the stream received nothing for {limit:?}, not even a heartbeat")]
    Silent {
        /// How long the stream may be silent.
        limit: Duration,
    },
    /// The server, or a proxy on the way, ended a stream without a status.
    #[error("the stream ended without a status")]
    StreamEnded,
    /// The server's answer does not follow the protocol. It may be another program or a newer sessiond.
    #[error("unexpected answer from the server: {0}")]
    Protocol(&'static str),
    /// The client has connected to another gateway, so its connection to this one must be closed.
    #[error("the session is held elsewhere, under lease {lease}: close the connection")]
    SessionElsewhere {
        /// The lease that the session is under.
        lease: LeaseId,
    },
    /// The registry was replaced by a new one, or lost changes, while a mirror waited for a place.
    #[error("the registry was replaced or lost changes, so that the place means nothing")]
    RegistryLost,
    /// The gateway was stopped.
    #[error("the gateway was stopped")]
    GatewayStopped,
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        // A status that the server sent has no source. A status that tonic made from a broken connection has one.
        if status.source().is_some() { Self::Unreachable(status) } else { Self::Status(status) }
    }
}

impl ClientError {
    /// Returns the gRPC code. Errors that the client found by itself have one too.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::InvalidAddress { .. } | Self::InvalidTls { .. } | Self::InvalidToken => Code::InvalidArgument,
            Self::InvalidTokenFile { .. } => Code::InvalidArgument,
            Self::Unreachable(status) | Self::Status(status) => status.code(),
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Silent { .. } | Self::StreamEnded => Code::Unavailable,
            Self::Protocol(_) => Code::Unimplemented,
            Self::SessionElsewhere { .. } | Self::RegistryLost | Self::GatewayStopped => Code::FailedPrecondition,
        }
    }

    /// Returns whether the same call may succeed if it is simply retried later.
    ///
    /// Wait at least [`retry_after`](Self::retry_after) between tries. The answer comes from the table of
    /// [reasons](crate::reason::REASONS), or from the gRPC code if the table does not have the error's reason.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.known_reason() {
            Some(reason) => reason.row().retry != Retry::Never,
            None => is_transient(self.code()),
        }
    }

    fn known_reason(&self) -> Option<ErrorReason> {
        ErrorReason::from_name(&self.reason()?)
    }

    /// Returns whether the call failed because its lease is gone: it expired, was revoked (perhaps with a linger), or
    /// was lost with the registry's data.
    ///
    /// Grant a new lease and create the sessions again under it.
    #[must_use]
    pub fn is_lease_gone(&self) -> bool {
        match self.code() {
            // Only calls that name a lease return NOT_FOUND.
            Code::NotFound => true,
            Code::FailedPrecondition => {
                matches!(self.known_reason(), Some(ErrorReason::LeaseGone | ErrorReason::LeaseLingers))
            }
            _ => false,
        }
    }

    /// Returns how long the server asks to wait before a retry (`google.rpc.RetryInfo`), if it does.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.status()?.get_details_retry_info()?.retry_delay
    }

    /// Returns the reason of the error in UPPER_SNAKE, if it has one: the server's (`google.rpc.ErrorInfo`), or
    /// `SESSION_ELSEWHERE`, `REGISTRY_LOST` or `GATEWAY_STOPPED`.
    ///
    /// Unlike the message, a reason does not change between versions.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let own = match self {
            Self::SessionElsewhere { .. } => Some("SESSION_ELSEWHERE"),
            Self::RegistryLost => Some("REGISTRY_LOST"),
            Self::GatewayStopped => Some("GATEWAY_STOPPED"),
            _ => None,
        };
        if let Some(own) = own {
            return Some(own.to_owned());
        }
        let info = self.status()?.get_details_error_info()?;
        (info.domain == ERROR_DOMAIN).then_some(info.reason)
    }

    /// Returns the gRPC status, if the error has one.
    #[must_use]
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Unreachable(status) | Self::Status(status) => Some(status),
            _ => None,
        }
    }
}

/// Returns the last error in the chain of sources: "Connection refused" rather than "transport error".
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => "the server does not use TLS on this port: try http://".to_owned(),
        _ => cause.to_string(),
    }
}

/// Returns whether a retry can help after an error with this code and no known reason, from a proxy or a newer server.
fn is_transient(code: Code) -> bool {
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

/// Returns the code's name in the gRPC specification.
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
    fn reason_and_retry_delay_are_read_from_the_status() {
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
    fn only_transient_errors_are_retryable() {
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

    /// The clients of other languages have the same table in their tests.
    #[test]
    fn errors_of_the_client_have_a_code_and_perhaps_a_reason() {
        let limit = Duration::from_secs(1);
        let lease = LeaseId::from_number(7).unwrap();
        for (error, code, reason, is_retryable) in [
            (ClientError::InvalidToken, Code::InvalidArgument, None, false),
            (ClientError::Timeout { after: limit }, Code::DeadlineExceeded, None, true),
            (ClientError::Silent { limit }, Code::Unavailable, None, true),
            (ClientError::StreamEnded, Code::Unavailable, None, true),
            (ClientError::Protocol(""), Code::Unimplemented, None, false),
            (ClientError::SessionElsewhere { lease }, Code::FailedPrecondition, Some("SESSION_ELSEWHERE"), false),
            (ClientError::RegistryLost, Code::FailedPrecondition, Some("REGISTRY_LOST"), false),
            (ClientError::GatewayStopped, Code::FailedPrecondition, Some("GATEWAY_STOPPED"), false),
        ] {
            assert_eq!((error.code(), error.reason().as_deref()), (code, reason), "{error:?}");
            assert_eq!(error.is_retryable(), is_retryable, "{error:?}");
            assert!(!error.is_lease_gone(), "{error:?}");
        }
    }

    #[test]
    fn gone_leases_are_distinguished_from_other_failed_preconditions() {
        let error = |code, reason| {
            let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
            ClientError::from(Status::with_error_details(code, "", details))
        };
        assert!(error(Code::NotFound, "LEASE_GONE").is_lease_gone());
        assert!(error(Code::FailedPrecondition, "LEASE_GONE").is_lease_gone());
        assert!(error(Code::FailedPrecondition, "LEASE_LINGERS").is_lease_gone());
        assert!(!error(Code::FailedPrecondition, "OTHER").is_lease_gone());
        assert!(!error(Code::Unavailable, "LEASE_GONE").is_lease_gone());
        // A proxy may strip the details.
        assert!(ClientError::from(Status::not_found("")).is_lease_gone());
    }

    #[test]
    fn error_info_of_another_domain_is_ignored() {
        let details = ErrorDetails::with_error_info("QUOTA", "proxy.example", HashMap::new());
        let error = ClientError::from(Status::with_error_details(Code::ResourceExhausted, "", details));
        assert_eq!(error.reason(), None);
        assert_eq!(error.retry_after(), None);
    }
}
