//! An observer of the registry that reconnects and resumes automatically.

mod options;
mod update;

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status, Streaming};

pub use self::{
    options::{EventType, WatchOptions, WatchStart},
    update::{Place, SnapshotSession, WatchUpdate},
};
use super::{
    ClientError,
    backoff::Backoff,
    convert,
    transport::{Target, Token, Transport},
};
use crate::{
    duration,
    proto::{
        SubscribeRequest, SubscribeResponse, session_service_client::SessionServiceClient, subscribe_request::Start,
        subscribe_response::Body,
    },
    reset::ResetReason,
    session::LeaseId,
};

/// The heartbeat that the server uses by default.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(15);
/// The longest heartbeat that the server grants.
const MAX_HEARTBEAT: Duration = Duration::from_secs(60 * 60);
/// How many heartbeats may be missed before a stream counts as dead.
const SILENT_HEARTBEATS: u32 = 3;
/// How late a heartbeat may be, however short its interval. A busy machine must not count as a dead one.
const SILENCE_SLACK: Duration = Duration::from_secs(1);

/// An observer of the registry, returned by [`Client::watch`](super::Client::watch). Dropping it ends the stream.
///
/// Call [`next`](Self::next) in a loop, or use the watch as a `futures` `Stream`. [`WatchUpdate`] explains what to do
/// with the updates.
///
/// If the connection breaks, the watch returns [`WatchUpdate::Disconnected`], reconnects, and resumes after the last
/// update that [`next`](Self::next) returned. No event is lost or repeated. If resuming is impossible, it returns
/// [`WatchUpdate::Reset`], and a full snapshot follows.
#[must_use]
pub struct Watch {
    target: Target,
    /// How long opening a stream may take, up to its first message.
    timeout: Duration,
    /// The filters and the heartbeat. `start` is set for each stream.
    request: SubscribeRequest,
    /// Where the next stream starts.
    place: WatchStart,
    /// The places in the log that came with the last update.
    places: Vec<Place>,
    /// Whether the open stream has returned a part of a snapshot that is not complete yet.
    in_snapshot: bool,
    /// Whether the caller holds part of a snapshot from a broken stream and must still be given a reset.
    owes_reset: bool,
    backoff: Backoff,
    /// The token that the last stream was opened with.
    token: Option<Token>,
    state: State,
    /// When the state ends, unless something happens before.
    timer: Pin<Box<Sleep>>,
    /// Whether a poll has returned `Pending` since the last update.
    is_polled: bool,
}

type Opening = Pin<Box<dyn Future<Output = Result<Call, Status>> + Send>>;

/// What the watch waits for. Stored here and not in the future of `next`, so that dropping that future loses nothing.
enum State {
    /// To reconnect, when the timer fires.
    Waiting,
    /// For a stream, until the timer fires.
    Opening(Opening),
    /// For messages. The stream is dead when the timer fires.
    Open(Box<Open>),
}

struct Open {
    call: Call,
    subscribed: bool,
    /// How long the stream may be silent.
    limit: Duration,
    /// Whether the timer fired between two updates and was extended for that.
    is_extended: bool,
}

/// An open stream.
struct Call {
    messages: Streaming<SubscribeResponse>,
    /// Keeps the connection open.
    _channel: SessionServiceClient<Transport>,
}

