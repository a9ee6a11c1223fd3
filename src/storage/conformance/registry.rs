//! A registry under test, and helpers for the cases.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};

use super::{
    Refusable, RefusalSwitch, StorageFactory,
    violation::{Broken, Outcome, broken, ensure_eq},
};
use crate::{
    session::{DestroyReason, LeaseId, SessionEvent, SessionKey},
    storage::{
        BucketRun, Changes, Layout, LogError, LogExtent, LogPoint, Mark, Position, RegistryId, SessionStorage,
        StorageError, StorageOptions,
    },
};

/// The timeout for anything that should happen immediately. Long enough for a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The shortest ttl of a lease.
pub(super) const TTL: Duration = Duration::from_secs(1);

/// A ttl longer than any case.
pub(super) const LONG_TTL: Duration = Duration::from_secs(3600);

/// Options with limits that cases do not reach, unless they test the limits.
pub(super) const ROOMY: StorageOptions = StorageOptions {
    retain_events: 1 << 18,
    max_sessions: 1 << 20,
    max_leases: 1 << 16,
    outage_grace: StorageOptions::DEFAULT_OUTAGE_GRACE,
};

/// A fresh registry, through all its handles.
pub(super) struct Registry {
    handles: Vec<Arc<dyn SessionStorage>>,
    next: AtomicUsize,
    registry_id: RegistryId,
    /// See [`StorageFactory::slack`].
    pub(super) slack: Duration,
}

impl Registry {
    /// Creates a registry with limits that no case reaches.
    pub(super) async fn open(factory: &dyn StorageFactory) -> Outcome<Arc<Self>> {
        Self::open_with(factory, ROOMY).await
    }

    pub(super) async fn open_with(factory: &dyn StorageFactory, options: StorageOptions) -> Outcome<Arc<Self>> {
        Self::of(factory, factory.open(options).await).await
    }

    /// Creates a registry that can be made to refuse changes, if the factory supports it.
    pub(super) async fn open_refusable(
        factory: &dyn StorageFactory,
    ) -> Outcome<Option<(Arc<Self>, Box<dyn RefusalSwitch>)>> {
        let Some(Refusable { handles, switch }) = factory.open_refusable(ROOMY).await else { return Ok(None) };
        Ok(Some((Self::of(factory, handles).await?, switch)))
    }

    async fn of(factory: &dyn StorageFactory, handles: Vec<Arc<dyn SessionStorage>>) -> Outcome<Arc<Self>> {
        if handles.is_empty() {
            broken!(Answers, "the factory returned no handle to the registry");
        }
        let registry_id = handles[0].log().await?.registry_id;
        Ok(Arc::new(Self { handles, next: AtomicUsize::new(0), registry_id, slack: factory.slack() }))
    }

    /// Returns the next handle in turn, so that a change made through one handle is checked through another.
    pub(super) fn storage(&self) -> &dyn SessionStorage {
        &*self.handles[self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len()]
    }

    pub(super) fn handles(&self) -> &[Arc<dyn SessionStorage>] {
        &self.handles
    }

    /// Expires leases on each handle, until the returned tasks are dropped.
    pub(super) fn expire_leases(&self) -> JoinSet<()> {
        let mut expiring = JoinSet::new();
        for storage in self.handles.iter().map(Arc::clone) {
            expiring.spawn(async move {
                loop {
                    // After an error, the call is retried. If it always fails, the case notices sessions that never
                    // expire.
                    let Err(_) = storage.expire_leases().await;
                    sleep(Duration::from_millis(50)).await;
                }
            });
        }
        expiring
    }

    /// Returns the first handle, for calls that must use the same handle as an earlier, dropped call.
    pub(super) fn first(&self) -> &Arc<dyn SessionStorage> {
        &self.handles[0]
    }

    pub(super) fn layout(&self) -> Layout {
        self.storage().layout()
    }

    pub(super) fn partition_of(&self, session: &SessionKey) -> usize {
        let storage = self.storage();
        storage.partition_of(storage.bucket_of(session)) as usize
    }

    /// See [`SessionStorage::changes_after`].
    pub(super) async fn changes_after(
        &self,
        partition: usize,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        self.storage().changes_after(self.registry_id, partition as u32, after, limit).await
    }

    /// Returns the point at a position of a partition's log, with an arbitrary mark if the log has none there.
    pub(super) async fn point(&self, partition: usize, position: Position) -> Outcome<LogPoint> {
        let mut positions = vec![Position(0); self.layout().partitions as usize];
        positions[partition] = position;
        let mark = self.marks(&positions).await?[partition].unwrap_or(Mark(0));
        Ok(LogPoint { position, mark })
    }

    /// See [`SessionStorage::marks`].
    pub(super) async fn marks(&self, positions: &[Position]) -> Outcome<Vec<Option<Mark>>> {
        let marks = self.storage().marks(positions).await?;
        ensure_eq!(marks.len(), positions.len(), Answers, "marks of {} partitions", positions.len());
        Ok(marks)
    }

    /// Returns the marks at some positions, after checking that all handles agree.
    pub(super) async fn marks_of_all(&self, positions: &[Position]) -> Outcome<Vec<Option<Mark>>> {
        let marks = self.marks(positions).await?;
        for _ in 1..self.handles.len() {
            ensure_eq!(
                self.marks(positions).await?,
                marks,
                Histories,
                "marks at {positions:?}, through another handle"
            );
        }
        Ok(marks)
    }

