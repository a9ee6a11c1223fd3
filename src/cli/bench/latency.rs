//! A histogram of latencies.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Smaller differences are noise of the clock and the scheduler.
const LEAST: Duration = Duration::from_micros(1);
const MOST: Duration = Duration::from_secs(60 * 60);
/// Percentiles are exact to 0.1%.
const DIGITS: u8 = 3;

/// A histogram of durations with a constant size.
#[derive(Clone, Debug)]
pub(super) struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        match Histogram::new_with_bounds(nanos(LEAST), nanos(MOST), DIGITS) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("the bounds are constant and valid: {error}"),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Latency {
    pub(super) fn record(&mut self, duration: Duration) {
        self.0.saturating_record(nanos(duration));
    }

    /// Adds the values of another histogram.
    pub(super) fn merge(&mut self, other: &Self) {
        // Fails only if values are out of bounds, but both histograms have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns the duration that the given share of values does not exceed.
    pub(super) fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    pub(super) fn mean(&self) -> Duration {
        Duration::from_nanos(self.0.mean() as u64)
    }

    pub(super) fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact_to_a_thousandth() {
        let (mut odd, mut even) = (Latency::default(), Latency::default());
        for millis in 1..=10_000_u64 {
            let half = if millis % 2 == 0 { &mut even } else { &mut odd };
            half.record(Duration::from_millis(millis));
        }
        even.merge(&odd);
        assert_eq!(even.count(), 10_000);
        for share in [0.5, 0.99, 0.999, 1.0] {
            let (is, should) = (even.quantile(share).as_secs_f64(), share * 10.0);
            assert!((is - should).abs() <= should / 1000.0 + 0.001, "{share}: {is} s");
        }
        even.record(Duration::from_secs(1 << 40));
        assert!(even.max() >= MOST);
    }
}
