//! Updates: what an observer receives.

use std::sync::Arc;

use bytes::Bytes;

use super::{log::Chunk, run::Sessions};
use crate::{reset::ResetReason, session::SessionEvent, storage::Place};

/// What an observer receives.
///
/// To mirror the registry exactly, start with [`Start::Snapshot`](super::Start::Snapshot) and set no filter by kind of
/// change. Apply the updates in order:
///
/// - `Snapshot`: insert its sessions.
/// - `Events`: insert sessions that were created, and remove those that were destroyed.
/// - `Reset`: discard everything.
///
/// From `Synced` on, the mirror equals the registry. You may ignore the other updates.
///
/// With [placements](super::Filter::placements), also store the lease of each session. It comes with the session in
/// `Snapshot`, and changes when the session moves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    /// The observer has started. Always the first update.
    Subscribed,
    /// Some of the existing sessions that pass the filter.
    Snapshot(Sessions),
    /// The snapshot is complete, and live events follow.
    Synced {
        /// The number of existing sessions that match the ids in the filter.
        session_count: u64,
    },
    /// Changes that pass the filter, in commit order. Never empty.
    Events(Events),
    /// The observer has lost its place: discard what you hold. A full snapshot follows, up to [`Update::Synced`].
    Reset(ResetReason),
    /// The subject was closed. Always the last update. Resume with the observer's cursor, if it has one.
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

    /// Returns a place in the log. The observer has received all changes of that partition up to this place.
    ///
    /// It is the place of the last of these changes, or of a later one that the observer does not receive.
    #[must_use]
    pub fn last(&self) -> Place {
        match &self.0 {
            Kind::Shared(chunk) | Kind::Placed(chunk) => chunk.last(),
            Kind::Chosen(_, last) => *last,
        }
    }

    /// Returns these changes as the message that the subject's [`EventEncoder`](super::EventEncoder) made of them.
    /// `None` if they were selected for this observer, so that no shared message has exactly them.
    #[must_use]
    pub fn wire(&self) -> Option<Bytes> {
        match &self.0 {
            Kind::Shared(chunk) => Some(chunk.wire.clone()),
            Kind::Placed(chunk) => chunk.placed.clone(),
            Kind::Chosen(..) => None,
        }
    }
}
