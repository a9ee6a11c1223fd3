//! How long the registry was away before it was opened.
//!
//! The file says when it was last known to be served. Whoever sets the wall clock back makes that unknown; forth, it seems longer.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time is written this often while there are leases, which is how much too long a downtime may seem.
const INTERVAL: Duration = Duration::from_secs(15);

/// When to write the time next.
pub(super) struct Downtime {
    next: Instant,
}

impl Downtime {
    /// `grace` is what leases were given when the registry was opened. Gateways may be away for as long, and a crash meanwhile must
    /// give it to them again: the time is not written before it is over.
    pub(super) fn new(grace: Duration) -> Self {
        Self { next: Instant::now() + grace }
    }

    /// Returns the time if it is to be written now.
    pub(super) fn due(&self) -> Option<u64> {
        (Instant::now() >= self.next).then(wall_clock)
    }

    /// Returns the time as it is when the registry is closed. None while leases have what they were given.
    pub(super) fn at_close(&self) -> Option<u64> {
        (Instant::now() + INTERVAL >= self.next).then(wall_clock)
    }

    pub(super) fn wrote(&mut self) {
        self.next = Instant::now() + INTERVAL;
    }
}

/// Returns how long ago the registry was last served. None if nobody knows.
pub(super) fn since(served: Option<u64>) -> Option<Duration> {
    wall_clock().checked_sub(served?).map(Duration::from_millis)
}

fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
