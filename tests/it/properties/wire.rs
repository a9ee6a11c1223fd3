//! Streams over the wire: the body of a `Subscribe` call, read as a client does, with the clock paused.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message;
use sessiond::{
    proto::{self, SubscribeRequest, SubscribeResponse, subscribe_request::Start, subscribe_response::Body},
    service::{ResponseBody, Service, ServiceOptions},
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{Place, Position},
    subject::{ResetReason, SessionSubject},
};
use tokio::time::{Instant, timeout_at};

use super::{
    checker::{Broken, Promise, Started, Trace},
    faulty::Tamper,
    message::{self, Content},
};

/// How late timers may fire, because they count whole milliseconds.
const SLACK: Duration = Duration::from_millis(2);

/// A client's end of a stream.
pub(crate) struct WireStream {
    body: Pin<Box<ResponseBody>>,
    unread: BytesMut,
    pub(crate) trace: Trace,
    /// When each message of the trace arrived.
    times: Vec<Instant>,
    tamper: Tamper,
    began: Instant,
    heartbeat: Duration,
    pub(crate) registry_id: String,
    pub(crate) is_over: bool,
}

impl WireStream {
    pub(crate) async fn open(
        subject: &Arc<SessionSubject>,
        start: Option<Start>,
        heartbeat: Duration,
        trace: Trace,
        tamper: Tamper,
    ) -> Self {
        let request = SubscribeRequest {
            start,
            session_ids: trace.filter.session_ids.iter().map(|id| id.0).collect(),
            auth_key_ids: trace.filter.auth_key_ids.iter().map(|id| id.0).collect(),
            lease_ids: trace.filter.lease_ids.iter().map(|id| id.number()).collect(),
            placements: trace.filter.placements,
            heartbeat: Some(heartbeat.try_into().unwrap()),
            ..SubscribeRequest::default()
        };
        let mut message = BytesMut::new();
        message.put_u8(0);
        message.put_u32(request.encoded_len() as u32);
        request.encode(&mut message).unwrap();
        let request = http::Request::post("/sessiond.v1.SessionService/Subscribe")
            .header("content-type", "application/grpc")
            .body(Full::new(message.freeze()));
        let response = Service::new(Arc::clone(subject), ServiceOptions::default()).call(request.unwrap()).await;
        assert_eq!(response.status(), 200);
        Self {
            body: Box::pin(response.into_body()),
            unread: BytesMut::new(),
            trace,
            times: Vec::new(),
            tamper,
            began: Instant::now(),
            heartbeat,
            registry_id: String::new(),
            is_over: false,
        }
    }

    /// Reads what arrives until `end`.
    pub(crate) async fn read_until(&mut self, end: Instant) {
        while !self.is_over
            && let Ok(frame) = timeout_at(end, self.body.as_mut().frame()).await
        {
            match frame.map(|frame| frame.unwrap().into_data()) {
                Some(Ok(data)) => self.take(&data),
                Some(Err(_)) | None => self.is_over = true,
            }
        }
    }

    fn take(&mut self, data: &Bytes) {
        self.unread.extend_from_slice(data);
        while let Some(mut prefix) = self.unread.get(..5) {
            assert_eq!(prefix.get_u8(), 0, "messages are not compressed");
            let end = 5 + prefix.get_u32() as usize;
            if self.unread.len() < end {
                break;
            }
            let message = self.unread.split_to(end).freeze().slice(5..);
            let SubscribeResponse { cursor, body } = SubscribeResponse::decode(message).unwrap();
            let mut message = self.convert(body.expect("a message has a body"));
            message.cursor = Some(cursor).filter(|cursor| !cursor.is_empty());
            self.tamper.pass(message, &mut self.trace.messages);
            self.times.resize(self.trace.messages.len(), Instant::now());
        }
    }

