//! One of the subjects over a storage, with an observer of the test's own that shows how far it has followed.

use std::{sync::Arc, time::Duration};

use sessiond::{
    session::SessionEvent,
    storage::SessionStorage,
    subject::{Cursor, Filter, ObserveOptions, SessionSubject, Start, SubjectOptions},
};
use tokio::time::timeout;

use super::{
    checker::{Broken, Promise, Started, Trace},
    history::Shape,
    model::{Model, Place},
    twisted::{Paced, Twisted},
    watcher::Watcher,
};

/// Far longer than anything takes; it only ends tests that hang.
const DEADLINE: Duration = Duration::from_secs(60);

/// The most events of a chunk, and what a chunk costs beside them, generously.
pub(crate) const EVENTS_A_CHUNK: usize = 2400;
pub(crate) const CHUNK_OVERHEAD: usize = 512;

pub(crate) struct Replica {
    pub(crate) storage: Arc<Twisted<Paced>>,
    pub(crate) subject: SessionSubject,
    /// Began with a snapshot: once synced its cursor is a place that the subject has come to, and not only the storage.
    witness: Watcher,
    /// How many changes there were when it had followed them all.
    settled: u64,
    /// The most changes that it may have found at once.
    burst: u64,
}

impl Replica {
    pub(crate) async fn start(storage: Arc<dyn SessionStorage>, options: SubjectOptions, expires_leases: bool) -> Self {
        let storage = Twisted::new(storage, Paced::new(expires_leases));
        let start = storage.log().await.unwrap().partitions.iter().map(|held| held.start.position.0).sum();
        let subject = SessionSubject::start(storage.clone(), options, ()).await.unwrap();
        let options = ObserveOptions { start: Start::Snapshot, filter: Filter::default() };
        let observer = subject.observe(options).await.unwrap();
        let witness = Watcher::new(observer, Trace::new(Started::Snapshot, Filter::default()));
        Self { storage, subject, witness, settled: start, burst: 0 }
    }

    /// Whether it has followed every change.
    pub(crate) fn is_settled(&self, model: &Model) -> bool {
        let place = self.witness.cursor().map(|cursor| model.place(&cursor.to_string()));
        place == Some(Place::After(model.ends()))
    }

    /// Waits until it has followed every change, unless it may not.
    pub(crate) async fn settle(&mut self, model: &mut Model) {
        loop {
            self.witness.drain().await;
            // After it: leases may end while the witness lets others run.
            model.catch_up().await;
            if self.is_settled(model) {
                break;
            }
            if !self.storage.twist.follows() {
                return;
            }
            if timeout(DEADLINE, self.witness.woken()).await.is_err() {
                let (ends, told, stats) =
                    (model.ends(), self.witness.trace.told.iter().rev().take(3), self.subject.stats());
                panic!("it does not follow its storage to {ends:?}: {stats:?}, {:?}", told.collect::<Vec<_>>());
            }
        }
        let end = model.ends().iter().sum();
        self.burst = self.burst.max(end - self.settled);
        self.settled = end;
    }

    /// Whether what follows a cursor is certain to be retained.
    pub(crate) fn retains(&self, model: &Model, cursor: &Cursor) -> bool {
        let retained = self.subject.stats().retained_events as u64;
        match (model.place(&cursor.to_string()), model.ends().as_slice()) {
            (Place::After(places), [end]) => self.is_settled(model) && end - places[0] <= retained,
            // With several partitions the newest changes of all are not the newest of each.
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
            broken.push(format!("{events} events are retained, not {} and {burst}", shape.retain_events));
        }
        // Of a chunk with moves, what streams without placements are told is kept as well.
        if bytes > shape.retain_bytes + 2 * burst * size_of::<SessionEvent>() + CHUNK_OVERHEAD {
            broken.push(format!("{bytes} bytes are retained, not {} and {burst} events", shape.retain_bytes));
        }
        if stats.observers != observers + 1 {
            broken.push(format!("{} observers are counted, not {observers} and the witness", stats.observers));
        }
        broken.into_iter().map(|how| Broken::new(Promise::Bounded, how)).collect()
    }

    /// Drops it, and gives what its witness was told.
    pub(crate) fn end(self) -> (Trace, Vec<Broken>) {
        let (trace, mut broken) = self.witness.leave();
        let left = self.subject.stats().observers;
        if left > 0 {
            broken.push(Broken::new(Promise::Bounded, format!("{left} observers are counted, and all are gone")));
        }
        (trace, broken)
    }
}
