//! Why an observer cannot start.

use crate::storage::StorageError;

/// Why an observer cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// The limit on observers is reached.
    #[error("the limit of {limit} observers is reached")]
    TooManyObservers {
        /// The limit.
        limit: usize,
    },
    /// The filter names too many ids.
    #[error("the filter names more than {limit} ids")]
    TooManyFilterIds {
        /// The limit.
        limit: usize,
    },
    /// The limit on the ids in the filters of all observers is reached.
    #[error("the filters of all observers may name {limit} ids in total, and {count} more would exceed that")]
    TooManyTotalFilterIds {
        /// How many ids this filter names.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The subject was closed.
    #[error("the registry is closing")]
    Closed,
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
