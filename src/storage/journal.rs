//! What must outlive the process, in the order in which it happened, until it is on disk; and those who wait for that.
//!
//! A storage records each change under the lock under which it makes it: the order here is that of the log, and for each session
//! that in which its changes took effect. One writer takes all that is pending, puts it on disk in one step, and says so.
//! Batches form by themselves: an idle writer takes each change at once, a busy one all that came while it was at the disk.

mod durability;
mod record;
mod wall;

use std::{
    fmt, mem,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::time::timeout;

use self::durability::Durability;
use super::{RefusalCause, StorageError, WriteRefusal};

pub(super) use self::{
    record::{LeaseRow, Malformed, ReadRecord, Reader, Record, Records, session_bytes},
    wall::WallTime,
};

/// Changes wait to be made while so many bytes are pending. A batch of them takes a disk a few tens of milliseconds.
const MAX_PENDING_BYTES: usize = 4 << 20;

/// Whoever waits longer for the disk is told that it does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The number of a record. The first has 1; 0 is the place before it, on disk from the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lsn(pub(super) u64);

/// See the [module](self).
pub(super) struct Journal {
    pending: Mutex<Pending>,
    /// Told when something is pending, and when the journal is closed.
    filled: Condvar,
    newest: AtomicU64,
    durability: Durability,
}

#[derive(Default)]
struct Pending {
    batch: Batch,
    writer_sleeps: bool,
    is_closed: bool,
}

/// What is put on disk in one step.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The number of the first record.
    pub(super) first: Lsn,
    pub(super) records: u64,
    /// How many of the records are entries of the log.
    pub(super) events: u64,
    /// The records, one after the other.
    pub(super) bytes: Vec<u8>,
    /// The rows of leases that change, in order.
    pub(super) leases: Vec<(u64, Option<LeaseRow>)>,
}

impl Batch {
    /// The number of the last record.
    pub(super) fn last(&self) -> Lsn {
        Lsn(self.first.0 + self.records - 1)
    }
}

/// Why the writer wakes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// Something is pending.
    Records,
    /// Nothing has come for as long as it wanted to wait.
    Idle,
    /// Nothing is pending and nothing more will be.
    Closed,
}

impl Journal {
    /// One that goes on after `newest`, which is on disk.
    pub(super) fn new(newest: Lsn) -> Self {
        let batch = Batch { first: Lsn(newest.0 + 1), ..Batch::default() };
        Self {
            pending: Mutex::new(Pending { batch, ..Pending::default() }),
            filled: Condvar::new(),
            newest: AtomicU64::new(newest.0),
            durability: Durability::new(newest),
        }
    }

    /// Adds a record and gives its number.
    pub(super) fn record(&self, record: Record<'_>) -> Lsn {
        let mut pending = self.pending.lock();
        let batch = &mut pending.batch;
        batch.records += 1;
        batch.events += u64::from(record.is_event());
        record.write(&mut batch.bytes);
        batch.leases.extend(record.lease_row());
        let lsn = batch.last();
        self.newest.store(lsn.0, Ordering::Release);
        let writer_sleeps = mem::take(&mut pending.writer_sleeps);
        drop(pending);
        if writer_sleeps {
            self.filled.notify_one();
        }
        lsn
    }

    /// The number of the last record.
    pub(super) fn newest(&self) -> Lsn {
        Lsn(self.newest.load(Ordering::Acquire))
    }

    pub(super) fn is_durable(&self, lsn: Lsn) -> bool {
        self.durability.durable() >= lsn
    }

    /// Why nothing gets to the disk at present; none while something does.
    pub(super) fn outage(&self) -> Option<WriteRefusal> {
        self.durability.outage()
    }

    /// Asks before a change is made: refuses while nothing gets to the disk, and waits while too much is pending.
    pub(super) async fn admit(&self) -> Result<(), StorageError> {
        loop {
            if let Some(outage) = self.outage() {
                return Err(StorageError::Refused(outage));
            }
            let newest = {
                let pending = self.pending.lock();
                if pending.batch.bytes.len() < MAX_PENDING_BYTES {
                    return Ok(());
                }
                pending.batch.last()
            };
            self.durable(newest).await.map_err(StorageError::Refused)?;
        }
    }

