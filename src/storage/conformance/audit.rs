//! Audits: checks that the set and the log agree. Nearly every case ends with one.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    registry::{PATIENCE, Registry, count_true},
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{LogError, LogPoint, Position},
};

/// The result of reading one bucket.
pub(super) struct BucketRead {
    bucket: u32,
    /// The position that the sessions reflect, according to the storage.
    position: Position,
    sessions: HashMap<SessionKey, Option<LeaseId>>,
    /// The end of the partition's log before the read. The read must reflect all changes up to it.
    before: Position,
}

/// Reads all buckets in order, about `limit` sessions at a time.
pub(super) async fn read_all(registry: &Registry, limit: usize) -> Outcome<Vec<BucketRead>> {
    let buckets = registry.layout().buckets;
    let mut reads = Vec::new();
    while (reads.len() as u32) < buckets {
        reads.extend(read_some(registry, reads.len() as u32, limit).await?);
    }
    Ok(reads)
}

/// Makes one read of buckets from `first` on, and checks its form.
pub(super) async fn read_some(registry: &Registry, first: u32, limit: usize) -> Outcome<Vec<BucketRead>> {
    let buckets = registry.layout().buckets;
    let before = registry.extent().await?;
    let known: Vec<_> = before.partitions.iter().map(|held| held.end).collect();
    let run = registry.read_buckets(&known, first, limit, true).await?;
    ensure_eq!(run.leases.len(), run.sessions.len(), Answers, "leases of {} sessions", run.sessions.len());
    let storage = registry.storage();
    ensure!(!run.points.is_empty(), Answers, "read_buckets({first}, {limit}) read no bucket");
    let end = u64::from(first) + run.points.len() as u64;
    ensure!(end <= u64::from(buckets), Answers, "read_buckets({first}, {limit}) read up to {end} of {buckets} buckets");
    let mut reads: Vec<BucketRead> = (first..)
        .zip(run.points)
        .map(|(bucket, LogPoint { position, .. })| {
            let before = known[storage.partition_of(bucket) as usize].position;
            BucketRead { bucket, position, sessions: HashMap::new(), before }
        })
        .collect();
    for (session, lease) in run.sessions.into_iter().zip(run.leases) {
        let bucket = storage.bucket_of(&session);
        let read = bucket.checked_sub(first).and_then(|index| reads.get_mut(index as usize));
        let Some(read) = read else {
            broken!(
                Answers,
                "read_buckets({first}, {limit}) returned {session:?} of bucket {bucket}, which it did not read"
            );
        };
        ensure!(
            read.sessions.insert(session, lease).is_none(),
            ExactReads,
            "a read of bucket {bucket} returned {session:?} twice"
        );
    }
    let all_but_last = reads.split_last().map_or(0, |(_, others)| others.iter().map(|read| read.sessions.len()).sum());
    ensure!(
        all_but_last < limit.max(1),
        Answers,
        "read_buckets({first}, {limit}) read another bucket after {all_but_last} sessions"
    );
    Ok(reads)
}

/// All changes of each partition, from the first one.
pub(super) type WholeLog = Vec<Vec<SessionEvent>>;

/// Reads the whole log of each partition, up to its current end.
pub(super) async fn read_log(registry: &Registry) -> Outcome<WholeLog> {
    let extent = registry.extent().await?;
    let mut log = WholeLog::new();
    for (partition, held) in extent.partitions.iter().enumerate() {
        let mut events = Vec::new();
        read_on(registry, partition, &mut events, held.end.position).await?;
        log.push(events);
    }
    Ok(log)
}

/// Appends the following changes of a partition to `events`, up to `end`.
pub(super) async fn read_on(
    registry: &Registry,
    partition: usize,
    events: &mut Vec<SessionEvent>,
    end: Position,
) -> Outcome {
    const CHANGES_A_READ: usize = 1000;
    let mut after = registry.point(partition, Position(events.len() as u64)).await?;
    while (events.len() as u64) < end.0 {
        let changes = registry.changes_after(partition, after, CHANGES_A_READ);
        let changes = match tokio::time::timeout(PATIENCE, changes).await {
            Ok(Err(LogError::Trimmed)) => broken!(
                Bounded,
                "partition {partition} no longer holds the changes after {:?}, though it was to keep more",
                after.position
            ),
            Ok(changes) => changes?,
            Err(_) => broken!(
                Bounded,
                "partition {partition} ends at {end:?}, but returned nothing after {after:?} within {PATIENCE:?}"
            ),
        };
        after = after.past(&changes);
        let (count, limit) = (changes.events.len(), CHANGES_A_READ);
        ensure!(
            (1..=limit).contains(&count),
            Answers,
            "changes_after returned {count} changes instead of 1 to {limit}"
        );
        events.extend(changes.events);
    }
    Ok(())
}

