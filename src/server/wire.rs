//! From a listening socket to the calls of each connection.

mod acceptor;
mod activity;
mod address;
mod coalesce;
mod connection;
mod handshake;
mod inline;
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
