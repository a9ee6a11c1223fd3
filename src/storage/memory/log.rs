//! One partition of the change log, bounded, with those who wait for its next change.

use std::{collections::VecDeque, future::poll_fn, ops::Range, task::Poll, task::Waker};

use parking_lot::Mutex;

use crate::{
    session::{SessionChange, SessionEvent, SessionKey},
    storage::{LogError, Position},
};

/// Changes are kept in segments of this many and given up a segment at a time: growing a single ring of a million changes
/// would hold the lock for milliseconds.
const SEGMENT: usize = 4096;

pub(super) struct Log(Mutex<State>);

struct State {
    /// All but the last are full.
    segments: VecDeque<Vec<SessionEvent>>,
    segment_len: usize,
    max_segments: usize,
    /// The position before the first change held.
    oldest: u64,
    newest: u64,
    /// Those who wait for a change after `newest` as it was at that time.
    followers: Vec<Waker>,
    /// Memory for the next segment.
    spare: Vec<SessionEvent>,
}

impl Log {
    pub(super) fn new(retain: usize) -> Self {
        let segment_len = retain.clamp(1, SEGMENT);
        Self(Mutex::new(State {
            segments: VecDeque::new(),
            segment_len,
            // One more: the newest segment is rarely full.
            max_segments: retain.div_ceil(segment_len) + 1,
            oldest: 0,
            newest: 0,
            followers: Vec::new(),
            spare: Vec::new(),
        }))
    }

    /// Appends a change. [`settle`](Self::settle) must follow, when no lock is held.
    pub(super) fn append(&self, event: SessionEvent) {
        let mut state = self.0.lock();
        let state = &mut *state;
        match state.segments.back_mut() {
            Some(segment) if segment.len() < state.segment_len => segment.push(event),
            _ => {
                // The oldest segment becomes the newest, so that a full log allocates nothing.
                let mut segment = if state.segments.len() == state.max_segments {
                    state.oldest += state.segment_len as u64;
                    state.segments.pop_front().unwrap_or_default()
                } else {
                    std::mem::take(&mut state.spare)
                };
                segment.clear();
                segment.reserve_exact(state.segment_len);
                segment.push(event);
                state.segments.push_back(segment);
            }
        }
        state.newest += 1;
    }

    /// Does what follows on some appended changes and takes no lock to be done: wakes those who wait for them, and makes memory
    /// ready for more, which the kernel may take milliseconds to hand out.
    pub(super) fn settle(&self) {
        let mut state = self.0.lock();
        let wants_spare = state.spare.capacity() == 0
            && state.segments.len() < state.max_segments
            && state.segments.back().is_none_or(|segment| segment.len() > state.segment_len / 2);
        let segment_len = state.segment_len;
        let followers = std::mem::take(&mut state.followers);
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
        Position(state.oldest)..Position(state.newest)
    }

    pub(super) async fn changes_after(&self, after: Position, limit: usize) -> Result<Vec<SessionEvent>, LogError> {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if after.0 < state.oldest {
                return Poll::Ready(Err(LogError::Trimmed));
            }
            if after.0 > state.newest {
                return Poll::Ready(Err(LogError::Restarted));
            }
            if after.0 == state.newest {
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

impl State {
    /// Up to `limit` changes, without the first `skip` that are held.
    fn read(&self, skip: usize, limit: usize) -> Vec<SessionEvent> {
        let held = (self.newest - self.oldest) as usize;
        let mut events = Vec::with_capacity(limit.min(held - skip));
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
