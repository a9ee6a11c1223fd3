//! The thread that puts on disk what is recorded.

use std::{error::Error, sync::Arc, time::Duration};

use super::{
    load::Loaded,
    probe::{DiskStatus, Probe},
    rounds::Rounds,
    store::{Commit, Store},
};
use crate::storage::{
    Position,
    journal::{Journal, Wake},
    memory::MemoryStorage,
};

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
    probe: Probe,
    disk: Arc<DiskStatus>,
    /// The last change on disk.
    position: Position,
}

impl Writer {
    pub(super) fn new(store: Store, loaded: Loaded, probe: Probe, disk: Arc<DiskStatus>) -> Self {
        let Loaded { memory, journal, rounds } = loaded;
        let position = memory.newest();
        Self { store, memory, journal, rounds, probe, disk, position }
    }

    /// Writes until the journal is closed and nothing is pending, or nothing can be written. Probes the disk meanwhile.
    pub(super) fn run(mut self) {
        loop {
            match self.journal.wait_for_records(self.probe.interval()) {
                Wake::Records => {
                    if !self.write_pending() {
                        return;
                    }
                    if self.probe.is_due() {
                        self.probe_disk();
                    }
                }
                Wake::Idle => self.probe_disk(),
                Wake::Closed => return,
            }
        }
    }

    /// Puts all that is pending on disk; false when the journal is closed before that can be done.
    fn write_pending(&mut self) -> bool {
        // Before the batch is taken: what they reflect must not get to the disk before the records of it.
        let checkpoints = self.rounds.due(&self.memory);
        let batch = self.journal.take();
        let (last, records) = (batch.last(), batch.records);
        let newest = Position(self.position.0 + batch.events);
        let trim = (!checkpoints.is_empty()).then(|| self.rounds.trim(&self.memory, newest));
        if !self.write(&Commit { position: self.position, batch, checkpoints, trim }) {
            return false;
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
        true
    }

    /// Tries until it is on disk; false when the journal is closed before.
    fn write(&mut self, commit: &Commit) -> bool {
        let mut pause = FIRST_RETRY;
        loop {
            let writing = self.disk.write();
            let result = self.store.commit(commit);
            drop(writing);
            let Err(error) = result else { return true };
            // Who runs the storage is told by its writability, and callers by their errors.
            tracing::debug!(error = &error as &dyn Error, "changes cannot be written; retrying until they can");
            self.journal.fail(commit.batch.last(), error.refusal());
            if self.journal.is_closed_within(pause) {
                tracing::error!(
                    error = &error as &dyn Error,
                    "closed with changes that could not be written; nobody was told that they were made"
                );
                return false;
            }
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    fn probe_disk(&mut self) {
        let _writing = self.disk.write();
        self.disk.set_probed(self.probe.run());
    }
}
