//! The memory storage: fast, and gone when the process ends.
//!
//! Create one with [`MemoryStorage::new`], or open the URL `memory:`.
//!
//! # How it works
//!
//! The sessions are in a fixed number of buckets. Each bucket is a small hash table with its own lock, so no table of
//! millions of entries is ever rehashed at once. A change is made under its bucket's lock, and appended to its
//! partition's log before that lock is released. This makes the two atomic, and reads of a bucket exact.

mod bucket;
mod change;
mod held;
mod lease;
mod log;
mod marks;
mod restore;
mod slots;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio::time::sleep;

use self::{
    bucket::Bucket,
    change::{Change, Made},
    held::{GROUP, Held},
    lease::{Ended, Lease, Leases},
    log::Log,
    slots::LeaseState,
};
use super::{
    Answers, BucketRun, Changes, CreateOptions, Creation, Layout, LeaseBuckets, LeasePage, LeaseQuery, LogError,
    LogExtent, LogPoint, Lookup, MAX_LINGER, MAX_TTL, Mark, Place, Places, Position, RegistryId, SessionStorage,
    StorageError, StorageOptions, WriteRefusal,
    journal::{Journal, Lsn},
};
use crate::{
    random::random_u64,
    session::{DestroyReason, LeaseId, SessionEvent, SessionKey},
    table::SessionHasher,
};

pub(super) use self::{
    marks::{Marks, Stretch},
    restore::{Identity, Restore},
};

/// How many sessions of a batch are processed before other tasks of the thread run: a few hundred microseconds of work.
const SESSIONS_BETWEEN_YIELDS: usize = 1024;

/// The most buckets read in one call, so that many empty buckets do not hold up other tasks.
const BUCKETS_A_READ: usize = 1024;

/// The most sessions of a lease destroyed under one hold of a bucket's lock.
const SESSIONS_A_SWEEP: usize = 512;

/// How many leases are swept concurrently, so that a lease of a few sessions does not wait for one of millions. One
/// step of each is made before other tasks run, so this number is small.
const SWEEPS_AT_ONCE: usize = 8;

/// How often the leases' clock is advanced while there are leases.
const ADVANCE_INTERVAL: Duration = Duration::from_millis(100);

/// If the clock was not advanced for this long, the process was paused, and gateways may have lost their connections.
const PAUSE: Duration = Duration::from_secs(5);

/// How long gateways need to reconnect after an outage, beyond its length, because gRPC's backoff grows with it.
const BEYOND_OUTAGE: Duration = Duration::from_secs(20);

/// A registry in this process's memory.
///
/// With the default of 4096 buckets, a session costs 21 to 29 bytes once there are a million: 16 for its key, 3 for its
/// entry in the bucket's hash table, and their room to grow. Once a bucket has had a session under a lease, each of its
/// sessions costs 4 to 6 bytes more.
pub struct MemoryStorage {
    registry_id: RegistryId,
    hash: SessionHasher,
    buckets: Box<[Mutex<Bucket>]>,
    logs: Box<[Log]>,
    leases: Leases,
    session_count: AtomicU64,
    max_sessions: u64,
    outage_grace: Duration,
    /// Records changes that must be durable before they are acknowledged. `None` if changes end with the process.
    journal: Option<Arc<Journal>>,
}

/// Options of a [`MemoryStorage`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MemoryOptions {
    /// Number of buckets, rounded up to a power of two. A bucket holds at most 65,536 sessions. 4096 by default.
    pub buckets: u32,
    /// Number of log partitions, at least 1. More than the default of 1 is only useful to test followers of a log.
    pub partitions: u32,
    /// How many changes each partition retains, as described at
    /// [`StorageOptions::retain_events`](super::StorageOptions::retain_events). Rounded up to whole segments of at most
    /// 4096. 1,048,576 by default.
    pub retain_events: usize,
    /// The maximum number of sessions. 200,000,000 by default.
    pub max_sessions: u64,
    /// The maximum number of leases. 1,000,000 by default.
    pub max_leases: u64,
    /// Limits the extra time that leases get after an outage, as described at
    /// [`StorageOptions::outage_grace`](super::StorageOptions::outage_grace). 150 s by default.
    pub outage_grace: Duration,
}

