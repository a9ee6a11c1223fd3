//! Repairs a registry that has lost one of its keys.
//!
//! Once a second, each replica checks whether the keys of each partition are consistent (`extent.lua`). They are
//! inconsistent if somebody deleted a key or Redis evicted one. The replica then restores what the other keys contain.
//! It ends leases of which too little is left, together with their sessions.

use super::{
    fault::Fault,
    partition::{DURABLE, Partition},
    registry::{Identity, Registry},
};
use crate::random::random_u64;

/// The maximum number of leases in one step.
const LEASES_A_STEP: usize = 512;

/// A lease, and its slot in a partition.
type Row = (Vec<u8>, Vec<u8>);

impl Registry {
    /// Makes the keys of a partition consistent again.
    pub(super) async fn mend(&self, partition: &Partition, identity: &Identity) -> Result<(), Fault> {
        tracing::error!(
            partition = partition.number,
            "Redis has lost a key of the registry (deleted or evicted); restoring it from the other keys"
        );
        let names = ["attached", "closed", "slots", "held"];
        for part in ["attached", "closed", "slots", "counts"] {
            let mut cursor = "0".to_owned();
            loop {
                let mended = partition.run::<String>(DURABLE, |_| {
                    let call = self.call(&self.scripts.partition_mend, partition, &names, 0);
                    call.arg(&identity.birth).arg(part).arg(&cursor)
                });
                cursor = mended.await?;
                if cursor == "0" {
                    break;
                }
            }
        }
        if partition.number == 0 {
            self.mend_leases(identity).await?;
        }
        self.end_orphans(partition, identity).await?;
        self.sweep_unknown(partition, identity).await
    }

    async fn mend_leases(&self, identity: &Identity) -> Result<(), Fault> {
        let first = self.first();
        for part in ["leases", "deadlines", "counts"] {
            let mut cursor = "0".to_owned();
            loop {
                let mended = first.run::<String>(DURABLE, |_| {
                    let names = ["leases", "deadlines", "ended", "claims", "ids"];
                    self.call(&self.scripts.lease_mend, first, &names, 0).arg(&identity.birth).arg(part).arg(&cursor)
                });
                cursor = mended.await?;
                if cursor == "0" {
                    break;
                }
            }
        }
        // The first partition may have lost leases that other partitions still have.
        for partition in &self.partitions()[1..] {
            self.end_orphans(partition, identity).await?;
        }
        Ok(())
    }

    /// Ends orphaned leases after a new connection to a partition was made: those of this partition or, if it is the
    /// first one, those of all partitions.
    pub(super) async fn end_orphans_of(&self, partition: &Partition, identity: &Identity) -> Result<(), Fault> {
        if partition.number > 0 {
            return self.end_orphans(partition, identity).await;
        }
        for partition in self.partitions() {
            self.end_orphans(partition, identity).await?;
        }
        Ok(())
    }

    /// Ends the orphaned leases of a partition: those that the first partition does not know, or that have ended there.
    /// They appear when one of the two partitions comes back with an old dump.
    pub(super) async fn end_orphans(&self, partition: &Partition, identity: &Identity) -> Result<(), Fault> {
        // Counts as a closing, though it closes no lease. A replica that asked the first partition about a lease
        // earlier can then no longer attach the lease here. Otherwise a lease that has ended could be attached just
        // after the lists below were read.
        let closed = partition.run::<Vec<u64>>(DURABLE, |_| {
            let call = self.call(&self.scripts.lease_close, partition, &["attached", "closed", "held"], 0);
            call.arg(&identity.birth).arg(random_u64()).arg("")
        });
        closed.await?;
        let attached = self.leases_in(partition, "attached").await?;
        let (lingering, open): (Vec<_>, Vec<_>) = attached.into_iter().partition(|(_, slot)| slot.starts_with(b"~"));
        self.report(identity, true, &open).await?;
        self.report(identity, false, &lingering).await?;
        self.report(identity, false, &self.leases_in(partition, "closed").await?).await
    }

    /// Reports leases of a partition to the first partition, which marks those that are not alive. `is_open` says
    /// whether sessions can come under them in the reporting partition.
    async fn report(&self, identity: &Identity, is_open: bool, leases: &[Row]) -> Result<(), Fault> {
        for leases in leases.chunks(LEASES_A_STEP) {
            let ended = self.first().run::<u32>(DURABLE, |_| {
                let call = self.ending_call(&self.scripts.lease_orphans).arg(&identity.birth);
                let call = call.arg(random_u64()).arg(i32::from(is_open));
                leases.iter().fold(call, |call, (lease, _)| call.arg(lease))
            });
            ended.await?;
        }
        Ok(())
    }

    /// Returns the leases in one of a partition's keys, with their slots.
    async fn leases_in(&self, partition: &Partition, name: &str) -> Result<Vec<Row>, Fault> {
        let mut leases = Vec::new();
        let mut cursor = 0u64;
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(partition.key(name)).arg(cursor).arg("COUNT").arg(LEASES_A_STEP);
            let (next, found): (u64, Vec<Row>) = partition.ask(&scan).await?;
            leases.extend(found);
            cursor = next;
            if cursor == 0 {
                return Ok(leases);
            }
        }
    }
}
