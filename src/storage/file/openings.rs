//! The marks of the file's log, one for each time the file was opened.
//!
//! If a copy of the file is put back, or a disk loses what it had synced, the log continues under a new mark. A reader
//! of the lost history holds a different mark, and so detects the loss.

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::store::{LOG, LOG_HEADER};
use crate::{
    storage::{
        Mark, Position,
        journal::{Malformed, ReadRecord, Records},
        memory::{Marks, Stretch},
    },
    table::random_key,
};

/// One row per opening: the first position at which its mark holds, and the mark. It holds until the next row's
/// position.
pub(super) const OPENINGS: TableDefinition<'_, u64, u64> = TableDefinition::new("openings");

/// Adds the opening that creates the registry.
pub(super) fn begin(transaction: &WriteTransaction) -> Result<Mark, redb::Error> {
    insert(transaction, Position(0))
}

/// Adds an opening whose mark holds from the end of the log on.
pub(super) fn add(transaction: &WriteTransaction) -> Result<Mark, redb::Error> {
    let log = transaction.open_table(LOG)?;
    let end = match log.last()? {
        Some((_, row)) => end_of_row(row.value()).ok_or_else(|| redb::Error::Corrupted(Malformed.to_string()))?,
        None => Position(0),
    };
    // If nothing has changed since the last opening, its row has the same key and is replaced.
    insert(transaction, Position(end.0 + 1))
}

fn insert(transaction: &WriteTransaction, from: Position) -> Result<Mark, redb::Error> {
    let [mark, _] = random_key();
    transaction.open_table(OPENINGS)?.insert(from.0, mark)?;
    Ok(Mark(mark))
}

/// Returns the position of the last change in a row of the log.
fn end_of_row(row: &[u8]) -> Option<Position> {
    let (before, records) = row.split_first_chunk::<LOG_HEADER>()?;
    let mut end = u64::from_le_bytes(*before);
    for record in Records::new(records) {
        end += u64::from(matches!(record.ok()?, ReadRecord::Event(..)));
    }
    Some(Position(end))
}

/// Returns the mark of the latest opening.
pub(super) fn newest(transaction: &ReadTransaction) -> Result<Option<Mark>, redb::Error> {
    let openings = transaction.open_table(OPENINGS)?;
    Ok(openings.last()?.map(|(_, mark)| Mark(mark.value())))
}

/// Reads the marks of a log that begins after `start`.
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

/// Removes the openings whose marks hold only before `start`.
pub(super) fn trim(openings: &mut Table<'_, u64, u64>, start: Position) -> Result<(), redb::Error> {
    let needed = openings.range(..=start.0)?.next_back().transpose()?.map(|(from, _)| from.value());
    if let Some(needed) = needed {
        openings.retain_in(..needed, |_, _| false)?;
    }
    Ok(())
}
