//! Several buckets, locked at once.

use parking_lot::{Mutex, MutexGuard};
use smallvec::{SmallVec, smallvec};

use super::bucket::Bucket;

/// The sessions of a batch whose buckets are locked at once. A session is some reads of memory that is in no cache; with no
/// lock to be taken between them, the processor makes those of many sessions at the same time.
pub(super) const GROUP: usize = 32;

/// The locks of some buckets.
pub(super) struct Held<'a> {
    guards: SmallVec<[MutexGuard<'a, Bucket>; GROUP]>,
    /// For each index that was asked for, the guard of that bucket.
    guard_of: SmallVec<[usize; GROUP]>,
}

impl<'a> Held<'a> {
    /// Locks these of the buckets, in the order of their indexes: two who lock several cannot wait for each other.
    pub(super) fn lock(buckets: &'a [Mutex<Bucket>], indexes: impl Iterator<Item = u32>) -> Self {
        // In one number each: they are sorted in half the time that pairs take.
        let mut sorted: SmallVec<[u64; GROUP]> =
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

    /// The bucket of the nth index that was asked for.
    pub(super) fn bucket(&mut self, nth: usize) -> &mut Bucket {
        &mut self.guards[self.guard_of[nth]]
    }
}
