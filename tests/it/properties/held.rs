//! What observers hold and are told, by rules that are not those of the code under test.

use std::collections::BTreeMap;

use sessiond::{
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
    subject::Filter,
};

/// Sessions, and the lease of each. Without placements nobody knows the leases.
pub(crate) type Held = BTreeMap<SessionKey, Option<LeaseId>>;

/// The lease that a session is under before an event and after it, as far as the session exists and passes the filter by id.
fn sides(event: &SessionEvent, filter: &Filter) -> (Option<Option<LeaseId>>, Option<Option<LeaseId>>) {
    let (before, after) = match event.change {
        SessionChange::Created => (None, Some(event.lease)),
        SessionChange::Destroyed(_) => (Some(event.lease), None),
        SessionChange::Moved { previous } => (Some(previous), Some(event.lease)),
    };
    let passes = |lease: &Option<LeaseId>| {
        filter.passes_session(&event.session)
            && (filter.lease_ids.is_empty() || lease.is_some_and(|lease| filter.lease_ids.contains(&lease)))
    };
    (before.filter(passes), after.filter(passes))
}

/// Applies an event as an observer does that is told of every change. Returns whether it fits what was held.
pub(crate) fn apply(held: &mut Held, event: &SessionEvent, filter: &Filter) -> bool {
    let (before, after) = sides(event, filter);
    let was = match after {
        Some(lease) => held.insert(event.session, lease),
        None => held.remove(&event.session),
    };
    was == before && before != after
}

/// Whether an observer is told of an event.
pub(crate) fn tells(filter: &Filter, event: &SessionEvent) -> bool {
    let is_wanted = match event.change {
        SessionChange::Created => filter.changes.created,
        SessionChange::Destroyed(_) => filter.changes.destroyed,
        SessionChange::Moved { .. } => filter.changes.moved && filter.has_placements(),
    };
    is_wanted && sides(event, filter) != (None, None)
}

/// Whether an observer is told of every change of what it holds.
pub(crate) fn is_whole(filter: &Filter) -> bool {
    let changes = filter.changes;
    changes.created && changes.destroyed && (changes.moved || !filter.has_placements())
}

/// What a stream without placements is told of an event.
pub(crate) fn plain(event: &SessionEvent) -> Option<SessionEvent> {
    let change = match event.change {
        SessionChange::Moved { .. } => return None,
        SessionChange::Destroyed(DestroyReason::Released) => SessionChange::Destroyed(DestroyReason::Requested),
        change => change,
    };
    Some(SessionEvent { change, lease: None, ..*event })
}

/// An event as an observer sees it, if it sees it at all.
pub(crate) fn seen(event: &SessionEvent, filter: &Filter) -> Option<SessionEvent> {
    if filter.has_placements() { Some(*event) } else { plain(event) }
}
