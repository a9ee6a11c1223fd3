//! Reads how far the logs of the partitions reach.

use std::ops::Range;

use super::{
    entry::mark_in,
    fault::Fault,
    partition::{ASK, Partition},
    registry::{Identity, Registry},
};
use crate::storage::{LogPoint, Mark, Position, RegistryId};

/// The extent of a partition's log, and other facts about the partition.
pub(super) struct Extent {
    /// The registry's id. Only the first partition knows it.
    pub(super) id: Option<RegistryId>,
    pub(super) held: Range<LogPoint>,
    pub(super) session_count: u64,
    /// The mark at the requested position, if the log holds it.
    pub(super) at: Option<Mark>,
    /// Whether the partition's keys are consistent. They are inconsistent after one was lost.
    pub(super) is_whole: bool,
}

/// What `extent.lua` returns.
type Answer = (u64, String, u64, Vec<u8>, u64, Vec<u8>, u64, Vec<u8>, u8);

impl Registry {
    /// Reads the extent of one partition's log, and the mark at a position.
    pub(super) async fn extent(
        &self,
        partition: &Partition,
        identity: &Identity,
        at: Option<Position>,
    ) -> Result<Extent, Fault> {
        let names = ["log", "attached", "closed", "slots", "held", "leases", "deadlines", "ids"];
        let names = if partition.number == 0 { &names[..] } else { &names[..5] };
        let position = at.map(|position| position.0.to_string()).unwrap_or_default();
        let asked = partition.run::<Answer>(ASK, |_| {
            self.call(&self.scripts.extent, partition, names, 0).arg(&identity.birth).arg(&position)
        });
        let (time, id, end, end_mark, start, start_mark, session_count, at, is_whole) = asked.await?;
        partition.clock.advance(time);
        let point = |position, mark: &[u8]| {
            let mark = mark_in(mark).ok_or_else(|| Fault::malformed("the mark of the log is missing"))?;
            Ok::<_, Fault>(LogPoint { position: Position(position), mark })
        };
        Ok(Extent {
            id: u64::from_str_radix(&id, 16).ok().map(RegistryId),
            held: point(start, &start_mark)?..point(end, &end_mark)?,
            session_count,
            at: mark_in(&at),
            is_whole: is_whole == 1,
        })
    }

    /// Reads the extents of all logs, and checks the registry's id.
    pub(super) async fn extents(&self) -> Result<(RegistryId, Vec<Extent>), Fault> {
        self.with_identity(|identity| async move {
            let identity = &*identity;
            let extents = self.each_partition(|partition| async move { self.extent(&partition, identity, None).await });
            let extents = extents.await?;
            match extents[0].id {
                Some(id) if id == identity.registry_id => Ok((id, extents)),
                _ => Err(Fault::Registry),
            }
        })
        .await
    }
}
