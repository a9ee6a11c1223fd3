//! Why a server cannot start, or had to stop.

use std::{error::Error, io};

use super::ConfigFileError;
use crate::storage::{OpenError, StorageError};

/// One of the two ports of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Endpoint {
    /// The gRPC port, at [`ServerConfig::listen`](super::ServerConfig::listen).
    Grpc,
    /// The admin port, at [`ServerConfig::admin_listen`](super::ServerConfig::admin_listen).
    Admin,
}

/// Why a server cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The server cannot listen on an address.
    #[error("cannot listen on {address} ({cause}): choose another address")]
    Listen {
        /// The port that was to be opened there.
        endpoint: Endpoint,
        /// The address.
        address: String,
        /// What the operating system reported.
        cause: io::Error,
    },
    /// TLS is configured for a Unix socket.
    #[error("TLS is not supported on a Unix socket: leave out the certificate, or listen on a TCP port")]
    TlsOverUnix,
    /// A configuration file cannot be used.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// The storage cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The storage was opened but does not answer.
    #[error("the storage does not answer ({}): check that it runs and that its URL is correct", source_text(.0))]
    Storage(StorageError),
    /// An essential task panicked. The log has the panic.
    #[error("a task that the server needs has panicked ({0}): restart the server, and report the panic in its log")]
    FailedTask(&'static str),
    /// A worker thread cannot be started.
    #[error("cannot start a worker thread ({0}): use fewer workers")]
    Worker(io::Error),
}

impl ServerError {
    /// Returns whether the error may go away by itself, so that a later attempt may succeed.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Open(error) => error.may_pass(),
            Self::Storage(error) => error.may_pass(),
            _ => false,
        }
    }
}

fn source_text(error: &StorageError) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
