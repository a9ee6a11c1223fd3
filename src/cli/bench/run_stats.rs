//! The counters of a thread's callers and observers.

use std::time::Duration;

use super::{
    failure::{Cause, Failure},
    latency::Latency,
    mix::Kind,
};

/// The counters of one kind of call.
#[derive(Clone, Debug, Default)]
pub(super) struct KindStats {
    /// Answered calls that began after the warm-up.
    pub(super) answered: u64,
    /// Positive answers among these: sessions that exist, were created or were destroyed.
    pub(super) yes: u64,
    /// The latency of these calls.
    pub(super) latency: Latency,
    /// Answers that contradict what the caller knows, including the warm-up.
    pub(super) wrong: u64,
    /// Failed calls, including the warm-up.
    pub(super) failures: Failures,
}

/// Failures by cause, as a short list.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures(pub(super) Vec<(Cause, u64)>);

impl Failures {
    pub(super) fn add(&mut self, cause: Cause, count: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, known)) => *known += count,
            None => self.0.push((cause, count)),
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }
}

/// The counters of all calls.
#[derive(Debug, Default)]
pub(super) struct CallStats {
    pub(super) kinds: [KindStats; Kind::ALL.len()],
    /// How often sessions were created and destroyed, including the warm-up. There must be as many events.
    pub(super) changes: u64,
    /// Whether a create or destroy has failed, so that its effect is unknown.
    pub(super) unsure: bool,
    pub(super) first_failure: Option<Failure>,
    pub(super) connections_lost: u64,
}

impl CallStats {
    pub(super) fn fail(&mut self, kind: Kind, failure: Failure) {
        self.kinds[kind as usize].failures.add(failure.cause, 1);
        self.unsure |= kind != Kind::Has;
        self.first_failure.get_or_insert(failure);
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (mine, theirs) in self.kinds.iter_mut().zip(other.kinds) {
            mine.answered += theirs.answered;
            mine.yes += theirs.yes;
            mine.latency.merge(&theirs.latency);
            mine.wrong += theirs.wrong;
            theirs.failures.0.into_iter().for_each(|(cause, count)| mine.failures.add(cause, count));
        }
        self.changes += other.changes;
        self.unsure |= other.unsure;
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.connections_lost += other.connections_lost;
    }

    pub(super) fn failures(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.failures.total()).sum()
    }

    pub(super) fn wrong(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.wrong).sum()
    }

    pub(super) fn answered(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.answered).sum()
    }
}

/// The counters of observers.
#[derive(Debug, Default)]
pub(super) struct DeliveryStats {
    /// Events between the end of the warm-up and the end of the run.
    pub(super) measured: u64,
    /// The time from when a change was due until an observer received it.
    pub(super) latency: Latency,
    /// Events with an unknown start: they came after a reset, or after their session had changed again.
    pub(super) untimed: u64,
    /// The results of the streams.
    pub(super) ends: ObserverEnds,
}

/// The results of all streams over the whole run.
#[derive(Debug, Default)]
pub(super) struct ObserverEnds {
    pub(super) events: u64,
    pub(super) violations: u64,
    pub(super) resets: u64,
    /// Observers that received every change, if that could be checked.
    pub(super) complete: u64,
    /// Sessions about which observers ended up wrong, summed over all observers that could be checked.
    pub(super) wrong_sessions: u64,
    /// Observers whose stream ended before the run did.
    pub(super) lost: u64,
    pub(super) first_failure: Option<Failure>,
}

impl DeliveryStats {
    pub(super) fn deliver(&mut self, took: Option<Duration>) {
        match took {
            Some(took) => self.latency.record(took),
            None => self.untimed += 1,
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.measured += other.measured;
        self.latency.merge(&other.latency);
        self.untimed += other.untimed;
        let (ends, theirs) = (&mut self.ends, other.ends);
        ends.events += theirs.events;
        ends.violations += theirs.violations;
        ends.resets += theirs.resets;
        ends.complete += theirs.complete;
        ends.wrong_sessions += theirs.wrong_sessions;
        ends.lost += theirs.lost;
        ends.first_failure = ends.first_failure.take().or(theirs.first_failure);
    }
}
