//! How much a test does: little by default, more where an environment variable says so.

use std::env;

/// The number that the variable `name` gives, or `default`.
pub(crate) fn number(name: &str, default: u32) -> u32 {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}
