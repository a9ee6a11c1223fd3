//! Updates: what an observer receives.

use std::sync::Arc;

use bytes::Bytes;

use super::log::Chunk;
use crate::{
    reset::ResetReason,
    session::{LeaseId, SessionEvent, SessionKey},
    storage::Place,
};

/// One message to an observer.
#[derive(Clone, Debug)]
pub enum Update {
    /// The stream has started. Always the first update.
    Subscribed,
    /// Some of the existing sessions that pass the filter. Never empty.
    Snapshot(Vec<SessionKey>),
    /// Replaces [`Update::Snapshot`] for an observer with placements: each session with its lease.
    Placements(Vec<(SessionKey, Option<LeaseId>)>),
    /// The snapshot is complete: the observer holds what the registry holds. Live events follow.
    Synced {
        /// How many sessions exist that pass the filter by id.
        session_count: u64,
    },
    /// Changes that pass the filter, in commit order. Never empty.
    Events(Events),
    /// The stream lost its place: discard what you hold. A full snapshot follows, up to [`Update::Synced`].
    Reset(ResetReason),
    /// The subject was closed. Always the last update. The observer's cursor is the place where the stream ended.
    Closed,
}

/// One or more changes in commit order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// A chunk of the log as every stream without placements receives it.
    Shared(Arc<Chunk>),
    /// A chunk as every stream with placements receives it.
    Placed(Arc<Chunk>),
    /// Events selected for one observer, and the place of the last one.
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

    /// Returns the changes. Never empty.
    #[must_use]
    pub fn events(&self) -> &[SessionEvent] {
        match &self.0 {
            Kind::Shared(chunk) => chunk.plain(),
            Kind::Placed(chunk) => &chunk.events,
            Kind::Chosen(events, _) => events,
        }
    }

    /// Returns the place of the last change that these events cover, including changes that the observer did not
    /// receive.
    #[must_use]
    pub fn last(&self) -> Place {
        match &self.0 {
            Kind::Shared(chunk) | Kind::Placed(chunk) => chunk.last(),
            Kind::Chosen(_, last) => *last,
        }
    }

    /// Returns the message that the subject's encoder made of exactly these changes, if all observers share it.
    #[must_use]
    pub fn wire(&self) -> Option<Bytes> {
        match &self.0 {
            Kind::Shared(chunk) => Some(chunk.wire.clone()),
            Kind::Placed(chunk) => chunk.placed.clone(),
            Kind::Chosen(..) => None,
        }
    }
}
