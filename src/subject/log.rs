//! The event log that all observers read: a bounded sequence of chunks, each encoded once.

use std::{collections::VecDeque, sync::Arc, task::Context};

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{
    ResetReason,
    cursor::{Cursor, CursorPlace, History, Points, Positions},
    parked::{ParkedObservers, Progress},
};
use crate::{
    relay::Waiter,
    session::{LeaseId, SessionEvent, SessionKey},
    storage::{self, LogExtent, LogPoint, Mark, Position, RegistryId},
};

/// The maximum number of events in a chunk. The chunk's message takes up to 36 KB, or 58 KB with auth keys, which still
/// fits the default window of an HTTP/2 stream. At saturation, chunks of half the size cost a tenth more, chunks of
/// 4,096 events the same, and chunks of 8,192 events more.
pub(crate) const EVENTS_A_CHUNK: usize = 2400;

/// About what a chunk and its allocations take besides its events and its message, in bytes.
const CHUNK_OVERHEAD: usize = size_of::<Chunk>() + 64;

/// Consecutive changes of one partition, and the message that carries them.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) partition: u32,
    /// The position of the first event. The others follow without gaps.
    pub(crate) first: Position,
    pub(crate) events: Box<[SessionEvent]>,
    /// The events for streams without placements, if they differ from `events`.
    pub(crate) plain: Option<Box<[SessionEvent]>>,
    /// The log points after this chunk.
    pub(crate) points: Points,
    /// The encoded message for streams without placements. Empty if they receive no events.
    pub(crate) wire: Bytes,
    /// The encoded message for streams with placements. `None` if there was no such stream when the chunk was
    /// published.
    pub(crate) placed: Option<Bytes>,
}

impl Chunk {
    /// Returns the events for streams without placements.
    pub(super) fn plain(&self) -> &[SessionEvent] {
        self.plain.as_deref().unwrap_or(&self.events)
    }

    /// Returns the place of the chunk's last event.
    pub(super) fn last(&self) -> storage::Place {
        storage::Place { partition: self.partition, position: self.points[self.partition as usize].position }
    }

    /// Returns whether streams without placements receive anything.
    pub(super) fn has_plain(&self) -> bool {
        !self.plain().is_empty()
    }

    fn bytes(&self) -> usize {
        let plain = self.plain.as_deref().map_or(0, size_of_val);
        let placed = self.placed.as_ref().map_or(0, Bytes::len);
        self.wire.len() + placed + size_of_val(&*self.events) + plain + CHUNK_OVERHEAD
    }
}

/// Encodes events and sessions as messages, once for all observers that receive the same.
///
/// [`Events::wire`](super::Events::wire) returns the message of events. Observers that read
/// [`Events::events`](super::Events::events) and [`Sessions::sessions`](super::Sessions::sessions) need no messages: pass
/// `()` as the encoder.
pub trait EventEncoder: Send + Sync + 'static {
    /// Encodes `events` for observers without placements. `cursor` is an observer's cursor after them.
    fn encode(&self, events: &[SessionEvent], cursor: &Cursor) -> Bytes;

    /// Encodes `events` for observers with placements. `last` is the place of the last event.
    fn encode_placed(&self, events: &[SessionEvent], cursor: &Cursor, last: storage::Place) -> Bytes;

    /// Encodes a part of a snapshot. `leases` has the lease of each session, and is empty for observers without
    /// placements.
    fn encode_sessions(&self, sessions: &[SessionKey], leases: &[Option<LeaseId>]) -> Bytes;
}

/// Encodes nothing, for subjects whose observers read events and not messages.
impl EventEncoder for () {
    fn encode(&self, _: &[SessionEvent], _: &Cursor) -> Bytes {
        Bytes::new()
    }

    fn encode_placed(&self, _: &[SessionEvent], _: &Cursor, _: storage::Place) -> Bytes {
        Bytes::new()
    }

    fn encode_sessions(&self, _: &[SessionKey], _: &[Option<LeaseId>]) -> Bytes {
        Bytes::new()
    }
}

/// The limits on what a log holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// Returns the sum of all positions. The difference of two sums says how many changes lie between two places of the
/// same log.
pub(super) fn sum(points: &Points) -> u64 {
    points.iter().map(|point| point.position.0).sum()
}

/// A place in the event log: right before the chunk with this number, in this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    epoch: u64,
    chunk: u64,
}

/// The end of the log at one moment.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) place: Place,
    pub(super) points: Points,
    pub(super) registry_id: RegistryId,
    pub(super) closed: bool,
}

/// What follows a place.
pub(super) enum Next {
    Chunk(Arc<Chunk>),
    /// Nothing yet. The caller will be woken.
    End,
    /// The chunks there are gone.
    Lost(ResetReason),
    /// Nothing ever will: the subject was closed.
    Closed,
}

