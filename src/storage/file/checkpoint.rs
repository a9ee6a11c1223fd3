//! Checkpoints: the sessions of a bucket, as written to disk.
//!
//! A checkpoint is a list of eight-byte little-endian numbers. The first is the last record that the checkpoint
//! reflects. Then follow, for each lease (0 for no lease): the lease's number, how many sessions it has here, and the
//! two numbers of each session.

use std::collections::BTreeMap;

use crate::{
    session::{LeaseId, SessionKey},
    storage::{
        journal::{Lsn, Malformed, Reader, session_bytes},
        memory::{MemoryStorage, Restore},
    },
};

/// A bucket's row.
pub(super) struct Checkpoint {
    pub(super) bucket: u32,
    /// The last record that the checkpoint reflects.
    pub(super) lsn: Lsn,
    pub(super) bytes: Vec<u8>,
}

impl Checkpoint {
    pub(super) fn of(memory: &MemoryStorage, bucket: u32) -> Self {
        let (lsn, sessions) = memory.checkpoint(bucket);
        let mut leases: BTreeMap<Option<LeaseId>, Vec<SessionKey>> = BTreeMap::new();
        for (lease, session) in sessions {
            leases.entry(lease).or_default().push(session);
        }
        let len: usize = leases.values().map(|sessions| 16 + 16 * sessions.len()).sum();
        let mut bytes = Vec::with_capacity(8 + len);
        bytes.extend_from_slice(&lsn.0.to_le_bytes());
        for (lease, sessions) in leases {
            bytes.extend_from_slice(&lease.map_or(0, LeaseId::number).to_le_bytes());
            bytes.extend_from_slice(&(sessions.len() as u64).to_le_bytes());
            sessions.iter().for_each(|session| bytes.extend_from_slice(&session_bytes(session)));
        }
        Self { bucket, lsn, bytes }
    }
}

/// Restores a bucket from its row. Returns the last record that the row reflects.
pub(super) fn restore(restore: &mut Restore, bucket: u32, bytes: &[u8]) -> Result<Lsn, Malformed> {
    let mut reader = Reader(bytes);
    let lsn = Lsn(reader.u64().ok_or(Malformed)?);
    while !reader.0.is_empty() {
        let lease = LeaseId::from_number(reader.u64().ok_or(Malformed)?);
        let count = usize::try_from(reader.u64().ok_or(Malformed)?).map_err(|_| Malformed)?;
        let len = count.checked_mul(16).filter(|len| *len <= reader.0.len()).ok_or(Malformed)?;
        let (sessions, rest) = reader.0.split_at(len);
        reader.0 = rest;
        let sessions = sessions.chunks_exact(16).filter_map(|bytes| Reader(bytes).session());
        restore.sessions(bucket, lease, count, sessions);
    }
    restore.reflects(bucket, lsn);
    Ok(lsn)
}
