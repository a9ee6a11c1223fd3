//! Several buckets, locked at once.

use std::hint::black_box;

use parking_lot::{Mutex, MutexGuard};
use smallvec::{SmallVec, smallvec};

use super::{bucket::Bucket, hash::SessionHasher};

/// The sessions of a batch whose buckets are locked at once. A session is some reads of memory that is in no cache; with no
/// lock to be taken between them, the processor makes those of many sessions at the same time.
pub(super) const GROUP: usize = 32;

/// The locks of some buckets, made for `N` sessions: for one, as most calls have, room for a group costs more than the lock.
pub(super) struct Held<'a, const N: usize> {
    guards: SmallVec<[MutexGuard<'a, Bucket>; N]>,
    /// For each index that was asked for, the guard of that bucket.
    guard_of: SmallVec<[usize; N]>,
}

impl<'a, const N: usize> Held<'a, N> {
    /// Locks these of the buckets, in the order of their indexes: two who lock several cannot wait for each other.
    pub(super) fn lock(buckets: &'a [Mutex<Bucket>], indexes: impl Iterator<Item = u32>) -> Self {
        // In one number each: they are sorted in half the time that pairs take.
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

    /// Brings into the caches what will be read of sessions with these hashes, which come in the order in which their buckets were
    /// asked for. Of each session one read waits for another, so the first is made for all of them, and then the next. What is
    /// found may be another when its turn comes.
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

    /// The bucket of the nth index that was asked for.
    pub(super) fn bucket(&mut self, nth: usize) -> &mut Bucket {
        &mut self.guards[self.guard_of[nth]]
    }
}
