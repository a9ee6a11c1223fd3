//! What a subject does for its storage all the time: it follows the log and publishes it, and expires leases.

use std::{convert::Infallible, error::Error, ops::Range, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{Inner, ResetReason, cursor::Points, log::EVENTS_A_CHUNK};
use crate::{
    backoff::Backoff,
    storage::{LogError, LogExtent, LogPoint, RegistryId, StorageError},
};

/// So many changes since the last time are a storm, in which those that follow are gathered for a moment: each observer hears of more
/// of them with each message, and a message costs what hundreds of changes do. More than these are worth a message by
/// themselves.
const STORM: Range<usize> = 32..1000;
const GATHERING: Duration = Duration::from_millis(1);

/// While changes are gathered, a storage must retain so many times what came before.
const RETAINED: usize = 32;

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// Follows the log from the start of `extent` on, through outages and losses of the storage. Never returns.
pub(super) async fn follow(inner: Arc<Inner>, extent: LogExtent) -> Infallible {
    let mut registry_id = extent.registry_id;
    let mut from: Points = extent.partitions.iter().map(|held| held.start).collect();
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
            tracing::debug!(error = &error as &dyn Error, "leases still cannot be expired");
        } else {
            tracing::warn!(error = &error as &dyn Error, "leases cannot be expired; retrying until they can");
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

/// Follows every partition until one of them is lost.
async fn follow_all(inner: &Inner, registry_id: RegistryId, from: &Points) -> ResetReason {
    let mut partitions: FuturesUnordered<_> =
        (0..).zip(from).map(|(partition, after)| follow_one(inner, registry_id, partition, *after)).collect();
    partitions.next().await.unwrap_or(ResetReason::StorageRestarted)
}

async fn follow_one(inner: &Inner, registry_id: RegistryId, partition: u32, mut after: LogPoint) -> ResetReason {
    let mut retry = Retry::new(inner);
    loop {
        // What was committed since the last read forms the next message. Its cursor needs the mark at its end, which is known
        // only where a read ends: so no read is larger than a message.
        match inner.storage.changes_after(registry_id, partition, after, EVENTS_A_CHUNK).await {
            Ok(changes) => {
                retry.succeeded();
                let count = changes.events.len();
                after = inner.feed.publish(partition, after, changes);
                if STORM.contains(&count) && count * RETAINED <= inner.options.retain_events {
                    tokio::time::sleep(GATHERING).await;
                } else {
                    // A storage that always has more must not keep the thread from everything else.
                    tokio::task::yield_now().await;
                }
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
            tracing::warn!(error = &error as &dyn Error, "the storage's log cannot be read; retrying until it can");
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

    /// How long an observer waits for a change that is made right after `storm` others were heard of.
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
            let Some(Update::Events(events)) = observer.next().await else { panic!("there are changes") };
            assert_eq!(events.events().len(), sessions.len());
            took.push(began.elapsed());
        }
        assert_eq!(took[0], Duration::ZERO, "the storm itself is told at once");
        took[1]
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_gathered_in_a_storm_and_no_longer_than_a_moment() {
        let few = STORM.start as i64 - 1;
        assert_eq!(wait_after(few, 1 << 20).await, Duration::ZERO);
        let gathered = wait_after(few + 1, 1 << 20).await;
        assert!((GATHERING..=2 * GATHERING).contains(&gathered), "{gathered:?}");
        assert_eq!(wait_after(STORM.end as i64, 1 << 20).await, Duration::ZERO, "a full message is not held up");
        assert_eq!(wait_after(few + 1, 1000).await, Duration::ZERO, "nothing is lost where little is retained");
    }
}