impl MemoryOptions {
    setters!(const
        buckets: u32,
        partitions: u32,
        retain_events: usize,
        max_sessions: u64,
        max_leases: u64,
        outage_grace: Duration,
    );
}

impl Default for MemoryOptions {
    fn default() -> Self {
        StorageOptions::default().into()
    }
}

impl From<StorageOptions> for MemoryOptions {
    fn from(options: StorageOptions) -> Self {
        let StorageOptions { retain_events, max_sessions, max_leases, outage_grace } = options;
        Self { buckets: 4096, partitions: 1, retain_events, max_sessions, max_leases, outage_grace }
    }
}

impl MemoryStorage {
    /// Makes an empty registry with a random identity.
    #[must_use]
    pub fn new(options: MemoryOptions) -> Self {
        Self::with_hash(options, RegistryId(random_u64()), SessionHasher::random(), &Marks::random(), None)
    }

    fn with_hash(
        options: MemoryOptions,
        registry_id: RegistryId,
        hash: SessionHasher,
        marks: &Marks,
        journal: Option<Arc<Journal>>,
    ) -> Self {
        let buckets = options.buckets.max(1).next_power_of_two();
        let log = |_| Log::new(options.retain_events, journal.is_none(), marks.clone());
        Self {
            registry_id,
            hash,
            buckets: (0..buckets).map(|_| Mutex::default()).collect(),
            logs: (0..options.partitions.max(1)).map(log).collect(),
            leases: Leases::new(options.max_leases, journal.clone()),
            session_count: AtomicU64::new(0),
            max_sessions: options.max_sessions,
            outage_grace: options.outage_grace,
            journal,
        }
    }

    /// Returns the place of the newest change in a bucket's partition.
    fn newest_place(&self, bucket: u32) -> Place {
        Place { partition: self.partition_of(bucket), position: self.log_of(bucket).newest() }
    }

    fn log_of(&self, bucket: u32) -> &Log {
        &self.logs[self.partition_of(bucket) as usize]
    }

    fn spot_of(&self, session: &SessionKey) -> Spot {
        Spot { hash: self.hash.within(session), bucket: self.bucket_of(session) }
    }

    /// Calls `push` for each session, with what `look` returns and the record that this depends on.
    fn look_some<const N: usize, T>(
        &self,
        sessions: &[SessionKey],
        look: impl Fn(&Bucket, Option<usize>) -> (T, Lsn),
        mut push: impl FnMut(T, Lsn),
    ) {
        let spots: SmallVec<[Spot; N]> = sessions.iter().map(|session| self.spot_of(session)).collect();
        let mut held = Held::<N>::lock(&self.buckets, spots.iter().map(|spot| spot.bucket));
        if sessions.len() > 1 {
            held.fetch(spots.iter().map(|spot| spot.hash));
        }
        for (nth, (session, spot)) in sessions.iter().zip(spots).enumerate() {
            let bucket = held.bucket(nth);
            let (found, lsn) = look(bucket, bucket.find(spot.hash, session));
            push(found, lsn.max(bucket.recorded(session)));
        }
    }

    /// Looks up sessions and lets other tasks run in between. Waits until what was found is durable.
    async fn look<T>(
        &self,
        sessions: &[SessionKey],
        look: impl Fn(&Bucket, Option<usize>) -> (T, Lsn),
    ) -> Result<Vec<T>, StorageError> {
        let mut all = Vec::with_capacity(sessions.len());
        let mut newest = Lsn(0);
        for part in sessions.chunks(SESSIONS_BETWEEN_YIELDS) {
            if !all.is_empty() {
                tokio::task::yield_now().await;
            }
            let mut push = |found, lsn| {
                all.push(found);
                newest = newest.max(lsn);
            };
            match part {
                [_] => self.look_some::<1, T>(part, &look, &mut push),
                _ => part.chunks(GROUP).for_each(|some| self.look_some::<GROUP, T>(some, &look, &mut push)),
            }
        }
        self.durable(newest).await.map_err(unreadable)?;
        Ok(all)
    }

    /// Returns the lease of the session at `place`. If that lease has ended, returns `None` and the record of its end.
    fn lease_at(&self, bucket: &Bucket, place: usize) -> (Option<LeaseId>, Lsn) {
        let slot = bucket.lease(place);
        match self.leases.id(slot) {
            Some(ended) if self.leases.slots.has_ended(slot) => (None, self.leases.end_of(ended)),
            lease => (lease, Lsn(0)),
        }
    }

