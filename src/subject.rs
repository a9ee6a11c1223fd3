//! The session subject, which observers subscribe to.
//!
//! A [`SessionSubject`] wraps a storage. It passes calls on to the storage, follows the storage's change log once per
//! process, and passes each change on to any number of observers. A server has one; in your own process, start one
//! without gRPC. There are two ways to observe it:
//!
//! - [`SessionSubject::observe`] returns an [`Observer`]. Read its [`Update`]s in a loop, or use it as a `futures`
//!   `Stream`.
//! - [`SessionSubject::subscribe`] calls your [`SessionObserver`] with each update, until its [`Subscription`] is
//!   dropped.
//!
//! [`ObserveOptions`] says where an observer starts, and its [`Filter`] which sessions and changes it receives. An
//! observer that wants to continue later keeps the [`Cursor`] after its last update and starts with
//! [`Start::After`].
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
mod error;
mod feed;
mod filter;
mod follow;
mod index;
mod kept;
mod log;
mod observer;
mod options;
mod owners;
mod parked;
mod ranges;
mod reading;
mod run;
mod scan;
mod snapshot;
mod source;
mod storage_stats;
mod subject_stats;
mod subscription;
mod update;
mod writability;

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use self::{
    admission::Admission, beginning::Beginning, feed::Feed, kept::KeptLeases, log::Retention, owners::Owners,
    scan::Scans, storage_stats::StorageStats,
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
    counts::{ChangeCounts, ResetCounts, RunCounts},
    cursor::{Cursor, ParseCursorError},
    error::ObserveError,
    filter::{ChangeFilter, Filter},
    log::EventEncoder,
    observer::Observer,
    options::{ObserveOptions, Start, SubjectOptions},
    run::Sessions,
    storage_stats::{OperationStats, StorageOperation},
    subject_stats::SubjectStats,
    subscription::{SessionObserver, Subscription},
    update::{Events, Update},
};
pub use crate::{histogram::Times, relay::relay, reset::ResetReason};

/// Makes a storage observable: calls go to the storage, and every change goes to the observers.
///
/// Start one per process and storage, with [`start`](Self::start). Background tasks follow the storage's log, expire
/// its leases and watch whether it accepts changes. Dropping the subject ends these tasks, and the remaining observers
/// receive nothing more. To end them with a last update, call [`close`](Self::close) before.
///
/// All methods may be called concurrently, from any number of tasks and threads, and observers may run on any tokio
/// runtime.
///
/// # Cancel safety
///
/// The future of any method may be dropped. A change whose future is dropped leaves each of its sessions either
/// unchanged, or changed and reported to observers.
pub struct SessionSubject {
    inner: Arc<Inner>,
    vitals: Vitals,
    /// They end when this is dropped.
    tasks: JoinSet<Infallible>,
}

/// The share of [`SubjectOptions::retain_bytes`] that the observers in a snapshot may keep for each other, for each kind
/// of snapshot.
const KEPT_SHARE: usize = 4;

pub(crate) struct Inner {
    storage: Arc<dyn SessionStorage>,
    storage_stats: StorageStats,
    kept: KeptLeases,
    owners: Owners,
    feed: Feed,
    scans: Scans,
    options: SubjectOptions,
    observers: AtomicUsize,
    filter_ids: AtomicUsize,
    resets: Mutex<ResetCounts>,
    is_following: AtomicBool,
}

