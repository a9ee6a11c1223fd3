//! The observers that wait for the next publication.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Context,
};

use crate::relay::Waiter;

/// The waiting observers. Each observer keeps one slot number for its whole life.
///
/// A publication touches only the waiting observers, so a stuck observer costs it nothing.
#[derive(Default)]
pub(super) struct ParkedObservers {
    slots: Vec<Slot>,
    free: Vec<usize>,
    waiting: Vec<usize>,
}

/// How far an observer has read: the sum of its positions, or [`CAUGHT_UP`].
pub(super) type Progress = Arc<AtomicU64>;

/// The progress of an observer that has read everything.
pub(super) const CAUGHT_UP: u64 = u64::MAX;

#[derive(Default)]
struct Slot {
    progress: Progress,
    waiter: Option<Waiter>,
    /// Whether `waiting` contains the slot. It may still do so after the slot's observer has left; the next observer of
    /// the slot inherits the entry.
    listed: bool,
}

impl ParkedObservers {
    pub(super) fn join(&mut self) -> (usize, Progress) {
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let progress = &self.slots[id].progress;
        progress.store(CAUGHT_UP, Ordering::Relaxed);
        (id, Arc::clone(progress))
    }

    /// For each observer with unread events, returns how far it is behind `end`.
    pub(super) fn lags(&self, end: u64) -> impl Iterator<Item = u64> {
        let read = self.slots.iter().map(|slot| slot.progress.load(Ordering::Relaxed));
        read.filter(move |read| *read < end).map(move |read| end - read)
    }

    pub(super) fn leave(&mut self, id: usize) {
        self.slots[id].waiter = None;
        self.slots[id].progress.store(CAUGHT_UP, Ordering::Relaxed);
        self.free.push(id);
    }

    pub(super) fn wait(&mut self, id: usize, context: &Context<'_>) {
        let slot = &mut self.slots[id];
        match &mut slot.waiter {
            Some(waiter) => waiter.renew(context),
            none => *none = Some(Waiter::new(context)),
        }
        if !slot.listed {
            slot.listed = true;
            self.waiting.push(id);
        }
    }

    /// Moves all waiters into `woken`. Wake them once no lock is held.
    pub(super) fn take(&mut self, woken: &mut Vec<Waiter>) {
        for id in self.waiting.drain(..) {
            let slot = &mut self.slots[id];
            slot.listed = false;
            woken.extend(slot.waiter.take());
        }
    }
}
