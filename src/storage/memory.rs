//! The storage in this process' memory: fast, and gone with the process.
//!
//! The set is a fixed number of buckets, each a small hash table under a lock of its own, so that a table of millions is
//! never rehashed at once. A change is made under its bucket's lock and appended to its partition's log before that lock
//! is let go: this is what makes the two one step, and a bucket's read exact.

mod bucket;
mod change;
mod column;
mod hash;
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
    hash::SessionHasher,
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
};

pub(super) use self::{
    hash::random_key,
    marks::{Marks, Stretch},
    restore::{Identity, Restore},
};

/// A batch lets other tasks of its thread run after this many sessions, a few hundred microseconds of work.
const SESSIONS_BETWEEN_YIELDS: usize = 1024;

/// No more buckets than this are read at once, so that many empty ones do not make a long step.
const BUCKETS_A_READ: usize = 1024;

/// The most sessions of a lease that are destroyed under one hold of a bucket's lock.
const SESSIONS_A_SWEEP: usize = 512;

/// So many leases are swept side by side: one of a few sessions does not wait for one of millions. One step of each is made
/// before other tasks run, so they are few.
const SWEEPS_AT_ONCE: usize = 8;

/// The clock of the leases is looked at this often while there are any.
const LOOK: Duration = Duration::from_millis(100);

/// When nobody looked for so long, this process was stopped, and gateways may have lost their connections.
const PAUSE: Duration = Duration::from_secs(5);

/// What gateways need after an outage, beyond its length, to connect again: gRPC's backoff grows with it.
const BEYOND_OUTAGE: Duration = Duration::from_secs(20);

/// The storage in this process' memory.
///
/// A session costs 21 to 29 bytes, from a million on with the default of 4096 buckets: 16 for its key, 3 for its entry in the
/// bucket's hash table, and the room that these leave for growth. Once any session of its bucket has a lease, 4 to 6 more.
pub struct MemoryStorage {
    registry_id: RegistryId,
    hash: SessionHasher,
    buckets: Box<[Mutex<Bucket>]>,
    logs: Box<[Log]>,
    leases: Leases,
    session_count: AtomicU64,
    max_sessions: u64,
    outage_grace: Duration,
    /// Where changes are recorded that must be on disk before anybody is told of them. None where they end with the process.
    journal: Option<Arc<Journal>>,
}

/// How a [`MemoryStorage`] is made.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOptions {
    /// Buckets of the set: rounded up to a power of two. A bucket holds at most 65,536 sessions. 4096 by default.
    pub buckets: u32,
    /// Partitions of the log, at least 1. More than the default of 1 has no use but to test what follows a log.
    pub partitions: u32,
    /// How many changes each partition keeps, as [`StorageOptions::retain_events`](super::StorageOptions::retain_events) says. Rounded
    /// up to whole segments of at most 4096.
    pub retain_events: usize,
    /// How many sessions may exist.
    pub max_sessions: u64,
    /// How many leases there may be.
    pub max_leases: u64,
    /// The longest time that an outage gives to leases, as
    /// [`StorageOptions::outage_grace`](super::StorageOptions::outage_grace) says.
    pub outage_grace: Duration,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            buckets: 4096,
            partitions: 1,
            retain_events: 1 << 20,
            max_sessions: 200_000_000,
            max_leases: 1_000_000,
            outage_grace: StorageOptions::DEFAULT_OUTAGE_GRACE,
        }
    }
}

impl MemoryStorage {
    /// An empty registry with an identity of its own.
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

    /// The place of the newest change in a bucket's partition.
    fn newest_place(&self, bucket: u32) -> Place {
        Place { partition: self.partition_of(bucket), position: self.log_of(bucket).newest() }
    }

    fn log_of(&self, bucket: u32) -> &Log {
        &self.logs[self.partition_of(bucket) as usize]
    }

    fn spot_of(&self, session: &SessionKey) -> Spot {
        Spot { hash: self.hash.within(session), bucket: self.bucket_of(session) }
    }

    /// Calls `told` with what `look` finds at each session's place in its bucket, and with the record of that.
    fn look_some<const N: usize, T>(
        &self,
        sessions: &[SessionKey],
        look: impl Fn(&Bucket, Option<usize>) -> (T, Lsn),
        mut told: impl FnMut(T, Lsn),
    ) {
        let spots: SmallVec<[Spot; N]> = sessions.iter().map(|session| self.spot_of(session)).collect();
        let mut held = Held::<N>::lock(&self.buckets, spots.iter().map(|spot| spot.bucket));
        if sessions.len() > 1 {
            held.fetch(spots.iter().map(|spot| spot.hash));
        }
        for (nth, (session, spot)) in sessions.iter().zip(spots).enumerate() {
            let bucket = held.bucket(nth);
            let (found, lsn) = look(bucket, bucket.find(spot.hash, session));
            told(found, lsn.max(bucket.recorded(session)));
        }
    }

