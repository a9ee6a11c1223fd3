//! The leases of a mirror's sessions, and their owners.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use super::MirrorHolder;
use crate::{session::LeaseId, table::LeaseSlot};

/// The leases by slot. Slot 0 means no lease. Read by everyone, written by the mirror's task.
#[derive(Default)]
pub(super) struct Holders(RwLock<Vec<Option<MirrorHolder>>>);

impl Holders {
    /// Returns the lease of a slot and its owner. Call this while the table of a session under the lease is locked: the
    /// slot cannot be given to another lease then.
    pub(super) fn get(&self, slot: LeaseSlot) -> Option<MirrorHolder> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(slot as usize)?.clone()
    }

    /// Returns the lease of a slot, like [`get`](Self::get).
    pub(super) fn lease(&self, slot: LeaseSlot) -> Option<LeaseId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(slot as usize)?.as_ref().map(|holder| holder.lease)
    }

    fn set(&self, slot: LeaseSlot, holder: Option<MirrorHolder>) {
        let mut holders = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if holders.len() <= slot as usize {
            holders.resize(slot as usize + 1, None);
        }
        holders[slot as usize] = holder;
    }
}

/// Assigns slots to leases, and counts the sessions under each.
pub(super) struct Slots {
    holders: Arc<Holders>,
    by_id: HashMap<LeaseId, LeaseSlot>,
    /// The number of sessions under the lease of each slot.
    sessions: Vec<u64>,
    free: Vec<LeaseSlot>,
    /// Slots that had no session when they were last checked.
    idle: Vec<LeaseSlot>,
    /// The last lease that was looked up. Often most sessions of a message are under the same lease.
    last: Option<(LeaseId, LeaseSlot)>,
    /// Leases whose owner is not known yet.
    unknown: BTreeSet<LeaseId>,
}

impl Slots {
    pub(super) fn new(holders: Arc<Holders>) -> Self {
        Self {
            holders,
            by_id: HashMap::new(),
            sessions: vec![0],
            free: Vec::new(),
            idle: Vec::new(),
            last: None,
            unknown: BTreeSet::new(),
        }
    }

    /// Returns the slot of a lease. Assigns one to a lease that has none yet; its owner is then unknown.
    pub(super) fn slot_of(&mut self, lease: Option<LeaseId>) -> LeaseSlot {
        let Some(lease) = lease else { return 0 };
        if let Some((last, slot)) = self.last
            && last == lease
        {
            return slot;
        }
        let slot = *self.by_id.entry(lease).or_insert_with(|| {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.sessions.push(0);
                self.sessions.len() as LeaseSlot - 1
            });
            self.unknown.insert(lease);
            self.holders.set(slot, Some(MirrorHolder { lease, owner: None }));
            self.idle.push(slot);
            slot
        });
        self.last = Some((lease, slot));
        slot
    }

    pub(super) fn enter(&mut self, slot: LeaseSlot) {
        self.sessions[slot as usize] += 1;
    }

    pub(super) fn leave(&mut self, slot: LeaseSlot) {
        let sessions = &mut self.sessions[slot as usize];
        *sessions -= 1;
        if *sessions == 0 && slot != 0 {
            self.idle.push(slot);
        }
    }

    /// Forgets leases without sessions.
    pub(super) fn forget_idle(&mut self) {
        for slot in std::mem::take(&mut self.idle) {
            if self.sessions[slot as usize] == 0
                && let Some(lease) = self.holders.lease(slot)
            {
                self.by_id.remove(&lease);
                self.unknown.remove(&lease);
                self.last = None;
                self.holders.set(slot, None);
                self.free.push(slot);
            }
        }
    }

    /// Returns the leases whose owner is not known.
    pub(super) fn unknown(&self) -> Vec<LeaseId> {
        self.unknown.iter().copied().collect()
    }

    /// Sets the owner of a lease. `None` if nobody will ever know it, because the lease has ended.
    pub(super) fn set_owner(&mut self, lease: LeaseId, owner: Option<Arc<str>>) {
        self.unknown.remove(&lease);
        if let Some(slot) = self.by_id.get(&lease) {
            self.holders.set(*slot, Some(MirrorHolder { lease, owner }));
        }
    }
}
