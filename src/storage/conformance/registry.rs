//! A registry under test, and what the cases do with it.

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

/// Long enough for anything that should happen at once, on a busy machine too: it only ends waits that would not.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The shortest ttl of a lease.
pub(super) const TTL: Duration = Duration::from_secs(1);

/// A ttl that no case outlives.
pub(super) const LONG_TTL: Duration = Duration::from_secs(3600);

/// Nothing that a case does reaches these limits, unless that is what it is about.
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
    /// One that no case fills.
    pub(super) async fn open(factory: &dyn StorageFactory) -> Outcome<Arc<Self>> {
        Self::open_with(factory, ROOMY).await
    }

    pub(super) async fn open_with(factory: &dyn StorageFactory, options: StorageOptions) -> Outcome<Arc<Self>> {
        Self::of(factory, factory.open(options).await).await
    }

    /// One that can be made to refuse changes, if the factory has such.
    pub(super) async fn open_refusable(
        factory: &dyn StorageFactory,
    ) -> Outcome<Option<(Arc<Self>, Box<dyn RefusalSwitch>)>> {
        let Some(Refusable { handles, switch }) = factory.open_refusable(ROOMY).await else { return Ok(None) };
        Ok(Some((Self::of(factory, handles).await?, switch)))
    }

    async fn of(factory: &dyn StorageFactory, handles: Vec<Arc<dyn SessionStorage>>) -> Outcome<Arc<Self>> {
        if handles.is_empty() {
            broken!(Answers, "the factory gave no handle to a registry");
        }
        let registry_id = handles[0].log().await?.registry_id;
        Ok(Arc::new(Self { handles, next: AtomicUsize::new(0), registry_id, slack: factory.slack() }))
    }

    /// The next handle, so that what is changed through one is looked at through another.
    pub(super) fn storage(&self) -> &dyn SessionStorage {
        &*self.handles[self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len()]
    }

    pub(super) fn handles(&self) -> &[Arc<dyn SessionStorage>] {
        &self.handles
    }

    /// Expires leases, as all who hold the storage do, until the answer is dropped.
    pub(super) fn expire_leases(&self) -> JoinSet<()> {
        let mut expiring = JoinSet::new();
        for storage in self.handles.iter().map(Arc::clone) {
            expiring.spawn(async move {
                loop {
                    // With an error it may be called again; sessions that never go away are what a case would see.
                    let Err(_) = storage.expire_leases().await;
                    sleep(Duration::from_millis(50)).await;
                }
            });
        }
        expiring
    }

    /// The first handle: for calls that go on where another of the same handle was dropped.
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

    /// The point at a position of a partition's log; with some mark or other where the log has none.
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

    /// The marks at some positions, which every handle must tell alike.
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

    /// How far the log reaches, with as many partitions as there are.
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

/// A session; neighbours are under different auth keys.
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

/// How many answers are yes.
pub(super) fn yes(answers: &[bool]) -> usize {
    answers.iter().filter(|answer| **answer).count()
}

/// Whether a call that names a lease found it gone; with another error the case ends.
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

/// A call that names a lease must have been refused because the lease lingers.
pub(super) fn lingers<T: std::fmt::Debug>(answer: Result<T, StorageError>, lease: LeaseId) -> Outcome {
    match answer {
        Err(StorageError::LeaseLingers(named)) => {
            ensure_eq!(named, lease, Answers, "the lease that LeaseLingers names");
            Ok(())
        }
        other => broken!(Leased, "a call about lease {lease}, which lingers, gave {other:?}"),
    }
}

/// Waits for what should happen at once.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> Outcome<T> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => Ok(output),
        Err(_) => broken!(Answers, "waited {PATIENCE:?} in vain: {what}"),
    }
}

/// Lets other tasks run, a few times or not at all.
pub(super) async fn breathe(random: &mut fastrand::Rng) {
    for _ in 0..random.u32(..4) {
        tokio::task::yield_now().await;
    }
}

/// Polls a future as often as it asks for it, `polls` times at most, and drops it.
pub(super) async fn cut_short<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
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

/// Tasks of a case, each with an outcome of its own.
pub(super) struct Tasks<T = ()>(JoinSet<Outcome<T>>);

impl<T: Send + 'static> Tasks<T> {
    pub(super) fn new() -> Self {
        Self(JoinSet::new())
    }

    pub(super) fn spawn(&mut self, task: impl Future<Output = Outcome<T>> + Send + 'static) {
        self.0.spawn(task);
    }

    /// Waits for all of them; the first violation ends the others.
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
    Broken { obligation: super::Obligation::Answers, detail: format!("a call did not come to its end: {error}") }
}