    /// Looks at each session, letting other tasks run in between, and waits until what was found is durable.
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
            let mut told = |found, lsn| {
                all.push(found);
                newest = newest.max(lsn);
            };
            match part {
                [_] => self.look_some::<1, T>(part, &look, &mut told),
                _ => part.chunks(GROUP).for_each(|some| self.look_some::<GROUP, T>(some, &look, &mut told)),
            }
        }
        self.durable(newest).await.map_err(unreadable)?;
        Ok(all)
    }

    /// The lease that a session at a place of a bucket is under, and the record that it is not under the one that has ended.
    fn lease_at(&self, bucket: &Bucket, place: usize) -> (Option<LeaseId>, Lsn) {
        let slot = bucket.lease(place);
        match self.leases.id(slot) {
            Some(ended) if self.leases.slots.has_ended(slot) => (None, self.leases.end_of(ended)),
            lease => (lease, Lsn(0)),
        }
    }

    /// Whether the logs contain what the caller has read. Asks about all partitions, as neighbouring buckets are of different ones.
    fn check_known(&self, registry_id: RegistryId, known: &[LogPoint]) -> Result<(), LogError> {
        let knows = |(log, point): (&Log, &LogPoint)| log.mark(point.position) == Some(point.mark);
        let is_known = registry_id == self.registry_id && self.logs.iter().zip(known).all(knows);
        is_known.then_some(()).ok_or(LogError::Restarted)
    }

    /// How long every lease lives at least after an outage; none if its length is unknown.
    fn grace_after(&self, outage: Option<Duration>) -> Duration {
        outage.map_or(self.outage_grace, |outage| (outage + BEYOND_OUTAGE).min(self.outage_grace))
    }

    /// Asks whether changes can be made at present.
    async fn admit(&self) -> Result<(), StorageError> {
        match &self.journal {
            Some(journal) => journal.admit().await,
            None => Ok(()),
        }
    }

    /// Waits until what is told to the caller can no longer be undone by a crash.
    async fn durable(&self, lsn: Lsn) -> Result<(), WriteRefusal> {
        match &self.journal {
            Some(journal) => journal.durable(lsn).await,
            None => Ok(()),
        }
    }

    /// Waits until all that has been recorded is durable.
    async fn all_durable(&self) -> Result<(), WriteRefusal> {
        match &self.journal {
            Some(journal) => journal.durable(journal.newest()).await,
            None => Ok(()),
        }
    }

    /// Destroys the sessions under a lease that has ended, a few at a time, and tells how many those were. What is left when
    /// the future is dropped is left to whoever expires leases.
    fn sweep(&self, ended: Ended) -> impl Future<Output = Result<u64, StorageError>> + Send {
        // Made now: the future may be dropped before it is polled at all.
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

    /// Gives a bucket the room that it needs, made while its lock is not held.
    fn fit(&self, bucket: &mut MutexGuard<'_, Bucket>, is_leased: bool) {
        while let Some(need) = bucket.need(is_leased) {
            let room = MutexGuard::unlocked(bucket, || need.make());
            let unused = bucket.move_into(room, &self.hash);
            MutexGuard::unlocked(bucket, || drop(unused));
        }
    }
}

/// What is to be read depends on a change that cannot be put on disk.
fn unreadable(refusal: WriteRefusal) -> StorageError {
    StorageError::Unavailable(Box::new(refusal))
}

/// Where a session lies, or would.
#[derive(Clone, Copy)]
struct Spot {
    hash: u64,
    bucket: u32,
}

/// Leaves a lease behind when its sweep is cut short.
struct Sweep<'a> {
    storage: &'a MemoryStorage,
    ended: Option<Ended>,
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            self.storage.leases.leave(ended);
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
                    // What is under no lease of that name now stays so: any place from here on will do.
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
        // There may be too many because of some that a crash undoes.
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
            self.leases.linger(lease, linger.min(MAX_LINGER)).map(|()| None)
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
        self.durable(self.leases.newest_end()).await.map_err(unreadable)?;
        Ok(page)
    }

    async fn expire_leases(&self) -> Result<Infallible, StorageError> {
        let mut sweeps = FuturesUnordered::new();
        // Nobody knows for how long nobody looked.
        self.leases.look();
        loop {
            let passed = self.leases.look();
            if passed > PAUSE {
                tracing::warn!(seconds = passed.as_secs_f64(), "this process stood still; leases are given more time");
                self.leases.keep_all_alive(self.grace_after(Some(passed)));
            }
            self.admit().await?;
            if let Some(outage) = self.journal.as_ref().and_then(|journal| journal.recovered_after()) {
                let seconds = outage.as_secs_f64();
                tracing::warn!(seconds, "changes could not be written for a while; leases are given more time");
                self.leases.keep_all_alive(self.grace_after(Some(outage)));
            }
            while sweeps.len() < SWEEPS_AT_ONCE
                && let Some(ended) = self.leases.next_ended()
            {
                sweeps.push(self.sweep(ended));
            }
            let has_unlogged = self.leases.log_expired();
            let pause = match self.leases.to_next_deadline() {
                Some(pause) if sweeps.len() < SWEEPS_AT_ONCE => pause.min(LOOK),
                None if sweeps.is_empty() && !has_unlogged => {
                    self.leases.changed.notified().await;
                    // Without leases nobody need look.
                    self.leases.look();
                    continue;
                }
                _ => LOOK,
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
        // A lease that is swept while the points are taken is known before, and one that is granted meanwhile is known after.
        let mut under = self.leases.unswept(leases);
        let points = self.logs.iter().map(Log::newest_point).collect();
        under.extend(self.leases.unswept(leases));
        // A change in the log has its bucket noted, as that is done before the bucket is locked.
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
            bucket.sessions().for_each(|sessions| run.sessions.extend_from_slice(sessions));
            if with_leases {
                run.leases.extend(bucket.leased().map(|(_, slot)| self.leases.id(slot)));
            }
            // Read under the bucket's lock: no change of this bucket can come between.
            run.points.push(self.log_of(index).newest_point());
            if run.sessions.len() >= limit {
                break;
            }
        }
        // What was read may still be undone by a crash.
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
