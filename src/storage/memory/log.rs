//! One partition of the change log, with bounded length, and the followers that wait for its next change.

use std::{collections::VecDeque, future::poll_fn, ops::Range, task::Poll, task::Waker};

use parking_lot::{Mutex, MutexGuard};

use super::marks::Marks;
use crate::{
    session::{SessionEvent, SessionKey},
    storage::{Changes, LogError, LogPoint, Mark, Position},
};

/// Changes are stored and removed in segments of this many. Growing a single ring of a million changes would hold the
/// lock for milliseconds.
const SEGMENT: usize = 4096;

/// How many of the changes that a follower has read are kept for slower followers. The subject keeps what it has read
/// for its own observers, and a second copy of a million changes would take another 40 MB.
const KEPT_OF_READ: usize = 16 * SEGMENT;

pub(super) struct Log {
    state: Mutex<State>,
    /// Known from the oldest held change on.
    marks: Marks,
}

/// A log that is locked while changes are appended.
pub(super) struct Appending<'a>(MutexGuard<'a, State>);

struct State {
    /// All but the last are full.
    segments: VecDeque<Vec<SessionEvent>>,
    segment_len: usize,
    max_segments: usize,
    /// How many of the changes that some follower has read are kept.
    kept_of_read: u64,
    /// The position before the first held change.
    oldest: u64,
    newest: u64,
    /// Followers are shown the changes up to this position: those that are settled and, with a journal, durable.
    visible: u64,
    /// The furthest position that a follower has read.
    read: u64,
    shows_settled: bool,
    /// Followers waiting for the next visible change.
    followers: Vec<Waker>,
    /// Memory for the next segment, usually from the last removed one, so that a full log allocates nothing.
    spare: Vec<SessionEvent>,
}

impl Log {
    /// Makes an empty log. Followers see changes once they are [settled](Self::settle) if `shows_settled`, otherwise
    /// once they are [shown](Self::show).
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

    /// Makes the log begin after `position`. Later changes are [restored](Self::restore).
    pub(super) fn restore_from(&self, position: Position) {
        let mut state = self.state.lock();
        (state.oldest, state.newest, state.visible) = (position.0, position.0, position.0);
    }

    /// Appends a change from before a restart.
    pub(super) fn restore(&self, event: SessionEvent) {
        let mut state = self.state.lock();
        state.append(event);
        state.visible = state.newest;
        drop(state.trim());
    }

    /// Shows the changes up to `position` to followers.
    pub(super) fn show(&self, position: Position) {
        let mut state = self.state.lock();
        let (followers, unused) = (state.show(position.0), state.trim());
        drop(state);
        followers.into_iter().for_each(Waker::wake);
        drop(unused);
    }

    /// Locks the log to append changes. [`settle`](Self::settle) must follow once no other lock is held.
    pub(super) fn appending(&self) -> Appending<'_> {
        Appending(self.state.lock())
    }

    /// Completes appends once no other lock is held: shows the changes to the waiting followers, all at the same time,
    /// and allocates memory for more changes, which may take the kernel milliseconds.
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

    /// Returns the point of the newest change.
    pub(super) fn newest_point(&self) -> LogPoint {
        let position = self.newest();
        // The mark of the newest change is always known.
        LogPoint { position, mark: self.marks.at(position).unwrap_or_default() }
    }

    /// Returns the range of points between which changes are held and visible to followers.
    pub(super) fn extent(&self) -> Range<LogPoint> {
        let (oldest, visible) = {
            let mut state = self.state.lock();
            state.catch_up();
            (Position(state.oldest), Position(state.visible))
        };
        let point = |position| LogPoint { position, mark: self.marks.since_oldest(position) };
        point(oldest)..point(visible)
    }

    /// Returns the mark at a position. `None` beyond what followers see, or if the mark was forgotten.
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

    /// Returns the position of the newest change.
    pub(super) fn newest(&self) -> Position {
        Position(self.0.newest)
    }
}

impl State {
    /// Shows the changes up to `visible`. Returns the followers to wake.
    fn show(&mut self, visible: u64) -> Vec<Waker> {
        self.visible = visible;
        std::mem::take(&mut self.followers)
    }

    /// Makes unsettled changes visible. Their buckets are unlocked before they are settled, so a caller that reads the
    /// end of the log may have seen these changes. Followers are woken when the changes are settled.
    fn catch_up(&mut self) {
        if self.shows_settled {
            self.visible = self.newest;
        }
    }

    /// Removes the oldest changes that need not be kept. Free the returned memory after unlocking the log.
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

    /// Returns how many segments may be held, given the current oldest one.
    fn most_segments(&self) -> usize {
        match self.oldest + self.segment_len as u64 {
            // A follower must not lose its place because of changes that it cannot see yet.
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

    /// Returns up to `limit` visible changes, skipping the first `skip` held ones.
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

    /// A bucket is unlocked between a change and its settling.
    #[tokio::test(start_paused = true)]
    async fn log_extent_includes_unsettled_changes() {
        let log = Log::new(100, true, Marks::random());
        log.appending().append(event(1));
        let end = log.extent().end;
        assert_eq!(end.position, Position(1));
        assert_eq!(log.mark(end.position), Some(end.mark));
        let next = log.changes_after(end, 10);
        tokio::pin!(next);
        timeout(Duration::from_millis(1), &mut next).await.expect_err("there is no further change yet");
        log.appending().append(event(2));
        log.settle();
        assert_eq!(next.await.unwrap().events, [event(2)]);
    }
}
