//! The file storage: the memory storage, made durable by a journal.
//!
//! Open a registry with [`FileStorage::open`], or with the URL `file:PATH`. [`backup()`] copies its file, even while a
//! server uses it.
//!
//! # How it works
//!
//! Reads never touch the disk. Changes are made in memory and recorded in a journal (`storage/journal.rs`). One thread
//! writes the records to disk, many changes per sync. Only then are the changes acknowledged and shown to log
//! followers.
//!
//! The file is a redb database. It holds the end of the log, with one row per batch of records, and a checkpoint of
//! each bucket: its sessions and the last record that they reflect. As changes arrive, checkpoints are rewritten one
//! bucket at a time, so that older log rows can be removed. Opening the file reads the checkpoints and replays
//! the log.
//!
//! Each time the file is opened, the log gets a new mark from its end on (`file/openings.rs`). What is appended to a
//! copy of the file therefore has other marks than what is appended to the original.

mod backup;
mod checkpoint;
mod creation;
mod disk;
mod downtime;
mod error;
mod load;
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

/// A registry in a file.
///
/// A change costs a few dozen bytes of the log, and as much again when its bucket's checkpoint is rewritten. The file
/// needs about 20 bytes for each session and 30 for each retained change. It grows to a few times that size, and then
/// stops growing.
///
/// While the disk cannot be written, changes are refused with [`StorageError::Refused`]. Reads of what is on disk still
/// succeed. The storage retries until the write succeeds. After a few seconds without writes, it writes a page to an
/// unnamed file in the registry's folder, to check that the disk still has room and responds.
#[derive(Debug)]
pub struct FileStorage {
    memory: Arc<MemoryStorage>,
    journal: Arc<Journal>,
    disk: Arc<DiskStatus>,
    writer: Option<JoinHandle<()>>,
    vitals: Vitals,
}

impl FileStorage {
    /// Opens the registry in the file at `path`, and logs its progress. Creates the file and its folder if they are
    /// missing.
    ///
    /// # Errors
    ///
    /// Returns a [`FileError`] if the file cannot be opened. Its message says what to do.
    ///
    /// # Panics
    ///
    /// Panics if called outside a tokio runtime.
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
        let options = MemoryOptions::from(options);
        let probe = Probe::new(Arc::clone(&disk), path);
        let store = Store::open(disk, path, options.buckets)?;
        let loaded = load::load(&store, options).map_err(|error| FileError::damaged(path, error))?;
        let (memory, journal) = (Arc::clone(&loaded.memory), Arc::clone(&loaded.journal));
        let disk = Arc::new(DiskStatus::default());
        let writer = Writer::new(store, loaded, probe, Arc::clone(&disk));
        let vitals = Vitals::default();
        let watched = vitals.watched("file writer");
        let writer = thread::Builder::new()
            .name("sessiond-file".to_owned())
            .spawn(move || {
                let _watched = watched;
                writer.run();
            })
            .map_err(|cause| FileError::Io { path: path.to_owned(), cause })?;
        Ok(Self { memory, journal, disk, writer: Some(writer), vitals })
    }
}

impl Drop for FileStorage {
    /// Waits until everything recorded is on disk, which takes one commit, and closes the file.
    fn drop(&mut self) {
        self.journal.close();
        if let Some(writer) = self.writer.take() {
            // If the writer panicked, the panic has been reported already.
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

    /// Reports whether changes can be made. A disk without room for one more page counts as full, although some changes
    /// may still fit into free space within the file.
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
