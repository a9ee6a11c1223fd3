//! A storage in Redis, with or without Sentinel, or in Redis Cluster, which any number of sessiond replicas share.
//!
//! Open a registry with [`RedisStorage::open`], or with one of the URLs that [`RedisUrl`] describes.
//!
//! # How it works
//!
//! The keys of a partition have the same hash tag. A cluster therefore keeps them on one node, and a script can change
//! them atomically. A partition has:
//!
//! - a hash for each bucket, from a session's 16 bytes to the slot of its lease
//! - a stream, which is the change log
//! - a small hash, `meta`, with the end of the log, the session count and the registry's birth
//! - keys for its leases: see docs/design/redis.md
//!
//! Every script checks the birth first. If Redis comes back empty or with another registry, the next call notices it.

mod buckets;
mod channel;
mod clock;
mod ending;
mod entry;
mod expiry;
mod extent;
mod fault;
mod follow;
mod lane;
mod lease;
mod list;
mod lookup;
mod mend;
mod pace;
mod partition;
mod probe;
mod promised;
mod queue;
mod quota;
mod reads;
mod registry;
mod retry;
mod script;
mod sentinels;
mod servers;
mod tail;
mod term;
mod url;

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::{join_all, try_join_all};
use tokio::task::JoinSet;

use self::{
    fault::Fault,
    lane::{Answer, Change, Lane, Outcome, Taking},
    lease::Standing,
    probe::Findings,
    reads::{Found, Reads, What},
    registry::{Identity, Registry, TRIES},
    servers::Servers,
    tail::Tail,
};
use super::{
    Answers, BucketRun, Changes, CreateOptions, Creation, Layout, LeaseBuckets, LeasePage, LeaseQuery, LogError,
    LogExtent, LogPoint, Lookup, Mark, Place, Places, Position, RefusalCause, RegistryId, SessionStorage, StorageError,
    StorageOptions, Takeover, Writability, WriteRefusal,
};
use crate::{
    session::{LeaseId, SessionKey},
    vital::Vitals,
};

pub(super) use self::url::SENTINEL_LOGIN;
pub use self::url::{RedisUrl, RedisUrlError};

/// The maximum number of buckets in one read. If they hold few sessions, Redis takes at most a millisecond for it.
const BUCKETS_A_READ: usize = 1024;

/// A session storage in Redis.
///
/// A session takes about 24 bytes of Redis memory if its bucket holds at least 40 sessions. Redis does not store a
/// bucket of more than `hash-max-listpack-entries` sessions compactly, and each of its sessions takes several times as
/// much.
///
/// A handle can be used from any tokio runtime. The tasks that send its calls and read the log run in the runtime that
/// opened it, and end when the handle is dropped.
pub struct RedisStorage {
    registry: Arc<Registry>,
    lanes: Vec<Arc<Lane>>,
    reads: Vec<Arc<Reads>>,
    tails: Vec<Arc<Tail>>,
    findings: Arc<Findings>,
    /// How many buckets to read in one step. Depends on how full the previous ones were.
    read_ahead: AtomicUsize,
    vitals: Vitals,
    _tasks: JoinSet<()>,
}

