//! What an observer was told, in process or over the wire.

use sessiond::{
    session::{LeaseId, SessionEvent, SessionKey},
    storage::Place,
    subject::{Filter, ResetReason, Update},
};

use super::held::seen;

/// What an observer was told at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Subscribed,
    /// Without placements there are no leases.
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
    pub(crate) told: Told,
    pub(crate) cursor: Option<String>,
    /// With placements, the place in each partition, if the message has them.
    pub(crate) places: Vec<Place>,
    /// With placements, the place of the last event.
    pub(crate) last: Option<Place>,
}

impl Message {
    pub(crate) fn new(told: Told, cursor: Option<String>) -> Self {
        Self { told, cursor, places: Vec::new(), last: None }
    }
}

impl Told {
    /// An update as an observer with this filter sees it.
    pub(crate) fn of(update: &Update, filter: &Filter) -> Self {
        match update {
            Update::Subscribed => Self::Subscribed,
            Update::Snapshot(sessions) => Self::Snapshot(sessions.iter().map(|session| (*session, None)).collect()),
            Update::Placements(sessions) => Self::Snapshot(sessions.clone()),
            Update::Synced { session_count } => Self::Synced(*session_count),
            Update::Events(events) => {
                // What it should not see is written down as it is.
                let seen = |event| seen(event, filter).unwrap_or(*event);
                Self::Events(events.events().iter().map(seen).collect())
            }
            Update::Reset(reason) => Self::Reset(*reason),
            Update::Closed => Self::Closed,
        }
    }
}