    /// See [`SessionStorage::read_buckets`].
    pub(super) async fn read_buckets(
        &self,
        known: &[LogPoint],
        first: u32,
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        let buckets: Vec<u32> = (first..self.storage().layout().buckets).collect();
        self.storage().read_buckets(self.registry_id, known, &buckets, limit, with_leases).await
    }

    pub(super) async fn create(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Outcome<Vec<bool>> {
        one_each("create", sessions, self.storage().create(sessions, lease).await?)
    }

    pub(super) async fn has(&self, sessions: &[SessionKey]) -> Outcome<Vec<bool>> {
        one_each("has", sessions, self.storage().has(sessions).await?)
    }

    pub(super) async fn destroy(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Outcome<Vec<bool>> {
        one_each("destroy", sessions, self.storage().destroy(sessions, lease).await?)
    }

    pub(super) async fn create_one(&self, session: SessionKey, lease: Option<LeaseId>) -> Outcome<bool> {
        Ok(self.create(&[session], lease).await?[0])
    }

    pub(super) async fn has_one(&self, session: SessionKey) -> Outcome<bool> {
        Ok(self.has(&[session]).await?[0])
    }

    pub(super) async fn destroy_one(&self, session: SessionKey, lease: Option<LeaseId>) -> Outcome<bool> {
        Ok(self.destroy(&[session], lease).await?[0])
    }

    pub(super) async fn grant(&self, ttl: Duration) -> Outcome<LeaseId> {
        Ok(self.storage().grant_lease(ttl, "conformance").await?)
    }

    pub(super) async fn revoke(&self, lease: LeaseId) -> Outcome<u64> {
        Ok(self.storage().revoke_lease(lease).await?)
    }

    /// Returns the extent of the log, after checking its number of partitions.
    pub(super) async fn extent(&self) -> Outcome<LogExtent> {
        let extent = self.storage().log().await?;
        ensure_eq!(extent.partitions.len(), self.layout().partitions as usize, Answers, "partitions of log()");
        Ok(extent)
    }
}

fn one_each(call: &str, sessions: &[SessionKey], answers: Vec<bool>) -> Outcome<Vec<bool>> {
    ensure_eq!(answers.len(), sessions.len(), Answers, "answers of {call} for {} sessions", sessions.len());
    Ok(answers)
}

/// Returns the nth session. Consecutive ones have different auth keys.
pub(super) fn key(n: i64) -> SessionKey {
    SessionKey::new(n % 3, n)
}

pub(super) fn keys(numbers: std::ops::Range<i64>) -> Vec<SessionKey> {
    numbers.map(key).collect()
}

pub(super) fn created(session: SessionKey) -> SessionEvent {
    SessionEvent::created(session, None)
}

pub(super) fn destroyed(session: SessionKey, reason: DestroyReason) -> SessionEvent {
    SessionEvent::destroyed(session, reason, None)
}

/// Counts the answers that are true.
pub(super) fn count_true(answers: &[bool]) -> usize {
    answers.iter().filter(|answer| **answer).count()
}

/// Returns the answer of a call that names a lease, or `None` if it found the lease gone. Fails the case after any other
/// error.
pub(super) fn unless_gone<T>(answer: Result<T, StorageError>, lease: LeaseId) -> Outcome<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(StorageError::UnknownLease(named)) => {
            ensure_eq!(named, lease, Answers, "the lease that UnknownLease names");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Checks that a call that names a lease was refused because the lease lingers.
pub(super) fn expect_lingers<T: std::fmt::Debug>(answer: Result<T, StorageError>, lease: LeaseId) -> Outcome {
    match answer {
        Err(StorageError::LeaseLingers(named)) => {
            ensure_eq!(named, lease, Answers, "the lease that LeaseLingers names");
            Ok(())
        }
        other => broken!(Leased, "a call for lease {lease}, which lingers, returned {other:?}"),
    }
}

/// Waits for a future that should be ready immediately.
pub(super) async fn promptly<T>(what: &str, future: impl Future<Output = T>) -> Outcome<T> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => Ok(output),
        Err(_) => broken!(Answers, "waited {PATIENCE:?} in vain for {what}"),
    }
}

/// Yields to other tasks, from 0 to 3 times.
pub(super) async fn yield_randomly(random: &mut fastrand::Rng) {
    for _ in 0..random.u32(..4) {
        tokio::task::yield_now().await;
    }
}

/// Polls a future at most `polls` times, and then drops it. Returns its output if it was ready.
pub(super) async fn poll_at_most<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The tasks of a case, each of which has an outcome.
pub(super) struct Tasks<T = ()>(JoinSet<Outcome<T>>);

impl<T: Send + 'static> Tasks<T> {
    pub(super) fn new() -> Self {
        Self(JoinSet::new())
    }

    pub(super) fn spawn(&mut self, task: impl Future<Output = Outcome<T>> + Send + 'static) {
        self.0.spawn(task);
    }

    /// Waits for all tasks. The first violation aborts the others.
    pub(super) async fn join(mut self) -> Outcome<Vec<T>> {
        let mut outputs = Vec::new();
        while let Some(joined) = self.0.join_next().await {
            match joined {
                Ok(outcome) => outputs.push(outcome?),
                Err(error) => return Err(panicked(&error)),
            }
        }
        Ok(outputs)
    }
}

fn panicked(error: &tokio::task::JoinError) -> Broken {
    Broken { obligation: super::Obligation::Answers, detail: format!("a task of the case panicked: {error}") }
}
