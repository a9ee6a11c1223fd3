//! Rebuilds a memory storage after a restart, and exposes what is needed to write it to disk.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Lease, Marks, MemoryOptions, MemoryStorage, SessionHasher, Spot};
use crate::{
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{
        Position, RegistryId,
        journal::{Journal, LeaseRow, Lsn, ReadRecord},
    },
};

/// What stays the same across restarts of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct Identity {
    pub(in crate::storage) registry_id: RegistryId,
    /// The key of the hash that assigns sessions to buckets.
    pub(in crate::storage) hash_key: [u64; 2],
    /// The number of buckets.
    pub(in crate::storage) buckets: u32,
}

/// A memory storage under reconstruction. Restore its leases first, then its buckets, then replay the records after
/// them.
pub(in crate::storage) struct Restore {
    storage: MemoryStorage,
    /// The last record that each bucket reflects so far.
    reflected: Vec<Lsn>,
    leases: HashMap<LeaseId, Arc<Lease>>,
    /// Leases that no longer exist, but that replayed records mention.
    gone: Vec<Arc<Lease>>,
}

impl Restore {
    /// Starts with an empty registry whose log has these marks. Later changes are recorded in `journal`.
    pub(in crate::storage) fn new(
        identity: Identity,
        options: MemoryOptions,
        marks: &Marks,
        journal: Arc<Journal>,
    ) -> Self {
        let options = MemoryOptions { buckets: identity.buckets, partitions: 1, ..options };
        let hash = SessionHasher::new(identity.hash_key);
        let storage = MemoryStorage::with_hash(options, identity.registry_id, hash, marks, Some(journal));
        let reflected = vec![Lsn(0); storage.buckets.len()];
        Self { storage, reflected, leases: HashMap::new(), gone: Vec::new() }
    }

    pub(in crate::storage) fn lease(&mut self, id: LeaseId, row: LeaseRow) {
        self.leases.insert(id, self.storage.leases.restore(id, row));
    }

    /// Adds sessions under `lease` to a bucket.
    pub(in crate::storage) fn sessions(
        &mut self,
        bucket_index: u32,
        lease: Option<LeaseId>,
        count: usize,
        sessions: impl Iterator<Item = SessionKey>,
    ) {
        let slot = self.enter(bucket_index, lease);
        let bucket = self.storage.buckets[bucket_index as usize].get_mut();
        let need = bucket.need_for(count, slot != 0);
        drop(bucket.move_into(need.make(), &self.storage.hash));
        let mut count = 0;
        for session in sessions {
            let hash = self.storage.hash.within(&session);
            if bucket.insert(hash, session, slot, &self.storage.hash) {
                self.storage.leases.slots.enter(slot);
                count += 1;
            }
        }
        *self.storage.session_count.get_mut() += count;
    }

    /// Notes that the restored sessions of a bucket reflect all records up to `lsn`.
    pub(in crate::storage) fn reflects(&mut self, bucket: u32, lsn: Lsn) {
        self.reflected[bucket as usize] = lsn;
    }

    /// Makes the log begin after `position`.
    pub(in crate::storage) fn log_from(&mut self, position: Position) {
        self.storage.logs[0].restore_from(position);
    }

