//! The options of a subject, and of an observer.

use super::{Cursor, Filter};

/// The limits of a subject.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SubjectOptions {
    /// How many events are retained in memory, for observers that resume or fall behind. An observer that needs older
    /// ones is reset. The newest batch of events is retained even if it exceeds this. 1,048,576 by default.
    pub retain_events: usize,
    /// How many bytes the retained events may take. 256 MiB by default. While several observers take a snapshot, up to a
    /// quarter of this is kept of what they read, for each kind: with and without placements.
    pub retain_bytes: usize,
    /// How many observers may exist at the same time. 100,000 by default.
    pub max_observers: usize,
    /// How many ids the [`Filter`] of one observer may name. 4096 by default.
    pub max_filter_ids: usize,
    /// How many ids the filters of all observers may name in total. Each id takes about a hundred bytes. 16,777,216 by
    /// default.
    pub max_total_filter_ids: usize,
}

impl Default for SubjectOptions {
    fn default() -> Self {
        Self {
            retain_events: 1 << 20,
            retain_bytes: 256 << 20,
            max_observers: 100_000,
            max_filter_ids: 4096,
            max_total_filter_ids: 1 << 24,
        }
    }
}

impl SubjectOptions {
    setters!(const
        retain_events: usize,
        retain_bytes: usize,
        max_observers: usize,
        max_filter_ids: usize,
        max_total_filter_ids: usize,
    );
}

/// Where an observer starts, and which sessions and changes it receives.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ObserveOptions {
    /// Where the observer starts.
    pub start: Start,
    /// Which sessions and changes it receives.
    pub filter: Filter,
}

impl ObserveOptions {
    /// Observes everything from `start` on.
    #[must_use]
    pub fn from_start(start: Start) -> Self {
        Self { start, ..Self::default() }
    }

    /// Observes everything, starting with a snapshot of the existing sessions.
    #[must_use]
    pub fn snapshot() -> Self {
        Self::from_start(Start::Snapshot)
    }

    /// Observes everything right after the update that carried `cursor`.
    #[must_use]
    pub fn after(cursor: Cursor) -> Self {
        Self::from_start(Start::After(cursor))
    }

    setters!(plain filter: Filter);
}

/// Where an observer starts.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Start {
    /// At the first change after the call.
    #[default]
    Now,
    /// With a snapshot of the existing sessions.
    Snapshot,
    /// Right after the update that carried this cursor.
    After(Cursor),
}
