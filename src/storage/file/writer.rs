//! The thread that puts on disk what is recorded.

use std::{error::Error, sync::Arc, time::Duration};

use super::{
    FileError,
    downtime::Downtime,
    load::Loaded,
    probe::{DiskStatus, Probe},
    rounds::Rounds,
    store::{Commit, Store},
};
use crate::{
    backoff::Backoff,
    storage::{
        Position,
        journal::{Journal, Wake},
        memory::MemoryStorage,
    },
};

/// After a batch of so many records more are on their way, and it is worth while to let them gather: a commit costs the
/// processor time of dozens of them, however few they are. Whoever changes one session at a time never waits for it. With
/// 1,000 creates in flight it takes a create's processor time from 2.1 to 1.6 times that of the memory storage, and their
/// number a second stays what it was.
const BUSY: u64 = 16;
const GATHER: Duration = Duration::from_millis(1);

/// The file is looked at this often while nothing is written. Each commit looks at it, too.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_secs(2);

pub(super) struct Writer {
    store: Store,
    memory: Arc<MemoryStorage>,
    journal: Arc<Journal>,
    rounds: Rounds,
    probe: Probe,
    downtime: Downtime,
    disk: Arc<DiskStatus>,
    /// The last change on disk.
    position: Position,
}

impl Writer {
    pub(super) fn new(store: Store, loaded: Loaded, probe: Probe, disk: Arc<DiskStatus>) -> Self {
        let Loaded { memory, journal, rounds, downtime } = loaded;
        let position = memory.newest();
        Self { store, memory, journal, rounds, probe, downtime, disk, position }
    }

    /// Writes until the journal is closed and nothing is pending, or nothing can be written. Looks after the file and its disk
    /// meanwhile.
    pub(super) fn run(mut self) {
        loop {
            let goes_on = match self.journal.wait_for_records(CHECK_INTERVAL) {
                Wake::Records => self.write_pending(),
                Wake::Idle => self.check() && self.note_time(),
                Wake::Closed => {
                    // Nobody is told whether it gets there.
                    let _ = self.downtime.at_close().map(|served| self.commit_time(served));
                    false
                }
            };
            if !goes_on {
                return;
            }
            if self.probe.is_due() {
                let _writing = self.disk.write();
                self.disk.set_probed(self.probe.run());
            }
        }
    }

    /// Checks that the file is still there; false when it is lost.
    fn check(&self) -> bool {
        // What else may fail here will fail the next change.
        !matches!(self.store.check(), Err(error) if self.is_lost(&error))
    }

    /// Notes in the file that the registry is served, if it is time to and somebody may need it; false when the file is lost.
    fn note_time(&mut self) -> bool {
        let Some(served) = self.downtime.due().filter(|_| self.memory.leases() > 0) else { return true };
        match self.commit_time(served) {
            Err(error) => !self.is_lost(&error),
            Ok(()) => true,
        }
    }

    fn commit_time(&mut self, served: u64) -> Result<(), FileError> {
        let nothing = Commit { position: self.position, served: Some(served), ..Commit::default() };
        let _writing = self.disk.write();
        let result = self.store.commit(&nothing);
        // Also if it was not written: the next change is, or tells why not.
        self.downtime.wrote();
        result
    }

    /// Refuses changes for good if the file is lost.
    fn is_lost(&self, error: &FileError) -> bool {
        if error.is_loss() {
            self.disk.set_lost(error.refusal());
            self.journal.end(error.refusal());
        }
        error.is_loss()
    }

    /// Puts all that is pending on disk; false when the journal is closed before that can be done.
    fn write_pending(&mut self) -> bool {
        // Before the batch is taken: what they reflect must not get to the disk before the records of it.
        let checkpoints = self.rounds.due(&self.memory);
        let batch = self.journal.take();
        let (last, records) = (batch.last(), batch.records);
        let newest = Position(self.position.0 + batch.events);
        let trim = (!checkpoints.is_empty()).then(|| self.rounds.trim(&self.memory, newest));
        let served = self.downtime.due();
        if !self.write(&Commit { position: self.position, batch, checkpoints, trim, served }) {
            return false;
        }
        if served.is_some() {
            self.downtime.wrote();
        }
        self.probe.wrote();
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

    /// Tries until it is on disk; false when the journal is closed before, or the file is lost.
    fn write(&mut self, commit: &Commit) -> bool {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let writing = self.disk.write();
            let result = self.store.commit(commit);
            drop(writing);
            let Err(error) = result else { return true };
            if self.is_lost(&error) {
                return false;
            }
            // Who runs the storage is told by its writability, and callers by their errors.
            tracing::debug!(error = &error as &dyn Error, "changes cannot be written; retrying until they can");
            self.journal.fail(commit.batch.last(), error.refusal());
            if self.journal.is_closed_within(backoff.pause()) {
                tracing::error!(
                    error = &error as &dyn Error,
                    "closed with changes that could not be written; nobody was told that they were made"
                );
                return false;
            }
        }
    }
}
