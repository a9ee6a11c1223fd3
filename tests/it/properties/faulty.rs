//! What breaks promises on purpose: storages that do not keep their obligations, and streams that lie.

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{
        Answers, BucketRun, Changes, CreateOptions, Creation, LogError, LogExtent, LogPoint, Place, RegistryId,
        SessionStorage, StorageError,
    },
};

use super::{
    told::{Message, Told},
    twisted::Twist,
};

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
    /// Moves to this lease never come.
    LoseMovesTo(LeaseId),
    /// Moves from this lease never come.
    LoseMovesFrom(LeaseId),
    /// Moves are said to be from no lease.
    ForgetPrevious,
    /// Sessions are said to be destroyed under no lease.
    ForgetLastLease,
    /// A move comes with each message of events to those without placements.
    AddMoves,
    /// Places are so far off: those of all partitions, or those of last events.
    ShiftPlaces(i64),
    ShiftLast(i64),
    /// No places.
    LosePlaces,
    /// A place comes with each message of events.
    AddPlaces,
}

fn shift(place: &mut Place, by: i64) {
    place.position.0 = place.position.0.saturating_add_signed(by);
}

impl Tamper {
    /// Adds what comes of an update to what was told before.
    pub(crate) fn pass(self, mut message: Message, all: &mut Vec<Message>) {
        let events_before = all.iter().filter(|message| matches!(message.told, Told::Events(_))).count();
        let Message { told, cursor, places, last } = &mut message;
        match (self, told) {
            (Self::SwapEvents, Told::Events(events)) if events.len() > 1 => events.swap(0, 1),
            (Self::RepeatEvents, Told::Events(_)) if events_before == 1 => all.push(message.clone()),
            // A message that is not an update of this stream takes its place in the count.
            (Self::LoseEvents, Told::Events(events)) if events_before == 1 => events.clear(),
            (Self::LoseFromSnapshot, Told::Snapshot(sessions)) => drop(sessions.pop()),
            (Self::RepeatInSnapshot, Told::Snapshot(sessions)) => sessions.extend_from_within(..1),
            (Self::MiscountSynced, Told::Synced(count)) => *count += 1,
            (Self::StaleCursors, Told::Events(_)) => *cursor = all.last().and_then(|last| last.cursor.clone()),
            (Self::LoseCursors, Told::Events(_)) => *cursor = None,
            (Self::CursorsInSnapshot, Told::Snapshot(_)) => cursor.clone_from(&all[0].cursor),
            (Self::LoseHeartbeats, Told::Heartbeat) => return,
            (Self::LoseMovesTo(lease), Told::Events(events)) => {
                events
                    .retain(|event| !matches!(event.change, SessionChange::Moved { .. }) || event.lease != Some(lease));
            }
            (Self::LoseMovesFrom(lease), Told::Events(events)) => {
                events.retain(|event| event.change != SessionChange::Moved { previous: Some(lease) });
            }
            (Self::ForgetPrevious, Told::Events(events)) => {
                for event in events {
                    if let SessionChange::Moved { previous } = &mut event.change {
                        *previous = None;
                    }
                }
            }
            (Self::ForgetLastLease, Told::Events(events)) => {
                let destroyed = |event: &&mut SessionEvent| matches!(event.change, SessionChange::Destroyed(_));
                events.iter_mut().filter(destroyed).for_each(|event| event.lease = None);
            }
            (Self::AddMoves, Told::Events(events)) if last.is_none() => {
                let change = SessionChange::Moved { previous: None };
                events.push(SessionEvent { change, ..events[0] });
            }
            (Self::ShiftPlaces(by), _) => places.iter_mut().for_each(|place| shift(place, by)),
            (Self::ShiftLast(by), _) => last.iter_mut().for_each(|place| shift(place, by)),
            (Self::LosePlaces, _) => {
                places.clear();
                *last = None;
            }
            (Self::AddPlaces, Told::Events(_)) => *last = Some(Place::default()),
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
