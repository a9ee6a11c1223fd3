//! How many sessions each of several partitions may hold, so that all together hold no more than they may.
//!
//! The first partition keeps a register of what each may hold, whose sum is never more than the limit. A partition that has
//! no room asks for more; when all is taken, the others give up what they do not use. Both sides number each quota that they
//! set, so that a step which was cut off is noticed and made good by the next, and none ever holds more than the register says.

use super::{fault::Fault, registry::Registry};

/// What a partition may hold, and the number of that.
type Quota = (u64, u64);

impl Registry {
    /// Gets room for `wanted` more sessions in a partition, or for some of them. Tells whether there is any.
    pub(super) async fn more_room(&self, partition: u32, wanted: u64) -> Result<bool, Fault> {
        if self.layout.partitions == 1 {
            return Ok(false);
        }
        if self.raise_quota(partition, wanted).await? {
            return Ok(true);
        }
        for other in (0..self.layout.partitions).filter(|other| *other != partition) {
            self.lower_quota(other).await?;
        }
        self.raise_quota(partition, wanted).await
    }

    async fn raise_quota(&self, partition: u32, wanted: u64) -> Result<bool, Fault> {
        let meta = self.key(partition, "meta");
        let (quota, number): (Option<u64>, Option<u64>) =
            self.link.command(redis::cmd("HMGET").arg(meta).arg("quota").arg("quota_number")).await?;
        let raised = self.with_identity(|identity| async move {
            let call = self.call(&self.scripts.quota_raise, 0, 2).arg(self.key(0, "quotas")).arg(&identity.id);
            let call = call.arg(partition).arg(quota.unwrap_or(0)).arg(number.unwrap_or(0));
            self.link.run_durably(call.arg(wanted).arg(self.options.max_sessions).arg(self.layout.partitions)).await
        });
        let raised: Option<Quota> = raised.await?;
        match raised {
            Some(quota) => self.set_quota(partition, quota).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn set_quota(&self, partition: u32, (quota, number): Quota) -> Result<(), Fault> {
        let set = self.with_identity(|identity| async move {
            let call = self.call(&self.scripts.quota_set, partition, 1).arg(&identity.id);
            self.link.run_durably::<u32>(call.arg(quota).arg(number)).await
        });
        set.await.map(drop)
    }

    async fn lower_quota(&self, partition: u32) -> Result<(), Fault> {
        // Twice: what was granted and never reached the partition must get there before it can be given back.
        for _ in 0..2 {
            let lowered = self.with_identity(|identity| async move {
                let call = self.call(&self.scripts.quota_lower, partition, 1);
                self.link.run_durably::<Quota>(call.arg(&identity.id)).await
            });
            let (quota, number) = lowered.await?;
            let noted = self.with_identity(|identity| async move {
                let call = self.call(&self.scripts.quota_return, 0, 2).arg(self.key(0, "quotas")).arg(&identity.id);
                self.link.run_durably::<Quota>(call.arg(partition).arg(quota).arg(number)).await
            });
            let registered = noted.await?;
            if registered.1 <= number {
                break;
            }
            self.set_quota(partition, registered).await?;
        }
        Ok(())
    }
}
