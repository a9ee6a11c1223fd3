//! Follows the log while it grows.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::{
    registry::Registry,
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{DestroyReason, SessionChange, SessionEvent, SessionKey},
    storage::LogError,
};

const RETRY: Duration = Duration::from_millis(50);

/// Follows all partitions from their current ends, until it is dropped.
pub(super) struct Tail {
    changes: mpsc::UnboundedReceiver<Result<SessionEvent, LogError>>,
    _following: JoinSet<()>,
}

impl Tail {
    /// Starts a follower that fails the case after any error.
    pub(super) async fn new(registry: &Arc<Registry>) -> Outcome<Self> {
        Self::start(registry, false).await
    }

    /// Starts a follower that retries after transient errors of the storage.
    pub(super) async fn through_outages(registry: &Arc<Registry>) -> Outcome<Self> {
        Self::start(registry, true).await
    }

    async fn start(registry: &Arc<Registry>, retries: bool) -> Outcome<Self> {
        let (sender, changes) = mpsc::unbounded_channel();
        let mut following = JoinSet::new();
        for (partition, held) in registry.extent().await?.partitions.into_iter().enumerate() {
            let (registry, sender) = (Arc::clone(registry), sender.clone());
            following.spawn(async move {
                let mut after = held.end;
                loop {
                    match registry.changes_after(partition, after, 100).await {
                        Ok(changes) => {
                            after = after.past(&changes);
                            changes.events.into_iter().for_each(|event| drop(sender.send(Ok(event))));
                        }
                        Err(LogError::Storage(error)) if retries && error.may_pass() => sleep(RETRY).await,
                        Err(error) => return drop(sender.send(Err(error))),
                    }
                }
            });
        }
        Ok(Self { changes, _following: following })
    }

    /// Returns the next change of any partition, or `None` if there is none until the deadline.
    pub(super) async fn next(&mut self, deadline: Instant) -> Outcome<Option<SessionEvent>> {
        match timeout_at(deadline, self.changes.recv()).await {
            Ok(Some(event)) => Ok(Some(event?)),
            Ok(None) => broken!(Answers, "a call of changes_after panicked"),
            Err(_) => Ok(None),
        }
    }

    /// Waits until each of these sessions, and no other session, is destroyed for this reason. Returns when each change
    /// was received.
    pub(super) async fn all_destroyed(
        &mut self,
        sessions: &[SessionKey],
        reason: DestroyReason,
        deadline: Instant,
    ) -> Outcome<Vec<(SessionKey, Instant)>> {
        let mut left: HashSet<SessionKey> = sessions.iter().copied().collect();
        let mut seen = Vec::new();
        while !left.is_empty() {
            let Some(SessionEvent { session, change, .. }) = self.next(deadline).await? else {
                broken!(
                    Leased,
                    "{} of {} sessions were not destroyed in time after their leases ended",
                    left.len(),
                    sessions.len()
                );
            };
            if matches!(change, SessionChange::Created | SessionChange::Moved { .. }) {
                continue;
            }
            ensure_eq!(change, SessionChange::Destroyed(reason), Leased, "the change of {session:?}");
            ensure!(left.remove(&session), Leased, "{session:?} was destroyed though its lease had not ended");
            seen.push((session, Instant::now()));
        }
        Ok(seen)
    }
}
