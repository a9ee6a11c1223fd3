//! Lists leases. The first partition has them in the order of their ids. Every partition counts its own sessions under
//! them.

use std::{collections::BTreeSet, time::Duration};

use redis::{RedisError, Value};

use super::{
    fault::Fault,
    lease::{LeaseRecord, lease_bytes, lease_number},
    partition::ASK,
    registry::Registry,
};
use crate::{
    session::LeaseId,
    storage::{LeasePage, LeaseQuery, LeaseStatus},
};

/// The maximum number of leases in one script, which takes Redis half a millisecond.
const LEASES_A_STEP: usize = 64;

/// One page examines at most this many leases, or as many as it may hold if that is more. Without this limit, a search
/// for an owner of few leases could examine all leases.
const LEASES_A_PAGE: usize = 10_000;

/// What `lease_list.lua` returns for a lease: its id, the milliseconds until it ends, and its record.
type Listed = (Vec<u8>, u64, Vec<u8>);

impl Registry {
    pub(super) async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, Fault> {
        let named: BTreeSet<LeaseId> = query.lease_ids.iter().copied().filter(|id| Some(*id) > query.after).collect();
        let named: Vec<[u8; 8]> = named.into_iter().map(lease_bytes).collect();
        let mut page = LeasePage { leases: Vec::new(), next: query.after };
        let (limit, mut examined) = (query.limit.max(1), 0);
        while examined < limit.max(LEASES_A_PAGE) && page.leases.len() < limit {
            let some = LEASES_A_STEP.min(limit - page.leases.len());
            let names = &named[examined.min(named.len())..(examined + some).min(named.len())];
            if !query.lease_ids.is_empty() && names.is_empty() {
                page.next = None;
                break;
            }
            let (last, count, leases) = self.list_some(page.next, some, query.owner.as_deref(), names).await?;
            page.leases.extend(leases);
            examined += count;
            let is_end = if names.is_empty() { count < some } else { examined == named.len() };
            page.next = last.filter(|_| !is_end);
            if is_end {
                break;
            }
        }
        Ok(page)
    }

    /// Examines the next `some` leases after `after`, or those in `named` if it is not empty. Returns the last one, how
    /// many were examined, and those that match the owner.
    async fn list_some(
        &self,
        after: Option<LeaseId>,
        some: usize,
        owner: Option<&str>,
        named: &[[u8; 8]],
    ) -> Result<(Option<LeaseId>, usize, Vec<LeaseStatus>), Fault> {
        let owner = owner.map(|owner| format!(" {owner}")).unwrap_or_default();
        let owner = owner.as_str();
        let listed = self.with_identity(|identity| async move {
            let first = self.first();
            let listed = first.run::<Vec<Value>>(ASK, |_| {
                let names = ["leases", "deadlines", "ended", "ids"];
                let call = self.call(&self.scripts.lease_list, first, &names, 0).arg(&identity.birth);
                let call = call.arg(after.map_or(0, LeaseId::number)).arg(some).arg(owner);
                named.iter().fold(call, |call, lease| call.arg(&lease[..]))
            });
            listed.await
        });
        let mut parts = listed.await?.into_iter();
        let head = Value::Array(parts.by_ref().take(2).collect());
        let (last, count): (Vec<u8>, usize) = redis::from_redis_value(head).map_err(RedisError::from)?;
        let listed: Vec<Listed> = redis::from_redis_value(Value::Array(parts.collect())).map_err(RedisError::from)?;
        let leases: Vec<&[u8]> = listed.iter().map(|(lease, ..)| &lease[..]).collect();
        let counts = self.session_counts(&leases).await?;
        let status = |((lease, left, record), session_count): (Listed, u64)| {
            let LeaseRecord { ttl, owner, lingers } = LeaseRecord::parse(&record);
            let lease = LeaseId::from_number(lease_number(&lease))?;
            Some(LeaseStatus { lease, owner, ttl, expires_in: Duration::from_millis(left), session_count, lingers })
        };
        let leases = listed.into_iter().zip(counts).filter_map(status).collect();
        Ok((LeaseId::from_number(lease_number(&last)), count, leases))
    }

    /// Counts the sessions under each lease, in all partitions.
    async fn session_counts(&self, leases: &[&[u8]]) -> Result<Vec<u64>, Fault> {
        let mut sums = vec![0; leases.len()];
        if leases.is_empty() {
            return Ok(sums);
        }
        let counts = self.with_identity(|identity| async move {
            let birth = &identity.birth;
            let counts = self.each_partition(|partition| async move {
                let counted = partition.run::<Vec<u64>>(ASK, |_| {
                    let call = self.call(&self.scripts.lease_held, &partition, &["attached", "closed", "held"], 0);
                    call.arg(birth).arg(leases)
                });
                counted.await
            });
            counts.await
        });
        for counts in counts.await? {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        Ok(sums)
    }
}
