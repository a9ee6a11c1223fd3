//! Percentiles of a few measured times.

use std::time::Duration;

/// Returns a function that takes a percent, and returns the time within which so many of `times` lie, in microseconds.
pub(crate) fn percentiles(times: impl IntoIterator<Item = Duration>) -> impl Fn(usize) -> f64 {
    let mut sorted: Vec<Duration> = times.into_iter().collect();
    sorted.sort_unstable();
    move |percent| sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e6
}
