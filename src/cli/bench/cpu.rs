//! The CPU time of the current thread.

use std::{fs, ops::Sub, time::Duration};

use rustix::time::{ClockId, clock_gettime};

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuUse {
    pub(super) ran: Duration,
    /// How long it was ready to run but waited for a core. `None` if the system does not report it.
    pub(super) waited: Option<Duration>,
}

impl CpuUse {
    /// Returns the use of the current thread since it started.
    pub(super) fn now() -> Self {
        let ran = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
        // Linux: time on a core, time waiting for one, and how often it got one. The times are in nanoseconds.
        let waited = fs::read_to_string("/proc/thread-self/schedstat")
            .ok()
            .and_then(|text| text.split_whitespace().nth(1)?.parse().ok())
            .map(Duration::from_nanos);
        Self { ran, waited }
    }
}

impl Sub for CpuUse {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        let waited = self.waited.zip(earlier.waited).map(|(now, then)| now.saturating_sub(then));
        Self { ran: self.ran.saturating_sub(earlier.ran), waited }
    }
}
