//! An observer of the registry that reconnects and resumes automatically.

mod options;
mod update;

use std::{fmt, future::Future, pin::Pin, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Status, Streaming};

pub use self::{
    options::{EventType, WatchOptions, WatchStart},
    update::{Place, SnapshotSession, WatchUpdate},
};
use super::{
    ClientError,
    backoff::Backoff,
    convert,
    transport::{Target, Transport},
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
/// How late any heartbeat may be, however short its interval, because a busy machine is not a dead one.
const SILENCE_SLACK: Duration = Duration::from_secs(1);

/// An observer of the registry, returned by [`Client::watch`](super::Client::watch). Dropping it ends the stream.
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
    state: State,
}

type Opening = Pin<Box<dyn Future<Output = Result<Stream, Status>> + Send>>;

/// The step that `next` is at. Stored here and not in the future of `next`, so that dropping that future loses nothing.
enum State {
    Waiting { until: Instant },
    Opening { opening: Opening, deadline: Instant },
    Open(Box<Open>),
}

struct Open {
    stream: Stream,
    subscribed: bool,
    /// How long the stream may be silent.
    limit: Duration,
    deadline: Instant,
    /// Whether the deadline passed between two calls of `next` and was extended for that.
    is_extended: bool,
}

struct Stream {
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
            state: State::Waiting { until: Instant::now() },
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
    /// [`WatchUpdate::Subscribed`], [`WatchUpdate::Synced`] and [`WatchUpdate::Heartbeat`] carry one place for each
    /// partition, and [`WatchUpdate::Events`] the place of its last event. Other updates carry none.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Waits for the next update.
    ///
    /// Call this in a loop: the watch connects and reads only within this method. An observer that falls further behind
    /// than the events that the server retains gets a reset.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe. If the future is dropped, for example in `select!`, no update is lost and no wait
    /// starts over.
    ///
    /// # Errors
    ///
    /// Returns an error that is not retryable ([`ClientError::is_retryable`]). All other errors are returned as
    /// [`WatchUpdate::Disconnected`], and the watch recovers from them.
    ///
    /// You may call this again after an error. The watch then waits, reconnects, and resumes where it stopped.
    pub async fn next(&mut self) -> Result<WatchUpdate, ClientError> {
        loop {
            match &mut self.state {
                State::Waiting { until } => {
                    sleep_until(*until).await;
                    self.state = State::Opening { opening: self.open(), deadline: Instant::now() + self.timeout };
                }
                State::Opening { opening, deadline } => {
                    let deadline = *deadline;
                    match timeout_at(deadline, opening).await {
                        Ok(Ok(stream)) => {
                            let open =
                                Open { stream, subscribed: false, limit: self.timeout, deadline, is_extended: false };
                            self.state = State::Open(Box::new(open));
                        }
                        Ok(Err(status)) => return self.disconnect(status.into()),
                        Err(_) => return self.disconnect(ClientError::Timeout { after: self.timeout }),
                    }
                }
                State::Open(open) => {
                    if open.subscribed && self.owes_reset {
                        self.owes_reset = false;
                        self.places.clear();
                        return Ok(WatchUpdate::Reset(ResetReason::SnapshotInterrupted));
                    }
                    let update = match open.message().await {
                        Ok(message) => self.advance(message),
                        Err(error) => Err(error),
                    };
                    match update {
                        Ok(Some(update)) => return Ok(update),
                        Ok(None) => {}
                        Err(error) => return self.disconnect(error),
                    }
                }
            }
        }
    }

    /// Opens a stream on a new connection, because the old one may be dead without either end having noticed.
    fn open(&self) -> Opening {
        let mut channel = SessionServiceClient::new(self.target.connect_lazy());
        let mut request = self.request.clone();
        request.start = match &self.place {
            WatchStart::Now => None,
            WatchStart::Snapshot => Some(Start::Snapshot(true)),
            WatchStart::After(cursor) => Some(Start::Cursor(cursor.clone())),
        };
        Box::pin(async move {
            let messages = channel.subscribe(request).await?.into_inner();
            Ok(Stream { messages, _channel: channel })
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
        open.restart_deadline();
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
        let retry_in = self.backoff.after_failure(error.retry_after());
        self.state = State::Waiting { until: Instant::now() + retry_in };
        if error.is_retryable() { Ok(WatchUpdate::Disconnected { error, retry_in }) } else { Err(error) }
    }
}

impl Open {
    /// Returns the next message, or the error that ended the stream. Cancel-safe.
    async fn message(&mut self) -> Result<SubscribeResponse, ClientError> {
        // The caller may have been busy for longer than the limit and blocked the runtime, so that no message could
        // arrive. Give the stream a little more time, but only once: frequent calls must not keep a dead stream alive.
        if !self.is_extended && self.deadline <= Instant::now() {
            self.deadline = Instant::now() + SILENCE_SLACK;
            self.is_extended = true;
        }
        match timeout_at(self.deadline, self.stream.messages.message()).await {
            Ok(Ok(Some(message))) => Ok(message),
            Ok(Ok(None)) => Err(ClientError::StreamEnded),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(ClientError::Silent { limit: self.limit }),
        }
    }

    /// Restarts the silence deadline after a message.
    fn restart_deadline(&mut self) {
        self.deadline = Instant::now() + self.limit;
        self.is_extended = false;
    }
}

/// Returns how long a stream with this heartbeat may be silent.
fn silence_limit(heartbeat: Duration) -> Duration {
    (heartbeat * SILENT_HEARTBEATS).max(heartbeat + SILENCE_SLACK)
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Waiting { .. } => "waiting",
            State::Opening { .. } => "opening",
            State::Open(_) => "open",
        };
        f.debug_struct("Watch").field("state", &state).field("place", &self.place).finish_non_exhaustive()
    }
}
