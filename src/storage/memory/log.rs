//! One partition of the change log, bounded, with those who wait for its next change.

use std::{collections::VecDeque, future::poll_fn, ops::Range, task::Poll, task::Waker};

use parking_lot::{Mutex, MutexGuard};

use super::marks::Marks;
use crate::{
    session::{SessionEvent, SessionKey},
    storage::{Changes, LogError, LogPoint, Mark, Position},
};

/// Changes are kept in segments of this many and given up a segment at a time: growing a single ring of a million changes
/// would hold the lock for milliseconds.
const SEGMENT: usize = 4096;

/// Of the changes that a follower has read so many stay, for another that is not as far: the subject keeps for its observers what
/// it has read, and a million changes in two logs take 40 MB more.
const KEPT_OF_READ: usize = 16 * SEGMENT;

pub(super) struct Log {
    state: Mutex<State>,
    /// They are known from the oldest change held on.
    marks: Marks,
}

/// A log that is locked for changes to be appended.
pub(super) struct Appending<'a>(MutexGuard<'a, State>);

struct State {
    /// All but the last are full.
    segments: VecDeque<Vec<SessionEvent>>,
    segment_len: usize,
    max_segments: usize,
    /// How many of the changes that somebody has read are kept.
    kept_of_read: u64,
    /// The position before the first change held.
    oldest: u64,
    newest: u64,
    /// Followers are told of changes up to here: what is settled and, where changes must be on disk first, is there.
    visible: u64,
    /// Somebody has read up to here.
    read: u64,
    shows_settled: bool,
    /// Those who wait for a change after `visible` as it was at that time.
    followers: Vec<Waker>,
    /// Memory for the next segment, of the last that was given up: a full log allocates nothing.
    spare: Vec<SessionEvent>,
}

impl Log {
    /// One whose followers see changes when they are [settled](Self::settle), or when they are [shown](Self::show).
    pub(super) fn new(retain: usize, shows_settled: bool, marks: Marks) -> Self {
        let segment_len = retain.clamp(1, SEGMENT);
        let state = State {
            segments: VecDeque::new(),
            segment_len,
            // One more: the newest segment is rarely full.
            max_segments: retain.div_ceil(segment_len) + 1,
            kept_of_read: retain.min(KEPT_OF_READ) as u64,
            oldest: 0,
            newest: 0,
            visible: 0,
            read: 0,
            shows_settled,
            followers: Vec::new(),
            spare: Vec::new(),
        };
        Self { state: Mutex::new(state), marks }
    }

    /// Lets the log begin after `position`: what follows is [restored](Self::restore).
    pub(super) fn restore_from(&self, position: Position) {
        let mut state = self.state.lock();
        (state.oldest, state.newest, state.visible) = (position.0, position.0, position.0);
    }

    /// Appends a change that was made in an earlier life of the registry.
    pub(super) fn restore(&self, event: SessionEvent) {
        let mut state = self.state.lock();
        state.append(event);
        state.visible = state.newest;
        drop(state.trim());
    }

    /// Shows changes up to `position` to followers.
    pub(super) fn show(&self, position: Position) {
        let mut state = self.state.lock();
        let (followers, unused) = (state.show(position.0), state.trim());
        drop(state);
        followers.into_iter().for_each(Waker::wake);
        drop(unused);
    }

    /// Locks it for changes to be appended. [`settle`](Self::settle) must follow, when no lock is held.
    pub(super) fn appending(&self) -> Appending<'_> {
        Appending(self.state.lock())
    }

    /// Does what follows on some appended changes and takes no lock to be done: shows them to those who wait for changes, all at
    /// once, and makes memory ready for more, which the kernel may take milliseconds to hand out.
    pub(super) fn settle(&self) {
        let mut state = self.state.lock();
        let newest = state.newest;
        let followers = if state.shows_settled { state.show(newest) } else { Vec::new() };
        let unused = state.trim();
        let wants_spare = state.spare.capacity() == 0
            && state.segments.back().is_none_or(|segment| segment.len() > state.segment_len / 2);
        let segment_len = state.segment_len;
        drop(state);
        followers.into_iter().for_each(Waker::wake);
        drop(unused);
        if wants_spare {
            let unwritten = SessionEvent::created(SessionKey::new(0, 0), None);
            let spare = vec![unwritten; segment_len];
            self.state.lock().spare = spare;
        }
    }

    pub(super) fn newest(&self) -> Position {
        Position(self.state.lock().newest)
    }

    /// The point of the newest change.
    pub(super) fn newest_point(&self) -> LogPoint {
        let position = self.newest();
        // The mark of what is newest is always known.
        LogPoint { position, mark: self.marks.at(position).unwrap_or_default() }
    }

    /// Returns the points between which changes are held and shown to followers.
    pub(super) fn extent(&self) -> Range<LogPoint> {
        let (oldest, visible) = {
            let mut state = self.state.lock();
            state.catch_up();
            (Position(state.oldest), Position(state.visible))
        };
        let point = |position| LogPoint { position, mark: self.marks.since_oldest(position) };
        point(oldest)..point(visible)
    }

    /// Returns the mark at a position. None ahead of what followers are shown, and where the mark was forgotten.
    pub(super) fn mark(&self, position: Position) -> Option<Mark> {
        let is_shown = {
            let mut state = self.state.lock();
            state.catch_up();
            position.0 <= state.visible
        };
        is_shown.then(|| self.marks.at(position)).flatten()
    }

    pub(super) async fn changes_after(&self, after: LogPoint, limit: usize) -> Result<Changes, LogError> {
        poll_fn(|context| {
            let mut state = self.state.lock();
            let changes = state.changes_after(after, &self.marks, limit.max(1), context.waker());
            let unused = state.trim();
            drop(state);
            drop(unused);
            changes
        })
        .await
    }
}

