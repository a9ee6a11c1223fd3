//! Accepts connections, distributes them over the workers, and reads calls from them.

mod acceptor;
mod activity;
mod address;
mod coalesce;
mod connection;
mod handshake;
mod socket;
mod turn;
mod worker;

use std::time::Duration;

pub(super) use self::{
    acceptor::Acceptor,
    connection::Connections,
    socket::{Listener, Taken},
    worker::Workers,
};
pub use self::{
    address::{ListenAddress, ListenAddressError, TcpAddress},
    connection::ConnectionOptions,
};

/// How long a port waits after a failed accept, for example because the process has no free file descriptor.
pub(super) const PAUSE_WHEN_EXHAUSTED: Duration = Duration::from_millis(100);
