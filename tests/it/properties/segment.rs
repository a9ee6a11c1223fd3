//! The part of a stream that follows the changes from one place on.

use std::collections::HashMap;

use sessiond::{session::SessionEvent, storage, subject::Filter};

use super::{
    checker::{Broken, Promise},
    held::plain,
    model::{Model, Place, Places},
};

/// What was told of the changes after a place, in the order of each partition, and the cursors that came with it.
pub(crate) struct Segment {
    anchor: Places,
    is_resumed: bool,
    told: Vec<Vec<SessionEvent>>,
    marks: Vec<Mark>,
}

/// Where a message left the one who was told.
struct Mark {
    /// How much of each partition was told by then.
    counts: Vec<usize>,
    cursor: String,
    /// What the message says of the place of its last event.
    last: Option<storage::Place>,
}

impl Segment {
    pub(crate) fn new(anchor: Places, is_resumed: bool) -> Self {
        let told = anchor.iter().map(|_| Vec::new()).collect();
        Self { anchor, is_resumed, told, marks: Vec::new() }
    }

    pub(crate) fn anchor(&self) -> &[u64] {
        &self.anchor
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.told.iter().all(Vec::is_empty)
    }

    pub(crate) fn tell(&mut self, partition: usize, event: SessionEvent) {
        self.told[partition].push(event);
    }

    pub(crate) fn mark(&mut self, cursor: &str, last: Option<storage::Place>) {
        let counts = self.told.iter().map(Vec::len).collect();
        self.marks.push(Mark { counts, cursor: cursor.to_owned(), last });
    }

    /// The events; those of one session are in the order in which they were told.
    pub(crate) fn events(&self) -> impl Iterator<Item = &SessionEvent> {
        self.told.iter().flatten()
    }

    /// Holds all that was told against the model. It is judged as a whole, since only what follows shows whether an event
    /// that is not the next one was told too early, or another one never.
    pub(crate) fn judge(&self, model: &Model, filter: &Filter, drained: bool) -> Vec<Broken> {
        let all = |partition| model.told(partition, self.anchor[partition], u64::MAX, filter);
        let is_right = self.told.iter().enumerate().all(|(partition, told)| {
            let all = all(partition);
            if drained { *told == all } else { all.starts_with(told) }
        });
        if is_right {
            [self.judge_cursors(model, filter), self.judge_places(model, filter)].concat()
        } else {
            self.judge_events(model, filter, drained)
        }
    }

    fn judge_events(&self, model: &Model, filter: &Filter, drained: bool) -> Vec<Broken> {
        let last = match self.marks.last().map(|mark| model.place(&mark.cursor)) {
            Some(Place::After(places)) => places,
            _ => self.anchor.clone(),
        };
        let mut broken = Vec::new();
        for (partition, told) in self.told.iter().enumerate() {
            let from = self.anchor[partition];
            let to = if drained { u64::MAX } else { last[partition] };
            let expected = model.told(partition, from, to, filter);
            if *told == expected {
                continue;
            }
            let (extra, missing) = differences(told, &expected);
            let plain = |events: &[SessionEvent]| events.iter().filter_map(plain).collect::<Vec<_>>();
            let promise = match (extra.as_slice(), missing.as_slice()) {
                // Only moves and leases are not what they should be.
                _ if plain(told) == plain(&expected) => Promise::Placed,
                ([], []) => Promise::Ordered,
                ([_, ..], []) => Promise::Unique,
                // Nothing is missing between two events that were told: the stream went on somewhere else.
                ([], _) if self.is_resumed && expected.ends_with(told) => Promise::Resumable,
                (_, [_, ..]) => Promise::Reliable,
            };
            let how = format!(
                "after {from} in partition {partition}: told {told:?}, and changes were {expected:?} (too many: \
                 {extra:?}, too few: {missing:?})"
            );
            broken.push(Broken::new(promise, how));
        }
        broken
    }

    /// Each cursor leads just behind what was told before it: no event that passes lies between.
    fn judge_cursors(&self, model: &Model, filter: &Filter) -> Vec<Broken> {
        let lies = self.marks.iter().filter_map(|Mark { counts, cursor, .. }| {
            let Place::After(places) = model.place(cursor) else { return Some(format!("{cursor} is no place")) };
            let partitions = counts.iter().zip(&places).zip(&self.anchor).enumerate();
            let mut lies = partitions.filter(|(partition, ((count, place), from))| {
                place < from || model.told(*partition, **from, **place, filter).len() != **count
            });
            lies.next().map(|(partition, ((count, place), from))| {
                format!("{cursor} is at {place} of partition {partition}, {count} events after {from}")
            })
        });
        lies.map(|how| Broken::new(Promise::Resumable, how)).collect()
    }

    /// The last event of a message is at the place that the message says.
    fn judge_places(&self, model: &Model, filter: &Filter) -> Vec<Broken> {
        let positions = |(partition, from): (usize, &u64)| {
            model.told_at(partition, *from, u64::MAX, filter).map(|(position, _)| position).collect()
        };
        let positions: Vec<Vec<u64>> = self.anchor.iter().enumerate().map(positions).collect();
        let lies = self.marks.iter().filter_map(|mark| {
            let last = mark.last?;
            let partition = last.partition as usize;
            let nth = mark.counts.get(partition).and_then(|count| count.checked_sub(1));
            let position = nth.and_then(|nth| positions[partition].get(nth));
            (position != Some(&last.position.0)).then(|| format!("an event at {position:?} is said to be at {last:?}"))
        });
        lies.map(|how| Broken::new(Promise::Comparable, how)).collect()
    }
}

/// The events that only one side has, counted.
fn differences(told: &[SessionEvent], expected: &[SessionEvent]) -> (Vec<SessionEvent>, Vec<SessionEvent>) {
    let mut counts: HashMap<&SessionEvent, i64> = HashMap::new();
    told.iter().for_each(|event| *counts.entry(event).or_default() += 1);
    expected.iter().for_each(|event| *counts.entry(event).or_default() -= 1);
    let only = |sign: i64| {
        let some = counts.iter().filter(|(_, count)| **count * sign > 0);
        some.map(|(event, _)| **event).collect()
    };
    (only(1), only(-1))
}
