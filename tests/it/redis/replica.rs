//! A replica of sessiond in a test, and an observer that checks what it is told.

use std::{collections::HashSet, sync::Arc, time::Duration};

use sessiond::{
    session::{SessionChange, SessionKey},
    storage::{SessionStorage, StorageOptions},
    subject::{ObserveOptions, Observer, ResetReason, SessionSubject, Start, SubjectOptions, Update},
};
use tokio::time::{Instant, sleep, timeout};

use super::{ROOMY, open};

/// Far longer than anything takes; it only ends tests that hang.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn key(n: i64) -> SessionKey {
    SessionKey::new(n % 3, n)
}

pub(super) fn keys(numbers: std::ops::Range<i64>) -> Vec<SessionKey> {
    numbers.map(key).collect()
}

/// One replica: a handle of its own and the subject over it.
pub(super) struct Replica {
    pub(super) storage: Arc<dyn SessionStorage>,
    pub(super) subject: SessionSubject,
}

impl Replica {
    pub(super) async fn start(url: &str) -> Self {
        Self::start_with(url, ROOMY).await
    }

    pub(super) async fn start_with(url: &str, options: StorageOptions) -> Self {
        let storage = open(url, options).await;
        let subject = SessionSubject::start(Arc::clone(&storage), SubjectOptions::default(), ()).await.unwrap();
        Self { storage, subject }
    }

    pub(super) async fn watch(&self, start: Start) -> Held {
        let observer = eventually(|| async {
            self.subject.observe(ObserveOptions { start: start.clone(), ..ObserveOptions::default() }).await.ok()
        });
        Held { observer: observer.await, sessions: HashSet::new(), resets: Vec::new(), is_synced: false }
    }
}

/// An observer that holds what it is told to, and fails where that is not exact.
pub(super) struct Held {
    pub(super) observer: Observer,
    pub(super) sessions: HashSet<SessionKey>,
    pub(super) resets: Vec<ResetReason>,
    pub(super) is_synced: bool,
}

impl Held {
    pub(super) async fn read(&mut self) {
        match timeout(PATIENCE, self.observer.next()).await.expect("it is told something").expect("it goes on") {
            Update::Subscribed | Update::Closed => {}
            Update::Reset(reason) => {
                self.resets.push(reason);
                self.sessions.clear();
                self.is_synced = false;
            }
            Update::Snapshot(sessions) => {
                for session in sessions {
                    assert!(self.sessions.insert(session), "{session:?} is in the snapshot, and was held");
                }
            }
            Update::Synced { session_count } => {
                assert_eq!(self.sessions.len() as u64, session_count);
                self.is_synced = true;
            }
            Update::Events(events) => {
                for event in events.events() {
                    let is_exact = match event.change {
                        SessionChange::Created => self.sessions.insert(event.session),
                        SessionChange::Destroyed(_) => self.sessions.remove(&event.session),
                    };
                    assert!(is_exact, "{event:?} does not fit what is held");
                }
            }
        }
    }

    /// Reads until just these are held.
    pub(super) async fn comes_to_hold(&mut self, sessions: &[SessionKey]) {
        let expected: HashSet<_> = sessions.iter().copied().collect();
        while !self.is_synced || self.sessions != expected {
            self.read().await;
        }
    }

    /// Reads until there was a reset for this reason, and the snapshot after it.
    pub(super) async fn is_reset(&mut self, reason: ResetReason) {
        while !self.is_synced || self.resets.last() != Some(&reason) {
            self.read().await;
        }
    }
}

/// Tries again until it is given something.
pub(super) async fn eventually<T, F: Future<Output = Option<T>>>(attempt: impl Fn() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = attempt().await {
            return done;
        }
        assert!(Instant::now() < deadline, "it does not come true");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Creates these, as a gateway that tries again.
pub(super) async fn create(storage: &dyn SessionStorage, sessions: &[SessionKey]) {
    eventually(|| async { storage.create(sessions, None).await.ok() }).await;
}

/// Which of these a replica finds, as soon as it answers.
pub(super) async fn left_of(mut sessions: Vec<SessionKey>, replica: &Replica) -> Vec<SessionKey> {
    let exist = eventually(|| async { replica.storage.has(&sessions).await.ok() }).await;
    let mut exist = exist.into_iter();
    sessions.retain(|_| exist.next().unwrap());
    sessions
}