    /// Checks that the logs contain what the caller has read. Checks all partitions, because adjacent buckets belong to
    /// different ones.
    fn check_known(&self, registry_id: RegistryId, known: &[LogPoint]) -> Result<(), LogError> {
        let knows = |(log, point): (&Log, &LogPoint)| log.mark(point.position) == Some(point.mark);
        let is_known = registry_id == self.registry_id && self.logs.iter().zip(known).all(knows);
        is_known.then_some(()).ok_or(LogError::Restarted)
    }

    /// Returns the minimum time that every lease gets after an outage. `None` means that the length of the outage is
    /// unknown.
    fn grace_after(&self, outage: Option<Duration>) -> Duration {
        outage.map_or(self.outage_grace, |outage| (outage + BEYOND_OUTAGE).min(self.outage_grace))
    }

    /// Waits until a change may be made, or refuses it.
    async fn admit(&self) -> Result<(), StorageError> {
        match &self.journal {
            Some(journal) => journal.admit().await,
            None => Ok(()),
        }
    }

    /// Waits until a crash can no longer undo what the caller will be told.
    async fn durable(&self, lsn: Lsn) -> Result<(), WriteRefusal> {
        match &self.journal {
            Some(journal) => journal.durable(lsn).await,
            None => Ok(()),
        }
    }

    /// Waits until everything recorded so far is durable.
    async fn all_durable(&self) -> Result<(), WriteRefusal> {
        match &self.journal {
            Some(journal) => journal.durable(journal.newest()).await,
            None => Ok(()),
        }
    }

    /// Destroys the sessions under an ended lease, a few at a time, and returns how many. If the future is dropped, the
    /// task that expires leases destroys the rest.
    fn sweep(&self, ended: Ended) -> impl Future<Output = Result<u64, StorageError>> + Send {
        // Created before the first poll, because the future may be dropped without being polled.
        let mut sweep = Sweep { storage: self, ended: Some(ended) };
        async move {
            let Some(Ended { lease, reason }) = &sweep.ended else { return Ok(0) };
            let mut destroyed = 0;
            for bucket in lease.buckets() {
                loop {
                    self.admit().await?;
                    let some = self.destroy_leased(bucket, lease, *reason);
                    destroyed += some as u64;
                    tokio::task::yield_now().await;
                    if some < SESSIONS_A_SWEEP {
                        break;
                    }
                }
            }
            self.leases.swept(lease);
            drop(sweep.ended.take());
            Ok(destroyed)
        }
    }

    /// Destroys up to [`SESSIONS_A_SWEEP`] sessions of a bucket that are under a lease.
    fn destroy_leased(&self, bucket_index: u32, lease: &Lease, reason: DestroyReason) -> usize {
        let mut bucket = self.buckets[bucket_index as usize].lock();
        let sessions = bucket.take_leased(lease.slot, SESSIONS_A_SWEEP, &self.hash);
        self.leases.slots.leave(lease.slot, sessions.len() as u64);
        self.session_count.fetch_sub(sessions.len() as u64, Ordering::Relaxed);
        let gone = |session: &SessionKey| SessionEvent::destroyed(*session, reason, Some(lease.id));
        let made: Vec<_> =
            sessions.iter().enumerate().map(|(nth, session)| Made::new(nth, bucket_index, gone(session))).collect();
        self.append(&made, None, |made, lsn| self.note(&mut bucket, made.session(), lsn));
        if !sessions.is_empty() {
            self.fit(&mut bucket, false);
        }
        drop(bucket);
        self.log_of(bucket_index).settle();
        sessions.len()
    }

    /// Gives a bucket the room that it needs. Allocates it while the bucket is unlocked.
    fn fit(&self, bucket: &mut MutexGuard<'_, Bucket>, is_leased: bool) {
        while let Some(need) = bucket.need(is_leased) {
            let room = MutexGuard::unlocked(bucket, || need.make());
            let unused = bucket.move_into(room, &self.hash);
            MutexGuard::unlocked(bucket, || drop(unused));
        }
    }
}

/// Converts a refusal to the error of a read: what was read depends on a change that is not on disk.
fn unreadable(refusal: WriteRefusal) -> StorageError {
    StorageError::Unavailable(Box::new(refusal))
}

