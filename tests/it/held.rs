//! What observers should hold and receive. These rules are independent of the code under test.

use std::collections::BTreeMap;

use sessiond::{
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
    subject::{Filter, ResetReason, Update},
};

/// Sessions, each with its lease. Without placements, the leases are unknown.
pub(crate) type Held = BTreeMap<SessionKey, Option<LeaseId>>;

/// Returns the session's lease before and after an event, if the session exists and matches the filters by id and lease
/// at that time.
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

/// Applies an event as an observer does that receives every change. Returns whether the event fits the held set.
pub(crate) fn apply(held: &mut Held, event: &SessionEvent, filter: &Filter) -> bool {
    let (before, after) = sides(event, filter);
    let was = match after {
        Some(lease) => held.insert(event.session, lease),
        None => held.remove(&event.session),
    };
    was == before && before != after
}

/// Whether an observer receives an event.
pub(crate) fn delivers(filter: &Filter, event: &SessionEvent) -> bool {
    let is_wanted = match event.change {
        SessionChange::Created => filter.changes.created,
        SessionChange::Destroyed(_) => filter.changes.destroyed,
        SessionChange::Moved { .. } => filter.changes.moved && filter.has_placements(),
    };
    is_wanted && sides(event, filter) != (None, None)
}

/// Whether an observer receives every change of what it holds.
pub(crate) fn sees_every_change(filter: &Filter) -> bool {
    let changes = filter.changes;
    changes.created && changes.destroyed && (changes.moved || !filter.has_placements())
}

/// Returns an event as a stream without placements reports it.
pub(crate) fn plain(event: &SessionEvent) -> Option<SessionEvent> {
    let change = match event.change {
        SessionChange::Moved { .. } => return None,
        SessionChange::Destroyed(DestroyReason::Released) => SessionChange::Destroyed(DestroyReason::Requested),
        change => change,
    };
    Some(SessionEvent::new(event.session, change, None))
}

/// Returns an event as an observer with this filter sees it, if at all.
pub(crate) fn seen(event: &SessionEvent, filter: &Filter) -> Option<SessionEvent> {
    if filter.has_placements() { Some(*event) } else { plain(event) }
}

/// What an observer of all sessions holds, without placements.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) sessions: Held,
    pub(crate) resets: Vec<ResetReason>,
    /// Whether it holds a whole snapshot and every change since.
    pub(crate) is_synced: bool,
}

impl View {
    /// Applies an update. Returns what is wrong with it if it does not fit what the observer holds.
    pub(crate) fn apply(&mut self, update: &Update) -> Result<(), String> {
        match update {
            Update::Subscribed => {}
            Update::Reset(reason) => {
                self.resets.push(*reason);
                self.sessions.clear();
                self.is_synced = false;
            }
            Update::Snapshot(sessions) => {
                let mut all = sessions.sessions().iter();
                if let Some(held) = all.find(|session| self.sessions.insert(**session, None).is_some()) {
                    return Err(format!("{held:?} is in the snapshot but was already held"));
                }
            }
            Update::Synced { session_count } => {
                let held = self.sessions.len() as u64;
                if held != *session_count {
                    return Err(format!("synced with {session_count} sessions but holds {held}"));
                }
                self.is_synced = true;
            }
            Update::Events(events) => {
                let all = Filter::default();
                let mut seen = events.events().iter().filter_map(plain);
                if let Some(event) = seen.find(|event| !apply(&mut self.sessions, event, &all)) {
                    return Err(format!("{event:?} contradicts what the observer holds"));
                }
            }
            other => return Err(format!("{other:?} was not requested")),
        }
        Ok(())
    }
}
