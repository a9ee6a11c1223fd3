//! The tables in the file, and the transaction that writes a batch to them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{
    Builder, ConcurrencyMode, Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
};

use super::{
    FileError,
    checkpoint::Checkpoint,
    creation,
    disk::{Disk, FileId, make_folder},
    openings::{self, OPENINGS},
    watched::{Backend, Watched},
};
use crate::{
    storage::{
        Mark, Position, RegistryId,
        journal::{Batch, LeaseRow, Lsn},
        memory::Identity,
    },
    table::random_key,
};

/// The identity of the registry. The `META_` constants name its rows.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("sessiond");
/// The end of the log, one row per batch. The key is the number of the batch's first record. The value is the log
/// position before the batch (eight bytes, little-endian), followed by the records.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// The checkpoint of each bucket: its sessions.
pub(super) const CHECKPOINTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("checkpoints");
/// The live leases, and the ended ones whose sessions are still being destroyed. A row holds the ttl in milliseconds,
/// the reason of the end (0 while the lease is live), the wall time at which a linger ends (0 for none), and the owner.
pub(super) const LEASES: TableDefinition<'_, u64, (u64, u8, u64, &str)> = TableDefinition::new("leases");

const META_FORMAT: &str = "format";
const META_REGISTRY_ID: &str = "registry_id";
const META_HASH_KEY: [&str; 2] = ["hash_key_0", "hash_key_1"];
const META_BUCKETS: &str = "buckets";
/// When the registry was last known to be in service, in milliseconds since 1970.
pub(super) const META_SERVED: &str = "served";

/// The version of the tables' format. Increase it with every change of what the tables hold.
const FORMAT: u64 = 4;

/// The first bytes of every redb database.
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";

/// The size of the database's cache. It serves the ends of the log and the inner pages of the trees, which are reread
/// and rewritten soon.
const CACHE_BYTES: usize = 16 << 20;

/// The size of the log position at the start of each log row.
pub(super) const LOG_HEADER: usize = 8;

/// What one commit writes to disk.
#[derive(Default)]
pub(super) struct Commit {
    /// The log position before the batch.
    pub(super) position: Position,
    pub(super) batch: Batch,
    /// Reflect no record after the batch.
    pub(super) checkpoints: Vec<Checkpoint>,
    /// What the log no longer needs to hold. `None` if the commit writes no checkpoints.
    pub(super) trim: Option<Trim>,
    /// The current time, if it is to be written.
    pub(super) served: Option<u64>,
}

/// Which log rows to remove: those whose records are all at or before `lsn`, and whose changes are all at or before
/// `position`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trim {
    pub(super) lsn: Lsn,
    pub(super) position: Position,
    /// The most rows to remove in one commit.
    pub(super) rows: usize,
}

/// The registry's file, while it is open.
pub(super) struct Store {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Arc<Watched>,
    /// `None` after an error, until the database is reopened.
    database: Option<Database>,
    identity: Identity,
    /// The mark of this opening.
    mark: Mark,
    /// When the registry was last in service before this opening.
    served: Option<u64>,
    /// A sync has failed, so what can be read from the file may not be on disk.
    sync_failed: bool,
    /// A file with the same content, which may have replaced the open one.
    copy: Option<FileId>,
}

impl Store {
    /// Opens the file. If it is missing, creates it with `buckets` buckets.
    pub(super) fn open(disk: Arc<dyn Disk>, path: &Path, buckets: u32) -> Result<Self, FileError> {
        if path.is_dir() {
            return Err(FileError::Folder { path: path.to_owned() });
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make_folder(folder).map_err(|cause| FileError::MakeFolder { folder: folder.to_owned(), cause })?;
        }
        creation::make_if_missing(&*disk, path, |database| begin(database, buckets).map(drop))?;
        let (file, database) = open_database(&*disk, path)?;
        let (identity, mark) = match read_identity(&database, path)? {
            Some(identity) => add_opening(&database).map(|mark| (identity, mark)),
            None => begin(&database, buckets),
        }
        .map_err(|error| FileError::from_database(path, error))?;
        let served = read_served(&database).map_err(|error| FileError::from_database(path, error))?;
        let (path, database) = (path.to_owned(), Some(database));
        Ok(Self { disk, path, file, database, identity, mark, served, sync_failed: false, copy: None })
    }

