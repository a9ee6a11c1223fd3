//! The marks of a log, and callers from another history.

use std::ops::Range;

use super::{
    StorageFactory,
    audit::read_some,
    registry::{PATIENCE, ROOMY, Registry, keys},
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::storage::{LogError, LogPoint, Mark, Position, RegistryId, StorageOptions};

/// Creates sessions, and destroys half of them.
async fn change_some(registry: &Registry, sessions: Range<i64>) -> Outcome {
    let sessions = keys(sessions);
    registry.create(&sessions, None).await?;
    registry.destroy(&sessions[..sessions.len() / 2], None).await?;
    Ok(())
}

/// Returns the points at some positions of each partition. `nth` returns the nth position, from the start of the held
/// log to its end, and then the end again and again.
async fn points(
    registry: &Registry,
    held: &[Range<LogPoint>],
    nth: impl Fn(&Range<LogPoint>, u64) -> Position,
) -> Outcome<Vec<Vec<LogPoint>>> {
    let mut points = vec![Vec::new(); held.len()];
    for n in 0.. {
        let positions: Vec<Position> = held.iter().map(|held| nth(held, n)).collect();
        let marks = registry.marks_of_all(&positions).await?;
        for (((points, mark), position), held) in points.iter_mut().zip(marks).zip(&positions).zip(held) {
            let Some(mark) = mark else {
                broken!(Histories, "marks() has no mark at {position:?} of a log that holds {held:?}");
            };
            let point = LogPoint { position: *position, mark };
            if points.last() != Some(&point) {
                points.push(point);
            }
        }
        if positions.iter().zip(held).all(|(position, held)| *position == held.end.position) {
            break;
        }
    }
    for (points, held) in points.iter().zip(held) {
        ensure_eq!(
            points.first(),
            Some(&held.start),
            Histories,
            "the start of the log by marks(), compared with log()"
        );
        ensure_eq!(points.last(), Some(&held.end), Histories, "the end of the log by marks(), compared with log()");
    }
    Ok(points)
}

/// Returns the points at all held positions of each partition.
async fn all_points(registry: &Registry) -> Outcome<Vec<Vec<LogPoint>>> {
    let held = registry.extent().await?.partitions;
    points(registry, &held, |held, n| Position(held.start.position.0 + n).min(held.end.position)).await
}

pub(super) async fn marks_are_known_for_all_held_changes(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    for round in 0..3 {
        all_points(&registry).await?;
        let ends: Vec<_> = registry.extent().await?.partitions.iter().map(|held| held.end.position).collect();
        for ahead in [1, 1000, u64::MAX] {
            let positions: Vec<_> = ends.iter().map(|end| Position(end.0.saturating_add(ahead))).collect();
            for (mark, position) in registry.marks_of_all(&positions).await?.into_iter().zip(&positions) {
                ensure_eq!(mark, None, Histories, "the mark at {position:?} of logs that end at {ends:?}");
            }
        }
        change_some(&registry, round * 20..round * 20 + 20).await?;
    }
    Ok(())
}

pub(super) async fn trimmed_log_has_marks_from_its_start(factory: &dyn StorageFactory) -> Outcome {
    const RETAIN: usize = 16;
    /// A storage may keep more than `RETAIN` changes, but must not keep all of this many.
    const MOST: i64 = 200_000;
    let registry = Registry::open_with(factory, StorageOptions { retain_events: RETAIN, ..ROOMY }).await?;
    let (mut written, mut count) = (0, 50);
    let held = loop {
        let held = registry.extent().await?.partitions;
        if held[0].start.position > Position(0) {
            break held;
        }
        ensure!(written < MOST, Bounded, "the log still holds all {written} changes, though it was to keep {RETAIN}");
        change_some(&registry, written..written + count).await?;
        written += count;
        count = (count * 2).min(10_000);
    };
    let some = |held: &Range<LogPoint>, n| match n {
        0 => held.start.position,
        1 => Position(held.start.position.0 + 1).min(held.end.position),
        2 => Position(held.start.position.0.midpoint(held.end.position.0)),
        _ => held.end.position,
    };
    points(&registry, &held, some).await?;
    let changes = registry.changes_after(0, held[0].start, 1).await?;
    ensure_eq!(changes.events.len(), 1, Answers, "changes after the start of the log, with limit 1");
    Ok(())
}

pub(super) async fn marks_never_change(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let mut known = all_points(&registry).await?;
    for round in 0..3 {
        change_some(&registry, round * 10..round * 10 + 10).await?;
        let points = all_points(&registry).await?;
        for (points, known) in points.iter().zip(&known) {
            ensure_eq!(points[..known.len()], known[..], Histories, "the points of a log after it has grown");
        }
        known = points;
    }
    Ok(())
}

pub(super) async fn changes_have_the_mark_at_their_end(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    change_some(&registry, 0..60).await?;
    change_some(&registry, 60..61).await?;
    let extent = registry.extent().await?;
    let points = all_points(&registry).await?;
    for (partition, (held, points)) in extent.partitions.into_iter().zip(points).enumerate() {
        for limit in [1, 3, 20, usize::MAX] {
            let mut after = held.start;
            while after.position < held.end.position {
                let changes = registry.changes_after(partition, after, limit).await?;
                let end = after.past(&changes);
                let known = points.get((end.position.0 - held.start.position.0) as usize);
                ensure_eq!(
                    Some(&end),
                    known,
                    Histories,
                    "the end of changes_after({partition}, {after:?}, {limit}), compared with marks()"
                );
                after = end;
            }
        }
    }
    Ok(())
}

/// Returns the same position with a random mark, which is nowhere in the log.
fn with_other_mark(point: LogPoint) -> LogPoint {
    LogPoint { mark: Mark(point.mark.0 ^ fastrand::u64(1..)), ..point }
}

pub(super) async fn follower_from_another_history_is_refused(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    for round in 0..2 {
        for (partition, points) in all_points(&registry).await?.into_iter().enumerate() {
            for point in [0, points.len() / 2, points.len() - 1].map(|index| with_other_mark(points[index])) {
                let changes = registry.changes_after(partition, point, 10);
                match tokio::time::timeout(PATIENCE, changes).await {
                    Ok(Err(LogError::Restarted)) => {}
                    Ok(answer) => {
                        broken!(
                            Histories,
                            "changes_after({point:?}), with a foreign mark, returned {answer:?} instead of Restarted"
                        )
                    }
                    Err(_) => {
                        broken!(
                            Histories,
                            "changes_after({point:?}), with a foreign mark, hangs instead of returning Restarted"
                        )
                    }
                }
            }
            // A follower from this history gets changes.
            if let [.., before, _] = points.as_slice() {
                registry.changes_after(partition, *before, 10).await?;
            }
        }
        change_some(&registry, round * 20..round * 20 + 20).await?;
    }
    Ok(())
}

pub(super) async fn read_from_another_history_is_refused(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let foreign = Registry::open(factory).await?.extent().await?.registry_id;
    for round in 0..2 {
        let extent = registry.extent().await?;
        let starts: Vec<_> = extent.partitions.iter().map(|held| held.start).collect();
        let ends: Vec<_> = extent.partitions.iter().map(|held| held.end).collect();
        for first in [0, registry.layout().buckets - 1] {
            let partition = registry.storage().partition_of(first) as usize;
            let with = |points: &[LogPoint], change: fn(LogPoint) -> LogPoint| {
                let mut points = points.to_vec();
                points[partition] = change(points[partition]);
                points
            };
            let ahead = |point: LogPoint| LogPoint { position: Position(point.position.0 + 1), ..point };
            for (registry_id, known, what) in [
                (extent.registry_id, with(&starts, with_other_mark), "the start with another mark"),
                (extent.registry_id, with(&ends, with_other_mark), "the end with another mark"),
                (extent.registry_id, with(&ends, ahead), "a point ahead of the end"),
                (foreign, ends.clone(), "another registry"),
            ] {
                expect_refused(&registry, registry_id, &known, first, what).await?;
            }
            for known in [&starts, &ends] {
                registry.read_buckets(known, first, 10, false).await?;
            }
        }
        change_some(&registry, round * 20..round * 20 + 20).await?;
        read_some(&registry, 0, 10).await?;
    }
    Ok(())
}

async fn expect_refused(
    registry: &Registry,
    registry_id: RegistryId,
    known: &[LogPoint],
    first: u32,
    what: &str,
) -> Outcome {
    match registry.storage().read_buckets(registry_id, known, &[first], 10, false).await {
        Err(LogError::Restarted) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => broken!(Histories, "read_buckets({first}) for {what} returned sessions instead of Restarted"),
    }
}
