//! The tables in the file, and the one transaction that is made of them again and again.

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
    disk::{Disk, FileId, make_folder},
    making,
    openings::{self, OPENINGS},
    watched::{Backend, Watched},
};
use crate::storage::{
    Mark, Position, RegistryId,
    journal::{Batch, LeaseRow, Lsn},
    memory::{Identity, random_key},
};

/// What the registry is: see the `META_` names.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("sessiond");
/// The end of the log. A row is a batch: the number of its first record, and behind the position in the log before it (eight
/// bytes, little-endian) its records.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// The sessions of each bucket.
pub(super) const CHECKPOINTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("checkpoints");
/// The leases that are live, and those whose sessions are still being destroyed: ttl in milliseconds, why it ended, owner.
pub(super) const LEASES: TableDefinition<'_, u64, (u64, u8, u64, &str)> = TableDefinition::new("leases");

const META_FORMAT: &str = "format";
const META_REGISTRY_ID: &str = "registry_id";
const META_HASH_KEY: [&str; 2] = ["hash_key_0", "hash_key_1"];
const META_BUCKETS: &str = "buckets";
/// When the registry was last known to be served, in milliseconds since 1970.
pub(super) const META_SERVED: &str = "served";

/// Goes up with each change of what is in the tables.
const FORMAT: u64 = 4;

/// What a redb database begins with.
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";

/// The database's cache: what is read and written again soon are the ends of the log and the inner pages of the trees.
const CACHE_BYTES: usize = 16 << 20;

/// A row of the log begins with its position.
pub(super) const LOG_HEADER: usize = 8;

/// What one commit puts on disk.
#[derive(Default)]
pub(super) struct Commit {
    /// The position in the log before the batch.
    pub(super) position: Position,
    pub(super) batch: Batch,
    /// Reflect no record after the batch.
    pub(super) checkpoints: Vec<Checkpoint>,
    /// What the log need no longer hold; none when it was looked at a short while ago.
    pub(super) trim: Option<Trim>,
    /// The time, where it is to be written.
    pub(super) served: Option<u64>,
}

/// Rows of the log are given up when all their records are at or before `lsn`, and all their changes at or before `position`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trim {
    pub(super) lsn: Lsn,
    pub(super) position: Position,
    /// No more rows than this in one commit.
    pub(super) rows: usize,
}

/// The registry's file, open.
pub(super) struct Store {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Arc<Watched>,
    /// None after an error, until it is opened again.
    database: Option<Database>,
    identity: Identity,
    /// The mark of this opening.
    mark: Mark,
    /// When the registry was last served before it was opened.
    served: Option<u64>,
    /// What can be read of the file need not be on disk.
    sync_failed: bool,
    /// A file with the same content, which may have taken the place of the one that is open.
    copy: Option<FileId>,
}

impl Store {
    /// Opens the file, or makes it, with so many buckets.
    pub(super) fn open(disk: Arc<dyn Disk>, path: &Path, buckets: u32) -> Result<Self, FileError> {
        if path.is_dir() {
            return Err(FileError::Folder { path: path.to_owned() });
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make_folder(folder).map_err(|source| FileError::MakeFolder { folder: folder.to_owned(), source })?;
        }
        making::make_if_missing(&*disk, path, |database| begin(database, buckets).map(drop))?;
        let (file, database) = open_database(&*disk, path)?;
        let (identity, mark) = match read_identity(&database, path)? {
            Some(identity) => settle(&database).map(|mark| (identity, mark)),
            None => begin(&database, buckets),
        }
        .map_err(|error| FileError::from_database(path, error))?;
        let served = read_served(&database).map_err(|error| FileError::from_database(path, error))?;
        let (path, database) = (path.to_owned(), Some(database));
        Ok(Self { disk, path, file, database, identity, mark, served, sync_failed: false, copy: None })
    }

    /// When the registry was last served before it was opened, in milliseconds since 1970; none if nobody knows.
    pub(super) fn served(&self) -> Option<u64> {
        self.served
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Reads all of it as it is now.
    pub(super) fn read(&self) -> Result<ReadTransaction, redb::Error> {
        match &self.database {
            Some(database) => Ok(database.begin_read()?),
            None => Err(redb::Error::DatabaseClosed),
        }
    }

    /// Puts `commit` on disk. After an error it may be there or not, and may be put there again: the same commit, and no
    /// other before it.
    pub(super) fn commit(&mut self, commit: &Commit) -> Result<(), FileError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.reopen()?,
        };
        self.check()?;
        let written = write(&database, commit);
        self.sync_failed |= self.file.sync_failed();
        // It is not to be used after an error: what it has in memory may not be what is on disk.
        written.map_err(|error| FileError::from_database(&self.path, error))?;
        self.check()?;
        self.database = Some(database);
        Ok(())
    }

    /// Checks that the file is still the one at its path, and as it was written.
    pub(super) fn check(&self) -> Result<(), FileError> {
        self.file.check(&*self.disk, &self.path)
    }

    fn reopen(&mut self) -> Result<Database, FileError> {
        if self.sync_failed {
            let (_, database) = self.open_same()?;
            let from = database.begin_read().map_err(|error| FileError::from_database(&self.path, error.into()))?;
            let (disk, known) = (&*self.disk, &mut self.copy);
            making::make(
                disk,
                &self.path,
                |copy| super::backup::copy(&from, copy),
                |aside, path, id| {
                    *known = Some(id);
                    disk.replace(aside, path)
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

    /// Opens the file again, if no other has taken its place.
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
    /// The database writes when it is closed: not into what somebody else has put there.
    fn drop(&mut self) {
        let _ = self.check();
    }
}

/// How the database is used: one process writes, and others may make copies meanwhile.
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
        tracing::info!(path = %repaired.display(), percent, "was not closed in order; checking the file");
    });
    let file = Arc::new(Watched::new(file).map_err(unusable)?);
    let database = builder
        .create_with_backend(Backend(Arc::clone(&file)))
        .map_err(|error| FileError::from_database(path, error.into()))?;
    Ok((file, database))
}

/// What the registry is, or none when nothing was ever written.
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

/// Reads the mark of the opening that wrote the file last.
fn read_mark(database: &Database) -> Result<Option<Mark>, redb::Error> {
    openings::newest(&database.begin_read()?)
}

fn read_served(database: &Database) -> Result<Option<u64>, redb::Error> {
    Ok(database.begin_read()?.open_table(META)?.get(META_SERVED)?.map(|served| served.value()))
}

/// Begins a registry in an empty database.
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

/// Adds this opening, and so puts on disk what was found in the file before anybody is told of it. Returns the opening's mark.
///
/// The last commit of a process that died need not have got there: the kernel may still hold it, or the disk hold it in
/// parts, of which a database that recovers takes the last that is whole. A later crash may find another. After a commit on
/// top of it none can.
fn settle(database: &Database) -> Result<Mark, redb::Error> {
    let transaction = database.begin_write()?;
    let mark = openings::add(&transaction)?;
    transaction.commit()?;
    Ok(mark)
}

/// Makes a copy a registry of its own.
pub(super) fn begin_anew(database: &Database) -> Result<(), redb::Error> {
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

/// Gives up the first rows of the log. A row ends where the next one begins, so the last one always stays. Returns the position
/// after which the log begins now, if that has changed.
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
