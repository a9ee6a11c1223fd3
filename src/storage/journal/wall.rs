//! A time that outlives the process.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::storage::MAX_LINGER;

/// When a lease's linger has passed, in milliseconds of the wall clock since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct WallTime(pub(in crate::storage) u64);

impl WallTime {
    /// The wall time of an instant that is yet to come.
    pub(in crate::storage) fn of(instant: Instant) -> Self {
        let left = instant.saturating_duration_since(Instant::now());
        Self(millis(now() + left))
    }

    /// The instant of this time: now, if it has passed. A wall clock that was set back delays it by the longest linger at most.
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