    /// Returns when the registry was last in service before this opening, in milliseconds since 1970. `None` if that is
    /// unknown.
    pub(super) fn served(&self) -> Option<u64> {
        self.served
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Begins a transaction that reads the file as it is now.
    pub(super) fn read(&self) -> Result<ReadTransaction, redb::Error> {
        match &self.database {
            Some(database) => Ok(database.begin_read()?),
            None => Err(redb::Error::DatabaseClosed),
        }
    }

    /// Writes `commit` to disk. After an error, the commit may or may not be on disk. The caller may retry it, but must
    /// not write another commit first.
    pub(super) fn commit(&mut self, commit: &Commit) -> Result<(), FileError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.reopen()?,
        };
        self.check()?;
        let written = write(&database, commit);
        self.sync_failed |= self.file.sync_failed();
        // After an error the database is not used again: its state in memory may differ from what is on disk.
        written.map_err(|error| FileError::from_database(&self.path, error))?;
        self.check()?;
        self.database = Some(database);
        Ok(())
    }

    /// Checks that the file at the path is still the one that was opened, unchanged by others.
    pub(super) fn check(&self) -> Result<(), FileError> {
        self.file.check(&*self.disk, &self.path)
    }

    fn reopen(&mut self) -> Result<Database, FileError> {
        if self.sync_failed {
            let (_, database) = self.open_same()?;
            let from = database.begin_read().map_err(|error| FileError::from_database(&self.path, error.into()))?;
            let (disk, known) = (&*self.disk, &mut self.copy);
            creation::make(
                disk,
                &self.path,
                |copy| super::backup::copy(&from, copy),
                |temporary, path, id| {
                    *known = Some(id);
                    disk.replace(temporary, path)
                },
            )?;
        }
        let (file, database) = self.open_same()?;
        if Some(file.id()) == self.copy {
            self.sync_failed = false;
        }
        self.file = file;
        let is_ours = read_identity(&database, &self.path)? == Some(self.identity)
            && read_mark(&database).map_err(|error| FileError::from_database(&self.path, error))? == Some(self.mark);
        if is_ours { Ok(database) } else { Err(FileError::Replaced { path: self.path.clone() }) }
    }

    /// Reopens the file, unless another file has replaced it.
    fn open_same(&self) -> Result<(Arc<Watched>, Database), FileError> {
        let path = || self.path.clone();
        let is_same = |id| id == self.file.id() || Some(id) == self.copy;
        match self.disk.find(&self.path).map_err(|error| FileError::from_io(&self.path, error))? {
            None => return Err(FileError::Removed { path: path() }),
            Some(found) if !is_same(found.id) => return Err(FileError::Replaced { path: path() }),
            Some(_) => {}
        }
        let (file, database) = open_database(&*self.disk, &self.path)?;
        if is_same(file.id()) { Ok((file, database)) } else { Err(FileError::Replaced { path: path() }) }
    }
}

impl Drop for Store {
    /// Closing the database writes to the file. The check prevents that if another process has replaced or changed the
    /// file.
    fn drop(&mut self) {
        let _ = self.check();
    }
}

/// Returns the database settings: one process writes, while others may make copies.
pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_concurrency_mode(ConcurrencyMode::SingleWriter);
    builder
}

pub(super) fn open_database(disk: &dyn Disk, path: &Path) -> Result<(Arc<Watched>, Database), FileError> {
    let unusable = |error| FileError::from_io(path, error);
    let file = disk.open(path).map_err(unusable)?;
    let mut begins = [0; MAGIC.len()];
    if file.file.len().map_err(unusable)? >= begins.len() as u64 {
        file.file.read(0, &mut begins).map_err(unusable)?;
    }
    if begins != MAGIC {
        return Err(FileError::Foreign { path: path.to_owned() });
    }
    let mut builder = builder();
    let repaired = path.to_owned();
    builder.set_repair_callback(move |repair| {
        let percent = (repair.progress() * 100.0) as u32;
        tracing::info!(path = %repaired.display(), percent, "the file was not closed cleanly; repairing it");
    });
    let file = Arc::new(Watched::new(file).map_err(unusable)?);
    let database = builder
        .create_with_backend(Backend(Arc::clone(&file)))
        .map_err(|error| FileError::from_database(path, error.into()))?;
    Ok((file, database))
}

/// Reads the registry's identity. `None` if the database is empty.
pub(super) fn read_identity(database: &impl ReadableDatabase, path: &Path) -> Result<Option<Identity>, FileError> {
    let read = || -> Result<_, redb::Error> {
        let transaction = database.begin_read()?;
        let mut tables = transaction.list_tables()?;
        if !tables.any(|table| table.name() == META.name()) {
            let is_empty = transaction.list_tables()?.next().is_none();
            return Ok((is_empty, None));
        }
        let meta = transaction.open_table(META)?;
        let number = |name| Ok::<_, redb::Error>(meta.get(name)?.map(|value| value.value()));
        let format = number(META_FORMAT)?.unwrap_or(0);
        let [Some(registry_id), Some(first), Some(second), Some(buckets)] =
            [number(META_REGISTRY_ID)?, number(META_HASH_KEY[0])?, number(META_HASH_KEY[1])?, number(META_BUCKETS)?]
        else {
            return Ok((false, Some((format, None))));
        };
        let identity = Identity {
            registry_id: RegistryId(registry_id),
            hash_key: [first, second],
            buckets: u32::try_from(buckets).unwrap_or(0),
        };
        Ok((false, Some((format, Some(identity)))))
    };
    match read().map_err(|error| FileError::from_database(path, error))? {
        (true, _) => Ok(None),
        (false, Some((found, _))) if found > FORMAT => {
            Err(FileError::Newer { path: path.to_owned(), found, known: FORMAT })
        }
        (false, Some((found, Some(_)))) if found < FORMAT => {
            Err(FileError::Older { path: path.to_owned(), found, known: FORMAT })
        }
        (false, Some((FORMAT, Some(identity)))) if identity.buckets.is_power_of_two() => Ok(Some(identity)),
        (false, _) => Err(FileError::Foreign { path: path.to_owned() }),
    }
}