impl RedisStorage {
    /// Opens the registry that `url` names. Creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// Returns [`StorageError::Unavailable`] if Redis cannot be reached, and [`StorageError::Refused`] if Redis refuses
    /// changes. A retry may succeed.
    ///
    /// Returns [`StorageError::Broken`] if an operator has to act: the password is wrong, this version of Redis is not
    /// supported, the user lacks a permission, the registry was created with other partitions or buckets than `url`
    /// names, or the data has another format.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    pub async fn open(url: &RedisUrl, options: StorageOptions) -> Result<Self, StorageError> {
        let (mut tasks, vitals) = (JoinSet::new(), Vitals::default());
        let servers = Arc::new(Servers::new(url).map_err(setup_is_permanent)?);
        if let Some(sentinels) = servers.sentinels() {
            tasks.spawn(vitals.watch("Redis Sentinels", Arc::clone(sentinels).follow()));
        }
        let registry = Registry::open(url, options, servers).await.map_err(setup_is_permanent);
        let registry = Arc::new(registry?);
        let (mut lanes, mut reads, mut tails) = (Vec::new(), Vec::new(), Vec::new());
        for partition in registry.partitions() {
            let number = partition.number;
            let (lane, read) = (Arc::new(Lane::default()), Arc::new(Reads::default()));
            let tail = Arc::new(Tail::new(partition, registry.servers(), options.retain_events));
            tasks.spawn(vitals.watch("Redis changes", Arc::clone(&lane).run(Arc::clone(&registry), number)));
            tasks.spawn(vitals.watch("Redis reads", Arc::clone(&read).run(Arc::clone(&registry), number)));
            tasks.spawn(vitals.watch("Redis log tail", Arc::clone(&tail).run(Arc::clone(&registry))));
            lanes.push(lane);
            reads.push(read);
            tails.push(tail);
        }
        tasks.spawn(vitals.watch("Redis lease clock", Arc::clone(&registry).move_clock()));
        tasks.spawn(vitals.watch("Redis servers", Arc::clone(&registry).follow_servers()));
        let findings = Arc::<Findings>::default();
        tasks.spawn(vitals.watch("Redis probe", Arc::clone(&findings).run(Arc::clone(&registry))));
        let read_ahead = AtomicUsize::new(BUCKETS_A_READ);
        Ok(Self { registry, lanes, reads, tails, findings, read_ahead, vitals, _tasks: tasks })
    }

    /// Calls `ask` for each partition that has some of `sessions`, with those sessions. Starts over if the registry was
    /// replaced meanwhile, because sessions then belong to other partitions. Returns only after every partition has
    /// answered, so that nothing is in flight once a failure is reported.
    async fn ask<T: Copy + Default, F>(
        &self,
        sessions: &[SessionKey],
        ask: impl Fn(u32, Arc<Identity>, Vec<SessionKey>) -> F,
    ) -> Result<Answers<T>, StorageError>
    where
        F: Future<Output = Result<Answers<T>, Unanswered>>,
    {
        for _ in 0..TRIES {
            let identity = self.registry.identity();
            match self.ask_once(sessions, &identity, &ask).await {
                Err(Unanswered::Moved) => self.registry.rejoin(Some(&identity)).await?,
                Err(Unanswered::Failed(error)) => return Err(error),
                Ok(answers) => return Ok(answers),
            }
        }
        Err(Fault::Registry.into())
    }

    async fn ask_once<T: Copy + Default, F>(
        &self,
        sessions: &[SessionKey],
        identity: &Arc<Identity>,
        ask: impl Fn(u32, Arc<Identity>, Vec<SessionKey>) -> F,
    ) -> Result<Answers<T>, Unanswered>
    where
        F: Future<Output = Result<Answers<T>, Unanswered>>,
    {
        let partition_of = |session| self.registry.partition_of(self.registry.bucket_of(identity, session));
        if self.lanes.len() == 1 || sessions.len() == 1 {
            let partition = sessions.first().map_or(0, partition_of);
            return ask(partition, Arc::clone(identity), sessions.to_vec()).await;
        }
        let mut parts = vec![(Vec::new(), Vec::new()); self.lanes.len()];
        for (index, session) in sessions.iter().enumerate() {
            let (indexes, part) = &mut parts[partition_of(session) as usize];
            indexes.push(index);
            part.push(*session);
        }
        let asked = (0..).zip(parts).filter(|(_, (_, part))| !part.is_empty()).map(|(partition, (indexes, part))| {
            let asked = ask(partition, Arc::clone(identity), part);
            async move { asked.await.map(|answers| (indexes, answers)) }
        });
        let mut answers = Answers { sessions: vec![T::default(); sessions.len()], places: Places::default() };
        for outcome in join_all(asked).await {
            let (indexes, part) = outcome?;
            indexes.into_iter().zip(part.sessions).for_each(|(index, answer)| answers.sessions[index] = answer);
            answers.places.extend(part.places.iter().copied());
        }
        Ok(answers)
    }

    async fn change(
        &self,
        mut change: Change,
        number: u32,
        identity: Arc<Identity>,
        mut sessions: Vec<SessionKey>,
    ) -> Result<Answers<Creation>, Unanswered> {
        let partition = self.registry.partition(number);
        let mut done = Answers { sessions: Vec::with_capacity(sessions.len()), places: Places::default() };
        while !sessions.is_empty() {
            let answers = self.lanes[number as usize].ask(change.clone(), &identity, sessions.clone()).await?;
            let under = if let Change::Destroy(_) = change { None } else { change.lease() };
            let count = answers.iter().take_while(|answer| !answer.what.is_last()).count();
            for Answer { what, position } in &answers[..count] {
                done.places.add(Place { partition: number, position: Position(*position) });
                let lease = match *what {
                    Outcome::Stays(lease) => Some(lease),
                    Outcome::StaysUnderClosed(lease) => self.registry.lives(lease).await?.then_some(lease),
                    _ => under,
                };
                done.sessions.push(Creation { created: *what == Outcome::Yes, lease });
            }
            sessions.drain(..count);
            match (answers.last().map(|answer| answer.what), &mut change) {
                (Some(Outcome::Closed(lease)), Change::Take(taking)) => {
                    // Only a lease that is alive protects its sessions.
                    let standing = self.registry.attach_lease(partition, lease).await?;
                    if standing != Standing::Lives {
                        Arc::make_mut(taking).powerless.push(lease);
                    }
                }
                (Some(Outcome::NoLease), Change::Destroy(Some(lease))) => {
                    let standing = self.registry.attach_to_destroy(partition, *lease).await?;
                    if standing == Standing::Ended {
                        // No session is under a lease that has ended.
                        done.sessions.extend(sessions.drain(..).map(|_| Creation::default()));
                        if let Some(Answer { position, .. }) = answers.last() {
                            done.places.add(Place { partition: number, position: Position(*position) });
                        }
                    }
                }
                (Some(Outcome::NoLease), change) => {
                    let lease = change.lease().ok_or_else(|| {
                        Fault::malformed("a script reported a missing lease, but the call names no lease")
                    })?;
                    match self.registry.attach_lease(partition, lease).await? {
                        Standing::Lives => {}
                        Standing::Lingers => return Err(StorageError::LeaseLingers(lease).into()),
                        Standing::Ended => return Err(StorageError::UnknownLease(lease).into()),
                    }
                }
                (Some(Outcome::Full), _) => {
                    let has_room = self.registry.more_room(partition, sessions.len() as u64).await?;
                    let limit = self.registry.options.max_sessions;
                    has_room.then_some(()).ok_or(StorageError::TooManySessions { limit })?;
                }
                (Some(Outcome::NoMemory), _) => {
                    let detail = "Redis has used all the memory that maxmemory allows";
                    return Err(StorageError::Refused(WriteRefusal::new(RefusalCause::OutOfMemory, detail)).into());
                }
                _ => {}
            }
        }
        Ok(done)
    }
}

