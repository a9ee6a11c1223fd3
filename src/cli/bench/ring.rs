//! The sessions of one caller.

use std::ops::Range;

use fastrand::Rng;

use super::mix::Kind;

/// A session in a call, and the answer that the server must give for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) session: u32,
    pub(super) expected: bool,
}

/// A range of sessions that only one caller touches, so that it knows every answer in advance.
///
/// The existing sessions are an arc of a ring. Creates extend the arc at its front, and destroys shorten it at its
/// back. A session therefore changes again as late as possible, which gives observers time to recognize which of its
/// changes they received.
#[derive(Debug)]
pub(super) struct Ring {
    range: Range<u32>,
    /// Where the arc starts in the range.
    oldest: u32,
    /// The length of the arc.
    live: u32,
}

/// Returns the sessions of a range that exist before the first call: half of it, so that creates and destroys have
/// equal room.
pub(super) fn existing_at_first(range: &Range<u32>) -> Range<u32> {
    range.start..range.start + (range.end - range.start) / 2
}

impl Ring {
    pub(super) fn new(range: Range<u32>) -> Self {
        let live = existing_at_first(&range).len() as u32;
        Self { range, oldest: 0, live }
    }

    /// Fills `asked` with the sessions and expected answers of a call, and updates the ring as if the call was made.
    ///
    /// `count` is at most the number of sessions in the range. A create if all sessions exist, or a destroy if none
    /// does, changes nothing, and the expected answers say so.
    pub(super) fn next(&mut self, kind: Kind, count: u32, rng: &mut Rng, asked: &mut Vec<Asked>) {
        let len = self.range.end - self.range.start;
        let (first, oldest, live) = match kind {
            Kind::Has => (rng.u32(..len), self.oldest, self.live),
            Kind::Create => (self.oldest + self.live, self.oldest, self.live),
            Kind::Destroy => (self.oldest, self.oldest, self.live),
        };
        asked.clear();
        asked.extend((0..count).map(|n| {
            let at = (u64::from(first) + u64::from(n)) % u64::from(len);
            // Cannot be truncated: it is less than `len`.
            let at = at as u32;
            let exists = (at + len - oldest) % len < live;
            Asked { session: self.range.start + at, expected: exists == (kind != Kind::Create) }
        }));
        match kind {
            Kind::Has => {}
            Kind::Create => self.live = len.min(live + count),
            Kind::Destroy => {
                let destroyed = live.min(count);
                self.oldest = (oldest + destroyed) % len;
                self.live -= destroyed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn expected_answers_match_a_registry() {
        let mut rng = Rng::with_seed(3);
        for (len, count) in [(1, 1), (2, 1), (7, 3), (64, 32), (10, 10)] {
            let range = 100..100 + len;
            let mut registry: BTreeSet<u32> = existing_at_first(&range).collect();
            let mut ring = Ring::new(range.clone());
            let mut asked = Vec::new();
            for _ in 0..2000 {
                let kind = Kind::ALL[rng.usize(..3)];
                ring.next(kind, count, &mut rng, &mut asked);
                assert_eq!(asked.len(), count as usize);
                for Asked { session, expected } in &asked {
                    assert!(range.contains(session));
                    let answer = match kind {
                        Kind::Has => registry.contains(session),
                        Kind::Create => registry.insert(*session),
                        Kind::Destroy => registry.remove(session),
                    };
                    assert_eq!(answer, *expected, "{kind:?} {session} of {len}");
                }
            }
        }
    }
}
