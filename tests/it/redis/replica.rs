//! A replica of sessiond for tests, and an observer that checks its updates.

use std::{
    ops::{Deref, DerefMut},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use sessiond::{
    session::SessionKey,
    storage::{SessionStorage, StorageOptions},
    subject::{Cursor, ObserveOptions, Observer, ResetReason, SessionSubject, Start, SubjectOptions, Update},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{ROOMY, open};
use crate::held::{self, View};

/// Far longer than anything takes. It only ends tests that hang.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// An observer receives changes within this time, even if sessiond has to reconnect to Redis.
const SOON: Duration = Duration::from_secs(30);

pub(super) fn key(n: i64) -> SessionKey {
    SessionKey::new(n % 3, n)
}

pub(super) fn keys(numbers: std::ops::Range<i64>) -> Vec<SessionKey> {
    numbers.map(key).collect()
}

/// One replica: its own storage handle, and a subject on top.
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

    /// Resumes from a cursor with the sessions that were held when it was taken.
    pub(super) async fn resume(&self, cursor: Cursor, sessions: &[SessionKey]) -> Held {
        let mut held = self.watch(Start::After(cursor)).await;
        held.sessions = plainly(sessions);
        held.is_synced = true;
        held
    }

    pub(super) async fn watch(&self, start: Start) -> Held {
        let observer =
            eventually(|| async { self.subject.observe(ObserveOptions::from_start(start.clone())).await.ok() });
        Held { observer: observer.await, view: View::default() }
    }
}

/// An observer that keeps what it receives, and fails if an update contradicts it.
pub(super) struct Held {
    pub(super) observer: Observer,
    pub(super) view: View,
}

impl Deref for Held {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut View {
        &mut self.view
    }
}

impl Held {
    pub(super) async fn read(&mut self) {
        let update = timeout(PATIENCE, self.observer.next()).await.expect("an update arrives");
        match update.expect("the stream continues") {
            Update::Closed => {}
            update => self.view.apply(&update).unwrap(),
        }
    }

    /// Checks every update in a task of its own, until told to stop.
    pub(super) fn read_until(mut self, mut stopped: watch::Receiver<bool>) -> JoinHandle<Self> {
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = self.read() => {}
                    _ = stopped.wait_for(|stopped| *stopped) => return self,
                }
            }
        })
    }

    /// Reads until the observer holds exactly these sessions.
    pub(super) async fn converges_to(&mut self, sessions: &[SessionKey]) {
        let expected = plainly(sessions);
        let reading = async {
            while !self.is_synced || self.sessions != expected {
                self.read().await;
            }
        };
        if timeout(SOON, reading).await.is_err() {
            let missing: Vec<_> = expected.keys().filter(|key| !self.sessions.contains_key(key)).collect();
            let surplus: Vec<_> = self.sessions.keys().filter(|key| !expected.contains_key(key)).collect();
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

    /// Reads until the observer holds exactly those of `sessions` that exist on a replica, which may still change.
    /// Returns them.
    pub(super) async fn converges_with(&mut self, sessions: &[SessionKey], replica: &Replica) -> Vec<SessionKey> {
        let deadline = Instant::now() + SOON;
        loop {
            let left = existing_of(sessions.to_vec(), replica).await;
            let expected = plainly(&left);
            let reading = async {
                while !self.is_synced || self.sessions != expected {
                    self.read().await;
                }
            };
            if timeout(Duration::from_millis(500), reading).await.is_ok() {
                return left;
            }
            let (held, resets) = (self.sessions.len(), &self.resets);
            assert!(Instant::now() < deadline, "{held} sessions are held but {} exist; resets: {resets:?}", left.len());
        }
    }

    /// Reads until the observer was reset, for whatever reason, and holds exactly these sessions. Fails if there was
    /// more than one reset.
    pub(super) async fn resets_once_to(&mut self, sessions: &[SessionKey]) {
        let reading = async {
            while self.resets.is_empty() {
                self.read().await;
            }
        };
        timeout(SOON, reading).await.expect("the observer is reset");
        self.converges_to(sessions).await;
        assert_eq!(self.resets.len(), 1, "{:?}", self.resets);
    }

    /// Reads until a reset for this reason and the snapshot after it.
    pub(super) async fn resyncs_after(&mut self, reason: ResetReason) {
        while !self.is_synced || self.resets.last() != Some(&reason) {
            self.read().await;
        }
    }
}

/// Returns what an observer without placements holds if these sessions exist.
fn plainly(sessions: &[SessionKey]) -> held::Held {
    sessions.iter().map(|session| (*session, None)).collect()
}

/// Retries until `attempt` returns a value.
pub(super) async fn eventually<T, F: Future<Output = Option<T>>>(attempt: impl Fn() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = attempt().await {
            return done;
        }
        assert!(Instant::now() < deadline, "timed out waiting for a condition");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Creates sessions with retries, as a gateway does.
pub(super) async fn create(storage: &dyn SessionStorage, sessions: &[SessionKey]) {
    eventually(|| async { storage.create(sessions, None).await.ok() }).await;
}

/// Returns the sessions that exist on a replica, as soon as it answers.
pub(super) async fn existing_of(mut sessions: Vec<SessionKey>, replica: &Replica) -> Vec<SessionKey> {
    let exist = eventually(|| async { replica.storage.has(&sessions).await.ok() }).await;
    let mut exist = exist.into_iter();
    sessions.retain(|_| exist.next().unwrap());
    sessions
}

/// Runs every case to its end, several at a time, and then fails if any case failed.
pub(super) async fn run_all<F: Future<Output = ()>>(cases: impl IntoIterator<Item = (String, F)>) {
    const CONCURRENCY: usize = 8;
    let running = cases.into_iter().map(async |(name, case)| {
        let outcome = AssertUnwindSafe(case).catch_unwind().await;
        outcome.is_err().then_some(name)
    });
    let outcomes: Vec<Option<String>> = stream::iter(running).buffer_unordered(CONCURRENCY).collect().await;
    let failed: Vec<String> = outcomes.into_iter().flatten().collect();
    assert!(failed.is_empty(), "failed cases: {failed:#?}");
}
