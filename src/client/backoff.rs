//! The delay before a watch or a lease retries.

use std::time::Duration;

use crate::backoff;

const BASE: Duration = Duration::from_millis(100);
/// The longest random delay: README.md asks every client to retry within this time.
const CAP: Duration = Duration::from_secs(1);
/// The shortest delay, whatever the random number or the server says. Many observers must not hammer a server in
/// trouble.
const FLOOR: Duration = Duration::from_millis(10);
/// The longest `RetryInfo` delay that is honoured.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(5 * 60);

/// Exponential backoff with full jitter.
///
/// Each delay is random between 0 and a ceiling that doubles. Observers that were cut off together therefore do not
/// come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    ceilings: backoff::Backoff,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { ceilings: backoff::Backoff::new(BASE, CAP) }
    }
}

impl Backoff {
    /// Returns the delay after another failure: a random one of up to a second, or the server's `retry_after` if that is
    /// longer.
    pub(super) fn after_failure(&mut self, retry_after: Option<Duration>) -> Duration {
        let delay = self.random_delay(CAP);
        retry_after.map_or(delay, |retry_after| retry_after.min(MAX_RETRY_AFTER).max(delay))
    }

    /// Like [`after_failure`](Self::after_failure), for a caller that must not wait longer than `cap`. Ignores a longer
    /// `retry_after`.
    pub(super) fn after_failure_within(&mut self, cap: Duration, retry_after: Option<Duration>) -> Duration {
        let delay = self.random_delay(cap.min(CAP));
        retry_after.filter(|retry_after| *retry_after <= cap).map_or(delay, |retry_after| retry_after.max(delay))
    }

    fn random_delay(&mut self, cap: Duration) -> Duration {
        // Cap the ceiling, not the random delay. Otherwise most delays would be exactly `cap`.
        let ceiling = self.ceilings.pause().min(cap);
        ceiling.mul_f64(fastrand::f64()).max(FLOOR)
    }

    /// Starts over after a success: the next failure counts as the first.
    pub(super) fn reset(&mut self) {
        self.ceilings.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_between_the_floor_and_a_ceiling_that_doubles() {
        for _ in 0..200 {
            let mut backoff = Backoff::default();
            for ceiling in [100, 200, 400, 800, 1_000, 1_000, 1_000] {
                let wait = backoff.after_failure(None);
                assert!(wait >= FLOOR && wait <= Duration::from_millis(ceiling), "{wait:?} of {ceiling} ms");
            }
            backoff.reset();
            assert!(backoff.after_failure(None) <= BASE);
        }
    }

    #[test]
    fn retry_after_beyond_the_cap_is_ignored() {
        let cap = Duration::from_millis(150);
        let mut backoff = Backoff::default();
        for retry_after in [None, Some(Duration::from_secs(3)), Some(Duration::from_millis(149)), None] {
            for _ in 0..200 {
                let wait = backoff.after_failure_within(cap, retry_after);
                assert!(wait >= FLOOR && wait <= cap, "{wait:?}");
                assert!(retry_after.is_none_or(|retry_after| retry_after > cap || wait >= retry_after), "{wait:?}");
            }
        }
    }

    #[test]
    fn retry_after_is_a_lower_bound() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.after_failure(Some(Duration::from_secs(30))), Duration::from_secs(30));
        assert_eq!(backoff.after_failure(Some(Duration::MAX)), MAX_RETRY_AFTER);
        assert!(backoff.after_failure(Some(Duration::ZERO)) >= FLOOR);
    }
}
