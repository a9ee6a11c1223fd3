//! Copies a registry's file while the registry is in use.

use std::path::Path;

use redb::{Database, Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, Value};

use super::{
    FileError, creation,
    disk::{Disk, Files},
    openings::OPENINGS,
    store::{self, CHECKPOINTS, LEASES, LOG, META},
};

/// The number of rows per transaction of the copy. A transaction keeps what it writes in memory until it commits.
const ROWS_A_COMMIT: usize = 256;

/// Copies the registry in the file `from` to the file `to`.
///
/// The copy is a consistent snapshot: it has every change that was acknowledged before the call, and no partial one.
/// The registry may be in use, and its calls are not delayed. Blocks the thread until the copy is complete.
///
/// The copy is a registry of its own. Cursors of the original are foreign to it, because its log continues differently.
///
/// # Errors
///
/// Returns a [`FileError`] if the copy fails. Nothing is left at `to` then.
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
    // A file that was not closed cleanly must be repaired first, which needs write access.
    let (_, database) = store::open_database(&Files, from)?;
    if store::read_identity(&database, from)?.is_none() {
        return Err(FileError::Foreign { path: from.to_owned() });
    }
    write(&database.begin_read().map_err(|error| FileError::from_database(from, error.into()))?, to)
}

/// Puts a complete copy at `to`, or nothing.
fn write(from: &ReadTransaction, to: &Path) -> Result<(), FileError> {
    let fill = |database: &Database| copy(from, database).and_then(|()| store::assign_new_id(database));
    creation::make(&Files, to, fill, |temporary, to, _| Files.name(temporary, to))
}

/// Copies everything that `from` reads into an empty database. The identity comes last, because it makes the copy a
/// registry.
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
