//! The publisher: puts changes into the event log and the mailboxes, and wakes the observers that wait for them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::{
    ResetReason,
    counts::ChangeCounts,
    cursor::{Cursor, Points},
    filter::Filter,
    index::{FilterIndex, Mailbox, WatchedId},
    log::{self, Chunk, EventEncoder, EventLog, Retention},
    run::Run,
    scan::Kind,
};
use crate::{
    relay::wake_all,
    session::{SessionChange, SessionEvent},
    storage::{BucketRun, Changes, LogExtent, LogPoint, Place, Position, RegistryId},
};

/// How many ids of a filter are added or removed while the index is locked once.
const IDS_PER_LOCK: usize = 256;

/// The event log, and the index of the observers that filter by id.
///
/// The index is locked before the log, and for the whole of a publication. An observer that registers therefore sees
/// the log either before the publication or after it.
pub(super) struct Feed {
    pub(super) log: EventLog,
    index: Mutex<FilterIndex>,
    encoder: Box<dyn EventEncoder>,
    changes: Mutex<ChangeCounts>,
    /// The number of observers with placements. Chunks are encoded for them only while there are any.
    pub(super) placed_observers: AtomicUsize,
}

/// Returns the events for streams without placements, if they differ from `events`.
fn plain(events: &[SessionEvent]) -> Option<Box<[SessionEvent]>> {
    let is_move = |event: &SessionEvent| matches!(event.change, SessionChange::Moved { .. });
    events.iter().any(is_move).then(|| events.iter().filter(|event| !is_move(event)).copied().collect())
}

impl Feed {
    pub(super) fn new(retention: Retention, extent: &LogExtent, encoder: Box<dyn EventEncoder>) -> Self {
        let log = EventLog::new(retention, extent);
        let placed_observers = AtomicUsize::new(0);
        Self { log, index: Mutex::default(), encoder, changes: Default::default(), placed_observers }
    }

    /// Returns the number of published changes.
    pub(super) fn changes(&self) -> ChangeCounts {
        *self.changes.lock()
    }

    /// Makes a run of what was read, for observers of this kind.
    pub(super) fn run(&self, first: u32, read: BucketRun, kind: Kind) -> Run {
        if kind.is_encoded { Run::encoded(first, read, &*self.encoder) } else { Run::plain(first, read) }
    }

    /// Publishes the changes that follow `after` in `partition`, as one chunk. Returns the point at the last change.
    pub(super) fn publish(&self, partition: u32, after: LogPoint, changes: Changes) -> LogPoint {
        let mut counts = self.changes.lock();
        changes.events.iter().for_each(|event| counts.count(event));
        drop(counts);
        let first = Position(after.position.0 + 1);
        let last = after.past(&changes);
        let Changes { events, .. } = changes;
        // Only the follower changes the head of the log, so it stays what it is here until the append below.
        let head = self.log.head();
        let mut points = head.points;
        points[partition as usize] = last;
        let cursor = Cursor::after(head.registry_id, &points);
        let plain = plain(&events);
        // Streams without placements receive nothing for a chunk that contains only moves.
        let wire = match plain.as_deref().unwrap_or(&events) {
            [] => Bytes::new(),
            visible => self.encoder.encode(visible, &cursor),
        };
        let place = |position| Place { partition, position };
        let has_placed = self.placed_observers.load(Ordering::Relaxed) > 0;
        let placed = has_placed.then(|| self.encoder.encode_placed(&events, &cursor, place(last.position)));
        let mut woken = Vec::new();
        let index = self.index.lock();
        index.deliver(head.place.chunk(), place(first), &events, &mut woken);
        self.log.append(Arc::new(Chunk { partition, first, events: events.into(), plain, points, wire, placed }));
        drop(index);
        self.log.take_parked(&mut woken);
        wake_all(woken);
        last
    }

    /// Drops all events and starts a new epoch; see [`EventLog::lose`].
    pub(super) fn lose(&self, lost: ResetReason, registry_id: RegistryId, points: Points) {
        self.log.lose(lost, registry_id, points);
        self.wake_all();
    }

    /// Closes the log. Each observer's stream ends once it has read to the end.
    pub(super) fn close(&self) {
        self.log.close();
        self.wake_all();
    }

    fn wake_all(&self) {
        let mut woken = Vec::new();
        self.index.lock().take_parked(&mut woken);
        self.log.take_parked(&mut woken);
        wake_all(woken);
    }

    /// Registers a mailbox for the events that pass `filter`. It is complete from the returned place on.
    pub(super) fn watch(&self, filter: &Arc<Filter>) -> (Arc<Mailbox>, log::Place) {
        let mailbox = Mailbox::new(filter);
        self.in_parts(&mailbox, |index, ids| index.insert(&mailbox, ids));
        // While only some of the ids were registered, the mailbox may have missed events. The observer reads those from
        // the log.
        let from = self.rewatch(&mailbox);
        (mailbox, from)
    }

    /// Empties a mailbox that has overflowed. It is complete from the returned place on.
    pub(super) fn rewatch(&self, mailbox: &Mailbox) -> log::Place {
        let _index = self.index.lock();
        mailbox.clear();
        self.log.head().place
    }

    pub(super) fn unwatch(&self, mailbox: &Arc<Mailbox>) {
        self.in_parts(mailbox, |index, ids| index.remove(mailbox, ids));
    }

    /// Calls `change` with the ids that a mailbox watches, a few at a time, because publications wait for the index.
    fn in_parts(&self, mailbox: &Mailbox, change: impl Fn(&mut FilterIndex, &mut dyn Iterator<Item = WatchedId>)) {
        let mut ids = mailbox.watched_ids().peekable();
        while ids.peek().is_some() {
            let mut index = self.index.lock();
            change(&mut index, &mut ids.by_ref().take(IDS_PER_LOCK));
            MutexGuard::unlock_fair(index);
        }
    }
}
