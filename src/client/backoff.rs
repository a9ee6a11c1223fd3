//! How long a watch or a lease waits before it tries again.

use std::time::Duration;

use crate::backoff;

const BASE: Duration = Duration::from_millis(100);
const CAP: Duration = Duration::from_secs(10);
/// No wait is shorter, whatever chance or the server says: many observers must not hammer a server that is in trouble.
const FLOOR: Duration = Duration::from_millis(10);
/// No server's wish is obeyed for longer.
const LONGEST_WISH: Duration = Duration::from_secs(5 * 60);

/// Exponential backoff with full jitter: a wait is drawn from all of the time up to a ceiling that doubles, so that
/// observers that were cut off together do not come back together.
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
    /// The wait after one more failure; longer where the server wishes so.
    pub(super) fn after_failure(&mut self, wish: Option<Duration>) -> Duration {
        let drawn = self.draw(CAP);
        wish.map_or(drawn, |wish| wish.min(LONGEST_WISH).max(drawn))
    }

    /// The same for who cannot wait for longer than `cap`: a wish for more is not obeyed.
    pub(super) fn after_failure_within(&mut self, cap: Duration, wish: Option<Duration>) -> Duration {
        let drawn = self.draw(cap.min(CAP));
        wish.filter(|wish| *wish <= cap).map_or(drawn, |wish| wish.max(drawn))
    }

    fn draw(&mut self, cap: Duration) -> Duration {
        // The cap bounds the ceiling, not the drawn pause: otherwise most pauses would be exactly that long.
        let ceiling = self.ceilings.pause().min(cap);
        ceiling.mul_f64(fastrand::f64()).max(FLOOR)
    }

    /// There is progress: the next failure is a first one.
    pub(super) fn reset(&mut self) {
        self.ceilings.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_between_the_floor_and_a_ceiling_that_doubles() {
        for _ in 0..200 {
            let mut backoff = Backoff::default();
            for ceiling in [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000] {
                let wait = backoff.after_failure(None);
                assert!(wait >= FLOOR && wait <= Duration::from_millis(ceiling), "{wait:?} of {ceiling} ms");
            }
            backoff.reset();
            assert!(backoff.after_failure(None) <= BASE);
        }
    }

    #[test]
    fn who_cannot_wait_obeys_only_what_fits() {
        let cap = Duration::from_millis(150);
        let mut backoff = Backoff::default();
        for wish in [None, Some(Duration::from_secs(3)), Some(Duration::from_millis(149)), None] {
            for _ in 0..200 {
                let wait = backoff.after_failure_within(cap, wish);
                assert!(wait >= FLOOR && wait <= cap, "{wait:?}");
                assert!(wish.is_none_or(|wish| wish > cap || wait >= wish), "{wait:?}");
            }
        }
    }

    #[test]
    fn the_servers_wish_is_a_least() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.after_failure(Some(Duration::from_secs(30))), Duration::from_secs(30));
        assert_eq!(backoff.after_failure(Some(Duration::MAX)), LONGEST_WISH);
        assert!(backoff.after_failure(Some(Duration::ZERO)) >= FLOOR);
    }
}
