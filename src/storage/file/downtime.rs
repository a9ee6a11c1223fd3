//! Measures how long the registry was out of service before it was opened.
//!
//! The file says when it was last known to be in service. If the wall clock was set back since, the downtime is
//! unknown. If the clock was set forward, the downtime seems longer.

use std::time::{Duration, Instant};

use crate::storage::journal::WallTime;

/// How often the time is written while there are leases. A downtime may seem too long by up to this much.
const INTERVAL: Duration = Duration::from_secs(15);

/// When to write the time next.
pub(super) struct Downtime {
    next: Instant,
}

impl Downtime {
    /// Starts with the `grace` that leases were given when the registry was opened. The time is not written before that
    /// grace is over: gateways may stay away for as long, and if the server crashes meanwhile, leases must get their
    /// grace again.
    pub(super) fn new(grace: Duration) -> Self {
        Self { next: Instant::now() + grace }
    }

    /// Returns the current time if it must be written now.
    pub(super) fn due(&self) -> Option<u64> {
        (Instant::now() >= self.next).then(|| WallTime::now().0)
    }

    /// Returns the time at which the registry closes. `None` while leases still have their grace.
    pub(super) fn at_close(&self) -> Option<u64> {
        (Instant::now() + INTERVAL >= self.next).then(|| WallTime::now().0)
    }

    pub(super) fn wrote(&mut self) {
        self.next = Instant::now() + INTERVAL;
    }
}

/// Returns how long ago the registry was last in service. `None` if that is unknown.
pub(super) fn since(served: Option<u64>) -> Option<Duration> {
    WallTime::now().0.checked_sub(served?).map(Duration::from_millis)
}
