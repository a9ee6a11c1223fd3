//! What the suite finds.

use std::{error::Error, fmt};

use crate::storage::{LogError, StorageError};

/// What a storage owes: see [`SessionStorage`](crate::storage::SessionStorage).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Obligation {
    /// Each method answers as it is documented.
    Answers,
    /// Buckets and partitions are within the layout and never change.
    Divided,
    /// A change and its log entry are one step.
    Atomic,
    /// A session's changes alternate, and what changes nothing logs nothing.
    Alternating,
    /// A change is seen by every call after the one that made it.
    Visible,
    /// Positions grow in the order of the changes.
    Ordered,
    /// A bucket's read is of the position it names.
    ExactReads,
    /// The mark at a position never changes, and who comes from another history is refused.
    Histories,
    /// The log tells the lease of each session, and when it moves.
    Placed,
    /// Sessions end with their lease, once; those that moved do not.
    Leased,
    /// A dropped call leaves nothing half done.
    Cancellable,
    /// Any number of calls and followers at once.
    Concurrent,
    /// The log holds what it says, and says what it does not hold.
    Bounded,
    /// It says in time whether changes are accepted, and stays as it is while they are not.
    Writable,
}

impl fmt::Display for Obligation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self {
            Self::Answers => "each method answers as it is documented",
            Self::Divided => "buckets and partitions are within the layout and never change",
            Self::Atomic => "a change and its log entry are one step",
            Self::Alternating => "a session's changes alternate, and what changes nothing logs nothing",
            Self::Visible => "a change is seen by every call after the one that made it",
            Self::Ordered => "positions grow in the order of the changes",
            Self::ExactReads => "a bucket's read is of the position it names",
            Self::Histories => "the mark at a position never changes, and who comes from another history is refused",
            Self::Placed => "the log tells the lease of each session, and when it moves",
            Self::Leased => "sessions end with their lease, once; those that moved do not",
            Self::Cancellable => "a dropped call leaves nothing half done",
            Self::Concurrent => "any number of calls and followers at once",
            Self::Bounded => "the log holds what it says, and says what it does not hold",
            Self::Writable => "it says in time whether changes are accepted, and stays as it is while they are not",
        };
        write!(f, "{self:?} ({meaning})")
    }
}

/// An obligation that a storage broke.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Violation {
    /// The name of the [case](super::Case) that found it.
    pub case: &'static str,
    /// What was broken.
    pub obligation: Obligation,
    /// How it was seen.
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
    /// The same, with words before it that say in which step it was seen.
    pub(super) fn in_step(self, step: impl fmt::Display) -> Self {
        Self { detail: format!("{step}: {}", self.detail), ..self }
    }

    fn failed_call(error: &dyn Error) -> Self {
        let mut detail = format!("a call failed that must not: {error}");
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

/// Returns from the case with the obligation broken.
macro_rules! broken {
    ($obligation:ident, $($detail:tt)+) => {
        return Err($crate::storage::conformance::violation::Broken {
            obligation: $crate::storage::conformance::Obligation::$obligation,
            detail: format!($($detail)+),
        })
    };
}

/// Returns from the case with the obligation broken unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $obligation:ident, $($detail:tt)+) => {
        if !$condition {
            $crate::storage::conformance::violation::broken!($obligation, $($detail)+);
        }
    };
}

/// The same for a value that must equal another.
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
