//! Storages: where a registry keeps its sessions, its leases and the log of their changes.
//!
//! Three are built in: [`MemoryStorage`](memory::MemoryStorage), [`FileStorage`](file::FileStorage) and
//! [`RedisStorage`](self::redis::RedisStorage). A [`StorageUrl`] names one, as `--storage` does, and opens it with some
//! [`StorageOptions`]:
//!
//! ```
//! use sessiond::{session::SessionKey, storage::{StorageOptions, StorageUrl}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let url: StorageUrl = "memory:".parse()?;
//! let options = StorageOptions::default().max_sessions(1_000_000).max_leases(1000);
//! let storage = url.open(options).await?;
//! assert_eq!(storage.create(&[SessionKey::new(0, 42)], None).await?, [true]);
//! # Ok(())
//! # }
//! ```
//!
//! A storage alone neither expires leases nor has observers. A [`SessionSubject`](crate::subject::SessionSubject) on
//! top of it does both.
//!
//! # Write a storage
//!
//! Implement [`SessionStorage`], and test it with the suite in `sessiond::storage::conformance` (feature
//! `conformance`). The example `custom_storage` in the repository is a complete storage. A storage consists of:
//!
//! - **The set of sessions**, divided into buckets, so that a snapshot can read it bucket by bucket. [`Layout`] says
//!   how many there are.
//! - **The log of changes**, which observers follow. It may be divided into partitions. A [`Position`] numbers the
//!   changes of a partition. A [`Mark`] distinguishes two logs that agree up to some position and then differ because
//!   changes were lost. A [`LogPoint`] is a position with its mark.
//! - **The leases**, each with a ttl and an owner. [`Takeover`] says when a session may move from one lease to another.
//!
//! Methods that read the log or a snapshot fail with a [`LogError`], all others with a [`StorageError`].

mod bucket_run;
mod error;
#[cfg(feature = "file")]
pub mod file;
// Only the file storage records and restores, so much of these two is unused without it.
#[cfg_attr(not(feature = "file"), allow(dead_code, unused_imports))]
mod journal;
mod lease;
mod log_point;
#[cfg_attr(not(feature = "file"), allow(dead_code, unused_imports))]
pub mod memory;
mod open;
mod placement;
#[cfg(feature = "redis")]
pub mod redis;
mod writability;

#[cfg(feature = "conformance")]
pub mod conformance;

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::session::{LeaseId, SessionKey};

pub use self::{
    bucket_run::{BucketRun, LeaseBuckets},
    error::{LogError, StorageError},
    lease::{LeasePage, LeaseQuery, LeaseStatus, MAX_LINGER, MAX_OWNER_BYTES, MAX_TTL, MIN_TTL},
    log_point::{Changes, LogExtent, LogPoint, Mark, Position, RegistryId},
    open::{OpenError, StorageOptions, StorageUrl},
    placement::{Answers, CreateOptions, Creation, Lookup, Place, Places, Takeover},
    writability::{RefusalCause, Writability, WriteRefusal},
};

