//! The storage in a file: what the memory storage holds, and on disk before anybody is told of it.
//!
//! Reads never touch the disk. Changes are made in memory and recorded in a journal (`storage/journal.rs`); one thread puts
//! what is recorded on disk, many changes to a sync, and only then are they answered and shown to those who follow the log.
//!
//! The file is a redb database. It holds the end of the log, a row for each batch of records, and for each bucket a
//! checkpoint: its sessions, and the last record they reflect. Checkpoints are written anew by turns, as changes come, so
//! that the log before them can be given up. Opening reads the checkpoints and repeats the log.
//!
//! Each opening gives a new mark to the log from its end on (`file/openings.rs`): what follows in a copy of the file has other
//! marks than what followed in the original.

mod backup;
mod checkpoint;
mod disk;
mod downtime;
mod error;
mod load;
mod making;
mod openings;
mod probe;
mod rounds;
mod store;
mod watched;
mod writer;

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use async_trait::async_trait;

use self::{
    disk::{Disk, Files},
    probe::{DiskStatus, Probe},
    store::Store,
    writer::Writer,
};
use super::{
    Answers, BucketRun, Changes, CreateOptions, Creation, Layout, LeaseBuckets, LeasePage, LeaseQuery, LogError,
    LogExtent, LogPoint, Lookup, Mark, Position, RegistryId, SessionStorage, StorageError, StorageOptions, Writability,
    journal::Journal,
    memory::{MemoryOptions, MemoryStorage},
};
use crate::{
    session::{LeaseId, SessionKey},
    vital::Vitals,
};

pub use self::{backup::backup, error::FileError};

/// The storage in a file.
///
/// A change costs a few dozen bytes of the log, and as much again when its bucket's turn comes. The file holds about 20 bytes
/// for each session and 30 for each retained change; it grows to a few times that, and no further.
///
/// While the disk cannot be written, changes are refused with [`StorageError::Refused`], and reads of what is on disk are
/// answered. The storage tries until it can. When nothing is to be written for some seconds, it writes a page to a nameless
/// file beside the registry's, to learn whether the disk still has room and answers.
#[derive(Debug)]
pub struct FileStorage {
    memory: Arc<MemoryStorage>,
    journal: Arc<Journal>,
    disk: Arc<DiskStatus>,
    writer: Option<JoinHandle<()>>,
    vitals: Vitals,
}

impl FileStorage {
    /// Opens the registry in the file at `path`, or makes one there, and the folder that it is in. Tells of its progress in
    /// the log.
    ///
    /// # Errors
    ///
    /// [`FileError`], which says what to do.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn open(path: impl Into<PathBuf>, options: StorageOptions) -> Result<Self, FileError> {
        Self::open_on(Arc::new(Files), path.into(), options).await
    }

    async fn open_on(disk: Arc<dyn Disk>, path: PathBuf, options: StorageOptions) -> Result<Self, FileError> {
        let opening = tokio::task::spawn_blocking({
            let path = path.clone();
            move || Self::open_blocking(disk, &path, options)
        });
        opening.await.unwrap_or_else(|error| Err(FileError::damaged(&path, error)))
    }

    fn open_blocking(disk: Arc<dyn Disk>, path: &Path, options: StorageOptions) -> Result<Self, FileError> {
        let StorageOptions { retain_events, max_sessions, max_leases, outage_grace } = options;
        let options =
            MemoryOptions { retain_events, max_sessions, max_leases, outage_grace, ..MemoryOptions::default() };
        let probe = Probe::new(Arc::clone(&disk), path);
        let store = Store::open(disk, path, options.buckets)?;
        let loaded = load::load(&store, options).map_err(|error| FileError::damaged(path, error))?;
        let (memory, journal) = (Arc::clone(&loaded.memory), Arc::clone(&loaded.journal));
        let disk = Arc::new(DiskStatus::default());
        let writer = Writer::new(store, loaded, probe, Arc::clone(&disk));
        let vitals = Vitals::default();
        let watched = vitals.watched("writer of the file");
        let writer = thread::Builder::new()
            .name("sessiond-file".to_owned())
            .spawn(move || {
                let _watched = watched;
                writer.run();
            })
            .map_err(|source| FileError::Io { path: path.to_owned(), source })?;
        Ok(Self { memory, journal, disk, writer: Some(writer), vitals })
    }
}

impl Drop for FileStorage {
    /// Waits until what is recorded is on disk, which takes as long as one commit, and lets go of the file.
    fn drop(&mut self) {
        self.journal.close();
        if let Some(writer) = self.writer.take() {
            // It has said why it panicked, if it did.
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl SessionStorage for FileStorage {
    fn layout(&self) -> Layout {
        self.memory.layout()
    }

    fn bucket_of(&self, session: &SessionKey) -> u32 {
        self.memory.bucket_of(session)
    }

    fn partition_of(&self, bucket: u32) -> u32 {
        self.memory.partition_of(bucket)
    }

    fn failed_task(&self) -> Option<&'static str> {
        self.vitals.failed()
    }

    /// A disk without room for one more page counts as full. Some changes may still succeed then, in room that the file has
    /// within, but nobody knows how many.
    fn writability(&self) -> Writability {
        match self.journal.outage().or_else(|| self.disk.refusal()) {
            Some(refusal) => Writability::Refused(refusal),
            None => Writability::Writable,
        }
    }

    async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        self.memory.create_with(sessions, options).await
    }

    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        self.memory.has(sessions).await
    }

    async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        self.memory.lookup(sessions).await
    }

    async fn destroy_with(
        &self,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        self.memory.destroy_with(sessions, lease).await
    }

    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        self.memory.grant_lease(ttl, owner).await
    }

    async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        self.memory.keep_lease_alive(lease).await
    }

    async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        self.memory.lease_owner(lease).await
    }

    async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError> {
        self.memory.revoke_lease_with(lease, linger).await
    }

    async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError> {
        self.memory.list_leases(query).await
    }

    async fn expire_leases(&self) -> Result<Infallible, StorageError> {
        self.memory.expire_leases().await
    }

    async fn lease_count(&self) -> Result<u64, StorageError> {
        self.memory.lease_count().await
    }

    async fn session_count(&self) -> Result<u64, StorageError> {
        self.memory.session_count().await
    }

    async fn log(&self) -> Result<LogExtent, StorageError> {
        self.memory.log().await
    }

    async fn changes_after(
        &self,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        self.memory.changes_after(registry_id, partition, after, limit).await
    }

    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError> {
        self.memory.marks(positions).await
    }

    async fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        self.memory.buckets_under(registry_id, known, leases).await
    }

    async fn read_buckets(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        self.memory.read_buckets(registry_id, known, buckets, limit, with_leases).await
    }
}

#[cfg(test)]
mod tests;