/// Reads the mark of the opening that last wrote to the file.
fn read_mark(database: &Database) -> Result<Option<Mark>, redb::Error> {
    openings::newest(&database.begin_read()?)
}

fn read_served(database: &Database) -> Result<Option<u64>, redb::Error> {
    Ok(database.begin_read()?.open_table(META)?.get(META_SERVED)?.map(|served| served.value()))
}

/// Creates a registry in an empty database.
fn begin(database: &Database, buckets: u32) -> Result<(Identity, Mark), redb::Error> {
    let [registry_id, _] = random_key();
    let identity = Identity { registry_id: RegistryId(registry_id), hash_key: random_key(), buckets };
    let transaction = database.begin_write()?;
    write_identity(&transaction, identity)?;
    transaction.open_table(LOG)?;
    transaction.open_table(CHECKPOINTS)?;
    transaction.open_table(LEASES)?;
    let mark = openings::begin(&transaction)?;
    transaction.commit()?;
    Ok((identity, mark))
}

/// Adds this opening, and returns its mark. The commit also makes durable what was read from the file, before anything
/// is acknowledged.
///
/// The last commit of a process that died may not be on disk: the kernel may still hold it, or only parts of it may
/// have been written. The database recovers the last complete commit that it finds, and after another crash it might
/// find a different one. A commit on top of it rules that out.
fn add_opening(database: &Database) -> Result<Mark, redb::Error> {
    let transaction = database.begin_write()?;
    let mark = openings::add(&transaction)?;
    transaction.commit()?;
    Ok(mark)
}

/// Gives a copy its own registry id.
pub(super) fn assign_new_id(database: &Database) -> Result<(), redb::Error> {
    let [registry_id, _] = random_key();
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert(META_REGISTRY_ID, registry_id)?;
    transaction.commit()?;
    Ok(())
}

fn write_identity(transaction: &redb::WriteTransaction, identity: Identity) -> Result<(), redb::Error> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(META_FORMAT, FORMAT)?;
    meta.insert(META_REGISTRY_ID, identity.registry_id.0)?;
    meta.insert(META_HASH_KEY[0], identity.hash_key[0])?;
    meta.insert(META_HASH_KEY[1], identity.hash_key[1])?;
    meta.insert(META_BUCKETS, u64::from(identity.buckets))?;
    Ok(())
}

fn write(database: &Database, commit: &Commit) -> Result<(), redb::Error> {
    let Commit { position, batch, checkpoints, trim, served } = commit;
    let transaction = database.begin_write()?;
    if let Some(served) = served {
        transaction.open_table(META)?.insert(META_SERVED, served)?;
    }
    if batch.records > 0 {
        let mut log = transaction.open_table(LOG)?;
        let mut row = log.insert_reserve(batch.first.0, LOG_HEADER + batch.bytes.len())?;
        let (header, records) = row.as_mut().split_at_mut(LOG_HEADER);
        header.copy_from_slice(&position.0.to_le_bytes());
        records.copy_from_slice(&batch.bytes);
        drop(row);
        if let Some(trim) = trim
            && let Some(start) = trim_log(&mut log, *trim)?
        {
            openings::trim(&mut transaction.open_table(OPENINGS)?, start)?;
        }
    }
    if !batch.leases.is_empty() {
        let mut leases = transaction.open_table(LEASES)?;
        for (lease, row) in &batch.leases {
            match row {
                Some(LeaseRow::Live { ttl, owner, lingers_until }) => {
                    let until = lingers_until.map_or(0, |until| until.0);
                    leases.insert(lease, (ttl.as_millis() as u64, 0, until, &**owner))?;
                }
                Some(LeaseRow::Ended(reason)) => {
                    leases.insert(lease, (0, super::load::reason_byte(*reason), 0, ""))?;
                }
                None => drop(leases.remove(lease)?),
            }
        }
    }
    if !checkpoints.is_empty() {
        let mut table = transaction.open_table(CHECKPOINTS)?;
        for checkpoint in checkpoints {
            table.insert(checkpoint.bucket, &*checkpoint.bytes)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Removes the oldest rows of the log. A row ends where the next one begins, so the last one always stays. Returns the
/// position after which the log now begins, if that has changed.
fn trim_log(log: &mut redb::Table<'_, u64, &[u8]>, trim: Trim) -> Result<Option<Position>, redb::Error> {
    let mut given_up = Vec::new();
    let mut last = None;
    let mut start = Position(0);
    for row in log.iter()?.take(trim.rows + 1) {
        let (first, bytes) = row?;
        let position = bytes.value().first_chunk().map_or(0, |position| u64::from_le_bytes(*position));
        if first.value() > trim.lsn.0 + 1 || position > trim.position.0 {
            break;
        }
        given_up.extend(last.replace(first.value()));
        start = Position(position);
    }
    for first in &given_up {
        log.remove(*first)?;
    }
    Ok((!given_up.is_empty()).then_some(start))
}
