//! The storage in Redis or Redis Cluster: any number of replicas of sessiond share one registry.
//!
//! A partition of the registry is a handful of keys with one hash tag, so that a cluster keeps them on one node and a script can
//! change them in one step: a hash for each bucket (a session's 16 bytes, and the lease that it is under), a stream that is
//! the log, and a small hash that holds its end, the count of sessions and the registry's id. Each script asks for that id first: a
//! Redis that came back empty, or another, is noticed by the next call.

mod fault;
mod lane;
mod lease;
mod link;
mod quota;
mod registry;
mod script;
mod tail;
mod url;

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::try_join_all;
use tokio::task::JoinSet;

use self::{
    fault::Fault,
    lane::{Action, Answer, Lane},
    registry::{Registry, session_of},
    tail::{Tail, position_of},
};
use super::{
    BucketRun, Changes, Layout, LogError, LogExtent, LogPoint, Mark, Position, RegistryId, SessionStorage,
    StorageError, StorageOptions,
};
use crate::session::{LeaseId, SessionKey};

pub use self::url::{RedisUrl, RedisUrlError};

/// The most buckets of one read: with few sessions in each, no more than a millisecond of Redis.
const BUCKETS_A_READ: usize = 1024;

/// The storage in Redis.
///
/// A session costs some 24 bytes of Redis' memory where a bucket holds forty of them or more, up to
/// `hash-max-listpack-entries`; a bucket of more is no longer compact and costs several times as much for each.
///
/// A handle belongs to the tokio runtime that it was opened in, whose tasks send its calls and read the log; it may be used from
/// any. The tasks end with it.
pub struct RedisStorage {
    registry: Arc<Registry>,
    lanes: Vec<Arc<Lane>>,
    tails: Vec<Arc<Tail>>,
    /// How many buckets to read at once, by how full those read last were.
    read_ahead: AtomicUsize,
    _tasks: JoinSet<()>,
}

impl RedisStorage {
    /// Opens the registry that `url` names, and makes it when there is none.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unavailable`] when Redis cannot be reached or the registry is divided in another way than `url` says,
    /// [`StorageError::Broken`] when what is there is none of sessiond's.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn open(url: &RedisUrl, options: StorageOptions) -> Result<Self, StorageError> {
        let registry = Arc::new(Registry::open(url, options).await?);
        let mut tasks = JoinSet::new();
        let (mut lanes, mut tails) = (Vec::new(), Vec::new());
        for partition in 0..registry.layout.partitions {
            let (lane, tail) = (Arc::new(Lane::default()), Arc::new(Tail::new(partition, options.retain_events)));
            tasks.spawn(Arc::clone(&lane).run(Arc::clone(&registry), partition));
            tasks.spawn(Arc::clone(&tail).run(Arc::clone(&registry)));
            lanes.push(lane);
            tails.push(tail);
        }
        Ok(Self { registry, lanes, tails, read_ahead: AtomicUsize::new(BUCKETS_A_READ), _tasks: tasks })
    }

    /// Does something with sessions of any partitions.
    async fn ask(&self, action: Action, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        let identity = self.registry.identity();
        let partition_of = |session| self.registry.partition_of(self.registry.bucket_of(&identity, session));
        if self.lanes.len() == 1 || sessions.len() == 1 {
            let partition = sessions.first().map_or(0, partition_of);
            return self.ask_partition(action, partition, sessions.to_vec()).await;
        }
        let mut parts = vec![(Vec::new(), Vec::new()); self.lanes.len()];
        for (index, session) in sessions.iter().enumerate() {
            let (indexes, part) = &mut parts[partition_of(session) as usize];
            indexes.push(index);
            part.push(*session);
        }
        let asked =
            (0..).zip(parts).filter(|(_, (_, part))| !part.is_empty()).map(async |(partition, (indexes, part))| {
                Ok::<_, StorageError>((indexes, self.ask_partition(action, partition, part).await?))
            });
        let mut answers = vec![false; sessions.len()];
        for (indexes, part) in try_join_all(asked).await? {
            indexes.into_iter().zip(part).for_each(|(index, answer)| answers[index] = answer);
        }
        Ok(answers)
    }

    async fn ask_partition(
        &self,
        action: Action,
        partition: u32,
        mut sessions: Vec<SessionKey>,
    ) -> Result<Vec<bool>, StorageError> {
        let mut done = Vec::with_capacity(sessions.len());
        while !sessions.is_empty() {
            let answers = self.lanes[partition as usize].ask(action, sessions.clone()).await?;
            let is_done = |answer: &&Answer| matches!(answer, Answer::Yes | Answer::No);
            done.extend(answers.iter().take_while(is_done).map(|answer| *answer == Answer::Yes));
            let goes_on = match (answers.last(), action) {
                (Some(Answer::NoLease), Action::Create(Some(lease))) => self
                    .registry
                    .attach_lease(partition, lease)
                    .await?
                    .then_some(())
                    .ok_or(StorageError::UnknownLease(lease)),
                (Some(Answer::Full), _) => self
                    .registry
                    .more_room(partition, sessions.len() as u64)
                    .await?
                    .then_some(())
                    .ok_or(StorageError::TooManySessions { limit: self.registry.options.max_sessions }),
                _ => Ok(()),
            };
            goes_on?;
            sessions.drain(..answers.iter().filter(|answer| is_done(answer)).count());
        }
        Ok(done)
    }

    /// For each partition how far its log reaches, and how many sessions it has.
    async fn extents(&self) -> Result<(RegistryId, Vec<(std::ops::Range<Position>, u64)>), Fault> {
        let registry = &*self.registry;
        registry
            .with_identity(|identity| async move {
                let identity = &identity;
                let extents = registry.each_partition(async |partition| {
                    let call =
                        registry.call(&registry.scripts.extent, partition, 2).arg(registry.key(partition, "log"));
                    let (end, oldest, count, _): (u64, Vec<u8>, u64, Vec<u8>) =
                        registry.link.run(call.arg(&identity.id).arg("")).await?;
                    let start = position_of(&oldest).map_or(end, |oldest| oldest - 1);
                    Ok((Position(start)..Position(end), count))
                });
                Ok((identity.registry_id, extents.await?))
            })
            .await
    }
}

