//! A point in time that stays valid across restarts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::storage::MAX_LINGER;

/// A time by the wall clock, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct WallTime(pub(in crate::storage) u64);

impl WallTime {
    #[cfg(feature = "file")]
    pub(in crate::storage) fn now() -> Self {
        Self::after(Duration::ZERO)
    }

    /// Converts a future instant to a wall time.
    pub(in crate::storage) fn of(instant: Instant) -> Self {
        Self::after(instant.saturating_duration_since(Instant::now()))
    }

    fn after(time: Duration) -> Self {
        Self(u64::try_from((since_1970() + time).as_millis()).unwrap_or(u64::MAX))
    }

    /// Converts the end of a linger to an instant: now if it has passed. If the wall clock was set back, it is delayed
    /// by at most the longest linger.
    pub(in crate::storage) fn instant(self) -> Instant {
        let left = Duration::from_millis(self.0).saturating_sub(since_1970());
        Instant::now() + left.min(MAX_LINGER)
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
