//! The clock that leases go by.

use std::time::Duration;

use tokio::time::Instant;

/// How far one look moves the clock on at most.
const LONGEST_LOOK: Duration = Duration::from_millis(350);

/// Stands still while nobody looks at it: a pause of this process moves deadlines by its own length.
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
    /// The time as the next look would find it now.
    pub(super) fn now(&self) -> Duration {
        self.time + self.looked.elapsed().min(LONGEST_LOOK)
    }

    /// Moves the clock on. Returns how long ago the last look was.
    pub(super) fn look(&mut self) -> Duration {
        let (time, passed) = (self.now(), self.looked.elapsed());
        *self = Self { time, looked: Instant::now() };
        passed
    }
}
