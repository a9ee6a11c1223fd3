//! One subject over a storage. The test's own observer, the witness, shows how far the subject has followed.

use std::{sync::Arc, time::Duration};

use sessiond::{
    session::SessionEvent,
    storage::SessionStorage,
    subject::{Cursor, Filter, ObserveOptions, SessionSubject, SubjectOptions},
};
use tokio::time::timeout;

use super::{
    checker::{Broken, Promise, Started, Trace},
    history::Shape,
    model::{Model, Place},
    paced::Paced,
    watcher::Watcher,
};
use crate::twisted::Twisted;

/// Far longer than anything takes. It only ends tests that hang.
const DEADLINE: Duration = Duration::from_secs(60);

/// The most events in a chunk, and a generous bound on a chunk's other memory.
pub(crate) const EVENTS_A_CHUNK: usize = 2400;
pub(crate) const CHUNK_OVERHEAD: usize = 512;

pub(crate) struct Replica {
    pub(crate) storage: Arc<Twisted<Paced>>,
    pub(crate) subject: SessionSubject,
    /// Starts with a snapshot. Once synced, its cursor is a place that the subject has reached, not only the storage.
    witness: Watcher,
    /// How many changes there were when the subject had last followed them all.
    settled: u64,
    /// The most changes that the subject may have found at once.
    burst: u64,
}

impl Replica {
    pub(crate) async fn start(storage: Arc<dyn SessionStorage>, options: SubjectOptions, expires_leases: bool) -> Self {
        let storage = Twisted::new(storage, Paced::new(expires_leases));
        let start = storage.log().await.unwrap().partitions.iter().map(|held| held.start.position.0).sum();
        let subject = SessionSubject::start(storage.clone(), options, ()).await.unwrap();
        let options = ObserveOptions::snapshot();
        let observer = subject.observe(options).await.unwrap();
        let witness = Watcher::new(observer, Trace::new(Started::Snapshot, Filter::default()));
        Self { storage, subject, witness, settled: start, burst: 0 }
    }

    /// Whether the subject has followed every change.
    pub(crate) fn is_settled(&self, model: &Model) -> bool {
        let place = self.witness.cursor().map(|cursor| model.place(&cursor.to_string()));
        place == Some(Place::After(model.ends()))
    }

    /// Waits until the subject has followed every change, unless it is not allowed to.
    pub(crate) async fn settle(&mut self, model: &mut Model) {
        loop {
            self.witness.drain().await;
            // After the drain, because leases may end while the witness lets other tasks run.
            model.catch_up().await;
            if self.is_settled(model) {
                break;
            }
            if !self.storage.follows() {
                return;
            }
            if timeout(DEADLINE, self.witness.woken()).await.is_err() {
                let (ends, newest, stats) =
                    (model.ends(), self.witness.trace.messages.iter().rev().take(3), self.subject.stats());
                panic!(
                    "the subject did not follow its storage to {ends:?}: {stats:?}, {:?}",
                    newest.collect::<Vec<_>>()
                );
            }
        }
        let end = model.ends().iter().sum();
        self.burst = self.burst.max(end - self.settled);
        self.settled = end;
    }

    /// Whether the events after a cursor are certainly retained.
    pub(crate) fn retains(&self, model: &Model, cursor: &Cursor) -> bool {
        let retained = self.subject.stats().retained_events as u64;
        match (model.place(&cursor.to_string()), model.ends().as_slice()) {
            (Place::After(places), [end]) => self.is_settled(model) && end - places[0] <= retained,
            // With several partitions, the newest changes overall are not the newest of each partition.
            _ => false,
        }
    }

    pub(crate) fn check_bounds(&self, shape: &Shape, model: &Model, observers: usize) -> Vec<Broken> {
        let stats = self.subject.stats();
        let burst = self.burst.max(model.ends().iter().sum::<u64>() - self.settled) as usize;
        let burst = burst.min(EVENTS_A_CHUNK);
        let (events, bytes) = (stats.retained_events, stats.retained_bytes);
        let mut broken = Vec::new();
        if events > shape.retain_events + burst {
            broken.push(format!("{events} events are retained, more than {} + {burst}", shape.retain_events));
        }
        // For a chunk with moves, the events for streams without placements are kept as well.
        if bytes > shape.retain_bytes + 2 * burst * size_of::<SessionEvent>() + CHUNK_OVERHEAD {
            broken.push(format!("{bytes} bytes are retained, more than {} bytes + {burst} events", shape.retain_bytes));
        }
        if stats.observers != observers + 1 {
            broken.push(format!("{} observers are counted, not {observers} + the witness", stats.observers));
        }
        broken.into_iter().map(|how| Broken::new(Promise::Bounded, how)).collect()
    }

    /// Drops the replica, and returns what its witness received.
    pub(crate) fn end(self) -> (Trace, Vec<Broken>) {
        let (trace, mut broken) = self.witness.leave();
        let left = self.subject.stats().observers;
        if left > 0 {
            broken.push(Broken::new(Promise::Bounded, format!("{left} observers are counted although all have left")));
        }
        (trace, broken)
    }
}
