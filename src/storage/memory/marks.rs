//! The marks of a log, by position.

use crate::{
    random::random_u64,
    storage::{Mark, Position},
};

/// The stretches of a log, in order. A stretch ends where the next one begins.
#[derive(Clone, Debug)]
pub(in crate::storage) struct Marks {
    oldest: Stretch,
    later: Vec<Stretch>,
}

/// A part of a log that has one mark.
#[derive(Clone, Copy, Debug)]
pub(in crate::storage) struct Stretch {
    /// The first position at which the mark holds.
    pub(in crate::storage) from: Position,
    pub(in crate::storage) mark: Mark,
}

impl Marks {
    /// Makes a random mark for all positions.
    pub(in crate::storage) fn random() -> Self {
        Self { oldest: Stretch { from: Position(0), mark: Mark(random_u64()) }, later: Vec::new() }
    }

    /// Takes these stretches. `None` if there are none, or if they are out of order.
    pub(in crate::storage) fn new(stretches: impl IntoIterator<Item = Stretch>) -> Option<Self> {
        let mut stretches = stretches.into_iter();
        let marks = Self { oldest: stretches.next()?, later: stretches.collect() };
        let is_ordered = marks.later.is_sorted_by(|one, next| one.from < next.from)
            && marks.later.first().is_none_or(|later| marks.oldest.from < later.from);
        is_ordered.then_some(marks)
    }

    /// Returns the mark at a position. `None` before the oldest stretch.
    pub(in crate::storage) fn at(&self, position: Position) -> Option<Mark> {
        (position >= self.oldest.from).then(|| self.since_oldest(position))
    }

    /// Returns the mark at a position, which must not be before the oldest stretch.
    pub(in crate::storage) fn since_oldest(&self, position: Position) -> Mark {
        let before = self.later.partition_point(|later| later.from <= position);
        before.checked_sub(1).map_or(self.oldest.mark, |last| self.later[last].mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(from: u64, mark: u64) -> Stretch {
        Stretch { from: Position(from), mark: Mark(mark) }
    }

    #[test]
    fn mark_holds_until_the_next_stretch_begins() {
        let marks = Marks::new([stretch(5, 50), stretch(6, 60), stretch(9, 90)]).unwrap();
        let at = |position| marks.at(Position(position)).map(|mark| mark.0);
        assert_eq!(
            [0, 4, 5, 6, 8, 9, u64::MAX].map(at),
            [None, None, Some(50), Some(60), Some(60), Some(90), Some(90)]
        );
    }

    #[test]
    fn stretches_out_of_order_are_refused() {
        assert!(Marks::new([]).is_none());
        for stretches in [[stretch(1, 1), stretch(1, 2), stretch(3, 3)], [stretch(1, 1), stretch(3, 2), stretch(2, 3)]]
        {
            assert!(Marks::new(stretches).is_none());
        }
    }
}
