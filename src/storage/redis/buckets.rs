//! Reads buckets, and finds those that have sessions under given leases. For this, each lease has a set of buckets.

use std::sync::{Arc, atomic::Ordering};

use futures_util::future::try_join_all;
use redis::{FromRedisValue, ParsingError, RedisError, Value};

use super::{
    BUCKETS_A_READ, RedisStorage,
    entry::{mark_bytes, mark_in},
    fault::{Answer, Fault},
    lease::{lease_bytes, lease_number},
    partition::{ASK, Partition},
    registry::{Identity, Registry, TRIES, session_of},
    tail::too_fast,
};
use crate::{
    session::{LeaseId, SessionKey},
    storage::{BucketRun, LeaseBuckets, LogError, LogPoint, Position, RegistryId, StorageError},
};

/// What a partition knows about a lease.
pub(super) struct Found {
    /// The lease's slot if the lease is closed in the partition, and empty otherwise.
    pub(super) slot: Vec<u8>,
    /// The number of sessions under the lease in the partition.
    held: u64,
    buckets: Buckets,
}

/// A lease's set of buckets, as `lease_find.lua` returns it.
enum Buckets {
    /// The indexes of the buckets within the partition.
    Numbers(Vec<u32>),
    /// Bits, each of which stands for one or more consecutive buckets.
    Bits(Vec<u8>),
}

impl FromRedisValue for Buckets {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match value {
            Value::Array(_) | Value::Set(_) => redis::from_redis_value(value).map(Self::Numbers),
            value => redis::from_redis_value(value).map(Self::Bits),
        }
    }
}

impl Registry {
    /// Asks a partition about leases. Also returns the end of the partition's log at that moment.
    ///
    /// `known` is a point up to which the caller has read the log, which the log must contain. Without it, only the
    /// answers for leases that are closed there are reliable.
    pub(super) async fn find<'a>(
        &self,
        partition: &Partition,
        identity: &Identity,
        known: Option<LogPoint>,
        leases: impl ExactSizeIterator<Item = &'a [u8]> + Clone + Send + Sync,
    ) -> Result<(LogPoint, Vec<Found>), Fault> {
        let asked = partition.run::<Vec<Value>>(ASK, |_| {
            let names = ["log", "attached", "closed", "slots", "held"];
            let call = self.call(&self.scripts.lease_find, partition, &names, leases.len());
            let call = leases.clone().fold(call, |call, lease| call.arg(partition.lease_key(lease)));
            let call = call.arg(&identity.birth);
            let call = match known {
                Some(known) => call.arg(known.position.0).arg(&mark_bytes(known.mark)[..]),
                None => call.arg("").arg(""),
            };
            leases.clone().fold(call, |call, lease| call.arg(lease))
        });
        let mut parts = asked.await?.into_iter();
        let end = Value::Array(parts.by_ref().take(2).collect());
        let (position, mark): (u64, Vec<u8>) = redis::from_redis_value(end).map_err(RedisError::from)?;
        let mark = mark_in(&mark).ok_or_else(|| Fault::malformed("the mark of the log is missing"))?;
        let found: Vec<(Vec<u8>, u64, Buckets)> =
            redis::from_redis_value(Value::Array(parts.collect())).map_err(RedisError::from)?;
        let found = found.into_iter().map(|(slot, held, buckets)| Found { slot, held, buckets });
        Ok((LogPoint { position: Position(position), mark }, found.collect()))
    }

    /// Returns the buckets of a partition that may have sessions under the found leases, in ascending order. Returns
    /// `None` if a lease's set of buckets was lost, so that any bucket may have such sessions.
    pub(super) fn buckets_with<'a>(&self, partition: u32, found: impl Iterator<Item = &'a Found>) -> Option<Vec<u32>> {
        let first = self.first_bucket(partition);
        let (mut buckets, mut all_bits) = (Vec::new(), Vec::new());
        for Found { held, buckets: set, .. } in found {
            let is_empty = match set {
                Buckets::Numbers(numbers) => {
                    buckets.extend(numbers.iter().map(|number| first + number));
                    numbers.is_empty()
                }
                Buckets::Bits(bits) => {
                    all_bits.resize(all_bits.len().max(bits.len()), 0);
                    all_bits.iter_mut().zip(bits).for_each(|(all, bits)| *all |= bits);
                    bits.is_empty()
                }
            };
            if *held > 0 && is_empty {
                return None;
            }
        }
        buckets.extend(self.buckets_in(partition, &all_bits));
        buckets.sort_unstable();
        buckets.dedup();
        Some(buckets)
    }
}

