//! A durable storage over redb, an embedded database.
//!
//! One thread owns the database, and every call is a closure that this thread runs (see [`thread`](self::thread)). This
//! makes the obligations of [`SessionStorage`] easy to keep: calls take effect one after the other, a change and its
//! log entry are in the same transaction, and no call is answered before its transaction is on disk.
//!
//! To stay small, this storage does without some things that the built-in ones have. The log has one partition. Reads
//! wait behind changes. While the database cannot be written, it cannot be read either.

mod leases;
mod registry;
mod tables;
mod thread;

use std::{
    convert::Infallible,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{
        Answers, BucketRun, Changes, CreateOptions, Creation, Layout, LeaseBuckets, LeasePage, LeaseQuery, LogError,
        LogExtent, LogPoint, Lookup, Mark, Position, RegistryId, SessionStorage, StorageError, StorageOptions,
        Writability,
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::sleep,
};

use self::{
    registry::Registry,
    thread::{Job, Opened, Status},
};

/// The number of buckets. A snapshot reads a bucket in one step.
pub(crate) const BUCKETS: u32 = 256;

/// How many calls may wait for the thread. Further calls fail.
const WAITING_CALLS: usize = 4096;

/// The maximum number of sessions in one call to the thread. A larger batch takes several, so that other calls can run
/// in between.
const SESSIONS_A_STEP: usize = 1024;

/// How often leases are checked for expiry.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);

/// A registry in a redb database.
pub(crate) struct RedbStorage {
    path: PathBuf,
    /// `Some` until this is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    status: watch::Receiver<Status>,
    thread: Option<JoinHandle<()>>,
}

impl RedbStorage {
    /// Opens the registry in the database at `path`. Creates it if there is none.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if another process uses the database or it cannot be read.
    pub(crate) async fn open(path: impl Into<PathBuf>, options: StorageOptions) -> Result<Self, StorageError> {
        let path = path.into();
        let (jobs, queue) = mpsc::channel(WAITING_CALLS);
        let opening = spawn_blocking({
            let path = path.clone();
            move || Opened::open(&path, options)
        });
        let opened = opening.await.map_err(unavailable)?.map_err(unavailable)?;
        let (sender, status) = watch::channel(opened.status());
        let thread = std::thread::Builder::new().name("custom-storage".to_owned());
        let thread = thread.spawn({
            let path = path.clone();
            move || thread::run(&path, options, opened, queue, &sender)
        });
        Ok(Self { path, jobs: Some(jobs), status, thread: Some(thread.map_err(unavailable)?) })
    }

    /// Runs `call` on the registry. Returns its result once its changes are on disk.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Registry<'_, '_>) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (sender, answer) = oneshot::channel();
        let job: Job = Box::new(move |registry| {
            let outcome = call(registry)?;
            // This fails if the caller is gone.
            Ok(Box::new(move || drop(sender.send(outcome))))
        });
        let Some(jobs) = &self.jobs else { return Err(unavailable("the storage is closed")) };
        jobs.try_send(job).map_err(|_| unavailable("too many calls wait for the database"))?;
        answer.await.map_err(|_| unavailable("the database failed"))
    }
}

impl Drop for RedbStorage {
    /// Lets the thread finish the calls in its queue and close the database.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // An error means that the thread has panicked, which `failed_task` has reported.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for RedbStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedbStorage").field(&self.path).finish()
    }
}

fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StorageError {
    StorageError::Unavailable(cause.into())
}

#[async_trait]
impl SessionStorage for RedbStorage {
    fn layout(&self) -> Layout {
        Layout { buckets: BUCKETS, partitions: 1 }
    }

    fn bucket_of(&self, session: &SessionKey) -> u32 {
        tables::bucket_of(session)
    }

    fn partition_of(&self, _bucket: u32) -> u32 {
        0
    }

    fn writability(&self) -> Writability {
        self.status.borrow().writability()
    }

