//! Holds what an observer was told against the model, promise by promise.

use sessiond::{
    session::{SessionChange, SessionEvent},
    storage::{self, Position},
    subject::{Filter, ResetReason},
};

use super::{
    held::{Held, apply, is_whole, tells},
    model::{Model, Place, Places},
    places::Reached,
    segment::Segment,
    told::{Message, Told},
};

/// The promises of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Promise {
    Ordered,
    Unique,
    Reliable,
    Exact,
    /// Whoever is told leases holds what the registry says of them, and nobody else hears of them.
    Placed,
    /// Places agree with what is told and answered there.
    Comparable,
    Resumable,
    Bounded,
    Live,
}

/// A promise that was not kept.
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

/// How a stream was asked to start.
#[derive(Clone, Debug)]
pub(crate) enum Started {
    /// With the first change after the call, before and after which the log ended here.
    Now {
        before: Places,
        after: Places,
    },
    Snapshot,
    /// After a cursor, which is certain to be retained or is not.
    After {
        cursor: String,
        is_retained: bool,
    },
}

/// All that one stream said.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) started: Started,
    pub(crate) filter: Filter,
    pub(crate) told: Vec<Message>,
    /// Whether it was read until there was nothing more, after the last change.
    pub(crate) drained: bool,
}

impl Trace {
    pub(crate) fn new(started: Started, filter: Filter) -> Self {
        Self { started, filter, told: Vec::new(), drained: false }
    }

    /// What followed the first reset, as a stream of its own that starts with a snapshot of `registry`.
    pub(crate) fn after_reset(&self, reason: ResetReason, registry: &str) -> Self {
        let reset = self.told.iter().position(|message| matches!(message.told, Told::Reset(_)));
        let reset = reset.unwrap_or_else(|| panic!("no reset: {:?}", self.told));
        let Message { told, cursor, .. } = &self.told[reset];
        assert_eq!((told, cursor), (&Told::Reset(reason), &None), "{:?}", self.told);
        let mut after = Self::new(Started::Snapshot, self.filter.clone());
        let mut subscribed = Message::new(Told::Subscribed, Some(format!("{registry}-s-")));
        let start = |place: &storage::Place| storage::Place { position: Position(0), ..*place };
        subscribed.places = self.told[0].places.iter().map(start).collect();
        after.told.push(subscribed);
        after.told.extend_from_slice(&self.told[reset + 1..]);
        after
    }