    /// Waits until the record `lsn`, and all before it, are on disk.
    ///
    /// Fails when they cannot be put there now. They may get there later all the same.
    pub(super) async fn durable(&self, lsn: Lsn) -> Result<(), WriteRefusal> {
        if self.is_durable(lsn) {
            return Ok(());
        }
        if let Ok(outcome) = timeout(PATIENCE, self.durability.wait(lsn)).await {
            return outcome;
        }
        let stalled = format!("a write has not completed for {PATIENCE:?}");
        let stalled = WriteRefusal::new(RefusalCause::DiskStalled, &stalled);
        // It may have got there in the meantime, and then there is no outage.
        if self.durability.fail(lsn, stalled.clone()) { Err(stalled) } else { Ok(()) }
    }

    /// Waits until something is pending, and for no longer than `limit`.
    pub(super) fn wait_for_records(&self, limit: Duration) -> Wake {
        let deadline = Instant::now() + limit;
        let mut pending = self.pending.lock();
        loop {
            if pending.batch.records > 0 {
                return Wake::Records;
            }
            if pending.is_closed {
                return Wake::Closed;
            }
            pending.writer_sleeps = true;
            if self.filled.wait_until(&mut pending, deadline).timed_out() {
                pending.writer_sleeps = false;
                return if pending.batch.records > 0 { Wake::Records } else { Wake::Idle };
            }
        }
    }

    /// Takes all that is pending.
    pub(super) fn take(&self) -> Batch {
        let mut pending = self.pending.lock();
        let next = Batch { first: Lsn(pending.batch.first.0 + pending.batch.records), ..Batch::default() };
        mem::replace(&mut pending.batch, next)
    }

    /// Says that the records up to `lsn` are on disk.
    pub(super) fn publish(&self, lsn: Lsn) {
        self.durability.publish(lsn);
    }

    /// Says that the record `lsn` does not get to the disk. Nothing is admitted then until records get there; if that one is there
    /// already, this changes nothing.
    pub(super) fn fail(&self, lsn: Lsn, outage: WriteRefusal) {
        self.durability.fail(lsn, outage);
    }

    /// Says that nothing gets to the disk ever again.
    pub(super) fn end(&self, refusal: WriteRefusal) {
        self.durability.end(refusal);
    }

    /// How long an outage took that has ended since this was last asked.
    pub(super) fn recovered_after(&self) -> Option<Duration> {
        self.durability.recovered_after()
    }

    /// Lets the writer end when nothing is pending any more.
    pub(super) fn close(&self) {
        self.pending.lock().is_closed = true;
        self.filled.notify_one();
    }

    /// Waits for `pause`, or until the journal is closed. Tells whether it is.
    pub(super) fn is_closed_within(&self, pause: Duration) -> bool {
        let mut pending = self.pending.lock();
        if !pending.is_closed {
            self.filled.wait_for(&mut pending, pause);
        }
        pending.is_closed
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("newest", &self.newest)
            .field("durable", &self.durability.durable())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::session::{LeaseId, SessionEvent, SessionKey};

    fn is_admitted(journal: &Journal) -> bool {
        journal.admit().now_or_never().is_some_and(|admitted| admitted.is_ok())
    }

    #[test]
    fn no_outage_is_left_when_all_records_are_on_disk() {
        let outage = || WriteRefusal::new(RefusalCause::DiskFailed, "gone");
        let record = Record::Event(SessionEvent::created(SessionKey::new(0, 1), LeaseId::from_number(1)));
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let journal = Journal::new(Lsn(0));
            let mut taken = Vec::new();
            let mut on_disk = Lsn(0);
            for _ in 0..random.usize(1..30) {
                match random.u32(..6) {
                    0 | 1 => drop(journal.record(record)),
                    2 => {
                        let batch = journal.take();
                        if batch.records > 0 {
                            taken.push(batch.last());
                        }
                    }
                    3 if !taken.is_empty() => {
                        on_disk = taken.remove(0);
                        journal.publish(on_disk);
                    }
                    // Late as well: of records that have got to the disk since.
                    _ => journal.fail(Lsn(random.u64(..=journal.newest().0)), outage()),
                }
                assert!(on_disk < journal.newest() || is_admitted(&journal), "seed {seed}");
            }
            journal.publish(journal.newest());
            assert!(is_admitted(&journal), "seed {seed}");
        }
    }
}
