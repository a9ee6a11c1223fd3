//! Encodes updates as the length-prefixed messages of a gRPC stream.

use std::{iter, time::Duration};

use bytes::{BufMut, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, message, string};

use super::convert;
use crate::{
    duration,
    proto::{self, subscribe_response::Body},
    session::{LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::Place,
    subject::{Cursor, EventEncoder, Update},
};

/// Encodes a subject's events as gRPC messages, once for all observers. A subject that is served by
/// [`Service`](super::Service) needs it.
#[derive(Clone, Copy, Debug, Default)]
pub struct WireEncoder;

impl EventEncoder for WireEncoder {
    fn encode(&self, events: &[SessionEvent], cursor: &Cursor) -> Bytes {
        encode_events(events, Some(cursor), None)
    }

    fn encode_placed(&self, events: &[SessionEvent], cursor: &Cursor, last: Place) -> Bytes {
        encode_events(events, Some(cursor), Some(last))
    }

    fn encode_sessions(&self, sessions: &[SessionKey], leases: &[Option<LeaseId>]) -> Bytes {
        encode_sessions(sessions, leases)
    }
}

/// Encodes an update for one observer. `places` is set if the observer wants placements.
pub(super) fn update(
    update: &Update,
    cursor: Option<&Cursor>,
    registry_id: impl ToString,
    heartbeat: Duration,
    places: Option<Vec<Place>>,
) -> Bytes {
    let has_placements = places.is_some();
    let places = places.iter().flatten().map(convert::place).collect();
    let body = match update {
        Update::Events(events) => {
            return encode_events(events.events(), cursor, has_placements.then(|| events.last()));
        }
        Update::Subscribed => {
            let heartbeat = Some(duration::to_proto(heartbeat));
            Body::Subscribed(proto::Subscribed { registry_id: registry_id.to_string(), heartbeat, places })
        }
        Update::Snapshot(sessions) => return sessions.message(),
        Update::Synced { session_count } => Body::Synced(proto::Synced { session_count: *session_count, places }),
        Update::Reset(reason) => Body::Reset(proto::Reset { reason: convert::reset_reason(*reason).into() }),
        // The last message of a stream, before its status.
        Update::Closed => Body::Heartbeat(proto::Heartbeat { places }),
    };
    response(body, cursor)
}

/// Encodes a heartbeat.
pub(super) fn heartbeat(cursor: Option<&Cursor>, places: Option<Vec<Place>>) -> Bytes {
    let places = places.iter().flatten().map(convert::place).collect();
    response(Body::Heartbeat(proto::Heartbeat { places }), cursor)
}

/// Encodes a `SubscribeResponse` with these events. `last` is the place of the last one, for streams with placements.
///
/// The bytes are those that prost would write. This avoids a protobuf value per event, because every change passes
/// through here.
fn encode_events(events: &[SessionEvent], cursor: Option<&Cursor>, last: Option<Place>) -> Bytes {
    let is_placed = last.is_some();
    let last = last.map(|last| convert::place(&last));
    let last_len = last.as_ref().map_or(0, |last| message::encoded_len(PLACE, last));
    let events_len: usize =
        events.iter().map(|event| EVENT_HEAD + event_len(event, is_placed)).sum::<usize>() + last_len;
    let cursor = cursor.map(Cursor::text).unwrap_or_default();
    let cursor_len = if cursor.is_empty() { 0 } else { string::encoded_len(CURSOR, &cursor) };
    let mut bytes =
        super::message::begin(key_len(EVENTS) + encoded_len_varint(events_len as u64) + events_len + cursor_len);
    encode_key(EVENTS, WireType::LengthDelimited, &mut bytes);
    encode_varint(events_len as u64, &mut bytes);
    for event in events {
        bytes.put_slice(&[0x0a, event_len(event, is_placed) as u8]);
        let proto::SessionEvent { r#type, session_id, auth_key_id, reason, lease_id, previous_lease_id } =
            convert::session_event(event, is_placed);
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
        for (key, lease) in [(0x29, lease_id), (0x31, previous_lease_id)] {
            if lease != 0 {
                bytes.put_u8(key);
                bytes.put_u64_le(lease);
            }
        }
    }
    if let Some(last) = last {
        message::encode(PLACE, &last, &mut bytes);
    }
    if !cursor.is_empty() {
        string::encode(CURSOR, &cursor, &mut bytes);
    }
    bytes.freeze()
}

/// Encodes a `SubscribeResponse` with these sessions, without a cursor: a stream cannot resume within a snapshot.
///
/// The bytes are those that prost would write. `leases` is empty for streams without placements.
fn encode_sessions(sessions: &[SessionKey], leases: &[Option<LeaseId>]) -> Bytes {
    let placed = sessions.iter().zip(leases.iter().copied().chain(iter::repeat(None)));
    let messages = placed.map(|(session, lease)| convert::session(session, lease));
    let sessions_len: usize = messages.clone().map(|session| SESSION_HEAD + session_len(&session)).sum();
    let mut bytes = super::message::begin(key_len(SNAPSHOT) + encoded_len_varint(sessions_len as u64) + sessions_len);
    encode_key(SNAPSHOT, WireType::LengthDelimited, &mut bytes);
    encode_varint(sessions_len as u64, &mut bytes);
    for session in messages {
        bytes.put_slice(&[0x0a, session_len(&session) as u8]);
        let proto::Session { session_id, auth_key_id, lease_id } = session;
        for (key, id) in [(0x09, session_id as u64), (0x11, auth_key_id as u64), (0x19, lease_id)] {
            if id != 0 {
                bytes.put_u8(key);
                bytes.put_u64_le(id);
            }
        }
    }
    bytes.freeze()
}

/// The size of a session's key and length. One byte suffices for the length: no session has more than 27 bytes.
const SESSION_HEAD: usize = 2;

fn session_len(session: &proto::Session) -> usize {
    let proto::Session { session_id, auth_key_id, lease_id } = *session;
    let id_len = |id: u64| if id == 0 { 0 } else { 9 };
    id_len(session_id as u64) + id_len(auth_key_id as u64) + id_len(lease_id)
}

/// The field numbers of `SubscribeResponse` and `SessionEvents`.
const EVENTS: u32 = 1;
const SNAPSHOT: u32 = 4;
const CURSOR: u32 = 2;
const PLACE: u32 = 2;

/// The size of an event's key and length. One byte suffices for the length: no event has more than 40 bytes.
const EVENT_HEAD: usize = 2;

fn event_len(event: &SessionEvent, is_placed: bool) -> usize {
    let id_len = |id: i64| if id == 0 { 0 } else { 9 };
    let lease_len = |lease: Option<LeaseId>| if is_placed && lease.is_some() { 9 } else { 0 };
    let change_len = match event.change {
        SessionChange::Created => 0,
        SessionChange::Destroyed(_) => 2,
        SessionChange::Moved { previous } => lease_len(previous),
    };
    2 + id_len(event.session.session_id.0) + id_len(event.session.auth_key_id.0) + change_len + lease_len(event.lease)
}

fn response(body: Body, cursor: Option<&Cursor>) -> Bytes {
    let cursor = cursor.map(Cursor::text).unwrap_or_default();
    super::message::encode(&proto::SubscribeResponse { body: Some(body), cursor })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{session::DestroyReason, storage::Position};

    #[test]
    fn sessions_are_encoded_as_prost_encodes_them() {
        let ids = [0, 1, -1, i64::MIN, i64::MAX];
        let sessions: Vec<_> = ids.iter().flat_map(|key| ids.map(|id| SessionKey::new(*key, id))).collect();
        let leases = [None, LeaseId::from_number(1), LeaseId::from_number(u64::MAX)];
        let leases: Vec<_> = leases.into_iter().cycle().take(sessions.len()).collect();
        for (count, is_placed) in
            [0, 1, 2, sessions.len()].into_iter().flat_map(|count| [(count, false), (count, true)])
        {
            let (sessions, leases) = (&sessions[..count], if is_placed { &leases[..count] } else { &[] });
            let lease = |n: usize| leases.get(n).copied().flatten();
            let all = sessions.iter().enumerate().map(|(n, session)| convert::session(session, lease(n))).collect();
            let body = Some(Body::Snapshot(proto::Snapshot { sessions: all }));
            let plain = proto::SubscribeResponse { body, cursor: String::new() };
            assert_eq!(encode_sessions(sessions, leases), super::super::message::encode(&plain));
        }
    }

    #[test]
    fn events_are_encoded_as_prost_encodes_them() {
        let reasons = [
            DestroyReason::Requested,
            DestroyReason::Released,
            DestroyReason::LeaseExpired,
            DestroyReason::LeaseRevoked,
        ];
        let leases = [None, LeaseId::from_number(1), LeaseId::from_number(u64::MAX)];
        let changes: Vec<_> =
            [SessionChange::Created].into_iter().chain(reasons.map(SessionChange::Destroyed)).collect();
        let moves = leases.map(|previous| SessionChange::Moved { previous });
        let ids = [0, 1, -1, i64::MIN, i64::MAX];
        let events_of = |changes: &[SessionChange]| -> Vec<SessionEvent> {
            let each = changes.iter().flat_map(|change| ids.map(|id| (*change, id)));
            let each = each.flat_map(|(change, id)| ids.map(|key| (change, SessionKey::new(key, id))));
            each.flat_map(|(change, session)| leases.map(|lease| SessionEvent { session, change, lease })).collect()
        };
        let plain = events_of(&changes);
        let placed = events_of(&[&changes[..], &moves].concat());
        // Try all checksums: one of them is correct.
        let cursor: Cursor =
            (0..=u16::MAX).find_map(|sum| format!("0000000000000007-1f-{:016x}-{sum:04x}", 9).parse().ok()).unwrap();
        let place = Place { partition: 3, position: Position(1 << 40) };
        let cases = [(&plain, None), (&placed, Some(place)), (&placed, Some(Place::default()))];
        for ((events, last), count) in
            cases.into_iter().flat_map(|case| [0, 1, 2, 7, usize::MAX].map(|count| (case, count)))
        {
            for cursor in [None, Some(&cursor)] {
                let events = &events[..count.min(events.len())];
                let plain = proto::SubscribeResponse {
                    body: Some(Body::Events(proto::SessionEvents {
                        events: events.iter().map(|event| convert::session_event(event, last.is_some())).collect(),
                        place: last.as_ref().map(convert::place),
                    })),
                    cursor: cursor.map(ToString::to_string).unwrap_or_default(),
                };
                let ours = encode_events(events, cursor, last);
                assert_eq!(ours, super::super::message::encode(&plain));
                assert_eq!(proto::SubscribeResponse::decode(&ours[5..]).unwrap(), plain);
            }
        }
    }
}