    /// The promises that this stream did not keep, in a registry that did what the model says.
    pub(crate) fn judge(&self, model: &Model) -> Vec<Broken> {
        let (state, reached) = (State::Unopened, Reached::default());
        let mut checker = Checker { model, trace: self, state, reached, broken: Vec::new() };
        for message in &self.told {
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
    /// Nothing was told.
    Unopened,
    /// A reset must come: the cursor is another registry's.
    Foreign,
    /// Between the start of a snapshot and its end.
    Snapshot(Held),
    Live(Segment),
    Closed,
    /// What broke tells no more of what should follow.
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
        let (told, cursor) = (&message.told, message.cursor.as_deref());
        let state = std::mem::replace(&mut self.state, State::Adrift);
        self.state = match (state, told) {
            (State::Adrift, _) => State::Adrift,
            (State::Unopened, Told::Subscribed) => self.open(cursor),
            (State::Unopened, _) => self.stray(told, "comes before subscribed"),
            (State::Closed, _) => self.stray(told, "comes after the end"),
            (_, Told::Subscribed) => self.stray(told, "comes again"),
            (state, Told::Reset(reason)) => self.reset(state, *reason),
            (State::Foreign, _) => self.stray(told, "follows a cursor of another registry"),
            (State::Snapshot(held), told) => self.in_snapshot(held, told, cursor),
            (State::Live(segment), _) => self.live(segment, message),
        };
    }

    /// What has no place in the grammar of a stream leaves the one who applies it with something else than the registry.
    fn stray(&mut self, told: &Told, why: &str) -> State {
        self.breaks(Promise::Exact, format!("{told:?} {why}"));
        State::Adrift
    }

    fn open(&mut self, cursor: Option<&str>) -> State {
        let Some(cursor) = cursor else {
            self.breaks(Promise::Resumable, "subscribed carries no cursor");
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
            self.breaks(Promise::Reliable, format!("a reset for no reason: {reason:?}"));
        }
        if let (ResetReason::CursorExpired, Started::After { is_retained: true, cursor }) =
            (reason, &self.trace.started)
        {
            self.breaks(Promise::Resumable, format!("{cursor} is called expired, and is retained"));
        }
        if let State::Live(segment) = state {
            let judged = segment.judge(self.model, &self.trace.filter, false);
            self.broken.extend(judged);
        }
        State::Snapshot(Held::new())
    }

    fn in_snapshot(&mut self, mut held: Held, told: &Told, cursor: Option<&str>) -> State {
        if cursor.is_some() && !matches!(told, Told::Synced(_)) {
            self.breaks(Promise::Resumable, format!("{told:?} within a snapshot carries a cursor"));
        }
        match told {
            Told::Snapshot(sessions) => sessions.iter().for_each(|(session, lease)| {
                if !self.trace.filter.passes_placement(session, *lease) {
                    self.breaks(
                        self.held(),
                        format!("a snapshot has {session:?} under {lease:?}, which does not pass"),
                    );
                }
                if held.insert(*session, *lease).is_some() && self.is_whole() {
                    self.breaks(Promise::Exact, format!("a snapshot has {session:?}, which is held"));
                }
            }),
            Told::Events(events) => self.apply(&mut held, events),
            Told::Synced(count) => return self.synced(held, *count, cursor),
            Told::Closed => return State::Closed,
            _ => {}
        }
        State::Snapshot(held)
    }

    fn synced(&mut self, held: Held, count: u64, cursor: Option<&str>) -> State {
        let Some(Place::After(places)) = cursor.map(|cursor| self.model.place(cursor)) else {
            self.breaks(Promise::Resumable, format!("synced carries {cursor:?}"));
            return State::Adrift;
        };
        let true_held = self.model.held_at(&places, &self.trace.filter);
        if self.is_whole() && held != true_held {
            let not_in = |held: &Held, other: &Held| -> Held {
                let only = held.iter().filter(|(session, lease)| other.get(session) != Some(lease));
                only.map(|(session, lease)| (*session, *lease)).collect()
            };
            let (lacks, ghosts) = (not_in(&true_held, &held), not_in(&held, &true_held));
            self.breaks(self.held(), format!("synced at {places:?}: lacks {lacks:?}, has ghosts {ghosts:?}"));
        } else if count != true_held.len() as u64 {
            self.breaks(self.held(), format!("synced counts {count} at {places:?}, not {}", true_held.len()));
        }
        self.follow(places)
    }

    fn live(&mut self, mut segment: Segment, message: &Message) -> State {
        let Message { told, cursor, last, .. } = message;
        if let Told::Events(events) = told {
            for event in events {
                self.check_passes(event);
                segment.tell(self.model.partition_of(&event.session), *event);
            }
        }
        match (told, cursor) {
            (Told::Snapshot(_) | Told::Synced(_), _) => return self.stray(told, "comes outside of a snapshot"),
            (_, None) => self.breaks(Promise::Resumable, format!("{told:?} carries no cursor")),
            (_, Some(cursor)) => segment.mark(cursor, *last),
        }
        if let Told::Closed = told {
            self.end(segment);
            return State::Closed;
        }
        State::Live(segment)
    }

    /// Whether the stream tells of every change of what passes by id, so that what it says can be applied.
    fn is_whole(&self) -> bool {
        is_whole(&self.trace.filter)
    }

    /// The promise about what is held.
    fn held(&self) -> Promise {
        if self.trace.filter.has_placements() { Promise::Placed } else { Promise::Exact }
    }

    fn check_passes(&mut self, event: &SessionEvent) {
        if !tells(&self.trace.filter, event) {
            let is_move = matches!(event.change, SessionChange::Moved { .. });
            let promise = if is_move { Promise::Placed } else { self.held() };
            self.breaks(promise, format!("{event:?} does not pass"));
        }
    }

    fn apply(&mut self, held: &mut Held, events: &[SessionEvent]) {
        for event in events {
            self.check_passes(event);
            if !apply(held, event, &self.trace.filter) && self.is_whole() {
                self.breaks(self.held(), format!("{event:?} does not fit what is held"));
            }
        }
    }

    fn end(&mut self, segment: Segment) {
        let filter = &self.trace.filter;
        let judged = segment.judge(self.model, filter, self.trace.drained);
        if judged.is_empty() && self.is_whole() {
            let mut held = self.model.held_at(segment.anchor(), filter);
            segment.events().for_each(|event| self.apply(&mut held, &[*event]));
            if self.trace.drained && held != self.model.held_at(&self.model.ends(), filter) {
                self.breaks(self.held(), "in the end it does not hold what the registry holds");
            }
        }
        self.broken.extend(judged);
    }

    fn finish(&mut self) {
        match std::mem::replace(&mut self.state, State::Adrift) {
            State::Live(segment) => self.end(segment),
            State::Snapshot(_) if self.trace.drained => {
                self.breaks(Promise::Live, "a snapshot does not end though everything was read");
            }
            State::Foreign | State::Unopened if self.trace.drained => {
                self.breaks(Promise::Live, "nothing comes though everything was read");
            }
            _ => {}
        }
    }
}
