//! The log: its positions, its order, and its followers.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    StorageFactory,
    audit::{audit_settled, read_log, read_on, replay},
    registry::{
        PATIENCE, ROOMY, Registry, Tasks, created, destroyed, key, keys, poll_at_most, promptly, yield_randomly,
    },
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{DestroyReason, SessionEvent, SessionKey},
    storage::{LogError, LogPoint, Position, StorageOptions},
};

pub(super) async fn new_log_is_empty_and_keeps_its_registry_id(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let empty = registry.extent().await?;
    for held in &empty.partitions {
        let positions = held.start.position..held.end.position;
        ensure_eq!(positions, Position(0)..Position(0), Ordered, "the extent of a new log");
    }
    registry.create(&keys(0..50), None).await?;
    registry.destroy(&keys(0..50), None).await?;
    let extent = registry.extent().await?;
    ensure_eq!(extent.registry_id, empty.registry_id, Answers, "the registry id after some changes");
    let logged: u64 = extent.partitions.iter().map(|held| held.end.position.0).sum();
    ensure_eq!(logged, 100, Visible, "the length of the log after 100 changes");
    for held in &extent.partitions {
        ensure_eq!(held.start.position, Position(0), Bounded, "the start of a log that can retain all its changes");
    }
    let other = Registry::open(factory).await?.extent().await?;
    ensure!(other.registry_id != empty.registry_id, Answers, "two registries have the id {}", other.registry_id);
    Ok(())
}

pub(super) async fn changes_are_numbered_from_one_and_alternate(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let mut expected = vec![Vec::new(); registry.layout().partitions as usize];
    for round in 0..3 {
        for session in keys(0..20) {
            registry.create_one(session, None).await?;
            registry.create_one(session, None).await?;
            expected[registry.partition_of(&session)].push(created(session));
            check_ends(&registry, &expected).await?;
        }
        for session in keys(round..20) {
            registry.destroy_one(session, None).await?;
            registry.destroy_one(session, None).await?;
            expected[registry.partition_of(&session)].push(destroyed(session, DestroyReason::Requested));
            check_ends(&registry, &expected).await?;
        }
        // These sessions were not destroyed above.
        for session in keys(0..round) {
            registry.destroy_one(session, None).await?;
            expected[registry.partition_of(&session)].push(destroyed(session, DestroyReason::Requested));
        }
    }
    let log = read_log(&registry).await?;
    replay(&registry, &log)?;
    ensure_eq!(log, expected, Ordered, "the changes of consecutive calls");
    audit_settled(&registry).await?;
    Ok(())
}

/// Checks the end of the log of each partition.
async fn check_ends(registry: &Registry, expected: &[Vec<SessionEvent>]) -> Outcome {
    for (held, expected) in registry.extent().await?.partitions.iter().zip(expected) {
        let expected = Position(expected.len() as u64);
        ensure_eq!(held.end.position, expected, Visible, "the end of the log");
    }
    Ok(())
}

pub(super) async fn batch_keeps_its_order(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let mut random = fastrand::Rng::new();
    let mut expected = vec![Vec::new(); registry.layout().partitions as usize];
    for _ in 0..5 {
        // More than one step of any storage, in random order.
        let mut batch = keys(0..3000);
        random.shuffle(&mut batch);
        registry.create(&batch, None).await?;
        for session in &batch {
            expected[registry.partition_of(session)].push(created(*session));
        }
        random.shuffle(&mut batch);
        registry.destroy(&batch, None).await?;
        for session in &batch {
            expected[registry.partition_of(session)].push(destroyed(*session, DestroyReason::Requested));
        }
    }
    let log = read_log(&registry).await?;
    for (partition, (found, expected)) in log.iter().zip(&expected).enumerate() {
        ensure_eq!(found.len(), expected.len(), Ordered, "changes in partition {partition}");
        if let Some(first) = (0..found.len()).find(|index| found[*index] != expected[*index]) {
            ensure_eq!(
                found[first],
                expected[first],
                Ordered,
                "change {} of partition {partition}, in the order of the batches",
                first + 1
            );
        }
    }
    Ok(())
}

pub(super) async fn changes_can_be_read_in_parts(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    registry.create(&keys(0..300), None).await?;
    registry.destroy(&keys(100..200), None).await?;
    let log = read_log(&registry).await?;
    for (partition, events) in log.iter().enumerate() {
        for limit in [1, 2, 7, 100, 1000, usize::MAX] {
            let step = if limit == 1 { 13 } else { 1 };
            for after in (0..events.len()).step_by(step * events.len().div_ceil(40).max(1)) {
                let point = registry.point(partition, Position(after as u64)).await?;
                let read = registry.changes_after(partition, point, limit);
                let read = promptly("existing changes", read).await??.events;
                let most = limit.min(events.len() - after);
                ensure!(
                    (1..=most).contains(&read.len()),
                    Answers,
                    "changes_after({partition}, {after}, {limit}) returned {} changes instead of 1 to {most}",
                    read.len()
                );
                let expected = &events[after..after + read.len()];
                ensure_eq!(read, expected, Ordered, "changes_after({partition}, {after}, {limit})");
            }
        }
    }
    Ok(())
}

