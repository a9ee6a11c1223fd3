//! Whose turn it is to be written anew.
//!
//! Buckets are written by turns, one for every so many records: after a round of all, what the log held before it can be given
//! up. A round takes as many records as the log retains anyway, or half as many as there are sessions if those are more: so
//! the log stays within a constant times what must be kept, a record costs 32 bytes of checkpoints at most where sessions
//! are many, and where nothing changes nothing is written.

use super::{checkpoint::Checkpoint, store::Trim};
use crate::storage::{Position, journal::Lsn, memory::MemoryStorage};

/// A round is no shorter than this: a small log would be written many times over.
const MIN_RECORDS_A_ROUND: u64 = 1 << 12;

/// One commit writes no more of them than this, so that it does not hold up the changes that it is made for.
const MAX_BYTES_A_COMMIT: usize = 1 << 20;

pub(super) struct Rounds {
    /// The last record that each bucket's row reflects; 0 where it has none.
    reflected: Vec<Lsn>,
    /// Whose turn it is.
    next: usize,
    /// Records that have not been paid for with checkpoints.
    records: u64,
    retain_events: u64,
}

impl Rounds {
    /// Goes on where an earlier life of the registry stopped.
    pub(super) fn new(reflected: Vec<Lsn>, retain_events: usize) -> Self {
        let next = (0..reflected.len()).min_by_key(|bucket| reflected[*bucket]).unwrap_or(0);
        Self { reflected, next, records: 0, retain_events: retain_events as u64 }
    }

    /// Counts records that were made.
    pub(super) fn count(&mut self, records: u64) {
        self.records += records;
    }

    /// The checkpoints that are due. Each reflects all that was recorded of its bucket until now.
    pub(super) fn due(&mut self, memory: &MemoryStorage) -> Vec<Checkpoint> {
        let each = self.records_a_bucket(memory);
        let (mut due, mut bytes) = (Vec::new(), 0);
        while self.records >= each && bytes < MAX_BYTES_A_COMMIT && due.len() < self.reflected.len() {
            self.records -= each;
            let checkpoint = Checkpoint::of(memory, self.next as u32);
            bytes += checkpoint.bytes.len();
            self.reflected[self.next] = checkpoint.lsn;
            self.next = (self.next + 1) % self.reflected.len();
            due.push(checkpoint);
        }
        due
    }

    /// What the log need no longer hold once it ends at `newest`.
    pub(super) fn trim(&self, memory: &MemoryStorage, newest: Position) -> Trim {
        let position = Position(newest.0.saturating_sub(self.retain_events));
        // Of all, and not the next one's: turns that were begun in one life and ended in another are not in order.
        let lsn = self.reflected.iter().copied().min().unwrap_or_default();
        // A row has one record at least, so this is more than come between two trims.
        let rows = 4 * self.records_a_bucket(memory) + 64;
        Trim { lsn, position, rows: usize::try_from(rows).unwrap_or(usize::MAX) }
    }

    fn records_a_bucket(&self, memory: &MemoryStorage) -> u64 {
        let round = self.retain_events.max(memory.sessions() / 2).max(MIN_RECORDS_A_ROUND);
        round.div_ceil(self.reflected.len() as u64)
    }
}
