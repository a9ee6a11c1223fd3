//! From what a request says to values, and back.

use std::{collections::HashSet, hash::Hash, num::NonZeroU64, ops::RangeInclusive, time::Duration};

use crate::{
    duration, proto,
    service::ServiceError,
    session::{AuthKeyId, DestroyReason, LeaseId, SessionChange, SessionEvent, SessionId, SessionKey},
    storage::Place,
    subject::{ChangeFilter, Filter, ObserveOptions, ResetReason, Start},
};

const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(15);
const HEARTBEAT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

pub(super) fn session_key(auth_key_id: i64, session_id: Option<i64>) -> Result<SessionKey, ServiceError> {
    let session_id = session_id.ok_or(ServiceError::SessionIdMissing)?;
    Ok(SessionKey::new(auth_key_id, session_id))
}

pub(super) fn session_keys(
    auth_key_ids: &[i64],
    session_ids: &[i64],
    limit: usize,
) -> Result<Vec<SessionKey>, ServiceError> {
    let count = session_ids.len();
    if count > limit {
        return Err(ServiceError::BatchTooLarge { count, limit });
    }
    if auth_key_ids.is_empty() {
        return Ok(session_ids.iter().map(|id| SessionKey::new(0, *id)).collect());
    }
    if auth_key_ids.len() != session_ids.len() {
        let (session_ids, auth_key_ids) = (session_ids.len(), auth_key_ids.len());
        return Err(ServiceError::UnequalLists { session_ids, auth_key_ids });
    }
    Ok(auth_key_ids.iter().zip(session_ids).map(|(auth_key, id)| SessionKey::new(*auth_key, *id)).collect())
}

/// Reads no more than one id over `max_filter_ids` of each kind into the filter. The subject refuses it then.
pub(super) fn observe_options(
    request: proto::SubscribeRequest,
    max_filter_ids: usize,
) -> Result<ObserveOptions, ServiceError> {
    use proto::subscribe_request::Start::{Cursor, Snapshot};
    let start = match request.start {
        None | Some(Snapshot(false)) => Start::Now,
        Some(Snapshot(true)) => Start::Snapshot,
        Some(Cursor(text)) if text.is_empty() => return Err(ServiceError::EmptyCursor),
        Some(Cursor(text)) => Start::After(text.parse().map_err(|_| ServiceError::MalformedCursor)?),
    };
    let (changes, names_moves) = change_filter(&request.types)?;
    let filter = Filter {
        session_ids: distinct(request.session_ids.into_iter().map(SessionId), max_filter_ids),
        auth_key_ids: distinct(request.auth_key_ids.into_iter().map(AuthKeyId), max_filter_ids),
        lease_ids: distinct(request.lease_ids.into_iter().map(lease_to_match), max_filter_ids),
        changes,
        placements: request.placements || names_moves,
    };
    Ok(ObserveOptions { start, filter })
}

/// Zero is no lease: it matches nothing, as a lease that has ended.
pub(super) fn lease_to_match(number: u64) -> LeaseId {
    LeaseId::from_number(number).unwrap_or(LeaseId(NonZeroU64::MAX))
}

/// Returns the ids, each once, up to one more than `most`.
fn distinct<T: Eq + Hash>(ids: impl Iterator<Item = T>, most: usize) -> HashSet<T> {
    let mut distinct = HashSet::new();
    for id in ids {
        distinct.insert(id);
        if distinct.len() > most {
            break;
        }
    }
    distinct
}

/// Which changes are wanted, and whether moves are named among them.
fn change_filter(types: &[i32]) -> Result<(ChangeFilter, bool), ServiceError> {
    use proto::SessionEventType::{Created, Destroyed, Moved, Unspecified};
    let mut named = ChangeFilter { created: false, destroyed: false, moved: false };
    for number in types {
        match proto::SessionEventType::try_from(*number) {
            Ok(Created) => named.created = true,
            Ok(Destroyed) => named.destroyed = true,
            Ok(Moved) => named.moved = true,
            Ok(Unspecified) | Err(_) => return Err(ServiceError::UnknownEventType(*number)),
        }
    }
    Ok((if types.is_empty() { ChangeFilter::ALL } else { named }, named.moved))
}

pub(super) fn heartbeat(heartbeat: Option<prost_types::Duration>) -> Result<Duration, ServiceError> {
    match heartbeat {
        None => Ok(DEFAULT_HEARTBEAT),
        Some(heartbeat) => duration_within(heartbeat, HEARTBEAT).ok_or(ServiceError::BadHeartbeat),
    }
}

pub(super) fn duration_within(duration: prost_types::Duration, bounds: RangeInclusive<Duration>) -> Option<Duration> {
    duration::from_proto(duration).filter(|duration| bounds.contains(duration))
}

pub(super) fn lease_number(lease: Option<LeaseId>) -> u64 {
    lease.map_or(0, LeaseId::number)
}

pub(super) fn place(place: &Place) -> proto::Place {
    proto::Place { partition: place.partition, position: place.position.0 }
}

pub(super) fn session(session: &SessionKey, lease: Option<LeaseId>) -> proto::Session {
    let (session_id, auth_key_id) = (session.session_id.0, session.auth_key_id.0);
    proto::Session { session_id, auth_key_id, lease_id: lease_number(lease) }
}

/// An event as a stream with placements is told of it, or one without, which is told of no moves.
pub(super) fn session_event(event: &SessionEvent, is_placed: bool) -> proto::SessionEvent {
    use proto::SessionEventType::{Created, Destroyed, Moved};
    let (r#type, reason, previous) = match event.change {
        SessionChange::Created => (Created, proto::DestroyReason::Unspecified, None),
        SessionChange::Destroyed(reason) => (Destroyed, destroy_reason(reason, is_placed), None),
        SessionChange::Moved { previous } => (Moved, proto::DestroyReason::Unspecified, previous),
    };
    let lease_id = |lease: Option<LeaseId>| if is_placed { lease_number(lease) } else { 0 };
    proto::SessionEvent {
        r#type: r#type.into(),
        session_id: event.session.session_id.0,
        auth_key_id: event.session.auth_key_id.0,
        reason: reason.into(),
        lease_id: lease_id(event.lease),
        previous_lease_id: lease_id(previous),
    }
}

fn destroy_reason(reason: DestroyReason, is_placed: bool) -> proto::DestroyReason {
    match reason {
        DestroyReason::Released if is_placed => proto::DestroyReason::Released,
        DestroyReason::Requested | DestroyReason::Released => proto::DestroyReason::Requested,
        DestroyReason::LeaseExpired => proto::DestroyReason::LeaseExpired,
        DestroyReason::LeaseRevoked => proto::DestroyReason::LeaseRevoked,
    }
}

pub(super) fn reset_reason(reason: ResetReason) -> proto::ResetReason {
    match reason {
        ResetReason::CursorExpired => proto::ResetReason::CursorExpired,
        ResetReason::CursorForeign => proto::ResetReason::CursorForeign,
        ResetReason::Lagged => proto::ResetReason::Lagged,
        ResetReason::StorageRestarted => proto::ResetReason::StorageRestarted,
        // Only clients find these.
        ResetReason::SnapshotInterrupted | ResetReason::Unknown => proto::ResetReason::Unspecified,
    }
}
