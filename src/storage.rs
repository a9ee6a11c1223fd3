//! Where the sessions are: the contract of a storage, and opening one.

mod error;
#[cfg(feature = "file")]
pub mod file;
// Only the file storage records and restores, so much of these two is unused without it.
#[cfg_attr(not(feature = "file"), allow(dead_code, unused_imports))]
mod journal;
mod lease;
#[cfg_attr(not(feature = "file"), allow(dead_code, unused_imports))]
pub mod memory;
mod open;
mod placement;
#[cfg(feature = "redis")]
pub mod redis;
mod writability;

#[cfg(feature = "conformance")]
pub mod conformance;

use std::{convert::Infallible, fmt, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::session::{LeaseId, SessionEvent, SessionKey};

pub use self::{
    error::{LogError, StorageError},
    lease::{LeasePage, LeaseQuery, LeaseStatus, MAX_LINGER},
    open::{OpenError, StorageOptions, StorageUrl},
    placement::{Answers, CreateOptions, Creation, Lookup, Place, Places, Takeover},
    writability::{RefusalCause, Writability, WriteRefusal},
};

/// A set of sessions, and the ordered log of its changes: what a storage is.
///
/// The sessions lie in [`Layout::buckets`] buckets, the log in [`Layout::partitions`] partitions; a session never changes
/// its bucket, nor a bucket its partition. The changes of a partition are numbered by [`Position`] from 1, without gaps.
///
/// # Obligations
///
/// [`conformance`](crate::storage#modules) is a suite (feature `conformance`) that checks all of these, except for what shows
/// only when a storage loses changes.
///
/// - **Atomic**: a change of the set and its entry in the log are one step, for each session by itself. There is no
///   moment at which a caller could see one without the other.
/// - **Alternating**: a session's changes in the log are created, destroyed, created, …, with any number of moves while it exists; a call
///   that changes nothing appends nothing.
/// - **Placed**: the log tells each session's lease: the one that it is created under, the ones that it moves from and to, and the
///   one that it was under when it was destroyed. A lookup agrees with the log, except that it tells no lease that has ended.
/// - **Visible**: once a call has returned, every later call sees its change, through every handle to the registry.
/// - **Ordered**: positions grow in the order in which changes took effect, and the changes of one batch that share a
///   partition keep the order of the batch.
/// - **Exact reads**: [`read_buckets`](Self::read_buckets) gives, for each bucket, the sessions in it just after the change
///   at the position it names and before the next one.
/// - **Histories**: each position of a log has a [`Mark`]. Two logs of one registry id that have the same mark at a position
///   agree on every change up to it. A log that lost changes and continued differently has other marks from there on. The
///   mark at a position never changes, and every handle tells the same one.
/// - **One history**: a handle never mixes two histories. If the log loses a position that the handle has named in any answer,
///   the handle's followers get [`LogError::Restarted`] before they pass that position, or the registry gets another id. A
///   snapshot and an observer that resumes rely on this where they are ahead of the follower.
/// - **Leased**: a session under a lease that is gone is gone too, or about to be: once a lease has ended, nothing comes under it,
///   and each session that is under it is destroyed, once. A session that has moved to another lease is not.
/// - **Cancellable**: a future dropped before it is ready leaves each session either changed, with its log entry, or not.
/// - **Concurrent**: all methods may be called at once from any number of tasks, and any number may follow the log.
/// - **Writable**: [`writability`](Self::writability) says within 10 s whether changes are accepted. While they are refused, sessions,
///   leases and the log stay as they are. Only a change that was in progress when the refusal began may still be made later.
/// - **Bounded**: the log keeps a bounded number of changes and says when a position is no longer held. It need not
///   outlive the process.
#[async_trait]
pub trait SessionStorage: fmt::Debug + Send + Sync + 'static {
    /// How many buckets and partitions there are. Never changes.
    fn layout(&self) -> Layout;

    /// The bucket that `session` lies in, whether it exists or not: less than [`Layout::buckets`]. Never changes.
    fn bucket_of(&self, session: &SessionKey) -> u32;

    /// The partition that logs the changes of `bucket`: less than [`Layout::partitions`]. Never changes.
    fn partition_of(&self, bucket: u32) -> u32;

    /// Whether the registry can be changed at present, as far as the storage knows.
    ///
    /// A storage finds out by itself, within 10 s and in both directions, and does not wait until a call fails. It answers from
    /// memory, at once. Every storage that can lose the ability to make changes overrides this; by default changes are always
    /// possible.
    fn writability(&self) -> Writability {
        Writability::Writable
    }

    /// Whether the store beneath may drop sessions by itself when its memory is full, without an event. `None` where the question does not arise,
    /// or is yet to be answered.
    fn evicts_keys(&self) -> Option<bool> {
        None
    }

    /// Returns the name of a task that has panicked and that the storage cannot work without. A server over such a
    /// storage is no longer ready, and should exit.
    fn failed_task(&self) -> Option<&'static str> {
        None
    }

    /// Makes sessions exist. Tells for each, in order, whether this call created it, and the lease that it is under now.
    ///
    /// Under a lease, all of them come under it, except for those that exist and that [`Takeover`] does not let it take. Without a
    /// lease, those that existed keep theirs.
    ///
    /// # Errors
    ///
    /// [`StorageError`], [`StorageError::UnknownLease`] and [`StorageError::LeaseLingers`] among them; sessions earlier in the list
    /// may have been created all the same, and a retry is safe.
    async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError>;

    /// Calls [`create_with`](Self::create_with) to create sessions that may be taken from any lease. Tells for each, in order, whether
    /// this call created it.
    ///
    /// # Errors
    ///
    /// As `create_with`.
    async fn create(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        let answers = self.create_with(sessions, lease.into()).await?;
        Ok(answers.sessions.into_iter().map(|creation| creation.created).collect())
    }

    /// Tells for each session, in order, whether it exists.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when the storage cannot be asked.
    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError>;

    /// Tells for each session, in order, whether it exists and which lease it is under.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when the storage cannot be asked.
    async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError>;

    /// Makes sessions not exist. Tells for each, in order, whether this call destroyed it.
    ///
    /// With a lease only those that are under it are destroyed; none is when there is no such lease.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; sessions earlier in the list may have been destroyed all the same, and a retry is safe.
    async fn destroy_with(
        &self,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError>;

    /// Calls [`destroy_with`](Self::destroy_with), for callers who need no places.
    ///
    /// # Errors
    ///
    /// As `destroy_with`.
    async fn destroy(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        Ok(self.destroy_with(sessions, lease).await?.sessions)
    }

    /// Grants a lease that expires when it is not kept alive for `ttl`. `owner` says who holds it, by convention as the address
    /// of a gateway.
    ///
    /// # Errors
    ///
    /// [`StorageError`], [`StorageError::TooManyLeases`] among them.
    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError>;

    /// Lets a lease live for its whole ttl from now on. Gives that ttl.
    ///
    /// # Errors
    ///
    /// [`StorageError::UnknownLease`] when it is gone, [`StorageError::LeaseLingers`] when it was revoked.
    async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError>;

    /// Tells the owner that a lease was granted to, which never changes. `None` if the lease is gone.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when the storage cannot be asked.
    async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError>;

    /// Ends a lease once `linger` has passed, which is at most [`MAX_LINGER`], and destroys the sessions that are under it then, with
    /// [`LeaseRevoked`](crate::session::DestroyReason::LeaseRevoked). Without a linger, ends it now and tells how many sessions that
    /// destroyed. With one, tells 0.
    ///
    /// While a lease lingers, no session comes under it, it cannot be kept alive, and it protects no session from
    /// [`Takeover::OnlyFrom`]. Sessions under it can be destroyed, and moved to other leases. Its end does not change when the ttl
    /// passes, and outages and restarts do not delay it. To revoke it once more can only bring its end forward.
    ///
    /// The lease is gone before the first session is destroyed. If the future is dropped, the rest is destroyed by
    /// [`expire_leases`](Self::expire_leases).
    ///
    /// # Errors
    ///
    /// [`StorageError::UnknownLease`] if it is gone already.
    async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError>;

    /// Calls [`revoke_lease_with`](Self::revoke_lease_with) without a linger.
    ///
    /// # Errors
    ///
    /// As `revoke_lease_with`.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, StorageError> {
        self.revoke_lease_with(lease, Duration::ZERO).await
    }

    /// Lists leases that have not ended, in the order of their ids.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when the storage cannot be asked.
    async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError>;

    /// Ends leases as they expire and destroys the sessions under them with
    /// [`LeaseExpired`](crate::session::DestroyReason::LeaseExpired), for as long as it is polled; never returns
    /// but with an error, after which it may be called again. No lease expires before its ttl has passed. Ends leases whose linger
    /// has passed, too. Whoever holds a storage runs this once.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when the storage cannot be asked.
    async fn expire_leases(&self) -> Result<Infallible, StorageError>;

    /// How many leases there are, as a figure for people.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when the storage cannot be asked.
    async fn lease_count(&self) -> Result<u64, StorageError>;

    /// How many sessions there are, as a figure for people; it may lag behind the changes.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when the storage cannot be asked.
    async fn session_count(&self) -> Result<u64, StorageError>;

    /// Which registry this is and how far its log reaches, no older than the call.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when the storage cannot be asked.
    async fn log(&self) -> Result<LogExtent, StorageError>;

    /// The changes of `partition` right after `after` in the log of `registry_id`: at least one, at most `limit`. Waits for
    /// the first.
    ///
    /// # Errors
    ///
    /// [`LogError::Trimmed`] when some change after `after` is no longer held, [`LogError::Restarted`] when the log is another
    /// registry's or does not contain `after`, also while this waits, [`LogError::Storage`] when the storage cannot be asked.
    async fn changes_after(
        &self,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError>;

    /// Gives for each partition the mark at a position of its log. None beyond the log's end, and before its start if the
    /// storage no longer knows the mark.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when the storage cannot be asked.
    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError>;

    /// Tells which buckets have sessions under some leases, so that the others need not be read.
    ///
    /// `known` is as for [`read_buckets`](Self::read_buckets).
    ///
    /// # Errors
    ///
    /// As `read_buckets`.
    async fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError>;

    /// The sessions of the first of `buckets`, which are in ascending order: of at least one bucket, and of no more once
    /// `limit` sessions are read.
    ///
    /// With `with_leases`, the lease of each session is read as well: the one that the log tells, even if it has ended.
    ///
    /// `known` is for each partition the point up to which the caller has read the log of `registry_id`. The sessions are read
    /// from a registry whose log contains the points of their partitions.
    ///
    /// # Errors
    ///
    /// [`LogError::Restarted`] when the log is another registry's, or when it does not contain the known point of a partition
    /// that is read or no longer knows the mark there, [`LogError::Storage`] when the storage cannot be asked.
    async fn read_buckets(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError>;
}

/// How a storage is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Parts of the set that can be read by themselves; at least 1.
    pub buckets: u32,
    /// Parts of the log that are ordered by themselves; at least 1.
    pub partitions: u32,
}

