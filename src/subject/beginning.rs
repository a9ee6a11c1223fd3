//! Finds out where an observer begins.

use super::{
    Inner, ObserveError, ResetReason, Start,
    cursor::{Cursor, CursorPlace, Points, later},
    log::{Found, Head, Marks, Place},
    observer::Opening,
    storage_stats::StorageOperation,
};
use crate::storage::{RegistryId, StorageError};

/// How an observer begins.
pub(super) struct Beginning {
    /// The registry that it observes.
    pub(super) registry_id: RegistryId,
    /// Its place in the log, and the points there.
    pub(super) place: Place,
    pub(super) at: Points,
    pub(super) opening: Opening,
    /// What its first message promises.
    pub(super) cursor: Cursor,
}

impl Beginning {
    /// Decides by what the storage and the log hold.
    pub(super) async fn find(inner: &Inner, start: &Start) -> Result<Self, ObserveError> {
        let log = &inner.feed.log;
        loop {
            let asked = log.head();
            let marks = match start {
                Start::After(cursor) => marks_at(inner, cursor, &asked).await?,
                Start::Now | Start::Snapshot => Marks::new(),
            };
            // Asked after the marks: a registry that was replaced in between shows here by its id.
            let newest = inner.storage_stats.measure(StorageOperation::Log, inner.storage.log()).await?;
            let head = log.head();
            if head.closed {
                return Err(ObserveError::Closed);
            }
            if !head.place.is_of_epoch(asked.place) {
                // The storage's answers may be about the log that was lost, and must not be applied to the new one.
                continue;
            }
            let snapshot = Cursor { registry_id: head.registry_id, place: CursorPlace::SnapshotStart };
            return Ok(match start {
                Start::Now if newest.registry_id == head.registry_id => {
                    // More may have been published since the storage was asked. The observer does not hear of that, so its
                    // cursor must not lead to a place before it.
                    let ends: Points = newest.partitions.iter().map(|held| held.end).collect();
                    let points = later(&ends, &head.points);
                    let cursor = Cursor::after(head.registry_id, &points);
                    Self::at_head(head, Opening::Follow(points), cursor)
                }
                // The storage has begun anew and the follower has yet to notice.
                Start::Now => Self::at_head(head, Opening::Reset(ResetReason::StorageRestarted), snapshot),
                Start::Snapshot => Self::at_head(head, Opening::Snapshot, snapshot),
                Start::After(cursor) if *cursor == snapshot => Self::at_head(head, Opening::Snapshot, snapshot),
                Start::After(cursor) => match log.find(cursor, &marks, &newest, asked.place) {
                    Found::Place(place, at, points) => {
                        let opening = Opening::Follow(points);
                        Self { registry_id: cursor.registry_id, place, at, opening, cursor: cursor.clone() }
                    }
                    Found::Lost(reason) => Self::at_head(head, Opening::Reset(reason), cursor.clone()),
                    Found::AskAgain => continue,
                },
            });
        }
    }

    fn at_head(head: Head, opening: Opening, cursor: Cursor) -> Self {
        Self { registry_id: head.registry_id, place: head.place, at: head.points, opening, cursor }
    }
}

/// Finds the marks at a cursor's positions, if the cursor is of the registry that is followed.
async fn marks_at(inner: &Inner, cursor: &Cursor, head: &Head) -> Result<Marks, StorageError> {
    let CursorPlace::After(positions, _) = &cursor.place else { return Ok(Marks::new()) };
    if cursor.registry_id != head.registry_id || positions.len() != head.points.len() {
        return Ok(Marks::new());
    }
    let mut marks = inner.feed.log.marks(positions);
    if marks.iter().any(Option::is_none) {
        let told = inner.storage_stats.measure(StorageOperation::Marks, inner.storage.marks(positions)).await?;
        marks.iter_mut().zip(told).for_each(|(mark, told)| *mark = mark.or(told));
    }
    Ok(marks)
}
