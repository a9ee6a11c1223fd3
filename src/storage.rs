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
//! A storage alone expires no leases and has no observers. Start a [`SessionSubject`](crate::subject::SessionSubject)
//! on it for both.
//!
//! # Write a storage
//!
//! Implement [`SessionStorage`], and test it with the suite in `sessiond::storage::conformance` (feature
//! `conformance`). The example `custom_storage` in the repository is a complete storage. A storage consists of:
//!
//! - **The set of sessions**, divided into buckets, so that a snapshot can read it bucket by bucket. [`Layout`] says
//!   how many there are.
//! - **The log of changes**, which observers follow. It may be divided into partitions. A [`Position`] numbers the
//!   changes of a partition, and a [`Mark`] tells apart two logs that agree up to some position and then differ,
//!   because changes were lost. A [`LogPoint`] is both together.
//! - **The leases**, each with a ttl and an owner. [`Takeover`] says when a session may move from one to another.
//!
//! Its methods fail with a [`StorageError`], or a [`LogError`] if they read the log or a snapshot.

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
    lease::{LeasePage, LeaseQuery, LeaseStatus, MAX_LINGER, MAX_OWNER_BYTES, MAX_TTL, MIN_TTL},
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
/// `examples/custom_storage` in the repository is a complete storage over an embedded database. Run the suite in
/// `sessiond::storage::conformance` (feature `conformance`) on yours. It checks every obligation below, except for what
/// shows only when a storage loses changes. To serve the storage, hand it to a
/// [`SessionSubject`](crate::subject::SessionSubject), or set `ServerConfig::storage` to it (feature `server`).
///
/// # The model
///
/// Sessions are kept in [`Layout::buckets`] buckets, and changes in a log of [`Layout::partitions`] partitions. A
/// session always belongs to the same bucket, and a bucket to the same partition. One partition is enough, unless
/// several machines share the work. More buckets make a snapshot cheaper for everybody else, because a bucket is read
/// in one step.
///
/// The changes of a partition are numbered by [`Position`], from 1 and without gaps. A [`LogPoint`] is a position
/// together with the [`Mark`] of the log there. Marks tell histories apart if a storage can lose changes, as when an
/// old copy of a file is put back. A storage whose log has one writer can draw one random mark whenever it is opened,
/// and give it to all changes from then on. The positions before keep their marks.
///
/// # Obligations
///
/// - **Atomic**: a change of a session and its entry in the log are one step. Nobody can see one without the other.
/// - **Alternating**: the changes of a session in the log are created, destroyed, created, and so on, with any number
///   of moves while the session exists. A call that changes nothing appends nothing.
/// - **Placed**: the log tells each session's lease: the one that it is created under, the ones that it moves from and
///   to, and the one that it was under when it was destroyed. A lookup agrees with the log, but never tells a lease
///   that has ended.
/// - **Visible**: once a call has returned, every later call sees its change, through every handle to the registry.
/// - **Ordered**: positions grow in the order in which changes took effect. Changes of one batch that share a partition
///   keep the order of the batch.
/// - **Exact reads**: [`read_buckets`](Self::read_buckets) returns, for each bucket, the sessions in it just after the
///   change at the position that it names.
/// - **Histories**: two logs of one registry id that have the same mark at a position agree on every change up to it.
///   If a log loses changes and continues differently, its marks are different from there on. The mark at a position
///   never changes, and is the same through every handle.
/// - **One history**: a handle never mixes two histories. If the log loses a position that the handle has named in any
///   answer, followers of that handle get [`LogError::Restarted`] before they pass the position, or the registry gets
///   another id. Snapshots and observers that resume rely on this when they are ahead of the follower.
/// - **Leased**: once a lease has ended, no session comes under it, and each session that is still under it is
///   destroyed, once. A session that has moved to another lease is not.
/// - **Cancellable**: see [Cancellation](#cancellation).
/// - **Concurrent**: see [Concurrency and order](#concurrency-and-order).
/// - **Writable**: [`writability`](Self::writability) says within 10 s whether changes are accepted. While they are
///   refused, sessions, leases and the log stay as they are. Only a change that was in progress when the refusal began
///   may still be made later.
/// - **Bounded**: the log keeps a bounded number of changes, and says when a position is no longer held. It need not
///   outlive the process: a storage that starts a new log also gives the registry a new id.
///
/// # Arguments
///
/// - **Empty lists**: a call about no session returns an empty answer, whatever lease it names. A read of no bucket
///   returns an empty run. No buckets are under no leases. The one exception is [`LeaseQuery::lease_ids`], where an
///   empty list means all leases.
/// - **Duplicates**: every element of a list gets its own answer. A batch takes effect in order: if a session is named
///   twice, the first may create it, and the second finds that it exists. Naming a lease twice is the same as naming it
///   once.
/// - **Limits**: a `limit` of 0 counts as 1.
/// - **Size**: a batch has up to 65,536 sessions when it comes over gRPC, and any number otherwise.
/// - **Ttl and linger**: a ttl is at least [`MIN_TTL`]; a storage may expire leases with shorter ones late. A ttl above
///   [`MAX_TTL`] is cut to it, and a linger above [`MAX_LINGER`] as well. Either may be rounded up to whole
///   milliseconds.
/// - **Owner**: any text of up to [`MAX_OWNER_BYTES`], also the empty one. The service refuses longer ones; a storage
///   need not check.
/// - **Positions, points and numbers**: a list of positions or points has one element for each partition. Buckets are
///   in ascending order, each once, and less than [`Layout::buckets`]. Partitions are less than [`Layout::partitions`].
///   A storage may panic if a caller breaks this.
///
/// # Cancellation
///
/// Callers drop futures: when a client cancels a call, when a call times out, and at shutdown.
///
/// - A change that is dropped leaves each of its sessions either changed, with the entry in the log, or not. A storage
///   may finish what it had begun, but not after a change of the same session that is asked for later through the same
///   handle.
/// - A read that is dropped has no effect. This includes [`changes_after`](Self::changes_after), which spends most of
///   its life waiting: if it is dropped, nothing is lost, and a later call with the same point returns the same
///   changes.
/// - A revoke that is dropped before its first poll, or before the lease has ended, has no effect. Once the lease has
///   ended, [`expire_leases`](Self::expire_leases) destroys the sessions that are left.
/// - [`expire_leases`](Self::expire_leases) that is dropped goes on with the next call of it.
///
/// # Concurrency and order
///
/// All methods may be called at the same time, from any number of tasks and threads. Any number of followers may wait
/// in [`changes_after`](Self::changes_after). Calls that do not overlap take effect in the order in which they are
/// made, each before it returns. Calls that overlap take effect in any order, and a batch takes effect session by
/// session, not as a whole.
///
/// Do not block the thread of a caller, as it serves other calls as well: use `spawn_blocking` or a thread of your own.
///
/// # Errors
///
/// What follows from each error:
///
/// | error | what a gRPC client gets | what else happens |
/// |---|---|---|
/// | [`Unavailable`](StorageError::Unavailable) | `UNAVAILABLE`, and a pause before it retries | see below |
/// | [`Refused`](StorageError::Refused) | the same, with the kind of cause | nothing: `writability` tells of it |
/// | [`TooManySessions`](StorageError::TooManySessions) | `RESOURCE_EXHAUSTED` | nothing |
/// | [`TooManyLeases`](StorageError::TooManyLeases) | `RESOURCE_EXHAUSTED` | nothing |
/// | [`UnknownLease`](StorageError::UnknownLease) | `NOT_FOUND`; `FAILED_PRECONDITION` for a create | it takes a new lease |
/// | [`LeaseLingers`](StorageError::LeaseLingers) | `FAILED_PRECONDITION` | it takes a new lease |
/// | [`Broken`](StorageError::Broken) | `INTERNAL`, without the cause | the cause is logged for each call |
/// | [`Trimmed`](LogError::Trimmed) | a reset of its stream, `LAGGED` | every observer reads a new snapshot |
/// | [`Restarted`](LogError::Restarted) | a reset of its stream, `STORAGE_RESTARTED` | the same |
///
/// The last two are what follows if [`changes_after`](Self::changes_after) returns them.
///
/// The subject retries by itself. If [`changes_after`](Self::changes_after) fails, the server is no longer ready, and
/// asks again after 50 ms to 2 s until it succeeds. If [`expire_leases`](Self::expire_leases)
/// fails, it is called again in the same way. A snapshot asks again every 500 ms, also after [`LogError::Restarted`].
/// An observer cannot start if [`log`](Self::log) or [`marks`](Self::marks) fails. A server that starts waits for a
/// storage whose errors [may pass](StorageError::may_pass).
///
/// A change that failed may have been made in part. What has not taken effect when the error is returned never does, so
/// that no later call is undone by an earlier one. Retries are safe, because creates and destroys are idempotent.
///
/// # Start and shutdown
///
/// A subject calls [`log`](Self::log) when it starts and for each new observer. It runs
/// [`expire_leases`](Self::expire_leases) and, for each partition, [`changes_after`](Self::changes_after), until it
/// ends. It asks for [`writability`](Self::writability) and [`failed_task`](Self::failed_task) four times a second.
///
/// At shutdown no method is called. A server first finishes its calls, or drops them when the drain timeout has passed.
/// Then the futures above are dropped, and in the end the last handle. A storage that has something to write, or
/// threads to stop, does so in `Drop`.
///
/// Its `Debug` is written to the log when a server opens it. Keep it short, and leave out passwords.
#[async_trait]
pub trait SessionStorage: fmt::Debug + Send + Sync + 'static {
    /// Returns how many buckets and partitions there are. Never changes.
    fn layout(&self) -> Layout;

    /// Returns the bucket of `session`, whether that exists or not. Less than [`Layout::buckets`], and never changes
    /// for one registry id.
    ///
    /// Called for every event that an observer in a snapshot reads, so it must be quick.
    fn bucket_of(&self, session: &SessionKey) -> u32;

    /// Returns the partition that logs the changes of `bucket`. Less than [`Layout::partitions`], and never changes.
    fn partition_of(&self, bucket: u32) -> u32;

    /// Returns whether the registry can be changed at present, as far as the storage knows.
    ///
    /// A storage finds out by itself within 10 s, in both directions, and does not wait for a call to fail. It answers
    /// from memory, at once. `/writable`, the health of `sessiond.v1.SessionService/write` and the metrics show the
    /// answer; readiness does not depend on it. By default changes are always possible, so every storage that can lose
    /// this ability overrides the method.
    fn writability(&self) -> Writability {
        Writability::Writable
    }

    /// Returns whether the underlying store may drop sessions when its memory is full, without an event. `None` if the
    /// question does not arise, or cannot be answered yet. A metric shows the answer.
    fn evicts_keys(&self) -> Option<bool> {
        None
    }

    /// Returns the name of a task or thread that the storage cannot work without and that has panicked.
    ///
    /// A server over such a storage stops being ready, drains, and ends with an error. By default there is no such
    /// task.
    fn failed_task(&self) -> Option<&'static str> {
        None
    }

    /// Creates sessions. Returns for each, in order, whether this call created it, and the lease that it is under now.
    ///
    /// With a lease, every session comes under it, except for those that exist already and that [`Takeover`] does not
    /// let it take. Without a lease, sessions that existed keep theirs. A session that comes under another lease is
    /// logged as moved.
    ///
    /// [`Answers::places`] tells where in the log the answers are true, also for sessions that were not changed.
    ///
    /// # Errors
    ///
    /// Any [`StorageError`]. [`StorageError::UnknownLease`] and [`StorageError::LeaseLingers`] name the lease of
    /// `options`, and no session comes under it. Sessions earlier in the list may have been created all the same, and a
    /// retry is safe.
    async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError>;

    /// Creates sessions, and takes those that exist from any lease. Returns for each, in order, whether this call
    /// created it.
    ///
    /// Provided: calls [`create_with`](Self::create_with).
    ///
    /// # Errors
    ///
    /// As `create_with`.
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
    /// A lease that has ended is not returned, although its sessions may still exist for a while. One that lingers is.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError>;

    /// Destroys sessions. Returns for each, in order, whether this call destroyed it.
    ///
    /// With a lease, only sessions under that lease are destroyed, for the reason
    /// [`Released`](crate::session::DestroyReason::Released). If the lease is unknown, nothing is. Without a lease, the
    /// reason is [`Requested`](crate::session::DestroyReason::Requested).
    ///
    /// # Errors
    ///
    /// Any [`StorageError`]. Sessions earlier in the list may have been destroyed all the same, and a retry is safe.
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
    /// As `destroy_with`.
    async fn destroy(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        Ok(self.destroy_with(sessions, lease).await?.sessions)
    }

    /// Grants a lease that expires if it is not kept alive for `ttl`. `owner` says who holds it, by convention as the
    /// address of a gateway.
    ///
    /// The id is random, at most [`LeaseId::MAX`], and not in use. It must not be reused soon, because a gateway that
    /// comes back with an old id must not meet another gateway's lease.
    ///
    /// # Errors
    ///
    /// Any [`StorageError`], such as [`StorageError::TooManyLeases`].
    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError>;

    /// Lets a lease live for its whole ttl from now on. Returns that ttl.
    ///
    /// A storage should do this even while it refuses changes. Otherwise gateways lose their leases because, say, a
    /// disk is full.
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

    /// Ends a lease once `linger` has passed, and destroys the sessions that are under it then, for the reason
    /// [`LeaseRevoked`](crate::session::DestroyReason::LeaseRevoked). Without a linger, ends it now, and returns how
    /// many sessions that destroyed. With one, returns 0.
    ///
    /// While a lease lingers, no session comes under it, it cannot be kept alive, and it does not protect sessions from
    /// [`Takeover::OnlyFrom`]. Sessions under it can be destroyed, and moved to other leases. Its ttl no longer
    /// matters, and outages and restarts do not delay its end. Another revoke can only bring the end forward.
    ///
    /// The lease has ended before the first session is destroyed. If the future is dropped,
    /// [`expire_leases`](Self::expire_leases) destroys the rest.
    ///
    /// # Errors
    ///
    /// [`StorageError::UnknownLease`] if the lease has ended already.
    async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError>;

    /// Ends a lease now.
    ///
    /// Provided: calls [`revoke_lease_with`](Self::revoke_lease_with) without a linger.
    ///
    /// # Errors
    ///
    /// As `revoke_lease_with`.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, StorageError> {
        self.revoke_lease_with(lease, Duration::ZERO).await
    }

    /// Lists leases that have not ended, in the order of their ids. Leases that linger are among them.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError>;

    /// Ends leases as they expire and as their lingers pass, and destroys the sessions under them. Runs for as long as
    /// it is polled.
    ///
    /// The reason is [`LeaseExpired`](crate::session::DestroyReason::LeaseExpired) for a lease whose ttl has passed,
    /// and [`LeaseRevoked`](crate::session::DestroyReason::LeaseRevoked) for one whose linger has. No lease ends early.
    /// One with few sessions ends within a second, also while the sessions of a large one are being destroyed: a few at
    /// a time, so that other calls are not held up.
    ///
    /// Leases outlive an outage: after a restart, or a time in which leases could not be kept alive, each gets its ttl
    /// again, and at least as much as [`StorageOptions::outage_grace`] says. Nothing expires while nobody polls this.
    ///
    /// The owner of a storage runs this once, as a subject does.
    ///
    /// # Errors
    ///
    /// Any [`StorageError`]. It is called again after that.
    async fn expire_leases(&self) -> Result<Infallible, StorageError>;

    /// Returns how many leases have not ended, for metrics. May lag behind the changes.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn lease_count(&self) -> Result<u64, StorageError>;

    /// Returns how many sessions there are, for metrics. May lag behind the changes.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn session_count(&self) -> Result<u64, StorageError>;

    /// Returns which registry this is and how far its log reaches, no older than the call.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn log(&self) -> Result<LogExtent, StorageError>;

    /// Returns the changes of `partition` right after `after`, in the log of `registry_id`: at least one and at most
    /// `limit`. Waits for the first if there is none yet.
    ///
    /// A wait takes no processor time and may last for days. See [Cancellation](#cancellation) for what happens if it
    /// is dropped.
    ///
    /// # Errors
    ///
    /// - [`LogError::Trimmed`] if some change after `after` is no longer held.
    /// - [`LogError::Restarted`] if `registry_id` is another registry, or its log does not contain `after`. Also if
    ///   that comes true while the call waits.
    /// - [`LogError::Storage`] if the storage cannot be asked.
    async fn changes_after(
        &self,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError>;

    /// Returns for each partition the mark at a position of its log. `None` beyond the log's end, and before its start
    /// if the storage no longer knows the mark.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] if the storage cannot be asked.
    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError>;

    /// Returns the buckets that have sessions under some leases, so that the others need not be read.
    ///
    /// Sessions count as under the lease that the log tells, even if the lease has ended. `known` is as for
    /// [`read_buckets`](Self::read_buckets). A storage that does not know may return more buckets, or all of them.
    ///
    /// # Errors
    ///
    /// As `read_buckets`, for all partitions.
    async fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError>;

    /// Returns the sessions in the first of `buckets`: at least one bucket, and no further one once `limit` sessions
    /// are read. A storage may stop earlier.
    ///
    /// With `with_leases`, the lease of each session is returned as well: the one that the log tells, even if it has
    /// ended.
    ///
    /// `known` says how far the caller has read the log of `registry_id`. What is returned comes from a registry whose
    /// log contains the points in it of the partitions that are read.
    ///
    /// # Errors
    ///
    /// - [`LogError::Restarted`] if `registry_id` is another registry, if the log does not contain the known point of a
    ///   partition that is read, or if the mark there is no longer known.
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

/// The number of a change in its partition's log. The first change has number 1, and 0 is the place before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// A random number that a storage gives to a stretch of its log. Marks tell two histories of one registry apart.
///
/// Two logs of one registry with the same mark at a position have the same changes up to it. The mark at a position is
/// that of the stretch that its change belongs to. The mark at position 0 is drawn when the log begins. What a stretch
/// is depends on the storage: all changes of a process, all since a file was opened, or those of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mark(pub u64);

/// A position in a partition's log, and the mark there. Names one history up to this position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogPoint {
    /// The position.
    pub position: Position,
    /// The mark at that position.
    pub mark: Mark,
}

