//! Places in a partition's log that this process has told somebody about, and that its tail has yet to read.
//!
//! A snapshot, another replica's cursor, or the end of the log may name a place ahead of the tail. Redis may lose that
//! place, keep everything that the tail has read, and go on differently. The tail alone would not notice, and observers
//! would follow a history that is not theirs. So each such place is kept until the tail reaches it and compares its
//! mark.

use crate::storage::{LogPoint, Position};

/// The most places that are kept. There are more only if the log grows by more entries than this while the tail reads
/// nothing.
const MOST: usize = 4096;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Promised {
    /// Ordered by position, at most one for each.
    points: Vec<LogPoint>,
}

/// Why a place is not kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unkept {
    /// Somebody was told of another mark at that position, so the log has lost changes.
    Lost,
    /// Too many places are kept.
    Full,
}

impl Promised {
    /// Keeps a place until the tail reaches it.
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

    /// Compares the kept places up to the last of `ends` with the log, and forgets them. `ends` are the ends of entries
    /// that were just read. Returns whether all these places are in that log.
    pub(super) fn pass(&mut self, ends: &[LogPoint]) -> bool {
        let Some(end) = ends.last() else { return true };
        let passed = self.points.partition_point(|point| point.position <= end.position);
        self.points.drain(..passed).all(|point| {
            let entry = ends.partition_point(|end| end.position < point.position);
            ends[entry].mark == point.mark
        })
    }

    /// Returns the newest position that is kept.
    pub(super) fn newest(&self) -> Option<Position> {
        self.points.last().map(|point| point.position)
    }
}
