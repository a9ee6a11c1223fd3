//! The storage in Redis, on real servers.

mod conformance;
pub(crate) mod server;