    fn convert(&mut self, body: Body) -> message::Message {
        let (content, places) = match body {
            Body::Subscribed(subscribed) => {
                self.registry_id = subscribed.registry_id;
                (Content::Subscribed, subscribed.places)
            }
            Body::Snapshot(snapshot) => {
                (Content::Snapshot(snapshot.sessions.iter().map(session).collect()), Vec::new())
            }
            Body::Synced(synced) => (Content::Synced(synced.session_count), synced.places),
            Body::Events(events) => {
                let content = Content::Events(events.events.iter().map(event).collect());
                return message::Message {
                    last: events.place.as_ref().map(place),
                    ..message::Message::new(content, None)
                };
            }
            Body::Heartbeat(heartbeat) => (Content::Heartbeat, heartbeat.places),
            Body::Reset(reset) => (Content::Reset(reset_reason(reset.reason())), Vec::new()),
        };
        message::Message { places: places.iter().map(place).collect(), ..message::Message::new(content, None) }
    }

    /// Returns how the stream violates [`Live`](Promise::Live). The stream must have been read as soon as anything
    /// arrived.
    pub(crate) fn judge_heartbeats(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        let mut last = self.began;
        // A resumed stream gets one heartbeat as soon as it has caught up.
        let mut owed = matches!(self.trace.started, Started::After { .. });
        for (time, message::Message { content, .. }) in self.times.iter().zip(&self.trace.messages) {
            let silence = *time - last;
            if silence > self.heartbeat + SLACK {
                broken.push(format!("silent for {silence:?} before {content:?}"));
            }
            if *content == Content::Heartbeat && silence < self.heartbeat && !std::mem::take(&mut owed) {
                broken.push(format!("a heartbeat after only {silence:?}"));
            }
            last = *time;
        }
        let silence = Instant::now() - last;
        if silence > self.heartbeat + SLACK {
            broken.push(format!("silent for {silence:?} at the end"));
        }
        broken.into_iter().map(|how| Broken::new(Promise::Live, how)).collect()
    }
}

fn session(session: &proto::Session) -> (SessionKey, Option<LeaseId>) {
    (SessionKey::new(session.auth_key_id, session.session_id), LeaseId::from_number(session.lease_id))
}

fn place(place: &proto::Place) -> Place {
    Place { partition: place.partition, position: Position(place.position) }
}

fn event(event: &proto::SessionEvent) -> SessionEvent {
    let previous = LeaseId::from_number(event.previous_lease_id);
    let change = match (event.r#type(), event.reason()) {
        (proto::SessionEventType::Created, proto::DestroyReason::Unspecified) => SessionChange::Created,
        (proto::SessionEventType::Moved, proto::DestroyReason::Unspecified) => SessionChange::Moved { previous },
        (proto::SessionEventType::Destroyed, reason) => SessionChange::Destroyed(match reason {
            proto::DestroyReason::Requested => DestroyReason::Requested,
            proto::DestroyReason::LeaseExpired => DestroyReason::LeaseExpired,
            proto::DestroyReason::LeaseRevoked => DestroyReason::LeaseRevoked,
            proto::DestroyReason::Released => DestroyReason::Released,
            proto::DestroyReason::Unspecified => panic!("{event:?} has no reason"),
        }),
        _ => panic!("{event:?} is not a valid event"),
    };
    let is_move = matches!(change, SessionChange::Moved { .. });
    assert!(is_move || previous.is_none(), "{event:?} is not a move but has a previous lease");
    let session = SessionKey::new(event.auth_key_id, event.session_id);
    SessionEvent::new(session, change, LeaseId::from_number(event.lease_id))
}

fn reset_reason(reason: proto::ResetReason) -> ResetReason {
    match reason {
        proto::ResetReason::CursorExpired => ResetReason::CursorExpired,
        proto::ResetReason::CursorForeign => ResetReason::CursorForeign,
        proto::ResetReason::Lagged => ResetReason::Lagged,
        proto::ResetReason::StorageRestarted => ResetReason::StorageRestarted,
        proto::ResetReason::Unspecified => panic!("a reset has a reason"),
    }
}
