//! The statistics of a subject.

use super::{ChangeCounts, ResetCounts, RunCounts};

/// The statistics of a subject, for metrics.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SubjectStats {
    /// The number of observers.
    pub observers: usize,
    /// The number of ids that their filters name.
    pub filter_ids: usize,
    /// The number of observers that have unread events.
    pub observers_behind: usize,
    /// How many events the slowest observer is behind.
    pub max_lag_events: u64,
    /// How many changes this process has seen.
    pub changes: ChangeCounts,
    /// The number of retained events.
    pub retained_events: usize,
    /// About how many bytes the retained events take.
    pub retained_bytes: usize,
    /// How many times an observer was reset.
    pub resets: ResetCounts,
    /// How many runs of buckets snapshots have taken.
    pub snapshot_runs: RunCounts,
    /// Whether the storage's log can currently be read. While it cannot, observers receive no changes.
    pub is_following: bool,
}
