//! Updates as the length-prefixed messages of a gRPC stream.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, string};

use super::convert;
use crate::{
    duration,
    proto::{self, subscribe_response::Body},
    session::{SessionChange, SessionEvent},
    subject::{Cursor, EventEncoder, Update},
};

/// Encodes a subject's events once for all observers, as they go over the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct WireEncoder;

impl EventEncoder for WireEncoder {
    fn encode(&self, events: &[SessionEvent], cursor: &Cursor) -> Bytes {
        encode_events(events, Some(cursor))
    }
}

/// The message of an update that is for one observer alone.
pub(super) fn update(
    update: &Update,
    cursor: Option<&Cursor>,
    registry_id: impl ToString,
    heartbeat: Duration,
) -> Bytes {
    let body = match update {
        Update::Events(events) => return encode_events(events.events(), cursor),
        Update::Subscribed => {
            let heartbeat = Some(duration::to_proto(heartbeat));
            Body::Subscribed(proto::Subscribed { registry_id: registry_id.to_string(), heartbeat })
        }
        Update::Snapshot(sessions) => {
            Body::Snapshot(proto::Snapshot { sessions: sessions.iter().map(convert::session).collect() })
        }
        Update::Synced { session_count } => Body::Synced(proto::Synced { session_count: *session_count }),
        Update::Reset(reason) => Body::Reset(proto::Reset { reason: convert::reset_reason(*reason).into() }),
        // The last message of a stream, before its status.
        Update::Closed => Body::Heartbeat(proto::Heartbeat {}),
    };
    message(body, cursor)
}

pub(super) fn heartbeat(cursor: Option<&Cursor>) -> Bytes {
    message(Body::Heartbeat(proto::Heartbeat {}), cursor)
}

/// What prost makes of a `SubscribeResponse` with these events, without a value of the protocol for each: every change goes
/// through here.
fn encode_events(events: &[SessionEvent], cursor: Option<&Cursor>) -> Bytes {
    let events_len: usize = events.iter().map(|event| EVENT_HEAD + event_len(event)).sum();
    let cursor = cursor.map(Cursor::text).unwrap_or_default();
    let cursor_len = if cursor.is_empty() { 0 } else { string::encoded_len(CURSOR, &cursor) };
    let mut bytes =
        super::message::begin(key_len(EVENTS) + encoded_len_varint(events_len as u64) + events_len + cursor_len);
    encode_key(EVENTS, WireType::LengthDelimited, &mut bytes);
    encode_varint(events_len as u64, &mut bytes);
    for event in events {
        bytes.put_slice(&[0x0a, event_len(event) as u8]);
        let proto::SessionEvent { r#type, session_id, auth_key_id, reason } = convert::session_event(event);
        bytes.put_slice(&[0x08, r#type as u8]);
        for (key, id) in [(0x11, session_id), (0x19, auth_key_id)] {
            if id != 0 {
                bytes.put_u8(key);
                bytes.put_i64_le(id);
            }
        }
        if reason != 0 {
            bytes.put_slice(&[0x20, reason as u8]);
        }
    }
    if !cursor.is_empty() {
        string::encode(CURSOR, &cursor, &mut bytes);
    }
    bytes.freeze()
}

/// Field numbers of `SubscribeResponse`.
const EVENTS: u32 = 1;
const CURSOR: u32 = 2;

/// The key and the length of an event within its list; no event has more than 22 bytes.
const EVENT_HEAD: usize = 2;

fn event_len(event: &SessionEvent) -> usize {
    let id_len = |id: i64| if id == 0 { 0 } else { 9 };
    let reason_len = if event.change == SessionChange::Created { 0 } else { 2 };
    2 + id_len(event.session.session_id.0) + id_len(event.session.auth_key_id.0) + reason_len
}

fn message(body: Body, cursor: Option<&Cursor>) -> Bytes {
    let cursor = cursor.map(Cursor::text).unwrap_or_default();
    super::message::encode(&proto::SubscribeResponse { body: Some(body), cursor })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::session::{DestroyReason, SessionKey};

    #[test]
    fn events_are_encoded_as_prost_does() {
        let reasons = [DestroyReason::Requested, DestroyReason::LeaseExpired, DestroyReason::LeaseRevoked];
        let changes = [SessionChange::Created].into_iter().chain(reasons.map(SessionChange::Destroyed));
        let ids = [0, 1, -1, i64::MIN, i64::MAX];
        let events: Vec<SessionEvent> = changes
            .flat_map(|change| ids.map(|id| (change, id)))
            .flat_map(|(change, id)| ids.map(|key| SessionEvent { session: SessionKey::new(key, id), change }))
            .collect();
        // Some checksum is the right one.
        let cursor: Cursor =
            (0..=u16::MAX).find_map(|sum| format!("0000000000000007-1f-{:016x}-{sum:04x}", 9).parse().ok()).unwrap();
        for count in [0, 1, 2, 7, events.len()] {
            for cursor in [None, Some(&cursor)] {
                let events = &events[..count];
                let plain = proto::SubscribeResponse {
                    body: Some(Body::Events(proto::SessionEvents {
                        events: events.iter().map(convert::session_event).collect(),
                    })),
                    cursor: cursor.map(ToString::to_string).unwrap_or_default(),
                };
                let ours = encode_events(events, cursor);
                assert_eq!(ours, super::super::message::encode(&plain));
                assert_eq!(proto::SubscribeResponse::decode(&ours[5..]).unwrap(), plain);
            }
        }
    }
}
