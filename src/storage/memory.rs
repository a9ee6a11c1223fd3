//! The storage in this process' memory: fast, and gone with the process.
//!
//! The set is a fixed number of buckets, each a small hash table under a lock of its own, so that a table of millions is
//! never rehashed at once. A change is made under its bucket's lock and appended to its partition's log before that lock
//! is let go: this is what makes the two one step, and a bucket's read exact.

mod bucket;
mod log;

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use parking_lot::Mutex;

use self::{bucket::Bucket, log::Log};
use super::{BucketRun, Layout, LogError, LogExtent, Position, RegistryId, SessionStorage, StorageError};
use crate::session::{DestroyReason, SessionChange, SessionEvent, SessionKey};

/// A batch lets other tasks of its thread run after this many sessions, a few hundred microseconds of work.
const SESSIONS_BETWEEN_YIELDS: usize = 1024;

/// No more buckets than this are read at once, so that many empty ones do not make a long step.
const BUCKETS_A_READ: u32 = 1024;

/// The storage in this process' memory.
///
/// A session costs about 25 bytes with the default of 4096 buckets: 16 for its key, 2 for its place in its bucket's hash
/// table, and the room that both leave for growth.
pub struct MemoryStorage {
    registry_id: RegistryId,
    /// Keyed by chance: ids are chosen by clients, who must not be able to make them collide. `RandomState` is SipHash-1-3.
    hash: RandomState,
    buckets: Box<[Mutex<Bucket>]>,
    logs: Box<[Log]>,
    session_count: AtomicU64,
    max_sessions: u64,
}

/// How a [`MemoryStorage`] is made.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOptions {
    /// Buckets of the set: rounded up to a power of two. A bucket holds at most 65,536 sessions. 4096 by default.
    pub buckets: u32,
    /// Partitions of the log, at least 1. More than the default of 1 has no use but to test what follows a log.
    pub partitions: u32,
    /// How many changes each partition keeps, at least 1. Rounded up to whole segments of at most 4096.
    pub retain_events: usize,
    /// How many sessions may exist.
    pub max_sessions: u64,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self { buckets: 4096, partitions: 1, retain_events: 1 << 20, max_sessions: 200_000_000 }
    }
}

impl MemoryStorage {
    /// An empty registry with an identity of its own.
    #[must_use]
    pub fn new(options: MemoryOptions) -> Self {
        let buckets = options.buckets.max(1).next_power_of_two();
        Self {
            registry_id: RegistryId(fastrand::u64(..)),
            hash: RandomState::new(),
            buckets: (0..buckets).map(|_| Mutex::default()).collect(),
            logs: (0..options.partitions.max(1)).map(|_| Log::new(options.retain_events)).collect(),
            session_count: AtomicU64::new(0),
            max_sessions: options.max_sessions,
        }
    }

    fn bucket_of_hash(&self, hash: u64) -> u32 {
        // The bucket's own table takes the lowest and the highest bits of the same hash.
        (hash >> 32) as u32 & (self.buckets.len() as u32 - 1)
    }

    fn log_of(&self, bucket: u32) -> &Log {
        &self.logs[self.partition_of(bucket) as usize]
    }

    fn create_one(&self, session: SessionKey) -> Result<bool, StorageError> {
        let too_many = || StorageError::TooManySessions { limit: self.max_sessions };
        let hash = self.hash.hash_one(session);
        let bucket_index = self.bucket_of_hash(hash);
        let mut bucket = self.buckets[bucket_index as usize].lock();
        if bucket.contains(hash, &session) {
            return Ok(false);
        }
        // Counted before it is inserted: two buckets at once must not both take the last place.
        let counted = self
            .session_count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < self.max_sessions).then_some(n + 1));
        counted.map_err(|_| too_many())?;
        if !bucket.insert(hash, session, &self.hash) {
            self.session_count.fetch_sub(1, Ordering::Relaxed);
            return Err(too_many());
        }
        let followers = self.log_of(bucket_index).append(SessionEvent { session, change: SessionChange::Created });
        drop(bucket);
        followers.wake();
        Ok(true)
    }

    fn destroy_one(&self, session: SessionKey) -> bool {
        let hash = self.hash.hash_one(session);
        let bucket_index = self.bucket_of_hash(hash);
        let mut bucket = self.buckets[bucket_index as usize].lock();
        if !bucket.remove(hash, &session, &self.hash) {
            return false;
        }
        self.session_count.fetch_sub(1, Ordering::Relaxed);
        let change = SessionChange::Destroyed(DestroyReason::Requested);
        let followers = self.log_of(bucket_index).append(SessionEvent { session, change });
        drop(bucket);
        followers.wake();
        true
    }

    fn has_one(&self, session: &SessionKey) -> bool {
        let hash = self.hash.hash_one(session);
        self.buckets[self.bucket_of_hash(hash) as usize].lock().contains(hash, session)
    }
}

/// Does `step` for each session, letting other tasks run in between.
async fn each<R>(
    sessions: &[SessionKey],
    mut step: impl FnMut(&SessionKey) -> Result<R, StorageError> + Send,
) -> Result<Vec<R>, StorageError> {
    let mut results = Vec::with_capacity(sessions.len());
    for (n, session) in sessions.iter().enumerate() {
        if n > 0 && n % SESSIONS_BETWEEN_YIELDS == 0 {
            tokio::task::yield_now().await;
        }
        results.push(step(session)?);
    }
    Ok(results)
}

#[async_trait]
impl SessionStorage for MemoryStorage {
    fn layout(&self) -> Layout {
        Layout { buckets: self.buckets.len() as u32, partitions: self.logs.len() as u32 }
    }

    fn bucket_of(&self, session: &SessionKey) -> u32 {
        self.bucket_of_hash(self.hash.hash_one(session))
    }

    fn partition_of(&self, bucket: u32) -> u32 {
        bucket % self.logs.len() as u32
    }

    async fn create(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        each(sessions, |session| self.create_one(*session)).await
    }

    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        each(sessions, |session| Ok(self.has_one(session))).await
    }

    async fn destroy(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        each(sessions, |session| Ok(self.destroy_one(*session))).await
    }

    async fn session_count(&self) -> Result<u64, StorageError> {
        Ok(self.session_count.load(Ordering::Relaxed))
    }

    async fn log(&self) -> Result<LogExtent, StorageError> {
        Ok(LogExtent { registry_id: self.registry_id, partitions: self.logs.iter().map(Log::extent).collect() })
    }

    async fn changes_after(
        &self,
        partition: u32,
        after: Position,
        limit: usize,
    ) -> Result<Vec<SessionEvent>, LogError> {
        self.logs[partition as usize].changes_after(after, limit).await
    }

    async fn read_buckets(&self, first: u32, limit: usize) -> Result<BucketRun, StorageError> {
        let mut run = BucketRun::default();
        let end = first.saturating_add(BUCKETS_A_READ).min(self.buckets.len() as u32);
        for index in first..end {
            let bucket = self.buckets[index as usize].lock();
            run.sessions.extend_from_slice(bucket.sessions());
            // Read under the bucket's lock: no change of this bucket can come between.
            run.positions.push(self.log_of(index).newest());
            if run.sessions.len() >= limit {
                break;
            }
        }
        Ok(run)
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStorage")
            .field("registry_id", &format_args!("{}", self.registry_id))
            .field("session_count", &self.session_count)
            .finish_non_exhaustive()
    }
}
