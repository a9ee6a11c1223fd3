//! Determines where an observer starts.

use super::{
    Inner, ObserveError, ResetReason, Start,
    cursor::{Cursor, CursorPlace, Points, later},
    log::{Found, Head, Marks, Place},
    observer::Opening,
    storage_stats::StorageOperation,
};
use crate::storage::{RegistryId, StorageError};

/// The initial state of an observer.
pub(super) struct Beginning {
    /// The registry that it observes.
    pub(super) registry_id: RegistryId,
    /// Its place in the event log, and the log points there.
    pub(super) place: Place,
    pub(super) at: Points,
    /// Where the storage's log ended when the observer was asked for.
    pub(super) asked_at: Points,
    pub(super) opening: Opening,
    /// The cursor of its first message.
    pub(super) cursor: Cursor,
}

impl Beginning {
    /// Determines the start from what the storage and the event log hold.
    pub(super) async fn find(inner: &Inner, start: &Start) -> Result<Self, ObserveError> {
        let log = &inner.feed.log;
        loop {
            let asked = log.head();
            let marks = match start {
                Start::After(cursor) => marks_at(inner, cursor, &asked).await?,
                Start::Now | Start::Snapshot => Marks::new(),
            };
            // Read after the marks, so that a registry that was replaced in between shows by its id.
            let newest = inner.storage_stats.measure(StorageOperation::Log, inner.storage.log()).await?;
            let head = log.head();
            if head.closed {
                return Err(ObserveError::Closed);
            }
            if !head.place.is_of_epoch(asked.place) {
                // The storage's answers may be about the log that was lost. Do not apply them to the new one.
                continue;
            }
            let is_same = newest.registry_id == head.registry_id;
            let ends = newest.partitions.iter().map(|held| held.end).collect();
            // More changes may have been published since the storage answered.
            let asked_at = if is_same { later(&ends, &head.points) } else { head.points.clone() };
            let snapshot = Cursor { registry_id: head.registry_id, place: CursorPlace::SnapshotStart };
            return Ok(match start {
                Start::Now if is_same => {
                    // The observer receives nothing that was published before, so its cursor must not point there.
                    let cursor = Cursor::after(head.registry_id, &asked_at);
                    Self::at_head(head, asked_at.clone(), Opening::Follow(asked_at), cursor)
                }
                // The storage has restarted, and the follower has not noticed yet.
                Start::Now => Self::at_head(head, asked_at, Opening::Reset(ResetReason::StorageRestarted), snapshot),
                Start::Snapshot => Self::at_head(head, asked_at, Opening::Snapshot, snapshot),
                Start::After(cursor) if *cursor == snapshot => {
                    Self::at_head(head, asked_at, Opening::Snapshot, snapshot)
                }
                Start::After(cursor) => match log.find(cursor, &marks, &newest, asked.place) {
                    Found::Place(place, at, points) => {
                        let opening = Opening::Follow(points);
                        Self { registry_id: cursor.registry_id, place, at, asked_at, opening, cursor: cursor.clone() }
                    }
                    Found::Lost(reason) => Self::at_head(head, asked_at, Opening::Reset(reason), cursor.clone()),
                    Found::AskAgain => continue,
                },
            });
        }
    }

    fn at_head(head: Head, asked_at: Points, opening: Opening, cursor: Cursor) -> Self {
        Self { registry_id: head.registry_id, place: head.place, at: head.points, asked_at, opening, cursor }
    }
}

/// Returns the marks at a cursor's positions. Empty if the cursor is not of the followed registry.
async fn marks_at(inner: &Inner, cursor: &Cursor, head: &Head) -> Result<Marks, StorageError> {
    let CursorPlace::After(positions, _) = &cursor.place else { return Ok(Marks::new()) };
    if cursor.registry_id != head.registry_id || positions.len() != head.points.len() {
        return Ok(Marks::new());
    }
    let mut marks = inner.feed.log.marks(positions);
    if marks.iter().any(Option::is_none) {
        let from_storage = inner.storage_stats.measure(StorageOperation::Marks, inner.storage.marks(positions)).await?;
        marks.iter_mut().zip(from_storage).for_each(|(mark, from_storage)| *mark = mark.or(from_storage));
    }
    Ok(marks)
}
