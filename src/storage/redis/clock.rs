//! Estimates a partition's clock.

use parking_lot::Mutex;
use redis::RedisError;
use tokio::time::Instant;

use super::channel::Link;

/// The latest reading of a partition's clock, in milliseconds.
///
/// Time since the reading is counted from when the answer arrived, so the estimate never runs ahead of the clock.
#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Option<Reading>>);

#[derive(Debug)]
struct Reading {
    time: u64,
    taken: Instant,
    /// The server whose clock was read.
    server: std::sync::Arc<str>,
}

impl Clock {
    /// Returns whether the latest reading is from the server at the other end of `link`.
    pub(super) fn is_of(&self, link: &Link) -> bool {
        self.0.lock().as_ref().is_some_and(|reading| reading.server == link.server)
    }

    /// Records a reading that has just arrived over `link`.
    pub(super) fn read_from(&self, time: u64, link: &Link) {
        *self.0.lock() = Some(Reading { time, taken: Instant::now(), server: link.server.clone() });
    }

    /// Records a reading that has just arrived over any connection to the same server as the latest reading.
    pub(super) fn advance(&self, time: u64) {
        if let Some(reading) = self.0.lock().as_mut() {
            (reading.time, reading.taken) = (time, Instant::now());
        }
    }

    /// Records the time from a LATE error, the answer to a script that arrived too late. Returns whether `error` is
    /// one.
    pub(super) fn read_from_late(&self, error: &RedisError, link: &Link) -> bool {
        let is_late = error.code() == Some("LATE");
        if is_late && let Some(time) = error.detail().and_then(|detail| detail.split(' ').next()?.parse().ok()) {
            self.read_from(time, link);
        }
        is_late
    }

    /// Returns a lower bound of the partition's clock at the instant `deadline` of this process' clock.
    pub(super) fn until(&self, deadline: Instant) -> u64 {
        match &*self.0.lock() {
            Some(reading) => reading.time + deadline.saturating_duration_since(reading.taken).as_millis() as u64,
            // No script is sent before the first reading.
            None => 0,
        }
    }
}
