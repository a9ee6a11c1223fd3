//! Maps slots to leases and counts their sessions. It takes no lock, because every change of a session under a lease
//! uses it.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

use crate::{session::LeaseId, table::LeaseSlot};

/// The number of slots in the first segment. Each further segment doubles it.
const FIRST: u32 = 64;

/// Enough segments for 2^32 slots.
const SEGMENTS: usize = 27;

/// A flag on the number of a lease that has ended. Lease numbers stay below it.
const ENDED: u64 = 1 << 63;
/// The same for a lease that lingers.
const LINGERS: u64 = 1 << 62;
const _: () = assert!(LeaseId::MAX < LINGERS);

/// What a lease accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseState {
    Live,
    /// Revoked, and ends later. No session can come under it.
    Lingers,
    /// Its sessions are being destroyed.
    Ended,
}

/// The leases by slot. Slots start at 1, and are assigned and freed under the lock of the leases. A slot keeps its
/// lease while any session is under it, so the slots of a bucket's sessions can be looked up while that bucket is
/// locked.
#[derive(Default)]
pub(super) struct Slots([OnceLock<Box<[Slot]>>; SEGMENTS]);

#[derive(Default)]
struct Slot {
    /// The number of the lease, with a flag if it has ended or lingers.
    lease: AtomicU64,
    /// How many sessions are under the lease.
    sessions: AtomicU64,
}

impl Slots {
    /// Assigns a slot to a live lease.
    pub(super) fn set(&self, slot: LeaseSlot, lease: LeaseId) {
        let (segment, offset) = place(slot);
        let made = || (0..u64::from(FIRST) << segment).map(|_| Slot::default()).collect();
        self.0[segment].get_or_init(made)[offset].lease.store(lease.number(), Ordering::Release);
    }

    /// Marks a slot's lease as ended.
    pub(super) fn end(&self, slot: LeaseSlot) {
        self.flag(slot, ENDED);
    }

    /// Marks a slot's lease as lingering.
    pub(super) fn linger(&self, slot: LeaseSlot) {
        self.flag(slot, LINGERS);
    }

    fn flag(&self, slot: LeaseSlot, flag: u64) {
        if let Some(slot) = self.get(slot) {
            slot.lease.fetch_or(flag, Ordering::AcqRel);
        }
    }

    /// Returns the lease of a slot. `None` for slot 0.
    pub(super) fn id(&self, slot: LeaseSlot) -> Option<LeaseId> {
        LeaseId::from_number(self.load(slot) & !(ENDED | LINGERS))
    }

    /// Counts a session that comes under a slot's lease. Like [`leave`](Self::leave), called while its bucket is
    /// locked.
    pub(super) fn enter(&self, slot: LeaseSlot) {
        if let Some(slot) = self.get(slot) {
            slot.sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts sessions that leave a slot's lease.
    pub(super) fn leave(&self, slot: LeaseSlot, sessions: u64) {
        if let Some(slot) = self.get(slot) {
            slot.sessions.fetch_sub(sessions, Ordering::Relaxed);
        }
    }

    /// Returns how many sessions are under a slot's lease.
    pub(super) fn sessions(&self, slot: LeaseSlot) -> u64 {
        self.get(slot).map_or(0, |slot| slot.sessions.load(Ordering::Relaxed))
    }

    /// Returns what lease `id`, which was given this slot, accepts now. If the slot belongs to another lease by now,
    /// `id` has ended.
    ///
    /// To change a session under the lease, call this while the session's bucket is locked: see
    /// [`Lease::enter`](super::lease::Lease::enter).
    pub(super) fn state(&self, slot: LeaseSlot, id: LeaseId) -> LeaseState {
        match self.load(slot) ^ id.number() {
            0 => LeaseState::Live,
            LINGERS => LeaseState::Lingers,
            _ => LeaseState::Ended,
        }
    }

    /// Returns whether a slot's lease has ended. Sessions still under it then count as under no lease.
    pub(super) fn has_ended(&self, slot: LeaseSlot) -> bool {
        self.load(slot) & ENDED != 0
    }

    /// Returns whether a slot's lease protects its sessions, that is, neither lingers nor has ended.
    pub(super) fn protects(&self, slot: LeaseSlot) -> bool {
        let lease = self.load(slot);
        lease != 0 && lease & (ENDED | LINGERS) == 0
    }

    fn load(&self, slot: LeaseSlot) -> u64 {
        self.get(slot).map_or(0, |slot| slot.lease.load(Ordering::Acquire))
    }

    fn get(&self, slot: LeaseSlot) -> Option<&Slot> {
        if slot == 0 {
            return None;
        }
        let (segment, offset) = place(slot);
        self.0[segment].get().map(|segment| &segment[offset])
    }
}

/// Returns the segment of a slot, and its index there.
fn place(slot: LeaseSlot) -> (usize, usize) {
    let number = u64::from(slot - 1) + u64::from(FIRST);
    let segment = number.ilog2() - FIRST.ilog2();
    (segment as usize, (number - (u64::from(FIRST) << segment)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_keeps_its_own_lease_and_state() {
        let slots = Slots::default();
        let lease = |slot: u32| LeaseId::from_number(u64::from(slot) + 7);
        for slot in 1..5000 {
            assert_eq!(slots.id(slot), None);
            slots.set(slot, lease(slot).unwrap());
        }
        assert!((1..5000).all(|slot| slots.id(slot) == lease(slot)));
        assert_eq!(slots.id(0), None);
        assert_eq!(slots.state(7, lease(7).unwrap()), LeaseState::Live);
        slots.end(7);
        assert_eq!(slots.state(7, lease(7).unwrap()), LeaseState::Ended);
        assert!(slots.has_ended(7) && slots.id(7) == lease(7) && !slots.has_ended(8) && !slots.has_ended(0));
        slots.linger(8);
        assert_eq!(slots.state(8, lease(8).unwrap()), LeaseState::Lingers);
        assert!(!slots.has_ended(8) && !slots.protects(8) && slots.id(8) == lease(8) && slots.protects(9));
        assert!(!slots.protects(7) && !slots.protects(0));
        slots.set(7, lease(9).unwrap());
        assert!(!slots.has_ended(7));
        assert_eq!(slots.state(7, lease(7).unwrap()), LeaseState::Ended, "its slot belongs to another lease now");
        slots.end(8);
        assert_eq!(slots.state(8, lease(8).unwrap()), LeaseState::Ended);
        let (segment, offset) = place(LeaseSlot::MAX);
        assert!(segment < SEGMENTS && offset < (FIRST as usize) << segment);
    }
}