impl LogPoint {
    /// Returns the point at the last of `changes`, which follow this point.
    #[must_use]
    pub fn past(self, changes: &Changes) -> Self {
        Self { position: Position(self.position.0 + changes.events.len() as u64), mark: changes.mark }
    }
}

/// The identity of a registry: a random number that is drawn when the registry begins, and kept for as long as its log
/// continues.
///
/// Its text form is 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegistryId(pub u64);

impl fmt::Display for RegistryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How far the log of a registry reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogExtent {
    /// The registry that the log belongs to.
    pub registry_id: RegistryId,
    /// For each partition, the points between which changes are held: after `start`, up to and including `end`.
    pub partitions: Vec<Range<LogPoint>>,
}

impl LogExtent {
    /// Describes the log of a registry.
    #[must_use]
    pub const fn new(registry_id: RegistryId, partitions: Vec<Range<LogPoint>>) -> Self {
        Self { registry_id, partitions }
    }
}

/// Consecutive changes of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// The changes, in order; at least one.
    pub events: Vec<SessionEvent>,
    /// The mark at the last of them.
    pub mark: Mark,
}

impl Changes {
    /// Makes a run of changes, with the mark at the last of them.
    #[must_use]
    pub const fn new(events: Vec<SessionEvent>, mark: Mark) -> Self {
        Self { events, mark }
    }
}

/// The buckets that have sessions under some leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseBuckets {
    /// For each partition, the point of its log at which the answer is true, never before the known one.
    pub points: Vec<LogPoint>,
    /// The buckets that have sessions under the leases, in ascending order. Others may be among them. A session counts
    /// as being under the lease that the log names, even if that lease has ended.
    pub buckets: Vec<u32>,
}

impl LeaseBuckets {
    /// Makes the answer, with a point for each partition.
    #[must_use]
    pub const fn new(points: Vec<LogPoint>, buckets: Vec<u32>) -> Self {
        Self { points, buckets }
    }
}

/// The sessions in some buckets. The default is the answer for no bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BucketRun {
    /// For each bucket that was read, in order, the point of its partition's log that its sessions reflect. All belong
    /// to one history.
    pub points: Vec<LogPoint>,
    /// The sessions in those buckets, in any order.
    pub sessions: Vec<SessionKey>,
    /// The lease of each of these sessions, if leases were requested. Empty otherwise.
    pub leases: Vec<Option<LeaseId>>,
}
