//! A point in time that stays valid across restarts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::storage::MAX_LINGER;

/// The end of a lease's linger, in milliseconds since 1970 by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct WallTime(pub(in crate::storage) u64);

impl WallTime {
    /// Converts a future instant to a wall time.
    pub(in crate::storage) fn of(instant: Instant) -> Self {
        let left = instant.saturating_duration_since(Instant::now());
        Self(millis(now() + left))
    }

    /// Converts this time to an instant: now if it has passed. If the wall clock was set back, it is delayed by at most
    /// the longest linger.
    pub(in crate::storage) fn instant(self) -> Instant {
        let left = Duration::from_millis(self.0).saturating_sub(now());
        Instant::now() + left.min(MAX_LINGER)
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
