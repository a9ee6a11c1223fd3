//! Filters: which sessions and changes an observer receives.

use std::collections::HashSet;

use crate::session::{AuthKeyId, LeaseId, SessionChange, SessionEvent, SessionId, SessionKey};

/// Selects which sessions and changes an observer receives. The default is every session and every change, without
/// placements.
///
/// A session must match every set that is not empty.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Filter {
    /// Only sessions with these ids; empty for all.
    pub session_ids: HashSet<SessionId>,
    /// Only sessions under these auth keys; empty for all.
    pub auth_key_ids: HashSet<AuthKeyId>,
    /// Only sessions under these leases; empty for all. A move passes if it is from or to one of them. Implies
    /// `placements`.
    pub lease_ids: HashSet<LeaseId>,
    /// Which kinds of change to receive; all by default.
    pub changes: ChangeFilter,
    /// Whether the observer also receives placements: moves to other leases, and the lease of each session and event.
    pub placements: bool,
}

/// Selects which kinds of change an observer receives. It does not affect snapshots and their counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangeFilter {
    /// Sessions that are created.
    pub created: bool,
    /// Sessions that are destroyed.
    pub destroyed: bool,
    /// Sessions that move to another lease, if the observer has placements.
    pub moved: bool,
}

impl ChangeFilter {
    /// Every change.
    pub const ALL: Self = Self { created: true, destroyed: true, moved: true };
    /// Only sessions that are created.
    pub const CREATED: Self = Self { created: true, destroyed: false, moved: false };
    /// Only sessions that are destroyed.
    pub const DESTROYED: Self = Self { created: false, destroyed: true, moved: false };

    setters!(const created: bool, destroyed: bool, moved: bool);
}

impl Default for ChangeFilter {
    fn default() -> Self {
        Self::ALL
    }
}

impl Filter {
    /// Selects only these sessions, under any auth key.
    #[must_use]
    pub fn session_ids(mut self, ids: impl IntoIterator<Item = SessionId>) -> Self {
        self.session_ids = ids.into_iter().collect();
        self
    }

    /// Selects only sessions under these auth keys.
    #[must_use]
    pub fn auth_key_ids(mut self, ids: impl IntoIterator<Item = AuthKeyId>) -> Self {
        self.auth_key_ids = ids.into_iter().collect();
        self
    }

    /// Selects only sessions under these leases, as described at [`lease_ids`](field@Self::lease_ids).
    #[must_use]
    pub fn lease_ids(mut self, ids: impl IntoIterator<Item = LeaseId>) -> Self {
        self.lease_ids = ids.into_iter().collect();
        self
    }

    setters!(plain changes: ChangeFilter, placements: bool);

    /// Returns whether every event passes the filter. Without placements, moves do not count.
    #[must_use]
    pub fn is_all(&self) -> bool {
        let ChangeFilter { created, destroyed, moved } = self.changes;
        !self.is_by_id() && created && destroyed && (moved || !self.has_placements())
    }

    /// Returns whether the observer has placements: it receives moves and leases.
    #[must_use]
    pub fn has_placements(&self) -> bool {
        self.placements || !self.lease_ids.is_empty()
    }

    /// Returns whether the filter names any ids. The publisher finds such observers through the [index](super::index).
    pub(crate) fn is_by_id(&self) -> bool {
        !self.session_ids.is_empty() || !self.auth_key_ids.is_empty() || !self.lease_ids.is_empty()
    }

    /// Returns how many ids the filter names.
    pub(crate) fn id_count(&self) -> usize {
        self.session_ids.len() + self.auth_key_ids.len() + self.lease_ids.len()
    }

    /// Returns whether a session passes by its session id and auth key, whatever its lease.
    #[must_use]
    pub fn passes_session(&self, session: &SessionKey) -> bool {
        (self.session_ids.is_empty() || self.session_ids.contains(&session.session_id))
            && (self.auth_key_ids.is_empty() || self.auth_key_ids.contains(&session.auth_key_id))
    }

    /// Returns whether a session under `lease` passes.
    #[must_use]
    pub fn passes_placement(&self, session: &SessionKey, lease: Option<LeaseId>) -> bool {
        self.passes_session(session) && self.passes_lease(lease)
    }

    fn passes_lease(&self, lease: Option<LeaseId>) -> bool {
        self.lease_ids.is_empty() || lease.is_some_and(|lease| self.lease_ids.contains(&lease))
    }

    /// Returns whether an event passes the filter.
    #[must_use]
    pub fn passes(&self, event: &SessionEvent) -> bool {
        self.passes_change(event.change) && self.passes_by_id(event)
    }

    /// Returns whether an event passes by the ids of its session and by its leases, whatever its kind.
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