    /// Replays a record. Records must be replayed in order.
    pub(in crate::storage) fn record(&mut self, lsn: Lsn, record: ReadRecord) {
        let ReadRecord::Event(event) = record else { return };
        self.storage.logs[0].restore(event);
        let SessionEvent { session, change, lease } = event;
        // The session's lease after the change, and before it.
        let (lease, before) = match change {
            SessionChange::Created => (lease, None),
            SessionChange::Moved { previous } => (lease, previous),
            SessionChange::Destroyed(_) => (None, lease),
        };
        let Spot { hash, bucket: bucket_index } = self.storage.spot_of(&session);
        if self.reflected[bucket_index as usize] >= lsn {
            return;
        }
        let slot = self.enter(bucket_index, lease);
        let bucket = self.storage.buckets[bucket_index as usize].get_mut();
        while let Some(need) = bucket.need(slot != 0) {
            drop(bucket.move_into(need.make(), &self.storage.hash));
        }
        let (count, slots) = (self.storage.session_count.get_mut(), &self.storage.leases.slots);
        let slot_of = |lease: Option<LeaseId>| lease.map_or(0, |id| self.leases.get(&id).map_or(0, |lease| lease.slot));
        let is_under = |place| bucket.lease(place) == slot_of(before);
        debug_assert!(bucket.find(hash, &session).is_none_or(is_under), "{record:?} of a session under another lease");
        match (change, bucket.find(hash, &session)) {
            (SessionChange::Destroyed(_), Some(place)) => {
                slots.leave(bucket.lease(place), 1);
                bucket.remove(hash, place, &self.storage.hash);
                *count -= 1;
            }
            (SessionChange::Created, None) => {
                let is_new = bucket.insert(hash, session, slot, &self.storage.hash);
                *count += u64::from(is_new);
                slots.enter(if is_new { slot } else { 0 });
            }
            (SessionChange::Moved { .. }, Some(place)) => {
                slots.leave(bucket.lease(place), 1);
                slots.enter(slot);
                bucket.set_lease(place, slot);
            }
            // The record contradicts the bucket, so sessiond did not write this file.
            _ => {}
        }
    }

    /// Returns the slot of a lease, and notes that it may have sessions in that bucket.
    fn enter(&mut self, bucket: u32, lease: Option<LeaseId>) -> u32 {
        let Some(id) = lease else { return 0 };
        let Self { storage, leases, gone, .. } = self;
        let lease = leases.entry(id).or_insert_with(|| {
            let lease = storage.leases.restore_gone(id);
            gone.push(Arc::clone(&lease));
            lease
        });
        lease.enter(bucket);
        lease.slot
    }

    /// Extends all leases after an outage of that length, if it is known. Returns the time that they live at least.
    pub(in crate::storage) fn extend_leases_after(&mut self, outage: Option<Duration>) -> Duration {
        let grace = self.storage.grace_after(outage);
        self.storage.leases.keep_all_alive(grace);
        grace
    }

    pub(in crate::storage) fn finish(mut self) -> MemoryStorage {
        if !self.gone.is_empty() {
            let mut used = HashSet::new();
            for bucket in &mut self.storage.buckets {
                used.extend(bucket.get_mut().leased().map(|(_, slot)| slot));
            }
            for lease in self.gone {
                if used.contains(&lease.slot) {
                    // The end of this lease was never reported. Destroy its sessions as if the lease expired.
                    self.storage.leases.hand_over(super::Ended { lease, reason: DestroyReason::LeaseExpired });
                } else {
                    self.storage.leases.restore_free(&lease);
                }
            }
        }
        self.storage
    }
}

impl MemoryStorage {
    /// Returns the sessions of a bucket with their leases, and the last record that they reflect.
    pub(in crate::storage) fn checkpoint(&self, bucket: u32) -> (Lsn, Vec<(Option<LeaseId>, SessionKey)>) {
        let bucket = self.buckets[bucket as usize].lock();
        // While the bucket is locked, nothing about it is recorded, and the slots of its sessions keep their leases.
        let lsn = self.journal.as_ref().map_or(Lsn(0), |journal| journal.newest());
        let sessions = bucket.leased().map(|(session, slot)| (self.leases.id(slot), session)).collect();
        (lsn, sessions)
    }

    /// Shows followers the changes up to `position`, which are on disk.
    pub(in crate::storage) fn show(&self, position: Position) {
        self.logs[0].show(position);
    }

    /// Returns the position of the newest change.
    pub(in crate::storage) fn newest(&self) -> Position {
        self.logs[0].newest()
    }

    /// Returns the number of leases.
    pub(in crate::storage) fn leases(&self) -> u64 {
        self.leases.count()
    }

    /// Returns the number of sessions.
    pub(in crate::storage) fn sessions(&self) -> u64 {
        self.session_count.load(Ordering::Relaxed)
    }
}