/// Where a cursor leads in the log.
pub(super) enum Found {
    /// The place to read from, the points there, and the cursor's points: the observer has seen all changes up to
    /// these.
    Place(Place, Points, Points),
    Lost(ResetReason),
    /// The log was lost after the storage was called.
    AskAgain,
}

/// The marks at a cursor's positions, where they are known.
pub(super) type Marks = SmallVec<[Option<Mark>; 1]>;

pub(super) struct EventLog {
    state: Mutex<State>,
    retention: Retention,
}

struct State {
    /// Counts how often the log was lost. A place of an older epoch is invalid.
    epoch: u64,
    /// Why the last epoch ended.
    lost: ResetReason,
    registry_id: RegistryId,
    chunks: VecDeque<Arc<Chunk>>,
    /// The number of the oldest chunk held. Numbers are never reused.
    first: u64,
    /// The points before the oldest chunk, and after the newest.
    start: Points,
    end: Points,
    events: usize,
    bytes: usize,
    parked: ParkedObservers,
    closed: bool,
}

/// What the log holds, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// How many observers have unread events, and how many events the slowest of them is behind.
    pub(super) behind: usize,
    pub(super) lag: u64,
}

impl EventLog {
    pub(super) fn new(retention: Retention, extent: &LogExtent) -> Self {
        let start: Points = extent.partitions.iter().map(|held| held.start).collect();
        let state = State {
            epoch: 0,
            lost: ResetReason::StorageRestarted,
            registry_id: extent.registry_id,
            chunks: VecDeque::new(),
            first: 0,
            end: start.clone(),
            start,
            events: 0,
            bytes: 0,
            parked: ParkedObservers::default(),
            closed: false,
        };
        Self { state: Mutex::new(state), retention }
    }

    pub(super) fn head(&self) -> Head {
        self.state.lock().head()
    }

    pub(super) fn held(&self) -> Held {
        let state = self.state.lock();
        let (mut behind, mut lag) = (0, 0);
        for events in state.parked.lags(sum(&state.end)) {
            behind += 1;
            lag = events.max(lag);
        }
        Held { events: state.events, bytes: state.bytes, behind, lag }
    }

    pub(super) fn join(&self) -> (usize, Progress) {
        self.state.lock().parked.join()
    }

    pub(super) fn leave(&self, waiter: usize) {
        self.state.lock().parked.leave(waiter);
    }

    /// Appends a chunk, whose events follow the last ones of its partition. The caller wakes the waiters with
    /// [`take_parked`](Self::take_parked).
    pub(super) fn append(&self, chunk: Arc<Chunk>) {
        let mut state = self.state.lock();
        state.end.clone_from(&chunk.points);
        state.events += chunk.events.len();
        state.bytes += chunk.bytes();
        state.chunks.push_back(chunk);
        // The newest chunk stays whatever the limits, so that observers that are up to date can read it.
        while state.chunks.len() > 1 && (state.events > self.retention.events || state.bytes > self.retention.bytes) {
            let Some(oldest) = state.chunks.pop_front() else { break };
            state.first += 1;
            state.events -= oldest.events.len();
            state.bytes -= oldest.bytes();
            state.start.clone_from(&oldest.points);
        }
    }

    /// Takes all waiters. Wake them once no lock is held.
    pub(super) fn take_parked(&self, woken: &mut Vec<Waiter>) {
        self.state.lock().parked.take(woken);
    }

