//! Checks what an observer received against the model, promise by promise.

use sessiond::{
    session::{SessionChange, SessionEvent},
    storage::{self, Position},
    subject::{Filter, ResetReason},
};

use super::{
    message::{Content, Message},
    model::{Model, Place, Places},
    places::Reached,
    segment::Segment,
};
use crate::held::{Held, apply, delivers, sees_every_change};

/// The promises of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Promise {
    Ordered,
    Unique,
    Reliable,
    Exact,
    /// Streams with placements report exactly the registry's leases, and other streams report none.
    Placed,
    /// Places agree with the events and answers that name them.
    Comparable,
    Resumable,
    Bounded,
    Live,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) promise: Promise,
    pub(crate) how: String,
}

impl Broken {
    pub(crate) fn new(promise: Promise, how: impl Into<String>) -> Self {
        Self { promise, how: how.into() }
    }
}

/// How a stream was started.
#[derive(Clone, Debug)]
pub(crate) enum Started {
    /// With the first change after the call. The log ended at `before` before the call, and at `after` after it.
    Now {
        before: Places,
        after: Places,
    },
    Snapshot,
    /// After a cursor. `is_retained` says that its events are certainly retained.
    After {
        cursor: String,
        is_retained: bool,
    },
}

/// Everything that one stream received.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) started: Started,
    pub(crate) filter: Filter,
    pub(crate) messages: Vec<Message>,
    /// Whether the stream was read until nothing more arrived after the last change.
    pub(crate) drained: bool,
}

impl Trace {
    pub(crate) fn new(started: Started, filter: Filter) -> Self {
        Self { started, filter, messages: Vec::new(), drained: false }
    }

    /// Returns what followed the first reset, as a separate stream that starts with a snapshot of `registry`.
    pub(crate) fn after_reset(&self, reason: ResetReason, registry: &str) -> Self {
        let reset = self.messages.iter().position(|message| matches!(message.content, Content::Reset(_)));
        let reset = reset.unwrap_or_else(|| panic!("no reset: {:?}", self.messages));
        let Message { content, cursor, .. } = &self.messages[reset];
        assert_eq!((content, cursor), (&Content::Reset(reason), &None), "{:?}", self.messages);
        let mut after = Self::new(Started::Snapshot, self.filter.clone());
        let mut subscribed = Message::new(Content::Subscribed, Some(format!("{registry}-s-")));
        let start = |place: &storage::Place| storage::Place { position: Position(0), ..*place };
        subscribed.places = self.messages[0].places.iter().map(start).collect();
        after.messages.push(subscribed);
        after.messages.extend_from_slice(&self.messages[reset + 1..]);
        after
    }

    /// Returns the promises that this stream broke, if the registry did what the model says.
    pub(crate) fn judge(&self, model: &Model) -> Vec<Broken> {
        let (state, reached) = (State::Unopened, Reached::default());
        let mut checker = Checker { model, trace: self, state, reached, broken: Vec::new() };
        for message in &self.messages {
            checker.see(message);
        }
        checker.finish();
        checker.broken
    }
}

struct Checker<'a> {
    model: &'a Model,
    trace: &'a Trace,
    state: State,
    reached: Reached,
    broken: Vec<Broken>,
}

enum State {
    /// Nothing has arrived.
    Unopened,
    /// The cursor belongs to another registry, so a reset must come.
    Foreign,
    /// Between the start and the end of a snapshot.
    Snapshot(Held),
    Live(Segment),
    Closed,
    /// After a broken promise, nothing can be said about what should follow.
    Adrift,
}

