//! A replica of sessiond in a test, and an observer that checks what it is told.

use std::{collections::HashSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use sessiond::{
    session::{SessionChange, SessionKey},
    storage::{SessionStorage, StorageOptions},
    subject::{Cursor, ObserveOptions, Observer, ResetReason, SessionSubject, Start, SubjectOptions, Update},
};
use tokio::time::{Instant, sleep, timeout};

use super::{ROOMY, open};

/// Far longer than anything takes; it only ends tests that hang.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// An observer is told within this time what has happened, even where Redis had to be connected to anew.
const SOON: Duration = Duration::from_secs(30);

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
        let start = || SessionSubject::start(Arc::clone(&storage), SubjectOptions::default(), ());
        let subject = eventually(|| async { start().await.ok() }).await;
        Self { storage, subject }
    }

    /// An observer that held these sessions when it got this cursor, and goes on with it.
    pub(super) async fn resume(&self, cursor: Cursor, sessions: &[SessionKey]) -> Held {
        let mut held = self.watch(Start::After(cursor)).await;
        held.sessions = sessions.iter().copied().collect();
        held.is_synced = true;
        held
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
            Update::Placements(_) => panic!("nobody asked for placements"),
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
                        SessionChange::Moved { .. } => self.sessions.contains(&event.session),
                    };
                    assert!(is_exact, "{event:?} does not fit what is held");
                }
            }
        }
    }

    /// Reads until just these are held.
    pub(super) async fn comes_to_hold(&mut self, sessions: &[SessionKey]) {
        let expected: HashSet<_> = sessions.iter().copied().collect();
        let reading = async {
            while !self.is_synced || self.sessions != expected {
                self.read().await;
            }
        };
        if timeout(SOON, reading).await.is_err() {
            let (missing, surplus) = (expected.difference(&self.sessions), self.sessions.difference(&expected));
            let (missing, surplus) = (missing.collect::<Vec<_>>(), surplus.collect::<Vec<_>>());
            panic!(
                "of {} sessions {} are missing, as {:?}, and {} are held that should not be, as {:?}; is_synced: {}, resets: {:?}",
                expected.len(),
                missing.len(),
                missing.first(),
                surplus.len(),
                surplus.first(),
                self.is_synced,
                self.resets
            );
        }
    }

    /// Reads until just those of some sessions are held that a replica finds, though they may still change. Gives them.
    pub(super) async fn comes_to_agree(&mut self, sessions: &[SessionKey], replica: &Replica) -> Vec<SessionKey> {
        let deadline = Instant::now() + SOON;
        loop {
            let left = left_of(sessions.to_vec(), replica).await;
            let expected: HashSet<_> = left.iter().copied().collect();
            let reading = async {
                while !self.is_synced || self.sessions != expected {
                    self.read().await;
                }
            };
            if timeout(Duration::from_millis(500), reading).await.is_ok() {
                return left;
            }
            let (held, resets) = (self.sessions.len(), &self.resets);
            assert!(Instant::now() < deadline, "{held} are held and {} are there; resets: {resets:?}", left.len());
        }
    }

    /// Reads until there was a reset, for whatever reason, and just these are held. There must have been no other reset before.
    pub(super) async fn starts_again_with(&mut self, sessions: &[SessionKey]) {
        let reading = async {
            while self.resets.is_empty() {
                self.read().await;
            }
        };
        timeout(SOON, reading).await.expect("there is a reset");
        self.comes_to_hold(sessions).await;
        assert_eq!(self.resets.len(), 1, "{:?}", self.resets);
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

/// Runs cases, some at once and each to its end, and then fails if one of them did.
pub(super) async fn run_all<F: Future<Output = ()>>(cases: impl IntoIterator<Item = (String, F)>) {
    const AT_ONCE: usize = 8;
    let running = cases.into_iter().map(async |(name, case)| {
        let outcome = AssertUnwindSafe(case).catch_unwind().await;
        outcome.is_err().then_some(name)
    });
    let outcomes: Vec<Option<String>> = stream::iter(running).buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<String> = outcomes.into_iter().flatten().collect();
    assert!(failed.is_empty(), "what failed is {failed:#?}");
}
