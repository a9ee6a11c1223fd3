//! The session subject: the thing that is observed.
//!
//! It follows the log of its storage, once for the process, and tells any number of observers. It can be used without gRPC:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use sessiond::{
//!     session::SessionKey,
//!     storage::memory::{MemoryOptions, MemoryStorage},
//!     subject::{ObserveOptions, SessionSubject, SubjectOptions, Update},
//! };
//!
//! let storage = Arc::new(MemoryStorage::new(MemoryOptions::default()));
//! let subject = SessionSubject::start(storage, SubjectOptions::default(), ()).await?;
//! let mut observer = subject.observe(ObserveOptions::default()).await?;
//! subject.create(&[SessionKey::new(0, 42)], None).await?;
//! while let Some(update) = observer.next().await {
//!     if let Update::Events(events) = update {
//!         assert_eq!(events.events()[0].session, SessionKey::new(0, 42));
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod admission;
mod beginning;
mod counts;
mod cursor;
mod feed;
mod filter;
mod follow;
mod index;
mod kept;
mod log;
mod observer;
mod owners;
mod parked;
mod snapshot;
mod storage_stats;
mod subscription;
mod update;
mod writability;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use self::{
    admission::Admission, beginning::Beginning, feed::Feed, kept::KeptLeases, log::Retention, owners::Owners,
    storage_stats::StorageStats,
};
use crate::{
    session::{LeaseId, SessionKey},
    storage::{
        Answers, CreateOptions, Creation, LeasePage, LeaseQuery, Lookup, RefusalCause, SessionStorage, StorageError,
        Writability, WriteRefusal,
    },
    vital::Vitals,
};

pub use self::{
    counts::{ChangeCounts, ResetCounts},
    cursor::{Cursor, ParseCursorError},
    filter::{ChangeFilter, Filter},
    log::EventEncoder,
    observer::Observer,
    storage_stats::{OperationStats, StorageOperation},
    subscription::{SessionObserver, Subscription},
    update::{Events, Update},
};
pub use crate::{histogram::Times, relay::relay, reset::ResetReason};

/// The session subject over a storage.
///
/// Calls may be made from any number of tasks and threads at once. Observers may be on any runtime. The tasks that follow
/// and watch the storage and expire its leases end with the subject; observers that are left hear no more.
pub struct SessionSubject {
    inner: Arc<Inner>,
    vitals: Vitals,
    tasks: [AbortHandle; 3],
}

/// The bounds of a subject.
#[derive(Clone, Copy, Debug)]
pub struct SubjectOptions {
    /// How many events are retained for observers to resume from; at least the last message is. 1,048,576 by default.
    pub retain_events: usize,
    /// How many bytes those may take. 256 MiB by default.
    pub retain_bytes: usize,
    /// How many observers there may be at once. 100,000 by default.
    pub max_observers: usize,
    /// How many ids the filters of one observer may name. 4096 by default.
    pub max_filter_ids: usize,
    /// How many ids the filters of all observers may name together. Each takes about a hundred bytes. 16,777,216 by
    /// default.
    pub max_total_filter_ids: usize,
}

impl Default for SubjectOptions {
    fn default() -> Self {
        Self {
            retain_events: 1 << 20,
            retain_bytes: 256 << 20,
            max_observers: 100_000,
            max_filter_ids: 4096,
            max_total_filter_ids: 1 << 24,
        }
    }
}

/// Where an observer starts, and what it wants to hear of.
#[derive(Clone, Debug, Default)]
pub struct ObserveOptions {
    /// Where it starts.
    pub start: Start,
    /// What it wants to hear of.
    pub filter: Filter,
}

/// Where an observer starts.
#[derive(Clone, Debug, Default)]
pub enum Start {
    /// With the first change after the call.
    #[default]
    Now,
    /// With a snapshot of the sessions that exist.
    Snapshot,
    /// Right after the update that had this cursor.
    After(Cursor),
}

/// Why an observer cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// There are as many observers as there may be.
    #[error("there are {limit} observers already, which is the limit")]
    TooManyObservers {
        /// The limit.
        limit: usize,
    },
    /// The filter names more ids than it may.
    #[error("the filters name more ids than the limit of {limit}")]
    TooManyFilterIds {
        /// The limit.
        limit: usize,
    },
    /// The filters of all observers name as many ids as they may.
    #[error("the filters of all observers together may name {limit} ids, and {count} more are too many")]
    TooManyTotalFilterIds {
        /// How many this filter names.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The subject was closed.
    #[error("the registry is closing")]
    Closed,
    /// The storage cannot be asked.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Figures of a subject, for metrics.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SubjectStats {
    /// How many observers there are.
    pub observers: usize,
    /// How many ids their filters name.
    pub filter_ids: usize,
    /// How many of them have something unread.
    pub observers_behind: usize,
    /// How many events the slowest of them is behind.
    pub max_lag_events: u64,
    /// How many changes this process has seen.
    pub changes: ChangeCounts,
    /// How many events are retained.
    pub retained_events: usize,
    /// How many bytes those take, about.
    pub retained_bytes: usize,
    /// How many observers had to start over with a snapshot.
    pub resets: ResetCounts,
    /// Whether the storage's log can be read at present.
    pub is_following: bool,
}

