//! The part of a stream that follows the changes from one place on.

use std::collections::HashMap;

use sessiond::{session::SessionEvent, storage, subject::Filter};

use super::{
    checker::{Broken, Promise},
    model::{Model, Place, Places},
};
use crate::held::plain;

/// The events received after a place, by partition, and the cursors that came with them.
pub(crate) struct Segment {
    anchor: Places,
    is_resumed: bool,
    received: Vec<Vec<SessionEvent>>,
    marks: Vec<Mark>,
}

/// The state of a stream after a message.
struct Mark {
    /// How many events of each partition had been received.
    counts: Vec<usize>,
    cursor: String,
    /// The place that the message reports for its last event.
    last: Option<storage::Place>,
}

impl Segment {
    pub(crate) fn new(anchor: Places, is_resumed: bool) -> Self {
        let received = anchor.iter().map(|_| Vec::new()).collect();
        Self { anchor, is_resumed, received, marks: Vec::new() }
    }

    pub(crate) fn anchor(&self) -> &[u64] {
        &self.anchor
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.received.iter().all(Vec::is_empty)
    }

    pub(crate) fn push(&mut self, partition: usize, event: SessionEvent) {
        self.received[partition].push(event);
    }

    pub(crate) fn mark(&mut self, cursor: &str, last: Option<storage::Place>) {
        let counts = self.received.iter().map(Vec::len).collect();
        self.marks.push(Mark { counts, cursor: cursor.to_owned(), last });
    }

    /// Returns the received events. Those of one session are in the order in which they arrived.
    pub(crate) fn events(&self) -> impl Iterator<Item = &SessionEvent> {
        self.received.iter().flatten()
    }

    /// Checks everything received against the model. The segment is judged as a whole: only later events show whether
    /// an unexpected event came too early or another one was lost.
    pub(crate) fn judge(&self, model: &Model, filter: &Filter, drained: bool) -> Vec<Broken> {
        let all = |partition| model.expected(partition, self.anchor[partition], u64::MAX, filter);
        let is_right = self.received.iter().enumerate().all(|(partition, received)| {
            let all = all(partition);
            if drained { *received == all } else { all.starts_with(received) }
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
        for (partition, received) in self.received.iter().enumerate() {
            let from = self.anchor[partition];
            let to = if drained { u64::MAX } else { last[partition] };
            let expected = model.expected(partition, from, to, filter);
            if *received == expected {
                continue;
            }
            let (extra, missing) = differences(received, &expected);
            let plain = |events: &[SessionEvent]| events.iter().filter_map(plain).collect::<Vec<_>>();
            let promise = match (extra.as_slice(), missing.as_slice()) {
                // Only moves and leases are wrong.
                _ if plain(received) == plain(&expected) => Promise::Placed,
                ([], []) => Promise::Ordered,
                ([_, ..], []) => Promise::Unique,
                // No event is missing between two received ones: the stream resumed at the wrong place.
                ([], _) if self.is_resumed && expected.ends_with(received) => Promise::Resumable,
                (_, [_, ..]) => Promise::Reliable,
            };
            let how = format!(
                "after {from} in partition {partition}: received {received:?}, but the changes were {expected:?} (extra: \
                 {extra:?}, missing: {missing:?})"
            );
            broken.push(Broken::new(promise, how));
        }
        broken
    }

    /// Checks that each cursor leads right behind the events before it: no matching event lies between.
    fn judge_cursors(&self, model: &Model, filter: &Filter) -> Vec<Broken> {
        let lies = self.marks.iter().filter_map(|Mark { counts, cursor, .. }| {
            let Place::After(places) = model.place(cursor) else { return Some(format!("{cursor} leads to no place")) };
            let partitions = counts.iter().zip(&places).zip(&self.anchor).enumerate();
            let mut lies = partitions.filter(|(partition, ((count, place), from))| {
                place < from || model.expected(*partition, **from, **place, filter).len() != **count
            });
            lies.next().map(|(partition, ((count, place), from))| {
                format!("{cursor} is at {place} of partition {partition}, but {count} events came after {from}")
            })
        });
        lies.map(|how| Broken::new(Promise::Resumable, how)).collect()
    }

    /// Checks that the last event of each message is at the place that the message reports.
    fn judge_places(&self, model: &Model, filter: &Filter) -> Vec<Broken> {
        let positions = |(partition, from): (usize, &u64)| {
            model.expected_at(partition, *from, u64::MAX, filter).map(|(position, _)| position).collect()
        };
        let positions: Vec<Vec<u64>> = self.anchor.iter().enumerate().map(positions).collect();
        let lies = self.marks.iter().filter_map(|mark| {
            let last = mark.last?;
            let partition = last.partition as usize;
            let nth = mark.counts.get(partition).and_then(|count| count.checked_sub(1));
            let position = nth.and_then(|nth| positions[partition].get(nth));
            (position != Some(&last.position.0)).then(|| format!("an event at {position:?} is reported at {last:?}"))
        });
        lies.map(|how| Broken::new(Promise::Comparable, how)).collect()
    }
}

/// Returns the events that are only in `received`, and those that are only in `expected`, counting repetitions.
fn differences(received: &[SessionEvent], expected: &[SessionEvent]) -> (Vec<SessionEvent>, Vec<SessionEvent>) {
    let mut counts: HashMap<&SessionEvent, i64> = HashMap::new();
    received.iter().for_each(|event| *counts.entry(event).or_default() += 1);
    expected.iter().for_each(|event| *counts.entry(event).or_default() -= 1);
    let only = |sign: i64| {
        let some = counts.iter().filter(|(_, count)| **count * sign > 0);
        some.map(|(event, _)| **event).collect()
    };
    (only(1), only(-1))
}
