//! A partition's own clock, as far as this process knows it.

use parking_lot::Mutex;
use redis::RedisError;
use tokio::time::Instant;

use super::channel::Link;

/// The newest reading of a partition's clock, which counts ms.
///
/// Time is counted from when the answer arrived, so the estimate never runs ahead of the clock.
#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Option<Reading>>);

#[derive(Debug)]
struct Reading {
    time: u64,
    taken: Instant,
    /// The server that was read.
    server: std::sync::Arc<str>,
}

impl Clock {
    /// Returns whether the newest reading is of the server at the other end of `link`.
    pub(super) fn is_of(&self, link: &Link) -> bool {
        self.0.lock().as_ref().is_some_and(|reading| reading.server == link.server)
    }

    /// Takes a reading that has just arrived.
    pub(super) fn read_from(&self, time: u64, link: &Link) {
        *self.0.lock() = Some(Reading { time, taken: Instant::now(), server: link.server.clone() });
    }

    /// Takes a reading that arrived over any connection to the server that was read last.
    pub(super) fn advance(&self, time: u64) {
        if let Some(reading) = self.0.lock().as_mut() {
            (reading.time, reading.taken) = (time, Instant::now());
        }
    }

    /// Takes the time from the answer to a script that came too late. Returns whether `error` is such an answer.
    pub(super) fn read_from_late(&self, error: &RedisError, link: &Link) -> bool {
        let is_late = error.code() == Some("LATE");
        if is_late && let Some(time) = error.detail().and_then(|detail| detail.split(' ').next()?.parse().ok()) {
            self.read_from(time, link);
        }
        is_late
    }

    /// Returns a lower estimate of what the partition's clock shows when this process' clock shows `over`.
    pub(super) fn until(&self, over: Instant) -> u64 {
        match &*self.0.lock() {
            Some(reading) => reading.time + over.saturating_duration_since(reading.taken).as_millis() as u64,
            // Nothing is sent before the first reading.
            None => 0,
        }
    }
}
