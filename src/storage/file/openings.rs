//! The marks of the file's log: one for each opening.
//!
//! When a copy of the file is put back, or a disk forgot what it had synced, the log goes on under another mark than the
//! history that is lost. So whoever has read that history notices.

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::store::{LOG, LOG_HEADER};
use crate::storage::{
    Mark, Position,
    journal::{Malformed, ReadRecord, Records},
    memory::{Marks, Stretch, random_key},
};

/// The first position at which the mark of an opening holds, and that mark. It holds up to where the next one begins.
pub(super) const OPENINGS: TableDefinition<'_, u64, u64> = TableDefinition::new("openings");

/// Marks the birth of a log.
pub(super) fn begin(transaction: &WriteTransaction) -> Result<Mark, redb::Error> {
    insert(transaction, Position(0))
}

/// Gives a new mark to whatever follows the end of the log.
pub(super) fn add(transaction: &WriteTransaction) -> Result<Mark, redb::Error> {
    let log = transaction.open_table(LOG)?;
    let end = match log.last()? {
        Some((_, row)) => end_of_row(row.value()).ok_or_else(|| redb::Error::Corrupted(Malformed.to_string()))?,
        None => Position(0),
    };
    // An opening after which nothing changed has the same key: this one takes its place.
    insert(transaction, Position(end.0 + 1))
}

fn insert(transaction: &WriteTransaction, from: Position) -> Result<Mark, redb::Error> {
    let [mark, _] = random_key();
    transaction.open_table(OPENINGS)?.insert(from.0, mark)?;
    Ok(Mark(mark))
}

/// The position of the last change in a row of the log.
fn end_of_row(row: &[u8]) -> Option<Position> {
    let (before, records) = row.split_first_chunk::<LOG_HEADER>()?;
    let mut end = u64::from_le_bytes(*before);
    for record in Records::new(records) {
        end += u64::from(matches!(record.ok()?, ReadRecord::Event(..)));
    }
    Some(Position(end))
}

/// The mark of the last opening.
pub(super) fn newest(transaction: &ReadTransaction) -> Result<Option<Mark>, redb::Error> {
    let openings = transaction.open_table(OPENINGS)?;
    Ok(openings.last()?.map(|(_, mark)| Mark(mark.value())))
}

/// The marks of a log that begins after `start`.
pub(super) fn marks(
    transaction: &ReadTransaction,
    start: Position,
) -> Result<Marks, Box<dyn std::error::Error + Send + Sync>> {
    let mut stretches = Vec::new();
    for row in transaction.open_table(OPENINGS)?.iter()? {
        let (from, mark) = row?;
        stretches.push(Stretch { from: Position(from.value()), mark: Mark(mark.value()) });
    }
    let marks = Marks::new(stretches).filter(|marks| marks.at(start).is_some());
    Ok(marks.ok_or(Malformed)?)
}

/// Forgets the openings that no position from `start` on belongs to.
pub(super) fn trim(openings: &mut Table<'_, u64, u64>, start: Position) -> Result<(), redb::Error> {
    let needed = openings.range(..=start.0)?.next_back().transpose()?.map(|(from, _)| from.value());
    if let Some(needed) = needed {
        openings.retain_in(..needed, |_, _| false)?;
    }
    Ok(())
}
