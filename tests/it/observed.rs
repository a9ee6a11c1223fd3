//! Reads the stream of one `Subscribe` call.

use std::collections::BTreeSet;

use sessiond::{
    proto::{
        Session, SessionEvent, SessionEventType, SubscribeRequest, SubscribeResponse, Subscribed, Synced,
        subscribe_request::Start, subscribe_response::Body,
    },
    session::{self, DestroyReason, LeaseId, SessionChange, SessionKey},
    subject::Filter,
};
use tonic::{Status, Streaming};

use crate::{
    fake::soon,
    held::{self, Held},
    server::Sessions,
};

/// A session's key: (auth key, session).
pub(crate) type Key = (i64, i64);

/// The stream of one `Subscribe` call.
pub(crate) struct Observed {
    messages: Streaming<SubscribeResponse>,
    pub(crate) subscribed: Subscribed,
    /// The cursor of the last message.
    pub(crate) cursor: String,
}

impl Observed {
    /// Subscribes and reads the first message.
    pub(crate) async fn start(client: &Sessions, request: SubscribeRequest) -> Self {
        let messages = soon(client.clone().subscribe(request)).await.expect("the stream is accepted").into_inner();
        let mut observed = Self { messages, subscribed: Subscribed::default(), cursor: String::new() };
        match observed.next().await {
            Body::Subscribed(subscribed) => observed.subscribed = subscribed,
            other => panic!("the first message is {other:?} instead of subscribed"),
        }
        assert!(!observed.cursor.is_empty(), "subscribed carries a cursor");
        observed
    }

    pub(crate) async fn now(client: &Sessions) -> Self {
        Self::start(client, SubscribeRequest::default()).await
    }

    pub(crate) async fn snapshot(client: &Sessions) -> Self {
        Self::start(client, from_snapshot()).await
    }

    pub(crate) async fn after(client: &Sessions, cursor: &str) -> Self {
        Self::start(client, after(cursor)).await
    }

    pub(crate) async fn next(&mut self) -> Body {
        self.try_next().await.expect("the stream continues")
    }

    /// Returns the next message, or the status at the end of the stream.
    pub(crate) async fn try_next(&mut self) -> Result<Body, Status> {
        let message = soon(self.messages.message()).await?.expect("a stream ends with an error status");
        assert!(message.cursor.bytes().all(|byte| byte.is_ascii_graphic()), "{:?}", message.cursor);
        self.cursor = message.cursor;
        Ok(message.body.expect("every message has a body"))
    }

    /// Reads the stream to its end. Returns its status.
    pub(crate) async fn ended(mut self) -> Status {
        loop {
            if let Err(status) = self.try_next().await {
                return status;
            }
        }
    }

    /// Returns the events of the next message that has any. Skips heartbeats.
    pub(crate) async fn more_events(&mut self) -> Vec<SessionEvent> {
        loop {
            match self.next().await {
                Body::Events(body) => {
                    assert!(!body.events.is_empty());
                    assert!(!self.cursor.is_empty());
                    return body.events;
                }
                Body::Heartbeat(_) => {}
                other => panic!("expected events, got {other:?}"),
            }
        }
    }

    /// Returns the next `count` events, and the number of messages they came in.
    pub(crate) async fn events_in(&mut self, count: usize) -> (Vec<SessionEvent>, usize) {
        let (mut events, mut messages) = (Vec::new(), 0);
        while events.len() < count {
            events.extend(self.more_events().await);
            messages += 1;
        }
        assert_eq!(events.len(), count, "more events than expected");
        (events, messages)
    }

    pub(crate) async fn events(&mut self, count: usize) -> Vec<SessionEvent> {
        self.events_in(count).await.0
    }

    /// Reads a snapshot up to `synced`, applying the events between its parts. Returns the sessions held at that point.
    pub(crate) async fn synced(&mut self) -> Held {
        let mut held = Held::new();
        loop {
            match self.next().await {
                Body::Synced(Synced { session_count, .. }) => {
                    assert!(!self.cursor.is_empty());
                    assert_eq!(session_count, held.len() as u64);
                    return held;
                }
                Body::Snapshot(body) => {
                    assert!(self.cursor.is_empty(), "a stream cannot resume within a snapshot");
                    hold(&mut held, &body.sessions);
                }
                Body::Events(body) => apply(&mut held, &body.events),
                Body::Heartbeat(_) => {}
                other => panic!("expected a snapshot, got {other:?}"),
            }
        }
    }
}

/// Adds a part of a snapshot. Asserts that none of its sessions was held.
pub(crate) fn hold(held: &mut Held, sessions: &[Session]) {
    for session in sessions {
        let key = SessionKey::new(session.auth_key_id, session.session_id);
        let before = held.insert(key, LeaseId::from_number(session.lease_id));
        assert_eq!(before, None, "{session:?} is held already");
    }
}

/// Applies events of a stream that does not filter by lease. Asserts that they fit what is held.
pub(crate) fn apply(held: &mut Held, events: &[SessionEvent]) {
    apply_filtered(held, events, &Filter::default());
}

/// Applies events of a stream with this filter. Asserts that they fit what is held.
pub(crate) fn apply_filtered(held: &mut Held, events: &[SessionEvent], filter: &Filter) {
    for event in events {
        let change = match event.r#type() {
            SessionEventType::Created => SessionChange::Created,
            SessionEventType::Destroyed => SessionChange::Destroyed(DestroyReason::Requested),
            SessionEventType::Moved => SessionChange::Moved { previous: LeaseId::from_number(event.previous_lease_id) },
            SessionEventType::Unspecified => panic!("{event:?} has no type"),
        };
        let key = SessionKey::new(event.auth_key_id, event.session_id);
        let value = session::SessionEvent::new(key, change, LeaseId::from_number(event.lease_id));
        assert!(held::apply(held, &value, filter), "{event:?} contradicts what the observer holds");
    }
}

/// Returns the held sessions, without their leases.
pub(crate) fn keys(held: &Held) -> BTreeSet<Key> {
    held.keys().map(|key| (key.auth_key_id.into(), key.session_id.into())).collect()
}

pub(crate) fn from_snapshot() -> SubscribeRequest {
    SubscribeRequest { start: Some(Start::Snapshot(true)), ..Default::default() }
}

pub(crate) fn after(cursor: &str) -> SubscribeRequest {
    SubscribeRequest { start: Some(Start::Cursor(cursor.to_owned())), ..Default::default() }
}

/// Returns the session ids of these events, all of which must be creates under auth key 0.
pub(crate) fn created_ids(events: &[SessionEvent]) -> Vec<i64> {
    let id = |event: &SessionEvent| {
        assert_eq!((event.r#type(), event.auth_key_id, event.reason), (SessionEventType::Created, 0, 0));
        event.session_id
    };
    events.iter().map(id).collect()
}