    /// Drops all chunks and starts a new epoch, in which the changes of `registry_id` after `points` follow.
    pub(super) fn lose(&self, lost: ResetReason, registry_id: RegistryId, points: Points) {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.lost = lost;
        state.registry_id = registry_id;
        state.first += state.chunks.len() as u64;
        state.chunks.clear();
        state.events = 0;
        state.bytes = 0;
        state.start.clone_from(&points);
        state.end = points;
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Returns whether the log was closed. If not, `waiter` is woken when it is, and by any publication before that.
    pub(super) fn is_closed(&self, waiter: usize, context: &Context<'_>) -> bool {
        let mut state = self.state.lock();
        if !state.closed {
            state.parked.wait(waiter, context);
        }
        state.closed
    }

    /// Returns why the log was lost, if that happened after it handed out `place`.
    pub(super) fn lost_since(&self, place: Place) -> Option<ResetReason> {
        let state = self.state.lock();
        (place.epoch != state.epoch).then_some(state.lost)
    }

    /// Returns the points up to which the log has been followed. `None` if the log was lost after it handed out
    /// `place`.
    pub(super) fn known(&self, place: Place) -> Option<Points> {
        let state = self.state.lock();
        (place.epoch == state.epoch).then(|| state.end.clone())
    }

    /// Returns whether an observer at these points is in the older half of what this log may retain, and so must read on
    /// soon.
    pub(super) fn is_old(&self, at: &Points) -> bool {
        let state = self.state.lock();
        let behind = sum(&state.end).saturating_sub(sum(at));
        let Retention { events, bytes } = self.retention;
        behind > state.events as u64 / 2 && (state.events > events / 2 || state.bytes > bytes / 2)
    }

    /// Returns what follows `place`. At the end of the log, `waiter` is woken by the next publication.
    pub(super) fn next(&self, place: Place, waiter: usize, context: &Context<'_>) -> Next {
        let mut state = self.state.lock();
        if place.epoch != state.epoch {
            return Next::Lost(state.lost);
        }
        let Some(offset) = place.chunk.checked_sub(state.first) else {
            return Next::Lost(ResetReason::Lagged);
        };
        match state.chunks.get(offset as usize) {
            Some(chunk) => Next::Chunk(Arc::clone(chunk)),
            None if state.closed => Next::Closed,
            None => {
                state.parked.wait(waiter, context);
                Next::End
            }
        }
    }

    /// Returns the marks at these positions, where this log knows them: at the ends of its chunks.
    pub(super) fn marks(&self, positions: &Positions) -> Marks {
        let state = self.state.lock();
        let mark = |(partition, position): (usize, &Position)| {
            let before = state.points_before(state.first_after(partition, *position))[partition];
            (before.position == *position).then_some(before.mark)
        };
        positions.iter().enumerate().map(mark).collect()
    }

    /// Finds where a cursor leads. The caller handles cursors from right before a snapshot of this registry.
    ///
    /// `marks` are the marks at the cursor's positions, and `newest` is how far the storage's log reaches. The storage
    /// returned both while this log was in the epoch of `asked`. The cursor may be ahead of this log, if another
    /// replica had read further.
    pub(super) fn find(&self, cursor: &Cursor, marks: &Marks, newest: &LogExtent, asked: Place) -> Found {
        let state = self.state.lock();
        let CursorPlace::After(positions, history) = &cursor.place else {
            return Found::Lost(ResetReason::CursorForeign);
        };
        if asked.epoch != state.epoch {
            return Found::AskAgain;
        }
        if cursor.registry_id != state.registry_id || positions.len() != state.end.len() {
            return Found::Lost(ResetReason::CursorForeign);
        }
        let is_ahead = positions.iter().zip(&newest.partitions).any(|(position, held)| *position > held.end.position);
        if newest.registry_id != state.registry_id || is_ahead {
            return Found::Lost(ResetReason::StorageRestarted);
        }
        let is_before = |(position, start): (&Position, &LogPoint)| *position < start.position;
        if positions.iter().zip(&state.start).any(is_before) {
            return Found::Lost(ResetReason::CursorExpired);
        }
        let mut points = Points::new();
        for ((position, mark), held) in positions.iter().zip(marks).zip(&newest.partitions) {
            match mark {
                Some(mark) => points.push(LogPoint { position: *position, mark: *mark }),
                // The storage has forgotten the mark, and with it which history this position was in.
                None if is_before((position, &held.start)) => return Found::Lost(ResetReason::CursorExpired),
                // The position was ahead of the storage's log, which has grown since.
                None => return Found::Lost(ResetReason::StorageRestarted),
            }
        }
        if History::of(points.iter().map(|point| point.mark)) != *history {
            return Found::Lost(ResetReason::StorageRestarted);
        }
        let offset = (0..).zip(positions).map(|(partition, position)| state.first_after(partition, *position));
        let offset = offset.min().unwrap_or(0);
        let place = Place { epoch: state.epoch, chunk: state.first + offset as u64 };
        Found::Place(place, state.points_before(offset).clone(), points)
    }
}

impl State {
    /// Returns the index of the oldest chunk that ends after a position of a partition.
    fn first_after(&self, partition: usize, position: Position) -> usize {
        self.chunks.partition_point(|chunk| chunk.points[partition].position <= position)
    }

    /// Returns the points before the chunk with index `nth`.
    fn points_before(&self, nth: usize) -> &Points {
        nth.checked_sub(1).map_or(&self.start, |before| &self.chunks[before].points)
    }

    fn head(&self) -> Head {
        let chunk = self.first + self.chunks.len() as u64;
        let place = Place { epoch: self.epoch, chunk };
        let Self { registry_id, closed, .. } = *self;
        Head { place, points: self.end.clone(), registry_id, closed }
    }
}

impl Place {
    /// Returns the place right after the chunk that follows this place.
    pub(super) fn after(self) -> Self {
        Self { chunk: self.chunk + 1, ..self }
    }

    /// Returns whether this place lies before `other` in the same epoch.
    pub(super) fn is_before(self, other: Self) -> bool {
        self.epoch == other.epoch && self.chunk < other.chunk
    }

    pub(super) fn is_of_epoch(self, other: Self) -> bool {
        self.epoch == other.epoch
    }

    /// Returns the number of the chunk that follows this place.
    pub(super) fn chunk(self) -> u64 {
        self.chunk
    }
}
