//! What a subject does for its storage all the time: it follows the log and publishes it, and expires leases.

use std::{error::Error, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{Inner, ResetReason, cursor::Positions};
use crate::storage::{LogError, LogExtent, Position, RegistryId, StorageError};

/// The most changes asked for at once: what has been committed since the last time forms the next messages.
const CHANGES_A_READ: usize = 4096;

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Follows the log from the start of `extent` on, through outages and losses of the storage. Never returns.
pub(super) async fn follow(inner: Arc<Inner>, extent: LogExtent) {
    let mut registry_id = extent.registry_id;
    let mut from: Positions = extent.partitions.iter().map(|held| held.start).collect();
    loop {
        let lost = follow_all(&inner, registry_id, &from).await;
        tracing::warn!(reason = ?lost, "the storage's log was lost; every observer starts again with a snapshot");
        let extent = log_extent(&inner).await;
        from = match lost {
            // What is no longer held would be asked for again: go on with what comes.
            ResetReason::Lagged => extent.partitions.iter().map(|held| held.end).collect(),
            _ => extent.partitions.iter().map(|held| held.start).collect(),
        };
        registry_id = extent.registry_id;
        inner.feed.lose(lost, registry_id, from.clone());
    }
}

/// Expires leases, through outages of the storage. Never returns.
pub(super) async fn expire(inner: Arc<Inner>) {
    let mut pause = FIRST_RETRY;
    loop {
        let began = Instant::now();
        let Err(error) = inner.storage.expire_leases().await;
        tracing::warn!(error = &error as &dyn Error, "leases cannot be expired; retrying until they can");
        if began.elapsed() > LAST_RETRY {
            pause = FIRST_RETRY;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

async fn log_extent(inner: &Inner) -> LogExtent {
    let mut retry = Retry::new(inner);
    loop {
        match inner.storage.log().await {
            Ok(extent) => {
                retry.succeeded();
                return extent;
            }
            Err(error) => retry.wait_after(error).await,
        }
    }
}

/// Follows every partition until one of them is lost.
async fn follow_all(inner: &Inner, registry_id: RegistryId, from: &Positions) -> ResetReason {
    let mut partitions: FuturesUnordered<_> =
        (0..).zip(from).map(|(partition, after)| follow_one(inner, registry_id, partition, *after)).collect();
    partitions.next().await.unwrap_or(ResetReason::StorageRestarted)
}

async fn follow_one(inner: &Inner, registry_id: RegistryId, partition: u32, mut after: Position) -> ResetReason {
    let mut retry = Retry::new(inner);
    loop {
        match inner.storage.changes_after(registry_id, partition, after, CHANGES_A_READ).await {
            Ok(events) => {
                retry.succeeded();
                inner.feed.publish(partition, after, &events);
                after = Position(after.0 + events.len() as u64);
                // A storage that always has more must not keep the thread from everything else.
                tokio::task::yield_now().await;
            }
            Err(LogError::Trimmed) => return ResetReason::Lagged,
            Err(LogError::Restarted) => return ResetReason::StorageRestarted,
            Err(LogError::Storage(error)) => {
                retry.wait_after(error).await;
                // The next change may be long in coming; that the storage answers is known before it.
                if inner.storage.log().await.is_ok() {
                    inner.set_following(true);
                }
            }
        }
    }
}

/// Pauses between tries, ever longer, and tells of the first failure.
struct Retry<'a> {
    inner: &'a Inner,
    pause: Duration,
}

impl<'a> Retry<'a> {
    fn new(inner: &'a Inner) -> Self {
        Self { inner, pause: FIRST_RETRY }
    }

    fn succeeded(&mut self) {
        self.pause = FIRST_RETRY;
        self.inner.set_following(true);
    }

    async fn wait_after(&mut self, error: StorageError) {
        if self.inner.set_following(false) {
            tracing::warn!(error = &error as &dyn Error, "the storage's log cannot be read; retrying until it can");
        }
        tokio::time::sleep(self.pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.pause = (self.pause * 2).min(LAST_RETRY);
    }
}
