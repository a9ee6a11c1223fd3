//! The integration tests, in one program.

// clippy.toml allows these in tests, which helpers of tests are not to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
mod client;
mod conformance;
mod fake;
