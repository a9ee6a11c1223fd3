//! Observers: each is a position in the event log.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use futures_util::Stream;

use super::{
    Events, Inner, ResetReason, Update,
    admission::Admission,
    beginning::Beginning,
    cursor::{Cursor, CursorPlace, Points, Positions, later},
    filter::Filter,
    index::{Mailbox, Taken},
    log::{Chunk, Next, Place, sum},
    parked::{CAUGHT_UP, Progress},
    scan::Kind,
    snapshot::{Chosen, Snapshot},
};
use crate::storage::{self, Position, RegistryId};

/// After skipping this many events, an observer yields to the other tasks of its thread.
const EVENTS_BETWEEN_YIELDS: usize = 16_384;

/// A stream of the changes to the sessions that pass a filter. Returned by
/// [`SessionSubject::observe`](super::SessionSubject::observe).
///
/// Call [`next`](Self::next) in a loop, or use the observer as a `futures` `Stream`. [`Update`] explains what to do
/// with the updates. Dropping the observer unsubscribes.
///
/// An observer is a position in a log that all observers share. A slow one costs no more than any other and delays
/// nobody. One that falls behind the retained events receives [`Update::Reset`].
pub struct Observer {
    inner: Arc<Inner>,
    filter: Arc<Filter>,
    waiter: usize,
    progress: Progress,
    registry_id: RegistryId,
    place: Place,
    /// The log points at `place`.
    at: Points,
    /// Where the storage's log ended when the observer was asked for. The client may know of the changes up to there.
    asked_at: Points,
    /// The points to resume after, until `place` has passed them. Changes up to them are skipped.
    resumed: Option<Points>,
    watch: Option<Watch>,
    phase: Phase,
    /// Whether snapshots come as messages.
    is_encoded: bool,
    _admission: Admission,
}

/// A mailbox in which the publisher puts the events that pass the filter. It is complete from place `from` on.
struct Watch {
    mailbox: Arc<Mailbox>,
    from: Place,
}

enum Phase {
    /// The first message, which carries `cursor`, is about to be returned or was just returned. `opening` follows it.
    Opening {
        opening: Opening,
        cursor: Cursor,
        is_sent: bool,
    },
    Resetting(ResetReason),
    Reading(Box<Snapshot>),
    Following,
    Closed(Option<Cursor>),
}

#[derive(Clone)]
pub(super) enum Opening {
    Snapshot,
    Reset(ResetReason),
    /// Continue after these points.
    Follow(Points),
}

impl Observer {
    pub(super) fn new(inner: Arc<Inner>, admission: Admission, filter: Filter, beginning: Beginning) -> Self {
        if filter.has_placements() {
            inner.feed.placed_observers.fetch_add(1, Ordering::Relaxed);
        }
        let (waiter, progress) = inner.feed.log.join();
        let Beginning { registry_id, place, at, asked_at, opening, cursor } = beginning;
        Self {
            filter: Arc::new(filter),
            waiter,
            progress,
            registry_id,
            place,
            at,
            asked_at,
            resumed: None,
            watch: None,
            phase: Phase::Opening { opening, cursor, is_sent: false },
            is_encoded: false,
            inner,
            _admission: admission,
        }
    }

    /// Lets snapshots come as the messages that the subject's encoder makes, and not as values.
    #[cfg(feature = "server")]
    pub(crate) fn encode(&mut self) {
        self.is_encoded = true;
    }

    /// Returns the id of the observed registry. A reset may change it.
    #[must_use]
    pub fn registry_id(&self) -> RegistryId {
        self.registry_id
    }

