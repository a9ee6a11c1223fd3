//! Faults in what snapshots read.

use std::sync::Arc;

use async_trait::async_trait;
use sessiond::{
    session::LeaseId,
    storage::{BucketRun, LeaseBuckets, LogError, LogPoint, RegistryId, SessionStorage},
};

use super::{Broken, fault::Fault::*};
use crate::twisted::Twist;

/// Breaks the reads of buckets.
#[derive(Debug)]
pub(super) struct Buckets(pub(super) Arc<Broken>);

#[async_trait]
impl Twist for Buckets {
    async fn buckets_under(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        let mut found = truth.buckets_under(registry_id, known, leases).await?;
        if self.0.fault == LeavesOutABucket {
            found.buckets.pop();
        }
        Ok(found)
    }

    async fn read_buckets(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        let limit = if self.0.fault == ReadsPastTheLimit { usize::MAX } else { limit };
        let extent = truth.log().await?;
        let mut known = known.to_vec();
        for (point, held) in known.iter_mut().zip(&extent.partitions) {
            match self.0.fault {
                ReadsAnyHistory => point.mark = held.end.mark,
                ReadsAhead => point.position = point.position.min(held.end.position),
                _ => {}
            }
        }
        let registry_id = if self.0.fault == ReadsAnyRegistry { extent.registry_id } else { registry_id };
        let neighbours: Vec<u32> =
            buckets.first().map(|first| (*first..truth.layout().buckets).collect()).unwrap_or_default();
        let buckets =
            if self.0.fault == ReadsNeighbours { &neighbours[..buckets.len().min(neighbours.len())] } else { buckets };
        let mut run = truth.read_buckets(registry_id, &known, buckets, limit, with_leases).await?;
        match self.0.fault {
            ReadsAtTooLow => {
                run.points.iter_mut().for_each(|point| point.position.0 = point.position.0.saturating_sub(1))
            }
            ReadsAtTooHigh => run.points.iter_mut().for_each(|point| point.position.0 += 1),
            ReadsOneLess => {
                run.sessions.pop();
                run.leases.pop();
            }
            ReadsNoLeases => run.leases.fill(None),
            LeavesOutWhatWasDropped => {
                let state = self.0.state();
                let shown: Vec<bool> = run.sessions.iter().map(|session| !state.hidden.contains(session)).collect();
                let (mut of_session, mut of_lease) = (shown.iter(), shown.iter());
                run.sessions.retain(|_| of_session.next() == Some(&true));
                run.leases.retain(|_| of_lease.next() == Some(&true));
            }
            _ => {}
        }
        Ok(run)
    }
}
