//! The integration tests, in one program.

// clippy.toml allows these in tests, which helpers of tests are not to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod admin;
mod architecture;
mod certificates;
mod cli;
mod cli_bench;
mod cli_lease;
mod client;
mod clock;
mod conformance;
mod crashes;
mod disk;
mod drain;
mod errors;
mod fake;
mod faults;
mod faulty;
mod file;
mod frames;
mod hostile;
mod installed;
mod lease_guard;
mod leases;
mod limits;
mod long;
mod observed;
mod program;
mod properties;
mod raw;
mod redis;
mod resume;
mod retry;
mod secrets;
mod server;
mod sessions;
mod soak;
mod standard;
mod startup;
mod stuck;
mod subscribe;
mod tls;
mod traces;
mod wall_clock;
