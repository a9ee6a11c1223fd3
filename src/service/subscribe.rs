//! The response body of a `Subscribe` call.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{encode, response::trailers};
use crate::{
    service::error::{self, ServiceError},
    subject::{Observer, Update},
};

/// Messages of at least this many bytes are sent without a copy. Smaller ones that are ready together are copied into
/// one buffer, because a frame for each costs more than the copy.
const MIN_UNCOPIED: usize = 4096;

/// The buffer takes no more messages once it holds this many bytes: about one DATA frame.
const MAX_COPIED: usize = 16_000;

/// The response body of one `Subscribe` call: wraps an observer, and adds heartbeats and the final status.
///
/// tonic's codec would copy every message for every observer. This body passes on the log's shared bytes instead.
pub(super) struct ObserverBody {
    observer: Observer,
    heartbeat: Duration,
    last_sent: Instant,
    /// Fires when a heartbeat may be due or the stream retires. It is reset only when it fires, not for every message,
    /// so it may fire before the heartbeat is due.
    timer: Pin<Box<Sleep>>,
    /// Whether to send a heartbeat as soon as the stream has caught up, which a resumed stream needs.
    ///
    /// Its first message only repeats the cursor that it resumed from. Without this heartbeat, a quiet observer that
    /// always reconnects before a heartbeat is due would never get a newer cursor, and would be reset in the end.
    owes_heartbeat: bool,
    /// When the stream ends because its connection is too old. A stream that is not synced by then ends once it is.
    retires: Option<Instant>,
    /// Whether the body has noticed that this time has passed.
    is_old: bool,
    state: State,
}

/// A body in the extensions of a response, which must be cloneable.
#[derive(Clone)]
struct Carried(Arc<Mutex<Option<Box<ObserverBody>>>>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Streaming,
    /// The last message was sent, but not yet the status.
    Ending(EndReason),
    Ended,
}

/// Why a stream ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EndReason {
    Draining,
    TooOld,
}

impl ObserverBody {
    pub(super) fn new(mut observer: Observer, heartbeat: Duration, resumes: bool) -> Self {
        observer.encode();
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

    /// Makes a response whose body will be replaced by this one. tonic's services can only return streams of messages,
    /// so the response carries the body in its extensions.
    pub(super) fn in_place_of<S>(self, stream: S) -> tonic::Response<S> {
        let mut response = tonic::Response::new(stream);
        response.extensions_mut().insert(Carried(Arc::new(Mutex::new(Some(Box::new(self))))));
        response
    }

    /// Takes the body that a response carries.
    pub(super) fn carried_by(extensions: &mut http::Extensions) -> Option<Box<Self>> {
        extensions.remove::<Carried>()?.0.lock().take()
    }

    pub(super) fn retire_at(&mut self, time: Option<Instant>) {
        self.retires = time;
        self.set_timer(self.last_sent);
    }

    /// Sets the timer to the next heartbeat, or to the time to retire if that is earlier and still after `now`.
    fn set_timer(&mut self, now: Instant) {
        let due = self.last_sent + self.heartbeat;
        let next = self.retires.filter(|retires| *retires > now).map_or(due, |retires| retires.min(due));
        self.timer.as_mut().reset(next);
    }

    /// Returns the next message, if one is ready.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let Poll::Ready(Some(update)) = self.observer.poll_next_unpin(context) else { return Poll::Pending };
        match update {
            Update::Closed => self.state = State::Ending(EndReason::Draining),
            // This message carries the cursor that the heartbeat would carry.
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

    /// Returns one large message, or as many of the ready small ones as fill a frame.
    fn poll_messages(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let first = std::task::ready!(self.poll_message(context));
        let (mut last, mut total) = (first.len(), first.len());
        let mut others = Vec::new();
        while last < MIN_UNCOPIED && total < MAX_COPIED && self.state == State::Streaming {
            let Poll::Ready(next) = self.poll_message(context) else { break };
            last = next.len();
            total += last;
            others.push(next);
        }
        if others.is_empty() {
            return Poll::Ready(first);
        }
        // Exactly as large as needed: a stuck stream holds on to it.
        let mut together = Vec::with_capacity(total);
        together.extend_from_slice(&first);
        others.iter().for_each(|next| together.extend_from_slice(next));
        Poll::Ready(together.into())
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

    /// Returns the last message. Its cursor lets the client resume on another connection.
    fn retire(&mut self) -> Bytes {
        self.state = State::Ending(EndReason::TooOld);
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
            State::Ending(reason) => {
                self.state = State::Ended;
                let error = match reason {
                    EndReason::Draining => ServiceError::Draining,
                    EndReason::TooOld => ServiceError::ConnectionTooOld,
                };
                return Poll::Ready(Some(Ok(Frame::trailers(trailers(&error::answer(error).status)))));
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
