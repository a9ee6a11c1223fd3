//! The thread that puts on disk what is recorded.

use std::{error::Error, sync::Arc, time::Duration};

use super::{
    rounds::Rounds,
    store::{Commit, Store},
};
use crate::storage::{Position, journal::Journal, memory::MemoryStorage};

/// After a batch of so many records more are on their way, and it is worth while to let them gather: a commit costs the
/// processor time of dozens of them, however few they are. Whoever changes one session at a time never waits for it. With
/// 1,000 creates in flight it takes a create's processor time from 2.1 to 1.6 times that of the memory storage, and their
/// number a second stays what it was.
const BUSY: u64 = 16;
const GATHER: Duration = Duration::from_millis(1);

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(2);

pub(super) struct Writer {
    store: Store,
    memory: Arc<MemoryStorage>,
    journal: Arc<Journal>,
    rounds: Rounds,
    /// The last change on disk.
    position: Position,
}

impl Writer {
    pub(super) fn new(store: Store, memory: Arc<MemoryStorage>, journal: Arc<Journal>, rounds: Rounds) -> Self {
        let position = memory.newest();
        Self { store, memory, journal, rounds, position }
    }

    /// Writes until the journal is closed and nothing is pending, or nothing can be written.
    pub(super) fn run(mut self) {
        while self.journal.wait_for_records() {
            // Before the batch is taken: what they reflect must not get to the disk before the records of it.
            let checkpoints = self.rounds.due(&self.memory);
            let batch = self.journal.take();
            let (last, records) = (batch.last(), batch.records);
            let newest = Position(self.position.0 + batch.events);
            let trim = (!checkpoints.is_empty()).then(|| self.rounds.trim(&self.memory, newest));
            if !self.write(&Commit { position: self.position, batch, checkpoints, trim }) {
                return;
            }
            self.rounds.count(records);
            self.position = newest;
            // Whoever is answered may ask the log at once.
            self.memory.show(newest);
            self.journal.publish(last);
            if records >= BUSY {
                // When it is closed, what is left is written at once.
                let _ = self.journal.is_closed_within(GATHER);
            }
        }
    }

    /// Tries until it is on disk; false when the journal is closed before.
    fn write(&mut self, commit: &Commit) -> bool {
        let mut pause = FIRST_RETRY;
        loop {
            let Err(error) = self.store.commit(commit) else { return true };
            tracing::error!(error = &error as &dyn Error, "changes cannot be written; they are refused until they can");
            self.journal.fail(error);
            if self.journal.is_closed_within(pause) {
                tracing::error!("closed with changes that could not be written; nobody was told that they were made");
                return false;
            }
            pause = (pause * 2).min(LAST_RETRY);
        }
    }
}
