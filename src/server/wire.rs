//! Accepts connections, distributes them over the workers, and reads calls from them.

mod acceptor;
mod activity;
mod address;
mod coalesce;
mod connection;
mod handshake;
mod socket;
mod worker;

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
