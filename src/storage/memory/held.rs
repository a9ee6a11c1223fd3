//! Locks on several buckets at once.

use std::hint::black_box;

use parking_lot::{Mutex, MutexGuard};
use smallvec::{SmallVec, smallvec};

use super::bucket::Bucket;
use crate::table::SessionHasher;

/// How many sessions of a batch have their buckets locked together. Each session costs some cache misses. If no lock is
/// taken between them, the processor overlaps the misses of many sessions.
pub(super) const GROUP: usize = 32;

/// The locked buckets of up to `N` sessions. Most calls are about one session, and use an `N` of 1: making room for a
/// whole group would cost more than the lock.
pub(super) struct Held<'a, const N: usize> {
    guards: SmallVec<[MutexGuard<'a, Bucket>; N]>,
    /// For each requested index, the position of that bucket's guard.
    guard_of: SmallVec<[usize; N]>,
}

impl<'a, const N: usize> Held<'a, N> {
    /// Locks the buckets at `indexes`, in ascending order, so that two callers cannot deadlock.
    pub(super) fn lock(buckets: &'a [Mutex<Bucket>], indexes: impl Iterator<Item = u32>) -> Self {
        // Each pair is packed into one number, which halves the time of sorting.
        let mut sorted: SmallVec<[u64; N]> =
            indexes.zip(0..).map(|(index, nth): (u32, u64)| u64::from(index) << 32 | nth).collect();
        sorted.sort_unstable();
        let mut held = Self { guards: SmallVec::new(), guard_of: smallvec![0; sorted.len()] };
        let mut last = None;
        for (index, nth) in sorted.into_iter().map(|pair| ((pair >> 32) as usize, pair as u32 as usize)) {
            if last != Some(index) {
                held.guards.push(buckets[index].lock());
                last = Some(index);
            }
            held.guard_of[nth] = held.guards.len() - 1;
        }
        held
    }

    /// Loads into the caches what will be read of the sessions with these hashes, given in the order of the requested
    /// buckets. The reads of one session depend on each other, so the first read is made for all sessions, then the
    /// second. A table entry may turn out to belong to another session.
    pub(super) fn fetch(&mut self, hashes: impl Iterator<Item = u64>) {
        let guesses: SmallVec<[Option<usize>; N]> =
            hashes.enumerate().map(|(nth, hash)| self.bucket(nth).guess(hash)).collect();
        for (nth, guess) in guesses.into_iter().enumerate() {
            black_box(guess.and_then(|place| self.bucket(nth).session(place)));
        }
    }

    /// Does the same for the last session of each bucket.
    pub(super) fn fetch_last(&mut self, hasher: &SessionHasher) {
        let hashes: SmallVec<[u64; N]> = (0..self.guard_of.len())
            .map(|nth| self.bucket(nth).last().map_or(0, |last| hasher.within(&last)))
            .collect();
        for (nth, hash) in hashes.into_iter().enumerate() {
            black_box(self.bucket(nth).guess(hash));
        }
    }

    /// Returns the bucket of the nth requested index.
    pub(super) fn bucket(&mut self, nth: usize) -> &mut Bucket {
        &mut self.guards[self.guard_of[nth]]
    }
}