impl Checker<'_> {
    fn breaks(&mut self, promise: Promise, how: impl Into<String>) {
        self.broken.push(Broken::new(promise, how));
    }

    fn see(&mut self, message: &Message) {
        if !matches!(self.state, State::Adrift)
            && let Some(how) = self.reached.see(message, self.model, &self.trace.filter)
        {
            self.breaks(Promise::Comparable, how);
        }
        let (content, cursor) = (&message.content, message.cursor.as_deref());
        let state = std::mem::replace(&mut self.state, State::Adrift);
        self.state = match (state, content) {
            (State::Adrift, _) => State::Adrift,
            (State::Unopened, Content::Subscribed) => self.open(cursor),
            (State::Unopened, _) => self.stray(content, "arrived before subscribed"),
            (State::Closed, _) => self.stray(content, "arrived after the end"),
            (_, Content::Subscribed) => self.stray(content, "arrived again"),
            (state, Content::Reset(reason)) => self.reset(state, *reason),
            (State::Foreign, _) => self.stray(content, "follows a cursor of another registry without a reset"),
            (State::Snapshot(held), content) => self.in_snapshot(held, content, cursor),
            (State::Live(segment), _) => self.live(segment, message),
        };
    }

    /// Reports a message that is not allowed here. An observer that applies it no longer mirrors the registry.
    fn stray(&mut self, content: &Content, why: &str) -> State {
        self.breaks(Promise::Exact, format!("{content:?} {why}"));
        State::Adrift
    }

    fn open(&mut self, cursor: Option<&str>) -> State {
        let Some(cursor) = cursor else {
            self.breaks(Promise::Resumable, "subscribed has no cursor");
            return State::Adrift;
        };
        let place = self.model.place(cursor);
        match (&self.trace.started, place) {
            (Started::Snapshot, Place::SnapshotStart) => State::Snapshot(Held::new()),
            (Started::Now { before, after }, Place::After(places)) => {
                if places.iter().zip(after).any(|(place, end)| place > end) {
                    self.breaks(Promise::Reliable, format!("{places:?} is later than now: changes end at {after:?}"));
                } else if places.iter().zip(before).any(|(place, end)| place < end) {
                    self.breaks(Promise::Resumable, format!("{places:?} is before now: changes end at {before:?}"));
                }
                self.follow(places)
            }
            (Started::After { cursor: asked, .. }, place) => match (self.model.place(asked), place) {
                (Place::Foreign, _) => State::Foreign,
                (Place::SnapshotStart, Place::SnapshotStart) => State::Snapshot(Held::new()),
                (Place::After(asked), Place::After(_)) => {
                    let mut segment = Segment::new(asked.clone(), true);
                    segment.mark(cursor, None);
                    State::Live(segment)
                }
                (_, place) => {
                    self.breaks(Promise::Resumable, format!("subscribed is at {place:?} after {asked}"));
                    State::Adrift
                }
            },
            (started, place) => {
                self.breaks(Promise::Resumable, format!("subscribed is at {place:?}, started with {started:?}"));
                State::Adrift
            }
        }
    }

    fn follow(&self, places: Places) -> State {
        State::Live(Segment::new(places, false))
    }

    fn reset(&mut self, state: State, reason: ResetReason) -> State {
        let resumed_at_once = matches!(&state, State::Live(segment) if segment.is_resumed() && segment.is_empty());
        let allowed = match reason {
            ResetReason::CursorForeign => matches!(state, State::Foreign),
            ResetReason::CursorExpired => resumed_at_once,
            ResetReason::Lagged => !matches!(state, State::Foreign),
            // Nothing restarts the storage here, and no client is there to find the others.
            _ => false,
        };
        if !allowed {
            self.breaks(Promise::Reliable, format!("a reset without cause: {reason:?}"));
        }
        if let (ResetReason::CursorExpired, Started::After { is_retained: true, cursor }) =
            (reason, &self.trace.started)
        {
            self.breaks(Promise::Resumable, format!("{cursor} was reported as expired, but its events are retained"));
        }
        if let State::Live(segment) = state {
            let judged = segment.judge(self.model, &self.trace.filter, false);
            self.broken.extend(judged);
        }
        State::Snapshot(Held::new())
    }

    fn in_snapshot(&mut self, mut held: Held, content: &Content, cursor: Option<&str>) -> State {
        if cursor.is_some() && !matches!(content, Content::Synced(_)) {
            self.breaks(Promise::Resumable, format!("{content:?} within a snapshot has a cursor"));
        }
        match content {
            Content::Snapshot(sessions) => sessions.iter().for_each(|(session, lease)| {
                if !self.trace.filter.passes_placement(session, *lease) {
                    self.breaks(
                        self.held(),
                        format!("a snapshot has {session:?} under {lease:?}, which the filter excludes"),
                    );
                }
                if held.insert(*session, *lease).is_some() && self.sees_every_change() {
                    self.breaks(Promise::Exact, format!("a snapshot has {session:?}, which is already held"));
                }
            }),
            Content::Events(events) => self.apply(&mut held, events),
            Content::Synced(count) => return self.synced(held, *count, cursor),
            Content::Closed => return State::Closed,
            _ => {}
        }
        State::Snapshot(held)
    }

    fn synced(&mut self, held: Held, count: u64, cursor: Option<&str>) -> State {
        let Some(Place::After(places)) = cursor.map(|cursor| self.model.place(cursor)) else {
            self.breaks(Promise::Resumable, format!("synced has the cursor {cursor:?}"));
            return State::Adrift;
        };
        let true_held = self.model.held_at(&places, &self.trace.filter);
        if self.sees_every_change() && held != true_held {
            let not_in = |held: &Held, other: &Held| -> Held {
                let only = held.iter().filter(|(session, lease)| other.get(session) != Some(lease));
                only.map(|(session, lease)| (*session, *lease)).collect()
            };
            let (lacks, ghosts) = (not_in(&true_held, &held), not_in(&held, &true_held));
            self.breaks(self.held(), format!("synced at {places:?}: {lacks:?} are missing, and {ghosts:?} are ghosts"));
        } else if count != true_held.len() as u64 {
            self.breaks(self.held(), format!("synced counts {count} at {places:?}, not {}", true_held.len()));
        }
        self.follow(places)
    }

    fn live(&mut self, mut segment: Segment, message: &Message) -> State {
        let Message { content, cursor, last, .. } = message;
        if let Content::Events(events) = content {
            for event in events {
                self.check_passes(event);
                segment.push(self.model.partition_of(&event.session), *event);
            }
        }
        match (content, cursor) {
            (Content::Snapshot(_) | Content::Synced(_), _) => {
                return self.stray(content, "arrived outside of a snapshot");
            }
            (_, None) => self.breaks(Promise::Resumable, format!("{content:?} has no cursor")),
            (_, Some(cursor)) => segment.mark(cursor, *last),
        }
        if let Content::Closed = content {
            self.end(segment);
            return State::Closed;
        }
        State::Live(segment)
    }

    /// Whether the stream reports every change of the sessions that match its filter, so that its events can be
    /// applied.
    fn sees_every_change(&self) -> bool {
        sees_every_change(&self.trace.filter)
    }

    /// Returns the promise about the held set.
    fn held(&self) -> Promise {
        if self.trace.filter.has_placements() { Promise::Placed } else { Promise::Exact }
    }

    fn check_passes(&mut self, event: &SessionEvent) {
        if !delivers(&self.trace.filter, event) {
            let is_move = matches!(event.change, SessionChange::Moved { .. });
            let promise = if is_move { Promise::Placed } else { self.held() };
            self.breaks(promise, format!("{event:?} does not match the filter"));
        }
    }

    fn apply(&mut self, held: &mut Held, events: &[SessionEvent]) {
        for event in events {
            self.check_passes(event);
            if !apply(held, event, &self.trace.filter) && self.sees_every_change() {
                self.breaks(self.held(), format!("{event:?} contradicts the held set"));
            }
        }
    }

    fn end(&mut self, segment: Segment) {
        let filter = &self.trace.filter;
        let judged = segment.judge(self.model, filter, self.trace.drained);
        if judged.is_empty() && self.sees_every_change() {
            let mut held = self.model.held_at(segment.anchor(), filter);
            segment.events().for_each(|event| self.apply(&mut held, &[*event]));
            if self.trace.drained && held != self.model.held_at(&self.model.ends(), filter) {
                self.breaks(self.held(), "at the end the held set differs from the registry");
            }
        }
        self.broken.extend(judged);
    }

    fn finish(&mut self) {
        match std::mem::replace(&mut self.state, State::Adrift) {
            State::Live(segment) => self.end(segment),
            State::Snapshot(_) if self.trace.drained => {
                self.breaks(Promise::Live, "a snapshot did not end although the stream was read to its end");
            }
            State::Foreign | State::Unopened if self.trace.drained => {
                self.breaks(Promise::Live, "nothing arrived although the stream was read to its end");
            }
            _ => {}
        }
    }
}
