//! Quotas: how many sessions each partition may hold, so that all partitions together stay within the session limit.
//!
//! The first partition keeps a register of all quotas, whose sum never exceeds the limit. When a partition is full, its
//! quota is raised. If the limit is used up, the other partitions first return what they do not use.
//!
//! Both the register and the partition number each quota that they set. If a step is interrupted, the next step
//! therefore notices and finishes it. A partition never holds more sessions than its quota in the register.

use super::{
    fault::Fault,
    partition::{DURABLE, Partition},
    registry::Registry,
    script::{Call, Script},
};

/// How many sessions a partition may hold, and the number of that quota.
type Quota = (u64, u64);

impl Registry {
    /// Raises a partition's quota, by `wanted` or more if the limit allows it. Returns whether the quota was raised.
    pub(super) async fn more_room(&self, partition: &Partition, wanted: u64) -> Result<bool, Fault> {
        if self.layout.partitions == 1 {
            return Ok(false);
        }
        if self.raise_quota(partition, wanted).await? {
            return Ok(true);
        }
        for other in self.partitions().iter().filter(|other| other.number != partition.number) {
            self.lower_quota(other).await?;
        }
        self.raise_quota(partition, wanted).await
    }

    async fn raise_quota(&self, partition: &Partition, wanted: u64) -> Result<bool, Fault> {
        let (quota, number): (Option<u64>, Option<u64>) =
            partition.ask(redis::cmd("HMGET").arg(partition.key("meta")).arg("quota").arg("quota_number")).await?;
        let raised = self.quota_call::<Option<Quota>>(&self.scripts.quota_raise, self.first(), &["quotas"], |call| {
            let call = call.arg(partition.number).arg(quota.unwrap_or(0)).arg(number.unwrap_or(0)).arg(wanted);
            call.arg(self.options.max_sessions).arg(self.layout.partitions)
        });
        match raised.await? {
            Some(quota) => self.set_quota(partition, quota).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn set_quota(&self, partition: &Partition, (quota, number): Quota) -> Result<(), Fault> {
        let set = self.quota_call::<u32>(&self.scripts.quota_set, partition, &[], |call| call.arg(quota).arg(number));
        set.await.map(drop)
    }

    async fn lower_quota(&self, partition: &Partition) -> Result<(), Fault> {
        // Twice: a quota that was granted but never reached the partition must first be set there, before the unused
        // part can be returned.
        for _ in 0..2 {
            let lowered = self.quota_call::<Quota>(&self.scripts.quota_lower, partition, &[], |call| call);
            let (quota, number) = lowered.await?;
            let noted = self.quota_call::<Quota>(&self.scripts.quota_return, self.first(), &["quotas"], |call| {
                call.arg(partition.number).arg(quota).arg(number)
            });
            let registered = noted.await?;
            if registered.1 <= number {
                break;
            }
            self.set_quota(partition, registered).await?;
        }
        Ok(())
    }

    async fn quota_call<T: redis::FromRedisValue>(
        &self,
        script: &Script,
        partition: &Partition,
        names: &[&str],
        args: impl Fn(Call) -> Call + Sync,
    ) -> Result<T, Fault> {
        let args = &args;
        self.with_identity(|identity| async move {
            let called = partition.run(DURABLE, |_| args(self.call(script, partition, names, 0).arg(&identity.birth)));
            called.await
        })
        .await
    }
}
