//! Which buckets a snapshot has read.

use std::ops::Range;

/// Ranges of buckets, in ascending order and apart from each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges(Vec<Range<u32>>);

impl Ranges {
    /// Adds a range that overlaps no other.
    pub(super) fn insert(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        let nth = self.0.partition_point(|other| other.start < range.start);
        let follows = nth > 0 && self.0[nth - 1].end == range.start;
        let precedes = self.0.get(nth).is_some_and(|next| next.start == range.end);
        match (follows, precedes) {
            (true, true) => self.0[nth - 1].end = self.0.remove(nth).end,
            (true, false) => self.0[nth - 1].end = range.end,
            (false, true) => self.0[nth].start = range.start,
            (false, false) => self.0.insert(nth, range),
        }
    }

    pub(super) fn contains(&self, bucket: u32) -> bool {
        let nth = self.0.partition_point(|range| range.end <= bucket);
        self.0.get(nth).is_some_and(|range| range.start <= bucket)
    }

    /// Returns the number of buckets.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    /// Returns how many ranges there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the missing buckets from `from` on, up to the next one that is there or to `end`. If none is missing
    /// there, returns the first that are missing at all.
    pub(super) fn gap(&self, from: u32, end: u32) -> Range<u32> {
        let gap = self.gap_after(from, end);
        if gap.is_empty() { self.gap_after(0, end) } else { gap }
    }

    fn gap_after(&self, from: u32, end: u32) -> Range<u32> {
        let mut nth = self.0.partition_point(|range| range.end <= from);
        let mut start = from;
        if let Some(range) = self.0.get(nth).filter(|range| range.start <= from) {
            start = range.end;
            nth += 1;
        }
        start..self.0.get(nth).map_or(end, |range| range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_exactly_what_was_inserted() {
        const END: u32 = 40;
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut ranges, mut held) = (Ranges::default(), [false; END as usize]);
            for _ in 0..30 {
                let from = random.u32(0..END);
                let missing = |bucket: &u32| !held[*bucket as usize];
                let first = (from..END).chain(0..END).find(missing);
                let Some(first) = first else { break };
                let gap = first..(first..END).find(|bucket| !missing(bucket)).unwrap_or(END);
                assert_eq!(ranges.gap(from, END), gap, "{ranges:?} from {from}");
                let new = gap.start..random.u32(gap.start + 1..=gap.end);
                new.clone().for_each(|bucket| held[bucket as usize] = true);
                ranges.insert(new);
                assert!((0..END).all(|bucket| ranges.contains(bucket) == held[bucket as usize]), "{ranges:?}");
                assert_eq!(ranges.len(), held.iter().filter(|is_held| **is_held).count());
                let edges = held.windows(2).filter(|pair| pair[0] != pair[1]).count();
                assert_eq!(ranges.count(), (edges + usize::from(held[0])).div_ceil(2), "{ranges:?}");
            }
        }
    }
}
