//! Records when sessions end, as seen by an observer.

use std::{collections::HashMap, time::Duration};

use sessiond::{
    session::{DestroyReason, LeaseId, SessionChange, SessionKey},
    subject::{Start, Update},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::replica::Replica;

/// The sessions that have ended since this observer started.
pub(super) struct Ends {
    received: watch::Receiver<HashMap<SessionKey, (Instant, DestroyReason)>>,
    watching: JoinHandle<()>,
}

impl Ends {
    /// Starts to watch through `replica`.
    pub(super) async fn watch(replica: &Replica) -> Self {
        let mut held = replica.watch(Start::Now).await;
        let (sender, received) = watch::channel(HashMap::new());
        let watching = tokio::spawn(async move {
            loop {
                let update = held.observer.next().await.expect("the stream continues");
                let now = Instant::now();
                match update {
                    Update::Events(events) => sender.send_modify(|received| {
                        for event in events.events() {
                            if let SessionChange::Destroyed(reason) = event.change {
                                received.insert(event.session, (now, reason));
                            }
                        }
                    }),
                    Update::Subscribed => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        Self { received, watching }
    }

    /// Returns when and why `session` ended, if it has.
    pub(super) fn of(&self, session: &SessionKey) -> Option<(Instant, DestroyReason)> {
        self.received.borrow().get(session).copied()
    }

    /// Waits until `count` sessions have ended. Fails after `limit`.
    pub(super) async fn wait_for_count(&mut self, count: usize, limit: Duration) {
        let enough = timeout(limit, self.received.wait_for(|received| received.len() >= count)).await;
        let ended = enough.map(|received| received.expect("the observer is running").len());
        assert!(ended.is_ok(), "{} of {count} sessions ended within {limit:?}", self.received.borrow().len());
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// A lease with sessions that is not kept alive.
pub(super) struct Abandoned {
    pub(super) lease: LeaseId,
    pub(super) sessions: Vec<SessionKey>,
    /// The ttl ends between these two times.
    pub(super) due: [Instant; 2],
}

impl Abandoned {
    /// Grants a lease and creates sessions under it.
    pub(super) async fn grant(replica: &Replica, ttl: Duration, sessions: Vec<SessionKey>) -> Self {
        let before = Instant::now();
        let lease = replica.storage.grant_lease(ttl, "abandoned").await.unwrap();
        let due = [before + ttl, Instant::now() + ttl];
        if !sessions.is_empty() {
            assert_eq!(replica.storage.create(&sessions, Some(lease)).await.unwrap(), vec![true; sessions.len()]);
        }
        Self { lease, sessions, due }
    }

    /// Keeps the lease alive one last time.
    pub(super) async fn keep(&mut self, replica: &Replica) {
        let before = Instant::now();
        let ttl = replica.storage.keep_lease_alive(self.lease).await.unwrap();
        self.due = [before + ttl, Instant::now() + ttl];
    }

    /// Returns how long after the end of the ttl the last session ended. Fails if a session ended early or has not
    /// ended.
    pub(super) fn lateness(&self, ends: &Ends) -> Duration {
        let mut last = Duration::ZERO;
        for session in &self.sessions {
            let (end, reason) = ends.of(session).unwrap_or_else(|| panic!("{session:?} has not ended"));
            assert_eq!(reason, DestroyReason::LeaseExpired);
            assert!(end >= self.due[0], "{session:?} ended {:?} early", self.due[0] - end);
            last = last.max(end.saturating_duration_since(self.due[1]));
        }
        last
    }
}
