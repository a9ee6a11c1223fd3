//! The places in a partition's log that this process has told of, and has yet to read.
//!
//! A snapshot, a cursor of another replica or the log's end may name a place ahead of what the tail has read. Redis may lose that place and go on
//! differently before the tail gets there, and keep all that the tail has read. The tail alone would not notice, and observers would go on in a
//! history that is not theirs. So each such place is kept until the tail comes to it and compares its mark.

use crate::storage::{LogPoint, Position};

/// The most places that are kept. There are more only when the log has grown by more entries than these while the tail reads nothing.
const MOST: usize = 4096;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Promised {
    /// By position, at most one for each.
    points: Vec<LogPoint>,
}

/// Why a place is not kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unkept {
    /// Another history has been told of.
    Lost,
    /// Too many are kept.
    Full,
}

impl Promised {
    /// Keeps a place.
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

    /// Whether the places up to and with `end` all are in a log whose entries end at `ends`, the last of them at `end`. Forgets those places.
    pub(super) fn pass(&mut self, ends: &[LogPoint]) -> bool {
        let Some(end) = ends.last() else { return true };
        let passed = self.points.partition_point(|point| point.position <= end.position);
        self.points.drain(..passed).all(|point| {
            let entry = ends.partition_point(|end| end.position < point.position);
            ends[entry].mark == point.mark
        })
    }

    /// The newest of the positions.
    pub(super) fn newest(&self) -> Option<Position> {
        self.points.last().map(|point| point.position)
    }
}
