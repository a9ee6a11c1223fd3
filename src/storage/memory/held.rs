//! Several buckets, locked at once.

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::bucket::Bucket;

/// The sessions of a batch whose buckets are locked at once. A session is some reads of memory that is in no cache; with no
/// lock to be taken between them, the processor makes those of many sessions at the same time.
pub(super) const GROUP: usize = 32;

/// The locks of some buckets.
pub(super) struct Held<'a> {
    indexes: SmallVec<[u32; GROUP]>,
    guards: SmallVec<[MutexGuard<'a, Bucket>; GROUP]>,
}

impl<'a> Held<'a> {
    /// Locks these of the buckets, in the order of their indexes: two who lock several cannot wait for each other.
    pub(super) fn lock(buckets: &'a [Mutex<Bucket>], indexes: impl Iterator<Item = u32>) -> Self {
        let mut indexes: SmallVec<[u32; GROUP]> = indexes.collect();
        indexes.sort_unstable();
        indexes.dedup();
        let guards = indexes.iter().map(|index| buckets[*index as usize].lock()).collect();
        Self { indexes, guards }
    }

    /// A bucket that was locked.
    pub(super) fn bucket(&mut self, index: u32) -> &mut Bucket {
        &mut self.guards[self.indexes.partition_point(|held| *held < index)]
    }
}