    /// Returns the cursor after the last update. An observer that starts with it and has the same filter continues
    /// exactly there. `None` from the start of a snapshot until [`Update::Synced`]: a snapshot cannot be resumed.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        match &self.phase {
            Phase::Opening { cursor, .. } => Some(cursor.clone()),
            Phase::Resetting(_) | Phase::Reading(_) => None,
            Phase::Closed(cursor) => cursor.clone(),
            Phase::Following => Some(match &self.resumed {
                Some(resumed) => Cursor::after(self.registry_id, &later(&self.at, resumed)),
                None => Cursor::after(self.registry_id, &self.at),
            }),
        }
    }

    /// Returns the place that the observer has reached in each partition of the storage's log. `None` for an observer
    /// without [placements](Filter::placements).
    ///
    /// Calls that change sessions return the places of their changes ([`Answers`](storage::Answers)). Once the observer
    /// has reached such a place, it has received that change.
    #[must_use]
    pub fn places(&self) -> Option<Vec<storage::Place>> {
        if !self.filter.has_placements() {
            return None;
        }
        let positions: Positions = match (&self.phase, &self.resumed) {
            // An observer that resumes holds what it held at its cursor, until a reset says otherwise.
            (Phase::Opening { cursor: Cursor { registry_id, place: CursorPlace::After(positions, _) }, .. }, _)
                if *registry_id == self.registry_id && positions.len() == self.at.len() =>
            {
                positions.clone()
            }
            (_, Some(resumed)) => later(&self.at, resumed).iter().map(|point| point.position).collect(),
            _ => self.at.iter().map(|point| point.position).collect(),
        };
        let place = |(partition, position)| storage::Place { partition, position };
        Some((0..).zip(positions).map(place).collect())
    }

    /// Returns whether the observer is waiting for the next change: it is not in a snapshot and has read all that was
    /// published.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        matches!(self.phase, Phase::Following) && self.progress.load(Ordering::Relaxed) == CAUGHT_UP
    }

    /// Returns whether the observer is synced: it is not in a snapshot and none is pending. Its cursor is then the
    /// place after the last change that it returned.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        matches!(self.phase, Phase::Following)
    }

    /// Waits for the next update. Returns `None` after [`Update::Closed`].
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe: if the future is dropped, no update is lost.
    pub async fn next(&mut self) -> Option<Update> {
        poll_fn(|context| self.poll_update(context)).await
    }

    fn poll_update(&mut self, context: &mut Context<'_>) -> Poll<Option<Update>> {
        let mut budget = EVENTS_BETWEEN_YIELDS;
        loop {
            match &mut self.phase {
                Phase::Opening { is_sent, .. } if !*is_sent => {
                    *is_sent = true;
                    return Poll::Ready(Some(Update::Subscribed));
                }
                Phase::Opening { opening, .. } => {
                    let opening = opening.clone();
                    self.open(opening);
                    continue;
                }
                Phase::Resetting(reason) => {
                    let reason = *reason;
                    self.start_snapshot();
                    return Poll::Ready(Some(Update::Reset(reason)));
                }
                Phase::Reading(snapshot) => {
                    if let Some(part) = snapshot.take() {
                        return Poll::Ready(Some(part));
                    }
                    if snapshot.is_passed(&self.at) {
                        // Data read before the log was lost must not be mixed with data read after it.
                        if let Some(reason) = self.inner.feed.log.lost_since(self.place) {
                            self.reset(reason);
                            continue;
                        }
                        if snapshot.is_last(&self.filter) {
                            let session_count = snapshot.held();
                            self.phase = Phase::Following;
                            return Poll::Ready(Some(Update::Synced { session_count }));
                        }
                        // Also registers this task to be woken when the log is closed, since the storage may take long
                        // to answer.
                        if self.inner.feed.log.is_closed(self.waiter, context) {
                            return self.close();
                        }
                        ready!(snapshot.poll_read(&self.filter, &self.at, context));
                        if snapshot.has_sessions() {
                            continue;
                        }
                        return yield_now(context);
                    }
                }
                Phase::Following => {
                    if let Some(next) = self.poll_mailbox(context) {
                        return next;
                    }
                }
                Phase::Closed(_) => return Poll::Ready(None),
            }
            let chunk = match self.inner.feed.log.next(self.place, self.waiter, context) {
                Next::Chunk(chunk) => chunk,
                Next::End => {
                    self.progress.store(CAUGHT_UP, Ordering::Relaxed);
                    return Poll::Pending;
                }
                Next::Closed => return self.close(),
                Next::Lost(reason) => {
                    self.reset(reason);
                    continue;
                }
            };
            if let Some(events) = self.read(&chunk) {
                return Poll::Ready(Some(Update::Events(events)));
            }
            budget = budget.saturating_sub(chunk.events.len());
            if budget == 0 {
                return yield_now(context);
            }
        }
    }

    fn open(&mut self, opening: Opening) {
        match opening {
            Opening::Snapshot => self.start_snapshot(),
            Opening::Reset(reason) => self.reset(reason),
            Opening::Follow(points) => {
                self.phase = Phase::Following;
                self.resumed = Some(points);
                self.forget_resumed_if_passed();
            }
        }
    }

    fn reset(&mut self, reason: ResetReason) {
        self.inner.count_reset(reason);
        self.unwatch();
        self.phase = Phase::Resetting(reason);
    }

    fn start_snapshot(&mut self) {
        let head = self.inner.feed.log.head();
        let is_same_log = head.place.is_of_epoch(self.place);
        let least = if is_same_log { later(&head.points, &self.asked_at) } else { head.points.clone() };
        let kind = Kind { is_placed: self.filter.has_placements(), is_encoded: self.is_encoded };
        let snapshot = Snapshot::new(Arc::clone(&self.inner), &head, least, kind, &self.filter);
        self.registry_id = head.registry_id;
        self.place = head.place;
        self.at = head.points;
        self.resumed = None;
        self.phase = Phase::Reading(Box::new(snapshot));
    }

    fn close(&mut self) -> Poll<Option<Update>> {
        self.phase = Phase::Closed(self.cursor());
        Poll::Ready(Some(Update::Closed))
    }

    /// Moves past the chunk at `place`. Returns the events that the observer receives from it.
    fn read(&mut self, chunk: &Arc<Chunk>) -> Option<Events> {
        let chosen = match &mut self.phase {
            Phase::Reading(snapshot) => Some(snapshot.choose(chunk, &self.filter)),
            _ => self.choose(chunk),
        };
        self.place = self.place.after();
        self.at.clone_from(&chunk.points);
        self.progress.store(sum(&self.at), Ordering::Relaxed);
        self.forget_resumed_if_passed();
        match chosen {
            None if self.filter.has_placements() => Some(Events::placed(Arc::clone(chunk))),
            None => chunk.has_plain().then(|| Events::shared(Arc::clone(chunk))),
            Some(Chosen { events, last }) => {
                let last = storage::Place { partition: chunk.partition, position: Position(last) };
                (!events.is_empty()).then(|| Events::chosen(events, last))
            }
        }
    }

    /// Returns the events of a chunk that the observer receives. `None` if it receives the chunk unchanged.
    fn choose(&self, chunk: &Chunk) -> Option<Chosen> {
        let is_encoded = chunk.placed.is_some() || !self.filter.has_placements();
        if self.resumed.is_none() && self.filter.is_all() && is_encoded {
            return None;
        }
        let after = self.resumed.as_ref().map_or(0, |resumed| resumed[chunk.partition as usize].position.0);
        let numbered = (chunk.first.0..).zip(&*chunk.events);
        let passing = numbered.filter(|(position, event)| *position > after && self.filter.passes(event));
        let mut chosen = Chosen::default();
        for (position, event) in passing {
            chosen.events.push(*event);
            chosen.last = position;
        }
        Some(chosen)
    }

    fn forget_resumed_if_passed(&mut self) {
        self.resumed
            .take_if(|resumed| self.at.iter().zip(&*resumed).all(|(at, resumed)| at.position >= resumed.position));
    }

    /// Polls the mailbox of an observer that filters by id. Returns `None` if the log must be read instead.
    fn poll_mailbox(&mut self, context: &mut Context<'_>) -> Option<Poll<Option<Update>>> {
        if self.resumed.is_some() || !self.filter.is_by_id() {
            return None;
        }
        let feed = &self.inner.feed;
        let watch = self.watch.get_or_insert_with(|| {
            let (mailbox, from) = feed.watch(&self.filter);
            Watch { mailbox, from }
        });
        if self.place.is_before(watch.from) {
            return None;
        }
        // Register before reading the head, so that this task is woken by anything published, lost or closed from now
        // on.
        watch.mailbox.wait(context);
        let head = feed.log.head();
        if !head.place.is_of_epoch(self.place) {
            return None;
        }
        match watch.mailbox.take(head.place.chunk(), context) {
            Taken::Overflow => {
                watch.from = feed.rewatch(&watch.mailbox);
                None
            }
            Taken::Events(events, last) => {
                self.place = head.place;
                self.at = head.points;
                let read = if events.is_empty() { CAUGHT_UP } else { sum(&self.at) };
                self.progress.store(read, Ordering::Relaxed);
                Some(match (events.is_empty(), head.closed) {
                    (false, _) => Poll::Ready(Some(Update::Events(Events::chosen(events, last)))),
                    (true, true) => self.close(),
                    (true, false) => Poll::Pending,
                })
            }
        }
    }

    fn unwatch(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.inner.feed.unwatch(&watch.mailbox);
        }
    }
}

/// Returns what [`Observer::next`] returns. The stream ends after [`Update::Closed`].
impl Stream for Observer {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Update>> {
        self.poll_update(context)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if self.filter.has_placements() {
            self.inner.feed.placed_observers.fetch_sub(1, Ordering::Relaxed);
        }
        self.unwatch();
        self.inner.feed.log.leave(self.waiter);
    }
}

fn yield_now<T>(context: &Context<'_>) -> Poll<T> {
    context.waker().wake_by_ref();
    Poll::Pending
}
