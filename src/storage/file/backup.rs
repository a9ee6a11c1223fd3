//! A copy of a registry's file, while it is in use.

use std::path::Path;

use redb::{Database, Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, Value};

use super::{
    FileError,
    disk::{Disk, Files},
    making,
    openings::OPENINGS,
    store::{self, CHECKPOINTS, LEASES, LOG, META},
};

/// One transaction of the copy holds so many rows: what it writes is in memory until it is committed.
const ROWS_A_COMMIT: usize = 256;

/// Copies the registry in the file `from` to the file `to`, as it is at one moment: with every change that was answered before the
/// call, and no half of any. The registry may be in use, and is not held up. Blocks the thread for as long as it takes.
///
/// The copy is a registry of its own: cursors of the other are foreign to it, as its log goes on differently.
///
/// # Errors
///
/// [`FileError`]; there is nothing at `to` then.
pub fn backup(from: &Path, to: &Path) -> Result<(), FileError> {
    if !from.is_file() {
        return Err(FileError::Missing { path: from.to_owned() });
    }
    if to.symlink_metadata().is_ok() {
        return Err(FileError::Exists { path: to.to_owned() });
    }
    if let Ok(database) = store::builder().open_read_only(from) {
        if store::read_identity(&database, from)?.is_none() {
            return Err(FileError::Foreign { path: from.to_owned() });
        }
        let transaction = database.begin_read().map_err(|error| FileError::from_database(from, error.into()))?;
        return write(&transaction, to);
    }
    // A file that was not closed in order is repaired first, which is for whoever may write it.
    let (_, database) = store::open_database(&Files, from)?;
    if store::read_identity(&database, from)?.is_none() {
        return Err(FileError::Foreign { path: from.to_owned() });
    }
    write(&database.begin_read().map_err(|error| FileError::from_database(from, error.into()))?, to)
}

/// Puts a copy at `to`, whole or not at all.
fn write(from: &ReadTransaction, to: &Path) -> Result<(), FileError> {
    let fill = |database: &Database| copy(from, database).and_then(|()| store::begin_anew(database));
    making::make(&Files, to, fill, |aside, to, _| Files.name(aside, to))
}

/// Writes all that `from` reads into an empty database. What makes it a registry comes last.
pub(super) fn copy(from: &ReadTransaction, to: &Database) -> Result<(), redb::Error> {
    copy_table(from, to, LOG)?;
    copy_table(from, to, CHECKPOINTS)?;
    copy_table(from, to, LEASES)?;
    copy_table(from, to, OPENINGS)?;
    copy_table(from, to, META)
}

fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &Database,
    table: TableDefinition<'_, K, V>,
) -> Result<(), redb::Error> {
    let rows = from.open_table(table)?;
    let mut rows = rows.iter()?.peekable();
    loop {
        let transaction = to.begin_write()?;
        let mut copy = transaction.open_table(table)?;
        for row in rows.by_ref().take(ROWS_A_COMMIT) {
            let (key, value) = row?;
            copy.insert(key.value(), value.value())?;
        }
        drop(copy);
        transaction.commit()?;
        if rows.peek().is_none() {
            return Ok(());
        }
    }
}
