//! Which lease each slot stands for, told without a lock: every move and every destroyed session asks.

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
const _: () = assert!(LeaseId::MAX < ENDED);

/// The leases by their slots, which count from 1. Slots come and go under the lock of the leases. A slot keeps its lease while any
/// session is under it, so whoever has a bucket locked may ask for the slots of its sessions.
#[derive(Default)]
pub(super) struct Slots([OnceLock<Box<[AtomicU64]>>; SEGMENTS]);

impl Slots {
    /// Gives a slot to a lease that lives.
    pub(super) fn set(&self, slot: LeaseSlot, lease: LeaseId) {
        let (segment, offset) = place(slot);
        let made = || (0..u64::from(FIRST) << segment).map(|_| AtomicU64::new(0)).collect();
        self.0[segment].get_or_init(made)[offset].store(lease.number(), Ordering::Release);
    }

    /// Notes that the lease of a slot has ended.
    pub(super) fn end(&self, slot: LeaseSlot) {
        let (segment, offset) = place(slot);
        if let Some(segment) = self.0[segment].get() {
            segment[offset].fetch_or(ENDED, Ordering::AcqRel);
        }
    }

    /// Returns the lease that has a slot; none for 0.
    pub(super) fn id(&self, slot: LeaseSlot) -> Option<LeaseId> {
        LeaseId::from_number(self.load(slot) & !ENDED)
    }

    /// Whether the lease of a slot has ended, so that sessions are under it in name only.
    pub(super) fn has_ended(&self, slot: LeaseSlot) -> bool {
        self.load(slot) & ENDED != 0
    }

    fn load(&self, slot: LeaseSlot) -> u64 {
        if slot == 0 {
            return 0;
        }
        let (segment, offset) = place(slot);
        self.0[segment].get().map_or(0, |segment| segment[offset].load(Ordering::Acquire))
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
        slots.end(7);
        assert!(slots.has_ended(7) && slots.id(7) == lease(7) && !slots.has_ended(8) && !slots.has_ended(0));
        slots.set(7, lease(9).unwrap());
        assert!(!slots.has_ended(7));
        let (segment, offset) = place(LeaseSlot::MAX);
        assert!(segment < SEGMENTS && offset < (FIRST as usize) << segment);
    }
}
