//! How long things took, counted for metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The upper bounds of the times, in microseconds; what takes longer is in one more.
const BOUNDS: [u64; 14] =
    [25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];

/// Counts of times, which any number of threads may add to at once.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    nanos: AtomicU64,
    within: [AtomicU64; BOUNDS.len() + 1],
}

/// How long something took, each time that it was done.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// All times together, in seconds.
    pub seconds: f64,
    /// How many took as long as each bound, in seconds, and longer than the one before. The last bound is infinite.
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
    /// What several histograms counted together.
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

    /// How many times it was done.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.within.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_within_the_first_bound_that_is_no_less() {
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