impl Appending<'_> {
    pub(super) fn append(&mut self, event: SessionEvent) {
        self.0.append(event);
    }

    /// The position of the newest change.
    pub(super) fn newest(&self) -> Position {
        Position(self.0.newest)
    }
}

impl State {
    /// Shows changes up to `visible`, and gives those to wake for it.
    fn show(&mut self, visible: u64) -> Vec<Waker> {
        self.visible = visible;
        std::mem::take(&mut self.followers)
    }

    /// Shows changes that are yet to be settled. Their buckets are unlocked before they are, so whoever asks how far the log reaches
    /// may have seen them. Followers are woken when they are settled.
    fn catch_up(&mut self) {
        if self.shows_settled {
            self.visible = self.newest;
        }
    }

    /// Gives up the oldest changes, as many as need not be kept. What is given back is to be freed when the log is not locked.
    #[must_use]
    fn trim(&mut self) -> Vec<Vec<SessionEvent>> {
        let mut unused = Vec::new();
        while self.segments.len() > self.most_segments() {
            self.oldest += self.segment_len as u64;
            match self.segments.pop_front() {
                Some(segment) if self.spare.capacity() == 0 => self.spare = segment,
                segment => unused.extend(segment),
            }
        }
        unused
    }

    fn append(&mut self, event: SessionEvent) {
        match self.segments.back_mut() {
            Some(segment) if segment.len() < self.segment_len => segment.push(event),
            _ => {
                let mut segment = std::mem::take(&mut self.spare);
                segment.clear();
                segment.reserve_exact(self.segment_len);
                segment.push(event);
                self.segments.push_back(segment);
            }
        }
        self.newest += 1;
    }

    /// How many segments there may be, as long as the oldest is what it is.
    fn most_segments(&self) -> usize {
        match self.oldest + self.segment_len as u64 {
            // A follower must not lose its place to changes that it is not shown.
            end if end > self.visible => usize::MAX,
            end if end + self.kept_of_read > self.read => self.max_segments,
            _ => 0,
        }
    }

    fn changes_after(
        &mut self,
        point: LogPoint,
        marks: &Marks,
        limit: usize,
        waker: &Waker,
    ) -> Poll<Result<Changes, LogError>> {
        let after = point.position;
        if after.0 < self.oldest {
            return Poll::Ready(Err(LogError::Trimmed));
        }
        if after.0 > self.visible {
            self.catch_up();
        }
        if after.0 > self.visible || marks.since_oldest(after) != point.mark {
            return Poll::Ready(Err(LogError::Restarted));
        }
        self.read = self.read.max(after.0);
        if after.0 == self.visible {
            if !self.followers.iter().any(|follower| follower.will_wake(waker)) {
                self.followers.push(waker.clone());
            }
            return Poll::Pending;
        }
        let events = self.read((after.0 - self.oldest) as usize, limit);
        let mark = marks.since_oldest(Position(after.0 + events.len() as u64));
        Poll::Ready(Ok(Changes { events, mark }))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn event(session: i64) -> SessionEvent {
        SessionEvent::created(SessionKey::new(0, session), None)
    }

    /// Between a change and its being settled its bucket is unlocked already.
    #[tokio::test(start_paused = true)]
    async fn the_log_reaches_up_to_changes_that_are_yet_to_be_settled() {
        let log = Log::new(100, true, Marks::random());
        log.appending().append(event(1));
        let end = log.extent().end;
        assert_eq!(end.position, Position(1));
        assert_eq!(log.mark(end.position), Some(end.mark));
        let next = log.changes_after(end, 10);
        tokio::pin!(next);
        timeout(Duration::from_millis(1), &mut next).await.expect_err("nothing comes after it yet");
        log.appending().append(event(2));
        log.settle();
        assert_eq!(next.await.unwrap().events, [event(2)]);
    }
}
