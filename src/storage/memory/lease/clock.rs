//! The clock that determines when leases expire.

use std::time::Duration;

use tokio::time::Instant;

/// The most that one call of [`Clock::advance`] advances the clock.
const MAX_ADVANCE: Duration = Duration::from_millis(350);

/// Advances only when [`advance`](Self::advance) is called. A pause of the process therefore delays deadlines by its
/// own length.
pub(super) struct Clock {
    time: Duration,
    advanced: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { time: Duration::ZERO, advanced: Instant::now() }
    }
}

impl Clock {
    /// Returns the time to which the clock would advance now.
    pub(super) fn now(&self) -> Duration {
        self.time + self.advanced.elapsed().min(MAX_ADVANCE)
    }

    /// Advances the clock. Returns how long ago it last advanced.
    pub(super) fn advance(&mut self) -> Duration {
        let (time, passed) = (self.now(), self.advanced.elapsed());
        *self = Self { time, advanced: Instant::now() };
        passed
    }
}
