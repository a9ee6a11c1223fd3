//! Reads what snapshots need from the storage.

use std::sync::Arc;

use super::{
    Inner,
    log::Place,
    run::Run,
    scan::{Kind, MAX_SESSIONS, ToRead},
    snapshot::SESSIONS_PER_READ,
    storage_stats::StorageOperation,
};
use crate::{
    session::LeaseId,
    storage::{BucketRun, LeaseBuckets, LogError, RegistryId},
};

/// Where a snapshot reads from: the registry whose log contains everything that the subject has followed since `began`.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) inner: Arc<Inner>,
    pub(super) registry_id: RegistryId,
    pub(super) began: Place,
    pub(super) kind: Kind,
}

impl Source {
    /// Reads the first of `buckets`. Returns `None` if that fails.
    pub(super) async fn read(&self, buckets: Vec<u32>) -> Option<BucketRun> {
        let Self { inner, registry_id, began, kind } = self;
        let Some(known) = inner.feed.log.known(*began) else { return failed(&LogError::Restarted) };
        let run = inner.storage.read_buckets(*registry_id, &known, &buckets, SESSIONS_PER_READ, kind.is_placed);
        inner.storage_stats.measure(StorageOperation::ReadBuckets, run).await.map_or_else(|error| failed(&error), Some)
    }

    /// Reads a run. Returns `None` if that fails.
    pub(super) async fn read_run(self, ToRead { buckets, is_group }: ToRead) -> Option<Run> {
        let mut all = BucketRun::default();
        loop {
            let left = buckets.start + all.points.len() as u32..buckets.end;
            let read = self.read(left.collect()).await?;
            if all.points.is_empty() {
                all = read;
            } else {
                all.points.extend(read.points);
                all.sessions.extend(read.sessions);
                all.leases.extend(read.leases);
            }
            if !is_group || all.points.len() >= buckets.len() || all.sessions.len() > MAX_SESSIONS {
                return Some(self.inner.feed.run(buckets.start, all, self.kind));
            }
        }
    }

    /// Returns the buckets that have sessions under these leases, or `None` if that fails.
    pub(super) async fn buckets_under(self, leases: Vec<LeaseId>) -> Option<LeaseBuckets> {
        let Self { inner, registry_id, began, .. } = &self;
        let Some(known) = inner.feed.log.known(*began) else { return failed(&LogError::Restarted) };
        let buckets = inner.storage.buckets_under(*registry_id, &known, &leases);
        inner
            .storage_stats
            .measure(StorageOperation::BucketsUnder, buckets)
            .await
            .map_or_else(|error| failed(&error), Some)
    }
}

/// Logs a failed read, which is retried.
///
/// After [`LogError::Restarted`] the follower will also find that the log was lost, and end the snapshot. Until then
/// nothing is read.
fn failed<T>(error: &LogError) -> Option<T> {
    let error: &dyn std::error::Error = error;
    tracing::debug!(error, "reading a snapshot from the storage failed; retrying");
    None
}
