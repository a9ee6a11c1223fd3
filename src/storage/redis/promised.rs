//! Promised points: points of a partition's log that this process has named to a caller, and that its tail has yet to
//! read.
//!
//! A snapshot, another replica's cursor or the end of the log may name a point ahead of the tail. Redis may then lose
//! the changes up to that point, keep those that the tail has read, and continue with other changes. The tail would not
//! notice this, and observers would follow a history other than their own. Each such point is therefore kept until the
//! tail reaches it and compares its mark.

use crate::storage::{LogPoint, Position};

/// The maximum number of points. It is exceeded only if the log grows by more entries than this before the tail reads
/// them.
const MOST: usize = 4096;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Promised {
    /// Ordered by position. There is at most one for each position.
    points: Vec<LogPoint>,
}

/// The reason why a point was not kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unkept {
    /// Another mark was promised at the same position, so the log has lost changes.
    Lost,
    /// There are too many points.
    Full,
}

impl Promised {
    /// Keeps a point until the tail reaches it.
    pub(super) fn keep(&mut self, point: LogPoint) -> Result<(), Unkept> {
        match self.points.binary_search_by_key(&point.position, |kept| kept.position) {
            Ok(at) if self.points[at] == point => Ok(()),
            Ok(_) => Err(Unkept::Lost),
            Err(_) if self.points.len() >= MOST => Err(Unkept::Full),
            Err(at) => {
                self.points.insert(at, point);
                Ok(())
            }
        }
    }

    /// Compares the points up to the last of `ends` with the log, and drops them. `ends` are the ends of the entries
    /// that the tail has just read. Returns whether the log contains all these points.
    pub(super) fn pass(&mut self, ends: &[LogPoint]) -> bool {
        let Some(end) = ends.last() else { return true };
        let passed = self.points.partition_point(|point| point.position <= end.position);
        self.points.drain(..passed).all(|point| {
            let entry = ends.partition_point(|end| end.position < point.position);
            ends[entry].mark == point.mark
        })
    }

    /// Returns the highest promised position.
    pub(super) fn newest(&self) -> Option<Position> {
        self.points.last().map(|point| point.position)
    }
}