impl Watch {
    pub(super) fn new(target: Target, timeout: Duration, options: WatchOptions) -> Self {
        let WatchOptions { start, session_ids, auth_key_ids, lease_ids, types, placements, heartbeat } = options;
        let request = SubscribeRequest {
            session_ids: session_ids.into_iter().map(|id| id.0).collect(),
            auth_key_ids: auth_key_ids.into_iter().map(|id| id.0).collect(),
            types: types.into_iter().map(|r#type| convert::event_type(r#type).into()).collect(),
            heartbeat: heartbeat.map(duration::to_proto),
            placements,
            lease_ids: lease_ids.into_iter().map(LeaseId::number).collect(),
            start: None,
        };
        Self {
            target,
            timeout,
            request,
            place: start,
            places: Vec::new(),
            in_snapshot: false,
            owes_reset: false,
            backoff: Backoff::default(),
            token: None,
            state: State::Waiting,
            timer: Box::pin(sleep_until(Instant::now())),
            is_polled: false,
        }
    }

    /// Returns the cursor after the last update. [`WatchOptions::after`] resumes exactly there, in this process or a
    /// later one.
    ///
    /// Returns `None` before the first update (unless the watch started after a cursor), and from the start of a
    /// snapshot until [`WatchUpdate::Synced`]. A stream cannot be resumed within a snapshot: start again with a new
    /// one.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        match &self.place {
            WatchStart::After(cursor) if !self.owes_reset => Some(cursor),
            _ => None,
        }
    }

    /// Returns the places in the change log that came with the last update, if the watch has
    /// [`placements`](WatchOptions::placements).
    ///
    /// They say how far the watch has come. The gRPC calls that change sessions return the place of their change if
    /// `with_place` is set in the request. Once the watch has reached that place, it has returned that change.
    ///
    /// [`WatchUpdate::Subscribed`], [`WatchUpdate::Synced`] and [`WatchUpdate::Heartbeat`] carry one place for each
    /// partition, and [`WatchUpdate::Events`] the place of its last event. Other updates carry none.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Waits for the next update.
    ///
    /// Call this in a loop: the watch connects and reads only within this method. If you call it so rarely that the
    /// server no longer retains the next event, the watch returns [`WatchUpdate::Reset`].
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe. If the future is dropped, for example in `select!`, no update is lost and no wait
    /// starts over.
    ///
    /// # Errors
    ///
    /// Returns an error only if it is not [retryable](ClientError::is_retryable), such as a missing permission. The
    /// watch recovers from all other errors by itself, and reports them as [`WatchUpdate::Disconnected`]. It also
    /// recovers when its token is withdrawn, if the [token file](super::ClientBuilder::token_file) has a new one by
    /// then.
    ///
    /// You may call this again after an error. The watch then waits, reconnects, and resumes where it stopped.
    pub async fn next(&mut self) -> Result<WatchUpdate, ClientError> {
        // The caller may have been busy since the last call.
        self.is_polled = false;
        poll_fn(|context| self.poll_update(context)).await
    }

    fn poll_update(&mut self, context: &mut Context<'_>) -> Poll<Result<WatchUpdate, ClientError>> {
        if !self.is_polled {
            self.excuse_busy_caller();
        }
        self.is_polled = true;
        let update = ready!(self.poll_step(context));
        self.is_polled = false;
        Poll::Ready(update)
    }

    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Result<WatchUpdate, ClientError>> {
        loop {
            match &mut self.state {
                State::Waiting => {
                    ready!(self.timer.poll_unpin(context));
                    self.state = State::Opening(self.open());
                    self.timer.as_mut().reset(Instant::now() + self.timeout);
                }
                State::Opening(opening) => match opening.poll_unpin(context) {
                    Poll::Ready(Ok(call)) => {
                        let open = Open { call, subscribed: false, limit: self.timeout, is_extended: false };
                        self.state = State::Open(Box::new(open));
                    }
                    Poll::Ready(Err(status)) => return Poll::Ready(self.disconnect(status.into())),
                    Poll::Pending => {
                        ready!(self.timer.poll_unpin(context));
                        return Poll::Ready(self.disconnect(ClientError::Timeout { after: self.timeout }));
                    }
                },
                State::Open(open) => {
                    if open.subscribed && self.owes_reset {
                        self.owes_reset = false;
                        self.places.clear();
                        return Poll::Ready(Ok(WatchUpdate::Reset(ResetReason::SnapshotInterrupted)));
                    }
                    let update = match open.call.messages.poll_next_unpin(context) {
                        Poll::Ready(Some(Ok(message))) => self.advance(message),
                        Poll::Ready(Some(Err(status))) => Err(status.into()),
                        Poll::Ready(None) => Err(ClientError::StreamEnded),
                        Poll::Pending => {
                            ready!(self.timer.poll_unpin(context));
                            Err(ClientError::Silent { limit: open.limit })
                        }
                    };
                    match update {
                        Ok(Some(update)) => return Poll::Ready(Ok(update)),
                        Ok(None) => {}
                        Err(error) => return Poll::Ready(self.disconnect(error)),
                    }
                }
            }
        }
    }

    /// Extends the deadline of an open stream if it passed while the caller was busy and may have blocked the runtime,
    /// so that no message could arrive. This happens only once between messages: frequent calls must not keep a dead
    /// stream alive.
    fn excuse_busy_caller(&mut self) {
        if let State::Open(open) = &mut self.state
            && !open.is_extended
            && self.timer.deadline() <= Instant::now()
        {
            open.is_extended = true;
            self.timer.as_mut().reset(Instant::now() + SILENCE_SLACK);
        }
    }

    /// Opens a stream on a new connection, because the old one may be dead without either end having noticed.
    fn open(&mut self) -> Opening {
        self.token = self.target.authorization.token();
        let mut channel = SessionServiceClient::new(self.target.connect_lazy());
        let mut request = self.request.clone();
        request.start = match &self.place {
            WatchStart::Now => None,
            WatchStart::Snapshot => Some(Start::Snapshot(true)),
            WatchStart::After(cursor) => Some(Start::Cursor(cursor.clone())),
        };
        Box::pin(async move {
            let messages = channel.subscribe(request).await?.into_inner();
            Ok(Call { messages, _channel: channel })
        })
    }

    /// Advances to the place after the message. Returns `None` for a message of a kind that only newer servers know.
    fn advance(&mut self, message: SubscribeResponse) -> Result<Option<WatchUpdate>, ClientError> {
        let State::Open(open) = &mut self.state else { return Ok(None) };
        let mut places = Vec::new();
        let update = match message.body {
            Some(Body::Subscribed(body)) => {
                let heartbeat =
                    body.heartbeat.and_then(duration::from_proto).unwrap_or(DEFAULT_HEARTBEAT).min(MAX_HEARTBEAT);
                open.subscribed = true;
                open.limit = silence_limit(heartbeat);
                places = body.places;
                Some(WatchUpdate::Subscribed {
                    registry_id: body.registry_id,
                    heartbeat,
                    cursor: message.cursor.clone(),
                })
            }
            _ if !open.subscribed => return Err(ClientError::Protocol("the stream did not start with `subscribed`")),
            Some(Body::Snapshot(body)) => Some(WatchUpdate::Snapshot(convert::snapshot(body))),
            Some(Body::Synced(body)) => {
                places = body.places;
                Some(WatchUpdate::Synced { session_count: body.session_count })
            }
            Some(Body::Events(body)) => {
                places.extend(body.place);
                Some(WatchUpdate::Events(convert::events(body.events)?))
            }
            Some(Body::Heartbeat(body)) => {
                places = body.places;
                Some(WatchUpdate::Heartbeat)
            }
            Some(Body::Reset(body)) => Some(WatchUpdate::Reset(convert::reset_reason(body.reason()))),
            None => None,
        };
        open.is_extended = false;
        self.timer.as_mut().reset(Instant::now() + open.limit);
        self.places = convert::places(places);
        if message.cursor.is_empty() {
            self.place = WatchStart::Snapshot;
            self.in_snapshot = true;
        } else {
            self.place = WatchStart::After(message.cursor);
            self.in_snapshot = false;
            // `subscribed` alone is not progress: do not hammer a server that always fails after it.
            if !matches!(update, Some(WatchUpdate::Subscribed { .. })) {
                self.backoff.reset();
            }
        }
        Ok(update)
    }

    /// Drops the stream and schedules the next one.
    fn disconnect(&mut self, error: ClientError) -> Result<WatchUpdate, ClientError> {
        self.owes_reset |= self.in_snapshot;
        self.in_snapshot = false;
        self.places.clear();
        let has_newer_token = self.has_newer_token(&error);
        let retry_in = if has_newer_token { Duration::ZERO } else { self.backoff.after_failure(error.retry_after()) };
        self.state = State::Waiting;
        self.timer.as_mut().reset(Instant::now() + retry_in);
        if error.is_retryable() || has_newer_token {
            Ok(WatchUpdate::Disconnected { error, retry_in })
        } else {
            Err(error)
        }
    }

    /// Returns whether the stream was refused because its token is no longer valid, and the token file has another one.
    fn has_newer_token(&self, error: &ClientError) -> bool {
        error.status().is_some_and(|status| status.code() == Code::Unauthenticated)
            && self.token != self.target.authorization.token()
    }
}

/// Returns what [`Watch::next`] returns. The stream never ends: after an error, it waits, reconnects, and resumes where
/// it stopped.
impl Stream for Watch {
    type Item = Result<WatchUpdate, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_update(context).map(Some)
    }
}

/// Returns how long a stream with this heartbeat may be silent.
fn silence_limit(heartbeat: Duration) -> Duration {
    (heartbeat * SILENT_HEARTBEATS).max(heartbeat + SILENCE_SLACK)
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Waiting => "waiting",
            State::Opening(_) => "opening",
            State::Open(_) => "open",
        };
        f.debug_struct("Watch").field("state", &state).field("place", &self.place).finish_non_exhaustive()
    }
}