impl SessionSubject {
    /// Starts a subject on `storage`: follows its log and expires its leases, in tasks of the current tokio runtime.
    ///
    /// `encoder` encodes the messages that observers share. Pass `()`, which encodes none, unless you serve the subject
    /// over gRPC: that needs `sessiond::service::WireEncoder`.
    ///
    /// # Errors
    ///
    /// Returns a [`StorageError`] if the storage cannot report how far its log reaches.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    pub async fn start(
        storage: Arc<dyn SessionStorage>,
        options: SubjectOptions,
        encoder: impl EventEncoder,
    ) -> Result<Self, StorageError> {
        let extent = storage.log().await?;
        let retention = Retention { events: options.retain_events, bytes: options.retain_bytes };
        let scans = Scans::new(storage.layout().buckets, options.retain_bytes / KEPT_SHARE);
        let inner = Arc::new(Inner {
            storage,
            storage_stats: StorageStats::default(),
            kept: KeptLeases::default(),
            owners: Owners::default(),
            feed: Feed::new(retention, &extent, Box::new(encoder)),
            scans,
            options,
            observers: AtomicUsize::new(0),
            filter_ids: AtomicUsize::new(0),
            resets: Mutex::default(),
            is_following: AtomicBool::new(true),
        });
        let vitals = Vitals::default();
        let follower = vitals.watch("change publication", follow::follow(Arc::clone(&inner), extent));
        let expirer = vitals.watch("lease expiry", follow::expire(Arc::clone(&inner)));
        let watcher = vitals.watch("writability watch", writability::watch(Arc::clone(&inner)));
        let mut tasks = JoinSet::new();
        tasks.spawn(follower);
        tasks.spawn(expirer);
        tasks.spawn(watcher);
        Ok(Self { inner, vitals, tasks })
    }

    /// Creates sessions, or moves them to a lease, as `options` says; see [`SessionStorage::create_with`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub fn create_with<'a>(
        &'a self,
        sessions: &'a [SessionKey],
        options: CreateOptions,
    ) -> impl Future<Output = Result<Answers<Creation>, StorageError>> + Send + use<'a> {
        self.inner.storage_stats.measure(StorageOperation::Create, self.inner.storage.create_with(sessions, options))
    }

    /// Creates sessions, and moves those that exist to `lease` from any other lease; see [`SessionStorage::create`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn create(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        let answers = self.create_with(sessions, lease.into()).await?;
        Ok(answers.sessions.into_iter().map(|creation| creation.created).collect())
    }

    /// Returns which sessions exist; see [`SessionStorage::has`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        self.inner.storage_stats.measure(StorageOperation::Has, self.inner.storage.has(sessions)).await
    }

    /// Returns which sessions exist, and the lease of each; see [`SessionStorage::lookup`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        self.inner.storage_stats.measure(StorageOperation::Lookup, self.inner.storage.lookup(sessions)).await
    }

    /// Destroys sessions, and returns the places of the changes; see [`SessionStorage::destroy_with`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub fn destroy_with<'a>(
        &'a self,
        sessions: &'a [SessionKey],
        lease: Option<LeaseId>,
    ) -> impl Future<Output = Result<Answers<bool>, StorageError>> + Send + use<'a> {
        self.inner.storage_stats.measure(StorageOperation::Destroy, self.inner.storage.destroy_with(sessions, lease))
    }

    /// Destroys sessions; see [`SessionStorage::destroy`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn destroy(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        Ok(self.destroy_with(sessions, lease).await?.sessions)
    }

    /// Grants a lease; see [`SessionStorage::grant_lease`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        self.inner.storage_stats.measure(StorageOperation::GrantLease, self.inner.storage.grant_lease(ttl, owner)).await
    }

    /// Keeps a lease alive; see [`SessionStorage::keep_lease_alive`]. If this process kept the lease alive within the
    /// last tenth of its ttl, answers from memory without calling the storage.
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        let Inner { storage, storage_stats, kept, .. } = &*self.inner;
        kept.keep(lease, async {
            storage_stats.measure(StorageOperation::KeepLeaseAlive, storage.keep_lease_alive(lease)).await
        })
        .await
    }

    /// Returns the owner of a lease; see [`SessionStorage::lease_owner`]. May also return the owner of a lease that has
    /// ended.
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        let Inner { storage, storage_stats, owners, .. } = &*self.inner;
        if let Some(owner) = owners.known(lease) {
            return Ok(Some(owner));
        }
        // Boxed because it is rare, and would make the future of every lookup larger.
        let owner = Box::pin(storage_stats.measure(StorageOperation::LeaseOwner, storage.lease_owner(lease))).await?;
        if let Some(owner) = &owner {
            owners.remember(lease, owner);
        }
        Ok(owner)
    }

    /// Revokes a lease immediately; see [`SessionStorage::revoke_lease`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, StorageError> {
        self.revoke_lease_with(lease, Duration::ZERO).await
    }

    /// Revokes a lease, immediately or after a linger; see [`SessionStorage::revoke_lease_with`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError> {
        let _ending = self.inner.kept.ending(lease);
        let Inner { storage, storage_stats, .. } = &*self.inner;
        storage_stats.measure(StorageOperation::RevokeLease, storage.revoke_lease_with(lease, linger)).await
    }

    /// Lists leases; see [`SessionStorage::list_leases`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError> {
        self.inner.storage_stats.measure(StorageOperation::ListLeases, self.inner.storage.list_leases(query)).await
    }

    /// Returns the number of leases; see [`SessionStorage::lease_count`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn lease_count(&self) -> Result<u64, StorageError> {
        self.inner.storage.lease_count().await
    }

    /// Returns the number of sessions; see [`SessionStorage::session_count`].
    ///
    /// # Errors
    ///
    /// Returns the storage's error.
    pub async fn session_count(&self) -> Result<u64, StorageError> {
        self.inner.storage.session_count().await
    }

    /// Returns an observer of every change made after this call returns.
    ///
    /// Depending on [`ObserveOptions::start`], it first receives a snapshot of the existing sessions, or the changes
    /// since a cursor. A cursor that cannot be honoured is not an error: the observer starts with [`Update::Reset`].
    ///
    /// # Errors
    ///
    /// Returns an [`ObserveError`] if a limit is reached, the subject is closed, or the storage cannot report where its
    /// log ends.
    pub async fn observe(&self, options: ObserveOptions) -> Result<Observer, ObserveError> {
        let ObserveOptions { start, filter } = options;
        let admission = Admission::new(&self.inner, filter.id_count());
        let admission = admission
            .map_err(|refusal| if self.inner.feed.log.head().closed { ObserveError::Closed } else { refusal })?;
        let beginning = Beginning::find(&self.inner, &start).await?;
        Ok(Observer::new(Arc::clone(&self.inner), admission, filter, beginning))
    }

    /// Returns the maximum number of ids in a [`Filter`]: [`SubjectOptions::max_filter_ids`].
    #[must_use]
    pub fn max_filter_ids(&self) -> usize {
        self.inner.options.max_filter_ids
    }

    /// Calls `observer` with every update, in a task of the current tokio runtime, until it is unsubscribed.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`observe`](Self::observe).
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    pub async fn subscribe(
        &self,
        options: ObserveOptions,
        observer: impl SessionObserver,
    ) -> Result<Subscription, ObserveError> {
        Ok(Subscription::start(self.observe(options).await?, observer))
    }

    /// Ends all observers. Each reads to the end of the log and then receives [`Update::Closed`]. New observers are
    /// refused. Calls that change or read the registry still work.
    pub fn close(&self) {
        self.inner.feed.close();
    }

    /// Ends the background tasks, waits for them, and then releases the storage. Remaining observers keep the storage
    /// open until they are dropped.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Returns whether the storage's log can currently be read. False forever once a task has
    /// [failed](Self::failed_task).
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.inner.is_following.load(Ordering::Relaxed) && self.failed_task().is_none()
    }

    /// Returns the name of an essential task that has panicked, of the subject or of its storage. Nothing restarts the
    /// task, so the process should exit.
    #[must_use]
    pub fn failed_task(&self) -> Option<&'static str> {
        self.vitals.failed().or_else(|| self.inner.storage.failed_task())
    }

    /// Returns whether the registry can currently be changed: see [`SessionStorage::writability`]. While the storage's
    /// log cannot be read, changes count as refused.
    #[must_use]
    pub fn writability(&self) -> Writability {
        match self.inner.storage.writability() {
            Writability::Writable if !self.is_following() => {
                Writability::Refused(WriteRefusal::new(RefusalCause::Unreachable, "the change log cannot be read"))
            }
            writability => writability,
        }
    }

    /// Returns whether the underlying store may evict sessions on its own; see [`SessionStorage::evicts_keys`].
    #[must_use]
    pub fn evicts_keys(&self) -> Option<bool> {
        self.inner.storage.evicts_keys()
    }

    /// Returns how many replicas share the registry; see [`SessionStorage::replicas`].
    #[must_use]
    pub fn replicas(&self) -> u32 {
        self.inner.storage.replicas()
    }

    /// Returns how long calls waited for the storage and how often it failed, by operation in the order of
    /// [`StorageOperation::ALL`].
    #[must_use]
    pub fn storage_stats(&self) -> Vec<OperationStats> {
        self.inner.storage_stats.all()
    }

    /// Returns the subject's statistics, for metrics.
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
            snapshot_runs: self.inner.scans.counts(),
            is_following: self.is_following(),
        }
    }
}

impl Inner {
    fn count_reset(&self, reason: ResetReason) {
        self.resets.lock().count(reason);
    }

    /// Records whether the storage's log can be read. Returns whether that has changed.
    fn set_following(&self, is_following: bool) -> bool {
        let has_changed = self.is_following.load(Ordering::Relaxed) != is_following;
        if has_changed {
            self.is_following.store(is_following, Ordering::Relaxed);
        }
        has_changed
    }
}

impl fmt::Debug for SessionSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionSubject").field("storage", &self.inner.storage).finish_non_exhaustive()
    }
}
