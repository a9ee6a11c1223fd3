//! What breaks promises on purpose: storages that do not keep their obligations, and streams that lie.

use async_trait::async_trait;
use sessiond::storage::{BucketRun, Changes, LogError, LogExtent, LogPoint, RegistryId, SessionStorage, StorageError};

use super::{checker::Told, twisted::Twist};

/// What happens to an observer's updates on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tamper {
    #[default]
    Nothing,
    /// The first two events of each message change places.
    SwapEvents,
    /// The second message of events comes twice.
    RepeatEvents,
    /// The second message of events never comes.
    LoseEvents,
    /// A session is left out of a snapshot.
    LoseFromSnapshot,
    /// A session is in a snapshot twice.
    RepeatInSnapshot,
    /// Synced counts one too many.
    MiscountSynced,
    /// Each cursor is that of the message before.
    StaleCursors,
    /// No cursors.
    LoseCursors,
    /// Every part of a snapshot has a cursor, as though one could go on from there.
    CursorsInSnapshot,
    /// No heartbeats.
    LoseHeartbeats,
}

type Message = (Told, Option<String>);

impl Tamper {
    /// Adds what comes of an update to what was told before.
    pub(crate) fn pass(self, told: Told, cursor: Option<String>, all: &mut Vec<Message>) {
        let events_before = all.iter().filter(|(told, _)| matches!(told, Told::Events(_))).count();
        let mut message = (told, cursor);
        match (self, &mut message) {
            (Self::SwapEvents, (Told::Events(events), _)) if events.len() > 1 => events.swap(0, 1),
            (Self::RepeatEvents, (Told::Events(_), _)) if events_before == 1 => all.push(message.clone()),
            // A message that is not an update of this stream takes its place in the count.
            (Self::LoseEvents, (Told::Events(events), _)) if events_before == 1 => events.clear(),
            (Self::LoseFromSnapshot, (Told::Snapshot(sessions), _)) => drop(sessions.pop()),
            (Self::RepeatInSnapshot, (Told::Snapshot(sessions), _)) => sessions.extend_from_within(..1),
            (Self::MiscountSynced, (Told::Synced(count), _)) => *count += 1,
            (Self::StaleCursors, (Told::Events(_), cursor)) => *cursor = all.last().and_then(|last| last.1.clone()),
            (Self::LoseCursors, (Told::Events(_), cursor)) => *cursor = None,
            (Self::CursorsInSnapshot, (Told::Snapshot(_), cursor)) => *cursor = all[0].1.clone(),
            (Self::LoseHeartbeats, (Told::Heartbeat, _)) => return,
            _ => {}
        }
        all.push(message);
    }
}

/// Two changes of each run of the log change places.
#[derive(Debug)]
pub(crate) struct SwapsChanges;

#[async_trait]
impl Twist for SwapsChanges {
    async fn changes_after(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        let mut changes = truth.changes_after(registry_id, partition, after, limit).await?;
        if changes.events.len() > 1 {
            changes.events.swap(0, 1);
        }
        Ok(changes)
    }
}

/// Says of a bucket's sessions that they are those of an earlier position than they are.
#[derive(Debug)]
pub(crate) struct ReadsUnderOldPositions;

#[async_trait]
impl Twist for ReadsUnderOldPositions {
    async fn read_buckets(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        let mut run = truth.read_buckets(registry_id, known, buckets, limit, with_leases).await?;
        run.points.iter_mut().for_each(|point| point.position.0 = 0);
        Ok(run)
    }
}

/// Says that its log reaches further than it does.
#[derive(Debug)]
pub(crate) struct LogsAhead;

#[async_trait]
impl Twist for LogsAhead {
    async fn log(&self, truth: &dyn SessionStorage) -> Result<LogExtent, StorageError> {
        let mut extent = truth.log().await?;
        extent.partitions.iter_mut().for_each(|held| held.end.position.0 += 1);
        Ok(extent)
    }
}

/// Creates nothing before others had their turn.
#[derive(Debug)]
pub(crate) struct DelaysWriters;

#[async_trait]
impl Twist for DelaysWriters {
    async fn before_create(&self) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
