//! One partition of the change log, bounded, with those who wait for its next change.

use std::{collections::VecDeque, future::poll_fn, ops::Range, task::Poll, task::Waker};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    session::{SessionChange, SessionEvent, SessionKey},
    storage::{LogError, Position},
};

/// Changes are kept in segments of this many and given up a segment at a time: growing a single ring of a million changes
/// would hold the lock for milliseconds.
const SEGMENT: usize = 4096;

pub(super) struct Log(Mutex<State>);

/// A log that is locked for changes to be appended.
pub(super) struct Appending<'a>(MutexGuard<'a, State>);

struct State {
    /// All but the last are full.
    segments: VecDeque<Vec<SessionEvent>>,
    segment_len: usize,
    max_segments: usize,
    /// The position before the first change held.
    oldest: u64,
    newest: u64,
    /// Followers are told of changes up to here: what is settled and, where changes must be on disk first, is there.
    visible: u64,
    shows_settled: bool,
    /// Those who wait for a change after `visible` as it was at that time.
    followers: Vec<Waker>,
    /// Memory for the next segment.
    spare: Vec<SessionEvent>,
}

impl Log {
    /// One whose followers see changes when they are [settled](Self::settle), or when they are [shown](Self::show).
    pub(super) fn new(retain: usize, shows_settled: bool) -> Self {
        let segment_len = retain.clamp(1, SEGMENT);
        Self(Mutex::new(State {
            segments: VecDeque::new(),
            segment_len,
            // One more: the newest segment is rarely full.
            max_segments: retain.div_ceil(segment_len) + 1,
            oldest: 0,
            newest: 0,
            visible: 0,
            shows_settled,
            followers: Vec::new(),
            spare: Vec::new(),
        }))
    }

    /// Lets the log begin after `position`: what follows is [restored](Self::restore).
    pub(super) fn restore_from(&self, position: Position) {
        let mut state = self.0.lock();
        (state.oldest, state.newest, state.visible) = (position.0, position.0, position.0);
    }

    /// Appends a change that was made in an earlier life of the registry.
    pub(super) fn restore(&self, event: SessionEvent) {
        let mut state = self.0.lock();
        state.append(event);
        state.visible = state.newest;
    }

    /// Shows changes up to `position` to followers.
    pub(super) fn show(&self, position: Position) {
        let mut state = self.0.lock();
        let followers = state.show(position.0);
        drop(state);
        followers.into_iter().for_each(Waker::wake);
    }

    /// Locks it for changes to be appended. [`settle`](Self::settle) must follow, when no lock is held.
    pub(super) fn appending(&self) -> Appending<'_> {
        Appending(self.0.lock())
    }

    /// Does what follows on some appended changes and takes no lock to be done: shows them to those who wait for changes, all at
    /// once, and makes memory ready for more, which the kernel may take milliseconds to hand out.
    pub(super) fn settle(&self) {
        let mut state = self.0.lock();
        let wants_spare = state.spare.capacity() == 0
            && state.segments.len() < state.max_segments
            && state.segments.back().is_none_or(|segment| segment.len() > state.segment_len / 2);
        let segment_len = state.segment_len;
        let newest = state.newest;
        let followers = if state.shows_settled { state.show(newest) } else { Vec::new() };
        drop(state);
        followers.into_iter().for_each(Waker::wake);
        if wants_spare {
            let unwritten = SessionEvent { session: SessionKey::new(0, 0), change: SessionChange::Created };
            let spare = vec![unwritten; segment_len];
            self.0.lock().spare = spare;
        }
    }

    pub(super) fn newest(&self) -> Position {
        Position(self.0.lock().newest)
    }

    pub(super) fn extent(&self) -> Range<Position> {
        let state = self.0.lock();
        Position(state.oldest)..Position(state.visible)
    }

    pub(super) async fn changes_after(&self, after: Position, limit: usize) -> Result<Vec<SessionEvent>, LogError> {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if after.0 < state.oldest {
                return Poll::Ready(Err(LogError::Trimmed));
            }
            if after.0 > state.visible {
                return Poll::Ready(Err(LogError::Restarted));
            }
            if after.0 == state.visible {
                let waiting = &mut state.followers;
                if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                    waiting.push(context.waker().clone());
                }
                return Poll::Pending;
            }
            Poll::Ready(Ok(state.read((after.0 - state.oldest) as usize, limit.max(1))))
        })
        .await
    }
}

impl Appending<'_> {
    pub(super) fn append(&mut self, event: SessionEvent) {
        self.0.append(event);
    }
}

impl State {
    /// Shows changes up to `visible`, and gives those to wake for it.
    fn show(&mut self, visible: u64) -> Vec<Waker> {
        self.visible = visible;
        // Those that nobody had seen yet were kept beyond the bound.
        while self.segments.len() > self.max_segments && self.oldest_is_seen() {
            self.oldest += self.segment_len as u64;
            self.segments.pop_front();
        }
        std::mem::take(&mut self.followers)
    }

    fn append(&mut self, event: SessionEvent) {
        match self.segments.back_mut() {
            Some(segment) if segment.len() < self.segment_len => segment.push(event),
            _ => {
                // The oldest segment becomes the newest, so that a full log allocates nothing.
                let mut segment = if self.segments.len() >= self.max_segments && self.oldest_is_seen() {
                    self.oldest += self.segment_len as u64;
                    self.segments.pop_front().unwrap_or_default()
                } else {
                    std::mem::take(&mut self.spare)
                };
                segment.clear();
                segment.reserve_exact(self.segment_len);
                segment.push(event);
                self.segments.push_back(segment);
            }
        }
        self.newest += 1;
    }

    /// Whether all of the oldest segment is shown. A follower must not lose its place to changes that it is not shown.
    fn oldest_is_seen(&self) -> bool {
        self.oldest + self.segment_len as u64 <= self.visible
    }

    /// Up to `limit` changes, without the first `skip` that are held.
    fn read(&self, skip: usize, limit: usize) -> Vec<SessionEvent> {
        let shown = (self.visible - self.oldest) as usize;
        let limit = limit.min(shown - skip);
        let mut events = Vec::with_capacity(limit);
        let mut within = skip % self.segment_len;
        for segment in self.segments.iter().skip(skip / self.segment_len) {
            let part = &segment[within..];
            events.extend_from_slice(&part[..part.len().min(limit - events.len())]);
            within = 0;
            if events.len() == limit {
                break;
            }
        }
        events
    }
}