/// The result of replaying a whole log.
#[derive(Default)]
pub(super) struct Replay {
    pub(super) live: HashSet<SessionKey>,
    /// The lease of each live session.
    pub(super) leases: HashMap<SessionKey, Option<LeaseId>>,
    created: HashMap<SessionKey, u64>,
    destroyed: HashMap<(SessionKey, DestroyReason), u64>,
}

impl Replay {
    /// Returns how often the session was created.
    pub(super) fn created(&self, session: SessionKey) -> u64 {
        self.created.get(&session).copied().unwrap_or(0)
    }

    /// Returns how often the session was destroyed for this reason.
    pub(super) fn destroyed(&self, session: SessionKey, reason: DestroyReason) -> u64 {
        self.destroyed.get(&(session, reason)).copied().unwrap_or(0)
    }

    /// Returns the number of destructions for this reason, of all sessions.
    pub(super) fn all_destroyed(&self, reason: DestroyReason) -> u64 {
        self.destroyed.iter().filter(|((_, why), _)| *why == reason).map(|(_, count)| count).sum()
    }
}

/// Replays a log, after checking that each session's changes alternate, agree on its lease, and are in its partition.
pub(super) fn replay(registry: &Registry, log: &WholeLog) -> Outcome<Replay> {
    let mut replay = Replay::default();
    for (partition, events) in log.iter().enumerate() {
        for (index, SessionEvent { session, change, lease }) in events.iter().enumerate() {
            let own = registry.partition_of(session);
            ensure_eq!(partition, own, Divided, "the partition that logged {change:?} of {session:?}");
            let alternates = match change {
                SessionChange::Created => {
                    *replay.created.entry(*session).or_default() += 1;
                    replay.leases.insert(*session, *lease);
                    replay.live.insert(*session)
                }
                SessionChange::Destroyed(reason) => {
                    *replay.destroyed.entry((*session, *reason)).or_default() += 1;
                    let before = replay.leases.remove(session).flatten();
                    ensure_eq!(*lease, before, Placed, "the lease of {session:?} when it was destroyed");
                    replay.live.remove(session)
                }
                SessionChange::Moved { previous } => {
                    let before = replay.leases.insert(*session, *lease).flatten();
                    ensure_eq!(*previous, before, Placed, "the lease that {session:?} moved from");
                    ensure!(
                        lease.is_some() && *lease != before,
                        Placed,
                        "{session:?} moved from {before:?} to {lease:?}"
                    );
                    replay.live.contains(session)
                }
            };
            let position = index + 1;
            ensure!(
                alternates,
                Alternating,
                "change {position} of partition {partition}, {change:?} of {session:?}, cannot follow its previous one"
            );
        }
    }
    Ok(replay)
}