/// How often a waiting future may wake within [`QUIET`] while nothing changes.
const IDLE_POLLS: usize = 1000;
const QUIET: Duration = Duration::from_millis(300);

pub(super) async fn follower_waits_idly_and_wakes(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    for round in 0..20 {
        let session = key(round);
        let partition = registry.partition_of(&session);
        let end = registry.extent().await?.partitions[partition].end;
        let mut changes = pin!(registry.changes_after(partition, end, 10));
        if round == 0 {
            let mut polls = 0;
            let busy = poll_fn(|context| {
                polls += 1;
                match changes.as_mut().poll(context) {
                    Poll::Ready(early) => Poll::Ready(Some(early)),
                    Poll::Pending if polls > IDLE_POLLS => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            });
            match tokio::time::timeout(QUIET, busy).await {
                Ok(Some(early)) => broken!(Answers, "changes_after did not wait for a change but returned {early:?}"),
                Ok(None) => {
                    broken!(Answers, "changes_after is busy: it wakes {IDLE_POLLS} times while nothing changes")
                }
                Err(_) => {}
            }
        } else if let Some(early) = poll_at_most(poll_fn(|context| changes.as_mut().poll(context)), 1).await {
            broken!(Answers, "changes_after did not wait for a change but returned {early:?}");
        }
        let create = async {
            tokio::task::yield_now().await;
            registry.create_one(session, None).await
        };
        let (events, created_one) = tokio::join!(tokio::time::timeout(PATIENCE, changes), create);
        ensure!(created_one?, Answers, "create of {session:?}");
        let Ok(events) = events else {
            broken!(Answers, "a change did not wake a follower within {PATIENCE:?}");
        };
        ensure_eq!(events?.events, [created(session)], Ordered, "the change that a follower waited for");
    }
    Ok(())
}

pub(super) async fn all_followers_read_the_same_changes(factory: &dyn StorageFactory) -> Outcome {
    const FOLLOWERS: usize = 8;
    const ROUNDS: i64 = 100;
    let registry = Registry::open(factory).await?;
    let session = key(7);
    let partition = registry.partition_of(&session);
    let mut followers = Tasks::new();
    for limit in 1..=FOLLOWERS {
        let registry = Arc::clone(&registry);
        followers.spawn(async move {
            let mut events = Vec::new();
            let mut after = registry.point(partition, Position(0)).await?;
            while events.len() < 2 * ROUNDS as usize {
                let more = registry.changes_after(partition, after, limit);
                let Ok(more) = tokio::time::timeout(PATIENCE, more).await else {
                    broken!(Concurrent, "one of {FOLLOWERS} followers received nothing after {after:?}");
                };
                let more = more?;
                after = after.past(&more);
                ensure!(
                    (1..=limit).contains(&more.events.len()),
                    Answers,
                    "changes_after returned {} changes with limit {limit}",
                    more.events.len()
                );
                events.extend(more.events);
            }
            Ok(events)
        });
    }
    let mut random = fastrand::Rng::new();
    for _ in 0..ROUNDS {
        registry.create_one(session, None).await?;
        yield_randomly(&mut random).await;
        registry.destroy_one(session, None).await?;
        yield_randomly(&mut random).await;
    }
    let one = [created(session), destroyed(session, DestroyReason::Requested)];
    for events in followers.join().await? {
        ensure_eq!(events, one.repeat(ROUNDS as usize), Concurrent, "the changes read by one of {FOLLOWERS} followers");
    }
    Ok(())
}

pub(super) async fn follower_dropped_while_waiting_loses_nothing(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    // Each change is for another session, so that a lost change is noticed wherever the next read continues.
    let sessions = keys(0..1000);
    let partition = registry.partition_of(&sessions[0]);
    let own: Vec<_> = sessions.into_iter().filter(|session| registry.partition_of(session) == partition).collect();
    let expected: Vec<_> = own.iter().copied().map(created).collect();
    let end = Position(own.len() as u64);
    let mut steady = Tasks::new();
    let beside = Arc::clone(&registry);
    steady.spawn(async move {
        let mut events = Vec::new();
        read_on(&beside, partition, &mut events, end).await?;
        Ok(events)
    });
    let mut random = fastrand::Rng::new();
    let mut events: Vec<SessionEvent> = Vec::new();
    for (n, session) in (0..).zip(own) {
        if random.bool() {
            // Reads everything, so that the next call has to wait.
            read_on(&registry, partition, &mut events, Position(n)).await?;
        }
        let after = registry.point(partition, Position(events.len() as u64)).await?;
        let waiting = registry.changes_after(partition, after, 1 + random.usize(..3));
        // Dropped before the change, after it, or while returning changes.
        let change = registry.create_one(session, None);
        let (read, changed) = tokio::join!(poll_at_most(waiting, random.usize(..4)), change);
        changed?;
        events.extend(read.transpose()?.into_iter().flat_map(|changes| changes.events));
    }
    read_on(&registry, partition, &mut events, end).await?;
    ensure_eq!(events, expected, Cancellable, "the changes read around dropped calls of changes_after");
    for steady in steady.join().await? {
        ensure_eq!(steady, expected, Cancellable, "the changes read by another follower");
    }
    Ok(())
}

pub(super) async fn changes_before_the_start_are_reported_as_trimmed(factory: &dyn StorageFactory) -> Outcome {
    const RETAIN: u64 = 16;
    /// A storage may keep more than `RETAIN` changes, but must not keep all of this many.
    const MOST: u64 = 200_000;
    let registry = Registry::open_with(factory, StorageOptions { retain_events: RETAIN as usize, ..ROOMY }).await?;
    let sessions = keys(0..500);
    let partition = registry.partition_of(&sessions[0]);
    let own: Vec<SessionKey> =
        sessions.into_iter().filter(|session| registry.partition_of(session) == partition).collect();
    let changes_after = async |after: Position| {
        let point = registry.point(partition, after).await?;
        match tokio::time::timeout(PATIENCE, registry.changes_after(partition, point, 1000)).await {
            Ok(changes) => Ok(changes),
            Err(_) => broken!(Bounded, "changes_after waits at {after:?}, which is not the end of the log"),
        }
    };
    let mut written: u64 = 0;
    let mut trimmed = 0;
    let mut batch = 1;
    while trimmed < 3 {
        ensure!(written < MOST, Bounded, "the log still holds all {written} changes, though it was to keep {RETAIN}");
        let some = &own[..batch.min(own.len())];
        registry.create(some, None).await?;
        registry.destroy(some, None).await?;
        written += 2 * some.len() as u64;
        batch += 1;
        let held = registry.extent().await?.partitions[partition].clone();
        let held = held.start.position..held.end.position;
        ensure_eq!(held.end, Position(written), Visible, "the end of the log");
        let count = held.end.0 - held.start.0.min(held.end.0);
        ensure!(
            count >= RETAIN.min(written),
            Bounded,
            "the log holds only {count} of {written} changes, though it was to keep {RETAIN}"
        );
        if held.start == Position(0) {
            continue;
        }
        trimmed += 1;
        for before in [0, held.start.0 / 2, held.start.0 - 1] {
            match changes_after(Position(before)).await? {
                Err(LogError::Trimmed) => {}
                other => broken!(
                    Bounded,
                    "changes_after({before}) returned {other:?} instead of Trimmed, though the log starts at {:?}",
                    held.start
                ),
            }
        }
        match changes_after(held.start).await? {
            Ok(changes) => ensure!(
                changes.events.len() as u64 <= count,
                Bounded,
                "changes_after returned more changes than the log holds"
            ),
            Err(error) => {
                broken!(Bounded, "changes_after failed at {:?}, the start of the log: {error}", held.start)
            }
        }
        let last = changes_after(Position(written - 1)).await??.events;
        let session = some[some.len() - 1];
        ensure_eq!(last, [destroyed(session, DestroyReason::Requested)], Ordered, "the last change of a trimmed log");
    }
    Ok(())
}

pub(super) async fn position_ahead_of_the_log_is_refused(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    for n in 0..3 {
        for (partition, held) in registry.extent().await?.partitions.into_iter().enumerate() {
            let end = held.end.position;
            for after in [end.0 + 1, end.0 + 1000, u64::MAX] {
                let started = Instant::now();
                let point = LogPoint { position: Position(after), ..held.end };
                let changes = registry.changes_after(partition, point, 1);
                match tokio::time::timeout(PATIENCE, changes).await {
                    Ok(Err(LogError::Restarted)) => {}
                    Ok(other) => broken!(Bounded, "changes_after({after}) returned {other:?} instead of Restarted"),
                    Err(_) => broken!(
                        Bounded,
                        "changes_after({after}) hangs for {:?} instead of returning Restarted; the log ends at {end:?}",
                        started.elapsed()
                    ),
                }
            }
        }
        registry.create(&keys(n * 10..n * 10 + 10), None).await?;
    }
    Ok(())
}

pub(super) async fn log_of_another_registry_is_refused(factory: &dyn StorageFactory) -> Outcome {
    let (registry, other) = (Registry::open(factory).await?, Registry::open(factory).await?);
    let others = other.extent().await?.registry_id;
    for round in 0..2 {
        for (partition, held) in (0..).zip(registry.extent().await?.partitions) {
            for after in [held.start, held.end] {
                let changes = registry.storage().changes_after(others, partition, after, 1);
                match tokio::time::timeout(PATIENCE, changes).await {
                    Ok(Err(LogError::Restarted)) => {}
                    Ok(answer) => {
                        broken!(Bounded, "changes_after of another registry returned {answer:?} instead of Restarted")
                    }
                    Err(_) => {
                        broken!(Bounded, "changes_after of another registry hangs instead of returning Restarted")
                    }
                }
            }
        }
        registry.create(&keys(round * 10..round * 10 + 10), None).await?;
    }
    Ok(())
}
