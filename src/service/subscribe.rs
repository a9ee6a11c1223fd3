//! A response body that is an observer.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{encode, response::trailers};
use crate::{
    service::ServiceError,
    subject::{Observer, Update},
};

/// A message of at least this size is sent as it is; smaller ones that are ready at once are copied together, because a
/// frame each costs more than the copy.
const SENT_ALONE: usize = 4096;

/// How much is copied together: about one DATA frame.
const SENT_TOGETHER: usize = 16_000;

/// The stream of one `Subscribe` call.
///
/// tonic's codec would copy every message for every observer; a body of our own hands on the shared bytes of the log.
pub(super) struct ObserverBody {
    observer: Observer,
    heartbeat: Duration,
    last_sent: Instant,
    /// Fires no later than the heartbeat is due, and is set anew only then: not for every message.
    timer: Pin<Box<Sleep>>,
    /// A stream that resumes owes a heartbeat as soon as it has caught up. Its first message only repeats the cursor that it was
    /// given, so a quiet observer that always reconnects before a heartbeat is due would never advance, and be reset in the end.
    owes_heartbeat: bool,
    /// When the stream is to end, because its connection is old. Not before it is synced.
    retires: Option<Instant>,
    /// That time was seen to have come.
    is_old: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Streaming,
    /// The last message is out, and the status is not.
    Ending(LastWord),
    Ended,
}

/// Why a stream ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastWord {
    Draining,
    TooOld,
}

impl ObserverBody {
    pub(super) fn new(observer: Observer, heartbeat: Duration, resumes: bool) -> Self {
        let last_sent = Instant::now();
        let timer = Box::pin(sleep_until(last_sent + heartbeat));
        Self {
            observer,
            heartbeat,
            last_sent,
            timer,
            owes_heartbeat: resumes,
            retires: None,
            is_old: false,
            state: State::Streaming,
        }
    }

    pub(super) fn retire_at(&mut self, time: Option<Instant>) {
        self.retires = time;
        self.set_timer(self.last_sent);
    }

    /// Sets the timer to when something is to be done next, of what is to be done after `now`.
    fn set_timer(&mut self, now: Instant) {
        let due = self.last_sent + self.heartbeat;
        let next = self.retires.filter(|retires| *retires > now).map_or(due, |retires| retires.min(due));
        self.timer.as_mut().reset(next);
    }

    /// The next message, if one is ready.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let Poll::Ready(Some(update)) = self.observer.poll_next(context) else { return Poll::Pending };
        match update {
            Update::Closed => self.state = State::Ending(LastWord::Draining),
            // It carries the cursor that the heartbeat would.
            Update::Synced { .. } => self.owes_heartbeat = false,
            _ => {}
        }
        let shared = if let Update::Events(events) = &update { events.wire() } else { None };
        Poll::Ready(shared.unwrap_or_else(|| {
            let cursor = self.observer.cursor();
            encode::update(
                &update,
                cursor.as_ref(),
                self.observer.registry_id(),
                self.heartbeat,
                self.observer.places(),
            )
        }))
    }

    /// As many of the messages that are ready as make a frame.
    fn poll_messages(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let Poll::Ready(first) = self.poll_message(context) else { return Poll::Pending };
        let mut together = BytesMut::new();
        let mut last = first;
        while last.len() < SENT_ALONE && together.len() < SENT_TOGETHER && self.state == State::Streaming {
            let Poll::Ready(next) = self.poll_message(context) else { break };
            together.extend_from_slice(&last);
            last = next;
        }
        if together.is_empty() {
            return Poll::Ready(last);
        }
        together.extend_from_slice(&last);
        Poll::Ready(together.freeze())
    }

    fn poll_heartbeat(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        if self.owes_heartbeat && self.observer.has_caught_up() {
            self.owes_heartbeat = false;
            return Poll::Ready(encode::heartbeat(self.observer.cursor().as_ref(), self.observer.places()));
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            self.note_age(now);
            if self.retires_now() {
                return Poll::Ready(self.retire());
            }
            if self.last_sent + self.heartbeat <= now {
                return Poll::Ready(encode::heartbeat(self.observer.cursor().as_ref(), self.observer.places()));
            }
            self.set_timer(now);
        }
        Poll::Pending
    }

    fn note_age(&mut self, now: Instant) {
        self.is_old |= self.retires.is_some_and(|retires| retires <= now);
    }

    fn retires_now(&self) -> bool {
        self.is_old && self.observer.is_synced()
    }

    /// The last message: a stream goes on from its cursor over another connection.
    fn retire(&mut self) -> Bytes {
        self.state = State::Ending(LastWord::TooOld);
        encode::heartbeat(self.observer.cursor().as_ref(), self.observer.places())
    }
}

impl http_body::Body for ObserverBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.state {
            State::Streaming => {}
            State::Ending(last_word) => {
                self.state = State::Ended;
                let error = match last_word {
                    LastWord::Draining => ServiceError::Draining,
                    LastWord::TooOld => ServiceError::ConnectionTooOld,
                };
                return Poll::Ready(Some(Ok(Frame::trailers(trailers(&error.into())))));
            }
            State::Ended => return Poll::Ready(None),
        }
        let this = &mut *self;
        if this.retires_now() {
            return Poll::Ready(Some(Ok(Frame::data(this.retire()))));
        }
        let bytes = match this.poll_messages(context) {
            Poll::Ready(bytes) => bytes,
            Poll::Pending => std::task::ready!(this.poll_heartbeat(context)),
        };
        this.last_sent = Instant::now();
        this.note_age(this.last_sent);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
