//! Pauses between attempts.

use std::time::Duration;

/// Exponential backoff: each pause is twice as long as the one before, up to a longest one.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts with a pause of `first`; no pause is longer than `longest`.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// Returns the pause before the next attempt.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.longest);
        pause
    }

    /// Returns a random pause between half of the next pause and all of it, so that many tasks that failed together do not retry
    /// together.
    #[cfg(feature = "subject")]
    pub(crate) fn jittered_pause(&mut self) -> Duration {
        self.pause().mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Starts over after a success: the next failure is the first one again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(100));
        for millis in [20, 40, 80, 100, 100] {
            assert_eq!(backoff.pause(), Duration::from_millis(millis));
        }
        backoff.reset();
        assert_eq!(backoff.pause(), Duration::from_millis(20));
    }
}
