//! Who waits for the next publication.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Context,
};

use crate::relay::Waiter;

/// The observers that wait, by a number that each observer keeps for its life.
///
/// Only those who wait are touched by a publication: an observer that is stuck costs it nothing.
#[derive(Default)]
pub(super) struct ParkedObservers {
    slots: Vec<Slot>,
    free: Vec<usize>,
    waiting: Vec<usize>,
}

/// How far an observer has read: the sum of its positions, or that it waits for what comes.
pub(super) type Progress = Arc<AtomicU64>;

/// The progress of an observer that has read everything.
pub(super) const CAUGHT_UP: u64 = u64::MAX;

#[derive(Default)]
struct Slot {
    progress: Progress,
    waiter: Option<Waiter>,
    /// Whether `waiting` has the slot. It may, with nobody in it, when its observer left: the slot's next one inherits it.
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

    /// How far each observer is behind `end` that has something unread.
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

    /// Takes all who wait into `woken`, to be woken when no lock is held.
    pub(super) fn take(&mut self, woken: &mut Vec<Waiter>) {
        for id in self.waiting.drain(..) {
            let slot = &mut self.slots[id];
            slot.listed = false;
            woken.extend(slot.waiter.take());
        }
    }
}
