//! The observers that wait for the next publication.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Context,
};

use crate::relay::Waiter;

/// The waiting observers. Each observer keeps one number for its whole life.
///
/// A publication touches only the waiting observers, so a stuck observer costs it nothing.
#[derive(Default)]
pub(super) struct ParkedObservers {
    /// The observers, by number.
    entries: Vec<Entry>,
    free: Vec<usize>,
    waiting: Vec<usize>,
}

/// How far an observer has read: the sum of its positions, or [`CAUGHT_UP`].
pub(super) type Progress = Arc<AtomicU64>;

/// The progress of an observer that has read everything.
pub(super) const CAUGHT_UP: u64 = u64::MAX;

#[derive(Default)]
struct Entry {
    progress: Progress,
    waiter: Option<Waiter>,
    /// Whether `waiting` contains the observer's number. It may still do so after the observer has left: then the next
    /// observer with this number counts as waiting.
    listed: bool,
}

impl ParkedObservers {
    pub(super) fn join(&mut self) -> (usize, Progress) {
        let id = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            self.entries.len() - 1
        });
        let progress = &self.entries[id].progress;
        progress.store(CAUGHT_UP, Ordering::Relaxed);
        (id, Arc::clone(progress))
    }

    /// For each observer with unread events, returns how far it is behind `end`.
    pub(super) fn lags(&self, end: u64) -> impl Iterator<Item = u64> {
        let read = self.entries.iter().map(|entry| entry.progress.load(Ordering::Relaxed));
        read.filter(move |read| *read < end).map(move |read| end - read)
    }

    pub(super) fn leave(&mut self, id: usize) {
        self.entries[id].waiter = None;
        self.entries[id].progress.store(CAUGHT_UP, Ordering::Relaxed);
        self.free.push(id);
    }

    pub(super) fn wait(&mut self, id: usize, context: &Context<'_>) {
        let entry = &mut self.entries[id];
        match &mut entry.waiter {
            Some(waiter) => waiter.renew(context),
            none => *none = Some(Waiter::new(context)),
        }
        if !entry.listed {
            entry.listed = true;
            self.waiting.push(id);
        }
    }

    /// Moves all waiters into `woken`. Wake them once no lock is held.
    pub(super) fn take(&mut self, woken: &mut Vec<Waiter>) {
        for id in self.waiting.drain(..) {
            let entry = &mut self.entries[id];
            entry.listed = false;
            woken.extend(entry.waiter.take());
        }
    }
}