pub(crate) struct Inner {
    storage: Arc<dyn SessionStorage>,
    storage_stats: StorageStats,
    kept: KeptLeases,
    owners: Owners,
    feed: Feed,
    options: SubjectOptions,
    observers: AtomicUsize,
    filter_ids: AtomicUsize,
    resets: Mutex<ResetCounts>,
    is_following: AtomicBool,
}

impl SessionSubject {
    /// Starts to follow `storage` and to expire its leases, in tasks of the current tokio runtime. `encoder` makes the messages
    /// that observers share; `()` makes none.
    ///
    /// # Errors
    ///
    /// [`StorageError`] when the storage cannot be asked how far its log reaches.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn start(
        storage: Arc<dyn SessionStorage>,
        options: SubjectOptions,
        encoder: impl EventEncoder,
    ) -> Result<Self, StorageError> {
        let extent = storage.log().await?;
        let retention = Retention { events: options.retain_events, bytes: options.retain_bytes };
        let inner = Arc::new(Inner {
            storage,
            storage_stats: StorageStats::default(),
            kept: KeptLeases::default(),
            owners: Owners::default(),
            feed: Feed::new(retention, &extent, Box::new(encoder)),
            options,
            observers: AtomicUsize::new(0),
            filter_ids: AtomicUsize::new(0),
            resets: Mutex::default(),
            is_following: AtomicBool::new(true),
        });
        let vitals = Vitals::default();
        let follower = vitals.watch("publication of changes", follow::follow(Arc::clone(&inner), extent));
        let expirer = vitals.watch("expiry of leases", follow::expire(Arc::clone(&inner)));
        let watcher = vitals.watch("watch of the storage", writability::watch(Arc::clone(&inner)));
        let tasks = [tokio::spawn(follower), tokio::spawn(expirer), tokio::spawn(watcher)];
        let tasks = tasks.map(|task| task.abort_handle());
        Ok(Self { inner, vitals, tasks })
    }

    /// Makes sessions exist; see [`SessionStorage::create_with`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub fn create_with<'a>(
        &'a self,
        sessions: &'a [SessionKey],
        options: CreateOptions,
    ) -> impl Future<Output = Result<Answers<Creation>, StorageError>> + Send + use<'a> {
        self.inner.storage_stats.measure(StorageOperation::Create, self.inner.storage.create_with(sessions, options))
    }

    /// Makes sessions exist, and takes those that exist from any lease; see [`SessionStorage::create`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn create(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        let answers = self.create_with(sessions, lease.into()).await?;
        Ok(answers.sessions.into_iter().map(|creation| creation.created).collect())
    }

    /// Tells which sessions exist; see [`SessionStorage::has`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        self.inner.storage_stats.measure(StorageOperation::Has, self.inner.storage.has(sessions)).await
    }

    /// Tells which sessions exist, and the lease of each; see [`SessionStorage::lookup`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        self.inner.storage_stats.measure(StorageOperation::Lookup, self.inner.storage.lookup(sessions)).await
    }

    /// Makes sessions not exist; see [`SessionStorage::destroy_with`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub fn destroy_with<'a>(
        &'a self,
        sessions: &'a [SessionKey],
        lease: Option<LeaseId>,
    ) -> impl Future<Output = Result<Answers<bool>, StorageError>> + Send + use<'a> {
        self.inner.storage_stats.measure(StorageOperation::Destroy, self.inner.storage.destroy_with(sessions, lease))
    }

    /// Makes sessions not exist; see [`SessionStorage::destroy`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn destroy(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        Ok(self.destroy_with(sessions, lease).await?.sessions)
    }

    /// Grants a lease; see [`SessionStorage::grant_lease`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        self.inner.storage_stats.measure(StorageOperation::GrantLease, self.inner.storage.grant_lease(ttl, owner)).await
    }

    /// Keeps a lease alive; see [`SessionStorage::keep_lease_alive`]. If this process did so within the last tenth of the ttl,
    /// the storage is not asked again.
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        let Inner { storage, storage_stats, kept, .. } = &*self.inner;
        kept.keep(lease, async {
            storage_stats.measure(StorageOperation::KeepLeaseAlive, storage.keep_lease_alive(lease)).await
        })
        .await
    }

    /// Tells the owner of a lease; see [`SessionStorage::lease_owner`]. The owner of a lease that has ended may be told as well.
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        let Inner { storage, storage_stats, owners, .. } = &*self.inner;
        if let Some(owner) = owners.known(lease) {
            return Ok(Some(owner));
        }
        // In a box, because it is rare and would make the future of every lookup larger.
        let owner = Box::pin(storage_stats.measure(StorageOperation::LeaseOwner, storage.lease_owner(lease))).await?;
        if let Some(owner) = &owner {
            owners.remember(lease, owner);
        }
        Ok(owner)
    }

    /// Revokes a lease now; see [`SessionStorage::revoke_lease`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, StorageError> {
        self.revoke_lease_with(lease, Duration::ZERO).await
    }

    /// Revokes a lease, now or after a linger; see [`SessionStorage::revoke_lease_with`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError> {
        let _ending = self.inner.kept.ending(lease);
        let Inner { storage, storage_stats, .. } = &*self.inner;
        storage_stats.measure(StorageOperation::RevokeLease, storage.revoke_lease_with(lease, linger)).await
    }

    /// Lists leases; see [`SessionStorage::list_leases`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError> {
        self.inner.storage_stats.measure(StorageOperation::ListLeases, self.inner.storage.list_leases(query)).await
    }

    /// How many leases there are; see [`SessionStorage::lease_count`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn lease_count(&self) -> Result<u64, StorageError> {
        self.inner.storage.lease_count().await
    }

    /// How many sessions there are; see [`SessionStorage::session_count`].
    ///
    /// # Errors
    ///
    /// As the storage.
    pub async fn session_count(&self) -> Result<u64, StorageError> {
        self.inner.storage.session_count().await
    }

    /// A new observer. What is changed after this returns, it hears of.
    ///
    /// A cursor that cannot be honoured is no error: the observer starts with [`Update::Reset`].
    ///
    /// # Errors
    ///
    /// [`ObserveError`] when a limit is reached, the subject is closed, or the storage cannot be asked where its log ends.
    pub async fn observe(&self, options: ObserveOptions) -> Result<Observer, ObserveError> {
        let ObserveOptions { start, filter } = options;
        let admission = Admission::new(&self.inner, filter.id_count());
        let admission = admission
            .map_err(|refusal| if self.inner.feed.log.head().closed { ObserveError::Closed } else { refusal })?;
        let beginning = Beginning::find(&self.inner, &start).await?;
        Ok(Observer::new(Arc::clone(&self.inner), admission, filter, beginning))
    }

    /// The most ids that a [`Filter`] may name.
    #[must_use]
    pub fn max_filter_ids(&self) -> usize {
        self.inner.options.max_filter_ids
    }

    /// Tells `observer` in a task of the current tokio runtime, until it is unsubscribed.
    ///
    /// # Errors
    ///
    /// As [`observe`](Self::observe).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn subscribe(
        &self,
        options: ObserveOptions,
        observer: impl SessionObserver,
    ) -> Result<Subscription, ObserveError> {
        Ok(Subscription::start(self.observe(options).await?, observer))
    }

    /// Ends the streams: each observer reads to the end, then hears [`Update::Closed`]. No new ones may start.
    pub fn close(&self) {
        self.inner.feed.close();
    }

    /// Whether the storage's log can be read at present. Never again once a task has [failed](Self::failed_task).
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.inner.is_following.load(Ordering::Relaxed) && self.failed_task().is_none()
    }

    /// Returns the name of a task, of the subject or its storage, that the registry cannot be served without and that
    /// has panicked. Nothing restarts it: the process should end.
    #[must_use]
    pub fn failed_task(&self) -> Option<&'static str> {
        self.vitals.failed().or_else(|| self.inner.storage.failed_task())
    }

    /// Whether the registry can be changed at present: see [`SessionStorage::writability`]. Not while the storage's log cannot
    /// be read.
    #[must_use]
    pub fn writability(&self) -> Writability {
        match self.inner.storage.writability() {
            Writability::Writable if !self.is_following() => {
                Writability::Refused(WriteRefusal::new(RefusalCause::Unreachable, "the change log cannot be read"))
            }
            writability => writability,
        }
    }

    /// Whether the store may drop sessions by itself; see [`SessionStorage::evicts_keys`].
    #[must_use]
    pub fn evicts_keys(&self) -> Option<bool> {
        self.inner.storage.evicts_keys()
    }

    /// How long the storage was waited for and how often it failed, by operation in the order of
    /// [`StorageOperation::ALL`].
    #[must_use]
    pub fn storage_stats(&self) -> Vec<OperationStats> {
        self.inner.storage_stats.all()
    }

    /// Figures for metrics.
    #[must_use]
    pub fn stats(&self) -> SubjectStats {
        let held = self.inner.feed.log.held();
        SubjectStats {
            observers: self.inner.observers.load(Ordering::Relaxed),
            filter_ids: self.inner.filter_ids.load(Ordering::Relaxed),
            observers_behind: held.behind,
            max_lag_events: held.lag,
            changes: self.inner.feed.changes(),
            retained_events: held.events,
            retained_bytes: held.bytes,
            resets: *self.inner.resets.lock(),
            is_following: self.is_following(),
        }
    }
}

impl Inner {
    fn count_reset(&self, reason: ResetReason) {
        self.resets.lock().count(reason);
    }

    /// Notes whether the storage's log can be read, and tells whether that is news.
    fn set_following(&self, is_following: bool) -> bool {
        let is_news = self.is_following.load(Ordering::Relaxed) != is_following;
        if is_news {
            self.is_following.store(is_following, Ordering::Relaxed);
        }
        is_news
    }
}

impl Drop for SessionSubject {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl fmt::Debug for SessionSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionSubject").field("storage", &self.inner.storage).finish_non_exhaustive()
    }
}
