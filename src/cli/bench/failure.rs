//! Failures of calls and streams.

use std::fmt;

use tonic::Code;

use super::fields::Malformed;

/// The causes by which failures are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The server returned a status.
    Status(Code),
    /// The server reset the stream.
    StreamReset,
    /// The connection was lost, and the call with it.
    ConnectionLost,
    /// The answer does not follow the protocol.
    Malformed,
    /// There was still no answer long after the run.
    Unanswered,
    /// The loader itself failed.
    Loader,
}

impl Cause {
    /// Returns the name in UPPER_SNAKE, like the codes in the gRPC specification.
    pub(super) fn name(self) -> String {
        let camel = match self {
            Self::Status(code) => format!("{code:?}"),
            other => format!("{other:?}"),
        };
        let mut name = String::new();
        for letter in camel.chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
        name
    }
}

/// Why a call or a stream failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn malformed(message: &str) -> Self {
        Self { cause: Cause::Malformed, message: message.to_owned() }
    }

    /// Returns whether every other call on the same connection must fail too.
    pub(super) fn ends_connection(&self) -> bool {
        self.cause == Cause::ConnectionLost
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.cause.name();
        write!(f, "{name}: {}", self.message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self { cause: Cause::Loader, message: error.to_string() }
    }
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        let cause = if error.is_reset() { Cause::StreamReset } else { Cause::ConnectionLost };
        Self { cause, message: error.to_string() }
    }
}

impl From<Malformed> for Failure {
    fn from(Malformed: Malformed) -> Self {
        Self::malformed("the answer is not a protobuf message")
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self { cause: Cause::Status(status.code()), message: status.message().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named_like_grpc_codes() {
        assert_eq!(Cause::Status(Code::ResourceExhausted).name(), "RESOURCE_EXHAUSTED");
        assert_eq!(Cause::Status(Code::Unavailable).name(), "UNAVAILABLE");
        assert_eq!(Cause::ConnectionLost.name(), "CONNECTION_LOST");
    }
}
