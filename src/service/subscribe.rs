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
    status::ServiceError,
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
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Streaming,
    /// The last message is out, and the status is not.
    Ending,
    Ended,
}

impl ObserverBody {
    pub(super) fn new(observer: Observer, heartbeat: Duration, resumes: bool) -> Self {
        let last_sent = Instant::now();
        let timer = Box::pin(sleep_until(last_sent + heartbeat));
        Self { observer, heartbeat, last_sent, timer, owes_heartbeat: resumes, state: State::Streaming }
    }

    /// The next message, if one is ready.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let Poll::Ready(Some(update)) = self.observer.poll_next(context) else { return Poll::Pending };
        match update {
            Update::Closed => self.state = State::Ending,
            // It carries the cursor that the heartbeat would.
            Update::Synced { .. } => self.owes_heartbeat = false,
            _ => {}
        }
        let shared = if let Update::Events(events) = &update { events.wire() } else { None };
        Poll::Ready(shared.unwrap_or_else(|| {
            let cursor = self.observer.cursor();
            encode::update(&update, cursor.as_ref(), self.observer.registry_id(), self.heartbeat)
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
            return Poll::Ready(encode::heartbeat(self.observer.cursor().as_ref()));
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let due = self.last_sent + self.heartbeat;
            if due <= Instant::now() {
                return Poll::Ready(encode::heartbeat(self.observer.cursor().as_ref()));
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
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
            State::Ending => {
                self.state = State::Ended;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers(&ServiceError::Draining.into())))));
            }
            State::Ended => return Poll::Ready(None),
        }
        let this = &mut *self;
        let bytes = match this.poll_messages(context) {
            Poll::Ready(bytes) => bytes,
            Poll::Pending => std::task::ready!(this.poll_heartbeat(context)),
        };
        this.last_sent = Instant::now();
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
