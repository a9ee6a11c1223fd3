//! Background tasks: following and publishing the storage's log, and expiring leases.

use std::{convert::Infallible, error::Error, ops::Range, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{Inner, ResetReason, cursor::Points, log::EVENTS_A_CHUNK};
use crate::{
    backoff::Backoff,
    storage::{LogError, LogExtent, LogPoint, RegistryId, StorageError},
};

/// A read of this many changes is a storm. The follower then pauses for [`BATCHING`], so that each message carries more
/// changes: a message costs an observer as much as hundreds of changes do. A read of more changes fills a message well
/// enough and needs no pause.
const STORM: Range<usize> = 32..1000;
/// How long the follower pauses in a storm.
const BATCHING: Duration = Duration::from_millis(1);

/// The follower pauses only if the log retains this many times the last read. Otherwise the pause could lose changes.
const RETAINED: usize = 32;

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// Follows the log from the start of `extent`, through outages and losses of the storage. Never returns.
pub(super) async fn follow(inner: Arc<Inner>, extent: LogExtent) -> Infallible {
    let mut registry_id = extent.registry_id;
    let mut from: Points = extent.partitions.iter().map(|held| held.start).collect();
    loop {
        let lost = follow_all(&inner, registry_id, &from).await;
        tracing::warn!(reason = ?lost, "the storage's change log was lost; every observer restarts with a snapshot");
        let extent = log_extent(&inner).await;
        from = match lost {
            // Continue at the end of the log. From its start, the follower would soon ask for trimmed changes again.
            ResetReason::Lagged => extent.partitions.iter().map(|held| held.end).collect(),
            _ => extent.partitions.iter().map(|held| held.start).collect(),
        };
        registry_id = extent.registry_id;
        inner.kept.forget_all();
        inner.feed.lose(lost, registry_id, from.clone());
    }
}

/// Expires leases, through outages of the storage. Never returns.
pub(super) async fn expire(inner: Arc<Inner>) -> Infallible {
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    let mut is_failing = false;
    loop {
        let began = Instant::now();
        let Err(error) = inner.storage.expire_leases().await;
        if began.elapsed() > LONGEST_RETRY {
            backoff.reset();
            is_failing = false;
        }
        if is_failing {
            tracing::debug!(error = &error as &dyn Error, "expiring leases still fails");
        } else {
            tracing::warn!(error = &error as &dyn Error, "expiring leases failed; retrying until it succeeds");
        }
        is_failing = true;
        tokio::time::sleep(backoff.pause()).await;
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

/// Follows every partition until one of their logs is lost.
async fn follow_all(inner: &Inner, registry_id: RegistryId, from: &Points) -> ResetReason {
    let mut partitions: FuturesUnordered<_> =
        (0..).zip(from).map(|(partition, after)| follow_one(inner, registry_id, partition, *after)).collect();
    partitions.next().await.unwrap_or(ResetReason::StorageRestarted)
}

async fn follow_one(inner: &Inner, registry_id: RegistryId, partition: u32, mut after: LogPoint) -> ResetReason {
    let mut retry = Retry::new(inner);
    loop {
        // All changes since the last read form the next message. Its cursor needs the mark at its end, which is known
        // only at the end of a read. So a read must not be larger than a message.
        match inner.storage.changes_after(registry_id, partition, after, EVENTS_A_CHUNK).await {
            Ok(changes) => {
                retry.succeeded();
                let count = changes.events.len();
                after = inner.feed.publish(partition, after, changes);
                if STORM.contains(&count) && count * RETAINED <= inner.options.retain_events {
                    tokio::time::sleep(BATCHING).await;
                } else {
                    // Yield, so that a storage that always has more changes does not starve the thread's other tasks.
                    tokio::task::yield_now().await;
                }
            }
            Err(LogError::Trimmed) => return ResetReason::Lagged,
            Err(LogError::Restarted) => return ResetReason::StorageRestarted,
            Err(LogError::Storage(error)) => {
                retry.wait_after(error).await;
                // The next change may take long to arrive. Check immediately whether the storage answers again.
                if inner.storage.log().await.is_ok() {
                    inner.set_following(true);
                }
            }
        }
    }
}

/// Backs off exponentially between retries, and logs the first failure.
struct Retry<'a> {
    inner: &'a Inner,
    backoff: Backoff,
}

impl<'a> Retry<'a> {
    fn new(inner: &'a Inner) -> Self {
        Self { inner, backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY) }
    }

    fn succeeded(&mut self) {
        self.backoff.reset();
        self.inner.set_following(true);
    }

    async fn wait_after(&mut self, error: StorageError) {
        if self.inner.set_following(false) {
            tracing::warn!(
                error = &error as &dyn Error,
                "reading the storage's change log failed; retrying until it succeeds"
            );
        }
        tokio::time::sleep(self.backoff.jittered_pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        session::SessionKey,
        storage::memory::{MemoryOptions, MemoryStorage},
        subject::{ObserveOptions, SessionSubject, SubjectOptions, Update},
    };

    /// Returns how long an observer waits for a change that is made right after it received `storm` others.
    async fn wait_after(storm: i64, retain_events: usize) -> Duration {
        let storage = Arc::new(MemoryStorage::new(MemoryOptions { retain_events, ..MemoryOptions::default() }));
        let options = SubjectOptions { retain_events, ..SubjectOptions::default() };
        let subject = SessionSubject::start(storage, options, ()).await.unwrap();
        let mut observer = subject.observe(ObserveOptions::default()).await.unwrap();
        assert!(matches!(observer.next().await, Some(Update::Subscribed)));
        let mut took = Vec::new();
        for sessions in [0..storm, storm..storm + 1] {
            let sessions: Vec<_> = sessions.map(|n| SessionKey::new(0, n)).collect();
            let began = Instant::now();
            subject.create(&sessions, None).await.unwrap();
            let Some(Update::Events(events)) = observer.next().await else { panic!("expected events") };
            assert_eq!(events.events().len(), sessions.len());
            took.push(began.elapsed());
        }
        assert_eq!(took[0], Duration::ZERO, "the storm itself is published immediately");
        took[1]
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_batched_briefly_in_a_storm() {
        let few = STORM.start as i64 - 1;
        assert_eq!(wait_after(few, 1 << 20).await, Duration::ZERO);
        let waited = wait_after(few + 1, 1 << 20).await;
        assert!((BATCHING..=2 * BATCHING).contains(&waited), "{waited:?}");
        assert_eq!(wait_after(STORM.end as i64, 1 << 20).await, Duration::ZERO, "a full message is not delayed");
        assert_eq!(wait_after(few + 1, 1000).await, Duration::ZERO, "no pause if few events are retained");
    }
}
