//! Which lease a session is under, and how that is changed.

use std::ops::Deref;

use smallvec::SmallVec;

use super::Position;
use crate::session::LeaseId;

/// How sessions are created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// The lease that they come under, if any.
    pub lease: Option<LeaseId>,
    /// Which sessions that exist already move to that lease. Without a lease, none does.
    pub takeover: Takeover,
}

/// Which sessions that exist already move to the lease of a create.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Takeover {
    /// Every session: the newest connection wins.
    #[default]
    Always,
    /// Only sessions under this lease, and those that no lease protects: under no lease, or under one that has ended or lingers.
    OnlyFrom(Option<LeaseId>),
}

impl From<Option<LeaseId>> for CreateOptions {
    fn from(lease: Option<LeaseId>) -> Self {
        Self { lease, takeover: Takeover::Always }
    }
}

/// What became of one session that was to be created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Creation {
    /// Whether this call created it.
    pub created: bool,
    /// The lease that it is under after the call.
    pub lease: Option<LeaseId>,
}

/// What a lookup found out about one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// Whether it exists.
    pub exists: bool,
    /// The lease that it is under.
    pub lease: Option<LeaseId>,
}

/// The answers of a call that may change sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers<T> {
    /// One for each session, in order.
    pub sessions: Vec<T>,
    /// Where they are true: for each partition with sessions of the call, the last place.
    ///
    /// A change that the call made is not after the place. In a call about one session, a change by another call that the
    /// answer does not reflect is not before it. In a batch it may be: the place is that of the last answer.
    pub places: Places,
}

/// A position in the log of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The partition.
    pub partition: u32,
    /// The position in its log.
    pub position: Position,
}

/// The last place in each of some partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(SmallVec<[Place; 1]>);

impl Places {
    /// Adds a place, unless a later one of its partition is there.
    pub fn add(&mut self, place: Place) {
        match self.0.iter_mut().find(|known| known.partition == place.partition) {
            Some(known) => known.position = known.position.max(place.position),
            None => self.0.push(place),
        }
    }
}

impl Deref for Places {
    type Target = [Place];

    fn deref(&self) -> &[Place] {
        &self.0
    }
}

impl Extend<Place> for Places {
    fn extend<I: IntoIterator<Item = Place>>(&mut self, places: I) {
        places.into_iter().for_each(|place| self.add(place));
    }
}
