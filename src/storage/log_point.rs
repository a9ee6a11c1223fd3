//! The log of a registry: the points in it, how far it reaches, and runs of its changes.

use std::{fmt, ops::Range};

use crate::session::SessionEvent;

/// The number of a change in its partition's log. The first change has number 1, and 0 is the place before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// A random number that a storage gives to a stretch of its log. Marks distinguish two histories of one registry.
///
/// Two logs of one registry that have the same mark at a position have the same changes up to that position. The mark
/// at a position is that of the stretch that its change belongs to. The mark at position 0 is drawn when the log
/// begins. The storage decides what a stretch is: all changes of a process, all changes since a file was opened, or the
/// changes of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mark(pub u64);

/// A position in a partition's log, and the mark there. Together they identify the history up to that position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogPoint {
    /// The position.
    pub position: Position,
    /// The mark at that position.
    pub mark: Mark,
}

impl LogPoint {
    /// Returns the point at the last of `changes`, which follow this point.
    #[must_use]
    pub fn past(self, changes: &Changes) -> Self {
        Self { position: Position(self.position.0 + changes.events.len() as u64), mark: changes.mark }
    }
}

/// The identity of a registry: a random number that is drawn when the registry begins. It stays the same for as long as
/// the log continues.
///
/// Its text form is 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegistryId(pub u64);

impl fmt::Display for RegistryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How far the log of a registry reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogExtent {
    /// The registry that the log belongs to.
    pub registry_id: RegistryId,
    /// For each partition, the points between which changes are held: after `start`, up to and including `end`.
    pub partitions: Vec<Range<LogPoint>>,
}

impl LogExtent {
    /// Describes the log of a registry.
    #[must_use]
    pub const fn new(registry_id: RegistryId, partitions: Vec<Range<LogPoint>>) -> Self {
        Self { registry_id, partitions }
    }
}

/// Consecutive changes of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// The changes, in order; at least one.
    pub events: Vec<SessionEvent>,
    /// The mark at the last of them.
    pub mark: Mark,
}

impl Changes {
    /// Makes a run of changes, with the mark at the last of them.
    #[must_use]
    pub const fn new(events: Vec<SessionEvent>, mark: Mark) -> Self {
        Self { events, mark }
    }
}