/// Where a session is stored, or would be.
#[derive(Clone, Copy)]
struct Spot {
    hash: u64,
    bucket: u32,
}

/// A sweep of an ended lease. If dropped early, it hands the lease to the task that expires leases.
struct Sweep<'a> {
    storage: &'a MemoryStorage,
    ended: Option<Ended>,
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            self.storage.leases.hand_over(ended);
        }
    }
}

#[async_trait]
impl SessionStorage for MemoryStorage {
    fn layout(&self) -> Layout {
        Layout { buckets: self.buckets.len() as u32, partitions: self.logs.len() as u32 }
    }

    fn bucket_of(&self, session: &SessionKey) -> u32 {
        (self.hash.across(session) >> 32) as u32 & (self.buckets.len() as u32 - 1)
    }

    fn partition_of(&self, bucket: u32) -> u32 {
        bucket % self.logs.len() as u32
    }

    async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        if sessions.is_empty() {
            return Ok(Answers::default());
        }
        let lease = match options.lease {
            Some(id) => match self.leases.get(id) {
                Some(lease) if self.leases.state(&lease) == LeaseState::Lingers => {
                    self.all_durable().await.map_err(StorageError::Refused)?;
                    return Err(StorageError::LeaseLingers(id));
                }
                Some(lease) => Some((id, lease)),
                None => {
                    self.durable(self.leases.end_of(id)).await.map_err(StorageError::Refused)?;
                    return Err(StorageError::UnknownLease(id));
                }
            },
            None => None,
        };
        let lease = lease.as_ref().map(|(id, lease)| (*id, &**lease));
        self.change(sessions, Change::Create(lease, options.takeover), |creation| creation).await
    }

    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        self.look(sessions, |_, place| (place.is_some(), Lsn(0))).await
    }

    async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        let look = |bucket: &Bucket, place: Option<usize>| {
            let (lease, lsn) = place.map_or((None, Lsn(0)), |place| self.lease_at(bucket, place));
            (Lookup { exists: place.is_some(), lease }, lsn)
        };
        self.look(sessions, look).await
    }

    async fn destroy_with(
        &self,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        if sessions.is_empty() {
            return Ok(Answers::default());
        }
        let lease = match lease {
            Some(id) => match self.leases.get(id) {
                Some(lease) => Some(lease),
                None => {
                    self.durable(self.leases.end_of(id)).await.map_err(StorageError::Refused)?;
                    // No session can come under a lease that is gone, so any place from now on is valid.
                    let mut places = Places::default();
                    places.extend(sessions.iter().map(|session| self.newest_place(self.bucket_of(session))));
                    return Ok(Answers { sessions: vec![false; sessions.len()], places });
                }
            },
            None => None,
        };
        self.change(sessions, Change::Destroy(lease.as_deref()), |destroyed| destroyed.created).await
    }

    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        self.admit().await?;
        let granted = self.leases.grant(ttl.min(MAX_TTL), owner);
        // The limit may be reached because of leases whose grant a crash would undo.
        self.all_durable().await.map_err(StorageError::Refused)?;
        granted
    }

    async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        let kept = self.leases.keep_alive(lease);
        match kept {
            Err(StorageError::LeaseLingers(_)) => self.all_durable().await.map_err(unreadable)?,
            Err(_) => self.durable(self.leases.end_of(lease)).await.map_err(unreadable)?,
            Ok(_) => {}
        }
        kept
    }

    async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        let owner = self.leases.get(lease).map(|lease| Arc::clone(&lease.owner));
        if owner.is_none() {
            self.durable(self.leases.end_of(lease)).await.map_err(unreadable)?;
        }
        Ok(owner)
    }

    async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError> {
        self.admit().await?;
        let revoked = if linger.is_zero() {
            self.leases.revoke(lease).map(Some)
        } else {
            self.leases.linger(lease, linger.min(MAX_LINGER)).map(|lease| {
                // A create that found the lease alive holds its bucket's lock until its session is there.
                lease.buckets().iter().for_each(|bucket| drop(self.buckets[*bucket as usize].lock()));
                None
            })
        };
        let destroyed = match revoked {
            Ok(Some(ended)) => self.sweep(ended).await?,
            Ok(None) => 0,
            Err(error) => {
                self.durable(self.leases.end_of(lease)).await.map_err(StorageError::Refused)?;
                return Err(error);
            }
        };
        self.all_durable().await.map_err(StorageError::Refused)?;
        Ok(destroyed)
    }

    async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError> {
        let page = self.leases.list(query);
        self.durable(self.leases.newest_change()).await.map_err(unreadable)?;
        Ok(page)
    }

    async fn expire_leases(&self) -> Result<Infallible, StorageError> {
        let mut sweeps = FuturesUnordered::new();
        // The time since the last advance is unknown, so this one does not count as a pause.
        self.leases.advance_clock();
        loop {
            let passed = self.leases.advance_clock();
            if passed > PAUSE {
                tracing::warn!(seconds = passed.as_secs_f64(), "the process was paused; extending all leases");
                self.leases.keep_all_alive(self.grace_after(Some(passed)));
            }
            self.admit().await?;
            if let Some(outage) = self.journal.as_ref().and_then(|journal| journal.recovered_after()) {
                let seconds = outage.as_secs_f64();
                tracing::warn!(seconds, "the disk was not writable for a while; extending all leases");
                self.leases.keep_all_alive(self.grace_after(Some(outage)));
            }
            while sweeps.len() < SWEEPS_AT_ONCE
                && let Some(ended) = self.leases.next_ended()
            {
                sweeps.push(self.sweep(ended));
            }
            let has_unlogged = self.leases.log_expired();
            let pause = match self.leases.to_next_deadline() {
                Some(pause) if sweeps.len() < SWEEPS_AT_ONCE => pause.min(ADVANCE_INTERVAL),
                None if sweeps.is_empty() && !has_unlogged => {
                    self.leases.changed.notified().await;
                    // Advances the clock past the time without leases.
                    self.leases.advance_clock();
                    continue;
                }
                _ => ADVANCE_INTERVAL,
            };
            tokio::select! {
                Some(swept) = sweeps.next() => drop(swept?),
                () = self.leases.changed.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    async fn lease_count(&self) -> Result<u64, StorageError> {
        Ok(self.leases.count())
    }

    async fn session_count(&self) -> Result<u64, StorageError> {
        Ok(self.session_count.load(Ordering::Relaxed))
    }

    async fn log(&self) -> Result<LogExtent, StorageError> {
        Ok(LogExtent { registry_id: self.registry_id, partitions: self.logs.iter().map(Log::extent).collect() })
    }

    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError> {
        Ok(self.logs.iter().zip(positions).map(|(log, position)| log.mark(*position)).collect())
    }

    async fn changes_after(
        &self,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        if registry_id != self.registry_id {
            return Err(LogError::Restarted);
        }
        self.logs[partition as usize].changes_after(after, limit).await
    }

    async fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        self.check_known(registry_id, known)?;
        // Asked before and after the points are taken: a lease swept meanwhile is known before, and one granted
        // meanwhile after.
        let mut under = self.leases.unswept(leases);
        let points = self.logs.iter().map(Log::newest_point).collect();
        under.extend(self.leases.unswept(leases));
        // A bucket is noted in its lease before it is locked, so the bucket of every logged change is noted.
        let buckets: BTreeSet<u32> = under.iter().flat_map(|lease| lease.buckets()).collect();
        self.all_durable().await.map_err(unreadable)?;
        Ok(LeaseBuckets { points, buckets: buckets.into_iter().collect() })
    }

    async fn read_buckets(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        self.check_known(registry_id, known)?;
        let mut run = BucketRun { points: Vec::new(), sessions: Vec::new(), leases: Vec::new() };
        for &index in buckets.iter().take(BUCKETS_A_READ) {
            let bucket = self.buckets[index as usize].lock();
            if run.sessions.is_empty() {
                run.sessions.reserve(limit.min(bucket.len() * buckets.len()) + bucket.len());
            }
            bucket.sessions().for_each(|sessions| run.sessions.extend_from_slice(sessions));
            if with_leases {
                run.leases.extend(bucket.leased().map(|(_, slot)| self.leases.id(slot)));
            }
            // Read under the bucket's lock, so that no change of the bucket can come in between.
            run.points.push(self.log_of(index).newest_point());
            if run.sessions.len() >= limit {
                break;
            }
        }
        // A crash may still undo what was read.
        self.all_durable().await.map_err(unreadable)?;
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

#[cfg(test)]
mod tests;