/// Checks that each read of a bucket reflects exactly the logged changes up to its position. The log must have been
/// read after the buckets. Other changes may be made meanwhile.
pub(super) fn check_reads(registry: &Registry, log: &WholeLog, reads: &[BucketRead]) -> Outcome {
    let storage = registry.storage();
    let mut changes: HashMap<u32, Vec<(Position, SessionEvent)>> = HashMap::new();
    for events in log {
        for (position, event) in (1..).map(Position).zip(events) {
            changes.entry(storage.bucket_of(&event.session)).or_default().push((position, *event));
        }
    }
    for BucketRead { bucket, position, sessions, before } in reads {
        let partition = storage.partition_of(*bucket);
        let end = Position(log[partition as usize].len() as u64);
        ensure!(
            *position <= end,
            ExactReads,
            "bucket {bucket} was read at {position:?}, ahead of the log, which ends at {end:?}"
        );
        let changes = changes.get(bucket).map_or(&[][..], Vec::as_slice);
        let mut expected = HashMap::new();
        let mut last = Position(0);
        for (at, SessionEvent { session, change, lease }) in changes {
            if at <= before {
                last = *at;
            }
            if at <= position {
                match change {
                    SessionChange::Created | SessionChange::Moved { .. } => expected.insert(*session, *lease),
                    SessionChange::Destroyed(_) => expected.remove(session),
                };
            }
        }
        let pairs =
            |map: &HashMap<SessionKey, Option<LeaseId>>| map.iter().map(|(key, lease)| (*key, *lease)).collect();
        if let Some(difference) = difference::<(SessionKey, Option<LeaseId>)>(&pairs(sessions), &pairs(&expected)) {
            broken!(
                ExactReads,
                "bucket {bucket}, read at {position:?}, differs from the log at that position: {difference}"
            );
        }
        ensure!(
            *position >= last,
            Visible,
            "bucket {bucket} was read at {position:?}, without its change at {last:?}, which was logged before the read"
        );
    }
    Ok(())
}

/// Checks that the set and the log agree. Other changes may be made meanwhile.
pub(super) async fn audit(registry: &Registry) -> Outcome<Replay> {
    let reads = read_all(registry, 256).await?;
    let log = read_log(registry).await?;
    let replay = replay(registry, &log)?;
    check_reads(registry, &log, &reads)?;
    Ok(replay)
}

/// Checks that the set, the log, all buckets and the session count agree. No other changes may be made meanwhile.
pub(super) async fn audit_settled(registry: &Registry) -> Outcome<Replay> {
    let replay = audit(registry).await?;
    let known: Vec<SessionKey> = replay.created.keys().copied().collect();
    for some in known.chunks(1000) {
        for (session, exists) in some.iter().zip(registry.has(some).await?) {
            let expected = replay.live.contains(session);
            ensure_eq!(exists, expected, Atomic, "whether {session:?} exists, compared with the log");
        }
    }
    let read: HashSet<_> =
        read_all(registry, 4096).await?.into_iter().flat_map(|read| read.sessions.into_keys()).collect();
    if let Some(difference) = difference(&read, &replay.live) {
        broken!(ExactReads, "all buckets together differ from the log: {difference}");
    }
    session_count_becomes(registry, replay.live.len() as u64).await?;
    Ok(replay)
}

/// Waits until the session count has this value. The count may lag behind.
pub(super) async fn session_count_becomes(registry: &Registry, expected: u64) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let count = registry.storage().session_count().await?;
        if count == expected {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, Answers, "session_count() stays {count} though {expected} sessions exist");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the lease count has this value. The count may lag behind.
pub(super) async fn lease_count_becomes(registry: &Registry, expected: u64) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let count = registry.storage().lease_count().await?;
        if count == expected {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, Answers, "lease_count() stays {count} though {expected} leases exist");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until none of the sessions exists, because their leases have ended.
pub(super) async fn all_gone_by(registry: &Registry, sessions: &[SessionKey], deadline: Instant) -> Outcome {
    loop {
        let mut left = 0;
        for some in sessions.chunks(1000) {
            left += count_true(&registry.has(some).await?);
        }
        if left == 0 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            Leased,
            "{left} of {} sessions are left though their leases have ended",
            sessions.len()
        );
        sleep(Duration::from_millis(20)).await;
    }
}

/// Describes the difference of two sets briefly. Returns `None` if they are equal.
fn difference<T: Eq + Hash + Debug>(found: &HashSet<T>, expected: &HashSet<T>) -> Option<String> {
    const SHOWN: usize = 3;
    let list = |from: &HashSet<T>, other: &HashSet<T>| {
        let odd: Vec<_> = from.difference(other).collect();
        (odd.len(), format!("{:?}", &odd[..odd.len().min(SHOWN)]))
    };
    let (surplus, surplus_shown) = list(found, expected);
    let (missing, missing_shown) = list(expected, found);
    (surplus + missing > 0)
        .then(|| format!("{surplus} too many, such as {surplus_shown}, and {missing} missing, such as {missing_shown}"))
}
