//! What an observer wants to hear of.

use std::collections::HashSet;

use crate::session::{AuthKeyId, SessionChange, SessionEvent, SessionId, SessionKey};

/// Which sessions and changes an observer hears of. Each set narrows it; empty ones narrow nothing.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only these sessions; empty for all.
    pub session_ids: HashSet<SessionId>,
    /// Only sessions of these auth keys; empty for all.
    pub auth_key_ids: HashSet<AuthKeyId>,
    /// Which changes; both by default.
    pub changes: ChangeFilter,
}

/// Which kinds of change an observer hears of. Snapshots and their counts are not narrowed by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangeFilter {
    /// Every change.
    #[default]
    All,
    /// Only that sessions are created.
    Created,
    /// Only that sessions are destroyed.
    Destroyed,
}

impl Filter {
    /// Whether everything passes.
    #[must_use]
    pub fn is_all(&self) -> bool {
        !self.is_by_id() && self.changes == ChangeFilter::All
    }

    /// Whether it narrows by id: an observer like that can be found by what it watches.
    pub(crate) fn is_by_id(&self) -> bool {
        !self.session_ids.is_empty() || !self.auth_key_ids.is_empty()
    }

    /// How many ids it names.
    pub(crate) fn id_count(&self) -> usize {
        self.session_ids.len() + self.auth_key_ids.len()
    }

    /// Whether a session passes by its ids.
    #[must_use]
    pub fn passes_session(&self, session: &SessionKey) -> bool {
        (self.session_ids.is_empty() || self.session_ids.contains(&session.session_id))
            && (self.auth_key_ids.is_empty() || self.auth_key_ids.contains(&session.auth_key_id))
    }

    /// Whether an event passes by its ids and its kind.
    #[must_use]
    pub fn passes(&self, event: &SessionEvent) -> bool {
        self.passes_change(event.change) && self.passes_session(&event.session)
    }

    pub(crate) fn passes_change(&self, change: SessionChange) -> bool {
        match self.changes {
            ChangeFilter::All => !matches!(change, SessionChange::Moved { .. }),
            ChangeFilter::Created => matches!(change, SessionChange::Created),
            ChangeFilter::Destroyed => matches!(change, SessionChange::Destroyed(_)),
        }
    }
}