impl RedisStorage {
    /// See [`SessionStorage::buckets_under`](crate::storage::SessionStorage::buckets_under).
    pub(super) async fn find_buckets(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        let leases: Vec<[u8; 8]> = leases.iter().copied().map(lease_bytes).collect();
        let leases = &leases;
        let find = |number| {
            self.read_at(registry_id, known, number, move |identity, known| async move {
                let partition = self.registry.partition(number);
                let leases = leases.iter().map(|lease| &lease[..]);
                let (end, found) = self.registry.find(partition, &identity, Some(known), leases).await?;
                let buckets = self.registry.buckets_with(number, found.iter());
                Ok(((end, buckets.unwrap_or_else(|| self.registry.buckets_of(number).collect())), end))
            })
        };
        let found = (0..self.registry.layout.partitions).map(find);
        let (points, buckets): (_, Vec<_>) = try_join_all(found).await?.into_iter().unzip();
        Ok(LeaseBuckets { points, buckets: buckets.concat() })
    }

    /// See [`SessionStorage::read_buckets`](crate::storage::SessionStorage::read_buckets).
    pub(super) async fn read_some(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        let [first, ..] = *buckets else {
            return Ok(BucketRun { points: Vec::new(), sessions: Vec::new(), leases: Vec::new() });
        };
        let number = self.registry.partition_of(first);
        let count = buckets.partition_point(|bucket| self.registry.partition_of(*bucket) == number);
        let read = |identity, known| self.read_run(identity, known, &buckets[..count], limit, with_leases);
        self.read_at(registry_id, known, number, read).await
    }

    /// Calls `read` to read something from a partition, together with the end of the partition's log at that moment.
    /// `known` has a point of each partition's log, and `read` must fail if the log does not contain it.
    async fn read_at<T, F>(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        number: u32,
        read: impl Fn(Arc<Identity>, LogPoint) -> F,
    ) -> Result<T, LogError>
    where
        F: Future<Output = Result<(T, LogPoint), Fault>>,
    {
        let registry = &*self.registry;
        let identity = registry.identity();
        if identity.registry_id != registry_id {
            return Err(LogError::Restarted);
        }
        let known = known.get(number as usize).copied().ok_or(LogError::Restarted)?;
        for _ in 0..TRIES {
            let outcome = match read(Arc::clone(&identity), known).await {
                Ok((found, end)) => {
                    let promised = self.tails[number as usize].promise(registry, &identity, end).await;
                    promised.map(|is_promised| is_promised.then_some(found))
                }
                Err(fault) => Err(fault),
            };
            match outcome {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(Fault::Script(Answer::Other)) => return Err(LogError::Restarted),
                Err(Fault::Script(Answer::Unfit)) => {
                    registry.mend(registry.partition(number), &identity).await.map_err(StorageError::from)?;
                }
                Err(Fault::Registry) => {
                    registry.rejoin(Some(&identity)).await.map_err(StorageError::from)?;
                    return Err(LogError::Restarted);
                }
                Err(fault) => return Err(StorageError::from(fault).into()),
            }
        }
        Err(StorageError::from(too_fast()).into())
    }

    /// Reads the first of `buckets`, all of one partition. Also returns the point of the log that they reflect.
    async fn read_run(
        &self,
        identity: Arc<Identity>,
        known: LogPoint,
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<(BucketRun, LogPoint), Fault> {
        let registry = &*self.registry;
        let partition = registry.partition(buckets.first().map_or(0, |first| registry.partition_of(*first)));
        let some = &buckets[..buckets.len().min(self.read_ahead.load(Ordering::Relaxed))];
        let read = partition.run::<(u64, Vec<u8>, i64, Vec<u8>, Vec<u8>)>(ASK, |_| {
            let call = registry.call(&registry.scripts.read, partition, &["log", "slots"], some.len());
            let call = some.iter().fold(call, |call, bucket| call.arg(partition.bucket_key(*bucket)));
            let call = call.arg(&identity.birth).arg(known.position.0).arg(&mark_bytes(known.mark)[..]);
            call.arg(limit.max(1)).arg(i32::from(with_leases))
        });
        let (position, mark, read, bytes, leases) = read.await?;
        let leases = leases.chunks_exact(8).map(|lease| LeaseId::from_number(lease_number(lease))).collect();
        let sessions: Vec<SessionKey> = bytes.chunks_exact(16).filter_map(session_of).collect();
        let read = usize::try_from(read).unwrap_or(buckets.len());
        let wanted = limit.saturating_mul(read) / sessions.len().max(1);
        self.read_ahead.store(wanted.clamp(8, BUCKETS_A_READ), Ordering::Relaxed);
        let mark = mark_in(&mark).ok_or_else(|| Fault::malformed("the mark of the log is missing"))?;
        let end = LogPoint { position: Position(position), mark };
        Ok((BucketRun { points: vec![end; read], sessions, leases }, end))
    }
}
