//! The time of each session's last change, from which observers measure latency.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The bits of a stamp that hold the time in nanoseconds, enough for three days.
const TIME_BITS: u32 = 48;

/// One word per session: how often it has changed, and when its last change was due.
///
/// A stamp is written before its call is sent, so an observer that receives the change finds it. If the session has
/// changed again by then, the count differs, and the observer does not use the wrong time. Only the caller of a session
/// writes its stamp.
#[derive(Debug)]
pub(super) struct Stamps {
    epoch: Instant,
    words: Box<[AtomicU64]>,
}

impl Stamps {
    /// `exists` says for each session whether it exists at first, which counts as its first change.
    pub(super) fn new(exists: impl Iterator<Item = bool>) -> Self {
        let words = exists.map(|exists| AtomicU64::new(u64::from(exists) << TIME_BITS)).collect();
        Self { epoch: Instant::now(), words }
    }

    /// Records that a session is about to change.
    pub(super) fn change(&self, session: u32, at: Instant) {
        let word = &self.words[session as usize];
        let count = (word.load(Ordering::Relaxed) >> TIME_BITS) + 1;
        let nanos = at.saturating_duration_since(self.epoch).as_nanos() as u64;
        // The count wraps around.
        word.store(count << TIME_BITS | (nanos & ((1 << TIME_BITS) - 1)), Ordering::Relaxed);
    }

    /// Returns how often a session has changed, in as many bits as an observer keeps.
    pub(super) fn count(&self, session: u32) -> u8 {
        (self.words[session as usize].load(Ordering::Relaxed) >> TIME_BITS) as u8
    }

    /// Returns how often each session has changed.
    pub(super) fn counts(&self) -> Box<[u8]> {
        (0..self.words.len() as u32).map(|session| self.count(session)).collect()
    }

    /// Returns when change number `count` of a session was due, if no later change has begun.
    pub(super) fn begin(&self, session: u32, count: u8) -> Option<Instant> {
        let word = self.words[session as usize].load(Ordering::Relaxed);
        ((word >> TIME_BITS) as u8 == count).then(|| self.epoch + Duration::from_nanos(word & ((1 << TIME_BITS) - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_change_has_a_time() {
        let stamps = Stamps::new([false, true].into_iter());
        assert_eq!(*stamps.counts(), [0, 1]);
        let at = stamps.epoch + Duration::from_secs(24 * 60 * 60);
        stamps.change(0, at);
        assert_eq!(stamps.begin(0, 1), Some(at));
        assert_eq!(stamps.begin(0, 2), None);
        for _ in 0..70_000 {
            stamps.change(0, at);
        }
        assert_eq!((stamps.begin(0, 1), stamps.count(0), stamps.count(1)), (None, (70_001 % 256) as u8, 1));
        assert_eq!(stamps.begin(0, (70_001 % 256) as u8), Some(at));
    }
}
