//! Which lease each slot stands for and how many sessions it has, without a lock: every change of a session under a lease asks.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

use super::bucket::LeaseSlot;
use crate::session::LeaseId;

/// The slots of the first segment. Each further one has twice as many as the one before.
const FIRST: u32 = 64;

/// As many segments as 2^32 slots need.
const SEGMENTS: usize = 27;

/// Added to the number of a lease that has ended. No lease has so large a number.
const ENDED: u64 = 1 << 63;
/// The same for a lease that lingers.
const LINGERS: u64 = 1 << 62;
const _: () = assert!(LeaseId::MAX < LINGERS);

/// What a lease accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseState {
    Live,
    /// It was revoked, and ends later. No session comes under it.
    Lingers,
    /// Its sessions are being destroyed.
    Ended,
}

/// The leases by their slots, which count from 1. Slots come and go under the lock of the leases. A slot keeps its lease while any
/// session is under it, so whoever has a bucket locked may ask for the slots of its sessions.
#[derive(Default)]
pub(super) struct Slots([OnceLock<Box<[Slot]>>; SEGMENTS]);

#[derive(Default)]
struct Slot {
    /// The number of the lease, and whether it has ended or lingers.
    lease: AtomicU64,
    /// How many sessions are under it.
    sessions: AtomicU64,
}

impl Slots {
    /// Gives a slot to a lease that lives.
    pub(super) fn set(&self, slot: LeaseSlot, lease: LeaseId) {
        let (segment, offset) = place(slot);
        let made = || (0..u64::from(FIRST) << segment).map(|_| Slot::default()).collect();
        self.0[segment].get_or_init(made)[offset].lease.store(lease.number(), Ordering::Release);
    }

    /// Notes that the lease of a slot has ended.
    pub(super) fn end(&self, slot: LeaseSlot) {
        self.flag(slot, ENDED);
    }

    /// Notes that the lease of a slot lingers.
    pub(super) fn linger(&self, slot: LeaseSlot) {
        self.flag(slot, LINGERS);
    }

    fn flag(&self, slot: LeaseSlot, flag: u64) {
        if let Some(slot) = self.get(slot) {
            slot.lease.fetch_or(flag, Ordering::AcqRel);
        }
    }

    /// Returns the lease that has a slot; none for 0.
    pub(super) fn id(&self, slot: LeaseSlot) -> Option<LeaseId> {
        LeaseId::from_number(self.load(slot) & !(ENDED | LINGERS))
    }

    /// Counts a session that comes under the lease of a slot. Called while its bucket is locked, as is [`leave`](Self::leave).
    pub(super) fn enter(&self, slot: LeaseSlot) {
        if let Some(slot) = self.get(slot) {
            slot.sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts sessions that are no longer under the lease of a slot.
    pub(super) fn leave(&self, slot: LeaseSlot, sessions: u64) {
        if let Some(slot) = self.get(slot) {
            slot.sessions.fetch_sub(sessions, Ordering::Relaxed);
        }
    }

    /// How many sessions are under the lease of a slot.
    pub(super) fn sessions(&self, slot: LeaseSlot) -> u64 {
        self.get(slot).map_or(0, |slot| slot.sessions.load(Ordering::Relaxed))
    }

    /// What the lease `id`, which was given this slot, accepts now. Once its slot names another lease, it has ended.
    ///
    /// For a change of a session under the lease, this is asked while the session's bucket is locked: see
    /// [`Lease::enter`](super::lease::Lease::enter).
    pub(super) fn state(&self, slot: LeaseSlot, id: LeaseId) -> LeaseState {
        match self.load(slot) ^ id.number() {
            0 => LeaseState::Live,
            LINGERS => LeaseState::Lingers,
            _ => LeaseState::Ended,
        }
    }

    /// Whether the lease of a slot has ended, so that sessions are under it in name only.
    pub(super) fn has_ended(&self, slot: LeaseSlot) -> bool {
        self.load(slot) & ENDED != 0
    }

    /// Whether the lease of a slot protects its sessions: it has neither ended nor lingers.
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

/// The segment of a slot, and its place there.
fn place(slot: LeaseSlot) -> (usize, usize) {
    let number = u64::from(slot - 1) + u64::from(FIRST);
    let segment = number.ilog2() - FIRST.ilog2();
    (segment as usize, (number - (u64::from(FIRST) << segment)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_place_of_its_own() {
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
        assert_eq!(slots.state(7, lease(7).unwrap()), LeaseState::Ended, "its slot is another's now");
        slots.end(8);
        assert_eq!(slots.state(8, lease(8).unwrap()), LeaseState::Ended);
        let (segment, offset) = place(LeaseSlot::MAX);
        assert!(segment < SEGMENTS && offset < (FIRST as usize) << segment);
    }
}
