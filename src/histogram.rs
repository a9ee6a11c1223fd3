//! Histograms of durations, for metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The upper bounds of the buckets in microseconds. One more bucket counts everything longer.
const BOUNDS: [u64; 14] =
    [25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];

/// A histogram of durations. Any number of threads may record at the same time.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    nanos: AtomicU64,
    within: [AtomicU64; BOUNDS.len() + 1],
}

/// How long an operation took, over all its runs.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Times {
    /// The sum of all durations, in seconds.
    pub seconds: f64,
    /// For each bucket, its upper bound in seconds and the number of durations in it. Not cumulative. The last bound is
    /// infinite.
    pub within: Vec<(f64, u64)>,
}

impl Histogram {
    pub(crate) fn record(&self, took: Duration) {
        let within = BOUNDS.partition_point(|us| Duration::from_micros(*us) < took);
        self.within[within].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Times {
    /// Returns the sum of several histograms.
    pub(crate) fn of<'a>(histograms: impl Iterator<Item = &'a Histogram> + Clone) -> Self {
        let sum = |of: &dyn Fn(&Histogram) -> &AtomicU64| -> u64 {
            histograms.clone().map(|histogram| of(histogram).load(Ordering::Relaxed)).sum()
        };
        let bounds = BOUNDS.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        Self {
            seconds: sum(&|histogram| &histogram.nanos) as f64 / 1e9,
            within: bounds.enumerate().map(|(n, bound)| (bound, sum(&|histogram| &histogram.within[n]))).collect(),
        }
    }

    /// Returns how many durations were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.within.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_counts_in_the_first_bucket_whose_bound_covers_it() {
        let (one, other) = (Histogram::default(), Histogram::default());
        for took in [0, 25, 26, 10_000_000] {
            one.record(Duration::from_micros(took));
        }
        other.record(Duration::from_secs(11));
        let times = Times::of([&one, &other].into_iter());
        let counts: Vec<_> = times.within.iter().filter(|(_, count)| *count > 0).copied().collect();
        assert_eq!(counts, [(25e-6, 2), (50e-6, 1), (10.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(times.count(), 5);
        assert!((times.seconds - 21.000_051).abs() < 1e-9, "{}", times.seconds);
    }
}
