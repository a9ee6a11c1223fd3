//! Loads a registry from its file into memory.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use redb::{ReadableTable, ReadableTableMetadata};

use super::{
    checkpoint,
    downtime::{self, Downtime},
    openings,
    rounds::Rounds,
    store::{CHECKPOINTS, LEASES, LOG, LOG_HEADER, Store},
};
use crate::{
    session::{DestroyReason, LeaseId},
    storage::{
        Position,
        journal::{Journal, LeaseRow, Lsn, Malformed, Records, WallTime},
        memory::{MemoryOptions, MemoryStorage, Restore},
    },
};

/// A registry loaded from its file.
pub(super) struct Loaded {
    pub(super) memory: Arc<MemoryStorage>,
    pub(super) journal: Arc<Journal>,
    pub(super) rounds: Rounds,
    pub(super) downtime: Downtime,
}

/// How often progress is logged.
const PROGRESS: Duration = Duration::from_secs(1);

/// Loads the registry: its leases, its checkpoints, and the records after them.
pub(super) fn load(store: &Store, options: MemoryOptions) -> Result<Loaded, Box<dyn Error + Send + Sync>> {
    let identity = store.identity();
    let transaction = store.read()?;
    let log = transaction.open_table(LOG)?;
    let newest = match log.last()? {
        Some((first, row)) => {
            let records = Records::new(row.value().get(LOG_HEADER..).ok_or(Malformed)?).count();
            Lsn((first.value() + records as u64).saturating_sub(1))
        }
        None => Lsn(0),
    };
    let start = match log.first()? {
        Some((_, row)) => Position(u64::from_le_bytes(*row.value().first_chunk().ok_or(Malformed)?)),
        None => Position(0),
    };
    let marks = openings::marks(&transaction, start)?;
    let journal = Arc::new(Journal::new(newest));
    let mut restore = Restore::new(identity, options, &marks, Arc::clone(&journal));
    restore.log_from(start);

    let leases = transaction.open_table(LEASES)?;
    for row in leases.iter()? {
        let (id, row) = row?;
        let id = LeaseId::from_number(id.value()).ok_or(Malformed)?;
        restore.lease(id, lease_row(row.value())?);
    }
    let grace = restore.extend_leases_after(downtime::since(store.served()));
    let checkpoints = transaction.open_table(CHECKPOINTS)?;
    let mut progress = Progress::new(checkpoints.len()? + log.len()?);
    let mut reflected = vec![Lsn(0); identity.buckets as usize];
    for row in checkpoints.iter()? {
        let (bucket, row) = row?;
        let place = reflected.get_mut(bucket.value() as usize).ok_or(Malformed)?;
        *place = checkpoint::restore(&mut restore, bucket.value(), row.value())?;
        progress.step();
    }
    for row in log.iter()? {
        let (first, row) = row?;
        let records = row.value().get(LOG_HEADER..).ok_or(Malformed)?;
        for (lsn, record) in (first.value()..).zip(Records::new(records)) {
            restore.record(Lsn(lsn), record?);
        }
        progress.step();
    }
    let memory = restore.finish();
    progress.done(&memory);
    let grace = if memory.leases() > 0 { grace } else { Duration::ZERO };
    let rounds = Rounds::new(reflected, options.retain_events);
    Ok(Loaded { memory: Arc::new(memory), journal, rounds, downtime: Downtime::new(grace) })
}

/// Returns the reason of a lease's end as its row stores it. 0 means that the lease is live.
pub(super) fn reason_byte(reason: DestroyReason) -> u8 {
    match reason {
        DestroyReason::Requested => 1,
        DestroyReason::LeaseExpired => 2,
        DestroyReason::LeaseRevoked => 3,
        DestroyReason::Released => 4,
    }
}

fn lease_row((ttl, ended, lingers_until, owner): (u64, u8, u64, &str)) -> Result<LeaseRow, Malformed> {
    Ok(LeaseRow::Ended(match ended {
        0 => {
            let lingers_until = (lingers_until > 0).then_some(WallTime(lingers_until));
            return Ok(LeaseRow::Live { ttl: Duration::from_millis(ttl), owner: owner.to_owned(), lingers_until });
        }
        1 => DestroyReason::Requested,
        2 => DestroyReason::LeaseExpired,
        3 => DestroyReason::LeaseRevoked,
        4 => DestroyReason::Released,
        _ => return Err(Malformed),
    }))
}

/// Logs the progress of a slow load.
struct Progress {
    began: Instant,
    logged: Instant,
    rows: u64,
    read: u64,
}

impl Progress {
    fn new(rows: u64) -> Self {
        let now = Instant::now();
        Self { began: now, logged: now, rows, read: 0 }
    }

    fn step(&mut self) {
        self.read += 1;
        if self.logged.elapsed() > PROGRESS {
            self.logged = Instant::now();
            tracing::info!(percent = self.read * 100 / self.rows.max(1), "reading the registry");
        }
    }

    fn done(&self, memory: &MemoryStorage) {
        tracing::info!(sessions = memory.sessions(), seconds = self.began.elapsed().as_secs_f64(), "read the registry");
    }
}
