//! Calls, and which answers they may get.

use super::{TIMEOUT, Ticks};

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Create,
    Destroy,
    Has,
}

impl Kind {
    /// Returns the answer to a call, and whether the session exists after it.
    pub(super) fn apply(self, exists: bool) -> (bool, bool) {
        match self {
            Self::Create => (!exists, true),
            Self::Destroy => (exists, false),
            Self::Has => (exists, exists),
        }
    }
}

/// The state of one session's part of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// The call is not about this session.
    Unused,
    /// It waits in its lane.
    Waiting,
    /// Its step was sent. `left` is the time until the replica gives up on it. If the connection is broken, no answer
    /// can arrive.
    Sent {
        left: Ticks,
        broken: bool,
    },
    Answered(bool),
    Failed,
}

impl Part {
    /// Returns how long ago a part was sent.
    pub(super) fn age(self) -> Ticks {
        match self {
            Self::Sent { left, .. } => TIMEOUT - left,
            _ => 0,
        }
    }

    pub(super) fn is_pending(self) -> bool {
        matches!(self, Self::Waiting | Self::Sent { .. })
    }
}

/// What was reported to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Nothing,
    Answers,
    Failure,
}

/// A call of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) replica: u8,
    pub(super) kind: Kind,
    /// How long ago it started. 0 once it is over.
    pub(super) age: Ticks,
    /// The calls that were over when it started, as a bit set.
    pub(super) after: u8,
    /// Its part for each session.
    pub(super) parts: [Part; 2],
    /// Which parts Redis has executed. The protocol does not know this.
    pub(super) executed: [bool; 2],
    pub(super) outcome: Outcome,
}

impl Call {
    fn was_answered(&self, session: usize) -> bool {
        self.outcome == Outcome::Answers && matches!(self.parts[session], Part::Answered(_))
    }
}

/// Returns whether some order of the calls explains all answers about a session.
///
/// Each call takes effect between its start and its end. A call that failed or is not over may have had no effect.
pub(super) fn is_linearizable(calls: &[Call], session: usize) -> bool {
    search(calls, session, 0, false)
}

/// Searches for an order of the calls that are not `placed` yet.
fn search(calls: &[Call], session: usize, placed: u8, exists: bool) -> bool {
    let left = || (0..calls.len()).filter(|n| placed & 1 << n == 0 && calls[*n].parts[session] != Part::Unused);
    if !left().any(|n| calls[n].was_answered(session)) {
        return true;
    }
    left().any(|n| {
        let call = &calls[n];
        // Calls that were over before this one started can only come before it. An answered one must be placed already.
        // Any other counts as having had no effect.
        let comes_too_early = left().any(|m| call.after & 1 << m != 0 && calls[m].was_answered(session));
        let (answer, then) = call.kind.apply(exists);
        let fits = match call.parts[session] {
            Part::Answered(given) => given == answer,
            _ => true,
        };
        !comes_too_early && fits && search(calls, session, placed | 1 << n | call.after, then)
    })
}
