//! Environment variables that make a test do more than by default.

use std::env;

/// Returns the number in the environment variable `name`, or `default`.
pub(crate) fn number(name: &str, default: u32) -> u32 {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}
