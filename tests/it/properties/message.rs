//! The messages that an observer received, in process or over the wire.

use sessiond::{
    session::{LeaseId, SessionEvent, SessionKey},
    storage::Place,
    subject::{Filter, ResetReason, Update},
};

use crate::held::seen;

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Subscribed,
    /// The sessions of a chunk. Without placements there are no leases.
    Snapshot(Vec<(SessionKey, Option<LeaseId>)>),
    Synced(u64),
    Events(Vec<SessionEvent>),
    Reset(ResetReason),
    Heartbeat,
    Closed,
}

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) content: Content,
    pub(crate) cursor: Option<String>,
    /// With placements, the place in each partition, if the message has places.
    pub(crate) places: Vec<Place>,
    /// With placements, the place of the last event.
    pub(crate) last: Option<Place>,
}

impl Message {
    pub(crate) fn new(content: Content, cursor: Option<String>) -> Self {
        Self { content, cursor, places: Vec::new(), last: None }
    }
}

impl Content {
    /// Converts an update as an observer with this filter sees it.
    pub(crate) fn of(update: &Update, filter: &Filter) -> Self {
        match update {
            Update::Subscribed => Self::Subscribed,
            Update::Snapshot(part) => {
                let leases = part.leases().iter().copied().chain(std::iter::repeat(None));
                Self::Snapshot(part.sessions().iter().copied().zip(leases).collect())
            }
            Update::Synced { session_count } => Self::Synced(*session_count),
            Update::Events(events) => {
                // An event that it should not see is recorded unchanged.
                let seen = |event| seen(event, filter).unwrap_or(*event);
                Self::Events(events.events().iter().map(seen).collect())
            }
            Update::Reset(reason) => Self::Reset(*reason),
            Update::Closed => Self::Closed,
            other => panic!("{other:?} is not known to this test"),
        }
    }
}
