//! The clock that determines when leases expire.

use std::time::Duration;

use tokio::time::Instant;

/// The most that one call of [`Clock::look`] advances the clock.
const LONGEST_LOOK: Duration = Duration::from_millis(350);

/// Advances only when [`look`](Self::look) is called. A pause of the process therefore delays deadlines by its own
/// length.
pub(super) struct Clock {
    time: Duration,
    looked: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { time: Duration::ZERO, looked: Instant::now() }
    }
}

impl Clock {
    /// Returns the time that the next look would set if it happened now.
    pub(super) fn now(&self) -> Duration {
        self.time + self.looked.elapsed().min(LONGEST_LOOK)
    }

    /// Advances the clock. Returns the time since the last look.
    pub(super) fn look(&mut self) -> Duration {
        let (time, passed) = (self.now(), self.looked.elapsed());
        *self = Self { time, looked: Instant::now() };
        passed
    }
}
