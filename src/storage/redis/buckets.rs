//! Where the sessions under leases are, by the sets of buckets that the leases have in each partition.

use redis::{FromRedisValue, ParsingError, RedisError, Value};

use super::{
    entry::{mark_bytes, mark_in},
    fault::Fault,
    partition::{ASK, Partition},
    registry::{Identity, Registry},
};
use crate::storage::{LogPoint, Position};

/// What a partition knows of a lease.
pub(super) struct Found {
    /// Its slot, if it is closed there.
    pub(super) slot: Vec<u8>,
    /// How many sessions are under it.
    held: u64,
    buckets: Buckets,
}

/// A set of buckets as `lease_find.lua` returns it.
enum Buckets {
    /// Numbers of buckets within the partition.
    Numbers(Vec<u32>),
    /// Bits, each for a few neighbouring buckets.
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
    /// Asks a partition about leases. With `known`, a place up to which its log was read, also about those that are not
    /// closed there.
    /// Returns the end of its log at that moment, too.
    pub(super) async fn find<'a>(
        &self,
        partition: &Partition,
        identity: &Identity,
        known: Option<LogPoint>,
        leases: impl ExactSizeIterator<Item = &'a [u8]> + Clone + Send,
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

    /// Returns the buckets of a partition that may have sessions under some leases, in order. `None` if every bucket
    /// may, because the set of a lease was lost.
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
