//! Counts how long calls wait for the storage, and how often it fails.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::Poll,
    time::Instant,
};

use crate::{
    histogram::{Histogram, Times},
    storage::{LogError, StorageError},
};

/// An operation of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageOperation {
    /// Creates sessions.
    Create,
    /// Returns which sessions exist.
    Has,
    /// Returns which leases sessions are under.
    Lookup,
    /// Destroys sessions.
    Destroy,
    /// Grants a lease.
    GrantLease,
    /// Keeps a lease alive.
    KeepLeaseAlive,
    /// Returns the owner of a lease.
    LeaseOwner,
    /// Revokes a lease.
    RevokeLease,
    /// Lists leases.
    ListLeases,
    /// Returns where the log ends. Each new observer needs this.
    Log,
    /// Returns the buckets that a snapshot of some leases must read.
    BucketsUnder,
    /// Reads a part of a snapshot.
    ReadBuckets,
    /// Returns marks of the log. An observer that resumes may need them.
    Marks,
}

impl StorageOperation {
    /// All operations.
    pub const ALL: [Self; 13] = [
        Self::Create,
        Self::Has,
        Self::Lookup,
        Self::Destroy,
        Self::GrantLease,
        Self::KeepLeaseAlive,
        Self::LeaseOwner,
        Self::RevokeLease,
        Self::ListLeases,
        Self::Log,
        Self::BucketsUnder,
        Self::ReadBuckets,
        Self::Marks,
    ];

    /// Returns the operation's name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Has => "has",
            Self::Lookup => "lookup",
            Self::Destroy => "destroy",
            Self::GrantLease => "grant_lease",
            Self::KeepLeaseAlive => "keep_lease_alive",
            Self::LeaseOwner => "lease_owner",
            Self::RevokeLease => "revoke_lease",
            Self::ListLeases => "list_leases",
            Self::Log => "log",
            Self::BucketsUnder => "buckets_under",
            Self::ReadBuckets => "read_buckets",
            Self::Marks => "marks",
        }
    }
}

/// The waits and failures of one operation so far.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OperationStats {
    /// The operation.
    pub operation: StorageOperation,
    /// How long the operation took, counting only calls that had to wait. Calls that the storage answers immediately
    /// from memory are not timed: reading the clock would add a hundredth to their cost.
    pub times: Times,
    /// How often the storage was unavailable.
    pub unavailable: u64,
    /// How often the storage refused changes.
    pub refused: u64,
    /// How often the storage was broken.
    pub broken: u64,
}

/// The counts of all operations.
#[derive(Debug, Default)]
pub(super) struct StorageStats([Counts; StorageOperation::ALL.len()]);

#[derive(Debug, Default)]
struct Counts {
    times: Histogram,
    unavailable: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
}

/// A call that is waiting. Its time is recorded however it ends, including when it is cancelled, because a cancelled
/// call was slow, too.
struct Waiting<'a> {
    times: &'a Histogram,
    began: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.times.record(self.began.elapsed());
    }
}

/// An error that an operation may return.
pub(super) trait Failure {
    /// Returns the storage's failure, or `None` if the error is an ordinary answer.
    fn of_storage(&self) -> Option<&StorageError>;
}

impl Failure for StorageError {
    fn of_storage(&self) -> Option<&StorageError> {
        Some(self)
    }
}

impl Failure for LogError {
    fn of_storage(&self) -> Option<&StorageError> {
        match self {
            Self::Storage(error) => Some(error),
            Self::Trimmed | Self::Restarted => None,
        }
    }
}

impl StorageStats {
    /// Runs `call`, and counts its wait and its failure.
    pub(super) async fn measure<T, E: Failure>(
        &self,
        operation: StorageOperation,
        mut call: Pin<Box<dyn Future<Output = Result<T, E>> + Send + '_>>,
    ) -> Result<T, E> {
        let counts = &self.0[operation as usize];
        let result = match poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await {
            Poll::Ready(result) => result,
            Poll::Pending => {
                let _waiting = Waiting { times: &counts.times, began: Instant::now() };
                call.await
            }
        };
        // All other errors are answers, not failures.
        match result.as_ref().err().and_then(Failure::of_storage) {
            Some(StorageError::Unavailable(_)) => counts.unavailable.fetch_add(1, Ordering::Relaxed),
            Some(StorageError::Refused(_)) => counts.refused.fetch_add(1, Ordering::Relaxed),
            Some(StorageError::Broken(_)) => counts.broken.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        result
    }

    pub(super) fn all(&self) -> Vec<OperationStats> {
        let of = |operation: StorageOperation| {
            let counts = &self.0[operation as usize];
            OperationStats {
                operation,
                times: Times::of([&counts.times].into_iter()),
                unavailable: counts.unavailable.load(Ordering::Relaxed),
                refused: counts.refused.load(Ordering::Relaxed),
                broken: counts.broken.load(Ordering::Relaxed),
            }
        };
        StorageOperation::ALL.map(of).into()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        time::Duration,
    };

    use super::*;
    use crate::storage::{RefusalCause, WriteRefusal};

    fn figures(counts: &StorageStats, operation: StorageOperation) -> (u64, u64, u64, u64) {
        let stats = counts.all().swap_remove(operation as usize);
        assert_eq!(stats.operation, operation);
        (stats.times.count(), stats.unavailable, stats.refused, stats.broken)
    }

    fn failed(error: fn(Box<dyn std::error::Error + Send + Sync>) -> StorageError) -> Result<(), StorageError> {
        Err(error("a cause".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn waits_are_timed_and_failures_are_counted() {
        let counts = StorageStats::default();
        counts.measure(StorageOperation::Has, Box::pin(ready(Ok::<_, StorageError>(())))).await.unwrap();
        assert_eq!(figures(&counts, StorageOperation::Has), (0, 0, 0, 0), "an immediate answer is not a wait");

        let late = async {
            tokio::task::yield_now().await;
            failed(StorageError::Unavailable)
        };
        counts.measure(StorageOperation::Has, Box::pin(late)).await.unwrap_err();
        counts.measure(StorageOperation::Has, Box::pin(ready(failed(StorageError::Broken)))).await.unwrap_err();
        let refusal: Result<(), _> = Err(StorageError::Refused(WriteRefusal::new(RefusalCause::DiskFull, "")));
        counts.measure(StorageOperation::Has, Box::pin(ready(refusal))).await.unwrap_err();
        let limit: Result<(), _> = Err(StorageError::TooManySessions { limit: 1 });
        counts.measure(StorageOperation::Has, Box::pin(ready(limit))).await.unwrap_err();
        assert_eq!(figures(&counts, StorageOperation::Has), (1, 1, 1, 1));

        let stuck = counts.measure(StorageOperation::Log, Box::pin(pending::<Result<(), StorageError>>()));
        tokio::time::timeout(Duration::from_secs(1), stuck).await.unwrap_err();
        assert_eq!(figures(&counts, StorageOperation::Log), (1, 0, 0, 0), "a cancelled call counts as a wait");
    }
}
