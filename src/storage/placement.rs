//! Which lease a session is under, and how sessions come under a lease.

use std::ops::Deref;

use smallvec::SmallVec;

use super::Position;
use crate::session::LeaseId;

/// How sessions are created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The lease to put them under. With `None`, new sessions are under no lease, and existing ones keep theirs.
    pub lease: Option<LeaseId>,
    /// Which existing sessions move to that lease. Has no effect without a lease.
    pub takeover: Takeover,
}

impl CreateOptions {
    setters!(const takeover: Takeover);
}

/// Which existing sessions a create moves to its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Takeover {
    /// Every session: the newest connection wins.
    #[default]
    Always,
    /// Only sessions under this lease, and those that no lease protects: under no lease, or under one that has ended or
    /// lingers.
    OnlyFrom(Option<LeaseId>),
}

impl From<Option<LeaseId>> for CreateOptions {
    fn from(lease: Option<LeaseId>) -> Self {
        Self { lease, takeover: Takeover::Always }
    }
}

/// The answer to a create, for one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Creation {
    /// Whether this call created the session. False if it existed already.
    pub created: bool,
    /// The lease that the session is under after the call, if any.
    pub lease: Option<LeaseId>,
}

impl Creation {
    /// Answers that the session is under `lease` now, and whether this call created it.
    #[must_use]
    pub const fn new(created: bool, lease: Option<LeaseId>) -> Self {
        Self { created, lease }
    }
}

/// The answer to a lookup, for one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lookup {
    /// Whether the session exists.
    pub exists: bool,
    /// The lease that the session is under, if any.
    pub lease: Option<LeaseId>,
}

impl Lookup {
    /// The answer for a session that does not exist.
    pub const ABSENT: Self = Self { exists: false, lease: None };

    /// Answers that the session exists, under `lease` if there is one.
    #[must_use]
    pub const fn found(lease: Option<LeaseId>) -> Self {
        Self { exists: true, lease }
    }
}

/// The answers of a call that may change sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answers<T> {
    /// One answer for each session, in order.
    pub sessions: Vec<T>,
    /// For each partition with sessions of the call, the last place at which an answer is true.
    ///
    /// Every change that this call made is at or before the place of its partition. So an observer that has reached the
    /// place has received them all.
    ///
    /// In a call about one session, every change by another call that the answer does not reflect is after the place.
    /// In a batch, such a change may be before it, because the place is that of the last answer.
    pub places: Places,
}

impl<T> Answers<T> {
    /// Makes the answers of a call.
    #[must_use]
    pub const fn new(sessions: Vec<T>, places: Places) -> Self {
        Self { sessions, places }
    }
}

/// A position in the log of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The partition.
    pub partition: u32,
    /// The position in its log.
    pub position: Position,
}

/// The last place in each of several partitions. Dereferences to a slice of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(SmallVec<[Place; 1]>);

impl Places {
    /// Adds a place, unless there is a later one in the same partition.
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
