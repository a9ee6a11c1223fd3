//! Streams as they go over the wire: the body of a `Subscribe` call, read as a client does, with the clock paused.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message;
use sessiond::{
    proto::{self, SubscribeRequest, SubscribeResponse, subscribe_response::Body},
    service::{ResponseBody, Service, ServiceOptions},
    session::{DestroyReason, SessionChange, SessionEvent, SessionKey},
    subject::{ResetReason, SessionSubject},
};
use tokio::time::{Instant, timeout_at};

use super::{
    checker::{Broken, Promise, Told, Trace},
    faulty::Tamper,
};

/// Timers fire up to so much late, since they count whole milliseconds.
const SLACK: Duration = Duration::from_millis(2);

/// A client's end of a stream.
pub(crate) struct WireStream {
    body: Pin<Box<ResponseBody>>,
    unread: BytesMut,
    pub(crate) trace: Trace,
    /// When each message of the trace came.
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
        mut request: SubscribeRequest,
        heartbeat: Duration,
        trace: Trace,
        tamper: Tamper,
    ) -> Self {
        request.heartbeat = Some(heartbeat.try_into().unwrap());
        request.session_ids = trace.filter.session_ids.iter().map(|id| id.0).collect();
        request.auth_key_ids = trace.filter.auth_key_ids.iter().map(|id| id.0).collect();
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

    /// Reads what comes until a moment.
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
            assert_eq!(prefix.get_u8(), 0, "not compressed");
            let end = 5 + prefix.get_u32() as usize;
            if self.unread.len() < end {
                break;
            }
            let message = self.unread.split_to(end).freeze().slice(5..);
            let SubscribeResponse { cursor, body } = SubscribeResponse::decode(message).unwrap();
            let told = self.told(body.expect("a message has a body"));
            self.tamper.pass(told, Some(cursor).filter(|cursor| !cursor.is_empty()), &mut self.trace.told);
            self.times.resize(self.trace.told.len(), Instant::now());
        }
    }

    fn told(&mut self, body: Body) -> Told {
        match body {
            Body::Subscribed(subscribed) => {
                self.registry_id = subscribed.registry_id;
                Told::Subscribed
            }
            Body::Snapshot(snapshot) => Told::Snapshot(snapshot.sessions.iter().map(session).collect()),
            Body::Synced(synced) => Told::Synced(synced.session_count),
            Body::Events(events) => Told::Events(events.events.iter().map(event).collect()),
            Body::Heartbeat(_) => Told::Heartbeat,
            Body::Reset(reset) => Told::Reset(reset_reason(reset.reason())),
        }
    }

    /// How this stream is not [`Live`](Promise::Live), of all streams that are read as soon as something comes.
    pub(crate) fn judge_heartbeats(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        let mut last = self.began;
        for (time, (told, _)) in self.times.iter().zip(&self.trace.told) {
            let silence = *time - last;
            if silence > self.heartbeat + SLACK {
                broken.push(format!("nothing for {silence:?}, then {told:?}"));
            }
            if *told == Told::Heartbeat && silence < self.heartbeat {
                broken.push(format!("a heartbeat after only {silence:?}"));
            }
            last = *time;
        }
        let silence = Instant::now() - last;
        if silence > self.heartbeat + SLACK {
            broken.push(format!("nothing for {silence:?} at the end"));
        }
        broken.into_iter().map(|how| Broken::new(Promise::Live, how)).collect()
    }
}

fn session(session: &proto::Session) -> SessionKey {
    SessionKey::new(session.auth_key_id, session.session_id)
}

fn event(event: &proto::SessionEvent) -> SessionEvent {
    let change = match (event.r#type(), event.reason()) {
        (proto::SessionEventType::Created, proto::DestroyReason::Unspecified) => SessionChange::Created,
        (proto::SessionEventType::Destroyed, reason) => SessionChange::Destroyed(match reason {
            proto::DestroyReason::Requested => DestroyReason::Requested,
            proto::DestroyReason::LeaseExpired => DestroyReason::LeaseExpired,
            proto::DestroyReason::LeaseRevoked => DestroyReason::LeaseRevoked,
            proto::DestroyReason::Released | proto::DestroyReason::Unspecified => {
                panic!("{event:?} has no such reason")
            }
        }),
        _ => panic!("{event:?} is no event"),
    };
    SessionEvent { session: SessionKey::new(event.auth_key_id, event.session_id), change, lease: None }
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
