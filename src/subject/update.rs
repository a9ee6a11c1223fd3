//! What an observer is told.

use std::sync::Arc;

use bytes::Bytes;

use super::log::Chunk;
use crate::{
    reset::ResetReason,
    session::{LeaseId, SessionEvent, SessionKey},
    storage::Place,
};

/// One thing that an observer is told.
#[derive(Clone, Debug)]
pub enum Update {
    /// Always the first: the stream has begun.
    Subscribed,
    /// A part of the sessions that exist and pass the filter; never empty.
    Snapshot(Vec<SessionKey>),
    /// The same for an observer with placements: each session with the lease that it is under.
    Placements(Vec<(SessionKey, Option<LeaseId>)>),
    /// The snapshot is complete: the observer holds what the registry holds. What follows is live.
    Synced {
        /// How many sessions that is, of those that pass the filter by id.
        session_count: u64,
    },
    /// Changes that pass the filter, in commit order; at least one.
    Events(Events),
    /// The stream lost its place: forget what you hold. A whole snapshot follows, to [`Update::Synced`].
    Reset(ResetReason),
    /// The last one: the subject was closed. The cursor goes on where the stream ends.
    Closed,
}

/// Some changes, in commit order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Just as they are in the log, for everybody.
    Shared(Arc<Chunk>),
    /// The same with placements.
    Placed(Arc<Chunk>),
    /// Chosen for one observer, with the place of the last.
    Chosen(Arc<[SessionEvent]>, Place),
}

impl Events {
    pub(super) fn shared(chunk: Arc<Chunk>) -> Self {
        Self(Kind::Shared(chunk))
    }

    pub(super) fn placed(chunk: Arc<Chunk>) -> Self {
        Self(Kind::Placed(chunk))
    }

    pub(super) fn chosen(events: Vec<SessionEvent>, last: Place) -> Self {
        Self(Kind::Chosen(events.into(), last))
    }

    /// The changes; at least one.
    #[must_use]
    pub fn events(&self) -> &[SessionEvent] {
        match &self.0 {
            Kind::Shared(chunk) => chunk.plain(),
            Kind::Placed(chunk) => &chunk.events,
            Kind::Chosen(events, _) => events,
        }
    }

    /// The place of the last change that the observer has been told of or has passed.
    #[must_use]
    pub fn last(&self) -> Place {
        match &self.0 {
            Kind::Shared(chunk) | Kind::Placed(chunk) => chunk.last(),
            Kind::Chosen(_, last) => *last,
        }
    }

    /// The message that the subject's encoder made of just these changes, where they are the same for everybody.
    #[must_use]
    pub fn wire(&self) -> Option<Bytes> {
        match &self.0 {
            Kind::Shared(chunk) => Some(chunk.wire.clone()),
            Kind::Placed(chunk) => chunk.placed.clone(),
            Kind::Chosen(..) => None,
        }
    }
}