    fn failed_task(&self) -> Option<&'static str> {
        // The thread ends before this is dropped only if it panics.
        self.thread.as_ref().is_none_or(JoinHandle::is_finished).then_some("thread of the database")
    }

    async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        let mut answers = Answers::default();
        for step in sessions.chunks(SESSIONS_A_STEP) {
            let step = step.to_vec();
            let done = self.call(move |registry| registry.create(&step, options)).await??;
            answers.sessions.extend(done.sessions);
            answers.places = done.places;
        }
        Ok(answers)
    }

    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        Ok(self.lookup(sessions).await?.into_iter().map(|found| found.exists).collect())
    }

    async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        let mut found = Vec::with_capacity(sessions.len());
        for step in sessions.chunks(SESSIONS_A_STEP) {
            let step = step.to_vec();
            found.extend(self.call(move |registry| registry.lookup(&step)).await?);
        }
        Ok(found)
    }

    async fn destroy_with(
        &self,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        let mut answers = Answers::default();
        for step in sessions.chunks(SESSIONS_A_STEP) {
            let step = step.to_vec();
            let done = self.call(move |registry| registry.destroy(&step, lease)).await?;
            answers.sessions.extend(done.sessions);
            answers.places = done.places;
        }
        Ok(answers)
    }

    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        let owner = owner.to_owned();
        self.call(move |registry| registry.grant_lease(ttl, owner)).await?
    }

    async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        self.call(move |registry| Ok(registry.memory.leases.keep_alive(lease))).await?
    }

    async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        self.call(move |registry| Ok(registry.memory.leases.owner(lease))).await
    }

    async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError> {
        if !linger.is_zero() {
            return self.call(move |registry| registry.let_linger(lease, linger)).await?.map(|()| 0);
        }
        let destroyed = Arc::<AtomicU64>::default();
        let counter = Arc::clone(&destroyed);
        self.call(move |registry| registry.revoke(lease, counter)).await??;
        while self.call(move |registry| registry.sweep(lease)).await? {}
        Ok(destroyed.load(Ordering::Relaxed))
    }

    async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError> {
        let query = query.clone();
        self.call(move |registry| Ok(registry.memory.leases.list(&query))).await
    }

    async fn expire_leases(&self) -> Result<Infallible, StorageError> {
        // Leases could not expire while this was not running, so that time must not count as a pause of the process.
        self.call(|registry| {
            registry.memory.leases.start_clock();
            Ok(())
        })
        .await?;
        loop {
            let is_done = self.call(|registry| registry.expire()).await?;
            if is_done {
                sleep(EXPIRY_INTERVAL).await;
            }
        }
    }

    async fn lease_count(&self) -> Result<u64, StorageError> {
        self.call(|registry| Ok(registry.memory.leases.count())).await
    }

    async fn session_count(&self) -> Result<u64, StorageError> {
        self.call(|registry| registry.session_count()).await
    }

    async fn log(&self) -> Result<LogExtent, StorageError> {
        self.call(|registry| registry.extent()).await
    }

    async fn changes_after(
        &self,
        registry_id: RegistryId,
        _partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        let mut status = self.status.clone();
        loop {
            // Mark the status as seen before reading the log, so that a change after the read wakes this call.
            status.borrow_and_update();
            if let Some(changes) = self.call(move |registry| registry.changes(registry_id, after, limit)).await?? {
                return Ok(changes);
            }
            status.changed().await.map_err(unavailable)?;
        }
    }

    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError> {
        let positions = positions.to_vec();
        self.call(move |registry| positions.iter().map(|position| registry.mark(*position)).collect()).await
    }

    async fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        let (known, leases) = (known.to_vec(), leases.to_vec());
        self.call(move |registry| registry.buckets_under(registry_id, &known, &leases)).await?
    }

    async fn read_buckets(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        let (known, buckets) = (known.to_vec(), buckets.to_vec());
        let read = move |registry: &mut Registry<'_, '_>| {
            registry.read_buckets(registry_id, &known, &buckets, limit, with_leases)
        };
        self.call(read).await?
    }
}
