//! Faults that break promises on purpose: storages that violate their contract, and streams that lie.

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{
        Answers, BucketRun, Changes, CreateOptions, Creation, LogError, LogExtent, LogPoint, Place, RegistryId,
        SessionStorage, StorageError,
    },
};

use super::message::{Content, Message};
use crate::twisted::Twist;

/// How an observer's updates are changed on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tamper {
    #[default]
    Nothing,
    /// Swaps the first two events of each message.
    SwapEvents,
    /// Repeats the second message of events.
    RepeatEvents,
    /// Drops the second message of events.
    LoseEvents,
    /// Leaves a session out of a snapshot.
    LoseFromSnapshot,
    /// Repeats a session in a snapshot.
    RepeatInSnapshot,
    /// Adds one to the count in synced.
    MiscountSynced,
    /// Gives each message the cursor of the message before.
    StaleCursors,
    /// Drops cursors.
    LoseCursors,
    /// Adds a cursor to every chunk of a snapshot, as though the stream could resume there.
    CursorsInSnapshot,
    /// Drops heartbeats.
    LoseHeartbeats,
    /// Drops moves to this lease.
    LoseMovesTo(LeaseId),
    /// Drops moves from this lease.
    LoseMovesFrom(LeaseId),
    /// Reports moves as coming from no lease.
    ForgetPrevious,
    /// Reports destroyed sessions as under no lease.
    ForgetLastLease,
    /// Adds a move to each message of events on streams without placements.
    AddMoves,
    /// Shifts places: those of all partitions, or those of last events.
    ShiftPlaces(i64),
    ShiftLast(i64),
    /// Drops places.
    LosePlaces,
    /// Adds a place to each message of events.
    AddPlaces,
}

fn shift(place: &mut Place, by: i64) {
    place.position.0 = place.position.0.saturating_add_signed(by);
}

impl Tamper {
    /// Appends the tampered message or messages to the stream's earlier ones.
    pub(crate) fn pass(self, mut message: Message, all: &mut Vec<Message>) {
        let events_before = all.iter().filter(|message| matches!(message.content, Content::Events(_))).count();
        let Message { content, cursor, places, last } = &mut message;
        match (self, content) {
            (Self::SwapEvents, Content::Events(events)) if events.len() > 1 => events.swap(0, 1),
            (Self::RepeatEvents, Content::Events(_)) if events_before == 1 => all.push(message.clone()),
            // The emptied message stays, so that `events_before` counts it.
            (Self::LoseEvents, Content::Events(events)) if events_before == 1 => events.clear(),
            (Self::LoseFromSnapshot, Content::Snapshot(sessions)) => drop(sessions.pop()),
            (Self::RepeatInSnapshot, Content::Snapshot(sessions)) => sessions.extend_from_within(..1),
            (Self::MiscountSynced, Content::Synced(count)) => *count += 1,
            (Self::StaleCursors, Content::Events(_)) => *cursor = all.last().and_then(|last| last.cursor.clone()),
            (Self::LoseCursors, Content::Events(_)) => *cursor = None,
            (Self::CursorsInSnapshot, Content::Snapshot(_)) => cursor.clone_from(&all[0].cursor),
            (Self::LoseHeartbeats, Content::Heartbeat) => return,
            (Self::LoseMovesTo(lease), Content::Events(events)) => {
                events
                    .retain(|event| !matches!(event.change, SessionChange::Moved { .. }) || event.lease != Some(lease));
            }
            (Self::LoseMovesFrom(lease), Content::Events(events)) => {
                events.retain(|event| event.change != SessionChange::Moved { previous: Some(lease) });
            }
            (Self::ForgetPrevious, Content::Events(events)) => {
                for event in events {
                    if let SessionChange::Moved { previous } = &mut event.change {
                        *previous = None;
                    }
                }
            }
            (Self::ForgetLastLease, Content::Events(events)) => {
                let destroyed = |event: &&mut SessionEvent| matches!(event.change, SessionChange::Destroyed(_));
                events.iter_mut().filter(destroyed).for_each(|event| event.lease = None);
            }
            (Self::AddMoves, Content::Events(events)) if last.is_none() => {
                let change = SessionChange::Moved { previous: None };
                events.push(SessionEvent::new(events[0].session, change, events[0].lease));
            }
            (Self::ShiftPlaces(by), _) => places.iter_mut().for_each(|place| shift(place, by)),
            (Self::ShiftLast(by), _) => last.iter_mut().for_each(|place| shift(place, by)),
            (Self::LosePlaces, _) => {
                places.clear();
                *last = None;
            }
            (Self::AddPlaces, Content::Events(_)) => *last = Some(Place::default()),
            _ => {}
        }
        all.push(message);
    }
}

/// Swaps two changes in each run of the log.
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

/// Reports an earlier position for a bucket's sessions than the true one.
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

/// Reports a log end that is beyond the true one.
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

/// Delays each create until other tasks have run.
#[derive(Debug)]
pub(crate) struct DelaysWriters;

#[async_trait]
impl Twist for DelaysWriters {
    async fn create_with(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        truth.create_with(sessions, options).await
    }
}
