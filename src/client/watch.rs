//! An observer of the registry that resumes by itself.

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

/// What the server uses when it is not told otherwise.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(15);
/// The longest that the server grants.
const MAX_HEARTBEAT: Duration = Duration::from_secs(60 * 60);
/// How many heartbeats may be missed.
const SILENT_HEARTBEATS: u32 = 3;
/// What even the shortest heartbeat is allowed to be late: a busy machine is not a dead one.
const SILENCE_SLACK: Duration = Duration::from_secs(1);

/// An observer of the registry, made by [`Client::watch`](super::Client::watch). Dropping it ends the stream.
///
/// When the connection breaks it tells so and connects again by itself, without losing or repeating an event: it goes
/// on after the last update that [`next`](Self::next) returned. Where that is not possible it says
/// [`WatchUpdate::Reset`] and a whole snapshot follows.
#[must_use]
pub struct Watch {
    target: Target,
    /// For opening a stream, up to its first message.
    timeout: Duration,
    /// The filters and the heartbeat; `start` is set anew for each stream.
    request: SubscribeRequest,
    /// Where the next stream starts.
    place: WatchStart,
    /// The places in the log that came with the last update.
    places: Vec<Place>,
    /// The caller was given a part of a snapshot that is not complete yet, by the stream that is open.
    in_snapshot: bool,
    /// The caller holds a part of a snapshot of a stream that broke, and was not told yet to forget it.
    owes_reset: bool,
    backoff: Backoff,
    state: State,
}

type Opening = Pin<Box<dyn Future<Output = Result<Stream, Status>> + Send>>;

/// What a call of `next` works on. It is kept here and not in the call's future so that a call that is dropped loses
/// nothing.
enum State {
    Waiting { until: Instant },
    Opening { opening: Opening, deadline: Instant },
    Open(Box<Open>),
}

struct Open {
    stream: Stream,
    subscribed: bool,
    /// How much silence is allowed.
    limit: Duration,
    deadline: Instant,
    /// The deadline was passed while nobody asked, and put off for that.
    put_off: bool,
}

struct Stream {
    messages: Streaming<SubscribeResponse>,
    /// The connection lives as long as its channel.
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

    /// The place after the last update: [`WatchOptions::after`] goes on exactly there, in this process or a later one.
    ///
    /// None before the first update (unless the watch itself started after a cursor), and from the start of a snapshot
    /// until [`WatchUpdate::Synced`], because there is no going on within a snapshot: start again with one.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        match &self.place {
            WatchStart::After(cursor) if !self.owes_reset => Some(cursor),
            _ => None,
        }
    }

    /// The places in the change log that came with the last update, on a watch with
    /// [`placements`](WatchOptions::placements).
    ///
    /// [`WatchUpdate::Subscribed`], [`WatchUpdate::Synced`] and [`WatchUpdate::Heartbeat`] come with one for each
    /// partition, [`WatchUpdate::Events`] with that of its last event. Other updates come with none.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Waits for the next update.
    ///
    /// The updates must be taken for the watch to live: connections are made and kept only within this call, and an
    /// observer that does not take events for longer than the server retains them gets a reset.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: when the future is dropped, in `select!` for example, no update is lost and no wait begins anew.
    ///
    /// # Errors
    ///
    /// Any error for which [`ClientError::is_retryable`] is false. Everything else is told as
    /// [`WatchUpdate::Disconnected`] and overcome. The watch may be used after an error: it then connects again, after a
    /// wait, and goes on where it was.
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
                                Open { stream, subscribed: false, limit: self.timeout, deadline, put_off: false };
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

    /// Opens a stream on a connection of its own: the last one may be dead without either end knowing.
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

    /// Moves to the place after the message. Nothing to tell: a message of a kind that only a newer server knows.
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
            _ if !open.subscribed => return Err(ClientError::Protocol("a stream did not begin with `subscribed`")),
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
        open.heard();
        self.places = convert::places(places);
        if message.cursor.is_empty() {
            self.place = WatchStart::Snapshot;
            self.in_snapshot = true;
        } else {
            self.place = WatchStart::After(message.cursor);
            self.in_snapshot = false;
            // `subscribed` alone is no progress: a server that always fails after it must not be hammered.
            if !matches!(update, Some(WatchUpdate::Subscribed { .. })) {
                self.backoff.reset();
            }
        }
        Ok(update)
    }

    /// Gives the stream up and plans the next one.
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
    /// The next message, or why there is none. Cancel-safe.
    async fn message(&mut self) -> Result<SubscribeResponse, ClientError> {
        // A caller that was away for longer than the limit has not given the connection a chance to be heard, at least
        // where it kept the runtime from running. Once, so that a caller who asks again and again does not keep a dead
        // stream alive.
        if !self.put_off && self.deadline <= Instant::now() {
            self.deadline = Instant::now() + SILENCE_SLACK;
            self.put_off = true;
        }
        match timeout_at(self.deadline, self.stream.messages.message()).await {
            Ok(Ok(Some(message))) => Ok(message),
            Ok(Ok(None)) => Err(ClientError::StreamEnded),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(ClientError::Silent { limit: self.limit }),
        }
    }

    /// The stream is alive.
    fn heard(&mut self) {
        self.deadline = Instant::now() + self.limit;
        self.put_off = false;
    }
}

/// How long a stream with this heartbeat may carry nothing.
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