/// Returns the error for a fault while the registry is opened. A wrong setup is permanent then. Later it may be
/// transient, for example while a password is being rotated.
fn setup_is_permanent(fault: Fault) -> StorageError {
    match fault {
        Fault::Setup(_) => StorageError::Broken(Box::new(fault)),
        fault => fault.into(),
    }
}

/// Why a call to one partition has no answer.
enum Unanswered {
    /// The registry was replaced, so the sessions may belong to other partitions now.
    Moved,
    Failed(StorageError),
}

impl From<Fault> for Unanswered {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Registry => Self::Moved,
            fault => Self::Failed(fault.into()),
        }
    }
}

impl From<StorageError> for Unanswered {
    fn from(error: StorageError) -> Self {
        Self::Failed(error)
    }
}

#[async_trait]
impl SessionStorage for RedisStorage {
    fn layout(&self) -> Layout {
        self.registry.layout
    }

    fn writability(&self) -> Writability {
        self.findings.writability()
    }

    fn failed_task(&self) -> Option<&'static str> {
        self.vitals.failed()
    }

    fn evicts_keys(&self) -> Option<bool> {
        self.findings.evicts_keys()
    }

    fn replicas(&self) -> u32 {
        // Each partition has a count of its own.
        self.registry.partitions().iter().map(|partition| partition.pace.replicas()).max().unwrap_or_default().max(1)
    }

    fn bucket_of(&self, session: &SessionKey) -> u32 {
        self.registry.bucket_of(&self.registry.identity(), session)
    }

    fn partition_of(&self, bucket: u32) -> u32 {
        self.registry.partition_of(bucket)
    }

    async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        let CreateOptions { lease, takeover } = options;
        let change = match (lease, takeover) {
            (Some(lease), Takeover::OnlyFrom(from)) => {
                Change::Take(Arc::new(Taking { lease, from, powerless: Vec::new() }))
            }
            _ => Change::Create(lease),
        };
        self.ask(sessions, |partition, identity, sessions| self.change(change.clone(), partition, identity, sessions))
            .await
    }

    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        let look = async |partition, identity, sessions| {
            let found = self.reads[partition as usize].ask(What::Existence, &identity, sessions).await?;
            Ok(Answers { sessions: found.into_iter().map(Found::exists).collect(), places: Places::default() })
        };
        Ok(self.ask(sessions, look).await?.sessions)
    }

    async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        let look = async |partition, identity: Arc<Identity>, sessions: Vec<SessionKey>| {
            let (reads, partition) = (&self.reads[partition as usize], self.registry.partition(partition));
            let found = self.registry.lookup(reads, partition, &identity, &sessions).await?;
            Ok(Answers { sessions: found, places: Places::default() })
        };
        Ok(self.ask(sessions, look).await?.sessions)
    }

    async fn destroy_with(
        &self,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        let destroy =
            |partition, identity, sessions| self.change(Change::Destroy(lease), partition, identity, sessions);
        let Answers { sessions, places } = self.ask(sessions, destroy).await?;
        Ok(Answers { sessions: sessions.into_iter().map(|destroyed| destroyed.created).collect(), places })
    }

    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        self.registry.grant_lease(ttl, owner).await
    }

    async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        self.registry.keep_lease_alive(lease).await
    }

    async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        self.registry.lease_owner(lease).await
    }

    async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError> {
        self.registry.revoke_lease(lease, linger).await
    }

    async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError> {
        Ok(self.registry.list_leases(query).await?)
    }

    async fn expire_leases(&self) -> Result<Infallible, StorageError> {
        Ok(self.registry.expire_leases().await?)
    }

    async fn lease_count(&self) -> Result<u64, StorageError> {
        Ok(self.registry.lease_count().await?)
    }

    async fn session_count(&self) -> Result<u64, StorageError> {
        Ok(self.registry.extents().await?.1.iter().map(|extent| extent.session_count).sum())
    }

    async fn log(&self) -> Result<LogExtent, StorageError> {
        let extent = self.registry.with_identity(|identity| async move {
            let ends = self.tails.iter().map(|tail| tail.extent(&self.registry, &identity));
            Ok(LogExtent { registry_id: identity.registry_id, partitions: try_join_all(ends).await? })
        });
        Ok(extent.await?)
    }

    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError> {
        let marks = self.registry.with_identity(|identity| async move {
            let position = |tail: usize| positions.get(tail).copied().unwrap_or_default();
            let marks = (0..).zip(&self.tails);
            let marks = marks.map(|(number, tail)| tail.mark_at(&self.registry, &identity, position(number)));
            try_join_all(marks).await
        });
        Ok(marks.await?)
    }

    async fn changes_after(
        &self,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        self.tails[partition as usize].changes_after(&self.registry, registry_id, after, limit).await
    }

    async fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        self.find_buckets(registry_id, known, leases).await
    }

    async fn read_buckets(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        self.read_some(registry_id, known, buckets, limit, with_leases).await
    }
}

impl fmt::Debug for RedisStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStorage")
            .field("registry_id", &format_args!("{}", self.registry.identity().registry_id))
            .field("layout", &self.registry.layout)
            .finish_non_exhaustive()
    }
}