/// The number of a change in its partition's log. The first change has 1; 0 is the place before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// A random number that a storage gives to a stretch of its log. Marks tell two histories of one registry apart.
///
/// The mark at a position is that of the stretch with the change at this position. At position 0 it is that of the log's
/// birth. What a stretch is depends on the storage: all changes of a process, of an opening of a file, or of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mark(pub u64);

/// A position in a partition's log, and the mark there. It names one history up to this position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogPoint {
    /// The position.
    pub position: Position,
    /// The mark at that position.
    pub mark: Mark,
}

impl LogPoint {
    /// Returns the point at the last of `changes`, which come right after this point.
    #[must_use]
    pub fn past(self, changes: &Changes) -> Self {
        Self { position: Position(self.position.0 + changes.events.len() as u64), mark: changes.mark }
    }
}

/// The identity of a registry: made by chance when it begins, and kept for as long as its log goes on.
///
/// Its text is 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegistryId(pub u64);

impl fmt::Display for RegistryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How far the log of a registry reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogExtent {
    /// The registry that the log is of.
    pub registry_id: RegistryId,
    /// For each partition, the points between which changes are held: those after `start` up to and with `end`.
    pub partitions: Vec<Range<LogPoint>>,
}

/// Some changes of one partition that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The changes, in order; at least one.
    pub events: Vec<SessionEvent>,
    /// The mark at the last of them.
    pub mark: Mark,
}

/// Where the sessions under some leases are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseBuckets {
    /// For each partition, the point of its log at which this is true.
    pub points: Vec<LogPoint>,
    /// In ascending order, the buckets that have sessions under the leases, by the log, also if the leases have ended. Others may be
    /// among them.
    pub buckets: Vec<u32>,
}

/// What is in some buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketRun {
    /// For each bucket read, in order, the point of its partition's log that its sessions reflect. All are of one history.
    pub points: Vec<LogPoint>,
    /// The sessions in those buckets, in no particular order.
    pub sessions: Vec<SessionKey>,
    /// The lease of each of them, if leases were asked for; empty otherwise.
    pub leases: Vec<Option<LeaseId>>,
}
