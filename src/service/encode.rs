//! Updates as the length-prefixed messages of a gRPC stream.

use std::time::Duration;

use bytes::Bytes;

use super::convert;
use crate::{
    duration,
    proto::{self, subscribe_response::Body},
    session::SessionEvent,
    subject::{Cursor, EventEncoder, Update},
};

/// Encodes a subject's events once for all observers, as they go over the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct WireEncoder;

impl EventEncoder for WireEncoder {
    fn encode(&self, events: &[SessionEvent], cursor: &Cursor) -> Bytes {
        message(events_body(events), Some(cursor))
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
        Update::Subscribed => {
            let heartbeat = Some(duration::to_proto(heartbeat));
            Body::Subscribed(proto::Subscribed { registry_id: registry_id.to_string(), heartbeat })
        }
        Update::Snapshot(sessions) => {
            Body::Snapshot(proto::Snapshot { sessions: sessions.iter().map(convert::session).collect() })
        }
        Update::Synced { session_count } => Body::Synced(proto::Synced { session_count: *session_count }),
        Update::Events(events) => events_body(events.events()),
        Update::Reset(reason) => Body::Reset(proto::Reset { reason: convert::reset_reason(*reason).into() }),
        // The last message of a stream, before its status.
        Update::Closed => Body::Heartbeat(proto::Heartbeat {}),
    };
    message(body, cursor)
}

pub(super) fn heartbeat(cursor: Option<&Cursor>) -> Bytes {
    message(Body::Heartbeat(proto::Heartbeat {}), cursor)
}

fn events_body(events: &[SessionEvent]) -> Body {
    Body::Events(proto::SessionEvents { events: events.iter().map(convert::session_event).collect() })
}

fn message(body: Body, cursor: Option<&Cursor>) -> Bytes {
    let cursor = cursor.map(ToString::to_string).unwrap_or_default();
    super::message::encode(&proto::SubscribeResponse { body: Some(body), cursor })
}
