//! Decides which bucket's checkpoint is rewritten next.
//!
//! Buckets are rewritten in rounds, one bucket for every fixed number of records. After a full round, the log rows
//! before that round can be removed. A round lasts for as many records as the log retains anyway, or for half the
//! number of sessions if that is more. The log therefore stays within a constant factor of what must be kept. If there
//! are many sessions, a record costs at most 32 bytes of checkpoints. Without changes, nothing is written.

use super::{checkpoint::Checkpoint, store::Trim};
use crate::storage::{Position, journal::Lsn, memory::MemoryStorage};

/// The minimum length of a round. With shorter rounds, a small registry would be rewritten many times over.
const MIN_RECORDS_A_ROUND: u64 = 1 << 12;

/// The most bytes of checkpoints in one commit, so that they do not delay the changes in it.
const MAX_BYTES_A_COMMIT: usize = 1 << 20;

pub(super) struct Rounds {
    /// The last record that each bucket's checkpoint reflects; 0 if it has none.
    reflected: Vec<Lsn>,
    /// The bucket to rewrite next.
    next: usize,
    /// Records not yet matched by a rewritten checkpoint.
    records: u64,
    retain_events: u64,
}

impl Rounds {
    /// Continues where the registry stopped when it was last open. Starts with the bucket whose checkpoint is oldest.
    pub(super) fn new(reflected: Vec<Lsn>, retain_events: usize) -> Self {
        let next = (0..reflected.len()).min_by_key(|bucket| reflected[*bucket]).unwrap_or(0);
        Self { reflected, next, records: 0, retain_events: retain_events as u64 }
    }

    /// Counts records that were written.
    pub(super) fn count(&mut self, records: u64) {
        self.records += records;
    }

    /// Makes the checkpoints that are due. Each reflects everything recorded of its bucket so far.
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

    /// Returns what the log no longer needs to hold once it ends at `newest`.
    pub(super) fn trim(&self, memory: &MemoryStorage, newest: Position) -> Trim {
        let position = Position(newest.0.saturating_sub(self.retain_events));
        // The minimum over all buckets, not just the next one: after a restart, the order of the rounds may have
        // changed.
        let lsn = self.reflected.iter().copied().min().unwrap_or_default();
        // A row has at least one record, so this is more rows than are added between two trims.
        let rows = 4 * self.records_a_bucket(memory) + 64;
        Trim { lsn, position, rows: usize::try_from(rows).unwrap_or(usize::MAX) }
    }

    fn records_a_bucket(&self, memory: &MemoryStorage) -> u64 {
        let round = self.retain_events.max(memory.sessions() / 2).max(MIN_RECORDS_A_ROUND);
        round.div_ceil(self.reflected.len() as u64)
    }
}