#[async_trait]
impl SessionStorage for RedisStorage {
    fn layout(&self) -> Layout {
        self.registry.layout
    }

    fn bucket_of(&self, session: &SessionKey) -> u32 {
        self.registry.bucket_of(&self.registry.identity(), session)
    }

    fn partition_of(&self, bucket: u32) -> u32 {
        self.registry.partition_of(bucket)
    }

    async fn create(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        self.ask(Action::Create(lease), sessions).await
    }

    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        self.ask(Action::Has, sessions).await
    }

    async fn destroy(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        self.ask(Action::Destroy(lease), sessions).await
    }

    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        self.registry.grant_lease(ttl, owner).await
    }

    async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        self.registry.keep_lease_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, StorageError> {
        self.registry.revoke_lease(lease).await
    }

    async fn expire_leases(&self) -> Result<Infallible, StorageError> {
        Ok(self.registry.expire_leases().await?)
    }

    async fn lease_count(&self) -> Result<u64, StorageError> {
        Ok(self.registry.lease_count().await?)
    }

    async fn session_count(&self) -> Result<u64, StorageError> {
        Ok(self.extents().await?.1.iter().map(|(_, count)| count).sum())
    }

    async fn log(&self) -> Result<LogExtent, StorageError> {
        let (registry_id, partitions) = self.extents().await?;
        let point = |position| LogPoint { position, mark: mark_of(registry_id) };
        let held = partitions.into_iter().map(|(held, _)| point(held.start)..point(held.end));
        Ok(LogExtent { registry_id, partitions: held.collect() })
    }

    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError> {
        let (registry_id, partitions) = self.extents().await?;
        let mark = |((held, _), position): (&(std::ops::Range<Position>, u64), &Position)| {
            (*position <= held.end).then_some(mark_of(registry_id))
        };
        Ok(partitions.iter().zip(positions).map(mark).collect())
    }

    async fn changes_after(
        &self,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        let mark = mark_of(registry_id);
        if after.mark != mark {
            return Err(LogError::Restarted);
        }
        let tail = &self.tails[partition as usize];
        let events = tail.changes_after(&self.registry, registry_id, after.position, limit).await?;
        Ok(Changes { events, mark })
    }

    async fn read_buckets(
        &self,
        known_id: RegistryId,
        known: &[LogPoint],
        first: u32,
        limit: usize,
    ) -> Result<BucketRun, LogError> {
        let registry = &*self.registry;
        let partition = registry.partition_of(first);
        let left = (partition + 1) * registry.buckets_a_partition() - first;
        let some = (self.read_ahead.load(Ordering::Relaxed) as u32).min(left);
        let read = registry.with_identity(|identity| async move {
            let mut call = registry.call(&registry.scripts.read, partition, 1 + some as usize);
            for bucket in first..first + some {
                call = call.arg(registry.bucket_key(bucket));
            }
            let read: (u64, i64, Vec<u8>) = registry.link.run(call.arg(&identity.id).arg(limit.max(1))).await?;
            Ok((identity.registry_id, read))
        });
        let (registry_id, (position, read, bytes)) = read.await.map_err(StorageError::from)?;
        let known = known[partition as usize];
        let knows = known.mark == mark_of(registry_id) && known.position.0 <= position;
        if registry_id != known_id || !knows {
            return Err(LogError::Restarted);
        }
        let sessions: Vec<SessionKey> = bytes.chunks_exact(16).filter_map(session_of).collect();
        let read = usize::try_from(read).unwrap_or(left as usize);
        let wanted = limit.saturating_mul(read) / sessions.len().max(1);
        self.read_ahead.store(wanted.clamp(8, BUCKETS_A_READ), Ordering::Relaxed);
        Ok(BucketRun { positions: vec![Position(position); read], sessions })
    }
}

/// The mark at every position of a log: a registry gets another id when its log has lost changes.
fn mark_of(registry_id: RegistryId) -> Mark {
    Mark(registry_id.0)
}

impl fmt::Debug for RedisStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStorage")
            .field("registry_id", &format_args!("{}", self.registry.identity().registry_id))
            .field("layout", &self.registry.layout)
            .finish_non_exhaustive()
    }
}
