//! The journal: records of what must outlive the process, in commit order, and the callers that wait until they are on
//! disk.
//!
//! A storage records each change while it holds the lock under which it made the change. The order of the records is
//! therefore that of the log and, for each session, the order in which its changes took effect. One writer takes
//! everything pending, writes it to disk in one step, and publishes how far it got. Batches form on their own: an idle
//! writer takes each change immediately, a busy one all that arrived during its last write.

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

/// While this many bytes are pending, new changes wait. A disk writes such a batch in a few tens of milliseconds.
const MAX_PENDING_BYTES: usize = 4 << 20;

/// How long a caller waits for the disk before it fails with a stalled disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// The number of a record, like a database's log sequence number. The first record has 1; 0 counts as on disk from the
/// start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lsn(pub(super) u64);

/// The records on their way to disk. See the [module](self).
pub(super) struct Journal {
    pending: Mutex<Pending>,
    /// Notified when records are pending, and when the journal is closed.
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

/// The records that are written to disk in one step.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The number of the first record.
    pub(super) first: Lsn,
    pub(super) records: u64,
    /// How many of the records are log entries.
    pub(super) events: u64,
    /// The encoded records.
    pub(super) bytes: Vec<u8>,
    /// The changed lease rows, in order.
    pub(super) leases: Vec<(u64, Option<LeaseRow>)>,
}

impl Batch {
    /// Returns the number of the last record.
    pub(super) fn last(&self) -> Lsn {
        Lsn(self.first.0 + self.records - 1)
    }
}

/// Why the writer wakes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// Something is pending.
    Records,
    /// No records arrived within the time limit.
    Idle,
    /// Nothing is pending, and no records will follow.
    Closed,
}

impl Journal {
    /// Makes a journal that continues after record `newest`, which is on disk.
    pub(super) fn new(newest: Lsn) -> Self {
        let batch = Batch { first: Lsn(newest.0 + 1), ..Batch::default() };
        Self {
            pending: Mutex::new(Pending { batch, ..Pending::default() }),
            filled: Condvar::new(),
            newest: AtomicU64::new(newest.0),
            durability: Durability::new(newest),
        }
    }

    /// Adds a record and returns its number.
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

    /// Returns the number of the last record.
    pub(super) fn newest(&self) -> Lsn {
        Lsn(self.newest.load(Ordering::Acquire))
    }

    pub(super) fn is_durable(&self, lsn: Lsn) -> bool {
        self.durability.durable() >= lsn
    }

    /// Returns why nothing reaches the disk at present. `None` while writes succeed.
    pub(super) fn outage(&self) -> Option<WriteRefusal> {
        self.durability.outage()
    }

    /// Admits a change: refuses it while nothing reaches the disk, and waits while too much is pending.
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

    /// Waits until the record `lsn` and all before it are on disk.
    ///
    /// Fails if they cannot be written now. They may still be written later.
    pub(super) async fn durable(&self, lsn: Lsn) -> Result<(), WriteRefusal> {
        if self.is_durable(lsn) {
            return Ok(());
        }
        if let Ok(outcome) = timeout(PATIENCE, self.durability.wait(lsn)).await {
            return outcome;
        }
        let stalled = format!("a write has not completed for {PATIENCE:?}");
        let stalled = WriteRefusal::new(RefusalCause::DiskStalled, &stalled);
        // The record may have reached the disk in the meantime. In that case, there is no outage.
        if self.durability.fail(lsn, stalled.clone()) { Err(stalled) } else { Ok(()) }
    }

    /// Waits until records are pending, for at most `limit`.
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

    /// Takes everything pending.
    pub(super) fn take(&self) -> Batch {
        let mut pending = self.pending.lock();
        let next = Batch { first: Lsn(pending.batch.first.0 + pending.batch.records), ..Batch::default() };
        mem::replace(&mut pending.batch, next)
    }

    /// Notifies waiting callers that the records up to `lsn` are on disk.
    pub(super) fn publish(&self, lsn: Lsn) {
        self.durability.publish(lsn);
    }

    /// Starts an outage because record `lsn` could not be written. No changes are admitted until records reach the disk
    /// again. Has no effect if that record is on disk already.
    pub(super) fn fail(&self, lsn: Lsn, outage: WriteRefusal) {
        self.durability.fail(lsn, outage);
    }

    /// Ends all writes: nothing will reach the disk any more.
    pub(super) fn end(&self, refusal: WriteRefusal) {
        self.durability.end(refusal);
    }

    /// Returns the length of an outage that ended since the last call.
    pub(super) fn recovered_after(&self) -> Option<Duration> {
        self.durability.recovered_after()
    }

    /// Lets the writer end once nothing is pending.
    pub(super) fn close(&self) {
        self.pending.lock().is_closed = true;
        self.filled.notify_one();
    }

    /// Waits for `pause`, or until the journal is closed. Returns whether it is closed.
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
    fn no_outage_remains_once_all_records_are_on_disk() {
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
                    // This may come late, for records that have reached the disk since.
                    _ => journal.fail(Lsn(random.u64(..=journal.newest().0)), outage()),
                }
                assert!(on_disk < journal.newest() || is_admitted(&journal), "seed {seed}");
            }
            journal.publish(journal.newest());
            assert!(is_admitted(&journal), "seed {seed}");
        }
    }
}