/// A set of sessions and the ordered log of its changes.
///
/// This trait is the contract between a storage and everything above it. The rest of this page says what a storage must
/// do and what it may rely on.
///
/// # Writing a storage
///
/// `examples/custom_storage` in the repository is a complete storage over an embedded database. Test yours with the
/// suite in `sessiond::storage::conformance` (feature `conformance`). The suite checks every obligation below, except
/// for behaviour that shows only when a storage loses changes. To serve the storage over gRPC, set
/// `ServerConfig::storage` to it (feature `server`). To use it without gRPC, start a
/// [`SessionSubject`](crate::subject::SessionSubject) on it.
///
/// # The model
///
/// Sessions are kept in [`Layout::buckets`] buckets, and changes in a log of [`Layout::partitions`] partitions. A
/// session always belongs to the same bucket, and a bucket to the same partition. One partition is enough, unless
/// several machines share the work. A snapshot reads a bucket in one step, so with more buckets a snapshot delays
/// other calls less.
///
/// The changes of a partition are numbered by [`Position`], from 1 and without gaps. A [`LogPoint`] is a position
/// together with the [`Mark`] of the log there. Some storages can lose changes, for example when an old copy of a file
/// is put back. Marks distinguish the history before the loss from the history after it. If only one process writes
/// the log, draw a random mark each time the storage is opened, and give it to every change until it is closed. Earlier
/// positions keep their marks.
///
/// # Obligations
///
/// A *handle* is one `SessionStorage` value. Several handles, for example in several processes, may share one registry.
///
/// - **Atomic**: a change of a session and its entry in the log are one step. Nobody can see one without the other.
/// - **Alternating**: the log of each session reads created, destroyed, created, and so on, with any number of moves
///   while the session exists. A call that changes nothing appends nothing.
/// - **Placed**: the log names each session's lease: the lease that the session was created under, the leases that it
///   moved from and to, and the lease that it was under when it was destroyed. A lookup agrees with the log, except
///   that it never returns a lease that has ended.
/// - **Visible**: once a call has returned, every later call sees its change, through every handle to the registry.
/// - **Ordered**: positions increase in the order in which changes took effect. Within a partition, the changes of a
///   batch keep the order of the batch.
/// - **Exact reads**: [`read_buckets`](Self::read_buckets) returns, for each bucket, a position and the sessions that
///   the bucket held just after the change at that position.
/// - **Histories**: two logs with the same registry id that have the same mark at a position agree on every change up
///   to that position. If a log loses changes and continues with others, its marks differ from there on. The mark at a
///   position never changes, and is the same through every handle.
/// - **One history**: a handle never mixes two histories. Suppose the log loses a position that the handle has named in
///   any answer. Then followers of that handle get [`LogError::Restarted`] before they pass the position, or the
///   registry gets a new id. Snapshots and resuming observers, which may be ahead of the follower, rely on this.
/// - **Leased**: once a lease has ended, no session comes under it, and each session still under it is destroyed
///   exactly once. A session that has moved to another lease is not destroyed.
/// - **Cancellable**: see [Cancellation](#cancellation).
/// - **Concurrent**: see [Concurrency and order](#concurrency-and-order).
/// - **Writable**: [`writability`](Self::writability) reports within 10 s whether changes are accepted. While they are
///   refused, sessions, leases and the log stay as they are. Only a change that was in progress when the refusal began
///   may still take effect.
/// - **Bounded**: the log keeps a bounded number of changes, and reports when a position is no longer held. The log
///   need not outlive the process: a storage that starts a new log also gives the registry a new id.
///
/// # Arguments
///
/// - **Empty lists**: a call with an empty list of sessions, buckets or leases succeeds and returns an empty list, even
///   if it names an unknown lease. The one exception is [`LeaseQuery::lease_ids`], where an empty list means all
///   leases.
/// - **Duplicates**: every element of a list of sessions gets its own answer. A batch takes effect in order: if a
///   create names a session twice, the first may create it, and the second finds that it exists. Naming a lease twice
///   is the same as naming it once.
/// - **Limits**: a `limit` of 0 counts as 1.
/// - **Size**: a batch has up to 65,536 sessions when it comes over gRPC, and any number otherwise.
/// - **Ttl and linger**: a ttl is at least [`MIN_TTL`]; a lease with a shorter ttl may expire late. A ttl above
///   [`MAX_TTL`] counts as [`MAX_TTL`], and a linger above [`MAX_LINGER`] as [`MAX_LINGER`]. Both may be rounded up to
///   whole milliseconds.
/// - **Owner**: any text of up to [`MAX_OWNER_BYTES`], including the empty one. The service refuses longer owners, so a
///   storage need not check.
/// - **Positions, points and numbers**: a list of positions or points has one element for each partition. Lists of
///   buckets are in ascending order, without duplicates. Bucket numbers are less than [`Layout::buckets`], partition
///   numbers less than [`Layout::partitions`]. A storage may panic if a caller breaks these rules.
///
/// # Cancellation
///
/// Callers drop futures: when a client cancels a call, when a call times out, and at shutdown.
///
/// - A change that is dropped leaves each of its sessions either unchanged, or changed and logged. The storage may
///   finish the change in the background, but not after a later change of the same session through the same handle.
/// - A read that is dropped has no effect. This includes [`changes_after`](Self::changes_after), which mostly waits: if
///   it is dropped, nothing is lost, and a later call with the same point returns the same changes.
/// - A revoke that is dropped before its first poll, or before the lease has ended, has no effect. Once the lease has
///   ended, [`expire_leases`](Self::expire_leases) destroys the remaining sessions.
/// - If [`expire_leases`](Self::expire_leases) is dropped, its next call continues the work.
///
/// # Concurrency and order
///
/// All methods may be called concurrently, from any number of tasks and threads. Any number of followers may wait in
/// [`changes_after`](Self::changes_after). A call takes effect before it returns, so calls that do not overlap take
/// effect in the order in which they are made. Calls that overlap take effect in any order. A batch takes effect
/// session by session, not as a whole.
///
/// Do not block the calling thread, because it serves other calls too: use `spawn_blocking` or a thread of your own.
///
/// # Errors
///
/// Each error has these consequences:
///
/// | error | what a gRPC client gets | what else happens |
/// |---|---|---|
/// | [`Unavailable`](StorageError::Unavailable) | `UNAVAILABLE`, with a delay before the retry | see below |
/// | [`Refused`](StorageError::Refused) | the same, with the kind of cause | nothing: `writability` reports the refusal |
/// | [`TooManySessions`](StorageError::TooManySessions) | `RESOURCE_EXHAUSTED` | nothing |
/// | [`TooManyLeases`](StorageError::TooManyLeases) | `RESOURCE_EXHAUSTED` | nothing |
/// | [`UnknownLease`](StorageError::UnknownLease) | `NOT_FOUND`; `FAILED_PRECONDITION` for a create | the client grants itself a new lease |
/// | [`LeaseLingers`](StorageError::LeaseLingers) | `FAILED_PRECONDITION` | the same |
/// | [`Broken`](StorageError::Broken) | `INTERNAL`, without the cause | the cause is logged for each call |
/// | [`Trimmed`](LogError::Trimmed) from `changes_after` | a reset of its stream, `LAGGED` | every observer reads a new snapshot |
/// | [`Restarted`](LogError::Restarted) from `changes_after` | a reset of its stream, `STORAGE_RESTARTED` | the same |
///
/// The subject retries by itself:
///
/// - If [`changes_after`](Self::changes_after) fails, the server stops being ready. The subject calls it again after
///   50 ms to 2 s until it succeeds. It retries [`expire_leases`](Self::expire_leases) in the same way.
/// - If a read of a snapshot fails, the subject retries it every 500 ms, even after [`LogError::Restarted`].
/// - If [`log`](Self::log) or [`marks`](Self::marks) fails, an observer that is about to start fails with that error.
/// - A starting server waits for its storage if the error [may pass](StorageError::may_pass).
///
/// A change that failed may have been made in part. The part that has not taken effect when the error is returned never
/// takes effect. Otherwise an earlier call could undo a later one. Retries are safe, because creates and destroys are
/// idempotent.
///
/// # Start and shutdown
///
/// A subject calls [`log`](Self::log) when it starts and for each new observer. Until it ends, it runs
/// [`expire_leases`](Self::expire_leases) and, for each partition, [`changes_after`](Self::changes_after). It calls
/// [`writability`](Self::writability) and [`failed_task`](Self::failed_task) four times a second.
///
/// No method is called at shutdown. A server first finishes its calls, or drops them when the drain timeout has passed.
/// It then drops the futures above, and finally the last reference to the storage. A storage that has data to write or
/// threads to stop does so in `Drop`.
///
/// A server logs the storage's `Debug` text when it starts. Keep it short, and leave out passwords.
#[async_trait]
pub trait SessionStorage: fmt::Debug + Send + Sync + 'static {
    /// Returns how many buckets and partitions there are. Never changes.
    fn layout(&self) -> Layout;

    /// Returns the bucket of `session`, whether or not the session exists. The number is less than
    /// [`Layout::buckets`], and never changes while the registry has the same id.
    ///
    /// This must be fast: it is called for every event that an observer reads during a snapshot.
    fn bucket_of(&self, session: &SessionKey) -> u32;

    /// Returns the partition that logs the changes of `bucket`. The number is less than [`Layout::partitions`], and
    /// never changes.
    fn partition_of(&self, bucket: u32) -> u32;

    /// Returns whether the registry can currently be changed, as far as the storage knows.
    ///
    /// This answers immediately, from memory. The storage must notice within 10 s that it refuses changes or accepts
    /// them again, without waiting for a call to fail. `/writable`, the health of `sessiond.v1.SessionService/write`
    /// and the metrics report the answer; readiness does not depend on it. The default is always writable: override it
    /// in a storage that can refuse changes.
    fn writability(&self) -> Writability {
        Writability::Writable
    }

    /// Returns whether the underlying store may drop sessions without an event when its memory is full. `None` if the
    /// store has no such setting, or its setting is not known yet. A metric reports the answer.
    fn evicts_keys(&self) -> Option<bool> {
        None
    }

    /// Returns how many replicas share the registry, as far as this one knows. A metric reports the answer. The default
    /// is 1.
    fn replicas(&self) -> u32 {
        1
    }

    /// Returns the name of an essential task or thread of the storage that has panicked, if there is one.
    ///
    /// The server then stops being ready, drains, and exits with an error. The default is `None`.
    fn failed_task(&self) -> Option<&'static str> {
        None
    }

    /// Creates sessions. Returns for each, in order, whether this call created it, and the lease that it is now under.
    ///
    /// If `options` names a lease, new sessions are created under it. Existing sessions move to it as far as
    /// [`Takeover`] allows, and each move is logged. Without a lease, existing sessions keep theirs.
    ///
    /// [`Answers::places`] says at which places of the log the answers are true, including those for unchanged
    /// sessions.
    ///
    /// # Errors
    ///
    /// Any [`StorageError`]. [`StorageError::UnknownLease`] and [`StorageError::LeaseLingers`] name the lease of
    /// `options`. After any error, sessions earlier in the list may have been created. A retry is safe.
    async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError>;

    /// Creates sessions, under `lease` if there is one. Existing sessions move to it, whatever lease they are under.
    /// Returns for each, in order, whether this call created it.
    ///
    /// Provided: calls [`create_with`](Self::create_with).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`create_with`](Self::create_with).
    async fn create(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        let answers = self.create_with(sessions, lease.into()).await?;
        Ok(answers.sessions.into_iter().map(|creation| creation.created).collect())
    }

    /// Returns for each session, in order, whether it exists.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError>;

    /// Returns for each session, in order, whether it exists and which lease it is under.
    ///
    /// A lingering lease is returned. A lease that has ended is not, although its sessions may still exist for a while.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError>;

    /// Destroys sessions. Returns for each, in order, whether this call destroyed it.
    ///
    /// With a lease, destroys only sessions under that lease, for the reason
    /// [`Released`](crate::session::DestroyReason::Released). If the lease is unknown, destroys nothing. Without a
    /// lease, the reason is [`Requested`](crate::session::DestroyReason::Requested).
    ///
    /// # Errors
    ///
    /// Any [`StorageError`]. Sessions earlier in the list may then have been destroyed. A retry is safe.
    async fn destroy_with(
        &self,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError>;

    /// Destroys sessions, for callers who need no places.
    ///
    /// Provided: calls [`destroy_with`](Self::destroy_with).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`destroy_with`](Self::destroy_with).
    async fn destroy(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        Ok(self.destroy_with(sessions, lease).await?.sessions)
    }

    /// Grants a lease that expires if it is not kept alive for `ttl`. `owner` names its holder, by convention the
    /// address of a gateway.
    ///
    /// The id is random, unused, and at most [`LeaseId::MAX`]. It must not be reused soon: a gateway that comes back
    /// with an old id must not use another gateway's lease.
    ///
    /// # Errors
    ///
    /// Any [`StorageError`], such as [`StorageError::TooManyLeases`].
    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError>;

    /// Extends a lease to its full ttl from now. Returns that ttl.
    ///
    /// A storage should do this even while it refuses changes. Otherwise, for example, a full disk would make gateways
    /// lose their leases.
    ///
    /// # Errors
    ///
    /// [`StorageError::UnknownLease`] if the lease has ended, [`StorageError::LeaseLingers`] if it was revoked and
    /// lingers.
    async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError>;

    /// Returns the owner that a lease was granted to, which never changes. `None` if the lease has ended.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError>;

    /// Ends a lease after `linger`, and destroys the sessions still under it, for the reason
    /// [`LeaseRevoked`](crate::session::DestroyReason::LeaseRevoked). If `linger` is zero, ends the lease now, and
    /// returns how many sessions were destroyed. Otherwise returns 0 immediately.
    ///
    /// While a lease lingers, no session comes under it, it cannot be kept alive, and it does not protect its sessions
    /// from [`Takeover::OnlyFrom`]. Its sessions can still be destroyed, or moved to other leases. Its ttl no longer
    /// matters, and outages and restarts do not delay its end. Another revoke can only bring the end forward.
    ///
    /// The lease ends before its first session is destroyed. If the future is dropped after that,
    /// [`expire_leases`](Self::expire_leases) destroys the rest.
    ///
    /// # Errors
    ///
    /// [`StorageError::UnknownLease`] if the lease has already ended.
    async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError>;

    /// Ends a lease now.
    ///
    /// Provided: calls [`revoke_lease_with`](Self::revoke_lease_with) without a linger.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`revoke_lease_with`](Self::revoke_lease_with).
    async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, StorageError> {
        self.revoke_lease_with(lease, Duration::ZERO).await
    }

    /// Lists the leases that have not ended, including lingering ones, ordered by id.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError>;

    /// Ends leases when they expire or when their linger is over, and destroys the sessions under them. Runs until the
    /// future is dropped, or a step fails.
    ///
    /// The reason is [`LeaseExpired`](crate::session::DestroyReason::LeaseExpired) for a lease whose ttl has passed,
    /// and [`LeaseRevoked`](crate::session::DestroyReason::LeaseRevoked) for a lease whose linger has passed. No lease
    /// ends early. A lease with few sessions ends within a second, even while a large one is being swept. Sweep a large
    /// lease a few sessions at a time, so that other calls need not wait.
    ///
    /// Leases survive an outage. After a restart, or a time during which leases could not be kept alive, every lease
    /// gets its full ttl again, and at least the time that [`StorageOptions::outage_grace`] describes. No lease expires
    /// while this is not polled.
    ///
    /// Whoever owns the storage runs this, one call at a time. A subject does.
    ///
    /// # Errors
    ///
    /// Any [`StorageError`]. The caller then calls this again.
    async fn expire_leases(&self) -> Result<Infallible, StorageError>;

    /// Returns the number of leases that have not ended, for metrics. It may lag behind.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn lease_count(&self) -> Result<u64, StorageError>;

    /// Returns the number of sessions, for metrics. It may lag behind.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn session_count(&self) -> Result<u64, StorageError>;

    /// Returns the registry's id and the extent of its log, as of a moment during this call.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn log(&self) -> Result<LogExtent, StorageError>;

    /// Returns the changes of `partition` right after the point `after`, in the log of `registry_id`: at least one and
    /// at most `limit`. Waits if there is no such change yet.
    ///
    /// Waiting must take no processor time. It may last for days.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no change is lost: a later call with the same point returns the same changes.
    ///
    /// # Errors
    ///
    /// - [`LogError::Trimmed`] if some change after `after` is no longer held.
    /// - [`LogError::Restarted`] if the registry has another id, or its log does not contain `after`, now or at any
    ///   time while this waits.
    /// - [`LogError::Storage`] if the storage cannot be asked.
    async fn changes_after(
        &self,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError>;

    /// Returns, for each partition, the mark at a position of its log. `None` if the position is beyond the end of the
    /// log, or if the storage no longer knows the mark because the position was trimmed.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError>;

    /// Returns the buckets that have sessions under any of `leases`. A snapshot of these leases need not read the other
    /// buckets.
    ///
    /// A session counts as being under the lease that the log names, even if that lease has ended. A storage may return
    /// additional buckets, or even all of them. For `known` see [`read_buckets`](Self::read_buckets).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`read_buckets`](Self::read_buckets), checked for all partitions.
    async fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError>;

    /// Reads the sessions of `buckets`, in order. Reads at least one bucket, and starts no further bucket once `limit`
    /// sessions are read. A storage may stop earlier, after any bucket.
    ///
    /// With `with_leases`, also returns the lease of each session: the lease that the log names, even if it has ended.
    ///
    /// `known` has a point for each partition: how far the caller has read the log of `registry_id`. The log must
    /// contain the points of all partitions whose buckets are read.
    ///
    /// # Errors
    ///
    /// - [`LogError::Restarted`] if the registry has another id, if the log does not contain the known point of a
    ///   partition that is read, or if the mark at that point is no longer known.
    /// - [`LogError::Storage`] if the storage cannot be asked.
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
    /// The number of buckets: parts of the set of sessions, each read in one step. At least 1.
    pub buckets: u32,
    /// The number of partitions: parts of the log, each with its own order of changes. At least 1.
    pub partitions: u32,
}
