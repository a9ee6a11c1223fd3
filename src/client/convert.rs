//! Converts between the client's types and protobuf.

use super::{ClientError, EventType, Place, ResetReason, SnapshotSession};
use crate::{
    proto,
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
};

/// Returns the two id lists of a batch. Leaves `auth_key_ids` empty if all are 0, which halves the request.
pub(super) fn ids(sessions: &[SessionKey]) -> (Vec<i64>, Vec<i64>) {
    let session_ids = sessions.iter().map(|session| session.session_id.0).collect();
    let auth_key_ids = if sessions.iter().all(|session| session.auth_key_id.0 == 0) {
        Vec::new()
    } else {
        sessions.iter().map(|session| session.auth_key_id.0).collect()
    };
    (session_ids, auth_key_ids)
}

pub(super) fn snapshot(snapshot: proto::Snapshot) -> Vec<SnapshotSession> {
    let session = |proto::Session { session_id, auth_key_id, lease_id }| SnapshotSession {
        session: SessionKey::new(auth_key_id, session_id),
        lease: LeaseId::from_number(lease_id),
    };
    snapshot.sessions.into_iter().map(session).collect()
}

pub(super) fn places(places: impl IntoIterator<Item = proto::Place>) -> Vec<Place> {
    places.into_iter().map(|proto::Place { partition, position }| Place { partition, position }).collect()
}

pub(super) fn events(events: Vec<proto::SessionEvent>) -> Result<Vec<SessionEvent>, ClientError> {
    events.into_iter().map(event).collect()
}

fn event(event: proto::SessionEvent) -> Result<SessionEvent, ClientError> {
    let change = match event.r#type() {
        proto::SessionEventType::Created => SessionChange::Created,
        proto::SessionEventType::Destroyed => SessionChange::Destroyed(destroy_reason(event.reason())),
        proto::SessionEventType::Moved => {
            SessionChange::Moved { previous: LeaseId::from_number(event.previous_lease_id) }
        }
        // Skipping the event could leave the observer with a session that does not exist. Fail instead.
        proto::SessionEventType::Unspecified => return Err(ClientError::Protocol("an event of an unknown type")),
    };
    let session = SessionKey::new(event.auth_key_id, event.session_id);
    Ok(SessionEvent { session, change, lease: LeaseId::from_number(event.lease_id) })
}

fn destroy_reason(reason: proto::DestroyReason) -> DestroyReason {
    match reason {
        proto::DestroyReason::LeaseExpired => DestroyReason::LeaseExpired,
        proto::DestroyReason::LeaseRevoked => DestroyReason::LeaseRevoked,
        // A reason from a newer server. What matters is that the session is gone, and that neither of the lease causes
        // above applies.
        proto::DestroyReason::Requested | proto::DestroyReason::Unspecified => DestroyReason::Requested,
        proto::DestroyReason::Released => DestroyReason::Released,
    }
}

pub(super) fn reset_reason(reason: proto::ResetReason) -> ResetReason {
    match reason {
        proto::ResetReason::CursorExpired => ResetReason::CursorExpired,
        proto::ResetReason::CursorForeign => ResetReason::CursorForeign,
        proto::ResetReason::Lagged => ResetReason::Lagged,
        proto::ResetReason::StorageRestarted => ResetReason::StorageRestarted,
        proto::ResetReason::Unspecified => ResetReason::Unknown,
    }
}

pub(super) fn event_type(event_type: EventType) -> proto::SessionEventType {
    match event_type {
        EventType::Created => proto::SessionEventType::Created,
        EventType::Destroyed => proto::SessionEventType::Destroyed,
        EventType::Moved => proto::SessionEventType::Moved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auth_keys_are_left_out_only_if_all_are_zero() {
        assert_eq!(ids(&[SessionKey::new(0, 1), SessionKey::new(0, -2)]), (vec![1, -2], vec![]));
        assert_eq!(ids(&[SessionKey::new(0, 1), SessionKey::new(7, 1)]), (vec![1, 1], vec![0, 7]));
    }

    #[test]
    fn unknown_event_type_is_an_error_but_unknown_reason_is_not() {
        let mut proto =
            proto::SessionEvent { r#type: 9, session_id: 1, auth_key_id: 2, reason: 9, ..Default::default() };
        assert!(matches!(event(proto), Err(ClientError::Protocol(_))));
        proto.r#type = proto::SessionEventType::Destroyed.into();
        let destroyed = SessionChange::Destroyed(DestroyReason::Requested);
        assert_eq!(
            event(proto).unwrap(),
            SessionEvent { session: SessionKey::new(2, 1), change: destroyed, lease: None }
        );
    }
}
