//! A copy of a registry's file, while it is in use.

use std::{path::Path, sync::Arc};

use redb::{Database, Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, Value};

use super::{
    FileError,
    disk::{Disk, Files},
    openings::OPENINGS,
    store::{self, CHECKPOINTS, LEASES, LOG, META, Store},
};
use crate::storage::memory::MemoryOptions;

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
    if to.exists() {
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
    let store = Store::open(Arc::new(Files), from, MemoryOptions::default().buckets)?;
    write(&store.read().map_err(|error| FileError::from_database(from, error))?, to)
}

/// Puts a copy at `to`, whole or not at all.
fn write(from: &ReadTransaction, to: &Path) -> Result<(), FileError> {
    let beside = store::beside(to);
    let of_copy = |error| FileError::from_database(&beside, error);
    let made = Files.remove(&beside).map_err(|error| FileError::from_io(&beside, error)).and_then(|()| {
        let database = store::builder().create(&beside).map_err(|error| of_copy(error.into()))?;
        copy(from, &database).and_then(|()| store::begin_anew(&database)).map_err(of_copy)?;
        drop(database);
        Files.rename(&beside, to).map_err(|error| FileError::from_io(to, error))
    });
    if made.is_err() {
        // What is told is why there is no copy, not that a half one cannot be removed.
        let _ = Files.remove(&beside);
    }
    made
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
