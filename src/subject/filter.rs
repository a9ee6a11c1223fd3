//! What an observer wants to hear of.

use std::collections::HashSet;

use crate::session::{AuthKeyId, LeaseId, SessionChange, SessionEvent, SessionId, SessionKey};

/// Which sessions and changes an observer hears of. Each set narrows it; empty ones narrow nothing.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only these sessions; empty for all.
    pub session_ids: HashSet<SessionId>,
    /// Only sessions of these auth keys; empty for all.
    pub auth_key_ids: HashSet<AuthKeyId>,
    /// Only sessions under these leases; empty for all. A move passes if it is from or to one of them.
    pub lease_ids: HashSet<LeaseId>,
    /// Which changes; all by default.
    pub changes: ChangeFilter,
    /// Whether moves and leases are told, too. Leases in the filter imply it.
    pub placements: bool,
}

/// Which kinds of change an observer hears of. Snapshots and their counts are not narrowed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeFilter {
    /// That sessions are created.
    pub created: bool,
    /// That sessions are destroyed.
    pub destroyed: bool,
    /// That sessions move to another lease, if the observer has placements.
    pub moved: bool,
}

impl ChangeFilter {
    /// Every change.
    pub const ALL: Self = Self { created: true, destroyed: true, moved: true };
    /// Only that sessions are created.
    pub const CREATED: Self = Self { created: true, destroyed: false, moved: false };
    /// Only that sessions are destroyed.
    pub const DESTROYED: Self = Self { created: false, destroyed: true, moved: false };
}

impl Default for ChangeFilter {
    fn default() -> Self {
        Self::ALL
    }
}

impl Filter {
    /// Whether everything passes that an observer with or without placements may be told.
    #[must_use]
    pub fn is_all(&self) -> bool {
        let ChangeFilter { created, destroyed, moved } = self.changes;
        !self.is_by_id() && created && destroyed && (moved || !self.has_placements())
    }

    /// Whether moves and leases are told.
    #[must_use]
    pub fn has_placements(&self) -> bool {
        self.placements || !self.lease_ids.is_empty()
    }

    /// Whether it narrows by id: an observer like that can be found by what it watches.
    pub(crate) fn is_by_id(&self) -> bool {
        !self.session_ids.is_empty() || !self.auth_key_ids.is_empty() || !self.lease_ids.is_empty()
    }

    /// How many ids it names.
    pub(crate) fn id_count(&self) -> usize {
        self.session_ids.len() + self.auth_key_ids.len() + self.lease_ids.len()
    }

    /// Whether a session passes by its own ids.
    #[must_use]
    pub fn passes_session(&self, session: &SessionKey) -> bool {
        (self.session_ids.is_empty() || self.session_ids.contains(&session.session_id))
            && (self.auth_key_ids.is_empty() || self.auth_key_ids.contains(&session.auth_key_id))
    }

    /// Whether a session under `lease` passes.
    #[must_use]
    pub fn passes_placement(&self, session: &SessionKey, lease: Option<LeaseId>) -> bool {
        self.passes_session(session) && self.passes_lease(lease)
    }

    fn passes_lease(&self, lease: Option<LeaseId>) -> bool {
        self.lease_ids.is_empty() || lease.is_some_and(|lease| self.lease_ids.contains(&lease))
    }

    /// Whether an event passes by its ids and its kind.
    #[must_use]
    pub fn passes(&self, event: &SessionEvent) -> bool {
        self.passes_change(event.change) && self.passes_by_id(event)
    }

    /// Whether an event passes by the ids of its session and by its leases.
    pub(crate) fn passes_by_id(&self, event: &SessionEvent) -> bool {
        let leaves = |previous| !self.lease_ids.is_empty() && self.passes_lease(previous);
        self.passes_session(&event.session)
            && (self.passes_lease(event.lease)
                || matches!(event.change, SessionChange::Moved { previous } if leaves(previous)))
    }

    pub(crate) fn passes_change(&self, change: SessionChange) -> bool {
        match change {
            SessionChange::Created => self.changes.created,
            SessionChange::Destroyed(_) => self.changes.destroyed,
            SessionChange::Moved { .. } => self.changes.moved && self.has_placements(),
        }
    }
}
