//! The violations that the suite finds.

use std::{error::Error, fmt};

use crate::storage::{LogError, StorageError};

/// An obligation of every storage: see [`SessionStorage`](crate::storage::SessionStorage).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Obligation {
    /// Each method answers as documented.
    Answers,
    /// Buckets and partitions are within the layout and never change.
    Divided,
    /// A change and its log entry are atomic.
    Atomic,
    /// A session's changes alternate, and a call that changes nothing logs nothing.
    Alternating,
    /// A change is visible to every call that starts after it was answered.
    Visible,
    /// Positions increase in the order of the changes.
    Ordered,
    /// A read of a bucket reflects exactly the position that it names.
    ExactReads,
    /// The mark at a position never changes, and callers from another history are refused.
    Histories,
    /// The log has the lease of each session, and its moves.
    Placed,
    /// When a lease ends, each session under it is destroyed once, and no other session.
    Leased,
    /// A dropped call leaves no session half changed.
    Cancellable,
    /// Any number of calls and followers can run concurrently.
    Concurrent,
    /// Limits are exact, and the log reports which changes it holds.
    Bounded,
    /// The storage reports in time whether it accepts changes, and changes nothing while it refuses them.
    Writable,
}

impl fmt::Display for Obligation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self {
            Self::Answers => "each method answers as documented",
            Self::Divided => "buckets and partitions are within the layout and never change",
            Self::Atomic => "a change and its log entry are atomic",
            Self::Alternating => "a session's changes alternate, and a call that changes nothing logs nothing",
            Self::Visible => "a change is visible to every call that starts after it was answered",
            Self::Ordered => "positions increase in the order of the changes",
            Self::ExactReads => "a read of a bucket reflects exactly the position that it names",
            Self::Histories => "the mark at a position never changes, and callers from another history are refused",
            Self::Placed => "the log has the lease of each session, and its moves",
            Self::Leased => "when a lease ends, each session under it is destroyed once, and no other session",
            Self::Cancellable => "a dropped call leaves no session half changed",
            Self::Concurrent => "any number of calls and followers can run concurrently",
            Self::Bounded => "limits are exact, and the log reports which changes it holds",
            Self::Writable => {
                "the storage reports in time whether it accepts changes, and changes nothing while it refuses them"
            }
        };
        write!(f, "{self:?} ({meaning})")
    }
}

/// A report that a storage breaks an obligation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Violation {
    /// The name of the [case](super::Case) that found the violation.
    pub case: &'static str,
    /// The broken obligation.
    pub obligation: Obligation,
    /// What the case observed.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the storage breaks {}: {}", self.case, self.obligation, self.detail)
    }
}

impl Error for Violation {}

/// A [`Violation`] before its case is known.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) obligation: Obligation,
    pub(super) detail: String,
}

pub(super) type Outcome<T = ()> = Result<T, Broken>;

impl Broken {
    /// Adds the step in which the violation was observed.
    pub(super) fn in_step(self, step: impl fmt::Display) -> Self {
        Self { detail: format!("{step}: {}", self.detail), ..self }
    }

    fn failed_call(error: &dyn Error) -> Self {
        let mut detail = format!("a call failed that must succeed: {error}");
        let mut source = error.source();
        while let Some(error) = source {
            detail = format!("{detail}: {error}");
            source = error.source();
        }
        Self { obligation: Obligation::Answers, detail }
    }
}

impl From<StorageError> for Broken {
    fn from(error: StorageError) -> Self {
        Self::failed_call(&error)
    }
}

impl From<LogError> for Broken {
    fn from(error: LogError) -> Self {
        Self::failed_call(&error)
    }
}

/// Returns from the case: it found that the obligation is broken.
macro_rules! broken {
    ($obligation:ident, $($detail:tt)+) => {
        return Err($crate::storage::conformance::violation::Broken {
            obligation: $crate::storage::conformance::Obligation::$obligation,
            detail: format!($($detail)+),
        })
    };
}

/// Returns from the case unless the condition holds: the obligation is broken.
macro_rules! ensure {
    ($condition:expr, $obligation:ident, $($detail:tt)+) => {
        if !$condition {
            $crate::storage::conformance::violation::broken!($obligation, $($detail)+);
        }
    };
}

/// Returns from the case unless both values are equal: the obligation is broken.
macro_rules! ensure_eq {
    ($found:expr, $expected:expr, $obligation:ident, $($detail:tt)+) => {{
        let (found, expected) = (&$found, &$expected);
        if found != expected {
            $crate::storage::conformance::violation::broken!(
                $obligation,
                "{}: found {found:?}, expected {expected:?}",
                format_args!($($detail)+)
            );
        }
    }};
}

pub(super) use {broken, ensure, ensure_eq};
